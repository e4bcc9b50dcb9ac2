package core

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The tests of this file are the rules of a connection's life, one after the other, for every adapter. That Open, Batch, Run,
// Down and Close come in their order is checked by app in all tests.

// Rule 1: Open comes before any frame, and what it sends precedes every answer.
func TestOpenFirst(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		app.onOpen = func(s *state) error {
			s.any = "set in Open"
			return s.send(Now, makeFrame(kindPush, []byte("hello")))
		}
		app.onFrame = func(s *state, in *Input, f []byte) error {
			if s.any != "set in Open" {
				t.Error("a frame before Open has returned")
			}
			return s.byKind(in, f)
		}
		srv := serve(t, a, Config{}, app)
		for i := range 30 {
			c := srv.dial()
			kind := []byte{kindInline, kindOrdered, kindAsync}[i%3]
			done := make(chan struct{})
			go func() { // a pipe takes nothing before the other end reads
				defer close(done)
				c.Write(makeFrame(kind, []byte("first")))
			}()
			c.expect(kindPush, []byte("hello"))
			c.expect(kind, []byte("first"))
			<-done
			c.Close()
		}
	})
}

// A greeting may be longer than what a socket takes at once.
func TestLongGreeting(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		const pieces = 64
		piece := pattern(256<<10, 7)
		app := newApp(t)
		app.onOpen = func(s *state) error {
			for range pieces {
				if err := s.send(Now, makeFrame(kindPush, piece)); err != nil {
					return err
				}
			}
			return nil
		}
		srv := serve(t, a, Config{Hard: 1 << 30}, app)
		c, s := srv.connect()
		for range pieces {
			c.expect(kindPush, piece)
		}
		c.echo(kindOrdered, "after it")
		c.Close()
		recv(t, s.closed, "Close")
	})
}

// What others send while a connection is being opened arrives, and arrives at that connection's peer.
func TestSendWhileOpening(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		const pieces = 40
		app := newApp(t)
		var senders sync.WaitGroup
		app.onOpen = func(s *state) error {
			err := s.send(Now, makeFrame(kindPush, fmt.Append(nil, s.c.ID())))
			senders.Go(func() {
				for i := range pieces {
					if err := s.send(Now, makeFrame(kindPush, fmt.Appendf(nil, "%d %d", s.c.ID(), i))); err != nil {
						t.Errorf("send: %v", err)
					}
					s.c.LocalAddr()
				}
			})
			return err
		}
		srv := serve(t, a, Config{}, app)
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				for range 4 {
					nc, err := a.dial(srv.ln)
					if err != nil {
						t.Error(err)
						return
					}
					c := newClient(t, nc)
					_, id, err := c.read()
					if err != nil {
						t.Errorf("no greeting: %v", err)
						return
					}
					for i := range pieces {
						_, b, err := c.read()
						if want := fmt.Sprintf("%s %d", id, i); err != nil || string(b) != want {
							t.Errorf("got %q, %v; want %q", b, err, want)
							return
						}
					}
					c.Close()
				}
			})
		}
		clients.Wait()
		senders.Wait()
	})
}

// Rule 2: exactly one Close for each Open, whoever ends the connection and how often.
func TestOneClose(t *testing.T) {
	ends := []struct {
		name string
		end  func(c *client, s *state)
		err  func(error) bool // what Down is told
	}{
		{"peer closes", func(c *client, s *state) { c.Close() }, nil},
		{"peer resets", func(c *client, s *state) {
			if c.hasReset() {
				c.reset()
			} else {
				c.Close()
			}
		}, nil},
		{"Close", func(c *client, s *state) {
			s.c.Close(io.ErrNoProgress)
			c.eof()
			c.Close()
		}, func(err error) bool { return err == io.ErrNoProgress }},
		{"Close without a reason", func(c *client, s *state) {
			s.c.Close(nil)
			c.eof()
			c.Close()
		}, func(err error) bool { return err == ErrClosed }},
		{"Abort", func(c *client, s *state) { s.c.Abort(io.ErrNoProgress) }, func(err error) bool { return err == io.ErrNoProgress }},
		{"all at once", func(c *client, s *state) {
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					switch i % 4 {
					case 0:
						s.c.Close(nil)
					case 1:
						s.c.Abort(nil)
					case 2:
						s.send(Now, makeFrame(kindPush, make([]byte, 100_000)))
					case 3:
						c.Close()
					}
				})
			}
			wg.Wait()
		}, nil},
	}
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{}, app)
		for _, e := range ends {
			for _, busy := range []bool{false, true} {
				c, s := srv.connect()
				if busy {
					c.echo(kindOrdered, "x")
					c.echo(kindAsync, "x")
				}
				e.end(c, s)
				recv(t, s.closed, "Close after: "+e.name)
				if e.err != nil && !e.err(s.downErr) {
					t.Errorf("%s: Down says %v", e.name, s.downErr)
				}
				if s.closeErr != s.downErr {
					t.Errorf("%s: Close says %v, Down %v", e.name, s.closeErr, s.downErr)
				}
				c.Close()
			}
		}
		// All of it again, on connections that are over.
		eventually(t, "no connection", func() bool { return srv.Len() == 0 })
	})
}

