package arpc

import (
	"context"
	"encoding/hex"
	"errors"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc/codec"
)

// fullHello offers everything, with the defaults of Limits.
func fullHello() hello {
	return hello{
		version: protocolVersion, features: ourFeatures, maxBody: DefaultMaxBodyLen, metadata: 16 << 10,
		window: 512 << 10, connWindow: 16 << 20, streams: 1024, names: "json,protobuf,",
	}
}

// plainHello is it without the names of codecs.
func plainHello() hello {
	h := fullHello()
	h.names = ""
	return h
}

// fullHelloHex is the same in bytes, written down by hand.
const fullHelloHex = plainHelloHex + "046a736f6e" + "0870726f746f627566"

// plainHelloHex is it without the names of codecs.
const plainHelloHex = "61727063" + "02" + "20" + "0000" + "1f000000" + "f0ffff03" + "00400000" + "00000800" + "00000001" + "00040000"

const (
	helloPingHex = "2e000000" + "00040000" + "0000000000000000" + fullHelloHex
	helloPongHex = "2e000000" + "00050000" + "0000000000000000" + fullHelloHex
)

// dialGreeted connects to a server and agrees with it on what h offers.
func dialGreeted(t testing.TB, addr string, h hello) *rawPeer {
	t.Helper()
	p := dialRaw(t, addr)
	p.send(helloFrame(CmdPing, h))
	if m := p.frame(); m.Cmd() != CmdPong || !isHello(m.Buffer[HeadLen:]) {
		t.Fatalf("HELLO was answered with %x", m.Buffer)
	}
	return p
}

// startDial starts a client of a listener and returns the other end of its first connection, of which nothing was read.
func startDial(t testing.TB, ln *rawServer, opts ...ClientOption) (p *rawPeer, client <-chan *Client, failed <-chan error) {
	t.Helper()
	clients, errs := make(chan *Client, 1), make(chan error, 1)
	opts = append([]ClientOption{NewHandler()}, opts...)
	over := make(chan struct{})
	go func() {
		defer close(over)
		c, err := NewClient(dialer(ln.addr()), opts...)
		if err != nil {
			errs <- err
			return
		}
		clients <- c
		t.Cleanup(c.Stop)
	}()
	t.Cleanup(func() { recv(t, over, "end of NewClient") })
	return ln.accept(), clients, errs
}

// acceptGreeted makes a client whose peer speaks bytes and has answered h.
func acceptGreeted(t testing.TB, h hello, opts ...ClientOption) (*Client, *rawPeer) {
	t.Helper()
	p, client, _ := startDial(t, listenRaw(t), opts...)
	if m := p.frame(); m.Cmd() != CmdPing || !isHello(m.Buffer[HeadLen:]) {
		t.Fatalf("the client began with %x", m.Buffer)
	}
	p.send(helloFrame(CmdPong, h))
	return recv(t, client, "client"), p
}

// greetedEnds runs a test with each kind of live end against a peer that speaks the bytes of version 2.
func greetedEnds(t *testing.T, h hello, f func(t *testing.T, c *Client, p *rawPeer)) {
	t.Run("client", func(t *testing.T) {
		c, p := acceptGreeted(t, h)
		f(t, c, p)
	})
	t.Run("server", func(t *testing.T) {
		onAdapters(t, func(t *testing.T, adapter ServerOption) {
			s := startServer(t, adapter)
			p := dialGreeted(t, s.addr, h)
			f(t, s.waitClients(t, 1)[0], p)
		})
	})
}

// version1Ends runs a test with each kind of live end that would speak version 2, against a peer that does not.
func version1Ends(t *testing.T, f func(t *testing.T, c *Client, p *rawPeer)) {
	t.Run("client", func(t *testing.T) {
		p, client, _ := startDial(t, listenRaw(t))
		p.wants("HELLO", helloPingHex)
		p.send(unhex(goldenPong))
		f(t, recv(t, client, "client"), p)
	})
	t.Run("server", func(t *testing.T) {
		onAdapters(t, func(t *testing.T, adapter ServerOption) {
			s := startServer(t, adapter)
			p := dialRaw(t, s.addr)
			p.send(unhex(goldenPing))
			p.wants("pong", goldenPong)
			f(t, s.waitClients(t, 1)[0], p)
		})
	})
}

