package action

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
)

// clients runs a test with a client over each transport.
func clients(t *testing.T, setup func(*Instance), opts []Option, f func(t *testing.T, s *server, dial func(opts ...Option) *Client)) {
	adapters(t, func(t *testing.T, adapter Option) {
		s := serve(t, setup, append(opts, adapter)...)
		ended := func(t *testing.T, c *Client, err error) *Client {
			t.Helper()
			must(t, err)
			t.Cleanup(func() { c.Close(); recv(t, c.Done(), "end of the client") })
			return c
		}
		t.Run("tcp", func(t *testing.T) {
			f(t, s, func(more ...Option) *Client {
				c, err := DialTCP(within(t), s.tcp, append(opts, more...)...)
				return ended(t, c, err)
			})
		})
		t.Run("websocket", func(t *testing.T) {
			f(t, s, func(more ...Option) *Client {
				c, err := DialWebSocket(within(t), s.ws, append(opts, more...)...)
				return ended(t, c, err)
			})
		})
	})
}

func TestClientCalls(t *testing.T) {
	type num struct{ N int }
	clients(t, func(n *Instance) {
		add := StandardHandler(func(_ *Context, r *num) (*num, error) { return &num{r.N + 1}, nil })
		n.Router().Route(1, add).Route(2, add, Unordered())
	}, nil, func(t *testing.T, s *server, dial func(...Option) *Client) {
		c := dial()
		var group sync.WaitGroup
		for g := range 32 {
			group.Go(func() {
				for i := range 50 {
					var r num
					if err := c.Call(within(t), int16(1+(g+i)%2), num{1000*g + i}, &r); err != nil || r.N != 1000*g+i+1 {
						t.Errorf("%v, %v", r, err)
						return
					}
				}
			})
		}
		group.Wait()
		must(t, c.Call(within(t), 1, num{}, nil)) // the reply is ignored
		wantCode(t, c.Call(within(t), 1, num{}, new(string)), arpc.CodeInvalidArgument)
		if len(c.calls) != 0 {
			t.Errorf("%d calls left", len(c.calls))
		}
	})
}

func TestClientProtobuf(t *testing.T) {
	clients(t, func(n *Instance) {
		n.Router().Route(1, StandardHandler(func(_ *Context, r *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
			return wrapperspb.String(strings.ToUpper(r.Value)), nil
		}))
	}, []Option{Codec(codec.Protobuf{})}, func(t *testing.T, s *server, dial func(...Option) *Client) {
		var r wrapperspb.StringValue
		must(t, dial().Call(within(t), 1, wrapperspb.String("hello"), &r))
		if r.Value != "HELLO" {
			t.Errorf("got %q", r.Value)
		}
		err := dial().Call(within(t), 1, "no message", nil)
		if !errors.Is(err, codec.ErrNotProto) {
			t.Error(err)
		}
		wantCode(t, err, arpc.CodeInternal)
	})
}

func TestClientErrors(t *testing.T) {
	entered, release := make(chan struct{}, 1), make(chan struct{})
	clients(t, func(n *Instance) {
		n.Router().Route(1, echo).Route(2, func(*Context) (any, error) { return nil, errors.New("no reply") }).
			Route(3, func(ctx *Context) (any, error) { entered <- struct{}{}; <-release; return nil, nil })
	}, nil, func(t *testing.T, s *server, dial func(...Option) *Client) {
		c := dial()
		short, cancel := context.WithTimeout(within(t), 10*time.Millisecond)
		defer cancel()
		err := c.Call(short, 2, nil, nil)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		wantCode(t, err, arpc.CodeDeadlineExceeded)
		wantCode(t, c.Call(short, 1, nil, nil), arpc.CodeDeadlineExceeded) // not sent
		wantCode(t, dial(Limits{Call: time.Millisecond}).Call(context.Background(), 2, nil, nil), arpc.CodeDeadlineExceeded)
		wantCode(t, c.Call(within(t), 1, strings.Repeat("x", 70_000), nil), arpc.CodeInternal)

		ctx, stop := context.WithCancel(within(t))
		result := make(chan error, 1)
		go func() { result <- c.Call(ctx, 3, nil, nil) }()
		recv(t, entered, "request")
		stop()
		wantCode(t, recv(t, result, "end of the call"), arpc.CodeCanceled)
		release <- struct{}{}
		must(t, c.Call(within(t), 1, struct{}{}, nil)) // the connection goes on

		go func() { result <- c.Call(within(t), 3, nil, nil) }()
		recv(t, entered, "request")
		c.Close()
		wantCode(t, recv(t, result, "end of the call"), arpc.CodeUnavailable)
		release <- struct{}{}
		recv(t, c.Done(), "end of the client")
		wantCode(t, c.Call(within(t), 1, nil, nil), arpc.CodeUnavailable)
		wantCode(t, c.Send(within(t), 1, nil), arpc.CodeUnavailable)
	})
	_, err := DialTCP(within(t), "127.0.0.1:1")
	wantCode(t, err, arpc.CodeUnavailable)
	_, err = DialTCP(within(t), "tulip://x")
	wantCode(t, err, arpc.CodeUnavailable)
	_, err = DialWebSocket(within(t), "ws://127.0.0.1:1/")
	wantCode(t, err, arpc.CodeUnavailable)
}

