package arpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// openFiles returns the number of open descriptors, 0 where the system does not tell.
func openFiles() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

// A thousand servers and clients that start, work and stop leave nothing: no goroutine, no descriptor, and nothing that
// refers to a client, such as a timer.
func TestStartUseStop(t *testing.T) {
	const cycles, parallel = 1000, 4
	kinds := [][]ServerOption{{StdConns(-1)}, {StdConns(0)}, nil}
	var collected atomic.Int64
	cycle := func(i int) error {
		s := NewServer(append(kinds[i%len(kinds)], NewHandler())...)
		trafficRoutes(s.Handler)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		c, err := NewClient(dialer(ln.Addr().String()), NewHandler())
		if err != nil {
			return err
		}
		runtime.AddCleanup(c, func(int) { collected.Add(1) }, 0)
		trafficRoutes(c.Handler)
		c.Keepalive(time.Hour)
		for _, route := range []string{"/echo", "/back", "/async"} {
			var r string
			if err := c.Call(route, "x", &r, patience); err != nil || r != "x" {
				return fmt.Errorf("%s: %q, %v", route, r, err)
			}
		}
		s.ForEach(func(c *Client) { c.Keepalive(time.Hour) })
		if i%2 == 0 {
			c.Stop()
		}
		if err := s.Stop(); err != nil {
			return err
		}
		c.Stop()
		if err := <-served; !errors.Is(err, ErrServerStopped) {
			return fmt.Errorf("Serve returned %v", err)
		}
		return nil
	}
	noGoroutines(t)
	for i := range kinds { // what is made once and stays
		must(t, cycle(i))
	}
	noGoroutines(t)
	files, goroutines := openFiles(), runtime.NumGoroutine()
	collected.Store(-int64(len(kinds)))
	var wg sync.WaitGroup
	for k := range parallel {
		wg.Go(func() {
			for i := k; i < cycles; i += parallel {
				if err := cycle(i); err != nil {
					t.Errorf("cycle %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "the goroutines of before", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "the descriptors of before", func() bool { return openFiles() <= files })
	// Pools may keep the last few.
	eventually(t, "no references to clients", func() bool {
		runtime.GC()
		return collected.Load() >= cycles-2*parallel-int64(len(kinds))
	})
}

// Shutdown under load: what a handler began is answered, everything else is refused.
func TestShutdownUnderLoad(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		var executed, answered, refused atomic.Int64
		s := startServer(t, adapter)
		h := func(c *Context) {
			executed.Add(1)
			pause(100 * time.Microsecond)
			echo(c)
		}
		s.Handler.Handle("/ordered", h)
		s.Handler.Handle("/async", h, true)
		var wg sync.WaitGroup
		enough := make(chan struct{})
		var once sync.Once
		for range 4 {
			c := dialClient(t, s.addr)
			for k := range 8 {
				route := []string{"/ordered", "/async"}[k%2]
				wg.Go(func() {
					for {
						var r string
						err := c.Call(route, "x", &r, patience)
						if err == nil {
							if answered.Add(1) == 500 {
								once.Do(func() { close(enough) })
							}
							continue
						}
						refused.Add(1)
						if CodeOf(err) != CodeUnavailable {
							t.Errorf("a call ended with %v: %v", CodeOf(err), err)
							return
						}
						var e *Error
						if errors.As(err, &e) && !e.Remote {
							return // the connection is gone; while refusals come, the load goes on
						}
					}
				})
			}
		}
		recv(t, enough, "answers")
		if err := s.Shutdown(patient(t)); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		waitGroup(t, &wg, "end of the calls")
		if e, a := executed.Load(), answered.Load(); e != a {
			t.Errorf("%d handlers ran, %d calls were answered", e, a)
		}
		t.Logf("%d answered, %d refused", answered.Load(), refused.Load())
	})
}

// A Shutdown whose context is over cuts.
func TestShutdownCut(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		b := newBlocker(t, s.Handler)
		c := dialClient(t, s.addr)
		ends := b.pending(t, c, 2)
		ctx, cancel := context.WithCancel(context.Background())
		result := make(chan error, 1)
		go func() { result <- s.Shutdown(ctx) }()
		eventually(t, "a listener that is closed", func() bool {
			nc, err := net.Dial("tcp", s.addr)
			if err == nil {
				nc.Close()
			}
			return err != nil
		})
		select {
		case err := <-result:
			t.Errorf("Shutdown did not wait: %v", err)
		default:
		}
		cancel()
		if err := recv(t, result, "return from Shutdown"); !errors.Is(err, context.Canceled) {
			t.Errorf("Shutdown: %v", err)
		}
		for range cap(ends) {
			if err := recv(t, ends, "end of a call"); CodeOf(err) != CodeUnavailable {
				t.Errorf("a call ended with %v", err)
			}
		}
	})
}

// A Shutdown that cuts names what it has cut: requests that run, wait in a call, are in line or will be answered later, and
// streams.
func TestShutdownNamesWhatItCuts(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		entered, release := make(chan struct{}, 10), make(chan struct{})
		block := func(*Context) { entered <- struct{}{}; <-release }
		s.Handler.Handle("/later", func(c *Context) { c.AnswerLater(); entered <- struct{}{} })
		s.Handler.Handle("/asks", func(c *Context) { c.Client.CallWith(c, "/hold", nil, nil) })
		s.Handler.Handle("/ordered", block)
		s.Handler.Handle("/line", block)
		s.Handler.Handle("/async", block, true)
		s.Handler.HandleStream("/stream", func(*Stream) { entered <- struct{}{}; <-release })
		c := dialClient(t, s.addr)
		c.Handler.Handle("/hold", func(c *Context) { entered <- struct{}{}; <-release }, true)
		defer close(release)
		ended := make(chan error, 10)
		call := func(method string) {
			must(t, c.CallAsync(method, nil, func(ctx *Context) { ended <- ctx.Err() }, patience))
		}
		call("/later")
		recv(t, entered, "handler that answers later")
		call("/async")
		recv(t, entered, "async handler")
		call("/asks")
		recv(t, entered, "handler that was called back")
		must(t, c.NewStream("/stream").Send("x"))
		recv(t, entered, "stream handler")
		call("/ordered")
		recv(t, entered, "ordered handler")
		call("/line")
		call("/line")
		eventually(t, "requests in line", func() bool {
			n := 0
			s.ForEach(func(sc *Client) {
				sc.link.Load().cn.EachOrdered(func(any) { n++ })
			})
			return n == 4
		})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		const want = "shutdown has cut /asks × 1, /async × 1, /later × 1, /line × 2, /ordered × 1, /stream × 1"
		if err := s.Shutdown(ctx); err == nil || err.Error() != want || !errors.Is(err, context.Canceled) {
			t.Errorf("Shutdown: %v", err)
		}
		for range 6 {
			if err := recv(t, ended, "end of a call"); CodeOf(err) != CodeUnavailable {
				t.Errorf("a call ended with %v", err)
			}
		}
	})
}