func (c *client) hasReset() bool {
	_, ok := c.Conn.(*net.TCPConn)
	return ok
}

// Rule 2: a connection that Open refuses sees nothing else, and does not disturb others.
func TestOpenRefuses(t *testing.T) {
	for _, how := range []string{"error", "panic", "after output", "after Close"} {
		t.Run(how, func(t *testing.T) {
			each(t, nil, func(t *testing.T, a adapter) {
				app := newApp(t)
				var accept atomic.Bool
				app.onOpen = func(s *state) error {
					if accept.Load() {
						return nil
					}
					switch how {
					case "panic":
						s.closes.Add(1) // nothing may follow
						panic("test")
					case "after output":
						s.send(Now, makeFrame(kindPush, make([]byte, 1<<20)))
					case "after Close":
						s.c.Close(nil)
					}
					return errors.New("test refuses")
				}
				srv := serve(t, a, Config{}, app)
				for range 5 {
					c := srv.dial()
					c.Write(makeFrame(kindInline, []byte("x")))
					c.end()
					c.Close()
				}
				eventually(t, "no connection", func() bool { return srv.Len() == 0 })
				eventually(t, "5 OpenErrors", func() bool { return srv.Stats.OpenErrors.Load() == 5 })
				if how == "panic" && !app.logged("panic in Open") {
					t.Error("no line about the panic")
				}
				accept.Store(true)
				srv.dial().echo(kindInline, "works")
			})
		})
	}
}

// Close in Open takes effect after it, and what Open sent before is delivered.
func TestCloseInOpen(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		app.onOpen = func(s *state) error {
			s.send(Now, makeFrame(kindPush, []byte("bye")))
			s.c.Close(io.ErrNoProgress)
			return nil
		}
		srv := serve(t, a, Config{}, app)
		c := srv.dial()
		s := recv(t, app.opened, "Open")
		c.expect(kindPush, []byte("bye"))
		c.eof()
		c.Close()
		recv(t, s.closed, "Close")
		if s.downErr != io.ErrNoProgress {
			t.Errorf("Down says %v", s.downErr)
		}
	})
}

// Abort in Open takes effect after it; output is not waited for. The hard limit in Open is such an end.
func TestAbortInOpen(t *testing.T) {
	t.Parallel()
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		for _, hard := range []bool{false, true} {
			app := newApp(t)
			app.onOpen = func(s *state) error {
				for range 64 {
					s.send(Now, makeFrame(kindPush, make([]byte, 256<<10)))
				}
				if !hard {
					s.c.Abort(io.ErrNoProgress)
				}
				return nil
			}
			cfg := Config{Hard: 1 << 30}
			if hard {
				cfg.Hard = 2 << 20
			}
			srv := serveOn(t, a, a.listenSmall(t), cfg, app)
			c := srv.dial()
			s := recv(t, app.opened, "Open")
			if !within(wait/8, func() bool { return isDone(s.closed) }) {
				t.Errorf("not closed (hard limit: %v)", hard)
			} else if hard && s.downErr != ErrHard || !hard && s.downErr != io.ErrNoProgress {
				t.Errorf("Down says %v", s.downErr)
			}
			c.Close()
			recv(t, s.closed, "Close")
		}
	})
}

// Rule 3: when Close is called although a handler still runs, none starts after that.
func TestNoRunAfterClose(t *testing.T) {
	t.Parallel()
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		app.forced.Store(true)
		running, finish := make(chan struct{}, 10), make(chan struct{})
		var runs atomic.Int32
		app.onRun = func(s *state, f []byte, _ *Turn) {
			runs.Add(1)
			running <- struct{}{}
			<-finish
		}
		srv := serve(t, a, Config{CloseFlush: 50 * time.Millisecond}, app)
		c, s := srv.connect()
		f := makeFrame(kindOrdered, []byte("x"))
		c.send(f, f, f, f)
		recv(t, running, "handler")
		s.c.Abort(nil)
		recv(t, s.closed, "Close")
		close(finish)
		eventually(t, "handler returned", func() bool { return s.runs.Load() == 0 && !s.has(flagRunning) })
		if n := runs.Load(); n != 1 {
			t.Errorf("%d handlers ran after Close", n-1)
		}
		c.Close()
	})
}

