package router_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

func TestBreaker(t *testing.T) {
	captureLog(t)
	var broken atomic.Bool
	var handled atomic.Int32
	var r records
	both(t, func(t *testing.T, h arpc.Handler) {
		broken.Store(true)
		handled.Store(0)
		rec, log := newRecords()
		r = rec
		h.Use(router.Breaker(router.BreakerOptions{Least: 4, Open: 50 * time.Millisecond, Log: log}))
		h.Use(router.Timeout(patience))
		h.Use(router.Recover())
		work := func() error {
			handled.Add(1)
			switch {
			case !broken.Load():
				return nil
			case handled.Load()%2 == 0:
				panic("on purpose")
			}
			return arpc.CodeUnavailable
		}
		h.Handle("/call", func(ctx *arpc.Context) {
			ctx.Err() // a handler that looks at its context counts like others
			ctx.Error(work())
		})
		h.Handle("/other", func(ctx *arpc.Context) { ctx.Write(nil) })
		h.HandleStream("/stream", func(s *arpc.Stream) {
			if err := work(); err != nil {
				s.Reset(err)
			}
		})
	}, func(t *testing.T, c *arpc.Client) {
		ctx := wait(t)
		do := map[string]func() error{
			"/call":   func() error { return c.CallWith(ctx, "/call", nil, nil) },
			"/stream": func() error { return stream(t, ctx, c, "/stream") },
		}
		for _, method := range []string{"/call", "/stream"} {
			broken.Store(true)
			handled.Store(0)
			for {
				err := do[method]()
				if arpc.IsRefused(err) {
					isRefused(t, err, arpc.CodeUnavailable)
					if d, ok := arpc.RetryDelay(err); !ok || d <= 0 || d > 50*time.Millisecond {
						t.Errorf("RetryAfter: %v, %v", d, ok)
					}
					break
				}
				if err == nil {
					t.Fatalf("%s: no error", method)
				}
			}
			if n := handled.Load(); n < 4 {
				t.Errorf("%s: refused after %d failures", method, n)
			}
			if line := recv(t, r, "line"); line["method"] != method || line["level"] != "WARN" {
				t.Errorf("%q", line)
			}
			if err := c.CallWith(ctx, "/other", nil, nil); err != nil {
				t.Errorf("another method: %v", err)
			}
			broken.Store(false)
			for len(r) == 0 {
				if err := do[method](); arpc.CodeOf(err) == arpc.CodeUnavailable && !arpc.IsRefused(err) {
					t.Errorf("%s: %v", method, err)
				}
			}
			if line := recv(t, r, "line"); line["method"] != method || line["level"] != "INFO" {
				t.Errorf("%q", line)
			}
		}
		// Notifications count, and are refused.
		broken.Store(true)
		for !arpc.IsRefused(do["/call"]()) {
			if err := c.NotifyWith(ctx, "/call", nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A peer cannot open the breaker for others: by cancelling, by deadlines that
// nobody could keep, by resetting its streams, by going away.
func TestBreakerHostilePeer(t *testing.T) {
	h := arpc.NewHandler()
	h.Use(router.Breaker(router.BreakerOptions{Least: 1, Open: time.Hour}))
	started := make(chan struct{}, 64)
	ended := make(chan struct{}, 64)
	h.Use(func(ctx *arpc.Context) { ctx.OnEnd(func(error) { ended <- struct{}{} }) })
	h.Handle("/wait", func(ctx *arpc.Context) {
		started <- struct{}{}
		<-ctx.Done()
		ctx.Error(&arpc.Error{Code: arpc.CodeInternal, Message: "the database says: " + ctx.Err().Error()})
	}, true)
	h.HandleStream("/stream", func(s *arpc.Stream) {
		started <- struct{}{}
		<-s.Context().Done()
	})
	ln, dialer := listen(t)
	serve(t, ln, h)
	good, bad := dial(t, dialer, arpc.NewHandler()), dial(t, dialer, arpc.NewHandler())

	attack := func(ctx context.Context, f func(context.Context) error, stop func()) {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- f(ctx) }()
		recv(t, started, "handler")
		stop()
		if err := recv(t, done, "end"); err == nil {
			t.Error("no error")
		}
		recv(t, ended, "end of the handler")
	}
	call := func(ctx context.Context) error { return bad.CallWith(ctx, "/wait", nil, nil) }
	open := func(ctx context.Context) error { return stream(t, ctx, bad, "/stream") }

	for _, f := range []func(context.Context) error{call, open} {
		ctx, cancel := context.WithCancel(wait(t))
		attack(ctx, f, cancel)
		ctx, cancel = context.WithTimeout(wait(t), 20*time.Millisecond)
		attack(ctx, f, func() {})
		cancel()
	}
	s, err := bad.OpenStream(wait(t), "/stream")
	if err != nil {
		t.Fatal(err)
	}
	attack(wait(t), func(context.Context) error {
		s.Send("hello") //nolint:errcheck // Recv says why
		return s.Recv(nil)
	}, func() { s.Reset(arpc.CodeInternal) })
	attack(wait(t), call, bad.Stop)

	ctx, cancel := context.WithCancel(wait(t))
	done := make(chan error, 1)
	go func() { done <- good.CallWith(ctx, "/wait", nil, nil) }()
	select {
	case <-started:
	case err := <-done:
		t.Errorf("the other peer: %v", err)
		done <- nil
	}
	cancel()
	<-done
	if err := stream(t, canceledSoon(t, started), good, "/stream"); arpc.IsRefused(err) {
		t.Errorf("the other peer's stream: %v", err)
	}
}

// canceledSoon returns a context that ends when something has started.
func canceledSoon(t *testing.T, started <-chan struct{}) context.Context {
	ctx, cancel := context.WithCancel(wait(t))
	go func() {
		defer cancel()
		select {
		case <-started:
		case <-ctx.Done():
		}
	}()
	return ctx
}
