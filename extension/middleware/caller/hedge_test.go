package caller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arpc-go/arpc"
)

// TestHedgeCancelsTheLoser has a handler that is slow once: the second attempt, on another connection, is quicker.
func TestHedgeCancelsTheLoser(t *testing.T) {
	type answer struct{ From, Rest string }
	h := arpc.NewHandler()
	var n atomic.Int32
	cause := make(chan error, 1)
	h.Handle("/get", func(ctx *arpc.Context) {
		if n.Add(1) == 1 {
			<-ctx.Done()
			cause <- context.Cause(ctx)
			ctx.Write(answer{"the loser", "late"}) //nolint:errcheck // nobody wants it
			return
		}
		ctx.SetMetadata("from", "the winner")
		ctx.Write(answer{From: "the winner"})
	})
	_, dialer := serve(t, h)
	pool, err := arpc.NewClientPool(dialer, 2, arpc.NewHandler())
	must(t, err)
	t.Cleanup(pool.Stop)
	c := Hedge(Pick(func() arpc.Caller { return pool.Next() }), time.Millisecond)
	var got answer
	must(t, c.CallWith(arpc.WithIdempotent(patient(t)), "/get", "x", &got))
	if got != (answer{From: "the winner"}) {
		t.Errorf("%+v", got)
	}
	err = recv(t, cause, "cancellation of the loser")
	if want := "cancelled by the caller: another attempt was quicker"; err.Error() != want || !errors.Is(err, context.Canceled) {
		t.Errorf("cause %v", err)
	}
	if n.Load() != 2 {
		t.Errorf("%d attempts", n.Load())
	}
}

func TestHedgeBothWays(t *testing.T) {
	bothWays(t, func(t *testing.T, client *arpc.Client, h arpc.Handler) {
		get := arpc.NewMethod[string, string]("/get", arpc.Idempotent, arpc.Async)
		put := arpc.NewMethod[string, string]("/put", arpc.Async)
		var n atomic.Int32
		stopped := make(chan struct{}, 1)
		get.Handle(h, func(ctx *arpc.Context, s *string) (*string, error) {
			if n.Add(1) == 1 {
				<-ctx.Done()
				stopped <- struct{}{}
				return nil, ctx.Err()
			}
			return s, nil
		})
		gate := make(chan struct{})
		var puts atomic.Int32
		put.Handle(h, func(ctx *arpc.Context, s *string) (*string, error) {
			puts.Add(1)
			<-gate
			return s, nil
		})
		noted := make(chan struct{}, 1)
		h.Handle("/note", func(*arpc.Context) { noted <- struct{}{} })
		h.HandleStream("/stream", func(s *arpc.Stream) { s.Send("x") })

		c := Hedge(client, time.Millisecond, Attempts(5))
		ctx, x := patient(t), "x"
		res, err := get.Call(ctx, c, &x)
		must(t, err)
		if *res != "x" {
			t.Error(*res)
		}
		recv(t, stopped, "cancellation")

		// What is not idempotent is not hedged, whatever its time.
		result := make(chan error, 1)
		go func() {
			_, err := put.Call(ctx, c, &x)
			result <- err
		}()
		for puts.Load() == 0 {
			must(t, client.CallWith(ctx, "/get", "x", nil)) // meanwhile
		}
		for range 100 {
			must(t, client.CallWith(ctx, "/get", "x", nil))
		}
		if puts.Load() != 1 {
			t.Errorf("%d attempts", puts.Load())
		}
		close(gate)
		must(t, recv(t, result, "answer"))

		// Notifications, streams and CallAsync are c's.
		must(t, c.NotifyWith(ctx, "/note", nil))
		recv(t, noted, "notification")
		s, err := c.OpenStream(ctx, "/stream")
		must(t, err)
		must(t, s.Recv(&x))
		must(t, c.CallAsync("/get", "x", func(ctx *arpc.Context) { result <- ctx.Err() }, patience))
		must(t, recv(t, result, "callback"))
	})
}

