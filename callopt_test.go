package arpc

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc/codec"
)

// What a context says about calls: their metadata, codec, and what is told of them. And the coders that both ends must have.

// tagged is a codec whose bytes no other takes: JSON behind a byte.
type tagged struct{ name string }

func (c tagged) Name() string { return c.name }

func (tagged) Marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return append([]byte{1}, b...), err
}

func (tagged) Unmarshal(b []byte, v any) error {
	if len(b) == 0 || b[0] != 1 {
		return fmt.Errorf("%q is of another codec", b)
	}
	return json.Unmarshal(b[1:], v)
}

// useTagged registers tagged until the end of the test, in the place of Protobuf: what HELLO says stays the same.
func useTagged(t testing.TB) codec.Named {
	c := tagged{"protobuf"}
	codec.Register(c)
	t.Cleanup(func() { codec.Register(codec.Protobuf{}) })
	return c
}

type point struct{ X int }

// codecPair is the pair of the metadata that names a codec.
func codecPair(name string) string {
	return "\x0aarpc.codec" + string(binary.LittleEndian.AppendUint16(nil, uint16(len(name)))) + name
}

// V2-CODEC-1, V2-EXT-4.
func TestUseCodec(t *testing.T) {
	other := useTagged(t)
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		plain := WithMetadata(patient(t), Metadata{"k": "v"})
		ctx := UseCodec(plain, other)
		h := func(c *Context) {
			var p point
			if err := c.Bind(&p); err != nil {
				t.Error(err)
			}
			wantFirst := byte(1)
			if c.Message.Method() == "/plain" {
				wantFirst = '{'
			}
			if b := c.Body(); len(b) == 0 || b[0] != wantFirst {
				t.Errorf("%s: the payload is %q", c.Message.Method(), b)
			}
			if md := c.Metadata(); !maps.Equal(md, Metadata{"k": "v"}) {
				t.Errorf("%s: the handler has %v", c.Message.Method(), md)
			}
			must(t, c.SetMetadata("a", "b"))
			p.X++
			if c.Message.Method() == "/later" {
				c.AnswerLater()
				go c.Write(p)
				return
			}
			if c.Message.Cmd() == CmdRequest {
				must(t, c.Write(p))
			}
		}
		w.callee.Handler.Handle("/plain", h)
		w.callee.Handler.Handle("/ordered", h)
		w.callee.Handler.Handle("/async", h, true)
		w.callee.Handler.HandleInline("/inline", h)
		w.callee.Handler.Handle("/later", h)
		typed := NewMethod[point, point]("/typed")
		typed.Handle(w.callee.Handler, func(_ *Context, p *point) (*point, error) { return &point{p.X + 1}, nil })
		for i, ctx := range []context.Context{ctx, WithMetadata(UseCodec(patient(t), other), Metadata{"k": "v"}),
			AddMetadata(UseCodec(UseCodec(patient(t), codec.JSONCodec{}), other), "k", "v")} {
			for _, route := range []string{"/ordered", "/async", "/inline", "/later"} {
				var p point
				var md Metadata
				must(t, w.caller.CallWith(WithResponseMetadata(ctx, &md), route, point{i}, &p))
				if p.X != i+1 || !maps.Equal(md, Metadata{"a": "b"}) {
					t.Errorf("%s: %v with %v", route, p, md)
				}
				must(t, w.caller.NotifyWith(ctx, route, point{i}))
			}
			if p, err := typed.Call(ctx, w.caller, &point{i}); err != nil || p.X != i+1 {
				t.Errorf("%v, %v", p, err)
			}
		}
		// A nil codec is the Client's again; others do not notice.
		for _, ctx := range []context.Context{plain, UseCodec(ctx, nil), UseCodec(plain, nil)} {
			var p point
			must(t, w.caller.CallWith(ctx, "/plain", point{5}, &p))
			must(t, w.caller.NotifyWith(ctx, "/plain", point{5}))
			if p.X != 6 {
				t.Errorf("%v", p)
			}
		}
		// Bytes and texts are as they are.
		w.callee.Handler.Handle("/raw", echo)
		for _, v := range []any{"text", []byte("text")} {
			var s string
			var b []byte
			must(t, w.caller.CallWith(ctx, "/raw", v, &s))
			must(t, w.caller.CallWith(ctx, "/raw", v, &b))
			if s != "text" || string(b) != "text" {
				t.Errorf("%q %q", s, b)
			}
		}
		// What cannot be encoded, at either end.
		if err := w.caller.CallWith(ctx, "/raw", make(chan int), nil); err == nil {
			t.Error("a channel was encoded")
		}
		w.callee.Handler.Handle("/bad", func(c *Context) { c.Write(make(chan int)) })
		wantCode(t, "an answer that cannot be encoded", w.caller.CallWith(ctx, "/bad", point{}, nil), CodeInternal)
		w.callee.Handler.Handle("/json", func(c *Context) { c.Write(`{"X":1}`) })
		var p point
		if err := w.caller.CallWith(ctx, "/json", point{}, &p); err == nil {
			t.Errorf("an answer in another codec passes for %v", p)
		}
		// Errors; their details are of the connection's codec.
		w.callee.Handler.Handle("/error", func(c *Context) {
			c.Write(&Error{Code: CodeAborted, Message: "no", Details: []Detail{{Name: "d", Value: point{7}}, {Name: "raw", Value: "text"}}})
		})
		err := w.caller.CallWith(ctx, "/error", point{}, nil)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeAborted || e.Message != "no" || len(e.Details) != 2 {
			t.Fatalf("%#v", err)
		}
		if err := e.Details[0].Bind(&p); err != nil || p.X != 7 {
			t.Errorf("the detail is %q: %v, %v", e.Details[0].Value, p, err)
		}
		if b, _ := e.Details[0].Value.([]byte); len(b) == 0 || b[0] != '{' {
			t.Errorf("the detail is not of the connection's codec: %q", b)
		}
		if b, _ := e.Details[1].Value.([]byte); string(b) != "text" {
			t.Errorf("the raw detail is %q", b)
		}
	})
}

