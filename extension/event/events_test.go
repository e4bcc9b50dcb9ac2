package event

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func pattern(n int, seed uint64) []byte {
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	p := make([]byte, n)
	rnd.Read(p) //nolint:errcheck // never fails
	return p
}

// Row E1: with one loop no two events overlap, of whichever connection or kind; n has no lock. Row E16: each sees what those before it
// did.
func TestE1E16OneLoop(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		const clients, lines = 20, 50
		n := 0
		calls := map[string]int{}
		count := func(what string) { n++; calls[what]++ }
		var r *running
		ids := make(chan int, clients)
		ev := Events{
			Serving: func(func(int) bool, []net.Addr) Action { count("serving"); return None },
			Opened: func(id int, _ Addr) ([]byte, Options, Action) {
				count("opened")
				ids <- id
				return []byte("hi\n"), Options{}, None
			},
			Closed: func(int, error) Action { count("closed"); return None },
			Data: func(id int, in []byte) ([]byte, Action) {
				if in == nil {
					count("wake")
				} else {
					count("data")
				}
				return in, None
			},
			Prewrite:  func(int, int) Action { count("prewrite"); return None },
			Postwrite: func(int, int, int) Action { count("postwrite"); return None },
			Tick:      func() (time.Duration, Action) { count("tick"); return time.Millisecond, None },
		}
		done := make(chan struct{})
		t.Cleanup(func() { // after Serve
			select {
			case <-done:
			default:
				return
			}
			sum := 0
			for _, what := range []string{"serving", "opened", "closed", "data", "wake", "prewrite", "postwrite", "tick"} {
				if sum += calls[what]; calls[what] == 0 {
					t.Errorf("no %s", what)
				}
			}
			if sum != n || calls["opened"] != clients || calls["closed"] != clients {
				t.Errorf("%d calls, %v", n, calls)
			}
		})
		r = start(t, ev, "tcp"+suffix+"://127.0.0.1:0", "unix"+suffix+"://"+filepath.Join(t.TempDir(), "s"))
		var wg sync.WaitGroup
		for i := range clients {
			c := r.dial(i % 2)
			wg.Go(func() {
				c.expect("hi\n")
				id := <-ids
				for range lines {
					r.wake(id)
					c.send("line\n")
					c.expect("line\n")
				}
				c.Close()
			})
		}
		wg.Wait()
		close(done)
	})
}

// Row E1, several loops: each is one by itself, and connections are spread over them.
func TestE1Loops(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		for _, balance := range []LoadBalance{Random, RoundRobin, LeastConnections} {
			var mu sync.Mutex
			opened := 0
			ev := Events{NumLoops: 3, LoadBalance: balance,
				Opened: func(int, Addr) ([]byte, Options, Action) {
					mu.Lock()
					defer mu.Unlock()
					opened++
					return nil, Options{}, None
				},
				Data: func(_ int, in []byte) ([]byte, Action) { return in, None },
			}
			r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
			var wg sync.WaitGroup
			for range 12 {
				c := r.dial(0)
				wg.Go(func() {
					c.send("x")
					c.expect("x")
				})
			}
			wg.Wait()
			mu.Lock()
			if opened != 12 {
				t.Errorf("%d opened", opened)
			}
			mu.Unlock()
		}
	})
	if ev := (Events{NumLoops: -1, Serving: func(func(int) bool, []net.Addr) Action { return Shutdown }}); Serve(ev, "127.0.0.1:0") != nil {
		t.Error("a loop per processor")
	}
}

// Row E1: an event that blocks holds up its own loop only.
func TestE1LoopsAreSeparate(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		block, inside := make(chan struct{}), make(chan struct{})
		ev := Events{NumLoops: 2, LoadBalance: RoundRobin, Data: func(_ int, in []byte) ([]byte, Action) {
			if string(in) == "block" {
				close(inside)
				<-block
			}
			return in, None
		}}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		a, b, c := r.dial(0), r.dial(0), r.dial(0)
		for _, x := range []*client{a, b, c} { // all are open
			x.send("there")
			x.expect("there")
		}
		a.send("block")
		recv(t, inside, "block")
		b.send("other")
		b.expect("other")
		c.send("same") // its loop is a's
		if within(5*time.Millisecond, func() bool { return c.r.Buffered() > 0 }) {
			t.Error("two events of a loop overlap")
		}
		close(block)
		a.expect("block")
		c.expect("same")
	})
}

