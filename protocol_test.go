package arpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Live ends against a peer that speaks the bytes of docs/protocol.md: what an end must send, take, ignore and refuse. The
// requirements that each test is about are in docs_test.go.

// wireHello is what the peer says about itself unless a test wants something else.
func wireHello() hello {
	return hello{version: 2, features: ourFeatures, maxBody: 1 << 20, metadata: 1 << 10, window: 64 << 10, connWindow: 1 << 20, streams: 100}
}

// wireEnds runs a test with each kind of live end, whose connection is one of version 2 with the peer.
func wireEnds(t *testing.T, limits Limits, peer hello, f func(t *testing.T, c *Client, p *rawPeer)) {
	t.Run("client", func(t *testing.T) {
		c, p, _ := wireClient(t, peer, limits)
		f(t, c, p)
	})
	t.Run("server", func(t *testing.T) {
		onAdapters(t, func(t *testing.T, adapter ServerOption) {
			s := startServer(t, adapter, limits)
			p, _ := wireDial(t, s.addr, peer)
			f(t, s.waitClients(t, 1)[0], p)
		})
	})
}

// wireClient connects a live client to the peer, and returns the client's HELLO too.
func wireClient(t *testing.T, peer hello, opts ...ClientOption) (*Client, *rawPeer, *Message) {
	t.Helper()
	ln := listenRaw(t)
	connected := make(chan *Client, 1)
	go func() {
		c, err := NewClient(dialer(ln.addr()), append([]ClientOption{NewHandler()}, opts...)...)
		if err != nil {
			t.Error(err)
		}
		connected <- c
	}()
	p := ln.accept()
	first := p.frame()
	p.send(helloFrame(CmdPong, peer))
	c := recv(t, connected, "client")
	if c == nil {
		t.FailNow()
	}
	t.Cleanup(c.Stop)
	return c, p, first
}

// wireDial connects the peer to a server, and returns the server's HELLO too.
func wireDial(t *testing.T, addr string, peer hello) (*rawPeer, *Message) {
	t.Helper()
	p := dialRaw(t, addr)
	p.send(helloFrame(CmdPing, peer))
	return p, p.frame()
}

// until reads frames up to the pong that answers a ping, which tells that all that was sent before has been dealt with and that
// the connection lives.
func (p *rawPeer) until() (before []*Message) {
	p.t.Helper()
	p.send(pingFrame)
	for {
		m := p.frame()
		if m.Cmd() == CmdPong {
			return before
		}
		before = append(before, m)
	}
}

// nothing checks that what was sent leads to nothing.
func (p *rawPeer) nothing(what string) {
	p.t.Helper()
	for _, m := range p.until() {
		p.t.Errorf("%s led to %x", what, m.Buffer)
	}
}

// closed checks that the connection is closed; a farewell may come first.
func (p *rawPeer) closed(what string) {
	p.t.Helper()
	for rest := p.end(); len(rest) > 0; {
		m := &Message{Buffer: rest[:HeadLen+int(binary.LittleEndian.Uint32(rest))]}
		if m.Cmd() != cmdGoAway || !m.IsError() {
			p.t.Errorf("%s led to %x", what, m.Buffer)
		}
		rest = rest[m.Len():]
	}
}

// wireExtension is what stands between method and payload.
func wireExtension(ms int64, block string) string {
	var b []byte
	if ms >= 0 {
		b = binary.LittleEndian.AppendUint32(b, uint32(ms))
	}
	if block != "none" {
		b = append(binary.LittleEndian.AppendUint16(b, uint16(len(block))), block...)
	}
	return string(b)
}

// wireError is a structured error.
func wireError(code Code, text string) string {
	return string(appendError(nil, &Error{Code: code, Message: text}, nil))
}

// isReset checks a RESET of the peer's or the live end's stream.
func isReset(t *testing.T, m *Message, own bool, id uint64, code Code) {
	t.Helper()
	want := cmdReset
	if own {
		want |= streamLocal
	}
	if m.Buffer[indexCmd] != want || m.Seq() != id || m.MethodLen() != 0 || m.Buffer[indexFlag] != flagError|flagCoded || CodeOf(m.Error()) != code {
		t.Errorf("instead of RESET of stream %d with code %v: %x", id, code, m.Buffer)
	}
}

// reply answers a request of the live end.
func (p *rawPeer) reply(req *Message, flag byte, payload string) {
	p.t.Helper()
	p.send(frameOf(CmdResponse, flag, req.Seq(), req.Method(), payload))
}

func wireBadHellos() map[string][]byte {
	good := func() []byte { h := wireHello(); return h.append(nil) }
	put := func(at int, v uint32) []byte {
		b := good()
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	set := func(at int, v byte) []byte { b := good(); b[at] = v; return b }
	return map[string][]byte{
		"magic alone":              good()[:4],
		"one byte short":           good()[:31],
		"version 1":                set(4, 1),
		"version 0":                set(4, 0),
		"fixed part of 31":         set(5, 31),
		"fixed part beyond":        set(5, 33),
		"no body":                  put(12, 0),
		"small window":             put(20, 4095),
		"connection's below":       put(24, 64<<10-1),
		"connection's above":       put(24, 1<<31),
		"empty name":               append(good(), 0),
		"name beyond the end":      append(good(), 5, 'j'),
		"name with a comma":        append(good(), 3, 'a', ',', 'b'),
		"more than 4096 bytes":     append(good(), bytes.Repeat([]byte{1, 'x'}, 2100)...),
		"second name is malformed": append(good(), 1, 'x', 2, 'y'),
	}
}

func TestProtocolHello(t *testing.T) {
	s := startServer(t)
	s.Handler.HandleInline("/e", echo)
	for name, body := range wireBadHellos() {
		t.Run(name, func(t *testing.T) {
			p := dialRaw(t, s.addr)
			p.send(frameOf(CmdPing, 0, 0, "", string(body)))
			p.closed("a malformed HELLO")
		})
	}
	t.Run("second", func(t *testing.T) {
		p, _ := wireDial(t, s.addr, wireHello())
		p.nothing("HELLO")
		p.send(helloFrame(CmdPing, wireHello()))
		p.closed("a second HELLO")
	})
	answer := func(t *testing.T, m *Message) hello {
		t.Helper()
		h, err := parseHello(m.Data())
		if m.Buffer[indexCmd] != CmdPong || m.MethodLen() != 0 || err != nil || h.version != 2 {
			t.Fatalf("HELLO was answered by %x, %v", m.Buffer, err)
		}
		return h
	}
	t.Run("what it does not know", func(t *testing.T) {
		h := wireHello()
		h.version, h.features = 9, ourFeatures|0xffff0000
		body := h.append(nil)
		body[6], body[7] = 0xff, 0xff
		body = slices.Insert(body, helloFixed, []byte("later")...)
		body[5] += byte(len("later"))
		body = append(body, "\x04json\x07msgpack"...)
		p := dialRaw(t, s.addr)
		p.send(frameOf(CmdPing, 0, 0, "", string(body)))
		if got := answer(t, p.frame()); got.features != ourFeatures {
			t.Errorf("features %#x", got.features)
		}
	})
	for f := features(0); f <= ourFeatures; f++ {
		h := wireHello()
		h.features = f
		p, m := wireDial(t, s.addr, h)
		if got := answer(t, m); got.features != f {
			t.Errorf("features %#x for %#x", got.features, f)
		}
		// A command without its feature does not exist.
		for _, c := range []struct {
			feature features
			frame   []byte
		}{
			{featCancel, frameOf(cmdCancel, 0, 1, "", "\x01")}, {featStreams, frameOf(cmdCredit, 0, 0, "", "\x01\x00\x00\x00")},
			{featStreams, frameOf(cmdReset, flagError|flagCoded, 7, "", wireError(8, "x"))},
			{featGoAway, frameOf(cmdGoAway, 0, 0, "", wireError(14, "x"))},
		} {
			if f&c.feature != 0 {
				p.send(c.frame)
				p.nothing("a command of the connection")
			} else {
				q, _ := wireDial(t, s.addr, h)
				q.send(c.frame)
				q.closed("a command that was not agreed on")
			}
		}
	}
	t.Run("limits", func(t *testing.T) {
		s := startServer(t, Limits{Metadata: 99, StreamWindow: 5000, StreamWindows: 60000, Streams: 7})
		s.Handler.SetMaxBodyLen(70000)
		_, m := wireDial(t, s.addr, wireHello())
		want := hello{version: 2, features: ourFeatures, maxBody: 70000, metadata: 99, window: 5000, connWindow: 60000, streams: 7, names: "json,protobuf,"}
		if got := answer(t, m); got != want {
			t.Errorf("%+v", got)
		}
	})
	// Before HELLO, and without, the connection is one of version 1.
	t.Run("version 1 until then", func(t *testing.T) {
		p := dialRaw(t, s.addr)
		request := frameOf(CmdRequest, 0xfc, 3, "/e", "whole")
		for range 2 {
			p.send(request)
			if m := p.frame(); string(m.Data()) != "whole" || m.Buffer[indexFlag] != 0 {
				t.Errorf("%x", m.Buffer)
			}
		}
		p.send(helloFrame(CmdPing, wireHello()))
		answer(t, p.frame())
		p.send(request)
		p.closed("the same, which is malformed now")
	})
}

// A small limit of the body is no reason not to connect.
func TestProtocolSmallBodyLimit(t *testing.T) {
	s := startServer(t)
	s.Handler.SetMaxBodyLen(1000)
	s.Handler.Handle("/e", echo)
	h := NewHandler()
	h.SetMaxBodyLen(1000)
	var r string
	must(t, dialClient(t, s.addr, h).Call("/e", "x", &r, patience))
}

// The accepting end's own calls meet HELLO: what leaves before the pong is of version 1.
func TestProtocolNothingBeforeThePong(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		s.Handler.HandleConnected(func(c *Client) {
			for range 50 {
				if c.CallAsync("/m", "x", func(*Context) {}, time.Minute) != nil {
					return
				}
			}
		})
		for range 100 {
			p := dialRaw(t, s.addr)
			p.send(helloFrame(CmdPing, wireHello()))
			for n := 0; ; n++ {
				m := p.frame()
				if m.Cmd() == CmdPong {
					break
				}
				if m.Buffer[indexFlag]&^flagsV1 != 0 {
					t.Fatalf("frame %d, before the pong: %x", n, m.Buffer)
				}
			}
			p.reset()
		}
	})
}