func TestHelloEncoding(t *testing.T) {
	for _, tt := range []struct {
		name string
		h    hello
		want string
	}{
		{"defaults", fullHello(), fullHelloHex},
		{"nothing", hello{version: 2, maxBody: 4096},
			"6172706302200000" + "00000000" + "00100000" + "00000000" + "00000000" + "00000000" + "00000000"},
		{"one codec", hello{version: 2, features: 1, maxBody: 0x01020304, metadata: 0x05060708, window: 0x090a0b0c,
			connWindow: 0x0d0e0f10, streams: 0x11121314, names: "json,"},
			"6172706302200000" + "01000000" + "04030201" + "08070605" + "0c0b0a09" + "100f0e0d" + "14131211" + "04" + "6a736f6e"},
		{"two codecs", hello{version: 2, features: 2, maxBody: math.MaxUint32, names: "json,pb,"},
			"6172706302200000" + "02000000" + "ffffffff" + "00000000" + "00000000" + "00000000" + "00000000" + "046a736f6e" + "027062"},
		{"a later version, unknown features", hello{version: 255, features: math.MaxUint32 &^ featStreams, maxBody: 4096},
			"61727063ff200000" + "f7ffffff" + "00100000" + "00000000" + "00000000" + "00000000" + "00000000"},
	} {
		if got := hex.EncodeToString(tt.h.append(nil)); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
		if got := hex.EncodeToString(tt.h.append([]byte{0xaa})); got != "aa"+tt.want {
			t.Errorf("%s, appended: %s", tt.name, got)
		}
		h, err := parseHello(unhex(tt.want))
		if err != nil || h != tt.h {
			t.Errorf("%s: parsed as %+v, %v", tt.name, h, err)
		}
	}
	for _, tt := range []struct {
		body string
		want bool
	}{{"", false}, {"617270", false}, {"61727063", true}, {"4172706302", false}, {fullHelloHex, true}, {"0061727063", false}} {
		if got := isHello(unhex(tt.body)); got != tt.want {
			t.Errorf("isHello of %q is %v", tt.body, got)
		}
	}
}

// changed returns fullHello's bytes with some of them replaced, and more after them.
func changed(at int, with string, more ...string) string {
	return plainHelloHex[:2*at] + with + plainHelloHex[2*at+len(with):] + strings.Join(more, "")
}

// Bytes of a HELLO that is understood although it is not what this version sends.
func TestHelloTolerates(t *testing.T) {
	names := strings.Repeat("fe"+strings.Repeat("61", 254), 15) // 3825 bytes
	for _, tt := range []struct {
		name, body string
		want       func(h *hello)
	}{
		{"reserved bytes", changed(6, "ffff"), func(*hello) {}},
		{"a longer fixed part", changed(5, "24", "deadbeef", "0161"), func(h *hello) { h.names = "a," }},
		{"a fixed part that ends with the body", changed(5, "24", "deadbeef"), func(*hello) {}},
		{"version 3", changed(4, "03"), func(h *hello) { h.version = 3 }},
		{"unknown features", changed(8, "1f0000f0"), func(h *hello) { h.features |= 0xf0000000 }},
		{"no windows without streams", changed(8, "17000000", "")[:2*20] + "0000000000000000" + plainHelloHex[2*28:],
			func(h *hello) { h.features, h.window, h.connWindow = 0x17, 0, 0 }},
		{"the smallest body and windows", changed(12, "01000000"+"00000000"+"00100000"+"00100000"+"00000000"),
			func(h *hello) { h.maxBody, h.metadata, h.window, h.connWindow, h.streams = 1, 0, 4096, 4096, 0 }},
		{"the largest windows", changed(20, "ffffff7f"+"ffffff7f"),
			func(h *hello) { h.window, h.connWindow = math.MaxInt32, math.MaxInt32 }},
		{"4096 bytes", plainHelloHex + names + "ee" + strings.Repeat("62", 238), func(h *hello) {
			h.names = strings.Repeat(strings.Repeat("a", 254)+",", 15) + strings.Repeat("b", 238) + ","
		}},
	} {
		want := plainHello()
		tt.want(&want)
		if h, err := parseHello(unhex(tt.body)); err != nil || h != want {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", tt.name, h, err, want)
		}
	}
}

var malformedHellos = []struct{ name, body, reason string }{
	{"the magic alone", "61727063", "4 bytes"},
	{"one byte short", plainHelloHex[:2*31], "31 bytes"},
	{"above 4096 bytes", plainHelloHex + strings.Repeat("0161", 2033), "4098 bytes"},
	{"version 0", changed(4, "00"), "version 0"},
	{"version 1", changed(4, "01"), "version 1"},
	{"fixed part of 0", changed(5, "00"), "fixed part of 0 bytes"},
	{"fixed part of 31", changed(5, "1f"), "fixed part of 31 bytes"},
	{"fixed part beyond the end", changed(5, "21"), "fixed part of 33 bytes"},
	{"no bodies", changed(12, "00000000"), "longest body of 0 bytes"},
	{"a small window", changed(20, "ff0f0000"), "windows of 4095"},
	{"no window", changed(20, "00000000"), "windows of 0"},
	{"less for all streams than for one", changed(24, "ffff0700"), "windows of 524288 and 524287"},
	{"a window above 31 bits", changed(24, "00000080"), "windows of 524288 and 2147483648"},
	{"an empty name", plainHelloHex + "00", "names"},
	{"an empty name after another", plainHelloHex + "016100", "names"},
	{"a name beyond the end", plainHelloHex + "0261", "names"},
	{"a name's length and nothing else", plainHelloHex + "01", "names"},
	{"a comma in a name", plainHelloHex + "03612c62", "names"},
}

