package core

import (
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Jobs run in order with the ordered frames before and after them and never overlap, and never while Post is being called.
func TestPost(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		var order []string // the strand's
		first, goOn := make(chan struct{}), make(chan struct{})
		app.onRun = func(s *state, f []byte, _ *Turn) {
			order = append(order, string(f[headLen:]))
			if len(order) == 1 {
				close(first)
				<-goOn
			}
			s.answer(f)
		}
		srv := serve(t, a, Config{}, app)
		c, s := srv.connect()
		c.send(makeFrame(kindOrdered, []byte("one")))
		recv(t, first, "first frame")
		var mu sync.Mutex
		mu.Lock() // a job that ran on the caller's stack would wait for ever
		for i := range 3 {
			if !s.c.Post(func() {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, fmt.Sprint("job", i))
			}) {
				t.Error("refused")
			}
		}
		mu.Unlock()
		c.send(makeFrame(kindOrdered, []byte("two")))
		eventually(t, "second frame in line", func() bool { return s.frames.Load() == 2 })
		close(goOn)
		c.expect(kindOrdered, []byte("one"))
		c.expect(kindOrdered, []byte("two"))
		done := make(chan []string)
		s.c.Post(func() { done <- order })
		if got := recv(t, done, "last job"); !slices.Equal(got, []string{"one", "job0", "job1", "job2", "two"}) {
			t.Errorf("order %v", got)
		}
		c.Close()
		recv(t, s.closed, "Close")
		if s.c.Post(func() { t.Error("job after Close") }) {
			t.Error("accepted after Close")
		}
	})
}

// A job posted in Open runs after it; what it sends goes out without further ado.
func TestPostInOpen(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		app.onOpen = func(s *state) error {
			if !s.c.Post(func() {
				recv(t, s.open, "return from Open")
				s.answer(makeFrame(kindPush, []byte("hello")))
			}) {
				t.Error("refused")
			}
			return nil
		}
		srv := serve(t, a, Config{}, app)
		c := srv.dial()
		c.expect(kindPush, []byte("hello"))
		c.Close()
	})
}

// The line of jobs has an end, a panic in one closes the connection, and those behind it do not run.
func TestPostLimits(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{Queue: 6400}, app)
		c, s := srv.connect()
		began, goOn := make(chan struct{}), make(chan struct{})
		s.c.Post(func() {
			close(began)
			<-goOn
			panic("test")
		})
		recv(t, began, "job")
		n := 0
		for s.c.Post(func() { t.Error("job behind a panic") }) {
			n++
		}
		if n < 100 || n > 500 {
			t.Errorf("%d jobs in line", n)
		}
		close(goOn)
		c.eof()
		c.Close()
		if err := recv2(t, s); err != errPanic {
			t.Errorf("Close: %v", err)
		}
	})
}

// recv2 waits for Close and returns its error.
func recv2(t testing.TB, s *state) error {
	t.Helper()
	recv(t, s.closed, "Close")
	return s.closeErr
}

func TestEvery(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{}, app)
		c, s := srv.connect()
		var runs, inside atomic.Int32
		block, third := make(chan struct{}), make(chan struct{})
		stop := s.c.Every(time.Millisecond, func() {
			if inside.Add(1) != 1 {
				t.Error("overlaps")
			}
			defer inside.Add(-1)
			if runs.Add(1) == 3 {
				close(third)
				<-block
			}
		})
		recv(t, third, "third run")
		var more atomic.Int32
		other := s.c.Every(time.Millisecond, func() { more.Add(1) })
		stop2 := s.c.Every(time.Hour, func() { t.Error("an hour has passed") })
		defer stop2()
		if within(20*time.Millisecond, func() bool { s.c.Lock(); defer s.c.Unlock(); return s.c.queued > 2*64 }) {
			t.Error("runs pile up behind one that lasts")
		}
		close(block)
		eventually(t, "runs go on", func() bool { return runs.Load() > 5 && more.Load() > 2 })
		stop()
		stop()
		passed := make(chan struct{})
		s.c.Post(func() { close(passed) })
		recv(t, passed, "job behind the last run")
		n := runs.Load()
		m := more.Load()
		eventually(t, "the other goes on", func() bool { return more.Load() > m+5 })
		if runs.Load() != n {
			t.Errorf("%d runs after stop", runs.Load()-n)
		}
		c.Close()
		recv(t, s.closed, "Close")
		m = more.Load()
		if within(5*time.Millisecond, func() bool { return more.Load() != m }) {
			t.Error("runs after Close")
		}
		other()
		s.c.Every(time.Millisecond, func() { t.Error("begun after Close") })()
	})
}

