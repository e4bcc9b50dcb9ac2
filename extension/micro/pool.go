package micro

import (
	"cmp"
	"context"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc"
)

// maxDials is how many connections of a Client are being made at the same time.
const maxDials = 16

// A pool is the connections to the nodes of a service. As an arpc.Caller it makes one attempt, at the peer that the Balancer chooses.
// One goroutine, run, decides which nodes there are; those that call see its last view.
type pool struct {
	Config
	service string
	nobody  *arpc.Error // no node can be reached
	seed    uint64      // of the subset
	ctx     context.Context
	close   context.CancelFunc
	ended   chan struct{}
	dirty   chan struct{} // asks for another view
	dials   chan struct{}
	started atomic.Bool // something was called
	view    atomic.Pointer[view]
	outs    atomic.Int32 // states that are out
	lost    atomic.Bool
	states  sync.WaitGroup
	counts  struct{ known, members atomic.Int32 }

	// What follows belongs to run.
	known   map[string]*known
	changed bool // known, since the subset was chosen
	members map[string]*state
}

// known is a node that the registry has told of.
type known struct {
	Node
	score uint64    // those with the lowest are the subset
	until time.Time // when it is dropped, if nobody names it before; zero for never
}

// A view is what can be called at a time. It never changes.
type view struct {
	peers    []*Peer
	pick     Pick
	all      []member      // callable or not
	replaced chan struct{} // closed when there is a newer one
}

// A member is a peer as a view has seen it.
type member struct {
	*Peer
	connected, out bool
}

func newPool(service string, events <-chan Event, c Config) *pool {
	p := &pool{
		Config: c, service: service, seed: rand.Uint64(), ended: make(chan struct{}), dirty: make(chan struct{}, 1),
		dials: make(chan struct{}, maxDials), known: map[string]*known{}, members: map[string]*state{},
	}
	p.nobody = &arpc.Error{Code: arpc.CodeUnavailable, Message: "micro: no node of " + service + " can be reached", Unsent: true}
	p.ctx, p.close = context.WithCancel(context.Background())
	p.view.Store(&view{replaced: make(chan struct{})})
	go p.run(events)
	return p
}

// kick has the view made again.
func (p *pool) kick() {
	select {
	case p.dirty <- struct{}{}:
	default:
	}
}

func (p *pool) run(events <-chan Event) {
	defer close(p.ended)
	defer p.states.Wait()
	grace := time.NewTimer(0)
	defer grace.Stop()
	for {
		select {
		case <-p.ctx.Done():
			clear(p.members) // they end by themselves
			p.look()
			return
		case e, ok := <-events:
			if !ok { // the registry was closed: what is known stays
				events = nil
				continue
			}
			if p.apply(e) {
				grace.Reset(p.Grace)
			}
		case <-grace.C:
			p.expire(time.Now())
		case <-p.dirty:
		}
		if p.started.Load() && p.changed {
			p.employ()
		}
		p.look()
	}
}

// apply learns what an event tells. It reports whether nodes are to be dropped after Grace.
func (p *pool) apply(e Event) (dropped bool) {
	if e.Kind == Lost {
		p.lost.Store(true)
		return false
	}
	p.changed = true
	if e.Kind == Set {
		back := p.lost.Swap(false)
		there := make(map[string]bool, len(e.Nodes))
		for _, n := range e.Nodes {
			there[n.Key()] = true
		}
		for key, k := range p.known {
			switch {
			case there[key]:
			case back:
				k.until, dropped = time.Now().Add(p.Grace), true
			case k.until.IsZero():
				delete(p.known, key)
			}
		}
	}
	for _, n := range e.Nodes {
		key := n.Key()
		if e.Kind == Delete || !p.takes(n) {
			delete(p.known, key)
			continue
		}
		p.known[key] = &known{Node: n, score: mix(p.seed ^ hash(key))}
	}
	return dropped
}

// expire drops the nodes that were not named again after an outage.
func (p *pool) expire(now time.Time) {
	for key, k := range p.known {
		if !k.until.IsZero() && !now.Before(k.until) {
			delete(p.known, key)
			p.changed = true
		}
	}
}

