package arpc

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What a call means, the same in both directions: its deadline, its end by the caller or by the connection, and its errors.

// way is a connection and the direction of its calls: caller calls the methods of callee.Handler.
type way struct {
	caller, callee *Client
	server         *testServer
	client         *Client // whichever of both has dialled
}

// everyWay runs a test in both directions, over TCP with each adapter and in memory.
func everyWay(t *testing.T, limits Limits, f func(t *testing.T, w *way)) {
	t.Helper()
	directions := func(t *testing.T, connect func(t *testing.T) (*testServer, *Client)) {
		t.Run("to the server", func(t *testing.T) {
			s, c := connect(t)
			f(t, &way{c, s.waitClients(t, 1)[0], s, c})
		})
		t.Run("to the client", func(t *testing.T) {
			s, c := connect(t)
			f(t, &way{s.waitClients(t, 1)[0], c, s, c})
		})
	}
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		directions(t, func(t *testing.T) (*testServer, *Client) {
			s := startServer(t, adapter, limits)
			return s, dialClient(t, s.addr, limits)
		})
	})
	t.Run("pipe", func(t *testing.T) {
		directions(t, func(t *testing.T) (*testServer, *Client) {
			ln, dial := Pipe()
			s := startServerOn(t, ln, limits)
			return s, dialClientBy(t, dial, limits)
		})
	})
}

// fence returns when the callee has read all that the caller has sent before; Handler must have fenced.
func (w *way) fence(t testing.TB) {
	t.Helper()
	must(t, w.caller.Call("/fence", nil, nil, patience))
}

// fenced registers what fence calls: an inline route, which passes what stands in line.
func (w *way) fenced() {
	w.callee.Handler.HandleInline("/fence", func(c *Context) { c.Write(nil) })
	w.callee.Handler.Handle("/last", func(c *Context) { c.Write(nil) }) // ends after all that stand in line before it
}

// tables returns what the tables of a connection hold.
func tables(c *Client) (calls, asked, canceled int) {
	l := c.link.Load()
	l.cn.Lock()
	defer l.cn.Unlock()
	if x := l.x.Load(); x != nil {
		asked, canceled = len(x.asked), len(x.canceled.m)
		if int(x.canceled.n.Load()) != canceled {
			canceled = -1
		}
	}
	return l.cn.Calls, asked, canceled
}

// closest tries until a difference is below the limit that is promised, which the load of the machine may prevent for a while.
func closest(t testing.TB, what string, limit time.Duration, try func() time.Duration) {
	t.Helper()
	best := time.Duration(1<<63 - 1)
	for end := time.Now().Add(patience); best >= limit; {
		if d := try(); d.Abs() < best {
			best = d.Abs()
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v at best, want below %v", what, best, limit)
		}
	}
}

// The ways to call with a time limit.
var timedCalls = []struct {
	name string
	call func(t testing.TB, c *Client, method string, deadline time.Time)
}{
	{"Call", func(t testing.TB, c *Client, method string, deadline time.Time) {
		must(t, c.Call(method, nil, nil, time.Until(deadline)))
	}},
	{"CallWith", func(t testing.TB, c *Client, method string, deadline time.Time) {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		must(t, c.CallWith(ctx, method, nil, nil))
	}},
	{"CallAsync", func(t testing.TB, c *Client, method string, deadline time.Time) {
		end := make(chan error, 1)
		must(t, c.CallAsync(method, nil, func(c *Context) { end <- c.Err() }, time.Until(deadline)))
		must(t, recv(t, end, "callback"))
	}},
	{"Method", func(t testing.TB, c *Client, method string, deadline time.Time) {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		_, err := NewMethod[string, string](method).Call(ctx, c, new(string))
		must(t, err)
	}},
}

func TestDeadlineReachesTheHandler(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		seen := make(chan time.Time, 1)
		h := func(c *Context) {
			d, _ := c.Deadline()
			seen <- d
			c.Write(nil)
		}
		w.callee.Handler.Handle("/ordered", h)
		w.callee.Handler.Handle("/async", h, true)
		w.callee.Handler.HandleInline("/inline", h)
		for _, route := range []string{"/ordered", "/async", "/inline"} {
			for _, tt := range timedCalls {
				for _, d := range []time.Duration{patience, time.Hour} {
					closest(t, tt.name+" of "+route, 5*time.Millisecond, func() time.Duration {
						deadline := time.Now().Add(d)
						tt.call(t, w.caller, route, deadline)
						got := recv(t, seen, "deadline")
						if got.Before(deadline.Add(-time.Millisecond)) { // whatever the load is
							t.Fatalf("%s of %s: the handler's deadline is %v before the caller's", tt.name, route, deadline.Sub(got))
						}
						return got.Sub(deadline)
					})
				}
			}
		}
	})
}

func TestNoDeadline(t *testing.T) {
	check := func(t *testing.T, limits Limits, call func(c *Client) error) {
		everyWay(t, limits, func(t *testing.T, w *way) {
			seen := make(chan bool, 1)
			w.callee.Handler.Handle("/m", func(c *Context) {
				d, ok := c.Deadline()
				seen <- ok || !d.IsZero()
				c.Write(nil)
			})
			must(t, call(w.caller))
			if recv(t, seen, "deadline") {
				t.Error("the handler has a deadline")
			}
		})
	}
	t.Run("TimeForever", func(t *testing.T) {
		check(t, Limits{}, func(c *Client) error { return c.Call("/m", nil, nil, TimeForever) })
	})
	t.Run("beyond 32 bits of milliseconds", func(t *testing.T) {
		check(t, Limits{}, func(c *Client) error { return c.Call("/m", nil, nil, 50*24*time.Hour) })
	})
	t.Run("no CallTimeout", func(t *testing.T) {
		check(t, Limits{CallTimeout: -1}, func(c *Client) error { return c.CallWith(context.Background(), "/m", nil, nil) })
	})
	t.Run("notification", func(t *testing.T) {
		check(t, Limits{}, func(c *Client) error { return c.Notify("/m", nil, patience) })
	})
}