func TestHelloMalformed(t *testing.T) {
	for _, tt := range malformedHellos {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseHello(unhex(tt.body))
			if CodeOf(err) != CodeInvalidArgument || !strings.HasPrefix(err.Error(), "malformed HELLO: ") ||
				!strings.Contains(err.Error(), tt.reason) {
				t.Errorf("%v (%v), want %q", err, CodeOf(err), tt.reason)
			}
			t.Run("to a client", func(t *testing.T) {
				p, _, failed := startDial(t, listenRaw(t))
				p.wants("HELLO", helloPingHex)
				p.send(frameOf(CmdPong, 0, 0, "", string(unhex(tt.body))))
				if rest := p.end(); len(rest) > 0 {
					t.Errorf("the client sent %x", rest)
				}
				p.Close() //nolint:errcheck // the client waits for it, a second at most
				err := recv(t, failed, "failed dial")
				if CodeOf(err) != CodeUnavailable || !strings.Contains(err.Error(), "malformed HELLO: ") ||
					!strings.Contains(err.Error(), tt.reason) {
					t.Errorf("the dial fails with %v (%v)", err, CodeOf(err))
				}
			})
			t.Run("to a server", func(t *testing.T) {
				onAdapters(t, func(t *testing.T, adapter ServerOption) {
					s := startServer(t, adapter)
					p := dialRaw(t, s.addr)
					c := s.waitClients(t, 1)[0]
					p.send(frameOf(CmdPing, 0, 0, "", string(unhex(tt.body))))
					if rest := p.end(); len(rest) > 0 {
						t.Errorf("the server sent %x", rest)
					}
					if err := c.CheckState(); !errors.Is(err, ErrClientStopped) ||
						!strings.Contains(err.Error(), "malformed HELLO: "+tt.reason) {
						t.Errorf("the connection ended with %v", err)
					}
				})
			})
		})
	}
}

// The server answers with what both ends have, and with its own limits.
func TestHelloAnswer(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		for _, offered := range []features{
			0, featMetadata, featCancel, featErrors, featStreams, featGoAway, featMetadata | featStreams, ourFeatures,
			ourFeatures | 1<<5, math.MaxUint32, 1 << 31,
		} {
			h := fullHello()
			h.features = offered
			h.metadata, h.streams = 99, 7 // the answer is not an echo
			p := dialRaw(t, s.addr)
			p.send(helloFrame(CmdPing, h))
			want := fullHello()
			want.features = offered & (featMetadata | featCancel | featErrors | featStreams | featGoAway)
			p.wants("answer", hex.EncodeToString(helloFrame(CmdPong, want)))
			c := s.waitClients(t, 1)[0]
			if l := c.link.Load(); features(l.feat.Load()) != want.features || l.peer.Value().metadata != 99 ||
				l.peer.Value().streams != 7 {
				t.Errorf("offered %#x: the server has %#x, %+v", offered, l.feat.Load(), l.peer.Value())
			}
			p.Close() //nolint:errcheck // the test is over
			s.waitClients(t, 0)
		}
		p := dialRaw(t, s.addr)
		p.send(unhex(helloPingHex))
		p.wants("answer with all bytes", helloPongHex)
	})
}

// The limits of both ends stand in their HELLOs.
func TestHelloLimits(t *testing.T) {
	limits := Limits{Metadata: 100, Streams: 5, StreamWindow: 1, StreamWindows: 20000} // a window has at least 4096 bytes
	const want = "6172706302200000" + "1f000000" + "00200000" + "64000000" + "00100000" + "204e0000" + "05000000" + "046a736f6e" + "0870726f746f627566"
	h := NewHandler()
	h.SetMaxBodyLen(8192)
	p, client, _ := startDial(t, listenRaw(t), h, limits)
	if m := p.frame(); hex.EncodeToString(m.Buffer[HeadLen:]) != want {
		t.Errorf("the client says\n     %x\nwant %s", m.Buffer[HeadLen:], want)
	}
	p.send(unhex(helloPongHex))
	recv(t, client, "client")
	s := startServer(t, h.Clone(), limits)
	p = dialRaw(t, s.addr)
	p.send(unhex(helloPingHex))
	if m := p.frame(); hex.EncodeToString(m.Buffer[HeadLen:]) != want {
		t.Errorf("the server says\n     %x\nwant %s", m.Buffer[HeadLen:], want)
	}
	if s := newLimits(Limits{Metadata: -1, Streams: -1, StreamWindow: -1, StreamWindows: -1}); s != [4]int{65535, math.MaxInt32, 1 << 30, 1 << 30} {
		t.Errorf("no limits are %v", s)
	}
	if s := newLimits(Limits{Metadata: 1 << 20, StreamWindow: 1 << 20, StreamWindows: 4096}); s != [4]int{65535, 1024, 1 << 20, 1 << 20} {
		t.Errorf("limits beyond what is possible are %v", s)
	}
}

