package pubsub

import (
	"context"
	"runtime/debug"
	"sync"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/work"
	"github.com/arpc-go/arpc/log"
)

// What may wait for the fan-out of a channel; a publisher waits at that.
const (
	maxWaiting      = 1024
	maxWaitingBytes = 1 << 20
)

// channelKey is what a channel is for.
type channelKey struct {
	Filter
	group string
	lane  int // 0, but for the second subscription and further ones of a connection with the same filter and group
}

// A channel is the subscribers of one server with one filter and group, and the Sink that feeds them.
//
// What is delivered to it waits in a queue, and one task at a time takes all of it and pushes it to one subscriber after the
// other: what came while it was busy is one push for each, and so one write to each connection.
//
// Lock order: life, mu, a subscriber's.
type channel struct {
	server *Server
	key    channelKey
	id     uint64

	life   sync.Mutex // serialises joining and leaving
	dead   bool       // not the server's any more
	cancel func()     // the engine's

	mu      sync.Mutex
	members []*subscriber
	changed bool     // since the task has copied them
	seq     uint64   // of the last delivery
	last    Position // of the last message that has one; zero for patterns
	queue   []*delivery
	bytes   int
	room    *sync.Cond // to append to queue; nil until somebody waits
	running bool
	down    *arpc.Message // what tells of an interruption, while there is one

	// The task's.
	batch  []*delivery
	all    []*subscriber
	frames [2][]*arpc.Message
	next   int // member that is asked first for a message to one
}

// delivery is a message, or an event, on its way to the subscribers of a channel.
type delivery struct {
	m      *Message
	before Position // see messageFrame
	seq    uint64
	one    bool
	must   bool // an event that no policy drops

	// Encoded when they are first needed, once for all subscribers; nil for those who do not get it.
	frames   [2]*arpc.Message
	presence bool // only for those who have asked
}

// form is how a subscriber wants its messages.
type form uint8

const (
	formEvent form = iota
	formRecord
)

// frame returns the delivery as f wants it, nil if it is not for f. Only the channel's task calls it for the first time.
func (d *delivery) frame(ch *channel, f form) *arpc.Message {
	if d.frames[f] == nil && d.m != nil {
		if f == formRecord {
			d.frames[f] = recordFrame(d.m)
		} else {
			d.frames[f] = messageFrame(d.m, ch.id, ch.key.Wildcard, d.before)
		}
	}
	return d.frames[f]
}

func (d *delivery) size() int {
	if d.m != nil {
		return len(d.m.Data) + len(d.m.Topic) + len(d.m.Key)
	}
	return len(d.frames[formEvent].Buffer)
}

// Deliver implements Sink.
func (ch *channel) Deliver(m *Message) bool {
	return ch.enqueue(&delivery{m: m, one: m.ToOne || ch.key.group != ""})
}

// Presence implements Sink.
func (ch *channel) Presence(topic string, m Member, joined bool) {
	d := &delivery{presence: true}
	d.frames[formEvent] = presenceFrame(ch.id, topic, m, joined)
	ch.enqueue(d)
}

// Interrupted implements Sink. Whoever joins before Resumed is told too, as what comes until then may not be all there is.
func (ch *channel) Interrupted(err error) {
	ch.tell(textFrame(eventInterrupted, ch.id, err.Error()), true)
}

// Resumed implements Sink. Subscribers subscribe again from where they are, so that there is one way to recover.
func (ch *channel) Resumed() { ch.tell(textFrame(eventAgain, ch.id, ""), false) }

func (ch *channel) tell(frame *arpc.Message, down bool) {
	ch.mu.Lock()
	ch.down = nil
	if down {
		ch.down = frame
	}
	ch.mu.Unlock()
	d := &delivery{must: true}
	d.frames[formEvent] = frame
	ch.enqueue(d)
}

// enqueue hands a delivery to the task. It reports false if there are no subscribers.
func (ch *channel) enqueue(d *delivery) bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	for len(ch.members) > 0 && (len(ch.queue) >= maxWaiting || ch.bytes >= maxWaitingBytes) {
		if ch.room == nil {
			ch.room = sync.NewCond(&ch.mu)
		}
		ch.room.Wait()
	}
	if len(ch.members) == 0 {
		return false
	}
	ch.seq++
	d.seq = ch.seq
	switch {
	case d.must: // the engine may have missed something
		ch.last = Position{}
	case d.m != nil && !d.one && !ch.key.Wildcard && !d.m.Position.IsZero():
		d.before, ch.last = ch.last, d.m.Position
	}
	ch.queue = append(ch.queue, d)
	ch.bytes += d.size()
	if !ch.running {
		ch.running = true
		work.Go(ch)
	}
	return true
}

// RunTask implements work.Task: it is the fan-out; not for users.
func (ch *channel) RunTask() {
	for {
		ch.mu.Lock()
		if len(ch.queue) == 0 {
			ch.running = false
			ch.mu.Unlock()
			return
		}
		ch.batch, ch.queue, ch.bytes = ch.queue, ch.batch[:0], 0
		if ch.room != nil {
			ch.room.Broadcast()
		}
		ch.renewLocked()
		ch.mu.Unlock()
		ch.fanOut(ch.batch)
		clear(ch.batch)
	}
}

