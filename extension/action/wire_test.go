package action

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	gobwas "github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
)

func vectors(n *Instance) {
	n.Router().Route(1, echo).Route(4, func(*Context) (any, error) { return nil, nil })
}

// Row Z9: the frames of TCP, byte for byte.
func TestZ09WireTCP(t *testing.T) {
	adapters(t, func(t *testing.T, adapter Option) {
		s := serve(t, vectors, adapter)
		for _, v := range [][2]string{
			{"00000015 0001 0007 7b22666f6f223a22626172227d", "00000015 0001 0007 7b22666f6f223a22626172227d"},
			{"0000000a 0004 0009 7b7d", "0000000c 0004 0009 6e756c6c"},
			{"00000008 0004 8001", "0000000c 0004 8001 6e756c6c"}, // no body, a negative number
		} {
			p := dialPeer(t, s.tcp)
			p.write(unhex(t, v[0]))
			want := unhex(t, v[1])
			got := append(unhex(t, fmt.Sprintf("%08x", len(want))), p.recv()...)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: got %x", v[0], got)
			}
		}
	})
}

// Row Z10: the messages of WebSocket, byte for byte.
func TestZ10WireWebSocket(t *testing.T) {
	adapters(t, func(t *testing.T, adapter Option) {
		s := serve(t, vectors, adapter)
		p := dialWSPeer(t, s.ws)
		p.send(unhex(t, "0001 0005 7b2278223a317d"))
		got := make([]byte, 13)
		if _, err := readFull(p, got); err != nil || !bytes.Equal(got, unhex(t, "82 0b 0001 0005 7b2278223a317d")) {
			t.Fatalf("got %x, %v", got, err)
		}
		t.Run("text", func(t *testing.T) {
			p.op = gobwas.OpText
			p.send(unhex(t, "0001 0006 7b2278223a317d"))
			wantPacket(t, p.recv(), 1, 6, `{"x":1}`)
		})
		t.Run("fragments", func(t *testing.T) {
			first, last := gobwas.NewFrame(gobwas.OpBinary, false, packet(1, 7, `{"x"`)), gobwas.NewFrame(gobwas.OpContinuation, true, []byte(`:2}`))
			for _, f := range []gobwas.Frame{first, gobwas.NewPingFrame([]byte("between")), last} {
				must(t, gobwas.WriteFrame(p, gobwas.MaskFrame(f)))
			}
			wantPacket(t, p.recv(), 1, 7, `{"x":2}`)
		})
	})
}