func newLimits(l Limits) [4]int {
	var r rpc
	r.limit(l)
	return [4]int{r.maxMetadata, r.maxStreams, r.window, r.connWindow}
}

// An end may take short bodies only; the other refuses to send it longer ones.
func TestHelloSmallMaxBodyLen(t *testing.T) {
	seen := make(chan bool, 1)
	small := func() Handler {
		h := NewHandler()
		h.SetMaxBodyLen(1000)
		h.Handle("/e", func(c *Context) {
			_, ok := c.Deadline()
			seen <- ok
			c.Write(c.Body())
		})
		return h
	}
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		for _, tt := range []struct {
			name           string
			server, client Handler
		}{{"server", small(), NewHandler()}, {"client", NewHandler(), small()}} {
			t.Run(tt.name, func(t *testing.T) {
				s := startServer(t, adapter, tt.server)
				c, err := NewClient(dialer(s.addr), tt.client, Limits{Handshake: patience})
				must(t, err)
				defer c.Stop()
				if tt.name == "client" {
					c = s.waitClients(t, 1)[0]
				}
				// "/e" and four bytes of deadline; the deadline is left out for a call that fits without it only.
				for _, x := range []struct {
					n        int
					deadline bool
					code     Code
				}{{1, true, 0}, {994, true, 0}, {995, false, 0}, {998, false, 0}, {999, false, CodeInvalidArgument},
					{5000, false, CodeInvalidArgument}, {1, true, 0}} {
					var r string
					err := c.Call("/e", strings.Repeat("x", x.n), &r, patience)
					if CodeOf(err) != x.code || err == nil && len(r) != x.n {
						t.Errorf("with %d bytes: %d bytes, %v", x.n, len(r), err)
					}
					if err == nil {
						if got := recv(t, seen, "deadline"); got != x.deadline {
							t.Errorf("with %d bytes the handler's deadline is there: %v", x.n, got)
						}
					}
				}
			})
		}
	})
}

// namedCodec has a name.
type namedCodec struct {
	codec.JSONCodec
	name string
	hook func()
}

func (c namedCodec) Name() string {
	if c.hook != nil {
		c.hook()
	}
	return c.name
}

func TestHelloCodecName(t *testing.T) {
	s := NewServer(NewHandler())
	s.Codec = namedCodec{name: "mine"}
	ln := listenTCP(t)
	over := make(chan error, 1)
	go func() { over <- s.Serve(ln) }()
	defer func() {
		must(t, s.Stop())
		recv(t, over, "return from Serve")
	}()
	p := dialRaw(t, ln.Addr().String())
	p.send(unhex(helloPingHex))
	p.wants("answer", "33"+helloPongHex[2:len(helloPongHex)-len("046a736f6e0870726f746f627566")]+
		"04"+hex.EncodeToString([]byte("mine"))+"046a736f6e0870726f746f627566")
	p.Close() //nolint:errcheck // Stop waits for it, a second at most
}

// What the peer does not have, or has not offered, is not agreed on.
func TestHelloAnswerBeyondTheOffer(t *testing.T) {
	for _, f := range []features{ourFeatures | 1<<5, 1 << 31, math.MaxUint32} {
		p, _, failed := startDial(t, listenRaw(t))
		p.wants("HELLO", helloPingHex)
		h := fullHello()
		h.features = f
		p.send(helloFrame(CmdPong, h))
		p.end()
		p.Close() //nolint:errcheck // the client waits for it, a second at most
		if err := recv(t, failed, "failed dial"); CodeOf(err) != CodeUnavailable ||
			!strings.Contains(err.Error(), "features that were not offered") {
			t.Errorf("the dial fails with %v", err)
		}
	}
	for _, f := range []features{0, featCancel, featMetadata | featErrors} {
		h := fullHello()
		h.features = f
		c, _ := acceptGreeted(t, h)
		if got := features(c.link.Load().feat.Load()); got != f {
			t.Errorf("agreed on %#x, want %#x", got, f)
		}
	}
}

func TestSecondHello(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		for _, f := range []features{ourFeatures, 0} {
			s := startServer(t, adapter)
			h := fullHello()
			h.features = f
			p := dialGreeted(t, s.addr, h)
			c := s.waitClients(t, 1)[0]
			p.send(unhex(goldenPing)) // is not one
			p.wants("pong", goldenPong)
			p.send(helloFrame(CmdPing, h))
			rest := p.end()
			if err := c.CheckState(); err == nil ||
				!strings.Contains(err.Error(), "malformed HELLO: the second of the connection") {
				t.Errorf("the connection ended with %v", err)
			}
			if f == 0 && len(rest) > 0 {
				t.Errorf("the server sent %x", rest)
			}
			if f != 0 && !strings.Contains(string(rest), "malformed HELLO: the second of the connection") {
				t.Errorf("the server does not say why it closes: %x", rest)
			}
		}
	})
}

