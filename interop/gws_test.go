package interop

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lxzan/gws"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/websocket"
	"github.com/arpc-go/arpc/log"
)

// gwsDeflate are the ways of gws to compress; the takeover of contexts is declined by us, whoever offers it.
var gwsDeflate = map[string]gws.PermessageDeflate{
	"plain":      {},
	"compressed": {Enabled: true, Threshold: 800},
	"takeover":   {Enabled: true, ServerContextTakeover: true, ClientContextTakeover: true},
}

// eachGWS runs a test with each of them, and the options of our end that belong to it.
func eachGWS(t *testing.T, f func(t *testing.T, deflate gws.PermessageDeflate, opts []websocket.Option)) {
	for name, deflate := range gwsDeflate {
		t.Run(name, func(t *testing.T) {
			var opts []websocket.Option
			if deflate.Enabled {
				opts = []websocket.Option{websocket.Compression(800)}
			}
			f(t, deflate, opts)
		})
	}
}

// gwsVersions are the versions of the protocol that are tried with it.
func gwsVersions(deflate gws.PermessageDeflate) []int {
	if deflate.Enabled {
		return []int{2} // compression knows nothing of them, and takes its time under the race detector
	}
	return []int{1, 2}
}

// onAdapters runs a test with each adapter of a server.
func onAdapters(t *testing.T, f func(t *testing.T, adapter arpc.ServerOption)) {
	t.Run("std", func(t *testing.T) { f(t, arpc.StdConns(-1)) })
	t.Run("poll", func(t *testing.T) { f(t, arpc.StdConns(0)) })
}

// gwsEnd is what gws tells of a connection.
type gwsEnd struct {
	messages chan []byte
	pings    chan string
	pongs    chan string
	closed   chan error
	conn     chan *gws.Conn
}

func newGWSEnd() *gwsEnd {
	return &gwsEnd{make(chan []byte, 1000), make(chan string, 10), make(chan string, 10), make(chan error, 1), make(chan *gws.Conn, 1)}
}

func (e *gwsEnd) OnOpen(c *gws.Conn)             { e.conn <- c }
func (e *gwsEnd) OnClose(_ *gws.Conn, err error) { e.closed <- err }
func (e *gwsEnd) OnPong(_ *gws.Conn, p []byte)   { e.pongs <- string(p) }
func (e *gwsEnd) OnPing(c *gws.Conn, p []byte)   { c.WritePong(p); e.pings <- string(p) }
func (e *gwsEnd) OnMessage(_ *gws.Conn, m *gws.Message) {
	e.messages <- bytes.Clone(m.Bytes())
	m.Close()
}

// next is what comes from a channel.
func next[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(webPatience):
		t.Fatal("nothing comes")
	}
	return v
}

// wantsClose waits for the close frame of the peer, and returns its reason.
func (e *gwsEnd) wantsClose(t *testing.T, code uint16) string {
	t.Helper()
	err := next(t, e.closed)
	var c *gws.CloseError
	if !errors.As(err, &c) || c.Code != code {
		t.Fatalf("closed by %v, not with %d", err, code)
	}
	return string(c.Reason)
}

// gwsFrame is a frame of version 1.
func gwsFrame(cmd byte, seq uint64, method, body string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(method)+len(body)))
	b = append(b, 0, cmd, 0, byte(len(method)))
	b = binary.LittleEndian.AppendUint64(b, seq)
	return append(append(b, method...), body...)
}

// gwsDial connects gws to a server.
func gwsDial(t *testing.T, e gws.Event, addr net.Addr, deflate gws.PermessageDeflate) *gws.Conn {
	t.Helper()
	c, rsp, err := gws.NewClient(e, &gws.ClientOption{Addr: "ws://" + addr.String(), PermessageDeflate: deflate})
	if err != nil {
		t.Fatal(err)
	}
	if got := rsp.Header.Get("Sec-WebSocket-Extensions"); (got != "") != deflate.Enabled {
		t.Errorf("extensions %q", got)
	}
	t.Cleanup(func() { c.NetConn().Close() })
	go c.ReadLoop()
	return c
}

// gwsServe serves WebSocket by gws; event makes what hears of a connection. It returns the URL.
func gwsServe(t *testing.T, deflate gws.PermessageDeflate, event func() gws.Event) string {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := gws.NewUpgrader(event(), &gws.ServerOption{PermessageDeflate: deflate}).Upgrade(w, r)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { c.NetConn().Close() })
		go c.ReadLoop()
	}))
	t.Cleanup(web.Close)
	return "ws" + strings.TrimPrefix(web.URL, "http")
}

