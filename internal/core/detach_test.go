package core

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// taken is what Detach has given.
type taken struct {
	net.Conn
	unread []byte
}

// detach has s detached and returns where the result comes.
func (s *state) detach() (chan taken, error) {
	s.closes.Add(1) // nothing may follow
	s.app.closes.Add(1)
	ch := make(chan taken, 1)
	return ch, s.c.Detach(func(nc net.Conn, unread []byte) { ch <- taken{nc, unread} })
}

// A connection is detached from wherever; what was sent before arrives, what was received of an incomplete frame is handed over, and
// then it is an ordinary net.Conn in both directions while the group knows nothing of it any more.
func TestDetach(t *testing.T) {
	for _, where := range []string{"Open", "Batch", "Run", "job", "outside", "paused"} {
		t.Run(where, func(t *testing.T) { each(t, nil, func(t *testing.T, a adapter) { detachIn(t, a, where) }) })
	}
}

// detachLast is what is sent before and after Detach: more than a socket takes.
var detachLast = sync.OnceValue(func() []byte { return makeFrame(kindPush, pattern(1<<20, 1)) })

func detachIn(t *testing.T, a adapter, where string) {
	app := newApp(t)
	result := make(chan chan taken, 1)
	last := detachLast()
	if a.name == "pipe" {
		last = makeFrame(kindPush, pattern(1<<10, 1))
	}
	act := func(s *state) {
		s.send(Now, last)
		ch, err := s.detach()
		if err != nil {
			t.Error(err)
		}
		if s.send(Now, last) == nil || s.c.Post(func() {}) {
			t.Error("output or a job accepted after Detach")
		}
		result <- ch
	}
	app.onOpen = func(s *state) error {
		if where == "Open" {
			act(s)
		}
		return nil
	}
	app.onFrame = func(s *state, in *Input, f []byte) error {
		if where == "Batch" {
			act(s)
			return nil
		}
		return s.byKind(in, f)
	}
	app.onRun = func(s *state, f []byte, _ *Turn) {
		if where == "Run" {
			act(s)
		}
	}
	srv := serve(t, a, Config{Queue: 1 << 10}, app)
	c := srv.dial()
	s := recv(t, app.opened, "Open")
	part := []byte{9, 0, 0, 0, kindPush, 'x'}
	switch where {
	case "Batch", "Run":
		c.send(makeFrame(kindOrdered, nil), part)
	case "job":
		c.send(part)
		eventually(t, "part", func() bool { return s.has(flagPartial) })
		s.c.Post(func() { act(s) })
	case "outside":
		eventually(t, "return from Open", func() bool { return s.has(flagOpened) })
		act(s)
	case "paused":
		held := make(chan struct{})
		app.onRun = func(*state, []byte, *Turn) { <-held }
		go c.Write(bytes.Repeat(makeFrame(kindOrdered, pattern(1000, 1)), 10)) //nolint:errcheck // it is read to its end or not
		eventually(t, "pause", func() bool { return s.has(flagPaused) })
		act(s)
		close(held)
	}
	c.expect(kindPush, last[headLen:])
	nc := recv(t, recv(t, result, "call of Detach"), "connection")
	eventually(t, "the group forgets it", func() bool { return srv.Len() == 0 })
	s.c.Close(nil)
	s.c.Abort(nil)
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(wait))
	go c.Write([]byte("after")) //nolint:errcheck // the reader finds out
	got := make([]byte, 5)
	if where == "paused" { // what is between is not looked at
		var all []byte
		for !strings.HasSuffix(string(all), "after") {
			n, err := nc.Read(got)
			must(t, err)
			all = append(all, got[:n]...)
		}
	} else {
		_, err := io.ReadFull(nc, got)
		must(t, err)
		want := ""
		if where == "Batch" || where == "Run" || where == "job" {
			want = string(part)
		}
		if string(nc.unread) != want && string(nc.unread)+string(got) != want+"after" || string(got) != "after" {
			t.Errorf("unread %q, then %q", nc.unread, got)
		}
	}
	go func() {
		for p := range slices.Chunk(last, 50_000) {
			if _, err := nc.Write(p); err != nil {
				t.Error(err)
			}
		}
		nc.Close()
	}()
	c.expect(kindPush, last[headLen:])
	if s.downs.Load() != 0 {
		t.Error("Down")
	}
	c.Close()
}

