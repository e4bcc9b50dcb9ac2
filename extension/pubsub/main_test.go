package pubsub

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/leak"
)

// patience bounds every wait for something that must happen; it is not spent when all is well.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(serverVariable) != "" {
		serveAlone()
		return
	}
	leak.Main(m)
}

// serve runs a server until the end of the test.
func serve(t testing.TB, config Config, opts ...arpc.ServerOption) (*Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return serveOn(t, ln, config, opts...), ln.Addr().String()
}

func serveOn(t testing.TB, ln net.Listener, config Config, opts ...arpc.ServerOption) *Server {
	t.Helper()
	s, err := NewServerWith(config, opts...)
	must(t, err)
	result := make(chan error, 1)
	go func() { result <- s.Serve(ln) }()
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := recv(t, result, "return from Serve"); !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve returned %v", err)
		}
	})
	return s
}

func dialer(addr string) func() (net.Conn, error) {
	return func() (net.Conn, error) { return net.DialTimeout("tcp", addr, patience) }
}

// connect makes a client that is stopped at the end of the test.
func connect(t testing.TB, addr string, opts ...arpc.ClientOption) *Client {
	t.Helper()
	c, err := NewClient(dialer(addr), append([]arpc.ClientOption{arpc.Backoff(time.Millisecond, 10*time.Millisecond)}, opts...)...)
	must(t, err)
	t.Cleanup(c.Stop)
	return c
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// waitFor polls for what no event tells.
func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func wantCode(t testing.TB, err error, code arpc.Code) {
	t.Helper()
	if arpc.CodeOf(err) != code {
		t.Helper()
		t.Fatalf("error %v, code %v, not %v", err, arpc.CodeOf(err), code)
	}
}
