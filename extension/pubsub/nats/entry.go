package nats

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats/internal/wire"
	"github.com/arpc-go/arpc/log"
	"github.com/nats-io/nats.go"
)

// entryKey is what an entry is for.
type entryKey struct {
	pubsub.Filter
	group string
}

// An entry is the sinks of this engine with one filter and group. It has one subscription for what all get, or one of the group
// gets, and one in a queue group of all entries of all engines for what one gets; both hand over on goroutines of their own.
//
// A sink that refuses a message has nobody any more. When all have refused one, it is handed on: the entry first leaves the queue
// group, on the same connection, so that it cannot come back, and then publishes it again.
type entry struct {
	engine *Engine
	key    entryKey

	mu      sync.Mutex
	sinks   []*sinkOf // copied on write
	next    uint      // whom to ask first
	gone    bool      // not the engine's any more
	main    *nats.Subscription
	forward *nats.Subscription // what other members of the group have handed on; nil without a group
	one     *nats.Subscription // to one; nil after it was refused

	last    pubsub.Position // up to which nothing is missing, of plain entries for one topic; zero if nothing has come
	moved   bool            // last has, since the last sweep
	suspect uint64          // offset that the stream had at the last sweep, and this had not
}

type sinkOf struct{ pubsub.Sink }

// queueOne is the queue group of all that one message is for.
const queueOne = "1"

// groupToken is what stands for a group in subjects: the name may be long, and contain anything.
func groupToken(group string) string {
	sum := sha256.Sum256([]byte(group))
	return base64.RawURLEncoding.EncodeToString(sum[:18])
}

// Heads of subjects, see the package's comment.
func (e *Engine) headAll() string { return e.config.Prefix + ".m." }
func (e *Engine) headOne() string { return e.config.Prefix + ".1." }
func (e *Engine) headForward(group string) string {
	return e.config.Prefix + ".f." + groupToken(group) + "."
}

