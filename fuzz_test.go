package arpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// pipeListener accepts what dial returns the other end of.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) dial() net.Conn {
	a, b := net.Pipe()
	select {
	case l.conns <- b:
		return a
	case <-l.done:
		panic("the listener is closed")
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Net: "pipe", Name: "pipe"} }

// reader reads frames until the end of a connection, on a goroutine of its own.
type reader struct {
	frames chan *Message
}

func readAll(nc net.Conn) *reader {
	r := &reader{frames: make(chan *Message, 1000)}
	go func() {
		defer close(r.frames)
		for {
			m, err := readFrame(nc)
			if err != nil {
				return
			}
			r.frames <- m
		}
	}()
	return r
}

// next returns the next frame, nil at the end of the connection.
func (r *reader) next(t *testing.T) *Message {
	t.Helper()
	return recv(t, r.frames, "frame or end of the connection")
}

// feed writes data in pieces of the sizes in cuts. It stops when the peer closes.
func feed(nc net.Conn, data, cuts []byte) {
	for i := 0; len(data) > 0; i++ {
		k := len(data)
		if len(cuts) > 0 {
			k = min(max(int(cuts[i%len(cuts)]), 1), k)
		}
		if _, err := nc.Write(data[:k]); err != nil {
			return
		}
		data = data[k:]
	}
}

const fuzzLimit = 1 << 16

// FuzzHeader sends any bytes to a server. What it must do follows from the bytes: answer each request once, and then close the
// connection or answer a ping.
func FuzzHeader(f *testing.F) {
	join := func(frames ...[]byte) []byte { return bytes.Join(frames, nil) }
	f.Add([]byte{}, []byte{})
	f.Add(frameOf(CmdRequest, 0, 1, "/ordered", "x"), []byte{1})
	f.Add(join(frameOf(CmdRequest, 3, 1, "/async", "x"), frameOf(CmdRequest, 0, 1, "/inline", ""), frameOf(CmdNotify, 0, 1, "/ordered", "")), []byte{7, 200})
	f.Add(join(frameOf(CmdRequest, 0, 1, "/panic", "x"), frameOf(CmdRequest, 0, 1, "/none", ""), frameOf(CmdRequest, 0, 0, "/nothing", "")), []byte{})
	f.Add(join(frameOf(CmdRequest, 0, 1, "/later", "x"), frameOf(CmdResponse, 0, 1, "/x", ""), frameOf(CmdPing, 0, 1, "", "body")), []byte{})
	f.Add(join(frameOf(CmdStream|0xc0, 0, 1, "/s", "x"), frameOf(9, 0, 1, "/x", ""), frameOf(CmdRequest, 0, 1, "/ordered", "x")), []byte{50})
	for _, n := range []byte{0, 1, 126, 127, 128, 255} {
		b := frameOf(CmdRequest, 0, uint64(n), "/ordered", strings.Repeat("p", 126))
		b[indexMethodLen] = n
		f.Add(join(b, b[:20]), []byte{16, n})
	}
	f.Add([]byte{255, 255, 255, 255, 0, 1}, []byte{2})
	f.Add(frameOf(CmdRequest, 0, 1, "/ordered", "x")[:15], []byte{})
	s := NewServer(NewHandler())
	h := s.Handler
	h.SetMaxBodyLen(fuzzLimit)
	h.Handle("/ordered", echo)
	h.Handle("/async", echo, true)
	h.HandleInline("/inline", echo)
	h.Handle("/panic", func(*Context) { panic("fuzz") })
	h.Handle("/none", func(*Context) {})
	h.Handle("/later", func(c *Context) { c.AnswerLater(); go c.Error(c.Body()) })
	ln := newPipeListener()
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	f.Cleanup(func() {
		s.Stop()
		recv(f, served, "return from Serve")
	})
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		answers, pongs, closes, partial := expected(data)
		nc := ln.dial()
		defer nc.Close()
		r := readAll(nc)
		feed(nc, data, cuts)
		if !closes && !partial {
			feed(nc, pingFrame, nil)
			pongs++
		}
		for answers > 0 || pongs > 0 {
			m := r.next(t)
			if m == nil {
				if closes { // answers that were not out yet may be lost
					break
				}
				t.Fatalf("closed, %d answers and %d pongs are due", answers, pongs)
			}
			switch {
			case m.Cmd() == CmdPong && m.Len() == HeadLen:
				pongs--
			case m.Cmd() == CmdResponse && validMethod(m.Buffer):
				answers--
			default:
				t.Fatalf("%x", m.Buffer)
			}
			if answers < 0 || pongs < 0 {
				t.Fatalf("too many: %x", m.Buffer)
			}
		}
		nc.SetReadDeadline(time.Now().Add(patience)) //nolint:errcheck // a bound only
		if closes {
			for r.next(t) != nil {
			}
			return
		}
		nc.Close()
		for m := range r.frames {
			t.Fatalf("unasked: %x", m.Buffer)
		}
	})
}

