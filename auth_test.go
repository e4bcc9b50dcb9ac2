package arpc

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// who is the principal that authBy makes.
type who struct{ name string }

var errWho = &Error{Code: CodePermissionDenied, Message: "nobody by that name"}

// authBy takes any credentials but "wrong", "plain" and "panic" for a name.
func authBy(_ *Context, credentials []byte) (any, error) {
	switch name := string(credentials); name {
	case "wrong":
		return nil, errWho
	case "plain":
		return nil, errors.New("a plain error")
	case "panic":
		panic("in the auth function")
	default:
		return who{name}, nil
	}
}

// as is the option for fixed credentials.
func as(name string) ClientOption {
	return Credentials(func(context.Context) ([]byte, error) { return []byte(name), nil })
}

// authRoutes are what an authenticated client may use.
func authRoutes(h Handler) {
	h.Handle("/who", func(c *Context) { c.Write(fmt.Sprint(c.Peer().Principal)) })
	h.Handle("/who/async", func(c *Context) { c.Write(fmt.Sprint(c.Peer().Principal)) }, true)
	h.HandleInline("/who/inline", func(c *Context) { c.Write(fmt.Sprint(c.Peer().Principal)) })
	h.HandleStream("/who/stream", func(s *Stream) { s.Send(fmt.Sprint(s.Peer().Principal)) })
}

// wantWho checks whom the server takes a client for, by all kinds of handler.
func wantWho(t *testing.T, c *Client, name string) {
	t.Helper()
	want := fmt.Sprint(who{name})
	for _, route := range []string{"/who", "/who/async", "/who/inline"} {
		var r string
		if err := c.Call(route, nil, &r, patience); err != nil || r != want {
			t.Errorf("%s: %q, %v", route, r, err)
		}
	}
	var r string
	st := c.NewStream("/who/stream")
	must(t, st.Send("who?"))
	if err := st.RecvWith(patient(t), &r); err != nil || r != want {
		t.Errorf("/who/stream: %q, %v", r, err)
	}
	st.Reset(nil)
}

// V2-AUTH-1: over each way to connect, with either version.
func TestAuth(t *testing.T) {
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			awayServers(t, func(t *testing.T, s *testServer, dial func() (net.Conn, error)) {
				got := make(chan *Context, 10)
				s.Handler.HandleAuth(func(c *Context, credentials []byte) (any, error) {
					got <- c
					clear(c.Body()) // credentials are a copy
					return authBy(c, credentials)
				})
				authRoutes(s.Handler)
				c := dialClientBy(t, dial, Protocol(version), as("alice"))
				if a := recv(t, got, "authentication"); a.Client != s.waitClients(t, 1)[0] {
					t.Error("the context is of another client")
				}
				wantWho(t, c, "alice")
				sc := s.waitClients(t, 1)[0]
				if p := sc.Peer(); p.Principal != (who{"alice"}) || p.TLS != nil || p.Addr.String() != sc.Conn.RemoteAddr().String() {
					t.Errorf("%+v", p)
				}
				if p := c.Peer(); p.Principal != nil || p.Addr.String() != c.Conn.RemoteAddr().String() {
					t.Errorf("the client's peer: %+v", p)
				}
				if l := sc.link.Load(); l.x.Load().lockTimer.Stop() {
					t.Error("the timer of the authentication is still running")
				}
			})
		})
	}
}

