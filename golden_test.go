package arpc

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"testing"
)

// The bytes of version 1 of the protocol, as they were recorded from other implementations: live clients and servers must send and
// understand exactly these.

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// wants reads exactly the given bytes.
func (p *rawPeer) wants(what, want string) {
	p.t.Helper()
	if m := p.frame(); hex.EncodeToString(m.Buffer) != want {
		p.t.Errorf("%s:\n got %x\nwant %s", what, m.Buffer, want)
	}
}

const (
	goldenPing = "00000000000400000000000000000000"
	goldenPong = "00000000000500000000000000000000"
)

// exchanges are requests and their answers. Sequence numbers count from 2, as those of a connection do.
var exchanges = []struct {
	seq      uint64
	route    string
	payload  any
	async    bool
	request  string
	answer   string
	want     string // what the caller gets
	wantErr  string
	wantCode Code
}{
	{2, "/e", "hi", false,
		"040000000001000202000000000000002f656869", "040000000002000202000000000000002f656869", "hi", "", 0},
	{5, "/e", nil, false,
		"020000000001000205000000000000002f65", "020000000002000205000000000000002f65", "", "", 0},
	{7, "/nil", nil, false,
		"040000000001000407000000000000002f6e696c", "040000000002000407000000000000002f6e696c", "", "", 0},
	{8, "/er", nil, false,
		"030000000001000308000000000000002f6572", "060000000002010308000000000000002f6572626164", "", "bad", CodeUnknown},
	{11, "/es", nil, false,
		"03000000000100030b000000000000002f6573", "0d000000000201030b000000000000002f65737b22636f6465223a377d", "", `{"code":7}`, CodeUnknown},
	{12, "/zz", nil, false,
		"03000000000100030c000000000000002f7a7a", "13000000000201030c000000000000002f7a7a6d6574686f64206e6f7420666f756e64", "",
		"method not found", CodeUnimplemented},
	{13, "/e", "as", true,
		"04000000000102020d000000000000002f656173", "04000000000202020d000000000000002f656173", "as", "", 0},
	{14, "/er", nil, true,
		"03000000000102030e000000000000002f6572", "06000000000203030e000000000000002f6572626164", "", "bad", CodeUnknown},
}

// goldenRoutes are those that the recorded answers came from.
func goldenRoutes(h Handler) {
	h.Handle("/e", echo)
	h.Handle("/nil", func(c *Context) { c.Write(nil) })
	h.Handle("/er", func(c *Context) { c.Error("bad") })
	h.Handle("/es", func(c *Context) { c.Error(map[string]int{"code": 7}) })
}

// ends runs a test with each kind of live end against a peer that speaks bytes.
func ends(t *testing.T, f func(t *testing.T, c *Client, p *rawPeer)) {
	t.Run("client", func(t *testing.T) {
		ln := listenRaw(t)
		c := dialClient(t, ln.addr(), Protocol(1))
		f(t, c, ln.accept())
	})
	t.Run("server", func(t *testing.T) {
		onAdapters(t, func(t *testing.T, adapter ServerOption) {
			s := startServer(t, adapter)
			p := dialRaw(t, s.addr)
			f(t, s.waitClients(t, 1)[0], p)
		})
	})
}

