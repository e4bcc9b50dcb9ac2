package arpc

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// GOAWAY by its bytes: a drain that is a server's Shutdown, and farewells.
const (
	drainHex = "1d000000" + "000a0000" + "0000000000000000" + "0e00" + "17000000" +
		"73657276657220697320736875747469" + "6e6720646f776e" // "server is shutting down"
	farewellStoppedHex = "14000000" + "000a0100" + "0000000000000000" + "0e00" + "0e000000" +
		"7365727665722073746f70706564" // "server stopped"
)

// goAwayBytes builds GOAWAY.
func goAwayBytes(final bool, text string) []byte {
	flag := byte(0)
	if final {
		flag = flagError
	}
	return frameOf(cmdGoAway, flag, 0, "", string(appendError(nil, &Error{Code: CodeUnavailable, Message: text}, nil)))
}

// wantLost checks an error that names why a connection is unusable.
func wantLost(t *testing.T, what string, err error, texts ...string) {
	t.Helper()
	if CodeOf(err) != CodeUnavailable {
		t.Errorf("%s: %v: %v", what, CodeOf(err), err)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %q does not say %q", what, err, text)
		}
	}
}

// V2-GO-1, V2-GO-3, V2-RST-4: Shutdown sends drain, refuses what is new, ends what there is, and closes with a farewell.
func TestShutdownOnTheWire(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		entered, release := make(chan struct{}, 10), make(chan struct{})
		var executed atomic.Int64
		s.Handler.Handle("/hold", func(c *Context) {
			entered <- struct{}{}
			<-release
			c.Write("held")
		}, true)
		s.Handler.Handle("/new", func(c *Context) { executed.Add(1); c.Write("x") })
		s.Handler.Handle("/note", func(*Context) { executed.Add(1) })
		s.Handler.HandleStream("/stream", func(*Stream) { executed.Add(1) })
		p := dialGreeted(t, s.addr, fullHello())
		p.send(frameOf(CmdRequest, flagAsync, 7, "/hold", ""))
		recv(t, entered, "request")
		result := make(chan error, 1)
		go func() { result <- s.Shutdown(patient(t)) }()
		if m := p.frame(); hex.EncodeToString(m.Buffer) != drainHex {
			t.Errorf("drain %x", m.Buffer)
		}
		if m := p.frame(); !bytes.Equal(m.Buffer, pingFrame) {
			t.Errorf("instead of a ping: %x", m.Buffer)
		}
		// Requests are refused a moment later; until then they are answered.
		answered := int64(0)
		for seq := uint64(100); ; seq++ {
			p.send(frameOf(CmdRequest, 0, seq, "/new", ""))
			m := p.frame()
			if m.Cmd() != CmdResponse || m.Seq() != seq {
				t.Fatalf("%x", m.Buffer)
			}
			if !m.IsError() {
				answered++
				continue
			}
			var e *Error
			if err := m.Error(); !errors.As(err, &e) || e.Code != CodeUnavailable || e.Message != "server is shutting down" {
				t.Errorf("refused with %v", err)
			}
			break
		}
		p.send(frameOf(CmdNotify, 0, 0, "/note", ""), frameOf(CmdStream|streamLocal, flagOpen, 9, "/stream", "x"))
		if m := p.frame(); m.Cmd() != cmdReset || m.Seq() != 9 || m.IsError() == false || CodeOf(m.Error()) != CodeUnavailable {
			t.Errorf("the stream's refusal: %x", m.Buffer)
		}
		p.send(pongFrame)
		close(release)
		if m := p.frame(); m.Seq() != 7 || string(m.Data()) != "held" {
			t.Errorf("the answer of what was in flight: %x", m.Buffer)
		}
		if rest := hex.EncodeToString(p.end()); rest != farewellStoppedHex {
			t.Errorf("after that %s", rest)
		}
		p.Close()
		must(t, recv(t, result, "return from Shutdown"))
		if n := executed.Load(); n != answered {
			t.Errorf("%d handlers ran, %d requests were answered", n, answered)
		}
	})
}

