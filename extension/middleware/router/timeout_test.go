package router_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

const soon = 20 * time.Millisecond

func TestTimeout(t *testing.T) {
	var r records
	var release chan struct{}
	var late chan error
	both(t, func(t *testing.T, h arpc.Handler) {
		release, late = make(chan struct{}), make(chan error, 8)
		rec, log := newRecords()
		r = rec
		h.Use(router.Timeout(soon, router.TimeoutOptions{
			Log: log, Routes: map[string]time.Duration{"/long": patience, "/unlimited": 0},
		}))
		h.Handle("/deaf", func(ctx *arpc.Context) { // does not look at its context
			<-release
			late <- ctx.Write("too late")
		})
		h.Handle("/obedient", func(ctx *arpc.Context) {
			<-ctx.Done()
			late <- ctx.Err()
			ctx.Write(ctx.Err())
		})
		typed.Handle(h, func(ctx *arpc.Context, s *string) (*string, error) {
			<-release
			late <- nil
			return s, nil
		})
		h.Handle("/left", func(ctx *arpc.Context) {
			d, ok := ctx.Deadline()
			if !ok {
				ctx.Write(int64(0))
				return
			}
			ctx.Write(int64(time.Until(d)))
		})
		left := func(ctx *arpc.Context) {
			left := int64(0)
			if d, ok := ctx.Deadline(); ok {
				left = int64(time.Until(d))
			}
			ctx.Write(left)
		}
		h.Handle("/long", left)
		h.Handle("/unlimited", left)
		h.HandleStream("/stream", func(s *arpc.Stream) {
			<-s.Context().Done()
			late <- s.Context().Err()
		})
		h.HandleStream("/deaf stream", func(s *arpc.Stream) {
			<-release
			late <- s.Send("too late")
		})
	}, func(t *testing.T, c *arpc.Client) {
		ctx := wait(t)
		isFailed(t, c.CallWith(ctx, "/obedient", nil, nil), arpc.CodeDeadlineExceeded)
		if err := recv(t, late, "handler"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the handler's context: %v", err)
		}

		// The answer comes while the handler still runs, and is the only one.
		isFailed(t, c.CallWith(ctx, "/deaf", nil, nil), arpc.CodeDeadlineExceeded)
		release <- struct{}{}
		if err := recv(t, late, "handler"); !errors.Is(err, arpc.ErrAnswered) {
			t.Errorf("the late answer: %v", err)
		}
		_, err := typed.Call(ctx, c, new(string))
		isFailed(t, err, arpc.CodeDeadlineExceeded)
		release <- struct{}{}
		recv(t, late, "handler")

		// A notification is in the log only.
		if err := c.NotifyWith(ctx, "/deaf", nil); err != nil {
			t.Error(err)
		}
		if line := recv(t, r, "line"); line["method"] != "/deaf" || line["level"] != "WARN" || line["peer"] != c.Conn.LocalAddr().String() {
			t.Errorf("%q", line)
		}
		release <- struct{}{}
		recv(t, late, "handler")

		// Streams.
		isFailed(t, stream(t, ctx, c, "/stream"), arpc.CodeDeadlineExceeded)
		if err := recv(t, late, "handler"); err == nil {
			t.Error("the stream's context is not done")
		}
		isFailed(t, stream(t, ctx, c, "/deaf stream"), arpc.CodeDeadlineExceeded)
		release <- struct{}{}
		if err := recv(t, late, "handler"); arpc.CodeOf(err) != arpc.CodeDeadlineExceeded {
			t.Errorf("sending on a stream that is over: %v", err)
		}

		// Whose deadline counts.
		left := func(ctx context.Context, method string) time.Duration {
			t.Helper()
			var left int64
			if err := c.CallWith(ctx, method, nil, &left); err != nil {
				t.Error(err)
			}
			return time.Duration(left)
		}
		if l := left(ctx, "/left"); l <= 0 || l > soon {
			t.Errorf("%v left, want at most %v", l, soon)
		}
		shorter, cancel := context.WithTimeout(ctx, patience/2)
		defer cancel()
		if l := left(shorter, "/long"); l <= soon || l > patience/2 {
			t.Errorf("%v left, want the caller's %v", l, patience/2)
		}
		if l := left(ctx, "/unlimited"); l <= soon {
			t.Errorf("%v left, want the caller's", l)
		}
	})
}