// renewLocked makes the task's copy of the members what they are now. It reports whether that is a change.
func (ch *channel) renewLocked() bool {
	if !ch.changed {
		return false
	}
	clear(ch.all)
	ch.all = append(ch.all[:0], ch.members...)
	ch.changed = false
	return true
}

// fanOut gives a batch to the subscribers. A panic, of a coder or a hook, costs what it interrupts and nothing else.
func (ch *channel) fanOut(batch []*delivery) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("pubsub: panic while delivering to %q: %v\n%s", ch.key.Name, p, debug.Stack())
		}
	}()
	for len(batch) > 0 {
		if batch[0].one {
			ch.toOne(batch[0])
			batch = batch[1:]
			continue
		}
		n := 1
		plain := batch[0].m != nil
		for n < len(batch) && !batch[n].one {
			plain = plain && batch[n].m != nil
			n++
		}
		ch.toAll(batch[:n], plain)
		batch = batch[n:]
	}
}

// toAll gives deliveries to each subscriber; plain says that all of them are messages.
func (ch *channel) toAll(ds []*delivery, plain bool) {
	var ready [2]bool
	for _, s := range ch.all {
		f := s.form
		if !ready[f] {
			ch.frames[f] = ch.frames[f][:0]
			for _, d := range ds {
				ch.frames[f] = append(ch.frames[f], d.frame(ch, f))
			}
			ready[f] = true
		}
		s.deliver(ds, ch.frames[f], plain)
	}
	clear(ch.frames[formEvent])
	clear(ch.frames[formRecord])
}

// toOne gives a delivery to one subscriber; if all have left, to one that has come while the task was busy.
func (ch *channel) toOne(d *delivery) {
	if ch.offer(d) {
		return
	}
	ch.mu.Lock()
	again := ch.renewLocked()
	ch.mu.Unlock()
	if !again || !ch.offer(d) {
		ch.server.counters.undeliverable.Add(1)
	}
}

// offer gives a delivery to the first subscriber, from another one on each time, whose connection has room; if none has, to the
// shortest queue. It reports false if there is nobody.
func (ch *channel) offer(d *delivery) bool {
	n := len(ch.all)
	for i := range n {
		s := ch.all[(ch.next+i)%n]
		if s.deliverNow(d) {
			ch.next = (ch.next + i + 1) % n
			return true
		}
	}
	var best *subscriber
	least := 0
	for i := range n {
		s := ch.all[(ch.next+i)%n]
		if w, ok := s.waiting(); ok && (best == nil || w < least) {
			best, least = s, w
		}
	}
	return best != nil && best.deliverLater(d)
}

// join makes sub a member of its channel.
func (s *Server) join(ctx context.Context, sub *subscriber) error {
	key := sub.key
	for {
		s.mu.Lock()
		ch := s.channels[key]
		if ch == nil {
			if len(s.channels) >= s.config.Limits.Topics {
				s.mu.Unlock()
				return errTopics
			}
			s.lastID++
			ch = &channel{server: s, key: key, id: s.lastID}
			s.channels[key] = ch
		}
		s.mu.Unlock()
		if joined, err := ch.join(ctx, sub); joined || err != nil {
			return err
		}
	}
}

// join adds a subscriber. It reports false if the channel is not the server's any more.
func (ch *channel) join(ctx context.Context, sub *subscriber) (bool, error) {
	ch.life.Lock()
	defer ch.life.Unlock()
	if ch.dead {
		return false, nil
	}
	ch.mu.Lock()
	sub.ch, sub.index, sub.joined = ch, len(ch.members), ch.seq
	ch.members = append(ch.members, sub)
	ch.changed = true
	if ch.down != nil && sub.slow != nil {
		ch.seq++
		d := &delivery{must: true, seq: ch.seq}
		d.frames[formEvent] = ch.down
		sub.mu.Lock()
		sub.slow.push(d)
		sub.mu.Unlock()
	}
	ch.mu.Unlock()
	if ch.cancel == nil {
		cancel, err := ch.server.engine.Subscribe(ctx, ch.key.Filter, ch.key.group, ch)
		if err != nil {
			ch.removeLocked(sub)
			return false, err
		}
		ch.cancel = cancel
	}
	sub.mu.Lock()
	closed := sub.closed
	sub.placed = !closed
	sub.mu.Unlock()
	if closed { // its connection has ended meanwhile
		ch.removeLocked(sub)
		return false, arpc.ErrClientStopped
	}
	return true, nil
}

// leave removes a subscriber.
func (ch *channel) leave(sub *subscriber) {
	ch.life.Lock()
	defer ch.life.Unlock()
	ch.removeLocked(sub)
}

// removeLocked removes a subscriber, and the channel with the last one. life is held.
func (ch *channel) removeLocked(sub *subscriber) {
	ch.mu.Lock()
	last := len(ch.members) - 1
	ch.members[sub.index] = ch.members[last]
	ch.members[sub.index].index = sub.index
	ch.members[last] = nil
	ch.members = ch.members[:last]
	ch.changed = true
	if ch.room != nil {
		ch.room.Broadcast()
	}
	ch.mu.Unlock()
	if last > 0 {
		return
	}
	ch.dead = true
	if ch.cancel != nil {
		ch.cancel()
	}
	ch.server.mu.Lock()
	delete(ch.server.channels, ch.key)
	ch.server.mu.Unlock()
}
