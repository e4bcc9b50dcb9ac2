package pubsub

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// TestRecord holds the format of the original arpc to its bytes.
func TestRecord(t *testing.T) {
	b := appendRecord([]byte("hi"), "t", 0x1122334455667788)
	if got := hex.EncodeToString(b); got != "6869"+"74"+"0100"+"8877665544332211" {
		t.Fatalf("record %s", got)
	}
	if got, err := parseRecord(b); err != nil || got.Name != "t" || string(got.Data) != "hi" || got.Timestamp != 0x1122334455667788 {
		t.Fatalf("%+v, %v", got, err)
	}
	for in, want := range map[string]error{
		"": ErrInvalidTopicBytes, "000000000000000000": ErrInvalidTopicBytes, "00000000000000000000": ErrInvalidTopicEmpty,
		"74020000000000000000" + "00": ErrInvalidTopicBytes, "0104" + "0000000000000000": ErrInvalidTopicNameLength,
	} {
		b, _ := hex.DecodeString(in)
		if _, err := parseRecord(b); err != want {
			t.Errorf("%s: %v, not %v", in, err, want)
		}
	}
}

func TestCompatible(t *testing.T) {
	s, addr := serve(t, Config{Password: "pw"})
	c := connect(t, addr)
	got := make(chan *Topic, 100)
	h := func(m *Topic) { got <- m }
	wantCode(t, c.Subscribe("a", h, patience), arpc.CodeUnauthenticated)
	wantCode(t, c.Publish("a", "x", patience), arpc.CodeUnauthenticated)
	wantCode(t, c.Authenticate(), arpc.CodeUnauthenticated)
	c.Password = "pw"
	must(t, c.Authenticate())
	must(t, c.Subscribe("a", h, patience))
	must(t, c.Subscribe("a", h, patience)) // twice is as good as once
	before := time.Now().UnixNano()
	must(t, c.Publish("a", "from client", patience))
	must(t, s.Publish("a", "from server"))
	must(t, c.PublishToOne("a", map[string]int{"n": 1}, patience))
	must(t, s.PublishToOne("a", []byte{1, 2}))
	for _, want := range []string{"from client", "from server", `{"n":1}`, "\x01\x02"} {
		m := recv(t, got, "message")
		if m.Name != "a" || string(m.Data) != want || m.Timestamp < before {
			t.Fatalf("%+v, not %q", m, want)
		}
	}
	must(t, s.Publish("nobody", "x"))
	must(t, c.PublishToOne("nobody", "x", patience))
	must(t, c.Unsubscribe("a", patience))
	must(t, c.Publish("a", "x", patience))
	all := make(chan *Topic, 1)
	c.OnPublish(func(m *Topic) { all <- m })
	must(t, c.Subscribe("b", h, patience))
	must(t, c.Publish("b", "y", patience))
	if m := recv(t, all, "message"); m.Name != "b" || len(got) != 0 {
		t.Fatalf("%+v", m)
	}
}

// TestInsideHandlers subscribes, publishes and unsubscribes in handlers of both kinds.
func TestInsideHandlers(t *testing.T) {
	_, addr := serve(t, Config{})
	c := connect(t, addr)
	done := make(chan error, 4)
	must(t, c.Subscribe("a", func(*Topic) {
		done <- c.Subscribe("b", func(*Topic) { done <- c.Unsubscribe("a", patience) }, patience)
		done <- c.Publish("b", "x", patience)
	}, patience))
	must(t, c.Publish("a", "x", patience))
	for range 3 {
		must(t, recv(t, done, "end of a call in a handler"))
	}
	ctx := within(t)
	_, err := c.SubscribeWith(ctx, "c", func(*Message) {
		var sub *Subscription
		sub, err := c.SubscribeWith(ctx, "d", func(*Message) { done <- sub.Unsubscribe(ctx) })
		done <- err
		_, err = c.PublishWith(ctx, "d", "x")
		done <- err
	})
	must(t, err)
	_, err = c.PublishWith(ctx, "c", "x")
	must(t, err)
	for range 3 {
		must(t, recv(t, done, "end of a call in a handler"))
	}
}

