package redis

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

// maxLeaving is how many members that have left may wait to be taken out of Redis one by one.
const maxLeaving = 4096

// presence keeps the members of this process present.
//
// Redis has, for each topic, its members, each with the node that it is of; for each node the topics where it has members; and until
// when each node is alive, which it says again three times in PresenceTTL. Whoever finds one that is not makes its members leave. A
// node that finds itself forgotten, as it was cut off for too long or as Redis has lost its data, begins as a new node and puts its
// members back.
//
// One goroutine says that the node is alive, another does what takes longer. Lock order: a member's, then mu.
type presence struct {
	e    *Engine
	wake chan struct{} // there is something to do

	mu      sync.Mutex
	node    string
	members map[*member]struct{}
	leaving []*member // Redis has not been told yet
	forgot  bool      // Redis does not know the node
	dead    []string  // nodes whose members have to leave

	// The goroutine's that says that the node is alive.
	begun bool      // it has been told once
	beats time.Time // since when each beat has succeeded; zero if the last one has not
	last  time.Time // beat
}

// member is a member of this process.
type member struct {
	pubsub.Member
	topic string

	mu      sync.Mutex // held while Redis is told about it
	node    string     // that it is present as
	counted bool       // among those of the node at the topic
	gone    bool
}

// nodeLen is the length of the name of a node, with which what Redis keeps of a member begins.
const nodeLen = 16

func newNode() string {
	var b [nodeLen / 2]byte
	crand.Read(b[:]) //nolint:errcheck // it never fails
	return hex.EncodeToString(b[:])
}

func (p *presence) init(e *Engine) {
	p.e, p.node, p.members, p.wake = e, newNode(), map[*member]struct{}{}, make(chan struct{}, 1)
}

// Join implements pubsub.Engine. When this process ends without saying so, the member stays for up to Config.PresenceTTL and a
// third; when Redis loses its data, it is put back within a third.
func (e *Engine) Join(ctx context.Context, topic string, m pubsub.Member) (leave func(), err error) {
	if e.closed.Load() {
		return nil, errClosed
	}
	p := &e.presence
	x := &member{Member: m, topic: topic}
	x.mu.Lock()
	defer x.mu.Unlock()
	p.mu.Lock()
	x.node = p.node
	p.members[x] = struct{}{}
	p.mu.Unlock()
	fresh, err := p.tell(ctx, x, false)
	if err == nil && fresh {
		return sync.OnceFunc(func() { p.leave(x) }), nil
	}
	x.gone = true
	p.mu.Lock()
	delete(p.members, x)
	if err != nil && x.counted { // it may have come
		p.laterLocked(x)
	}
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	p.uncount(context.WithoutCancel(ctx), x)
	return nil, &arpc.Error{Code: arpc.CodeAlreadyExists, Message: fmt.Sprintf("a member %q is present", m.ID)}
}

// laterLocked notes that Redis has to be told that a member has left. If there are too many, the node begins anew without them.
func (p *presence) laterLocked(x *member) {
	if len(p.leaving) < maxLeaving {
		p.leaving = append(p.leaving, x)
		return
	}
	p.node, p.leaving = newNode(), nil
}

// tell tells Redis of a member. It reports false if there is one with that ID. The member is locked.
func (p *presence) tell(ctx context.Context, x *member, again bool) (bool, error) {
	c := &p.e.config
	if _, err := p.e.exec(ctx, scriptRooms, []string{c.roomsKey(x.node)}, []string{x.topic, "1"}); err != nil {
		return false, err
	}
	x.counted = true
	reply, err := p.e.exec(ctx, scriptJoin, []string{c.membersKey(x.topic)},
		[]string{c.channel(x.topic), x.ID, x.node, string(x.Info), encodeMember(kindJoined, x.Member), flag(again)})
	if err != nil {
		return false, err
	}
	n, err := reply.AsInt64()
	return n == 1, err
}

// uncount undoes the counting of tell. If that fails, the topic is looked at in vain when this process is dead.
func (p *presence) uncount(ctx context.Context, x *member) {
	if x.counted {
		x.counted = false
		p.e.exec(ctx, scriptRooms, []string{p.e.config.roomsKey(x.node)}, []string{x.topic, "-1"}) //nolint:errcheck // see above
	}
}

// leave ends a member.
func (p *presence) leave(x *member) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.gone = true
	p.mu.Lock()
	delete(p.members, x)
	p.mu.Unlock()
	if p.gone(context.Background(), x) != nil {
		p.mu.Lock()
		p.laterLocked(x)
		p.mu.Unlock()
	}
}

// gone tells Redis that a member has left. The member is locked.
func (p *presence) gone(ctx context.Context, x *member) error {
	c := &p.e.config
	_, err := p.e.exec(ctx, scriptLeave, []string{c.membersKey(x.topic)}, []string{c.channel(x.topic), x.node, x.ID})
	if err == nil {
		p.uncount(ctx, x)
	}
	return err
}

// Members implements pubsub.Engine.
func (e *Engine) Members(ctx context.Context, topic string) ([]pubsub.Member, error) {
	if e.closed.Load() {
		return nil, errClosed
	}
	values, err := again(ctx, func() (map[string]string, error) {
		limited, cancel := context.WithTimeout(ctx, e.config.Timeout)
		defer cancel()
		values, err := e.client.Do(limited, e.client.B().Hgetall().Key(e.config.membersKey(topic)).Build()).AsStrMap()
		if err != nil {
			return nil, e.wrap(ctx, err)
		}
		return values, nil
	})
	if err != nil {
		return nil, err
	}
	members := make([]pubsub.Member, 0, len(values))
	for id, value := range values {
		members = append(members, pubsub.Member{ID: id, Info: []byte(value[min(len(value), nodeLen):])})
	}
	return members, nil
}