// A detached connection whose peer has shut down its side, or does so meanwhile, is handed over all the same.
func TestDetachAtEOF(t *testing.T) {
	each(t, half, func(t *testing.T, a adapter) {
		app := newApp(t)
		result := make(chan chan taken, 1)
		goOn := make(chan struct{})
		app.onFrame = func(s *state, _ *Input, _ []byte) error {
			<-goOn
			ch, err := s.detach()
			must(t, err)
			result <- ch
			return nil
		}
		srv := serve(t, a, Config{}, app)
		c := srv.dial()
		c.send(makeFrame(kindInline, nil))
		c.closeWrite()
		close(goOn)
		nc := recv(t, recv(t, result, "call of Detach"), "connection")
		nc.SetDeadline(time.Now().Add(wait))
		if n, err := nc.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("read %d, %v", n, err)
		}
		_, err := nc.Write(makeFrame(kindPush, []byte("bye")))
		must(t, err)
		nc.Close()
		c.expect(kindPush, []byte("bye"))
		c.eof()
		c.Close()
	})
}

// A connection that ends while its output is being sent ends as ever: Down and Close, and no hand-over.
func TestDetachFails(t *testing.T) {
	for _, how := range []string{"Close", "Abort", "reset", "Stop", "stall"} {
		t.Run(how, func(t *testing.T) {
			eachAtOnce(t, func(a adapter) bool { return a.name != "pipe" && (how != "reset" || a.rst) }, func(t *testing.T, a adapter) {
				app := newApp(t)
				cfg := Config{High: 1 << 30, Hard: 1 << 30}
				if how == "stall" {
					cfg.WriteStall = time.Second
				}
				one, two := makeFrame(kindPush, pattern(maxBody, 1)), makeFrame(kindPush, pattern(maxBody, 2))
				srv := serveOn(t, a, a.listenSmall(t), cfg, app)
				c, s := srv.connect()
				s.send(Now, one)
				s.send(Now, two)
				var given atomic.Bool
				must(t, s.c.Detach(func(nc net.Conn, _ []byte) { given.Store(true); nc.Close() }))
				if err := s.c.Detach(nil); err != ErrClosed {
					t.Errorf("again: %v", err)
				}
				want := errors.New("test")
				switch how {
				case "Close":
					s.c.Close(want)
					c.expect(kindPush, one[headLen:])
					c.expect(kindPush, two[headLen:])
					c.eof()
					c.Close()
				case "Abort":
					s.c.Abort(want)
				case "reset":
					c.reset()
					want = nil
				case "Stop":
					stopped := make(chan struct{})
					go func() { srv.stop(); close(stopped) }()
					recv(t, s.down, "Down")
					c.Close()
					recv(t, stopped, "Stop")
					want = ErrStopped
				case "stall":
					want = ErrStalled
				}
				if err := recv2(t, s); want != nil && err != want || err == nil {
					t.Errorf("%v instead of %v", err, want)
				}
				if given.Load() {
					t.Error("handed over")
				}
				c.Close()
			})
		})
	}
}

// Who is not open, or has more under it than bytes, is not detached.
func TestDetachRefused(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{StdConns: -1, Wrap: func(nc net.Conn) io.Reader { return nc }}, app)
		c, s := srv.connect()
		if err := s.c.Detach(nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("wrapped: %v", err)
		}
		c.echo(kindInline, "goes on")
		c.Close()
		recv(t, s.closed, "Close")
		if err := s.c.Detach(nil); err != ErrClosed {
			t.Errorf("closed: %v", err)
		}
	})
}