// TestOrder publishes from several publishers at once to subscribers of both kinds.
func TestOrder(t *testing.T) {
	const publishers, messages = 4, 500
	for _, history := range []int{0, 100} {
		_, addr := serve(t, Config{Topics: func(string) TopicConfig { return TopicConfig{HistorySize: history} }})
		sub := connect(t, addr)
		done := make(chan error, 2)
		check := func() func(string) {
			next, n := map[string]int{}, 0
			return func(data string) {
				var i int
				p, num, _ := strings.Cut(data, " ")
				fmt.Sscan(num, &i)
				if i != next[p] {
					done <- fmt.Errorf("publisher %s: %d, not %d", p, i, next[p])
				}
				next[p]++
				if n++; n == publishers*messages {
					done <- nil
				}
			}
		}
		old, fresh := check(), check()
		must(t, sub.Subscribe("t", func(m *Topic) { old(string(m.Data)) }, patience))
		_, err := sub.SubscribeWith(within(t), "t", func(m *Message) { fresh(string(m.Data)) })
		must(t, err)
		for p := range publishers {
			c := connect(t, addr)
			go func() {
				for i := range messages {
					if err := c.Publish("t", fmt.Sprint(p, " ", i), patience); err != nil {
						done <- err
					}
				}
			}()
		}
		must(t, recv(t, done, "end"))
		must(t, recv(t, done, "end"))
	}
}

// TestReconnect cuts the connections of a client that has subscribed in both ways.
func TestReconnect(t *testing.T) {
	s, addr := serve(t, Config{Password: "pw"})
	var dials atomic.Int32
	conns := make(chan net.Conn, 10)
	c, err := NewClient(func() (net.Conn, error) {
		dials.Add(1)
		nc, err := dialer(addr)()
		if err == nil {
			conns <- nc
		}
		return nc, err
	}, arpc.Backoff(time.Millisecond, time.Millisecond))
	must(t, err)
	defer c.Stop()
	c.Password = "pw"
	must(t, c.Authenticate())
	old, fresh, events := make(chan string, 10), make(chan string, 10), make(chan Event, 10)
	must(t, c.Subscribe("t", func(m *Topic) { old <- string(m.Data) }, patience))
	_, err = c.SubscribeWith(within(t), "t", func(m *Message) { fresh <- string(m.Data) }, OnEvent(func(e Event) { events <- e }))
	must(t, err)
	if e := recv(t, events, "event"); e.Kind != EventSubscribed || e.Resumed {
		t.Fatalf("%+v", e)
	}
	for i := range 3 {
		recv(t, conns, "connection").Close()
		if e := recv(t, events, "event"); e.Kind != EventSubscribed || !e.Resumed || e.Recovered {
			t.Fatalf("%+v", e)
		}
		must(t, s.Publish("t", fmt.Sprint(i)))
		if a, b := recv(t, old, "message"), recv(t, fresh, "message"); a != fmt.Sprint(i) || a != b {
			t.Fatalf("%s, %s", a, b)
		}
	}
	must(t, c.Restart())
	recv(t, events, "event")
	must(t, s.Publish("t", "after"))
	if a, b := recv(t, old, "message"), recv(t, fresh, "message"); a != "after" || a != b {
		t.Fatalf("%s, %s", a, b)
	}
	waitFor(t, "one peer and its two subscriptions", func() bool {
		st := s.TopicStats()
		return st.Peers == 1 && st.Subscriptions == 2 && st.Topics == 1
	})
	c.Stop()
	waitFor(t, "nothing left", func() bool {
		st := s.TopicStats()
		return st.Peers == 0 && st.Subscriptions == 0 && st.Topics == 0
	})
}

