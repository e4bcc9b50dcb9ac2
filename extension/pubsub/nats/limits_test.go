package nats

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
)

func TestLimits(t *testing.T) {
	t.Parallel()
	ns := start(t, embedded.Config{})
	e := open(t, Config{Server: ns, MaxBytes: 64 << 10, Streams: 2, Topics: 3, Messages: 50})
	deep := pubsub.TopicConfig{HistorySize: 1 << 30}
	t.Run("Messages", func(t *testing.T) {
		for i := range 60 {
			publish(t, e, "few", fmt.Sprint(i), deep)
		}
		if p := page(t, e, "few", pubsub.Query{Topic: deep}); len(p.Messages) != 50 {
			t.Fatalf("%d messages are kept", len(p.Messages))
		}
	})
	t.Run("MaxBytes", func(t *testing.T) {
		first := publish(t, e, "quiet", "x", deep).Position
		second := publish(t, e, "quiet", "y", deep).Position
		if p := page(t, e, "quiet", pubsub.Query{From: first, Topic: deep}); !p.Complete {
			t.Fatal("not complete")
		}
		for range 100 { // another topic takes the place
			publish(t, e, "loud", strings.Repeat("x", 10_000), deep)
		}
		if p := page(t, e, "quiet", pubsub.Query{From: first, Topic: deep}); p.Complete || p.Top.Offset <= second.Offset {
			t.Fatalf("complete although the messages are gone: %+v", p)
		}
	})
	t.Run("Topics", func(t *testing.T) {
		for _, topic := range []string{"a", "b", "c"} {
			page(t, e, topic, pubsub.Query{Limit: -1, Topic: deep})
		}
		if p := page(t, e, "one too many", pubsub.Query{Limit: -1, Topic: deep}); !p.Top.IsZero() {
			t.Fatalf("a question has made a topic: %+v", p)
		}
	})
	t.Run("Streams", func(t *testing.T) {
		publish(t, e, "t", "x", pubsub.TopicConfig{HistorySize: 2})
		_, err := e.Publish(within(t), &pubsub.Message{Topic: "t"}, pubsub.PublishOptions{Topic: pubsub.TopicConfig{HistorySize: 3}})
		wantCode(t, err, arpc.CodeResourceExhausted)
	})
	t.Run("Payload", func(t *testing.T) {
		for _, config := range []pubsub.TopicConfig{{}, deep} {
			_, err := e.Publish(within(t), &pubsub.Message{Topic: "t", Data: make([]byte, 3<<20)}, pubsub.PublishOptions{Topic: config})
			wantCode(t, err, arpc.CodeInvalidArgument)
		}
	})
	t.Run("Contexts", func(t *testing.T) {
		canceled, cancel := context.WithCancel(context.Background())
		cancel()
		late, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
		defer cancel()
		for _, config := range []pubsub.TopicConfig{{}, deep} {
			_, err := e.Publish(canceled, &pubsub.Message{Topic: "t"}, pubsub.PublishOptions{Topic: config})
			wantCode(t, err, arpc.CodeCanceled)
			_, err = e.Publish(late, &pubsub.Message{Topic: "t"}, pubsub.PublishOptions{Topic: config})
			wantCode(t, err, arpc.CodeDeadlineExceeded)
		}
		_, err := e.History(canceled, "t", pubsub.Query{Topic: deep})
		wantCode(t, err, arpc.CodeCanceled)
	})
	t.Run("Closed", func(t *testing.T) {
		c, err := New(within(t), Config{Server: ns})
		must(t, err)
		cancel, err := c.Subscribe(within(t), pubsub.Filter{Name: "t"}, "g", newSink())
		must(t, err)
		must(t, c.Close())
		must(t, c.Close())
		cancel()
		_, err = c.Publish(within(t), &pubsub.Message{Topic: "t"}, pubsub.PublishOptions{})
		wantCode(t, err, arpc.CodeUnavailable)
		_, err = c.Subscribe(within(t), pubsub.Filter{Name: "t"}, "", newSink())
		wantCode(t, err, arpc.CodeUnavailable)
		_, err = c.History(within(t), "t", pubsub.Query{Topic: deep})
		wantCode(t, err, arpc.CodeUnavailable)
		_, err = c.Join(within(t), "t", pubsub.Member{ID: "x"})
		wantCode(t, err, arpc.CodeUnavailable)
		_, err = c.Members(within(t), "t")
		wantCode(t, err, arpc.CodeUnavailable)
	})
	t.Run("Foreign", func(t *testing.T) { // somebody else's stream, or a changed one
		st, err := e.stream(within(t), e.classOf(deep))
		must(t, err)
		s, err := e.js.Stream(within(t), st.name)
		must(t, err)
		changed := s.CachedInfo().Config
		changed.MaxMsgsPerSubject = 7
		_, err = e.js.UpdateStream(within(t), changed)
		must(t, err)
		c := open(t, Config{Server: ns, Messages: 50})
		_, err = c.Publish(within(t), &pubsub.Message{Topic: "t"}, pubsub.PublishOptions{Topic: deep})
		wantCode(t, err, arpc.CodeFailedPrecondition)
	})
}

// TestHandOn: what a member of a group, or the one whom a message is for, could not give to anybody goes to another engine.
func TestHandOn(t *testing.T) {
	t.Parallel()
	ns := start(t, embedded.Config{})
	a, b := open(t, Config{Server: ns}), open(t, Config{Server: ns})
	const n = 50
	for _, group := range []string{"g", ""} {
		topic := "t" + group
		cancel, err := a.Subscribe(within(t), pubsub.Filter{Name: topic}, group, refusing{})
		must(t, err)
		t.Cleanup(cancel)
		s := newSink()
		cancel, err = b.Subscribe(within(t), pubsub.Filter{Name: topic}, group, s)
		must(t, err)
		t.Cleanup(cancel)
		for i := range n {
			m := &pubsub.Message{Topic: topic, Data: []byte(fmt.Sprint(i)), Key: "k", Timestamp: 42, ToOne: group == ""}
			_, err := b.Publish(within(t), m, pubsub.PublishOptions{})
			must(t, err)
		}
		seen := map[string]bool{}
		for range n {
			m := recv(t, s.got, "message")
			if seen[string(m.Data)] || m.Key != "k" || m.Timestamp != 42 || m.Topic != topic || m.ToOne != (group == "") {
				t.Fatalf("%+v", m)
			}
			seen[string(m.Data)] = true
		}
	}
}

// refusing is a sink that has nobody.
type refusing struct{}

func (refusing) Deliver(*pubsub.Message) bool         { return false }
func (refusing) Presence(string, pubsub.Member, bool) {}
func (refusing) Interrupted(error)                    {}
func (refusing) Resumed()                             {}