// A stream that the accepting end begins before HELLO goes on, by the rules of version 1.
func TestProtocolStreamBeforeHello(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		p := dialRaw(t, s.addr)
		c := s.waitClients(t, 1)[0]
		stream := c.NewStream("/s")
		must(t, stream.Send("first"))
		m := p.frame()
		if m.Buffer[indexFlag] != 0 || string(m.Data()) != "first" {
			t.Fatalf("%x", m.Buffer)
		}
		p.send(helloFrame(CmdPing, wireHello()))
		p.frame()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := stream.SendWith(ctx, "second"); err != nil {
			t.Fatalf("after HELLO: %v", err)
		}
		if m := p.frame(); m.Buffer[indexFlag] != 0 || string(m.Data()) != "second" {
			t.Errorf("%x", m.Buffer)
		}
		p.send(frameOf(CmdStream, 0, stream.ID(), "/s", "back"))
		var r string
		if err := stream.Recv(&r); err != nil || r != "back" {
			t.Errorf("%q, %v", r, err)
		}
		// And what begins later is of version 2.
		later, err := c.OpenStream(ctx, "/t")
		must(t, err)
		must(t, later.SendWith(ctx, "x"))
		if m := p.frame(); m.Buffer[indexFlag]&flagOpen == 0 {
			t.Errorf("%x", m.Buffer)
		}
	})
}

// What a dialling end makes of the answer to its HELLO.
func TestProtocolHelloAnswer(t *testing.T) {
	dial := func(t *testing.T, opts ...ClientOption) (*rawPeer, chan error, chan *Client) {
		ln := listenRaw(t)
		errs, clients := make(chan error, 1), make(chan *Client, 1)
		go func() {
			c, err := NewClient(dialer(ln.addr()), append([]ClientOption{NewHandler()}, opts...)...)
			if err == nil {
				clients <- c
			}
			errs <- err
		}()
		p := ln.accept()
		m := p.frame()
		if h, err := parseHello(m.Data()); m.Buffer[indexCmd] != CmdPing || err != nil || h.features != ourFeatures || h.version != 2 {
			t.Errorf("the first frame is %x, %v", m.Buffer, err)
		}
		return p, errs, clients
	}
	bad := wireBadHellos()
	h := wireHello()
	h.features |= 1 << 9
	bad["features that were not offered"] = h.append(nil)
	for name, body := range bad {
		t.Run(name, func(t *testing.T) {
			p, errs, _ := dial(t)
			p.send(frameOf(CmdPong, 0, 0, "", string(body)))
			p.closed("the answer")
			p.Close()
			if err := recv(t, errs, "end of NewClient"); err == nil {
				t.Error("connected")
			}
		})
	}
	for name, pong := range map[string][]byte{
		"bare": pongFrame, "another body": frameOf(CmdPong, 0, 9, "", "any body"), "short body": frameOf(CmdPong, 0, 0, "", "arp"),
	} {
		t.Run(name, func(t *testing.T) {
			p, errs, clients := dial(t)
			// It waits for the pong, and answers meanwhile.
			p.send(frameOf(CmdRequest, 0xf0, 5, "/none", ""))
			if m := p.frame(); m.Seq() != 5 || m.Buffer[indexFlag] != flagError || string(m.Data()) != ErrMethodNotFound.Message {
				t.Errorf("%x", m.Buffer)
			}
			p.nothing("waiting")
			p.send(helloFrame(CmdPing, wireHello())) // an end that has dialled does not negotiate
			if m := p.frame(); !bytes.Equal(m.Buffer, pongFrame) {
				t.Errorf("a HELLO of the accepting end was answered by %x", m.Buffer)
			}
			p.send(pong)
			must(t, recv(t, errs, "end of NewClient"))
			c := recv(t, clients, "client")
			defer c.Stop()
			p.send(helloFrame(CmdPong, wireHello())) // comes too late
			p.nothing("a second pong")
			done := make(chan error, 1)
			go func() {
				done <- c.CallWith(WithMetadata(t.Context(), Metadata{"k": "v"}), "/m", "payload", nil)
			}()
			m := p.frame()
			if hex.EncodeToString(m.Buffer) != hex.EncodeToString(frameOf(CmdRequest, 0, m.Seq(), "/m", "payload")) {
				t.Errorf("to a peer of version 1: %x", m.Buffer)
			}
			p.reply(m, 0, "")
			must(t, recv(t, done, "end of the call"))
		})
	}
	t.Run("no pong", func(t *testing.T) {
		p, errs, _ := dial(t, Limits{Handshake: 50 * time.Millisecond})
		if err := recv(t, errs, "end of NewClient"); CodeOf(err) != CodeUnavailable {
			t.Errorf("%v", err)
		}
		p.closed("waiting")
		p.Close()
	})
	t.Run("later HELLO", func(t *testing.T) {
		c, p, _ := wireClient(t, wireHello())
		small := wireHello()
		small.maxBody, small.features = 4096, 0
		p.send(helloFrame(CmdPong, small), helloFrame(CmdPing, wireHello()))
		if m := p.frame(); !bytes.Equal(m.Buffer, pongFrame) {
			t.Errorf("%x", m.Buffer)
		}
		must(t, c.NotifyWith(WithMetadata(t.Context(), Metadata{"k": "v"}), "/n", strings.Repeat("x", 10000)))
		if m := p.frame(); m.Buffer[indexFlag]&flagMetadata == 0 {
			t.Error("a later pong counts")
		}
	})
}

// Nobody is sent more than he accepts.
func TestProtocolPeersLimits(t *testing.T) {
	mine := wireHello()
	mine.maxBody, mine.metadata, mine.streams = 5000, 20, 2
	wireEnds(t, Limits{}, mine, func(t *testing.T, c *Client, p *rawPeer) {
		long := strings.Repeat("x", 5000)
		c.Handler.Handle("/long", func(ctx *Context) { ctx.Write(long) })
		c.Handler.Handle("/meta", func(ctx *Context) {
			if err := ctx.SetMetadata("key", long); CodeOf(err) != CodeInvalidArgument {
				t.Errorf("metadata of an answer: %v", err)
			}
			ctx.Write("answer")
		})
		if err := c.Call("/m", long, nil, patience); CodeOf(err) != CodeInvalidArgument {
			t.Errorf("a long call: %v", err)
		}
		if err := c.Notify("/m", long, patience); CodeOf(err) != CodeInvalidArgument {
			t.Errorf("a long notification: %v", err)
		}
		ctx := WithMetadata(t.Context(), Metadata{"key": "a value that is too long"})
		if err := c.CallWith(ctx, "/m", nil, nil); CodeOf(err) != CodeInvalidArgument {
			t.Errorf("metadata of a call: %v", err)
		}
		if _, err := c.OpenStream(ctx, "/s"); CodeOf(err) != CodeInvalidArgument {
			t.Errorf("metadata of a stream: %v", err)
		}
		for i := range 3 {
			_, err := c.OpenStream(t.Context(), "/s")
			if i < 2 && err != nil || i == 2 && CodeOf(err) != CodeResourceExhausted {
				t.Errorf("stream %d: %v", i, err)
			}
		}
		p.nothing("what is refused here")
		p.send(frameOf(CmdRequest, 0, 5, "/long", ""))
		if m := p.frame(); !m.IsError() || m.Seq() != 5 {
			t.Errorf("a long answer: %x", m.Buffer)
		}
		p.send(frameOf(CmdRequest, 0, 6, "/meta", ""))
		if m := p.frame(); string(m.Data()) != "answer" || m.Buffer[indexFlag] != 0 {
			t.Errorf("%x", m.Buffer)
		}
		// The longest body has no room for the deadline, which is left out.
		done := make(chan error, 1)
		go func() { done <- c.Call("/m", long[:5000-2], nil, patience) }()
		m := p.frame()
		if m.Len() != HeadLen+5000 || m.Buffer[indexFlag] != 0 {
			t.Errorf("%d bytes, flags %#x", m.Len(), m.Buffer[indexFlag])
		}
		p.reply(m, 0, "")
		must(t, recv(t, done, "end of the call"))
	})
}

