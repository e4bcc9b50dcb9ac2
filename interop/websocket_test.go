package interop

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	ws "github.com/coder/websocket"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/websocket"
)

const webPatience = 60 * time.Second

// webEcho echoes, and calls the client back.
func webEcho(h arpc.Handler) {
	h.Handle("/echo", func(c *arpc.Context) { c.Write(c.Body()) })
	h.Handle("/back", func(c *arpc.Context) {
		var r []byte
		if err := c.Client.CallWith(c, "/echo", c.Body(), &r); err != nil {
			c.Error(err)
			return
		}
		c.Write(r)
	})
}

// webCalls makes 1,000 calls in both directions, and some of a MiB.
func webCalls(t *testing.T, c *arpc.Client) {
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for j := range 100 {
				route := []string{"/echo", "/back"}[j%2]
				want := fmt.Sprintf("%d of %d%s", j, i, strings.Repeat("x", 10*j))
				var r string
				if err := c.Call(route, want, &r, webPatience); err != nil || r != want {
					t.Errorf("%s: %d of %d bytes, %v", route, len(r), len(want), err)
					return
				}
			}
		})
	}
	wg.Wait()
	big := bytes.Repeat([]byte("arpc"), 1<<18)
	for _, route := range []string{"/echo", "/back"} {
		var r []byte
		if err := c.Call(route, big, &r, webPatience); err != nil || !bytes.Equal(r, big) {
			t.Errorf("%s: %d of %d bytes, %v", route, len(r), len(big), err)
		}
	}
	st := c.NewStream("/upper")
	for _, m := range []string{"a", strings.Repeat("b", 100_000)} {
		var r string
		if err := st.Send(m); err != nil {
			t.Fatal(err)
		}
		if err := st.Recv(&r); err != nil || r != strings.ToUpper(m) {
			t.Errorf("stream: %d of %d bytes, %v", len(r), len(m), err)
		}
	}
	st.CloseSend()
}

func webUpper(h arpc.Handler) {
	h.HandleStream("/upper", func(st *arpc.Stream) {
		for m, err := range st.All() {
			if err != nil || st.Send(bytes.ToUpper(m)) != nil {
				return
			}
		}
	})
}

// webClient is a client of ours on a connection of somebody's.
func webClient(t *testing.T, dial func() (net.Conn, error), version int) *arpc.Client {
	h := arpc.NewHandler()
	webEcho(h)
	c, err := arpc.NewClient(dial, h, arpc.Protocol(version))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

// eachWeb runs a test in both versions, and with compression.
func eachWeb(t *testing.T, f func(t *testing.T, compressed bool, version int)) {
	t.Run("v1", func(t *testing.T) { f(t, false, 1) })
	t.Run("v2", func(t *testing.T) { f(t, false, 2) })
	t.Run("compressed", func(t *testing.T) { f(t, true, 2) })
}

// The WebSocket of another library dials our server.
func TestOtherWebSocketDials(t *testing.T) {
	for _, std := range []int{-1, 0} {
		t.Run(fmt.Sprint("StdConns ", std), func(t *testing.T) {
			eachWeb(t, func(t *testing.T, compressed bool, version int) {
				s := arpc.NewServer(arpc.NewHandler(), arpc.StdConns(std))
				webEcho(s.Handler)
				webUpper(s.Handler)
				var opts []websocket.Option
				mode := ws.CompressionDisabled
				if compressed {
					opts = append(opts, websocket.Compression(100))
					mode = ws.CompressionNoContextTakeover
				}
				ln, err := websocket.Listen("127.0.0.1:0", opts...)
				if err != nil {
					t.Fatal(err)
				}
				served := make(chan error, 1)
				go func() { served <- s.Serve(ln) }()
				t.Cleanup(func() { s.Stop(); <-served })
				webCalls(t, webClient(t, func() (net.Conn, error) {
					ctx, cancel := context.WithTimeout(context.Background(), webPatience)
					defer cancel()
					conn, rsp, err := ws.Dial(ctx, "ws://"+ln.Addr().String(), &ws.DialOptions{CompressionMode: mode, CompressionThreshold: 100})
					if err != nil {
						return nil, err
					}
					if got := rsp.Header.Get("Sec-WebSocket-Extensions"); (got != "") != compressed {
						t.Errorf("extensions %q", got)
					}
					conn.SetReadLimit(-1)
					return ws.NetConn(context.Background(), conn, ws.MessageBinary), nil
				}, version))
			})
		})
	}
}

// oneListener gives a server the connections of an http.Handler.
type oneListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *oneListener) Addr() net.Addr { return &net.TCPAddr{} }

// We dial a server with the WebSocket of another library.
func TestOtherWebSocketAccepts(t *testing.T) {
	eachWeb(t, func(t *testing.T, compressed bool, version int) {
		s := arpc.NewServer(arpc.NewHandler())
		webEcho(s.Handler)
		webUpper(s.Handler)
		mode := ws.CompressionDisabled
		var opts []websocket.Option
		if compressed {
			opts = append(opts, websocket.Compression(100))
			mode = ws.CompressionNoContextTakeover
		}
		ln := &oneListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, err := ws.Accept(w, r, &ws.AcceptOptions{CompressionMode: mode, CompressionThreshold: 100})
			if err != nil {
				t.Error(err)
				return
			}
			if got := w.Header().Get("Sec-WebSocket-Extensions"); (got != "") != compressed {
				t.Errorf("extensions %q", got)
			}
			conn.SetReadLimit(-1)
			ln.conns <- ws.NetConn(context.Background(), conn, ws.MessageBinary)
		}))
		t.Cleanup(web.Close)
		t.Cleanup(func() { s.Stop(); <-served })
		webCalls(t, webClient(t, websocket.Dialer("ws"+strings.TrimPrefix(web.URL, "http"), opts...), version))
	})
}