// V2-CODEC-1: all messages of a stream have the codec that it was opened with.
func TestUseCodecOfStreams(t *testing.T) {
	other := useTagged(t)
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		ended := e.handle("/s", func(s *Stream) error {
			if md := s.Metadata(); !maps.Equal(md, Metadata{"k": "v"}) {
				return fmt.Errorf("the handler has %v", md)
			}
			for {
				var p point
				if err := s.Recv(&p); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := s.Send(point{p.X + 1}); err != nil {
					return err
				}
			}
		})
		for _, ctx := range []context.Context{UseCodec(patient(t), other), UseCodec(UseCodec(patient(t), other), nil)} {
			s, err := e.near.OpenStream(WithMetadata(ctx, Metadata{"k": "v"}), "/s")
			must(t, err)
			for i := range 3 {
				var p point
				must(t, s.Send(point{i}))
				must(t, s.Recv(&p))
				if p.X != i+1 {
					t.Errorf("%v", p)
				}
			}
			must(t, s.CloseSend())
			if err := recv(t, ended, "end of the handler"); err != io.EOF {
				t.Error(err)
			}
			if err := s.Recv(nil); err != io.EOF {
				t.Error(err)
			}
		}
		// What a handler resets a stream with has its codec, too.
		e.handle("/reset", func(s *Stream) error {
			s.Recv(nil) //nolint:errcheck // the end is what matters
			s.Reset(&Error{Code: CodeAborted, Message: "no", Details: []Detail{{Name: "d", Value: point{7}}}})
			return nil
		})
		s, err := e.near.OpenStream(UseCodec(patient(t), other), "/reset")
		must(t, err)
		must(t, s.Send(point{}))
		var p point
		var re *Error
		if err := s.Recv(&p); !errors.As(err, &re) || re.Code != CodeAborted || len(re.Details) != 1 {
			t.Fatalf("%#v", err)
		}
		if err := re.Details[0].Bind(&p); err != nil || p.X != 7 {
			t.Errorf("the detail is %q: %v, %v", re.Details[0].Value, p, err)
		}
		e.works(t)
		e.settled(t)
	})
}

// V2-CODEC-1: a codec that a peer has named may be used with it, if it is not registered there but the connection's.
func TestUseCodecOfThePeer(t *testing.T) {
	mine := tagged{"mine"}
	s := startServer(t, WithCodec(mine))
	s.Handler.Handle("/m", func(c *Context) {
		var p point
		if err := c.Bind(&p); err != nil {
			c.Write(err)
			return
		}
		c.Write(point{p.X + 1})
	})
	c := dialClient(t, s.addr)
	var p point
	if err := c.CallWith(UseCodec(patient(t), mine), "/m", point{1}, &p); err != nil || p.X != 2 {
		t.Errorf("%v, %v", p, err)
	}
}

// V2-CODEC-1: the bytes.
func TestUseCodecBytes(t *testing.T) {
	other := useTagged(t)
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		ctx := UseCodec(WithMetadata(patient(t), Metadata{"k": "v"}), other)
		const block = "\x01k\x01\x00v" + "\x0aarpc.codec\x08\x00protobuf"
		done := make(chan error, 1)
		var v point
		go func() { done <- c.CallWith(ctx, "/m", point{1}, &v) }()
		m := p.frame()
		if got := string(metadataIn(m.Buffer)); got != block || string(m.Data()) != "\x01{\"X\":1}" {
			t.Errorf("%q %q", got, m.Data())
		}
		p.reply(m, 0, "\x01{\"X\":2}") // the answer need not name it
		if err := recv(t, done, "end of the call"); err != nil || v.X != 2 {
			t.Errorf("%v, %v", v, err)
		}
		must(t, c.NotifyWith(ctx, "/n", point{1}))
		if m := p.frame(); string(metadataIn(m.Buffer)) != block || string(m.Data()) != "\x01{\"X\":1}" {
			t.Errorf("%q", m.Buffer)
		}
		s, err := c.OpenStream(ctx, "/s")
		must(t, err)
		for i := range 2 {
			must(t, s.Send(point{1}))
			m := p.frame()
			if string(m.Data()) != "\x01{\"X\":1}" || i == 0 && string(metadataIn(m.Buffer)) != block || i > 0 && metadataIn(m.Buffer) != nil {
				t.Errorf("%q", m.Buffer)
			}
		}
		s.Reset(nil)
		p.frame()
		// What a handler answers.
		c.Handler.Handle("/h", func(ctx *Context) {
			if ctx.Metadata() != nil { // V2-EXT-4
				t.Errorf("the handler has %v", ctx.Metadata())
			}
			ctx.Write(point{3})
		})
		p.send(frameOf(CmdRequest, flagMetadata, 9, "/h", wireExtension(-1, codecPair("protobuf"))+"\x01{}"))
		p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 9, "/h", "\x01{\"X\":3}")))
		p.send(frameOf(CmdRequest, flagMetadata, 9, "/h", wireExtension(-1, codecPair("json"))+"{}"))
		p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 9, "/h", "{\"X\":3}")))
	})
}

