// Package packetbroadcast_test runs the two programs.
package packetbroadcast_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	// What the programs are made of, for the cache of test results.
	_ "github.com/arpc-go/arpc/extension/packet"
)

const patience = time.Minute

// program is a running one.
type program struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func build(t *testing.T) (dir string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("Windows cannot send Ctrl-C to another process")
	}
	dir = t.TempDir()
	for _, name := range []string{"server", "client"} {
		if _, err := os.ReadFile(filepath.Join(name, "main.go")); err != nil { // the cache again
			t.Fatal(err)
		}
		if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, name), "./"+name).CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", name, err, out)
		}
	}
	return dir
}

// start runs a program, which ends within patience, as do the waits for it therefore.
func start(t *testing.T, exe string, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p := &program{t: t, cmd: exec.CommandContext(ctx, exe, args...)}
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewScanner(out)
	t.Cleanup(func() {
		cancel()
		p.cmd.Wait() //nolint:errcheck // it has ended, or was killed
	})
	return p
}

// line waits for a line that begins with prefix, and returns the rest.
func (p *program) line(prefix string) string {
	p.t.Helper()
	for p.out.Scan() {
		if rest, ok := strings.CutPrefix(p.out.Text(), prefix); ok {
			return rest
		}
	}
	p.t.Fatalf("the program ended without a line %q", prefix)
	panic("unreachable")
}

func (p *program) enter(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) interrupt() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
	p.line("stopping")
	p.end()
}

// end waits for success.
func (p *program) end() {
	p.t.Helper()
	for p.out.Scan() {
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Error(err)
	}
}

func TestP13Broadcast(t *testing.T) {
	dir := build(t)
	server := start(t, filepath.Join(dir, "server"), "-addr", "127.0.0.1:0")
	addr := server.line("listening on ")
	var clients []*program
	for range 3 {
		c := start(t, filepath.Join(dir, "client"), "-addr", addr)
		c.line("connected to ")
		server.line("connected: ")
		clients = append(clients, c)
	}
	for i, text := range []string{"one", "two", "three"} {
		clients[i].enter(text)
		for _, c := range clients {
			if got := c.line("received: "); got != text {
				t.Errorf("received %q, want %q", got, text)
			}
		}
	}
	clients[0].in.Close()
	clients[0].end()
	server.line("disconnected: ")
	clients[1].interrupt()
	server.line("disconnected: ")
	server.interrupt()
	clients[2].line("disconnected: ")
	clients[2].end()
}

func TestP13Echo(t *testing.T) {
	dir := build(t)
	server := start(t, filepath.Join(dir, "server"), "-addr", "127.0.0.1:0", "-echo")
	addr := server.line("listening on ")
	var clients []*program
	for range 2 {
		c := start(t, filepath.Join(dir, "client"), "-addr", addr)
		c.line("connected to ")
		clients = append(clients, c)
	}
	clients[0].enter("mine")
	clients[1].enter("yours")
	for i, want := range []string{"mine", "yours"} {
		if got := clients[i].line("received: "); got != want {
			t.Errorf("received %q, want %q", got, want)
		}
		clients[i].interrupt()
	}
	server.interrupt()
}
