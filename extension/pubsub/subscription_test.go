package pubsub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

func history(n int) func(string) TopicConfig {
	return func(string) TopicConfig { return TopicConfig{HistorySize: n} }
}

func TestWildcardsAndSeveralSubscriptions(t *testing.T) {
	s, addr := serve(t, Config{})
	c, ctx := connect(t, addr), within(t)
	got := make(chan string, 100)
	add := func(name, pattern string) *Subscription {
		sub, err := c.SubscribeWith(ctx, pattern, func(m *Message) { got <- name + " " + m.Topic + " " + string(m.Data) })
		must(t, err)
		return sub
	}
	add("exact", "a.b")
	second := add("second", "a.b")
	add("third", "a.b")
	add("star", "a.*")
	add("rest", "a.>")
	expect := func(want ...string) {
		t.Helper()
		var all []string
		for range want {
			all = append(all, recv(t, got, "message"))
		}
		slices.Sort(all)
		if !slices.Equal(all, want) {
			t.Fatalf("%q, not %q", all, want)
		}
	}
	must(t, s.Publish("a.b", "1"))
	expect("exact a.b 1", "rest a.b 1", "second a.b 1", "star a.b 1", "third a.b 1")
	must(t, s.Publish("a.b.c", "2"))
	expect("rest a.b.c 2")
	must(t, second.Unsubscribe(ctx))
	must(t, second.Unsubscribe(ctx))
	must(t, s.Publish("a.b", "3"))
	expect("exact a.b 3", "rest a.b 3", "star a.b 3", "third a.b 3")
	add("fourth", "a.b")
	must(t, s.Publish("a.b", "4"))
	expect("exact a.b 4", "fourth a.b 4", "rest a.b 4", "star a.b 4", "third a.b 4")
	for _, bad := range []string{"", "a.>.b", ">.>", "*" + strings.Repeat(".x", 32), strings.Repeat("x", MaxTopicNameLen+1)} {
		_, err := c.SubscribeWith(ctx, bad, func(*Message) {})
		wantCode(t, err, arpc.CodeInvalidArgument)
	}
	_, err := c.PublishWith(ctx, "a.*", "x")
	wantCode(t, err, arpc.CodeInvalidArgument)
	for _, opt := range []SubscribeOption{From(Position{1, 1}), Last(3), Present(nil), WatchPresence()} {
		_, err = c.SubscribeWith(ctx, "a.*", func(*Message) {}, opt)
		wantCode(t, err, arpc.CodeInvalidArgument)
	}
	_, err = c.SubscribeWith(ctx, "a", func(*Message) {}, Present(nil))
	wantCode(t, err, arpc.CodeFailedPrecondition)
}

func TestFromLastAndHistory(t *testing.T) {
	s, addr := serve(t, Config{Topics: history(10)})
	c, ctx := connect(t, addr), within(t)
	var at []Position
	for i := range 20 {
		r, err := s.PublishWith(ctx, "t", fmt.Sprint(i), WithKey("k"))
		must(t, err)
		at = append(at, r.Position)
	}
	begin := func(opts ...SubscribeOption) (Event, []string, *Subscription) {
		t.Helper()
		events, got := make(chan Event, 10), make(chan string, 100)
		sub, err := c.SubscribeWith(ctx, "t", func(m *Message) {
			if m.Key != "k" || m.Topic != "t" {
				t.Errorf("%+v", m)
			}
			got <- string(m.Data)
		}, append(opts, OnEvent(func(e Event) { events <- e }))...)
		must(t, err)
		_, err = c.PublishWith(ctx, "t", "end", WithKey("k"))
		must(t, err)
		e := recv(t, events, "event")
		var list []string
		for {
			m := recv(t, got, "message")
			if m == "end" {
				break
			}
			list = append(list, m)
		}
		must(t, sub.Unsubscribe(ctx))
		return e, list, sub
	}
	if e, list, sub := begin(Last(3)); e.Resumed || e.Recovered || !slices.Equal(list, []string{"17", "18", "19"}) || sub.Position().Offset != at[19].Offset+1 {
		t.Fatalf("%+v, %q, %+v", e, list, sub.Position())
	}
	if e, list, _ := begin(); e.Resumed || e.Recovered || len(list) > 0 || e.Position.Offset != at[19].Offset+1 {
		t.Fatalf("%+v, %q", e, list)
	}
	if e, list, _ := begin(From(at[17])); !e.Resumed || !e.Recovered || !slices.Equal(list[:2], []string{"18", "19"}) {
		t.Fatalf("%+v, %q", e, list)
	}
	if e, _, _ := begin(From(at[2])); !e.Resumed || e.Recovered {
		t.Fatalf("%+v", e)
	}
	if e, list, _ := begin(From(Position{at[0].Epoch, at[0].Offset + 1000})); !e.Resumed || e.Recovered || len(list) > 0 {
		t.Fatalf("%+v, %q", e, list)
	}
	p, err := c.History(ctx, "t", Query{Limit: 2})
	must(t, err)
	if len(p.Messages) != 2 || p.Messages[1].Position != p.Top || p.Complete {
		t.Fatalf("%+v", p)
	}
	if p, err = c.History(ctx, "t", Query{From: p.Messages[0].Position}); err != nil || !p.Complete || len(p.Messages) != 1 || p.Messages[0].Key != "k" {
		t.Fatalf("%+v, %v", p, err)
	}
	first, err := c.PublishWith(ctx, "t", "x", WithID("id"))
	must(t, err)
	again, err := c.PublishWith(ctx, "t", "x", WithID("id"))
	if err != nil || !again.Duplicate || first.Duplicate || again.Position != first.Position {
		t.Fatalf("%+v, %+v, %v", first, again, err)
	}
	none, err := c.PublishWith(ctx, strings.Repeat("x", 300), "x", WithKey(strings.Repeat("x", 256)))
	wantCode(t, err, arpc.CodeInvalidArgument)
	_ = none
}