// V2-CODEC-1: to a peer that does not know the codec nothing is sent.
func TestUseCodecUnknownToThePeer(t *testing.T) {
	other := useTagged(t)
	check := func(t *testing.T, c *Client, p *rawPeer, kinds ...string) {
		ctx, cancel := context.WithTimeout(UseCodec(context.Background(), other), time.Second) // nothing waits for the peer
		defer cancel()
		for _, what := range kinds {
			var err error
			switch what {
			case "call":
				err = c.CallWith(ctx, "/m", point{1}, nil)
			case "raw call": // nobody knows what the answer is
				err = c.CallWith(ctx, "/m", "raw", nil)
			case "notification":
				err = c.NotifyWith(ctx, "/m", point{1})
			case "stream":
				var s *Stream
				if s, err = c.OpenStream(ctx, "/m"); err == nil {
					err = s.Send(point{1})
				}
				c.streamsOf(func(ls *linkStreams) {
					if len(ls.ours) > 0 {
						t.Error("there is a stream")
					}
				})
			}
			wantCode(t, what, err, CodeFailedPrecondition)
			wantUnsent(t, what, err)
		}
		p.nothing("a codec that the peer does not know")
		if calls, _, _ := tables(c); calls != 0 {
			t.Errorf("%d calls in flight", calls)
		}
	}
	all := []string{"call", "raw call", "notification", "stream"}
	change := func(f func(*hello)) hello {
		h := fullHello()
		f(&h)
		return h
	}
	for _, tt := range []struct {
		name  string
		h     hello
		kinds []string
	}{
		{"no names", plainHello(), all},
		{"other names", change(func(h *hello) { h.names = "json,proto,protobuf2,coder:protobuf," }), all},
		{"no metadata", change(func(h *hello) { h.features &^= featMetadata }), all},
		{"no streams", change(func(h *hello) { h.features &^= featStreams }), []string{"stream"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			greetedEnds(t, tt.h, func(t *testing.T, c *Client, p *rawPeer) { check(t, c, p, tt.kinds...) })
		})
	}
	t.Run("version 1", func(t *testing.T) {
		version1Ends(t, func(t *testing.T, c *Client, p *rawPeer) { check(t, c, p, all...) })
	})
	t.Run("Protocol(1)", func(t *testing.T) {
		s := startServer(t)
		c := dialClient(t, s.addr, Protocol(1))
		for _, c := range []*Client{c, s.waitClients(t, 1)[0]} {
			wantCode(t, "call", c.CallWith(UseCodec(patient(t), other), "/m", point{1}, nil), CodeFailedPrecondition)
		}
	})
}

// A message that names a codec that nobody knows concerns nobody else.
func TestUnknownCodecArrives(t *testing.T) {
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		pair := wireExtension(-1, codecPair("nobody's"))
		errs := make(chan error, 1)
		c.Handler.Handle("/m", func(ctx *Context) {
			var v point
			err := ctx.Bind(&v)
			errs <- err
			ctx.Write(err)
		})
		c.Handler.Handle("/raw", echo)
		c.Handler.Handle("/echo", echo)
		NewMethod[point, point]("/typed").Handle(c.Handler, func(*Context, *point) (*point, error) { return &point{}, nil })
		c.Handler.HandleStream("/s", func(s *Stream) {
			var v point
			err := s.Recv(&v)
			errs <- err
			s.Reset(err)
		})
		for _, method := range []string{"/m", "/typed"} {
			p.send(frameOf(CmdRequest, flagMetadata, 9, method, pair+`{"X":1}`))
			if m := p.frame(); m.Seq() != 9 || CodeOf(m.Error()) != CodeInvalidArgument {
				t.Errorf("%s: %x", method, m.Buffer)
			}
		}
		wantCode(t, "Bind", recv(t, errs, "handler"), CodeInvalidArgument)
		p.send(frameOf(CmdNotify, flagMetadata, 9, "/m", pair+`{"X":1}`))
		wantCode(t, "Bind of a notification", recv(t, errs, "handler"), CodeInvalidArgument)
		p.send(frameOf(CmdRequest, flagMetadata, 9, "/raw", pair+"x"))
		if m := p.frame(); m.IsError() || string(m.Data()) != "x" {
			t.Errorf("%x", m.Buffer)
		}
		p.send(frameOf(CmdStream|streamLocal, flagOpen|flagMetadata, 11, "/s", pair+`{"X":1}`))
		m := p.frame()
		isReset(t, m, false, 11, CodeInvalidArgument)
		if len(errs) > 0 { // the handler need not have run
			wantCode(t, "Recv", <-errs, CodeInvalidArgument)
		}
		p.answers()
		// An answer that names one.
		done := make(chan error, 1)
		var v point
		must(t, c.CallAsync("/m", nil, func(ctx *Context) { done <- ctx.Bind(&v) }, patience))
		p.reply(p.frame(), flagMetadata, pair+`{"X":1}`)
		wantCode(t, "Bind of an answer", recv(t, done, "callback"), CodeInvalidArgument)
		p.answers()
	})
}

// A malformed method does not make the flags of a frame of any interest.
func TestMalformedMethodWithMetadata(t *testing.T) {
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.Handle("/echo", echo)
		for _, n := range []byte{200, 128} {
			for _, flag := range []byte{flagMetadata, flagMetadata | flagDeadline} {
				f := frameOf(CmdRequest, flag, 5, "/m", "payload")
				f[indexMethodLen] = n
				p.send(f)
				if m := p.frame(); m.Seq() != 5 || CodeOf(m.Error()) != CodeInvalidArgument {
					t.Errorf("%x", m.Buffer)
				}
			}
		}
		p.answers()
	})
}