// expected says what bytes must lead to: the answers and pongs, whether the connection is closed, and whether they end within a frame.
func expected(data []byte) (answers, pongs int, closes, partial bool) {
	for len(data) > 0 {
		if len(data) < 4 {
			return answers, pongs, false, true
		}
		n := uint64(binary.LittleEndian.Uint32(data))
		if n > fuzzLimit {
			return answers, pongs, true, false
		}
		if uint64(len(data)) < HeadLen+n {
			return answers, pongs, false, true
		}
		fr := data[:HeadLen+n]
		data = data[HeadLen+n:]
		switch fr[indexCmd] & cmdMask {
		case CmdRequest:
			if n > 0 && fr[indexMethodLen] > 0 {
				answers++
			}
		case CmdPing:
			pongs++
		case CmdResponse, CmdNotify, CmdPong, CmdStream:
		default:
			return answers, pongs, true, false
		}
	}
	return answers, pongs, false, false
}

// scramble is a coder that changes all of the payload, in a way that depends on the order.
type scramble byte

func (s scramble) Encode(_ *Client, m *Message) *Message {
	for i := HeadLen; i < m.Len(); i++ {
		m.Buffer[i] = m.Buffer[i]<<3 | m.Buffer[i]>>5
		m.Buffer[i] ^= byte(s) + byte(i)
	}
	return m
}

func (s scramble) Decode(_ *Client, m *Message) *Message {
	for i := HeadLen; i < m.Len(); i++ {
		m.Buffer[i] ^= byte(s) + byte(i)
		m.Buffer[i] = m.Buffer[i]>>3 | m.Buffer[i]<<5
	}
	return m
}

// careless is a coder that trusts what it is given.
type careless struct{}

func (careless) Encode(_ *Client, m *Message) *Message {
	m.Buffer = append(m.Buffer, byte(len(m.Data())))
	m.SetBodyLen(m.Len() - HeadLen)
	return m
}

func (careless) Decode(_ *Client, m *Message) *Message {
	data := m.Data()
	if data[len(data)-1] != byte(len(data)-1) {
		return nil
	}
	m.Buffer = m.Buffer[:m.Len()-1]
	m.SetBodyLen(m.Len() - HeadLen)
	return m
}

// coderChain makes a chain of coders from bytes.
func coderChain(program []byte) (chain []MessageCoder) {
	var wrong atomic.Int32
	for i, b := range program {
		switch b % 5 {
		case 0:
			chain = append(chain, stamp{b, &wrong})
		case 1:
			chain = append(chain, scramble(b))
		case 2:
			chain = append(chain, careless{})
		case 3:
			if !slices.ContainsFunc(chain, func(c MessageCoder) bool { _, ok := c.(carrier); return ok }) {
				chain = append(chain, carrier{})
			}
		case 4:
			if !slices.ContainsFunc(chain, func(c MessageCoder) bool { _, ok := c.(appender); return ok }) {
				chain = append(chain, appender{})
			}
		}
		if i == 8 {
			break
		}
	}
	return chain
}