// The server goes while calls are in flight.
func TestClientLosesServer(t *testing.T) {
	entered := make(chan struct{}, 1)
	s := serve(t, func(n *Instance) {
		n.Router().Route(1, func(ctx *Context) (any, error) { entered <- struct{}{}; <-ctx.Done(); return nil, ctx.Err() })
	}, Limits{Shutdown: time.Millisecond})
	c, err := DialTCP(within(t), s.tcp)
	must(t, err)
	result := make(chan error, 1)
	go func() { result <- c.Call(within(t), 1, nil, nil) }()
	recv(t, entered, "request")
	wantCode(t, s.stop(), arpc.CodeDeadlineExceeded)
	wantCode(t, recv(t, result, "end of the call"), arpc.CodeUnavailable)
	recv(t, c.Done(), "end of the client")
	s.stop = func() error { return nil } // for the cleanup
}

// A server that sends nothing any more is a lost one.
func TestClientHalfClosed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	c, err := DialTCP(within(t), ln.Addr().String())
	must(t, err)
	nc, err := ln.Accept()
	must(t, err)
	defer nc.Close()
	must(t, nc.(*net.TCPConn).CloseWrite())
	wantCode(t, c.Call(within(t), 1, nil, nil), arpc.CodeUnavailable)
	recv(t, c.Done(), "end of the client")
}

// Pushes come in order; who handles one may call, and answers that nobody waits for are pushes.
func TestClientPushes(t *testing.T) {
	opened := make(chan *Connection, 1)
	clients(t, func(n *Instance) {
		n.Router().Route(1, echo)
	}, []Option{OnOpen(func(c *Connection) { opened <- c })}, func(t *testing.T, s *server, dial func(...Option) *Client) {
		got := make(chan string, 100)
		c := dial(OnPush(func(c *Client, p *Packet) {
			if p.Action == 66 {
				panic("in a hook")
			}
			var v any
			if err := p.Bind(&v); err != nil {
				got <- err.Error()
				return
			}
			if p.Action == 50 {
				if err := c.Call(within(t), 1, map[string]any{"called": "back"}, &v); err != nil {
					got <- err.Error()
					return
				}
			}
			got <- fmt.Sprint(p.Action, " ", p.Seq, " ", v)
		}))
		conn := recv(t, opened, "connection")
		for i := range 10 {
			must(t, conn.Send(9, int16(i), i))
		}
		must(t, conn.Send(66, 0, nil))
		must(t, conn.Send(50, -5, nil))
		must(t, conn.Send(9, 10, 10))
		for i := range 12 {
			want := fmt.Sprint("9 ", i, " ", i)
			switch i {
			case 10:
				want = "50 -5 map[called:back]"
			case 11:
				want = "9 10 10"
			}
			if p := recv(t, got, "push"); p != want {
				t.Fatalf("got %s, not %s", p, want)
			}
		}
		must(t, c.Send(within(t), 1, map[string]any{"no": "call"}))
		if p := recv(t, got, "reply"); !strings.HasSuffix(p, "map[no:call]") {
			t.Error(p)
		}
	})
}

// A sequence number is not given to two calls at a time.
func TestClientSequenceNumbers(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, func(n *Instance) {
		n.Router().Route(1, echo, Unordered()).Route(2, func(*Context) (any, error) { <-release; return "old", nil }, Unordered())
	})
	c, err := DialTCP(within(t), s.tcp)
	must(t, err)
	defer func() { c.Close(); recv(t, c.Done(), "end of the client") }()
	replied := make(chan string, 1)
	c.cn.Lock()
	c.seq = 0xfffe
	c.cn.Unlock()
	go func() {
		var r string
		if err := c.Call(within(t), 2, nil, &r); err != nil {
			t.Error(err)
		}
		replied <- r
	}()
	for {
		c.cn.Lock()
		sent := c.calls[0xffff] != nil
		c.seq = 0xfffe
		c.cn.Unlock()
		if sent {
			break
		}
	}
	var r map[string]any
	must(t, c.Call(within(t), 1, map[string]any{"new": "one"}, &r))
	close(release)
	if got := recv(t, replied, "reply"); got != "old" || r["new"] != "one" {
		t.Errorf("got %s and %v", got, r)
	}
	c.cn.Lock()
	for i := range 1 << 16 {
		c.calls[uint16(i)] = &call{result: make(chan result, 1)}
	}
	c.cn.Unlock()
	wantCode(t, c.Call(within(t), 1, nil, nil), arpc.CodeResourceExhausted)
}

func TestTLS(t *testing.T) {
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	cfg := &tls.Config{Certificates: web.TLS.Certificates, RootCAs: web.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"}
	s := serve(t, vectors, TLS(cfg))
	c, err := DialTCP(within(t), s.tcp, TLS(cfg))
	must(t, err)
	w, err := DialWebSocket(within(t), strings.Replace(s.ws, "ws:", "wss:", 1), TLS(cfg))
	must(t, err)
	for _, c := range []*Client{c, w} {
		var r map[string]any
		must(t, c.Call(within(t), 1, map[string]any{"x": "y"}, &r))
		if r["x"] != "y" {
			t.Error(r)
		}
		c.Close()
		recv(t, c.Done(), "end of the client")
	}
	_, err = DialTCP(within(t), s.tcp, TLS(&tls.Config{}))
	wantCode(t, err, arpc.CodeUnavailable)
}