// Row E3: an idle connection costs little.
func TestE3Memory(t *testing.T) {
	const conns = 400
	ev := Events{Opened: func(int, Addr) ([]byte, Options, Action) { return []byte("x"), Options{ReuseInputBuffer: true}, None }}
	r := start(t, ev, "tcp://127.0.0.1:0")
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	var raw []net.Conn
	dialAll := func() {
		for range conns {
			nc, err := net.Dial("tcp", r.addrs[0].String())
			must(t, err)
			raw = append(raw, nc)
			if _, err := io.ReadFull(nc, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	dialAll() // tables grow now
	before := heap()
	dialAll()
	if each := (heap() - before) / conns; each > 4<<10 { // with the test's own end of it
		t.Errorf("%d bytes per connection", each)
	}
	for _, nc := range raw {
		nc.Close()
	}
}

// Rows E4, E5 and E10: addresses are in order and as the system has them, a connection's Addr says which it came in by.
func TestE4E5E10Addresses(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		path := filepath.Join(t.TempDir(), "s")
		opened := make(chan Addr, 1)
		ev := Events{Opened: func(_ int, a Addr) ([]byte, Options, Action) {
			opened <- a
			return nil, Options{}, None
		}}
		r := start(t, ev, "tcp4"+suffix+"://127.0.0.1:0", "unix"+suffix+"://"+path, "tcp6"+suffix+"://[::1]:0", "127.0.0.1:0")
		if len(r.addrs) != 4 || r.addrs[1].String() != path {
			t.Fatalf("addresses %v", r.addrs)
		}
		for i, size := range []int{4, 0, 16, 4} {
			c := r.dial(i)
			a := recv(t, opened, "Opened")
			if a.Index != i {
				t.Errorf("index %d instead of %d", a.Index, i)
			}
			if size == 0 {
				if a.Local.String() != path || a.Remote.String() != path {
					t.Errorf("unix: %v", a)
				}
				continue
			}
			local, remote := a.Local.(*net.TCPAddr), a.Remote.(*net.TCPAddr)
			if r.addrs[i].(*net.TCPAddr).Port == 0 || local.String() != r.addrs[i].String() || remote.String() != c.LocalAddr().String() {
				t.Errorf("%v to %v is %v", c.LocalAddr(), r.addrs[i], a)
			}
			if len(local.IP) != size || len(remote.IP) != size {
				t.Errorf("addresses of %d and %d bytes instead of %d", len(local.IP), len(remote.IP), size)
			}
		}
	})
}

// Row E4: what is no address makes Serve fail, with nothing left behind.
func TestE4BadAddresses(t *testing.T) {
	for _, a := range []string{"tulip://x", "howdy", "unix://", "tcp://127.0.0.1:0?what=1", "udp-net://nowhere"} {
		served := false
		err := Serve(Events{Serving: func(func(int) bool, []net.Addr) Action { served = true; return Shutdown }}, "tcp://127.0.0.1:0", a)
		if err == nil || served {
			t.Errorf("%s: %v", a, err)
		}
	}
	if Serve(Events{}) == nil {
		t.Error("no address at all")
	}
	var port int
	ev := Events{Serving: func(_ func(int) bool, a []net.Addr) Action { port = a[0].(*net.TCPAddr).Port; return Shutdown }}
	if err := Serve(ev, "tcp://"); err != nil || port == 0 {
		t.Errorf("tcp://: %v, port %d", err, port)
	}
}

// Row E4: datagrams are answered to who sent them, on both IP versions. Only Data is called.
func TestE4Datagrams(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		ev := Events{
			Opened: func(int, Addr) ([]byte, Options, Action) { t.Error("Opened"); return nil, Options{}, None },
			Closed: func(int, error) Action { t.Error("Closed"); return None },
			Data:   func(id int, in []byte) ([]byte, Action) { return fmt.Appendf(nil, "%d %s", id, in), None },
		}
		r := start(t, ev, "udp"+suffix+"://127.0.0.1:0", "udp4"+suffix+"://127.0.0.1:0", "udp6"+suffix+"://[::1]:0?reuseport=true")
		for i := range 3 {
			a, b := r.dial(i), r.dial(i)
			for range 2 {
				a.send("a")
				b.send("b")
				a.expect(fmt.Sprintf("%d a", -1-i))
				b.expect(fmt.Sprintf("%d b", -1-i))
			}
			if r.wake(-1 - i) {
				t.Error("woken")
			}
		}
	})
}