// blocker is a route whose handlers block until the end of the test.
type blocker struct{ entered, release chan struct{} }

func newBlocker(t *testing.T, h Handler) *blocker {
	b := &blocker{make(chan struct{}, 1000), make(chan struct{})}
	h.Handle("/block", func(c *Context) {
		b.entered <- struct{}{}
		<-b.release
		c.Write("late")
	}, true)
	t.Cleanup(func() { close(b.release) })
	return b
}

// pending makes n Calls and n CallAsyncs that block at the peer. Their ends come through the channel.
func (b *blocker) pending(t *testing.T, c *Client, n int) chan error {
	t.Helper()
	ends := make(chan error, 2*n)
	for range n {
		go func() { ends <- c.Call("/block", nil, nil, patience) }()
		must(t, c.CallAsync("/block", nil, func(c *Context) { ends <- c.Err() }, patience))
	}
	for range 2 * n {
		recv(t, b.entered, "blocked handler")
	}
	return ends
}

func allStopped(t *testing.T, ends chan error) {
	t.Helper()
	for range cap(ends) {
		if err := recv(t, ends, "end of a call"); !errors.Is(err, ErrClientStopped) || CodeOf(err) != CodeUnavailable {
			t.Errorf("a call ended with %v", err)
		}
	}
}

// within runs f, which must not hang.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	recv(t, done, "return from "+what)
}

