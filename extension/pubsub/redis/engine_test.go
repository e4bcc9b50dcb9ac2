package redis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/redis/internal/redistest"
)

// TestNew: what is not good enough is found out at the beginning, and said.
func TestNew(t *testing.T) {
	for name, test := range map[string]struct {
		server  []string
		setup   []string
		config  func(*Config)
		code    arpc.Code
		message string
	}{
		"no command": {
			server: []string{"--rename-command", "XADD", "", "--rename-command", "PSUBSCRIBE", ""}, code: arpc.CodeUnimplemented,
			message: "redis: the server does not have PSUBSCRIBE, XADD",
		},
		"no permission": {
			setup:   []string{"ACL", "SETUSER", "u", "on", ">p", "~other*", "&*", "+@all"},
			config:  func(c *Config) { c.Client.Username, c.Client.Password = "u", "p" },
			message: "redis: the server does not let us do what is needed",
		},
		"wrong password": {
			config: func(c *Config) { c.Client.Username, c.Client.Password = "u", "p" }, code: arpc.CodeUnavailable, message: "WRONGPASS",
		},
		"no RESP3": {
			config: func(c *Config) { c.Client.AlwaysRESP2 = true }, message: "needs RESP3",
		},
		"braces": {config: func(c *Config) { c.Prefix = "a{b}" }, message: "has braces"},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t, test.server...)
			if test.setup != nil {
				do(t, server, test.setup...)
			}
			c := testConfig(server.Addr)
			if test.config != nil {
				test.config(&c)
			}
			_, err := New(within(t), c)
			if err == nil || !strings.Contains(err.Error(), test.message) || test.code != 0 && arpc.CodeOf(err) != test.code {
				t.Fatalf("%v, code %v", err, arpc.CodeOf(err))
			}
		})
	}
	for version, good := range map[string]bool{"6.2.14": false, "7.0.0": true, "8.2.1": true, "10.0": true, "": false} {
		if err := checkVersion("# Server\r\nredis_version:" + version + "\r\nx:y\r\n"); (err == nil) != good {
			t.Errorf("%s: %v", version, err)
		} else if !good {
			wantCode(t, err, arpc.CodeUnimplemented)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ln.Close()
	_, err = New(within(t), testConfig(ln.Addr().String()))
	wantCode(t, err, arpc.CodeUnavailable)
}

func TestClosed(t *testing.T) {
	server := redistest.Start(t)
	e := open(t, testConfig(server.Addr))
	join(t, e, "t", "1")
	must(t, e.Close())
	must(t, e.Close())
	ctx := within(t)
	_, err := e.Publish(ctx, &pubsub.Message{Topic: "t"}, pubsub.PublishOptions{})
	wantCode(t, err, arpc.CodeUnavailable)
	_, err = e.Subscribe(ctx, pubsub.Filter{Name: "t"}, "", newSink())
	wantCode(t, err, arpc.CodeUnavailable)
	_, err = e.History(ctx, "t", pubsub.Query{})
	wantCode(t, err, arpc.CodeUnavailable)
	_, err = e.Members(ctx, "t")
	wantCode(t, err, arpc.CodeUnavailable)
	if got := members(t, open(t, testConfig(server.Addr)), "t"); len(got) > 0 {
		t.Fatalf("%q are there still", got)
	}
}

// TestPatterns: what means something to Redis means nothing here, and the other way round.
func TestPatterns(t *testing.T) {
	server := redistest.Start(t)
	c := testConfig(server.Addr)
	c.Prefix = "[a]*?:"
	e := open(t, c)
	words := []string{"", "a", "b", "a?", "[ab]", "[^a]", "a\\", "\\*", "**", "a-b", "{}", "^", "x*y", ">a"}
	random := rand.New(rand.NewPCG(1, 2))
	name := func(extra ...string) string {
		var list []string
		for range 1 + random.IntN(6) {
			list = append(list, append(words, extra...)[random.IntN(len(words)+len(extra))])
		}
		return strings.Join(list, ".")
	}
	var topics []string
	for len(topics) < 300 {
		if topic := name(); topic != "" {
			topics = append(topics, topic)
		}
	}
	sinks := map[pubsub.Filter]*sink{}
	for i := range 30 {
		pattern := name("*", "*", "*")
		if !strings.Contains("."+pattern+".", ".*.") || i%5 == 0 {
			pattern += ".>"
		}
		f := pubsub.Filter{Name: pattern, Wildcard: true}
		if sinks[f] == nil {
			sinks[f] = subscribe(t, e, pattern, true, "")
		}
	}
	everything := subscribe(t, e, ">", true, "")
	for _, topic := range topics {
		publish(t, e, topic, topic, pubsub.TopicConfig{})
	}
	everything.expect(t, topics...)
	publish(t, e, "end", "", pubsub.TopicConfig{})
	everything.expect(t, "")
	for f, s := range sinks {
		want := slices.DeleteFunc(slices.Clone(topics), func(topic string) bool { return !f.Match(topic) })
		s.expect(t, want...)
		for len(s.got) > 0 {
			if m := <-s.got; m.Topic != "end" {
				t.Errorf("%q got %q too", f.Name, m.Topic)
			}
		}
	}
}

// TestChurn subscribes and unsubscribes at the same time: whoever is subscribed in the end gets what is published, and nothing is
// left behind.
func TestChurn(t *testing.T) {
	server := redistest.Start(t)
	e := open(t, testConfig(server.Addr))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 100 {
				f, group := pubsub.Filter{Name: fmt.Sprint("t.", (i+n)%3)}, ""
				if n%3 == 0 {
					f = pubsub.Filter{Name: "t.*", Wildcard: true}
				}
				if n%2 == 0 {
					group = "g"
				}
				s := newSink()
				cancel, err := e.Subscribe(context.Background(), f, group, s)
				if err != nil {
					t.Error(err)
					return
				}
				if n%10 == 0 {
					e.Publish(context.Background(), &pubsub.Message{Topic: fmt.Sprint("t.", (i+n)%3)}, pubsub.PublishOptions{Topic: kept}) //nolint:errcheck // the next line says it
					select {
					case <-s.got:
					case <-time.After(patience):
						if group == "" {
							t.Error("a message is missing")
						}
					}
				}
				cancel()
				cancel()
			}
		})
	}
	wg.Wait()
	waitFor(t, "nothing is left", func() bool {
		e.hub.mu.RLock()
		defer e.hub.mu.RUnlock()
		return len(e.hub.channels)+len(e.hub.patterns)+len(e.hub.groups)+len(e.hub.wanting) == 0
	})
	if n, err := new(do(t, server, "PUBSUB", "NUMPAT")).AsInt64(); err != nil || n != 0 {
		t.Fatalf("%d patterns, %v", n, err)
	}
}

