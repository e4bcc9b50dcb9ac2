package session

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	gobwas "github.com/gobwas/ws"
)

// dialWS does a handshake and leaves the frames to the test.
func dialWS(t testing.TB, url string) net.Conn {
	t.Helper()
	nc, br, _, err := gobwas.Dialer{}.Dial(context.Background(), url)
	must(t, err)
	if br != nil {
		t.Fatal("bytes behind the handshake")
	}
	return nc
}

// readFrame reads a frame, skipping none.
func readFrame(t testing.TB, nc net.Conn) (f gobwas.Frame) {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(patience))
	h, err := gobwas.ReadHeader(nc)
	must(t, err)
	f = gobwas.Frame{Header: h, Payload: make([]byte, min(h.Length, 1<<20))}
	_, err = io.ReadFull(nc, f.Payload)
	must(t, err)
	return f
}

func writeFrame(t testing.TB, nc net.Conn, f gobwas.Frame) {
	t.Helper()
	must(t, gobwas.WriteFrame(nc, gobwas.MaskFrame(f)))
}

// Q5: a ping in each period, from both ends; a pong makes the session active, and is no package.
func TestQ5PingEveryPeriodAndPong(t *testing.T) {
	onEach(t, []transport{wsPoll, wsStd}, func(t *testing.T, tr transport) {
		served := newEvents(t)
		crons := make(chan time.Time, 1000)
		served.onCron = func(s Session) { crons <- s.GetActive() }
		server := tr.serve(t, with(&lengthCodec{}, served, func(s Session) { s.SetCronPeriod(20) }))
		nc := dialWS(t, tr.address(server.Addr().String()))
		defer nc.Close()
		s := recv(t, served.opened, "OnOpen")
		ping := func() (active time.Time) {
			t.Helper()
			if f := readFrame(t, nc); f.Header.OpCode != gobwas.OpPing || len(f.Payload) != 0 {
				t.Fatalf("%+v", f.Header)
			}
			return recv(t, crons, "OnCron")
		}
		before := ping()
		for time.Since(before) < 200*time.Millisecond { // without pongs it becomes inactive
			before = ping()
		}
		for active := before; active.Sub(before) < 150*time.Millisecond; active = ping() {
			writeFrame(t, nc, gobwas.NewPongFrame(nil))
		}
		if st := s.Stats(); st.ReadPkgs != 0 || st.ReadBytes != 0 {
			t.Errorf("%+v", st)
		}
		// two ends of this package keep each other active, with nothing but that
		events := newEvents(t)
		pinged := make(chan time.Time, 1000)
		events.onCron = func(s Session) { pinged <- s.GetActive() }
		tr.connect(t, server.Addr().String(), with(&lengthCodec{}, events, func(s Session) { s.SetCronPeriod(20) }))
		first := recv(t, events.opened, "OnOpen").GetActive()
		for recv(t, pinged, "OnCron").Sub(first) < 150*time.Millisecond {
		}
	})
}