func TestGoldenCaller(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		last := uint64(1)
		for _, x := range exchanges {
			for last++; last < x.seq; last++ { // other messages count too
				must(t, c.Notify("/n", "nt", patience))
				p.wants("notification", fmt.Sprintf("0400000000030202%02x000000000000002f6e6e74", last))
			}
			type end struct {
				r   string
				err error
			}
			done := make(chan end, 1)
			if x.async {
				must(t, c.CallAsync(x.route, x.payload, func(ctx *Context) {
					if !ctx.Message.IsAsync() || ctx.Message.Seq() != x.seq || ctx.Message.Method() != x.route {
						t.Errorf("the callback's message is %x", ctx.Message.Buffer)
					}
					var e end
					e.err = ctx.Bind(&e.r)
					done <- e
				}, patience))
			} else {
				go func() {
					var e end
					e.err = c.Call(x.route, x.payload, &e.r, patience)
					done <- e
				}()
			}
			p.wants("request", x.request)
			p.send(unhex(x.answer))
			e := recv(t, done, "end of the call")
			switch {
			case x.wantErr == "" && (e.err != nil || e.r != x.want):
				t.Errorf("%s: %q, %v", x.route, e.r, e.err)
			case x.wantErr != "" && (e.err == nil || e.err.Error() != x.wantErr || CodeOf(e.err) != x.wantCode):
				t.Errorf("%s: %q, %v (%v)", x.route, e.r, e.err, CodeOf(e.err))
			}
		}
		must(t, c.Notify("/n", "nt", patience))
		p.wants("notification", "04000000000302020f000000000000002f6e6e74")
		c.Ping() // has no number
		p.wants("ping", goldenPing)
		must(t, c.Notify("/n", "nt", patience))
		p.wants("notification after a ping", "040000000003020210000000000000002f6e6e74")
		must(t, c.PushMsg(c.NewMessage(CmdNotify, "/n", "nt"), patience)) // carries no flag
		p.wants("pushed message", "040000000003000211000000000000002f6e6e74")
	})
}

func TestGoldenResponder(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		goldenRoutes(c.Handler)
		noted := make(chan string, 1)
		c.Handler.Handle("/n", func(c *Context) { noted <- string(c.Body()) })
		for _, x := range exchanges {
			p.send(unhex(x.request))
			p.wants("answer to "+x.route, x.answer)
		}
		// All of them in one segment, and byte by byte.
		var all []byte
		for _, x := range exchanges {
			all = append(all, unhex(x.request)...)
		}
		p.send(all)
		for _, x := range exchanges {
			if x.route == "/zz" {
				p.wants("answer to "+x.route, x.answer) // given by the reader, and so first
			}
		}
		for _, x := range exchanges {
			if x.route != "/zz" {
				p.wants("answer to "+x.route, x.answer)
			}
		}
		for i := range all {
			p.send(all[i : i+1])
		}
		seen := map[string]bool{}
		for range exchanges {
			seen[hex.EncodeToString(p.frame().Buffer)] = true
		}
		for _, x := range exchanges {
			if !seen[x.answer] {
				t.Errorf("byte by byte: no answer to %s", x.route)
			}
		}
		p.send(unhex("04000000000302020f000000000000002f6e6e74"))
		if got := recv(t, noted, "notification"); got != "nt" {
			t.Errorf("%q", got)
		}
		p.send(unhex(goldenPong), unhex(goldenPing))
		p.wants("pong", goldenPong)
		// What browsers send: numbers from 0, no flags, numbered pings.
		p.send(unhex("040000000001000200000000000000002f656869"))
		p.wants("answer number 0", "040000000002000200000000000000002f656869")
		p.send(unhex("030000000003000203000000000000002f6e78"))
		if got := recv(t, noted, "notification"); got != "x" {
			t.Errorf("%q", got)
		}
		p.send(unhex("00000000000400000400000000000000"))
		p.wants("pong", goldenPong)
		// All 64 bits of the number come back; bits that mean nothing to us neither disturb nor come back.
		p.send(unhex("040000007f01fe02fedcba98765432102f656869"))
		p.wants("answer", "0400000000020202fedcba98765432102f656869")
		// The bits of streams are masked off other commands.
		p.send(unhex("040000000081000209000000000000002f656869"))
		p.wants("answer", "040000000002000209000000000000002f656869")
	})
}

