package core

import (
	"testing"

	"golang.org/x/sys/unix"
)

// keepAliveOf returns what the system has been told about a connection of the poll adapter.
func keepAliveOf(t testing.TB, c *Conn) (on bool, idle int) {
	t.Helper()
	fd := int(c.socket().(*pollSocket).fd)
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
	must(t, err)
	idle, err = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
	must(t, err)
	return n != 0, idle
}