// Row E4: several servers on one port.
func TestE4ReusePort(t *testing.T) {
	echo := Events{Data: func(_ int, in []byte) ([]byte, Action) { return in, None }}
	first := start(t, echo, "tcp://127.0.0.1:0?reuseport=true")
	addr := fmt.Sprintf("tcp://%v?reuseport=yes", first.addrs[0])
	for range 4 {
		start(t, echo, addr)
	}
	for range 20 {
		c := first.dial(0)
		c.send("x")
		c.expect("x")
		c.Close()
	}
	if err := Serve(Events{}, "tcp://"+first.addrs[0].String()); err == nil {
		t.Error("the port is taken")
	}
}

// Row E6: Tick is called when Serve begins and after each delay.
func TestE6Tick(t *testing.T) {
	n := 0
	began := time.Now()
	err := Serve(Events{Tick: func() (time.Duration, Action) {
		if n++; n == 26 {
			return 0, Shutdown
		}
		return 10 * time.Millisecond, None
	}}, "127.0.0.1:0")
	if took := time.Since(began); err != nil || took < 250*time.Millisecond || took > 5*time.Second {
		t.Errorf("%v, after %v", err, took)
	}
}

// Row E6: delays of nothing do not keep a processor busy.
func TestE6ShortTicks(t *testing.T) {
	n := 0
	began := time.Now()
	must(t, Serve(Events{Tick: func() (time.Duration, Action) {
		if n++; n == 50 {
			return 0, Shutdown
		}
		return -time.Duration(n % 2), None
	}}, "127.0.0.1:0"))
	if took := time.Since(began); took < 49*minDelay {
		t.Errorf("50 ticks in %v", took)
	}
}

// Row E7, and the seed's own test: random amounts are echoed to 10 clients at once behind a greeting.
func TestE7Echo(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		ev := Events{
			Opened: func(int, Addr) ([]byte, Options, Action) { return []byte("sweetness\r\n"), Options{}, None },
			Data:   func(_ int, in []byte) ([]byte, Action) { return in, None },
		}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0", "unix"+suffix+"://"+filepath.Join(t.TempDir(), "s"))
		var wg sync.WaitGroup
		for i := range 10 {
			c := r.dial(i % 2)
			data := string(pattern(rand.IntN(1<<20), uint64(i)))
			wg.Go(func() {
				go c.send(data)
				c.expect("sweetness\r\n" + data)
				c.Close()
			})
		}
		wg.Wait()
	})
}

// Row E8: no id comes twice.
func TestE8IDs(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		seen := map[int]bool{}
		ids := make(chan int, 1)
		ev := Events{Opened: func(id int, _ Addr) ([]byte, Options, Action) {
			if seen[id] || id <= 0 {
				t.Errorf("id %d again", id)
			}
			seen[id] = true
			ids <- id
			return nil, Options{}, None
		}}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0", "unix"+suffix+"://"+filepath.Join(t.TempDir(), "s"))
		for i := range 60 {
			c := r.dial(i % 2)
			recv(t, ids, "Opened")
			c.Close()
		}
	})
}

// Row E9: each event may close its connection, or end Serve.
func TestE9Actions(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		for _, where := range []string{"Opened", "Data", "wake"} {
			t.Run("Close in "+where, func(t *testing.T) { closeIn(t, suffix, where) })
		}
		for _, where := range []string{"Serving", "Opened", "Data", "wake", "Prewrite", "Postwrite", "Closed", "Detached", "Tick", "datagram"} {
			t.Run("Shutdown in "+where, func(t *testing.T) { shutdownIn(t, suffix, where) })
		}
	})
}

// closeIn has a connection closed, with 1 MiB still to be sent.
func closeIn(t *testing.T, suffix, where string) {
	last := pattern(1<<20, 1)
	closed := make(chan error, 1)
	opened := make(chan int, 1)
	calls := 0
	in := func(here string) ([]byte, Action) {
		calls++
		if here == where {
			return last, Close
		}
		return nil, None
	}
	ev := Events{
		Opened: func(id int, _ Addr) ([]byte, Options, Action) {
			opened <- id
			out, action := in("Opened")
			return out, Options{}, action
		},
		Data: func(_ int, p []byte) ([]byte, Action) {
			if p == nil {
				return in("wake")
			}
			return in("Data")
		},
		Closed: func(_ int, err error) Action { closed <- err; return None },
	}
	r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
	c := r.dial(0)
	id := recv(t, opened, "Opened")
	switch where {
	case "wake":
		if !r.wake(id) {
			t.Error("not woken")
		}
	case "Data":
		c.send("x")
	}
	c.send("more") // no Data any more, but for the one of the first bytes
	c.expect(string(last))
	c.eof()
	c.Close()
	if err := recv(t, closed, "Closed"); err != nil {
		t.Errorf("Closed with %v", err)
	}
	if r.wake(id) {
		t.Error("woken after Closed")
	}
	if calls > 3 {
		t.Errorf("%d events", calls)
	}
}