func readFull(r interface{ Read([]byte) (int, error) }, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// Row Z2: TCP and WebSocket at the same time, with the same route.
func TestZ02BothTransports(t *testing.T) {
	s := serve(t, vectors)
	for _, p := range []peer{dialPeer(t, s.tcp), dialWSPeer(t, s.ws), dialPeer(t, s.tcp), dialWSPeer(t, s.ws)} {
		p.send(packet(1, 3, `{"a":"b"}`))
		defer wantPacketLater(t, p, 1, 3, `{"a":"b"}`)()
	}
}

func wantPacketLater(t *testing.T, p peer, action, seq int16, body string) func() {
	return func() { wantPacket(t, p.recv(), action, seq, body) }
}

// Row Z5: JSON and Protobuf, chosen per instance.
func TestZ05Codecs(t *testing.T) {
	upper := StandardHandler(func(_ *Context, req *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
		return wrapperspb.String(strings.ToUpper(req.Value)), nil
	})
	type text struct{ Value string }
	t.Run("json", func(t *testing.T) {
		s := serve(t, func(n *Instance) {
			n.Router().Route(1, StandardHandler(func(_ *Context, req *text) (*text, error) { return &text{strings.ToUpper(req.Value)}, nil }))
		})
		p := dialPeer(t, s.tcp)
		p.send(packet(1, 1, `{"Value":"hello"}`))
		wantPacket(t, p.recv(), 1, 1, `{"Value":"HELLO"}`)
	})
	t.Run("protobuf", func(t *testing.T) {
		failed := make(chan error, 1)
		s := serve(t, func(n *Instance) {
			n.Router().Route(1, upper).Route(2, func(*Context) (any, error) { return text{"no message"}, nil })
		}, Codec(codec.Protobuf{}), OnError(func(_ *Context, err error) { failed <- err }))
		req, err := proto.Marshal(wrapperspb.String("hello"))
		must(t, err)
		rsp, err := proto.Marshal(wrapperspb.String("HELLO"))
		must(t, err)
		for _, p := range []peer{dialPeer(t, s.tcp), dialWSPeer(t, s.ws)} {
			p.send(packet(2, 1, string(req)), packet(1, 2, string(req)))
			wantPacket(t, p.recv(), 1, 2, string(rsp)) // nothing for the first one
			if err := recv(t, failed, "error"); !errors.Is(err, codec.ErrNotProto) || arpc.CodeOf(err) != arpc.CodeInternal {
				t.Fatalf("error %v", err)
			}
		}
		p := dialWSPeer(t, s.ws)
		p.op = gobwas.OpText
		p.send(packet(1, 3, string(req)))
		_, _, err = wsutil.ReadServerData(p)
		var closed wsutil.ClosedError
		if !errors.As(err, &closed) || closed.Code != gobwas.StatusUnsupportedData {
			t.Fatalf("a text message: %v", err)
		}
	})
}

// A frame in pieces of one byte is one frame.
func TestFragmentation(t *testing.T) {
	transports(t, vectors, func(t *testing.T, s *server, dial func() peer) {
		p := dial()
		var wire []byte
		if w, ok := p.(*wsPeer); ok {
			var b bytes.Buffer
			must(t, wsutil.WriteClientBinary(&b, packet(1, 2, `{"x":"yz"}`)))
			wire, p = b.Bytes(), w
		} else {
			wire = framed(packet(1, 2, `{"x":"yz"}`))
		}
		for _, b := range wire {
			if _, err := p.(interface{ Write([]byte) (int, error) }).Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
		}
		wantPacket(t, p.recv(), 1, 2, `{"x":"yz"}`)
	})
}

// Upstream has answered the first of several frames of a write only.
func TestPipelined1000FramesInOneWrite(t *testing.T) {
	transports(t, vectors, func(t *testing.T, s *server, dial func() peer) {
		p := dial()
		var all [][]byte
		for i := range 1000 {
			all = append(all, packet(1, int16(i), fmt.Sprintf(`{"i":%d}`, i)))
		}
		sent := make(chan struct{})
		go func() { defer close(sent); p.send(all...) }()
		for i := range 1000 {
			wantPacket(t, p.recv(), 1, int16(i), fmt.Sprintf(`{"i":%d}`, i))
		}
		recv(t, sent, "end of the writing")
	})
}

// Upstream closes connections for packets above 512 bytes, or truncates them.
func TestLargePackets(t *testing.T) {
	transports(t, vectors, func(t *testing.T, s *server, dial func() peer) {
		p := dial()
		for _, n := range []int{505, 600, 4000, 65_000, 70_000, 300_000} {
			body := fmt.Sprintf(`{"x":"%s"}`, strings.Repeat("y", n))
			p.send(packet(1, 1, `{"small":1}`), packet(1, 2, body), packet(1, 3, `{"small":2}`))
			wantPacket(t, p.recv(), 1, 1, `{"small":1}`)
			wantPacket(t, p.recv(), 1, 2, body)
			wantPacket(t, p.recv(), 1, 3, `{"small":2}`)
		}
	}, Limits{Frame: 1 << 20})
}

// What is not a frame closes its connection, and nothing else happens.
func TestBadFrames(t *testing.T) {
	adapters(t, func(t *testing.T, adapter Option) {
		s := serve(t, vectors, adapter)
		other := dialPeer(t, s.tcp)
		for _, bad := range []string{"00000000", "00000004", "00000007", "00010001 0001", "7fffffff 0001 0001", "ffffffff", "80000008 0001 0001"} {
			p := dialPeer(t, s.tcp)
			p.write(unhex(t, bad))
			p.end()
		}
		for _, bad := range [][]byte{nil, {0}, {0, 1, 0}, packet(1, 1, strings.Repeat("x", 64<<10))} {
			p := dialWSPeer(t, s.ws)
			p.send(bad)
			p.end()
		}
		other.send(packet(1, 1, `{}`))
		wantPacket(t, other.recv(), 1, 1, `{}`)
	})
}

// Who shuts the writing side down after its requests gets the replies.
func TestHalfClose(t *testing.T) {
	adapters(t, func(t *testing.T, adapter Option) {
		s := serve(t, vectors, adapter)
		p := dialPeer(t, s.tcp)
		p.send(packet(1, 1, `{"a":1}`), packet(1, 2, `{"b":2}`))
		must(t, p.Conn.(*net.TCPConn).CloseWrite())
		wantPacket(t, p.recv(), 1, 1, `{"a":1}`)
		wantPacket(t, p.recv(), 1, 2, `{"b":2}`)
		p.end()
	})
}

// The longest frame is taken, one more byte is not; and no reply is longer than that.
func TestFrameLimit(t *testing.T) {
	failed := make(chan error, 1)
	s := serve(t, func(n *Instance) {
		n.Router().Route(1, func(ctx *Context) (any, error) { return len(ctx.Packet().Body), nil }).
			Route(2, func(ctx *Context) (any, error) { return strings.Repeat("x", 1000), nil })
	}, Limits{Frame: 1000}, OnError(func(_ *Context, err error) { failed <- err }))
	for _, dial := range []func() peer{func() peer { return dialPeer(t, s.tcp) }, func() peer { return dialWSPeer(t, s.ws) }} {
		p := dial()
		p.send(packet(2, 1, ""), packet(1, 2, strings.Repeat("x", 992)))
		wantPacket(t, p.recv(), 1, 2, "992")
		wantCode(t, recv(t, failed, "error for a long reply"), arpc.CodeInternal)
		p.send(packet(1, 3, strings.Repeat("x", 993)))
		p.end()
	}
	if n := New(Limits{Frame: 1 << 30}); n.cfg.Frame != MaxFrame {
		t.Errorf("a limit of %d", n.cfg.Frame)
	}
}

// A peer that leaves a frame incomplete is in nobody's way. Upstream 80 of them have stopped others.
func TestSlowHeaderBlocksNobody(t *testing.T) {
	transports(t, vectors, func(t *testing.T, s *server, dial func() peer) {
		for range 80 {
			p := dial()
			if _, err := p.(interface{ Write([]byte) (int, error) }).Write([]byte{0x82}[:1]); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 20 {
			p := dial()
			p.send(packet(1, int16(i), `{}`))
			wantPacket(t, p.recv(), 1, int16(i), `{}`)
		}
	})
}

// A peer that says nothing on the WebSocket port is in nobody's way, and does not stay.
func TestSilentPeerOnWebSocketPort(t *testing.T) {
	s := serve(t, vectors)
	addr := strings.TrimSuffix(strings.TrimPrefix(s.ws, "ws://"), "/")
	var silent []*tcpPeer
	for range 50 {
		silent = append(silent, dialPeer(t, addr))
	}
	for range 5 {
		p := dialWSPeer(t, s.ws)
		p.send(packet(1, 1, `{}`))
		wantPacket(t, p.recv(), 1, 1, `{}`)
		p.Close()
	}
	must(t, s.stop())
	for _, p := range silent {
		p.end()
	}
}

func TestOrigins(t *testing.T) {
	open := func(url, origin string) error {
		d := gobwas.Dialer{Timeout: patience, Header: gobwas.HandshakeHeaderHTTP{"Origin": {origin}}}
		nc, _, _, err := d.Dial(within(t), url)
		if err == nil {
			nc.Close()
		}
		return err
	}
	s := serve(t, nil, Origins("https://app.example.com"), Path("/chat"))
	for origin, ok := range map[string]bool{
		"https://app.example.com": true, "https://evil.example.com": false, "null": false, strings.TrimSuffix(strings.Replace(s.ws, "ws:", "http:", 1), "/"): true,
	} {
		if err := open(s.ws+"chat", origin); (err == nil) != ok {
			t.Errorf("origin %s: %v", origin, err)
		}
	}
	if err := open(s.ws, "https://app.example.com"); err == nil {
		t.Error("another path was answered")
	}
	if err := open(serve(t, nil, Origins("*")).ws, "https://evil.example.com"); err != nil {
		t.Error(err)
	}
}