// After Close or Abort the frames that were received already, but have not started, are dropped.
func TestCloseDropsFrames(t *testing.T) {
	for _, how := range []string{"Close", "Abort", "panic"} {
		t.Run(how, func(t *testing.T) {
			each(t, nil, func(t *testing.T, a adapter) {
				app := newApp(t)
				var runs atomic.Int32
				app.onRun = func(s *state, f []byte, _ *Turn) {
					runs.Add(1)
					switch how {
					case "Close":
						s.c.Close(nil)
					case "Abort":
						s.c.Abort(nil)
					case "panic":
						panic("test")
					}
				}
				srv := serve(t, a, Config{}, app)
				c, s := srv.connect()
				f := makeFrame(kindOrdered, []byte("x"))
				c.send(f, f, f, f, f)
				c.end()
				c.Close()
				recv(t, s.closed, "Close")
				if n := runs.Load(); n != 1 {
					t.Errorf("%d handlers ran after the first one ended the connection", n-1)
				}
				if how == "panic" && !app.logged("panic in Run") {
					t.Error("no line about the panic")
				}
			})
		})
	}
}

// Rule 4: Close delivers what was accepted before it, to a peer that reads slowly and keeps sending.
func TestCloseDelivers(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		piece := pattern(256<<10, 3)
		for _, noisy := range []bool{false, true} {
			pieces := 24
			if noisy {
				pieces = 64
			}
			app := newApp(t)
			srv := serve(t, a, Config{Hard: 1 << 30}, app)
			c, s := srv.connect()
			stop := make(chan struct{})
			var noise sync.WaitGroup
			if noisy {
				noise.Go(func() {
					f := makeFrame(kindSwallow, make([]byte, 10_000))
					for {
						select {
						case <-stop:
							return
						default:
						}
						if _, err := c.Write(f); err != nil {
							if a.half { // a pipe's other end does not go on reading
								t.Errorf("write: %v", err)
							}
							return
						}
					}
				})
			}
			for range pieces {
				must(t, s.send(Now, makeFrame(kindPush, piece)))
			}
			s.c.Close(nil)
			if err := s.send(Now, makeFrame(kindPush, nil)); err == nil {
				t.Error("output accepted after Close")
			}
			for range pieces {
				c.expect(kindPush, piece)
			}
			c.eof()
			close(stop)
			noise.Wait()
			c.Close()
			recv(t, s.closed, "Close")
		}
	})
}

// Rule 4: or CloseFlush expires.
func TestCloseFlushExpires(t *testing.T) {
	t.Parallel()
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{CloseFlush: 100 * time.Millisecond, Hard: 1 << 30}, app)
		for _, n := range []int{0, 16 << 20} { // the peer does not close, or does not even read
			c, s := srv.connect()
			must(t, s.send(Now, makeFrame(kindPush, make([]byte, n))))
			start := time.Now()
			s.c.Close(nil)
			recv(t, s.closed, "Close")
			if d := time.Since(start); a.half && d < 100*time.Millisecond {
				t.Errorf("given up after %v", d)
			}
			c.Close()
		}
	})
}

// An Abort while somebody writes ends the connection even if the peer never reads.
func TestAbortWhileWriting(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		writing, write := make(chan struct{}, 1000), make(chan struct{})
		var hold atomic.Bool
		cfg := Config{CloseFlush: 100 * time.Millisecond, Hard: 1 << 30, Loops: 1, BeforeWrite: func(*Conn) error {
			if hold.Load() {
				writing <- struct{}{}
				<-write
			}
			return nil
		}}
		srv := serve(t, a, cfg, app)
		other, _ := srv.connect()
		c, s := srv.connect()
		hold.Store(true)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			s.send(Now, makeFrame(kindPush, make([]byte, 16<<20)))
		}()
		recv(t, writing, "write")
		hold.Store(false)
		s.c.Abort(nil)
		for range 3 { // whatever Abort makes the loop do is done by then
			other.echo(kindInline, "x")
		}
		close(write)
		recv(t, sent, "end of send")
		recv(t, s.closed, "Close")
		c.Close()
		other.Close()
	})
}