// The numbers of both directions have nothing to do with each other.
func TestGoldenBothDirectionsAtOnce(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.Handle("/c", func(c *Context) {
			if string(c.Body()) != "q" {
				t.Errorf("%q", c.Body())
			}
			c.Write("r")
		})
		done := make(chan error, 1)
		go func() {
			var r string
			err := c.Call("/c", "q", &r, patience)
			if err == nil && r != "r" {
				err = errors.New(r)
			}
			done <- err
		}()
		const request, answer = "030000000001000202000000000000002f6371", "030000000002000202000000000000002f6372"
		p.wants("request", request)
		p.send(unhex(request))
		p.wants("answer", answer)
		p.send(unhex(answer))
		must(t, recv(t, done, "end of the call"))
	})
}

func TestGoldenBroadcast(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		a, b := dialRaw(t, s.addr), dialRaw(t, s.addr)
		s.waitClients(t, 2)
		s.Broadcast("/b", "bc")
		for _, p := range []*rawPeer{a, b} {
			p.wants("broadcast", "040000000003000201000000000000002f626263")
		}
		s.Broadcast("/b", "bc")
		a.wants("second broadcast", "040000000003000202000000000000002f626263")
		if m := s.NewMessage(CmdRequest, "/b", nil); hex.EncodeToString(m.Buffer) != "020000000001000203000000000000002f62" {
			t.Errorf("%x", m.Buffer)
		}
	})
}

// appender is the coder of the recorded frame: a name and a value behind the payload, and their length.
type appender struct{}

func (appender) Encode(_ *Client, m *Message) *Message {
	v, ok := m.Get("app")
	if !ok {
		return m
	}
	m.SetFlagBit(3, true)
	text := v.(string)
	m.Buffer = append(m.Buffer, "app"...)
	m.Buffer = append(m.Buffer, text...)
	m.Buffer = append(m.Buffer, 0, byte(3+len(text)+2))
	m.SetBodyLen(m.Len() - HeadLen)
	return m
}

func (appender) Decode(_ *Client, m *Message) *Message {
	if !m.IsFlagBitSet(3) {
		return m
	}
	n := int(m.Buffer[m.Len()-1])
	if n < 5 || n > len(m.Data()) || !bytes.HasPrefix(m.Buffer[m.Len()-n:], []byte("app")) {
		return m
	}
	m.Set("app", string(m.Buffer[m.Len()-n+3:m.Len()-2]))
	m.Buffer = m.Buffer[:m.Len()-n]
	m.SetBodyLen(m.Len() - HeadLen)
	m.SetFlagBit(3, false)
	return m
}

func TestGoldenAppender(t *testing.T) {
	const request = "110000000801000202000000000000002f6568656c6c6f61707056414c5545000a"
	const answer = "110000000802000202000000000000002f6568656c6c6f61707056414c5545000a"
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.UseCoder(appender{})
		c.Handler.Handle("/e", func(c *Context) {
			if v, _ := c.Get("app"); v != "VALUE" || string(c.Body()) != "hello" {
				t.Errorf("%q with %v", c.Body(), v)
			}
			c.Write(c.Body())
		})
		done := make(chan error, 1)
		go func() {
			var r string
			err := c.Call("/e", "hello", &r, patience, map[any]any{"app": "VALUE"})
			if err == nil && r != "hello" {
				err = errors.New(r)
			}
			done <- err
		}()
		p.wants("request", request)
		p.send(unhex(answer))
		must(t, recv(t, done, "end of the call"))
		p.send(unhex(request))
		p.wants("answer", answer)
	})
}

// A peer of the previous kind drops frames with a bad method length; we tell who asked, where the rest of the header makes sense.
func TestBadMethodLength(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.Handle("/e", echo)
		bad := func(methodLen byte, cmd byte) []byte {
			b := frameOf(cmd, 0, 7, "", "/e and more")
			b[indexMethodLen] = methodLen
			return b
		}
		for _, cmd := range []byte{CmdRequest, CmdNotify, CmdResponse} {
			for _, n := range []byte{0, 12, 128, 255} {
				p.send(bad(n, cmd))
				if cmd == CmdRequest && n > 0 {
					if m := p.frame(); m.Seq() != 7 || m.Cmd() != CmdResponse || !m.IsError() || m.MethodLen() == 0 || m.MethodLen() > MaxMethodLen {
						t.Errorf("answer to a request with method length %d: %x", n, m.Buffer)
					}
				}
			}
		}
		p.send(unhex(exchanges[0].request)) // and the connection lives
		p.wants("answer", exchanges[0].answer)
	})
}