func TestCallTimeout(t *testing.T) {
	for _, tt := range []struct{ limit, want time.Duration }{{0, time.Minute}, {17 * time.Second, 17 * time.Second},
		{time.Hour, time.Hour}} {
		everyWay(t, Limits{CallTimeout: tt.limit}, func(t *testing.T, w *way) {
			seen := make(chan time.Time, 1)
			w.callee.Handler.Handle("/m", func(c *Context) {
				d, _ := c.Deadline()
				seen <- d
				c.Write(nil)
			})
			closest(t, "CallTimeout", 5*time.Millisecond, func() time.Duration {
				want := time.Now().Add(tt.want)
				must(t, w.caller.CallWith(context.Background(), "/m", nil, nil))
				return recv(t, seen, "deadline").Sub(want)
			})
			// A context's own deadline is the one that counts, also when it is later.
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
			defer cancel()
			must(t, w.caller.CallWith(ctx, "/m", nil, nil))
			if d := recv(t, seen, "deadline"); time.Until(d) < time.Hour+time.Minute {
				t.Errorf("with a later deadline the handler has %v", time.Until(d))
			}
		})
	}
	everyWay(t, Limits{CallTimeout: 10 * time.Millisecond}, func(t *testing.T, w *way) {
		release := make(chan struct{}) // the handler's answer must not be the quicker
		defer close(release)
		w.callee.Handler.Handle("/m", func(c *Context) { <-release }, true)
		err := w.caller.CallWith(context.Background(), "/m", nil, nil)
		if CodeOf(err) != CodeDeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v (%v)", err, CodeOf(err))
		}
	})
}

// A handler that calls on has what is left of its caller's time.
func TestDeadlineOfNestedCalls(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		seen := make(chan time.Time, 1)
		w.caller.Handler.Handle("/inner", func(c *Context) {
			d, _ := c.Deadline()
			seen <- d
			c.Write(nil)
		})
		outer := func(derive func(c *Context) (context.Context, context.CancelFunc)) HandlerFunc {
			return func(c *Context) {
				pause(20 * time.Millisecond) // four times what may be wrong
				ctx, cancel := derive(c)
				defer cancel()
				c.Write(c.Client.CallWith(ctx, "/inner", nil, nil))
			}
		}
		type key struct{}
		w.callee.Handler.Handle("/own", outer(func(c *Context) (context.Context, context.CancelFunc) { return c, func() {} }))
		w.callee.Handler.Handle("/async", outer(func(c *Context) (context.Context, context.CancelFunc) { return c, func() {} }), true)
		w.callee.Handler.Handle("/value", outer(func(c *Context) (context.Context, context.CancelFunc) {
			return context.WithValue(c, key{}, 1), func() {}
		}))
		w.callee.Handler.Handle("/longer", outer(func(c *Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(c, 24*time.Hour)
		}))
		for _, route := range []string{"/own", "/async", "/value", "/longer"} {
			closest(t, route, 5*time.Millisecond, func() time.Duration {
				deadline := time.Now().Add(time.Hour)
				ctx, cancel := context.WithDeadline(context.Background(), deadline)
				defer cancel()
				must(t, w.caller.CallWith(ctx, route, nil, nil))
				return recv(t, seen, "deadline").Sub(deadline)
			})
		}
		w.callee.Handler.Handle("/shorter", outer(func(c *Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(c, time.Minute)
		}))
		must(t, w.caller.Call("/shorter", nil, nil, time.Hour))
		if d := time.Until(recv(t, seen, "deadline")); d > time.Minute {
			t.Errorf("a call within a minute leaves %v", d)
		}
	})
}

// The time that a request stands in line counts.
func TestDeadlineInLine(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		w.fenced()
		entered, release := make(chan struct{}), make(chan struct{})
		w.callee.Handler.Handle("/block", func(c *Context) {
			entered <- struct{}{}
			<-release
			c.Write(nil)
		})
		seen := make(chan time.Time, 1)
		w.callee.Handler.Handle("/m", func(c *Context) {
			d, _ := c.Deadline()
			seen <- d
			c.Write(nil)
		})
		closest(t, "the deadline of a request that stood in line", 5*time.Millisecond, func() time.Duration {
			ends := make(chan error, 2)
			go func() { ends <- w.caller.Call("/block", nil, nil, TimeForever) }()
			recv(t, entered, "handler")
			deadline := time.Now().Add(time.Hour)
			must(t, w.caller.CallAsync("/m", nil, func(c *Context) { ends <- c.Err() }, time.Until(deadline)))
			w.fence(t)
			pause(20 * time.Millisecond)
			release <- struct{}{}
			got := recv(t, seen, "deadline")
			must(t, recv(t, ends, "end of a call"))
			must(t, recv(t, ends, "end of a call"))
			return got.Sub(deadline)
		})
		// One whose time is up before its turn finds that out at once, if it still runs.
		var ran atomic.Int32
		w.callee.Handler.Handle("/late", func(c *Context) {
			ran.Add(1)
			if err := c.Err(); err != context.DeadlineExceeded {
				t.Errorf("the handler of a request that is too late has %v", err)
			}
			c.Write(nil)
		})
		end := make(chan error, 1)
		go func() { end <- w.caller.Call("/block", nil, nil, TimeForever) }()
		recv(t, entered, "handler")
		if err := w.caller.Call("/late", nil, nil, time.Millisecond); CodeOf(err) != CodeDeadlineExceeded {
			t.Errorf("the late call ended with %v", err)
		}
		w.fence(t)
		pause(5 * time.Millisecond) // the callee counts from the arrival
		release <- struct{}{}
		must(t, recv(t, end, "end of the blocking call"))
		must(t, w.caller.Call("/last", nil, nil, patience))
		if ran.Load() > 1 {
			t.Errorf("the late request ran %d times", ran.Load())
		}
	})
}

// The bytes of calls with a deadline.
func TestDeadlineBytes(t *testing.T) {
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		seq := 1
		for _, tt := range []struct {
			timeout     time.Duration
			flag, field string
		}{
			{1500 * time.Millisecond, "08", "dc050000"},
			{time.Nanosecond, "08", "01000000"},
			{time.Millisecond + 1, "08", "02000000"},
			{(1<<32 - 1) * time.Millisecond, "08", "ffffffff"},
			{(1<<32-1)*time.Millisecond + 1, "00", ""},
			{TimeForever, "00", ""},
		} {
			seq++
			async := tt.flag[:1] + string(tt.flag[1]+2)
			if tt.flag == "08" {
				async = "0a"
			}
			must(t, c.CallAsync("/m", "x", func(*Context) {}, tt.timeout))
			p.wants(fmt.Sprintf("call within %v", tt.timeout),
				fmt.Sprintf("%02x000000"+"0001"+async+"02"+"%02x00000000000000"+"2f6d", 3+len(tt.field)/2, seq)+tt.field+"78")
		}
	})
	// Any deadline that a peer sends is one.
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		seen := make(chan time.Duration, 1)
		h := func(c *Context) {
			d, ok := c.Deadline()
			if !ok || string(c.Body()) != "x" || string(c.Message.Data()) != "x" {
				t.Errorf("the handler has %v with %q", ok, c.Body())
			}
			seen <- time.Until(d)
			c.Write("y")
		}
		c.Handler.Handle("/o", h)
		c.Handler.Handle("/a", h, true)
		c.Handler.HandleInline("/i", h)
		for _, route := range []string{"/o", "/a", "/i"} {
			for _, tt := range []struct {
				field    string
				from, to time.Duration
			}{
				{"\x00\x00\x00\x00", -patience, 0},
				{"\x60\xea\x00\x00", 0, time.Minute},
				{"\xff\xff\xff\xff", (1<<32-1)*time.Millisecond - patience, (1<<32 - 1) * time.Millisecond},
			} {
				p.send(frameOf(CmdRequest, flagDeadline, 9, route, tt.field+"x"))
				if d := recv(t, seen, "handler"); d < tt.from || d > tt.to {
					t.Errorf("%s with %x leaves %v", route, tt.field, d)
				}
				p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 9, route, "y")))
			}
		}
		p.send(frameOf(CmdRequest, flagDeadline, 9, "/o", "\x60\xea\x00")) // one byte short
		p.end()
	})
}