// V2-AUTH-2: before it has succeeded, everything else is refused, and pings are answered.
func TestAuthLocks(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		var served atomic.Int64
		count := func(*Context) { served.Add(1) }
		s.Handler.HandleAuth(authBy)
		s.Handler.Handle("/ordered", count)
		s.Handler.Handle("/async", count, true)
		s.Handler.HandleInline("/inline", count)
		s.Handler.HandleNotFound(count)
		s.Handler.HandleStream("/stream", func(*Stream) { served.Add(1) })
		hooked := make(chan *Client, 10)
		s.Handler.HandleConnected(func(c *Client) { hooked <- c })
		s.Handler.Handle("/last", func(c *Context) { c.Write(fmt.Sprint(c.Peer().Principal)) })

		p := dialGreeted(t, s.addr, fullHello())
		refused := func() {
			t.Helper()
			for i, method := range []string{"/ordered", "/async", "/inline", "/unknown", "arpc.auth2", "arpc.aut"} {
				flag := byte(0)
				if method == "/async" {
					flag = flagAsync
				}
				p.send(frameOf(CmdNotify, 0, 1, method, "x"), frameOf(CmdRequest, flag, uint64(i), method, "x"))
				m := p.frame()
				var e *Error
				if err := m.Error(); m.Seq() != uint64(i) || !errors.As(err, &e) || e.Code != CodeUnauthenticated ||
					e.Message != "the connection is not authenticated" {
					t.Errorf("%s: %v, %x", method, err, m.Buffer)
				}
			}
			p.send(frameOf(CmdNotify, 0, 1, authMethod, "alice")) // it can have no answer, and is none
			p.send(frameOf(CmdStream|streamLocal, flagOpen, 20, "/stream", "x"))
			if m := p.frame(); m.Cmd() != cmdReset || m.Seq() != 20 || CodeOf(m.Error()) != CodeUnauthenticated {
				t.Errorf("the stream: %x", m.Buffer)
			}
			s.Broadcast("/note", "x")
			s.ForEach(func(*Client) { t.Error("ForEach knows it") })
			p.send(pingFrame)
			p.wants("pong", goldenPong)
		}
		auth := func(seq uint64, credentials string) error {
			t.Helper()
			p.send(frameOf(CmdRequest, 0, seq, authMethod, credentials))
			m := p.frame()
			if m.Cmd() != CmdResponse || m.Seq() != seq || m.Method() != authMethod {
				t.Fatalf("%x", m.Buffer)
			}
			if m.IsError() {
				return m.Error()
			}
			if len(m.Data()) > 0 {
				t.Errorf("the answer carries %q", m.Data())
			}
			return nil
		}
		refused()
		if err := auth(50, "wrong"); CodeOf(err) != CodePermissionDenied || err.Error() != errWho.Message {
			t.Errorf("%v", err)
		}
		refused()
		if err := auth(51, "panic"); CodeOf(err) != CodeInternal {
			t.Errorf("%v", err)
		}
		refused()
		if err := auth(52, "plain"); CodeOf(err) != CodeUnknown || err.Error() != "a plain error" {
			t.Errorf("%v", err)
		}
		refused()
		select {
		case <-hooked:
			t.Error("the connected hook ran")
		default:
		}
		if n := served.Load(); n != 0 {
			t.Errorf("%d handlers ran", n)
		}
		must(t, auth(53, "alice"))
		recv(t, hooked, "connected hook")
		p.send(frameOf(CmdRequest, 0, 54, "/last", ""))
		if m := p.frame(); string(m.Data()) != fmt.Sprint(who{"alice"}) {
			t.Errorf("%x", m.Buffer)
		}
		s.Broadcast("/note", "x")
		if m := p.frame(); m.Cmd() != CmdNotify || m.Method() != "/note" {
			t.Errorf("%x", m.Buffer)
		}
		must(t, auth(55, "bob"))
		if len(hooked) > 0 {
			t.Error("the connected hook ran again")
		}
	})
}

// What stands behind the credentials in the same segment is decided with what was known when it came, or later, but never
// served without a principal.
func TestAuthPipelined(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		s.Handler.HandleAuth(authBy)
		authRoutes(s.Handler)
		for range 50 {
			p := dialRaw(t, s.addr)
			p.send(frameOf(CmdRequest, 0, 1, authMethod, "alice"), frameOf(CmdRequest, 0, 2, "/who", ""))
			for i := uint64(3); i < 20; i++ {
				p.send(frameOf(CmdRequest, flagAsync, i, "/who/async", ""))
			}
			for range 19 {
				m := p.frame()
				switch {
				case m.Seq() == 1 && !m.IsError():
				case m.IsError() && CodeOf(m.Error()) == CodeUnauthenticated:
				case string(m.Data()) == fmt.Sprint(who{"alice"}):
				default:
					t.Fatalf("%x: %q", m.Buffer, m.Data())
				}
			}
			p.Close()
		}
	})
}