// TestLongHistory reads more than one answer has, while somebody publishes: what is said to be complete is.
func TestLongHistory(t *testing.T) {
	const size = 1500
	server := redistest.Start(t)
	e := open(t, testConfig(server.Addr))
	config := pubsub.TopicConfig{HistorySize: size}
	data := strings.Repeat("x", 3000)
	for i := range size {
		publish(t, e, "t", fmt.Sprint(i, data), config)
	}
	get := func(q pubsub.Query) pubsub.Page {
		q.Topic = config
		p, err := e.History(within(t), "t", q)
		must(t, err)
		for i, m := range p.Messages {
			if m.Position.Offset != p.Messages[0].Position.Offset+uint64(i) || !strings.HasPrefix(string(m.Data), fmt.Sprint(m.Position.Offset-1, "x")) {
				t.Fatalf("message %d is %.10q at %+v", i, m.Data, m.Position)
			}
		}
		return p
	}
	if p := get(pubsub.Query{}); len(p.Messages) != size || p.Complete || p.Top.Offset != size {
		t.Fatalf("%d messages, %+v", len(p.Messages), p.Top)
	}
	if p := get(pubsub.Query{Limit: 700}); len(p.Messages) != 700 || p.Messages[0].Position.Offset != size-699 {
		t.Fatalf("%d messages", len(p.Messages))
	}
	top := get(pubsub.Query{Limit: -1}).Top
	if p := get(pubsub.Query{From: pubsub.Position{Epoch: top.Epoch, Offset: 100}, Limit: 1000}); len(p.Messages) != 1000 || !p.Complete || p.Messages[0].Position.Offset != 101 {
		t.Fatalf("%d messages, complete: %v", len(p.Messages), p.Complete)
	}
	stop := make(chan struct{})
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := size; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := e.Publish(context.Background(), &pubsub.Message{Topic: "t", Data: []byte(fmt.Sprint(i, data))}, pubsub.PublishOptions{Topic: config}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	complete := 0
	for round := range 30 {
		top := get(pubsub.Query{Limit: -1}).Top
		back := uint64([]int{10, size - 100, size + 100}[round%3])
		p := pubsub.Page{}
		var err error
		from := pubsub.Position{Epoch: top.Epoch, Offset: top.Offset - min(back, top.Offset)}
		p, err = e.History(within(t), "t", pubsub.Query{From: from, Topic: config})
		must(t, err)
		next, whole := from.Offset+1, true
		for _, m := range p.Messages {
			whole = whole && m.Position.Offset == next
			next = m.Position.Offset + 1
		}
		if whole = whole && next == p.Top.Offset+1; whole != p.Complete {
			t.Fatalf("complete: %v, from %+v to %+v with %d messages", p.Complete, from, p.Top, len(p.Messages))
		}
		if whole {
			complete++
		}
	}
	close(stop)
	publishing.Wait()
	if complete < 10 {
		t.Fatalf("%d of 30 pages were complete", complete)
	}
}

// TestWhatIsKept: everything that Redis keeps ends some time, but histories without an age.
func TestWhatIsKept(t *testing.T) {
	server := redistest.Start(t)
	c := testConfig(server.Addr)
	c.Topics = 2
	e := open(t, c)
	ctx := within(t)
	subscribe(t, e, "grouped", false, "g")
	publish(t, e, "none", "", pubsub.TopicConfig{})
	publish(t, e, "grouped", "", pubsub.TopicConfig{HistorySize: 1, HistoryAge: time.Hour})
	publish(t, e, "aged", "", pubsub.TopicConfig{HistorySize: 1, HistoryAge: time.Hour})
	publish(t, e, "last", "", pubsub.TopicConfig{LastValue: true})
	_, err := e.Publish(ctx, &pubsub.Message{Topic: "id"}, pubsub.PublishOptions{ID: "x"})
	must(t, err)
	for i := range 4 {
		p, err := e.History(ctx, fmt.Sprint("asked ", i), pubsub.Query{Limit: -1, Topic: kept})
		must(t, err)
		if p.Top.IsZero() != (i >= c.Topics) {
			t.Errorf("topic %d is at %+v", i, p.Top)
		}
	}
	publish(t, e, "asked 0", "", kept)
	leave := join(t, e, "room", "1")
	keys, err := new(do(t, server, "KEYS", "*")).AsStrSlice()
	must(t, err)
	forever := map[string]bool{
		"arpc:t{.last}": true, "arpc:t{.asked 0}": true, "arpc:p{.room}": true, "arpc:nodes{.nodes}": true,
		"arpc:rooms{." + e.presence.node + "}": true,
	}
	for _, key := range keys {
		ttl, err := new(do(t, server, "PTTL", key)).AsInt64()
		must(t, err)
		if (ttl < 0) != forever[key] {
			t.Errorf("%q lives for %d ms", key, ttl)
		}
		if strings.Contains(key, "none") || strings.Contains(key, "asked 3") {
			t.Errorf("there is %q", key)
		}
		delete(forever, key)
	}
	if len(forever) > 0 {
		t.Errorf("there are not %v", forever)
	}
	leave()
	for _, key := range []string{"arpc:p{.room}", "arpc:rooms{." + e.presence.node + "}"} {
		if n, err := new(do(t, server, "EXISTS", key)).AsInt64(); err != nil || n != 0 {
			t.Errorf("there is %q, %v", key, err)
		}
	}
}

// TestIDs keeps topics and IDs apart, whatever they are.
func TestIDs(t *testing.T) {
	c := Config{Prefix: "p"}
	if c.idKey("a", "b}5:c") == c.idKey("a}1:b", "c") || c.idKey("a", "}b") == c.idKey("a}", "b") {
		t.Fatal("two are the same")
	}
}

func TestErrors(t *testing.T) {
	e := &Engine{}
	ctx, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	<-ctx.Done()
	wantCode(t, e.wrap(ctx, errors.New("x")), arpc.CodeDeadlineExceeded)
	wantCode(t, e.wrap(context.Background(), rueidis.ErrClosing), arpc.CodeUnavailable)
}