// V2-GO-6: what a peer has sent before it knew of the drain is answered or refused, whatever the moment; who gets neither did not send it.
func TestDrainLosesNothing(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		for range 5 {
			s := startServer(t, adapter)
			var executed, answered atomic.Int64
			s.Handler.Handle("/", func(c *Context) { executed.Add(1); c.Write(nil) })
			var callers sync.WaitGroup
			begun := make(chan struct{}, 8)
			for range 8 {
				c := dialClient(t, s.addr)
				callers.Go(func() {
					for i := 0; ; i++ {
						if i == 3 {
							begun <- struct{}{}
						}
						err := c.CallWith(patient(t), "/", nil, nil)
						if err == nil {
							answered.Add(1)
							continue
						}
						if !IsRefused(err) {
							t.Errorf("sent, and neither answered nor refused: %v", err)
						}
						return
					}
				})
			}
			for range 8 {
				recv(t, begun, "calls")
			}
			must(t, s.Shutdown(patient(t)))
			callers.Wait()
			if executed.Load() != answered.Load() {
				t.Errorf("%d executed, %d answered", executed.Load(), answered.Load())
			}
		}
	})
}

// awayServers runs a test with a server on each adapter and on a Pipe.
func awayServers(t *testing.T, f func(t *testing.T, s *testServer, dial func() (net.Conn, error))) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		f(t, s, dialer(s.addr))
	})
	t.Run("pipe", func(t *testing.T) {
		s, dial := startPipe(t)
		f(t, s, dial)
	})
}

// V2-GO-2: what is in flight at a drain ends well, also when it needs the other end for that; what is new fails at once.
func TestGoAwayInFlight(t *testing.T) {
	awayServers(t, func(t *testing.T, s *testServer, dial func() (net.Conn, error)) {
		entered, release := make(chan struct{}, 10), make(chan struct{})
		s.Handler.Handle("/hold", func(c *Context) {
			entered <- struct{}{}
			<-release
			var r string
			if err := c.Client.CallWith(c, "/mine", "back", &r); err != nil {
				c.Error(err)
				return
			}
			c.Write(r)
		})
		s.Handler.HandleStream("/stream", func(st *Stream) {
			for b, err := range st.All() {
				if err != nil || st.Send(b) != nil {
					t.Errorf("the stream's handler: %v", err)
					return
				}
			}
		})
		h := NewHandler()
		h.Handle("/mine", func(c *Context) { c.Write("mine " + string(c.Body())) })
		var dials atomic.Int64
		c := dialClientBy(t, func() (net.Conn, error) {
			if dials.Add(1) > 1 {
				return nil, errGate
			}
			return dial()
		}, h, Backoff(time.Hour, time.Hour))
		answer := make(chan string, 1)
		ended := make(chan error, 1)
		go func() {
			var r string
			err := c.Call("/hold", nil, &r, patience)
			answer <- r
			ended <- err
		}()
		recv(t, entered, "request")
		st, err := c.OpenStream(patient(t), "/stream")
		must(t, err)
		exchange := func(what string) {
			t.Helper()
			var r string
			if err := st.Send(what); err != nil {
				t.Errorf("%s: Send: %v", what, err)
			} else if err = st.Recv(&r); err != nil || r != what {
				t.Errorf("%s: %q, %v", what, r, err)
			}
		}
		exchange("before")
		result := make(chan error, 1)
		go func() { result <- s.Shutdown(patient(t)) }()
		eventually(t, "a client that knows", func() bool { return c.CheckState() != nil })
		exchange("after")

		const going, shutting = "the peer is going away", "the peer says: server is shutting down"
		start := time.Now()
		err = c.CheckState()
		wantLost(t, "CheckState", err)
		if !errors.Is(err, ErrClientReconnecting) {
			t.Errorf("CheckState: %v", err)
		}
		for what, f := range map[string]func() error{
			"Call":       func() error { return c.Call("/hold", nil, nil, patience) },
			"CallWith":   func() error { return c.CallWith(context.Background(), "/hold", nil, nil) },
			"Notify":     func() error { return c.Notify("/hold", nil, patience) },
			"OpenStream": func() error { _, err := c.OpenStream(patient(t), "/stream"); return err },
			"CallAsync": func() error {
				ended := make(chan error, 1)
				c.CallAsync("/hold", nil, func(c *Context) { ended <- c.Err() }, patience) //nolint:errcheck // the callback has it
				return recv(t, ended, "callback")
			},
			"NewStream": func() error { return c.NewStream("/stream").Send("x") },
		} {
			err := f()
			wantLost(t, what, err)
			if !errors.Is(err, ErrClientReconnecting) {
				t.Errorf("%s: %v", what, err)
			}
			// The reason is the drain until the attempt to connect again has failed.
			if text := err.Error(); !strings.Contains(text, errGate.Error()) &&
				(!strings.Contains(text, going) || !strings.Contains(text, shutting)) {
				t.Errorf("%s: %q does not say why", what, text)
			}
		}
		if d := time.Since(start); d > patience/2 {
			t.Errorf("it took %v to fail", d)
		}
		exchange("later")
		close(release)
		if err := recv(t, ended, "end of the call"); err != nil {
			t.Errorf("the call in flight ended with %v", err)
		}
		if r := recv(t, answer, "answer"); r != "mine back" {
			t.Errorf("the call in flight was answered with %q", r)
		}
		exchange("last")
		select {
		case err := <-result:
			t.Errorf("Shutdown did not wait for the stream: %v", err)
		default:
		}
		must(t, st.CloseSend())
		var r string
		if err := st.Recv(&r); err != io.EOF {
			t.Errorf("the stream's end: %v", err)
		}
		must(t, recv(t, result, "return from Shutdown"))
	})
}

