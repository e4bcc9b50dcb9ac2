//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package core

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// reusePort is net.ListenConfig.Control for Address.ReusePort.
func reusePort(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}