func TestProtocolExtensions(t *testing.T) {
	const pair = "\x03key\x02\x00\x00\xff"
	wireEnds(t, Limits{Metadata: 100}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
		type seen struct {
			payload string
			md      Metadata
			left    time.Duration
			has     bool
		}
		got := make(chan seen, 1)
		c.Handler.Handle("/m", func(ctx *Context) {
			at, has := ctx.Deadline()
			got <- seen{string(ctx.Body()), ctx.Metadata(), time.Until(at), has}
			ctx.Write("answer")
		})
		for _, tt := range []struct {
			name  string
			flag  byte
			ext   string
			md    Metadata
			limit time.Duration
		}{
			{"none", 0, "", nil, 0},
			{"deadline", flagDeadline, wireExtension(60000, "none"), nil, time.Minute},
			{"longest deadline", flagDeadline, wireExtension(1<<32-1, "none"), nil, (1<<32 - 1) * time.Millisecond},
			{"metadata", flagMetadata, wireExtension(-1, pair), Metadata{"key": "\x00\xff"}, 0},
			{"both", flagDeadline | flagMetadata, wireExtension(60000, pair), Metadata{"key": "\x00\xff"}, time.Minute},
			{"empty block", flagMetadata, wireExtension(-1, ""), nil, 0},
			{"empty value", flagMetadata, wireExtension(-1, "\x01k\x00\x00"), Metadata{"k": ""}, 0},
			{"twice the key", flagMetadata, wireExtension(-1, "\x01k\x01\x00a\x01k\x01\x00b"), Metadata{"k": "b"}, 0},
			{"longest block", flagMetadata, wireExtension(-1, "\x01k\x60\x00"+strings.Repeat("v", 96)), Metadata{"k": strings.Repeat("v", 96)}, 0},
		} {
			for _, cmd := range []byte{CmdRequest, CmdNotify} {
				p.send(frameOf(cmd, tt.flag, 9, "/m", tt.ext+"payload"))
				s := recv(t, got, "message of "+tt.name)
				if s.payload != "payload" || !maps.Equal(s.md, tt.md) || s.has != (tt.limit != 0) || s.left > tt.limit || tt.limit > 0 && s.left < tt.limit-patience {
					t.Errorf("%s: %+v", tt.name, s)
				}
				if cmd == CmdRequest {
					p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 9, "/m", "answer")))
				}
			}
		}
		// The answer's metadata is for whoever wants it, and no part of the answer.
		for _, want := range []Metadata{{"key": "\x00\xff"}, nil} {
			var md Metadata
			var r string
			done := make(chan error, 1)
			go func() { done <- c.CallWith(WithResponseMetadata(t.Context(), &md), "/x", nil, &r) }()
			m := p.frame()
			if want != nil {
				p.reply(m, flagMetadata, wireExtension(-1, pair)+"text")
			} else {
				p.reply(m, 0, "text")
			}
			must(t, recv(t, done, "end of the call"))
			if r != "text" || !maps.Equal(md, want) {
				t.Errorf("%q with %q", r, md)
			}
		}
	})
	for name, f := range map[string][]byte{
		"deadline cut off":     frameOf(CmdRequest, flagDeadline, 1, "/m", "\x01\x02\x03"),
		"no length":            frameOf(CmdRequest, flagMetadata, 1, "/m", "\x01"),
		"block beyond the end": frameOf(CmdRequest, flagMetadata, 1, "/m", "\x05\x00\x01k"),
		"empty key":            frameOf(CmdNotify, flagMetadata, 1, "/m", wireExtension(-1, "\x00\x00\x00")),
		"value beyond":         frameOf(CmdNotify, flagMetadata, 1, "/m", wireExtension(-1, "\x01k\x02\x00v")),
		"key beyond":           frameOf(CmdResponse, flagMetadata, 1, "/m", wireExtension(-1, "\x09k")),
		"above the limit":      frameOf(CmdRequest, flagMetadata, 1, "/m", wireExtension(-1, "\x01k\x61\x00"+strings.Repeat("v", 97))),
		"of a stream":          frameOf(CmdStream|streamLocal, flagMetadata|flagOpen, 1, "/m", wireExtension(-1, "\x00")),
	} {
		t.Run(name, func(t *testing.T) {
			wireEnds(t, Limits{Metadata: 100}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
				p.send(f)
				p.closed(name)
			})
		})
	}
}

// The time in line is the handler's.
func TestProtocolDeadline(t *testing.T) {
	wireEnds(t, Limits{}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
		const limit = 300 * time.Millisecond
		begun, goOn := make(chan struct{}), make(chan struct{})
		ended := make(chan error, 1)
		c.Handler.Handle("/first", func(ctx *Context) { close(begun); <-goOn; ctx.Write(nil) })
		c.Handler.Handle("/second", func(ctx *Context) {
			<-ctx.Done()
			ended <- ctx.Err()
			ctx.Write("nobody waits")
		})
		p.send(frameOf(CmdRequest, 0, 1, "/first", ""), frameOf(CmdRequest, flagDeadline, 2, "/second", wireExtension(limit.Milliseconds(), "none")))
		recv(t, begun, "first handler")
		p.nothing("waiting")                        // both have arrived
		timer := time.NewTimer(limit + limit/5)     // the deadline passes in line
		recv(t, timer.C, "end of the time in line") //
		start := time.Now()
		close(goOn)
		if err := recv(t, ended, "end of the second handler"); err != context.DeadlineExceeded {
			t.Errorf("%v", err)
		}
		if took := time.Since(start); took > limit {
			t.Errorf("the handler had %v, which were up before it began", took)
		}
		for range 2 {
			p.frame()
		}

		// A caller sends what is left, and no CANCEL when it is up.
		done := make(chan error, 1)
		go func() { done <- c.Call("/m", nil, nil, 30*time.Millisecond) }()
		if ms, ok := timeLeft(p.frame().Buffer); !ok || ms != 30 {
			t.Errorf("%d ms, %v", ms, ok)
		}
		if err := recv(t, done, "end of the call"); CodeOf(err) != CodeDeadlineExceeded {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		go func() { done <- c.CallWith(ctx, "/m", nil, nil) }()
		if ms, ok := timeLeft(p.frame().Buffer); !ok || ms < 1 || ms > 30 {
			t.Errorf("%d ms, %v", ms, ok)
		}
		if err := recv(t, done, "end of the call"); CodeOf(err) != CodeDeadlineExceeded {
			t.Error(err)
		}
		go func() { done <- c.Call("/m", nil, nil, TimeForever) }()
		m := p.frame()
		if m.Cmd() != CmdRequest || m.Buffer[indexFlag] != 0 {
			t.Errorf("without a deadline: %x", m.Buffer)
		}
		p.reply(m, 0, "")
		must(t, recv(t, done, "end of the call"))
		p.nothing("deadlines that passed")
	})
}

func TestProtocolCancel(t *testing.T) {
	wireEnds(t, Limits{}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
		begun, causes := make(chan struct{}, 1), make(chan error, 1)
		c.Handler.Handle("/wait", func(ctx *Context) {
			begun <- struct{}{}
			<-ctx.Done()
			causes <- context.Cause(ctx)
			ctx.Write(ctx.Err())
		})
		ran := make(chan struct{}, 1)
		c.Handler.Handle("/never", func(ctx *Context) { ran <- struct{}{}; ctx.Write(nil) })
		p.send(frameOf(CmdRequest, 0, 5, "/wait", ""))
		recv(t, begun, "handler")
		p.send(frameOf(CmdRequest, 0, 6, "/never", ""), frameOf(cmdCancel, 0, 6, "", "\x01early"))
		p.send(frameOf(cmdCancel, 0, 5, "", "\x01because"), frameOf(cmdCancel, 0, 999, "", "\x01"))
		err := recv(t, causes, "cause")
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeCanceled || !e.Remote || !strings.Contains(e.Message, "because") {
			t.Errorf("%#v", err)
		}
		for _, seq := range []uint64{5, 6} {
			if m := p.frame(); m.Seq() != seq || CodeOf(m.Error()) != CodeCanceled {
				t.Errorf("%x", m.Buffer)
			}
		}
		p.send(frameOf(cmdCancel, 0, 5, "", "\x01"), frameOf(cmdCancel, 0, 6, "", "\x01")) // answered
		for i := range uint64(2 * maxCanceled) {
			p.send(frameOf(cmdCancel, 0, 1<<20+i, "", "\x01"))
		}
		p.nothing("CANCEL of what does not exist")
		l := c.link.Load()
		l.cn.Lock()
		n := len(l.x.Load().canceled.m)
		l.cn.Unlock()
		if n > maxCanceled || len(ran) > 0 {
			t.Errorf("%d remembered, ran %v", n, len(ran) > 0)
		}

		// This end cancels.
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.CallWith(ctx, "/m", nil, nil) }()
		m := p.frame()
		cancel(errors.New(strings.Repeat("why", 1000)))
		if err := recv(t, done, "end of the call"); CodeOf(err) != CodeCanceled {
			t.Error(err)
		}
		want := frameOf(cmdCancel, 0, m.Seq(), "", "\x01"+strings.Repeat("why", 1000)[:1024])
		if m := p.frame(); !bytes.Equal(m.Buffer, want) {
			t.Errorf("%x", m.Buffer)
		}
		p.reply(m, 0, "late")
		p.nothing("a late answer")
	})
	for name, f := range map[string][]byte{
		"no code": frameOf(cmdCancel, 0, 1, "", ""), "code 4": frameOf(cmdCancel, 0, 1, "", "\x04"), "with a method": frameOf(cmdCancel, 0, 1, "/m", "\x01"),
	} {
		wireEnds(t, Limits{}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
			p.send(f)
			p.closed(name)
		})
	}
}

