package nats

import (
	"context"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub/nats/internal/wire"
)

// A message that was lost on the way from the stream to the engine is noticed when the next one of its topic comes, as each says
// which one it follows. For one that none follows, the sweep compares with the stream.
const (
	sweepEvery = 2 * time.Second
	sweepMost  = 500 // topics at a time
)

// sweep compares what has come with what the streams have, until Close.
func (e *Engine) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var queue []*entry
	for {
		select {
		case <-tick.C:
		case <-e.stop:
			return
		}
		if len(queue) == 0 {
			e.mu.Lock()
			queue = e.allLocked()
			e.mu.Unlock()
		}
		queue = e.sweepSome(queue)
	}
}

// sweepSome looks at some of the entries, and returns the others.
func (e *Engine) sweepSome(queue []*entry) []*entry {
	ctx, done, err := e.bound(context.Background())
	if err != nil {
		return nil
	}
	defer done()
	known := map[uint64]*stream{}
	e.streams.mu.Lock()
	slots := make([]*slot, 0, len(e.streams.m))
	for _, s := range e.streams.m {
		slots = append(slots, s)
	}
	e.streams.mu.Unlock()
	for _, s := range slots {
		s.mu.Lock()
		if s.stream != nil {
			known[s.stream.epoch] = s.stream
		}
		s.mu.Unlock()
	}
	for n := 0; len(queue) > 0 && n < sweepMost; queue = queue[1:] {
		x := queue[0]
		x.mu.Lock()
		last, quiet := x.last, !x.moved && !x.gone
		st := known[last.Epoch]
		x.moved = false
		if !quiet {
			x.suspect = 0
		}
		pending := 0
		if x.main != nil {
			pending, _, _ = x.main.Pending() //nolint:errcheck // it is closed, and has none
		}
		x.mu.Unlock()
		if !quiet || pending > 0 || st == nil || last.Epoch == 0 {
			continue
		}
		n++
		k, err := e.get(ctx, st, x.key.Name, request{Last: wire.TopicSubject(st.head, x.key.Name)})
		if err != nil {
			return nil // another time
		}
		x.mu.Lock()
		missed := k != nil && x.last == last && k.offset() > last.Offset && x.suspect != 0
		x.suspect = 0
		if k != nil && k.offset() > last.Offset && !missed { // it may be on its way, but not for so long
			x.suspect = k.offset()
		}
		x.mu.Unlock()
		if missed {
			x.missed()
		}
	}
	return queue
}