// The error of a call that is refused by a drain names it, as long as there is nothing newer to say.
func TestGoAwayReason(t *testing.T) {
	s := startServer(t)
	entered, release := make(chan struct{}, 1), make(chan struct{})
	s.Handler.Handle("/hold", func(*Context) { entered <- struct{}{}; <-release })
	g := newGate(s.addr)
	g.gate <- nil
	c := dialClientBy(t, g.dial)
	t.Cleanup(func() { g.gate <- errGate })
	must(t, c.Notify("/hold", nil, patience))
	recv(t, entered, "notification")
	result := make(chan error, 1)
	go func() { result <- s.Shutdown(patient(t)) }()
	<-g.calls
	recv(t, g.calls, "attempt to connect again") // and it hangs
	err := c.Call("/hold", nil, nil, patience)
	const want = "client reconnecting: the peer is going away: the peer says: server is shutting down"
	if CodeOf(err) != CodeUnavailable || err.Error() != want || !errors.Is(err, ErrClientReconnecting) {
		t.Errorf("%v", err)
	}
	var e *Error
	if !errors.As(err, &e) || e.Remote {
		t.Errorf("it is said to be the peer's decision: %+v", e)
	}
	close(release)
	must(t, recv(t, result, "return from Shutdown"))
}

// awayPair are two servers and what they have executed.
type awayPair struct {
	a, b     *testServer
	executed atomic.Int64
}

func newAwayPair(t *testing.T, adapter ServerOption) *awayPair {
	w := &awayPair{a: startServer(t, adapter), b: startServer(t, adapter)}
	for _, s := range []*testServer{w.a, w.b} {
		h := func(c *Context) {
			w.executed.Add(1)
			pause(100 * time.Microsecond)
			echo(c)
		}
		s.Handler.Handle("/ordered", h)
		s.Handler.Handle("/async", h, true)
		s.Handler.Handle("/who", func(c *Context) { c.Write(s.addr) })
	}
	return w
}

