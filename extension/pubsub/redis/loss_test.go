package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/redis/internal/redistest"
)

// TestRestart kills Redis and starts it again: publishers know, subscribers are told, and only who has a place in a history that has
// lost nothing for sure is told that nothing is missing.
func TestRestart(t *testing.T) {
	for name, test := range map[string]struct {
		args       []string
		persistent bool
		kept       bool // the messages
		recovered  bool
	}{
		"memory":            {nil, false, false, false},
		"memory persistent": {nil, true, false, false}, // what is configured wrongly is found out all the same
		"everysec":          {[]string{"--appendonly", "yes", "--appendfsync", "everysec"}, false, true, false},
		"always":            {[]string{"--appendonly", "yes", "--appendfsync", "always"}, true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, test.args...)
			c := testConfig(server.Addr)
			c.Persistent = test.persistent
			a, b := open(t, c), open(t, c)
			s, group := subscribe(t, b, "t", false, ""), subscribe(t, b, "t", false, "g")
			publish(t, a, "t", "1", kept)
			at := publish(t, a, "t", "2", kept)
			s.expect(t, "1", "2")
			group.expect(t, "1", "2")
			server.Kill()
			s.expectTold(t, "interrupted")
			group.expectTold(t, "interrupted")
			_, err := a.Publish(within(t), &pubsub.Message{Topic: "t"}, pubsub.PublishOptions{Topic: kept})
			wantCode(t, err, arpc.CodeUnavailable)
			_, err = a.History(within(t), "t", pubsub.Query{Topic: kept})
			wantCode(t, err, arpc.CodeUnavailable)
			_, err = a.Members(within(t), "t")
			wantCode(t, err, arpc.CodeUnavailable)
			_, err = a.Join(within(t), "t", pubsub.Member{ID: "x"})
			wantCode(t, err, arpc.CodeUnavailable)
			server.Restart()
			s.expectTold(t, "resumed")
			group.expectTold(t, "resumed")
			next := publishAgain(t, a, "t", "3")
			s.expect(t, "3")
			group.expect(t, "3")
			if same := next.Epoch == at.Epoch; same != test.recovered {
				t.Fatalf("%+v before, %+v after", at, next)
			}
			if test.kept && next.Offset != at.Offset+1 {
				t.Fatalf("%+v before, %+v after", at, next)
			}
			p := history(t, b, "t", at)
			if p.Complete != test.recovered || p.Top != next {
				t.Fatalf("complete: %v, top %+v, the last is %+v", p.Complete, p.Top, next)
			}
			want := map[bool]int{false: 1, true: 3}[test.kept]
			if test.recovered {
				want = 1
			}
			if len(p.Messages) != want {
				t.Fatalf("%d messages, not %d", len(p.Messages), want)
			}
			if p = history(t, b, "t", next); !p.Complete || len(p.Messages) != 0 {
				t.Fatalf("%+v after the last", p)
			}
		})
	}
}

// publishAgain publishes, and once more if what it would go by turns out to be of before Redis was lost.
func publishAgain(t *testing.T, e *Engine, topic, data string) pubsub.Position {
	t.Helper()
	r, err := again(within(t), func() (pubsub.Receipt, error) {
		return e.Publish(within(t), &pubsub.Message{Topic: topic, Data: []byte(data)}, pubsub.PublishOptions{Topic: kept})
	})
	must(t, err)
	return r.Position
}

// TestRestartWithClients is the same as a program sees it.
func TestRestartWithClients(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	c := testConfig(server.Addr)
	c.Persistent = true
	s, addr := serve(t, open(t, c))
	client, err := pubsub.NewClient(func() (net.Conn, error) { return net.Dial("tcp", addr) })
	must(t, err)
	defer client.Stop()
	events, got := make(chan pubsub.Event, 100), make(chan string, 100)
	_, err = client.SubscribeWith(within(t), "t", func(m *pubsub.Message) { got <- string(m.Data) }, pubsub.OnEvent(func(e pubsub.Event) { events <- e }))
	must(t, err)
	next := func(kind pubsub.EventKind) pubsub.Event {
		t.Helper()
		e := recv(t, events, "event")
		if e.Kind != kind {
			t.Fatalf("%+v", e)
		}
		return e
	}
	next(pubsub.EventSubscribed)
	must(t, s.Publish("t", "1"))
	if m := recv(t, got, "message"); m != "1" {
		t.Fatal(m)
	}
	for i, flush := range []bool{false, true} {
		server.Kill()
		next(pubsub.EventInterrupted)
		wantCode(t, s.Publish("t", "lost"), arpc.CodeUnavailable)
		if flush {
			server.Wipe()
		}
		server.Restart()
		waitFor(t, "Redis is back", func() bool { return s.Publish("t", fmt.Sprint(i)) == nil })
		if e := next(pubsub.EventSubscribed); !e.Resumed || e.Recovered == flush {
			t.Fatalf("%+v, flushed: %v", e, flush)
		}
		if m := recv(t, got, "message"); m != fmt.Sprint(i) {
			t.Fatal(m)
		}
	}
}