// once is a dialer that does not connect again.
func once(dial func() (net.Conn, error)) func() (net.Conn, error) {
	dialled := false
	return func() (net.Conn, error) {
		if dialled {
			return nil, errors.New("once is enough")
		}
		dialled = true
		return dial()
	}
}

// ourServer starts a server that listens for WebSocket connections.
func ourServer(t *testing.T, adapter arpc.ServerOption, setup func(arpc.Handler), opts ...websocket.Option) (*arpc.Server, net.Addr) {
	t.Helper()
	s := arpc.NewServer(arpc.NewHandler(), adapter)
	webEcho(s.Handler)
	webUpper(s.Handler)
	if setup != nil {
		setup(s.Handler)
	}
	ln, err := websocket.Listen("127.0.0.1:0", opts...)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() { s.Stop(); <-served })
	return s, ln.Addr()
}

// A gwsStream is a connection of gws as a net.Conn.
type gwsStream struct {
	gws.BuiltinEventHandler
	*gws.Conn
	in  *io.PipeReader
	out *io.PipeWriter
}

func newGWSStream() *gwsStream {
	in, out := io.Pipe()
	return &gwsStream{in: in, out: out}
}

func (s *gwsStream) OnMessage(_ *gws.Conn, m *gws.Message) {
	s.out.Write(m.Bytes()) // fails when nobody reads any more
	m.Close()
}

func (s *gwsStream) OnClose(_ *gws.Conn, err error) {
	s.out.CloseWithError(fmt.Errorf("%w: %w", io.EOF, err))
}

func (s *gwsStream) Read(p []byte) (int, error) { return s.in.Read(p) }

func (s *gwsStream) Write(p []byte) (int, error) {
	if err := s.WriteMessage(gws.OpcodeBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *gwsStream) Close() error {
	s.in.Close()
	s.WriteClose(1000, nil)
	return s.NetConn().Close()
}

// Our client on a gws connection, with calls, call-backs and streams of both versions.
func TestGWSDials(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		eachGWS(t, func(t *testing.T, deflate gws.PermessageDeflate, opts []websocket.Option) {
			_, addr := ourServer(t, adapter, nil, opts...)
			for _, version := range gwsVersions(deflate) {
				webCalls(t, webClient(t, func() (net.Conn, error) {
					s := newGWSStream()
					s.Conn = gwsDial(t, s, addr, deflate)
					return s, nil
				}, version))
			}
		})
	})
}

// Our server on gws connections, which our dialer makes.
func TestGWSAccepts(t *testing.T) {
	eachGWS(t, func(t *testing.T, deflate gws.PermessageDeflate, opts []websocket.Option) {
		s := arpc.NewServer(arpc.NewHandler())
		webEcho(s.Handler)
		webUpper(s.Handler)
		ln := &oneListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		t.Cleanup(func() { s.Stop(); <-served })
		url := gwsServe(t, deflate, func() gws.Event { return gwsAccepted{newGWSStream(), ln} })
		for _, version := range gwsVersions(deflate) {
			webCalls(t, webClient(t, websocket.Dialer(url, opts...), version))
		}
	})
}

// gwsAccepted gives a connection to a server when it is open.
type gwsAccepted struct {
	*gwsStream
	ln *oneListener
}

func (a gwsAccepted) OnOpen(c *gws.Conn) {
	a.gwsStream.Conn = c
	a.ln.conns <- a.gwsStream
}