// The connected hook of a server runs between success and the answer, and may call the client.
func TestAuthConnectedHookCalls(t *testing.T) {
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			awayServers(t, func(t *testing.T, s *testServer, dial func() (net.Conn, error)) {
				s.Handler.HandleAuth(authBy)
				authRoutes(s.Handler)
				type result struct {
					answer string
					p      Peer
					err    error
				}
				results := make(chan result, 1)
				s.Handler.HandleConnected(func(c *Client) {
					r := result{p: c.Peer()}
					r.err = c.Call("/mine", nil, &r.answer, patience)
					results <- r
				})
				h := NewHandler()
				h.Handle("/mine", func(c *Context) { c.Write("mine") })
				c := dialClientBy(t, dial, h, Protocol(version), as("alice"))
				if r := recv(t, results, "connected hook"); r.err != nil || r.answer != "mine" || r.p.Principal != (who{"alice"}) {
					t.Errorf("%+v", r)
				}
				wantWho(t, c, "alice")
			})
		})
	}
}

func TestAuthRefused(t *testing.T) {
	tests := []struct {
		credentials string
		code        Code
		text        string
	}{
		{"wrong", CodePermissionDenied, errWho.Message},
		{"plain", CodeUnknown, "a plain error"},
		{"panic", CodeInternal, "panicked"},
	}
	awayServers(t, func(t *testing.T, s *testServer, dial func() (net.Conn, error)) {
		s.Handler.HandleAuth(authBy)
		authRoutes(s.Handler)
		s.Handler.HandleConnected(func(*Client) { t.Error("the connected hook of the server ran") })
		for _, tt := range tests {
			c, err := NewClient(dial, NewHandler(), as(tt.credentials))
			var e *Error
			if c != nil || !errors.As(err, &e) || e.Code != tt.code || !strings.Contains(e.Message, tt.text) || !e.Remote {
				t.Errorf("%s: %v, %+v", tt.credentials, c, err)
			}
		}
		// One without any is refused by each call, not by NewClient: it does not know.
		c := dialClientBy(t, dial)
		if err := c.Call("/who", nil, nil, patience); CodeOf(err) != CodeUnauthenticated || err.(*Error).Remote == false {
			t.Errorf("without credentials: %v", err)
		}
		st, err := c.OpenStream(patient(t), "/who/stream")
		must(t, err)
		if err := st.Recv(new(string)); CodeOf(err) != CodeUnauthenticated {
			t.Errorf("without credentials: %v", err)
		}
		if err := c.Authenticate(patient(t)); CodeOf(err) != CodeFailedPrecondition {
			t.Errorf("Authenticate without credentials: %v", err)
		}
		for _, sc := range s.waitClients(t, 0) {
			t.Errorf("%v is known", sc)
		}
	})
	t.Run("v1", func(t *testing.T) { // the text is all there is
		s := startServer(t)
		s.Handler.HandleAuth(authBy)
		_, err := NewClient(dialer(s.addr), NewHandler(), Protocol(1), as("wrong"))
		if CodeOf(err) != CodeUnknown || err.Error() != errWho.Message {
			t.Errorf("%v", err)
		}
		c := dialClient(t, s.addr, Protocol(1))
		if err := c.Call("/who", nil, nil, patience); CodeOf(err) != CodeUnauthenticated {
			t.Errorf("without credentials: %v", err)
		}
	})
	t.Run("V2-AUTH-5", func(t *testing.T) { // a server that demands nothing
		s := startServer(t)
		if _, err := NewClient(dialer(s.addr), NewHandler(), as("alice")); !errors.Is(err, ErrMethodNotFound) {
			t.Errorf("%v", err)
		}
	})
}