// run says that this node is alive, until the engine ends.
func (p *presence) run() {
	ticker := time.NewTicker(p.e.config.PresenceTTL / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			p.beat(p.e.ctx) //nolint:errcheck // the next one may succeed
		case <-p.e.ctx.Done():
			return
		}
	}
}

// beat says that this node is alive, and finds out what there is to do.
func (p *presence) beat(ctx context.Context) error {
	c := &p.e.config
	p.mu.Lock()
	node := p.node
	p.mu.Unlock()
	// Whoever has not heard from Redis for a while cannot know whether it is the others that are dead.
	now := time.Now()
	if p.beats.IsZero() || now.Sub(p.last) > c.PresenceTTL {
		p.beats = now
	}
	p.last = now
	known, dead, err := p.alive(ctx, node, now.Sub(p.beats) >= c.PresenceTTL)
	if err != nil {
		p.beats = time.Time{}
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgot = p.forgot || !known && p.begun
	p.begun = true
	p.dead = dead
	if p.forgot || len(dead)+len(p.leaving) > 0 {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// alive tells Redis that a node is alive. It returns whether it was, and, if it is to look for them, the nodes that are not.
func (p *presence) alive(ctx context.Context, node string, look bool) (known bool, dead []string, err error) {
	c := &p.e.config
	reply, err := p.e.exec(ctx, scriptBeat, []string{c.nodesKey(), c.deadKey()}, []string{node, milliseconds(c.PresenceTTL), flag(look)})
	if err != nil {
		return false, nil, err
	}
	parts, err := reply.ToArray()
	if err != nil || len(parts) != 2 {
		return false, nil, errAnswer
	}
	n, err := parts[0].AsInt64()
	dead, err2 := parts[1].AsStrSlice()
	if err != nil || err2 != nil {
		return false, nil, errAnswer
	}
	return n == 1, dead, nil
}

// work does what the beats have found, until the engine ends. What fails is found again.
func (p *presence) work() {
	for {
		select {
		case <-p.wake:
		case <-p.e.ctx.Done():
			return
		}
		p.mu.Lock()
		forgot, dead := p.forgot, p.dead
		p.forgot, p.dead = false, nil
		p.mu.Unlock()
		if forgot {
			p.again(p.e.ctx)
		}
		p.farewells(p.e.ctx)
		for _, node := range dead {
			p.bury(p.e.ctx, node) //nolint:errcheck // see above
		}
	}
}

// again puts back the members of this process, under a new name: what is done about the old one does not matter then.
func (p *presence) again(ctx context.Context) {
	p.mu.Lock()
	members := make([]*member, 0, len(p.members))
	for x := range p.members {
		members = append(members, x)
	}
	p.node = newNode()
	node := p.node
	p.mu.Unlock()
	_, _, err := p.alive(ctx, node, false)
	for _, x := range members {
		if err != nil {
			break
		}
		x.mu.Lock()
		if !x.gone {
			x.node, x.counted = node, false
			_, err = p.tell(ctx, x, true)
		}
		x.mu.Unlock()
	}
	if err != nil {
		p.mu.Lock()
		p.node = newNode() // the next beat does not find it, so that this is done again
		p.mu.Unlock()
	}
}

// farewells tells Redis of those that have left while it was out of reach.
func (p *presence) farewells(ctx context.Context) {
	p.mu.Lock()
	leaving := p.leaving
	p.leaving = nil
	p.mu.Unlock()
	for i, x := range leaving {
		x.mu.Lock()
		err := p.gone(ctx, x)
		x.mu.Unlock()
		if err != nil {
			p.mu.Lock()
			for _, x := range leaving[i:] {
				p.laterLocked(x)
			}
			p.mu.Unlock()
			return
		}
	}
}

// bury makes the members of a dead node leave. Several nodes may do it at the same time.
func (p *presence) bury(ctx context.Context, node string) error {
	c, b := &p.e.config, p.e.client.B
	do := func(cmd rueidis.Completed) rueidis.RedisResult {
		ctx, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		return p.e.client.Do(ctx, cmd)
	}
	topics, err := do(b().Hkeys().Key(c.roomsKey(node)).Build()).AsStrSlice()
	if err != nil {
		return err
	}
	for _, topic := range topics {
		if _, err := p.e.exec(ctx, scriptLeave, []string{c.membersKey(topic)}, []string{c.channel(topic), node}); err != nil {
			return err
		}
	}
	if err := do(b().Del().Key(c.roomsKey(node)).Build()).Error(); err != nil {
		return err
	}
	return do(b().Srem().Key(c.deadKey()).Member(node).Build()).Error()
}

// close makes the members of this process leave, or leaves that to others.
func (p *presence) close() {
	ctx, cancel := context.WithTimeout(context.Background(), p.e.config.Timeout)
	defer cancel()
	p.mu.Lock()
	left, node := slices.Clone(p.leaving), p.node
	for x := range p.members {
		left = append(left, x)
	}
	p.mu.Unlock()
	for _, x := range left {
		x.mu.Lock()
		x.gone = true
		err := p.gone(ctx, x)
		x.mu.Unlock()
		if err != nil {
			return
		}
	}
	p.e.client.Do(ctx, p.e.client.B().Zrem().Key(p.e.config.nodesKey()).Member(node).Build()) //nolint:errcheck // it expires too
}
