package readme

import (
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

func TestRouterMiddleware(t *testing.T) {
	var lines records
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&lines, nil)))
	t.Cleanup(func() { slog.SetDefault(old) })
	server := arpc.NewServer()
	trace := make(chan string, 8)

	handler := server.Handler
	handler.Use(router.Recover())
	handler.Use(router.Logger())
	handler.Use(func(ctx *arpc.Context) { trace <- "before" })
	handler.Handle("/echo", func(ctx *arpc.Context) {
		trace <- "handler"
		ctx.Write("ok")
	})
	handler.Use(func(ctx *arpc.Context) { trace <- "after" })
	handler.Handle("/panic", func(ctx *arpc.Context) { panic("on purpose") })

	client := connect(t, serve(t, server))
	rsp := ""
	if err := client.Call("/echo", "x", &rsp, patience); err != nil || rsp != "ok" {
		t.Fatalf("%q, %v", rsp, err)
	}
	got := []string{recv(t, trace, "step"), recv(t, trace, "step"), recv(t, trace, "step")}
	if !slices.Equal(got, []string{"before", "handler", "after"}) {
		t.Errorf("order: %q", got)
	}
	if err := client.Call("/panic", "x", nil, patience); err == nil || errors.Is(err, arpc.ErrTimeout) {
		t.Errorf("a panic gave %v", err)
	}
	if err := client.Call("/echo", "x", &rsp, patience); err != nil {
		t.Errorf("after the panic: %v", err)
	}
	for _, method := range []string{"/echo", "/panic"} {
		lines.wait(t, "method="+method)
	}
}

// records are the lines that log/slog writes.
type records struct {
	mu   sync.Mutex
	text []string
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text = append(r.text, string(p))
	return len(p), nil
}

// wait waits for a line, which may be written after the answer has come.
func (r *records) wait(t *testing.T, part string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); runtime.Gosched() {
		r.mu.Lock()
		found := slices.ContainsFunc(r.text, func(line string) bool { return strings.Contains(line, part) })
		r.mu.Unlock()
		if found {
			return
		}
	}
	t.Fatalf("no line with %q in %q", part, r.text)
}
