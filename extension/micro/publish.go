package micro

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc"
)

// A Publication is a node that this program provides. The Registry keeps it alive.
type Publication struct {
	registry Registry
	ttl      time.Duration

	turn      chan struct{} // held while the registry is told, so that it is told in order; it guards withdrawn, and changes of node
	withdrawn bool
	node      atomic.Pointer[Node]
}

// Publish registers a node; call it when the server listens. See Registry.Register for ttl and errors.
func Publish(ctx context.Context, r Registry, n Node, ttl time.Duration) (*Publication, error) {
	if err := r.Register(ctx, n, ttl); err != nil {
		return nil, err
	}
	p := &Publication{registry: r, ttl: ttl, turn: make(chan struct{}, 1)}
	p.node.Store(&n)
	return p, nil
}

// Node returns what is published.
func (p *Publication) Node() Node { return *p.node.Load() }

// lock waits for the turn, as long as ctx lasts.
func (p *Publication) lock(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

func (p *Publication) unlock() { <-p.turn }

// Update publishes what change has made of the node: its weight, its metadata, its address. change must replace the metadata, not change
// it. What identifies the node cannot be changed: that is CodeInvalidArgument. When it fails, what was published stays.
func (p *Publication) Update(ctx context.Context, change func(*Node)) error {
	if err := p.lock(ctx); err != nil {
		return err
	}
	defer p.unlock()
	if p.withdrawn {
		return ErrClosed
	}
	n := p.Node()
	change(&n)
	if n.Key() != p.Node().Key() {
		return invalid("an update makes another node of it")
	}
	if err := p.registry.Register(ctx, n, p.ttl); err != nil {
		return err
	}
	p.node.Store(&n)
	return nil
}

// Withdraw deregisters the node: clients begin nothing new there. Calling it again does nothing, unless it has failed.
func (p *Publication) Withdraw(ctx context.Context) error {
	if err := p.lock(ctx); err != nil {
		return err
	}
	defer p.unlock()
	if p.withdrawn {
		return nil
	}
	err := p.registry.Deregister(ctx, p.Node())
	p.withdrawn = err == nil
	return err
}

// Shutdown ends a server in order: it withdraws what it has published and drains the server by its Shutdown, which tells clients by the connection
// too and refuses, unexecuted, what they have sent before they heard of it. It waits for a registry that cannot be reached for 3 seconds and goes
// on without it. The error has all that went wrong.
func Shutdown(ctx context.Context, s *arpc.Server, published ...*Publication) error {
	var errs []error
	withdraw, cancel := context.WithTimeout(ctx, maxWithdraw)
	defer cancel()
	for _, p := range published {
		errs = append(errs, p.Withdraw(withdraw))
	}
	return errors.Join(append(errs, s.Shutdown(ctx))...)
}

const maxWithdraw = 3 * time.Second

// HandleHealth registers a route that says whether the program is well, for Config.HealthRoute of its clients: healthy returns nil, or why it is
// not. It runs for each check of each client, in parallel; nil is always well.
func HandleHealth(h arpc.Handler, route string, healthy func(ctx context.Context) error) {
	h.Handle(route, func(ctx *arpc.Context) {
		var err error
		if healthy != nil {
			err = healthy(ctx)
		}
		if err != nil {
			ctx.Error(err) //nolint:errcheck // the client finds out
			return
		}
		ctx.Write(nil) //nolint:errcheck // the client finds out
	}, true)
}
