package action

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gobwas "github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/arpc-go/arpc"
)

// Row Z1: connections are spread over several event loops, and 3,000 that come and ask at once are all answered. Upstream has
// lost events.
func TestZ01LoopsAnd3000ConnectionsAtOnce(t *testing.T) {
	const loops, conns, at = 4, 3000, 64
	s := serve(t, vectors, Loops(loops), StdConns(0))
	peers := make([]net.Conn, conns)
	var group sync.WaitGroup
	each := func(f func(i int) error) {
		t.Helper()
		errs := make(chan error, at)
		for w := range at {
			group.Go(func() {
				for i := w; i < conns; i += at {
					if err := f(i); err != nil {
						errs <- fmt.Errorf("connection %d: %w", i, err)
						return
					}
				}
			})
		}
		group.Wait()
		select {
		case err := <-errs:
			t.Fatal(err)
		default:
		}
	}
	defer func() {
		for _, p := range peers {
			if p != nil {
				p.Close()
			}
		}
	}()
	each(func(i int) (err error) {
		if peers[i], err = net.DialTimeout("tcp", s.tcp, patience); err == nil {
			err = peers[i].SetDeadline(time.Now().Add(2 * patience))
		}
		return err
	})
	each(func(i int) error {
		_, err := peers[i].Write(framed(packet(1, int16(i), fmt.Sprintf(`{"i":%d}`, i))))
		return err
	})
	each(func(i int) error {
		b, err := readFrame(peers[i])
		if want := packet(1, int16(i), fmt.Sprintf(`{"i":%d}`, i)); err == nil && string(b) != string(want) {
			err = fmt.Errorf("got %q", b)
		}
		return err
	})
	if runtime.GOOS != "linux" {
		return
	}
	var spread [loops]int
	s.Each(func(c *Connection) bool { spread[c.cn.Loop()]++; return true })
	if slices.Min(spread[:]) < conns/loops/2 {
		t.Errorf("connections of the loops: %v", spread)
	}
}

// Row Z3: connections are served by an event loop where there is one, or by a goroutine each. That the package builds for Linux,
// macOS, FreeBSD and Windows is checked by make lint.
func TestZ03Adapters(t *testing.T) {
	for name, want := range map[string]bool{"poll": runtime.GOOS == "linux", "std": false} {
		opened := make(chan *Connection, 1)
		s := serve(t, vectors, map[string]Option{"poll": StdConns(0), "std": StdConns(-1)}[name], OnOpen(func(c *Connection) { opened <- c }))
		for _, dial := range []func() peer{func() peer { return dialPeer(t, s.tcp) }, func() peer { return dialWSPeer(t, s.ws) }} {
			p := dial()
			if c := recv(t, opened, "connection"); c.cn.Polled() != want {
				t.Errorf("%s: polled %v", name, c.cn.Polled())
			}
			p.send(packet(1, 1, "{}"))
			wantPacket(t, p.recv(), 1, 1, "{}")
		}
	}
}

// Row Z8: Run answers what it has received, refuses listeners, and returns.
func TestZ08GracefulStop(t *testing.T) {
	adapters(t, func(t *testing.T, adapter Option) {
		entered, release := make(chan struct{}, 8), make(chan struct{})
		var mu sync.Mutex
		var events []Event
		s := serve(t, func(n *Instance) {
			block := func(*Context) (any, error) { entered <- struct{}{}; <-release; return "done", nil }
			n.Router().Route(1, block).Route(2, block, Unordered())
			for e := BeforeStart; e <= AfterShutdown; e++ {
				n.On(e, func() { mu.Lock(); events = append(events, e); mu.Unlock() })
			}
			n.On(BeforeShutdown, func() { entered <- struct{}{} })
		}, adapter)
		busy := []peer{dialPeer(t, s.tcp), dialPeer(t, s.tcp), dialWSPeer(t, s.ws)}
		busy[0].send(packet(1, 1, ""), packet(1, 2, "")) // the second one is in line
		busy[1].send(packet(2, 1, ""))
		busy[2].send(packet(1, 1, ""))
		for range busy {
			recv(t, entered, "handler")
		}
		idle := dialPeer(t, s.tcp)
		stopped := make(chan error, 1)
		go func() { stopped <- s.stop() }()
		recv(t, entered, "shutdown")
		idle.end() // it has nothing to wait for
		idle.Close()
		if nc, err := net.Dial("tcp", s.tcp); err == nil {
			nc.Close()
			t.Error("the port still accepts")
		}
		close(release)
		wantPacket(t, busy[0].recv(), 1, 1, `"done"`)
		wantPacket(t, busy[0].recv(), 1, 2, `"done"`)
		wantPacket(t, busy[1].recv(), 2, 1, `"done"`)
		wantPacket(t, busy[2].recv(), 1, 1, `"done"`)
		for _, p := range busy {
			p.end()
			p.Close()
		}
		must(t, recv(t, stopped, "return from Run"))
		if want := []Event{BeforeStart, AfterStart, BeforeShutdown, AfterShutdown}; !slices.Equal(events, want) {
			t.Errorf("events %v", events)
		}
		if err := s.Run(nil); err != errStarted {
			t.Errorf("a second Run: %v", err)
		}
		if _, err := s.ListenTCP("127.0.0.1:0"); err != errStarted {
			t.Errorf("ListenTCP: %v", err)
		}
	})
}