// Only the first ping of an accepted connection that begins with the magic is a HELLO.
func TestPlainPings(t *testing.T) {
	bodies := []string{"", "a", "arp", "Arpc and more than thirty-two bytes of it", "\x00arpc", "x" + fullHelloHex}
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		p := dialRaw(t, s.addr)
		for range 2 { // before and after HELLO
			for _, b := range bodies {
				p.send(frameOf(CmdPing, 0xff, 7, "", b))
				p.wants("pong for "+b, goldenPong)
			}
			if c := s.waitClients(t, 1)[0]; c.link.Load().feat.Load() == 0 {
				p.send(unhex(helloPingHex))
				p.wants("answer", helloPongHex)
			}
		}
		p.send(helloFrame(CmdPong, fullHello())) // nobody asked
		p.send(unhex(goldenPing))
		p.wants("pong", goldenPong)
	})
}

// To an end that has dialled, all pings are plain ones.
func TestHelloFromServer(t *testing.T) {
	for _, answer := range []string{goldenPong, helloPongHex} {
		p, client, _ := startDial(t, listenRaw(t))
		p.wants("HELLO", helloPingHex)
		p.send(unhex(helloPingHex), unhex(answer), unhex(helloPingHex), frameOf(CmdPing, 0, 0, "", "arpc"))
		for range 3 {
			p.wants("pong", goldenPong)
		}
		c := recv(t, client, "client")
		if v2 := c.link.Load().feat.Load() != 0; v2 != (answer == helloPongHex) {
			t.Errorf("after %s version 2 is %v", answer, v2)
		}
		p.send(unhex(helloPongHex), unhex(helloPingHex)) // a later pong says nothing
		p.wants("pong", goldenPong)
		if v2 := c.link.Load().feat.Load() != 0; v2 != (answer == helloPongHex) {
			t.Errorf("after a later pong version 2 is %v", v2)
		}
	}
}

// A pong with a body that is not a HELLO is that of a peer of version 1.
func TestHelloAnsweredWithOtherBytes(t *testing.T) {
	for _, body := range []string{"", "x", "arp", "CPRA" + fullHelloHex} {
		p, client, _ := startDial(t, listenRaw(t))
		p.wants("HELLO", helloPingHex)
		p.send(frameOf(CmdPong, 0, 9, "", body))
		if c := recv(t, client, "client"); c.link.Load().feat.Load() != 0 {
			t.Errorf("a pong with %q made version 2", body)
		}
	}
}

func TestProtocol1SendsNothing(t *testing.T) {
	ln := listenRaw(t)
	c := dialClient(t, ln.addr(), Protocol(1))
	p := ln.accept()
	p.send(unhex(helloPongHex), unhex(helloPingHex))
	p.wants("pong", goldenPong)
	must(t, c.Notify("/n", "nt", patience))
	p.wants("notification", "0400000000030202"+"0200000000000000"+"2f6e6e74")
	if c.link.Load().feat.Load() != 0 {
		t.Error("the client has learnt of version 2")
	}
	c.Stop()
	if rest := p.end(); len(rest) > 0 {
		t.Errorf("more was sent: %x", rest)
	}
}