func TestProtocolCodedErrors(t *testing.T) {
	wireEnds(t, Limits{}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
		var answer *Error
		c.Handler.Handle("/fail", func(ctx *Context) { ctx.Error(answer) })
		c.Handler.Handle("/text", func(ctx *Context) { ctx.Error("a text") })
		for code := Code(1); code <= 16; code++ {
			answer = &Error{Code: code, Message: "text \x00 of " + code.String(), Details: []Detail{
				{Name: "raw", Value: []byte{0, 255}}, {Name: "unencodable", Value: func() {}}, {Name: strings.Repeat("n", 256), Value: "x"}, {Name: "", Value: pair{"a", 1}},
			}}
			p.send(frameOf(CmdRequest, 0, 1, "/fail", ""))
			m := p.frame()
			want := string([]byte{byte(code), 2, byte(len(answer.Message)), 0, 0, 0}) + answer.Message +
				"\x03raw\x02\x00\x00\x00\x00\xff" + "\x00\x0f\x00\x00\x00" + `{"A":"a","B":1}`
			if m.Buffer[indexFlag] != flagError|flagCoded || string(m.Data()) != want {
				t.Errorf("%x", m.Buffer)
			}
			// The same bytes tell this end the same.
			done := make(chan error, 1)
			go func() { done <- c.Call("/m", nil, nil, patience) }()
			p.reply(p.frame(), flagError|flagCoded, want)
			var e *Error
			if err := recv(t, done, "end of the call"); !errors.As(err, &e) || e.Code != code || e.Message != answer.Message || !e.Remote || len(e.Details) != 2 {
				t.Fatalf("%#v", err)
			}
			var raw []byte
			var v pair
			if err := errors.Join(e.Details[0].Bind(&raw), e.Details[1].Bind(&v)); err != nil || string(raw) != "\x00\xff" || v != (pair{"a", 1}) || e.Details[0].Name != "raw" {
				t.Errorf("%v, %q, %v", err, raw, v)
			}
		}
		for _, tt := range []struct {
			name, payload string
			flag          byte
			code          Code
		}{
			{"empty", "", flagError | flagCoded, 13},
			{"code 0", "\x00\x00\x00\x00\x00\x00", flagError | flagCoded, 13},
			{"text beyond", "\x05\x00\x09\x00\x00\x00text", flagError | flagCoded, 13},
			{"detail missing", "\x05\x01\x00\x00\x00\x00", flagError | flagCoded, 13},
			{"detail's value beyond", "\x05\x01\x00\x00\x00\x00\x01n\x05\x00\x00\x00v", flagError | flagCoded, 13},
			{"code 200", "\xc8\x00\x00\x00\x00\x00", flagError | flagCoded, 200},
			{"a text", "some text", flagError, 2},
			{"a text with a code", ErrMethodNotFound.Message, flagError, 12},
		} {
			done := make(chan error, 1)
			go func() { done <- c.Call("/m", nil, nil, patience) }()
			p.reply(p.frame(), tt.flag, tt.payload)
			if err := recv(t, done, "end of the call"); CodeOf(err) != tt.code {
				t.Errorf("%s: %v, code %v", tt.name, err, CodeOf(err))
			}
		}
		p.send(frameOf(CmdRequest, 0, 1, "/text", ""))
		if m := p.frame(); !m.IsError() || CodeOf(m.Error()) != CodeUnknown || m.Error().Error() != "a text" {
			t.Errorf("%x", m.Buffer)
		}
	})
}

// An error whose code does not fit the wire is one without a code.
func TestProtocolErrorWithoutCode(t *testing.T) {
	wireEnds(t, Limits{}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
		var answer *Error
		c.Handler.Handle("/fail", func(ctx *Context) { ctx.Error(answer) })
		for _, code := range []Code{0, 256, 512 + 5} {
			answer = &Error{Code: code, Message: "bad"}
			p.send(frameOf(CmdRequest, 0, 1, "/fail", ""))
			if m := p.frame(); CodeOf(m.Error()) != CodeUnknown || m.Error().Error() != "bad" {
				t.Errorf("code %d became %v: %x", code, CodeOf(m.Error()), m.Buffer)
			}
		}
	})
}

func TestProtocolStreams(t *testing.T) {
	type message struct {
		text string
		err  error
	}
	const ours = CmdStream | streamLocal // the peer's, that is: it creates
	wireEnds(t, Limits{StreamWindow: 8 << 10, StreamWindows: 16 << 10}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
		got := make(chan message, 100)
		c.Handler.HandleStream("/s", func(s *Stream) {
			for {
				var m message
				m.err = s.Recv(&m.text)
				got <- m
				if m.err != nil {
					return
				}
			}
		})
		next := func(want string) {
			t.Helper()
			if m := recv(t, got, "message"); m.err != nil || m.text != want {
				t.Errorf("%q, %v instead of %q", m.text, m.err, want)
			}
		}
		ended := func() {
			t.Helper()
			if m := recv(t, got, "end"); m.err != io.EOF {
				t.Errorf("%q, %v instead of the end", m.text, m.err)
			}
		}
		p.send(frameOf(ours, flagOpen|flagMore, 3, "/s", "a "), frameOf(ours, flagMore, 3, "/s", ""), frameOf(ours, 0, 3, "/s", "whole"))
		next("a whole")
		p.send(frameOf(ours, 0, 3, "/s", ""), frameOf(ours, flagNoData, 3, "/s", ""), frameOf(ours|streamEOF, 0, 3, "/s", "last"))
		next("")
		next("last")
		ended()
		end := hex.EncodeToString(frameOf(CmdStream|streamEOF, flagNoData, 3, "/s", ""))
		p.wants("end of the other direction", end)
		// Everything of a stream that is over is ignored.
		p.send(frameOf(ours, 0, 3, "/s", "late"), frameOf(CmdStream, 0, 3, "/s", "other direction"), frameOf(cmdCredit|streamLocal, 0, 3, "", "\xff\xff\xff\xff"),
			frameOf(cmdReset|streamLocal, flagError|flagCoded, 3, "", wireError(5, "late")), frameOf(CmdStream, flagOpen, 3, "/s", "not the creator"))
		p.nothing("a stream that is over")
		// One frame is a whole stream.
		p.send(frameOf(ours|streamEOF, flagOpen|flagNoData, 4, "/s", ""))
		ended()
		p.frame()
		p.send(frameOf(ours|streamEOF, flagOpen, 5, "/s", "only"))
		next("only")
		ended()
		p.frame()
		// The end within a message: what there is of it is dropped.
		p.send(frameOf(ours, flagOpen|flagMore, 6, "/s", "half"), frameOf(ours|streamEOF, flagNoData, 6, "/s", ""))
		ended()
		p.frame()
		// The peer resets.
		p.send(frameOf(ours, flagOpen, 7, "/s", "kept"), frameOf(cmdReset|streamLocal, flagError|flagCoded, 7, "", wireError(10, "conflict")))
		next("kept")
		if m := recv(t, got, "end"); CodeOf(m.err) != CodeAborted || m.err.Error() != "conflict" {
			t.Errorf("%v", m.err)
		}
		p.nothing("RESET")

		// This end creates.
		s, err := c.OpenStream(WithMetadata(t.Context(), Metadata{"k": "v"}), "/t")
		must(t, err)
		p.nothing("a stream that has not begun")
		must(t, s.Send(""))
		p.wants("first frame", hex.EncodeToString(frameOf(ours, flagOpen|flagMetadata, s.ID(), "/t", wireExtension(-1, "\x01k\x01\x00v"))))
		must(t, s.Send(strings.Repeat("x", 20_000)))
		var all string
		for more := true; more; {
			m := p.frame()
			more = m.Buffer[indexFlag] == flagMore
			if m.Buffer[indexCmd] != ours || m.Method() != "/t" || m.Buffer[indexFlag]&^flagMore != 0 || len(m.Data()) > 16<<10 {
				t.Fatalf("%x", m.Buffer)
			}
			all += string(m.Data())
		}
		if len(all) != 20_000 {
			t.Errorf("%d bytes", len(all))
		}
		p.send(frameOf(CmdStream, flagMetadata, s.ID(), "/t", wireExtension(-1, "\x01a\x01\x00b")+"answer"))
		var r string
		if err := s.Recv(&r); err != nil || r != "answer" || s.Metadata()["a"] != "b" {
			t.Errorf("%q, %v, %v", r, err, s.Metadata())
		}
		must(t, s.CloseSend())
		p.wants("end", hex.EncodeToString(frameOf(ours|streamEOF, flagNoData, s.ID(), "/t", "")))
		if err := s.Send("more"); CodeOf(err) != CodeFailedPrecondition {
			t.Error(err)
		}
		p.send(frameOf(CmdStream|streamEOF, 0, s.ID(), "/t", "the end"))
		if err := s.Recv(&r); err != nil || r != "the end" {
			t.Errorf("%q, %v", r, err)
		}
		if err := s.Recv(&r); err != io.EOF {
			t.Error(err)
		}
		first := s.ID()
		// A deadline travels and ends the stream at either end.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		s, err = c.OpenStream(ctx, "/t")
		must(t, err)
		must(t, s.SendAndClose("x"))
		m := p.frame()
		if s.ID() == first || first == 0 || s.ID() == 0 {
			t.Errorf("numbers %d and %d", first, s.ID())
		}
		if ms, ok := timeLeft(m.Buffer); !ok || ms > 100 || m.Buffer[indexCmd] != ours|streamEOF || string(m.Data()) != "x" {
			t.Errorf("%x", m.Buffer)
		}
		isReset(t, p.frame(), true, s.ID(), CodeDeadlineExceeded)
		p.send(frameOf(ours, flagOpen|flagDeadline, 9, "/s", wireExtension(1, "none")))
		isReset(t, p.frame(), false, 9, CodeDeadlineExceeded)
	})
}

