package router_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

func TestRecover(t *testing.T) {
	l := captureLog(t)
	var ran chan string
	both(t, func(t *testing.T, h arpc.Handler) {
		ran = make(chan string, 8)
		h.Use(router.Recover())
		h.Handle("/panic", func(ctx *arpc.Context) { panic("the secret reason") })
		h.Handle("/error", func(ctx *arpc.Context) { panic(errors.New("the secret reason")) })
		h.Handle("/answered", func(ctx *arpc.Context) {
			ctx.Write("answered")
			panic("the secret reason")
		})
		h.Handle("/ok", func(ctx *arpc.Context) { ctx.Write("ok") })
		h.HandleStream("/stream", func(s *arpc.Stream) { panic("the secret reason") })
		h.Use(func(ctx *arpc.Context) { ran <- ctx.Message.Method() })
	}, func(t *testing.T, c *arpc.Client) {
		for _, method := range []string{"/panic", "/error", "/stream"} {
			var err error
			if method == "/stream" {
				err = stream(t, wait(t), c, method)
			} else {
				err = c.Call(method, nil, nil, patience)
			}
			isFailed(t, err, arpc.CodeInternal)
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: the caller was told %q", method, err)
			}
			line := l.next(t, "error ", method, "the secret reason")
			if !strings.Contains(line, "recover_test.go") {
				t.Errorf("%s: no stack in the log:\n%s", method, line)
			}
		}
		rsp := ""
		if err := c.Call("/answered", nil, &rsp, patience); err != nil || rsp != "answered" {
			t.Errorf("a handler that answered and panicked: %q, %v", rsp, err)
		}
		l.next(t, "error ", "/answered")
		if err := c.Notify("/panic", nil, patience); err != nil {
			t.Error(err)
		}
		l.next(t, "error ", "/panic")
		if err := c.Call("/ok", nil, &rsp, patience); err != nil || rsp != "ok" {
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
	})
}

func TestRecoverLog(t *testing.T) {
	r, log := newRecords()
	h := arpc.NewHandler()
	h.Use(router.Recover(router.RecoverOptions{Log: log}))
	h.Handle("/panic", func(ctx *arpc.Context) {
		ctx.Write(ctx.Body()[100])
	})
	c := start(t, h)
	isFailed(t, c.Call("/panic", "x\x00\n", nil, patience), arpc.CodeInternal)
	line := recv(t, r, "line")
	if line["level"] != "ERROR" || line["method"] != "/panic" || line["kind"] != "call" || !strings.Contains(line["panic"], "out of range") ||
		line["stack"] == "" || line["peer"] != c.Conn.LocalAddr().String() {
		t.Errorf("%q", line)
	}
}