// serve runs a server whose topics have history.
func serve(t *testing.T, e *Engine) (*pubsub.Server, string) {
	t.Helper()
	s, err := pubsub.NewServerWith(pubsub.Config{Engine: e, Topics: func(string) pubsub.TopicConfig { return kept }})
	must(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		must(t, s.Stop())
		if err := recv(t, served, "end of Serve"); !errors.Is(err, arpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return s, ln.Addr().String()
}

// do runs a command on a server, beside the engines.
func do(t *testing.T, s *redistest.Server, args ...string) rueidis.RedisMessage {
	t.Helper()
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{s.Addr}, DisableCache: true})
	must(t, err)
	defer c.Close()
	m, err := c.Do(within(t), c.B().Arbitrary(args...).Build()).ToMessage()
	must(t, err)
	return m
}

// TestLostTopic: a topic whose key is lost begins a new epoch.
func TestLostTopic(t *testing.T) {
	server := redistest.Start(t)
	c := testConfig(server.Addr)
	e := open(t, c)
	s := subscribe(t, e, "t", false, "")
	for name, lose := range map[string]func(){
		"flush":  func() { do(t, server, "FLUSHALL") },
		"delete": func() { do(t, server, "DEL", "arpc:t{.t}") },
		"expiry": func() {
			do(t, server, "PEXPIRE", "arpc:t{.t}", "1")
			waitFor(t, "expiry", func() bool {
				reply := do(t, server, "EXISTS", "arpc:t{.t}")
				n, err := reply.AsInt64()
				return err == nil && n == 0
			})
		},
		"another's": func() {
			do(t, server, "DEL", "arpc:t{.t}")
			do(t, server, "XADD", "arpc:t{.t}", "*", "a", "b")
		},
	} {
		for range 3 {
			publish(t, e, "t", "x", kept)
		}
		at := publish(t, e, "t", "y", kept)
		lose()
		for range 6 { // the offsets go beyond what they were
			publish(t, e, "t", "z", kept)
		}
		if p := history(t, e, "t", at); p.Complete || p.Top.Epoch == at.Epoch || len(p.Messages) != 6 {
			t.Errorf("%s: complete: %v, top %+v after %+v, %d messages", name, p.Complete, p.Top, at, len(p.Messages))
		}
		s.expect(t, "x", "x", "x", "y", "z", "z", "z", "z", "z", "z")
	}
	if len(s.told) > 0 {
		t.Error("nothing was missed, but interrupted told")
	}
}

// TestSlowReader: when Redis closes the connection of a server that does not read, its subscribers are told, and find what they have
// missed in the history.
func TestSlowReader(t *testing.T) {
	server := redistest.Start(t, "--client-output-buffer-limit", "pubsub 256kb 0 0")
	a, b := open(t, testConfig(server.Addr)), open(t, testConfig(server.Addr))
	s := newSink()
	s.gate = make(chan struct{}, 1)
	s.with(t, b, "t", false, "")
	big := strings.Repeat("x", 32<<10)
	const n = 600 // more than sockets hold
	for i := range n {
		publish(t, a, "t", fmt.Sprint(i, " ", big), kept)
	}
	close(s.gate)
	s.expectTold(t, "interrupted", "resumed")
	var last pubsub.Position
	for next := 0; len(s.got) > 0; next++ {
		m := <-s.got
		if !strings.HasPrefix(string(m.Data), fmt.Sprint(next, " ")) {
			t.Fatalf("%.10q, not %d", m.Data, next)
		}
		last = m.Position
	}
	if last.Offset >= n {
		t.Fatal("nothing was lost")
	}
	if p := history(t, b, "t", last); !p.Complete || len(p.Messages) != n-int(last.Offset) {
		t.Fatalf("complete: %v, %d messages after %+v", p.Complete, len(p.Messages), last)
	}
	publish(t, a, "t", "end", kept)
	s.expect(t, "end")
}

