package router_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) { leak.Main(m) }

// listen returns a listener and a dialer for it.
func listen(t testing.TB) (net.Listener, func() (net.Conn, error)) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln, func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }
}

func serve(t testing.TB, ln net.Listener, h arpc.Handler) {
	t.Helper()
	server := arpc.NewServer(h)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve: %v", err)
		}
	})
}

func dial(t testing.TB, dialer func() (net.Conn, error), opts ...arpc.ClientOption) *arpc.Client {
	t.Helper()
	client, err := arpc.NewClient(dialer, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Stop)
	return client
}

// start returns a client of a new server with the given handler.
func start(t testing.TB, h arpc.Handler, opts ...arpc.ClientOption) *arpc.Client {
	t.Helper()
	ln, dialer := listen(t)
	serve(t, ln, h)
	return dial(t, dialer, append(opts, arpc.NewHandler())...)
}

// startClient returns what a new server has of a client with the given handler.
func startClient(t testing.TB, h arpc.Handler) *arpc.Client {
	t.Helper()
	ln, dialer := listen(t)
	connected := make(chan *arpc.Client, 1)
	hs := arpc.NewHandler()
	hs.Handle("/hello", func(ctx *arpc.Context) {
		ctx.Write(nil)
		connected <- ctx.Client
	})
	serve(t, ln, hs)
	client := dial(t, dialer, h)
	if err := client.Call("/hello", nil, nil, patience); err != nil {
		t.Fatal(err)
	}
	return <-connected
}

// both runs f for a server that handles, and for a client that does. install
// makes the handler; c calls the end that has it.
func both(t *testing.T, install func(t *testing.T, h arpc.Handler), f func(t *testing.T, c *arpc.Client)) {
	for _, side := range []struct {
		name  string
		start func(testing.TB, arpc.Handler) *arpc.Client
	}{
		{"server", func(t testing.TB, h arpc.Handler) *arpc.Client { return start(t, h) }},
		{"client", startClient},
	} {
		t.Run(side.name+" handles", func(t *testing.T) {
			h := arpc.NewHandler()
			install(t, h)
			f(t, side.start(t, h))
		})
	}
}

func wait(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// recv receives from a channel.
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

// stream opens a stream, sends a message and returns how the stream ends.
func stream(t testing.TB, ctx context.Context, c *arpc.Client, method string) error {
	t.Helper()
	s, err := c.OpenStream(ctx, method)
	if err != nil {
		return err
	}
	s.Send("hello") //nolint:errcheck // Recv says why
	if err = s.RecvWith(wait(t), nil); err != io.EOF {
		s.Reset(nil)
	}
	return err
}

// isRefused checks that an error is the peer's refusal with that code.
func isRefused(t testing.TB, err error, code arpc.Code) {
	t.Helper()
	var e *arpc.Error
	if !errors.As(err, &e) || !e.Remote || e.Code != code || !arpc.IsRefused(err) {
		t.Errorf("got %#v, want a refusal with %v", err, code)
	}
}

// isFailed checks that an error is the peer's with that code, and no refusal.
func isFailed(t testing.TB, err error, code arpc.Code) {
	t.Helper()
	var e *arpc.Error
	if !errors.As(err, &e) || !e.Remote || e.Code != code || arpc.IsRefused(err) {
		t.Errorf("got %#v, want %v and no refusal", err, code)
	}
}

// A record is a line of a slog.Logger.
type record map[string]string

// records is a slog.Handler that keeps lines.
type records chan record

func (r records) Enabled(context.Context, slog.Level) bool { return true }
func (r records) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r records) WithGroup(string) slog.Handler            { return r }
func (r records) Handle(_ context.Context, rec slog.Record) error {
	line := record{"level": rec.Level.String(), "msg": rec.Message}
	rec.Attrs(func(a slog.Attr) bool {
		line[a.Key] = a.Value.String()
		return true
	})
	select {
	case r <- line:
	default:
	}
	return nil
}

func newRecords() (records, *slog.Logger) {
	r := make(records, 4096)
	return r, slog.New(r)
}

// lines is a log.Logger that hands its lines to a channel.
type lines chan string

func (l lines) SetLevel(int) {}

func (l lines) print(level, format string, v []any) {
	select {
	case l <- level + " " + fmt.Sprintf(format, v...):
	default:
	}
}

func (l lines) Debug(format string, v ...any) { l.print("debug", format, v) }
func (l lines) Info(format string, v ...any)  { l.print("info", format, v) }
func (l lines) Warn(format string, v ...any)  { l.print("warn", format, v) }
func (l lines) Error(format string, v ...any) { l.print("error", format, v) }

// next waits for a line that holds all the parts, and skips others.
func (l lines) next(t *testing.T, parts ...string) string {
	t.Helper()
next:
	for {
		line := recv(t, l, fmt.Sprintf("line with %q", parts))
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue next
			}
		}
		return line
	}
}

func captureLog(t *testing.T) lines {
	l := make(lines, 256)
	log.SetLogger(l)
	t.Cleanup(func() { log.SetLogger(log.DefaultLogger) })
	return l
}