// An attempt of TestHedgeDecides: after how long it ends, unless it is cancelled, and how.
type attempt struct {
	after time.Duration
	err   error
}

// TestHedgeDecides has a table of who wins.
func TestHedgeDecides(t *testing.T) {
	const ms = time.Millisecond
	final := &arpc.Error{Code: arpc.CodeNotFound, Message: "no such", Remote: true}
	for _, c := range []struct {
		what     string
		opts     []Option
		attempts []attempt
		begun    int
		result   int // number of the attempt
		at       time.Duration
	}{
		{"quick", nil, []attempt{{9 * ms, nil}}, 1, 0, 9 * ms},
		{"the first wins", nil, []attempt{{15 * ms, nil}, {30 * ms, nil}}, 2, 0, 15 * ms},
		{"the second wins", nil, []attempt{{50 * ms, nil}, {5 * ms, nil}}, 2, 1, 15 * ms},
		{"the first fails early", nil, []attempt{{5 * ms, unavailable}}, 1, 0, 5 * ms},
		{"the first fails late", nil, []attempt{{15 * ms, unavailable}, {15 * ms, nil}}, 2, 1, 25 * ms},
		{"the second fails", nil, []attempt{{25 * ms, nil}, {5 * ms, unavailable}}, 2, 0, 25 * ms},
		{"both fail", nil, []attempt{{25 * ms, busy}, {5 * ms, unavailable}}, 2, 0, 25 * ms},
		{"a final answer", nil, []attempt{{50 * ms, nil}, {5 * ms, final}}, 2, 1, 15 * ms},
		{"a final answer to the first", nil, []attempt{{15 * ms, final}, {50 * ms, nil}}, 2, 0, 15 * ms},
		{"the third wins", []Option{Attempts(3)}, []attempt{{50 * ms, nil}, {50 * ms, nil}, {5 * ms, nil}}, 3, 2, 25 * ms},
		{"no third after a failure", []Option{Attempts(3)}, []attempt{{50 * ms, nil}, {5 * ms, unavailable}}, 2, 0, 50 * ms},
		{"off", []Option{Attempts(1)}, []attempt{{50 * ms, nil}}, 1, 0, 50 * ms},
		{"no budget", []Option{Attempts(4), Budget(1, 0)}, []attempt{{50 * ms, nil}, {50 * ms, nil}}, 2, 0, 50 * ms},
		{"codes", []Option{Codes(arpc.CodeNotFound)}, []attempt{{50 * ms, nil}, {5 * ms, final}}, 2, 0, 50 * ms},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				begun, over := 0, 0
				f := &fake{call: func(ctx context.Context, rsp any) error {
					mu.Lock()
					i := begun
					begun++
					mu.Unlock()
					defer func() {
						mu.Lock()
						over++
						mu.Unlock()
					}()
					if i >= len(c.attempts) {
						t.Error("another attempt")
						return nil
					}
					a, got := c.attempts[i], rsp.(*[]int)
					*got = append(*got, i) // half of the answer
					select {
					case <-ctx.Done():
						return &arpc.Error{Code: arpc.CodeCanceled, Message: "canceled"}
					case <-time.After(a.after):
					}
					*got = append(*got, i)
					return a.err
				}}
				start, got := time.Now(), []int(nil)
				err := Hedge(f, 10*ms, c.opts...).CallWith(arpc.WithIdempotent(context.Background()), "/", nil, &got)
				if at := time.Since(start); at != c.at {
					t.Errorf("over after %v, want %v", at, c.at)
				}
				want := c.attempts[c.result].err
				if err != want || err == nil && !slices.Equal(got, []int{c.result, c.result}) {
					t.Errorf("%v, %v; want that of attempt %d", got, err, c.result)
				}
				mu.Lock()
				defer mu.Unlock()
				if begun != c.begun || over != begun {
					t.Errorf("%d attempts, of which %d are over; want %d", begun, over, c.begun)
				}
			})
		})
	}
}

