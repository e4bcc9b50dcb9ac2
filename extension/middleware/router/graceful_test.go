package router_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

func TestGraceful(t *testing.T) {
	var g *router.Graceful
	var running chan string
	var release chan struct{}
	var notified atomic.Int32
	both(t, func(t *testing.T, h arpc.Handler) {
		g, running, release = new(router.Graceful), make(chan string, 3), make(chan struct{})
		notified.Store(0)
		h.Use(g.Handler())
		h.Handle("/call", func(ctx *arpc.Context) {
			running <- "call"
			<-release
			ctx.Write("done")
		}, true)
		h.Handle("/notify", func(ctx *arpc.Context) {
			notified.Add(1)
			running <- "notify"
			<-release
		}, true)
		h.HandleStream("/stream", func(s *arpc.Stream) {
			running <- "stream"
			<-release
			s.SendAndClose("done")
		})
	}, func(t *testing.T, c *arpc.Client) {
		ctx := wait(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			rsp := ""
			if err := c.CallWith(ctx, "/call", nil, &rsp); err != nil || rsp != "done" {
				t.Errorf("the call that was running: %q, %v", rsp, err)
			}
		})
		s, err := c.OpenStream(ctx, "/stream")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.CloseSend(), c.NotifyWith(ctx, "/notify", nil)); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			recv(t, running, "handler")
		}

		over, cancel := context.WithCancel(ctx)
		cancel()
		if err := g.Drain(over); !errors.Is(err, context.Canceled) {
			t.Errorf("Drain with work: %v", err)
		}
		isRefused(t, c.CallWith(ctx, "/call", nil, nil), arpc.CodeUnavailable)
		isRefused(t, stream(t, ctx, c, "/stream"), arpc.CodeUnavailable)
		if err := c.NotifyWith(ctx, "/notify", nil); err != nil {
			t.Error(err)
		}
		isRefused(t, c.CallWith(ctx, "/call", nil, nil), arpc.CodeUnavailable)

		close(release)
		rsp := ""
		if err := s.RecvWith(ctx, &rsp); err != nil || rsp != "done" {
			t.Errorf("the stream that was running: %q, %v", rsp, err)
		}
		if err := g.Drain(ctx); err != nil {
			t.Errorf("Drain: %v", err)
		}
		g.Shutdown()
		if err := g.Drain(over); err != nil {
			t.Errorf("Drain after the end: %v", err)
		}
		wg.Wait()
		if n := notified.Load(); n != 1 {
			t.Errorf("%d notifications", n)
		}
	})
}

// Nothing is let in after Drain has returned, whatever comes at the same time.
func TestGracefulConcurrent(t *testing.T) {
	for range 20 {
		var g router.Graceful
		var running, ran atomic.Int32
		h := arpc.NewHandler()
		h.Use(g.Handler())
		h.Handle("/call", func(ctx *arpc.Context) {
			running.Add(1)
			ran.Add(1)
			ctx.Write(nil)
			running.Add(-1)
		}, true)
		c := start(t, h)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for c.Call("/call", nil, nil, patience) == nil {
				}
			})
		}
		for ran.Load() < 50 {
			if err := c.Call("/call", nil, nil, patience); err != nil {
				t.Fatal(err)
			}
		}
		g.Shutdown()
		if n := running.Load(); n != 0 {
			t.Fatalf("%d handlers run after Shutdown", n)
		}
		wg.Wait()
		if n := running.Load(); n != 0 {
			t.Fatalf("%d handlers run in the end", n)
		}
	}
}