func TestRunFails(t *testing.T) {
	if err := New().Run(nil); err != ErrNoListener {
		t.Errorf("without a listener: %v", err)
	}
	first := New()
	addr, err := first.ListenTCP("127.0.0.1:0")
	must(t, err)
	for _, bad := range []string{addr.String(), "tulip://x", "no port", "udp://127.0.0.1:0"} {
		n := New()
		if _, err := n.ListenWebsocket("127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		_, err := n.ListenTCP(bad)
		wantCode(t, err, arpc.CodeUnavailable)
		if again := n.Run(nil); again == nil || again.Error() != err.Error() {
			t.Errorf("%s: Run returned %v, not %v", bad, again, err)
		}
	}
	stop := make(chan struct{})
	close(stop)
	must(t, first.Run(stop))
}

// A handler that does not end is cut.
func TestShutdownLimit(t *testing.T) {
	entered, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s := serve(t, func(n *Instance) {
		n.Router().Route(1, func(ctx *Context) (any, error) {
			close(entered)
			<-ctx.Done() // when the connection is cut
			<-release
			defer close(ended)
			return nil, ctx.Err()
		})
	}, Limits{Shutdown: 50 * time.Millisecond})
	p := dialPeer(t, s.tcp)
	p.send(packet(1, 1, ""))
	recv(t, entered, "handler")
	wantCode(t, s.stop(), arpc.CodeDeadlineExceeded)
	close(release)
	recv(t, ended, "end of the handler")
	s.stop = func() error { return nil } // for the cleanup
}

// Hooks, properties and pushes of a connection.
func TestConnection(t *testing.T) {
	opened, closed, hooked := make(chan *Connection, 1), make(chan string, 1), make(chan string, 2)
	transports(t, func(n *Instance) {
		n.Router().Route(1, func(ctx *Context) (any, error) {
			v, _ := ctx.Conn().Property().Load("greeting")
			return v, nil
		}, Unordered()).Route(2, func(ctx *Context) (any, error) {
			ctx.Conn().Close()
			return nil, nil
		}).Route(3, func(ctx *Context) (any, error) {
			if _, ok := ctx.Value(1).(int); ok || ctx.Err() != nil {
				return nil, errors.New("a context with something in it")
			}
			if _, ok := ctx.Deadline(); ok {
				return nil, errors.New("a context with a deadline")
			}
			child, cancel := context.WithCancel(ctx)
			go func() {
				defer cancel()
				<-child.Done()
				hooked <- fmt.Sprint(ctx.Err())
			}()
			return nil, nil
		})
	}, func(t *testing.T, s *server, dial func() peer) {
		p := dial()
		c := recv(t, opened, "call of OnOpen")
		p.send(packet(1, 1, ""))
		wantPacket(t, p.recv(), 7, 0, `"hello"`)
		wantPacket(t, p.recv(), 1, 1, `"hi"`)
		if id, again := c.ID(), c.ID(); id == "" || id != again || c.IP() != "127.0.0.1" {
			t.Errorf("ID %q and %q, IP %q", id, again, c.IP())
		}
		// The same packet for many: encoded once.
		b, err := s.Pack(101, 1, map[string]int{"n": 1})
		must(t, err)
		must(t, c.Push(b))
		if n, err := c.Write(b); n != len(b) || err != nil {
			t.Errorf("Write: %d, %v", n, err)
		}
		must(t, c.Send(102, -1, 5))
		wantPacket(t, p.recv(), 101, 1, `{"n":1}`)
		wantPacket(t, p.recv(), 101, 1, `{"n":1}`)
		wantPacket(t, p.recv(), 102, -1, `5`)
		wantCode(t, c.Push([]byte{1, 2, 3}), arpc.CodeInvalidArgument)
		wantCode(t, c.Push(make([]byte, 64<<10)), arpc.CodeInvalidArgument)
		wantCode(t, c.Send(1, 1, func() {}), arpc.CodeInternal)
		c.AddBeforeCloseHook(func(c *Connection) {
			hooked <- "hook"
			c.Send(103, 0, "bye") //nolint:errcheck // the test sees whether it arrives
		})
		p.send(packet(3, 1, ""))
		wantPacket(t, p.recv(), 3, 1, "null")
		p.send(packet(2, 2, ""))
		wantPacket(t, p.recv(), 103, 0, `"bye"`)
		p.end()
		p.Close()
		got := []string{recv(t, hooked, "hook"), recv(t, hooked, "end of the context")}
		slices.Sort(got)
		if strings.Join(got, ", ") != "context canceled, hook" {
			t.Errorf("%v", got)
		}
		if id := recv(t, closed, "call of OnClose"); id != c.ID() {
			t.Errorf("closed %s", id)
		}
		c.AddBeforeCloseHook(func(*Connection) { hooked <- "late" })
		if h := recv(t, hooked, "late hook"); h != "late" {
			t.Error(h)
		}
		c.Close()
		wantCode(t, c.Push(b), arpc.CodeUnavailable)
		select {
		case <-c.context().Done():
		default:
			t.Error("the context of a closed connection is not done")
		}
	}, OnOpen(func(c *Connection) {
		c.Property().Store("greeting", "hi")
		c.Send(7, 0, "hello") //nolint:errcheck // the test sees whether it arrives
		opened <- c
	}), OnClose(func(c *Connection) { closed <- c.ID() }))
}

// Pushes to a peer that does not read are refused, and the process keeps no more of them than that.
func TestPeerThatDoesNotRead(t *testing.T) {
	opened := make(chan *Connection, 1)
	s := serve(t, vectors, OnOpen(func(c *Connection) { opened <- c }))
	dialPeer(t, s.tcp)
	c := recv(t, opened, "connection")
	b, err := s.Pack(1, 1, strings.Repeat("x", 60_000))
	must(t, err)
	var n int
	for n = 0; err == nil && n < 10_000; n++ {
		err = c.Push(b)
	}
	wantCode(t, err, arpc.CodeResourceExhausted)
	other := dialPeer(t, s.tcp)
	recv(t, opened, "connection")
	other.send(packet(1, 1, "{}"))
	wantPacket(t, other.recv(), 1, 1, "{}")
}

func TestEach(t *testing.T) {
	New().Each(func(*Connection) bool { t.Error("a connection of nobody"); return true })
	opened := make(chan *Connection, 3)
	s := serve(t, nil, OnOpen(func(c *Connection) { opened <- c }))
	ids := map[string]bool{}
	for range 3 {
		dialPeer(t, s.tcp)
		ids[recv(t, opened, "connection").ID()] = true
	}
	s.Each(func(c *Connection) bool { delete(ids, c.ID()); return true })
	n := 0
	s.Each(func(*Connection) bool { n++; return false })
	if len(ids) != 0 || n != 1 {
		t.Errorf("%d not seen, %d seen by who wanted one", len(ids), n)
	}
}

// Limits of connections are kept.
func TestConnectionLimits(t *testing.T) {
	s := serve(t, vectors, Limits{Connections: 2, Idle: 200 * time.Millisecond})
	first, second := dialPeer(t, s.tcp), dialPeer(t, s.tcp)
	for _, p := range []peer{first, second} {
		p.send(packet(1, 1, "{}"))
		wantPacket(t, p.recv(), 1, 1, "{}")
	}
	if nc, err := net.DialTimeout("tcp", s.tcp, patience); err == nil { // one too many: it may even be reset before
		defer nc.Close()
		must(t, nc.SetDeadline(time.Now().Add(patience)))
		(&tcpPeer{t, nc}).end()
	}
	first.end() // silent for too long
	second.end()
}

// A peer over WebSocket is told why its connection ends.
func TestCloseCodes(t *testing.T) {
	opened := make(chan *Connection, 1)
	s := serve(t, vectors, Limits{Frame: 1000}, OnOpen(func(c *Connection) { opened <- c }))
	for _, end := range []struct {
		code gobwas.StatusCode
		by   func(*wsPeer, *Connection)
	}{
		{gobwas.StatusNormalClosure, func(_ *wsPeer, c *Connection) { c.Close() }},
		{gobwas.StatusMessageTooBig, func(p *wsPeer, _ *Connection) { p.send(make([]byte, 2000)) }},
		{gobwas.StatusPolicyViolation, func(p *wsPeer, _ *Connection) { p.send([]byte{1}) }},
		{gobwas.StatusGoingAway, func(*wsPeer, *Connection) { go s.stop() }},
	} {
		p := dialWSPeer(t, s.ws)
		end.by(p, recv(t, opened, "connection"))
		_, _, err := wsutil.ReadServerData(p)
		var closed wsutil.ClosedError
		if !errors.As(err, &closed) || closed.Code != end.code {
			t.Errorf("%v, not code %d", err, end.code)
		}
		p.Close()
	}
}
