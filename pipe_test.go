package arpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// startPipe runs a server on a Pipe until the end of the test.
func startPipe(t testing.TB, opts ...ServerOption) (*testServer, func() (net.Conn, error)) {
	t.Helper()
	ln, dial := Pipe()
	return startServerOn(t, ln, opts...), dial
}

func TestPipe(t *testing.T) {
	s, dial := startPipe(t)
	s.Handler.Handle("/echo", echo)
	s.Handler.Handle("/back", func(c *Context) {
		var r string
		if err := c.Client.CallWith(c, "/mine", c.Body(), &r); err != nil {
			c.Error(err)
			return
		}
		c.Write(r)
	})
	s.Handler.HandleStream("/twice", func(st *Stream) {
		for b, err := range st.All() {
			if err != nil || st.Send(b) != nil || st.Send(b) != nil {
				return
			}
		}
	})
	h := NewHandler()
	h.Handle("/mine", func(c *Context) { c.Write("mine " + string(c.Body())) })
	notes := make(chan string, 1)
	h.Handle("/note", func(c *Context) { notes <- string(c.Body()) })
	c := dialClientBy(t, dial, h)
	for _, n := range []int{0, 1, 64, 4096, 1 << 20} {
		want := strings.Repeat("x", n)
		var r string
		if err := c.Call("/echo", want, &r, patience); err != nil || r != want {
			t.Errorf("echo of %d bytes: %d bytes, %v", n, len(r), err)
		}
	}
	var r string
	if err := c.Call("/back", "text", &r, patience); err != nil || r != "mine text" {
		t.Errorf("%q, %v", r, err)
	}
	s.Broadcast("/note", "to all")
	if n := recv(t, notes, "notification"); n != "to all" {
		t.Errorf("%q", n)
	}
	st, err := c.OpenStream(patient(t), "/twice")
	must(t, err)
	must(t, st.SendAndClose("m"))
	var got []string
	for b, err := range st.All() {
		must(t, err)
		got = append(got, string(b))
	}
	if fmt.Sprint(got) != "[m m]" {
		t.Errorf("%q", got)
	}
	for _, a := range []net.Addr{c.Conn.LocalAddr(), c.Conn.RemoteAddr(), c.Peer().Addr, s.waitClients(t, 1)[0].Conn.RemoteAddr()} {
		if a == nil || a.Network() != "pipe" || a.String() != "pipe" {
			t.Errorf("address %v", a)
		}
	}
	if c.Peer().TLS != nil {
		t.Error("a pipe with TLS")
	}
	// Version 2 is negotiated as over a network.
	if l := c.link.Load(); !l.has(ourFeatures) {
		t.Errorf("features %b", l.feat.Load())
	}
}

func TestPipeClose(t *testing.T) {
	ln, dial := Pipe()
	if a := ln.Addr(); a.Network() != "pipe" || a.String() != "pipe" {
		t.Errorf("address %v", a)
	}
	// Who waits in Accept, and who waits in a dial, is woken by Close.
	for _, side := range []struct {
		name string
		wait func(ln net.Listener, dial func() (net.Conn, error)) (net.Conn, error)
	}{
		{"Accept", func(ln net.Listener, _ func() (net.Conn, error)) (net.Conn, error) { return ln.Accept() }},
		{"dial", func(_ net.Listener, dial func() (net.Conn, error)) (net.Conn, error) { return dial() }},
	} {
		t.Run(side.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ln, dial := Pipe()
				var nc net.Conn
				var err error
				ended := false
				go func() {
					nc, err = side.wait(ln, dial)
					ended = true
				}()
				synctest.Wait()
				if ended {
					t.Fatalf("it did not wait: %v, %v", nc, err)
				}
				must(t, ln.Close())
				synctest.Wait()
				if !ended || nc != nil || !errors.Is(err, net.ErrClosed) {
					t.Errorf("ended %v: %v, %v", ended, nc, err)
				}
			})
		})
	}
	must(t, ln.Close())
	must(t, ln.Close()) // again, without effect
	if nc, err := ln.Accept(); nc != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, %v", nc, err)
	}
	nc, err := dial()
	var op *net.OpError
	if nc != nil || !errors.Is(err, net.ErrClosed) || !errors.As(err, &op) || op.Op != "dial" || op.Net != "pipe" {
		t.Errorf("dial after Close: %v, %v", nc, err)
	}
	if _, err := NewClient(dial, NewHandler()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("NewClient after Close: %v", err)
	}
}

// The listener of a server that has stopped is closed, and a client notices.
func TestPipeServerStops(t *testing.T) {
	ln, dial := Pipe()
	s := NewServer(NewHandler())
	s.Handler.Handle("/echo", echo)
	result := make(chan error, 1)
	go func() { result <- s.Serve(ln) }()
	tried := make(chan error, 100)
	h := NewHandler()
	h.HandleReconnect(func(_ *Client, _ int, err error) { tried <- err })
	c := dialClientBy(t, dial, h, Backoff(time.Millisecond, time.Millisecond))
	must(t, c.Call("/echo", nil, nil, patience))
	must(t, s.Stop())
	if err := recv(t, result, "return from Serve"); !errors.Is(err, ErrServerStopped) {
		t.Errorf("Serve: %v", err)
	}
	if err := recv(t, tried, "attempt to connect again"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("connecting again: %v", err)
	}
	if err := c.Call("/echo", nil, nil, patience); !errors.Is(err, ErrClientReconnecting) {
		t.Errorf("a call: %v", err)
	}
}