// V2-AUTH-3: who does not authenticate itself in time is told and closed; pings, refusals and refused credentials do not
// help.
func TestAuthInTime(t *testing.T) {
	farewell := hex.EncodeToString(frameOf(cmdGoAway, flagError, 0, "",
		string(appendError(nil, &Error{Code: CodeUnauthenticated, Message: "not authenticated in time"}, nil))))
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter, Limits{Handshake: 500 * time.Millisecond})
		s.Handler.HandleAuth(authBy)
		authRoutes(s.Handler)
		in := dialClient(t, s.addr, as("alice"))
		start := time.Now()
		quiet, busy := dialGreeted(t, s.addr, fullHello()), dialGreeted(t, s.addr, fullHello())
		old := dialRaw(t, s.addr)
		busy.send(frameOf(CmdRequest, 0, 1, authMethod, "wrong"), frameOf(CmdRequest, 0, 2, "/who", ""), pingFrame)
		for range 3 {
			busy.frame()
		}
		for name, p := range map[string]*rawPeer{"quiet": quiet, "busy": busy} {
			if rest := hex.EncodeToString(p.end()); rest != farewell {
				t.Errorf("the %s peer is told %s", name, rest)
			}
		}
		if rest := old.end(); len(rest) > 0 {
			t.Errorf("the peer of version 1 is told %x", rest)
		}
		if d := time.Since(start); d < 400*time.Millisecond {
			t.Errorf("it took %v only", d)
		}
		wantWho(t, in, "alice")
	})
	t.Run("client", func(t *testing.T) { // its Credentials took too long, or the server does
		s := startServer(t)
		release := make(chan struct{})
		defer close(release)
		s.Handler.HandleAuth(func(*Context, []byte) (any, error) { <-release; return nil, nil })
		limits := Limits{Handshake: 50 * time.Millisecond}
		_, err := NewClient(dialer(s.addr), NewHandler(), limits, as("alice"))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a server that does not answer: %v", err)
		}
		_, err = NewClient(dialer(s.addr), NewHandler(), limits, Credentials(func(ctx context.Context) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("credentials that take too long: %v", err)
		}
	})
}

// The error of the Credentials function fails the attempt, and each connection asks for new ones.
func TestAuthReconnect(t *testing.T) {
	awayServers(t, func(t *testing.T, s *testServer, dial func() (net.Conn, error)) {
		s.Handler.HandleAuth(authBy)
		authRoutes(s.Handler)
		errToken := errors.New("no token")
		var asked atomic.Int64
		script := []any{errToken, "first", errToken, "wrong", "second", "third"}
		cred := Credentials(func(ctx context.Context) ([]byte, error) {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("the Credentials function has no deadline")
			}
			switch v := script[asked.Add(1)-1].(type) {
			case error:
				return nil, v
			default:
				return []byte(v.(string)), nil
			}
		})
		if _, err := NewClient(dial, NewHandler(), cred); !errors.Is(err, errToken) {
			t.Errorf("NewClient: %v", err)
		}
		h := NewHandler()
		tries := make(chan error, 10)
		h.HandleReconnect(func(_ *Client, _ int, err error) { tries <- err })
		c := dialClientBy(t, dial, h, cred, WaitForReady(), Backoff(time.Millisecond, time.Millisecond))
		wantWho(t, c, "first")
		c.Conn.Close()
		wantWho(t, c, "second") // no call got through before the credentials were taken
		if err := recv(t, tries, "attempt"); !errors.Is(err, errToken) {
			t.Errorf("first attempt: %v", err)
		}
		if err := recv(t, tries, "attempt"); CodeOf(err) != CodePermissionDenied {
			t.Errorf("second attempt: %v", err)
		}
		must(t, recv(t, tries, "attempt"))
		must(t, c.Restart())
		wantWho(t, c, "third")
		if n := asked.Load(); int(n) != len(script) {
			t.Errorf("credentials were asked for %d times", n)
		}
	})
}

// V2-AUTH-1: calls that begin while a client connects again wait until its credentials are taken.
func TestAuthBeforeEverything(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		s.Handler.HandleAuth(authBy)
		authRoutes(s.Handler)
		for _, version := range []int{1, 2} {
			c := dialClient(t, s.addr, Protocol(version), as("alice"), WaitForReady(), Backoff(time.Millisecond, time.Millisecond))
			quit := make(chan struct{})
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for {
						select {
						case <-quit:
							return
						default:
						}
						var r string
						err := c.Call("/who", nil, &r, patience)
						if err == nil && r != fmt.Sprint(who{"alice"}) || err != nil && CodeOf(err) != CodeUnavailable {
							t.Errorf("version %d: %q, %v", version, r, err)
							return
						}
					}
				})
			}
			for range 20 {
				must(t, c.WaitReady(patient(t)))
				c.Conn.Close()
			}
			close(quit)
			waitGroup(t, &wg, "calls")
			c.Stop()
		}
	})
}

