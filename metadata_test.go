package arpc

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/arpc-go/arpc/codec"
)

func TestMetadataEncoding(t *testing.T) {
	long, value := strings.Repeat("k", 255), strings.Repeat("v", 65535-3-1)
	for _, tt := range []struct {
		name string
		md   Metadata
		want string
	}{
		{"nil", nil, ""},
		{"none", Metadata{}, ""},
		{"a pair", Metadata{"key": "value"}, "03" + "6b6579" + "0500" + "76616c7565"},
		{"an empty value", Metadata{"k": ""}, "016b0000"},
		{"any bytes", Metadata{"\x00": "\xff\x00\xfe"}, "0100" + "0300" + "ff00fe"},
		{"the longest key", Metadata{long: ""}, "ff" + strings.Repeat("6b", 255) + "0000"},
		{"the longest value", Metadata{"k": value}, "016b" + "fbff" + strings.Repeat("76", 65531)},
	} {
		b, err := appendMetadata(nil, tt.md)
		if err != nil || hex.EncodeToString(b) != tt.want {
			t.Errorf("%s: %.100x, %v", tt.name, b, err)
		}
		if !validMetadata(b) {
			t.Errorf("%s: its encoding is not valid", tt.name)
		}
		if md := decodeMetadata(b); !maps.Equal(md, tt.md) || len(b) == 0 && md != nil {
			t.Errorf("%s: decoded as %.100v", tt.name, md)
		}
	}
	for _, tt := range []struct {
		name, text string
		md         Metadata
	}{
		{"an empty key", "a key has 0 bytes", Metadata{"": "x"}},
		{"a long key", "a key has 256 bytes", Metadata{long + "k": "x"}},
		{"a long value", "more than 65535 bytes", Metadata{"k": value + "v"}},
		{"a very long value", "more than 65535 bytes", Metadata{"k": strings.Repeat("v", 1<<20)}},
		{"two that are too long together", "more than 65535 bytes", Metadata{"a": value[:40000], "b": value[:40000]}},
	} {
		b, err := appendMetadata(nil, tt.md)
		if CodeOf(err) != CodeInvalidArgument || err.Error() != "invalid metadata: "+tt.text || b != nil {
			t.Errorf("%s: %d bytes, %v (%v)", tt.name, len(b), err, CodeOf(err))
		}
	}
	two, err := appendMetadata(nil, Metadata{"a": "1", "b": "2"}) // in either order
	if got := hex.EncodeToString(two); err != nil || got != "0161010031"+"0162010032" && got != "0162010032"+"0161010031" {
		t.Errorf("two pairs: %s, %v", got, err)
	}
	if md := decodeMetadata(unhex("0161010031" + "0161010032")); len(md) != 1 || md["a"] != "2" {
		t.Errorf("a key twice: %v", md)
	}
}

var malformedMetadata = []string{
	"00", "000000", "01", "0161", "016101", "0161010031" + "00", "01610200" + "31", "0161ffff" + "31", "ff61010031", "0161010031" + "0162",
}

func TestMetadataMalformed(t *testing.T) {
	for _, text := range malformedMetadata {
		if validMetadata(unhex(text)) {
			t.Errorf("%s is valid", text)
		}
		decodeMetadata(unhex(text)) // does not panic
	}
}