func TestStop(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		t.Run("with calls in flight, twice", func(t *testing.T) {
			s := startServer(t, adapter)
			b := newBlocker(t, s.Handler)
			c := dialClient(t, s.addr)
			ends := b.pending(t, c, 3)
			within(t, "Stop", c.Stop)
			allStopped(t, ends)
			within(t, "the second Stop", c.Stop)
			for _, err := range []error{c.CheckState(), c.Call("/x", nil, nil, patience), c.Notify("/x", nil, TimeZero), c.WaitReady(patient(t))} {
				if !errors.Is(err, ErrClientStopped) {
					t.Errorf("after Stop: %v", err)
				}
			}
		})
		t.Run("concurrently", func(t *testing.T) {
			s := startServer(t, adapter)
			b := newBlocker(t, s.Handler)
			c := dialClient(t, s.addr)
			ends := b.pending(t, c, 3)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(c.Stop)
			}
			waitGroup(t, &wg, "return from Stop")
			allStopped(t, ends)
		})
		t.Run("of an accepted client", func(t *testing.T) {
			s := startServer(t, adapter)
			c := dialClient(t, s.addr)
			b := newBlocker(t, c.Handler)
			a := s.waitClients(t, 1)[0]
			ends := b.pending(t, a, 3)
			within(t, "Stop", a.Stop)
			allStopped(t, ends)
			within(t, "the second Stop", a.Stop)
			if err := a.CheckState(); !errors.Is(err, ErrClientStopped) {
				t.Errorf("CheckState: %v", err)
			}
		})
		t.Run("of an accepted client in its handler", func(t *testing.T) {
			s := startServer(t, adapter)
			returned := make(chan error, 2)
			stop := func(c *Context) {
				c.Client.Stop()
				returned <- c.Client.Call("/x", nil, nil, patience)
			}
			s.Handler.Handle("/stop", stop)
			s.Handler.Handle("/stop async", stop, true)
			for _, route := range []string{"/stop", "/stop async"} {
				c := dialClient(t, s.addr)
				if err := c.Call(route, nil, nil, patience); CodeOf(err) != CodeUnavailable {
					t.Errorf("%s: the call ended with %v", route, err)
				}
				if err := recv(t, returned, "return from Stop"); !errors.Is(err, ErrClientStopped) {
					t.Errorf("%s: a call after Stop: %v", route, err)
				}
				c.Stop()
			}
		})
		t.Run("of a client in its handler", func(t *testing.T) {
			s := startServer(t, adapter)
			me := make(chan *Client, 1)
			s.Handler.Handle("/me", func(c *Context) { me <- c.Client; c.Write(nil) })
			b := newBlocker(t, s.Handler)
			for _, async := range []bool{false, true} {
				c := dialClient(t, s.addr)
				must(t, c.Call("/me", nil, nil, patience)) // the server may still have the connection of the client before
				a := recv(t, me, "accepted client")
				returned := make(chan struct{})
				c.Handler.Handle("/stop", func(c *Context) {
					c.Client.Stop()
					close(returned)
				}, async)
				ends := b.pending(t, c, 2)
				must(t, a.Notify("/stop", nil, TimeZero))
				recv(t, returned, "return from Stop")
				allStopped(t, ends)
			}
		})
		t.Run("of the server in a handler", func(t *testing.T) {
			for _, async := range []bool{false, true} {
				t.Run(fmt.Sprint(async), func(t *testing.T) {
					t.Parallel() // Stop waits a second for the handler that it is called in
					s := startServer(t, adapter)
					returned := make(chan error, 1)
					s.Handler.Handle("/stop", func(*Context) { returned <- s.Stop() }, async)
					c := dialClient(t, s.addr)
					b := newBlocker(t, c.Handler)
					ends := b.pending(t, s.waitClients(t, 1)[0], 2)
					if err := c.Call("/stop", nil, nil, patience); CodeOf(err) != CodeUnavailable {
						t.Errorf("the call ended with %v", err)
					}
					must(t, recv(t, returned, "return from Stop"))
					allStopped(t, ends)
					within(t, "Stop of the client", c.Stop)
				})
			}
		})
		t.Run("of the server with blocked handlers", func(t *testing.T) {
			s := startServer(t, adapter)
			b := newBlocker(t, s.Handler)
			c := dialClient(t, s.addr)
			ends := b.pending(t, c, 2)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if err := s.Stop(); err != nil {
						t.Errorf("Stop: %v", err)
					}
				})
			}
			waitGroup(t, &wg, "return from Stop")
			for range cap(ends) {
				if err := recv(t, ends, "end of a call"); !errors.Is(err, ErrClientReconnecting) {
					t.Errorf("a call ended with %v", err)
				}
			}
			if err := s.Run("127.0.0.1:0"); !errors.Is(err, ErrServerStopped) {
				t.Errorf("Run after Stop: %v", err)
			}
		})
	})
}

// gatedDialer dials when it is let.
type gatedDialer struct {
	addr  string
	calls chan struct{} // one value per attempt
	gate  chan error    // its result, nil: dial
}

func newGate(addr string) *gatedDialer {
	return &gatedDialer{addr, make(chan struct{}, 1000), make(chan error, 1000)}
}

func (g *gatedDialer) dial() (net.Conn, error) {
	g.calls <- struct{}{}
	if err := <-g.gate; err != nil {
		return nil, err
	}
	return dialer(g.addr)()
}

var errGate = errors.New("the gate is closed")

