package nats

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
	"github.com/nats-io/nats.go/jetstream"
)

var lasting = pubsub.TopicConfig{HistorySize: 10_000, HistoryAge: time.Hour}

// sink keeps what it gets.
type sink struct {
	got    chan *pubsub.Message
	events chan string
	gate   atomic.Pointer[chan struct{}] // Deliver waits for it, if there is one
}

func newSink() *sink {
	return &sink{got: make(chan *pubsub.Message, 100_000), events: make(chan string, 1000)}
}

func (s *sink) Deliver(m *pubsub.Message) bool {
	if gate := s.gate.Load(); gate != nil {
		<-*gate
	}
	s.got <- m
	return true
}

func (s *sink) Presence(topic string, m pubsub.Member, joined bool) {
	s.events <- fmt.Sprint(topic, " ", m.ID, " ", joined)
}
func (s *sink) Interrupted(error) { s.events <- "interrupted" }
func (s *sink) Resumed()          { s.events <- "resumed" }

func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func (s *sink) event(t testing.TB, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := recv(t, s.events, w); got != w {
			t.Fatalf("%s, not %s", got, w)
		}
	}
}

func subscribe(t testing.TB, e *Engine, topic string) *sink {
	t.Helper()
	s := newSink()
	cancel, err := e.Subscribe(within(t), pubsub.Filter{Name: topic}, "", s)
	must(t, err)
	t.Cleanup(cancel)
	return s
}

func publish(t testing.TB, e *Engine, topic, data string, config pubsub.TopicConfig) pubsub.Receipt {
	t.Helper()
	r, err := e.Publish(within(t), &pubsub.Message{Topic: topic, Data: []byte(data)}, pubsub.PublishOptions{Topic: config})
	must(t, err)
	return r
}

func page(t testing.TB, e *Engine, topic string, q pubsub.Query) pubsub.Page {
	t.Helper()
	if q.Topic == (pubsub.TopicConfig{}) {
		q.Topic = lasting
	}
	p, err := e.History(within(t), topic, q)
	must(t, err)
	return p
}

func wantCode(t testing.TB, err error, code arpc.Code) {
	t.Helper()
	if arpc.CodeOf(err) != code {
		t.Fatalf("error %v, not with code %v", err, code)
	}
}

// waitFor polls for what no event tells.
func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// fixedAddr returns an address that a server can have again: the system takes no port like that for a connection.
func fixedAddr(t testing.TB) string {
	t.Helper()
	for {
		ln, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 20_000+rand.IntN(10_000)))
		if err == nil {
			defer ln.Close()
			return ln.Addr().String()
		}
	}
}