// What breaks the rules of streams closes the connection.
func TestProtocolStreamViolations(t *testing.T) {
	const peers = CmdStream | streamLocal
	open := frameOf(peers, flagOpen, 3, "/s", "x")
	for name, frames := range map[string][][]byte{
		"opened twice":           {open, open},
		"frame after the last":   {open, frameOf(peers|streamEOF, flagNoData, 3, "/s", ""), frameOf(peers, 0, 3, "/s", "x")},
		"end after the last":     {open, frameOf(peers|streamEOF, 0, 3, "/s", "x"), frameOf(peers|streamEOF, flagNoData, 3, "/s", "")},
		"payload with no data":   {frameOf(peers, flagOpen|flagNoData, 3, "/s", "x")},
		"more at the end":        {frameOf(peers|streamEOF, flagOpen|flagMore, 3, "/s", "x")},
		"credit of 3 bytes":      {open, frameOf(cmdCredit|streamLocal, 0, 3, "", "abc")},
		"credit of 5 bytes":      {open, frameOf(cmdCredit, 0, 0, "", "abcde")},
		"too much for a stream":  {open, frameOf(cmdCredit|streamLocal, 0, 3, "", "\xff\xff\xff\x7f")},
		"too much for all":       {frameOf(cmdCredit, 0, 0, "", "\xff\xff\xff\x7f")},
		"credit with a method":   {frameOf(cmdCredit, 0, 0, "/m", "\x01\x00\x00\x00")},
		"reset with a method":    {frameOf(cmdReset, flagError|flagCoded, 3, "/m", wireError(5, "x"))},
		"going away with method": {frameOf(cmdGoAway, 0, 0, "/m", wireError(14, "x"))},
	} {
		t.Run(name, func(t *testing.T) {
			wireEnds(t, Limits{}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
				c.Handler.HandleStream("/s", func(s *Stream) { <-s.Context().Done() })
				p.send(frames...)
				p.closed(name)
			})
		})
	}
}

func TestProtocolCredit(t *testing.T) {
	mine := wireHello()
	mine.window, mine.connWindow = 8<<10, 12<<10
	const peers = CmdStream | streamLocal
	limits := Limits{StreamWindow: 8 << 10, StreamWindows: 16 << 10}
	credit := func(n int) string { return string(binary.LittleEndian.AppendUint32(nil, uint32(n))) }
	wireEnds(t, limits, mine, func(t *testing.T, c *Client, p *rawPeer) {
		// This end sends what it may, and no more.
		payload := strings.Repeat("x", 30_000)
		a, b := c.NewStream("/a"), c.NewStream("/b")
		sent := make(chan error, 2)
		received := map[uint64]int{}
		take := func(n int) {
			t.Helper()
			for total := 0; total < n; {
				m := p.frame()
				if m.Cmd() != CmdStream {
					t.Fatalf("%x", m.Buffer)
				}
				received[m.Seq()] += len(m.Data())
				total += len(m.Data())
			}
			p.nothing("waiting for credit")
		}
		go func() { sent <- a.Send(payload) }()
		take(8 << 10) // the stream's
		go func() { sent <- b.Send(payload) }()
		take(4 << 10) // the connection's
		done := make(chan error, 1)
		go func() { done <- c.Call("/m", "x", nil, patience) }() // has no part in it
		p.reply(p.frame(), 0, "")
		must(t, recv(t, done, "end of the call"))
		p.send(frameOf(cmdCredit, 0, a.ID(), "", credit(1<<20)))
		p.nothing("credit of a stream, while the connection has none")
		p.send(frameOf(cmdCredit, 0, 0, "", credit(4<<10)))
		take(4 << 10)
		p.send(frameOf(cmdCredit, 0, b.ID(), "", credit(1<<20)), frameOf(cmdCredit, 0, 0, "", credit(1<<20)))
		for received[a.ID()]+received[b.ID()] < 60_000 {
			m := p.frame()
			received[m.Seq()] += len(m.Data())
		}
		for range 2 {
			must(t, recv(t, sent, "end of Send"))
		}
		if received[a.ID()] != 30_000 || received[b.ID()] != 30_000 {
			t.Errorf("%v", received)
		}

		// This end gives back what its program has taken.
		goOn := make(chan struct{})
		c.Handler.HandleStream("/s", func(s *Stream) {
			for range goOn {
				var b []byte
				if s.Recv(&b) != nil {
					return
				}
			}
		})
		p.send(frameOf(peers, flagOpen, 3, "/s", payload[:4<<10]), frameOf(peers, 0, 3, "/s", payload[:4<<10]))
		p.nothing("what is not taken yet")
		goOn <- struct{}{}
		p.wants("credit of the stream", hex.EncodeToString(frameOf(cmdCredit, 0, 3, "", credit(4<<10))))
		goOn <- struct{}{}
		back := map[uint64]int{}
		for range 2 {
			m := p.frame()
			back[m.Seq()] = int(binary.LittleEndian.Uint32(m.Data()))
		}
		if !maps.Equal(back, map[uint64]int{3: 4 << 10, 0: 8 << 10}) {
			t.Errorf("given back: %v", back)
		}
		p.send(frameOf(peers|streamEOF, flagNoData, 3, "/s", ""))
		goOn <- struct{}{}
		p.frame() // the other end
		close(goOn)
		// More than the window.
		c.Handler.HandleStream("/unread", func(s *Stream) { <-s.Context().Done() })
		p.send(frameOf(peers, flagOpen, 4, "/unread", payload[:8<<10]))
		p.nothing("a full window")
		p.send(frameOf(peers, 0, 4, "/unread", "x"))
		m := p.frame()
		if m.Cmd() == cmdCredit && m.Seq() == 0 { // what was dropped
			m = p.frame()
		}
		isReset(t, m, false, 4, CodeResourceExhausted)
	})
}

// Credit of the connection comes back for payloads that nobody takes.
func TestProtocolCreditOfTheUnwanted(t *testing.T) {
	const peers = CmdStream | streamLocal
	payload := strings.Repeat("x", 8<<10)
	for name, send := range map[string]func(c *Client, p *rawPeer){
		"unknown":       func(_ *Client, p *rawPeer) { p.send(frameOf(peers, 0, 3, "/s", payload)) },
		"unknown, ours": func(_ *Client, p *rawPeer) { p.send(frameOf(CmdStream, 0, 3, "/s", payload)) },
		"refused":       func(_ *Client, p *rawPeer) { p.send(frameOf(peers, flagOpen, 3, "/none", payload)) },
		"handler gone": func(c *Client, p *rawPeer) {
			c.Handler.HandleStream("/s", func(*Stream) {})
			p.send(frameOf(peers, flagOpen, 3, "/s", payload))
		},
		"reset by the peer": func(c *Client, p *rawPeer) {
			c.Handler.HandleStream("/s", func(s *Stream) { <-s.Context().Done() })
			p.send(frameOf(peers, flagOpen, 3, "/s", payload), frameOf(cmdReset|streamLocal, flagError|flagCoded, 3, "", wireError(1, "x")))
		},
		"reset by this end": func(c *Client, p *rawPeer) {
			s := c.NewStream("/t")
			must(p.t, s.Send("x"))
			p.frame()
			s.Reset(nil)
			p.send(frameOf(CmdStream, 0, s.ID(), "/t", payload))
		},
		"reset by the peer, abandoned": func(c *Client, p *rawPeer) {
			s := c.NewStream("/t")
			must(p.t, s.Send("x"))
			p.frame()
			p.send(frameOf(CmdStream, 0, s.ID(), "/t", payload), frameOf(cmdReset, flagError|flagCoded, s.ID(), "", wireError(1, "x")))
			recv(p.t, s.Context().Done(), "end of the stream")
			s.Reset(nil)
		},
		"ended and abandoned": func(c *Client, p *rawPeer) {
			s := c.NewStream("/t")
			must(p.t, s.SendAndClose("x"))
			p.frame()
			p.send(frameOf(CmdStream|streamEOF, 0, s.ID(), "/t", payload))
			recv(p.t, s.Context().Done(), "end of the stream")
			s.Reset(nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			wireEnds(t, Limits{StreamWindow: 8 << 10, StreamWindows: 16 << 10}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
				p.SetReadDeadline(time.Now().Add(10 * time.Second)) //nolint:errcheck // a bound only
				send(c, p)
				for {
					m := p.frame()
					if m.Cmd() == cmdCredit && m.Seq() == 0 {
						if n := binary.LittleEndian.Uint32(m.Data()); n < 8<<10 {
							t.Errorf("%d bytes", n)
						}
						return
					}
				}
			})
		})
	}
}

