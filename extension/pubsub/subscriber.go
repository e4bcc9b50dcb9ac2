package pubsub

import (
	"errors"
	"runtime/debug"
	"sync"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/log"
)

// Overflow says what happens to a message for a subscriber whose connection is full and whose queue has reached its bound. The
// subscriber gets an Event with the number of messages that this has cost it, but for Disconnect.
type Overflow uint8

const (
	// DropOldest drops what has waited longest, for the newest.
	DropOldest Overflow = iota
	// DropNewest drops the new message.
	DropNewest
	// Conflate drops what waits with the same topic and key as the new message, which is not counted as lost; at the bound it
	// drops the oldest. Messages without a key do not replace each other.
	Conflate
	// Disconnect closes the connection. A client connects again and recovers what its topics have kept.
	Disconnect
)

var overflowNames = [...]string{"drop_oldest", "drop_newest", "conflate", "disconnect"}

// String returns the name on the wire.
func (o Overflow) String() string { return overflowNames[int(o)%len(overflowNames)] }

func parseOverflow(name string) (Overflow, error) {
	if name == "" {
		return DropOldest, nil
	}
	for i, n := range overflowNames {
		if n == name {
			return Overflow(i), nil
		}
	}
	return 0, &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "unknown overflow policy " + name[:min(len(name), 32)]}
}

// batchOfBacklog is how many messages a slow connection is given at a time.
const batchOfBacklog = 64

// A subscriber is one subscription of a connection, at the server.
//
// Who sends to it changes hands: while slow is nil the channel's task does; whoever sets slow does until pump has emptied it and
// taken it away. So its messages stay in order without a lock held while sending.
type subscriber struct {
	peer     *peer
	key      channelKey
	ch       *channel // set when it joins
	index    int      // in ch.members; guarded by ch.mu
	joined   uint64   // deliveries up to that came before it
	token    uint32
	form     form
	overflow Overflow
	presence bool
	limit    int32 // of messages that wait

	mu     sync.Mutex
	closed bool
	placed bool // it is a member of ch
	slow   *backlog
	skip   Position // messages up to there it has got from the history
	leave  func()   // its presence; may be nil
}

// backlog is what waits for a connection.
type backlog struct {
	starting bool            // the history has not been asked for yet
	unsent   []*arpc.Message // sent before all else, and not dropped
	history  []*Message
	before   Position // of the message before history[0], if that is known
	queue    []queued
	first    uint64                 // number of queue[0], counted from the beginning of the backlog
	waiting  int                    // in queue
	bytes    int                    // of them
	keys     map[conflateKey]uint64 // numbers of what is in queue
	lost     uint64                 // messages that were dropped before queue
	after    uint64                 // and after it
}

// queued is a delivery that waits, nil where one was taken out, and how many messages were dropped right before it.
type queued struct {
	*delivery
	lost uint64
}

type conflateKey struct{ topic, key string }

// startingLimit is how many messages wait for a subscription that is being set up.
const startingLimit = 4096

// push sends messages to a connection without waiting, or with wait until there is room for all of them. n says how many were
// sent.
func push(c *arpc.Client, ms []*arpc.Message, wait bool) (n int, err error) {
	ours := false // nobody else writes what was pushed
	flush := func() {
		if ours {
			c.Flush()
		}
		ours = false
	}
	defer flush()
	for _, m := range ms {
		later, err := c.PushLater(m)
		if err != nil && (wait || ours) && errors.Is(err, arpc.ErrClientOverstock) {
			flush() // there may be room then
			timeout := arpc.TimeZero
			if wait {
				timeout = arpc.TimeForever
			}
			err = c.PushMsg(m, timeout)
		}
		if err != nil {
			return n, err
		}
		ours = ours || later
		n++
	}
	return n, nil
}

// wants reports whether the subscriber is to get a delivery. What one of several gets may be older than its subscription: it is for
// whoever is there when its turn comes.
func (s *subscriber) wants(d *delivery) bool {
	switch {
	case d.seq <= s.joined && !d.one, d.presence && !s.presence, d.m == nil && s.form == formRecord:
		return false
	case d.m != nil && !s.skip.IsZero() && d.m.Position.Epoch == s.skip.Epoch && d.m.Position.Offset <= s.skip.Offset:
		return false
	}
	return true
}

