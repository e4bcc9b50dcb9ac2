package arpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// burn keeps the CPU busy.
func burn(d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
	}
}

// pause waits on a channel, as a handler that asks a database does.
func pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

func number(b []byte) int {
	if len(b) < 4 {
		return -1
	}
	return int(binary.LittleEndian.Uint32(b))
}

func numbered(i int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(i)) }

func echo(c *Context) { c.Write(c.Body()) }

// sequence checks that ordered handlers start in order and run one at a time.
type sequence struct {
	next   atomic.Int64
	inside atomic.Int32
	wrong  atomic.Pointer[string]
}

func (s *sequence) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.wrong.CompareAndSwap(nil, &text)
}

func (s *sequence) enter(i int) {
	if n := s.inside.Add(1); n != 1 {
		s.fail("%d handlers run at a time", n)
	}
	if next := s.next.Add(1) - 1; int64(i) != next {
		s.fail("request %d started as number %d", i, next)
	}
}

// back is entered again after a call.
func (s *sequence) back() {
	if n := s.inside.Add(1); n != 1 {
		s.fail("%d handlers run at a time after a call", n)
	}
}

func (s *sequence) leave() { s.inside.Add(-1) }

func (s *sequence) check(t *testing.T, n int) {
	t.Helper()
	if w := s.wrong.Load(); w != nil {
		t.Error(*w)
	}
	if got := s.next.Load(); got != int64(n) {
		t.Errorf("%d handlers of %d started", got, n)
	}
}

func TestOrderedOneAtATimeInOrder(t *testing.T) {
	const n = 20_000
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		var seq sequence
		s := startServer(t, adapter)
		s.Handler.Handle("/work", func(c *Context) {
			i := number(c.Body())
			seq.enter(i)
			defer seq.leave()
			switch i % 128 {
			case 3:
				if i%256 == 3 {
					pause(100 * time.Microsecond)
				}
			case 17:
				burn(60 * time.Microsecond)
			case 33: // keeps the strand
				var r []byte
				if err := c.Client.Call("/back", c.Body(), &r, patience); err != nil || number(r) != i {
					seq.fail("call back without the context: %v, %x", err, r)
				}
			case 65, 66: // lets others run meanwhile
				var r []byte
				body := append([]byte(nil), c.Body()...)
				seq.leave()
				err := c.Client.CallWith(c, "/back", body, &r)
				seq.back()
				if err != nil || number(r) != i {
					seq.fail("call back with the context: %v, %x", err, r)
				}
			}
			if got := number(c.Body()); got != i {
				seq.fail("the body of request %d became that of %d", i, got)
			}
			c.Write(c.Body())
		})
		c := dialClient(t, s.addr)
		c.Handler.Handle("/back", echo)
		ends := make([]atomic.Int32, n)
		var wg sync.WaitGroup
		wg.Add(n)
		for i := range n {
			err := c.CallAsync("/work", numbered(i), func(c *Context) {
				if err := c.Err(); err != nil || number(c.Body()) != i {
					seq.fail("call %d: %v, %x", i, err, c.Body())
				}
				ends[i].Add(1)
				wg.Done()
			}, TimeForever)
			must(t, err)
		}
		waitGroup(t, &wg, "end of all calls")
		seq.check(t, n)
		for i := range ends {
			if e := ends[i].Load(); e != 1 {
				t.Errorf("call %d ended %d times", i, e)
			}
		}
	})
}

// Several connections at once, requests of several callers and notifications in between: the order is that of each connection.
func TestOrderedPerConnection(t *testing.T) {
	const conns, n = 6, 1000
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		seqs := make([]sequence, conns)
		var handled sync.WaitGroup
		handled.Add(conns * n)
		h := func(c *Context) {
			defer handled.Done()
			b := c.Body()
			seq, i := &seqs[number(b)], number(b[4:])
			seq.enter(i)
			defer seq.leave()
			if i%100 == 50 {
				runtime.Gosched()
			}
			c.Write(nil)
		}
		s.Handler.Handle("/call", h)
		s.Handler.Handle("/notify", h)
		var wg sync.WaitGroup
		for k := range conns {
			c := dialClient(t, s.addr)
			wg.Go(func() {
				for i := range n {
					var err error
					switch b := append(numbered(k), numbered(i)...); i % 3 {
					case 0:
						err = c.Notify("/notify", b, patience)
					case 1:
						err = c.CallAsync("/call", b, func(*Context) {}, patience)
					default:
						err = c.Call("/call", b, nil, patience)
					}
					if err != nil {
						seqs[k].fail("message %d: %v", i, err)
						handled.Done()
					}
				}
			})
		}
		waitGroup(t, &wg, "end of the callers")
		waitGroup(t, &handled, "run of all handlers")
		for k := range seqs {
			seqs[k].check(t, n)
		}
	})
}