// employ makes members of the subset of the known nodes.
func (p *pool) employ() {
	p.changed = false
	keys := slices.Collect(maps.Keys(p.known))
	if p.Subset > 0 && len(keys) > p.Subset {
		slices.SortFunc(keys, func(a, b string) int { return cmp.Compare(p.known[a].score, p.known[b].score) })
		keys = keys[:p.Subset]
	}
	chosen := make(map[string]bool, len(keys))
	for _, key := range keys {
		chosen[key] = true
		n := p.known[key].Node
		s := p.members[key]
		if s != nil && s.peer.Load().Addr != n.Addr { // another place: the connection there ends when it is drained
			s.gone()
			s = nil
		}
		fresh := s == nil
		if fresh {
			s = &state{pool: p, trip: make(chan struct{}, 1)}
			s.ctx, s.gone = context.WithCancel(p.ctx)
			p.members[key] = s
		}
		if fresh || !reflect.DeepEqual(s.peer.Load().Node, n) {
			s.peer.Store(&Peer{Node: n, state: s, hash: hash(key)})
		}
		if fresh {
			p.states.Add(1)
			go s.run()
		}
	}
	for key, s := range p.members {
		if !chosen[key] {
			s.gone()
			delete(p.members, key)
		}
	}
}

// look makes a view of the members that can be called: those that are in, or if there is none those that are connected.
func (p *pool) look() {
	old, next := p.view.Load(), &view{replaced: make(chan struct{})}
	for _, s := range p.members {
		m := member{s.peer.Load(), s.connected(), s.out.Load()}
		s.shown.Store(m.connected)
		next.all = append(next.all, m)
	}
	slices.SortFunc(next.all, func(a, b member) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Key(), b.Key())) })
	var out []*Peer
	for _, m := range next.all {
		switch {
		case !m.connected:
		case m.out:
			out = append(out, m.Peer)
		default:
			next.peers = append(next.peers, m.Peer)
		}
	}
	p.counts.known.Store(int32(len(p.known)))
	p.counts.members.Store(int32(len(next.peers) + len(out)))
	if len(next.peers) == 0 {
		next.peers = out
	}
	if slices.Equal(old.all, next.all) {
		return
	}
	if len(next.peers) > 0 {
		next.pick = p.Balancer(next.peers)
	}
	p.view.Store(next)
	close(old.replaced)
}

// mayEject reports whether one more member may be out.
func (p *pool) mayEject() bool {
	return float64(p.outs.Load()+1) <= p.EjectShare*float64(p.counts.members.Load())
}

// await returns a view with peers, waiting for one if there is none.
func (p *pool) await(ctx context.Context) (*view, error) {
	if !p.started.Load() && p.started.CompareAndSwap(false, true) {
		p.kick()
	}
	v := p.view.Load()
	if len(v.peers) > 0 {
		return v, nil
	}
	wait := p.Wait
	if t, ok := ctx.Deadline(); ok { // it may have no timer, see limited
		wait = min(wait, time.Until(t))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for len(v.peers) == 0 {
		if p.ctx.Err() != nil {
			return nil, ErrClosed
		}
		if err := ended(ctx); err != nil {
			return nil, err
		}
		select {
		case <-v.replaced:
			v = p.view.Load()
		case <-p.ctx.Done():
		case <-ctx.Done():
		case <-timer.C:
			return nil, cmp.Or(ended(ctx), error(p.nobody))
		}
	}
	return v, nil
}

// pick chooses the peer of an attempt.
func (p *pool) pick(ctx context.Context, tried *Tried) (*Peer, error) {
	v, err := p.await(ctx)
	if err != nil {
		return nil, err
	}
	peer := v.choose(ctx, tried)
	tried.add(peer)
	return peer, nil
}

// choose chooses among the peers of a view that has some.
func (v *view) choose(ctx context.Context, tried *Tried) *Peer {
	if peer := v.pick(ctx, tried); peer != nil {
		return peer
	}
	i := rand.IntN(len(v.peers))
	if peer := tried.from(v.peers, i); peer != nil {
		return peer
	}
	return v.peers[i]
}