func TestStopWithoutConnection(t *testing.T) {
	t.Run("while the dialer blocks", func(t *testing.T) {
		s := startServer(t)
		g := newGate(s.addr)
		g.gate <- nil
		c := dialClientBy(t, g.dial, WaitForReady())
		recv(t, g.calls, "attempt")
		c.Conn.Close()
		recv(t, g.calls, "second attempt")
		ends := make(chan error, 3)
		for range 2 {
			go func() { ends <- c.Call("/x", nil, nil, patience) }()
		}
		go func() { ends <- c.WaitReady(context.Background()) }()
		within(t, "Stop", c.Stop)
		allStopped(t, ends)
		g.gate <- nil // its connection is of no use any more
		s.waitClients(t, 0)
		if err := c.CheckState(); !errors.Is(err, ErrClientStopped) {
			t.Errorf("CheckState: %v", err)
		}
	})
	t.Run("between attempts", func(t *testing.T) {
		s := startServer(t)
		g := newGate(s.addr)
		g.gate <- nil
		c := dialClientBy(t, g.dial, Backoff(time.Hour, time.Hour))
		failed := make(chan error, 1)
		c.Handler.HandleReconnect(func(_ *Client, _ int, err error) { failed <- err })
		c.Conn.Close()
		g.gate <- errGate
		if err := recv(t, failed, "attempt"); !errors.Is(err, errGate) {
			t.Errorf("the attempt ended with %v", err)
		}
		within(t, "Stop", c.Stop)
		if err := c.Call("/x", nil, nil, patience); !errors.Is(err, ErrClientStopped) {
			t.Errorf("a call after Stop: %v", err)
		}
	})
	t.Run("in the reconnect hook", func(t *testing.T) {
		s := startServer(t)
		c := dialClient(t, s.addr)
		stopped := make(chan struct{})
		c.Handler.HandleReconnect(func(c *Client, _ int, _ error) {
			c.Stop()
			close(stopped)
		})
		c.Conn.Close()
		recv(t, stopped, "return from Stop")
		s.waitClients(t, 0)
	})
}

// A server that is killed and started again at its address.
func TestReconnect(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		ln := listenTCP(t)
		addr := ln.Addr().String()
		h := NewHandler()
		h.Handle("/echo", echo)
		b := newBlocker(t, h)
		s := startServerOn(t, ln, adapter, h)

		var connected, disconnected, own atomic.Int64
		attempts := make(chan error, 10000)
		ch := NewHandler()
		ch.HandleConnected(func(*Client) { connected.Add(1) })
		ch.HandleDisconnected(func(*Client) { disconnected.Add(1) })
		ch.HandleReconnect(func(_ *Client, attempt int, err error) {
			select {
			case attempts <- err:
			default:
			}
		})
		c := dialClient(t, addr, ch, Backoff(time.Millisecond, 10*time.Millisecond))
		c.OnDisconnected(func(*Client) { own.Add(1) })
		c.Set("key", "value")
		waiting := dialClient(t, addr, WaitForReady(), Backoff(time.Millisecond, 10*time.Millisecond))
		must(t, c.Call("/echo", "x", nil, patience))
		must(t, waiting.Call("/echo", "x", nil, patience))
		ends := b.pending(t, c, 2)

		must(t, s.Stop())
		reasoned := func(err error) {
			t.Helper()
			if !errors.Is(err, ErrClientReconnecting) || CodeOf(err) != CodeUnavailable ||
				!strings.HasPrefix(err.Error(), ErrClientReconnecting.Message+": ") {
				t.Errorf("without a connection: %v", err)
			}
		}
		for range cap(ends) {
			reasoned(recv(t, ends, "end of a call"))
		}
		for range 3 {
			if err := recv(t, attempts, "attempt"); err == nil {
				t.Error("connected to nobody")
			}
		}
		err := c.Call("/echo", "x", nil, patience)
		reasoned(err)
		if !strings.Contains(err.Error(), "refused") {
			t.Errorf("no reason: %v", err)
		}
		reasoned(c.Notify("/echo", "x", TimeZero))
		reasoned(c.CheckState())
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		if err := c.WaitReady(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitReady: %v", err)
		}
		if err := waiting.CallWith(ctx, "/echo", "x", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("CallWith of a client that waits: %v", err)
		}
		cancel()
		if err := waiting.Call("/echo", "x", nil, 5*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Call of a client that waits: %v", err)
		}
		result := make(chan error, 1)
		go func() { result <- waiting.Call("/echo", "x", nil, patience) }()

		ln, err = net.Listen("tcp", addr)
		must(t, err)
		s = startServerOn(t, ln, adapter, h)
		must(t, recv(t, result, "end of the call that waits"))
		must(t, c.WaitReady(patient(t)))
		must(t, c.Call("/echo", "x", nil, patience))
		eventually(t, "the hooks", func() bool { return connected.Load() == 2 && disconnected.Load() == 1 && own.Load() == 1 })
		for recv(t, attempts, "attempt that succeeded") != nil {
		}
		if v, _ := c.Get("key"); v != "value" {
			t.Errorf("the value is now %v", v)
		}
		s.waitClients(t, 2)
	})
}

