package pubsub

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc"
)

// MemoryConfig bounds what a Memory engine keeps. Zero means the default of a field.
type MemoryConfig struct {
	// Topics is the number of topics that have something to remember: messages, IDs, an epoch. Topics without history and
	// subscriptions do not count. Default 100,000.
	Topics int
	// Bytes is the memory for messages and IDs of all topics together. A publication to a topic that would exceed it takes the
	// place of the topic's own oldest messages. Default 256 MiB.
	Bytes int
	// Messages is the largest HistorySize; topics that are configured for more keep that many. Default 100,000.
	Messages int
	// IDs is the number of publication IDs that are remembered for each topic, and IDAge for how long. Default 10,000 and 2
	// minutes.
	IDs   int
	IDAge time.Duration
	// Idle is how long a topic without messages keeps its epoch, so that a subscriber who was away for less time can be told
	// that it has missed nothing. Default 10 minutes.
	Idle time.Duration
}

func (c MemoryConfig) withDefaults() MemoryConfig {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.Topics, 100_000)
	def(&c.Bytes, 256<<20)
	def(&c.Messages, 100_000)
	def(&c.IDs, 10_000)
	if c.IDAge <= 0 {
		c.IDAge = 2 * time.Minute
	}
	if c.Idle <= 0 {
		c.Idle = 10 * time.Minute
	}
	return c
}

var (
	errTopics  = &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "too many topics"}
	errHistory = &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "the memory for histories is used up"}
	errClosed  = &arpc.Error{Code: arpc.CodeUnavailable, Message: "the engine is closed"}
)

// Memory is the Engine within one process. Its servers form one publish and subscribe.
type Memory struct {
	config MemoryConfig
	bytes  atomic.Int64

	// Lock order: a topic's or a room's before mu. Deliveries are made under a topic's, which may take long, so whoever holds mu
	// only tries to get one.
	mu     sync.RWMutex
	closed bool
	topics map[string]*memTopic
	rooms  map[string]*memRoom
	exact  map[string]*memSubs
	wild   filterTree[memSubs]
	nwild  int
	sweep  *time.Timer
	swept  time.Time // because the number of topics was at its limit
}

// memTopic is what a topic remembers.
type memTopic struct {
	name string

	mu       sync.Mutex
	dead     bool // forgotten; a new one takes its place
	epoch    uint64
	offset   uint64 // of the last message
	messages []memMessage
	bytes    int64 // of messages
	idBytes  int64
	age      time.Duration
	used     time.Time
	ids      map[string]memID
	idOrder  []string // by age
}

type memMessage struct {
	*Message
	at time.Time // when it was stored, whatever its timestamp says
}

type memID struct {
	position Position
	at       time.Time
}

// memSubs is who has subscribed with one filter. It never changes, so that deliveries need no lock.
type memSubs struct {
	all    []*memSub
	plain  []*memSub
	groups []memGroup
	next   *atomic.Uint32
}

type memGroup struct {
	name string
	subs []*memSub
	next *atomic.Uint32
}

type memSub struct {
	group string
	sink  Sink
}

// memRoom is who is present at one topic.
type memRoom struct {
	mu      sync.Mutex
	dead    bool
	members map[string]Member
}

// NewMemory returns an engine without topics.
func NewMemory(config MemoryConfig) *Memory {
	return &Memory{
		config: config.withDefaults(),
		topics: map[string]*memTopic{}, rooms: map[string]*memRoom{}, exact: map[string]*memSubs{},
	}
}

var _ Engine = (*Memory)(nil)

// Capabilities implements Engine.
func (e *Memory) Capabilities() Capabilities {
	return Capabilities{Name: "memory", History: true, Presence: true, Wildcards: true, Groups: true, Idempotency: true}
}

// Publish implements Engine.
func (e *Memory) Publish(_ context.Context, m *Message, o PublishOptions) (Receipt, error) {
	keep := min(o.Topic.history(), e.config.Messages)
	if m.ToOne {
		keep = 0
	}
	if keep == 0 && o.ID == "" {
		subs, wild, err := e.match(m.Topic)
		if err == nil {
			deliver(m, subs, wild)
		}
		return Receipt{}, err
	}
	for {
		t, err := e.topic(m.Topic, false)
		if err != nil {
			return Receipt{}, err
		}
		t.mu.Lock()
		if t.dead {
			t.mu.Unlock()
			continue
		}
		r, err := e.publish(t, m, o, keep)
		t.mu.Unlock()
		return r, err
	}
}

