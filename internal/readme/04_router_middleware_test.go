package readme

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

func TestRouterMiddleware(t *testing.T) {
	lines := captureLog(t)
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
	for _, method := range []string{"/echo", "/panic", "/echo"} {
		for {
			line := recv(t, lines, "line of Logger for "+method)
			if strings.Contains(line, method) && strings.Contains(line, " took ") {
				break
			}
		}
	}
}
