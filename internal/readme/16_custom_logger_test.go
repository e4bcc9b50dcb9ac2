package readme

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/log"
)

// captured is a Logger that hands its lines to a channel.
type captured struct{ lines chan string }

func (c *captured) SetLevel(int) {}

func (c *captured) print(level, format string, v []any) {
	send(c.lines, level+" "+fmt.Sprintf(format, v...))
}

func (c *captured) Debug(format string, v ...any) { c.print("debug", format, v) }
func (c *captured) Info(format string, v ...any)  { c.print("info", format, v) }
func (c *captured) Warn(format string, v ...any)  { c.print("warn", format, v) }
func (c *captured) Error(format string, v ...any) { c.print("error", format, v) }

// assigned is a Logger that counts its lines.
type assigned struct{ lines atomic.Int64 }

func (a *assigned) SetLevel(int)         {}
func (a *assigned) Debug(string, ...any) { a.lines.Add(1) }
func (a *assigned) Info(string, ...any)  { a.lines.Add(1) }
func (a *assigned) Warn(string, ...any)  { a.lines.Add(1) }
func (a *assigned) Error(string, ...any) { a.lines.Add(1) }

var counter assigned

// The variable is for the start of a program, as here.
func init() {
	var logger arpc.Logger = &counter
	log.DefaultLogger = logger
}

func TestCustomLoggerAssigned(t *testing.T) {
	before := counter.lines.Load()
	log.Info("%d", 1)
	if counter.lines.Load() == before {
		t.Fatal("the assigned logger is not used")
	}
}

func TestCustomLoggerSet(t *testing.T) {
	c := &captured{lines: make(chan string, 256)}
	t.Cleanup(func() { log.SetLogger(log.DefaultLogger) })

	var logger arpc.Logger = c
	log.SetLogger(logger)

	log.Warn("number %d", 1)
	if line := recv(t, c.lines, "line"); !strings.HasSuffix(line, "number 1") {
		t.Fatal(line)
	}
	// What arpc itself has to say goes the same way: an unhandled panic.
	svr := arpc.NewServer()
	svr.Handler.Handle("/panic", func(ctx *arpc.Context) { panic("on purpose") })
	client := connect(t, serve(t, svr))
	if err := client.Call("/panic", nil, nil, patience); err == nil {
		t.Error("no error from a panicking handler")
	}
	for !strings.Contains(recv(t, c.lines, "line about the panic"), "on purpose") {
	}
}
