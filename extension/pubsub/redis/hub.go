package redis

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

// How long the engine waits before it connects again: the first time, and at most.
const (
	firstBackoff = 20 * time.Millisecond
	lastBackoff  = time.Second
)

// subscribeBatch is how many channels one command subscribes to.
const subscribeBatch = 256

// hub keeps the one connection by which messages come, and who gets them.
//
//	         connect, subscribe to all                     lost
//	down ───────────────────────────────► up ───────────────────────────► down
//	       sinks that were told get Resumed     sinks of before get Interrupted
//
// One goroutine, run, does this, and sends all commands of the connection, so that what is wanted of a channel and what Redis has
// been told cannot fall apart. The connection's reader delivers. Lock order: mu, then a pool's.
type hub struct {
	e      *Engine
	prefix string        // of all channels
	wake   chan struct{} // there is something to tell Redis

	mu       sync.RWMutex
	channels map[string]*channel // by name
	patterns map[string]*channel
	groups   map[string]*pool // by groupPool
	ones     map[string]*pool // by topic; those that have messages
	wanting  []*channel       // whose state may not be what is wanted
	started  chan struct{}    // closed when the first connection is ready
	err      error            // why the last connection has ended
}

// channel is a channel or pattern of Redis.
type channel struct {
	name     string
	pattern  bool
	filters  []*filter // never empty while wanted
	told     bool      // Redis has been told to deliver
	queued   bool      // in wanting
	waiters  []*waiter
	position pubsub.Position // of the last message; zero if it is not known. Only the reader uses it while told is set
}

// filter is who has subscribed with one filter. subs and pools are never changed, but replaced.
type filter struct {
	pubsub.Filter
	subs  []*sub  // those without a group
	pools []*pool // groups
}

// sub is one subscription.
type sub struct {
	group string
	sink  pubsub.Sink
	ready bool // Subscribe has succeeded
	away  bool // it has been told Interrupted, and not Resumed
}

// waiter is a Subscribe that waits for Redis.
type waiter struct {
	sub  *sub
	done chan struct{}
}

func (h *hub) init(e *Engine) {
	h.e, h.prefix = e, e.config.channel("")
	h.wake, h.started = make(chan struct{}, 1), make(chan struct{})
	h.channels, h.patterns = map[string]*channel{}, map[string]*channel{}
	h.groups, h.ones = map[string]*pool{}, map[string]*pool{}
}

// ready waits for the first connection.
func (h *hub) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.e.config.Timeout)
	defer cancel()
	select {
	case <-h.started:
		return nil
	case <-ctx.Done():
		h.mu.RLock()
		defer h.mu.RUnlock()
		if h.err != nil {
			return h.err
		}
		return h.e.wrap(ctx, ctx.Err())
	}
}

// Subscribe implements pubsub.Engine. While Redis is out of reach it waits for it, at most for the Timeout.
func (e *Engine) Subscribe(ctx context.Context, f pubsub.Filter, group string, s pubsub.Sink) (cancel func(), err error) {
	h := &e.hub
	x := &sub{group: group, sink: s}
	w := &waiter{x, make(chan struct{})}
	h.mu.Lock()
	if e.closed.Load() {
		h.mu.Unlock()
		return nil, errClosed
	}
	c := h.addLocked(f, x)
	if x.ready = c.told; x.ready {
		close(w.done)
	} else {
		c.waiters = append(c.waiters, w)
		h.wantLocked(c)
	}
	h.mu.Unlock()
	remove := sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.removeLocked(c, f, x)
	})
	timer := time.NewTimer(e.config.Timeout)
	defer timer.Stop()
	select {
	case <-w.done:
		return remove, nil
	case <-ctx.Done():
		err = e.wrap(ctx, ctx.Err())
	case <-timer.C:
		err = &arpc.Error{Code: arpc.CodeUnavailable, Message: "redis: no answer to a subscription"}
	case <-e.ctx.Done():
		err = errClosed
	}
	remove()
	return nil, err
}

