//go:build !unix

package core

import "net"

// spare does nothing on systems without a limit on descriptors.
type spare struct{}

func newSpare() *spare { return &spare{} }

func (*spare) refuse(net.Listener) int { return 0 }

func (*spare) ensure() {}

func (*spare) close() {}
