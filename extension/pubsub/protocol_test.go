package pubsub

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// TestSameToken subscribes twice with one token, and to one topic with two.
func TestSameToken(t *testing.T) {
	s, addr := serve(t, Config{})
	p := rawDial(t, addr)
	next := func() wireEvent {
		t.Helper()
		e, err := p.event()
		must(t, err)
		return e
	}
	p.subscribe(subscribeRequest{Topic: "a", Token: 1})
	first := next()
	p.subscribe(subscribeRequest{Topic: "b", Token: 1})
	second := next()
	p.subscribe(subscribeRequest{Topic: "b", Token: 2})
	third := next()
	for i, e := range []wireEvent{first, second, third} {
		if e.kind != eventStart || e.token != []uint32{1, 1, 2}[i] {
			t.Fatalf("%+v", e)
		}
	}
	if first.id == second.id || second.id == third.id {
		t.Fatal("two have the same number")
	}
	if n := s.TopicStats().Subscriptions; n != 2 {
		t.Fatalf("%d subscriptions", n)
	}
	must(t, s.Publish("a", "x"))
	must(t, s.Publish("b", "y"))
	ids := map[uint64]bool{}
	for range 2 {
		e := next()
		if e.kind != eventMessage || string(e.message.Data) != "y" {
			t.Fatalf("%+v", e)
		}
		ids[e.id] = true
	}
	if !ids[second.id] || !ids[third.id] {
		t.Fatalf("%v", ids)
	}
}

// TestMalformedRequests: each is answered with code 3, and the connection stays.
func TestMalformedRequests(t *testing.T) {
	_, addr := serve(t, Config{})
	c := connect(t, addr)
	for method, bodies := range map[string][]string{
		methodSub: {"", "{", `{"topic":3}`, `{"topic":"t","token":-1}`, `{"topic":"t","overflow":"x"}`, `{"topic":"t","group":"` + strings.Repeat("g", 2000) + `"}`}, methodUnsub: {"", "[]"},
		methodPub: {"", "\x00\x05\x00t", "\x01\x01\x00t\x05k", "\x00\x00\x00data"}, methodHistory: {"", "{}", "x"}, methodMembers: {"", "{}"},
		methodPublish: {"", "short"}, methodToOne: {"0123456789"}, methodSubscribe: {"", "\xff\xff12345678"}, methodCancel: {""},
	} {
		for _, body := range bodies {
			if err := c.Call(method, body, nil, patience); arpc.CodeOf(err) != arpc.CodeInvalidArgument {
				t.Errorf("%s %q: %v, code %v", method, body, err, arpc.CodeOf(err))
			}
		}
	}
	must(t, c.CheckState())
}

// TestStrayEvents sends a client what it has not asked for, and messages twice.
func TestStrayEvents(t *testing.T) {
	server := arpc.NewServer(arpc.NewHandler())
	defer server.Stop() //nolint:errcheck // nothing depends on it
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go server.Serve(ln) //nolint:errcheck // ends with Stop
	tokens := make(chan uint32, 1)
	peers := make(chan *arpc.Client, 1)
	server.Handler.Handle(methodSub, func(c *arpc.Context) {
		var req subscribeRequest
		if err := json.Unmarshal(c.Body(), &req); err != nil {
			t.Error(err)
		}
		tokens <- req.Token
		peers <- c.Client
		c.Write("{}") //nolint:errcheck // the test would wait
	})
	c := connect(t, ln.Addr().String())
	got := make(chan string, 100)
	_, err = c.SubscribeWith(within(t), "t", func(m *Message) { got <- fmt.Sprint(string(m.Data), m.Position.Offset) })
	must(t, err)
	token, peer := recv(t, tokens, "token"), recv(t, peers, "peer")
	at := func(epoch, offset uint64, data string) *arpc.Message {
		return messageFrame(&Message{Data: []byte(data), Position: Position{epoch, offset}}, 7, false, Position{})
	}
	for _, m := range []*arpc.Message{
		at(1, 1, "before the start"), startFrame(9, token+1, true, Position{}), lostFrame(token+1, 1), textFrame(99, 7, "a kind of the future"), frame([]byte(string(make([]byte, 5)) + "\x03\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00ps.event\x01")),
		startFrame(7, token, false, Position{1, 4}), at(1, 4, "old"), at(1, 5, "a"), at(1, 5, "again"), at(1, 3, "older"), at(1, 9, "b"),
		at(2, 1, "c"), at(2, 1, "again"), textFrame(eventMessage, 7, "short"), messageFrame(&Message{Data: []byte("other")}, 8, false, Position{}), at(2, 2, "d"),
	} {
		must(t, peer.PushMsg(m, patience))
	}
	for _, want := range []string{"a5", "b9", "c1", "d2"} {
		if m := recv(t, got, "message"); m != want {
			t.Fatalf("%s, not %s", m, want)
		}
	}
	must(t, c.CheckState())
}