// A peer cannot make this end keep more than the connection's window.
func TestProtocolConnectionWindow(t *testing.T) {
	wireEnds(t, Limits{StreamWindow: 8 << 10, StreamWindows: 16 << 10}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
		p.SetReadDeadline(time.Now().Add(10 * time.Second)) //nolint:errcheck // a bound only
		c.Handler.HandleStream("/s", func(s *Stream) { <-s.Context().Done() })
		var all []byte
		for id := range uint64(10) {
			all = append(all, frameOf(CmdStream|streamLocal, flagOpen, 10+id, "/s", strings.Repeat("x", 8<<10))...)
		}
		p.Conn.Write(all) //nolint:errcheck // it may be closed meanwhile
		p.closed("five times the connection's window")
	})
}

// Empty messages cost no credit, and are bounded all the same.
func TestProtocolEmptyMessages(t *testing.T) {
	wireEnds(t, Limits{}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
		p.SetDeadline(time.Now().Add(10 * time.Second)) //nolint:errcheck // a bound only
		c.Handler.HandleStream("/s", func(s *Stream) { <-s.Context().Done() })
		p.send(frameOf(CmdStream|streamLocal, flagOpen, 3, "/s", ""))
		many := bytes.Repeat(frameOf(CmdStream|streamLocal, 0, 3, "/s", ""), 10_000)
		for range 20 {
			p.send(many)
		}
		before := p.until()
		if len(before) == 0 {
			t.Fatal("200,000 empty messages wait to be received")
		}
		isReset(t, before[0], false, 3, CodeResourceExhausted)
	})
}