// What frames say about deadline and metadata is there, is whole, and is within the limits, or the connection ends.
func TestMalformedExtensions(t *testing.T) {
	block := func(n int, b string) string { return string(binary.LittleEndian.AppendUint16(nil, uint16(n))) + b }
	type bad struct {
		name    string
		flag    byte
		payload string
	}
	tests := []bad{
		{"no deadline", flagDeadline, ""},
		{"a short deadline", flagDeadline, "\x01\x00\x00"},
		{"no length", flagMetadata, ""},
		{"a short length", flagMetadata, "\x00"},
		{"a block beyond the end", flagMetadata, block(6, "\x01a\x01\x001")},
		{"no block after a deadline", flagDeadline | flagMetadata, "\x01\x00\x00\x00"},
		{"half a length after a deadline", flagDeadline | flagMetadata, "\x01\x00\x00\x00\x05"},
		{"a block above the limit", flagMetadata, block(101, "\x01a\x61\x00"+strings.Repeat("v", 97)) + "payload"},
	}
	for _, text := range malformedMetadata {
		b := string(unhex(text))
		tests = append(tests, bad{"pairs " + text, flagMetadata, block(len(b), b) + "payload"})
	}
	limits := Limits{Metadata: 100}
	run := func(t *testing.T, c *Client, p *rawPeer, f []byte) {
		called := make(chan struct{}, 1)
		c.Handler.Handle("/m", func(*Context) { called <- struct{}{} })
		c.Handler.HandleStream("/m", func(*Stream) { called <- struct{}{} })
		p.send(f)
		p.end()
		eventually(t, "end of the connection", func() bool { return c.CheckState() != nil })
		if err := c.CheckState(); !strings.Contains(err.Error(), errExtension.Message) {
			t.Errorf("the connection ended with %v", err)
		}
		if len(called) > 0 {
			t.Error("the handler ran")
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, cmd := range []byte{CmdRequest, CmdNotify, CmdResponse, CmdStream | streamLocal} {
				flag := tt.flag
				if cmd == CmdStream|streamLocal {
					flag |= flagOpen
				}
				f := frameOf(cmd, flag, 5, "/m", tt.payload)
				s := startServer(t, limits)
				p := dialGreeted(t, s.addr, fullHello())
				run(t, s.waitClients(t, 1)[0], p, f)
			}
			c, p := acceptGreeted(t, fullHello(), limits)
			run(t, c, p, frameOf(CmdRequest, tt.flag, 5, "/m", tt.payload))
		})
	}
	// As much as the limit allows is fine.
	s := startServer(t, limits)
	s.Handler.Handle("/m", func(c *Context) {
		if v := c.Metadata()["a"]; v != strings.Repeat("v", 96) {
			t.Errorf("%q", v)
		}
		c.Write(c.Body())
	})
	p := dialGreeted(t, s.addr, fullHello())
	p.send(frameOf(CmdRequest, flagMetadata, 5, "/m", block(100, "\x01a\x60\x00"+strings.Repeat("v", 96))+"payload"))
	p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 5, "/m", "payload")))
}

func TestMetadataBytes(t *testing.T) {
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		ctx := WithMetadata(patient(t), Metadata{"k": "v"})
		done := make(chan error, 1)
		var md Metadata
		var r string
		go func() { done <- c.CallWith(WithResponseMetadata(ctx, &md), "/m", "x", &r) }()
		m := p.frame()
		const pair = "0500" + "016b010076"
		head := hex.EncodeToString(m.Buffer[:HeadLen])
		if want := "0e000000" + "00010c02" + "0200000000000000"; head != want {
			t.Errorf("header %s, want %s", head, want)
		}
		body := hex.EncodeToString(m.Buffer[HeadLen:])
		if ms, ok := timeLeft(m.Buffer); body[:4] != "2f6d" || body[12:] != pair+"78" || !ok || ms == 0 || ms > 3600000 {
			t.Errorf("body %s", body)
		}
		p.send(unhex("0a000000" + "00020402" + "0200000000000000" + "2f6d" + "0500" + "0161010062" + "79"))
		if err := recv(t, done, "end of the call"); err != nil || r != "y" || !maps.Equal(md, Metadata{"a": "b"}) {
			t.Errorf("%q with %v, %v", r, md, err)
		}
		must(t, c.NotifyWith(ctx, "/n", "x"))
		p.wants("notification", "0a000000"+"00030602"+"0300000000000000"+"2f6e"+pair+"78")
		// An answer of the handler's.
		c.Handler.Handle("/h", func(c *Context) {
			must(t, c.SetMetadata("k", "v"))
			c.Write(c.Body())
		})
		p.send(unhex("03000000" + "00010002" + "0900000000000000" + "2f68" + "78"))
		p.wants("answer", "0a000000"+"00020402"+"0900000000000000"+"2f68"+pair+"78")
		p.send(unhex("03000000" + "00010202" + "0900000000000000" + "2f68" + "78"))
		p.wants("async answer", "0a000000"+"00020602"+"0900000000000000"+"2f68"+pair+"78")
		// An empty block is none.
		p.send(unhex("05000000" + "00010402" + "0900000000000000" + "2f68" + "0000" + "78"))
		p.wants("answer", "0a000000"+"00020402"+"0900000000000000"+"2f68"+pair+"78")
		// A notification says nothing of a deadline, and nothing at all without metadata.
		must(t, c.NotifyWith(patient(t), "/n", "x"))
		p.wants("notification", "03000000"+"00030202"+"0400000000000000"+"2f6e"+"78")
	})
}

