//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package core

import (
	"errors"
	"fmt"
	"syscall"
)

// reusePort refuses: this system cannot share a port between sockets.
func reusePort(string, string, syscall.RawConn) error {
	return fmt.Errorf("reuseport: %w", errors.ErrUnsupported)
}
