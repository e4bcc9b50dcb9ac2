package nats

import (
	"context"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/nats-io/nats.go"
)

// presenceNet brings what engines say about who is present. Both subjects of an engine go to one channel, so that what another one
// sends to all and to this one stays in order.
type presenceNet struct {
	engine *Engine
	ch     chan *nats.Msg // what does not fit is noticed, and asked for
}

func (e *Engine) headPresence() string { return e.config.Prefix + ".p." }

// SendAll implements presence.Net.
func (p presenceNet) SendAll(b []byte) error {
	return p.engine.conn.Publish(p.engine.headPresence()+"all", b)
}

// SendTo implements presence.Net.
func (p presenceNet) SendTo(node string, b []byte) error {
	return p.engine.conn.Publish(p.engine.headPresence()+"n."+node, b)
}

// start makes the engine known to the others.
func (p presenceNet) start(ctx context.Context) error {
	e := p.engine
	for _, subject := range []string{"all", "n." + e.presence.ID()} {
		if _, err := e.conn.ChanSubscribe(e.headPresence()+subject, p.ch); err != nil {
			return e.failure(ctx, err)
		}
	}
	err := e.presence.Start()
	if err == nil {
		err = e.conn.FlushWithContext(ctx)
	}
	if err != nil {
		return e.failure(ctx, err)
	}
	e.work.Go(p.run)
	return nil
}

// run hands over what comes, until Close.
func (p presenceNet) run() {
	tick := time.NewTicker(p.engine.config.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case msg := <-p.ch:
			p.engine.presence.Handle(msg.Data)
		case <-tick.C:
			p.engine.presence.Beat()
		case <-p.engine.stop:
			return
		}
	}
}

// tellPresence tells the sinks of a topic who has come or gone.
func (e *Engine) tellPresence(topic string, m pubsub.Member, joined bool) {
	e.mu.Lock()
	x := e.entries[entryKey{Filter: pubsub.Filter{Name: topic}}]
	e.mu.Unlock()
	if x == nil {
		return
	}
	for _, s := range x.all() {
		s.Presence(topic, m, joined)
	}
}

// Join implements pubsub.Engine. The sinks of this engine have been told when it returns.
func (e *Engine) Join(ctx context.Context, topic string, m pubsub.Member) (leave func(), err error) {
	_, done, err := e.bound(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if leave, err = e.presence.Join(topic, m); err != nil {
		return nil, e.failure(ctx, err)
	}
	return leave, nil
}

// Members implements pubsub.Engine. It asks the other engines whether there is anything that it does not know yet, and waits for
// one that does not answer for one heartbeat at most; in the first heartbeat of an engine, until that is over.
func (e *Engine) Members(ctx context.Context, topic string) ([]pubsub.Member, error) {
	bound, done, err := e.bound(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	members, err := e.presence.Members(bound, topic)
	if err != nil {
		return nil, e.failureOf(ctx, bound, err)
	}
	return members, nil
}