// V2-EXT-4: keys of the protocol's own are neither taken from programs nor given to them.
func TestReservedKeys(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		seen := make(chan Metadata, 1)
		w.callee.Handler.Handle("/m", func(c *Context) {
			seen <- c.Metadata()
			must(t, c.SetMetadata("arpcx", "v"))
			c.Write(nil)
		})
		w.callee.Handler.Handle("/set", func(c *Context) {
			for _, key := range []string{"arpc.", "arpc.codec", "arpc.x"} {
				wantCode(t, "SetMetadata "+key, c.SetMetadata(key, "v"), CodeInvalidArgument)
			}
			c.Write(nil)
		})
		must(t, w.caller.CallWith(patient(t), "/set", nil, nil))
		streamed := make(chan Metadata, 1)
		w.callee.Handler.HandleStream("/s", func(s *Stream) {
			streamed <- s.Metadata()
			wantCode(t, "SetMetadata of a stream", s.SetMetadata("arpc.codec", "v"), CodeInvalidArgument)
			must(t, s.SetMetadata("arpcx", "v"))
			must(t, s.CloseSend())
			s.Recv(nil) //nolint:errcheck // its end
		})
		for _, key := range []string{"arpc.", "arpc.codec", "arpc.x", "arpc.\x00"} {
			for _, ctx := range []context.Context{
				WithMetadata(patient(t), Metadata{"k": "v", key: "v"}),
				AddMetadata(patient(t), key, "v"),
				AddMetadata(AddMetadata(patient(t), key, "v"), "k", "v"),
				UseCodec(AddMetadata(patient(t), key, "v"), codec.JSONCodec{}),
			} {
				err := w.caller.CallWith(ctx, "/m", nil, nil)
				wantCode(t, "call", err, CodeInvalidArgument)
				wantUnsent(t, "call", err)
				wantCode(t, "notification", w.caller.NotifyWith(ctx, "/m", nil), CodeInvalidArgument)
				_, err = w.caller.OpenStream(ctx, "/s")
				wantCode(t, "stream", err, CodeInvalidArgument)
				wantUnsent(t, "stream", err)
				// The next WithMetadata takes it away.
				var md Metadata
				must(t, w.caller.CallWith(WithResponseMetadata(WithMetadata(ctx, Metadata{"arpc": "", "ARPC.x": "1"}), &md), "/m", nil, nil))
				if got := recv(t, seen, "metadata"); !maps.Equal(got, Metadata{"arpc": "", "ARPC.x": "1"}) || !maps.Equal(md, Metadata{"arpcx": "v"}) {
					t.Errorf("%v, %v", got, md)
				}
			}
		}
		s, err := w.caller.OpenStream(UseCodec(WithMetadata(patient(t), Metadata{"k": "v"}), codec.JSONCodec{}), "/s")
		must(t, err)
		must(t, s.CloseSend())
		if md := recv(t, streamed, "metadata of a stream"); !maps.Equal(md, Metadata{"k": "v"}) {
			t.Errorf("%v", md)
		}
		if err := s.Recv(nil); err != io.EOF || !maps.Equal(s.Metadata(), Metadata{"arpcx": "v"}) {
			t.Errorf("%v with %v", err, s.Metadata())
		}
	})
}

// V2-EXT-4: whatever the peer sends of them is not given to programs, and so is not passed on.
func TestReservedKeysArrive(t *testing.T) {
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		ext := wireExtension(-1, "\x01k\x01\x00v"+"\x05arpc.\x00\x00"+"\x06arpc.x\x01\x00v"+codecPair("json"))
		c.Handler.Handle("/m", func(ctx *Context) {
			if md := ctx.Metadata(); !maps.Equal(md, Metadata{"k": "v"}) {
				t.Errorf("the handler has %v", md)
			}
			if err := ctx.Client.NotifyWith(WithMetadata(ctx, ctx.Metadata()), "/next", nil); err != nil {
				t.Error(err)
			}
			ctx.Write(nil)
		})
		p.send(frameOf(CmdRequest, flagMetadata, 9, "/m", ext))
		if m := p.frame(); m.Method() != "/next" || string(metadataIn(m.Buffer)) != "\x01k\x01\x00v" {
			t.Errorf("%q", m.Buffer)
		}
		p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 9, "/m", "")))
		// In answers, and on streams.
		done := make(chan error, 1)
		var md Metadata
		go func() { done <- c.CallWith(WithResponseMetadata(patient(t), &md), "/a", nil, nil) }()
		p.reply(p.frame(), flagMetadata, ext)
		if err := recv(t, done, "end of the call"); err != nil || !maps.Equal(md, Metadata{"k": "v"}) {
			t.Errorf("%v, %v", md, err)
		}
		mds := make(chan Metadata, 1)
		must(t, c.CallAsync("/a", nil, func(ctx *Context) { mds <- ctx.Metadata() }, patience))
		p.reply(p.frame(), flagMetadata, ext)
		if md := recv(t, mds, "callback"); !maps.Equal(md, Metadata{"k": "v"}) {
			t.Errorf("%v", md)
		}
		c.Handler.HandleStream("/s", func(s *Stream) { mds <- s.Metadata() })
		p.send(frameOf(CmdStream|streamLocal|streamEOF, flagOpen|flagMetadata|flagNoData, 11, "/s", ext))
		if md := recv(t, mds, "stream"); !maps.Equal(md, Metadata{"k": "v"}) {
			t.Errorf("%v", md)
		}
	})
}