// TestSilentRedis: a server that does not answer is one that is not there.
func TestSilentRedis(t *testing.T) {
	server := redistest.Start(t)
	c := testConfig(server.Addr)
	c.Timeout = 300 * time.Millisecond
	c.Client.Dialer.KeepAlive = 100 * time.Millisecond
	e := open(t, c)
	s := subscribe(t, e, "t", false, "")
	server.Signal(syscall.SIGSTOP)
	_, err := e.Publish(within(t), &pubsub.Message{Topic: "t"}, pubsub.PublishOptions{})
	wantCode(t, err, arpc.CodeUnavailable)
	s.expectTold(t, "interrupted")
	_, err = e.Subscribe(within(t), pubsub.Filter{Name: "u"}, "", newSink())
	wantCode(t, err, arpc.CodeUnavailable)
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = e.Publish(canceled, &pubsub.Message{Topic: "t"}, pubsub.PublishOptions{})
	wantCode(t, err, arpc.CodeCanceled)
	_, err = e.Subscribe(canceled, pubsub.Filter{Name: "u"}, "", newSink())
	wantCode(t, err, arpc.CodeCanceled)
	server.Signal(syscall.SIGCONT)
	s.expectTold(t, "resumed")
	publish(t, e, "t", "again", kept)
	for string(recv(t, s.got, "message").Data) != "again" { // what was sent before may have been executed
	}
}

// TestGap: a message that does not follow the one before says that Redis has lost some.
func TestGap(t *testing.T) {
	server := redistest.Start(t)
	e := open(t, testConfig(server.Addr))
	s := subscribe(t, e, "t", false, "")
	at := publish(t, e, "t", "1", kept)
	record := string(encodeRecord([idLen]byte{}, &pubsub.Message{Data: []byte("2")}))
	do(t, server, "PUBLISH", "arpc:m:t", "garbage")
	do(t, server, "PUBLISH", "arpc:m:t", fmt.Sprintf("m%d %d 1 x\n%s", at.Epoch, at.Offset+2, record))
	s.expect(t, "1", "2")
	s.expectTold(t, "interrupted", "resumed")
}

// TestFullRedis: publishers know when Redis has no memory left.
func TestFullRedis(t *testing.T) {
	server := redistest.Start(t, "--maxmemory", "5mb", "--maxmemory-policy", "noeviction")
	e := open(t, testConfig(server.Addr))
	s := subscribe(t, e, "t", false, "")
	data := strings.Repeat("x", 100<<10)
	for i := 0; ; i++ {
		_, err := e.Publish(within(t), &pubsub.Message{Topic: "t", Data: []byte(data)}, pubsub.PublishOptions{Topic: kept})
		if err != nil {
			wantCode(t, err, arpc.CodeResourceExhausted)
			break
		}
		recv(t, s.got, "message")
		if i == 1000 {
			t.Fatal("there is no limit")
		}
	}
	do(t, server, "CONFIG", "SET", "maxmemory", "0")
	publish(t, e, "t", "again", kept)
	s.expect(t, "again") // and nothing of what was refused
}

// TestPromotedReplica: a replica that becomes the master may not have everything, and neither has a master that was a replica
// meanwhile.
func TestPromotedReplica(t *testing.T) {
	atOnce := []string{"--repl-diskless-sync-delay", "0"}
	first, second := redistest.Start(t, atOnce...), redistest.Start(t, atOnce...)
	follow := func(replica, master *redistest.Server, at pubsub.Position) {
		t.Helper()
		host, port, err := net.SplitHostPort(master.Addr)
		must(t, err)
		do(t, replica, "REPLICAOF", host, port)
		waitFor(t, "the replica has everything", func() bool {
			entries, err := new(do(t, replica, "XRANGE", "arpc:t{.t}", fmt.Sprint(at.Offset), "+")).ToArray()
			return err == nil && len(entries) == 1
		})
		do(t, replica, "REPLICAOF", "NO", "ONE")
	}
	e := open(t, testConfig(first.Addr))
	publish(t, e, "t", "1", kept)
	at := publish(t, e, "t", "2", kept)
	follow(second, first, at)
	f := open(t, testConfig(second.Addr))
	p := history(t, f, "t", at)
	if p.Complete || p.Top.Epoch == at.Epoch || p.Top.Offset != at.Offset || len(p.Messages) != 2 {
		t.Fatalf("%+v after %+v", p, at)
	}
	at2 := publish(t, f, "t", "3", kept)
	must(t, e.Close())
	follow(first, second, at2)
	// It is the same process as at the beginning.
	p = history(t, open(t, testConfig(first.Addr)), "t", at2)
	if p.Complete || p.Top.Epoch == at2.Epoch || p.Top.Epoch == at.Epoch || len(p.Messages) != 3 {
		t.Fatalf("%+v after %+v and %+v", p, at, at2)
	}
}
