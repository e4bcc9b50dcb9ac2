package session

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gobwas "github.com/gobwas/ws"
)

// Q1: the same listener and codec work on all transports.
func TestQ1SameCodeOnThreeTransports(t *testing.T) {
	onEach(t, all, func(t *testing.T, tr transport) {
		codec, served := &lengthCodec{}, newEvents(t)
		served.onMessage = echo(t)
		server := tr.serve(t, with(codec, served))
		events, got := newEvents(t), make(chan string, 100)
		events.onMessage = func(_ Session, pkg any) {
			if u, ok := pkg.(UDPContext); ok {
				pkg = u.Pkg
			}
			got <- pkg.(string)
		}
		client := tr.connect(t, server.Addr().String(), with(codec, events))
		s := recv(t, events.opened, "OnOpen")
		for i := range 50 {
			text := strings.Repeat("x", i*i*5) + fmt.Sprint(i)
			total, sent, err := s.WritePkg(text, 0)
			if err != nil || total != 4+len(text) || sent != total {
				t.Fatalf("wrote %d of %d: %v", sent, total, err)
			}
			if answer := recv(t, got, "echo"); answer != text {
				t.Fatalf("%d bytes came back as %d", len(text), len(answer))
			}
		}
		if st := s.Stats(); st.WritePkgs != 50 || st.ReadPkgs != 50 || st.ReadBytes != st.WriteBytes || st.Dropped != 0 {
			t.Errorf("%+v", st)
		}
		if s.RemoteAddr() != server.Addr().String() || s.EndPoint() != client || s.ID() == 0 || !strings.Contains(s.Stat(), s.LocalAddr()) {
			t.Errorf("%s, remote %s, server %v", s.Stat(), s.RemoteAddr(), server.Addr())
		}
		s.Close()
		recv(t, events.closed, "OnClose")
		if _, _, err := s.WritePkg("x", 0); err != ErrSessionClosed {
			t.Errorf("WritePkg after Close: %v", err)
		}
	})
}

// Q2: each callback once, in order; OnError only for errors; none after a refusal.
func TestQ2EventsInOrder(t *testing.T) {
	onEach(t, conns, func(t *testing.T, tr transport) {
		served := newEvents(t)
		fail := errors.New("test: refused")
		var refuse atomic.Int32
		served.onOpen = func(Session) error {
			if refuse.Load() == 1 {
				return fail
			}
			return nil
		}
		server := tr.serve(t, func(s Session) error {
			if refuse.Load() == 2 {
				return fail
			}
			return with(&lengthCodec{}, served)(s)
		})
		events := newEvents(t)
		client := tr.connect(t, server.Addr().String(), with(&lengthCodec{}, events))
		s, peer := recv(t, events.opened, "OnOpen"), recv(t, served.opened, "OnOpen at the server")
		for range 3 {
			_, _, err := s.WritePkg("x", 0)
			must(t, err)
		}
		s.Close() // what was written still arrives
		if recv(t, served.closed, "OnClose at the server") != peer || recv(t, events.closed, "OnClose") != s {
			t.Error("OnClose of another session")
		}
		if got := served.calls(peer); !slices.Equal(got, []string{"open", "message", "message", "message", "close"}) {
			t.Errorf("at the server: %v", got)
		}
		if got := events.calls(s); !slices.Equal(got, []string{"open", "close"}) {
			t.Errorf("at the client: %v", got)
		}
		s.Close()
		for _, how := range []int32{1, 2} { // the client connects again by itself, and is refused
			refuse.Store(how)
			again := recv(t, events.opened, "OnOpen after a loss")
			if how == 2 {
				again = recv(t, events.opened, "OnOpen after a loss")
			}
			if recv(t, events.closed, "OnClose of what the server refuses") == nil {
				t.Error(again)
			}
		}
		client.Close()
		server.Close()
		served.mu.Lock()
		defer served.mu.Unlock()
		for s, calls := range served.log {
			if n := len(calls); calls[n-1] != "close" && !slices.Equal(calls, []string{"open"}) {
				t.Errorf("%v: %v", s.ID(), calls)
			}
		}
	})
}