// TestLimits holds each limit to a clear error that nobody else notices.
func TestLimits(t *testing.T) {
	limits := Limits{Subscriptions: 10, WrongPasswords: 3}
	config := Config{Limits: limits, Authorize: func(_ *arpc.Context, a Action, topic string) error {
		if strings.HasPrefix(topic, "secret") {
			return fmt.Errorf("it is secret")
		}
		return nil
	}}
	s, addr := serve(t, config)
	bystander, c, ctx := connect(t, addr), connect(t, addr), within(t)
	got := make(chan string, 10)
	must(t, bystander.Subscribe("t", func(m *Topic) { got <- string(m.Data) }, patience))
	h := func(*Message) {}
	expect := func(err error, code arpc.Code, text string) {
		t.Helper()
		wantCode(t, err, code)
		if !strings.Contains(err.Error(), text) {
			t.Fatalf("error %q, not %q", err, text)
		}
		must(t, s.Publish("t", text))
		if m := recv(t, got, "message of the bystander"); m != text {
			t.Fatalf("%q", m)
		}
	}
	for range 3 {
		_, err := c.SubscribeWith(ctx, "secret.x", h)
		expect(err, arpc.CodePermissionDenied, `not allowed to subscribe to "secret.x": it is secret`)
		_, err = c.PublishWith(ctx, "secret.x", h)
		if err == nil {
			t.Fatal("a function was published")
		}
		expect(c.Publish("secret.x", "x", patience), arpc.CodePermissionDenied, "not allowed to publish to")
		_, err = c.History(ctx, "secret.x", Query{})
		expect(err, arpc.CodePermissionDenied, "not allowed to read the history of")
		_, err = c.Members(ctx, "secret.x")
		expect(err, arpc.CodePermissionDenied, "not allowed to be present at")

		big := make([]byte, 10<<20)
		expect(c.Publish("t", big, patience), arpc.CodeInvalidArgument, "message of 10485760 bytes, the limit is 1048576")
		_, err = c.PublishWith(ctx, "t", big)
		expect(err, arpc.CodeInvalidArgument, "message of 10485760 bytes, the limit is 1048576")

		long := strings.Repeat("x", 64<<10)
		expect(c.Publish(long, "x", patience), arpc.CodeInvalidArgument, "invalid topic name length")
		_, err = c.SubscribeWith(ctx, long, h)
		expect(err, arpc.CodeInvalidArgument, "invalid topic name length")
		var rsp []byte // and with a client that does not look
		expect(c.callJSON(ctx, methodSub, subscribeRequest{Topic: long, Token: 77}, &rsp), arpc.CodeInvalidArgument, "invalid topic name length")
		record := append(bytes.Repeat([]byte("x"), 0xffff), 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
		expect(c.Call(methodPublish, record, nil, patience), arpc.CodeInvalidArgument, "invalid topic name length")
		expect(c.Publish("", "x", patience), arpc.CodeInvalidArgument, "invalid topic")
	}
	var err error
	n := 0
	for n < 100_000 && err == nil {
		_, err = c.SubscribeWith(ctx, fmt.Sprint("many.", n), h)
		n++
	}
	expect(err, arpc.CodeResourceExhausted, "too many subscriptions of one connection, the limit is 10")
	if n != 11 {
		t.Fatalf("%d subscriptions", n)
	}
	expect(c.Subscribe("one.more", nil, patience), arpc.CodeResourceExhausted, "too many subscriptions")

	s2, addr2 := serve(t, Config{Password: "right", Limits: limits})
	intruder := connect(t, addr2)
	ended := make(chan struct{}, 1)
	intruder.Client.OnDisconnected(func(*arpc.Client) { ended <- struct{}{} })
	intruder.Password = "wrong"
	for range 3 {
		if err := intruder.Authenticate(); arpc.CodeOf(err) != arpc.CodeUnauthenticated || err.Error() != "invalid password" {
			t.Fatal(err)
		}
	}
	recv(t, ended, "end of the connection of who guesses")
	_ = s2
}