func TestProtocolReset(t *testing.T) {
	const peers = CmdStream | streamLocal
	wireEnds(t, Limits{Streams: 2}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.SetMaxBodyLen(1 << 20)
		hold := make(chan struct{})
		c.Handler.HandleStream("/returns", func(s *Stream) {})
		c.Handler.HandleStream("/panics", func(s *Stream) { panic("on purpose") })
		c.Handler.HandleStream("/holds", func(s *Stream) { <-hold })
		c.Handler.HandleStream("/recv", func(s *Stream) {
			var b []byte
			if err := s.Recv(&b); CodeOf(err) != CodeResourceExhausted {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
		bidi := NewBidiStream[pair, pair]("/fails")
		bidi.Handle(c.Handler, func(TypedStream[pair, pair]) error { return &Error{Code: CodeDataLoss, Message: "lost"} })
		for i, tt := range []struct {
			route string
			code  Code
		}{{"/none", CodeUnimplemented}, {"/panics", CodeInternal}, {"/fails", CodeDataLoss}} {
			p.send(frameOf(peers, flagOpen, uint64(10+i), tt.route, "x"))
			isReset(t, p.frame(), false, uint64(10+i), tt.code)
		}
		p.send(frameOf(peers, flagOpen, 20, "/returns", "x"))
		p.wants("end of what the handler sends", hex.EncodeToString(frameOf(CmdStream|streamEOF, flagNoData, 20, "/returns", "")))
		isReset(t, p.frame(), false, 20, CodeCanceled)
		// A message above the limit, in pieces.
		p.send(frameOf(peers, flagOpen|flagMore, 21, "/recv", strings.Repeat("x", 100_000)))
		for range 11 {
			p.send(frameOf(peers, flagMore, 21, "/recv", strings.Repeat("x", 100_000)))
		}
		for {
			if m := p.frame(); m.Cmd() != cmdCredit {
				isReset(t, m, false, 21, CodeResourceExhausted)
				break
			}
		}
		eventually(t, "room for streams", func() bool {
			l := c.link.Load()
			l.cn.Lock()
			defer l.cn.Unlock()
			return len(l.streamsLocked().theirs) == 0
		})
		p.until() // what of stream 21 came after that
		p.send(frameOf(peers, flagOpen, 30, "/holds", "x"), frameOf(peers, flagOpen, 31, "/holds", "x"), frameOf(peers, flagOpen, 32, "/holds", "x"))
		isReset(t, p.frame(), false, 32, CodeResourceExhausted)
		close(hold)
		for range 4 {
			p.frame() // the end and RESET of each
		}

		// This end cancels, and forgets the number.
		ctx, cancel := context.WithCancel(t.Context())
		s, err := c.OpenStream(ctx, "/t")
		must(t, err)
		must(t, s.Send("x"))
		p.frame()
		cancel()
		isReset(t, p.frame(), true, s.ID(), CodeCanceled)
		if err := s.Send("x"); CodeOf(err) != CodeCanceled {
			t.Error(err)
		}
		p.send(frameOf(CmdStream, 0, s.ID(), "/t", "late"), frameOf(cmdReset, flagError|flagCoded, s.ID(), "", wireError(5, "late")))
		p.nothing("a stream that was reset")
		// The peer refuses.
		s = c.NewStream("/t")
		must(t, s.Send("x"))
		p.frame()
		p.send(frameOf(cmdReset, flagError|flagCoded, s.ID(), "", wireError(12, "no such stream")))
		recv(t, s.Context().Done(), "end of the stream")
		if err := s.Send("x"); CodeOf(err) != CodeUnimplemented {
			t.Error(err)
		}
		if err := s.Recv(nil); CodeOf(err) != CodeUnimplemented {
			t.Error(err)
		}
		p.nothing("RESET")
	})
}

func TestProtocolGoAway(t *testing.T) {
	t.Run("shutdown", func(t *testing.T) {
		onAdapters(t, func(t *testing.T, adapter ServerOption) {
			s := startServer(t, adapter)
			begun, goOn := make(chan struct{}), make(chan struct{})
			s.Handler.Handle("/slow", func(ctx *Context) { close(begun); <-goOn; ctx.Write("done") })
			s.Handler.HandleStream("/s", func(*Stream) {})
			p, _ := wireDial(t, s.addr, wireHello())
			p.send(frameOf(CmdRequest, 0, 5, "/slow", ""))
			recv(t, begun, "handler")
			done := make(chan error, 1)
			go func() { done <- s.Shutdown(patient(t)) }()
			m := p.frame()
			if m.Cmd() != cmdGoAway || m.Buffer[indexFlag] != 0 || m.MethodLen() != 0 || m.Seq() != 0 || CodeOf(decodeError(m.Data(), nil)) != CodeUnavailable {
				t.Errorf("%x", m.Buffer)
			}
			if m := p.frame(); m.Cmd() != CmdPing || m.Len() != HeadLen {
				t.Errorf("instead of a ping: %x", m.Buffer)
			}
			eventually(t, "the server refuses", s.rpc.draining.Load)
			p.send(frameOf(CmdRequest, 0, 6, "/slow", ""), frameOf(CmdStream|streamLocal, flagOpen, 7, "/s", "x"))
			if m := p.frame(); m.Seq() != 6 || CodeOf(m.Error()) != CodeUnavailable {
				t.Errorf("%x", m.Buffer)
			}
			isReset(t, p.frame(), false, 7, CodeUnavailable)
			p.send(pongFrame)
			close(goOn)
			if m := p.frame(); m.Seq() != 5 || string(m.Data()) != "done" {
				t.Errorf("%x", m.Buffer)
			}
			m = p.frame()
			if m.Cmd() != cmdGoAway || !m.IsError() || CodeOf(decodeError(m.Data(), nil)) != CodeUnavailable {
				t.Errorf("farewell: %x", m.Buffer)
			}
			if rest := p.end(); len(rest) > 0 {
				t.Errorf("after the farewell: %x", rest)
			}
			p.Close()
			must(t, recv(t, done, "end of Shutdown"))
		})
	})
	t.Run("told", func(t *testing.T) {
		onAdapters(t, func(t *testing.T, adapter ServerOption) {
			s := startServer(t, adapter)
			p, _ := wireDial(t, s.addr, wireHello())
			c := s.waitClients(t, 1)[0]
			done := make(chan error, 1)
			go func() { done <- c.Call("/m", nil, nil, patience) }()
			m := p.frame()
			p.send(frameOf(cmdGoAway, 0, 0, "", wireError(14, "maintenance")), frameOf(cmdGoAway, 0, 0, "", wireError(14, "again")))
			p.nothing("GOAWAY")
			for what, err := range map[string]error{
				"call": c.Call("/m", nil, nil, patience), "notification": c.Notify("/m", nil, patience), "stream": c.NewStream("/m").Send("x"),
			} {
				if CodeOf(err) != CodeUnavailable || !strings.Contains(err.Error(), "maintenance") {
					t.Errorf("%s: %v", what, err)
				}
			}
			p.nothing("what is refused here")
			p.reply(m, 0, "")
			must(t, recv(t, done, "end of the call in flight"))
		})
	})
	t.Run("client goes elsewhere", func(t *testing.T) {
		ln := listenRaw(t)
		connected := make(chan *Client, 1)
		go func() {
			c, err := NewClient(dialer(ln.addr()), NewHandler())
			if err != nil {
				t.Error(err)
			}
			connected <- c
		}()
		accept := func() *rawPeer {
			p := ln.accept()
			p.frame()
			p.send(helloFrame(CmdPong, wireHello()))
			return p
		}
		p := accept()
		c := recv(t, connected, "client")
		t.Cleanup(c.Stop)
		done, later := make(chan error, 1), make(chan error, 1)
		go func() { done <- c.Call("/m", nil, nil, patience) }()
		m := p.frame()
		p.send(frameOf(cmdGoAway, 0, 0, "", wireError(14, "maintenance")))
		q := accept()
		must(t, c.WaitReady(patient(t)))
		go func() { later <- c.Call("/later", nil, nil, patience) }()
		q.reply(q.frame(), 0, "")
		must(t, recv(t, later, "end of the later call"))
		p.reply(m, 0, "")
		must(t, recv(t, done, "end of the call in flight"))
	})
	t.Run("farewell", func(t *testing.T) {
		wireEnds(t, Limits{}, wireHello(), func(t *testing.T, c *Client, p *rawPeer) {
			done := make(chan error, 1)
			go func() { done <- c.Call("/m", nil, nil, patience) }()
			p.frame()
			p.send(frameOf(cmdGoAway, flagError, 0, "", wireError(14, "the cat is on the keyboard")))
			p.Close()
			if err := recv(t, done, "end of the call"); CodeOf(err) != CodeUnavailable || !strings.Contains(err.Error(), "the cat is on the keyboard") {
				t.Error(err)
			}
		})
	})
}

func TestProtocolAuth(t *testing.T) {
	t.Run("accepting", func(t *testing.T) {
		onAdapters(t, func(t *testing.T, adapter ServerOption) {
			s := startServer(t, adapter)
			noted := make(chan struct{}, 1)
			s.Handler.HandleAuth(func(_ *Context, token []byte) (any, error) {
				if string(token) != "secret" {
					return nil, &Error{Code: CodeUnauthenticated, Message: "who are you"}
				}
				return "bob", nil
			})
			s.Handler.Handle("/n", func(ctx *Context) { noted <- struct{}{} })
			s.Handler.Handle("/who", func(ctx *Context) { ctx.Write(ctx.Peer().Principal) })
			s.Handler.HandleStream("/s", func(*Stream) {})
			for _, version := range []int{1, 2} {
				p := dialRaw(t, s.addr)
				if version == 2 {
					p.send(helloFrame(CmdPing, wireHello()))
					p.frame()
				}
				p.send(frameOf(CmdNotify, 0, 1, "/n", ""), frameOf(CmdRequest, 0, 2, "/who", ""))
				if m := p.frame(); m.Seq() != 2 || CodeOf(m.Error()) != CodeUnauthenticated {
					t.Errorf("%x", m.Buffer)
				}
				if version == 2 {
					p.send(frameOf(CmdStream|streamLocal, flagOpen, 3, "/s", "x"))
					isReset(t, p.frame(), false, 3, CodeUnauthenticated)
				} else {
					p.send(frameOf(CmdStream|streamLocal, 0, 3, "/s", "x"))
				}
				p.send(frameOf(CmdRequest, 0, 4, authMethod, "wrong"))
				if m := p.frame(); m.Seq() != 4 || !m.IsError() {
					t.Errorf("%x", m.Buffer)
				}
				p.nothing("what was refused")
				p.send(frameOf(CmdRequest, 0, 5, authMethod, "secret"))
				if m := p.frame(); m.Seq() != 5 || m.IsError() || len(m.Data()) > 0 {
					t.Errorf("%x", m.Buffer)
				}
				p.send(frameOf(CmdRequest, 0, 6, "/who", ""))
				if m := p.frame(); string(m.Data()) != "bob" {
					t.Errorf("%x", m.Buffer)
				}
				p.send(frameOf(CmdRequest, 0, 7, authMethod, "secret"))
				if m := p.frame(); m.Seq() != 7 || m.IsError() {
					t.Errorf("%x", m.Buffer)
				}
				p.send(frameOf(CmdRequest, 0, 8, authMethod, "wrong"))
				if m := p.frame(); m.Seq() != 8 || !m.IsError() {
					t.Errorf("%x", m.Buffer)
				}
				p.closed("a failure to authenticate again")
			}
			if len(noted) > 0 {
				t.Error("a notification was taken from a stranger")
			}
		})
	})
	t.Run("in time", func(t *testing.T) {
		s := startServer(t, Limits{Handshake: 50 * time.Millisecond})
		s.Handler.HandleAuth(func(*Context, []byte) (any, error) { return nil, nil })
		p := dialRaw(t, s.addr)
		p.closed("silence")
	})
	t.Run("not demanded", func(t *testing.T) {
		s := startServer(t)
		p := dialRaw(t, s.addr)
		p.send(frameOf(CmdRequest, 0, 4, authMethod, "x"))
		if m := p.frame(); string(m.Data()) != ErrMethodNotFound.Message {
			t.Errorf("%x", m.Buffer)
		}
	})
	t.Run("dialling", func(t *testing.T) {
		for _, version := range []int{1, 2} {
			ln := listenRaw(t)
			connected := make(chan *Client, 1)
			go func() {
				c, err := NewClient(dialer(ln.addr()), NewHandler(), Protocol(version),
					Credentials(func(context.Context) ([]byte, error) { return []byte("secret"), nil }))
				if err != nil {
					t.Error(err)
				}
				connected <- c
			}()
			p := ln.accept()
			if version == 2 {
				p.frame()
				p.nothing("waiting for the answer to HELLO")
				p.send(pongFrame)
			}
			m := p.frame()
			if m.Cmd() != CmdRequest || m.Method() != authMethod || string(m.Data()) != "secret" {
				t.Errorf("%x", m.Buffer)
			}
			p.nothing("waiting for the answer")
			p.reply(m, 0, "")
			c := recv(t, connected, "client")
			t.Cleanup(c.Stop)
			done := make(chan error, 1)
			go func() { done <- c.Authenticate(t.Context()) }()
			m = p.frame()
			if m.Method() != authMethod {
				t.Errorf("%x", m.Buffer)
			}
			p.reply(m, 0, "")
			must(t, recv(t, done, "end of Authenticate"))
		}
	})
}

// Streams with a peer of version 1.
func TestProtocolStreamsV1(t *testing.T) {
	const peers = CmdStream | streamLocal
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.HandleStream("/s", func(s *Stream) {
			for b, err := range s.All() {
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Send("r" + string(b)); err != nil {
					t.Error(err)
				}
			}
		})
		p.send(unhex("030000000086000211000000000000002f7361")) // the examples of section 13
		p.wants("answer", "040000000006000211000000000000002f737261")
		p.send(frameOf(peers, 0, 17, "/s", "")) // is no message
		p.nothing("an empty payload")
		p.send(unhex("0300000000c6000211000000000000002f737a"))
		p.wants("answer", "040000000006000211000000000000002f73727a")
		p.wants("end", "020000000046000211000000000000002f73")
		p.send(frameOf(peers, 0, 18, "/none", "x"), frameOf(CmdStream, 0, 19, "/s", "x"), frameOf(CmdStream|streamEOF, 0, 17, "/s", ""))
		p.nothing("streams that do not exist")

		s, err := c.OpenStream(WithMetadata(patient(t), Metadata{"k": "v"}), "/t")
		must(t, err)
		if err := s.Send(""); CodeOf(err) != CodeInvalidArgument {
			t.Errorf("an empty message: %v", err)
		}
		must(t, s.Send("a"))
		p.wants("first frame", hex.EncodeToString(frameOf(peers, 0, s.ID(), "/t", "a")))
		must(t, s.SendAndClose("z"))
		p.wants("last frame", hex.EncodeToString(frameOf(peers|streamEOF, 0, s.ID(), "/t", "z")))
		if err := s.Send("x"); CodeOf(err) != CodeFailedPrecondition {
			t.Error(err)
		}
		p.send(frameOf(CmdStream, 0, s.ID(), "/t", "b"), frameOf(CmdStream|streamEOF, 0, s.ID(), "/t", "c"))
		for _, want := range []string{"b", "c"} {
			var r string
			if err := s.Recv(&r); err != nil || r != want {
				t.Errorf("%q, %v", r, err)
			}
		}
		if err := s.Recv(nil); err != io.EOF {
			t.Error(err)
		}
		p.send(frameOf(CmdStream, 0, s.ID(), "/t", "late"))
		p.nothing("a stream that is over")
		if later := c.NewStream("/t"); later.ID() == s.ID() {
			t.Error("the number is used again")
		} else if later.Send("x"); p.frame().Seq() != later.ID() {
			t.Error("another number")
		}
		// One that nobody receives is dropped; the connection goes on.
		c.Handler.HandleStream("/unread", func(s *Stream) { <-s.Context().Done() })
		many := bytes.Repeat(frameOf(peers, 0, 40, "/unread", "x"), maxMessagesV1+10)
		p.send(many)
		before := p.until()
		if len(before) != 1 || !bytes.Equal(before[0].Buffer, frameOf(CmdStream|streamEOF, 0, 40, "/unread", "")) {
			t.Errorf("%d frames", len(before))
		}
		// A stream that fails seems to end.
		c.Handler.HandleStream("/panics", func(*Stream) { panic("on purpose") })
		p.send(frameOf(peers, 0, 41, "/panics", "x"))
		p.wants("end", hex.EncodeToString(frameOf(CmdStream|streamEOF, 0, 41, "/panics", "")))
	})
}