// Q2: what breaks a session is told once, before its end.
func TestQ2ErrorThenClose(t *testing.T) {
	onEach(t, streams, func(t *testing.T, tr transport) {
		for name, tt := range map[string]struct {
			send string
			want error
		}{
			"codec":  {"\x00\x00\x0b\xad", errCodec},
			"length": {"\x00\x01\x00\x00", ErrMsgTooLong},
			"panic":  {"\x00\x00\x00\x01p", errPanic},
		} {
			t.Run(name, func(t *testing.T) {
				served := newEvents(t)
				served.onMessage = func(Session, any) { panic("test") }
				server := tr.serve(t, with(&lengthCodec{}, served))
				nc, err := net.Dial("tcp", server.Addr().String())
				must(t, err)
				defer nc.Close()
				nc.Write([]byte(tt.send))
				if n, err := io.Copy(io.Discard, nc); n != 0 || err != nil {
					t.Errorf("the peer gets %d bytes and %v", n, err)
				}
				nc.Close()
				s := recv(t, served.closed, "OnClose")
				if err := recv(t, served.failed, "OnError"); !errors.Is(err, tt.want) {
					t.Errorf("OnError %v, want %v", err, tt.want)
				}
				calls := slices.DeleteFunc(served.calls(s), func(c string) bool { return c == "message" })
				if !slices.Equal(calls, []string{"open", "error", "close"}) {
					t.Errorf("%v", calls)
				}
			})
		}
	})
}

// scriptCodec returns what it is told to, and notes what it was given.
type scriptCodec struct {
	read  func(p []byte) (any, int, error)
	given chan string
}

func (c *scriptCodec) Read(_ Session, p []byte) (any, int, error) {
	c.given <- string(p)
	return c.read(p)
}
func (c *scriptCodec) Write(Session, any) ([]byte, error) { return nil, errCodec }

// Q3: the five cases of Reader.Read. A package is "n" digits, then that many bytes: 3abc.
func TestQ3FiveCases(t *testing.T) {
	onEach(t, streams, func(t *testing.T, tr transport) {
		codec := &scriptCodec{given: make(chan string, 100), read: func(p []byte) (any, int, error) {
			if p[0] == '#' { // a header of two bytes: more is needed to say anything
				if len(p) < 2 {
					return nil, 0, nil
				}
				return "#", 2, nil
			}
			n := int(p[0] - '0')
			switch {
			case n < 0 || n > 9:
				return nil, 0, errCodec
			case len(p) < 1+n:
				return nil, 1 + n, nil
			}
			return string(p[1 : 1+n]), 1 + n, nil
		}}
		served, got := newEvents(t), make(chan string, 100)
		served.onMessage = func(_ Session, pkg any) { got <- pkg.(string) }
		server := tr.serve(t, with(codec, served))
		nc, err := net.Dial("tcp", server.Addr().String())
		must(t, err)
		defer nc.Close()
		expect := func(send string, given ...string) {
			t.Helper()
			nc.Write([]byte(send))
			for _, want := range given {
				if g := recv(t, codec.given, "call of Read"); g != want {
					t.Fatalf("Read was given %q, want %q", g, want)
				}
			}
		}
		message := func(want string) {
			t.Helper()
			if g := recv(t, got, "package"); g != want {
				t.Fatalf("package %q, want %q", g, want)
			}
		}
		expect("#", "#")                 // case 2: nothing is known
		expect("!", "#!")                // case 4: a package
		message("#")                     //
		expect("3a", "3a")               // case 3: the length is known
		expect("b")                      // not asked again before it is all there
		expect("c2xy", "3abc2xy", "2xy") // case 5: several, each read once
		message("abc")
		message("xy")
		expect("x", "x") // case 1
		if n, err := io.Copy(io.Discard, nc); n != 0 || err != nil {
			t.Errorf("the peer gets %d bytes and %v", n, err)
		}
		nc.Close()
		if err := recv(t, served.failed, "OnError"); err != errCodec {
			t.Errorf("OnError %v", err)
		}
		if len(codec.given) != 0 {
			t.Errorf("Read was called with %q", <-codec.given)
		}
	})
}