func TestBlockedHandlerHoldsBackNothingElse(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		entered, release := make(chan *Client, 1), make(chan struct{})
		var behind atomic.Int32
		s.Handler.Handle("/block", func(c *Context) {
			entered <- c.Client
			<-release
			c.Write("done")
		})
		s.Handler.Handle("/ordered", func(c *Context) { behind.Add(1); echo(c) })
		s.Handler.Handle("/async", echo, true)
		s.Handler.HandleInline("/inline", echo)
		c := dialClient(t, s.addr)
		c.Handler.Handle("/name", func(c *Context) { c.Write("client") })

		blocked := make(chan error, 1)
		go func() {
			var r string
			err := c.Call("/block", nil, &r, patience)
			if err == nil && r != "done" {
				err = errors.New(r)
			}
			blocked <- err
		}()
		peer := recv(t, entered, "blocked handler")
		var wg sync.WaitGroup
		for range 100 {
			wg.Add(1)
			must(t, c.CallAsync("/ordered", "x", func(c *Context) {
				defer wg.Done()
				if err := c.Err(); err != nil {
					t.Error(err)
				}
			}, patience))
		}
		for i := range 50 {
			var r string
			if err := peer.Call("/name", nil, &r, patience); err != nil || r != "client" {
				t.Fatalf("the server's call: %v, %q", err, r)
			}
			for _, route := range []string{"/async", "/inline"} {
				if err := c.Call(route, "x", &r, patience); err != nil || r != "x" {
					t.Fatalf("%s: %v, %q", route, err, r)
				}
			}
			if i%10 == 0 {
				other := dialClient(t, s.addr)
				if err := other.Call("/ordered", "x", &r, patience); err != nil || r != "x" {
					t.Fatalf("another connection: %v, %q", err, r)
				}
				other.Stop()
			}
		}
		if n := behind.Load(); n != 5 { // those of the other connections
			t.Errorf("%d ordered handlers ran beside a blocked one", n-5)
		}
		close(release)
		must(t, recv(t, blocked, "end of the blocked call"))
		waitGroup(t, &wg, "end of the calls behind it")
	})
}

// Answers that were produced before a handler blocks are out, also those of the same segment, and pings are answered.
func TestAnswersBeforeABlockedHandlerAreOut(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		for _, before := range []int{0, 1, 2, 40, 1000} {
			t.Run(fmt.Sprint(before), func(t *testing.T) {
				s := startServer(t, adapter)
				entered, release := make(chan struct{}, 1), make(chan struct{})
				var ran atomic.Int32
				s.Handler.Handle("/block", func(c *Context) {
					entered <- struct{}{}
					<-release
					c.Write("late")
				})
				s.Handler.Handle("/echo", func(c *Context) { ran.Add(1); echo(c) })
				s.Handler.HandleInline("/inline", echo)
				p := dialRaw(t, s.addr)
				var batch []byte
				for i := range before {
					batch = append(batch, frameOf(CmdRequest, 0, uint64(i), "/echo", "early")...)
				}
				batch = append(batch, frameOf(CmdRequest, 0, 1<<32, "/block", "")...)
				batch = append(batch, frameOf(CmdRequest, 0, 1<<33, "/inline", "i")...)
				const after = 20
				for i := range after {
					batch = append(batch, frameOf(CmdRequest, 0, uint64(1<<34+i), "/echo", "behind")...)
				}
				batch = append(batch, pingFrame...)
				p.send(batch)
				inline, pong, next := false, false, 0
				for next < before || !inline || !pong {
					switch m := p.frame(); {
					case m.Cmd() == CmdPong:
						pong = true
					case m.Seq() == 1<<33:
						inline = true
					case m.Seq() == uint64(next) && string(m.Data()) == "early":
						next++
					default:
						t.Fatalf("unexpected answer %d %q, %d are due", m.Seq(), m.Data(), next)
					}
				}
				recv(t, entered, "blocked handler")
				for range 3 {
					p.send(pingFrame)
					if m := p.frame(); m.Cmd() != CmdPong {
						t.Fatalf("%d %q beside a blocked handler", m.Cmd(), m.Data())
					}
				}
				if n := int(ran.Load()); n != before {
					t.Errorf("%d handlers ran of %d before the blocked one", n, before)
				}
				close(release)
				if m := p.frame(); m.Seq() != 1<<32 || string(m.Data()) != "late" {
					t.Fatalf("answer %d %q of the blocked handler", m.Seq(), m.Data())
				}
				for i := range after {
					if m := p.frame(); m.Seq() != uint64(1<<34+i) {
						t.Fatalf("answer %d behind the blocked handler, want %d", m.Seq(), 1<<34+i)
					}
				}
			})
		}
	})
}

// The same when a route that is known to be slow came before in the batch, so that the stretch is old already when answers are
// deferred again.
func TestAnswersAfterASlowRouteAreOut(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		entered, release := make(chan struct{}, 1), make(chan struct{})
		s.Handler.Handle("/slow", func(c *Context) {
			pause(10 * time.Millisecond)
			c.Write(nil)
		})
		s.Handler.Handle("/fast", echo)
		s.Handler.Handle("/block", func(c *Context) {
			entered <- struct{}{}
			<-release
			c.Write(nil)
		})
		c := dialClient(t, s.addr)
		for !s.Handler.load().routes["/slow"].cost.isSlow() {
			must(t, c.Call("/slow", nil, nil, patience))
		}
		p := dialRaw(t, s.addr)
		p.send(frameOf(CmdRequest, 0, 1, "/slow", ""), frameOf(CmdRequest, 0, 2, "/fast", "x"), frameOf(CmdRequest, 0, 3, "/block", ""))
		recv(t, entered, "blocked handler")
		defer close(release)
		p.SetReadDeadline(time.Now().Add(3 * time.Second))
		for want := uint64(1); want <= 2; want++ {
			m, err := readFrame(p)
			if err != nil {
				t.Fatalf("answer %d is held back by the handler behind it: %v", want, err)
			}
			if m.Seq() != want {
				t.Fatalf("answer %d, want %d", m.Seq(), want)
			}
		}
	})
}