// The handler finds out itself when its caller's time is up.
func TestDeadlineEndsTheHandlersContext(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		type end struct {
			err, cause error
			late       time.Duration
		}
		ends := make(chan end, 1)
		release := make(chan struct{}) // the answer must not be quicker than the caller's own clock
		h := func(c *Context) {
			<-c.Done()
			d, _ := c.Deadline()
			ends <- end{c.Err(), context.Cause(c), time.Since(d)}
			<-release
			c.Write("too late")
		}
		w.callee.Handler.Handle("/ordered", h)
		w.callee.Handler.Handle("/async", h, true)
		for _, route := range []string{"/ordered", "/async"} {
			err := w.caller.Call(route, nil, nil, 20*time.Millisecond)
			var e *Error
			if !errors.As(err, &e) || e.Code != CodeDeadlineExceeded || e.Remote || !errors.Is(err, ErrTimeout) ||
				!errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the call ended with %#v", err)
			}
			if e := recv(t, ends, "end of the handler"); e.err != context.DeadlineExceeded ||
				!errors.Is(e.cause, context.DeadlineExceeded) || e.late < 0 {
				t.Errorf("the handler's context ended with %v, %v, %v after the deadline", e.err, e.cause, e.late)
			}
			release <- struct{}{}
		}
	})
	// The peer knows the deadline: it is not told.
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if err := c.CallWith(ctx, "/m", nil, nil); CodeOf(err) != CodeDeadlineExceeded {
			t.Error(err)
		}
		if err := c.Call("/m", nil, nil, time.Millisecond); CodeOf(err) != CodeDeadlineExceeded {
			t.Error(err)
		}
		must(t, c.Notify("/n", nil, patience))
		p.frame()
		p.frame()
		if m := p.frame(); m.Cmd() != CmdNotify {
			t.Errorf("after the deadline came %x", m.Buffer)
		}
	})
}

// canceledEnd is how a handler was stopped.
type canceledEnd struct {
	at         time.Time
	err, cause error
}

func (e canceledEnd) check(t testing.TB, text string) {
	t.Helper()
	var re *Error
	if e.err != context.Canceled || !errors.As(e.cause, &re) || re.Code != CodeCanceled || !re.Remote ||
		re.Message != "cancelled by the caller: "+text || !errors.Is(e.cause, context.Canceled) ||
		!errors.Is(e.cause, CodeCanceled) {
		t.Errorf("the handler's context ended with %v, %#v", e.err, e.cause)
	}
}

func TestCancelReachesTheHandler(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		started, ends := make(chan struct{}, 1), make(chan canceledEnd, 1)
		h := func(c *Context) {
			done := c.Done()
			started <- struct{}{}
			<-done
			ends <- canceledEnd{time.Now(), c.Err(), context.Cause(c)}
			c.Write("nobody waits")
		}
		w.callee.Handler.Handle("/ordered", h)
		w.callee.Handler.Handle("/async", h, true)
		for _, route := range []string{"/ordered", "/async"} {
			closest(t, "cancel of "+route, 20*time.Millisecond, func() time.Duration {
				why := errors.New("the user went away")
				ctx, cancel := context.WithCancelCause(context.Background())
				done := make(chan error, 1)
				go func() { done <- w.caller.CallWith(ctx, route, nil, nil) }()
				recv(t, started, "handler")
				start := time.Now()
				cancel(why)
				err := recv(t, done, "end of the call")
				var e *Error
				if !errors.As(err, &e) || e.Code != CodeCanceled || e.Remote || !errors.Is(err, why) ||
					!errors.Is(err, context.Canceled) {
					t.Errorf("the call ended with %#v", err)
				}
				end := recv(t, ends, "end of the handler")
				end.check(t, "the user went away")
				return end.at.Sub(start)
			})
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- w.caller.CallWith(ctx, route, nil, nil) }()
			recv(t, started, "handler")
			cancel()
			recv(t, ends, "end of the handler").check(t, "context canceled")
			recv(t, done, "end of the call")
		}
		eventually(t, "empty tables", func() bool {
			calls, _, _ := tables(w.caller)
			_, asked, canceled := tables(w.callee)
			return calls == 0 && asked == 0 && canceled == 0
		})
	})
}

// A handler may ask after it was cancelled, and any number of times.
func TestCancelBeforeTheHandlerAsks(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		w.fenced()
		started, ask, ends := make(chan struct{}, 1), make(chan struct{}), make(chan canceledEnd, 2)
		h := func(c *Context) {
			started <- struct{}{}
			<-ask
			select {
			case <-c.Done():
			default:
				t.Error("the handler was not cancelled when it asked")
			}
			ends <- canceledEnd{time.Now(), c.Err(), context.Cause(c)}
			sub, stop := context.WithTimeout(c, time.Hour)
			ends <- canceledEnd{time.Now(), sub.Err(), context.Cause(sub)}
			stop()
			c.Write(nil)
		}
		w.callee.Handler.Handle("/ordered", h)
		w.callee.Handler.Handle("/async", h, true)
		w.callee.Handler.Handle("/later", func(c *Context) {
			c.AnswerLater()
			go h(c)
		})
		for _, route := range []string{"/ordered", "/async", "/later"} {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- w.caller.CallWith(ctx, route, nil, nil) }()
			recv(t, started, "handler")
			cancel()
			recv(t, done, "end of the call")
			w.fence(t)
			ask <- struct{}{}
			recv(t, ends, "end of the handler's context").check(t, "context canceled")
			recv(t, ends, "end of the derived context").check(t, "context canceled")
			eventually(t, "empty tables after "+route, func() bool {
				_, asked, canceled := tables(w.callee)
				return asked == 0 && canceled == 0
			})
		}
	})
}