// Rule 5: output after the end is an error and nothing worse, also at the moment of the end.
func TestSendAfterClose(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{}, app)
		for i := range 12 {
			c, s := srv.connect()
			reading := make(chan struct{})
			go func() {
				defer close(reading)
				c.end()
			}()
			var wg sync.WaitGroup
			var sent atomic.Int32
			for w := range 6 {
				wg.Go(func() {
					f := makeFrame(kindPush, make([]byte, 100<<(2*w)))
					for {
						var err error
						if w%2 == 0 {
							err = s.send(Urgency(w%3), f)
						} else {
							s.c.Lock()
							if err = s.c.CanSend(); err == nil {
								s.c.AppendShared(f)
								s.c.Commit(Now, true)
							} else {
								s.c.Unlock()
							}
						}
						if err != nil {
							return
						}
						if sent.Add(1) == 50 {
							switch i % 3 {
							case 0:
								s.c.Close(nil)
							case 1:
								s.c.Abort(nil)
							case 2:
								c.Close()
							}
						}
					}
				})
			}
			wg.Wait()
			<-reading
			c.Close()
			recv(t, s.closed, "Close")
			if err := s.send(Now, makeFrame(kindPush, []byte("x"))); err == nil {
				t.Error("no error after the end")
			}
			s.c.Flush()
			s.c.Defer()
			s.c.EndDefer()
			s.c.Owe()
			s.c.Paid()
			s.c.Close(nil)
			s.c.Abort(nil)
			s.c.LocalAddr()
			s.c.RemoteAddr()
			if s.c.Busy() {
				t.Error("busy after the end")
			}
			s.c.Lock()
			if s.c.Err() == nil {
				t.Error("no reason after the end")
			}
			s.c.Unlock()
		}
	})
}

// Rule 6: Stop ends connections in whatever state they are.
func TestStop(t *testing.T) {
	t.Parallel()
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{Hard: 1 << 30, Async: 1, CloseFlush: 300 * time.Millisecond}, app)
		var clients []*client
		dial := func() (*client, *state) {
			c, s := srv.connect()
			clients = append(clients, c)
			return c, s
		}
		dial() // idle
		c, _ := dial()
		c.echo(kindOrdered, "used")
		c, s := dial() // in the middle of a frame
		must2(c.Write([]byte{9, 0}))
		eventually(t, "partial frame", func() bool { return s.has(flagPartial) })
		_, s = dial() // blocked output
		must(t, s.send(Now, makeFrame(kindPush, make([]byte, 16<<20))))
		c, s = dial() // paused
		s.c.Lock()
		s.c.Hold()
		s.c.Unlock()
		c.send(makeFrame(kindSwallow, nil))
		eventually(t, "pause", func() bool { return s.has(flagPaused) })
		if a.half {
			c, s = dial() // half-closed, an answer owed
			s.c.Owe()
			c.closeWrite()
			recv(t, s.down, "Down")
		}
		_, s = dial() // closed by this side already
		s.c.Close(nil)
		done := make(chan struct{})
		go func() {
			defer close(done)
			srv.stop()
		}()
		srv.stop()
		recv(t, done, "end of the other Stop")
		if n := srv.Len(); n != 0 {
			t.Errorf("%d connections left", n)
		}
		if nc, err := a.dial(srv.ln); err == nil {
			nc.SetDeadline(time.Now().Add(wait))
			if _, err := nc.Read(make([]byte, 1)); err == nil {
				t.Error("accepted after Stop")
			}
			nc.Close()
		}
		x, y := net.Pipe()
		if _, err := srv.Adopt(x); err != ErrStopped {
			t.Errorf("Adopt after Stop: %v", err)
		}
		y.Close()
		ln := a.listen(t)
		if err := srv.Serve(ln); err != ErrStopped {
			t.Errorf("Serve after Stop: %v", err)
		}
		for _, c := range clients {
			c.Close()
		}
	})
}

func must2[T any](_ T, err error) {
	if err != nil {
		panic(err)
	}
}