func shutdownIn(t *testing.T, suffix, where string) {
	in := func(here string) Action {
		if here == where {
			return Shutdown
		}
		return None
	}
	ids := make(chan int, 10)
	opened := 0
	var closed []int
	detached := make(chan struct{}, 1)
	ev := Events{
		Serving: func(func(int) bool, []net.Addr) Action { return in("Serving") },
		Opened: func(id int, _ Addr) ([]byte, Options, Action) {
			ids <- id
			if opened++; opened < 3 {
				return nil, Options{}, None
			}
			return nil, Options{}, in("Opened")
		},
		Data: func(id int, p []byte) ([]byte, Action) {
			switch {
			case id < 0:
				return nil, in("datagram")
			case p == nil:
				return nil, in("wake")
			case where == "Detached":
				return nil, Detach
			}
			return []byte("bye"), in("Data")
		},
		Closed: func(id int, _ error) Action { closed = append(closed, id); return in("Closed") },
		Detached: func(_ int, rwc io.ReadWriteCloser) Action {
			rwc.Close()
			detached <- struct{}{}
			return in("Detached")
		},
		Tick: func() (time.Duration, Action) {
			if opened == 3 {
				return time.Millisecond, in("Tick")
			}
			return time.Millisecond, None
		},
	}
	switch where {
	case "Prewrite":
		ev.Prewrite = func(int, int) Action { return Shutdown }
	case "Postwrite":
		ev.Postwrite = func(int, int, int) Action { return Shutdown }
	}
	r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0", "udp"+suffix+"://127.0.0.1:0")
	if where == "Serving" {
		r.ended()
		if _, err := net.Dial("tcp", r.addrs[0].String()); err == nil {
			t.Error("still listening")
		}
		return
	}
	var clients []*client
	var id []int
	for range 3 {
		clients = append(clients, r.dial(0))
		id = append(id, recv(t, ids, "Opened"))
	}
	asker := 0
	switch where {
	case "Opened":
		asker = 2
	case "wake":
		asker = 1
		r.wake(id[1])
	case "Data", "Prewrite", "Postwrite":
		asker = 1
		clients[1].send("x")
	case "Detached":
		clients[1].send("x")
		recv(t, detached, "Detached")
	case "Closed":
		clients[1].Close()
	case "datagram":
		r.dial(1).send("x")
	}
	for i, c := range clients {
		if where == "Closed" && i == 1 {
			continue
		}
		if asker == 1 && i == 1 && where != "wake" {
			c.expect("bye") // what the one who asked returned is sent
		}
		c.eof()
		c.Close()
	}
	r.ended()
	want := []int{id[2], id[1], id[0]}
	switch {
	case where == "Detached":
		want = []int{id[2], id[0]}
	case where == "Closed" || asker == 1:
		want = []int{id[1], id[2], id[0]}
	}
	if !slices.Equal(closed, want) {
		t.Errorf("closed in the order %v instead of %v", closed, want)
	}
}

// Row E9: an end of Serve closes 10 idle clients, in descending order of their ids; what one Data returned with Shutdown is sent.
func TestE9ShutdownIdle(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		var opened atomic.Int32
		var closed []int
		ev := Events{
			Opened: func(int, Addr) ([]byte, Options, Action) { opened.Add(1); return nil, Options{}, None },
			Closed: func(id int, err error) Action {
				if err != nil {
					t.Errorf("Closed with %v", err)
				}
				closed = append(closed, id)
				return None
			},
			Tick: func() (time.Duration, Action) {
				if opened.Load() == 10 {
					return 0, Shutdown
				}
				return time.Millisecond, None
			},
		}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0", "unix"+suffix+"://"+filepath.Join(t.TempDir(), "s"))
		var clients []*client
		for i := range 10 {
			clients = append(clients, r.dial(i%2))
		}
		for _, c := range clients {
			c.eof()
			c.Close()
		}
		r.ended()
		if len(closed) != 10 || !slices.IsSortedFunc(closed, func(a, b int) int { return b - a }) {
			t.Errorf("closed %v", closed)
		}
	})
}

// Row E9: clients that do not react to the end do not keep Serve from returning.
func TestE9ShutdownDeaf(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		ev := Events{Data: func(int, []byte) ([]byte, Action) { return pattern(8<<20, 1), Shutdown }}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		r.dial(0).send("x")
		r.ended()
	})
}

