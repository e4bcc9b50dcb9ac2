package zookeeper

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
)

// A gate is a network that may swallow everything.
type gate struct {
	shut atomic.Bool
	// sends is called with each request before it is sent, if it is not nil, and may wait.
	sends func(request []byte)
}

func (g *gate) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if g.shut.Load() {
		return nil, errors.New("the gate is shut")
	}
	nc, err := new(net.Dialer).DialContext(ctx, network, addr)
	return &gateConn{nc, g}, err
}

type gateConn struct {
	net.Conn
	gate *gate
}

func (c *gateConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.gate.shut.Load() {
			return n, err
		}
	}
}

func (c *gateConn) Write(b []byte) (int, error) {
	if c.gate.shut.Load() {
		return len(b), nil
	}
	if c.gate.sends != nil {
		c.gate.sends(b)
	}
	return c.Conn.Write(b)
}