// everything is metadata with all bytes there are, within the default limit.
func everything() Metadata {
	var all []byte
	for i := range 256 {
		all = append(all, byte(i))
	}
	return Metadata{"plain": "text", "empty": "", string(all[:255]): string(all), "large": strings.Repeat("\x00\xff", 5000), "\n": "\r"}
}

func TestMetadataRoundTrip(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		out, back := everything(), Metadata{"answer": "\x00\xff", "more": ""}
		h := func(c *Context) {
			if md := c.Metadata(); !maps.Equal(md, out) {
				t.Errorf("the handler of %s has %.100v", c.Message.Method(), md)
			}
			if string(c.Body()) != "payload" {
				t.Errorf("payload %q", c.Body())
			}
			for k, v := range back {
				must(t, c.SetMetadata(k, v))
			}
			if c.Message.Method() == "/error" {
				c.Write(CodeAborted)
				return
			}
			c.Write("answer")
		}
		w.callee.Handler.Handle("/ordered", h)
		w.callee.Handler.Handle("/async", h, true)
		w.callee.Handler.HandleInline("/inline", h)
		w.callee.Handler.Handle("/error", h)
		w.callee.Handler.Handle("/none", func(c *Context) {
			if md := c.Metadata(); md != nil {
				t.Errorf("without metadata there is %v", md)
			}
			c.Write("answer")
		})
		mutable := maps.Clone(out)
		ctx := WithMetadata(patient(t), mutable)
		mutable["plain"] = "changed" // is of no interest any more
		delete(mutable, "empty")
		for _, route := range []string{"/ordered", "/async", "/inline", "/error"} {
			var md Metadata
			var r string
			err := w.caller.CallWith(WithResponseMetadata(ctx, &md), route, "payload", &r)
			if route == "/error" {
				if CodeOf(err) != CodeAborted {
					t.Errorf("%v", err)
				}
			} else if err != nil || r != "answer" {
				t.Errorf("%s: %q, %v", route, r, err)
			}
			if !maps.Equal(md, back) {
				t.Errorf("%s: the answer has %.100v", route, md)
			}
		}
		md := Metadata{"old": "value"}
		must(t, w.caller.CallWith(WithResponseMetadata(patient(t), &md), "/none", nil, nil))
		if md != nil {
			t.Errorf("the answer without metadata has %v", md)
		}
		must(t, w.caller.CallWith(WithResponseMetadata(patient(t), nil), "/none", nil, nil))
		// The last WithMetadata counts, and one without pairs takes all away.
		must(t, w.caller.CallWith(WithMetadata(ctx, nil), "/none", nil, nil))
		must(t, w.caller.CallWith(WithMetadata(WithMetadata(ctx, Metadata{"other": "x"}), out), "/ordered", "payload", nil))
	})
}

