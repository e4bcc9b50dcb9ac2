package interop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

const pubsubPatience = 30 * time.Second

// buildPubsubPeer builds the program with the published pub/sub. Its module is the last version that has it, and so cannot be a
// requirement of this one.
func buildPubsubPeer(t *testing.T) string {
	t.Helper()
	const dir = "testdata/pubsubpeer"
	// A test result is cached for the files that the test itself has read.
	for _, name := range []string{"main.go", "go.mod", "go.sum"} {
		if _, err := os.ReadFile(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(t.TempDir(), "pubsubpeer.exe")
	build := exec.Command("go", "build", "-o", exe, ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the peer: %v\n%s", err, out)
	}
	return exe
}

// pubsubPeer is a running peer.
type pubsubPeer struct {
	t       *testing.T
	in      io.Writer
	answers chan string // "ok" and "error ..."
	got     chan string // "topic text"
}

func startPubsubPeer(t *testing.T, exe string, args ...string) (p *pubsubPeer, first *bufio.Scanner) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p = &pubsubPeer{t: t, in: in, answers: make(chan string, 10_000), got: make(chan string, 10_000)}
	lines := bufio.NewScanner(out)
	ended := make(chan struct{})
	t.Cleanup(func() {
		in.Close()
		<-ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("the peer ended with %v", err)
		}
		cancel()
	})
	read := func() {
		defer close(ended)
		for lines.Scan() {
			if got, ok := strings.CutPrefix(lines.Text(), "got "); ok {
				p.got <- got
			} else {
				p.answers <- lines.Text()
			}
		}
	}
	if args[0] == "serve" {
		lines.Scan()
	}
	defer func() { go read() }()
	return p, lines
}

// do sends a line and expects an answer.
func (p *pubsubPeer) do(want, format string, args ...any) {
	p.t.Helper()
	fmt.Fprintf(p.in, format+"\n", args...)
	if got := within(p.t, p.answers, "answer"); got != want {
		p.t.Fatalf("%s: %q, not %q", fmt.Sprintf(format, args...), got, want)
	}
}