func TestGivingUpAndRestart(t *testing.T) {
	s := startServer(t)
	s.Handler.Handle("/echo", echo)
	g := newGate(s.addr)
	g.gate <- nil
	c := dialClientBy(t, g.dial, Backoff(time.Millisecond, time.Millisecond), WaitForReady())
	c.Handler.SetMaxReconnectTimes(3)
	c.Conn.Close()
	for range 3 {
		g.gate <- errGate
	}
	err := c.WaitReady(patient(t))
	if !errors.Is(err, ErrClientStopped) || !errors.Is(err, errGate) || !strings.Contains(err.Error(), errGate.Error()) {
		t.Errorf("WaitReady: %v", err)
	}
	for _, err := range []error{c.CheckState(), c.Call("/echo", "x", nil, patience)} {
		if !errors.Is(err, ErrClientStopped) || !errors.Is(err, errGate) {
			t.Errorf("after giving up: %v", err)
		}
	}
	if n := len(g.calls); n != 4 {
		t.Errorf("%d attempts", n)
	}
	within(t, "Stop", c.Stop)
	g.gate <- errGate
	if err := c.Restart(); !errors.Is(err, errGate) {
		t.Errorf("Restart: %v", err)
	}
	if err := c.CheckState(); !errors.Is(err, ErrClientStopped) {
		t.Errorf("after a failed Restart: %v", err)
	}
	for range 3 { // stopped, and connected
		g.gate <- nil
		must(t, c.Restart())
		must(t, c.WaitReady(patient(t)))
		must(t, c.Call("/echo", "x", nil, patience))
	}
	s.waitClients(t, 1)
	c.Conn.Close() // it connects again as before
	g.gate <- nil
	must(t, c.Call("/echo", "x", nil, patience))
	if err := s.waitClients(t, 1)[0].Restart(); !errors.Is(err, ErrClientStopped) {
		t.Errorf("Restart of an accepted client: %v", err)
	}
}

// An attempt of before a Restart has no say in what comes after.
func TestRestartInReconnectHook(t *testing.T) {
	s := startServer(t)
	s.Handler.Handle("/echo", echo)
	g := newGate(s.addr)
	g.gate <- nil
	c := dialClientBy(t, g.dial, Backoff(time.Millisecond, time.Millisecond))
	c.Handler.SetMaxReconnectTimes(1)
	restarted, gone := make(chan error, 1), make(chan struct{})
	var once sync.Once
	c.Handler.HandleReconnect(func(c *Client, _ int, err error) {
		once.Do(func() { restarted <- c.Restart() })
	})
	g.gate <- errGate
	g.gate <- nil
	c.Conn.Close()
	must(t, recv(t, restarted, "return from Restart"))
	go func() { // the goroutine of the old attempt ends
		defer close(gone)
		for end := time.Now().Add(patience); time.Now().Before(end); runtime.Gosched() {
			if !strings.Contains(strings.Join(ourGoroutines(), ""), "(*Client).reconnect") {
				return
			}
		}
	}()
	recv(t, gone, "end of the old attempt")
	must(t, c.CheckState())
	must(t, c.Call("/echo", "x", nil, patience))
}

// Restart and Stop from many goroutines: the last one counts, and nothing is left.
func TestRestartConcurrently(t *testing.T) {
	s := startServer(t)
	s.Handler.Handle("/echo", echo)
	c := dialClient(t, s.addr)
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("panic: %v", p)
				}
			}()
			for range 10 {
				if k == 0 {
					c.Stop()
				} else if err := c.Restart(); err != nil && CodeOf(err) != CodeUnavailable && !strings.Contains(err.Error(), "stopped") {
					t.Errorf("Restart: %v", err)
				}
			}
		})
	}
	waitGroup(t, &wg, "return from all")
	must(t, c.Restart())
	must(t, c.Call("/echo", "x", nil, patience))
	s.waitClients(t, 1)
	c.Stop()
	s.waitClients(t, 0)
}

// What was accepted before Stop is sent.
func TestNotifiesBeforeStopArrive(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		const n = 1000
		s := startServer(t, adapter)
		all := make(chan struct{})
		seq := newOrder(t, n, all)
		s.Handler.Handle("/note", seq)
		c := dialClient(t, s.addr)
		for i := range n {
			must(t, c.Notify("/note", numbered(i), patience))
		}
		c.Stop()
		recv(t, all, "last notification")
	})
}