// V2-GO-2: clients with another server to go to. A call that begins after the client knows of the drain succeeds, one that
// fails was not carried out, and none fails for another reason than that the drain was on its way.
func TestGoAwayToAnotherServer(t *testing.T) {
	const clients, callers, before, after = 3, 8, 600, 20
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		w := newAwayPair(t, adapter)
		var answered, refused, lost, begun atomic.Int64
		enough := make(chan struct{})
		var once sync.Once
		var wg sync.WaitGroup
		var dials [clients]atomic.Int64
		var list []*Client
		for i := range clients {
			c := dialClientBy(t, func() (net.Conn, error) {
				if dials[i].Add(1) == 1 {
					return dialer(w.a.addr)()
				}
				return dialer(w.b.addr)()
			}, WaitForReady())
			list = append(list, c)
			for k := range callers {
				route := []string{"/ordered", "/async"}[k%2]
				wg.Go(func() {
					for moved := 0; moved < after; {
						knew := dials[i].Load() > 1
						want := fmt.Sprint(begun.Add(1))
						var r string
						err := c.Call(route, want, &r, patience)
						switch {
						case err == nil:
							if r != want {
								t.Errorf("answered %q instead of %q", r, want)
							}
							if answered.Add(1) == before {
								once.Do(func() { close(enough) })
							}
							if knew {
								moved++
							}
						case knew:
							t.Errorf("a call after the drain failed: %v", err)
							return
						case CodeOf(err) != CodeUnavailable:
							t.Errorf("a call failed with %v: %v", CodeOf(err), err)
							return
						case strings.Contains(err.Error(), "server is shutting down"):
							refused.Add(1)
						case strings.Contains(err.Error(), "the peer says: server stopped"):
							lost.Add(1) // it came after the farewell
						default:
							t.Errorf("a call failed with %v", err)
							return
						}
					}
				})
			}
		}
		recv(t, enough, "answers")
		must(t, w.a.Shutdown(patient(t)))
		waitGroup(t, &wg, "calls")
		if e, a := w.executed.Load(), answered.Load(); e != a {
			t.Errorf("%d handlers ran, %d calls succeeded", e, a)
		}
		for i, c := range list {
			var r string
			if err := c.Call("/who", nil, &r, patience); err != nil || r != w.b.addr {
				t.Errorf("client %d is at %q: %v", i, r, err)
			}
			if n := dials[i].Load(); n != 2 {
				t.Errorf("client %d dialled %d times", i, n)
			}
		}
		w.b.waitClients(t, clients)
		t.Logf("%d succeeded, %d refused, %d lost", answered.Load(), refused.Load(), lost.Load())
	})
}

// awayClient is a client whose connections are a test's to speak on, with the number of its dials.
type awayClient struct {
	*Client
	ln    *rawServer
	dials *atomic.Int64
	p     *rawPeer // the first
}

func (a *awayClient) accept() *rawPeer {
	p := a.ln.accept()
	if m := p.frame(); m.Cmd() != CmdPing || !isHello(m.Buffer[HeadLen:]) {
		a.ln.t.Fatalf("the client began with %x", m.Buffer)
	}
	p.send(helloFrame(CmdPong, fullHello()))
	return p
}

func newAwayClient(t *testing.T, opts ...ClientOption) *awayClient {
	t.Helper()
	a := &awayClient{ln: listenRaw(t), dials: new(atomic.Int64)}
	made := make(chan *Client, 1)
	opts = append([]ClientOption{NewHandler()}, opts...)
	go func() {
		c, err := NewClient(func() (net.Conn, error) { a.dials.Add(1); return dialer(a.ln.addr())() }, opts...)
		if err != nil {
			t.Errorf("NewClient: %v", err)
		}
		made <- c
	}()
	a.p = a.accept()
	if a.Client = recv(t, made, "client"); a.Client == nil {
		t.FailNow()
	}
	t.Cleanup(a.Stop)
	return a
}

// pendingCall makes a call and returns the request as the peer got it, and the call's end.
func pendingCall(t *testing.T, c *Client, p *rawPeer) (*Message, chan error, *string) {
	t.Helper()
	ended, r := make(chan error, 1), new(string)
	go func() { ended <- c.Call("/held", nil, r, patience) }()
	m := p.frame()
	if m.Cmd() != CmdRequest || m.Method() != "/held" {
		t.Fatalf("%x", m.Buffer)
	}
	return m, ended, r
}

