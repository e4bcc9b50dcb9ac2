package session

import (
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/arpc-go/arpc/internal/frame"
)

func dialUDP(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	nc, err := net.Dial("udp", addr)
	must(t, err)
	t.Cleanup(func() { nc.Close() })
	return nc.(*net.UDPConn)
}

// One session serves all peers; answers need a peer; what is no package is dropped, and so is the probe.
func TestUDPServer(t *testing.T) {
	served, got := newEvents(t), make(chan UDPContext, 10)
	served.onMessage = func(_ Session, pkg any) { got <- pkg.(UDPContext) }
	server := udp.serve(t, with(&lengthCodec{}, served))
	s := recv(t, served.opened, "OnOpen")
	a, b := dialUDP(t, server.Addr().String()), dialUDP(t, server.Addr().String())
	for _, p := range []string{"connect-ping", "\x00\x00\x0b\xad", "\x00\x00\x00\x09cut", ""} {
		a.Write([]byte(p))
	}
	for _, nc := range []*net.UDPConn{a, b} {
		nc.Write(encode("from " + nc.LocalAddr().String()))
		u := recv(t, got, "package")
		if u.Pkg != "from "+u.PeerAddr.String() || u.PeerAddr.String() != nc.LocalAddr().String() {
			t.Errorf("%+v", u)
		}
		for _, pkg := range []any{u, &u} {
			if total, sent, err := s.WritePkg(pkg, 0); err != nil || total != sent || total != 4+len(u.Pkg.(string)) {
				t.Error(total, sent, err)
			}
		}
		p := make([]byte, 100)
		n, err := nc.Read(p)
		if err != nil || string(p[4:n]) != u.Pkg {
			t.Errorf("%q, %v", p[:n], err)
		}
	}
	if st := s.Stats(); st.Dropped != 2 || st.ReadPkgs != 2 {
		t.Errorf("%+v", st)
	}
	for _, pkg := range []any{"x", UDPContext{Pkg: "x"}} {
		if _, _, err := s.WritePkg(pkg, 0); err != ErrNullPeerAddr {
			t.Errorf("no peer: %v", err)
		}
	}
	if _, err := s.WriteBytes([]byte("x")); err != ErrNullPeerAddr {
		t.Errorf("no peer: %v", err)
	}
	to := a.LocalAddr().(*net.UDPAddr)
	var large *frame.TooLargeError
	if _, sent, err := s.WritePkg(UDPContext{strings.Repeat("x", 70_000), to}, 0); sent != 0 || !errors.As(err, &large) {
		t.Errorf("too long for UDP: %d, %v", sent, err)
	}
	s.Close()
	recv(t, served.closed, "OnClose")
	if _, _, err := s.WritePkg(UDPContext{"x", to}, 0); err != ErrSessionClosed {
		t.Errorf("closed: %v", err)
	}
}

// A server whose session is refused says so and leaves nothing behind.
func TestUDPRefused(t *testing.T) {
	fail := errors.New("test: refused")
	for name, newSession := range map[string]NewSessionCallback{
		"newSession": func(Session) error { return fail },
		"OnOpen": func(s Session) error {
			e := newEvents(t)
			e.onOpen = func(Session) error { return fail }
			s.SetEventListener(e)
			return nil
		},
	} {
		server := NewUDPEndPoint(WithLocalAddress("127.0.0.1:0"))
		if err := server.RunEventLoop(newSession); err != fail {
			t.Errorf("%s: %v", name, err)
		}
		if !server.IsClosed() {
			t.Errorf("%s: not closed", name)
		}
	}
}

// A client is told when its server is not there, and goes on; the peer it names does not matter.
func TestUDPClient(t *testing.T) {
	served := newEvents(t)
	served.onMessage = echo(t)
	server := udp.serve(t, with(&lengthCodec{}, served))
	events, got := newEvents(t), make(chan any, 10)
	events.onMessage = func(_ Session, pkg any) { got <- pkg.(UDPContext).Pkg }
	client := udp.connect(t, server.Addr().String(), with(&lengthCodec{}, events), WithConnectionNumber(2))
	a, b := recv(t, events.opened, "OnOpen"), recv(t, events.opened, "OnOpen")
	for _, s := range []Session{a, b} {
		for _, pkg := range []any{"plain", UDPContext{"plain", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 9), Port: 9}}} {
			if _, _, err := s.WritePkg(pkg, 0); err != nil {
				t.Error(err)
			}
			if g := recv(t, got, "answer"); g != "plain" {
				t.Errorf("%v", g)
			}
		}
		s.WriteBytesArray([]byte{0, 0}, []byte{0, 2, 'h'}, []byte("i"))
		if g := recv(t, got, "answer"); g != "hi" {
			t.Errorf("%v", g)
		}
	}
	a.Close()
	recv(t, events.closed, "OnClose")
	c := recv(t, events.opened, "OnOpen of another session")
	server.Close()
	if runtime.GOOS == "linux" { // not every system tells
		c.WritePkg("x", 0)
		recv(t, events.failed, "OnError")
	}
	if c.IsClosed() {
		t.Error("closed because the server was not there")
	}
	client.Close()
}