// The hooks see each write: the amounts add up to what was sent, and what is left counts down to nothing.
func TestWriteHooks(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		var before, sum atomic.Int64
		var left atomic.Int64
		cfg := Config{
			High: 1 << 30, Hard: 1 << 30,
			BeforeWrite: func(c *Conn) error {
				c.Lock()
				if c.Pending() == 0 {
					t.Error("nothing to write")
				}
				c.Unlock()
				before.Add(1)
				return nil
			},
			AfterWrite: func(c *Conn, n, rest int) {
				c.Lock()
				if c.Pending() < n+rest {
					t.Errorf("%d written and %d left of %d", n, rest, c.Pending())
				}
				c.Unlock()
				if before.Add(-1) != 0 {
					t.Error("after without before")
				}
				sum.Add(int64(n))
				left.Store(int64(rest))
			},
		}
		srv := serveOn(t, a, a.listenSmall(t), cfg, app)
		c, s := srv.connect()
		total := 0
		for i := range 5 {
			f := makeFrame(kindPush, pattern(300_000, uint32(i)))
			total += len(f)
			s.send(Now, f)
		}
		for i := range 5 {
			c.expect(kindPush, pattern(300_000, uint32(i)))
		}
		eventually(t, "all counted", func() bool { return sum.Load() == int64(total) && left.Load() == 0 && before.Load() == 0 })
		c.Close()
	})
}

// Whatever the peer and others do meanwhile, a connection is either handed over or closed, once; TestMain sees what is left behind.
func TestDetachStorm(t *testing.T) {
	eachAtOnce(t, func(a adapter) bool { return a.name != "pipe" }, func(t *testing.T, a adapter) {
		app := newApp(t)
		var handed, refused atomic.Int64
		detach := func(s *state) {
			err := s.c.Detach(func(nc net.Conn, _ []byte) {
				if s.closes.Add(1) != 1 {
					t.Error("handed over after Close, or again")
				}
				handed.Add(1)
				app.closes.Add(1)
				nc.Write([]byte("yours")) //nolint:errcheck // it may be over
				nc.Close()
				close(s.closed)
			})
			if err != nil {
				refused.Add(1)
			}
		}
		app.onOpen = func(s *state) error {
			switch s.c.ID() % 5 {
			case 0:
				detach(s)
			case 1:
				go func() {
					recv(t, s.open, "Open")
					s.c.Post(func() { detach(s) })
				}()
			case 2:
				go detach(s)
			}
			return nil
		}
		app.onFrame = func(s *state, in *Input, f []byte) error {
			if s.c.ID()%5 == 3 {
				detach(s)
				return nil
			}
			return s.byKind(in, f)
		}
		app.onRun = func(s *state, f []byte, _ *Turn) {
			s.answer(f)
			if s.c.ID()%5 == 4 {
				detach(s)
			}
		}
		srv := serve(t, a, Config{}, app)
		const n = 100
		slots := make(chan struct{}, 20)
		for i := range n {
			slots <- struct{}{}
			go func() {
				defer func() { <-slots }()
				nc, err := a.dial(srv.ln)
				if err != nil {
					t.Error(err)
					return
				}
				defer nc.Close()
				nc.SetDeadline(time.Now().Add(wait))              //nolint:errcheck // a new connection takes it
				nc.Write(makeFrame(kindOrdered, pattern(i*i, 1))) //nolint:errcheck // it may be over
				switch i % 4 {
				case 0:
					if cw, ok := nc.(interface{ CloseWrite() error }); ok {
						cw.CloseWrite() //nolint:errcheck // it may be over
					}
				case 1:
					nc.Read(make([]byte, 1)) //nolint:errcheck // something, or the end
				case 2:
					if tc, ok := nc.(*net.TCPConn); ok {
						tc.SetLinger(0) //nolint:errcheck // closing is what matters
					}
				case 3:
					nc.Read(make([]byte, 1<<20)) //nolint:errcheck // likewise
				}
			}()
		}
		for range cap(slots) {
			slots <- struct{}{}
		}
		eventually(t, "the end of all", func() bool { return srv.Len() == 0 && app.opens.Load() == app.closes.Load() })
		if handed.Load() == 0 {
			t.Error("none was handed over")
		}
	})
}
