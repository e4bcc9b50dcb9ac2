package action

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
)

// failure is what OnError was told.
type failure struct {
	action int16
	err    error
}

// Row Z6: a value is the reply; an unknown action, an error and a value that cannot be encoded are for the hooks only.
func TestZ06Router(t *testing.T) {
	failures, unknown := make(chan failure, 1), make(chan int16, 1)
	boom := errors.New("boom")
	transports(t, func(n *Instance) {
		n.Router().
			Route(1, echo).
			Route(2, func(*Context) (any, error) { return "not sent", boom }).
			Route(3, func(*Context) (any, error) { return func() {}, nil }).
			Route(-4, func(*Context) (any, error) { return []int{-4}, nil })
	}, func(t *testing.T, s *server, dial func() peer) {
		p := dial()
		expect := func(action int16, what string, ok func(error) bool) {
			t.Helper()
			p.send(packet(action, 1, `{}`), packet(-4, 2, ""))
			wantPacket(t, p.recv(), -4, 2, "[-4]")
			if f := recv(t, failures, "failure"); f.action != action || !ok(f.err) {
				t.Fatalf("%s: %+v", what, f)
			}
		}
		expect(2, "an error", func(err error) bool { return err == boom })
		expect(3, "a value", func(err error) bool { return arpc.CodeOf(err) == arpc.CodeInternal })
		expect(99, "an unknown action", func(err error) bool { return err == ErrNotFound })
		p.send(packet(1, 1, `{not json`), packet(-4, 2, ""))
		wantPacket(t, p.recv(), -4, 2, "[-4]")
		wantCode(t, recv(t, failures, "failure").err, arpc.CodeInvalidArgument)
	}, OnError(func(ctx *Context, err error) { failures <- failure{ctx.Packet().Action, err} }))

	s := serve(t, func(n *Instance) {
		n.Router().OnNotFound(func(ctx *Context) {
			unknown <- ctx.Packet().Action
			if err := ctx.Reply("what?"); err != nil {
				t.Error(err)
			}
		})
	})
	p := dialPeer(t, s.tcp)
	p.send(packet(5, 6, ""))
	wantPacket(t, p.recv(), 5, 6, `"what?"`)
	if a := recv(t, unknown, "call of OnNotFound"); a != 5 {
		t.Fatalf("action %d", a)
	}
	// Routes may be added and replaced at any time.
	s.Router().Route(5, func(*Context) (any, error) { return 1, nil })
	p.send(packet(5, 7, ""))
	wantPacket(t, p.recv(), 5, 7, "1")
	s.Router().Route(5, func(*Context) (any, error) { return 2, nil })
	p.send(packet(5, 8, ""))
	wantPacket(t, p.recv(), 5, 8, "2")
}

func TestMiddleware(t *testing.T) {
	var mu sync.Mutex
	var steps []string
	step := func(s string) {
		mu.Lock()
		steps = append(steps, s)
		mu.Unlock()
	}
	s := serve(t, func(n *Instance) {
		n.Router().Route(1, func(*Context) (any, error) { step("handler"); return 1, nil })
	}, Use(func(ctx *Context) {
		step("a")
		ctx.Next()
		step("a after")
	}, func(ctx *Context) {
		step("b")
		if string(ctx.Packet().Body) == "stop" {
			ctx.Abort()
			ctx.Reply("stopped") //nolint:errcheck // the peer waits for it
		}
	}), Use(func(*Context) { step("c") }))
	p := dialPeer(t, s.tcp)
	check := func(want string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if got := strings.Join(steps, ", "); got != want {
			t.Errorf("ran %s, not %s", got, want)
		}
		steps = nil
	}
	// The next request begins when the middleware of the one before has ended: so the order of steps is known.
	p.send(packet(1, 1, ""), packet(1, 2, "stop"))
	wantPacket(t, p.recv(), 1, 1, "1")
	wantPacket(t, p.recv(), 1, 2, `"stopped"`)
	p.send(packet(1, 3, ""))
	wantPacket(t, p.recv(), 1, 3, "1")
	p.Close()
	must(t, s.stop())
	check("a, b, c, handler, a after, a, b, a after, a, b, c, handler, a after")
}