func TestAddMetadata(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		seen := make(chan Metadata, 1)
		w.callee.Handler.Handle("/m", func(c *Context) { seen <- c.Metadata(); c.Write(nil) })
		want := func(ctx context.Context, want Metadata) {
			t.Helper()
			must(t, w.caller.CallWith(ctx, "/m", nil, nil))
			if md := recv(t, seen, "metadata"); !maps.Equal(md, want) {
				t.Errorf("%v instead of %v", md, want)
			}
		}
		ctx := patient(t)
		a := AddMetadata(ctx, "a", "1")
		b := AddMetadata(a, "b", "2")
		// Those made of the same do not share what they append to.
		c, d := AddMetadata(b, "c", "3"), AddMetadata(b, "d", "4")
		e := UseCodec(b, codec.JSONCodec{})
		f := AddMetadata(b, "f", "6")
		want(ctx, nil)
		want(a, Metadata{"a": "1"})
		want(b, Metadata{"a": "1", "b": "2"})
		want(c, Metadata{"a": "1", "b": "2", "c": "3"})
		want(d, Metadata{"a": "1", "b": "2", "d": "4"})
		want(e, Metadata{"a": "1", "b": "2"})
		want(f, Metadata{"a": "1", "b": "2", "f": "6"})
		want(AddMetadata(c, "a", "last"), Metadata{"a": "last", "b": "2", "c": "3"})
		want(AddMetadata(WithMetadata(c, Metadata{"x": "y"}), "a", ""), Metadata{"x": "y", "a": ""})
		want(WithMetadata(c, nil), nil)
		for _, ctx := range []context.Context{AddMetadata(ctx, "", "v"), AddMetadata(ctx, strings.Repeat("k", 256), ""),
			AddMetadata(AddMetadata(ctx, "k", strings.Repeat("v", 40_000)), "l", strings.Repeat("v", 40_000)),
			AddMetadata(ctx, "k", strings.Repeat("v", 20_000))} { // the last is more than the peer takes
			wantCode(t, "a pair that cannot be sent", w.caller.CallWith(ctx, "/m", nil, nil), CodeInvalidArgument)
			want(WithMetadata(ctx, Metadata{"k": "v"}), Metadata{"k": "v"})
		}
		// A codec for which there is no room any more, and then its end.
		full := AddMetadata(ctx, "k", strings.Repeat("v", 65_525))
		over := UseCodec(full, codec.JSONCodec{})
		wantCode(t, "no room", w.caller.CallWith(over, "/m", nil, nil), CodeInvalidArgument)
		if o := optionsOf(UseCodec(over, nil)); o.err != nil || string(o.block) != string(optionsOf(full).block) {
			t.Errorf("after UseCodec(nil): %v, %d bytes", o.err, len(o.block))
		}
	})
}

// blink is a coder that adds a byte to messages and marks them with a bit of the reserved byte. Messages without it are as they are.
type blink struct{ encoded, decoded *atomic.Int32 }

func newBlink() blink { return blink{new(atomic.Int32), new(atomic.Int32)} }

func (b blink) Encode(_ *Client, m *Message) *Message {
	b.encoded.Add(1)
	m.Buffer = append(m.Buffer, '!')
	m.SetBodyLen(m.Len() - HeadLen)
	m.SetFlagBit(0, true) //nolint:errcheck // it is one of the eight
	return m
}

func (b blink) Decode(_ *Client, m *Message) *Message {
	if !m.IsFlagBitSet(0) {
		return m
	}
	b.decoded.Add(1)
	if m.Buffer[m.Len()-1] != '!' {
		return nil
	}
	m.Buffer = m.Buffer[:m.Len()-1]
	m.SetBodyLen(m.Len() - HeadLen)
	m.SetFlagBit(0, false) //nolint:errcheck // as above
	return m
}

type namedBlink struct {
	blink
	name string
}

func (b namedBlink) Name() string { return b.name }

// V2-CODEC-2: a coder with a name is applied if the other end has it, one without a name always.
func TestCoderNegotiation(t *testing.T) {
	for _, tt := range []struct {
		name          string
		near, far     string // of the coders; "-" for one without a name, "" for none
		toFar, toNear bool   // it is applied
		version       int
	}{
		{"both", "blink", "blink", true, true, 2},
		{"near only", "blink", "", false, false, 2},
		{"far only", "", "blink", false, false, 2},
		{"different names", "blink", "blank", false, false, 2},
		{"both without a name", "-", "-", true, true, 2},
		{"both, version 1", "blink", "blink", true, true, 1},
		{"a codec's name", "json", "", false, false, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set := streamSetup{client: []ClientOption{Protocol(tt.version)}}
			onStreams(t, set, func(t *testing.T, e *streamEnds) { coderNegotiation(t, e, tt.near, tt.far, tt.toFar, tt.toNear) })
		})
	}
}

func coderNegotiation(t *testing.T, e *streamEnds, near, far string, toFar, toNear bool) {
	// The coders must be there before the connection is.
	use := func(h Handler, name string) blink {
		b := newBlink()
		switch name {
		case "":
		case "-":
			h.UseCoder(b)
		default:
			h.UseCoder(namedBlink{b, name})
		}
		return b
	}
	n, f := use(e.near.Handler, near), use(e.far.Handler, far)
	e.reconnect(t)
	noted := make(chan string, 1)
	e.far.Handler.Handle("/note", func(c *Context) { noted <- string(c.Body()) })
	e.works(t)
	var r string
	must(t, e.near.NotifyWith(patient(t), "/note", "note"))
	if got := recv(t, noted, "notification"); got != "note" {
		t.Errorf("%q", got)
	}
	started := make(chan struct{})
	e.far.Handler.Handle("/wait", func(c *Context) { close(started); <-c.Done(); c.Write(nil) }, true)
	ctx, cancel := context.WithCancel(patient(t))
	done := make(chan error, 1)
	go func() { done <- e.near.CallWith(ctx, "/wait", nil, nil) }()
	recv(t, started, "handler")
	cancel()
	wantCode(t, "a cancelled call", recv(t, done, "end of the call"), CodeCanceled)
	must(t, e.near.CallWith(patient(t), "/works", "x", &r))
	for _, end := range []struct {
		what    string
		out, in blink
		want    bool
	}{{"to the far end", n, f, toFar}, {"to the near end", f, n, toNear}} {
		if out, in := end.out.encoded.Load(), end.in.decoded.Load(); (out > 0) != end.want || (in > 0) != end.want {
			t.Errorf("%s: %d were encoded, %d decoded", end.what, out, in)
		}
	}
}