// One segment with the answer of a CallAsync, whose callback still runs, and with requests that must wait in line.
func TestQueuedRequestsBesideCallbacks(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		entered, release := make(chan struct{}, 1), make(chan struct{})
		c.Handler.Handle("/block", func(c *Context) {
			entered <- struct{}{}
			<-release
			c.Write(nil)
		})
		c.Handler.Handle("/echo", echo)
		p.send(frameOf(CmdRequest, 0, 1000, "/block", ""))
		recv(t, entered, "blocked handler")
		var callbacks sync.WaitGroup
		var batch []byte
		for i := range 3 {
			callbacks.Add(1)
			must(t, c.CallAsync("/m", nil, func(ctx *Context) {
				defer callbacks.Done()
				<-release
				if want := fmt.Sprint("answer ", i); ctx.Err() != nil || string(ctx.Body()) != want {
					t.Errorf("%q, %v, want %q", ctx.Body(), ctx.Err(), want)
				}
			}, patience))
			batch = append(batch, frameOf(CmdResponse, flagAsync, p.frame().Seq(), "/m", fmt.Sprint("answer ", i))...)
			batch = append(batch, frameOf(CmdRequest, 0, uint64(2000+i), "/echo", fmt.Sprint("request ", i))...)
		}
		p.send(batch, pingFrame)
		if m := p.frame(); m.Cmd() != CmdPong {
			t.Fatalf("%x", m.Buffer)
		}
		close(release)
		if m := p.frame(); m.Seq() != 1000 {
			t.Fatalf("%x", m.Buffer)
		}
		for i := range 3 {
			if m := p.frame(); m.Seq() != uint64(2000+i) || m.Method() != "/echo" || string(m.Data()) != fmt.Sprint("request ", i) {
				t.Fatalf("answer %d: %x", i, m.Buffer)
			}
		}
		waitGroup(t, &callbacks, "end of the callbacks")
	})
}

// Answers leave while a long line of quick handlers runs, not at its end.
func TestAnswersLeaveDuringALongStretch(t *testing.T) {
	const n, each = 10_000, 25 * time.Microsecond
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		var ran atomic.Int32
		gate := make(chan struct{})
		s.Handler.Handle("/gate", func(c *Context) { <-gate })
		s.Handler.Handle("/quick", func(c *Context) {
			burn(each)
			ran.Add(1)
			c.Write(nil)
		})
		p := dialRaw(t, s.addr)
		batch := frameOf(CmdNotify, 0, 1, "/gate", "")
		for i := range n {
			batch = append(batch, frameOf(CmdRequest, 0, uint64(i), "/quick", "")...)
		}
		p.send(batch)
		p.send(pingFrame)
		if m := p.frame(); m.Cmd() != CmdPong {
			t.Fatalf("%d %q", m.Cmd(), m.Data())
		}
		close(gate) // all are in line now
		var lag int
		for i := range n {
			m := p.frame()
			if m.Seq() != uint64(i) {
				t.Fatalf("answer %d, want %d", m.Seq(), i)
			}
			lag = max(lag, int(ran.Load())-i-1)
		}
		// Half of all is a quarter of a second.
		if lag > n/2 {
			t.Errorf("an answer left after %d more handlers had run, which took %v", lag, time.Duration(lag)*each)
		}
	})
}

// The README's way to call back, which keeps the strand.
func TestCallBackWithoutTheContext(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		var client *Client
		s.Handler.Handle("/hello", func(c *Context) {
			client = c.Client
			var r string
			if err := client.Call("/name", nil, &r, patience); err != nil {
				c.Error(err)
				return
			}
			c.Write("hello " + r)
		})
		c := dialClient(t, s.addr)
		c.Handler.Handle("/name", func(c *Context) { c.Write("bob") })
		for i := range 200 {
			var r string
			if err := c.Call("/hello", nil, &r, patience); err != nil || r != "hello bob" {
				t.Fatalf("call %d: %v, %q", i, err, r)
			}
		}
		// And from several callers, which wait for each other.
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 50 {
					var r string
					if err := c.Call("/hello", nil, &r, patience); err != nil || r != "hello bob" {
						t.Errorf("%v, %q", err, r)
						return
					}
				}
			})
		}
		waitGroup(t, &wg, "end of the callers")
	})
}

// chain registers a route that calls its caller back until the payload has counted down to zero.
func chain(h Handler, async bool, call func(c *Context, n string, r *string) error) {
	h.Handle("/chain", func(c *Context) {
		n, r := number(c.Body()), ""
		if n > 0 {
			if err := call(c, string(numbered(n-1)), &r); err != nil {
				c.Error(err)
				return
			}
		}
		c.Write(fmt.Sprintf("%d%s", n, r))
	}, async)
}

func chained(n int) (s string) {
	for ; n >= 0; n-- {
		s += fmt.Sprint(n)
	}
	return s
}

func plainCall(c *Context, n string, r *string) error { return c.Client.Call("/chain", n, r, patience) }
func ownCall(c *Context, n string, r *string) error   { return c.Client.CallWith(c, "/chain", n, r) }
func derivedCall(c *Context, n string, r *string) error {
	ctx, cancel := context.WithTimeout(context.WithValue(c, contextTestKey{}, 1), patience)
	defer cancel()
	return c.Client.CallWith(ctx, "/chain", n, r)
}

