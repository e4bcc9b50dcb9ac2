package core

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Connections above a limit are reset at once, counted, and taken again when there is room.
func TestMaxConns(t *testing.T) {
	for _, perIP := range []bool{false, true} {
		each(t, tcp, func(t *testing.T, a adapter) {
			const limit, more = 5, 7
			cfg := Config{MaxConns: limit}
			if perIP {
				cfg = Config{MaxConnsPerIP: limit}
			}
			app := newApp(t)
			srv := serve(t, a, cfg, app)
			var in []*client
			var states []*state
			for range limit {
				c, s := srv.connect()
				c.echo(kindOrdered, "x")
				in, states = append(in, c), append(states, s)
			}
			for range more {
				nc, err := a.dial(srv.ln)
				if err == nil {
					_, err = newClient(t, nc).end()
				}
				if !isReset(err) {
					t.Errorf("refused with %v instead of a reset (per address: %v)", err, perIP)
				}
			}
			if n := srv.Stats.RefusedLimit.Load(); n != more {
				t.Errorf("%d refused", n)
			}
			if n := srv.Stats.Accepted.Load(); n != limit {
				t.Errorf("%d accepted", n)
			}
			if !app.logged("limit") {
				t.Error("no line about it")
			}
			for _, c := range in {
				c.echo(kindOrdered, "still")
			}
			in[0].Close()
			recv(t, states[0].closed, "Close")
			eventually(t, "room", func() bool { return srv.Len() < limit })
			c := srv.dial()
			c.echo(kindOrdered, "again")
			c.Close()
			for _, c := range in {
				c.Close()
			}
		})
	}
}

// badListener fails as told.
type badListener struct {
	net.Listener
	fail    atomic.Pointer[error]
	failed  atomic.Int32
	accepts atomic.Int32
}

func (l *badListener) Accept() (net.Conn, error) {
	l.accepts.Add(1)
	if err := l.fail.Load(); err != nil {
		l.failed.Add(1)
		return nil, *err
	}
	return l.Listener.Accept()
}

// A listener that fails for a while is tried again with pauses, in which Stop does not wait.
func TestAcceptBackoff(t *testing.T) {
	t.Parallel()
	passingErrors := []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR,
		os.ErrDeadlineExceeded}
	for _, cause := range passingErrors {
		t.Run(cause.Error(), func(t *testing.T) {
			t.Parallel()
			app := newApp(t)
			inner := listenTCP(t)
			ln := &badListener{Listener: inner}
			err := error(&net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", cause)})
			ln.fail.Store(&err)
			a := adapters()[0]
			srv := serveOn(t, a, ln, Config{}, app)
			start := time.Now()
			eventually(t, "four failures", func() bool { return ln.failed.Load() >= 4 })
			if d := time.Since(start); d < 5*time.Millisecond+10*time.Millisecond+20*time.Millisecond {
				t.Errorf("four failures in %v", d)
			}
			if n := srv.Stats.AcceptErrors.Load(); n < 3 {
				t.Errorf("%d counted", n)
			}
			if !app.logged("cannot accept") {
				t.Error("no line about it")
			}
			ln.fail.Store(nil)
			srv.ln = inner
			c := srv.dial()
			c.echo(kindOrdered, "works again")
			c.Close()
			// The pauses begin small again.
			failed := ln.failed.Load()
			ln.fail.Store(&err)
			srv.dial().Close() // ends the Accept that waits
			start = time.Now()
			eventually(t, "two failures", func() bool { return ln.failed.Load() >= failed+2 })
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("two failures in %v", d)
			}
			eventually(t, "a longer pause", func() bool { return ln.failed.Load() >= failed+5 })
			start = time.Now()
			srv.stop()
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("Stop took %v in a pause", d)
			}
		})
	}
}

// A listener that fails for good ends Serve with its error, and the group goes on.
func TestAcceptFails(t *testing.T) {
	app := newApp(t)
	g := NewGroup(testConfig(app, Config{}), app)
	bad := &badListener{Listener: listenTCP(t)}
	err := error(syscall.EBADF)
	bad.fail.Store(&err)
	if err := g.Serve(bad); !errors.Is(err, syscall.EBADF) {
		t.Errorf("Serve: %v", err)
	}
	if _, err := bad.Listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is still open: %v", err)
	}
	ln := listenTCP(t)
	served := make(chan error, 1)
	go func() { served <- g.Serve(ln) }()
	nc, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	c := newClient(t, nc)
	c.echo(kindOrdered, "x")
	c.Close()
	ln.Close() // as the owner of the listener may do
	if err := recv(t, served, "end of Serve"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	must(t, g.Stop(ctx, nil))
}