// Rule 6: no connection that is made while Stop runs stays alive.
func TestStopWhileDialling(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		for range 5 {
			app := newApp(t)
			srv := serve(t, a, Config{CloseFlush: time.Second}, app)
			var clients sync.WaitGroup
			stopped := make(chan struct{})
			for i := range 8 {
				clients.Go(func() {
					for !isDone(stopped) {
						nc, err := a.dial(srv.ln)
						if err != nil {
							continue
						}
						nc.SetDeadline(time.Now().Add(wait))
						f := makeFrame(kindOrdered, []byte("x"))
						nc.Write(f)
						if i%2 == 0 {
							io.ReadFull(nc, f)
						} else {
							io.Copy(io.Discard, nc) // until the server ends it
						}
						nc.Close()
					}
				})
			}
			for range 20 {
				recv(t, app.opened, "Open")
			}
			srv.stop()
			if n := srv.Len(); n != 0 {
				t.Errorf("%d connections after Stop", n)
			}
			close(stopped)
			clients.Wait()
		}
	})
}

// Stop does not wait for handlers longer than its context says.
func TestStopContext(t *testing.T) {
	t.Parallel()
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		app.forced.Store(true)
		running, finish := make(chan struct{}), make(chan struct{})
		app.onRun = func(*state, []byte, *Turn) {
			close(running)
			<-finish
		}
		srv := serve(t, a, Config{}, app)
		c, s := srv.connect()
		c.send(makeFrame(kindOrdered, nil))
		recv(t, running, "handler")
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		if err := srv.Stop(ctx, nil); err != context.DeadlineExceeded {
			t.Errorf("Stop: %v", err)
		}
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("Stop took %v", d)
		}
		recv(t, s.closed, "Close")
		close(finish)
		eventually(t, "handler returned", func() bool { return s.runs.Load() == 0 })
		c.Close()
	})
}

// Rule 7: every callback may end its own connection, and send on it.
func TestCallbacksMayDoAnything(t *testing.T) {
	acts := map[string]func(srv *server, s *state){
		"Close": func(_ *server, s *state) { s.c.Close(nil) },
		"Abort": func(_ *server, s *state) { s.c.Abort(nil) },
		"send":  func(_ *server, s *state) { s.send(Now, makeFrame(kindPush, make([]byte, 1<<20))) },
		"each": func(srv *server, s *state) {
			srv.Each(func(c *Conn) bool { c.Close(nil); return true })
		},
	}
	each(t, nil, func(t *testing.T, a adapter) {
		for _, where := range callbacks {
			for name, act := range acts {
				t.Run(where+"/"+name, func(t *testing.T) { actIn(t, a, where, name, act) })
			}
		}
	})
}

// Rule 7: every callback may stop its group. What cannot end before the callback has returned is not waited for without end.
func TestCallbacksMayStop(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for _, a := range adapters() {
		for _, where := range callbacks {
			if !long && (where == "Batch" || a.std >= 0 && (where == "Open" || where == "Down")) {
				continue // they must not block; a loop that they do block takes twice as long to give up
			}
			wg.Go(func() {
				actIn(t, a, where, "Stop", func(srv *server, s *state) {
					ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
					defer cancel()
					srv.Stop(ctx, nil)
				})
			})
		}
	}
	wg.Wait()
}

var callbacks = []string{"Open", "Opened", "Batch", "Run", "Down", "Close"}

// actIn calls act in a callback and waits for its return.
func actIn(t *testing.T, a adapter, where, what string, act func(srv *server, s *state)) {
	app := newApp(t)
	app.forced.Store(true)
	var srv *server
	ready := make(chan struct{}) // srv is set
	did := make(chan struct{}, 1)
	do := func(s *state) {
		<-ready
		act(srv, s)
		did <- struct{}{}
	}
	cfg := Config{CloseFlush: 100 * time.Millisecond, Hard: 1 << 30}
	switch where {
	case "Open":
		app.onOpen = func(s *state) error { do(s); return nil }
	case "Opened":
		cfg.Opened = func(c *Conn, _ *Turn) { do(c.User.(*state)) }
	case "Batch":
		app.onFrame = func(s *state, _ *Input, _ []byte) error { do(s); return nil }
	case "Run":
		app.onRun = func(s *state, _ []byte, _ *Turn) { do(s) }
	case "Down":
		app.onDown = func(s *state, _ error) { do(s) }
	case "Close":
		app.onClose = func(s *state, _ error) { do(s) }
	}
	srv = serve(t, a, cfg, app)
	close(ready)
	c := srv.dial()
	go io.Copy(io.Discard, c)
	c.Write(makeFrame(kindOrdered, nil))
	if where == "Down" || where == "Close" {
		recv(t, app.opened, "Open")
		c.Close()
	}
	recv(t, did, fmt.Sprintf("end of %s in %s of %s", what, where, a.name))
	c.Close()
}