// Requests of one connection are answered in order, even if the first takes longest; those of Unordered routes are not waited for.
func TestOrder(t *testing.T) {
	release := make(chan struct{}, 1)
	transports(t, func(n *Instance) {
		block := func(*Context) (any, error) { <-release; return "slow", nil }
		n.Router().Route(1, block).Route(2, echo).Route(3, block, Unordered()).Route(4, func(*Context) (any, error) { release <- struct{}{}; return nil, nil }, Unordered())
	}, func(t *testing.T, s *server, dial func() peer) {
		p, other := dial(), dial()
		p.send(packet(1, 1, ""), packet(2, 2, "{}"))
		other.send(packet(2, 9, "{}"))
		wantPacket(t, other.recv(), 2, 9, "{}") // other connections do not wait
		release <- struct{}{}
		wantPacket(t, p.recv(), 1, 1, `"slow"`)
		wantPacket(t, p.recv(), 2, 2, "{}")
		p.send(packet(3, 3, ""), packet(2, 4, "{}"))
		wantPacket(t, p.recv(), 2, 4, "{}")
		p.send(packet(4, 5, ""))
		got := [][]byte{p.recv(), p.recv()}
		slices.SortFunc(got, func(a, b []byte) int { return int(a[1]) - int(b[1]) })
		wantPacket(t, got[0], 3, 3, `"slow"`)
		wantPacket(t, got[1], 4, 5, "null")
	})
}

// Row Z4: a panic ends its request; the pool is bounded, and no request is lost when it is full.
func TestZ04WorkerPool(t *testing.T) {
	t.Run("panic", func(t *testing.T) {
		failures := make(chan failure, 1)
		transports(t, func(n *Instance) {
			boom := func(*Context) (any, error) { panic("boom") }
			n.Router().Route(1, echo).Route(2, boom).Route(3, boom, Unordered())
		}, func(t *testing.T, s *server, dial func() peer) {
			p := dial()
			for _, action := range []int16{2, 3} {
				p.send(packet(action, 1, ""))
				f := recv(t, failures, "failure")
				var pe *PanicError
				if f.action != action || !errors.As(f.err, &pe) || pe.Value != "boom" || !strings.Contains(string(pe.Stack), "TestZ04") {
					t.Fatalf("%+v", f)
				}
			}
			p.send(packet(1, 2, "{}"))
			wantPacket(t, p.recv(), 1, 2, "{}")
		}, OnError(func(ctx *Context, err error) {
			if pe := (*PanicError)(nil); errors.As(err, &pe) {
				failures <- failure{ctx.Packet().Action, err}
			}
			panic("in the hook, too")
		}))
	})
	const pool = 4
	for name, limits := range map[string]Limits{"workers": {Workers: pool}, "parallel": {Parallel: pool}} {
		t.Run(name, func(t *testing.T) {
			var running, most atomic.Int64
			entered, release := make(chan struct{}, 200), make(chan struct{})
			transports(t, func(n *Instance) {
				n.Router().Route(2, echo).Route(1, func(ctx *Context) (any, error) {
					now := running.Add(1)
					defer running.Add(-1)
					for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
					}
					entered <- struct{}{}
					<-release
					return nil, nil
				}, Unordered())
			}, func(t *testing.T, s *server, dial func() peer) {
				p := dial()
				most.Store(0)
				var all [][]byte
				const n = 100
				for i := range n {
					all = append(all, packet(1, int16(i), ""))
				}
				p.send(all...)
				for range pool {
					recv(t, entered, "handler")
				}
				other := dial()
				other.send(packet(2, 1, "{}"))
				wantPacket(t, other.recv(), 2, 1, "{}") // a full pool is in nobody's way
				go func() {
					for range n {
						release <- struct{}{}
					}
				}()
				answered := map[string]bool{}
				for range n {
					answered[string(p.recv())] = true
				}
				for i := range n {
					if !answered[string(packet(1, int16(i), "null"))] {
						t.Errorf("request %d was not answered", i)
					}
				}
				// One more runs in order; with a limit per connection up to four times as many, which is core's.
				if limit := map[string]int64{"workers": pool + 1, "parallel": 4*pool + 1}[name]; most.Load() > limit {
					t.Errorf("%d handlers at once", most.Load())
				}
				for len(entered) > 0 {
					<-entered
				}
			}, limits)
		})
	}
}

// Every typed handler binds its request, and fails if that does not work.
func TestStandardHandler(t *testing.T) {
	type req struct{ A, B int }
	type rsp struct{ Sum int }
	failures := make(chan failure, 1)
	s := serve(t, func(n *Instance) {
		n.Router().Route(1, StandardHandler(func(ctx *Context, r *req) (*rsp, error) {
			if r.B == 0 {
				return nil, fmt.Errorf("no B in action %d", ctx.Packet().Action)
			}
			return &rsp{r.A + r.B}, nil
		}))
	}, OnError(func(ctx *Context, err error) { failures <- failure{ctx.Packet().Action, err} }))
	p := dialPeer(t, s.tcp)
	p.send(packet(1, 1, `{"A":1}`))
	if f := recv(t, failures, "failure"); f.err.Error() != "no B in action 1" {
		t.Fatal(f.err)
	}
	p.send(packet(1, 1, `[]`))
	wantCode(t, recv(t, failures, "failure").err, arpc.CodeInvalidArgument)
	p.send(packet(1, 1, `{"A":1,"B":2}`))
	wantPacket(t, p.recv(), 1, 1, `{"Sum":3}`)
}