// To a peer of version 1 not a bit goes that it does not know.
func TestVersion1SeesNothingNew(t *testing.T) {
	version1Ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.Handle("/er", func(ctx *Context) {
			must(t, ctx.SetMetadata("k", "v"))
			ctx.Write(&Error{Code: CodeNotFound, Message: "gone", Details: []Detail{{Name: "d", Value: 1}}})
		})
		c.Handler.Handle("/ok", func(ctx *Context) {
			must(t, ctx.SetMetadata("k", "v"))
			if d, ok := ctx.Deadline(); ok || ctx.Metadata() != nil {
				t.Errorf("a handler has %v, %v", d, ctx.Metadata())
			}
			ctx.Write(ctx.Body())
		})
		ended := make(chan error, 1)
		c.Handler.HandleStream("/st", func(s *Stream) {
			must(t, s.SetMetadata("k", "v"))
			must(t, s.Send("out"))
			s.Reset(CodeAborted)
			ended <- nil
		})
		ctx, cancel := context.WithTimeout(WithMetadata(context.Background(), Metadata{"k": "v"}), patience)
		defer cancel()
		// A call with all there is.
		done := make(chan error, 1)
		var r string
		md := Metadata{"old": "value"}
		go func() { done <- c.CallWith(WithResponseMetadata(ctx, &md), "/m", "x", &r) }()
		p.wants("call", "0300000000010002"+"0200000000000000"+"2f6d78")
		p.send(frameOf(CmdResponse, 0x04, 2, "/m", "\x01\x00y")) // the bit means nothing
		must(t, recv(t, done, "end of the call"))
		if r != "\x01\x00y" || md != nil {
			t.Errorf("%q with %v", r, md)
		}
		// A cancelled call is not told.
		canceled, stop := context.WithCancel(ctx)
		go func() { done <- c.CallWith(canceled, "/m", "x", nil) }()
		p.wants("call", "0300000000010002"+"0300000000000000"+"2f6d78")
		stop()
		if err := recv(t, done, "end of the call"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		must(t, c.NotifyWith(ctx, "/n", "x"))
		p.wants("notification", "0300000000030202"+"0400000000000000"+"2f6e78")
		must(t, c.CallAsync("/m", "x", func(*Context) {}, patience))
		p.wants("async call", "0300000000010202"+"0500000000000000"+"2f6d78")
		// Handlers.
		for _, flag := range []byte{0, 0xfc} {
			p.send(frameOf(CmdRequest, flag, 9, "/er", ""))
			p.wants("error", hex.EncodeToString(frameOf(CmdResponse, flagError, 9, "/er", "gone")))
			p.send(frameOf(CmdRequest, flag, 9, "/ok", "\xff\xff\xff\xff\xff\xff"))
			p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 9, "/ok", "\xff\xff\xff\xff\xff\xff")))
		}
		// Streams.
		st, err := c.OpenStream(ctx, "/s")
		must(t, err)
		must(t, st.Send("x"))
		p.wants("stream message", "0300000000860002"+"0600000000000000"+"2f7378")
		must(t, st.CloseSend())
		p.wants("end of the stream", "0200000000c60002"+"0600000000000000"+"2f73")
		st, err = c.OpenStream(ctx, "/s")
		must(t, err)
		must(t, st.Send("x"))
		p.wants("stream message", "0300000000860002"+"0700000000000000"+"2f7378")
		st.Reset(CodeAborted)
		p.wants("end of a stream that was reset", "0200000000c60002"+"0700000000000000"+"2f73")
		p.send(frameOf(CmdStream|streamLocal, 0xfc, 5, "/st", "in"))
		p.wants("message of the handler", hex.EncodeToString(frameOf(CmdStream, 0, 5, "/st", "out")))
		p.wants("end by the handler", hex.EncodeToString(frameOf(CmdStream|streamEOF, 0, 5, "/st", "")))
		recv(t, ended, "end of the stream's handler")
		c.Stop()
		if rest := p.end(); len(rest) > 0 {
			t.Errorf("the last that was sent is %x", rest)
		}
	})
	// Nor does a peer of version 1 get away with what only version 2 has.
	for _, cmd := range []byte{cmdCancel, cmdCredit, cmdReset, cmdGoAway} {
		version1Ends(t, func(t *testing.T, c *Client, p *rawPeer) {
			p.send(frameOf(cmd, 0, 5, "", "\x01\x00\x00\x00\x00\x00"))
			if rest := p.end(); len(rest) > 0 {
				t.Errorf("command %d is answered with %x", cmd, rest)
			}
		})
	}
}

// A feature that was not agreed on is not used, and its commands close the connection.
func TestFeaturesAreSeparate(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    features
		cmd  byte
	}{
		{"cancel", featCancel, cmdCancel}, {"streams", featStreams, cmdReset}, {"credit", featStreams, cmdCredit},
		{"go away", featGoAway, cmdGoAway},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := fullHello()
			h.features &^= tt.f
			greetedEnds(t, h, func(t *testing.T, c *Client, p *rawPeer) {
				p.send(frameOf(tt.cmd, 0, 5, "", "\x01\x00\x00\x00"))
				p.end()
				eventually(t, "the end of the connection", func() bool { return c.CheckState() != nil })
				if err := c.CheckState(); !strings.Contains(err.Error(), errFrame.Error()) {
					t.Errorf("the connection ended with %v", err)
				}
			})
		})
	}
	h := fullHello()
	h.features = featStreams
	greetedEnds(t, h, func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.Handle("/er", func(ctx *Context) {
			must(t, ctx.SetMetadata("k", "v"))
			ctx.Write(CodeNotFound)
		})
		ctx, cancel := context.WithCancel(WithMetadata(context.Background(), Metadata{"k": "v"}))
		done := make(chan error, 1)
		go func() { done <- c.CallWith(ctx, "/m", "x", nil) }()
		p.wants("call", "0300000000010002"+"0200000000000000"+"2f6d78")
		cancel()
		recv(t, done, "end of the call")
		p.send(frameOf(CmdRequest, 0, 9, "/er", "")) // its answer is the next: there is no CANCEL
		p.wants("error", hex.EncodeToString(frameOf(CmdResponse, flagError, 9, "/er", "not_found")))
		c.Stop()
		if rest := p.end(); len(rest) > 0 {
			t.Errorf("the last that was sent is %x", rest)
		}
	})
}

