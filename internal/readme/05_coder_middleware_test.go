package readme

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/gzip"
)

func TestCoderMiddleware(t *testing.T) {
	server := arpc.NewServer()
	server.Handler.UseCoder(gzip.New())
	server.Handler.Handle("/echo", func(ctx *arpc.Context) {
		str := ""
		if err := ctx.Bind(&str); err == nil {
			ctx.Write(str)
		}
	})
	addr := serve(t, server)

	var sent, received atomic.Int64
	client, err := arpc.NewClient(func() (net.Conn, error) {
		conn, err := net.Dial("tcp", addr)
		return &countingConn{Conn: conn, sent: &sent, received: &received}, err
	})
	must(t, err)
	t.Cleanup(client.Stop)
	handler := client.Handler
	handler.UseCoder(gzip.New())

	text := strings.Repeat("compressible ", 10000)
	for _, req := range []string{"short", text} {
		rsp := ""
		if err := client.Call("/echo", req, &rsp, patience); err != nil || rsp != req {
			t.Fatalf("echo of %d bytes: %d bytes, %v", len(req), len(rsp), err)
		}
	}
	if s, r := sent.Load(), received.Load(); s > int64(len(text)/10) || r > int64(len(text)/10) {
		t.Errorf("%d bytes sent and %d received for a text of %d", s, r, len(text))
	}
}

// countingConn counts the bytes of a connection.
type countingConn struct {
	net.Conn
	sent, received *atomic.Int64
}

func (c *countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	return n, err
}

func (c *countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

func TestCoderMiddlewareOfPackage(t *testing.T) {
	freshDefault(t)
	handler := arpc.DefaultHandler
	handler.UseCoder(gzip.New())
	handler.Handle("/echo", func(ctx *arpc.Context) {
		str := ""
		if err := ctx.Bind(&str); err == nil {
			ctx.Write(str)
		}
	})
	addr := serve(t, arpc.NewServer())

	var sent, received atomic.Int64
	client, err := arpc.NewClient(func() (net.Conn, error) {
		conn, err := net.Dial("tcp", addr)
		return &countingConn{Conn: conn, sent: &sent, received: &received}, err
	})
	must(t, err)
	t.Cleanup(client.Stop)
	text, rsp := strings.Repeat("compressible ", 10000), ""
	if err := client.Call("/echo", text, &rsp, patience); err != nil || rsp != text {
		t.Fatalf("echo of %d bytes: %d bytes, %v", len(text), len(rsp), err)
	}
	if s, r := sent.Load(), received.Load(); s > int64(len(text)/10) || r > int64(len(text)/10) {
		t.Errorf("%d bytes sent and %d received for a text of %d", s, r, len(text))
	}
}