// Deep chains of call-backs in both directions at once.
func TestCallBackChains(t *testing.T) {
	for _, tt := range []struct {
		name  string
		async bool
		depth int
		call  func(c *Context, n string, r *string) error
	}{
		{"ordered, plain, 1 deep", false, 1, plainCall}, // each end's own callers keep the other's strand for one level only
		{"async, plain, 3 deep", true, 3, plainCall},
		{"async, with context, 10 deep", true, 10, ownCall},
		{"ordered, with context, 1 deep", false, 1, ownCall},
		{"ordered, with context, 2 deep", false, 2, ownCall},
		{"ordered, with context, 3 deep", false, 3, ownCall},
		{"ordered, with context, 10 deep", false, 10, ownCall},
		{"ordered, with derived context, 10 deep", false, 10, derivedCall},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onAdapters(t, func(t *testing.T, adapter ServerOption) {
				s := startServer(t, adapter)
				chain(s.Handler, tt.async, tt.call)
				c := dialClient(t, s.addr)
				chain(c.Handler, tt.async, tt.call)
				peer := s.waitClients(t, 1)[0]
				callers := []*Client{c, peer}
				if tt.name == "ordered, plain, 1 deep" {
					callers = callers[:1] // both ends' handlers would wait for each other's strand
				}
				var wg sync.WaitGroup
				for _, from := range callers {
					for range 10 {
						wg.Go(func() {
							for range 20 {
								var r string
								err := from.Call("/chain", numbered(tt.depth), &r, patience)
								if err != nil || r != chained(tt.depth) {
									t.Errorf("%v, %q", err, r)
									return
								}
							}
						})
					}
				}
				waitGroup(t, &wg, "end of all chains")
			})
		})
	}
}

// Without the handler's context the strand stays taken, so a second level on an ordered route waits in vain: until its time is
// up, and not longer; the connection is as good as before.
func TestPlainCallBackTwoDeepEndsInTime(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		call := func(c *Context, n string, r *string) error {
			return c.Client.Call("/chain", n, r, 50*time.Millisecond)
		}
		s := startServer(t, adapter)
		chain(s.Handler, false, call)
		c := dialClient(t, s.addr)
		chain(c.Handler, false, call)
		var r string
		err := c.Call("/chain", numbered(2), &r, patience)
		if err == nil || err.Error() != ErrTimeout.Message {
			t.Errorf("%v, %q", err, r)
		}
		if err := c.Call("/chain", numbered(1), &r, patience); err != nil || r != "10" {
			t.Errorf("afterwards: %v, %q", err, r)
		}
	})
}

// A handler that waits in a call lets the next start, and is alone again when the call has returned.
func TestOthersRunWhileAHandlerWaitsWithItsContext(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		s.Handler.Handle("/wait", func(c *Context) {
			var r string
			if err := c.Client.CallWith(c, "/hold", nil, &r); err != nil {
				c.Error(err)
				return
			}
			c.Write(r)
		})
		s.Handler.Handle("/echo", echo)
		hold, held := make(chan struct{}), make(chan struct{}, 1)
		c := dialClient(t, s.addr)
		c.Handler.Handle("/hold", func(c *Context) {
			held <- struct{}{}
			<-hold
			c.Write("held")
		})
		done := make(chan error, 1)
		go func() {
			var r string
			err := c.Call("/wait", nil, &r, patience)
			if err == nil && r != "held" {
				err = errors.New(r)
			}
			done <- err
		}()
		recv(t, held, "call back")
		for range 100 {
			var r string
			if err := c.Call("/echo", "x", &r, patience); err != nil || r != "x" {
				t.Fatalf("%v, %q", err, r)
			}
		}
		close(hold)
		must(t, recv(t, done, "end of the waiting handler"))
	})
}

// A handler may use its context on goroutines of its own, several at once, and may return before they are done.
func TestContextUsedOnSeveralGoroutines(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		var left sync.WaitGroup
		s.Handler.Handle("/fan", func(c *Context) {
			var wg sync.WaitGroup
			var good atomic.Int32
			client := c.Client
			for i := range 4 {
				wg.Go(func() {
					var r string
					if err := client.CallWith(c, "/echo", "x", &r); err == nil && r == "x" {
						good.Add(1)
					} else {
						t.Errorf("call %d: %v", i, err)
					}
				})
			}
			wg.Wait()
			c.Write(fmt.Sprint(good.Load()))
		})
		s.Handler.Handle("/leave", func(c *Context) {
			client := c.Client
			started := make(chan struct{})
			left.Go(func() {
				ctx, cancel := context.WithTimeout(c, patience)
				defer cancel()
				close(started)
				// The context ends with the handler, which may be before the call does.
				if err := client.CallWith(ctx, "/echo", "x", nil); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
			<-started
			c.Write(nil)
		})
		s.Handler.Handle("/echo", echo)
		c := dialClient(t, s.addr)
		c.Handler.Handle("/echo", echo)
		for range 200 {
			var r string
			if err := c.Call("/fan", nil, &r, patience); err != nil || r != "4" {
				t.Fatalf("%v, %q", err, r)
			}
			must(t, c.Call("/leave", nil, nil, patience))
			if err := c.Call("/echo", "x", &r, patience); err != nil || r != "x" {
				t.Fatalf("%v, %q", err, r)
			}
		}
		waitGroup(t, &left, "calls of handlers that returned")
	})
}