// V2-GO-2, V2-GO-5: a client that is told to go away connects again once, whatever else happens to the old connection; that
// one's calls end there, and handlers and calls work on the new one.
func TestGoAwayReconnectsOnce(t *testing.T) {
	h := NewHandler()
	h.Handle("/mine", func(c *Context) { c.Write("mine") })
	disconnected := make(chan struct{}, 10)
	h.HandleDisconnected(func(*Client) { disconnected <- struct{}{} })
	connected := make(chan struct{}, 10)
	h.HandleConnected(func(*Client) { connected <- struct{}{} })
	a := newAwayClient(t, h, WaitForReady(), Backoff(time.Millisecond, time.Millisecond))
	recv(t, connected, "connected hook")
	old := a.p
	m, ended, r := pendingCall(t, a.Client, old)
	old.send(goAwayBytes(false, "first"), goAwayBytes(false, "second"))
	p := a.accept()
	recv(t, connected, "connected hook")
	must(t, a.WaitReady(patient(t)))
	m2, ended2, r2 := pendingCall(t, a.Client, p)
	old.send(goAwayBytes(false, "third"))
	// The peer may still ask on the old connection, and does on the new one.
	for _, p := range []*rawPeer{old, p} {
		p.send(frameOf(CmdRequest, 0, 5, "/mine", ""))
		if m := p.frame(); m.Cmd() != CmdResponse || string(m.Data()) != "mine" {
			t.Errorf("%x", m.Buffer)
		}
	}
	old.send(frameOf(CmdResponse, 0, m.Seq(), "/held", "old"))
	if err := recv(t, ended, "end of the call on the old connection"); err != nil || *r != "old" {
		t.Errorf("%q, %v", *r, err)
	}
	_, ended3, _ := pendingCall(t, a.Client, p)
	old.send(goAwayBytes(true, "farewell"))
	old.Close()
	recv(t, disconnected, "disconnected hook")
	must(t, a.CheckState())
	p.send(frameOf(CmdResponse, 0, m2.Seq(), "/held", "new"))
	if err := recv(t, ended2, "end of the call on the new connection"); err != nil || *r2 != "new" {
		t.Errorf("%q, %v", *r2, err)
	}
	if n := a.dials.Load(); n != 2 {
		t.Errorf("%d dials", n)
	}
	// The new one may be told to go away as well, and this time with what is in flight cut.
	p.send(goAwayBytes(false, "again"))
	third := a.accept()
	p.send(goAwayBytes(true, "in a hurry"))
	p.Close()
	wantLost(t, "a call that was cut", recv(t, ended3, "end of the cut call"), "the peer says: in a hurry")
	recv(t, disconnected, "disconnected hook")
	must(t, a.WaitReady(patient(t)))
	m, ended, r = pendingCall(t, a.Client, third)
	third.send(frameOf(CmdResponse, 0, m.Seq(), "/held", "third"))
	if err := recv(t, ended, "end of a call"); err != nil || *r != "third" {
		t.Errorf("%q, %v", *r, err)
	}
	if n := a.dials.Load(); n != 3 {
		t.Errorf("%d dials", n)
	}
}

// A drain that comes together with the answer to HELLO: the connection is of no use.
func TestGoAwayAtOnce(t *testing.T) {
	t.Run("first connection", func(t *testing.T) {
		p, _, failed := startDial(t, listenRaw(t))
		p.frame()
		p.send(helloFrame(CmdPong, fullHello()), goAwayBytes(false, "no room"))
		wantLost(t, "NewClient", recv(t, failed, "error of NewClient"), "the peer says: no room")
		p.end()
	})
	t.Run("second connection", func(t *testing.T) {
		a := newAwayClient(t, WaitForReady(), Backoff(time.Millisecond, time.Millisecond))
		a.p.Close()
		p := a.ln.accept()
		p.frame()
		p.send(helloFrame(CmdPong, fullHello()), goAwayBytes(false, "no room"))
		p.end()
		p = a.accept()
		m, ended, r := pendingCall(t, a.Client, p)
		p.send(frameOf(CmdResponse, 0, m.Seq(), "/held", "x"))
		if err := recv(t, ended, "end of a call"); err != nil || *r != "x" {
			t.Errorf("%q, %v", *r, err)
		}
	})
}