// Row E11: 1000 answers caused by wake only; it is false for who is not there, several calls may be one event.
func TestE11Wake(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		lines := map[int][]string{}
		ids := make(chan int, 1)
		wakes := make(chan int, 2000)
		ev := Events{
			Opened: func(id int, _ Addr) ([]byte, Options, Action) { ids <- id; return nil, Options{}, None },
			Data: func(id int, in []byte) ([]byte, Action) {
				if in != nil {
					lines[id] = append(lines[id], string(in))
					wakes <- id
					return nil, None
				}
				out := strings.Join(lines[id], "")
				lines[id] = nil
				return []byte(out), None
			},
		}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		c := r.dial(0)
		id := recv(t, ids, "Opened")
		done := make(chan struct{})
		go func() {
			defer close(done)
			for id := range wakes {
				if !r.wake(id) {
					t.Error("not woken")
				}
			}
		}()
		for i := range 1000 {
			line := fmt.Sprintf("line %d\n", i)
			c.send(line)
			c.expect(line)
		}
		close(wakes)
		recv(t, done, "end of wakes")
		for _, other := range []int{0, -1, id + 1, 1 << 40} {
			if r.wake(other) {
				t.Errorf("%d was woken", other)
			}
		}
	})
}

// Row E11: a connection can be woken as soon as Opened knows it.
func TestE11WakeInOpened(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		var r *running
		ready := make(chan struct{})
		ev := Events{
			Opened: func(id int, _ Addr) ([]byte, Options, Action) {
				<-ready
				if !r.wake(id) {
					t.Error("not woken")
				}
				return []byte("first "), Options{}, None
			},
			Data: func(_ int, in []byte) ([]byte, Action) {
				if in != nil {
					t.Error("input")
				}
				return []byte("second"), None
			},
		}
		r = start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		close(ready)
		r.dial(0).expect("first second")
	})
}

// Row E11 and a defect of evio's: wake is called with a lock held that Data takes, as it runs on another stack.
func TestE11WakeUnderLock(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		var mu sync.Mutex
		ids := make(chan int, 1)
		ev := Events{
			Opened: func(id int, _ Addr) ([]byte, Options, Action) { ids <- id; return nil, Options{}, None },
			Data: func(id int, in []byte) ([]byte, Action) {
				mu.Lock()
				defer mu.Unlock()
				if in == nil {
					return []byte("w"), None
				}
				return nil, None
			},
		}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		c := r.dial(0)
		id := recv(t, ids, "Opened")
		for range 100 {
			mu.Lock()
			for range 3 {
				if !r.wake(id) {
					t.Error("not woken")
				}
			}
			c.send("x") // Data may wait for the lock meanwhile
			mu.Unlock()
			c.expect("w")
			for within(0, func() bool { return c.r.Buffered() > 0 }) { // one more, if the first was served between two calls
				c.r.ReadByte() //nolint:errcheck // it is there
			}
		}
	})
}

// A defect of evio's: a wake while 16 MiB are being sent loses nothing of them.
func TestE11WakeWhileSending(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		big := pattern(16<<20, 1)
		ids := make(chan int, 1)
		ev := Events{Opened: func(id int, _ Addr) ([]byte, Options, Action) { ids <- id; return nil, Options{}, None },
			Data: func(_ int, in []byte) ([]byte, Action) {
				if in == nil {
					return []byte("awake"), None
				}
				return big, None
			}}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		c := r.dial(0)
		id := recv(t, ids, "Opened")
		c.send("x")
		first, err := c.r.Peek(1)
		must(t, err)
		for range 10 {
			if first[0] != big[0] || !r.wake(id) {
				t.Error("not woken")
			}
		}
		c.expect(string(big))
		c.expect("awake")
	})
}

// Row E12: what Opened returns comes before anything else, and its options hold.
func TestE12Opened(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		var first []byte
		ev := Events{
			Opened: func(int, Addr) ([]byte, Options, Action) {
				return []byte("greeting "), Options{TCPKeepAlive: 5 * time.Minute, ReuseInputBuffer: true}, None
			},
			Data: func(_ int, in []byte) ([]byte, Action) {
				if first == nil {
					first = in
				}
				return in, None
			},
		}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0", "unix"+suffix+"://"+filepath.Join(t.TempDir(), "s"))
		for i := range 2 {
			c := r.dial(i)
			c.send("one")
			c.expect("greeting one")
			c.send("two")
			c.expect("two")
		}
	})
}