func within[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(pubsubPatience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// sameSet compares what has come with what should: the published arpc does not keep the order.
func sameSet(t *testing.T, got <-chan string, want []string) {
	t.Helper()
	var all []string
	for range want {
		all = append(all, within(t, got, "message"))
	}
	sort.Strings(all)
	sort.Strings(want)
	if strings.Join(all, "\n") != strings.Join(want, "\n") {
		t.Fatalf("%q, not %q", all, want)
	}
}

func servePubsub(t *testing.T, ln net.Listener) *pubsub.Server {
	t.Helper()
	s := pubsub.NewServer()
	s.Password = "pw"
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// TestPublishedPubsubClient runs clients of the published arpc against our server, which is replaced in the middle.
func TestPublishedPubsubClient(t *testing.T) {
	exe := buildPubsubPeer(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := servePubsub(t, ln)
	addr := ln.Addr().String()
	a, _ := startPubsubPeer(t, exe, "client", addr)
	b, _ := startPubsubPeer(t, exe, "client", addr)
	a.do("error invalid password", "auth wrong")
	a.do("error not authenticated: the server wants a password", "sub t")
	for _, p := range []*pubsubPeer{a, b} {
		p.do("ok", "auth pw")
		p.do("ok", "sub t")
		p.do("ok", "sub t")
		p.do("ok", "sub other")
	}
	a.do("error invalid topic name length, should not be more than 1024", "pub %s x", strings.Repeat("x", 1024)+"x")
	check := func(n int) {
		t.Helper()
		var want []string
		for i := range n {
			a.do("ok", "pub t from a %d", i)
			b.do("ok", "pub other from b %d", i)
			if err := s.Publish("t", fmt.Sprint("from the server ", i)); err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprint("t from a ", i), fmt.Sprint("other from b ", i), fmt.Sprint("t from the server ", i))
		}
		sameSet(t, a.got, append([]string{}, want...))
		sameSet(t, b.got, want)
	}
	check(100)
	for i := range 10 {
		a.do("ok", "one t %d", i)
		if err := s.PublishToOne("t", fmt.Sprint("s", i)); err != nil {
			t.Fatal(err)
		}
	}
	one := make(chan string, 10_000)
	stop := make(chan struct{})
	defer close(stop)
	for _, p := range []*pubsubPeer{a, b} {
		go func() {
			for {
				select {
				case m := <-p.got:
					one <- m
				case <-stop:
					return
				}
			}
		}()
	}
	seen := map[string]bool{}
	for range 20 {
		m := within(t, one, "message to one")
		if seen[m] {
			t.Fatalf("%q came twice", m)
		}
		seen[m] = true
	}
	b.do("ok", "unsub t")
	a.do("ok", "pub t last")
	a.do("ok", "pub other last")
	got := []string{within(t, one, "message"), within(t, one, "message"), within(t, one, "message")}
	sort.Strings(got)
	if strings.Join(got, ",") != "other last,other last,t last" {
		t.Fatalf("%q", got)
	}
	// Another server takes the place of the first.
	s.Stop()
	for end := time.Now().Add(pubsubPatience); ; {
		if ln, err = net.Listen("tcp", addr); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	s = servePubsub(t, ln)
	for end := time.Now().Add(pubsubPatience); ; {
		if err := s.Publish("other", "again"); err != nil {
			t.Fatal(err)
		}
		select {
		case m := <-one:
			if m != "other again" {
				t.Fatalf("%q", m)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatal("the client does not come back")
		}
	}
}

// TestPublishedPubsubServer runs our clients against a server of the published arpc.
func TestPublishedPubsubServer(t *testing.T) {
	exe := buildPubsubPeer(t)
	p, first := startPubsubPeer(t, exe, "serve")
	addr := first.Text()
	conns := make(chan net.Conn, 10)
	c, err := pubsub.NewClient(func() (net.Conn, error) {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			conns <- nc
		}
		return nc, err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	c.Password = "wrong"
	if err := c.Authenticate(); arpc.CodeOf(err) != arpc.CodeUnauthenticated {
		t.Fatal(err)
	}
	c.Password = "pw"
	if err := c.Authenticate(); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1000)
	if err := c.Subscribe("t", func(m *pubsub.Topic) { got <- m.Name + " " + string(m.Data) }, pubsubPatience); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		var want []string
		for i := range 100 {
			p.do("ok", "pub t from the peer %d", i)
			if err := c.Publish("t", fmt.Sprint("from us ", i), pubsubPatience); err != nil {
				t.Fatal(err)
			}
			if err := c.PublishToOne("t", fmt.Sprint("to one ", i), pubsubPatience); err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprint("t from the peer ", i), fmt.Sprint("t from us ", i), fmt.Sprint("t to one ", i))
		}
		sameSet(t, got, want)
	}
	check()
	within(t, conns, "connection").Close()
	for end := time.Now().Add(pubsubPatience); ; { // until the subscription is restored
		p.do("ok", "pub t back")
		select {
		case <-got:
		case <-time.After(10 * time.Millisecond):
			if time.Now().After(end) {
				t.Fatal("the subscription is not restored")
			}
			continue
		}
		break
	}
	for len(got) > 0 {
		<-got
	}
	p.do("ok", "one t mark")
	for within(t, got, "message") != "t mark" {
	}
	check()
	if err := c.Unsubscribe("t", pubsubPatience); err != nil {
		t.Fatal(err)
	}
	// What only our servers have fails clearly.
	ctx, cancel := context.WithTimeout(context.Background(), pubsubPatience)
	defer cancel()
	if _, err := c.SubscribeWith(ctx, "t", func(*pubsub.Message) {}); arpc.CodeOf(err) != arpc.CodeUnimplemented {
		t.Fatal(err)
	}
	if _, err := c.PublishWith(ctx, "t", "x"); arpc.CodeOf(err) != arpc.CodeUnimplemented {
		t.Fatal(err)
	}
}
