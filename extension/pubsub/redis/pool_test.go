package redis

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/enginetest"
	"github.com/arpc-go/arpc/extension/pubsub/redis/internal/redistest"
)

func publishToOne(t *testing.T, e *Engine, topic, data string) {
	t.Helper()
	_, err := e.Publish(within(t), &pubsub.Message{Topic: topic, Data: []byte(data), ToOne: true}, pubsub.PublishOptions{})
	must(t, err)
}

// all takes n different messages from sinks.
func all(t *testing.T, n int, sinks ...*sink) {
	t.Helper()
	seen := map[string]bool{}
	waitFor(t, fmt.Sprint(n, " messages"), func() bool {
		for _, s := range sinks {
			for len(s.got) > 0 {
				m := <-s.got
				if seen[string(m.Data)] {
					t.Fatalf("%q came twice", m.Data)
				}
				seen[string(m.Data)] = true
			}
		}
		return len(seen) >= n
	})
}

// TestRefused: what nobody takes on one server goes to another.
func TestRefused(t *testing.T) {
	const n = 100
	server := redistest.Start(t)
	a, b, c := open(t, testConfig(server.Addr)), open(t, testConfig(server.Addr)), open(t, testConfig(server.Addr))
	for name, group := range map[string]string{"group": "g", "one": ""} {
		var sinks []*sink
		for _, e := range []*Engine{a, b, c} {
			sinks = append(sinks, subscribe(t, e, name+".x", false, group))
		}
		sinks[0].refuse.Store(true)
		sinks[2].refuse.Store(true)
		plain := subscribe(t, a, name+".*", true, "other")
		for i := range n {
			if group == "" {
				publishToOne(t, b, name+".x", fmt.Sprint(i))
			} else {
				publish(t, b, name+".x", fmt.Sprint(i), kept)
			}
		}
		if group == "" {
			all(t, n, append(sinks, plain)...)
			continue
		}
		all(t, n, sinks...)
		all(t, n, plain) // what is offered again is for the group only
		publish(t, a, name+".x", "end", kept)
		plain.expect(t, "end")
	}
}

// TestOnceOnOneServer: a message to one that a server gets by several ways is one.
func TestOnceOnOneServer(t *testing.T) {
	const n = 100
	server := redistest.Start(t)
	e := open(t, testConfig(server.Addr))
	sinks := []*sink{
		subscribe(t, e, "a.b", false, ""), subscribe(t, e, "a.*", true, ""), subscribe(t, e, "*.b", true, "g"), subscribe(t, e, "a.>", true, "g"),
	}
	for i := range n {
		publishToOne(t, e, "a.b", fmt.Sprint(i))
	}
	all(t, n, sinks...)
	publish(t, e, "a.b", "end", pubsub.TopicConfig{})
	for _, s := range sinks {
		s.expect(t, "end") // so nothing was on its way
	}
	waitFor(t, "nothing is kept for messages to one", func() bool {
		e.hub.mu.RLock()
		defer e.hub.mu.RUnlock()
		return len(e.hub.ones) == 0
	})
}

// TestKilledWorker: a group goes on without a server that was killed, whose turn others take.
func TestKilledWorker(t *testing.T) {
	server := redistest.Start(t)
	e := open(t, testConfig(server.Addr))
	s := subscribe(t, e, "jobs", false, "g")
	p := enginetest.StartProcess(t, server.Addr)
	p.Subscribe("jobs", "g")
	next := make(chan struct{})
	go func() {
		p.Next()
		close(next)
	}()
	for i := 0; ; i++ { // until both have had one
		publish(t, e, "jobs", fmt.Sprint("before ", i), pubsub.TopicConfig{})
		select {
		case <-next:
		case <-s.got:
			continue
		}
		break
	}
	p.Kill()
	const n = 50
	for i := range n {
		publish(t, e, "jobs", fmt.Sprint("after ", i), pubsub.TopicConfig{})
	}
	for seen := 0; seen < n; {
		if m := recv(t, s.got, "message"); string(m.Data[:5]) == "after" {
			seen++
		}
	}
}

// TestFullPool: a sink that takes its time holds up what is read, and nothing is lost by that.
func TestFullPool(t *testing.T) {
	const n = 200
	server := redistest.Start(t)
	c := testConfig(server.Addr)
	c.Waiting = 10
	e := open(t, c)
	s := newSink()
	s.gate = make(chan struct{})
	s.with(t, e, "t", false, "g")
	for i := range n {
		publish(t, e, "t", fmt.Sprint(i), kept)
	}
	e.hub.mu.RLock()
	p := e.hub.groups[groupPool(pubsub.Filter{Name: "t"}, "g")]
	e.hub.mu.RUnlock()
	waitFor(t, "the limit", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		if waiting := len(p.now) + len(p.later); waiting > c.Waiting {
			t.Fatalf("%d messages wait", waiting)
		}
		return len(p.now)+len(p.later) == c.Waiting
	})
	close(s.gate)
	for i := range n {
		s.expect(t, fmt.Sprint(i))
	}
}

// TestGroupSurvivesRedis: a group neither hangs nor gets anything twice when Redis is killed.
func TestGroupSurvivesRedis(t *testing.T) {
	server := redistest.Start(t)
	a, b := open(t, testConfig(server.Addr)), open(t, testConfig(server.Addr))
	sinks := []*sink{subscribe(t, a, "t", false, "g"), subscribe(t, b, "t", false, "g")}
	stop, seen := make(chan struct{}), map[string]bool{}
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			a.Publish(context.Background(), &pubsub.Message{Topic: "t", Data: []byte(fmt.Sprint(i))}, pubsub.PublishOptions{}) //nolint:errcheck // Redis is not there
		}
	})
	take := func(n int) {
		t.Helper()
		for end := time.After(patience); n > 0; n-- {
			var m *pubsub.Message
			select {
			case m = <-sinks[0].got:
			case m = <-sinks[1].got:
			case <-end:
				t.Fatal("nothing comes")
			}
			if seen[string(m.Data)] {
				t.Fatalf("%q came twice", m.Data)
			}
			seen[string(m.Data)] = true
		}
	}
	for range 3 {
		take(200)
		server.Kill()
		for _, s := range sinks {
			s.expectTold(t, "interrupted")
		}
		server.Restart()
		for _, s := range sinks {
			s.expectTold(t, "resumed")
		}
	}
	take(200)
	close(stop)
	publishing.Wait()
}
