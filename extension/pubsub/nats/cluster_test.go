package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
	"github.com/nats-io/nats.go/jetstream"
)

// TestCluster has three servers that keep each message three times, and ends the one that leads the stream: the two others go on,
// and an engine on each has all messages.
func TestCluster(t *testing.T) {
	t.Parallel()
	names := []string{"a", "b", "c"}
	var configs []embedded.Config
	var routes []string
	for _, name := range names {
		c := embedded.Config{Name: name, Dir: t.TempDir(), Cluster: "cluster", ClusterAddr: fixedAddr(t)}
		routes = append(routes, "nats://"+c.ClusterAddr)
		configs = append(configs, c)
	}
	servers := map[string]*embedded.Server{}
	for _, c := range configs {
		c.Routes = routes
		s, err := embedded.Start(c)
		must(t, err)
		defer func() { s.Stop() }() // again, for one, which is no harm
		servers[c.Name] = s
	}
	config := func(name string) Config { return Config{Server: servers[name], Replicas: 3, Heartbeat: beat} }
	var first *Engine
	waitFor(t, "JetStream's leader", func() bool { // it is elected after all have met
		c := config("a")
		c.Timeout = time.Second
		e, err := New(within(t), c)
		if err != nil {
			return false
		}
		if _, err = e.Publish(within(t), &pubsub.Message{Topic: "t", Data: []byte("-1")}, pubsub.PublishOptions{ID: "first", Topic: lasting}); err != nil {
			e.Close()
			return false
		}
		first = e
		return true
	})
	t.Cleanup(func() { first.Close() })
	memory := config("b")
	memory.Storage = jetstream.MemoryStorage
	_, err := New(within(t), memory)
	wantCode(t, err, arpc.CodeFailedPrecondition)

	s, err := first.js.Stream(within(t), "arpc_"+first.classOf(lasting).token())
	must(t, err)
	leader := s.CachedInfo().Cluster.Leader
	names = slices.DeleteFunc(names, func(n string) bool { return n == leader })
	a, b := open(t, config(names[0])), open(t, config(names[1]))
	sub := subscribe(t, b, "t")
	last := page(t, b, "t", pubsub.Query{Limit: -1}).Top
	const n = 300
	published := make(chan error, 1)
	half := make(chan struct{})
	go func() {
		for i := range n {
			if i == n/2 {
				close(half)
			}
			for {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				_, err := a.Publish(ctx, &pubsub.Message{Topic: "t", Data: []byte(fmt.Sprint(i))}, pubsub.PublishOptions{ID: fmt.Sprint(i), Topic: lasting})
				cancel()
				if err == nil {
					break
				}
				if !errors.Is(err, arpc.CodeUnavailable) {
					published <- err
					return
				}
			}
		}
		published <- nil
	}()
	recv(t, half, "messages")
	servers[leader].Stop()
	must(t, recv(t, published, "end of publishing"))
	// What a sink gets, or by its Resumed is sent to the history for, is everything, once.
	next := 0
	take := func(m *pubsub.Message) {
		if m.Position.Epoch != last.Epoch {
			t.Fatalf("epoch %d, not %d", m.Position.Epoch, last.Epoch)
		}
		if m.Position.Offset <= last.Offset {
			return
		}
		if string(m.Data) != fmt.Sprint(next) {
			t.Fatalf("%q, not %d", m.Data, next)
		}
		next, last = next+1, m.Position
	}
	for end := time.After(patience); next < n; {
		select {
		case m := <-sub.got:
			if m.Position.Offset > last.Offset && string(m.Data) != fmt.Sprint(next) {
				sub.event(t, "interrupted", "resumed") // otherwise the gap is silent
				recoverFrom(t, b, last, take)
			}
			take(m)
		case e := <-sub.events:
			if e == "resumed" {
				recoverFrom(t, b, last, take)
			}
		case <-end:
			t.Fatalf("%d of %d messages", next, n)
		}
	}
	if p := page(t, a, "t", pubsub.Query{}); len(p.Messages) != n+1 {
		t.Fatalf("%d messages are kept", len(p.Messages))
	}
}

func recoverFrom(t *testing.T, e *Engine, last pubsub.Position, take func(*pubsub.Message)) {
	t.Helper()
	p := page(t, e, "t", pubsub.Query{From: last})
	if !p.Complete {
		t.Fatalf("not complete from %+v", last)
	}
	for _, m := range p.Messages {
		take(m)
	}
}
