package router_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

func TestLimit(t *testing.T) {
	captureLog(t)
	var running chan string
	var release chan struct{}
	both(t, func(t *testing.T, h arpc.Handler) {
		running, release = make(chan string, 8), make(chan struct{})
		h.Use(router.Limit(router.LimitOptions{
			Route:  router.Quota{Concurrency: 1},
			Routes: map[string]router.Quota{"/rate": {Rate: 0.001, Burst: 3}, "/probe": {}},
		}))
		h.Handle("/rate", func(ctx *arpc.Context) { running <- "rate"; ctx.Write(nil) })
		h.Handle("/probe", func(ctx *arpc.Context) { ctx.Write(nil) })
		h.Handle("/busy", func(ctx *arpc.Context) {
			running <- "busy"
			<-release
			ctx.Write(nil)
		}, true)
		h.Handle("/later", func(ctx *arpc.Context) {
			ctx.AnswerLater()
			running <- "later"
			go func() {
				<-release
				ctx.Write(nil)
			}()
		})
		h.Handle("/panic", func(ctx *arpc.Context) { panic("on purpose") })
		h.HandleStream("/stream", func(s *arpc.Stream) {
			running <- "stream"
			<-release
		})
	}, func(t *testing.T, c *arpc.Client) {
		ctx := wait(t)
		// The rate: a call, a notification, and a call.
		if err := errors.Join(c.CallWith(ctx, "/rate", nil, nil), c.NotifyWith(ctx, "/rate", nil), c.CallWith(ctx, "/rate", nil, nil)); err != nil {
			t.Fatal(err)
		}
		err := c.CallWith(ctx, "/rate", nil, nil)
		isRefused(t, err, arpc.CodeResourceExhausted)
		if d, ok := arpc.RetryDelay(err); !ok || d < 990*time.Second || d > 1000*time.Second {
			t.Errorf("RetryAfter: %v, %v", d, ok)
		}
		if err := errors.Join(c.NotifyWith(ctx, "/rate", nil), c.CallWith(ctx, "/probe", nil, nil)); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			recv(t, running, "handler")
		}
		if len(running) > 0 {
			t.Error("the notification beyond the rate was handled")
		}

		// The concurrency.
		for _, method := range []string{"/busy", "/later"} {
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := c.CallWith(ctx, method, nil, nil); err != nil {
					t.Errorf("%s: %v", method, err)
				}
			})
			recv(t, running, "handler")
			isRefused(t, c.CallWith(ctx, method, nil, nil), arpc.CodeResourceExhausted)
			if err := c.NotifyWith(ctx, method, nil); err != nil {
				t.Error(err)
			}
			isRefused(t, c.CallWith(ctx, method, nil, nil), arpc.CodeResourceExhausted)
			release <- struct{}{}
			wg.Wait()
			if len(running) > 0 {
				t.Errorf("%s: one too many was handled", method)
			}
		}
		s, err := c.OpenStream(ctx, "/stream")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send("hello"); err != nil {
			t.Fatal(err)
		}
		recv(t, running, "stream")
		isRefused(t, stream(t, ctx, c, "/stream"), arpc.CodeResourceExhausted)
		release <- struct{}{}
		if err := s.RecvWith(ctx, nil); err == nil {
			t.Error("no end")
		}
		go func() { release <- struct{}{} }()
		for { // the place is free a moment after the peer has learned of the end
			err := stream(t, ctx, c, "/stream")
			if arpc.CodeOf(err) != arpc.CodeResourceExhausted {
				break
			}
		}
		recv(t, running, "stream")

		// A panic gives the place back.
		for range 3 {
			if err := c.CallWith(ctx, "/panic", nil, nil); arpc.CodeOf(err) != arpc.CodeInternal {
				t.Errorf("panic: %v", err)
			}
		}
	})
}

// Connections of one address share the quota, unless Key says otherwise.
func TestLimitPeers(t *testing.T) {
	for _, keyed := range []bool{false, true} {
		o := router.LimitOptions{Peer: router.Quota{Rate: 0.001, Burst: 2}}
		if keyed {
			o.Key = func(ctx *arpc.Context) string { return ctx.Metadata()["user"] }
		}
		h := arpc.NewHandler()
		h.Use(router.Limit(o))
		h.Handle("/call", func(ctx *arpc.Context) { ctx.Write(nil) })
		ln, dialer := listen(t)
		serve(t, ln, h)
		a, b := dial(t, dialer, arpc.NewHandler()), dial(t, dialer, arpc.NewHandler())
		call := func(c *arpc.Client, user string) error {
			return c.CallWith(arpc.AddMetadata(wait(t), "user", user), "/call", nil, nil)
		}
		if err := errors.Join(call(a, "ann"), call(b, "ann")); err != nil {
			t.Error(err)
		}
		isRefused(t, call(a, "ann"), arpc.CodeResourceExhausted)
		if err := call(b, "bob"); (err == nil) != keyed {
			t.Errorf("keyed %v: %v", keyed, err)
		}
	}
	// Those without an IP address are told apart by their connections.
	h := arpc.NewHandler()
	h.Use(router.Limit(router.LimitOptions{Peer: router.Quota{Rate: 0.001, Burst: 1}}))
	h.Handle("/call", func(ctx *arpc.Context) { ctx.Write(nil) })
	ln, dialer := arpc.Pipe()
	serve(t, ln, h)
	for range 2 {
		c := dial(t, dialer, arpc.NewHandler())
		if err := c.Call("/call", nil, nil, patience); err != nil {
			t.Error(err)
		}
		isRefused(t, c.Call("/call", nil, nil, patience), arpc.CodeResourceExhausted)
	}
}

// The handlers that run at the same time, over many connections, never exceed
// the limit.
func TestLimitConcurrencyOfHandlers(t *testing.T) {
	const limit = 3
	var running, passed, refused atomic.Int32
	h := arpc.NewHandler()
	h.Use(router.Limit(router.LimitOptions{Route: router.Quota{Concurrency: limit}}))
	h.Handle("/call", func(ctx *arpc.Context) {
		if n := running.Add(1); n > limit {
			t.Errorf("%d handlers at the same time", n)
		}
		defer running.Add(-1)
		ctx.Body()
		ctx.Write(nil)
	}, true)
	ln, dialer := listen(t)
	serve(t, ln, h)
	var wg sync.WaitGroup
	for range 4 {
		c := dial(t, dialer, arpc.NewHandler())
		for range 4 {
			wg.Go(func() {
				for range 250 {
					switch err := c.Call("/call", nil, nil, patience); {
					case err == nil:
						passed.Add(1)
					case arpc.IsRefused(err) && arpc.CodeOf(err) == arpc.CodeResourceExhausted:
						refused.Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if passed.Load() == 0 || passed.Load()+refused.Load() != 4000 {
		t.Errorf("%d have passed, %d were refused", passed.Load(), refused.Load())
	}
}
