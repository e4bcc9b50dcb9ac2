package pubsub

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/arpc-go/arpc"
)

// TestBacklog lets messages come and be taken at random, and holds each policy to its account: messages come out in order, and
// right before each the number of those that are missing there, unless a newer one with their key follows.
func TestBacklog(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		policy := []Overflow{DropOldest, DropNewest, Conflate}[r.IntN(3)]
		keys := 1 + r.IntN(30)
		server := &Server{}
		server.config.Limits = Limits{QueueBytes: 200 + r.IntN(2000)}.withDefaults()
		ch := &channel{server: server, key: channelKey{Filter: Filter{Name: "t"}}}
		s := &subscriber{peer: &peer{server: server}, ch: ch, token: 1, overflow: policy, limit: int32(1 + r.IntN(40)), slow: &backlog{}}
		var keyOf []int
		out, told, took := []int{}, map[int]int{}, 0
		lost := 0
		take := func() {
			s.mu.Lock()
			frames := s.takeLocked()
			s.mu.Unlock()
			for _, f := range frames {
				e, err := parseEvent(f.Buffer[arpc.HeadLen+len(methodEvent):])
				must(t, err)
				if e.kind == eventLost {
					lost += int(e.count)
					continue
				}
				told[len(out)] = lost
				took += lost
				lost = 0
				out = append(out, int(binary.LittleEndian.Uint32(e.message.Data)))
			}
		}
		for range r.IntN(40) {
			var ds []*delivery
			for range r.IntN(40) {
				n := len(keyOf)
				keyOf = append(keyOf, r.IntN(keys))
				m := &Message{Topic: "t", Key: fmt.Sprint(keyOf[n]), Data: binary.LittleEndian.AppendUint32(nil, uint32(n))}
				m.Data = append(m.Data, make([]byte, r.IntN(60))...)
				d := &delivery{m: m, seq: uint64(n + 1)}
				d.frame(ch, formEvent)
				ds = append(ds, d)
			}
			s.mu.Lock()
			s.addLocked(ds)
			if w := s.slow.waiting; w > int(s.limit) {
				t.Fatalf("seed %d: %d wait, the limit is %d", seed, w, s.limit)
			}
			if r.IntN(3) == 0 {
				take()
			}
		}
		for len(s.slow.queue) > 0 || s.slow.lost+s.slow.after > 0 {
			take()
		}
		if s.slow.waiting != 0 || s.slow.bytes != 0 || len(s.slow.keys) != 0 {
			t.Fatalf("seed %d: the empty queue has %+v", seed, s.slow)
		}
		out = append(out, len(keyOf))
		told[len(out)-1] = lost
		took += lost
		next := 0
		for i, n := range out {
			if n < next {
				t.Fatalf("seed %d (%v): %d after %d", seed, policy, n, next-1)
			}
			if policy != Conflate && told[i] != n-next {
				t.Fatalf("seed %d (%v): %d messages are missing before %d, and it was said of %d", seed, policy, n-next, n, told[i])
			}
			next = n + 1
		}
		if sum := len(out) - 1 + took + int(server.counters.conflated.Load()); sum != len(keyOf) {
			t.Fatalf("seed %d (%v): %d messages, %d are accounted for", seed, policy, len(keyOf), sum)
		}
	}
}