// addLocked notes a subscription.
func (h *hub) addLocked(f pubsub.Filter, x *sub) *channel {
	name, pattern := h.e.config.subscription(f)
	all := h.channels
	if pattern {
		all = h.patterns
	}
	c := all[name]
	if c == nil {
		c = &channel{name: name, pattern: pattern}
		all[name] = c
	}
	i := slices.IndexFunc(c.filters, func(have *filter) bool { return have.Filter == f })
	fresh := &filter{Filter: f}
	if i >= 0 {
		*fresh = *c.filters[i]
	}
	if x.group == "" {
		fresh.subs = append(slices.Clone(fresh.subs), x)
	} else {
		id := groupPool(f, x.group)
		p := h.groups[id]
		if p == nil {
			p = newPool(h.e, id)
			h.groups[id] = p
			fresh.pools = append(slices.Clone(fresh.pools), p)
		}
		p.add(x)
	}
	c.filters = slices.Clone(c.filters)
	if i >= 0 {
		c.filters[i] = fresh
	} else {
		c.filters = append(c.filters, fresh)
	}
	return c
}

// removeLocked forgets a subscription.
func (h *hub) removeLocked(c *channel, f pubsub.Filter, x *sub) {
	c.waiters = slices.DeleteFunc(c.waiters, func(w *waiter) bool { return w.sub == x })
	i := slices.IndexFunc(c.filters, func(have *filter) bool { return have.Filter == f })
	fresh := &filter{}
	*fresh = *c.filters[i]
	if x.group == "" {
		fresh.subs = slices.DeleteFunc(slices.Clone(fresh.subs), func(have *sub) bool { return have == x })
	} else {
		id := groupPool(f, x.group)
		if p := h.groups[id]; p.remove(x) {
			delete(h.groups, id)
			fresh.pools = slices.DeleteFunc(slices.Clone(fresh.pools), func(have *pool) bool { return have == p })
		}
	}
	c.filters = slices.Clone(c.filters)
	if len(fresh.subs)+len(fresh.pools) > 0 {
		c.filters[i] = fresh
		return
	}
	if c.filters = slices.Delete(c.filters, i, i+1); len(c.filters) == 0 {
		h.wantLocked(c)
	}
}