// FuzzCoders sends messages through chains of coders, which must give them back, and any bytes into such chains, which must close at
// most their own connection.
func FuzzCoders(f *testing.F) {
	f.Add([]byte{0}, "/m", []byte("payload"), "value", []byte{})
	f.Add([]byte{0, 1, 2, 3, 4}, "/m", []byte{}, "", frameOf(CmdRequest, 0, 1, "/m", "x"))
	f.Add([]byte{4, 3, 2, 1, 0, 5}, strings.Repeat("m", 127), bytes.Repeat([]byte("long"), 500), strings.Repeat("v", 40), frameOf(CmdPing, 0, 1, "", ""))
	f.Add([]byte{2, 2, 2}, "/m", []byte{0}, "v", frameOf(CmdResponse, 0, 1, "", ""))
	f.Add([]byte{3}, "/m", []byte{0}, "v", []byte("\x01\x00\x00\x00\x20\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\xff"))
	f.Fuzz(func(t *testing.T, program []byte, method string, payload []byte, value string, noise []byte) {
		chain := coderChain(program)
		if method == "" || len(method) > MaxMethodLen || len(value) > 200 || len(payload) > 1<<20 {
			return
		}
		values := map[any]any{}
		for _, c := range chain {
			switch c.(type) {
			case carrier:
				values["key"] = value
			case appender:
				values["app"] = value
			}
		}
		h := NewHandler()
		for _, c := range chain {
			h.UseCoder(c)
		}
		got := make(chan *Message, 1)
		s := NewServer(h)
		answer := func(c *Context) {
			m := &Message{Buffer: bytes.Clone(c.Message.Buffer)}
			for k, v := range c.Values() {
				m.Set(k, v)
			}
			select {
			case got <- m:
			default:
			}
			c.Write(c.Body())
		}
		h.HandleNotFound(answer)
		ln := newPipeListener()
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		defer func() {
			s.Stop()
			recv(t, served, "return from Serve")
		}()
		ch := NewHandler()
		for _, c := range chain {
			ch.UseCoder(c)
		}
		c, err := NewClient(func() (net.Conn, error) { return ln.dial(), nil }, ch)
		must(t, err)
		defer c.Stop()
		want := maps.Clone(values)
		var r []byte
		if err := c.Call(method, payload, &r, patience, values); err != nil || !bytes.Equal(r, payload) {
			t.Fatalf("%q came back as %q, %v", payload, r, err)
		}
		m := <-got
		delete(m.Values(), "encoded")
		if m.Method() != method || !bytes.Equal(m.Data(), payload) || m.Cmd() != CmdRequest || !maps.Equal(m.Values(), want) {
			t.Fatalf("%q %q %v arrived as %q %q %v", method, payload, want, m.Method(), m.Data(), m.Values())
		}
		nc := ln.dial()
		nr := readAll(nc)
		feed(nc, noise, nil)
		feed(nc, pingFrame, nil)
		nc.Close()
		for range nr.frames {
		}
		if err := c.Call(method, payload, &r, patience, values); err != nil || !bytes.Equal(r, payload) {
			t.Fatalf("beside noise: %q came back as %q, %v", payload, r, err)
		}
	})
}

// program runs bytes as actions on both ends of one connection.
type program struct {
	ending
	t      *testing.T
	server *Server
	ends   [2]*Client // the dialling one, the accepted one
	conn   *net.TCPConn

	mu       sync.Mutex
	later    []*Context
	cancels  []context.CancelFunc
	finished bool
	wg       sync.WaitGroup // goroutines of the program's own
}