// Nothing of version 2 but HELLO reaches a peer of version 1, and nothing that it cannot be told ends the connection.
func TestProtocolToVersion1(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.Handle("/fail", func(ctx *Context) {
			if err := ctx.SetMetadata("k", "v"); err != nil {
				t.Error(err)
			}
			ctx.Error(&Error{Code: CodeNotFound, Message: "gone", Details: []Detail{{Name: "d", Value: "v"}}})
		})
		p.send(frameOf(CmdRequest, 0, 5, "/fail", ""))
		p.wants("error", hex.EncodeToString(frameOf(CmdResponse, flagError, 5, "/fail", "gone")))
		ctx, cancel := context.WithCancel(WithMetadata(t.Context(), Metadata{"k": "v"}))
		done := make(chan error, 1)
		go func() { done <- c.CallWith(ctx, "/m", "x", nil) }()
		m := p.frame()
		if !bytes.Equal(m.Buffer, frameOf(CmdRequest, 0, m.Seq(), "/m", "x")) {
			t.Errorf("%x", m.Buffer)
		}
		cancel()
		if err := recv(t, done, "end of the call"); CodeOf(err) != CodeCanceled {
			t.Error(err)
		}
		must(t, c.NotifyWith(WithMetadata(t.Context(), Metadata{"k": "v"}), "/n", "x"))
		m = p.frame() // no CANCEL before it
		if !bytes.Equal(m.Buffer, frameOf(CmdNotify, flagAsync, m.Seq(), "/n", "x")) {
			t.Errorf("%x", m.Buffer)
		}
		for code, text := range map[Code]string{CodeUnimplemented: "method not found", CodeInternal: errPanicked.Message, CodeUnknown: "other",
			CodeUnavailable: errDraining.Message, CodeUnauthenticated: errNoAuth.Message, CodeResourceExhausted: errTooMany.Message} {
			go func() { done <- c.Call("/m", nil, nil, patience) }()
			p.reply(p.frame(), flagError, text)
			if err := recv(t, done, "end of the call"); CodeOf(err) != code {
				t.Errorf("%q: %v", text, CodeOf(err))
			}
		}
		p.nothing("all that")
	})
}

// wireExamples makes the frames of section 24 with live ends.
func wireExamples(t *testing.T) map[string]string {
	t.Helper()
	examples := map[string]string{}
	note := func(what string, m *Message) { examples[what] = hex.EncodeToString(m.Buffer) }
	c, p, first := wireClient(t, wireHello())
	note("HELLO of a client with the defaults", first)
	s := startServer(t)
	q, m := wireDial(t, s.addr, wireHello())
	note("its answer by a server with the defaults", m)

	done := make(chan error, 1)
	go func() { done <- c.Call("/e", "hi", nil, time.Second) }()
	m = p.frame()
	note("call of `/e` with text `hi`, one second left", m)
	p.reply(m, 0, "")
	must(t, recv(t, done, "end of the call"))
	go func() {
		done <- c.CallWith(WithMetadata(t.Context(), Metadata{"k": "v"}), "/e", "hi", nil)
	}()
	m = p.frame()
	note("the same with the default of one minute and metadata `k` = `v`", m)
	p.reply(m, 0, "")
	must(t, recv(t, done, "end of the call"))
	must(t, c.NotifyWith(WithMetadata(t.Context(), Metadata{"k": "v"}), "/n", "nt"))
	note("notification `/n` with `nt` and metadata `k` = `v`", p.frame())

	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { done <- c.CallWith(ctx, "/e", nil, nil) }()
	p.frame()
	cancel(errors.New("why"))
	<-done
	note("CANCEL of call 5, because of `why`", p.frame())

	s.Handler.Handle("/m", func(ctx *Context) {
		must(t, ctx.SetMetadata("k", "v"))
		ctx.Write("hi")
	})
	s.Handler.Handle("/er", func(ctx *Context) { ctx.Error(CodeNotFound) })
	s.Handler.Handle("/ed", func(ctx *Context) {
		ctx.Error(&Error{Code: CodeAborted, Message: "bad", Details: []Detail{{Name: "d", Value: map[string]int{"n": 7}}}})
	})
	q.send(frameOf(CmdRequest, 0, 2, "/m", ""))
	note("answer of `/m` to call 2, text `hi`, metadata `k` = `v`", q.frame())
	q.send(frameOf(CmdRequest, 0, 3, "/er", ""))
	note("error 5, `not_found`, of `/er` to call 3", q.frame())
	q.send(frameOf(CmdRequest, 0, 4, "/ed", ""))
	note("error 10, `bad`, with a detail `d` = `{\"n\":7}`, of `/ed` to call 4", q.frame())

	st := c.NewStream("/s")
	must(t, st.Send("a"))
	note("stream 6 of `/s`, the creator's first frame, message `a`", p.frame())
	must(t, st.Send(""))
	note("an empty message on it", p.frame())
	must(t, st.CloseSend())
	note("the creator's end", p.frame())
	dl, err := c.OpenStream(WithMetadata(t.Context(), Metadata{"k": "v"}), "/s")
	must(t, err)
	must(t, dl.CloseSend())
	note("stream 7 of `/s`, with metadata and no message, ended at once", p.frame())
	st.Reset(&Error{Code: CodeAborted, Message: "bad"})
	note("RESET of stream 6 by its creator, error 10, `bad`", p.frame())
	q.send(frameOf(CmdStream|streamLocal, flagOpen, 9, "/none", "x"))
	note("refusal of the peer's stream 9, of which there is no handler", q.frame())

	v := wireHello()
	s2 := startServer(t, Limits{StreamWindow: 8 << 10, StreamWindows: 8 << 10})
	s2.Handler.HandleStream("/s", func(s *Stream) {
		var b []byte
		s.Recv(&b)
		<-s.Context().Done()
	})
	r, _ := wireDial(t, s2.addr, v)
	r.send(frameOf(CmdStream|streamLocal, flagOpen, 3, "/s", strings.Repeat("x", 8<<10)))
	note("CREDIT of 8192 bytes for the peer's stream 3", r.frame())
	note("CREDIT of 8192 bytes for the connection", r.frame())

	go s2.Shutdown(patient(t))
	note("GOAWAY: drain", r.frame())
	c.Stop()
	note("GOAWAY: farewell of a client that is stopped", p.frame())
	return examples
}

// TestProtocolExamples makes the examples of section 24, which the document must have as they are.
func TestProtocolExamples(t *testing.T) {
	examples := wireExamples(t)
	doc, err := os.ReadFile("docs/protocol.md")
	must(t, err)
	_, section, ok := strings.Cut(string(doc), "## 24. ")
	if !ok {
		t.Fatal("no section 24")
	}
	documented := map[string]string{}
	for line := range strings.Lines(section) {
		if cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | "); len(cells) == 2 && strings.HasSuffix(cells[1], "` ") {
			documented[strings.TrimSpace(cells[0])] = strings.ReplaceAll(strings.Trim(strings.TrimSpace(cells[1]), "`"), "` `", "")
		}
	}
	for _, what := range slices.Sorted(maps.Keys(examples)) {
		if documented[what] != examples[what] {
			t.Errorf("section 24 lacks or differs from\n| %s | `%s` |", what, examples[what])
		}
		delete(documented, what)
	}
	for what := range documented {
		t.Errorf("section 24 has an example that nothing makes: %s", what)
	}
}

// Methods are bytes: neither case nor encoding matters.
func TestProtocolMethodsAreBytes(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		methods := []string{"/case", "/CASE", "/\xff\xfe", "/é", "/e\u0301", " ", strings.Repeat("m", MaxMethodLen)}
		for _, m := range methods {
			c.Handler.HandleInline(m, func(c *Context) { c.Write("of " + m) })
		}
		for _, m := range methods {
			p.send(frameOf(CmdRequest, 0, 5, m, ""))
			p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 5, m, "of "+m)))
		}
		p.send(frameOf(CmdRequest, 0, 5, "/Case", ""))
		if m := p.frame(); string(m.Data()) != ErrMethodNotFound.Message {
			t.Errorf("%x", m.Buffer)
		}
	})
}

// An answer belongs to the request of its number, whatever its method.
func TestProtocolMethodOfAnAnswer(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		done := make(chan error, 1)
		var r string
		go func() { done <- c.Call("/m", nil, &r, patience) }()
		p.send(frameOf(CmdResponse, 0, p.frame().Seq(), "/another", "answer"))
		if err := recv(t, done, "end of the call"); err != nil || r != "answer" {
			t.Errorf("%q, %v", r, err)
		}
	})
}