func TestPipeManyConnections(t *testing.T) {
	const conns = 200
	s, dial := startPipe(t)
	s.Handler.Handle("/echo", echo)
	var wg sync.WaitGroup
	clients := make([]*Client, conns)
	for i := range clients {
		wg.Go(func() {
			c, err := NewClient(dial, NewHandler())
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			clients[i] = c
			for k := range 10 {
				want := fmt.Sprint(i, k)
				var r string
				if err := c.Call("/echo", want, &r, patience); err != nil || r != want {
					t.Errorf("client %d: %q, %v", i, r, err)
				}
			}
		})
	}
	waitGroup(t, &wg, "calls")
	s.waitClients(t, conns)
	for _, c := range clients {
		if c != nil {
			wg.Go(c.Stop)
		}
	}
	waitGroup(t, &wg, "end of the clients")
	s.waitClients(t, 0)
}

// bubbled are tests in a bubble of testing/synctest, for exact times, each a process of its own: what the package shares between
// connections must not cross the border of a bubble.
var bubbled = []struct {
	name string
	run  func(t *testing.T)
}{
	{"deadline", func(t *testing.T) { synctest.Test(t, bubbleDeadlines) }},
	{"idle", func(t *testing.T) { synctest.Test(t, bubbleIdle) }},
	{"keepalive", func(t *testing.T) { synctest.Test(t, bubbleKeepalive) }},
}

// bubblePatience bounds a bubble whose clock has stopped.
const bubblePatience = 20 * time.Second

const bubbleEnv = "ARPC_TEST_BUBBLE"

func TestPipeInBubble(t *testing.T) {
	for _, b := range bubbled {
		if os.Getenv(bubbleEnv) != "" {
			if os.Getenv(bubbleEnv) == b.name {
				b.run(t)
			}
			continue
		}
		t.Run(b.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestPipeInBubble$", "-test.timeout="+bubblePatience.String())
			cmd.Env = append(os.Environ(), bubbleEnv+"="+b.name)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out[:min(len(out), 6000)])
			}
		})
	}
}

// bubbleServer is a server and a client in a bubble; end ends both.
func bubbleServer(t *testing.T, h Handler, limits Limits) (s *Server, c *Client, end func()) {
	ln, dial := Pipe()
	s = NewServer(h, limits)
	result := make(chan error, 1)
	go func() { result <- s.Serve(ln) }()
	c, err := NewClient(dial, NewHandler(), limits)
	must(t, err)
	return s, c, func() {
		c.Stop()
		must(t, s.Stop())
		if err := <-result; !errors.Is(err, ErrServerStopped) {
			t.Errorf("Serve: %v", err)
		}
	}
}

// bubbleDeadlines has calls of minutes that end to the nanosecond, at no cost.
func bubbleDeadlines(t *testing.T) {
	h := NewHandler()
	type seen struct {
		left  time.Duration
		after time.Duration
		err   error
	}
	handled := make(chan seen, 1)
	h.Handle("/wait", func(c *Context) {
		start := time.Now()
		deadline, ok := c.Deadline()
		if !ok {
			t.Error("no deadline")
		}
		left := time.Until(deadline)
		<-c.Done()
		handled <- seen{left, time.Since(start), c.Err()}
	}, true)
	h.Handle("/echo", echo)
	_, c, end := bubbleServer(t, h, Limits{})
	defer time.Sleep(time.Minute) // for what ends in the background; "end at once" is about that
	defer end()
	for _, d := range []time.Duration{time.Millisecond, time.Second, 10 * time.Minute} {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		start := time.Now()
		err := c.CallWith(ctx, "/wait", nil, nil)
		if took := time.Since(start); took != d || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the call of %v took %v and ended with %v", d, took, err)
		}
		cancel()
		if s := <-handled; s.left != d || s.after != d || s.err != context.DeadlineExceeded {
			t.Errorf("the handler of a call of %v: %+v", d, s)
		}
	}
	start := time.Now()
	if err := c.Call("/wait", nil, nil, time.Hour); !errors.Is(err, ErrTimeout) || time.Since(start) != time.Hour {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	if s := <-handled; s.left != time.Hour {
		t.Errorf("%+v", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(90*time.Second, cancel)
	start = time.Now()
	if err := c.CallWith(ctx, "/wait", nil, nil); time.Since(start) != time.Minute {
		t.Errorf("a call without a deadline ended after %v: %v", time.Since(start), err)
	}
	<-handled
	var r string
	if err := c.Call("/echo", "still there", &r, time.Second); err != nil || r != "still there" {
		t.Errorf("%q, %v", r, err)
	}
}

// bubbleIdle leaves a connection without a message for hours.
func bubbleIdle(t *testing.T) {
	h := NewHandler()
	h.Handle("/echo", echo)
	lost := 0
	h.HandleDisconnected(func(*Client) { lost++ })
	_, c, end := bubbleServer(t, h, Limits{})
	must(t, c.Call("/echo", nil, nil, time.Second))
	time.Sleep(2 * time.Hour)
	must(t, c.Call("/echo", nil, nil, time.Second))
	if lost != 0 {
		t.Errorf("the connection was lost %d times", lost)
	}
	end()
	time.Sleep(time.Minute) // see bubbleDeadlines
	if lost != 1 {
		t.Errorf("the connection was lost %d times", lost)
	}
}