// publish publishes to a topic that is locked.
func (e *Memory) publish(t *memTopic, m *Message, o PublishOptions, keep int) (Receipt, error) {
	at := time.Now()
	t.used = at
	e.expire(t, at)
	if o.ID != "" {
		if old, ok := t.ids[o.ID]; ok {
			return Receipt{Position: old.position, Duplicate: true}, nil
		}
	}
	subs, wild, err := e.match(m.Topic)
	if err != nil {
		return Receipt{}, err
	}
	var r Receipt
	size, idBytes := int64(0), int64(0)
	if keep > 0 {
		size = int64(m.size())
	}
	if o.ID != "" {
		idBytes = idSize(o.ID)
	}
	if err := e.makeRoom(t, size+idBytes); err != nil {
		return Receipt{}, err
	}
	if keep > 0 {
		t.age = o.Topic.HistoryAge
		for len(t.messages) >= keep {
			e.dropFirst(t)
		}
		t.bytes += size
		e.bytes.Add(size)
		t.offset++
		m.Position = Position{t.epoch, t.offset}
		r.Position = m.Position
		t.messages = append(t.messages, memMessage{m, at})
	}
	if o.ID != "" {
		if t.ids == nil {
			t.ids = map[string]memID{}
		}
		if len(t.ids) >= e.config.IDs {
			e.dropID(t)
		}
		t.idBytes += idBytes
		t.ids[o.ID] = memID{r.Position, at}
		t.idOrder = append(t.idOrder, o.ID)
		e.bytes.Add(idBytes)
	}
	deliver(m, subs, wild)
	return r, nil
}

// makeRoom forgets what is oldest in a topic until n bytes more are within the limit. If that cannot be, it forgets nothing.
func (e *Memory) makeRoom(t *memTopic, n int64) error {
	limit := int64(e.config.Bytes)
	if n > 0 && e.bytes.Load()-t.bytes-t.idBytes+n > limit {
		return errHistory
	}
	for e.bytes.Load()+n > limit && len(t.messages) > 0 {
		e.dropFirst(t)
	}
	for e.bytes.Load()+n > limit && len(t.ids) > 0 {
		e.dropID(t)
	}
	return nil
}

// size is what a kept message is counted as, in bytes.
func (m *Message) size() int { return 128 + len(m.Topic) + len(m.Key) + len(m.Data) }

func idSize(id string) int64 { return 128 + int64(len(id)) }

// expire forgets what is too old. The topic is locked.
func (e *Memory) expire(t *memTopic, at time.Time) {
	for len(t.messages) > 0 && t.age > 0 && at.Sub(t.messages[0].at) >= t.age {
		e.dropFirst(t)
	}
	for len(t.idOrder) > 0 && at.Sub(t.ids[t.idOrder[0]].at) >= e.config.IDAge {
		e.dropID(t)
	}
}

func (e *Memory) dropFirst(t *memTopic) {
	size := int64(t.messages[0].size())
	t.bytes -= size
	e.bytes.Add(-size)
	t.messages[0] = memMessage{}
	t.messages = t.messages[1:] // append copies what is left when the array is used up
}

func (e *Memory) dropID(t *memTopic) {
	id := t.idOrder[0]
	t.idBytes -= idSize(id)
	e.bytes.Add(-idSize(id))
	delete(t.ids, id)
	t.idOrder[0] = ""
	t.idOrder = t.idOrder[1:]
}

// topic returns a topic, which it makes if there is none. Those that are only asked for get half of the places, so that subscribers
// cannot keep publishers out.
func (e *Memory) topic(name string, asked bool) (*memTopic, error) {
	e.mu.RLock()
	t := e.topics[name]
	e.mu.RUnlock()
	if t != nil {
		return t, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	if t = e.topics[name]; t != nil {
		return t, nil
	}
	if asked && len(e.topics) >= e.config.Topics/2 {
		return nil, errTopics
	}
	if len(e.topics) >= e.config.Topics {
		if at := time.Now(); at.Sub(e.swept) >= time.Second { // not for each of many
			e.swept = at
			e.sweepLocked(true)
		}
		if len(e.topics) >= e.config.Topics {
			return nil, errTopics
		}
	}
	// Random, so that nobody takes a place in what an earlier process or life of the topic kept for one in this.
	t = &memTopic{name: name, epoch: 1 + rand.Uint64N(1<<53-1), used: time.Now()}
	e.topics[name] = t
	if e.sweep == nil {
		e.sweep = time.AfterFunc(e.sweepEvery(), e.sweepNow)
	}
	return t, nil
}

func (e *Memory) sweepEvery() time.Duration { return max(e.config.Idle/4, time.Second) }

func (e *Memory) sweepNow() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sweep = nil
	if e.closed {
		return
	}
	if e.sweepLocked(false); len(e.topics) > 0 {
		e.sweep = time.AfterFunc(e.sweepEvery(), e.sweepNow)
	}
}