func TestHedgeIsCancelled(t *testing.T) {
	h := arpc.NewHandler()
	running, stopped := make(chan struct{}, 2), make(chan struct{}, 2)
	h.Handle("/", func(ctx *arpc.Context) { running <- struct{}{}; <-ctx.Done(); stopped <- struct{}{} }, true)
	_, dialer := serve(t, h)
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	c := Hedge(dial(t, dialer), time.Millisecond, Idempotent("/"))
	go func() { result <- c.CallWith(ctx, "/", nil, nil) }()
	recv(t, running, "first attempt")
	recv(t, running, "second attempt")
	cancel()
	if err := recv(t, result, "end"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	recv(t, stopped, "end of a handler")
	recv(t, stopped, "end of a handler")
}

// TestRetryOfHedges has both: some attempts fail, and some have no end.
func TestRetryOfHedges(t *testing.T) {
	h := arpc.NewHandler()
	const ok, fail, hang = 0, 1, 2
	scripts := [][]int{{ok}, {hang, ok}, {fail, fail, ok}, {fail, ok}}
	var attempts [400]atomic.Int32
	h.Handle("/get", func(ctx *arpc.Context) {
		var id int
		ctx.Bind(&id)
		script := scripts[id%len(scripts)]
		switch n := int(attempts[id].Add(1)); script[min(n, len(script))-1] {
		case ok:
			ctx.Write(id)
		case fail:
			ctx.Error(arpc.CodeUnavailable)
		case hang:
			<-ctx.Done()
		}
	}, true)
	_, dialer := serve(t, h)
	b := Budget(10*len(attempts), 0)
	get := Idempotent("/get")
	c := Retry(Hedge(dial(t, dialer), time.Millisecond, b, get), b, get, Attempts(10), Backoff(1, 1))
	ctx := patient(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for id := g; id < len(attempts); id += 8 {
				var got int
				if err := c.CallWith(ctx, "/get", id, &got); err != nil || got != id {
					t.Errorf("%d: %d, %v", id, got, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestAttemptsTellTheCaller: the metadata of an answer, and what an error says of what was sent, are those of the attempts which count.
func TestAttemptsTellTheCaller(t *testing.T) {
	h := arpc.NewHandler()
	var n atomic.Int32
	h.Handle("/get", func(ctx *arpc.Context) {
		if n.Add(1) == 1 {
			<-ctx.Done()
			return
		}
		ctx.SetMetadata("from", "the winner") //nolint:errcheck // it is small
		ctx.Write(nil)
	}, true)
	h.Handle("/fail", func(ctx *arpc.Context) { ctx.Error(arpc.CodeAborted) })
	_, dialer := serve(t, h)
	client := dial(t, dialer)

	var md arpc.Metadata
	ctx := arpc.WithResponseMetadata(arpc.WithIdempotent(patient(t)), &md)
	must(t, Hedge(client, time.Millisecond).CallWith(ctx, "/get", nil, nil))
	if md["from"] != "the winner" {
		t.Errorf("metadata %v", md)
	}

	// The one that fails has an answer too, after that which counts.
	h.Handle("/who", func(ctx *arpc.Context) {
		ctx.SetMetadata("from", string(ctx.Body())) //nolint:errcheck // it is small
		ctx.Write(nil)
	})
	first, second := make(chan struct{}), make(chan struct{})
	n.Store(0)
	both := &fake{call: func(ctx context.Context, _ any) error {
		if n.Add(1) == 1 {
			err := client.CallWith(ctx, "/who", "first", nil)
			close(first)
			<-second
			return err
		}
		<-first
		client.CallWith(ctx, "/who", "second", nil) //nolint:errcheck // it fails in any case
		close(second)
		return unavailable
	}}
	must(t, Hedge(both, 1).CallWith(ctx, "/who", nil, nil))
	if md["from"] != "first" {
		t.Errorf("metadata %v", md)
	}

	ctx = patient(t)
	for _, c := range []arpc.Caller{client, Retry(client), Retry(Retry(client)), Hedge(client, 1, Idempotent("/fail"))} {
		if err := c.CallWith(ctx, "/fail", nil, nil); !errors.Is(err, arpc.CodeAborted) || arpc.IsRefused(err) {
			t.Errorf("refused %v: %v", arpc.IsRefused(err), err)
		}
	}
	for _, c := range []arpc.Caller{stopped(), Retry(stopped()), Retry(Retry(stopped()), Backoff(1, 1))} {
		if err := c.CallWith(ctx, "/fail", nil, nil); !errors.Is(err, arpc.ErrClientStopped) || !arpc.IsRefused(err) {
			t.Errorf("call: refused %v: %v", arpc.IsRefused(err), err)
		}
		if err := c.NotifyWith(ctx, "/fail", nil); !errors.Is(err, arpc.ErrClientStopped) || !arpc.IsRefused(err) {
			t.Errorf("notification: refused %v: %v", arpc.IsRefused(err), err)
		}
	}
	// That a later attempt was not sent does not mean that the first was not.
	lost := &fake{call: func(ctx context.Context, _ any) error {
		if n.Add(1) == 1 {
			return client.CallWith(ctx, "/fail", nil, nil)
		}
		return stopped().CallWith(ctx, "/fail", nil, nil)
	}}
	n.Store(0)
	c := Retry(lost, Idempotent("/fail"), Codes(arpc.CodeAborted), Backoff(1, 1))
	err := c.CallWith(ctx, "/fail", nil, nil)
	wantUnsure(t, err)
	if !errors.Is(err, arpc.ErrClientStopped) || n.Load() != 2 {
		t.Errorf("%d attempts: %v", n.Load(), err)
	}
}

// TestHedgeErrorHasItsMetadata: the error is that of the attempt whose metadata there are.
func TestHedgeErrorHasItsMetadata(t *testing.T) {
	h := arpc.NewHandler()
	var n atomic.Int32
	second := make(chan struct{})
	h.Handle("/get", func(ctx *arpc.Context) {
		i := n.Add(1)
		ctx.SetMetadata("attempt", fmt.Sprint(i)) //nolint:errcheck // it is small
		if i == 1 {
			<-second
		} else {
			defer close(second)
		}
		ctx.Error(&arpc.Error{Code: arpc.CodeUnavailable, Message: fmt.Sprint(i)})
	}, true)
	_, dialer := serve(t, h)
	client := dial(t, dialer)
	var md arpc.Metadata
	ctx := arpc.WithResponseMetadata(arpc.WithIdempotent(patient(t)), &md)
	for range 20 { // which of them is first is not certain
		n.Store(0)
		second = make(chan struct{})
		err := Hedge(client, 1).CallWith(ctx, "/get", nil, nil)
		if err == nil || md["attempt"] != err.Error() {
			t.Errorf("the error is that of attempt %v, the metadata %v", err, md)
		}
	}
}

// wantUnsure checks that err does not say that nothing was done.
func wantUnsure(t *testing.T, err error) {
	t.Helper()
	var e *arpc.Error
	if !errors.As(err, &e) || e.Code != arpc.CodeUnavailable || e.Unsent || e.Message == "" || arpc.IsRefused(err) {
		t.Errorf("%#v", err)
	}
}

// TestHedgeHidesNothing: that one attempt was not sent does not mean that the other was not.
func TestHedgeHidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unsent := &arpc.Error{Code: arpc.CodeUnavailable, Message: "no connection", Unsent: true}
		var n atomic.Int32
		f := &fake{call: func(context.Context, any) error {
			if n.Add(1) == 2 {
				return unsent // first, so it is the error of the call
			}
			time.Sleep(time.Second)
			return unavailable
		}}
		err := Hedge(f, time.Millisecond).CallWith(arpc.WithIdempotent(context.Background()), "/", nil, nil)
		if wantUnsure(t, err); !errors.Is(err, unsent) {
			t.Error(err)
		}
	})
}
