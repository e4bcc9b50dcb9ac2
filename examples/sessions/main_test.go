package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/session"
	"github.com/arpc-go/arpc/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

const patience = 30 * time.Second

// answers is a listener that hands on what comes.
type answers chan string

func (answers) OnOpen(s session.Session) error {
	_, _, err := s.WritePkg("hello", 0)
	return err
}
func (answers) OnClose(session.Session)        {}
func (answers) OnError(session.Session, error) {}
func (answers) OnCron(session.Session)         {}
func (a answers) OnMessage(_ session.Session, pkg any) {
	if u, ok := pkg.(session.UDPContext); ok {
		pkg = u.Pkg
	}
	a <- pkg.(string)
}

// The program answers on each transport, with the codec of its own as the client's, and ends as with Ctrl-C.
func TestSessions(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	defer func() { os.Stdout = stdout }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, "127.0.0.1:0", "127.0.0.1:0", time.Hour)
		w.Close()
	}()
	out := bufio.NewScanner(r)
	line := func(prefix string) string {
		for out.Scan() {
			if rest, ok := strings.CutPrefix(out.Text(), prefix); ok {
				return rest
			}
		}
		t.Fatalf("no line %q", prefix)
		return ""
	}
	for _, tr := range []struct {
		name, scheme, path string
		client             func(...session.Option) session.Client
	}{
		{"tcp on ", "", "", session.NewTCPClient},
		{"udp on ", "", "", session.NewUDPClient},
		{"websocket on ", "ws://", "/lines", session.NewWSClient},
	} {
		addr := line(tr.name)
		got := make(answers, 1)
		client := tr.client(session.WithServerAddress(tr.scheme + addr + tr.path))
		if err := client.RunEventLoop(func(s session.Session) error {
			s.SetPkgHandler(lines{})
			s.SetEventListener(got)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		select {
		case text := <-got:
			if text != "hello" {
				t.Errorf("%s: %q", tr.name, text)
			}
		case <-time.After(patience):
			t.Errorf("%sno answer", tr.name)
		}
		if tr.name == "tcp on " { // any other program will do, too
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(nc, "one\ntwo\n")
			nc.(*net.TCPConn).CloseWrite()
			if p, err := io.ReadAll(nc); string(p) != "one\ntwo\n" || err != nil {
				t.Errorf("%q, %v", p, err)
			}
			nc.Close()
		}
		client.Close()
	}
	cancel()
	line("stopping")
	for out.Scan() {
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
