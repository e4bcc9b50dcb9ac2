package coder_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder"
	"github.com/arpc-go/arpc/extension/middleware/coder/internal/codertest"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone) // bad frames are logged; here they are the point
	leak.Main(m)
}

var errRefused = errors.New("refused")

// app sends strings, of which it does not like "bad".
func app() *coder.Appender {
	return coder.NewAppender("app", 3, func(v any) ([]byte, error) {
		s, ok := v.(string)
		if !ok {
			return nil, errRefused
		}
		return []byte(s), nil
	}, func(b []byte) (any, error) {
		if string(b) == "bad" {
			return nil, errRefused
		}
		return string(b), nil
	})
}

// The frame was captured from the original implementation.
func TestGoldenVector(t *testing.T) {
	want, _ := hex.DecodeString("110000000801000202000000000000002f6568656c6c6f61707056414c5545000a")
	m := &arpc.Message{Buffer: codertest.Request("/e", []byte("hello"))}
	m.Set("app", "VALUE")
	original := bytes.Clone(m.Buffer)
	got := app().Encode(nil, m)
	if !bytes.Equal(got.Buffer, want) {
		t.Errorf("encoded\n%x, want\n%x", got.Buffer, want)
	}
	if !bytes.Equal(m.Buffer, original) {
		t.Error("Encode modified the message")
	}
	back := app().Decode(nil, &arpc.Message{Buffer: bytes.Clone(want)})
	if back == nil || !bytes.Equal(back.Buffer, original) {
		t.Fatalf("decoded %v", back)
	}
	if v, _ := back.Get("app"); v != "VALUE" {
		t.Errorf("value %v", v)
	}
}

func TestWithoutValue(t *testing.T) {
	m := &arpc.Message{Buffer: codertest.Request("/e", []byte("hello"))}
	if app().Encode(nil, m) != m || app().Decode(nil, m) != m {
		t.Error("not the same message")
	}
}

func TestEncodeFails(t *testing.T) {
	for _, v := range []any{5, strings.Repeat("x", 65531)} {
		m := &arpc.Message{Buffer: codertest.Request("/e", nil)}
		m.Set("app", v)
		if app().Encode(nil, m) != nil {
			t.Errorf("sent a %T", v)
		}
	}
	m := &arpc.Message{Buffer: codertest.Request("/e", nil)}
	m.Set("app", strings.Repeat("x", 65530))
	if m = app().Encode(nil, m); m == nil || app().Decode(nil, m) == nil {
		t.Error("the longest value was refused")
	}
}

func TestDecodeRefusesBadFrames(t *testing.T) {
	_, addr := codertest.Serve(t, app())
	for name, trailer := range map[string]string{
		"nothing":            "",
		"short":              "\x00\x02",
		"too short a length": "app\x00\x04",
		"too long a length":  "app\x00\x20",
		"another name":       "apqVALUE\x00\x0a",
		"refused":            "appbad\x00\x08",
	} {
		frame := codertest.SetLen(append(codertest.Request("/echo", []byte("hi")), trailer...))
		frame[4] = 1 << 3
		if m := app().Decode(nil, &arpc.Message{Buffer: frame}); m != nil {
			t.Errorf("%s: passed on as %x", name, m.Buffer)
		}
		codertest.Closes(t, addr, frame)
	}
	long := codertest.Request("/echo", nil)
	long[4], long[7] = 1<<3, 200 // a method longer than the frame
	if app().Decode(nil, &arpc.Message{Buffer: long}) != nil {
		t.Error("a malformed header was passed on")
	}
}

func TestNewAppenderPanics(t *testing.T) {
	f, g := func(any) ([]byte, error) { return nil, nil }, func([]byte) (any, error) { return nil, nil }
	for name, make := range map[string]func(){
		"name":      func() { coder.NewAppender("", 0, f, g) },
		"long name": func() { coder.NewAppender(strings.Repeat("x", 201), 0, f, g) },
		"bit":       func() { coder.NewAppender("x", 8, f, g) },
		"functions": func() { coder.NewAppender("x", 0, f, nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			make()
		}()
	}
}

func TestConnection(t *testing.T) {
	values := map[any]any{"app": "VALUE"}
	codertest.BothWays(t, app(), app(), values)
	codertest.OneSided(t, app())

	server, addr := codertest.Serve(t, app())
	seen := make(chan any, 1)
	server.Handler.Handle("/value", func(ctx *arpc.Context) {
		v, _ := ctx.Get("app")
		seen <- v
		ctx.Write(nil)
	})
	client := codertest.Connect(t, addr, codertest.Handler(app()))
	if err := client.Call("/value", nil, nil, codertest.Patience, values); err != nil || <-seen != "VALUE" {
		t.Errorf("the value did not arrive: %v", err)
	}
	if err := client.Call("/value", nil, nil, codertest.Patience, map[any]any{"app": 5}); err == nil {
		t.Error("a value that cannot be sent did not fail the call")
	}
}

func FuzzAppender(f *testing.F) {
	f.Add([]byte("hello"), "VALUE", []byte("app\x00\x05"))
	f.Fuzz(func(t *testing.T, payload []byte, value string, trailer []byte) {
		frame := codertest.SetLen(append(codertest.Request("/e", payload), trailer...))
		frame[4] = 1 << 3
		if m := app().Decode(nil, &arpc.Message{Buffer: frame}); m != nil && (m.BodyLen() != len(m.Buffer)-arpc.HeadLen || m.BodyLen() < 2) {
			t.Fatalf("decoded to %x", m.Buffer)
		}
		m := &arpc.Message{Buffer: codertest.Request("/e", payload)}
		m.Set("app", value)
		if m = app().Encode(nil, m); m == nil {
			return
		}
		m = app().Decode(nil, &arpc.Message{Buffer: m.Buffer})
		if value == "bad" {
			return
		}
		if v, _ := m.Get("app"); v != value || !bytes.Equal(m.Buffer, codertest.Request("/e", payload)) {
			t.Fatalf("value %q, frame %x", v, m.Buffer)
		}
	})
}

func BenchmarkAppender(b *testing.B) {
	a := app()
	m := &arpc.Message{Buffer: codertest.Request("/e", make([]byte, 1000))}
	m.Set("app", "VALUE")
	sent := a.Encode(nil, m)
	b.Run("Encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a.Encode(nil, m)
		}
	})
	b.Run("Decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a.Decode(nil, sent)
		}
	})
}