func TestNestedCallsAreLimited(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		const limit = 3
		s := startServer(t, adapter, Limits{NestedCalls: limit})
		var refusedHere atomic.Int32
		s.Handler.Handle("/wait", func(c *Context) {
			err := c.Client.CallWith(c, "/hold", nil, nil)
			if err != nil {
				if e := (*Error)(nil); CodeOf(err) != CodeResourceExhausted || !errors.As(err, &e) || e.Remote {
					t.Errorf("refused with %#v", err)
				}
				refusedHere.Add(1)
				c.Error(err)
				return
			}
			c.Write(nil)
		})
		hold, held := make(chan struct{}), make(chan struct{}, 100)
		c := dialClient(t, s.addr)
		c.Handler.Handle("/hold", func(c *Context) {
			held <- struct{}{}
			<-hold
			c.Write(nil)
		}, true)
		results := make(chan error, limit)
		for range limit {
			go func() { results <- c.Call("/wait", nil, nil, patience) }()
			recv(t, held, "waiting handler")
		}
		for i := range 3 {
			if err := c.Call("/wait", nil, nil, patience); CodeOf(err) != CodeResourceExhausted {
				t.Errorf("call %d above the limit: %v", i, err)
			}
		}
		if n := refusedHere.Load(); n != 3 {
			t.Errorf("%d calls were refused", n)
		}
		close(hold)
		for range limit {
			must(t, recv(t, results, "end of a waiting call"))
		}
		for range limit + 2 {
			must(t, c.Call("/wait", nil, nil, patience)) // the places are free again
		}
	})
}

// heapLive returns the bytes in use after a collection.
func heapLive() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func mebibyte(seed byte) []byte {
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i)*3 + byte(i>>8) + seed
	}
	return b
}

// Two peers that flood each other with large calls and with notifications go on, and do not grow.
func TestFloodInBothDirections(t *testing.T) {
	const size, callers, calls = 32 << 10, 3, 3
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		before := heapLive()
		s := startServerOn(t, listenSmall(t, size), adapter)
		var heard [2]atomic.Int64
		routes := func(h Handler, side int) {
			h.Handle("/echo", echo)
			h.Handle("/async", echo, true)
			h.Handle("/note", func(c *Context) {
				heard[side].Add(1)
				if number(c.Body())%2 == 0 {
					c.Client.Notify("/noted", c.Body(), TimeZero) // refused when full
				}
			})
			h.Handle("/noted", func(*Context) {})
		}
		routes(s.Handler, 0)
		h := NewHandler()
		routes(h, 1)
		c := dialClientBy(t, dialSmall(s.addr, size), h)
		peer := s.waitClients(t, 1)[0]

		stop := make(chan struct{})
		var noise, wg sync.WaitGroup
		var accepted [2]atomic.Int64
		var most uint64
		for side, from := range []*Client{peer, c} {
			for k := range callers {
				wg.Go(func() {
					b := mebibyte(byte(side*callers + k))
					route := []string{"/echo", "/async"}[k%2]
					for i := range calls {
						var r []byte
						if err := from.Call(route, b, &r, patience); err != nil || !bytes.Equal(b, r) {
							t.Errorf("side %d, caller %d, call %d: %v, %d bytes", side, k, i, err, len(r))
							return
						}
					}
				})
			}
			for k := range 2 {
				noise.Go(func() {
					b := make([]byte, 4<<10)
					for i := k; ; i += 2 {
						select {
						case <-stop:
							return
						default:
						}
						copy(b, numbered(i))
						if from.Notify("/note", b, []time.Duration{TimeZero, 20 * time.Millisecond}[k]) == nil {
							accepted[1-side].Add(1)
						} else {
							pause(time.Millisecond)
						}
					}
				})
			}
		}
		noise.Go(func() {
			ticker := time.NewTicker(200 * time.Millisecond)
			defer ticker.Stop()
			for {
				select {
				case <-stop:
					return
				case <-ticker.C:
					most = max(most, heapLive())
				}
			}
		})
		waitGroup(t, &wg, "end of the calls")
		close(stop)
		waitGroup(t, &noise, "end of the notifications")
		eventually(t, "arrival of all notifications", func() bool {
			return heard[0].Load() == accepted[0].Load() && heard[1].Load() == accepted[1].Load()
		})
		t.Logf("%d and %d notifications, live heap grew by at most %d KiB", heard[0].Load(), heard[1].Load(), (int64(most)-int64(before))>>10)
		if most > before+128<<20 {
			t.Errorf("the live heap grew by %d MiB", (most-before)>>20)
		}
	})
}