// A program that knows gws and the frames of version 1, and nothing of ours, against our server.
func TestGWSFrames(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		eachGWS(t, func(t *testing.T, deflate gws.PermessageDeflate, opts []websocket.Option) {
			_, addr := ourServer(t, adapter, nil, opts...)
			e := newGWSEnd()
			c := gwsDial(t, e, addr, deflate)
			for i, body := range gwsBodies {
				if err := c.WriteMessage(gws.OpcodeBinary, gwsFrame(arpc.CmdRequest, uint64(i), "/echo", body)); err != nil {
					t.Fatal(err)
				}
				if got := next(t, e.messages); !bytes.Equal(got, gwsFrame(arpc.CmdResponse, uint64(i), "/echo", body)) {
					t.Fatalf("%d bytes: answer of %d bytes", len(body), len(got))
				}
			}
			// In fragments of 128 KiB.
			big := gwsBodies[len(gwsBodies)-1]
			if err := c.WriteFile(gws.OpcodeBinary, bytes.NewReader(gwsFrame(arpc.CmdRequest, 7, "/echo", big))); err != nil {
				t.Fatal(err)
			}
			if got := next(t, e.messages); !bytes.Equal(got, gwsFrame(arpc.CmdResponse, 7, "/echo", big)) {
				t.Fatalf("answer of %d bytes", len(got))
			}
			// One message for each frame, however they come.
			var all []byte
			for i := range uint64(100) {
				all = append(all, gwsFrame(arpc.CmdRequest, i, "/echo", "x")...)
			}
			c.WriteMessage(gws.OpcodeBinary, all)
			for i := range uint64(100) {
				if got := next(t, e.messages); !bytes.Equal(got, gwsFrame(arpc.CmdResponse, i, "/echo", "x")) {
					t.Fatalf("answer %d: %q", i, got)
				}
			}
			// The server calls it back.
			c.WriteMessage(gws.OpcodeBinary, gwsFrame(arpc.CmdRequest, 8, "/back", "y"))
			req := next(t, e.messages)
			if len(req) != 22 || req[5] != arpc.CmdRequest || string(req[16:]) != "/echoy" {
				t.Fatalf("request %q", req)
			}
			req[5] = arpc.CmdResponse
			c.WriteMessage(gws.OpcodeBinary, req)
			if got := next(t, e.messages); !bytes.Equal(got, gwsFrame(arpc.CmdResponse, 8, "/back", "y")) {
				t.Fatalf("answer %q", got)
			}
			for _, p := range []string{"", "ping", strings.Repeat("p", 125)} {
				if err := c.WritePing([]byte(p)); err != nil {
					t.Fatal(err)
				}
				if got := next(t, e.pongs); got != p {
					t.Errorf("pong %q, not %q", got, p)
				}
			}
			c.WriteMessage(gws.OpcodeBinary, gwsFrame(arpc.CmdPing, 0, "", ""))
			if got := next(t, e.messages); !bytes.Equal(got, gwsFrame(arpc.CmdPong, 0, "", "")) {
				t.Errorf("pong %q", got)
			}
		})
	})
}

var gwsBodies = []string{"", "x", strings.Repeat("longer than what is compressed ", 100), strings.Repeat("0123456789abcdef", 1<<16)}

// gwsResponder is a server of version 1 that echoes.
type gwsResponder struct{ *gwsEnd }

func (gwsResponder) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	switch b := bytes.Clone(m.Bytes()); b[5] {
	case arpc.CmdPing:
		c.WriteMessage(gws.OpcodeBinary, gwsFrame(arpc.CmdPong, 0, "", ""))
	case arpc.CmdRequest:
		b[5] = arpc.CmdResponse
		c.WriteMessage(gws.OpcodeBinary, b)
	}
}

// Our client against a program that knows gws and the frames of version 1.
func TestGWSResponds(t *testing.T) {
	eachGWS(t, func(t *testing.T, deflate gws.PermessageDeflate, opts []websocket.Option) {
		e := newGWSEnd()
		c := webClient(t, websocket.Dialer(gwsServe(t, deflate, func() gws.Event { return gwsResponder{e} }), opts...), 2)
		server := next(t, e.conn)
		for _, body := range gwsBodies {
			var r []byte
			if err := c.Call("/echo", []byte(body), &r, webPatience); err != nil || string(r) != body {
				t.Fatalf("%d of %d bytes, %v", len(r), len(body), err)
			}
		}
		for _, p := range []string{"", "ping", strings.Repeat("p", 125)} {
			if err := server.WritePing([]byte(p)); err != nil {
				t.Fatal(err)
			}
			if got := next(t, e.pongs); got != p {
				t.Errorf("pong %q, not %q", got, p)
			}
		}
		c.Stop()
		e.wantsClose(t, 1000)
	})
}