func TestMetadataOfNotifications(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		seen := make(chan Metadata, 1)
		h := func(c *Context) {
			if err := c.SetMetadata("k", "v"); err != nil { // does nothing
				t.Error(err)
			}
			seen <- c.Metadata()
		}
		w.callee.Handler.Handle("/ordered", h)
		w.callee.Handler.Handle("/async", h, true)
		w.callee.Handler.HandleInline("/inline", h)
		for _, route := range []string{"/ordered", "/async", "/inline"} {
			must(t, w.caller.NotifyWith(WithMetadata(patient(t), everything()), route, "x"))
			if md := recv(t, seen, "notification"); !maps.Equal(md, everything()) {
				t.Errorf("%s has %.100v", route, md)
			}
			must(t, NewMethod[string, string](route).Notify(WithMetadata(patient(t), Metadata{"k": route}), w.caller, new(string)))
			if md := recv(t, seen, "notification"); md["k"] != route {
				t.Errorf("%s has %.100v", route, md)
			}
			must(t, w.caller.Notify(route, "x", patience))
			if md := recv(t, seen, "notification"); md != nil {
				t.Errorf("%s has %.100v", route, md)
			}
		}
	})
}

func TestMetadataInCallbacks(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		w.callee.Handler.Handle("/m", func(c *Context) {
			for k, v := range everything() {
				must(t, c.SetMetadata(k, v))
			}
			if len(c.Body()) > 0 {
				c.Write(CodeAborted)
				return
			}
			c.Write("answer")
		})
		w.callee.Handler.Handle("/none", func(c *Context) { c.Write(nil) })
		for _, tt := range []struct {
			route, req string
			code       Code
			want       Metadata
		}{{"/m", "", 0, everything()}, {"/m", "fail", CodeAborted, everything()}, {"/none", "", 0, nil},
			{"/missing", "", CodeUnimplemented, nil}} {
			done := make(chan struct{})
			must(t, w.caller.CallAsync(tt.route, tt.req, func(c *Context) {
				defer close(done)
				if md := c.Metadata(); !maps.Equal(md, tt.want) || tt.want == nil && md != nil {
					t.Errorf("%s %q: %.100v", tt.route, tt.req, md)
				}
				if CodeOf(c.Err()) != tt.code || tt.route == "/m" && tt.req == "" && string(c.Body()) != "answer" {
					t.Errorf("%s %q: %v, %q", tt.route, tt.req, c.Err(), c.Body())
				}
			}, patience))
			recv(t, done, "callback")
		}
	})
}

// A handler passes on what it wants to pass on.
func TestMetadataIsNotPassedOn(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		seen := make(chan Metadata, 1)
		w.caller.Handler.Handle("/inner", func(c *Context) { seen <- c.Metadata(); c.Write(nil) })
		w.callee.Handler.Handle("/outer", func(c *Context) {
			ctx, cancel := context.WithCancel(c)
			defer cancel()
			for _, ctx := range []context.Context{c, ctx, WithMetadata(c, c.Metadata())} {
				var md Metadata
				must(t, c.Client.CallWith(WithResponseMetadata(ctx, &md), "/inner", nil, nil))
			}
			must(t, c.Client.NotifyWith(c, "/inner", nil))
			c.Write(nil)
		}, true)
		done := make(chan error, 1)
		var md Metadata
		ctx := WithMetadata(patient(t), Metadata{"k": "v"})
		go func() { done <- w.caller.CallWith(WithResponseMetadata(ctx, &md), "/outer", nil, nil) }()
		for i, want := range []Metadata{nil, nil, {"k": "v"}, nil} {
			if got := recv(t, seen, "inner call"); !maps.Equal(got, want) {
				t.Errorf("inner call %d has %v", i, got)
			}
		}
		must(t, recv(t, done, "end of the call"))
		if md != nil {
			t.Errorf("the answer has %v", md)
		}
	})
}