// Two peers that only notify each other, refused when full: neither waits for the other to read first.
func TestNotifyFloodInBothDirections(t *testing.T) {
	const size, senders, n = 16 << 10, 3, 30_000
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		limits := Limits{WriteStall: 3 * time.Second, SendHigh: 64 << 10}
		s := startServerOn(t, listenSmall(t, size), adapter, limits)
		var heard, accepted, refused [2]atomic.Int64
		var lost atomic.Int32
		s.Handler.Handle("/note", func(*Context) { heard[0].Add(1) })
		s.Handler.HandleDisconnected(func(*Client) { lost.Add(1) })
		h := NewHandler()
		h.Handle("/note", func(*Context) { heard[1].Add(1) })
		c := dialClientBy(t, dialSmall(s.addr, size), h, limits)
		peer := s.waitClients(t, 1)[0]
		var wg sync.WaitGroup
		body := make([]byte, 200)
		for side, from := range []*Client{peer, c} {
			for range senders {
				wg.Go(func() {
					for range n {
						err := from.Notify("/note", body, TimeZero)
						switch {
						case err == nil:
							accepted[1-side].Add(1)
						case errors.Is(err, ErrClientOverstock):
							refused[1-side].Add(1)
						default:
							t.Errorf("side %d: %v", side, err)
							return
						}
					}
				})
			}
		}
		waitGroup(t, &wg, "end of the senders")
		eventually(t, "arrival of all notifications", func() bool {
			return lost.Load() > 0 || heard[0].Load() == accepted[0].Load() && heard[1].Load() == accepted[1].Load()
		})
		for side := range 2 {
			t.Logf("side %d: heard %d of %d accepted, %d refused", side, heard[side].Load(), accepted[side].Load(), refused[side].Load())
		}
		if lost.Load() > 0 {
			t.Error("the connection was closed: both ends had stopped reading")
		}
	})
}

// Connections without a descriptor: each write waits for the peer to read.
func TestFloodWithoutDescriptors(t *testing.T) {
	const callers, calls = 3, 6
	ln := newPipeListener()
	s := startServerOn(t, ln)
	h := NewHandler()
	for _, h := range []Handler{s.Handler, h} {
		trafficRoutes(h)
	}
	c := dialClientBy(t, func() (net.Conn, error) { return ln.dial(), nil }, h)
	peer := s.waitClients(t, 1)[0]
	var wg sync.WaitGroup
	for side, from := range []*Client{peer, c} {
		for k := range callers {
			wg.Go(func() {
				b := mebibyte(byte(side*callers + k))
				for i := range calls {
					var r []byte
					if err := from.Call([]string{"/echo", "/async", "/inline"}[(k+i)%3], b, &r, patience); err != nil || !bytes.Equal(b, r) {
						t.Errorf("side %d, caller %d, call %d: %v, %d bytes", side, k, i, err, len(r))
						return
					}
					for range 20 {
						from.Notify("/note", "x", TimeZero)
					}
					if err := from.Call("/back", "x", nil, patience); err != nil {
						t.Errorf("side %d: %v", side, err)
						return
					}
				}
			})
		}
	}
	waitGroup(t, &wg, "end of the calls")
}

// trafficRoutes registers everything that the cut tests use.
func trafficRoutes(h Handler) {
	h.Handle("/echo", echo)
	h.Handle("/async", echo, true)
	h.HandleInline("/inline", echo)
	h.Handle("/slow", func(c *Context) {
		pause(300 * time.Microsecond)
		echo(c)
	})
	h.Handle("/later", func(c *Context) {
		c.AnswerLater()
		go c.Write("later")
	})
	h.Handle("/back", func(c *Context) {
		var r string
		if err := c.Client.CallWith(c, "/echo", "x", &r); err != nil {
			c.Error(err)
			return
		}
		c.Write(r)
	})
	h.Handle("/plain", func(c *Context) {
		var r string
		if err := c.Client.Call("/async", "x", &r, patience); err != nil {
			c.Error(err)
			return
		}
		c.Write(r)
	})
	h.Handle("/note", func(c *Context) { c.Client.Notify("/noted", c.Body(), TimeZero) })
	h.Handle("/noted", func(*Context) {})
}

var trafficCalls = []string{"/echo", "/async", "/inline", "/slow", "/later", "/back", "/plain"}

// ending counts the ends of calls.
type ending struct {
	started, ended, twice atomic.Int64
}

func (e *ending) async(c *Client, route string, body []byte) {
	e.started.Add(1)
	var once atomic.Bool
	c.CallAsync(route, body, func(*Context) {
		if !once.CompareAndSwap(false, true) {
			e.twice.Add(1)
		}
		e.ended.Add(1)
	}, patience)
}

func (e *ending) call(c *Client, route string, body []byte) error {
	e.started.Add(1)
	var r []byte
	err := c.Call(route, body, &r, patience)
	e.ended.Add(1)
	return err
}

// Connections that are cut in the middle of everything: each call ends once, and nothing is left.
func TestCuts(t *testing.T) {
	const cuts, parallel = 40, 5
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		var e ending
		t.Run("traffic", func(t *testing.T) {
			s := startServer(t, adapter)
			trafficRoutes(s.Handler)
			var senders sync.WaitGroup
			s.Handler.HandleConnected(func(c *Client) {
				senders.Go(func() { traffic(c, &e, 1) })
			})
			var wg sync.WaitGroup
			for k := range parallel {
				wg.Go(func() {
					for i := k; i < cuts; i += parallel {
						cut(t, s.addr, &e, i)
					}
				})
			}
			waitGroup(t, &wg, "end of the clients")
			waitGroup(t, &senders, "end of the server's senders")
		})
		eventually(t, "end of all calls", func() bool { return e.started.Load() == e.ended.Load() })
		if n := e.twice.Load(); n > 0 {
			t.Errorf("%d calls ended twice", n)
		}
		t.Logf("%d calls", e.started.Load())
		noGoroutines(t)
	})
}