// Subscribe implements pubsub.Engine. It costs a message to the server and back, and two goroutines for each filter and group.
func (e *Engine) Subscribe(ctx context.Context, f pubsub.Filter, group string, s pubsub.Sink) (cancel func(), err error) {
	key, sink := entryKey{f, group}, &sinkOf{s}
	bound, done, err := e.bound(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	x, err := e.enter(key, sink)
	if err == nil {
		err = e.conn.FlushWithContext(bound) // the server knows of it now
	}
	if x != nil && err == nil {
		return sync.OnceFunc(func() { e.leave(x, sink) }), nil
	}
	if x != nil {
		e.leave(x, sink)
	}
	return nil, e.failureOf(ctx, bound, err)
}

// enter adds a sink to its entry, which it makes if there is none.
func (e *Engine) enter(key entryKey, sink *sinkOf) (*entry, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	x := e.entries[key]
	if x == nil {
		x = &entry{engine: e, key: key}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.subscribeLocked(); err != nil {
		if len(x.sinks) == 0 {
			x.closeLocked()
		}
		return nil, err
	}
	x.sinks = append(slices.Clone(x.sinks), sink)
	e.entries[key] = x
	return x, nil
}

// subscribeLocked makes what subscriptions the entry does not have. The engine is locked too.
func (x *entry) subscribeLocked() error {
	e := x.engine
	queue := ""
	if x.key.group != "" {
		queue = groupToken(x.key.group)
	}
	for _, s := range []struct {
		at    **nats.Subscription
		head  string
		queue string
		h     nats.MsgHandler
		need  bool
	}{
		{&x.main, e.headAll(), queue, x.handleAll, true},
		{&x.forward, e.headForward(x.key.group), queue, x.handleForward, queue != ""},
		{&x.one, e.headOne(), queueOne, x.handleOne, true},
	} {
		if !s.need || *s.at != nil {
			continue
		}
		sub, err := e.conn.QueueSubscribe(wire.Subject(s.head, x.key.Filter), s.queue, s.h)
		if err != nil {
			return err
		}
		if err = sub.SetPendingLimits(e.config.Pending, e.config.PendingBytes); err != nil {
			return err
		}
		*s.at = sub
		if s.at == &x.main && queue == "" {
			e.subs[sub] = x
		}
	}
	return nil
}

// leave removes a sink, and the entry with the last one.
func (e *Engine) leave(x *entry, sink *sinkOf) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sinks = slices.DeleteFunc(slices.Clone(x.sinks), func(s *sinkOf) bool { return s == sink })
	if len(x.sinks) == 0 && !x.gone {
		x.closeLocked()
	}
}

// closeLocked ends the entry. What has come for one of its sinks is handed on. The engine is locked too.
func (x *entry) closeLocked() {
	x.gone = true
	if x.engine.entries[x.key] == x {
		delete(x.engine.entries, x.key)
	}
	if x.main != nil {
		if x.key.group == "" {
			delete(x.engine.subs, x.main)
			x.main.Unsubscribe() //nolint:errcheck // it fails if the connection is closed, and then it is over too
			x.main = nil
		}
	}
	drain(&x.main)
	drain(&x.forward)
	drain(&x.one)
}

// drain ends a subscription, whose handler still gets what has come.
func drain(sub **nats.Subscription) {
	if *sub != nil {
		(*sub).Drain() //nolint:errcheck // it fails if the connection is closed, and then it is over too
		*sub = nil
	}
}

// retire leaves the queue groups of whom a message has been refused by all sinks: the group of the entry, if it has one, or else
// only that of messages to one, as a plain entry's other messages are for all.
func (x *entry) retire() {
	e := x.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.key.group != "" && !x.gone {
		x.closeLocked()
	}
	drain(&x.one)
}

// parse decodes what has come. It returns nil for what is not the engine's.
func (x *entry) parse(head string, msg *nats.Msg) (m *pubsub.Message, begin bool) {
	m, begin, ok := wire.ParseMessage(msg.Data)
	if ok {
		m.Topic, ok = x.key.Name, !x.key.Wildcard
		if !ok {
			m.Topic, ok = wire.ParseTopic(strings.TrimPrefix(msg.Subject, head))
		}
	}
	if !ok {
		log.Warn("nats: malformed message of %d bytes on %s", len(msg.Data), msg.Subject)
		return nil, false
	}
	return m, begin
}

// positionOf returns where a message is in its topic, and the offset of the one before it, by what the stream has said.
func (e *Engine) positionOf(msg *nats.Msg) (p pubsub.Position, before uint64) {
	if msg.Header == nil {
		return p, 0
	}
	_, epoch, ok := e.parseSubject(msg.Header.Get("Nats-Subject"))
	if !ok || epoch == 0 {
		return p, 0
	}
	offset, err := strconv.ParseUint(msg.Header.Get("Nats-Sequence"), 10, 53)
	if err != nil {
		return p, 0
	}
	before, err = strconv.ParseUint(msg.Header.Get("Nats-Last-Sequence"), 10, 53)
	if err != nil {
		return p, 0
	}
	return pubsub.Position{Epoch: epoch, Offset: offset}, before
}

// handleAll hands over a message for all, or for one of a group.
func (x *entry) handleAll(msg *nats.Msg) {
	m, begin := x.parse(x.engine.headAll(), msg)
	if m == nil {
		return
	}
	var before uint64
	m.Position, before = x.engine.positionOf(msg)
	if x.key.group != "" {
		if !begin && !x.toOne(m) {
			x.retire()
			x.handOn(x.engine.headForward(x.key.group), m)
		}
		return
	}
	if !m.Position.IsZero() && !x.key.Wildcard && !x.follows(m.Position, before) {
		x.tellMissed()
	}
	if begin {
		return
	}
	for _, s := range x.all() {
		s.Deliver(m)
	}
}

// handleForward hands over what another engine could not.
func (x *entry) handleForward(msg *nats.Msg) {
	if m, _ := x.parse(x.engine.headForward(x.key.group), msg); m != nil && !x.toOne(m) {
		x.retire()
		x.handOn(x.engine.headForward(x.key.group), m)
	}
}

// handleOne hands over a message to one.
func (x *entry) handleOne(msg *nats.Msg) {
	if m, _ := x.parse(x.engine.headOne(), msg); m != nil && !x.toOne(m) {
		x.retire()
		x.handOn(x.engine.headOne(), m)
	}
}

// handOn gives a message to another entry of the queue group.
func (x *entry) handOn(head string, m *pubsub.Message) {
	if err := x.engine.conn.Publish(wire.TopicSubject(head, m.Topic), wire.AppendMessage(nil, m)); err != nil {
		log.Warn("nats: a message for one subscriber of %q is lost: %v", m.Topic, err)
	}
}

func (x *entry) all() []*sinkOf {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.sinks
}

// toOne gives a message to one sink that takes it.
func (x *entry) toOne(m *pubsub.Message) bool {
	x.mu.Lock()
	sinks := x.sinks
	first := x.next
	x.next++
	x.mu.Unlock()
	for i := range sinks {
		if sinks[(first+uint(i))%uint(len(sinks))].Deliver(m) {
			return true
		}
	}
	return false
}

// follows notes that a message has come, and reports whether none is missing before it.
func (x *entry) follows(p pubsub.Position, before uint64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	last := x.last
	if last.Epoch == p.Epoch && p.Offset <= last.Offset {
		return true
	}
	x.last, x.moved = p, true
	return last.IsZero() || last.Epoch == p.Epoch && before <= last.Offset
}

// begin notes where the topic was when the first sink came; what is missing after that is missed.
func (x *entry) begin(p pubsub.Position) {
	x.mu.Lock()
	if x.last.IsZero() {
		x.last = p
	}
	x.mu.Unlock()
}

// tellMissed makes subscribers recover.
func (x *entry) tellMissed() {
	for _, s := range x.all() {
		s.Interrupted(errMissed)
		s.Resumed()
	}
}

// missed is tellMissed when it is not known what is missing.
func (x *entry) missed() {
	x.mu.Lock()
	x.last = pubsub.Position{}
	x.mu.Unlock()
	x.tellMissed()
}

func (x *entry) interrupted(err error) {
	x.mu.Lock()
	x.last = pubsub.Position{}
	x.mu.Unlock()
	for _, s := range x.all() {
		s.Interrupted(err)
	}
}

func (x *entry) resumed() {
	x.mu.Lock()
	x.last = pubsub.Position{}
	x.mu.Unlock()
	for _, s := range x.all() {
		s.Resumed()
	}
}
