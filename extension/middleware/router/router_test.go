package router_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) { leak.Main(m) }

// lines is a Logger that hands its lines to a channel.
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
	deadline := time.After(patience)
next:
	for {
		select {
		case line := <-l:
			for _, part := range parts {
				if !strings.Contains(line, part) {
					continue next
				}
			}
			return line
		case <-deadline:
			t.Fatalf("no line with %q", parts)
		}
	}
}

func captureLog(t *testing.T) lines {
	l := make(lines, 256)
	log.SetLogger(l)
	t.Cleanup(func() { log.SetLogger(log.DefaultLogger) })
	return l
}

// start returns a client of a new server with the given handler.
func start(t *testing.T, h arpc.Handler) *arpc.Client {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := arpc.NewServer()
	server.Handler = h
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
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Stop)
	return client
}

func TestRecover(t *testing.T) {
	l := captureLog(t)
	h := arpc.NewHandler()
	h.Use(router.Recover())
	ran := make(chan string, 8)
	h.Handle("/panic", func(ctx *arpc.Context) { panic("the secret reason") })
	h.Handle("/error", func(ctx *arpc.Context) { panic(errors.New("the secret reason")) })
	h.Handle("/answered", func(ctx *arpc.Context) {
		ctx.Write("answered")
		panic("the secret reason")
	})
	h.Handle("/ok", func(ctx *arpc.Context) { ctx.Write("ok") })
	h.Use(func(ctx *arpc.Context) { ran <- ctx.Message.Method() })
	client := start(t, h)

	for _, method := range []string{"/panic", "/error"} {
		err := client.Call(method, nil, nil, patience)
		var e *arpc.Error
		if !errors.As(err, &e) || e.Code != arpc.CodeInternal || !e.Remote {
			t.Errorf("%s: %#v", method, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the caller was told %q", method, err)
		}
		line := l.next(t, "error ", method, "the secret reason")
		if !strings.Contains(line, "router_test.go") {
			t.Errorf("%s: no stack in the log:\n%s", method, line)
		}
	}
	rsp := ""
	if err := client.Call("/answered", nil, &rsp, patience); err != nil || rsp != "answered" {
		t.Errorf("a handler that answered and panicked: %q, %v", rsp, err)
	}
	l.next(t, "error ", "/answered")
	if err := client.Notify("/panic", nil, patience); err != nil {
		t.Error(err)
	}
	l.next(t, "error ", "/panic")
	if err := client.Call("/ok", nil, &rsp, patience); err != nil || rsp != "ok" {
		t.Errorf("after the panics: %q, %v", rsp, err)
	}
	// Only the chain that did not panic went on.
	select {
	case method := <-ran:
		if method != "/ok" {
			t.Errorf("the chain of %s went on after its panic", method)
		}
	case <-time.After(patience):
		t.Error("the chain of /ok ended early")
	}
}

func TestLogger(t *testing.T) {
	l := captureLog(t)
	h := arpc.NewHandler()
	h.Use(router.Logger())
	h.Use(router.Recover())
	h.Handle("/call", func(ctx *arpc.Context) { ctx.Write(nil) })
	h.Handle("/panic", func(ctx *arpc.Context) { panic("on purpose") })
	client := start(t, h)
	peer := client.Conn.LocalAddr().String()

	if err := client.Call("/call", nil, nil, patience); err != nil {
		t.Error(err)
	}
	line := l.next(t, "info ", `call "/call"`, peer)
	fields := strings.Fields(line)
	if d, err := time.ParseDuration(fields[len(fields)-1]); err != nil || d < 0 || d > patience {
		t.Errorf("duration in %q", line)
	}
	if err := client.Notify("/call", nil, patience); err != nil {
		t.Error(err)
	}
	l.next(t, "info ", `notify "/call"`, peer)
	if err := client.Call("/panic", nil, nil, patience); err == nil {
		t.Error("no error from a panicking handler")
	}
	l.next(t, "info ", `call "/panic"`, peer)
}
