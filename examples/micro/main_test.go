package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/leak"
)

func TestMain(m *testing.M) {
	beServer()
	leak.Main(m)
}

// TestMicro runs all of it, only shorter.
func TestMicro(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), &out, 5*time.Second)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	text := out.String()
	_, summary, _ := strings.Cut(text, "calls, 0 failed:")
	for _, step := range []string{"kill server a", "drain server b", "add server d", "start server a again"} {
		if !strings.Contains(text, "--- "+step+"\n") {
			t.Errorf("no %q", step)
		}
	}
	for _, name := range []string{" a ", " b ", " c ", " d "} {
		if !strings.Contains(summary, name) {
			t.Errorf("server%shas answered nothing", name)
		}
	}
}

// TestInterrupted ends by Ctrl-C.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := &watched{want: " s ", seen: cancel}
	if err := run(ctx, out, time.Hour); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "stopping\n") || !strings.Contains(text, "calls, 0 failed:") {
		t.Error(text)
	}
}

// TestFailed fails the program if a call has failed.
func TestFailed(t *testing.T) {
	failure := errors.New("nobody is there")
	c := &calls{all: map[string]int{"a": 2}, failed: 1, failure: failure}
	var out bytes.Buffer
	if err := c.summary(&out); !errors.Is(err, failure) || !strings.HasPrefix(out.String(), "3 calls, 1 failed:") {
		t.Error(err, out.String())
	}
}

// watched is a buffer that tells when something was written.
type watched struct {
	bytes.Buffer
	want string
	seen func()
}

func (w *watched) Write(b []byte) (int, error) {
	if strings.Contains(string(b), w.want) {
		w.seen()
	}
	return w.Buffer.Write(b)
}