func (p *program) routes(h Handler) {
	h.Handle("/ordered", echo)
	h.Handle("/async", echo, true)
	h.HandleInline("/inline", echo)
	h.Handle("/panic", func(*Context) { panic("fuzz") })
	h.Handle("/none", func(*Context) {}, true)
	h.Handle("/back", func(c *Context) {
		var r []byte
		if err := c.Client.CallWith(c, "/async", c.Body(), &r); err != nil {
			c.Error(err)
			return
		}
		c.Write(r)
	})
	h.Handle("/plain", func(c *Context) {
		if err := c.Client.Call("/ordered", c.Body(), nil, 5*time.Millisecond); err != nil {
			c.Error(err)
			return
		}
		c.Client.CallAsync("/async", c.Body(), func(ctx *Context) { ctx.Bind(nil) }, time.Millisecond)
		c.Write(nil)
	})
	later := func(c *Context) {
		if c.Message.Cmd() != CmdRequest {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.finished || len(p.later) > 100 {
			c.Error("no more")
			return
		}
		c.AnswerLater()
		p.later = append(p.later, c)
	}
	h.Handle("/later", later)
	h.HandleInline("/later inline", later)
}

var programRoutes = []string{"/ordered", "/async", "/inline", "/panic", "/none", "/back", "/plain", "/later", "/later inline", "/nothing"}

// answerLater answers up to n of the requests that wait for it.
func (p *program) answerLater(n int) {
	p.mu.Lock()
	var due []*Context
	n = min(n, len(p.later))
	due, p.later = p.later[:n], p.later[n:]
	p.mu.Unlock()
	for i, c := range due {
		if i%2 == 0 {
			c.Write(c.Body())
		} else {
			c.Error("late")
		}
		if err := c.Write("again"); !errors.Is(err, ErrAnswered) {
			p.t.Errorf("a second answer: %v", err)
		}
	}
}

func (p *program) cancelAll() {
	p.mu.Lock()
	cancels := p.cancels
	p.cancels = nil
	p.mu.Unlock()
	for _, f := range cancels {
		f()
	}
}

// step does one action: the byte is the action, arg says on which end and with what.
func (p *program) step(action, arg byte) {
	c := p.ends[arg&1]
	route := programRoutes[int(arg>>1)%len(programRoutes)]
	timeout := []time.Duration{patience, time.Millisecond, 100 * time.Microsecond, TimeForever}[int(arg>>5)%4]
	body := []byte("a body")
	if arg >= 250 {
		body = make([]byte, 200<<10)
	}
	async := func(timeout time.Duration) {
		p.started.Add(1)
		var once atomic.Bool
		c.CallAsync(route, body, func(ctx *Context) {
			if !once.CompareAndSwap(false, true) {
				p.twice.Add(1)
			}
			var r []byte
			if berr, err := ctx.Bind(&r), ctx.Err(); fmt.Sprint(berr) != fmt.Sprint(err) {
				p.t.Errorf("Bind %v, Err %v", berr, err)
			}
			p.ended.Add(1)
		}, timeout)
	}
	switch action % 17 {
	case 0, 1:
		p.started.Add(1)
		p.wg.Go(func() {
			var r []byte
			err := c.Call(route, body, &r, timeout)
			if err == nil && route != "/plain" && !bytes.Equal(r, body) {
				p.t.Errorf("%s: %d bytes came back as %d", route, len(body), len(r))
			}
			p.ended.Add(1)
		})
	case 2:
		async(timeout)
	case 3:
		for range 40 {
			async(timeout)
		}
	case 4:
		c.Notify(route, body, TimeZero)
	case 5:
		p.wg.Go(func() { c.Notify(route, body, 2*time.Millisecond) })
	case 6:
		c.PushMsg(c.NewMessage(CmdNotify, route, body), TimeZero)
	case 7:
		c.Ping()
	case 8:
		ctx, cancel := context.WithCancel(context.Background())
		p.mu.Lock()
		p.cancels = append(p.cancels, cancel)
		p.mu.Unlock()
		p.started.Add(1)
		p.wg.Go(func() {
			c.CallWith(ctx, route, body, nil)
			p.ended.Add(1)
		})
	case 9:
		p.cancelAll()
	case 10:
		p.answerLater(1 + int(arg>>4))
	case 11:
		for range arg {
			runtime.Gosched()
		}
	case 12:
		pause(time.Duration(arg) * 10 * time.Microsecond)
	case 13: // rarely, or nothing else would be tried
		switch arg {
		case 0:
			p.conn.CloseWrite()
		case 1:
			p.conn.CloseRead()
		case 2:
			p.conn.Close()
		case 3:
			reset(p.conn)
		case 4:
			c.Conn.Close()
		case 5, 6:
			p.wg.Go(c.Stop)
		case 7:
			p.wg.Go(func() { p.server.Stop() })
		case 8:
			p.wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
				defer cancel()
				p.server.Shutdown(ctx)
			})
		}
	case 14:
		p.server.Broadcast(route, body)
	case 15:
		c.Set(arg, action)
		c.Keepalive(time.Duration(1+arg) * 100 * time.Microsecond)
	case 16:
		c.CheckState()
		c.Conn.LocalAddr()
		c.Conn.RemoteAddr()
	}
}