// V2-AUTH-4: on a live connection it may be repeated.
func TestAuthRepeated(t *testing.T) {
	awayServers(t, func(t *testing.T, s *testServer, dial func() (net.Conn, error)) {
		var hooks atomic.Int64
		s.Handler.HandleConnected(func(*Client) { hooks.Add(1) })
		s.Handler.HandleAuth(authBy)
		authRoutes(s.Handler)
		var name atomic.Pointer[string]
		set := func(s string) { name.Store(&s) }
		set("first")
		var dials atomic.Int64
		errKey := errors.New("no key")
		c := dialClientBy(t, func() (net.Conn, error) {
			dials.Add(1)
			return dial()
		}, Backoff(time.Millisecond, time.Millisecond), WaitForReady(), Credentials(func(ctx context.Context) ([]byte, error) {
			if *name.Load() == "" {
				return nil, errKey
			}
			return []byte(*name.Load()), nil
		}))
		wantWho(t, c, "first")
		for _, n := range []string{"second", "third"} {
			set(n)
			must(t, c.Authenticate(patient(t)))
			wantWho(t, c, n)
		}
		set("")
		if err := c.Authenticate(patient(t)); !errors.Is(err, errKey) {
			t.Errorf("%v", err)
		}
		wantWho(t, c, "third")
		if n := hooks.Load(); n != 1 || dials.Load() != 1 {
			t.Errorf("%d connected hooks, %d dials", n, dials.Load())
		}

		refusals := []struct {
			credentials string
			code        Code
			reason      string
		}{
			{"wrong", CodePermissionDenied, "authentication failed: " + errWho.Message},
			{"plain", CodeUnknown, "authentication failed: a plain error"},
			{"panic", CodeInternal, "authentication failed"},
		}
		for i, tt := range refusals {
			sc := s.waitClients(t, 1)[0]
			must(t, sc.Notify("/x", nil, patience))
			ended := make(chan error, 1)
			entered := make(chan struct{}, 1)
			release := make(chan struct{})
			s.Handler.Handle(fmt.Sprint("/hold", i), func(*Context) { entered <- struct{}{}; <-release }, true)
			go func() { ended <- c.Call(fmt.Sprint("/hold", i), nil, nil, patience) }()
			recv(t, entered, "request")
			set(tt.credentials)
			if err := c.Authenticate(patient(t)); CodeOf(err) != tt.code {
				t.Errorf("%s: %v", tt.credentials, err)
			}
			set("back again")
			select {
			case err := <-ended:
				wantLost(t, "a call in flight", err, "the peer says: "+tt.reason)
			case <-time.After(patience / 10):
				t.Errorf("%s: the connection is still open", tt.credentials)
				c.Conn.Close()
				<-ended
			}
			close(release)
			must(t, c.WaitReady(patient(t)))
			wantWho(t, c, "back again")
		}
	})
}

// Middleware has no part in the authentication: it could not know who asks.
func TestAuthBesideMiddleware(t *testing.T) {
	s := startServer(t)
	var ran atomic.Int64
	count := func(*Context) { ran.Add(1) }
	s.Handler.Use(count)
	s.Handler.HandleAuth(authBy)
	s.Handler.Use(count)
	authRoutes(s.Handler)
	c := dialClient(t, s.addr, as("alice"))
	if n := ran.Load(); n != 0 {
		t.Errorf("middleware ran %d times", n)
	}
	must(t, c.Call("/who", nil, nil, patience))
	if n := ran.Load(); n != 2 {
		t.Errorf("middleware ran %d times", n)
	}
}

// HandleAuth concerns connections that are accepted later, and none once it is taken back.
func TestAuthLater(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		authRoutes(s.Handler)
		early := dialClient(t, s.addr)
		s.waitClients(t, 1)
		s.Handler.HandleAuth(authBy)
		var r string
		if err := early.Call("/who", nil, &r, patience); err != nil || r != fmt.Sprint(nil) {
			t.Errorf("a connection from before: %q, %v", r, err)
		}
		late := dialClient(t, s.addr)
		if err := late.Call("/who", nil, nil, patience); CodeOf(err) != CodeUnauthenticated {
			t.Errorf("a later connection: %v", err)
		}
		wantWho(t, dialClient(t, s.addr, as("alice")), "alice")
		s.Handler.HandleAuth(nil)
		must(t, dialClient(t, s.addr).Call("/who", nil, nil, patience))
	})
}

