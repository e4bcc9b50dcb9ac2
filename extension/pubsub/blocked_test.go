package pubsub

import (
	"encoding/binary"
	"testing"

	"github.com/arpc-go/arpc"
)

// TestBlockedHandlerLosesNothing lets a topic handler wait in a call while much more arrives than may wait for it: it is told of
// a gap, or has everything.
func TestBlockedHandlerLosesNothing(t *testing.T) {
	const n, size = 500, 100 << 10
	s, addr := serve(t, Config{Topics: history(n + 1), Limits: Limits{Queue: n, QueueBytes: n * size}}, arpc.Limits{SendHigh: 64 << 20, SendHard: 128 << 20})
	release := make(chan struct{})
	s.Handler.Handle("/wait", func(c *arpc.Context) { <-release; c.Write(nil) }, true)
	c := connect(t, addr)
	done := make(chan string, 10)
	next, told := uint32(0), false
	_, err := c.SubscribeWith(within(t), "t", func(m *Message) {
		i := binary.LittleEndian.Uint32(m.Data)
		if i == 0 {
			if err := c.Call("/wait", nil, nil, patience); err != nil {
				t.Log(err)
			}
		}
		if i != next && !told {
			done <- "a gap, and nobody said so"
		}
		next, told = i+1, false
		if i == n {
			done <- ""
		}
	}, OnEvent(func(e Event) {
		told = told || e.Kind == EventLost || e.Kind == EventSubscribed && e.Resumed && !e.Recovered
	}))
	must(t, err)
	b := make([]byte, size)
	for i := range uint32(n) {
		binary.LittleEndian.PutUint32(b, i)
		must(t, s.Publish("t", b))
	}
	waitFor(t, "all of it on the way", func() bool { return s.Stats().SendQueue == 0 || s.TopicStats().Peers == 0 })
	close(release)
	binary.LittleEndian.PutUint32(b, n)
	must(t, s.Publish("t", b))
	if text := recv(t, done, "the last message"); text != "" {
		t.Fatal(text)
	}
}
