// Package pubsub_test runs the three programs.
package pubsub_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	// What the programs are made of, for the cache of test results.
	_ "github.com/arpc-go/arpc/extension/pubsub"
)

const patience = time.Minute

// program is a running one.
type program struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out chan string
}

func start(t *testing.T, dir, name string, args ...string) *program {
	t.Helper()
	if _, err := os.ReadFile(filepath.Join(name, "main.go")); err != nil { // the cache again
		t.Fatal(err)
	}
	exe := filepath.Join(dir, name+".exe")
	if out, err := exec.Command("go", "build", "-o", exe, "./"+name).CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", name, err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p := &program{t: t, cmd: exec.CommandContext(ctx, exe, args...), out: make(chan string, 1000)}
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.out <- lines.Text()
		}
		close(p.out)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		for range p.out {
		}
		p.cmd.Wait()
		cancel()
	})
	return p
}

// line waits for a line that matches.
func (p *program) line(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	for {
		select {
		case line, ok := <-p.out:
			if m := re.FindStringSubmatch(line); m != nil {
				return m
			}
			if !ok {
				p.t.Fatalf("the program ended without a line like %q", pattern)
			}
		case <-time.After(patience):
			p.t.Fatalf("no line like %q", pattern)
		}
	}
}

func TestPubsub(t *testing.T) {
	dir := t.TempDir()
	server := start(t, dir, "server", "-addr", "127.0.0.1:0", "-every", "10ms")
	addr := server.line(`listening on (.*)`)[1]
	sub := start(t, dir, "subscriber", "-addr", addr)
	sub.line(`^subscribed to Broadcast$`)
	sub.line(`\[Broadcast\] "message from server \d+"`)
	news := start(t, dir, "subscriber", "-addr", addr, "-topic", "news.*")
	news.line(`^subscribed to news\.\*$`)
	pub := start(t, dir, "publisher", "-addr", addr, "-topic", "news.local")
	if _, err := io.WriteString(pub.in, "hello\nworld\n"); err != nil {
		t.Fatal(err)
	}
	pub.line(`^published at offset 1$`)
	pub.line(`^published at offset 2$`)
	news.line(`\[news\.local\] "hello"`)
	news.line(`\[news\.local\] "world"`)
	late := start(t, dir, "subscriber", "-addr", addr, "-topic", "news.local", "-last", "1")
	if m := late.line(`\[news\.local\] "(.*)"`)[1]; m != "world" {
		t.Fatal(m)
	}
	server.cmd.Process.Signal(os.Interrupt)
	server.line(`^stopping$`)
	again := start(t, dir, "server", "-addr", addr, "-every", "10ms")
	again.line(`listening on`)
	if m := sub.line(`^subscribed again, (.*)$`)[1]; !strings.Contains(m, "may be missing") {
		t.Fatal(m) // the memory of the first server is gone
	}
	sub.line(`\[Broadcast\] "message from server \d+"`)
}
