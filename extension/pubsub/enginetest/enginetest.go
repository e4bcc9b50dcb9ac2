// Package enginetest is the suite that every engine of package pubsub must pass:
//
//	func TestEngine(t *testing.T) {
//		enginetest.Run(t, func(t *testing.T) func() pubsub.Engine { ... })
//	}
//
// What an engine says that it cannot do is not tested. The suite waits for what must happen, at most twenty seconds, and never
// for the absence of something but by what comes after it.
package enginetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

// patience bounds every wait.
const patience = 20 * time.Second

// Run runs the suite. fresh makes a place without topics, and returns what opens an engine on it: each as another process would,
// or the same one if the engine is of one process. It closes them at the end of the test.
func Run(t *testing.T, fresh func(t *testing.T) (open func() pubsub.Engine)) {
	for _, test := range []struct {
		name string
		need func(pubsub.Capabilities) bool
		run  func(t *testing.T, open func() pubsub.Engine)
	}{
		{"Name", always, testName},
		{"Order", always, testOrder},
		{"Cancel", always, testCancel},
		{"ToOne", always, testToOne},
		{"Wildcards", func(c pubsub.Capabilities) bool { return c.Wildcards }, testWildcards},
		{"Groups", func(c pubsub.Capabilities) bool { return c.Groups }, testGroups},
		{"Positions", history, testPositions},
		{"History", history, testHistory},
		{"HistoryAge", history, testHistoryAge},
		{"NoGap", history, testNoGap},
		{"Idempotency", func(c pubsub.Capabilities) bool { return c.Idempotency }, testIdempotency},
		{"Presence", func(c pubsub.Capabilities) bool { return c.Presence }, testPresence},
		{"Names", always, testNames},
		{"Servers", history, testServers},
		{"ServerGroups", func(c pubsub.Capabilities) bool { return c.Groups }, testServerGroups},
		{"ServerPresence", func(c pubsub.Capabilities) bool { return c.Presence }, testServerPresence},
	} {
		t.Run(test.name, func(t *testing.T) {
			open := fresh(t)
			e := open()
			if !test.need(e.Capabilities()) {
				t.Skipf("the engine %s cannot do that", e.Capabilities().Name)
			}
			test.run(t, open)
		})
	}
}

func always(pubsub.Capabilities) bool    { return true }
func history(c pubsub.Capabilities) bool { return c.History }

// kept is the configuration of the topics with history.
var kept = pubsub.TopicConfig{HistorySize: 10, HistoryAge: time.Hour}

// sink keeps what it gets.
type sink struct {
	got      chan *pubsub.Message
	presence chan string
	refuse   atomic.Bool
}

func newSink() *sink {
	return &sink{got: make(chan *pubsub.Message, 100_000), presence: make(chan string, 1000)}
}

func (s *sink) Deliver(m *pubsub.Message) bool {
	if s.refuse.Load() {
		return false
	}
	s.got <- m
	return true
}

func (s *sink) Presence(topic string, m pubsub.Member, joined bool) {
	s.presence <- fmt.Sprint(topic, " ", m.ID, " ", string(m.Info), " ", joined)
}

func (s *sink) Interrupted(error) {}
func (s *sink) Resumed()          {}

func (s *sink) next(t *testing.T) *pubsub.Message { t.Helper(); return recv(t, s.got, "message") }

func (s *sink) expect(t *testing.T, data ...string) {
	t.Helper()
	for _, want := range data {
		if m := s.next(t); string(m.Data) != want {
			t.Fatalf("%q, not %q", m.Data, want)
		}
	}
}