// Row E12: without ReuseInputBuffer what Data was given is its to keep.
func TestE12KeepsInput(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		var kept [][]byte
		ev := Events{Data: func(_ int, in []byte) ([]byte, Action) {
			kept = append(kept, in)
			if string(in) != "sum" {
				return in, None
			}
			return bytes.Join(kept, []byte("+")), None
		}}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		c := r.dial(0)
		want := ""
		for i := range 20 {
			s := fmt.Sprint(i)
			c.send(s)
			c.expect(s)
			want += s + "+"
		}
		c.send("sum")
		c.expect(want + "sum")
	})
}

// Row E13: Closed is called once, with nil after an orderly end and with an error after a reset; a peer that shuts down its side
// still gets its answers.
func TestE13Closed(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		closed := make(chan error, 10)
		ev := Events{
			Data:   func(_ int, in []byte) ([]byte, Action) { return bytes.Repeat(in, 100_000), None },
			Closed: func(_ int, err error) Action { closed <- err; return None },
		}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		c := r.dial(0)
		c.send("PING")
		must(t, c.Conn.(*net.TCPConn).CloseWrite()) // as nc -N
		c.expect(strings.Repeat("PING", 100_000))
		c.eof()
		if err := recv(t, closed, "Closed"); err != nil {
			t.Errorf("EOF: %v", err)
		}
		c = r.dial(0)
		c.send("x")
		c.expect("x")
		must(t, c.Conn.(*net.TCPConn).SetLinger(0))
		c.Close()
		if err := recv(t, closed, "Closed"); err == nil {
			t.Error("no error after a reset")
		}
		if len(closed) > 0 {
			t.Error("Closed again")
		}
	})
}

// A panic in an event costs its connection only.
func TestE13Panic(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		closed := make(chan error, 10)
		ids := make(chan int, 2)
		ev := Events{
			Opened: func(id int, _ Addr) ([]byte, Options, Action) { ids <- id; return nil, Options{}, None },
			Data: func(_ int, in []byte) ([]byte, Action) {
				if in == nil || string(in) == "panic" {
					panic("test")
				}
				return in, None
			},
			Closed: func(_ int, err error) Action { closed <- err; return None },
		}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		other := r.dial(0)
		recv(t, ids, "Opened")
		for _, wake := range []bool{false, true} {
			c := r.dial(0)
			id := recv(t, ids, "Opened")
			if wake {
				r.wake(id)
			} else {
				c.send("panic")
			}
			c.eof()
			c.Close()
			if err := recv(t, closed, "Closed"); err == nil {
				t.Error("no error")
			}
		}
		other.send("alive")
		other.expect("alive")
	})
}

// Row E14, the seed's own test: 20 MiB echoed, then as much again by whoever has the detached connection.
func TestE14Detach20MiB(t *testing.T) {
	const size = 20 << 20
	bothWays(t, func(t *testing.T, suffix string) {
		for _, network := range []string{"tcp", "unix"} {
			data := pattern(size, 1)
			seen := 0
			ev := Events{
				Data: func(_ int, in []byte) ([]byte, Action) {
					if seen += len(in); seen < size {
						return in, None
					}
					return in, Detach
				},
				Closed: func(int, error) Action { t.Error("Closed"); return None },
				Detached: func(_ int, rwc io.ReadWriteCloser) Action {
					go func() { // from any goroutine
						defer rwc.Close()
						if _, err := io.CopyN(rwc, rwc, size); err != nil {
							t.Error(err)
						}
						if rwc.Close() != nil || rwc.Close() == nil {
							t.Error("closes other than once")
						}
					}()
					return None
				},
			}
			addr := network + suffix + "://127.0.0.1:0"
			if network == "unix" {
				addr = network + suffix + "://" + filepath.Join(t.TempDir(), "s")
			}
			r := start(t, ev, addr)
			c := r.dial(0)
			for range 2 {
				go c.send(string(data))
				c.expect(string(data))
			}
			c.eof()
		}
	})
}

