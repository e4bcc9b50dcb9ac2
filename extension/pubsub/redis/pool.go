package redis

import (
	"context"
	"encoding/binary"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
)

// Every server gets every message of a group; it must be in one only that a subscriber gets it. A server that wants to give a message
// away claims it in Redis, which lets only the first one have it. So that all get their share, each message has a turn, and a
// server whose turn it is not waits for patience first: if the other one does not claim it in that time, as it is gone or busy,
// this one does. Claims of several messages are one command.
//
// A claim is remembered for claimTTL, and nobody may claim what is older, or of another life of the server, which may have
// forgotten claims: such a message is lost rather than delivered twice.
const (
	claimTTL     = 15 * time.Second
	turnPatience = 100 * time.Millisecond
	claimBatch   = 128
	claimRetry   = 50 * time.Millisecond // after an error
)

// groupPool and onePool name what messages for one are claimed under: a group, and all subscribers of a topic.
func groupPool(f pubsub.Filter, group string) string {
	kind := "g"
	if f.Wildcard {
		kind = "w"
	}
	return kind + strconv.Itoa(len(group)) + ":" + group + f.Name
}

func onePool(topic string) string { return "o" + topic }

// pool is the messages of which one server is to get each.
type pool struct {
	e    *Engine
	id   string
	one  string // the topic, for the messages to one of all its subscribers
	keep int    // who is about to call take; guarded by the hub's lock. Only for one

	mu      sync.Mutex
	subs    []*sub // of a group; never changed but replaced
	next    int
	nodes   []string // who has claimed lately; empty if it is not known
	now     []*envelope
	later   []turn // by time
	changed chan struct{}
	room    *sync.Cond // of now and later
	running bool
	stopped bool
}

// turn is a message that another server may claim until due.
type turn struct {
	*envelope
	due time.Time
}

func newPool(e *Engine, id string) *pool {
	p := &pool{e: e, id: id, changed: make(chan struct{}, 1)}
	p.room = sync.NewCond(&p.mu)
	return p
}

func (p *pool) add(x *sub) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subs = append(slices.Clone(p.subs), x)
}

// remove removes a member. It reports whether it was the last one.
func (p *pool) remove(x *sub) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subs = slices.DeleteFunc(slices.Clone(p.subs), func(have *sub) bool { return have == x })
	if len(p.subs) > 0 {
		return false
	}
	p.stopLocked()
	return true
}

func (p *pool) members() []*sub {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.subs
}

func (p *pool) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopLocked()
}

func (p *pool) stopLocked() {
	p.stopped, p.now, p.later = true, nil, nil
	p.room.Broadcast()
	p.kickLocked()
}

func (p *pool) kickLocked() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// turn is a number by which the servers tell whose turn a message is.
func (e *envelope) turn() uint32 { return binary.BigEndian.Uint32([]byte(e.id[idLen-4:])) }

// take takes a message that this server may get. It waits while too many wait already.
func (p *pool) take(env *envelope) {
	env.arrival = p.e.counter.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.stopped && len(p.now)+len(p.later) >= p.e.config.Waiting {
		p.room.Wait()
	}
	if p.stopped {
		return
	}
	if n := len(p.nodes); n > 0 && p.nodes[int(env.turn())%n] != p.e.name {
		p.later = append(p.later, turn{env, time.Now().Add(turnPatience)})
	} else {
		p.now = append(p.now, env)
	}
	if !p.running {
		p.running = true
		p.e.running.Go(p.run)
	} else {
		p.kickLocked()
	}
}

// run claims and delivers what waits, and ends when nothing does.
func (p *pool) run() {
	for {
		batch, forced, wait, ok := p.batch()
		if !ok {
			return
		}
		if len(batch) == 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-p.changed:
				timer.Stop()
			}
			continue
		}
		mine, err := p.claim(batch, forced)
		if err != nil {
			if p.e.ctx.Err() != nil {
				p.stop()
				continue
			}
			// Claiming again finds out what it has come to. What gets too old meanwhile is lost.
			p.back(batch, forced)
			timer := time.NewTimer(claimRetry)
			select {
			case <-timer.C:
			case <-p.e.ctx.Done():
				timer.Stop()
			}
			continue
		}
		for i, env := range batch {
			switch mine[i] {
			case 1:
				p.deliver(env)
			case 2:
				p.postpone(env)
			}
		}
	}
}

