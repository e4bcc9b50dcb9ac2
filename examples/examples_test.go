// Package examples builds and runs the programs below this directory.
package examples

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	// What the programs are made of, for the cache of test results; see start.
	_ "github.com/arpc-go/arpc"
)

// patience bounds every wait for something that must happen.
const patience = time.Minute

// programs is where TestMain builds the examples.
var programs string

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (code int, err error) {
	programs, err = os.MkdirTemp("", "arpc-examples")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(programs)
	for _, name := range []string{"quickstart", "echo/server", "echo/client", "broadcast/server", "broadcast/client", "protobuf"} {
		out, err := exec.Command("go", "build", "-o", program(name), "./"+name).CombinedOutput()
		if err != nil {
			return 1, fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
	}
	return m.Run(), nil
}

func program(name string) string {
	return filepath.Join(programs, strings.ReplaceAll(name, "/", "-")+".exe")
}

// process is a running example.
type process struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   chan string // lines; closed at the end of the output
	err   bytes.Buffer
}

func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	// A test result is cached for the files that the test itself has read.
	if _, err := os.ReadFile(filepath.Join(name, "main.go")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	p := &process{t: t, name: name, cmd: exec.CommandContext(ctx, program(name), args...), out: make(chan string, 64)}
	p.cmd.Stderr = &p.err
	stdout, err := p.cmd.StdoutPipe()
	if err == nil {
		p.stdin, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	go func() {
		defer close(p.out)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			p.out <- scanner.Text()
		}
	}()
	return p
}

// line waits for a line that starts with prefix and returns the rest.
func (p *process) line(prefix string) string {
	p.t.Helper()
	for line := range p.out {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			return rest
		}
	}
	p.t.Fatalf("%s ended without a line %q; standard error:\n%s", p.name, prefix, p.err.String())
	panic("unreachable")
}

func (p *process) write(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

// end waits for the program to end with success.
func (p *process) end() {
	p.t.Helper()
	for range p.out {
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("%s: %v; standard error:\n%s", p.name, err, p.err.String())
	}
}

// interrupt is Ctrl-C.
func (p *process) interrupt() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

func needSignals(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows cannot send Ctrl-C to another process")
	}
}

func TestQuickstart(t *testing.T) {
	p := start(t, "quickstart")
	for _, want := range []string{"client calls", "client calls async", "client notifies", "server calls", "server notifies", "client gets error", "10000 calls"} {
		p.line(want)
	}
	p.end()
}

func TestProtobuf(t *testing.T) {
	p := start(t, "protobuf")
	for _, want := range []string{"client calls Join", "client calls Talk", "server calls Deliver", "client gets error"} {
		p.line(want)
	}
	p.end()
}

func TestEcho(t *testing.T) {
	needSignals(t)
	server := start(t, "echo/server", "-addr", "127.0.0.1:0")
	addr := server.line("listening on ")

	first, second := start(t, "echo/client", "-addr", addr), start(t, "echo/client", "-addr", addr)
	first.line("connected")
	second.line("connected")
	first.write("hello")
	first.line("hello")
	second.write("a second client")
	second.line("a second client")
	// One ends with its input, one with Ctrl-C.
	first.stdin.Close()
	first.end()
	second.interrupt()
	second.line("stopping")
	second.end()

	server.interrupt()
	server.line("stopping")
	server.end()
}

func TestEchoWithoutServer(t *testing.T) {
	p := start(t, "echo/client", "-addr", "127.0.0.1:1")
	for range p.out {
	}
	if err := p.cmd.Wait(); err == nil {
		t.Error("the client found a server")
	}
}

func TestBroadcast(t *testing.T) {
	needSignals(t)
	server := start(t, "broadcast/server", "-addr", "127.0.0.1:0")
	addr := server.line("listening on ")
	clients := []*process{start(t, "broadcast/client", "-addr", addr), start(t, "broadcast/client", "-addr", addr)}
	for range clients {
		server.line("connected: ")
	}
	for _, text := range []string{"one", "two"} {
		server.write(text)
		for _, c := range clients {
			if got := c.line("received: "); got != text {
				t.Errorf("a client received %q, want %q", got, text)
			}
		}
	}
	for _, c := range clients {
		c.interrupt()
		c.line("stopping")
		c.end()
		server.line("disconnected: ")
	}
	server.interrupt()
	server.line("stopping")
	server.end()
}