// newOrder returns a handler that closes all after the numbers below n, in order.
func newOrder(t *testing.T, n int, all chan struct{}) HandlerFunc {
	next := 0
	return func(c *Context) {
		if i := number(c.Body()); i != next {
			t.Errorf("%d instead of %d", i, next)
		}
		if next++; next == n {
			close(all)
		}
	}
}

func TestClientPool(t *testing.T) {
	const size = 4
	for _, n := range []int{0, -1} {
		if _, err := NewClientPool(dialer("127.0.0.1:1"), n); !errors.Is(err, ErrClientInvalidPoolDialers) {
			t.Errorf("size %d: %v", n, err)
		}
	}
	if _, err := NewClientPoolFromDialers(nil); !errors.Is(err, ErrClientInvalidPoolDialers) {
		t.Errorf("no dialers: %v", err)
	}
	s := startServer(t)
	s.Handler.Handle("/who", func(c *Context) { c.Write(c.Client.Conn.RemoteAddr().String()) })
	good := dialer(s.addr)
	bad := func() (net.Conn, error) { return nil, errGate }
	if _, err := NewClientPoolFromDialers([]func() (net.Conn, error){good, bad}, NewHandler()); !errors.Is(err, errGate) {
		t.Errorf("a dialer that fails: %v", err)
	}
	s.waitClients(t, 0)

	g := newGate(s.addr)
	for range size {
		g.gate <- nil
	}
	h := NewHandler()
	p, err := NewClientPool(g.dial, size, h, Backoff(time.Millisecond, time.Millisecond))
	must(t, err)
	t.Cleanup(p.Stop)
	if p.Size() != size || p.Handler() != h || p.Get(1) == p.Get(2) || p.Get(1) != p.Get(1+size) {
		t.Error("the pool is not what was asked for")
	}
	spread := func() map[string]int {
		n := map[string]int{}
		for range 100 * size {
			var r string
			must(t, p.Next().Call("/who", nil, &r, patience))
			n[r]++
		}
		return n
	}
	if n := spread(); len(n) != size || n[p.Get(0).Conn.LocalAddr().String()] != 100 {
		t.Errorf("calls per connection: %v", n)
	}
	broken := p.Get(2)
	broken.Conn.Close()
	eventually(t, "a broken client", func() bool { return broken.CheckState() != nil })
	if n := spread(); len(n) != size-1 {
		t.Errorf("calls per connection: %v", n)
	}
	g.gate <- nil
	must(t, broken.WaitReady(patient(t)))
	if n := spread(); len(n) != size {
		t.Errorf("calls per connection: %v", n)
	}
	p.Stop()
	if err := p.Next().Call("/who", nil, nil, patience); !errors.Is(err, ErrClientStopped) {
		t.Errorf("a call after Stop: %v", err)
	}
	s.waitClients(t, 0)
}

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{t, cert, key, pool}
}

func (a *authority) issue(name string) []tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	must(a.t, err)
	return []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	tlsDialer := func(addr string, cfg *tls.Config) func() (net.Conn, error) {
		d := &net.Dialer{Timeout: patience}
		return func() (net.Conn, error) { return tls.DialWithDialer(d, "tcp", addr, cfg) }
	}
	serve := func(t *testing.T, cfg *tls.Config, adapter ServerOption) *testServer {
		s := startServerOn(t, tls.NewListener(listenTCP(t), cfg), adapter)
		trafficRoutes(s.Handler)
		return s
	}
	works := func(t *testing.T, c *Client) {
		t.Helper()
		trafficRoutes(c.Handler)
		large := strings.Repeat("arpc", 100<<10)
		for _, route := range []string{"/echo", "/async"} {
			var r string
			if err := c.Call(route, large, &r, patience); err != nil || r != large {
				t.Errorf("%s: %d bytes, %v", route, len(r), err)
			}
		}
		must(t, c.Call("/back", "x", nil, patience))
	}
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		t.Run("server", func(t *testing.T) {
			s := serve(t, &tls.Config{Certificates: ca.issue("server")}, adapter)
			works(t, dialClientBy(t, tlsDialer(s.addr, &tls.Config{RootCAs: ca.pool})))
			if _, err := NewClient(tlsDialer(s.addr, &tls.Config{RootCAs: other.pool}), NewHandler()); err == nil {
				t.Error("the client trusts a server that it does not know")
			}
			// A peer that does not speak TLS is cut, and harms nobody.
			p := dialRaw(t, s.addr)
			p.send([]byte("GET / HTTP/1.0\r\n\r\n"))
			p.end()
			works(t, dialClientBy(t, tlsDialer(s.addr, &tls.Config{RootCAs: ca.pool})))
		})
		t.Run("both", func(t *testing.T) {
			s := serve(t, &tls.Config{Certificates: ca.issue("server"), ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool}, adapter)
			works(t, dialClientBy(t, tlsDialer(s.addr, &tls.Config{RootCAs: ca.pool, Certificates: ca.issue("client")})))
			for _, certs := range [][]tls.Certificate{nil, other.issue("stranger")} {
				c, err := NewClient(tlsDialer(s.addr, &tls.Config{RootCAs: ca.pool, Certificates: certs}), NewHandler(), Backoff(time.Hour, time.Hour))
				if err != nil {
					continue // told during the handshake
				}
				if err := c.Call("/echo", "x", nil, patience); CodeOf(err) != CodeUnavailable {
					t.Errorf("a stranger's call: %v", err)
				}
				c.Stop()
			}
		})
	})
}