// reconnect makes the client connect again.
func (e *streamEnds) reconnect(t testing.TB) {
	t.Helper()
	old := e.server.waitClients(t, 1)[0]
	must(t, e.dialled.Restart())
	var accepted *Client
	eventually(t, "another connection", func() bool {
		clients := e.server.waitClients(t, 1)
		accepted = clients[0]
		return accepted != old
	})
	if e.near == e.dialled {
		e.far = accepted
	} else {
		e.near = accepted
	}
}

// V2-CODEC-2: what a HELLO says counts, whatever else is agreed on.
func TestCoderOnTheWire(t *testing.T) {
	hellos := map[string]hello{}
	for name, f := range map[string]func(*hello){
		"named":              func(h *hello) { h.names = "json,coder:blink," },
		"not named":          func(h *hello) { h.names = "json,blink,coder:blin,coder:blinks," },
		"no names":           func(h *hello) { h.names = "" },
		"no features":        func(h *hello) { h.names, h.features = "json,", 0 },
		"no features, named": func(h *hello) { h.names, h.features = "coder:blink,", 0 },
	} {
		h := fullHello()
		f(&h)
		hellos[name] = h
	}
	check := func(t *testing.T, c *Client, p *rawPeer, want bool) {
		t.Helper()
		must(t, c.Notify("/n", "x", patience))
		m := p.frame()
		if coded := m.IsFlagBitSet(0); coded != want || want && string(m.Data()) != "x!" || !want && string(m.Data()) != "x" {
			t.Errorf("%q", m.Buffer)
		}
		c.Handler.Handle("/h", echo)
		for _, f := range [][]byte{frameOf(CmdRequest, 0, 9, "/h", "x"), (&Message{Buffer: frameOf(CmdRequest, 0, 9, "/h", "x!")}).mark()} {
			p.send(f) // it is decoded whoever it is from
			m = p.frame()
			if coded := m.IsFlagBitSet(0); coded != want || want && string(m.Data()) != "x!" || !want && string(m.Data()) != "x" {
				t.Errorf("%q", m.Buffer)
			}
		}
	}
	coded := func() Handler {
		h := NewHandler()
		h.UseCoder(namedBlink{newBlink(), "blink"})
		return h
	}
	for name, h := range hellos {
		want := strings.HasSuffix(name, "named") && name != "not named"
		t.Run(name+"/client", func(t *testing.T) {
			c, p := acceptGreeted(t, h, coded())
			check(t, c, p, want)
		})
		t.Run(name+"/server", func(t *testing.T) {
			onAdapters(t, func(t *testing.T, adapter ServerOption) {
				s := startServer(t, adapter, coded())
				p := dialGreeted(t, s.addr, h)
				check(t, s.waitClients(t, 1)[0], p, want)
			})
		})
	}
	t.Run("version 1", func(t *testing.T) { // there it is as it always was
		s := startServer(t, coded())
		p := dialRaw(t, s.addr)
		p.send(unhex(goldenPing))
		p.wants("pong", goldenPong)
		check(t, s.waitClients(t, 1)[0], p, true)
		ln := listenRaw(t)
		c := dialClient(t, ln.addr(), Protocol(1), coded())
		check(t, c, ln.accept(), true)
	})
	t.Run("HELLO", func(t *testing.T) {
		h := coded()
		h.UseCoder(namedBlink{newBlink(), "blink"}) // once is enough
		h.UseCoder(namedBlink{newBlink(), "with,comma"})
		h.UseCoder(newBlink())
		_, _, first := wireClient(t, wireHello(), h)
		got, err := parseHello(first.Buffer[HeadLen:])
		if err != nil || got.names != "json,protobuf,coder:blink," {
			t.Errorf("%q, %v", got.names, err)
		}
	})
}

// mark sets blink's bit and returns the bytes.
func (m *Message) mark() []byte {
	m.SetFlagBit(0, true) //nolint:errcheck // it is one of the eight
	return m.Buffer
}

// wantUnsent checks that err says that nothing was sent.
func wantUnsent(t *testing.T, what string, err error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !e.Unsent || e.Remote || !IsRefused(err) {
		t.Errorf("%s: it counts as sent (%v)", what, err)
	}
}

