package caller

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arpc-go/arpc"
)

func TestBadOptions(t *testing.T) {
	for what, f := range map[string]func(){
		"Retry of nil":        func() { Retry(nil) },
		"Hedge of nil":        func() { Hedge(nil, time.Second) },
		"Hedge at once":       func() { Hedge(&fake{}, 0) },
		"Hedge before":        func() { Hedge(&fake{}, -1) },
		"Pick of nil":         func() { Pick(nil) },
		"no attempts":         func() { Attempts(0) },
		"negative attempts":   func() { Attempts(-1) },
		"no back-off":         func() { Backoff(0, time.Second) },
		"negative back-off":   func() { Backoff(-1, time.Second) },
		"back-off in reverse": func() { Backoff(2, 1) },
		"no codes":            func() { Codes() },
		"code of success":     func() { Codes(arpc.CodeUnavailable, 0) },
		"method without name": func() { Idempotent("") },
		"no burst":            func() { Budget(0, 0.1) },
		"negative ratio":      func() { Budget(1, -0.1) },
		"no ratio":            func() { Budget(1, math.NaN()) },
		"infinite ratio":      func() { Budget(1, math.Inf(1)) },
	} {
		t.Run(what, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
	Retry(&fake{}, nil, Attempts(1), Backoff(1, math.MaxInt64), Idempotent(), Budget(math.MaxInt, 0)) // odd, but good
}

// TestRetryDecides has a table of what is tried again.
func TestRetryDecides(t *testing.T) {
	refusedFrom := func(t *testing.T, code arpc.Code) error { // only a peer can make one
		h := arpc.NewHandler()
		h.Handle("/", func(ctx *arpc.Context) { ctx.Error(arpc.Refused(code)) })
		_, dialer := serve(t, h)
		err := dial(t, dialer).Call("/", nil, nil, patience)
		if !arpc.IsRefused(err) {
			t.Fatalf("not refused: %v", err)
		}
		return err
	}
	local := &arpc.Error{Code: arpc.CodeUnavailable, Message: "lost"}
	unsent := &arpc.Error{Code: arpc.CodeUnavailable, Message: "no connection", Unsent: true}
	lie := &arpc.Error{Code: arpc.CodeUnavailable, Message: "the peer cannot say so", Remote: true, Unsent: true}
	for _, c := range []struct {
		what       string
		err        error
		idempotent bool
		opts       []Option
		attempts   int
	}{
		{"not sent", unsent, false, nil, 3},
		{"not sent, within another error", fmt.Errorf("wrapped: %w", unsent), false, nil, 3},
		{"sent", local, false, nil, 1},
		{"the peer's", lie, false, nil, 1},
		{"sent, idempotent", local, true, nil, 3},
		{"sent, idempotent by name", local, false, []Option{Idempotent("/x", "/method")}, 3},
		{"another idempotent by name", local, false, []Option{Idempotent("/x")}, 1},
		{"refused", refusedFrom(t, arpc.CodeUnavailable), false, nil, 3},
		{"refused for good", refusedFrom(t, arpc.CodePermissionDenied), false, nil, 1},
		{"refused for good, idempotent", refusedFrom(t, arpc.CodePermissionDenied), true, nil, 1},
		{"busy", busy, true, nil, 1},
		{"busy for a time", later(0), true, nil, 3},
		{"busy for a time, not idempotent", later(0), false, nil, 1},
		{"busy for too long", later(time.Hour), true, nil, 1},
		{"another code", arpc.CodeAborted, true, nil, 1},
		{"code asked for", arpc.CodeAborted, true, []Option{Codes(arpc.CodeAborted)}, 3},
		{"code not asked for", local, true, []Option{Codes(arpc.CodeAborted)}, 1},
		{"five attempts", local, true, []Option{Attempts(5)}, 5},
		{"one attempt", local, true, []Option{Attempts(1)}, 1},
		{"no budget", local, true, []Option{Attempts(5), Budget(2, 0)}, 3},
		{"an error of another kind", errors.New("cannot encode"), true, nil, 1},
	} {
		t.Run(c.what, func(t *testing.T) {
			ctx := context.Background()
			if c.idempotent {
				ctx = arpc.WithIdempotent(ctx)
			}
			n := 0
			f := &fake{call: func(ctx context.Context, _ any) error {
				n++
				return c.err
			}}
			opts := append([]Option{Backoff(1, 1)}, c.opts...)
			if err := Retry(f, opts...).CallWith(ctx, "/method", nil, nil); err != c.err || n != c.attempts {
				t.Errorf("%d attempts, want %d; %v", n, c.attempts, err)
			}
		})
	}
}

// stopped is a client that has ended.
var stopped = sync.OnceValue(func() *arpc.Client {
	ln, dialer := arpc.Pipe()
	s := arpc.NewServer(arpc.NewHandler())
	done := make(chan struct{})
	go func() { s.Serve(ln); close(done) }() //nolint:errcheck // it ends by Stop
	c, err := arpc.NewClient(dialer, arpc.NewHandler())
	if err != nil {
		panic(err)
	}
	c.Stop()
	s.Stop() //nolint:errcheck // nothing is lost
	<-done
	return c
})

func TestRetryHidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		f := &fake{call: func(context.Context, any) error {
			n++
			return unavailable
		}}
		if err := Retry(Retry(f)).CallWith(context.Background(), "/method", nil, nil); err != unavailable || n != 1 {
			t.Errorf("%d attempts: %v", n, err)
		}
	})
}

func TestRetryWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start := time.Now()
		fail := error(unavailable)
		f := &fake{call: func(context.Context, any) error {
			at = append(at, time.Since(start))
			return fail
		}}
		ctx := arpc.WithIdempotent(context.Background())
		call := func(ctx context.Context, opts ...Option) {
			t.Helper()
			at, start = nil, time.Now()
			if err := Retry(f, opts...).CallWith(ctx, "/method", nil, nil); err != fail {
				t.Errorf("not the last error: %v", err)
			}
		}

		// Each pause is a random part of twice the one before, up to the limit.
		var most [9]time.Duration
		for range 400 {
			call(ctx, Attempts(10), Backoff(10*time.Millisecond, 80*time.Millisecond))
			for i := range most {
				most[i] = max(most[i], at[i+1]-at[i])
			}
		}
		for i, d := range most {
			limit := min(10*time.Millisecond<<i, 80*time.Millisecond)
			if d > limit || d < limit*9/10 {
				t.Errorf("the longest of 400 pauses before attempt %d is %v, the limit %v", i+2, d, limit)
			}
		}

		// Not before the peer's time.
		fail = later(3 * time.Second)
		call(ctx)
		if len(at) != 3 || at[1] < 3*time.Second || at[2]-at[1] < 3*time.Second || at[2] > 6*time.Second+150*time.Millisecond {
			t.Errorf("attempts at %v", at)
		}

		// Not beyond the deadline: it is known at once that it cannot be.
		short, cancel := context.WithTimeout(ctx, 4*time.Second)
		defer cancel()
		call(short)
		if len(at) != 2 || time.Since(start) != at[1] {
			t.Errorf("attempts at %v, over at %v", at, time.Since(start))
		}

		// Not when it is cancelled.
		short, cancel = context.WithCancel(ctx)
		time.AfterFunc(time.Second, cancel)
		call(short)
		if len(at) != 2 || at[1] != time.Second || time.Since(start) != time.Second {
			t.Errorf("attempts at %v, over at %v", at, time.Since(start))
		}

		// Without one no longer than a minute.
		fail = later(61 * time.Second)
		call(ctx)
		if len(at) != 1 {
			t.Errorf("attempts at %v", at)
		}
	})
}

