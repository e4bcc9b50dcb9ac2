package nats

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
)

// valve is a way to a server that can be closed without anybody being told, as when a cable is cut.
type valve struct {
	ln   net.Listener
	to   string
	wait sync.WaitGroup

	mu    sync.Mutex
	open  *sync.Cond
	shut  bool
	ended bool
	conns []net.Conn
}

func newValve(t *testing.T, to string) *valve {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	v := &valve{ln: ln, to: to}
	v.open = sync.NewCond(&v.mu)
	v.wait.Go(v.accept)
	t.Cleanup(func() {
		ln.Close()
		v.mu.Lock()
		v.ended = true
		v.open.Broadcast()
		for _, nc := range v.conns {
			nc.Close()
		}
		v.mu.Unlock()
		v.wait.Wait()
	})
	return v
}

func (v *valve) set(shut bool) {
	v.mu.Lock()
	v.shut = shut
	v.open.Broadcast()
	v.mu.Unlock()
}

func (v *valve) accept() {
	for {
		in, err := v.ln.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", v.to)
		if err != nil {
			in.Close()
			continue
		}
		v.mu.Lock()
		v.conns = append(v.conns, in, out)
		ended := v.ended
		v.mu.Unlock()
		if ended {
			in.Close()
			out.Close()
			return
		}
		v.wait.Go(func() { v.pass(in, out) })
		v.wait.Go(func() { v.pass(out, in) })
	}
}

func (v *valve) pass(from, to net.Conn) {
	defer to.Close()
	io.Copy(writer{v, to}, from) //nolint:errcheck // it ends either way
}

// writer waits until the valve is open.
type writer struct {
	v  *valve
	to net.Conn
}

func (w writer) Write(b []byte) (int, error) {
	w.v.mu.Lock()
	for w.v.shut && !w.v.ended {
		w.v.open.Wait()
	}
	w.v.mu.Unlock()
	return w.to.Write(b)
}

// TestSilence: a server that says nothing any more, and a connection that nobody has ended, count as lost after three times the
// timeout, and what waits for an answer does not wait longer.
func TestSilence(t *testing.T) {
	t.Parallel()
	ns := start(t, embedded.Config{Addr: "127.0.0.1:0"})
	v := newValve(t, strings.TrimPrefix(ns.URL(), "nats://"))
	e := open(t, Config{URL: "nats://" + v.ln.Addr().String(), Timeout: 500 * time.Millisecond})
	s := subscribe(t, e, "t")
	before := publish(t, e, "t", "before", lasting)
	recv(t, s.got, "message")
	v.set(true)
	for _, config := range []pubsub.TopicConfig{{}, lasting} {
		_, err := e.Publish(within(t), &pubsub.Message{Topic: "t", Data: []byte("lost")}, pubsub.PublishOptions{ID: "", Topic: config})
		wantCode(t, err, arpc.CodeUnavailable)
	}
	s.event(t, "interrupted")
	_, err := e.Publish(within(t), &pubsub.Message{Topic: "t", Data: []byte("refused")}, pubsub.PublishOptions{Topic: lasting})
	wantCode(t, err, arpc.CodeUnavailable)
	v.set(false)
	s.event(t, "resumed")
	publish(t, e, "t", "after", lasting)
	p := page(t, e, "t", pubsub.Query{From: before.Position})
	if n := len(p.Messages); !p.Complete || n == 0 || string(p.Messages[n-1].Data) != "after" {
		t.Fatalf("%+v", p)
	}
	for _, m := range p.Messages {
		if string(m.Data) == "refused" {
			t.Fatal("what was refused is published later")
		}
	}
}