// sweepLocked forgets what is too old, and the topics that have had nothing to remember for long; when their number is at its
// limit also those that only subscribers have asked for.
func (e *Memory) sweepLocked(full bool) {
	at := time.Now()
	for name, t := range e.topics {
		if !t.mu.TryLock() { // it is in use
			continue
		}
		e.expire(t, at)
		idle := at.Sub(t.used) >= e.config.Idle || full && t.offset == 0
		if len(t.messages) == 0 && len(t.ids) == 0 && idle {
			t.dead = true
			delete(e.topics, name)
		}
		t.mu.Unlock()
	}
}

// match returns who has subscribed to a topic.
func (e *Memory) match(topic string) (exact *memSubs, wild []*memSubs, err error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return nil, nil, errClosed
	}
	if exact = e.exact[topic]; e.nwild > 0 {
		wild = e.wild.match(nil, topic)
	}
	return exact, wild, nil
}

func deliver(m *Message, exact *memSubs, wild []*memSubs) {
	if m.ToOne {
		if exact.deliverOne(m) {
			return
		}
		for _, s := range wild {
			if s.deliverOne(m) {
				return
			}
		}
		return
	}
	exact.deliver(m)
	for _, s := range wild {
		s.deliver(m)
	}
}

func (s *memSubs) deliver(m *Message) {
	if s == nil {
		return
	}
	for _, sub := range s.plain {
		sub.sink.Deliver(m)
	}
	for _, g := range s.groups {
		deliverOne(m, g.subs, g.next)
	}
}

func (s *memSubs) deliverOne(m *Message) bool { return s != nil && deliverOne(m, s.all, s.next) }

func deliverOne(m *Message, subs []*memSub, next *atomic.Uint32) bool {
	first := int(next.Add(1) % uint32(len(subs)))
	for i := range subs {
		if subs[(first+i)%len(subs)].sink.Deliver(m) {
			return true
		}
	}
	return false
}

// Subscribe implements Engine.
func (e *Memory) Subscribe(_ context.Context, f Filter, group string, s Sink) (cancel func(), err error) {
	sub := &memSub{group, s}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	e.changeLocked(f, func(all []*memSub) []*memSub { return append(slices.Clone(all), sub) })
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.changeLocked(f, func(all []*memSub) []*memSub {
			return slices.DeleteFunc(slices.Clone(all), func(x *memSub) bool { return x == sub })
		})
	}, nil
}

// changeLocked replaces who has subscribed with a filter.
func (e *Memory) changeLocked(f Filter, change func([]*memSub) []*memSub) {
	var old *memSubs
	if f.Wildcard {
		old = *e.wild.at(f.Name)
	} else {
		old = e.exact[f.Name]
	}
	var all []*memSub
	if old != nil {
		all = old.all
	}
	fresh := newMemSubs(change(all), old)
	switch {
	case f.Wildcard && fresh == nil:
		e.wild.remove(f.Name)
	case f.Wildcard:
		*e.wild.at(f.Name) = fresh
	case fresh == nil:
		delete(e.exact, f.Name)
	default:
		e.exact[f.Name] = fresh
	}
	if f.Wildcard && (old == nil) != (fresh == nil) {
		if fresh != nil {
			e.nwild++
		} else {
			e.nwild--
		}
	}
}

// newMemSubs sorts subscriptions; nil for none.
func newMemSubs(all []*memSub, old *memSubs) *memSubs {
	if len(all) == 0 {
		return nil
	}
	s := &memSubs{all: all, next: new(atomic.Uint32)}
	if old != nil {
		s.next = old.next
	}
	for _, sub := range all {
		if sub.group == "" {
			s.plain = append(s.plain, sub)
			continue
		}
		i := slices.IndexFunc(s.groups, func(g memGroup) bool { return g.name == sub.group })
		if i < 0 {
			i = len(s.groups)
			s.groups = append(s.groups, memGroup{name: sub.group, next: new(atomic.Uint32)})
		}
		s.groups[i].subs = append(s.groups[i].subs, sub)
	}
	return s
}

