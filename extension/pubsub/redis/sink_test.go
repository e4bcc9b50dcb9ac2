package redis

import (
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

// sink keeps what it gets.
type sink struct {
	got      chan *pubsub.Message
	presence chan string // the ID, with + or - before it
	told     chan string // "interrupted" and "resumed"
	refuse   atomic.Bool
	gate     chan struct{} // Deliver waits for it; may be nil
}

func (s *sink) Deliver(m *pubsub.Message) bool {
	if s.refuse.Load() {
		return false
	}
	if s.gate != nil {
		<-s.gate
	}
	s.got <- m
	return true
}

func (s *sink) Presence(_ string, m pubsub.Member, joined bool) {
	sign := "-"
	if joined {
		sign = "+"
	}
	s.presence <- sign + m.ID
}

func (s *sink) Interrupted(error) { s.told <- "interrupted" }
func (s *sink) Resumed()          { s.told <- "resumed" }

func newSink() *sink {
	return &sink{got: make(chan *pubsub.Message, 100_000), presence: make(chan string, 1000), told: make(chan string, 1000)}
}

func (s *sink) expect(t *testing.T, data ...string) {
	t.Helper()
	for _, want := range data {
		if m := recv(t, s.got, "message"); string(m.Data) != want {
			t.Fatalf("%q, not %q", m.Data, want)
		}
	}
}

func (s *sink) expectTold(t *testing.T, events ...string) {
	t.Helper()
	for _, want := range events {
		if got := recv(t, s.told, want); got != want {
			t.Fatalf("%s, not %s", got, want)
		}
	}
}

func (s *sink) expectPresence(t *testing.T, events ...string) {
	t.Helper()
	for _, want := range events {
		if got := recv(t, s.presence, want); got != want {
			t.Fatalf("%s, not %s", got, want)
		}
	}
}

// with subscribes a sink to a topic, or to a pattern.
func (s *sink) with(t *testing.T, e *Engine, name string, wildcard bool, group string) (cancel func()) {
	t.Helper()
	cancel, err := e.Subscribe(within(t), pubsub.Filter{Name: name, Wildcard: wildcard}, group, s)
	must(t, err)
	t.Cleanup(cancel)
	return cancel
}

func subscribe(t *testing.T, e *Engine, name string, wildcard bool, group string) *sink {
	t.Helper()
	s := newSink()
	s.with(t, e, name, wildcard, group)
	return s
}

var kept = pubsub.TopicConfig{HistorySize: 1000}

func publish(t *testing.T, e *Engine, topic, data string, config pubsub.TopicConfig) pubsub.Position {
	t.Helper()
	r, err := e.Publish(within(t), &pubsub.Message{Topic: topic, Data: []byte(data)}, pubsub.PublishOptions{Topic: config})
	must(t, err)
	return r.Position
}

func history(t *testing.T, e *Engine, topic string, from pubsub.Position) pubsub.Page {
	t.Helper()
	p, err := e.History(within(t), topic, pubsub.Query{From: from, Topic: kept})
	must(t, err)
	return p
}

func wantCode(t *testing.T, err error, code arpc.Code) {
	t.Helper()
	if arpc.CodeOf(err) != code {
		t.Fatalf("error %v, code %v, not %v", err, arpc.CodeOf(err), code)
	}
}