func recv[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func publish(t *testing.T, e pubsub.Engine, topic, data string, o pubsub.PublishOptions) pubsub.Receipt {
	t.Helper()
	r, err := e.Publish(within(t), &pubsub.Message{Topic: topic, Data: []byte(data), Timestamp: time.Now().UnixNano()}, o)
	must(t, err)
	return r
}

func subscribe(t *testing.T, e pubsub.Engine, name string, wildcard bool, group string) *sink {
	t.Helper()
	s := newSink()
	cancel, err := e.Subscribe(within(t), pubsub.Filter{Name: name, Wildcard: wildcard}, group, s)
	must(t, err)
	t.Cleanup(cancel)
	return s
}

func page(t *testing.T, e pubsub.Engine, topic string, q pubsub.Query) pubsub.Page {
	t.Helper()
	q.Topic = kept
	p, err := e.History(within(t), topic, q)
	must(t, err)
	return p
}

func data(p pubsub.Page) (list []string) {
	for _, m := range p.Messages {
		list = append(list, string(m.Data))
	}
	return list
}

func testName(t *testing.T, open func() pubsub.Engine) {
	if open().Capabilities().Name == "" {
		t.Fatal("the engine has no name")
	}
}

// testOrder: several publishers on two nodes, with and without history; every sink has the messages of each in order, and those
// of a topic with history in the order of their positions.
func testOrder(t *testing.T, open func() pubsub.Engine) {
	const publishers, messages = 4, 200
	nodes := []pubsub.Engine{open(), open()}
	for _, config := range []pubsub.TopicConfig{{}, kept} {
		topic := fmt.Sprint("order.", config.HistorySize)
		var sinks []*sink
		for _, e := range nodes {
			sinks = append(sinks, subscribe(t, e, topic, false, ""))
		}
		var all sync.WaitGroup
		for p := range publishers {
			all.Go(func() {
				for i := range messages {
					publish(t, nodes[p%2], topic, fmt.Sprint(p, " ", i), pubsub.PublishOptions{Topic: config})
				}
			})
		}
		all.Wait()
		for _, s := range sinks {
			next, last := make([]int, publishers), pubsub.Position{}
			for range publishers * messages {
				m := s.next(t)
				var p, i int
				fmt.Sscan(string(m.Data), &p, &i)
				if next[p] != i {
					t.Fatalf("publisher %d: %d, not %d", p, i, next[p])
				}
				next[p]++
				if !last.IsZero() && (m.Position.Epoch != last.Epoch || m.Position.Offset <= last.Offset) {
					t.Fatalf("%+v after %+v", m.Position, last)
				}
				last = m.Position
			}
		}
	}
}

func testCancel(t *testing.T, open func() pubsub.Engine) {
	e := open()
	s, witness := newSink(), subscribe(t, e, "t", false, "")
	cancel, err := e.Subscribe(within(t), pubsub.Filter{Name: "t"}, "", s)
	must(t, err)
	publish(t, e, "t", "1", pubsub.PublishOptions{})
	s.expect(t, "1")
	cancel()
	publish(t, e, "t", "2", pubsub.PublishOptions{})
	witness.expect(t, "1", "2")
	again := subscribe(t, e, "t", false, "")
	publish(t, e, "t", "3", pubsub.PublishOptions{})
	again.expect(t, "3")
	witness.expect(t, "3")
	for len(s.got) > 0 { // one may have been on its way
		if m := <-s.got; string(m.Data) == "3" {
			t.Fatal("a message after cancel")
		}
	}
}

func testToOne(t *testing.T, open func() pubsub.Engine) {
	const n = 100
	a, b := open(), open()
	sinks := []*sink{subscribe(t, a, "t", false, ""), subscribe(t, b, "t", false, ""), subscribe(t, b, "t", false, "")}
	ctx := within(t)
	for i := range n {
		_, err := a.Publish(ctx, &pubsub.Message{Topic: "t", Data: []byte(fmt.Sprint(i)), ToOne: true}, pubsub.PublishOptions{Topic: kept})
		must(t, err)
	}
	once(t, sinks, n)
	if p := page(t, a, "t", pubsub.Query{}); a.Capabilities().History && len(p.Messages) > 0 {
		t.Fatal("messages to one are kept")
	}
	_, err := a.Publish(ctx, &pubsub.Message{Topic: "nobody", ToOne: true}, pubsub.PublishOptions{})
	must(t, err)
}

// once expects each of n messages once at one of the sinks, none of which may get nothing.
func once(t *testing.T, sinks []*sink, n int) {
	t.Helper()
	seen := map[string]bool{}
	counts := make([]int, len(sinks))
	for end := time.Now().Add(patience); len(seen) < n; {
		for i, s := range sinks {
			for len(s.got) > 0 {
				m := <-s.got
				if seen[string(m.Data)] {
					t.Fatalf("%q came twice", m.Data)
				}
				seen[string(m.Data)] = true
				counts[i]++
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d came", len(seen), n)
		}
		time.Sleep(time.Millisecond) // it has more sinks than a select can have
	}
	if slices.Contains(counts, 0) {
		t.Fatalf("shares %v", counts)
	}
}

func testWildcards(t *testing.T, open func() pubsub.Engine) {
	a, b := open(), open()
	topics := []string{"a", "a.b", "a.c", "a.b.c", "a.b.c.d", "b", "b.b", "a.", "a..b", "ab", "a b.c"}
	sinks := map[string]*sink{}
	for i, pattern := range []string{"*", ">", "a.*", "a.>", "*.b", "a.*.c", "*.*", "a.b.>", "*.b.>"} {
		e := a
		if i%2 == 1 {
			e = b
		}
		sinks[pattern] = subscribe(t, e, pattern, true, "")
	}
	sinks["a.b"] = subscribe(t, a, "a.b", false, "")
	for _, topic := range topics {
		publish(t, a, topic, topic, pubsub.PublishOptions{})
	}
	for pattern, want := range map[string][]string{
		"*": {"a", "b", "ab"}, ">": topics, "a.*": {"a.b", "a.c", "a."}, "a.>": {"a.b", "a.c", "a.b.c", "a.b.c.d", "a.", "a..b"},
		"*.b": {"a.b", "b.b"}, "a.*.c": {"a.b.c"}, "*.*": {"a.b", "a.c", "b.b", "a.", "a b.c"}, "a.b.>": {"a.b.c", "a.b.c.d"},
		"*.b.>": {"a.b.c", "a.b.c.d"}, "a.b": {"a.b"},
	} {
		s := sinks[pattern]
		var got []string
		for range want {
			m := s.next(t)
			if m.Topic != string(m.Data) {
				t.Fatalf("topic %q, not %q", m.Topic, m.Data)
			}
			got = append(got, m.Topic)
		}
		slices.Sort(got)
		want = slices.Sorted(slices.Values(want))
		if !slices.Equal(got, want) || len(s.got) > 0 {
			t.Fatalf("%s: %q and %d more, not %q", pattern, got, len(s.got), want)
		}
	}
}

func testGroups(t *testing.T, open func() pubsub.Engine) {
	const n = 200
	a, b := open(), open()
	witness := subscribe(t, b, "t", false, "")
	workers := []*sink{subscribe(t, a, "t", false, "w"), subscribe(t, a, "t", false, "w"), subscribe(t, b, "t", false, "w")}
	others := []*sink{subscribe(t, a, "t", false, "o"), subscribe(t, b, "t", false, "o")}
	for i := range n {
		publish(t, a, "t", fmt.Sprint(i), pubsub.PublishOptions{})
	}
	once(t, workers, n)
	once(t, others, n)
	for i := range n {
		witness.expect(t, fmt.Sprint(i))
	}
	// One that has nobody any more does not lose messages, as far as the engine can ask.
	workers[0].refuse.Store(true)
	for i := range n {
		publish(t, a, "t", fmt.Sprint("again", i), pubsub.PublishOptions{})
	}
	once(t, workers[1:], n)
}

func testPositions(t *testing.T, open func() pubsub.Engine) {
	a, b := open(), open()
	s := subscribe(t, b, "t", false, "")
	start := page(t, b, "t", pubsub.Query{Limit: -1}).Top
	if start.IsZero() || start.Epoch >= 1<<53 {
		t.Fatalf("a topic begins at %+v", start)
	}
	last := start
	for i := range 5 {
		r := publish(t, a, "t", fmt.Sprint(i), pubsub.PublishOptions{Topic: kept})
		if r.Position.Epoch != start.Epoch || r.Position.Offset <= last.Offset {
			t.Fatalf("%+v after %+v", r.Position, last)
		}
		last = r.Position
		if m := s.next(t); m.Position != last {
			t.Fatalf("delivered with %+v, published with %+v", m.Position, last)
		}
	}
	if top := page(t, b, "t", pubsub.Query{Limit: -1}).Top; top != last {
		t.Fatalf("top %+v, not %+v", top, last)
	}
	if p := page(t, b, "t", pubsub.Query{From: start}); !p.Complete || len(p.Messages) != 5 {
		t.Fatalf("%d messages from the beginning, complete: %v", len(p.Messages), p.Complete)
	}
	other := publish(t, a, "other", "x", pubsub.PublishOptions{Topic: kept})
	if p := page(t, a, "t", pubsub.Query{From: other.Position}); p.Complete && other.Position.Epoch != start.Epoch {
		t.Fatal("complete from a place in another topic's epoch")
	}
	if r := publish(t, a, "none", "x", pubsub.PublishOptions{}); !r.Position.IsZero() {
		t.Fatalf("%+v without history", r)
	}
}

func testHistory(t *testing.T, open func() pubsub.Engine) {
	a, b := open(), open()
	var at []pubsub.Position
	for i := range 25 {
		at = append(at, publish(t, a, "t", fmt.Sprint(i), pubsub.PublishOptions{Topic: kept}).Position)
	}
	list := func(from, to int) (l []string) {
		for i := from; i < to; i++ {
			l = append(l, fmt.Sprint(i))
		}
		return l
	}
	for _, test := range []struct {
		name     string
		q        pubsub.Query
		want     []string
		complete bool
	}{
		{"all", pubsub.Query{}, list(15, 25), false},
		{"last", pubsub.Query{Limit: 3}, list(22, 25), false},
		{"none", pubsub.Query{Limit: -1}, nil, false},
		{"top", pubsub.Query{From: at[24]}, nil, true},
		{"one behind", pubsub.Query{From: at[23]}, list(24, 25), true},
		{"all that is kept", pubsub.Query{From: at[14]}, list(15, 25), true},
		{"first of all", pubsub.Query{From: at[14], Limit: 4}, list(15, 19), true},
		{"one too old", pubsub.Query{From: at[13]}, list(15, 25), false},
		{"much too old", pubsub.Query{From: at[0]}, list(15, 25), false},
	} {
		p := page(t, b, "t", test.q)
		if !slices.Equal(data(p), test.want) || p.Complete != test.complete || p.Top != at[24] {
			t.Errorf("%s: %q, complete: %v, top %+v; not %q, %v, %+v", test.name, data(p), p.Complete, p.Top, test.want, test.complete, at[24])
		}
		for i, m := range p.Messages {
			if n := slices.Index(list(0, 25), string(m.Data)); m.Position != at[n] || m.Topic != "t" {
				t.Errorf("%s: message %d is %+v", test.name, i, m)
			}
		}
	}
	for name, from := range map[string]pubsub.Position{
		"the future": {Epoch: at[24].Epoch, Offset: at[24].Offset + 1}, "another epoch": {Epoch: at[24].Epoch + 1, Offset: at[20].Offset},
	} {
		if page(t, b, "t", pubsub.Query{From: from}).Complete {
			t.Errorf("complete from %s", name)
		}
	}
	if p, err := b.History(within(t), "no such topic", pubsub.Query{}); err != nil || len(p.Messages) > 0 || p.Complete {
		t.Errorf("of a topic without history: %+v, %v", p, err)
	}
}

func testHistoryAge(t *testing.T, open func() pubsub.Engine) {
	e := open()
	config := pubsub.TopicConfig{HistorySize: 100, HistoryAge: 50 * time.Millisecond}
	first := publish(t, e, "t", "1", pubsub.PublishOptions{Topic: config}).Position
	for end := time.Now().Add(patience); ; {
		p, err := e.History(within(t), "t", pubsub.Query{Topic: config})
		must(t, err)
		if len(p.Messages) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a message does not grow too old")
		}
		time.Sleep(time.Millisecond) // it is time that is tested
	}
	// Whoever has had the message has missed nothing, whoever has not has.
	p, err := e.History(within(t), "t", pubsub.Query{From: pubsub.Position{Epoch: first.Epoch, Offset: first.Offset - 1}, Topic: config})
	must(t, err)
	if p.Complete {
		t.Fatal("complete without a message that was dropped")
	}
	if p, err = e.History(within(t), "t", pubsub.Query{From: first, Topic: config}); err != nil || p.Top.Epoch == first.Epoch && !p.Complete {
		t.Fatalf("%+v, %v", p, err)
	}
}

// testNoGap subscribes again and again while somebody publishes: what the history has and what comes is everything, each time.
func testNoGap(t *testing.T, open func() pubsub.Engine) {
	const n, rounds = 3000, 20
	a, b := open(), open()
	config := pubsub.TopicConfig{HistorySize: n}
	last := publish(t, a, "t", "0", pubsub.PublishOptions{Topic: config}).Position
	published := make(chan error, 1)
	go func() {
		for i := 1; i < n; i++ {
			if _, err := a.Publish(context.Background(), &pubsub.Message{Topic: "t", Data: []byte(fmt.Sprint(i))}, pubsub.PublishOptions{Topic: config}); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	next := 1
	take := func(m *pubsub.Message) {
		if m.Position.Offset <= last.Offset {
			return
		}
		if string(m.Data) != fmt.Sprint(next) {
			t.Fatalf("%q, not %d", m.Data, next)
		}
		last = m.Position
		next++
	}
	for r := range rounds {
		s := newSink()
		cancel, err := b.Subscribe(within(t), pubsub.Filter{Name: "t"}, "", s)
		must(t, err)
		p, err := b.History(within(t), "t", pubsub.Query{From: last, Topic: config})
		must(t, err)
		if !p.Complete {
			t.Fatalf("not complete from %+v to %+v", last, p.Top)
		}
		for _, m := range p.Messages {
			take(m)
		}
		for until := n * (r + 1) / rounds; next < until; {
			take(s.next(t))
		}
		cancel()
	}
	must(t, recv(t, published, "end of publishing"))
	if next != n {
		t.Fatalf("%d of %d messages", next, n)
	}
}

func testIdempotency(t *testing.T, open func() pubsub.Engine) {
	a, b := open(), open()
	for _, config := range []pubsub.TopicConfig{{}, kept} {
		topic := fmt.Sprint("t", config.HistorySize)
		s := subscribe(t, b, topic, false, "")
		first := publish(t, a, topic, "1", pubsub.PublishOptions{ID: "x", Topic: config})
		second := publish(t, b, topic, "2", pubsub.PublishOptions{ID: "x", Topic: config})
		if first.Duplicate || !second.Duplicate || first.Position != second.Position {
			t.Fatalf("%+v, %+v", first, second)
		}
		if r := publish(t, a, topic, "3", pubsub.PublishOptions{ID: "y", Topic: config}); r.Duplicate {
			t.Fatal("another ID is a duplicate")
		}
		if r := publish(t, a, topic+" too", "3", pubsub.PublishOptions{ID: "x", Topic: config}); r.Duplicate {
			t.Fatal("the ID of another topic is a duplicate")
		}
		s.expect(t, "1", "3")
		var wg sync.WaitGroup
		var fresh atomic.Int32
		for range 10 {
			wg.Go(func() {
				if !publish(t, a, topic, "4", pubsub.PublishOptions{ID: "at once", Topic: config}).Duplicate {
					fresh.Add(1)
				}
			})
		}
		wg.Wait()
		publish(t, a, topic, "5", pubsub.PublishOptions{Topic: config})
		s.expect(t, "4", "5")
		if fresh.Load() != 1 {
			t.Fatalf("%d of those that were published at once are no duplicates", fresh.Load())
		}
	}
}

func testPresence(t *testing.T, open func() pubsub.Engine) {
	a, b := open(), open()
	watch := subscribe(t, b, "room", false, "")
	other := subscribe(t, b, "other", false, "")
	leave1, err := a.Join(within(t), "room", pubsub.Member{ID: "1", Info: []byte("one")})
	must(t, err)
	leave2, err := b.Join(within(t), "room", pubsub.Member{ID: "2"})
	must(t, err)
	want := func(events ...string) {
		t.Helper()
		var got []string
		for range events {
			got = append(got, recv(t, watch.presence, "event"))
		}
		slices.Sort(got)
		slices.Sort(events)
		if !slices.Equal(got, events) {
			t.Fatalf("%q, not %q", got, events)
		}
	}
	want("room 1 one true", "room 2  true")
	for _, e := range []pubsub.Engine{a, b} {
		members, err := e.Members(within(t), "room")
		must(t, err)
		slices.SortFunc(members, func(a, b pubsub.Member) int { return slices.Compare([]byte(a.ID), []byte(b.ID)) })
		if len(members) != 2 || members[0].ID != "1" || string(members[0].Info) != "one" || members[1].ID != "2" {
			t.Fatalf("%+v", members)
		}
	}
	leave1()
	leave1()
	want("room 1 one false")
	leave2()
	want("room 2  false")
	if members, err := a.Members(within(t), "room"); err != nil || len(members) != 0 {
		t.Fatalf("%+v, %v", members, err)
	}
	if len(other.presence) > 0 {
		t.Fatal("another topic has been told")
	}
}

// testNames uses names that mean something to the systems below.
func testNames(t *testing.T, open func() pubsub.Engine) {
	a, b := open(), open()
	long := make([]byte, pubsub.MaxTopicNameLen)
	for i := range long {
		long[i] = 'x'
	}
	names := []string{"*", ">", "a.*", ".", "..", "a b", "$SYS.x", "_INBOX.x", "ü", "\x00\xff", "{a}", "a:b", "A", "%20", "/", string(long)}
	var sinks []*sink
	for _, name := range names {
		sinks = append(sinks, subscribe(t, b, name, false, ""))
	}
	for _, name := range names {
		publish(t, a, name, name, pubsub.PublishOptions{Topic: kept})
		publish(t, a, name, "end", pubsub.PublishOptions{Topic: kept})
	}
	for i, s := range sinks {
		s.expect(t, names[i], "end")
		if a.Capabilities().History {
			if got := data(page(t, b, names[i], pubsub.Query{})); !slices.Equal(got, []string{names[i], "end"}) {
				t.Errorf("%q: history %q", names[i], got)
			}
		}
	}
}

// serve starts a server on an engine.
func serve(t *testing.T, e pubsub.Engine, topics func(string) pubsub.TopicConfig) (s *pubsub.Server, addr string) {
	t.Helper()
	s, err := pubsub.NewServerWith(pubsub.Config{Engine: e, Topics: topics})
	must(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop() //nolint:errcheck // the other is asked
		if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, ln.Addr().String()
}

// testServers moves a subscriber between two servers while somebody publishes to both: nothing is missing, nothing comes twice,
// and Recovered says so; when it was away for too long, Recovered says that.
func testServers(t *testing.T, open func() pubsub.Engine) {
	const n = 2000
	size := atomic.Int64{}
	size.Store(100_000)
	topics := func(string) pubsub.TopicConfig { return pubsub.TopicConfig{HistorySize: int(size.Load())} }
	sa, addrA := serve(t, open(), topics)
	sb, addrB := serve(t, open(), topics)
	var current atomic.Pointer[string]
	current.Store(&addrA)
	conns := make(chan net.Conn, 1000)
	gate := make(chan struct{}, 1000)
	gate <- struct{}{}
	c, err := pubsub.NewClient(func() (net.Conn, error) {
		select {
		case <-gate:
		default:
			return nil, errors.New("not now")
		}
		nc, err := net.Dial("tcp", *current.Load())
		if err == nil {
			conns <- nc
		}
		return nc, err
	}, arpc.Backoff(time.Millisecond, time.Millisecond))
	must(t, err)
	defer c.Stop()
	got, events := make(chan string, 10*n), make(chan pubsub.Event, 100)
	_, err = c.SubscribeWith(within(t), "t", func(m *pubsub.Message) { got <- string(m.Data) },
		pubsub.OnEvent(func(e pubsub.Event) { events <- e }), pubsub.QueueSize(1<<20))
	must(t, err)
	recv(t, events, "event")
	next := 0
	move := func(addr *string) {
		current.Store(addr)
		recv(t, conns, "connection").Close()
		gate <- struct{}{}
	}
	published := make(chan error, 1)
	go func() {
		for i := range n {
			s := sa
			if i%2 == 1 {
				s = sb
			}
			if err := s.Publish("t", fmt.Sprint(i)); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	for next < n {
		if next%(n/10) == n/20 {
			addr := &addrA
			if current.Load() == addr {
				addr = &addrB
			}
			move(addr)
			if e := recv(t, events, "event"); e.Kind != pubsub.EventSubscribed || !e.Resumed || !e.Recovered {
				t.Fatalf("%+v", e)
			}
		}
		if m := recv(t, got, "message"); m != fmt.Sprint(next) {
			t.Fatalf("%s, not %d", m, next)
		}
		next++
	}
	must(t, recv(t, published, "end of publishing"))
	// Away for longer than the history lasts.
	size.Store(5)
	recv(t, conns, "connection").Close()
	for i := range 20 {
		must(t, sb.Publish("t", fmt.Sprint("missed ", i)))
	}
	gate <- struct{}{}
	if e := recv(t, events, "event"); e.Kind != pubsub.EventSubscribed || !e.Resumed || e.Recovered {
		t.Fatalf("after a gap: %+v", e)
	}
	must(t, sa.Publish("t", "end"))
	for recv(t, got, "message") != "end" {
	}
}

func testServerGroups(t *testing.T, open func() pubsub.Engine) {
	const n = 300
	sa, addrA := serve(t, open(), nil)
	_, addrB := serve(t, open(), nil)
	got := make(chan string, 10*n)
	for i, addr := range []string{addrA, addrB, addrA} {
		c := dial(t, addr)
		_, err := c.SubscribeWith(within(t), "jobs.*", func(m *pubsub.Message) { got <- fmt.Sprint(i, " ", string(m.Data)) }, pubsub.Group("workers"))
		must(t, err)
	}
	for i := range n {
		must(t, sa.Publish("jobs.x", fmt.Sprint(i)))
	}
	seen, workers := map[int]bool{}, map[int]int{}
	for range n {
		var w, i int
		fmt.Sscan(recv(t, got, "job"), &w, &i)
		if seen[i] {
			t.Fatalf("job %d came twice", i)
		}
		seen[i] = true
		workers[w]++
	}
	if len(workers) < 2 { // one whose connection is not ready yet is passed over
		t.Fatalf("shares %v", workers)
	}
}

func testServerPresence(t *testing.T, open func() pubsub.Engine) {
	topics := func(string) pubsub.TopicConfig { return pubsub.TopicConfig{Presence: true} }
	sa, addrA := serve(t, open(), topics)
	_, addrB := serve(t, open(), topics)
	watcher, ctx := dial(t, addrB), within(t)
	events := make(chan pubsub.Event, 100)
	_, err := watcher.SubscribeWith(ctx, "room", func(*pubsub.Message) {}, pubsub.WatchPresence(), pubsub.OnEvent(func(e pubsub.Event) { events <- e }))
	must(t, err)
	recv(t, events, "event")
	var subs []*pubsub.Subscription
	for i := range 3 {
		c := dial(t, addrA)
		s, err := c.SubscribeWith(ctx, "room", func(*pubsub.Message) {}, pubsub.Present([]byte(fmt.Sprint(`{"n":`, i, `}`))))
		must(t, err)
		if e := recv(t, events, "event"); e.Kind != pubsub.EventJoined || e.Member.ID != s.Member() || string(e.Member.Info) != fmt.Sprint(`{"n":`, i, `}`) {
			t.Fatalf("%+v", e)
		}
		subs = append(subs, s)
	}
	for _, list := range []func(context.Context, string) ([]pubsub.Member, error){watcher.Members, sa.Members} {
		if members, err := list(ctx, "room"); err != nil || len(members) != 3 {
			t.Fatalf("%+v, %v", members, err)
		}
	}
	must(t, subs[1].Unsubscribe(ctx))
	if e := recv(t, events, "event"); e.Kind != pubsub.EventLeft || e.Member.ID != subs[1].Member() {
		t.Fatalf("%+v", e)
	}
	sa.Stop() //nolint:errcheck // its clients are gone for good
	for range 2 {
		if e := recv(t, events, "event"); e.Kind != pubsub.EventLeft {
			t.Fatalf("%+v", e)
		}
	}
	if members, err := watcher.Members(ctx, "room"); err != nil || len(members) != 0 {
		t.Fatalf("%+v, %v", members, err)
	}
}

func dial(t *testing.T, addr string) *pubsub.Client {
	t.Helper()
	c, err := pubsub.NewClient(func() (net.Conn, error) { return net.Dial("tcp", addr) })
	must(t, err)
	t.Cleanup(c.Stop)
	return c
}