// A request that is cancelled in line does not run.
func TestCancelInLine(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		w.fenced()
		entered, release := make(chan struct{}), make(chan struct{})
		w.callee.Handler.Handle("/block", func(c *Context) {
			entered <- struct{}{}
			<-release
			c.Write(nil)
		})
		var ran atomic.Int32
		w.callee.Handler.Handle("/m", func(c *Context) {
			ran.Add(1)
			c.Write(nil)
		})
		first := make(chan error, 1)
		go func() { first <- w.caller.Call("/block", nil, nil, patience) }()
		recv(t, entered, "handler")
		ctx, cancel := context.WithCancel(context.Background())
		const n = 10
		done := make(chan error, n)
		for range n {
			go func() { done <- w.caller.CallWith(ctx, "/m", nil, nil) }()
		}
		eventually(t, "calls in line", func() bool { calls, _, _ := tables(w.caller); return calls == n+1 })
		w.fence(t)
		cancel()
		for range n {
			if err := recv(t, done, "end of a call"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		w.fence(t)
		release <- struct{}{}
		must(t, recv(t, first, "end of the first call"))
		must(t, w.caller.Call("/last", nil, nil, patience))
		if ran.Load() != 0 {
			t.Errorf("%d of the cancelled requests ran", ran.Load())
		}
		must(t, w.caller.Call("/m", nil, nil, patience)) // and others do
		if _, _, canceled := tables(w.callee); canceled != 0 {
			t.Errorf("%d requests are kept as cancelled", canceled)
		}
	})
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		entered, release := make(chan struct{}), make(chan struct{})
		c.Handler.Handle("/b", func(c *Context) {
			entered <- struct{}{}
			<-release
			c.Write("first")
		})
		c.Handler.HandleInline("/i", func(c *Context) { c.Write("read") })
		p.send(frameOf(CmdRequest, 0, 5, "/b", ""))
		recv(t, entered, "handler")
		p.send(frameOf(CmdRequest, 0, 6, "/b", ""), frameOf(cmdCancel, 0, 6, "", "\x01why"), frameOf(CmdRequest, 0, 7, "/i", ""))
		p.wants("inline answer", hex.EncodeToString(frameOf(CmdResponse, 0, 7, "/i", "read")))
		release <- struct{}{}
		p.wants("first answer", hex.EncodeToString(frameOf(CmdResponse, 0, 5, "/b", "first")))
		const text = "cancelled by the caller before it ran"
		p.wants("answer to what was cancelled", hex.EncodeToString(frameOf(CmdResponse, flagError|flagCoded, 6, "/b",
			"\x01\x00\x25\x00\x00\x00"+text)))
	})
}

func TestCancelBytes(t *testing.T) {
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		for i, tt := range []struct {
			cause error
			want  string
		}{
			{nil, "context canceled"}, {errors.New("why"), "why"}, {errors.New(""), ""},
			{errors.New(strings.Repeat("x", 1024)), strings.Repeat("x", 1024)},
			{errors.New(strings.Repeat("x", 1024) + "y"), strings.Repeat("x", 1024)},
		} {
			ctx, cancel := context.WithCancelCause(context.Background())
			done := make(chan error, 1)
			go func() { done <- c.CallWith(ctx, "/m", "x", nil) }()
			p.wants("call", fmt.Sprintf("07000000"+"00010802"+"%02x00000000000000"+"2f6d"+"60ea0000"+"78", i+2))
			cancel(tt.cause)
			recv(t, done, "end of the call")
			m := p.frame()
			if want := frameOf(7, 0, uint64(i+2), "", "\x01"+tt.want); string(m.Buffer) != string(want) {
				t.Errorf("CANCEL is %x", m.Buffer)
			}
			p.send(frameOf(CmdResponse, 0, uint64(i+2), "/m", "nobody waits"))
		}
		p.send(unhex(goldenPing))
		p.wants("pong", goldenPong)
	})
	for _, tt := range []struct{ name, method, body string }{
		{"no code", "", ""}, {"code 0", "", "\x00x"}, {"another code", "", "\x04x"}, {"a method", "/m", "\x01x"},
	} {
		greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
			p.send(frameOf(cmdCancel, 0, 5, tt.method, tt.body))
			p.end()
			eventually(t, "end of the connection", func() bool { return c.CheckState() != nil })
			if err := c.CheckState(); !strings.Contains(err.Error(), errFrame.Error()) {
				t.Errorf("%s: the connection ended with %v", tt.name, err)
			}
		})
	}
}

// CANCELs that fit nothing are kept within bounds, the latest of them.
func TestCancelsOfNothing(t *testing.T) {
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.Handle("/m", func(c *Context) { c.Write(fmt.Sprint(c.Err())) })
		var all []byte
		for seq := range uint64(10000) {
			all = append(all, frameOf(cmdCancel, 0, 1000+seq, "", "\x01x")...)
		}
		p.send(all, frameOf(CmdRequest, 0, 10999, "/m", ""), frameOf(CmdRequest, 0, 1000, "/m", ""))
		if m := p.frame(); m.Seq() != 10999 || !m.IsError() {
			t.Errorf("the last that was cancelled: %x", m.Buffer)
		}
		p.wants("one that was forgotten", hex.EncodeToString(frameOf(CmdResponse, 0, 1000, "/m", "<nil>")))
		if _, _, canceled := tables(c); canceled != maxCanceled-1 {
			t.Errorf("%d are kept", canceled)
		}
		// Long causes are cut.
		started := make(chan struct{})
		length := make(chan int, 1)
		c.Handler.Handle("/wait", func(c *Context) {
			done := c.Done()
			close(started)
			<-done
			length <- len(context.Cause(c).Error())
			c.Write(nil)
		})
		p.send(frameOf(CmdRequest, 0, 7, "/wait", ""))
		recv(t, started, "handler")
		p.send(frameOf(cmdCancel, 0, 7, "", "\x01"+strings.Repeat("x", 5000)))
		if n := recv(t, length, "end of the handler"); n != len("cancelled by the caller: ")+1024 {
			t.Errorf("the cause has %d bytes", n)
		}
	})
}

