package arpc

import (
	"net"
	"sync/atomic"
)

// A ClientPool is a fixed set of clients over which calls are spread.
type ClientPool struct {
	clients []*Client
	next    atomic.Uint64
}

// NewClientPool connects size clients with one dialer. They share a Handler: the one given or one copy of DefaultHandler. If
// one of them cannot connect, the others are stopped and its error is returned.
func NewClientPool(dialer func() (net.Conn, error), size int, opts ...ClientOption) (*ClientPool, error) {
	if size <= 0 {
		return nil, ErrClientInvalidPoolDialers
	}
	dialers := make([]func() (net.Conn, error), size)
	for i := range dialers {
		dialers[i] = dialer
	}
	return NewClientPoolFromDialers(dialers, opts...)
}

// NewClientPoolFromDialers is NewClientPool with one client per dialer.
func NewClientPoolFromDialers(dialers []func() (net.Conn, error), opts ...ClientOption) (*ClientPool, error) {
	if len(dialers) == 0 {
		return nil, ErrClientInvalidPoolDialers
	}
	p := &ClientPool{}
	opts = append([]ClientOption{DefaultHandler.Clone()}, opts...) // a Handler among opts comes later, and wins
	for _, d := range dialers {
		c, err := NewClient(d, opts...)
		if err != nil {
			p.Stop()
			return nil, err
		}
		p.clients = append(p.clients, c)
	}
	return p, nil
}

// Size returns the number of clients.
func (p *ClientPool) Size() int { return len(p.clients) }

// Get returns client i modulo Size.
func (p *ClientPool) Get(i int) *Client { return p.clients[uint(i)%uint(len(p.clients))] }

// Next returns the clients in turn, leaving out those without a connection unless all are.
func (p *ClientPool) Next() *Client {
	start := p.next.Add(1)
	for i := range uint64(len(p.clients)) {
		if c := p.clients[(start+i)%uint64(len(p.clients))]; c.CheckState() == nil {
			return c
		}
	}
	return p.clients[start%uint64(len(p.clients))]
}

// Handler returns the clients' Handler.
func (p *ClientPool) Handler() Handler { return p.clients[0].Handler }

// Stop stops all clients.
func (p *ClientPool) Stop() {
	for _, c := range p.clients {
		c.Stop()
	}
}