// TestTopicLimits reaches the limits of topics and history.
func TestTopicLimits(t *testing.T) {
	e := NewMemory(MemoryConfig{Topics: 3, Bytes: 12_000, Messages: 50, IDs: 3})
	defer e.Close()
	s, addr := serve(t, Config{Engine: e, Limits: Limits{Topics: 2, HistoryBytes: 1000}, Topics: func(string) TopicConfig {
		return TopicConfig{HistorySize: 100, HistoryAge: time.Hour}
	}})
	c, ctx := connect(t, addr), within(t)
	h := func(*Message) {}
	for i := range 2 {
		_, err := c.SubscribeWith(ctx, fmt.Sprint(i), h)
		must(t, err)
	}
	_, err := c.SubscribeWith(ctx, "2", h)
	wantCode(t, err, arpc.CodeResourceExhausted)
	for i := range 10 { // what is only asked for is not kept at the cost of what is published
		_, err := e.History(ctx, fmt.Sprint("asked ", i), Query{Topic: TopicConfig{HistorySize: 1}})
		must(t, err)
	}
	must(t, c.Publish("0", "x", patience))
	must(t, c.Publish("1", "x", patience))
	must(t, c.Publish("2", "x", patience)) // the third with history
	wantCode(t, c.Publish("3", "x", patience), arpc.CodeResourceExhausted)
	for range 200 {
		must(t, s.Publish("0", "0123456789"))
	}
	p, err := s.History(ctx, "0", Query{})
	must(t, err)
	if len(p.Messages) != 50 {
		t.Fatalf("%d messages are kept", len(p.Messages))
	}
	q, err := c.History(ctx, "0", Query{})
	if err != nil || len(q.Messages) >= 50 || len(q.Messages) == 0 || q.Messages[len(q.Messages)-1].Position != p.Top {
		t.Fatalf("%d messages, %v", len(q.Messages), err)
	}
	from := p.Messages[0].Position
	for n := 1; n < 50; {
		q, err := c.History(ctx, "0", Query{From: from})
		must(t, err)
		if !q.Complete || len(q.Messages) == 0 {
			t.Fatalf("%+v", q)
		}
		n += len(q.Messages)
		from = q.Messages[len(q.Messages)-1].Position
	}
	big := make([]byte, 4000)
	must(t, s.Publish("1", big)) // what is left of 12,000 bytes
	must(t, s.Publish("1", big)) // in the place of the first
	wantCode(t, s.Publish("2", big), arpc.CodeResourceExhausted)
	for i := range 10 {
		_, err := s.PublishWith(ctx, "2", "x", WithID(fmt.Sprint(i)))
		must(t, err)
	}
	r, err := s.PublishWith(ctx, "2", "x", WithID("0"))
	if err != nil || r.Duplicate {
		t.Fatalf("%+v, %v", r, err)
	}
	r, err = s.PublishWith(ctx, "2", "x", WithID("9"))
	if err != nil || !r.Duplicate {
		t.Fatalf("%+v, %v", r, err)
	}
}

// TestHole sends a client messages of which some are missing, with and without telling.
func TestHole(t *testing.T) {
	server := arpc.NewServer(arpc.NewHandler())
	defer server.Stop() //nolint:errcheck // nothing depends on it
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go server.Serve(ln) //nolint:errcheck // ends with Stop
	requests := make(chan subscribeRequest, 1)
	peers := make(chan *arpc.Client, 10)
	server.Handler.Handle(methodSub, func(c *arpc.Context) {
		var req subscribeRequest
		if err := json.Unmarshal(c.Body(), &req); err != nil {
			t.Error(err)
		}
		requests <- req
		peers <- c.Client
		c.Write("{}") //nolint:errcheck // the test would wait
	})
	c := connect(t, ln.Addr().String())
	got := make(chan uint64, 100)
	_, err = c.SubscribeWith(within(t), "t", func(m *Message) { got <- m.Position.Offset })
	must(t, err)
	token, peer := recv(t, requests, "request").Token, recv(t, peers, "peer")
	push := func(ms ...*arpc.Message) {
		t.Helper()
		for _, m := range ms {
			must(t, peer.PushMsg(m, patience))
		}
	}
	at := func(offset, before uint64) *arpc.Message {
		return messageFrame(&Message{Position: Position{1, offset}}, 7, false, Position{1, before})
	}
	expect := func(offsets ...uint64) {
		t.Helper()
		for _, want := range offsets {
			if m := recv(t, got, "message"); m != want {
				t.Fatalf("%d, not %d", m, want)
			}
		}
	}
	push(startFrame(7, token, false, Position{1, 4}), at(5, 4), at(8, 5), lostFrame(token, 3), at(10, 9), at(12, 11), at(13, 12))
	expect(5, 8, 10, 12, 13) // 9 and 11 were told of; 6 and 7 have never been
	push(at(16, 15), at(17, 16))
	if req := recv(t, requests, "request"); req.Token != token || req.From == nil || *req.From != (Position{1, 13}) {
		t.Fatalf("%+v", req)
	}
	push(at(18, 17), startFrame(7, token, true, Position{1, 13}), at(14, 13), at(15, 14), at(16, 15), at(17, 16))
	expect(14, 15, 16, 17)
	push(textFrame(eventAgain, 7, ""), at(20, 0))
	if req := recv(t, requests, "request"); *req.From != (Position{1, 17}) {
		t.Fatalf("%+v", *req.From)
	}
	push(startFrame(7, token, true, Position{1, 17}), at(18, 17), at(19, 18), at(20, 19))
	expect(18, 19, 20)
}