// Get finds who is there, also those that came before its first call.
func TestGet(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{}, app)
		c1, s1 := srv.connect()
		if srv.Get(s1.c.ID()) != s1.c || srv.Get(s1.c.ID()+1) != nil || srv.Get(0) != nil {
			t.Error("wrong before")
		}
		_, s2 := srv.connect()
		if srv.Get(s1.c.ID()) != s1.c || srv.Get(s2.c.ID()) != s2.c {
			t.Error("wrong after")
		}
		c1.Close()
		recv(t, s1.closed, "Close")
		eventually(t, "gone", func() bool { return srv.Get(s1.c.ID()) == nil })
	})
}

// Connections know their listener, and are spread as Balance says; the loops that they belong to are those that serve them.
func TestBalance(t *testing.T) {
	each(t, tcp, func(t *testing.T, a adapter) {
		for _, b := range []Balance{Turns, Random, Least} {
			app := newApp(t)
			srv := serve(t, a, Config{Loops: 3, Balance: b}, app)
			second, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			go srv.ServeAs(7, second)
			count := [3]int{}
			var clients []*client
			for range 9 {
				c, s := srv.connect()
				clients = append(clients, c)
				count[s.c.Loop()]++
				c.echo(kindInline, "there")
				if s.c.Listener() != 0 {
					t.Errorf("listener %d", s.c.Listener())
				}
			}
			if b != Random && count != [3]int{3, 3, 3} {
				t.Errorf("%d: %v", b, count)
			}
			nc, err := net.Dial("tcp", second.Addr().String())
			must(t, err)
			s := recv(t, app.opened, "Open")
			if s.c.Listener() != 7 {
				t.Errorf("listener %d instead of 7", s.c.Listener())
			}
			nc.Close()
			recv(t, s.closed, "Close")
			for _, c := range clients {
				c.Close()
			}
		}
	})
}

// Least prefers the loop that connections have left.
func TestBalanceLeast(t *testing.T) {
	each(t, tcp, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{Loops: 2, Balance: Least}, app)
		var clients [4]*client
		var states [4]*state
		for i := range clients {
			clients[i], states[i] = srv.connect()
		}
		left := states[1].c.Loop()
		for _, i := range []int{1, 3} {
			clients[i].Close()
			recv(t, states[i].closed, "Close")
		}
		eventually(t, "gone", func() bool { return srv.Len() == 2 })
		for range 2 {
			if _, s := srv.connect(); s.c.Loop() != left {
				t.Errorf("loop %d instead of %d", s.c.Loop(), left)
			}
		}
		for _, c := range clients {
			c.Close()
		}
	})
}

func TestSetKeepAlive(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{}, app)
		c, s := srv.connect()
		for _, d := range []time.Duration{1500 * time.Millisecond, 0} {
			err := s.c.SetKeepAlive(d)
			if a.tcp && err != nil || !a.tcp && err == nil {
				t.Errorf("%v: %v", d, err)
			}
			if a.name != "poll" || runtime.GOOS != "linux" || err != nil {
				continue
			}
			if on, idle := keepAliveOf(t, s.c); on != (d > 0) || on && idle != 2 {
				t.Errorf("%v: on %v, after %d s", d, on, idle)
			}
		}
		c.Close()
		recv(t, s.closed, "Close")
		if a.tcp && s.c.SetKeepAlive(time.Second) == nil {
			t.Error("works after Close")
		}
	})
}
