package nats

import (
	"fmt"
	"slices"
	"testing"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
	"github.com/arpc-go/arpc/extension/pubsub/nats/internal/wire"
	"github.com/nats-io/nats.go/jetstream"
)

// TestLongHistory reads a history that takes many requests, between the messages of other topics.
func TestLongHistory(t *testing.T) {
	t.Parallel()
	ns := start(t, embedded.Config{})
	e := open(t, Config{Server: ns})
	start := page(t, e, "t", pubsub.Query{Limit: -1}).Top
	const n = 3*batchMessages + 7
	var at []pubsub.Position
	for i := range n {
		at = append(at, publish(t, e, "t", fmt.Sprint(i), lasting).Position)
		if i%3 == 0 {
			publish(t, e, fmt.Sprint("other.", i%30), "x", lasting)
		}
	}
	list := func(from, to int) (l []string) {
		for i := from; i < to; i++ {
			l = append(l, fmt.Sprint(i))
		}
		return l
	}
	for _, test := range []struct {
		q        pubsub.Query
		want     []string
		complete bool
	}{
		{pubsub.Query{}, list(0, n), false},
		{pubsub.Query{Limit: 1}, list(n-1, n), false},
		{pubsub.Query{Limit: 300}, list(n-300, n), false},
		{pubsub.Query{Limit: n + 5}, list(0, n), false},
		{pubsub.Query{From: start}, list(0, n), true},
		{pubsub.Query{From: start, Limit: 2}, list(0, 2), true},
		{pubsub.Query{From: at[9], Limit: 500}, list(10, 510), true},
		{pubsub.Query{From: pubsub.Position{Epoch: 1, Offset: 1}, Limit: 3}, list(0, 3), false},
		{pubsub.Query{From: at[n-2]}, list(n-1, n), true},
	} {
		p := page(t, e, "t", test.q)
		var got []string
		for _, m := range p.Messages {
			got = append(got, string(m.Data))
		}
		if !slices.Equal(got, test.want) || p.Complete != test.complete || p.Top != at[n-1] {
			t.Errorf("%+v: %d messages %.3q, complete: %v, top %+v", test.q, len(got), got, p.Complete, p.Top)
		}
	}
	// Others remove what is in front of the topic: whoever is behind that is told.
	st, err := e.stream(within(t), e.classOf(lasting))
	must(t, err)
	s, err := e.js.Stream(within(t), st.name)
	must(t, err)
	must(t, s.Purge(within(t), purge(wire.TopicSubject(st.head, "t"), at[20].Offset)...))
	for i, complete := range map[int]bool{0: false, 18: false, 19: false, 20: true, 21: true} {
		if p := page(t, e, "t", pubsub.Query{From: at[i]}); p.Complete != complete {
			t.Errorf("from %d: complete: %v", i, p.Complete)
		}
	}
	must(t, s.Purge(within(t), purge(wire.TopicSubject(st.head, "t"), 0)...))
	if p := page(t, e, "t", pubsub.Query{From: at[n-1]}); p.Complete || p.Top.Offset <= at[n-1].Offset {
		t.Errorf("after all was removed: %+v", p)
	}
}

// purge removes what a subject has before an offset; 0 for all.
func purge(subject string, before uint64) []jetstream.StreamPurgeOpt {
	opts := []jetstream.StreamPurgeOpt{jetstream.WithPurgeSubject(subject)}
	if before > 0 {
		opts = append(opts, jetstream.WithPurgeSequence(before))
	}
	return opts
}