// wantLocked makes run look at a channel.
func (h *hub) wantLocked(c *channel) {
	if !c.queued {
		c.queued = true
		h.wanting = append(h.wanting, c)
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// forgetLocked forgets a channel that nobody wants.
func (h *hub) forgetLocked(c *channel) {
	if c.pattern {
		delete(h.patterns, c.name)
	} else {
		delete(h.channels, c.name)
	}
}

// run keeps the connection until the engine ends.
func (h *hub) run() {
	backoff := firstBackoff
	for {
		was, err := h.connection()
		if h.e.ctx.Err() != nil {
			return
		}
		if was { // it has been up
			backoff = firstBackoff
		}
		h.interrupted(h.e.wrap(h.e.ctx, err))
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-h.e.ctx.Done():
			timer.Stop()
			return
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// connection makes a connection and serves it to its end. It reports whether it was up. When it returns nothing more is delivered
// by it.
func (h *hub) connection() (up bool, err error) {
	c, release := h.e.client.Dedicate()
	defer release()
	ended := c.SetPubSubHooks(rueidis.PubSubHooks{OnMessage: h.message})
	defer func() {
		c.Close()
		for range ended { // the reader has ended when it is closed
		}
	}()
	do := func(cmd rueidis.Completed) error {
		ctx, cancel := context.WithTimeout(h.e.ctx, h.e.config.Timeout)
		defer cancel()
		return c.Do(ctx, cmd).Error()
	}
	if err := do(c.B().Ping().Build()); err != nil {
		return false, err
	}
	h.mu.Lock()
	for _, all := range []map[string]*channel{h.channels, h.patterns} {
		for _, ch := range all {
			h.wantLocked(ch)
		}
	}
	h.mu.Unlock()
	if err := h.flush(c, do); err != nil {
		return false, err
	}
	h.resumed()
	for {
		select {
		case err := <-ended:
			if err == nil {
				err = io.EOF
			}
			return true, err
		case <-h.wake:
			if err := h.flush(c, do); err != nil {
				return true, err
			}
		case <-h.e.ctx.Done():
			return true, h.e.ctx.Err()
		}
	}
}

// flush tells Redis what is wanted of the channels in wanting.
func (h *hub) flush(c rueidis.DedicatedClient, do func(rueidis.Completed) error) error {
	const on, off = 0, 2
	for {
		var lists [4][]*channel // on, on with patterns, off, off with patterns
		h.mu.Lock()
		n := min(len(h.wanting), subscribeBatch)
		for _, ch := range h.wanting[:n] {
			ch.queued = false
			i := off
			switch wanted := len(ch.filters) > 0; {
			case wanted == ch.told:
				if !wanted {
					h.forgetLocked(ch)
				}
				continue
			case wanted:
				i, ch.position = on, pubsub.Position{}
			default:
				ch.told = false // whoever comes now has to wait until it is told again
			}
			if ch.pattern {
				i++
			}
			lists[i] = append(lists[i], ch)
		}
		clear(h.wanting[:n])
		h.wanting = h.wanting[n:]
		h.mu.Unlock()
		if n == 0 {
			return nil
		}
		for i, list := range lists {
			if len(list) == 0 {
				continue
			}
			names := make([]string, len(list))
			for i, ch := range list {
				names[i] = ch.name
			}
			var cmd rueidis.Completed
			switch i {
			case on:
				cmd = c.B().Subscribe().Channel(names...).Build()
			case on + 1:
				cmd = c.B().Psubscribe().Pattern(names...).Build()
			case off:
				cmd = c.B().Unsubscribe().Channel(names...).Build()
			case off + 1:
				cmd = c.B().Punsubscribe().Pattern(names...).Build()
			}
			if err := do(cmd); err != nil {
				return err
			}
			h.mu.Lock()
			for _, ch := range list {
				if i >= off {
					if len(ch.filters) == 0 && !ch.queued {
						h.forgetLocked(ch)
					}
					continue
				}
				ch.told = true
				for _, w := range ch.waiters {
					w.sub.ready = true
					close(w.done)
				}
				ch.waiters = nil
				if len(ch.filters) == 0 {
					h.wantLocked(ch)
				}
			}
			h.mu.Unlock()
		}
	}
}

// interrupted tells all whose subscription had begun that the connection is lost.
func (h *hub) interrupted(err error) {
	h.mu.Lock()
	h.err = err
	subs := h.subsLocked(func(x *sub) bool { return x.ready && !x.away })
	for _, all := range []map[string]*channel{h.channels, h.patterns} {
		for _, c := range all {
			c.told = false
		}
	}
	for _, x := range subs {
		x.away = true
	}
	h.mu.Unlock()
	for _, x := range subs {
		x.sink.Interrupted(err)
	}
}

// resumed tells all that were told of the interruption that it is over.
func (h *hub) resumed() {
	h.mu.Lock()
	subs := h.subsLocked(func(x *sub) bool { return x.away })
	for _, x := range subs {
		x.away = false
	}
	select {
	case <-h.started:
	default:
		close(h.started)
	}
	h.mu.Unlock()
	for _, x := range subs {
		x.sink.Resumed()
	}
}

func (h *hub) subsLocked(want func(*sub) bool) (subs []*sub) {
	for _, all := range []map[string]*channel{h.channels, h.patterns} {
		for _, c := range all {
			for x := range c.subs() {
				if want(x) {
					subs = append(subs, x)
				}
			}
		}
	}
	return subs
}

// subs ranges over the subscriptions of a channel, with and without groups. The hub is locked.
func (c *channel) subs() func(yield func(*sub) bool) {
	return func(yield func(*sub) bool) {
		for _, f := range c.filters {
			for _, x := range f.subs {
				if !yield(x) {
					return
				}
			}
			for _, p := range f.pools {
				for _, x := range p.members() {
					if !yield(x) {
						return
					}
				}
			}
		}
	}
}

// message takes what comes by the connection. The reader calls it for one after the other.
func (h *hub) message(m rueidis.PubSubMessage) {
	topic := m.Channel[min(len(m.Channel), len(h.prefix)):]
	if topic == "" { // an engine has tried whether it may publish
		return
	}
	env, err := decode(topic, m.Message)
	if err != nil {
		return // somebody else has published it
	}
	name, all := m.Channel, h.channels
	if m.Pattern != "" {
		name, all = m.Pattern, h.patterns
	}
	h.mu.RLock()
	c := all[name]
	var filters []*filter
	if c != nil {
		filters = c.filters
	}
	h.mu.RUnlock()
	if c == nil {
		return
	}
	switch env.kind {
	case kindToOne:
		env.pool = onePool(topic)
		h.one(env)
		return
	case kindRefused:
		if slices.Contains(env.refused, h.e.name) {
			return
		}
		h.mu.RLock()
		p := h.groups[env.pool]
		h.mu.RUnlock()
		if env.message.ToOne {
			h.one(env)
		} else if p != nil {
			p.take(env)
		}
		return
	}
	gap := env.kind == kindMessage && !c.pattern && c.missed(env.message.Position)
	for _, f := range filters {
		if f.Wildcard && !f.Match(topic) {
			continue
		}
		for _, x := range f.subs {
			switch {
			case env.kind != kindMessage:
				x.sink.Presence(topic, env.member, env.kind == kindJoined)
			case gap:
				x.sink.Interrupted(errGap)
				x.sink.Resumed()
				fallthrough
			default:
				x.sink.Deliver(env.message)
			}
		}
		if env.kind == kindMessage {
			for _, p := range f.pools {
				own := *env
				own.pool = p.id
				p.take(&own)
			}
		}
	}
}

var errGap = &arpc.Error{Code: arpc.CodeDataLoss, Message: "redis: messages have not been delivered"}

// missed reports whether messages are missing between the last one and that at p: the servers of a Redis Cluster do not tell when
// they lose some between each other.
func (c *channel) missed(p pubsub.Position) bool {
	if p.IsZero() {
		return false
	}
	last := c.position
	c.position = p
	return !last.IsZero() && p.Offset != last.Offset+1 && (p.Epoch == last.Epoch || p.Offset != 1)
}

// one gives a message to one of all subscribers to its topic.
func (h *hub) one(env *envelope) {
	h.mu.Lock()
	p := h.ones[env.message.Topic]
	if p == nil {
		p = newPool(h.e, env.pool)
		p.one = env.message.Topic
		h.ones[env.message.Topic] = p
	}
	p.keep++
	h.mu.Unlock()
	p.take(env)
	h.mu.Lock()
	p.keep--
	h.mu.Unlock()
}

// matching returns all subscriptions to a topic, with and without groups and patterns.
func (h *hub) matching(topic string) (subs []*sub) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if c := h.channels[h.e.config.channel(topic)]; c != nil {
		subs = slices.AppendSeq(subs, c.subs())
	}
	for _, c := range h.patterns {
		for _, f := range c.filters {
			if f.Match(topic) {
				subs = append(subs, f.subs...)
				for _, p := range f.pools {
					subs = append(subs, p.members()...)
				}
			}
		}
	}
	return subs
}

// close ends what waits. The connection ends with the engine's context.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, all := range []map[string]*pool{h.groups, h.ones} {
		for _, p := range all {
			p.stop()
		}
	}
}