// noGoroutines waits until everything that earlier tests have stopped is gone.
func noGoroutines(t *testing.T) {
	t.Helper()
	var left []string
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		if left = ourGoroutines(); len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d goroutines left:\n%s", len(left), left[0])
		}
	}
}

// traffic sends everything there is until the connection is gone.
func traffic(c *Client, e *ending, seed int) {
	rnd := rand.New(rand.NewPCG(uint64(seed), 7))
	large := make([]byte, 100<<10)
	for {
		route := trafficCalls[rnd.IntN(len(trafficCalls))]
		var err error
		switch rnd.IntN(10) {
		case 0:
			err = e.call(c, route, large)
		case 1, 2:
			err = e.call(c, route, []byte("call"))
		case 3:
			err = c.Notify("/note", "note", TimeZero)
		default:
			for range rnd.IntN(20) {
				e.async(c, route, []byte("async"))
			}
			err = c.CheckState()
		}
		if err != nil && !errors.Is(err, ErrClientOverstock) && c.CheckState() != nil {
			return
		}
	}
}

// cut makes a client, lets it work and cuts its connection: two thirds by RST.
func cut(t *testing.T, addr string, e *ending, i int) {
	var nc net.Conn
	h := NewHandler()
	trafficRoutes(h)
	h.SetMaxReconnectTimes(1)
	dialled := false
	c, err := NewClient(func() (net.Conn, error) {
		if dialled {
			return nil, io.ErrClosedPipe
		}
		dialled = true
		var err error
		nc, err = dialer(addr)()
		return nc, err
	}, h, Backoff(time.Microsecond, time.Microsecond))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Stop()
	var wg sync.WaitGroup
	for k := range 3 {
		wg.Go(func() { traffic(c, e, 10*i+k) })
	}
	at := e.started.Load() + int64(50+37*i%400)
	for e.started.Load() < at {
		if err := c.CheckState(); err != nil {
			t.Errorf("the connection was lost before it was cut: %v", err)
			break
		}
		runtime.Gosched()
	}
	if i%3 == 0 {
		nc.Close()
	} else {
		reset(nc)
	}
	wg.Wait()
}

// stalled waits until a counter no longer moves and returns it. That the machine is slow can only make it return too early, which
// spares what is being tested.
func stalled(n *atomic.Int64) int64 {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	last, same := int64(-1), 0
	for same < 60 {
		<-ticker.C
		if v := n.Load(); v != last {
			last, same = v, 0
		} else {
			same++
		}
	}
	return last
}

// flood writes n requests of a route, numbered from 1 on, and counts the bytes written.
func flood(p *rawPeer, route string, size, n int) (written *atomic.Int64, done chan error) {
	written, done = new(atomic.Int64), make(chan error, 1)
	payload := string(make([]byte, size))
	go func() {
		for i := range n {
			k, err := p.Write(frameOf(CmdRequest, 0, uint64(i+1), route, payload))
			written.Add(int64(k))
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return written, done
}

// Reading pauses when too much is in line, and goes on when there is room.
func TestReadingPausesAtTheLimits(t *testing.T) {
	// Small socket buffers would not do: a full one makes the kernel drop what the peer acknowledges, and both wait for seconds.
	const size, n, kernel = 10_000, 4000, 16 << 20
	for _, tt := range []struct {
		name   string
		limits Limits
		async  bool
		bound  int64 // bytes, beside those in the kernel
	}{
		{"queued bytes", Limits{QueuedRequests: 64 << 10}, false, 1 << 20},
		{"async requests", Limits{AsyncRequests: 64}, true, 4*64*size + 1<<20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onAdapters(t, func(t *testing.T, adapter ServerOption) {
				s := startServer(t, adapter, tt.limits)
				release := make(chan struct{})
				var once sync.Once
				free := func() { once.Do(func() { close(release) }) }
				defer free()
				var running, most atomic.Int64
				s.Handler.Handle("/work", func(c *Context) {
					for r := running.Add(1); ; {
						if m := most.Load(); r <= m || most.CompareAndSwap(m, r) {
							break
						}
					}
					defer running.Add(-1)
					<-release
					c.Write(nil)
				}, tt.async)
				p := dialRaw(t, s.addr)
				written, done := flood(p, "/work", size, n)
				if w := stalled(written); w > tt.bound+kernel {
					t.Errorf("%d bytes were taken while handlers are blocked, want at most %d", w, tt.bound+kernel)
				}
				free()
				seen := make([]bool, n+1)
				for range n {
					m := p.frame()
					if m.IsError() {
						t.Fatalf("request %d: %s", m.Seq(), m.Data())
					}
					if seen[m.Seq()] {
						t.Fatalf("request %d was answered twice", m.Seq())
					}
					seen[m.Seq()] = true
				}
				must(t, recv(t, done, "end of the flood"))
				if m := most.Load(); tt.async && m > 4*int64(tt.limits.AsyncRequests) || !tt.async && m != 1 {
					t.Errorf("%d handlers ran at a time", m)
				}
			})
		})
	}
}

// A notification cannot be refused: one too many ends the connection.
func TestOverloadOfNotificationsCloses(t *testing.T) {
	for name, limits := range map[string]Limits{"queued bytes": {QueuedRequests: 64 << 10}, "async requests": {AsyncRequests: 50}} {
		t.Run(name, func(t *testing.T) {
			onAdapters(t, func(t *testing.T, adapter ServerOption) {
				s := startServer(t, adapter, limits)
				called, release := make(chan error, 1), make(chan struct{})
				s.Handler.Handle("/call", func(c *Context) { called <- c.Client.Call("/answer", nil, nil, patience) })
				s.Handler.Handle("/work", func(*Context) { <-release }, limits.AsyncRequests > 0)
				defer close(release)
				p := dialRaw(t, s.addr)
				p.send(frameOf(CmdRequest, 0, 1, "/call", "")) // the pause is not for ever while this side waits
				if q := p.frame(); q.Method() != "/answer" {
					t.Fatalf("%d %q", q.Cmd(), q.Method())
				}
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					note := bytes.Repeat(frameOf(CmdNotify, 0, 2, "/work", string(make([]byte, 1000))), 100)
					for range 100 { // far more than four times the limit
						if _, err := p.Write(note); err != nil {
							return
						}
					}
				}()
				if err := recv(t, called, "end of the server's call"); CodeOf(err) != CodeUnavailable {
					t.Errorf("the server's call ends with %v", err)
				}
				recv(t, sent, "end of the flood")
			})
		})
	}
}