func TestLastValue(t *testing.T) {
	s, addr := serve(t, Config{Topics: func(string) TopicConfig { return TopicConfig{LastValue: true} }})
	c, ctx := connect(t, addr), within(t)
	got := make(chan string, 10)
	h := func(m *Message) { got <- string(m.Data) }
	_, err := c.SubscribeWith(ctx, "t", h)
	must(t, err)
	must(t, s.Publish("t", "1"))
	recv(t, got, "message")
	must(t, s.Publish("t", "2"))
	recv(t, got, "message")
	_, err = c.SubscribeWith(ctx, "t", h)
	must(t, err)
	if m := recv(t, got, "last value"); m != "2" {
		t.Fatal(m)
	}
}

type price struct{ Cents int }

func TestTypedTopic(t *testing.T) {
	prices := NewTopic[price]("prices.x")
	s, addr := serve(t, Config{})
	c, ctx := connect(t, addr), within(t)
	got, events := make(chan price, 10), make(chan Event, 10)
	_, err := prices.Subscribe(ctx, c, func(v *price, m *Message) { got <- *v }, OnEvent(func(e Event) { events <- e }))
	must(t, err)
	for i, p := range []Publisher{s, c} {
		_, err = prices.Publish(ctx, p, &price{i})
		must(t, err)
		if v := recv(t, got, "value"); v.Cents != i {
			t.Fatalf("%+v", v)
		}
	}
	must(t, s.Publish("prices.x", "not JSON"))
	recv(t, events, "start")
	if e := recv(t, events, "event"); e.Kind != EventMalformed || e.Err == nil {
		t.Fatalf("%+v", e)
	}
	defer func() {
		if recover() == nil {
			t.Error("NewTopic took a bad name")
		}
	}()
	NewTopic[price]("a.>.b")
}

func TestPresenceOfGuests(t *testing.T) {
	config := Config{Topics: func(string) TopicConfig { return TopicConfig{Presence: true} }, Limits: Limits{Info: 100}}
	_, addr := serve(t, config)
	c, ctx := connect(t, addr), within(t)
	h := func(*Message) {}
	sub, err := c.SubscribeWith(ctx, "t", h, Present(json.RawMessage(`{"name":"ann"}`)))
	must(t, err)
	members, err := c.Members(ctx, "t")
	if err != nil || len(members) != 1 || members[0].ID != sub.Member() || string(members[0].Info) != `{"name":"ann"}` {
		t.Fatalf("%+v, %v", members, err)
	}
	_, err = c.SubscribeWith(ctx, "t", h, Present(json.RawMessage(`"`+strings.Repeat("x", 100)+`"`)))
	wantCode(t, err, arpc.CodeInvalidArgument)
	must(t, sub.Unsubscribe(ctx))
	if members, err = c.Members(ctx, "t"); err != nil || len(members) != 0 {
		t.Fatalf("%+v, %v", members, err)
	}
}