// What was cancelled and answered is forgotten, with coders too.
func TestCancelWithCoders(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		w.fenced()
		for _, c := range []*Client{w.caller, w.callee} {
			c.Handler.UseCoder(appender{})
		}
		started, ask, ends := make(chan struct{}, 1), make(chan struct{}), make(chan canceledEnd, 1)
		w.callee.Handler.Handle("/m", func(c *Context) {
			started <- struct{}{}
			<-ask
			<-c.Done()
			ends <- canceledEnd{time.Now(), c.Err(), context.Cause(c)}
			c.Write(nil)
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.caller.CallWith(ctx, "/m", nil, nil) }()
		recv(t, started, "handler")
		cancel()
		recv(t, done, "end of the call")
		w.fence(t)
		ask <- struct{}{}
		recv(t, ends, "end of the handler").check(t, "context canceled")
		must(t, w.caller.Call("/last", nil, nil, patience))
		if _, _, canceled := tables(w.callee); canceled != 0 {
			t.Errorf("%d requests are kept as cancelled", canceled)
		}
	})
}

// A handler may put off its answer while it is being cancelled.
func TestCancelWhileAnsweringLater(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		asked, ends := make(chan struct{}, 1), make(chan canceledEnd, 1)
		w.callee.Handler.Handle("/m", func(c *Context) {
			done := c.Done()
			asked <- struct{}{}
			c.AnswerLater() // moves the message, at which CANCEL looks
			<-done
			ends <- canceledEnd{time.Now(), c.Err(), context.Cause(c)}
			c.Write(nil)
		})
		for range 20 {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- w.caller.CallWith(ctx, "/m", nil, nil) }()
			recv(t, asked, "handler")
			cancel()
			recv(t, ends, "end of the handler's context").check(t, "context canceled")
			recv(t, done, "end of the call")
		}
		eventually(t, "empty tables", func() bool {
			_, asked, canceled := tables(w.callee)
			return asked == 0 && canceled == 0
		})
	})
}

// helpers counts the goroutines that package context needs for contexts whose parents it does not know.
func helpers() (n int) {
	buf := make([]byte, 4<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "propagateCancel") {
			n++
		}
	}
	return n
}

func TestDerivedContexts(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		const n = 50
		started := make(chan []context.Context, 1)
		var release chan struct{}
		type key struct{}
		w.callee.Handler.Handle("/m", func(c *Context) {
			var all []context.Context
			for i := range n {
				sub, cancel := context.WithTimeout(c, time.Hour)
				defer cancel() // vet wants it; the checks are done before
				if i%2 == 0 {
					sub, cancel = context.WithCancel(context.WithValue(sub, key{}, i))
					defer cancel()
				}
				all = append(all, sub)
			}
			started <- all
			if release != nil {
				<-release
			}
			<-c.Done()
			<-all[n-1].Done()
		}, true)
		w.callee.Handler.Handle("/return", func(c *Context) {
			sub, cancel := context.WithTimeout(context.WithValue(c, key{}, 1), time.Hour)
			_ = cancel // only the handler's return is to end it
			started <- []context.Context{sub}
			c.Write(nil)
		})
		release = make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.caller.CallWith(ctx, "/m", nil, nil) }()
		all := recv(t, started, "handler")
		if h := helpers(); h > 0 {
			t.Errorf("%d contexts have %d goroutines", n, h)
		}
		cancel()
		for i, sub := range all {
			recv(t, sub.Done(), "end of a derived context")
			canceledEnd{time.Now(), sub.Err(), context.Cause(sub)}.check(t, "context canceled")
			if i%2 == 0 && sub.Value(key{}) != i {
				t.Errorf("value %v", sub.Value(key{}))
			}
		}
		recv(t, done, "end of the call")
		close(release)
		must(t, w.caller.Call("/return", nil, nil, patience))
		for _, sub := range recv(t, started, "handler") {
			recv(t, sub.Done(), "end of a derived context")
			if sub.Err() != context.Canceled || CodeOf(context.Cause(sub)) != CodeCanceled ||
				context.Cause(sub).Error() != "the handler has returned" {
				t.Errorf("it ended with %v, %v", sub.Err(), context.Cause(sub))
			}
		}
		if h := helpers(); h > 0 {
			t.Errorf("%d goroutines are left", h)
		}
	})
}

// The context of a request that is answered later ends with the answer.
func TestContextEndsWithALateAnswer(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		w.fenced()
		kept := make(chan *Context, 1)
		w.callee.Handler.Handle("/ordered", func(c *Context) { c.AnswerLater(); kept <- c })
		w.callee.Handler.Handle("/async", func(c *Context) { c.AnswerLater(); kept <- c }, true)
		w.callee.Handler.HandleInline("/inline", func(c *Context) { c.AnswerLater(); kept <- c })
		for _, route := range []string{"/ordered", "/async", "/inline"} {
			end := make(chan error, 1)
			go func() { end <- w.caller.Call(route, nil, nil, patience) }()
			c := recv(t, kept, "Context")
			done := c.Done()
			must(t, w.caller.Call("/last", nil, nil, patience)) // the ordered handler has returned
			if d, ok := c.Deadline(); c.Err() != nil || !ok || time.Until(d) > patience {
				t.Errorf("%s: %v, %v before the answer", route, c.Err(), d)
			}
			must(t, c.Write(nil))
			recv(t, done, "end of the context")
			if c.Err() != context.Canceled || CodeOf(context.Cause(c)) != CodeCanceled {
				t.Errorf("%s: %v, %v", route, c.Err(), context.Cause(c))
			}
			must(t, recv(t, end, "end of the call"))
			if _, asked, _ := tables(w.callee); asked != 0 {
				t.Errorf("%s: %d handlers are kept", route, asked)
			}
		}
	})
}

