package router_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

var typed = arpc.NewMethod[string, string]("/typed")

func TestLogger(t *testing.T) {
	captureLog(t)
	var r records
	both(t, func(t *testing.T, h arpc.Handler) {
		var log *slog.Logger
		r, log = newRecords()
		h.Use(router.Logger(router.LoggerOptions{Log: log}))
		h.Use(router.Recover())
		h.Handle("/ok", func(ctx *arpc.Context) { ctx.Write(nil) })
		h.Handle("/panic", func(ctx *arpc.Context) { panic("on purpose") })
		h.Handle("/later", func(ctx *arpc.Context) {
			ctx.AnswerLater()
			go ctx.Write(nil)
		})
		typed.Handle(h, func(ctx *arpc.Context, s *string) (*string, error) { return nil, arpc.CodeNotFound })
		h.HandleStream("/stream", func(s *arpc.Stream) {
			var text string
			if err := s.Recv(&text); err != nil || text != "hello" {
				s.Reset(&arpc.Error{Code: arpc.CodeDataLoss, Message: "damaged"})
			}
		})
		h.HandleStream("/broken", func(s *arpc.Stream) { s.Reset(&arpc.Error{Code: arpc.CodeDataLoss, Message: "damaged"}) })
	}, func(t *testing.T, c *arpc.Client) {
		peer := c.Conn.LocalAddr().String()
		expect := func(kind, method, code, level string) {
			t.Helper()
			line := recv(t, r, "line for "+method)
			if line["kind"] != kind || line["method"] != method || line["code"] != code || line["level"] != level || line["peer"] != peer {
				t.Errorf("got %q, want %s %s %s %s of %s", line, kind, method, code, level, peer)
			}
			if d, err := time.ParseDuration(line["duration"]); err != nil || d < 0 || d > patience {
				t.Errorf("duration in %q", line)
			}
			if (code == "ok") != (line["error"] == "") {
				t.Errorf("error in %q", line)
			}
		}
		call := func(method string) { c.Call(method, "x", nil, patience) } //nolint:errcheck // the log tells
		call("/ok")
		expect("call", "/ok", "ok", "INFO")
		call("/panic")
		expect("call", "/panic", "internal", "WARN")
		call("/typed")
		expect("call", "/typed", "not_found", "WARN")
		call("/later")
		expect("call", "/later", "ok", "INFO")
		for _, method := range []string{"/ok", "/panic", "/typed"} {
			if err := c.Notify(method, "x", patience); err != nil {
				t.Error(err)
			}
		}
		expect("notify", "/ok", "ok", "INFO")
		expect("notify", "/panic", "internal", "WARN")
		expect("notify", "/typed", "not_found", "WARN")
		if err := stream(t, wait(t), c, "/stream"); err == nil {
			t.Error("no end")
		}
		expect("stream", "/stream", "ok", "INFO")
		isFailed(t, stream(t, wait(t), c, "/broken"), arpc.CodeDataLoss)
		expect("stream", "/broken", "data_loss", "WARN")
	})
}

// A handler that panics without Recover is in the log too.
func TestLoggerOfPanic(t *testing.T) {
	captureLog(t)
	r, log := newRecords()
	h := arpc.NewHandler()
	h.Use(router.Logger(router.LoggerOptions{Log: log}))
	h.Handle("/panic", func(ctx *arpc.Context) { panic("on purpose") })
	c := start(t, h)
	isFailed(t, c.Call("/panic", nil, nil, patience), arpc.CodeInternal)
	if line := recv(t, r, "line"); line["code"] != "internal" {
		t.Errorf("%q", line)
	}
}

func TestLoggerSampling(t *testing.T) {
	r, log := newRecords()
	h := arpc.NewHandler()
	h.Use(router.Logger(router.LoggerOptions{Log: log, Every: 10}))
	h.Handle("/ok", func(ctx *arpc.Context) { ctx.Write(nil) })
	h.Handle("/bad", func(ctx *arpc.Context) { ctx.Write(arpc.CodeAborted) })
	c := start(t, h)
	for i := range 100 {
		if err := c.Call("/ok", nil, nil, patience); err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 {
			isFailed(t, c.Call("/bad", nil, nil, patience), arpc.CodeAborted)
		}
	}
	c.Call("/bad", nil, nil, patience) //nolint:errcheck // handlers run in order: all before have returned
	got := map[string]int{}
	for got["aborted"] < 6 {
		got[recv(t, r, "line")["code"]]++
	}
	if got["ok"] != 10 {
		t.Errorf("%v, want 10 of the 100 that succeeded and all errors", got)
	}
}

// At most PerSecond lines, and the gap is told. The first burst is of that many
// lines, so 1000 calls in less than a second give at most two bursts.
func TestLoggerPerSecond(t *testing.T) {
	r, log := newRecords()
	h := arpc.NewHandler()
	h.Use(router.Logger(router.LoggerOptions{Log: log, PerSecond: 2}))
	h.Handle("/bad", func(ctx *arpc.Context) { ctx.Write(arpc.CodeAborted) })
	c := start(t, h)
	begin := time.Now()
	for range 1000 {
		c.Call("/bad", nil, nil, patience) //nolint:errcheck // the log tells
	}
	most := 2 + int(2*time.Since(begin).Seconds()+1)
	if n := len(r); n < 1 || n > most {
		t.Errorf("%d lines, want at most %d", n, most)
	}
}

// What comes from the peer stays within its line and is cut.
func TestLoggerHostileText(t *testing.T) {
	var out bytes.Buffer
	h := arpc.NewHandler()
	h.Use(router.Logger(router.LoggerOptions{Log: slog.New(slog.NewTextHandler(&out, nil))}))
	h.HandleNotFound(func(ctx *arpc.Context) { ctx.Error("no such thing: " + string(ctx.Body())) })
	ln, dialer := listen(t)
	server := arpc.NewServer(h)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	c := dial(t, dialer, arpc.NewHandler())
	body := "x\nlevel=INFO msg=forged " + strings.Repeat("é", 1<<16)
	if err := c.Call("/a\nlevel=INFO msg=forged", body, nil, patience); err == nil {
		t.Error("no error")
	}
	c.Stop()
	server.Stop() //nolint:errcheck // as below
	if err := <-served; !errors.Is(err, arpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if n := bytes.Count(out.Bytes(), []byte("\n")); n != 1 || out.Len() > 1500 {
		t.Errorf("%d lines, %d bytes: %s", n, out.Len(), out.String())
	}
}

func TestLoggerDefault(t *testing.T) {
	r, log := newRecords()
	h := arpc.NewHandler()
	h.Use(router.Logger())
	h.Handle("/ok", func(ctx *arpc.Context) { ctx.Write(nil) })
	c := start(t, h)
	old := slog.Default()
	slog.SetDefault(log)
	defer slog.SetDefault(old)
	if err := c.Call("/ok", nil, nil, patience); err != nil {
		t.Error(err)
	}
	for recv(t, r, "line")["method"] != "/ok" {
	}
}
