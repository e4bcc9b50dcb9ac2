// Package actionchat runs the programs below this directory.
package actionchat

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
	_ "github.com/arpc-go/arpc/examples/action-chat/chat"
	_ "github.com/arpc-go/arpc/extension/action"
)

// patience bounds every wait for something that must happen.
const patience = time.Minute

type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string // closed at the end of the output
}

func start(t *testing.T, program string, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	p := &process{t: t, cmd: exec.CommandContext(ctx, program, args...), lines: make(chan string, 100)}
	p.cmd.Stderr = os.Stderr
	stdout, err := p.cmd.StdoutPipe()
	must(t, err)
	p.stdin, err = p.cmd.StdinPipe()
	must(t, err)
	must(t, p.cmd.Start())
	go func() {
		defer close(p.lines)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
	}()
	return p
}

// line waits for a line that begins so, and returns the rest.
func (p *process) line(prefix string) string {
	p.t.Helper()
	for l := range p.lines {
		if rest, ok := strings.CutPrefix(l, prefix); ok {
			return rest
		}
	}
	p.t.Fatalf("%s has ended without a line %q", p.cmd.Path, prefix)
	panic("unreachable")
}

func (p *process) write(line string) {
	p.t.Helper()
	_, err := io.WriteString(p.stdin, line+"\n")
	must(p.t, err)
}

// end waits for the end, with success.
func (p *process) end() {
	p.t.Helper()
	for range p.lines {
	}
	must(p.t, p.cmd.Wait())
}

// Two people talk, one over TCP and one over WebSocket; then the server is stopped by Ctrl-C.
func TestChat(t *testing.T) {
	dir := t.TempDir()
	program := func(name string) string { return filepath.Join(dir, name+".exe") }
	for _, name := range []string{"server", "client"} {
		if _, err := os.ReadFile(filepath.Join(name, "main.go")); err != nil { // for the cache of test results
			t.Fatal(err)
		}
		out, err := exec.Command("go", "build", "-o", program(name), "./"+name).CombinedOutput()
		if err != nil {
			t.Fatalf("building %s: %v\n%s", name, err, out)
		}
	}
	server := start(t, program("server"), "-addr", "127.0.0.1:0", "-ws", "127.0.0.1:0")
	tcp, ws := server.line("tcp on "), server.line("websocket on ")
	ann := start(t, program("client"), "-addr", tcp, "-name", "ann")
	ann.line("here are: ann")
	bob := start(t, program("client"), "-addr", ws, "-name", "bob")
	bob.line("here are: ann, bob")

	ann.write("hello")
	bob.line("ann says: hello")
	bob.write("ann: hi")
	ann.line("bob says: hi")
	bob.write("carol: hi")
	bob.line("sent to: 1")
	bob.line("sent to: 0")

	must(t, bob.stdin.Close())
	bob.end()
	server.line("left: bob")
	if runtime.GOOS == "windows" { // it cannot send Ctrl-C to another process
		must(t, server.cmd.Process.Kill())
		return
	}
	must(t, server.cmd.Process.Signal(os.Interrupt))
	ann.line("the server is gone")
	ann.end()
	server.line("stopping")
	server.end()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