// What a client is asked to send before HELLO is answered waits for the answer.
func TestCallsWaitForHello(t *testing.T) {
	h := NewHandler()
	type step struct {
		name string
		run  func(c *Client) error
		cmd  byte
	}
	ctx, cancel := context.WithTimeout(WithMetadata(context.Background(), Metadata{"k": "v"}), patience)
	defer cancel()
	steps := []step{
		{"call", func(c *Client) error { return c.CallWith(ctx, "/m", "x", nil) }, CmdRequest},
		{"async", func(c *Client) error {
			end := make(chan error, 1)
			if err := c.CallAsync("/m", "x", func(c *Context) { end <- c.Err() }, patience); err != nil {
				return err
			}
			return recv(t, end, "callback")
		}, CmdRequest},
		{"notification", func(c *Client) error { return c.NotifyWith(ctx, "/m", "x") }, CmdNotify},
		{"stream", func(c *Client) error {
			s, err := c.OpenStream(ctx, "/m")
			if err == nil {
				err = s.Send("x")
			}
			return err
		}, CmdStream},
	}
	for _, st := range steps {
		h.Handle("/"+st.name, func(c *Context) {
			c.Client.Notify("/refused", nil, TimeZero) //nolint:errcheck // it must not be sent, that is all
			go func() { st.run(c.Client) }()           //nolint:errcheck // the peer sees it
			c.Write("begun")
		}, true)
	}
	for _, st := range steps {
		t.Run(st.name, func(t *testing.T) {
			p, client, _ := startDial(t, listenRaw(t), h)
			p.wants("HELLO", helloPingHex)
			p.send(frameOf(CmdRequest, 0, 5, "/"+st.name, ""))
			p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 5, "/"+st.name, "begun")))
			p.send(unhex(goldenPing)) // answered at once, before all that waits
			p.wants("pong", goldenPong)
			select {
			case <-client:
				t.Fatal("there is a client before the answer to HELLO")
			default:
			}
			p.send(unhex(helloPongHex))
			m := p.frame()
			if flag := m.Buffer[indexFlag]; m.Cmd() != st.cmd || m.Method() != "/m" || flag&(flagDeadline|flagMetadata) == 0 {
				t.Errorf("sent first: %x", m.Buffer)
			}
			if string(m.Data()) != "x" {
				t.Errorf("sent first with %q", m.Data())
			}
			if m.Cmd() == CmdRequest {
				p.send(frameOf(CmdResponse, m.Buffer[indexFlag]&flagAsync, m.Seq(), "/m", ""))
			}
			recv(t, client, "client")
		})
	}
}

// They wait within their own time.
func TestCallsWaitForHelloWithinTheirTime(t *testing.T) {
	ends := make(chan error, 5)
	h := NewHandler()
	h.Handle("/go", func(c *Context) {
		ends <- c.Client.Call("/m", nil, nil, time.Millisecond)
		short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		ends <- c.Client.CallWith(short, "/m", nil, nil)
		ends <- c.Client.Notify("/m", nil, time.Millisecond)
		async := make(chan error, 1)
		c.Client.CallAsync("/m", nil, func(c *Context) { async <- c.Err() }, time.Millisecond) //nolint:errcheck // the callback has it
		ends <- <-async
		c.Write("over")
	})
	p, client, _ := startDial(t, listenRaw(t), h)
	p.wants("HELLO", helloPingHex)
	p.send(frameOf(CmdRequest, 0, 5, "/go", ""))
	for _, what := range []string{"Call", "CallWith", "Notify", "CallAsync"} {
		if err := recv(t, ends, "end of "+what); CodeOf(err) != CodeDeadlineExceeded ||
			!errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s ended with %v (%v)", what, err, CodeOf(err))
		}
	}
	p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 5, "/go", "over"))) // and nothing before it
	p.send(unhex(helloPongHex))
	recv(t, client, "client")
	p.send(unhex(goldenPing))
	p.wants("pong", goldenPong) // nothing has been kept for later
}

// A call of the connected hook waits for HELLO too, and NewClient does not wait for the hook.
func TestConnectedHookWaitsForHello(t *testing.T) {
	ends := make(chan error, 1)
	h := NewHandler()
	h.HandleConnected(func(c *Client) { ends <- c.Call("/m", "x", nil, patience) })
	p, client, _ := startDial(t, listenRaw(t), h)
	p.wants("HELLO", helloPingHex)
	p.send(unhex(helloPongHex))
	recv(t, client, "client")
	m := p.frame()
	if ms, ok := timeLeft(m.Buffer); !ok || ms > uint32(patience.Milliseconds()) || ms == 0 || string(m.Data()) != "x" {
		t.Errorf("the hook's call is %x", m.Buffer)
	}
	p.send(frameOf(CmdResponse, 0, m.Seq(), "/m", ""))
	must(t, recv(t, ends, "end of the hook's call"))
}

