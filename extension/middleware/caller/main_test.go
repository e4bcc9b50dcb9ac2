package caller

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone)
	leak.Main(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// serve runs a server on TCP and returns a dialer for it.
func serve(t testing.TB, h arpc.Handler, opts ...arpc.ServerOption) (*arpc.Server, func() (net.Conn, error)) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := arpc.NewServer(append([]arpc.ServerOption{h}, opts...)...)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop() //nolint:errcheck // the next line sees it
		if err := recv(t, done, "end of Serve"); !errors.Is(err, arpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	addr := ln.Addr().String()
	return s, func() (net.Conn, error) { return net.DialTimeout("tcp", addr, patience) }
}

func dial(t testing.TB, dialer func() (net.Conn, error), opts ...arpc.ClientOption) *arpc.Client {
	t.Helper()
	c, err := arpc.NewClient(dialer, append([]arpc.ClientOption{arpc.NewHandler()}, opts...)...)
	must(t, err)
	t.Cleanup(c.Stop)
	return c
}

// bothWays runs a test with a client that calls a server and with a server that calls its client. h is who is called.
func bothWays(t *testing.T, test func(t *testing.T, c *arpc.Client, h arpc.Handler)) {
	t.Run("client", func(t *testing.T) {
		h := arpc.NewHandler()
		_, dialer := serve(t, h)
		test(t, dial(t, dialer), h)
	})
	t.Run("server", func(t *testing.T) {
		accepted := make(chan *arpc.Client, 1)
		of := arpc.NewHandler()
		of.HandleConnected(func(c *arpc.Client) { accepted <- c })
		_, dialer := serve(t, of)
		h := arpc.NewHandler()
		dial(t, dialer, h)
		test(t, recv(t, accepted, "connection"), h)
	})
}

// A fake is a Caller with functions; those that are nil are not called.
type fake struct {
	arpc.Caller
	call   func(ctx context.Context, rsp any) error
	notify func(ctx context.Context) error
	open   func(ctx context.Context) (*arpc.Stream, error)
}

func (f *fake) CallWith(ctx context.Context, _ string, _, rsp any, _ ...map[any]any) error {
	return f.call(ctx, rsp)
}

func (f *fake) NotifyWith(ctx context.Context, _ string, _ any, _ ...map[any]any) error {
	return f.notify(ctx)
}

func (f *fake) OpenStream(ctx context.Context, _ string) (*arpc.Stream, error) { return f.open(ctx) }

// A count counts the attempts that go through it.
type count struct {
	arpc.Caller
	n chan struct{} // as full as there were attempts
}

func counted(c arpc.Caller) *count { return &count{c, make(chan struct{}, 1<<16)} }

func (c *count) CallWith(ctx context.Context, method string, req, rsp any, values ...map[any]any) error {
	c.n <- struct{}{}
	return c.Caller.CallWith(ctx, method, req, rsp, values...)
}

func (c *count) CallAsync(method string, req any, callback func(*arpc.Context), timeout time.Duration, values ...map[any]any) error {
	c.n <- struct{}{}
	return c.Caller.CallAsync(method, req, callback, timeout, values...)
}

func (c *count) NotifyWith(ctx context.Context, method string, data any, values ...map[any]any) error {
	c.n <- struct{}{}
	return c.Caller.NotifyWith(ctx, method, data, values...)
}

func (c *count) OpenStream(ctx context.Context, method string) (*arpc.Stream, error) {
	c.n <- struct{}{}
	return c.Caller.OpenStream(ctx, method)
}

var (
	unavailable = &arpc.Error{Code: arpc.CodeUnavailable, Message: "not now", Remote: true}
	busy        = &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "busy", Remote: true}
)

// later is busy with a push-back.
func later(d time.Duration) error {
	return &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "busy", Remote: true, Details: []arpc.Detail{arpc.RetryAfter(d)}}
}