// What failed before the connection took it is not sent.
func TestNotSent(t *testing.T) {
	everyWay(t, Limits{Calls: 1}, func(t *testing.T, w *way) {
		over, cancel := context.WithCancel(patient(t))
		cancel()
		late, stop := context.WithDeadline(patient(t), time.Now().Add(-time.Second))
		defer stop()
		check := func(what string, code Code, err error) {
			t.Helper()
			if CodeOf(err) != code {
				t.Errorf("%s: %v", what, err)
			}
			wantUnsent(t, what, err)
		}
		ctx := context.Background()
		long := strings.Repeat("m", MaxMethodLen+1)
		for name, f := range map[string]func(ctx context.Context, method string, v any) error{
			"call":         func(ctx context.Context, method string, v any) error { return w.caller.CallWith(ctx, method, v, nil) },
			"notification": func(ctx context.Context, method string, v any) error { return w.caller.NotifyWith(ctx, method, v) },
		} {
			check(name+" without a method", CodeInvalidArgument, f(ctx, "", nil))
			check(name+" of a long method", CodeInvalidArgument, f(ctx, long, nil))
			check(name+" with bad metadata", CodeInvalidArgument, f(AddMetadata(ctx, "", ""), "/m", nil))
			check(name+" with much metadata", CodeInvalidArgument, f(AddMetadata(ctx, "k", strings.Repeat("v", 20_000)), "/m", nil))
			check(name+" with an unknown codec", CodeFailedPrecondition, f(UseCodec(ctx, tagged{"x"}), "/m", nil))
			check(name+" with a context that is over", CodeCanceled, f(over, "/m", nil))
			check(name+" that is too late", CodeDeadlineExceeded, f(late, "/m", nil))
		}
		for timeout, want := range map[time.Duration]error{0: ErrClientInvalidTimeoutZero, -1: ErrClientInvalidTimeoutLessThanZero} {
			err := w.caller.Call("/m", nil, nil, timeout)
			if !errors.Is(err, want) {
				t.Errorf("timeout %d: %v", timeout, err)
			}
			wantUnsent(t, "a call with a timeout that is not positive", err)
		}
		ended := make(chan error, 1)
		check("a call with a callback", CodeInvalidArgument, w.caller.CallAsync("", nil, func(c *Context) { ended <- c.Err() }, patience))
		wantUnsent(t, "callback", recv(t, ended, "callback"))
		// The handler of an inline route, and too many calls.
		w.callee.Handler.HandleInline("/inline", func(c *Context) {
			check("a call of an inline handler", CodeFailedPrecondition, c.Client.CallWith(c, "/m", nil, nil))
			c.Write(nil)
		})
		must(t, w.caller.Call("/inline", nil, nil, patience))
		entered, release := make(chan struct{}), make(chan struct{})
		w.callee.Handler.Handle("/block", func(c *Context) { close(entered); <-release; c.Write(nil) }, true)
		done := make(chan error, 1)
		go func() { done <- w.caller.CallWith(patient(t), "/block", nil, nil) }()
		recv(t, entered, "handler")
		check("a call too many", CodeResourceExhausted, w.caller.CallWith(ctx, "/m", nil, nil))
		close(release)
		must(t, recv(t, done, "end of the call"))
		// No connection.
		w.client.Stop()
		eventually(t, "end of the connection", func() bool { return w.caller.CheckState() != nil })
		check("a call without a connection", CodeUnavailable, w.caller.CallWith(ctx, "/m", nil, nil))
		check("a notification without a connection", CodeUnavailable, w.caller.NotifyWith(ctx, "/m", nil))
		check("a message without a connection", CodeUnavailable, w.caller.PushMsg(&Message{Buffer: pingFrame}, TimeZero))
		check("a call with a callback without a connection", CodeUnavailable, w.caller.CallAsync("/m", nil, func(c *Context) { ended <- c.Err() }, 0))
		wantUnsent(t, "callback", recv(t, ended, "callback"))
		_, err := w.caller.OpenStream(ctx, "/m")
		check("a stream without a connection", CodeUnavailable, err)
	})
}

// Handlers that wait in calls, one more than there may be.
func TestNotSentTooNested(t *testing.T) {
	limits := Limits{NestedCalls: 1}
	s := startServer(t, limits)
	c := dialClient(t, s.addr, limits)
	entered, release := make(chan struct{}, 2), make(chan struct{})
	c.Handler.Handle("/inner", func(c *Context) { entered <- struct{}{}; <-release; c.Write(nil) }, true)
	s.Handler.Handle("/outer", func(c *Context) {
		err := c.Client.CallWith(c, "/inner", nil, nil)
		wantUnsent(t, "the call too many", err)
		c.Write(err)
	})
	s.Handler.Handle("/first", func(c *Context) { c.Write(c.Client.CallWith(c, "/inner", nil, nil)) })
	done := make(chan error, 1)
	go func() { done <- c.CallWith(patient(t), "/first", nil, nil) }()
	recv(t, entered, "inner handler")
	err := c.CallWith(patient(t), "/outer", nil, nil)
	wantCode(t, "the call too many", err, CodeResourceExhausted)
	if IsRefused(err) { // the handler may have done something before
		t.Error("what the handler's call says of itself is taken for the handler's")
	}
	close(release)
	must(t, recv(t, done, "end of the first"))
}

func TestNotSentFullQueue(t *testing.T) {
	limits := Limits{SendHigh: 64 << 10}
	check := func(t *testing.T, c *Client) {
		for _, tt := range []struct {
			what string
			f    func(ctx context.Context) error
		}{
			{"call", func(ctx context.Context) error { return c.CallWith(ctx, "/m", nil, nil) }},
			{"notification", func(ctx context.Context) error { return c.NotifyWith(ctx, "/m", nil) }},
		} {
			// The system's buffers may make room for some time.
			eventually(t, tt.what+" that finds no room", func() bool {
				fill(t, c)
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
				defer cancel()
				err := tt.f(ctx)
				if !IsRefused(err) {
					return false
				}
				wantCode(t, tt.what, err, CodeDeadlineExceeded)
				return true
			})
			// Cancelled before it waits for room, or while it does.
			eventually(t, tt.what+" that is cancelled", func() bool {
				fill(t, c)
				ctx, stop := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- tt.f(ctx) }()
				stop()
				err := recv(t, done, "end")
				if !IsRefused(err) {
					return false
				}
				wantCode(t, tt.what, err, CodeCanceled)
				return true
			})
		}
	}
	t.Run("client", func(t *testing.T) {
		c, _ := acceptGreeted(t, fullHello(), limits)
		check(t, c)
	})
	t.Run("server", func(t *testing.T) {
		onAdapters(t, func(t *testing.T, adapter ServerOption) {
			s := startServer(t, adapter, limits)
			dialGreeted(t, s.addr, fullHello())
			check(t, s.waitClients(t, 1)[0])
		})
	})
}