func TestRetryIsCancelled(t *testing.T) {
	h := arpc.NewHandler()
	h.Handle("/", func(ctx *arpc.Context) { ctx.Error(later(30 * time.Second)) })
	_, dialer := serve(t, h)
	c := counted(dial(t, dialer))
	ctx, cancel := context.WithCancel(arpc.WithIdempotent(context.Background()))
	result := make(chan error, 1)
	go func() { result <- Retry(c).CallWith(ctx, "/", nil, nil) }()
	recv(t, c.n, "attempt")
	cancel()
	if err := recv(t, result, "end"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestRetryBothWays(t *testing.T) {
	bothWays(t, func(t *testing.T, client *arpc.Client, h arpc.Handler) {
		get := arpc.NewMethod[int, int]("/get", arpc.Idempotent)
		put := arpc.NewMethod[int, int]("/put")
		count := arpc.NewServerStream[int, int]("/count")
		var gets, puts atomic.Int32
		get.Handle(h, func(_ *arpc.Context, n *int) (*int, error) {
			if gets.Add(1)%3 != 0 {
				return nil, arpc.CodeUnavailable
			}
			return n, nil
		})
		put.Handle(h, func(ctx *arpc.Context, n *int) (*int, error) {
			switch puts.Add(1) {
			case 1:
				return nil, arpc.Refused(&arpc.Error{Code: arpc.CodeResourceExhausted, Message: "soon",
					Details: []arpc.Detail{arpc.RetryAfter(time.Millisecond)}})
			case 2:
				return nil, arpc.Refused(arpc.CodeUnavailable)
			case 3:
				return n, nil
			}
			return nil, arpc.CodeUnavailable
		})
		count.Handle(h, func(s arpc.TypedStream[int, int], n *int) error {
			for i := range *n {
				if err := s.Send(&i); err != nil {
					return err
				}
			}
			return nil
		})
		noted := make(chan string, 1)
		h.Handle("/note", func(ctx *arpc.Context) { noted <- string(ctx.Body()) })

		c := Retry(Pick(func() arpc.Caller { return client }), Backoff(1, 1), Idempotent(get.Name()), Budget(100, 0))
		ctx, seven := patient(t), 7
		if res, err := get.Call(ctx, c, &seven); err != nil || *res != 7 || gets.Load() != 3 {
			t.Errorf("get: %v, %d attempts", err, gets.Load())
		}
		done := make(chan error, 1)
		get.CallAsync(c, &seven, func(res *int, err error) {
			if err == nil && *res != 7 {
				err = fmt.Errorf("got %d", *res)
			}
			done <- err
		}, patience)
		if err := recv(t, done, "callback"); err != nil || gets.Load() != 6 {
			t.Errorf("get: %v, %d attempts", err, gets.Load())
		}
		if res, err := put.Call(ctx, c, &seven); err != nil || *res != 7 || puts.Load() != 3 {
			t.Errorf("put: %v, %d attempts", err, puts.Load())
		}
		if _, err := put.Call(ctx, c, &seven); !errors.Is(err, arpc.CodeUnavailable) || puts.Load() != 4 {
			t.Errorf("put: %v, %d attempts", err, puts.Load())
		}
		must(t, c.NotifyWith(ctx, "/note", "x"))
		if s := recv(t, noted, "notification"); s != "x" {
			t.Error(s)
		}
		s, err := count.Call(ctx, c, &seven)
		must(t, err)
		n := 0
		for v, err := range s.All() {
			must(t, err)
			if *v != n {
				t.Fatal(*v)
			}
			n++
		}
		if n != 7 {
			t.Errorf("%d messages", n)
		}
	})
}

// TestRetryToVersion1: a peer of version 1 cannot say that it has refused, so what was sent is not repeated.
func TestRetryToVersion1(t *testing.T) {
	h := arpc.NewHandler()
	var n atomic.Int32
	h.Handle("/", func(ctx *arpc.Context) {
		n.Add(1)
		ctx.Error(arpc.Refused(arpc.CodeUnavailable)) //nolint:errcheck // it goes on or not
	})
	_, dialer := serve(t, h)
	c := Retry(dial(t, dialer, arpc.Protocol(1)), Codes(arpc.CodeUnavailable, arpc.CodeUnknown))
	if err := c.CallWith(patient(t), "/", nil, nil); err == nil || n.Load() != 1 {
		t.Errorf("%d attempts: %v", n.Load(), err)
	}
	if err := c.CallWith(arpc.WithIdempotent(patient(t)), "/", nil, nil); err == nil || n.Load() != 4 {
		t.Errorf("%d attempts: %v", n.Load(), err)
	}
}

// TestRetryWithoutConnection loses a connection, and lets everything fail that is begun until there is another.
func TestRetryWithoutConnection(t *testing.T) {
	h := arpc.NewHandler()
	h.Handle("/echo", func(ctx *arpc.Context) { ctx.Write(ctx.Body()) })
	noted := make(chan struct{}, 1)
	h.Handle("/note", func(*arpc.Context) { noted <- struct{}{} })
	h.HandleStream("/stream", func(s *arpc.Stream) { s.Send("x") })
	_, dialer := serve(t, h)
	for _, what := range []string{"call", "async", "notify", "stream"} {
		t.Run(what, func(t *testing.T) {
			gate := make(chan struct{}, 1)
			gate <- struct{}{}
			client := dial(t, func() (net.Conn, error) { <-gate; return dialer() })
			client.Conn.Close()
			for client.CheckState() == nil { // until it has noticed
			}
			inner := counted(client)
			c := Retry(inner, Backoff(time.Millisecond, time.Millisecond), Attempts(math.MaxInt), Budget(math.MaxInt32, 0))
			result := make(chan error, 1)
			ctx := patient(t)
			go func() {
				var text string
				var err error
				switch what {
				case "call":
					err = c.CallWith(ctx, "/echo", "x", &text)
				case "async":
					err = c.CallAsync("/echo", "x", func(ctx *arpc.Context) {
						err := ctx.Bind(&text)
						if err == nil && text != "x" {
							err = fmt.Errorf("got %q", text)
						}
						result <- err
					}, patience)
					if err == nil {
						return
					}
				case "notify":
					err = c.NotifyWith(ctx, "/note", nil)
					if err == nil {
						recv(t, noted, "notification")
					}
					text = "x"
				case "stream":
					var s *arpc.Stream
					if s, err = c.OpenStream(ctx, "/stream"); err == nil {
						err = s.Recv(&text)
					}
				}
				if err == nil && text != "x" {
					err = fmt.Errorf("got %q", text)
				}
				result <- err
			}()
			recv(t, inner.n, "first attempt")
			recv(t, inner.n, "second attempt")
			gate <- struct{}{}
			must(t, recv(t, result, "end"))
		})
	}
}

// TestRetryOfTheStopped does not wait for a client that will not come back.
func TestRetryOfTheStopped(t *testing.T) {
	c := Retry(stopped(), Backoff(time.Hour, time.Hour), Attempts(100))
	if err := c.CallWith(context.Background(), "/", nil, nil); !errors.Is(err, arpc.ErrClientStopped) {
		t.Error(err)
	}
	called := make(chan error, 1)
	callback := func(ctx *arpc.Context) { called <- ctx.Err() }
	if err := c.CallAsync("/", nil, callback, arpc.TimeForever); !errors.Is(err, arpc.ErrClientStopped) {
		t.Error(err)
	}
	if err := recv(t, called, "callback"); !errors.Is(err, arpc.ErrClientStopped) {
		t.Error(err)
	}
	// What is wrong with the arguments is said as a Client does.
	if err := c.CallAsync("/", nil, nil, time.Second); err != arpc.ErrClientInvalidAsyncHandler {
		t.Error(err)
	}
	c.CallAsync("/", nil, callback, 0) //nolint:errcheck // the callback has it
	recv(t, called, "callback")
}

func TestRetryDecodesIntoItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type value struct{ A, B int }
		bad := errors.New("half of it cannot be decoded")
		n := 0
		f := &fake{call: func(_ context.Context, rsp any) error {
			n++
			v := rsp.(*value)
			if n < 4 {
				v.A = n
				return bad
			}
			v.B = 4
			return nil
		}}
		c := Retry(f, Codes(arpc.CodeUnknown), Attempts(4))
		var v value
		if err := c.CallWith(arpc.WithIdempotent(context.Background()), "/", nil, &v); err != nil || v != (value{B: 4}) {
			t.Errorf("%+v, %v", v, err)
		}
		for _, rsp := range []any{nil, (*value)(nil)} {
			f.call = func(_ context.Context, got any) error {
				if n++; got != rsp || n%2 == 0 {
					return unavailable
				}
				return nil
			}
			must(t, Retry(f).CallWith(arpc.WithIdempotent(context.Background()), "/", nil, rsp))
		}
	})
}

func TestBudgetHoldsInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts atomic.Int64
		var down atomic.Bool
		f := &fake{call: func(context.Context, any) error {
			attempts.Add(1)
			if down.Load() {
				return unavailable
			}
			return nil
		}}
		shared := Budget(20, 0.1)
		cs := []arpc.Caller{Retry(f, shared, Attempts(5)), Retry(f, shared, Attempts(5))}
		calls := func(n int) int64 {
			attempts.Store(0)
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() { cs[i%2].CallWith(arpc.WithIdempotent(context.Background()), "/", nil, nil) })
			}
			wg.Wait()
			return attempts.Load() - int64(n)
		}
		for range 2 {
			if n := calls(1000); n != 0 {
				t.Errorf("%d further attempts, and nothing failed", n)
			}
			down.Store(true)
			if n := calls(1000); n != 20 {
				t.Errorf("%d further attempts in the outage, the burst is 20", n)
			}
			if n := calls(1000); n != 0 {
				t.Errorf("%d further attempts in the rest of the outage", n)
			}
			down.Store(false)
			calls(50)
			down.Store(true)
			if n := calls(1000); n != 5 {
				t.Errorf("%d further attempts after 50 answers, a tenth is 5", n)
			}
			down.Store(false)
		}
	})
}

// TestBudgetHoldsWithoutServer is an outage with a real client.
func TestBudgetHoldsWithoutServer(t *testing.T) {
	h := arpc.NewHandler()
	var handled atomic.Int32
	h.Handle("/echo", func(ctx *arpc.Context) { handled.Add(1); ctx.Write(ctx.Body()) })
	s, dialer := serve(t, h)
	inner := counted(dial(t, dialer, arpc.Backoff(time.Hour, time.Hour)))
	c := Retry(inner, Backoff(time.Millisecond, time.Millisecond), Attempts(10))
	must(t, c.CallWith(patient(t), "/echo", "x", nil))
	recv(t, inner.n, "attempt")
	must(t, s.Stop())
	const calls = 2000
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range calls / 16 {
				if err := c.CallWith(patient(t), "/echo", "x", nil); !errors.Is(err, arpc.CodeUnavailable) {
					t.Error(err)
				}
				done := make(chan error, 1)
				c.CallAsync("/echo", "x", func(ctx *arpc.Context) { done <- ctx.Err() }, patience) //nolint:errcheck // the callback has it
				if err := recv(t, done, "callback"); !errors.Is(err, arpc.CodeUnavailable) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(inner.n); n > calls+10 {
		t.Errorf("%d attempts of %d calls", n, calls)
	}
	if n := handled.Load(); n != 1 {
		t.Errorf("handled %d", n)
	}
}