// Q3: any cut of a stream gives the same packages, each read once.
func TestQ3Fragments(t *testing.T) {
	onEach(t, streams, func(t *testing.T, tr transport) {
		codec, served, got := &lengthCodec{}, newEvents(t), make(chan string, 100)
		served.onMessage = func(_ Session, pkg any) { got <- pkg.(string) }
		server := tr.serve(t, with(codec, served))
		for _, cut := range []int{1, 2, 3, 5, 4096, 1 << 20} {
			nc, err := net.Dial("tcp", server.Addr().String())
			must(t, err)
			nc.(*net.TCPConn).SetNoDelay(true)
			texts := []string{"", "a", strings.Repeat("b", 300), strings.Repeat("c", 700)}
			if cut > 1000 {
				texts = append(texts, strings.Repeat("d", 60000))
			}
			var stream []byte
			for _, text := range texts {
				stream = append(stream, encode(text)...)
			}
			for p := range slices.Chunk(stream, cut) {
				_, err := nc.Write(p)
				must(t, err)
			}
			for _, want := range texts {
				if g := recv(t, got, "package"); g != want {
					t.Fatalf("cut %d: a package of %d bytes, want %d", cut, len(g), len(want))
				}
			}
			if n := codec.reads.Swap(0); n != int64(len(texts)) {
				t.Errorf("cut %d: %d packages were made of %d", cut, n, len(texts))
			}
			nc.Close()
			recv(t, served.closed, "OnClose")
		}
	})
}

// Q4: the defaults of seeds 3e.5: OnCron finds a silent session and closes it, no sooner than at its limit and no later than at the
// first call after it.
func TestQ4HeartbeatFindsIdleSessions(t *testing.T) {
	onEach(t, []transport{tcpPoll, tcpStd, wsPoll}, func(t *testing.T, tr transport) {
		const period, limit = 50, 250 * time.Millisecond
		served := newEvents(t)
		idle := make(chan time.Duration, 1000)
		served.onCron = func(s Session) {
			silent := time.Since(s.GetActive())
			idle <- silent
			if silent > limit {
				s.Close()
			}
		}
		served.onMessage = func(s Session, _ any) { s.UpdateActive() }
		server := tr.serve(t, with(&lengthCodec{}, served, func(s Session) { s.SetCronPeriod(period) }))
		start := time.Now()
		nc := dialRaw(t, tr, server.Addr().String())
		defer nc.Close()
		if tr.url == "" {
			io.Copy(io.Discard, nc) // ends with the session
		} else {
			for readFrame(t, nc).Header.OpCode != gobwas.OpClose {
			}
		}
		nc.Close()
		s := recv(t, served.closed, "end of an idle session")
		if d := time.Since(start); d < limit {
			t.Errorf("closed after %v", d)
		}
		close(idle)
		var last, before time.Duration
		n := 0
		for d := range idle {
			before, last = last, d
			n++
		}
		if last <= limit || before > limit || n < 1 {
			t.Errorf("closed when idle for %v, after %d calls; at the one before for %v", last, n, before)
		}
		if calls := served.calls(s); calls[len(calls)-1] != "close" || slices.Contains(calls, "error") {
			t.Errorf("%v", calls)
		}
	})
}

