//go:build !unix

package arpc

import "syscall"

// setBuffers does nothing here.
func setBuffers(int) func(network, address string, c syscall.RawConn) error {
	return func(string, string, syscall.RawConn) error { return nil }
}