// A command that does not exist closes the connection.
func TestBadCommand(t *testing.T) {
	for _, cmd := range []byte{0, 7, 63, 0x40, 0x80, 0xff} {
		ends(t, func(t *testing.T, c *Client, p *rawPeer) {
			p.send(frameOf(cmd, 0, 7, "/e", "x"))
			if rest := p.end(); len(rest) > 0 {
				t.Errorf("command %#x was answered with %x", cmd, rest)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	fresh := func() *Message {
		return newMessage(CmdRequest, 0, 0x0102030405060708, "/method", []byte("payload"), nil)
	}
	if got := hex.EncodeToString(fresh().Buffer); got != "0e00000000010007"+"0807060504030201"+"2f6d6574686f64"+"7061796c6f6164" {
		t.Errorf("%s", got)
	}
	for _, tt := range []struct {
		name   string
		change func(m *Message)
		got    func(m *Message) any
		want   any
		header string // all but the number
	}{
		{"Len", nil, func(m *Message) any { return m.Len() }, 30, "0e00000000010007"},
		{"Cmd", nil, func(m *Message) any { return m.Cmd() }, CmdRequest, "0e00000000010007"},
		{"SetCmd", func(m *Message) { m.SetCmd(CmdNotify) }, func(m *Message) any { return m.Cmd() }, CmdNotify, "0e00000000030007"},
		{"Cmd of a stream", func(m *Message) { m.SetCmd(CmdStream | 0xc0) }, func(m *Message) any { return m.Cmd() }, CmdStream, "0e00000000c60007"},
		{"IsError", nil, func(m *Message) any { return m.IsError() }, false, "0e00000000010007"},
		{"SetError", func(m *Message) { m.SetError(true) }, func(m *Message) any { return m.IsError() }, true, "0e00000000010107"},
		{"SetError and back", func(m *Message) { m.SetAsync(true); m.SetError(true); m.SetError(false) }, func(m *Message) any { return m.IsError() }, false, "0e00000000010207"},
		{"Error", nil, func(m *Message) any { return m.Error() }, error(nil), "0e00000000010007"},
		{"Error of an error", func(m *Message) { m.SetError(true) }, func(m *Message) any { return m.Error().Error() }, "payload", "0e00000000010107"},
		{"IsAsync", nil, func(m *Message) any { return m.IsAsync() }, false, "0e00000000010007"},
		{"SetAsync", func(m *Message) { m.SetAsync(true) }, func(m *Message) any { return m.IsAsync() }, true, "0e00000000010207"},
		{"SetAsync and back", func(m *Message) { m.SetError(true); m.SetAsync(true); m.SetAsync(false) }, func(m *Message) any { return m.IsAsync() }, false, "0e00000000010107"},
		{"IsFlagBitSet", nil, func(m *Message) any { return m.IsFlagBitSet(0) }, false, "0e00000000010007"},
		{"SetFlagBit 0", func(m *Message) { m.SetFlagBit(0, true) }, func(m *Message) any { return m.IsFlagBitSet(0) }, true, "0e00000001010007"},
		{"SetFlagBit 7", func(m *Message) { m.SetFlagBit(7, true) }, func(m *Message) any { return m.IsFlagBitSet(7) }, true, "0e00000080010007"},
		{"SetFlagBit of others", func(m *Message) { m.SetFlagBit(3, true) }, func(m *Message) any { return m.IsFlagBitSet(4) }, false, "0e00000008010007"},
		{"SetFlagBit and back", func(m *Message) { m.SetFlagBit(3, true); m.SetFlagBit(4, true); m.SetFlagBit(3, false) }, func(m *Message) any { return m.IsFlagBitSet(3) }, false, "0e00000010010007"},
		{"IsFlagBitSet -1", nil, func(m *Message) any { return m.IsFlagBitSet(-1) }, false, "0e00000000010007"},
		{"IsFlagBitSet 8", nil, func(m *Message) any { return m.IsFlagBitSet(8) }, false, "0e00000000010007"},
		{"SetFlagBit 8", nil, func(m *Message) any { return m.SetFlagBit(8, true) != nil && m.SetFlagBit(-1, true) != nil }, true, "0e00000000010007"},
		{"MethodLen", nil, func(m *Message) any { return m.MethodLen() }, 7, "0e00000000010007"},
		{"SetMethodLen", func(m *Message) { m.SetMethodLen(2) }, func(m *Message) any { return m.Method() + " " + string(m.Data()) }, "/m ethodpayload", "0e00000000010002"},
		{"Method", nil, func(m *Message) any { return m.Method() }, "/method", "0e00000000010007"},
		{"BodyLen", nil, func(m *Message) any { return m.BodyLen() }, 14, "0e00000000010007"},
		{"SetBodyLen", func(m *Message) { m.SetBodyLen(0x01020304) }, func(m *Message) any { return m.BodyLen() }, 0x01020304, "0403020100010007"},
		{"Seq", nil, func(m *Message) any { return m.Seq() }, uint64(0x0102030405060708), "0e00000000010007"},
		{"SetSeq", func(m *Message) { m.SetSeq(1<<64 - 1) }, func(m *Message) any { return m.Seq() }, uint64(1<<64 - 1), "0e00000000010007"},
		{"Data", nil, func(m *Message) any { return string(m.Data()) }, "payload", "0e00000000010007"},
		{"Values", nil, func(m *Message) any { return m.Values() == nil }, true, "0e00000000010007"},
		{"Get", nil, func(m *Message) any { v, ok := m.Get("k"); return v == nil && !ok }, true, "0e00000000010007"},
		{"Set", func(m *Message) { m.Set("k", 1) }, func(m *Message) any { v, ok := m.Get("k"); return v == 1 && ok && len(m.Values()) == 1 }, true, "0e00000000010007"},
		{"Set nil", func(m *Message) { m.Set("k", nil) }, func(m *Message) any { return m.Values() == nil }, true, "0e00000000010007"},
	} {
		m := fresh()
		if tt.change != nil {
			tt.change(m)
		}
		if got := tt.got(m); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if got := hex.EncodeToString(m.Buffer[:8]); got != tt.header {
			t.Errorf("%s: header %s, want %s", tt.name, got, tt.header)
		}
	}
	if CmdNone != 0 || CmdRequest != 1 || CmdResponse != 2 || CmdNotify != 3 || CmdPing != 4 || CmdPong != 5 || CmdStream != 6 ||
		HeadLen != 16 || MaxMethodLen != 127 || DefaultMaxBodyLen != 67108848 || TimeZero != 0 {
		t.Error("constants")
	}
}

// Client.Conn is a view.
func TestConnView(t *testing.T) {
	s := startServer(t)
	c := dialClient(t, s.addr)
	peer := s.waitClients(t, 1)[0]
	for _, conn := range []net.Conn{c.Conn, peer.Conn} {
		if _, err := conn.Write([]byte("x")); err == nil {
			t.Error("the view can be written")
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the view can be read")
		}
	}
	if c.Conn.LocalAddr().String() != peer.Conn.RemoteAddr().String() || c.Conn.RemoteAddr().String() != s.addr || peer.Conn.LocalAddr().String() != s.addr {
		t.Errorf("%v, %v, %v, %v", c.Conn.LocalAddr(), c.Conn.RemoteAddr(), peer.Conn.LocalAddr(), peer.Conn.RemoteAddr())
	}
}
