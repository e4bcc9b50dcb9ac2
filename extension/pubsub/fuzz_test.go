package pubsub

import (
	"bytes"
	"net"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// FuzzParse gives bytes to everything that reads them from a peer: nothing panics or keeps the bytes, and what is understood is
// understood again when it is written anew.
func FuzzParse(f *testing.F) {
	m := &Message{Topic: "t", Data: []byte("data"), Key: "k", Timestamp: 1, Position: Position{1, 2}}
	body := func(m *arpc.Message) []byte { return m.Buffer[arpc.HeadLen+len(methodEvent):] }
	pub, _ := (&publication{topic: "t", key: "k", id: "i", data: []byte("data")}).append(nil)
	for _, seed := range [][]byte{
		nil, body(messageFrame(m, 1, true, Position{1, 1})), body(messageFrame(m, 1, false, Position{})), body(startFrame(1, 2, true, Position{3, 4})), body(lostFrame(1, 2)),
		body(presenceFrame(1, "t", Member{ID: "m", Info: []byte("{}")}, true)), body(textFrame(eventInterrupted, 1, "why")),
		body(endedFrame(1, ErrInvalidPassword)), pub, appendRecord([]byte("data"), "t", 1), Receipt{Position{1, 2}, true}.append(nil),
		(&Page{Messages: []*Message{m, m}, Top: Position{1, 2}, Complete: true}).append(nil),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		was := bytes.Clone(b)
		if e, err := parseEvent(b); err == nil && e.kind == eventMessage && len(e.message.Topic) <= MaxTopicNameLen {
			again, err := parseEvent(body(messageFrame(e.message, e.id, e.flags&flagTopic != 0, e.before)))
			if err != nil || !reflect.DeepEqual(again.message, e.message) || e.message.Position.Epoch != 0 && again.before != e.before {
				t.Fatalf("%+v, not %+v: %v", again.message, e.message, err)
			}
		}
		if p, err := parsePublication(b); err == nil && len(p.topic) <= MaxTopicNameLen {
			out, err := p.append(nil)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := parsePublication(out); err != nil || !reflect.DeepEqual(again, p) {
				t.Fatalf("%+v, not %+v: %v", again, p, err)
			}
		}
		if r, err := parseRecord(b); err == nil {
			if again := appendRecord(bytes.Clone(r.Data), r.Name, r.Timestamp); !bytes.Equal(again, b) {
				t.Fatalf("%x, not %x", again, b)
			}
		}
		if p, err := parsePage(b); err == nil {
			if again, err := parsePage(p.append(nil)); err != nil || again.Top != p.Top || len(again.Messages) != len(p.Messages) {
				t.Fatalf("%+v, not %+v: %v", again, p, err)
			}
		}
		if r, err := parseReceipt(b); err == nil {
			if again, err := parseReceipt(r.append(nil)); err != nil || again != r {
				t.Fatalf("%+v, not %+v: %v", again, r, err)
			}
		}
		if !bytes.Equal(b, was) {
			t.Fatal("the input has changed")
		}
	})
}

// FuzzRequests sends requests with any body to a server: each is answered, and the next one too.
func FuzzRequests(f *testing.F) {
	methods := []string{methodAuth, methodSubscribe, methodCancel, methodPublish, methodToOne, methodSub, methodUnsub, methodPub, methodHistory, methodMembers}
	for i, seed := range []string{"pw", "t\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00", "t\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"datat\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00", "datat\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		`{"topic":"t","token":1,"from":{"epoch":1,"offset":2},"last":3,"overflow":"conflate","queue":5,"presence":true,"join":true,"info":{}}`,
		`{"token":1}`, "\x00\x01\x00tdata", `{"topic":"t","limit":3}`, `{"topic":"t"}`} {
		f.Add(byte(i), []byte(seed))
	}
	f.Add(byte(5), []byte(`{"topic":"a.*","group":"g"}`))
	_, addr := serve(f, Config{Topics: func(string) TopicConfig { return TopicConfig{HistorySize: 3, LastValue: true, Presence: true} }})
	witness := connect(f, addr)
	f.Fuzz(func(t *testing.T, method byte, body []byte) {
		nc, err := net.Dial("tcp", addr)
		must(t, err)
		defer nc.Close()
		must(t, nc.SetDeadline(time.Now().Add(patience)))
		p := &rawPeer{t, nc}
		p.call(methods[int(method)%len(methods)], body)
		p.call(methodMembers, []byte(`{"topic":"t"}`))
		must(t, witness.Publish("t", "x", patience))
	})
}

// FuzzFilter compares the two ways to match, and both with one that is slow and plain.
func FuzzFilter(f *testing.F) {
	for _, s := range [][2]string{{"a.*", "a.b"}, {"a.>", "a.b.c"}, {">", "x"}, {"*", ""}, {"a.*.c", "a..c"}, {"a", "a"}, {"*.>", "a"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, topic string) {
		fl, err := newFilter(pattern)
		if err != nil {
			return
		}
		want := plainMatch(pattern, topic)
		if !fl.Wildcard {
			want = pattern == topic
		}
		if got := fl.Match(topic); got != want {
			t.Fatalf("%q matches %q: %v", pattern, topic, got)
		}
		if !fl.Wildcard {
			return
		}
		var tree filterTree[string]
		others := []string{"*", ">", "a.*", "a.>", pattern + ".x", pattern + ".*"}
		for _, o := range append(others, pattern) {
			if of, err := newFilter(o); err == nil && of.Wildcard {
				*tree.at(o) = &o
			}
		}
		has := slices.ContainsFunc(tree.match(nil, topic), func(s *string) bool { return *s == pattern })
		if has != want {
			t.Fatalf("the tree has %q for %q: %v", pattern, topic, has)
		}
		for _, o := range append(others, pattern) {
			if of, err := newFilter(o); err == nil && of.Wildcard {
				tree.remove(o)
			}
		}
		if len(tree.next) > 0 || tree.any != nil || tree.here != nil || tree.rest != nil {
			t.Fatalf("removing leaves %+v", tree)
		}
	})
}

func plainMatch(pattern, topic string) bool {
	p, w := bytes.Split([]byte(pattern), []byte(".")), bytes.Split([]byte(topic), []byte("."))
	for i, word := range p {
		if string(word) == ">" {
			return len(w) > i
		}
		if i >= len(w) || string(word) != "*" && !bytes.Equal(word, w[i]) {
			return false
		}
	}
	return len(p) == len(w)
}