// Two live ends: the server calls at once, the client's handler calls back at once.
func TestServerCallsAtOnce(t *testing.T) {
	onBoth := func(t *testing.T, ln net.Listener, dial func() (net.Conn, error), adapter ServerOption) {
		h := NewHandler()
		ends := make(chan error, 1)
		h.Handle("/e", echo)
		h.HandleConnected(func(c *Client) {
			var r string
			err := c.Call("/relay", "x", &r, patience)
			if err == nil && r != "x" {
				err = errors.New(r)
			}
			ends <- err
		})
		startServerOn(t, ln, h, adapter)
		ch := NewHandler()
		ch.Handle("/relay", func(c *Context) {
			var r string
			if err := c.Client.CallWith(c, "/e", c.Body(), &r); err != nil {
				c.Write(err)
				return
			}
			c.Write(r)
		})
		for range 20 {
			c := dialClientBy(t, dial, ch)
			must(t, recv(t, ends, "end of the server's call"))
			c.Stop()
		}
	}
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		ln := listenTCP(t)
		onBoth(t, ln, dialer(ln.Addr().String()), adapter)
	})
	t.Run("pipe", func(t *testing.T) {
		ln, dial := Pipe()
		onBoth(t, ln, dial, StdConns(-1))
	})
}

// Nothing of version 2 goes to a client before the answer to its HELLO: until then it takes what comes for version 1.
func TestNothingNewBeforeTheAnswer(t *testing.T) {
	h := NewHandler()
	s := NewServer(h)
	var once bool
	s.Codec = namedCodec{name: "mine", hook: func() { // runs while the answer is made
		if !once {
			once = true
			s.ForEach(func(c *Client) {
				ctx := WithMetadata(context.Background(), Metadata{"k": "v"})
				must(t, c.NotifyWith(ctx, "/n", "x"))
			})
		}
	}}
	ln := listenTCP(t)
	over := make(chan error, 1)
	go func() { over <- s.Serve(ln) }()
	defer func() {
		must(t, s.Stop())
		recv(t, over, "return from Serve")
	}()
	p := dialRaw(t, ln.Addr().String())
	p.send(unhex(helloPingHex))
	m := p.frame()
	if m.Cmd() == CmdNotify {
		if m.Buffer[indexFlag]&^flagsV1 != 0 {
			t.Errorf("before the answer came %x", m.Buffer)
		}
		m = p.frame()
	}
	if m.Cmd() != CmdPong {
		t.Errorf("instead of the answer came %x", m.Buffer)
	}
	p.Close() //nolint:errcheck // Stop waits for it, a second at most
}

func TestHelloWithoutAnswer(t *testing.T) {
	p, _, failed := startDial(t, listenRaw(t), Limits{Handshake: 30 * time.Millisecond})
	p.wants("HELLO", helloPingHex)
	rest := p.end()
	p.Close() //nolint:errcheck // the client waits for it, a second at most
	err := recv(t, failed, "failed dial")
	if CodeOf(err) != CodeUnavailable ||
		!strings.Contains(err.Error(), "no answer to the first ping within the handshake limit") {
		t.Errorf("the dial fails with %v (%v)", err, CodeOf(err))
	}
	if len(rest) > 0 {
		t.Errorf("more was sent: %x", rest)
	}
	// The peer closes instead.
	p, _, failed = startDial(t, listenRaw(t))
	p.wants("HELLO", helloPingHex)
	p.Close() //nolint:errcheck // that is the point
	if err := recv(t, failed, "failed dial"); !errors.Is(err, ErrClientReconnecting) ||
		!strings.Contains(err.Error(), "the peer closed the connection") {
		t.Errorf("the dial fails with %v", err)
	}
}

// Each connection of a client agrees anew.
func TestHelloOnEachConnection(t *testing.T) {
	ln := listenRaw(t)
	p, client, _ := startDial(t, ln, Backoff(time.Millisecond, time.Millisecond), WaitForReady())
	p.wants("HELLO", helloPingHex)
	p.send(unhex(helloPongHex))
	c := recv(t, client, "client")
	for _, tt := range []struct {
		answer, flags string
		version2      bool
	}{{goldenPong, "02", false}, {helloPongHex, "06", true}, {goldenPong, "02", false}} {
		p.Close() //nolint:errcheck // the client is to come again
		p = ln.accept()
		p.wants("HELLO", helloPingHex)
		p.send(unhex(tt.answer))
		eventually(t, "the new connection", func() bool { return c.CheckState() == nil })
		must(t, c.NotifyWith(WithMetadata(patient(t), Metadata{"k": "v"}), "/n", "x"))
		if m := p.frame(); hex.EncodeToString(m.Buffer[indexFlag:indexFlag+1]) != tt.flags || string(m.Data()) != "x" {
			t.Errorf("version 2 is %v, and what was sent %x", tt.version2, m.Buffer)
		}
	}
}