// TestEngineLoss ends nats-server under two servers and subscribers, and starts it again on the same files: publishers are told at
// once, subscribers are told and recover all, from publishers that repeat.
func TestEngineLoss(t *testing.T) {
	t.Parallel()
	config := embedded.Config{Dir: t.TempDir(), Addr: fixedAddr(t)}
	ns, err := embedded.Start(config)
	must(t, err)
	defer func() { ns.Stop() }()
	const rounds = 3
	topics := func(string) pubsub.TopicConfig { return lasting }
	var servers []*pubsub.Server
	var clients []*pubsub.Client
	for range 2 {
		e := open(t, Config{URL: ns.URL(), Heartbeat: beat})
		s, err := pubsub.NewServerWith(pubsub.Config{Engine: e, Topics: topics, Require: pubsub.Capabilities{History: true, Shared: true}})
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
		c, err := pubsub.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) })
		must(t, err)
		t.Cleanup(c.Stop)
		servers, clients = append(servers, s), append(clients, c)
	}
	got := make(chan string, 100_000)
	events := make(chan pubsub.Event, 100)
	_, err = clients[0].SubscribeWith(within(t), "t", func(m *pubsub.Message) { got <- string(m.Data) },
		pubsub.OnEvent(func(e pubsub.Event) { events <- e }))
	must(t, err)
	if e := recv(t, events, "event"); e.Kind != pubsub.EventSubscribed {
		t.Fatalf("%+v", e)
	}
	var refused, progress atomic.Int64
	published, stop := make(chan error, 1), make(chan struct{})
	go func() {
		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-pace.C:
			case <-stop:
				published <- nil
				return
			}
			id := fmt.Sprint(progress.Load())
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			_, err := servers[1].PublishWith(ctx, "t", id, pubsub.WithID(id))
			cancel()
			switch {
			case err == nil:
				progress.Add(1)
			case arpc.CodeOf(err) == arpc.CodeUnavailable:
				refused.Add(1)
			default:
				published <- err
				return
			}
		}
	}()
	for range rounds {
		enough := progress.Load() + 50
		waitFor(t, "messages", func() bool { return progress.Load() >= enough })
		before := refused.Load()
		ns.Stop()
		if e := recv(t, events, "event"); e.Kind != pubsub.EventInterrupted {
			t.Fatalf("%+v", e)
		}
		waitFor(t, "a refused message", func() bool { return refused.Load() > before })
		ns, err = embedded.Start(config)
		must(t, err)
		if e := recv(t, events, "event"); e.Kind != pubsub.EventSubscribed || !e.Resumed || !e.Recovered {
			t.Fatalf("%+v", e)
		}
	}
	close(stop)
	must(t, recv(t, published, "end of publishing"))
	for i := range progress.Load() {
		if m := recv(t, got, "message"); m != fmt.Sprint(i) {
			t.Fatalf("%s, not %d", m, i)
		}
	}
}

// TestStreamLost: when a stream is removed, or its files are lost, the topic has another epoch, and nobody is told that nothing is
// missing.
func TestStreamLost(t *testing.T) {
	t.Parallel()
	for _, storage := range []jetstream.StorageType{jetstream.FileStorage, jetstream.MemoryStorage} {
		t.Run(storage.String(), func(t *testing.T) {
			config := embedded.Config{Dir: t.TempDir(), Addr: fixedAddr(t)}
			ns, err := embedded.Start(config)
			must(t, err)
			defer func() { ns.Stop() }()
			e := open(t, Config{URL: ns.URL(), Storage: storage})
			s := subscribe(t, e, "t")
			var last pubsub.Receipt
			for range 5 {
				last = publish(t, e, "t", "old", lasting)
				recv(t, s.got, "message")
			}
			if storage == jetstream.FileStorage {
				must(t, e.js.DeleteStream(within(t), "arpc_"+e.classOf(lasting).token()))
			} else { // a restart is all it takes
				ns.Stop()
				s.event(t, "interrupted")
				ns, err = embedded.Start(config)
				must(t, err)
				s.event(t, "resumed")
			}
			for range 7 {
				r := publish(t, e, "t", "new", lasting)
				if r.Position.Epoch == last.Position.Epoch {
					t.Fatal("the epoch is the same")
				}
				if m := recv(t, s.got, "message"); m.Position != r.Position {
					t.Fatalf("%+v, not %+v", m.Position, r.Position)
				}
			}
			if storage == jetstream.FileStorage {
				s.event(t, "interrupted", "resumed") // before the first of the new ones
			}
			if p := page(t, e, "t", pubsub.Query{From: last.Position}); p.Complete {
				t.Fatal("complete from a lost epoch")
			}
		})
	}
}