func TestManyCancelledCalls(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		w.fenced()
		const n, workers = 10000, 50
		var running atomic.Int64
		var started [workers]chan struct{}
		for i := range started {
			started[i] = make(chan struct{}, 1)
		}
		w.callee.Handler.Handle("/m", func(c *Context) {
			running.Add(1)
			defer running.Add(-1)
			if b := c.Body(); len(b) > 0 {
				done := c.Done()
				started[b[0]] <- struct{}{}
				<-done
			}
			<-c.Done()
			if c.Err() != context.Canceled {
				t.Errorf("a handler ended with %v", c.Err())
			}
		}, true)
		before := len(ourGoroutines("internal/work.run("))
		var wg sync.WaitGroup
		for i := range workers {
			wg.Go(func() {
				for j := range n / workers {
					ctx, cancel := context.WithCancel(context.Background())
					var body []byte
					if j%2 == 0 { // cancelled once it waits
						body = []byte{byte(i)}
						go func() {
							<-started[i]
							cancel()
						}()
					} else { // cancelled at some moment
						go cancel()
					}
					if err := w.caller.CallWith(ctx, "/m", body, nil); !errors.Is(err, context.Canceled) {
						t.Errorf("a call ended with %v", err)
						if body != nil {
							started[i] <- struct{}{}
						}
					}
					cancel()
				}
			})
		}
		waitGroup(t, &wg, "end of the calls")
		w.fence(t)
		eventually(t, "the end of all handlers and empty tables", func() bool {
			calls, _, _ := tables(w.caller)
			_, asked, canceled := tables(w.callee)
			return running.Load() == 0 && calls == 0 && asked == 0 && canceled == 0
		})
		eventually(t, "as many goroutines as before", func() bool { return len(ourGoroutines("internal/work.run(")) <= before })
		if x := w.callee.link.Load().x.Load(); len(x.canceled.order) > maxCanceled {
			t.Errorf("%d cancelled requests are kept in order", len(x.canceled.order))
		}
		if slots := len(w.caller.link.Load().table.slots); slots > 16*workers {
			t.Errorf("the table of calls has %d slots", slots)
		}
	})
}

// The end of the connection stops handlers, and those that ask later.
func TestDisconnectStopsHandlers(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		ends := make(chan canceledEnd, 4)
		started := make(chan struct{}, 4)
		waiting := func(c *Context) {
			done := c.Done()
			started <- struct{}{}
			<-done
			ends <- canceledEnd{time.Now(), c.Err(), context.Cause(c)}
		}
		gone := make(chan struct{})
		w.callee.Handler.Handle("/ordered", waiting)
		w.callee.Handler.Handle("/async", waiting, true)
		w.callee.Handler.Handle("/later", func(c *Context) {
			c.AnswerLater()
			go waiting(c)
		})
		w.callee.Handler.Handle("/asks", func(c *Context) {
			started <- struct{}{}
			<-gone
			<-c.Done()
			ends <- canceledEnd{time.Now(), c.Err(), context.Cause(c)}
		}, true)
		calls := make(chan error, 4)
		for _, route := range []string{"/ordered", "/async", "/later", "/asks"} {
			if route == "/later" { // it is ordered, and would wait behind the first
				route = "/async"
			}
			go func() { calls <- w.caller.Call(route, nil, nil, patience) }()
		}
		for range 4 {
			recv(t, started, "handler")
		}
		start := time.Now()
		w.caller.Stop()
		for range 4 {
			if err := recv(t, calls, "end of a call"); !errors.Is(err, ErrClientStopped) {
				t.Errorf("a call ended with %v", err)
			}
		}
		for i := range 4 {
			if i == 3 {
				close(gone)
			}
			e := recv(t, ends, "end of a handler")
			if e.err != context.Canceled || CodeOf(e.cause) != CodeUnavailable ||
				!strings.Contains(e.cause.Error(), "the peer says: client stopped") {
				t.Errorf("a handler's context ended with %v, %v", e.err, e.cause)
			}
			if d := e.at.Sub(start); d > patience/2 {
				t.Errorf("it took %v", d)
			}
		}
	})
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		started, ends := make(chan struct{}, 1), make(chan canceledEnd, 1)
		c.Handler.Handle("/m", func(c *Context) {
			done := c.Done()
			started <- struct{}{}
			<-done
			ends <- canceledEnd{time.Now(), c.Err(), context.Cause(c)}
		})
		p.send(frameOf(CmdRequest, 0, 5, "/m", ""))
		recv(t, started, "handler")
		p.reset()
		if e := recv(t, ends, "end of the handler"); e.err != context.Canceled || CodeOf(e.cause) != CodeUnavailable ||
			!strings.Contains(e.cause.Error(), "reset") {
			t.Errorf("the handler's context ended with %v, %v", e.err, e.cause)
		}
	})
}

// All that a call can be ended by is Unavailable when the connection is gone, and says why.
func TestLostConnectionEndsEveryCall(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		end          func(p *rawPeer)
	}{
		{"closed", "the peer closed the connection", func(p *rawPeer) { p.Close() }}, //nolint:errcheck // as below
		{"reset", "reset", func(p *rawPeer) { p.reset() }},
		{"broken", "malformed frame", func(p *rawPeer) { p.send(frameOf(63, 0, 0, "", "")) }},
		{"left with a reason", "the peer says: out of paper", func(p *rawPeer) {
			p.send(frameOf(cmdGoAway, flagError, 0, "", "\x0e\x00\x0c\x00\x00\x00out of paper"))
			p.Close() //nolint:errcheck // that is the point
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
				const n = 20
				ends := make(chan error, 4*n)
				cause := NewMethod[string, string]("/m")
				for range n {
					go func() { ends <- c.Call("/m", nil, nil, TimeForever) }()
					go func() { ends <- c.CallWith(context.Background(), "/m", nil, nil) }()
					go func() {
						_, err := cause.Call(context.Background(), c, new(string))
						ends <- err
					}()
					must(t, c.CallAsync("/m", nil, func(c *Context) {
						err := c.Err()
						if berr := c.Bind(nil); berr != err {
							err = fmt.Errorf("%w, but Bind: %w", err, berr)
						}
						ends <- err
					}, patience))
				}
				for range 4 * n {
					p.frame()
				}
				tt.end(p)
				for range 4 * n {
					err := recv(t, ends, "end of a call")
					var e *Error
					if !errors.As(err, &e) || e.Code != CodeUnavailable || e.Remote ||
						!errors.Is(err, CodeUnavailable) || !strings.Contains(err.Error(), tt.reason) ||
						!errors.Is(err, ErrClientReconnecting) && !errors.Is(err, ErrClientStopped) {
						t.Errorf("a call ended with %v (%v)", err, CodeOf(err))
					}
				}
				if calls, _, _ := tables(c); calls != 0 && c.dial == nil {
					t.Errorf("%d calls are kept", calls)
				}
			})
		})
	}
}