// Row E14: detached from Opened and after wake, with the peer sending all the time: not a byte is lost or seen twice.
func TestE14DetachAnywhere(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		for _, where := range []string{"Opened", "wake"} {
			var before []byte
			ids := make(chan int, 1)
			detached := make(chan io.ReadWriteCloser, 1)
			ev := Events{
				Opened: func(id int, _ Addr) ([]byte, Options, Action) {
					ids <- id
					if where == "Opened" {
						return []byte("hello"), Options{}, Detach
					}
					return []byte("hello"), Options{}, None
				},
				Data: func(_ int, in []byte) ([]byte, Action) {
					before = append(before, in...)
					if in == nil {
						return nil, Detach
					}
					return nil, None
				},
				Closed:   func(int, error) Action { t.Error("Closed"); return None },
				Detached: func(_ int, rwc io.ReadWriteCloser) Action { detached <- rwc; return None },
			}
			r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
			c := r.dial(0)
			c.expect("hello")
			id := recv(t, ids, "Opened")
			data := pattern(4<<20, 2)
			go func() {
				c.send(string(data))
				c.Conn.(*net.TCPConn).CloseWrite() //nolint:errcheck // the reader finds out
			}()
			if where == "wake" && !r.wake(id) {
				t.Error("not woken")
			}
			rwc := recv(t, detached, "Detached")
			if r.wake(id) {
				t.Error("woken")
			}
			rest, err := io.ReadAll(rwc)
			must(t, err)
			rwc.Close()
			if !bytes.Equal(append(before, rest...), data) {
				t.Errorf("%d bytes before and %d after, of %d", len(before), len(rest), len(data))
			}
			c.eof()
		}
	})
}

// Row E14: without Detached, Detach is Close; if output cannot be sent, Closed is called.
func TestE14NotDetached(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		closed := make(chan error, 1)
		ev := Events{
			Data:   func(_ int, in []byte) ([]byte, Action) { return pattern(16<<20, 1), Detach },
			Closed: func(_ int, err error) Action { closed <- err; return None },
		}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		c := r.dial(0)
		c.send("x")
		c.expect(string(pattern(16<<20, 1)))
		c.eof()
		c.Close()
		if err := recv(t, closed, "Closed"); err != nil {
			t.Errorf("Closed with %v", err)
		}
		ev.Detached = func(int, io.ReadWriteCloser) Action { t.Error("Detached"); return None }
		r = start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		c = r.dial(0)
		c.send("x")
		c.r.Peek(1) //nolint:errcheck // it is being sent, and nobody reads the rest
		must(t, c.Conn.(*net.TCPConn).SetLinger(0))
		c.Close()
		if err := recv(t, closed, "Closed"); err == nil {
			t.Error("Closed without an error")
		}
	})
}

// Row E15: Prewrite and Postwrite come in pairs around each attempt, and their amounts add up.
func TestE15Writes(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		for _, network := range []string{"tcp", "unix"} {
			const size = 8 << 20
			waiting, sum, remaining, pre := 0, 0, 0, 0
			ids := make(chan int, 1)
			ev := Events{
				Opened: func(id int, _ Addr) ([]byte, Options, Action) { ids <- id; return []byte("hello"), Options{}, None },
				Data: func(_ int, in []byte) ([]byte, Action) {
					if in == nil {
						return []byte("woken"), None
					}
					return pattern(size, 1), None
				},
				Prewrite: func(_, amount int) Action {
					if pre++; amount <= 0 || pre != 1 {
						t.Errorf("Prewrite %d of %d", pre, amount)
					}
					waiting = amount
					return None
				},
				Postwrite: func(_, amount, rest int) Action {
					if pre--; pre != 0 || amount+rest < waiting {
						t.Errorf("Postwrite %d, %d after %d", amount, rest, waiting)
					}
					sum += amount
					remaining = rest
					return None
				},
			}
			result := make(chan [2]int, 1)
			ev.Tick = func() (time.Duration, Action) {
				if sum == 5+5+size {
					select {
					case result <- [2]int{sum, remaining}:
					default:
					}
				}
				return time.Millisecond, None
			}
			addr := network + suffix + "://127.0.0.1:0"
			if network == "unix" {
				addr = network + suffix + "://" + filepath.Join(t.TempDir(), "s")
			}
			r := start(t, ev, addr)
			c := r.dial(0)
			c.expect("hello")
			r.wake(recv(t, ids, "Opened"))
			c.expect("woken")
			c.send("x")
			c.expect(string(pattern(size, 1)))
			if got := recv(t, result, "end of writes"); got != [2]int{5 + 5 + size, 0} {
				t.Errorf("%d written, %d left", got[0], got[1])
			}
		}
	})
}