func TestRevoke(t *testing.T) {
	s, addr := serve(t, Config{Password: "pw"})
	c, ctx := connect(t, addr), within(t)
	c.Password = "pw"
	must(t, c.Authenticate())
	events := make(chan Event, 10)
	sub, err := c.SubscribeWith(ctx, "a", func(*Message) {}, OnEvent(func(e Event) { events <- e }))
	must(t, err)
	kept, err := c.SubscribeWith(ctx, "b", func(*Message) {})
	must(t, err)
	recv(t, events, "event")
	s.Revoke(func(_ *arpc.Client, topic string) error {
		if topic == "a" {
			return errors.New("no longer")
		}
		return nil
	})
	e := recv(t, events, "event")
	if e.Kind != EventEnded || arpc.CodeOf(e.Err) != arpc.CodePermissionDenied || e.Err.Error() != "no longer" || sub.Err() == nil {
		t.Fatalf("%+v", e)
	}
	recv(t, sub.Done(), "end")
	if n := s.TopicStats().Subscriptions; n != 1 || kept.Err() != nil {
		t.Fatalf("%d subscriptions", n)
	}
}

// poor is an engine that can do nothing but deliver.
type poor struct{ *Memory }

func (poor) Capabilities() Capabilities { return Capabilities{Name: "poor"} }

func TestRequire(t *testing.T) {
	e := poor{NewMemory(MemoryConfig{})}
	defer e.Close()
	s, addr := serve(t, Config{Engine: e, Topics: func(topic string) TopicConfig {
		return TopicConfig{LastValue: topic == "last", Presence: true}
	}})
	c, ctx := connect(t, addr), within(t)
	wantCode(t, s.Publish("last", "x"), arpc.CodeUnimplemented)
	must(t, s.Publish("plain", "x"))
	_, err := c.PublishWith(ctx, "plain", "x", WithID("1"))
	wantCode(t, err, arpc.CodeUnimplemented)
	for topic, opt := range map[string]SubscribeOption{"last": Last(1), "a.*": QueueSize(1), "plain": Group("g"), "room": Present(nil)} {
		_, err := c.SubscribeWith(ctx, topic, func(*Message) {}, opt)
		wantCode(t, err, arpc.CodeUnimplemented)
	}
	_, err = NewServerWith(Config{Require: Capabilities{Shared: true}})
	wantCode(t, err, arpc.CodeUnimplemented)
	if !strings.Contains(err.Error(), "the engine memory has no topics that several processes share") {
		t.Fatal(err)
	}
}

// fragile is an engine that can be out of reach.
type fragile struct {
	*Memory
	away atomic.Bool
	sink chan fragileSink
}

type fragileSink struct {
	Sink
	away *atomic.Bool
}

func (s fragileSink) Deliver(m *Message) bool { return !s.away.Load() && s.Sink.Deliver(m) }

func (e *fragile) Subscribe(ctx context.Context, f Filter, group string, s Sink) (func(), error) {
	fs := fragileSink{s, &e.away}
	e.sink <- fs
	return e.Memory.Subscribe(ctx, f, group, fs)
}

// TestInterruptedEngine: subscribers are told, and recover.
func TestInterruptedEngine(t *testing.T) {
	e := &fragile{Memory: NewMemory(MemoryConfig{}), sink: make(chan fragileSink, 10)}
	defer e.Close()
	s, addr := serve(t, Config{Engine: e, Topics: history(10)})
	c, ctx := connect(t, addr), within(t)
	events, got := make(chan Event, 10), make(chan string, 10)
	_, err := c.SubscribeWith(ctx, "t", func(m *Message) { got <- string(m.Data) }, OnEvent(func(e Event) { events <- e }))
	must(t, err)
	sink := recv(t, e.sink, "subscription")
	must(t, s.Publish("t", "1"))
	if m := recv(t, got, "message"); m != "1" {
		t.Fatal(m)
	}
	recv(t, events, "event")
	e.away.Store(true)
	sink.Interrupted(errors.New("no cluster"))
	if e := recv(t, events, "event"); e.Kind != EventInterrupted || e.Err.Error() != "no cluster" {
		t.Fatalf("%+v", e)
	}
	must(t, s.Publish("t", "2"))
	e.away.Store(false)
	sink.Resumed()
	must(t, s.Publish("t", "3")) // it may come before the client has asked for what is missing
	if e := recv(t, events, "event"); e.Kind != EventSubscribed || !e.Resumed || !e.Recovered {
		t.Fatalf("%+v", e)
	}
	if m := recv(t, got, "message"); m != "2" {
		t.Fatal(m)
	}
	if m := recv(t, got, "message"); m != "3" {
		t.Fatal(m)
	}
	e.Memory.Close()
	wantCode(t, s.Publish("t", "4"), arpc.CodeUnavailable)
	wantCode(t, c.Publish("t", "4", patience), arpc.CodeUnavailable)
}