// run runs a server at addresses until the end of the test.
func run(t *testing.T, addrs ...string) *Server {
	s := NewServer(NewHandler())
	s.Handler.Handle("/echo", echo)
	result := make(chan error, 1)
	go func() { result <- s.Run(addrs[0], addrs[1:]...) }()
	t.Cleanup(func() {
		must(t, s.Stop())
		if err := recv(t, result, "return from Run"); !errors.Is(err, ErrServerStopped) {
			t.Errorf("Run returned %v", err)
		}
	})
	return s
}

// answersAt waits until a server answers at an address.
func answersAt(t *testing.T, network, addr string) {
	t.Helper()
	var c *Client
	eventually(t, "a server at "+addr, func() (ok bool) {
		var err error
		c, err = NewClient(func() (net.Conn, error) { return net.Dial(network, addr) }, NewHandler())
		return err == nil
	})
	defer c.Stop()
	var r string
	if err := c.Call("/echo", "x", &r, patience); err != nil || r != "x" {
		t.Errorf("%s: %q, %v", addr, r, err)
	}
}

func TestUnixSocket(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("errors of unix sockets differ")
	}
	dir, err := os.MkdirTemp("", "arpc") // short: the path of a socket has a limit
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	refused := func(t *testing.T, path string) {
		t.Helper()
		s := NewServer(NewHandler())
		if err := s.Run("unix://" + path); err == nil || errors.Is(err, ErrServerStopped) {
			t.Errorf("Run at %s: %v", path, err)
		}
		must(t, s.Stop())
	}
	t.Run("new, then live", func(t *testing.T) {
		path := filepath.Join(dir, "new")
		run(t, "unix://"+path)
		answersAt(t, "unix", path)
		refused(t, path)
		answersAt(t, "unix", path)
	})
	t.Run("dead", func(t *testing.T) {
		path := filepath.Join(dir, "dead")
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		must(t, err)
		ln.SetUnlinkOnClose(false)
		must(t, ln.Close())
		_, err = os.Lstat(path)
		must(t, err)
		run(t, "unix://"+path)
		answersAt(t, "unix", path)
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(dir, "file")
		must(t, os.WriteFile(path, []byte("precious"), 0o600))
		refused(t, path)
		if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
			t.Errorf("the file has %q, %v", b, err)
		}
	})
	t.Run("a directory, and a link to a dead socket", func(t *testing.T) {
		path := filepath.Join(dir, "dir")
		must(t, os.Mkdir(path, 0o700))
		refused(t, path)
		link := filepath.Join(dir, "link")
		must(t, os.Symlink(path, link))
		refused(t, link)
		if _, err := os.Lstat(link); err != nil {
			t.Error(err)
		}
	})
	t.Run("gone after Stop", func(t *testing.T) {
		for _, name := range []string{"new", "dead"} {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
				t.Errorf("%s is still there", name)
			}
		}
	})
}

// freeAddr returns an address where nobody listens.
func freeAddr(t *testing.T) string {
	ln := listenTCP(t)
	defer ln.Close()
	return ln.Addr().String()
}

func TestRunAtSeveralAddresses(t *testing.T) {
	a, b, c := freeAddr(t), freeAddr(t), freeAddr(t)
	t.Run("all", func(t *testing.T) {
		run(t, a, "tcp://"+b, "tcp4://"+c)
		for _, addr := range []string{a, b, c} {
			answersAt(t, "tcp", addr)
		}
	})
	t.Run("one is taken", func(t *testing.T) {
		taken := listenTCP(t)
		defer taken.Close()
		s := NewServer(NewHandler())
		if err := s.Run(a, taken.Addr().String()); err == nil || errors.Is(err, ErrServerStopped) {
			t.Errorf("Run: %v", err)
		}
		ln, err := net.Listen("tcp", a) // the first was given back
		must(t, err)
		ln.Close()
		must(t, s.Stop())
	})
	t.Run("of no network", func(t *testing.T) {
		if err := NewServer(NewHandler()).Run("nothing://" + a); err == nil {
			t.Error("Run found a network")
		}
	})
}