// A defect of evio's: what is at the path of a unix address is not deleted.
func TestUnixPathIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "precious")
	file := filepath.Join(dir, "sub", "file")
	must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	must(t, os.WriteFile(file, []byte("x"), 0o600))
	for _, path := range []string{dir, file} {
		if err := Serve(Events{}, "unix://"+path); err == nil {
			t.Errorf("serves %s", path)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	echo := Events{Data: func(_ int, in []byte) ([]byte, Action) { return in, None }}
	r := start(t, echo, "unix://"+path)
	if err := Serve(Events{}, "unix://"+path); err == nil {
		t.Error("takes a socket over that is in use")
	}
	c := r.dial(0)
	c.send("x")
	c.expect("x")
}

// A peer that does not read is not read either, so that output does not grow without end.
func TestOutputIsBounded(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		var made atomic.Int64
		ev := Events{Data: func(_ int, in []byte) ([]byte, Action) {
			made.Add(int64(len(in)))
			return in, None
		}}
		r := start(t, ev, "tcp"+suffix+"://127.0.0.1:0")
		c := r.dial(0)
		must(t, c.Conn.(*net.TCPConn).SetReadBuffer(64<<10))
		data := string(pattern(32<<20, 1))
		go c.send(data)
		last := int64(-1)
		within(wait, func() bool { // until it makes no more
			now := made.Load()
			same := now == last && now > 0
			last = now
			return same && !within(50*time.Millisecond, func() bool { return made.Load() != now })
		})
		c.expect(data)
		if last > 20<<20 {
			t.Errorf("%d bytes were made for a peer that does not read", last)
		}
	})
}

// The seed's own test of InputStream.
func TestInputStream(t *testing.T) {
	var s InputStream
	if data := s.Begin([]byte("HELLO")); string(data) != "HELLO" {
		t.Fatalf("%q", data)
	}
	s.End([]byte("LO"))
	data := s.Begin([]byte("WLY"))
	if string(data) != "LOWLY" {
		t.Fatalf("%q", data)
	}
	s.End(nil)
	if data = s.Begin([]byte("PLAYER")); string(data) != "PLAYER" {
		t.Fatalf("%q", data)
	}
	data = data[2:]
	s.End(data)
	for range 100 {
		data = s.Begin([]byte("xy"))
		data = data[2:]
		s.End(data)
	}
	if string(data) != "xyxy" {
		t.Fatalf("%q", data)
	}
}

// No allocation of ours per batch of input, with the buffer reused.
func TestE3Allocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ev := Events{
		Opened: func(int, Addr) ([]byte, Options, Action) { return nil, Options{ReuseInputBuffer: true}, None },
		Data:   func(_ int, in []byte) ([]byte, Action) { return in, None },
	}
	r := start(t, ev, "tcp://127.0.0.1:0")
	c := r.dial(0)
	out, in := pattern(1400, 1), make([]byte, 1400)
	allocs := testing.AllocsPerRun(2000, func() {
		if _, err := c.Write(out); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(c.r, in); err != nil {
			t.Error(err)
		}
	})
	if allocs > 0.1 {
		t.Errorf("%v allocations per batch", allocs)
	}
}

// FuzzServe has peers send whatever they like, with a server that acts on it.
func FuzzServe(f *testing.F) {
	f.Add([]byte("hello"), true)
	f.Add([]byte("dxx"), false)
	f.Add([]byte("cyy"), true)
	addrs := make(chan []net.Addr, 1)
	stop := make(chan struct{})
	ended := make(chan error, 1)
	ev := Events{
		Serving: func(_ func(int) bool, a []net.Addr) Action { addrs <- a; return None },
		Data: func(_ int, in []byte) ([]byte, Action) {
			switch {
			case bytes.HasPrefix(in, []byte("d")):
				return in, Detach
			case bytes.HasPrefix(in, []byte("c")):
				return in, Close
			}
			return in, None
		},
		Detached: func(_ int, rwc io.ReadWriteCloser) Action {
			go func() {
				io.Copy(rwc, rwc) //nolint:errcheck // until the peer ends it
				rwc.Close()
			}()
			return None
		},
		Tick: func() (time.Duration, Action) {
			select {
			case <-stop:
				return 0, Shutdown
			default:
				return 20 * time.Millisecond, None
			}
		},
	}
	go func() { ended <- Serve(ev, "tcp://127.0.0.1:0") }()
	addr := recv(f, addrs, "Serving")[0]
	f.Cleanup(func() {
		close(stop)
		must(f, recv(f, ended, "end of Serve"))
	})
	f.Fuzz(func(t *testing.T, data []byte, inTwo bool) {
		c, all := dial(t, addr), data
		go func() {
			defer c.Conn.(*net.TCPConn).CloseWrite() //nolint:errcheck // the reader finds out
			if inTwo {
				c.Write(data[:len(data)/2]) //nolint:errcheck // it may be closed
				data = data[len(data)/2:]
			}
			c.Write(data) //nolint:errcheck // it may be closed
		}()
		got, err := io.ReadAll(c.r)
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() || len(got) > len(all) || !bytes.HasPrefix(all, got) {
			t.Errorf("got %q, %v", got, err)
		}
		c.Close()
	})
}