// What does not fit is refused where it is sent, and nothing happens to the connection.
func TestMetadataLimits(t *testing.T) {
	everyWay(t, Limits{Metadata: 100}, func(t *testing.T, w *way) {
		w.callee.Handler.Handle("/m", func(c *Context) {
			for _, tt := range []struct {
				k, v string
				ok   bool
			}{
				{"", "x", false}, {strings.Repeat("k", 256), "", false}, {"k", strings.Repeat("v", 65535), false},
				{"k", strings.Repeat("v", 97), false},
				{"a", strings.Repeat("v", 92), true}, {"b", "x", false}, {"b", "", true}, {"c", "", false},
			} {
				if err := c.SetMetadata(tt.k, tt.v); err == nil != tt.ok || err != nil && CodeOf(err) != CodeInvalidArgument {
					t.Errorf("SetMetadata with %d and %d bytes: %v", len(tt.k), len(tt.v), err)
				}
			}
			c.Write(c.Metadata()["k"])
		})
		for _, md := range []Metadata{
			{"": "x"}, {strings.Repeat("k", 256): ""}, {"k": strings.Repeat("v", 65536)}, {"k": strings.Repeat("v", 97)},
			{"k": strings.Repeat("v", 48), "l": strings.Repeat("v", 48)},
		} {
			ctx := WithMetadata(patient(t), md)
			_, serr := w.caller.OpenStream(ctx, "/m")
			_, merr := NewMethod[string, string]("/m").Call(ctx, w.caller, new(string))
			for i, err := range []error{w.caller.CallWith(ctx, "/m", nil, nil), w.caller.NotifyWith(ctx, "/m", nil), serr, merr} {
				if CodeOf(err) != CodeInvalidArgument || !strings.HasPrefix(err.Error(), "invalid metadata: ") {
					t.Errorf("%d: %v (%v)", i, err, CodeOf(err))
				}
			}
		}
		if calls, _, _ := tables(w.caller); calls != 0 {
			t.Errorf("%d calls are kept", calls)
		}
		var r string
		var md Metadata
		ctx := WithMetadata(patient(t), Metadata{"k": strings.Repeat("v", 96)})
		if err := w.caller.CallWith(WithResponseMetadata(ctx, &md), "/m", nil, &r); err != nil || r != strings.Repeat("v", 96) {
			t.Errorf("%q, %v", r, err)
		}
		if !maps.Equal(md, Metadata{"a": strings.Repeat("v", 92), "b": ""}) {
			t.Errorf("the answer has %v", md)
		}
	})
	// It is the receiver's limit that counts.
	s := startServer(t, Limits{Metadata: 50})
	s.Handler.Handle("/m", func(c *Context) {
		must(t, c.SetMetadata("k", strings.Repeat("v", 16)))
		if err := c.SetMetadata("l", ""); CodeOf(err) != CodeInvalidArgument {
			t.Error(err)
		}
		c.Write(nil)
	})
	c := dialClient(t, s.addr, Limits{Metadata: 20})
	ctx := WithMetadata(patient(t), Metadata{"k": strings.Repeat("v", 46)})
	var md Metadata
	must(t, c.CallWith(WithResponseMetadata(ctx, &md), "/m", nil, nil))
	if len(md) != 1 {
		t.Errorf("the answer has %v", md)
	}
	if err := c.CallWith(WithMetadata(ctx, Metadata{"k": strings.Repeat("v", 47)}), "/m", nil, nil); CodeOf(err) != CodeInvalidArgument {
		t.Error(err)
	}
}