// Down has returned before Close is called, although anybody may find the end of the connection meanwhile.
func TestDownBeforeClose(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		var c *client
		app.onDown = func(s *state, _ error) {
			c.Close()
			if !within(wait, func() bool { return s.has(flagReaderGone) }) {
				t.Error("the reader does not end")
			}
			if s.has(flagFinished) {
				t.Error("finished while Down runs")
			}
		}
		srv := serve(t, a, Config{}, app)
		for range 3 {
			var s *state
			c, s = srv.connect()
			c.echo(kindInline, "open") // an event loop does not run Down then
			s.c.Close(nil)
			recv(t, s.closed, "Close")
		}
	})
}

// Rule 8: Each holds no lock while it calls the user.
func TestEach(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{}, app)
		var clients []*client
		for range 5 {
			c, _ := srv.connect()
			clients = append(clients, c)
		}
		visited := 0
		srv.Each(func(cn *Conn) bool {
			visited++
			if srv.Len() < 5 {
				t.Error("too few")
			}
			srv.Each(func(other *Conn) bool { return other.ID() != cn.ID() })
			if visited == 1 { // one comes, one goes
				srv.connect()
				s := cn.User.(*state)
				cn.Abort(nil)
				recv(t, s.closed, "Close")
			}
			if err := cn.User.(*state).send(Now, makeFrame(kindPush, []byte("each"))); err != nil && visited > 1 {
				t.Error(err)
			}
			return true
		})
		if visited != 5 {
			t.Errorf("%d visited", visited)
		}
		for _, c := range clients[1:] {
			c.expect(kindPush, []byte("each"))
		}
		visited = 0
		srv.Each(func(*Conn) bool { visited++; return visited < 2 })
		if visited != 2 {
			t.Errorf("%d visited after the end", visited)
		}
		for _, c := range clients {
			c.Close()
		}
	})
}

// Rule 9: ids are unique and increasing.
func TestIDs(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{}, app)
		last := uint64(0)
		for range 20 {
			c, s := srv.connect()
			if s.c.ID() <= last {
				t.Errorf("id %d after %d", s.c.ID(), last)
			}
			last = s.c.ID()
			c.Close()
		}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				nc, err := a.dial(srv.ln)
				if err != nil {
					t.Error(err)
					return
				}
				c := newClient(t, nc)
				c.echo(kindInline, "x")
				c.Close()
			})
		}
		wg.Wait()
		var ids []uint64
		for range 50 {
			ids = append(ids, recv(t, app.opened, "Open").c.ID())
		}
		slices.Sort(ids)
		if len(slices.Compact(ids)) != 50 || ids[0] <= last {
			t.Errorf("ids after %d: %v", last, ids)
		}
	})
}

// Rule 12: what one goroutine sends arrives in its order, however many send.
func TestFIFO(t *testing.T) {
	const senders, messages = 60, 60
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		app.onRun = func(s *state, f []byte, _ *Turn) { // 'o' starts a sender inside the strand
			for i := range messages {
				s.send(Answer, makeFrame(kindPush, fmt.Appendf(nil, "run %d", i)))
			}
		}
		srv := serve(t, a, Config{Hard: 1 << 30}, app)
		c, s := srv.connect()
		c.send(makeFrame(kindOrdered, nil))
		for w := range senders {
			go func() {
				for i := range messages {
					b := fmt.Appendf(nil, "%d %d", w, i)
					if i%10 == 9 {
						b = append(b, make([]byte, 20_000)...)
					}
					f := makeFrame(kindPush, b)
					s.c.Lock()
					if err := s.c.CanSend(); err != nil {
						s.c.Unlock()
						t.Error(err)
						return
					}
					switch (w + i) % 4 {
					case 0:
						s.c.AppendShared(f)
						s.c.Commit(Now, false)
					case 1:
						copy(s.c.Reserve(len(f)), f)
						s.c.Commit(Now, true)
					case 2:
						s.c.Unlock()
						s.c.Defer()
						must(t, s.send(Soon, f))
						s.c.EndDefer()
					default:
						copy(s.c.Reserve(len(f)), f)
						s.c.Commit(Now, false)
					}
				}
			}()
		}
		next := map[string]int{}
		for range (senders + 1) * messages {
			_, b, err := c.read()
			must(t, err)
			var who string
			var i int
			must2(fmt.Sscan(string(b), &who, &i))
			if next[who] != i {
				t.Fatalf("message %d of %s, want %d", i, who, next[who])
			}
			next[who]++
		}
		c.Close()
	})
}