// Each call gets one answer where handlers return at just the time that they
// have.
func TestTimeoutRace(t *testing.T) {
	const limit = 2 * time.Millisecond
	for _, async := range []bool{false, true} {
		h := arpc.NewHandler()
		h.Use(router.Timeout(limit))
		h.Handle("/race", func(ctx *arpc.Context) {
			<-ctx.Done() // at the same moment the middleware begins to answer
			ctx.Write("done")
		}, async)
		misses := make(chan string, 64)
		ln, dialer := listen(t)
		serve(t, ln, h)
		hc := arpc.NewHandler()
		hc.HandleSessionMiss(func(c *arpc.Client, m *arpc.Message) {
			select {
			case misses <- m.Method():
			default:
			}
		})
		c := dial(t, dialer, hc)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 25 {
					rsp := ""
					err := c.Call("/race", nil, &rsp, patience)
					if err == nil && rsp != "done" || err != nil && arpc.CodeOf(err) != arpc.CodeDeadlineExceeded {
						t.Errorf("%q, %v", rsp, err)
					}
				}
			})
		}
		wg.Wait()
		if len(misses) > 0 {
			t.Errorf("%d answers nobody waits for", len(misses))
		}
	}
}

// A limit that makes no sense is none.
func TestTimeoutNone(t *testing.T) {
	for _, d := range []time.Duration{0, -1} {
		h := arpc.NewHandler()
		h.Use(router.Timeout(d))
		h.Handle("/call", func(ctx *arpc.Context) { ctx.Write(nil) })
		c := start(t, h)
		if err := c.Call("/call", nil, nil, patience); err != nil {
			t.Error(err)
		}
	}
}

// The answer of an ordered handler that blocks comes in time on each adapter,
// though its connection's answers are sent together.
func TestTimeoutAdapters(t *testing.T) {
	for _, std := range []int{0, -1} {
		h := arpc.NewHandler()
		h.Use(router.Timeout(soon))
		release := make(chan struct{})
		h.Handle("/deaf", func(ctx *arpc.Context) { <-release })
		h.Handle("/quick", func(ctx *arpc.Context) { ctx.Write(nil) })
		ln, dialer := listen(t)
		server := arpc.NewServer(h, arpc.StdConns(std))
		served := make(chan error, 1)
		go func() { served <- server.Serve(ln) }()
		c := dial(t, dialer, arpc.NewHandler())
		for range 20 { // a route that is known to be quick runs elsewhere
			if err := c.Call("/quick", nil, nil, patience); err != nil {
				t.Fatal(err)
			}
		}
		isFailed(t, c.Call("/deaf", nil, nil, patience), arpc.CodeDeadlineExceeded)
		close(release)
		if err := c.Call("/quick", nil, nil, patience); err != nil {
			t.Error(err)
		}
		c.Stop()
		server.Stop() //nolint:errcheck // Serve says more
		if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
			t.Error(err)
		}
	}
}

// A handler that answers later has the deadline, and answers itself.
func TestTimeoutAnswerLater(t *testing.T) {
	h := arpc.NewHandler()
	h.Use(router.Timeout(soon))
	h.Handle("/later", func(ctx *arpc.Context) {
		ctx.AnswerLater()
		go func() {
			<-ctx.Done()
			ctx.Write(ctx.Err())
		}()
	})
	c := start(t, h)
	isFailed(t, c.Call("/later", nil, nil, patience), arpc.CodeDeadlineExceeded)
}