// History implements Engine.
func (e *Memory) History(_ context.Context, topic string, q Query) (Page, error) {
	e.mu.RLock()
	t, closed := e.topics[topic], e.closed
	e.mu.RUnlock()
	if closed {
		return Page{}, errClosed
	}
	for {
		if t == nil {
			if q.Topic.history() == 0 {
				return Page{}, nil
			}
			var err error
			switch t, err = e.topic(topic, true); err {
			case nil:
			case errTopics: // whoever subscribes need not suffer
				return Page{}, nil
			default:
				return Page{}, err
			}
		}
		t.mu.Lock()
		if !t.dead {
			break
		}
		t.mu.Unlock()
		t = nil
	}
	defer t.mu.Unlock()
	if q.Topic.history() == 0 && len(t.messages) == 0 { // it remembers IDs only
		return Page{}, nil
	}
	at := time.Now()
	t.used = at
	e.expire(t, at)
	p := Page{Top: Position{t.epoch, t.offset}}
	have, first := t.messages, 0
	oldest := t.offset - uint64(len(have)) // the place before the first
	if !q.From.IsZero() {
		p.Complete = q.From.Epoch == t.epoch && q.From.Offset >= oldest && q.From.Offset <= t.offset
		if p.Complete {
			first = int(q.From.Offset - oldest)
		}
	}
	have = have[first:]
	switch {
	case q.Limit < 0:
		have = nil
	case q.Limit > 0 && len(have) > q.Limit:
		if q.From.IsZero() {
			have = have[len(have)-q.Limit:]
		} else {
			have = have[:q.Limit]
		}
	}
	for _, m := range have {
		p.Messages = append(p.Messages, m.Message)
	}
	return p, nil
}

// Join implements Engine.
func (e *Memory) Join(_ context.Context, topic string, m Member) (leave func(), err error) {
	for {
		e.mu.Lock()
		if e.closed {
			e.mu.Unlock()
			return nil, errClosed
		}
		r := e.rooms[topic]
		if r == nil {
			r = &memRoom{members: map[string]Member{}}
			e.rooms[topic] = r
		}
		e.mu.Unlock()
		r.mu.Lock()
		if r.dead {
			r.mu.Unlock()
			continue
		}
		if _, ok := r.members[m.ID]; ok {
			r.mu.Unlock()
			return nil, &arpc.Error{Code: arpc.CodeAlreadyExists, Message: fmt.Sprintf("a member %q is present", m.ID)}
		}
		r.members[m.ID] = m
		e.tell(topic, m, true)
		r.mu.Unlock()
		var once sync.Once
		return func() { once.Do(func() { e.leave(topic, r, m) }) }, nil
	}
}

func (e *Memory) leave(topic string, r *memRoom, m Member) {
	r.mu.Lock()
	delete(r.members, m.ID)
	r.dead = len(r.members) == 0
	dead := r.dead
	e.tell(topic, m, false)
	r.mu.Unlock()
	if dead {
		e.mu.Lock()
		if e.rooms[topic] == r {
			delete(e.rooms, topic)
		}
		e.mu.Unlock()
	}
}

// tell tells the sinks of a topic that somebody has come or gone. The room is locked.
func (e *Memory) tell(topic string, m Member, joined bool) {
	exact, wild, _ := e.match(topic)
	if exact != nil {
		wild = append(wild, exact)
	}
	for _, s := range wild {
		for _, sub := range s.plain {
			sub.sink.Presence(topic, m, joined)
		}
	}
}

// Members implements Engine.
func (e *Memory) Members(_ context.Context, topic string) ([]Member, error) {
	e.mu.RLock()
	r, closed := e.rooms[topic], e.closed
	e.mu.RUnlock()
	if closed {
		return nil, errClosed
	}
	if r == nil {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	members := make([]Member, 0, len(r.members))
	for _, m := range r.members {
		members = append(members, m)
	}
	return members, nil
}

// Close implements Engine. Further calls fail with CodeUnavailable.
func (e *Memory) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.sweep != nil {
		e.sweep.Stop()
	}
	e.topics = nil
	return nil
}
