package core

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// unsent returns how many bytes the peer's system has not acknowledged.
func unsent(t testing.TB, nc net.Conn) int {
	raw, err := nc.(syscall.Conn).SyscallConn()
	must(t, err)
	n := 0
	must(t, raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }))
	must(t, err)
	return n
}