// batch returns what is to be claimed next, the first forced of them whoever's turn it is; or how long to wait. It reports false
// if nothing waits.
func (p *pool) batch() (batch []*envelope, forced int, wait time.Duration, ok bool) {
	h := &p.e.hub
	h.mu.Lock() // so that one that ends is not found any more
	defer h.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.now)+len(p.later) == 0 {
		p.running = false
		if p.one != "" && p.keep == 0 {
			delete(h.ones, p.one)
		}
		return nil, 0, 0, false
	}
	now := time.Now()
	fits := func(env *envelope) bool {
		return len(batch) < claimBatch && (len(batch) == 0 || p.tag(env) == p.tag(batch[0]))
	}
	for forced < len(p.later) && !p.later[forced].due.After(now) && fits(p.later[forced].envelope) {
		batch = append(batch, p.later[forced].envelope)
		forced++
	}
	p.later = slices.Delete(p.later, 0, forced)
	n := 0
	for n < len(p.now) && fits(p.now[n]) {
		batch = append(batch, p.now[n])
		n++
	}
	p.now = slices.Delete(p.now, 0, n)
	p.room.Broadcast()
	if len(batch) == 0 {
		wait = time.Until(p.later[0].due)
	}
	return batch, forced, wait, true
}

// back puts back what batch has returned.
func (p *pool) back(batch []*envelope, forced int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	due := time.Now()
	turns := make([]turn, forced)
	for i := range turns {
		turns[i] = turn{batch[i], due}
	}
	p.later = slices.Insert(p.later, 0, turns...)
	p.now = slices.Insert(p.now, 0, batch[forced:]...)
}

func (p *pool) postpone(env *envelope) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped {
		p.later = append(p.later, turn{env, time.Now().Add(turnPatience)})
	}
}

// owner is what a claim says. A message that comes by several channels is several envelopes, of which one may have it.
func (p *pool) owner(env *envelope) string {
	return p.e.name + strconv.FormatUint(env.arrival, 10)
}

// tag returns what decides where claims of a message are in a Redis Cluster: where its topic is, as only there is known whether it is
// of this life of the server. Elsewhere everything is in one place.
func (p *pool) tag(env *envelope) string {
	if p.e.cluster {
		return env.message.Topic
	}
	return ""
}

// claim asks Redis for messages. See claim.lua for the answer.
func (p *pool) claim(batch []*envelope, forced int) ([]int64, error) {
	keys := append(make([]string, 0, 1+len(batch)), p.e.config.askedKey(p.tag(batch[0]), p.id))
	args := append(make([]string, 0, 2+5*len(batch)), p.e.name, milliseconds(claimTTL))
	for i, env := range batch {
		keys = append(keys, p.e.config.claimKey(p.tag(env), p.id, env.id))
		args = append(args, strconv.FormatInt(env.at, 10), env.life, strconv.FormatUint(uint64(env.turn()), 10), flag(i < forced), p.owner(env))
	}
	reply, err := p.e.exec(p.e.ctx, scriptClaim, keys, args)
	if err != nil {
		return nil, err
	}
	parts, err := reply.ToArray()
	if err != nil || len(parts) != 2 {
		return nil, errAnswer
	}
	nodes, err := parts[0].AsStrSlice()
	mine, err2 := parts[1].AsIntSlice()
	if err != nil || err2 != nil || len(mine) != len(batch) {
		return nil, errAnswer
	}
	p.mu.Lock()
	p.nodes = nodes
	p.mu.Unlock()
	return mine, nil
}

// deliver gives a message that is ours to a subscriber, or offers it to the other servers if none takes it.
func (p *pool) deliver(env *envelope) {
	subs := p.members()
	if p.one != "" {
		subs = p.e.hub.matching(p.one)
	}
	if n := len(subs); n > 0 {
		first := p.next % n
		p.next++
		for i := range n {
			if subs[(first+i)%n].sink.Deliver(env.message) {
				return
			}
		}
	}
	own := *env
	own.pool = p.id
	own.refused = append(slices.Clone(own.refused), p.e.name)
	c := &p.e.config
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.e.ctx), c.Timeout)
	defer cancel()
	p.e.exec(ctx, scriptRefuse, []string{c.claimKey(p.tag(env), p.id, env.id)}, //nolint:errcheck // without Redis nobody gets it
		[]string{p.owner(env), c.channel(env.message.Topic), encodeRefused(&own)})
}