// Q4: a session that is used, or whose active time is set, is not idle; the period can be changed.
func TestQ4ActiveSessionsStay(t *testing.T) {
	served, ticks := newEvents(t), make(chan Session, 1000)
	served.onCron = func(s Session) { ticks <- s }
	server := tcpPoll.serve(t, with(&lengthCodec{}, served, func(s Session) { s.SetCronPeriod(3600_000) }))
	nc := dialRaw(t, tcpPoll, server.Addr().String())
	defer nc.Close()
	s := recv(t, served.opened, "OnOpen")
	before := s.GetActive()
	s.SetCronPeriod(1)
	recv(t, ticks, "OnCron")
	if s.GetActive() != before {
		t.Error("the active time of a silent session has changed")
	}
	s.UpdateActive()
	after := s.GetActive()
	if !after.After(before) {
		t.Error("UpdateActive has not changed it")
	}
	nc.Write([]byte{0})
	for recv(t, ticks, "OnCron"); !s.GetActive().After(after); {
		recv(t, ticks, "OnCron")
	}
}

// dialRaw is a peer that does nothing by itself.
func dialRaw(t testing.TB, tr transport, addr string) net.Conn {
	t.Helper()
	if tr.url != "" {
		return dialWS(t, tr.address(addr))
	}
	nc, err := net.Dial("tcp", addr)
	must(t, err)
	return nc
}

// Q6: a slow handler of one session delays no other, with the task pool nor without.
func TestQ6SlowHandlersDelayNobody(t *testing.T) {
	for _, pool := range []*TaskPool{nil, NewTaskPool(8)} {
		onEach(t, append(streams, wsPoll), func(t *testing.T, tr transport) {
			served := newEvents(t)
			release, slow := make(chan struct{}), make(chan struct{}, 10)
			served.onMessage = func(s Session, pkg any) {
				if pkg == "slow" {
					slow <- struct{}{}
					<-release
				}
				s.WritePkg(pkg, 0)
			}
			server := tr.serve(t, with(&lengthCodec{}, served), WithServerTaskPool(pool))
			events, got := newEvents(t), make(chan string, 10)
			events.onMessage = func(_ Session, pkg any) { got <- pkg.(string) }
			tr.connect(t, server.Addr().String(), with(&lengthCodec{}, events), WithConnectionNumber(3))
			a, b := recv(t, events.opened, "OnOpen"), recv(t, events.opened, "OnOpen")
			a.WritePkg("slow", 0)
			recv(t, slow, "slow handler")
			b.WritePkg("quick", 0)
			if g := recv(t, got, "answer beside a slow handler"); g != "quick" {
				t.Error(g)
			}
			if pool != nil { // and not even one of the same session
				a.WritePkg("quick", 0)
				recv(t, got, "answer of a session with a slow handler")
			}
			close(release)
			if g := recv(t, got, "answer of the slow handler"); g != "slow" {
				t.Error(g)
			}
		})
	}
}

// Q6: a pool that is smaller than what comes loses nothing, and runs no more than it may.
func TestQ6PoolLosesNothing(t *testing.T) {
	onEach(t, streams, func(t *testing.T, tr transport) {
		const n, workers = 2000, 4
		served, got := newEvents(t), make(chan string, n)
		var running atomic.Int32
		served.onMessage = func(_ Session, pkg any) {
			if running.Add(1) > workers {
				t.Error("more handlers than the pool may run")
			}
			got <- pkg.(string)
			running.Add(-1)
		}
		server := tr.serve(t, with(&lengthCodec{}, served), WithServerTaskPool(NewTaskPool(workers)))
		events := newEvents(t)
		client := tr.connect(t, server.Addr().String(), with(&lengthCodec{}, events))
		s := recv(t, events.opened, "OnOpen")
		for i := range n {
			_, _, err := s.WritePkg(fmt.Sprint(i), 0)
			must(t, err)
		}
		client.Close() // the rest is still handled
		recv(t, served.closed, "OnClose")
		if len(got) != n {
			t.Fatalf("%d of %d packages, when the session is over", len(got), n)
		}
		seen := map[string]bool{}
		for range n {
			seen[<-got] = true
		}
		if len(seen) != n {
			t.Errorf("%d of %d packages", len(seen), n)
		}
	})
}