// Messages that are no packages are dropped; one above the limit ends the session; a peer's end is orderly.
func TestWebSocketMessages(t *testing.T) {
	onEach(t, []transport{wsPoll, wsStd}, func(t *testing.T, tr transport) {
		served, got := newEvents(t), make(chan string, 10)
		served.onMessage = func(_ Session, pkg any) { got <- pkg.(string) }
		server := tr.serve(t, with(&lengthCodec{}, served, func(s Session) { s.SetMaxMsgLen(100) }))
		nc := dialWS(t, tr.address(server.Addr().String()))
		defer nc.Close()
		s := recv(t, served.opened, "OnOpen")
		writeFrame(t, nc, gobwas.NewBinaryFrame([]byte{0, 0, 0xb, 0xad}))
		writeFrame(t, nc, gobwas.NewBinaryFrame(encode("cut")[:5]))
		writeFrame(t, nc, gobwas.NewBinaryFrame(nil))
		writeFrame(t, nc, gobwas.NewTextFrame(append(encode("two"), encode("packages")...)))
		first, rest := gobwas.NewFrame(gobwas.OpBinary, false, encode("in pieces")[:7]), gobwas.NewFrame(gobwas.OpContinuation, true, encode("in pieces")[7:])
		writeFrame(t, nc, first)
		writeFrame(t, nc, gobwas.NewPingFrame([]byte("x")))
		writeFrame(t, nc, rest)
		for _, want := range []string{"two", "packages", "in pieces"} {
			if g := recv(t, got, "package"); g != want {
				t.Errorf("%q, want %q", g, want)
			}
		}
		if st := s.Stats(); st.Dropped != 2 || st.ReadPkgs != 3 {
			t.Errorf("%+v", st)
		}
		if f := readFrame(t, nc); f.Header.OpCode != gobwas.OpPong || string(f.Payload) != "x" {
			t.Errorf("%+v", f)
		}
		if n, err := s.WriteBytesArray([]byte("a"), nil, []byte("bc")); n != 3 || err != nil {
			t.Error(n, err)
		}
		if f := readFrame(t, nc); f.Header.OpCode != gobwas.OpBinary || string(f.Payload) != "abc" {
			t.Errorf("%+v", f)
		}
		writeFrame(t, nc, gobwas.NewBinaryFrame(encode(strings.Repeat("x", 97))))
		f := readFrame(t, nc)
		if code, _ := gobwas.ParseCloseFrameData(f.Payload); f.Header.OpCode != gobwas.OpClose || code != gobwas.StatusMessageTooBig {
			t.Errorf("%+v %v", f.Header, code)
		}
		nc.Close()
		recv(t, served.failed, "OnError")
		recv(t, served.closed, "OnClose")

		nc = dialWS(t, tr.address(server.Addr().String()))
		s = recv(t, served.opened, "OnOpen")
		s.Close()
		f = readFrame(t, nc)
		if code, _ := gobwas.ParseCloseFrameData(f.Payload); f.Header.OpCode != gobwas.OpClose || code != gobwas.StatusNormalClosure {
			t.Errorf("%+v %v", f.Header, code)
		}
		nc.Close()
		recv(t, served.closed, "OnClose")
		if len(served.failed) != 0 {
			t.Errorf("OnError %v", <-served.failed)
		}
	})
}

// A web page of another host is refused unless it is allowed; so is another path.
func TestWebSocketHandshake(t *testing.T) {
	for _, tt := range []struct {
		allowed, origin, path string
		ok                    bool
	}{
		{"", "", "/echo", true},
		{"", "", "/other", false},
		{"", "https://evil.example", "/echo", false},
		{"https://good.example", "https://good.example", "/echo", true},
		{"https://good.example", "https://evil.example", "/echo", false},
		{"*", "https://evil.example", "/echo", true},
	} {
		server := wsPoll.serve(t, with(&lengthCodec{}, newEvents(t)), WithWebsocketServerOrigins(tt.allowed))
		d := gobwas.Dialer{Header: gobwas.HandshakeHeaderHTTP{"Origin": {tt.origin}}}
		nc, _, _, err := d.Dial(context.Background(), "ws://"+server.Addr().String()+tt.path)
		if (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt, err)
		}
		if nc != nil {
			nc.Close()
		}
	}
}

// A panic ends a session with WebSocket, but not that of a UDP server, which all peers share.
func TestPanicInOnMessage(t *testing.T) {
	served := newEvents(t)
	served.onMessage = func(Session, any) { panic("test") }
	server := wsPoll.serve(t, with(&lengthCodec{}, served))
	nc := dialWS(t, wsPoll.address(server.Addr().String()))
	defer nc.Close()
	writeFrame(t, nc, gobwas.NewBinaryFrame(encode("x")))
	f := readFrame(t, nc)
	if code, text := gobwas.ParseCloseFrameData(f.Payload); f.Header.OpCode != gobwas.OpClose || code != gobwas.StatusPolicyViolation {
		t.Errorf("%v %v %q", f.Header, code, text)
	}
	nc.Close()
	if err := recv(t, served.failed, "OnError"); err != errPanic {
		t.Error(err)
	}
	recv(t, served.closed, "OnClose")

	all, got := newEvents(t), make(chan any, 1)
	all.onMessage = func(_ Session, pkg any) {
		if got <- pkg.(UDPContext).Pkg; pkg.(UDPContext).Pkg == "bad" {
			panic("test")
		}
	}
	peer := dialUDP(t, udp.serve(t, with(&lengthCodec{}, all)).Addr().String())
	for _, text := range []string{"bad", "good"} {
		peer.Write(encode(text))
		if g := recv(t, got, "package"); g != text {
			t.Errorf("%v", g)
		}
	}
	if s := recv(t, all.opened, "OnOpen"); s.IsClosed() || s.Stats().ReadPkgs != 2 {
		t.Errorf("closed %v, %+v", s.IsClosed(), s.Stats())
	}
}
