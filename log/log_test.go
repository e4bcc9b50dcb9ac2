package log

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
)

// recorder is a Logger that keeps its lines.
type recorder struct {
	mu    sync.Mutex
	level int
	lines []string
}

func (r *recorder) SetLevel(level int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.level = level
}

func (r *recorder) add(level, format string, v []any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, level+" "+fmt.Sprintf(format, v...))
}

func (r *recorder) Debug(format string, v ...any) { r.add("debug", format, v) }
func (r *recorder) Info(format string, v ...any)  { r.add("info", format, v) }
func (r *recorder) Warn(format string, v ...any)  { r.add("warn", format, v) }
func (r *recorder) Error(format string, v ...any) { r.add("error", format, v) }

// uncomparable is a Logger whose values must not be compared with ==.
type uncomparable struct {
	*recorder
	_ []int
}

// restore puts the package state back at the end of the test.
func restore(t *testing.T) {
	logger, o := DefaultLogger, overridden.Load()
	t.Cleanup(func() {
		DefaultLogger = logger
		overridden.Store(o)
	})
}

func printAll(l Logger) {
	l.Debug("%d", 1)
	l.Info("%d", 2)
	l.Warn("%d", 3)
	l.Error("%d", 4)
}

func TestLevels(t *testing.T) {
	for level, want := range map[int][]string{
		LevelAll:   {"DEBUG 1", "INFO 2", "WARN 3", "ERROR 4"},
		LevelDebug: {"DEBUG 1", "INFO 2", "WARN 3", "ERROR 4"},
		LevelInfo:  {"INFO 2", "WARN 3", "ERROR 4"},
		LevelWarn:  {"WARN 3", "ERROR 4"},
		LevelError: {"ERROR 4"},
		LevelNone:  nil,
		-1:         {"INFO 2", "WARN 3", "ERROR 4"}, // SetLevel not called
	} {
		var out bytes.Buffer
		l := New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		if level >= 0 {
			l.SetLevel(level)
		}
		printAll(l)
		var got []string
		for line := range strings.Lines(out.String()) {
			var when, severity, msg string
			if _, err := fmt.Sscanf(line, "time=%s level=%s msg=%s", &when, &severity, &msg); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			got = append(got, severity+" "+msg)
		}
		if !slices.Equal(got, want) {
			t.Errorf("level %d: printed %q, want %q", level, got, want)
		}
	}
}

func TestHandlerLevelCounts(t *testing.T) {
	var out bytes.Buffer
	l := New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelError}))
	l.SetLevel(LevelAll)
	printAll(l)
	if n := strings.Count(out.String(), "\n"); n != 1 {
		t.Fatalf("%d lines, want 1:\n%s", n, out.String())
	}
}

func TestFormat(t *testing.T) {
	var out bytes.Buffer
	l := New(slog.NewTextHandler(&out, nil))
	l.Info("100%")
	l.Info("%s has %d", "a", 2)
	if s := out.String(); !strings.Contains(s, `msg=100%`) || !strings.Contains(s, `msg="a has 2"`) {
		t.Fatal(s)
	}
}

func TestSetLogger(t *testing.T) {
	restore(t)
	first, second, third := &recorder{}, &recorder{}, &recorder{}

	SetLogger(first)
	Debug("%s", "a")
	SetLevel(LevelWarn)

	DefaultLogger = second // an assignment after SetLogger counts
	Info("%s", "b")

	SetLogger(third) // and SetLogger after an assignment
	Warn("%s", "c")
	Error("%s", "d")

	DefaultLogger = first
	Error("e")

	for i, tt := range []struct {
		r    *recorder
		want []string
	}{
		{first, []string{"debug a", "error e"}},
		{second, []string{"info b"}},
		{third, []string{"warn c", "error d"}},
	} {
		if !slices.Equal(tt.r.lines, tt.want) {
			t.Errorf("logger %d has %q, want %q", i, tt.r.lines, tt.want)
		}
	}
	if first.level != LevelWarn {
		t.Errorf("SetLevel reached the logger as %d", first.level)
	}
}

// A Logger may wrap the one it replaces.
func TestSetLoggerWrapping(t *testing.T) {
	restore(t)
	inner := &recorder{}
	DefaultLogger = inner
	SetLogger(wrapper{DefaultLogger})
	Info("%d", 1)
	if !slices.Equal(inner.lines, []string{"info wrapped 1"}) {
		t.Fatalf("%q", inner.lines)
	}
}

type wrapper struct{ Logger }

func (w wrapper) Info(format string, v ...any) { w.Logger.Info("wrapped "+format, v...) }

func TestSetLoggerUncomparable(t *testing.T) {
	restore(t)
	first, second := uncomparable{recorder: &recorder{}}, uncomparable{recorder: &recorder{}}
	DefaultLogger = first
	SetLogger(second)
	Info("x")
	if len(first.lines) != 0 || len(second.lines) != 1 {
		t.Fatalf("%q, %q", first.lines, second.lines)
	}
}

func TestSetLoggerNil(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("SetLogger accepted nil")
		}
	}()
	SetLogger(nil)
}

// Run under the race detector.
func TestConcurrentUse(t *testing.T) {
	restore(t)
	var wg sync.WaitGroup
	loggers := []Logger{&recorder{}, New(slog.DiscardHandler), &recorder{}}
	for i := range 4 {
		wg.Go(func() {
			for n := range 200 {
				Info("%d", n)
				if n%50 == 0 {
					SetLogger(loggers[(i+n)%len(loggers)])
					SetLevel(LevelDebug)
				}
			}
		})
	}
	wg.Wait()
}

func TestDiscardedLinesDoNotAllocate(t *testing.T) {
	l := New(slog.DiscardHandler)
	if n := testing.AllocsPerRun(100, func() { l.Debug("no arguments") }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