// Stop and Restart end a connection that drains too.
func TestStopWhileGoingAway(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			a := newAwayClient(t)
			_, ended, _ := pendingCall(t, a.Client, a.p)
			a.p.send(goAwayBytes(false, "away"))
			p := a.accept()
			must(t, a.WaitReady(patient(t)))
			if restart {
				done := make(chan error, 1)
				go func() { done <- a.Restart() }()
				third := a.accept()
				must(t, recv(t, done, "return from Restart"))
				m, ended, r := pendingCall(t, a.Client, third)
				third.send(frameOf(CmdResponse, 0, m.Seq(), "/held", "x"))
				if err := recv(t, ended, "end of a call"); err != nil || *r != "x" {
					t.Errorf("%q, %v", *r, err)
				}
			} else {
				within(t, "Stop", a.Stop)
			}
			if err := recv(t, ended, "end of the call"); CodeOf(err) != CodeUnavailable || !errors.Is(err, ErrClientStopped) {
				t.Errorf("the call on the old connection ended with %v", err)
			}
			a.p.end()
			p.end()
		})
	}
}

// V2-GO-2: calls in flight go on although the client gives up connecting again.
func TestGoAwayInFlightWhenGivingUp(t *testing.T) {
	s := startServer(t)
	entered, release := make(chan struct{}, 1), make(chan struct{})
	s.Handler.Handle("/hold", func(c *Context) {
		entered <- struct{}{}
		<-release
		for range 100 {
			if err := c.Client.CallWith(c, "/mine", nil, nil); err != nil {
				c.Error(err)
				return
			}
		}
		c.Write("held")
	})
	h := NewHandler()
	h.Handle("/mine", func(c *Context) { c.Write("mine") })
	h.SetMaxReconnectTimes(1)
	var dials atomic.Int64
	c := dialClientBy(t, func() (net.Conn, error) {
		if dials.Add(1) > 1 {
			return nil, errGate
		}
		return dialer(s.addr)()
	}, h)
	ended := make(chan error, 1)
	go func() { ended <- c.Call("/hold", nil, nil, patience) }()
	recv(t, entered, "request")
	result := make(chan error, 1)
	go func() { result <- s.Shutdown(patient(t)) }()
	eventually(t, "a client that has given up", func() bool { return errors.Is(c.CheckState(), ErrClientStopped) })
	close(release)
	if err := recv(t, ended, "end of the call"); err != nil {
		t.Errorf("the call in flight ended with %v", err)
	}
	must(t, recv(t, result, "return from Shutdown"))
}

// A client of a server that sends drain: the server begins nothing new, what is in flight goes on, and the first reason stays.
func TestGoAwayFromADialler(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		s.Handler.Handle("/echo", echo)
		p := dialGreeted(t, s.addr, fullHello())
		c := s.waitClients(t, 1)[0]
		m, ended, r := pendingCall(t, c, p)
		p.send(goAwayBytes(false, "first"), goAwayBytes(false, "second"), frameOf(CmdRequest, 0, 3, "/echo", "still served"))
		if m := p.frame(); string(m.Data()) != "still served" {
			t.Errorf("%x", m.Buffer)
		}
		for what, f := range map[string]func() error{
			"Call":       func() error { return c.Call("/x", nil, nil, patience) },
			"Notify":     func() error { return c.Notify("/x", nil, patience) },
			"OpenStream": func() error { _, err := c.OpenStream(patient(t), "/x"); return err },
		} {
			err := f()
			wantLost(t, what, err)
			if err != nil && err.Error() != "the peer is going away: the peer says: first" {
				t.Errorf("%s: %v", what, err)
			}
		}
		p.send(frameOf(CmdResponse, 0, m.Seq(), "/held", "x"))
		if err := recv(t, ended, "end of the call"); err != nil || *r != "x" {
			t.Errorf("%q, %v", *r, err)
		}
	})
}