// What our server closes with, as gws sees it.
func TestGWSSeesWhy(t *testing.T) {
	log.SetLevel(log.LevelNone) // the faults below are meant
	t.Cleanup(func() { log.SetLevel(log.LevelInfo) })
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		for _, tt := range []struct {
			name, reason string
			code         uint16
			cause        func(s *arpc.Server, c *gws.Conn)
		}{
			{"Server.Stop", "server stopped", 1001, func(s *arpc.Server, _ *gws.Conn) { go s.Stop() }},
			{"Client.Stop", "", 1000, func(s *arpc.Server, _ *gws.Conn) { s.ForEach(func(c *arpc.Client) { go c.Stop() }) }},
			{"text that is not UTF-8", "", 1007, func(_ *arpc.Server, c *gws.Conn) { c.WriteMessage(gws.OpcodeText, []byte("\xff\xff")) }},
			{"malformed frame", "", 1008, func(_ *arpc.Server, c *gws.Conn) {
				c.WriteMessage(gws.OpcodeBinary, gwsFrame(200, 0, "", ""))
			}},
			{"body above the limit", "", 1009, func(_ *arpc.Server, c *gws.Conn) {
				c.WriteMessage(gws.OpcodeBinary, binary.LittleEndian.AppendUint64(bytes.Repeat([]byte{255}, 8), 1))
			}},
			{"message above the limit", "", 1009, func(_ *arpc.Server, c *gws.Conn) {
				c.WriteMessage(gws.OpcodeBinary, make([]byte, 3<<20))
			}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				s, addr := ourServer(t, adapter, nil, websocket.ReadLimit(2<<20))
				e := newGWSEnd()
				c := gwsDial(t, e, addr, gws.PermessageDeflate{})
				c.WriteMessage(gws.OpcodeBinary, gwsFrame(arpc.CmdRequest, 1, "/echo", "x"))
				next(t, e.messages)
				tt.cause(s, c)
				if reason := e.wantsClose(t, tt.code); !strings.Contains(reason, tt.reason) {
					t.Errorf("reason %q", reason)
				}
			})
		}
	})
}

// The same of our client.
func TestGWSSeesWhyOfClient(t *testing.T) {
	log.SetLevel(log.LevelNone) // the faults below are meant
	t.Cleanup(func() { log.SetLevel(log.LevelInfo) })
	for _, tt := range []struct {
		name    string
		code    uint16
		opcode  gws.Opcode
		message []byte
	}{
		{"text that is not UTF-8", 1007, gws.OpcodeText, []byte("\xff\xff")},
		{"malformed frame", 1008, gws.OpcodeBinary, gwsFrame(200, 0, "", "")},
		{"body above the limit", 1009, gws.OpcodeBinary, binary.LittleEndian.AppendUint64(bytes.Repeat([]byte{255}, 8), 1)},
		{"message above the limit", 1009, gws.OpcodeBinary, make([]byte, 3<<20)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newGWSEnd()
			url := gwsServe(t, gws.PermessageDeflate{}, func() gws.Event { return e })
			webClient(t, once(websocket.Dialer(url, websocket.ReadLimit(2<<20))), 1)
			next(t, e.conn).WriteMessage(tt.opcode, tt.message)
			e.wantsClose(t, tt.code)
		})
	}
}

// What gws closes with, as a handler of our server and a call of our client see it.
func TestGWSSaysWhy(t *testing.T) {
	for _, code := range []uint16{1000, 1001, 1008, 1011, 1012, 3000, 4999} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
				began, cause, gone := make(chan struct{}), make(chan error, 1), make(chan struct{})
				_, addr := ourServer(t, adapter, func(h arpc.Handler) {
					h.Handle("/wait", func(c *arpc.Context) {
						close(began)
						<-c.Done()
						cause <- context.Cause(c)
					}, true)
					h.HandleDisconnected(func(*arpc.Client) { close(gone) })
				})
				c := gwsDial(t, newGWSEnd(), addr, gws.PermessageDeflate{})
				c.WriteMessage(gws.OpcodeBinary, gwsFrame(arpc.CmdRequest, 1, "/wait", ""))
				next(t, began)
				c.WriteClose(code, []byte("as it is late"))
				if err := next(t, cause); !strings.Contains(err.Error(), "as it is late") {
					t.Errorf("the handler ended with %v", err)
				}
				next(t, gone)
			})
			t.Run("client", func(t *testing.T) {
				e := newGWSEnd()
				url := gwsServe(t, gws.PermessageDeflate{}, func() gws.Event { return e })
				c := webClient(t, once(websocket.Dialer(url)), 1)
				server := next(t, e.conn)
				failed := make(chan error, 1)
				go func() { failed <- c.Call("/wait", nil, nil, webPatience) }()
				next(t, e.messages)
				server.WriteClose(code, []byte("as it is late"))
				if err := next(t, failed); !strings.Contains(fmt.Sprint(err), "as it is late") {
					t.Errorf("the call ended with %v", err)
				}
			})
		})
	}
}