// A connection that was accepted while HandleAuth held stays locked when HandleAuth is taken back: nothing it did has earned
// it anything.
func TestAuthTakenBack(t *testing.T) {
	s := startServer(t)
	authRoutes(s.Handler)
	s.Handler.HandleAuth(authBy)
	c := dialClient(t, s.addr)
	if err := c.Call("/who", nil, nil, patience); CodeOf(err) != CodeUnauthenticated {
		t.Errorf("%v", err)
	}
	s.Handler.HandleAuth(nil)
	if err := c.Call("/who", nil, nil, patience); CodeOf(err) != CodeUnauthenticated {
		t.Errorf("after HandleAuth(nil): %v", err)
	}
}

// A connection ends while it authenticates itself: nothing stays.
func TestAuthVanishing(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter, Limits{Handshake: time.Hour})
		entered, release := make(chan *Context, 100), make(chan struct{})
		s.Handler.HandleAuth(func(c *Context, credentials []byte) (any, error) {
			entered <- c
			if string(credentials) == "slow" {
				<-release
			}
			return who{"x"}, nil
		})
		var links []*link
		for range 10 {
			quiet, slow := dialRaw(t, s.addr), dialGreeted(t, s.addr, fullHello())
			slow.send(frameOf(CmdRequest, 0, 1, authMethod, "slow"))
			c := recv(t, entered, "authentication")
			links = append(links, c.link)
			slow.reset()
			quiet.reset()
			recv(t, c.Done(), "end of the context")
		}
		close(release)
		s.mu.Lock()
		g := s.group
		s.mu.Unlock()
		eventually(t, "a server without connections", func() bool { return g.Len() == 0 })
		for _, l := range links {
			if l.x.Load().lockTimer.Stop() {
				t.Error("a timer of the authentication is still running")
			}
		}
	})
}

// Over TLS the peer's certificate is known, with or without an authentication by function.
func TestAuthTLS(t *testing.T) {
	a := newAuthority(t)
	ln := listenTCP(t)
	s := startServerOn(t, tls.NewListener(ln, &tls.Config{
		Certificates: a.issue("server"), ClientCAs: a.pool, ClientAuth: tls.VerifyClientCertIfGiven,
	}))
	authRoutes(s.Handler)
	s.Handler.HandleAuth(func(c *Context, credentials []byte) (any, error) {
		p := c.Peer()
		if p.TLS == nil || len(p.TLS.VerifiedChains) == 0 {
			return nil, &Error{Code: CodeUnauthenticated, Message: "no certificate"}
		}
		if p.Principal != nil && p.Principal != (who{"alice"}) {
			t.Errorf("the principal before: %v", p.Principal)
		}
		return who{p.TLS.PeerCertificates[0].Subject.CommonName}, nil
	})
	s.Handler.HandleStream("/cert", func(st *Stream) { st.Send(st.Peer().TLS.PeerCertificates[0].Subject.CommonName) })
	dial := func(certs []tls.Certificate) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			return tls.Dial("tcp", s.addr, &tls.Config{RootCAs: a.pool, Certificates: certs, ServerName: "127.0.0.1"})
		}
	}
	c := dialClientBy(t, dial(a.issue("alice")), as(""))
	wantWho(t, c, "alice")
	var r string
	if err := c.NewStream("/cert").RecvWith(patient(t), &r); err != nil || r != "alice" {
		t.Errorf("%q, %v", r, err)
	}
	if p := c.Peer(); p.TLS == nil || p.TLS.PeerCertificates[0].Subject.CommonName != "server" || !p.TLS.HandshakeComplete {
		t.Errorf("the client's peer: %+v", p)
	}
	must(t, c.Authenticate(patient(t)))
	wantWho(t, c, "alice")
	if _, err := NewClient(dial(nil), NewHandler(), as("")); CodeOf(err) != CodeUnauthenticated || err.Error() != "no certificate" {
		t.Errorf("without a certificate: %v", err)
	}
	// The client's dialer may leave the handshake to the first write.
	lazy := dialClientBy(t, func() (net.Conn, error) {
		nc, err := dialer(s.addr)()
		if err != nil {
			return nil, err
		}
		return tls.Client(nc, &tls.Config{RootCAs: a.pool, Certificates: a.issue("bob"), ServerName: "127.0.0.1"}), nil
	}, as(""))
	wantWho(t, lazy, "bob")
	if p := lazy.Peer(); p.TLS == nil || !p.TLS.HandshakeComplete {
		t.Errorf("the client's peer: %+v", p)
	}
}