// While this side waits for an answer, the pause is not for ever, as the answer may be behind what is not read. What is
// then too much is refused.
func TestPauseGivesWayToCallsAndOverloadIsRefused(t *testing.T) {
	const queue, size, n = 64 << 10, 1000, 2000
	for _, tt := range []struct {
		name   string
		limits Limits
		async  bool
		accept int // at most so many requests are accepted
	}{
		{"queued bytes", Limits{QueuedRequests: queue}, false, (4*queue + 128<<10) / size},
		{"async requests", Limits{AsyncRequests: 50}, true, 4 * 50},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onAdapters(t, func(t *testing.T, adapter ServerOption) {
				s := startServer(t, adapter, tt.limits)
				called := make(chan error, 1)
				s.Handler.Handle("/call", func(c *Context) {
					err := c.Client.Call("/answer", nil, nil, patience)
					called <- err
					c.Write(nil)
				})
				release := make(chan struct{})
				s.Handler.Handle("/work", func(c *Context) {
					<-release
					c.Write(nil)
				}, tt.async)
				p := dialRaw(t, s.addr)
				p.send(frameOf(CmdRequest, 0, 1<<40, "/call", ""))
				q := p.frame()
				if q.Cmd() != CmdRequest || q.Method() != "/answer" {
					t.Fatalf("%d %q", q.Cmd(), q.Method())
				}
				// The server waits for the answer to its call, which is behind the flood.
				refused := make(chan int, 1)
				good := make(chan int, 1)
				var released sync.Once
				defer released.Do(func() { close(release) })
				go func() {
					defer released.Do(func() { close(release) })
					bad, ok := 0, 0
					for bad+ok < n+1 {
						m, err := readFrame(p)
						if err != nil {
							t.Error(err)
							break
						}
						if m.IsError() {
							bad++
							if e := m.Error(); CodeOf(e) != CodeResourceExhausted {
								t.Errorf("refused with %v", e)
							}
						} else {
							ok++
						}
						if m.Seq() == 1<<40 { // the handler that called is done
							released.Do(func() { close(release) })
						}
					}
					refused <- bad
					good <- ok
				}()
				_, done := flood(p, "/work", size, n)
				must(t, recv(t, done, "end of the flood"))
				p.send(frameOf(CmdResponse, 0, q.Seq(), "/answer", ""))
				must(t, recv(t, called, "answer to the server's call"))
				bad, ok := recv(t, refused, "all answers"), recv(t, good, "all answers")
				t.Logf("%d answered, %d refused", ok, bad)
				if ok-1 > tt.accept {
					t.Errorf("%d requests were accepted, want at most %d", ok-1, tt.accept)
				}
				if bad == 0 {
					t.Error("nothing was refused")
				}
				p.send(frameOf(CmdRequest, 0, 7, "/work", "")) // and the connection is as good as before
				if m := p.frame(); m.Seq() != 7 || m.IsError() {
					t.Errorf("afterwards: %d %s", m.Seq(), m.Data())
				}
			})
		})
	}
}

// A peer that asks and does not read the answers is not read any more, and the answers do not grow.
func TestReadingPausesWhileAnswersAreNotRead(t *testing.T) {
	const high, n, size, kernel = 256 << 10, 8000, 8 << 10, 16 << 20
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter, Limits{SendHigh: high})
		answer := make([]byte, size)
		var ran atomic.Int64
		s.Handler.Handle("/large", func(c *Context) {
			ran.Add(1)
			c.Write(answer)
		})
		p := dialRaw(t, s.addr)
		_, done := flood(p, "/large", 4000, n)
		stalled(&ran)
		if r := ran.Load() * size; r > high+2<<20+kernel {
			t.Errorf("%d bytes were answered to a peer that does not read", r)
		}
		for i := range n {
			if m := p.frame(); m.Seq() != uint64(i+1) || len(m.Data()) != size {
				t.Fatalf("answer %d, want %d", m.Seq(), i+1)
			}
		}
		must(t, recv(t, done, "end of the flood"))
	})
}

type contextTestKey struct{}
