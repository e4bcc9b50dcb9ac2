//go:build !linux

package core

import (
	"errors"
	"net"
)

// polls does not exist on this system; everything is served by the std adapter.
type polls struct{}

func newPolls(int, func(string, ...any)) (*polls, error) {
	return nil, errors.New("no poll adapter on this system")
}

func (*polls) adopt(*Conn, *net.TCPConn) error { return errors.ErrUnsupported }

func (*polls) stop() error { return nil }