// FuzzProgram runs bytes as a program of actions. Whatever they do, every call ends exactly once and nothing is left.
func FuzzProgram(f *testing.F) {
	ops := func(pairs ...byte) []byte { return pairs }
	route := func(i, end byte) byte { return i<<1 | end }
	f.Add(byte(0), ops(0, route(0, 0), 2, route(1, 1), 3, route(2, 0)))
	for how := range byte(9) {
		var prog []byte
		for i := range byte(len(programRoutes)) {
			prog = append(prog, 0, route(i, 0), 3, route(i, 1), 8, route(i, 0), 2, route(i, 1)|0x20, 4, route(i, 0), 6, route(i, 1), 14, route(i, 0))
		}
		prog = append(prog, 12, 100, 10, 200, 9, 0, 13, how, 0, route(0, 0), 3, route(1, 1), 0, route(5, 0), 12, 50, 10, 255)
		f.Add(how, prog)
	}
	f.Add(byte(1), ops(3, 255, 3, 254, 0, 252, 0, 253, 4, 250, 12, 200, 13, 3))
	f.Add(byte(2), ops(15, 0, 15, 1, 7, 0, 7, 1, 12, 255, 8, route(7, 0), 8, route(7, 1), 9, 0, 13, 0, 0, route(5, 1), 12, 100, 13, 5))
	f.Add(byte(0), ops(0, route(5, 0), 0, route(5, 1), 13, 0, 0, route(5, 1), 0, route(6, 1), 2, route(7, 1)|0x60, 13, 1))
	f.Add(byte(4), []byte("21BAZ0bB1Y0a\r\x01")) // the local address of a connection that is not attached yet
	f.Fuzz(func(t *testing.T, how byte, prog []byte) {
		if len(prog) > 400 {
			return
		}
		p := &program{t: t}
		h := NewHandler()
		h.SetMaxReconnectTimes(1)
		p.routes(h)
		p.server = NewServer(NewHandler(), adapters[int(how)%len(adapters)].opt)
		p.routes(p.server.Handler)
		accepted := make(chan *Client, 1)
		p.server.Handler.HandleConnected(func(c *Client) { accepted <- c })
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		served := make(chan error, 1)
		go func() { served <- p.server.Serve(ln) }()
		c, err := NewClient(func() (net.Conn, error) {
			if p.conn != nil {
				return nil, io.ErrClosedPipe // one connection only
			}
			nc, err := dialer(ln.Addr().String())()
			if err == nil {
				p.conn = nc.(*net.TCPConn)
			}
			return nc, err
		}, h, Backoff(time.Microsecond, time.Microsecond))
		must(t, err)
		p.ends = [2]*Client{c, recv(t, accepted, "connection")}
		for i := 0; i+1 < len(prog); i += 2 {
			p.step(prog[i], prog[i+1])
		}
		p.mu.Lock()
		p.finished = true
		p.mu.Unlock()
		p.cancelAll()
		p.answerLater(1000)
		c.Stop()
		p.server.Stop()
		waitGroup(t, &p.wg, "end of the program's goroutines")
		recv(t, served, "return from Serve")
		eventually(t, "end of all calls", func() bool { return p.started.Load() == p.ended.Load() })
		if n := p.twice.Load(); n > 0 {
			t.Errorf("%d calls ended twice", n)
		}
		var left []string
		for end := time.Now().Add(patience); ; runtime.Gosched() {
			if left = ourGoroutines("core.watch("); len(left) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%d goroutines left:\n%s", len(left), left[0])
			}
		}
	})
}