// deliver sends deliveries that are frames in the subscriber's form; plain says that all are messages. Only the channel's task
// calls it.
func (s *subscriber) deliver(ds []*delivery, frames []*arpc.Message, plain bool) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	if s.slow != nil {
		s.addLocked(ds)
		return
	}
	all := plain && ds[0].seq > s.joined
	if all && !s.skip.IsZero() {
		// Positions only grow: when the first is past what the history had, all are, and will be.
		if all = s.wants(ds[0]) && !ds[0].m.Position.IsZero(); all {
			s.skip = Position{}
		}
	}
	if !all {
		some := make([]*delivery, 0, len(ds))
		frames = make([]*arpc.Message, 0, len(ds))
		for _, d := range ds {
			if s.wants(d) {
				some, frames = append(some, d), append(frames, d.frames[s.form])
			}
		}
		if ds = some; len(ds) == 0 {
			s.mu.Unlock()
			return
		}
	}
	s.mu.Unlock()
	n, err := push(s.peer.client, frames, false)
	s.peer.server.counters.delivered.Add(int64(n))
	if err != nil {
		s.refused(ds[n:], err)
	}
}

// refused keeps what the connection has refused, and sends it when there is room. Only who may send calls it, while slow is nil.
func (s *subscriber) refused(ds []*delivery, err error) {
	if !errors.Is(err, arpc.ErrClientOverstock) {
		s.peer.failed()
		return
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.slow = &backlog{}
	go s.pump(true)
	s.addLocked(ds)
}

// deliverNow gives a delivery to the connection if it has room. Only the channel's task calls it, as deliverLater.
func (s *subscriber) deliverNow(d *delivery) bool {
	s.mu.Lock()
	ok := !s.closed && s.slow == nil && s.wants(d)
	s.mu.Unlock()
	if !ok {
		return false
	}
	if _, err := push(s.peer.client, []*arpc.Message{d.frame(s.ch, s.form)}, false); err != nil {
		if !errors.Is(err, arpc.ErrClientOverstock) {
			s.peer.failed()
		}
		return false
	}
	s.peer.server.counters.delivered.Add(1)
	return true
}

// waiting returns how many deliveries wait for the connection.
func (s *subscriber) waiting() (n int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slow != nil {
		n = s.slow.waiting + len(s.slow.unsent) + len(s.slow.history)
	}
	return n, !s.closed
}

// deliverLater lets a delivery wait for the connection.
func (s *subscriber) deliverLater(d *delivery) bool {
	d.frame(s.ch, s.form)
	s.mu.Lock()
	if s.closed || !s.wants(d) {
		s.mu.Unlock()
		return false
	}
	if s.slow == nil {
		s.slow = &backlog{}
		go s.pump(true)
	}
	s.addLocked([]*delivery{d})
	return true
}

// addLocked lets deliveries wait, as the policy says. It unlocks.
func (s *subscriber) addLocked(ds []*delivery) {
	x, limits, n := s.slow, &s.peer.server.config.Limits, &s.peer.server.counters
	for _, d := range ds {
		if !s.wants(d) {
			continue
		}
		if d.must {
			x.push(d)
			continue
		}
		if s.overflow == Conflate && x.replaced(d) {
			n.conflated.Add(1)
		}
		limit := int(s.limit)
		if x.starting {
			limit = max(limit, startingLimit)
		}
		full := func() bool {
			return x.waiting >= limit || x.waiting > 0 && x.bytes+d.size() > limits.QueueBytes
		}
		switch {
		case !full():
		case s.overflow == Disconnect:
			s.closed = true
			s.mu.Unlock()
			n.disconnected.Add(1)
			log.Warn("pubsub: %v is too slow for %q and is disconnected", s.peer.client.Conn.RemoteAddr(), s.key.Name)
			s.peer.client.Conn.Close() //nolint:errcheck // it ends either way
			return
		case s.overflow == DropNewest:
			x.after++
			n.dropped.Add(1)
			continue
		default:
			for full() && x.dropOldest() {
				n.dropped.Add(1)
			}
		}
		x.push(d)
	}
	s.mu.Unlock()
}

func (d *delivery) conflate() (conflateKey, bool) {
	if d.m == nil || d.m.Key == "" {
		return conflateKey{}, false
	}
	return conflateKey{d.m.Topic, d.m.Key}, true
}

func (x *backlog) push(d *delivery) {
	if k, ok := d.conflate(); ok {
		if x.keys == nil {
			x.keys = map[conflateKey]uint64{}
		}
		x.keys[k] = x.first + uint64(len(x.queue))
	}
	x.queue = append(x.queue, queued{d, x.after})
	x.after = 0
	x.waiting++
	x.bytes += d.size()
}

// replaced drops what waits with the key of d. d itself goes to the end, because positions must arrive in order: a subscriber that
// recovers from the last one has everything before it.
func (x *backlog) replaced(d *delivery) bool {
	k, ok := d.conflate()
	if !ok {
		return false
	}
	at, ok := x.keys[k]
	if ok {
		x.remove(int(at - x.first))
	}
	return ok
}

// dropOldest takes out what has waited longest. It reports false if nothing may be.
func (x *backlog) dropOldest() bool {
	for i, d := range x.queue {
		if d.delivery != nil && !d.must {
			x.queue[i].lost++
			x.remove(i)
			return true
		}
	}
	return false
}

// remove takes delivery i out of the queue, leaving a nil that is removed when it comes to the front.
func (x *backlog) remove(i int) *delivery {
	d := x.queue[i].delivery
	x.queue[i].delivery = nil
	x.waiting--
	x.bytes -= d.size()
	if k, ok := d.conflate(); ok && x.keys[k] == x.first+uint64(i) {
		delete(x.keys, k)
	}
	for len(x.queue) > 0 && x.queue[0].delivery == nil {
		x.lost += x.queue[0].lost
		x.queue = x.queue[1:]
		x.first++
	}
	if len(x.queue) > 2*x.waiting+batchOfBacklog {
		x.compact()
	}
	return d
}

// compact removes the nils.
func (x *backlog) compact() {
	old, after := x.queue, x.after
	x.first += uint64(len(old))
	x.queue, x.waiting, x.bytes, x.after = make([]queued, 0, 2*x.waiting), 0, 0, 0
	clear(x.keys)
	for _, d := range old {
		if x.after += d.lost; d.delivery != nil {
			x.push(d.delivery)
		}
	}
	x.after += after
}

// takeLocked returns what is sent next, nil for nothing.
func (s *subscriber) takeLocked() []*arpc.Message {
	x := s.slow
	out := x.unsent
	x.unsent = nil
	for len(out) < batchOfBacklog && len(x.history) > 0 { // all of it comes before what waits
		m := x.history[0]
		out = append(out, messageFrame(m, s.ch.id, false, x.before))
		x.before = m.Position
		x.history[0] = nil
		x.history = x.history[1:]
	}
	for len(out) < batchOfBacklog-1 { // room for two
		if len(x.queue) == 0 {
			x.lost += x.after
			x.after = 0
		} else {
			x.lost += x.queue[0].lost
			x.queue[0].lost = 0
		}
		if x.lost > 0 {
			if s.form == formEvent {
				out = append(out, lostFrame(s.token, x.lost))
			}
			x.lost = 0
		}
		if len(x.queue) == 0 {
			break
		}
		if d := x.remove(0); s.wants(d) { // what the history had was not known when it came
			out = append(out, d.frames[s.form])
		}
	}
	return out
}

// pump sends what waits until nothing does. The one who has set slow calls it; without wait it does not, but goes on on a
// goroutine when the connection is full.
func (s *subscriber) pump(wait bool) {
	defer func() {
		if p := recover(); p != nil { // of a coder or a hook: the order of this subscription is gone
			log.Error("pubsub: panic while sending to %v: %v\n%s", s.peer.client.Conn.RemoteAddr(), p, debug.Stack())
			s.peer.client.Conn.Close() //nolint:errcheck // it ends either way
		}
	}()
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return
		}
		batch := s.takeLocked()
		if len(batch) == 0 {
			s.slow = nil
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		n, err := push(s.peer.client, batch, wait)
		s.peer.server.counters.delivered.Add(int64(n))
		if err == nil {
			continue
		}
		if !errors.Is(err, arpc.ErrClientOverstock) {
			s.mu.Lock()
			s.closed = true
			s.mu.Unlock()
			s.peer.failed()
			return
		}
		s.mu.Lock()
		if s.slow != nil {
			s.slow.unsent = append(batch[n:len(batch):len(batch)], s.slow.unsent...)
		}
		s.mu.Unlock()
		if !wait {
			go s.pump(true)
			return
		}
	}
}

// begin sends what a subscription begins with, and then what has come meanwhile. It is called once.
func (s *subscriber) begin(first []*arpc.Message, p Page) {
	s.mu.Lock()
	s.skip = p.Top
	if s.slow != nil {
		s.slow.starting = false
		s.slow.unsent, s.slow.history = first, p.Messages
	}
	s.mu.Unlock()
	s.pump(false)
}

// close ends the subscription; afterwards nothing begins to be sent. What waits for a member of a group goes to another.
func (s *subscriber) close() {
	s.mu.Lock()
	s.closed = true
	leave, placed := s.leave, s.placed
	s.leave, s.placed = nil, false
	var rest []queued
	if s.slow != nil && s.key.group != "" {
		rest, s.slow.queue = s.slow.queue, nil
	}
	s.mu.Unlock()
	if leave != nil {
		leave()
	}
	if placed {
		s.ch.leave(s)
	}
	for _, d := range rest {
		if d.delivery != nil && d.m != nil {
			s.ch.enqueue(&delivery{m: d.m, one: true, frames: d.frames})
		}
	}
}