// Frames that are not GOAWAY, or not agreed on.
func TestGoAwayMalformed(t *testing.T) {
	farewellMalformed := hex.EncodeToString(goAwayBytes(true, "malformed frame"))
	good := goAwayBytes(false, "away")
	t.Run("with a method (V2-FRAME-1)", func(t *testing.T) {
		for _, final := range []byte{0, flagError} {
			greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
				_, ended, _ := pendingCall(t, c, p)
				p.send(frameOf(cmdGoAway, final, 0, "/m", string(good[HeadLen:])))
				wantLost(t, "a call", recv(t, ended, "end of the call"), "malformed frame")
				if rest := hex.EncodeToString(p.end()); rest != farewellMalformed {
					t.Errorf("the peer is told %s", rest)
				}
			})
		}
	})
	bodies := map[string]string{
		"empty": "", "short": "\x0e\x00\x01\x00\x00", "code 0": "\x00\x00\x00\x00\x00\x00",
		"text beyond the end":   "\x0e\x00\x05\x00\x00\x00four",
		"detail beyond the end": "\x0e\x01\x00\x00\x00\x00\x05n",
		"longest text length":   "\x0e\x00\xff\xff\xff\xfftext",
	}
	for name, body := range bodies {
		t.Run(name, func(t *testing.T) {
			t.Run("drain", func(t *testing.T) {
				s := startServer(t)
				p := dialGreeted(t, s.addr, fullHello())
				c := s.waitClients(t, 1)[0]
				p.send(frameOf(cmdGoAway, 0, 0, "", body), pingFrame)
				p.frame()
				wantLost(t, "a call", c.Call("/x", nil, nil, patience), "the peer is going away", "malformed error")
			})
			t.Run("farewell", func(t *testing.T) {
				greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
					_, ended, _ := pendingCall(t, c, p)
					p.send(frameOf(cmdGoAway, flagError, 0, "", body))
					p.Close()
					wantLost(t, "a call", recv(t, ended, "end of the call"), "malformed error")
				})
			})
		})
	}
	t.Run("from a peer of version 1 (V1-FRAME-5)", func(t *testing.T) {
		version1Ends(t, func(t *testing.T, c *Client, p *rawPeer) {
			_, ended, _ := pendingCall(t, c, p)
			p.send(good)
			wantLost(t, "a call", recv(t, ended, "end of the call"), "malformed frame")
			if rest := p.end(); len(rest) > 0 { // V2-OLD-1
				t.Errorf("a peer of version 1 is told %x", rest)
			}
		})
	})
	t.Run("without the feature (V1-FRAME-5)", func(t *testing.T) {
		h := fullHello()
		h.features &^= featGoAway
		greetedEnds(t, h, func(t *testing.T, c *Client, p *rawPeer) {
			_, ended, _ := pendingCall(t, c, p)
			p.send(good)
			wantLost(t, "a call", recv(t, ended, "end of the call"), "malformed frame")
			if rest := p.end(); len(rest) > 0 {
				t.Errorf("the peer is told %x", rest)
			}
		})
	})
	t.Run("before HELLO", func(t *testing.T) {
		s := startServer(t)
		p := dialRaw(t, s.addr)
		p.send(good, helloFrame(CmdPing, fullHello()))
		if rest := p.end(); len(rest) > 0 {
			t.Errorf("the peer is told %x", rest)
		}
	})
}