// Peers of version 1 get none, and a handler's metadata is no fault there.
func TestMetadataToVersion1(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		c := dialClient(t, s.addr, Protocol(1))
		peer := s.waitClients(t, 1)[0]
		for _, w := range []*way{{c, peer, s, c}, {peer, c, s, c}} {
			w.callee.Handler.Handle("/m", func(c *Context) {
				must(t, c.SetMetadata("k", "v"))
				if c.Metadata() != nil {
					t.Errorf("the handler has %v", c.Metadata())
				}
				if d, ok := c.Deadline(); ok {
					t.Errorf("the handler has a deadline, %v", d)
				}
				c.Write(c.Body())
			})
			md := Metadata{"old": "value"}
			var r string
			ctx := WithResponseMetadata(WithMetadata(patient(t), everything()), &md)
			if err := w.caller.CallWith(ctx, "/m", "payload", &r); err != nil || r != "payload" || md != nil {
				t.Errorf("%q with %v, %v", r, md, err)
			}
			if err := w.caller.CallWith(WithMetadata(ctx, Metadata{"": ""}), "/m", nil, nil); CodeOf(err) != CodeInvalidArgument {
				t.Errorf("what can never be sent: %v", err)
			}
		}
	})
}

// zipper is a coder that compresses all after the reserved byte, as that of package gzip does, which cannot be used here.
type zipper struct{ t testing.TB }

func (z zipper) Encode(_ *Client, m *Message) *Message {
	var b bytes.Buffer
	b.Write(m.Buffer[:5])
	w := gzip.NewWriter(&b)
	w.Write(m.Buffer[5:]) //nolint:errcheck // it is memory
	w.Close()             //nolint:errcheck // as above
	out := &Message{Buffer: b.Bytes(), values: m.values}
	if len(out.Buffer) < HeadLen {
		z.t.Errorf("%d bytes", len(out.Buffer))
	}
	must(z.t, out.SetFlagBit(7, true))
	out.SetBodyLen(len(out.Buffer) - HeadLen)
	return out
}

func (z zipper) Decode(_ *Client, m *Message) *Message {
	if !m.IsFlagBitSet(7) {
		return m
	}
	r, err := gzip.NewReader(bytes.NewReader(m.Buffer[5:]))
	if err != nil {
		return nil
	}
	rest, err := io.ReadAll(r)
	if err != nil {
		return nil
	}
	out := &Message{Buffer: append(m.Buffer[:5:5], rest...), values: m.values}
	if out.SetFlagBit(7, false) != nil {
		return nil
	}
	out.SetBodyLen(len(out.Buffer) - HeadLen)
	return out
}

func TestMetadataWithCoders(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		for _, c := range []*Client{w.caller, w.callee} {
			c.Handler.UseCoder(appender{})
			c.Handler.UseCoder(zipper{t})
		}
		h := func(c *Context) {
			if v, _ := c.Get("app"); v != "value" {
				t.Errorf("%s: the value of the coder is %v", c.Message.Method(), v)
			}
			if d, ok := c.Deadline(); c.Message.Cmd() == CmdRequest && (!ok || d.IsZero()) {
				t.Errorf("%s: no deadline", c.Message.Method())
			}
			if !maps.Equal(c.Metadata(), everything()) || string(c.Body()) != "payload" {
				t.Errorf("%s: %q with %.100v", c.Message.Method(), c.Body(), c.Metadata())
			}
			must(t, c.SetMetadata("a", "\x00"))
			if c.Message.Method() == "/error" {
				c.Write(&Error{Code: CodeDataLoss, Message: "lost", Details: []Detail{{Name: "d", Value: "v"}}})
				return
			}
			c.Write(c.Body())
		}
		noted := make(chan struct{})
		w.callee.Handler.Handle("/ordered", h)
		w.callee.Handler.Handle("/async", h, true)
		w.callee.Handler.HandleInline("/inline", h)
		w.callee.Handler.Handle("/error", h)
		w.callee.Handler.Handle("/note", func(c *Context) { h(c); close(noted) })
		ctx := WithMetadata(patient(t), everything())
		values := map[any]any{"app": "value"}
		for _, route := range []string{"/ordered", "/async", "/inline", "/error"} {
			var md Metadata
			var r string
			err := w.caller.CallWith(WithResponseMetadata(ctx, &md), route, "payload", &r, values)
			var e *Error
			if route == "/error" {
				if e, _ = err.(*Error); e == nil || e.Code != CodeDataLoss || len(e.Details) != 1 {
					t.Errorf("%s: %#v", route, err)
				}
			} else if err != nil || r != "payload" {
				t.Errorf("%s: %q, %v", route, r, err)
			}
			if !maps.Equal(md, Metadata{"a": "\x00"}) {
				t.Errorf("%s: the answer has %v", route, md)
			}
		}
		must(t, w.caller.NotifyWith(ctx, "/note", "payload", values))
		recv(t, noted, "notification")
		// Cancellation passes coders too.
		started, ends := make(chan struct{}), make(chan error, 1)
		w.callee.Handler.Handle("/wait", func(c *Context) {
			done := c.Done()
			close(started)
			<-done
			ends <- c.Err()
		})
		canceled, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.caller.CallWith(canceled, "/wait", nil, nil) }()
		recv(t, started, "handler")
		cancel()
		if err := recv(t, ends, "end of the handler"); err != context.Canceled {
			t.Error(err)
		}
		recv(t, done, "end of the call")
	})
}