// Several listeners, of different kinds, feed one group.
func TestListeners(t *testing.T) {
	app := newApp(t)
	g := NewGroup(testConfig(app, Config{StdConns: 2}), app)
	served := make(chan error, 10)
	n := 0
	var clients []*client
	for _, a := range adapters() {
		ln := a.listen(t)
		n++
		go func() { served <- g.Serve(ln) }()
		nc, err := a.dial(ln)
		must(t, err)
		c := newClient(t, nc)
		c.echo(kindOrdered, a.name)
		clients = append(clients, c)
	}
	if g.Len() != n {
		t.Errorf("%d connections", g.Len())
	}
	for _, c := range clients {
		c.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	must(t, g.Stop(ctx, nil))
	for range n {
		if err := recv(t, served, "end of Serve"); err != ErrStopped {
			t.Error(err)
		}
	}
}

// TLS peers that do not finish their handshake are closed, hold up nobody else, and do not hold up Stop.
func TestHandshake(t *testing.T) {
	a := adapters()[2]
	const limit = 200 * time.Millisecond
	app := newApp(t)
	srv := serve(t, a, Config{Handshake: limit}, app)
	var silent []*client
	start := time.Now()
	for i := range 10 {
		nc, err := net.Dial("tcp", srv.ln.Addr().String())
		must(t, err)
		c := newClient(t, nc)
		if i%2 == 0 {
			c.Write([]byte{22, 3, 1, 2}) // the beginning of a ClientHello
		}
		silent = append(silent, c)
	}
	good := srv.dial()
	good.echo(kindOrdered, "during")
	for _, c := range silent {
		c.end()
		c.Close()
	}
	if d := time.Since(start); d < limit {
		t.Errorf("given up after %v", d)
	}
	nc, err := net.Dial("tcp", srv.ln.Addr().String())
	must(t, err)
	c := newClient(t, nc)
	c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	c.end()
	c.Close()
	eventually(t, "all counted", func() bool { return srv.Stats.OpenErrors.Load() == 11 })
	good.echo(kindOrdered, "after")
	good.Close()
	eventually(t, "a line about it", func() bool { return app.logged("handshake") })
}

// Stop does not wait for handshakes.
func TestStopInHandshake(t *testing.T) {
	a := adapters()[2]
	srv := serve(t, a, Config{Handshake: 2 * wait}, newApp(t))
	for range 3 {
		nc, err := net.Dial("tcp", srv.ln.Addr().String())
		must(t, err)
		newClient(t, nc)
	}
	eventually(t, "three connections", func() bool { return srv.Len() == 3 })
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	srv.Stop(ctx, nil)
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("Stop took %v", d)
	}
	if n := srv.Len(); n != 0 {
		t.Errorf("%d connections left", n)
	}
}

// Quiet connections stay with the loops, busy ones get a goroutine while there is room for it, without a byte lost.
func TestMoves(t *testing.T) {
	var moves *adapter
	for _, a := range adapters() {
		if a.name == "moves" {
			moves = &a
		}
	}
	if moves == nil {
		t.Skip("no poller")
	}
	app := newApp(t)
	srv := serve(t, *moves, Config{StdConns: 2}, app)
	var clients []*client
	var states []*state
	for i := range 5 {
		c, s := srv.connect()
		if !s.c.Polled() {
			t.Errorf("connection %d begins with a goroutine", i)
		}
		clients, states = append(clients, c), append(states, s)
	}
	polled := func() (n int) {
		for _, s := range states {
			if s.c.Polled() {
				n++
			}
		}
		return n
	}
	clients[4].echo(kindOrdered, "quiet")
	var busy sync.WaitGroup
	for i, c := range clients[:4] {
		busy.Go(func() {
			for n := range 300 {
				body := string(pattern(n*10, uint32(i)))
				kind := []byte{kindOrdered, kindInline, kindAsync, kindSlow}[n%4]
				if _, err := c.Write(makeFrame(kind, []byte(body))); err != nil {
					t.Error(err)
					return
				}
				k, b, err := c.read()
				if err != nil || k != kind || string(b) != body {
					t.Errorf("connection %d, frame %d: %c, %d bytes, %v", i, n, k, len(b), err)
					return
				}
			}
		})
	}
	busy.Wait()
	if n := polled(); n != 3 {
		t.Errorf("%d of 5 connections polled, want 3", n)
	}
	if !states[4].c.Polled() {
		t.Error("the quiet one has moved")
	}
	// When one that moved ends, its place is free.
	for i, s := range states {
		if !s.c.Polled() {
			clients[i].Close()
			recv(t, s.closed, "Close")
		}
	}
	eventually(t, "three connections", func() bool { return srv.Len() == 3 })
	eventually(t, "the quiet one moves", func() bool {
		clients[4].echo(kindOrdered, "busy")
		return !states[4].c.Polled()
	})
	for _, c := range clients {
		c.Close()
	}
}