// V2-OLD-1: Shutdown tells a peer of version 1 nothing but refusals.
func TestShutdownOfVersion1(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		entered, release := make(chan struct{}, 1), make(chan struct{})
		s.Handler.Handle("/hold", func(c *Context) { entered <- struct{}{}; <-release; c.Write("held") })
		p := dialRaw(t, s.addr)
		p.send(frameOf(CmdRequest, 0, 2, "/hold", ""))
		recv(t, entered, "request")
		result := make(chan error, 1)
		go func() { result <- s.Shutdown(patient(t)) }()
		eventually(t, "a server that drains", s.rpc.draining.Load)
		p.send(frameOf(CmdRequest, 0, 3, "/hold", ""))
		if m := p.frame(); m.Seq() != 3 || m.Buffer[indexFlag] != flagError || string(m.Data()) != "server is shutting down" {
			t.Errorf("%x", m.Buffer)
		}
		close(release)
		if m := p.frame(); m.Seq() != 2 || string(m.Data()) != "held" {
			t.Errorf("%x", m.Buffer)
		}
		if rest := p.end(); len(rest) > 0 {
			t.Errorf("at the end %x", rest)
		}
		p.Close()
		must(t, recv(t, result, "return from Shutdown"))
	})
}

// V2-GO-3, V2-GO-4: whoever closes says why, and everything that ends by it at the other end names that: calls, handlers,
// streams, and calls that come too late.
func TestCloseReasonsTravel(t *testing.T) {
	tests := []struct {
		name     string
		byClient bool
		close    func(s *testServer, sc, c *Client)
		reason   string
	}{
		{"Server.Stop", false, func(s *testServer, _, _ *Client) { s.Stop() }, "server stopped"},
		{"Client.Stop of a server's", false, func(_ *testServer, sc, _ *Client) { sc.Stop() }, "client stopped"},
		{"Conn.Close of a server's", false, func(_ *testServer, sc, _ *Client) { sc.Conn.Close() }, "connection closed"},
		{"Client.Stop", true, func(_ *testServer, _, c *Client) { c.Stop() }, "client stopped"},
		{"Conn.Close", true, func(_ *testServer, _, c *Client) { c.Conn.Close() }, "connection closed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			awayServers(t, func(t *testing.T, s *testServer, dial func() (net.Conn, error)) {
				entered, release, causes := make(chan struct{}, 10), make(chan struct{}), make(chan error, 10)
				routes := func(h Handler) {
					h.Handle("/hold", func(c *Context) {
						entered <- struct{}{}
						<-c.Done()
						causes <- context.Cause(c)
						<-release
					}, true)
					h.HandleStream("/stream", func(st *Stream) { entered <- struct{}{}; <-release })
				}
				t.Cleanup(func() { close(release) })
				routes(s.Handler)
				h := NewHandler()
				routes(h)
				var dials atomic.Int64
				c := dialClientBy(t, func() (net.Conn, error) {
					if dials.Add(1) > 1 {
						return nil, errGate
					}
					return dial()
				}, h, Backoff(time.Hour, time.Hour))
				sc := s.waitClients(t, 1)[0]
				from, to := sc, c // to is told
				if tt.byClient {
					from, to = c, sc
				}
				ended := make(chan error, 10)
				go func() { ended <- to.Call("/hold", nil, nil, patience) }()
				recv(t, entered, "request")
				go from.Call("/hold", nil, nil, patience) //nolint:errcheck // its handler is what counts
				recv(t, entered, "request")
				st, err := to.OpenStream(patient(t), "/stream")
				must(t, err)
				must(t, st.Send("x"))
				recv(t, entered, "stream")
				tt.close(s, sc, c)
				want := "the peer says: " + tt.reason
				wantLost(t, "the call", recv(t, ended, "end of the call"), want)
				for range 2 { // one of them is of the end that closes
					err := recv(t, causes, "end of a handler's context")
					wantLost(t, "a handler's context", err, tt.reason)
				}
				wantLost(t, "Recv", st.Recv(new(string)), want)
				wantLost(t, "Send", st.Send("x"), want)
				wantLost(t, "the stream's context", context.Cause(st.Context()), want)
				if tt.byClient { // a client that dials is busy with something newer
					wantLost(t, "CheckState afterwards", to.CheckState(), want)
					wantLost(t, "a call afterwards", to.Call("/hold", nil, nil, patience), want)
				}
			})
		})
	}
}