// looker is a coder that looks at the payload before the frame was checked.
type looker struct{ seen chan string }

func (looker) Encode(_ *Client, m *Message) *Message { return m }

func (l looker) Decode(_ *Client, m *Message) *Message {
	l.seen <- string(m.Data())
	return m
}

// A coder on a connection of version 1 sees payloads as they are, whatever the bits that version 2 gave a meaning.
func TestCodersAndFlagsOfVersion2(t *testing.T) {
	version1Ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		l := looker{make(chan string, 1)}
		c.Handler.UseCoder(l)
		c.Handler.Handle("/e", echo)
		p.send(frameOf(CmdRequest, flagDeadline|flagMetadata, 5, "/e", "abcd\x02\x00payload"))
		if got := recv(t, l.seen, "look"); got != "abcd\x02\x00payload" {
			t.Errorf("the coder sees %q", got)
		}
		p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, 0, 5, "/e", "abcd\x02\x00payload")))
	})
}

// A coder that trips over a frame which was not checked yet takes its connection with it, and nothing else.
func TestCodersAndMalformedExtensions(t *testing.T) {
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		l := looker{make(chan string, 1)}
		c.Handler.UseCoder(l)
		c.Handler.Handle("/e", echo)
		p.send(frameOf(CmdRequest, flagMetadata, 5, "/e", "\xff"))
		for rest := p.end(); len(rest) > 0; rest = rest[HeadLen+(&Message{Buffer: rest}).BodyLen():] {
			if (&Message{Buffer: rest}).Cmd() != cmdGoAway {
				t.Errorf("before the end came %x", rest)
			}
		}
		eventually(t, "end of the connection", func() bool { return c.CheckState() != nil })
	})
}

// One value is found without the others, the last of equal keys; what is the framework's is not.
func TestMetadataValue(t *testing.T) {
	s := startServer(t, StdConns(-1))
	c := dialClient(t, s.addr)
	s.Handler.Handle("/values", func(c *Context) {
		var all []string
		for _, key := range []string{"a", "b", "none", codecKey} {
			v, ok := c.MetadataValue(key)
			all = append(all, fmt.Sprintf("%s=%q,%v", key, v, ok))
		}
		must(t, c.Write(strings.Join(all, " ")))
	})
	ctx := UseCodec(AddMetadata(WithMetadata(patient(t), Metadata{"a": "1", "b": "\x00"}), "a", "2"), codec.JSONCodec{})
	var got string
	must(t, c.CallWith(ctx, "/values", nil, &got))
	if want := `a="2",true b="\x00",true none="",false arpc.codec="",false`; got != want {
		t.Errorf("%s", got)
	}
	must(t, c.CallWith(patient(t), "/values", nil, &got))
	if want := `a="",false b="",false none="",false arpc.codec="",false`; got != want {
		t.Errorf("%s", got)
	}
}