// pipes is a listener of connections in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case nc := <-p.conns:
		return nc, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }
func (p *pipes) dial() (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case p.conns <- a:
		return b, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func TestAnyListener(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		s := startServerOn(t, p, adapter)
		trafficRoutes(s.Handler)
		tcp := listenTCP(t)
		served := make(chan error, 1)
		go func() { served <- s.Serve(tcp) }() // besides
		for _, dial := range []func() (net.Conn, error){p.dial, dialer(tcp.Addr().String())} {
			c := dialClientBy(t, dial)
			trafficRoutes(c.Handler)
			for _, route := range trafficCalls {
				must(t, c.Call(route, "x", nil, patience))
			}
		}
		must(t, s.Stop())
		if err := recv(t, served, "return from Serve"); !errors.Is(err, ErrServerStopped) {
			t.Errorf("Serve returned %v", err)
		}
	})
}

// Connected hooks may call.
func TestConnectedHooksCall(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		type result struct {
			side, answer string
			err          error
		}
		results := make(chan result, 100)
		hook := func(side, route string) func(*Client) {
			return func(c *Client) {
				var r string
				err := c.Call(route, nil, &r, patience)
				c.Set("peer", r)
				results <- result{side, r, err}
			}
		}
		name := func(h Handler, name string) {
			h.Handle("/name", func(c *Context) { c.Write(name) })
			h.Handle("/name async", func(c *Context) { c.Write(name) }, true)
			h.Handle("/peer", func(c *Context) { // runs after the hook
				v, _ := c.Client.Get("peer")
				c.Write(fmt.Sprint(v))
			})
		}
		wants := func(t *testing.T, n int) {
			t.Helper()
			for range n {
				r := recv(t, results, "end of a hook")
				if r.err != nil || r.answer == r.side {
					t.Errorf("hook of the %s: %q, %v", r.side, r.answer, r.err)
				}
			}
		}
		sides := func(t *testing.T, client, server bool) {
			s := startServer(t, adapter)
			name(s.Handler, "server")
			h := NewHandler()
			name(h, "client")
			n, route := 0, "/name"
			if client && server { // the ordered routes of either side wait for its hook
				route = "/name async"
			}
			if server {
				s.Handler.HandleConnected(hook("server", route))
				n++
			}
			if client {
				h.HandleConnected(hook("client", route))
				n++
			}
			c := dialClient(t, s.addr, h, Backoff(time.Millisecond, time.Millisecond))
			for range 2 {
				wants(t, n)
				if server && !client {
					var r string
					if err := c.Call("/peer", nil, &r, patience); err != nil || r != "client" {
						t.Errorf("before the hook: %q, %v", r, err)
					}
				}
				for _, a := range s.waitClients(t, 1) {
					a.Stop() // hooks run again
				}
				must(t, c.WaitReady(patient(t)))
			}
			wants(t, n)
		}
		t.Run("server", func(t *testing.T) { sides(t, false, true) })
		t.Run("client", func(t *testing.T) { sides(t, true, false) })
		t.Run("both", func(t *testing.T) { sides(t, true, true) })
	})
}

// Routes and hooks may come after NewClient.
func TestLateRoutesAndHooks(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		c := dialClient(t, s.addr, Backoff(time.Millisecond, time.Millisecond))
		a := s.waitClients(t, 1)[0]
		events := make(chan string, 10)
		next := func(want string) {
			t.Helper()
			if got := recv(t, events, want); got != want {
				t.Errorf("%s instead of %s", got, want)
			}
		}
		c.Handler.HandleConnected(func(*Client) { events <- "connected" })
		next("connected") // for the connection that there is
		c.Handler.Handle("/echo", echo)
		var r string
		if err := a.Call("/echo", "x", &r, patience); err != nil || r != "x" {
			t.Errorf("%q, %v", r, err)
		}
		s.Handler.Handle("/echo", echo, true)
		must(t, c.Call("/echo", "x", nil, patience))
		c.Handler.HandleDisconnected(func(*Client) { events <- "disconnected" })
		c.Handler.HandleReconnect(func(_ *Client, n int, err error) { events <- fmt.Sprint("reconnect ", n, err) })
		a.Stop()
		got := map[string]bool{}
		for range 3 {
			got[recv(t, events, "event")] = true
		}
		if !got["disconnected"] || !got["connected"] || !got["reconnect 1 <nil>"] {
			t.Errorf("events: %v", got)
		}
	})
}