func TestCallsSayWhyTheConnectionEnded(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		stop       func(t *testing.T, w *way)
	}{
		{"Server.Stop", "the peer says: server stopped", func(t *testing.T, w *way) { must(t, w.server.Stop()) }},
		{"Client.Stop", "the peer says: client stopped", func(t *testing.T, w *way) { w.client.Stop() }},
		{"Client.Stop of an accepted one", "the peer says: client stopped", func(t *testing.T, w *way) {
			for _, c := range w.server.waitClients(t, 1) {
				c.Stop()
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			everyWay(t, Limits{}, func(t *testing.T, w *way) {
				started := make(chan struct{}, 1)
				w.callee.Handler.Handle("/m", func(c *Context) {
					done := c.Done()
					started <- struct{}{}
					<-done
				}, true)
				byCaller := strings.HasPrefix(tt.name, "Server") && w.caller != w.client || tt.name == "Client.Stop" &&
					w.caller == w.client ||
					strings.HasSuffix(tt.name, "accepted one") && w.caller != w.client
				end := make(chan error, 1)
				go func() { end <- w.caller.Call("/m", nil, nil, TimeForever) }()
				recv(t, started, "handler")
				tt.stop(t, w)
				err := recv(t, end, "end of the call")
				if CodeOf(err) != CodeUnavailable {
					t.Errorf("the call ended with %v (%v)", err, CodeOf(err))
				}
				if !byCaller && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("the call ended with %v, want %q in it", err, tt.want)
				}
				if byCaller && strings.Contains(err.Error(), "the peer says") {
					t.Errorf("the end that stops blames the peer: %v", err)
				}
				if w.caller != w.client || tt.name == "Client.Stop" { // others connect again, if they can
					if state := w.caller.CheckState(); state == nil || CodeOf(state) != CodeUnavailable {
						t.Errorf("the state afterwards is %v", state)
					}
				}
			})
		})
	}
}

// info is a detail.
type info struct {
	Field string
	Count int
}

func TestCodesSurviveTheWire(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		answer := func(c *Context) error {
			code := Code(c.Body()[0])
			return &Error{Code: code, Message: "about " + code.String(), Details: []Detail{
				{Name: "info", Value: info{"name", 7}}, {Name: "", Value: []byte{0, 255}}, {Name: "text", Value: "t"},
				{Name: "none"},
			}}
		}
		w.callee.Handler.Handle("/write", func(c *Context) { c.Write(answer(c)) })
		w.callee.Handler.Handle("/error", func(c *Context) { c.Error(answer(c)) }, true)
		w.callee.Handler.HandleInline("/wrapped", func(c *Context) { c.Write(fmt.Errorf("it is %w, really", answer(c))) })
		NewMethod[[]byte, string]("/typed").Handle(w.callee.Handler, func(c *Context, _ *[]byte) (*string, error) { return nil, answer(c) })
		for code := CodeCanceled; code <= CodeUnauthenticated; code++ {
			for _, route := range []string{"/write", "/error", "/wrapped", "/typed"} {
				message := "about " + code.String()
				if route == "/wrapped" {
					message = "it is " + message + ", really"
				}
				check := func(how string, err error) {
					var e *Error
					if !errors.As(err, &e) {
						t.Fatalf("%s of %s: %v", how, route, err)
					}
					if e.Code != code || CodeOf(err) != code || e.Message != message || err.Error() != message || !e.Remote {
						t.Errorf("%s of %s: %#v", how, route, e)
					}
					for other := CodeCanceled; other <= CodeUnauthenticated; other++ {
						if errors.Is(err, other) != (other == code) {
							t.Errorf("%s of %s: %v is %v", how, route, err, other)
						}
					}
					if errors.Is(err, context.Canceled) != (code == CodeCanceled) ||
						errors.Is(err, context.DeadlineExceeded) != (code == CodeDeadlineExceeded) {
						t.Errorf("%s of %s: %v and the errors of package context", how, route, err)
					}
					var wrong Code
					if errors.As(err, &wrong) {
						t.Errorf("%s of %s: a Code %v in it", how, route, wrong)
					}
					if len(e.Details) != 4 {
						t.Fatalf("%s of %s: %d details", how, route, len(e.Details))
					}
					var i info
					var b []byte
					var text string
					if e.Details[0].Name != "info" || e.Details[0].Bind(&i) != nil || i != (info{"name", 7}) ||
						e.Details[1].Name != "" || e.Details[1].Bind(&b) != nil || string(b) != "\x00\xff" ||
						e.Details[2].Name != "text" || e.Details[2].Bind(&text) != nil || text != "t" ||
						e.Details[3].Name != "none" || e.Details[3].Bind(&text) != nil || text != "" {
						t.Errorf("%s of %s: %+v, %v, %x, %q", how, route, e.Details, i, b, text)
					}
					if e.Details[2].Bind(&i) == nil {
						t.Errorf("%s of %s: a text was bound to a struct", how, route)
					}
				}
				req := []byte{byte(code)}
				check("Call", w.caller.Call(route, req, nil, patience))
				check("CallWith", w.caller.CallWith(patient(t), route, req, &info{}))
				async := make(chan [3]error, 1)
				must(t, w.caller.CallAsync(route, req, func(c *Context) { async <- [3]error{c.Err(), c.Bind(&info{}), c.Err()} }, patience))
				for _, err := range recv(t, async, "callback") {
					check("CallAsync", err)
				}
			}
		}
	})
	local := Detail{Name: "x", Value: "text"}
	if err := local.Bind(new(string)); CodeOf(err) != CodeFailedPrecondition {
		t.Errorf("a detail of this side: %v", err)
	}
}

// Errors of other kinds get the code that fits.
func TestOtherErrors(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		var current error
		w.callee.Handler.Handle("/m", func(c *Context) { c.Write(current) })
		for _, tt := range []struct {
			err  error
			code Code
			text string
		}{
			{errors.New("plain"), CodeUnknown, "plain"},
			{errors.New(""), CodeUnknown, ""},
			{CodeNotFound, CodeNotFound, "not_found"},
			{fmt.Errorf("no such thing: %w", CodeNotFound), CodeNotFound, "no such thing: not_found"},
			{context.Canceled, CodeCanceled, "context canceled"},
			{context.DeadlineExceeded, CodeDeadlineExceeded, "context deadline exceeded"},
			{ErrTimeout, CodeDeadlineExceeded, "timeout"},
			{errors.Join(errors.New("a"), ErrMethodNotFound), CodeUnimplemented, "a\nmethod not found"},
			{&Error{Message: "without a code"}, CodeUnknown, "without a code"},
			{Code(0), CodeUnknown, Code(0).Error()},
		} {
			current = tt.err
			err := w.caller.Call("/m", nil, nil, patience)
			var e *Error
			if !errors.As(err, &e) || e.Code != tt.code || e.Message != tt.text || !e.Remote || len(e.Details) > 0 {
				t.Errorf("%#v arrives as %#v", tt.err, err)
			}
			if tt.err == ErrTimeout && !errors.Is(err, ErrTimeout) {
				t.Error("an error of this package is not itself any more")
			}
		}
	})
}