// A connection may end, pause or be blocked in output at any moment of its move.
func TestMovesAndEnds(t *testing.T) {
	each(t, func(a adapter) bool { return a.name == "moves" }, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{Hard: 1 << 30, CloseFlush: time.Second}, app)
		var all sync.WaitGroup
		for i := range 60 {
			c, s := srv.connect()
			all.Go(func() {
				defer c.Close()
				body := pattern(100, uint32(i))
				for n := range 31 + i%4 {
					if _, err := c.Write(makeFrame(kindOrdered, body)); err != nil {
						t.Error(err)
						return
					}
					if _, b, err := c.read(); err != nil || string(b) != string(body) {
						t.Errorf("frame %d: %v", n, err)
						return
					}
				}
				switch i % 6 {
				case 0:
					c.Write(makeFrame(kindOrdered, body))
					s.c.Close(nil)
					io.Copy(io.Discard, c)
				case 1:
					c.Write(makeFrame(kindOrdered, body))
					s.c.Abort(nil)
				case 2:
					c.Write(makeFrame(kindOrdered, body))
					c.closeWrite()
					if _, b, err := c.read(); err != nil || string(b) != string(body) {
						t.Errorf("after the end of input: %v", err)
					}
					c.end()
				case 3:
					c.Write(makeFrame(kindOrdered, body)[:50])
					c.reset()
				case 4:
					s.send(Now, makeFrame(kindPush, make([]byte, 8<<20)))
					c.Write(makeFrame(kindInline, body))
					if _, b, err := c.read(); err != nil || len(b) != 8<<20 {
						t.Errorf("push: %v", err)
					}
					if _, b, err := c.read(); err != nil || string(b) != string(body) {
						t.Errorf("behind the push: %v", err)
					}
				case 5:
					for range 4 {
						c.Write(makeFrame(kindSwallow, nil))
					}
				}
			})
		}
		all.Wait()
	})
}

// Connections that this side makes obey the same rules.
func TestAdopt(t *testing.T) {
	far := newApp(t)
	srv := serve(t, adapters()[0], Config{}, far)
	near := newApp(t)
	refuse := errors.New("test refuses")
	var refused atomic.Bool
	near.onOpen = func(s *state) error {
		if refused.Load() {
			return refuse
		}
		return s.send(Now, makeFrame(kindOrdered, []byte("hello")))
	}
	got := make(chan string, 1)
	near.onRun = func(_ *state, f []byte, _ *Turn) { got <- string(f[headLen:]) }
	g := NewGroup(testConfig(near, Config{}), near)
	dial := func() net.Conn {
		nc, err := dialTCP(srv.ln)
		must(t, err)
		return nc
	}
	cn, err := g.Adopt(dial())
	must(t, err)
	s, fs := recv(t, near.opened, "Open"), recv(t, far.opened, "Open at the other end")
	if s.c != cn || cn.Group() != g || cn.Polled() {
		t.Error("not the connection that was adopted")
	}
	if cn.LocalAddr().String() != fs.c.RemoteAddr().String() || cn.RemoteAddr().String() != fs.c.LocalAddr().String() {
		t.Errorf("%v to %v, %v to %v", cn.LocalAddr(), cn.RemoteAddr(), fs.c.LocalAddr(), fs.c.RemoteAddr())
	}
	if b := recv(t, got, "answer"); b != "hello" {
		t.Errorf("answer %q", b)
	}
	refused.Store(true)
	if _, err := g.Adopt(dial()); err == nil {
		t.Error("Adopt of a connection that Open refuses")
	}
	recv(t, recv(t, far.opened, "Open at the other end").closed, "Close at the other end")
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	must(t, g.Stop(ctx, io.ErrNoProgress))
	if s.downErr != io.ErrNoProgress {
		t.Errorf("Down says %v", s.downErr)
	}
	recv(t, fs.closed, "Close at the other end")
	x, y := net.Pipe()
	if _, err := g.Adopt(x); err != ErrStopped {
		t.Errorf("Adopt after Stop: %v", err)
	}
	if _, err := y.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("what was not adopted is left open: %v", err)
	}
}

// stickyConn takes long to close, as TLS may.
type stickyConn struct {
	net.Conn
	closing chan struct{}
	release chan struct{}
	once    *sync.Once
}

func (c stickyConn) Close() error {
	c.once.Do(func() { close(c.closing) })
	<-c.release
	return c.Conn.Close()
}

// A connection that takes long to close holds up neither who ends it nor the limits of others.
func TestStickyClose(t *testing.T) {
	app := newApp(t)
	g := NewGroup(testConfig(app, Config{Idle: 300 * time.Millisecond}), app)
	x, y := net.Pipe()
	sticky := stickyConn{x, make(chan struct{}), make(chan struct{}), new(sync.Once)}
	_, err := g.Adopt(sticky)
	must(t, err)
	s := recv(t, app.opened, "Open")
	recv(t, sticky.closing, "beginning of the close")
	srv := serve(t, adapters()[0], Config{Idle: 300 * time.Millisecond}, newApp(t))
	c, other := srv.connect()
	if !within(wait/4, func() bool { return isDone(other.down) }) {
		t.Error("another connection is not closed while one takes long to close")
	}
	close(sticky.release)
	recv(t, s.closed, "Close")
	c.end()
	c.Close()
	y.Close()
	recv(t, other.closed, "Close")
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	must(t, g.Stop(ctx, nil))
}
