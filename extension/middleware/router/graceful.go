package router

import (
	"context"
	"sync"

	"github.com/arpc-go/arpc"
)

var errDraining = &arpc.Error{Code: arpc.CodeUnavailable, Message: "the peer is draining"}

// A Graceful refuses new work while it drains, and knows when the old work is
// done. Other than arpc.Server.Shutdown it leaves the connections open, so that
// answers to this side's own calls still arrive, and it works on clients. The
// zero value is ready for use; it must not be copied.
//
//	serving --Drain or Shutdown--> draining
type Graceful struct {
	mu       sync.Mutex
	running  int
	draining bool
	idle     chan struct{} // closed when draining and running is 0; nil before Drain
}

// Handler returns the middleware. It refuses calls, notifications and streams
// with CodeUnavailable after Drain or Shutdown. One Graceful may be installed
// in many handlers.
func (g *Graceful) Handler() arpc.HandlerFunc {
	return func(ctx *arpc.Context) {
		g.mu.Lock()
		if g.draining {
			g.mu.Unlock()
			refuse(ctx, errDraining)
			return
		}
		g.running++
		g.mu.Unlock()
		ctx.OnEnd(g.done)
	}
}

func (g *Graceful) done(error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running--; g.running == 0 && g.idle != nil {
		close(g.idle)
	}
}

// Drain refuses what arrives from now on, for good, and returns when everything
// that was let in before is done: handlers have returned, and have answered
// where they called AnswerLater. It returns ctx's error when that is done
// first; it may be called again. A handler that calls it waits for itself.
func (g *Graceful) Drain(ctx context.Context) error {
	g.mu.Lock()
	if g.draining = true; g.idle == nil {
		g.idle = make(chan struct{})
		if g.running == 0 {
			close(g.idle)
		}
	}
	idle := g.idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	default:
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Shutdown is Drain without an end of the waiting.
func (g *Graceful) Shutdown() { g.Drain(context.Background()) } //nolint:errcheck // there is none