// TestMissed loses messages on the way from the stream to the engine: subscribers are told with the next one, or by the sweep.
func TestMissed(t *testing.T) {
	t.Parallel()
	ns := start(t, embedded.Config{})
	e := open(t, Config{Server: ns, Pending: 10})
	other := open(t, Config{Server: ns})
	s := subscribe(t, e, "t")
	page(t, e, "t", pubsub.Query{Limit: -1})
	gate := make(chan struct{})
	s.gate.Store(&gate)
	for i := range 100 { // many more than may wait
		publish(t, other, "t", fmt.Sprint(i), lasting)
	}
	s.event(t, "interrupted", "resumed") // of the slow subscription, as soon as it is
	close(gate)
	s.gate.Store(nil)
	var last *pubsub.Message
	for range 10 {
		last = recv(t, s.got, "message")
	}
	// What was lost in front of this one is told now, and the sweep would tell otherwise.
	r := publish(t, other, "t", "after", lasting)
	for last.Position != r.Position {
		last = recv(t, s.got, "message")
	}
	s.event(t, "interrupted", "resumed")
	// A message that nothing follows: it never reaches the engine.
	e.mu.Lock()
	x := e.entries[entryKey{Filter: pubsub.Filter{Name: "t"}}]
	e.mu.Unlock()
	x.mu.Lock()
	must(t, x.main.Unsubscribe())
	x.main = nil
	x.mu.Unlock()
	publish(t, other, "t", "silent", lasting)
	s.event(t, "interrupted", "resumed")
}

// TestRefusals: what an engine needs and does not have is said when it is made.
func TestRefusals(t *testing.T) {
	t.Parallel()
	t.Run("NobodyThere", func(t *testing.T) {
		_, err := New(within(t), Config{URL: "nats://" + fixedAddr(t)})
		wantCode(t, err, arpc.CodeUnavailable)
	})
	t.Run("NoJetStream", func(t *testing.T) {
		ns, err := embedded.Start(embedded.Config{})
		must(t, err)
		defer ns.Stop()
		_, err = New(within(t), Config{Server: ns})
		wantCode(t, err, arpc.CodeFailedPrecondition)
		if !strings.Contains(err.Error(), "JetStream is off") {
			t.Fatal(err)
		}
		e := open(t, Config{Server: ns, Core: true, Heartbeat: beat})
		if can := e.Capabilities(); can.History || can.Idempotency || !can.Presence || !can.Groups || !can.Wildcards || !can.Shared {
			t.Fatalf("%+v", can)
		}
		_, err = pubsub.NewServerWith(pubsub.Config{Engine: e, Require: pubsub.Capabilities{History: true}})
		wantCode(t, err, arpc.CodeUnimplemented)
		s := subscribe(t, e, "t")
		publish(t, e, "t", "1", pubsub.TopicConfig{})
		recv(t, s.got, "message")
		_, err = e.Publish(within(t), &pubsub.Message{Topic: "t"}, pubsub.PublishOptions{Topic: lasting})
		wantCode(t, err, arpc.CodeUnimplemented)
	})
	t.Run("TooOld", func(t *testing.T) {
		// Not a server, but what one says at first; it answers pings.
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer ln.Close()
		wg.Go(func() {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			fmt.Fprintf(nc, "INFO {\"server_id\":\"x\",\"version\":\"2.10.29\",\"headers\":true,\"max_payload\":1048576}\r\n")
			buf := make([]byte, 4096)
			for {
				n, err := nc.Read(buf)
				if err != nil {
					return
				}
				if strings.Contains(string(buf[:n]), "PING\r\n") {
					fmt.Fprint(nc, "PONG\r\n")
				}
			}
		})
		_, err = New(within(t), Config{URL: "nats://" + ln.Addr().String()})
		wantCode(t, err, arpc.CodeFailedPrecondition)
		if !strings.Contains(err.Error(), "2.10.29 is too old") {
			t.Fatal(err)
		}
	})
	t.Run("Configuration", func(t *testing.T) {
		for _, c := range []Config{{Prefix: "a.b"}, {Replicas: 6}, {IDAge: time.Millisecond}, {Heartbeat: 1}, {Messages: 1 << 40}} {
			_, err := New(within(t), c)
			wantCode(t, err, arpc.CodeInvalidArgument)
		}
	})
}