func TestErrorLimits(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		var current error
		w.callee.Handler.Handle("/m", func(c *Context) { c.Write(current) })
		call := func() *Error {
			t.Helper()
			var e *Error
			if err := w.caller.Call("/m", nil, nil, patience); !errors.As(err, &e) || e.Code != CodeAborted || !e.Remote {
				t.Fatalf("%v (%v)", err, CodeOf(err))
			}
			return e
		}
		for _, n := range []int{65536, 65537, 1 << 20} {
			current = &Error{Code: CodeAborted, Message: strings.Repeat("x", n), Details: []Detail{{Name: "d", Value: "v"}}}
			if e := call(); e.Message != strings.Repeat("x", 65536) || len(e.Details) != 1 || e.Details[0].Name != "d" {
				t.Errorf("of %d bytes %d arrive, %d details", n, len(e.Message), len(e.Details))
			}
		}
		many := make([]Detail, 300)
		for i := range many {
			many[i] = Detail{Name: fmt.Sprint(i), Value: fmt.Sprint(-i)}
		}
		current = &Error{Code: CodeAborted, Message: "m", Details: many}
		e := call()
		if len(e.Details) != 255 {
			t.Errorf("%d details", len(e.Details))
		}
		for i, d := range e.Details {
			if d.Name != fmt.Sprint(i) || string(d.Value.([]byte)) != fmt.Sprint(-i) {
				t.Errorf("detail %d is %+v", i, d)
			}
		}
		current = &Error{Code: CodeAborted, Message: "m", Details: []Detail{
			{Name: strings.Repeat("n", 256), Value: "x"}, {Name: "bad", Value: make(chan int)},
			{Name: strings.Repeat("n", 255), Value: "good"},
			{Name: "large", Value: strings.Repeat("v", 1<<20)},
		}}
		e = call()
		if len(e.Details) != 2 || e.Details[0].Name != strings.Repeat("n", 255) || len(e.Details[1].Value.([]byte)) != 1<<20 {
			t.Errorf("%d details", len(e.Details))
		}
	})
}

func TestErrorBytes(t *testing.T) {
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.Handle("/m", func(c *Context) {
			c.Write(&Error{Code: CodeNotFound, Message: "gone", Details: []Detail{{Name: "ab", Value: "xyz"},
				{Value: map[string]int{"n": 1}}}})
		})
		p.send(frameOf(CmdRequest, 0, 2, "/m", ""), frameOf(CmdRequest, flagAsync, 3, "/m", ""))
		const body = "2f6d" + "05" + "02" + "04000000" + "676f6e65" + "02" + "6162" + "03000000" + "78797a" + "00" + "07000000" + "7b226e223a317d"
		p.wants("error", "22000000"+"00021102"+"0200000000000000"+body)
		p.wants("async error", "22000000"+"00021302"+"0300000000000000"+body)
	})
	// An error of version 1 in a connection of version 2 is a text.
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		done := make(chan error, 1)
		go func() { done <- c.Call("/m", nil, nil, patience) }()
		m := p.frame()
		p.send(frameOf(CmdResponse, flagError, m.Seq(), "/m", "\x05\x00\x00\x00\x00\x00"))
		if err := recv(t, done, "end of the call"); CodeOf(err) != CodeUnknown || err.Error() != "\x05\x00\x00\x00\x00\x00" {
			t.Errorf("%v (%v)", err, CodeOf(err))
		}
	})
}

func TestMalformedErrors(t *testing.T) {
	le := func(n uint32) string { return string(binary.LittleEndian.AppendUint32(nil, n)) }
	tests := []struct{ name, payload string }{
		{"empty", ""},
		{"code only", "\x05"},
		{"five bytes", "\x05\x00\x00\x00\x00"},
		{"code 0", "\x00\x00" + le(0)},
		{"message beyond the end", "\x05\x00" + le(5) + "text"},
		{"longest message", "\x05\x00" + le(1<<32-1) + "text"},
		{"message of 2 GiB", "\x05\x00" + le(1<<31) + "text"},
		{"a detail too many", "\x05\x01" + le(4) + "text"},
		{"a name beyond the end", "\x05\x01" + le(0) + "\xffx"},
		{"a name and nothing more", "\x05\x01" + le(0) + "\x01x"},
		{"a short length of a value", "\x05\x01" + le(0) + "\x01x\x00\x00\x00"},
		{"a value beyond the end", "\x05\x01" + le(0) + "\x01x" + le(2) + "v"},
		{"longest value", "\x05\x01" + le(0) + "\x01x" + le(1<<32-1) + "v"},
		{"the second detail is missing", "\x05\x02" + le(0) + "\x01x" + le(1) + "v"},
		{"255 details are missing", "\x05\xff" + le(0)},
	}
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		for _, tt := range tests {
			done := make(chan error, 2)
			go func() { done <- c.Call("/m", nil, new(string), patience) }()
			p.send(frameOf(CmdResponse, flagError|flagCoded, p.frame().Seq(), "/m", tt.payload))
			must(t, c.CallAsync("/m", nil, func(c *Context) {
				if err := c.Bind(new(info)); err == nil || err.Error() != c.Err().Error() {
					t.Errorf("%s: Bind says %v", tt.name, err)
				}
				done <- c.Err()
			}, patience))
			p.send(frameOf(CmdResponse, flagError|flagCoded|flagAsync, p.frame().Seq(), "/m", tt.payload))
			for range 2 {
				var e *Error
				if err := recv(t, done, "end of a call"); !errors.As(err, &e) || e.Code != CodeInternal || !e.Remote ||
					e.Message != "malformed error" || len(e.Details) > 0 {
					t.Errorf("%s: %#v", tt.name, err)
				}
			}
		}
		// More than is needed does no harm, nor does a code of later days.
		done := make(chan error, 1)
		go func() { done <- c.Call("/m", nil, nil, patience) }()
		p.send(frameOf(CmdResponse, flagError|flagCoded, p.frame().Seq(), "/m", "\xc8\x00"+le(1)+"m"+"and more"))
		if err := recv(t, done, "end of the call"); err == nil || err.Error() != "m" || errors.Is(err, context.Canceled) {
			t.Errorf("%#v", err)
		}
		if slices.ContainsFunc(codeNames[1:], func(s string) bool { return s == CodeOf(Code(200)).String() }) &&
			CodeOf(Code(200)) != CodeUnknown {
			t.Errorf("a code of later days is %v", CodeOf(Code(200)))
		}
	})
}