// What the connection has taken counts as sent, however it ends.
func TestSent(t *testing.T) {
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		for _, tt := range []struct {
			what string
			code Code
			end  func(cancel func(), m *Message)
		}{
			{"an error of the peer's", CodeAborted, func(_ func(), m *Message) {
				p.reply(m, flagError|flagCoded, wireError(CodeAborted, "no"))
			}},
			{"an answer that cannot be decoded", CodeUnknown, func(_ func(), m *Message) { p.reply(m, 0, "[") }},
			{"cancelled", CodeCanceled, func(cancel func(), _ *Message) { cancel() }},
			{"too late", CodeDeadlineExceeded, func(func(), *Message) {}},
			{"cut", CodeUnavailable, func(func(), *Message) { p.Close() }},
		} {
			ctx, cancel := context.WithCancel(patient(t))
			if tt.code == CodeDeadlineExceeded {
				ctx, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
			}
			done := make(chan error, 1)
			go func() {
				var v point
				done <- c.CallWith(ctx, "/m", "x", &v)
			}()
			m := p.frame()
			for m.Cmd() != CmdRequest { // a CANCEL of the one before
				m = p.frame()
			}
			tt.end(cancel, m)
			err := recv(t, done, "end of the call")
			wantCode(t, tt.what, err, tt.code)
			cancel()
			if IsRefused(err) {
				t.Errorf("%s: it does not count as sent", tt.what)
			}
		}
	})
}

// Stop ends a call that was sent with the error that it gives to one that was not, but for that.
func TestSentStopped(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		entered := make(chan struct{})
		w.callee.Handler.Handle("/block", func(c *Context) { close(entered); <-c.Done() }, true)
		done := make(chan error, 1)
		go func() { done <- w.caller.CallWith(patient(t), "/block", nil, nil) }()
		recv(t, entered, "handler")
		w.caller.Stop()
		if err := recv(t, done, "end of the call"); !errors.Is(err, ErrClientStopped) || IsRefused(err) {
			t.Errorf("it does not count as sent (%v)", err)
		}
		if err := w.caller.Call("/m", nil, nil, patience); !errors.Is(err, ErrClientStopped) || !IsRefused(err) {
			t.Errorf("it counts as sent (%v)", err)
		}
		// Programs for other arpc compare these.
		if w.caller.CheckState() != ErrClientStopped || w.caller.Call("/m", nil, nil, patience) != ErrClientStopped {
			t.Errorf("another error: %v", w.caller.CheckState())
		}
	})
}

// A handler whose answer cannot be sent has done its work.
func TestAnswerTooLongIsNotUnsent(t *testing.T) {
	s := startServer(t)
	answered := make(chan error, 1)
	s.Handler.Handle("/long", func(c *Context) {
		answered <- c.Write(strings.Repeat("x", 2000))
		c.Write(nil) //nolint:errcheck // if it may
	})
	h := NewHandler()
	h.SetMaxBodyLen(1000)
	c := dialClient(t, s.addr, h)
	c.Call("/long", nil, nil, patience) //nolint:errcheck // what comes is not what this is about
	if err := recv(t, answered, "answer"); CodeOf(err) != CodeInvalidArgument || IsRefused(err) {
		t.Errorf("%v, refused: %v", err, IsRefused(err))
	}
}

// A call that waits for a connection and does not get one.
func TestNotSentWaiting(t *testing.T) {
	ln := listenRaw(t)
	c := dialClient(t, ln.addr(), WaitForReady(), Protocol(1), Backoff(time.Hour, time.Hour))
	p := ln.accept()
	ln.Close()
	p.Close()
	eventually(t, "end of the connection", func() bool { return c.CheckState() != nil })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	err := c.CallWith(ctx, "/m", nil, nil)
	wantCode(t, "call", err, CodeDeadlineExceeded)
	wantUnsent(t, "call", err)
}

func TestIdempotentContext(t *testing.T) {
	ctx := context.Background()
	if IsIdempotent(ctx) || IsIdempotent(AddMetadata(ctx, "k", "v")) || !IsIdempotent(WithIdempotent(ctx)) ||
		!IsIdempotent(UseCodec(AddMetadata(WithIdempotent(ctx), "k", "v"), nil)) {
		t.Error("wrong")
	}
	// Typed methods tell Callers that are no Clients.
	for _, trait := range []Trait{Ordered, Idempotent} {
		var got []bool
		caller := callerFunc(func(ctx context.Context) { got = append(got, IsIdempotent(ctx)) })
		NewMethod[point, point]("/m", trait).Call(ctx, caller, &point{}) //nolint:errcheck // nothing is called
		if len(got) != 1 || got[0] != (trait == Idempotent) {
			t.Errorf("%v: %v", trait, got)
		}
	}
}

// callerFunc is a Caller whose calls only tell their context.
type callerFunc func(context.Context)

func (f callerFunc) CallWith(ctx context.Context, _ string, _, _ any, _ ...map[any]any) error {
	f(ctx)
	return nil
}
func (f callerFunc) CallAsync(string, any, func(*Context), time.Duration, ...map[any]any) error {
	return nil
}
func (f callerFunc) NotifyWith(ctx context.Context, _ string, _ any, _ ...map[any]any) error {
	f(ctx)
	return nil
}
func (f callerFunc) OpenStream(ctx context.Context, _ string) (*Stream, error) {
	f(ctx)
	return nil, nil
}

func TestCodecRegistry(t *testing.T) {
	names := codec.Names()
	if !slices.IsSorted(names) || !slices.Contains(names, "json") || !slices.Contains(names, "protobuf") {
		t.Errorf("%q", names)
	}
	if codec.Lookup("nobody's") != nil || codec.Lookup("") != nil {
		t.Error("there is a codec that nobody has registered")
	}
	t.Run("replace", func(t *testing.T) {
		c := useTagged(t)
		if codec.Lookup("protobuf") != c || !slices.Equal(codec.Names(), names) {
			t.Error("it was not replaced")
		}
	})
	if codec.Lookup("protobuf") != (codec.Protobuf{}) {
		t.Error("it was not replaced")
	}
	for _, name := range []string{"", "a,b", "coder:x", strings.Repeat("n", 65)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("the name %q is taken", name)
				}
			}()
			codec.Register(tagged{name})
		}()
	}
}