// TestSubscribeWhileInterrupted: who begins while the engine is out of reach misses nothing that comes before the engine says that
// it is back.
func TestSubscribeWhileInterrupted(t *testing.T) {
	e := &fragile{Memory: NewMemory(MemoryConfig{}), sink: make(chan fragileSink, 10)}
	defer e.Close()
	s, addr := serve(t, Config{Engine: e, Topics: history(10)})
	ctx := within(t)
	_, err := connect(t, addr).SubscribeWith(ctx, "t", func(*Message) {})
	must(t, err)
	sink := recv(t, e.sink, "subscription")
	must(t, s.Publish("t", "1"))
	e.away.Store(true)
	sink.Interrupted(errors.New("no cluster"))
	events, got := make(chan Event, 10), make(chan string, 10)
	_, err = connect(t, addr).SubscribeWith(ctx, "t", func(m *Message) { got <- string(m.Data) }, OnEvent(func(e Event) { events <- e }))
	must(t, err)
	for _, kind := range []EventKind{EventSubscribed, EventInterrupted} {
		if e := recv(t, events, "event"); e.Kind != kind {
			t.Fatalf("%+v", e)
		}
	}
	must(t, s.Publish("t", "2"))
	e.away.Store(false)
	must(t, s.Publish("t", "3")) // the engine delivers again, and has not said so yet
	sink.Resumed()
	if e := recv(t, events, "event"); e.Kind != EventSubscribed || !e.Recovered {
		t.Fatalf("%+v", e)
	}
	for _, want := range []string{"2", "3"} {
		if m := recv(t, got, "message"); m != want {
			t.Fatalf("%s, not %s", m, want)
		}
	}
}

// TestRecoversUnderFire cuts a subscriber's connection all the time while somebody publishes. It must have everything, once, or
// be told of a gap: Recovered is never wrong.
func TestRecoversUnderFire(t *testing.T) {
	for _, size := range []int{100_000, 60, 20} { // in the second case there are gaps
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			const n = 5000
			s, addr := serve(t, Config{Topics: history(size)})
			conns := make(chan net.Conn, 10_000)
			c, err := NewClient(func() (net.Conn, error) {
				nc, err := net.Dial("tcp", addr)
				if err == nil {
					conns <- nc
				}
				return nc, err
			}, arpc.Backoff(time.Millisecond, time.Millisecond))
			must(t, err)
			defer c.Stop()
			next, gaps, recovered := 0, 0, 0
			gap := false
			resumed := make(chan struct{}, n)
			done := make(chan error, 1)
			fail := func(err error) {
				select {
				case done <- err:
				default:
				}
			}
			_, err = c.SubscribeWith(within(t), "t", func(m *Message) {
				var i int
				fmt.Sscan(string(m.Data), &i)
				switch {
				case i == n:
					fail(nil)
				case i < next:
					fail(fmt.Errorf("%d after %d", i, next-1))
				case i > next && !gap:
					fail(fmt.Errorf("%d after %d, and nobody said so", i, next-1))
				}
				gap, next = false, i+1
			}, OnEvent(func(e Event) {
				if e.Kind == EventSubscribed && e.Resumed {
					resumed <- struct{}{}
				}
				switch {
				case e.Kind == EventLost:
					gap = true
				case e.Kind != EventSubscribed || !e.Resumed:
				case e.Recovered:
					recovered++
				default:
					gap = true
					gaps++
				}
			}), QueueSize(100))
			must(t, err)
			stop := make(chan struct{})
			go func() {
				defer close(stop)
				for i := range n {
					if err := s.Publish("t", fmt.Sprint(i)); err != nil {
						fail(err)
					}
					switch {
					case i%100 == 60:
						select {
						case <-resumed:
						case <-time.After(patience):
							fail(errors.New("the subscription does not go on"))
							return
						}
					case i%100 == 0:
						select {
						case nc := <-conns: // it is being dialled; so some messages are published without it
							nc.Close()
						case <-time.After(patience):
							fail(errors.New("the client does not come back"))
							return
						}
					}
				}
			}()
			recv(t, stop, "end of publishing")
			waitFor(t, "a subscription at the end", func() bool { return s.TopicStats().Subscriptions == 1 })
			must(t, s.Publish("t", fmt.Sprint(n)))
			for {
				select {
				case err := <-done:
					must(t, err)
					t.Logf("%d recoveries, %d gaps", recovered, gaps)
					if size > n && (recovered == 0 || gaps > 0) || size == 20 && gaps == 0 {
						t.Error("this has not tested what it is for")
					}
					return
				case <-time.After(50 * time.Millisecond): // the last message may be what is not recovered
					s.Publish("t", fmt.Sprint(n))
				}
			}
		})
	}
}
