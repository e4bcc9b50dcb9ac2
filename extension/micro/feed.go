package micro

import (
	"context"
	"sync"
)

// A Feed is the sending side of a Registry's watch. Its methods never wait for the receiver: what that has not taken is joined
// with what comes, so a Feed holds each node twice at most: in what it is handing over, and in what comes after. They may be called from any goroutine.
type Feed struct {
	events chan Event
	wake   chan struct{}

	mu    sync.Mutex
	set   bool // pending is the whole set, and nothing was taken since
	lost  bool // the last that was said
	told  bool // lost was taken
	begun bool // something was taken
	gap   bool // there was a Lost before Set, which was not taken
	// pending is what the receiver has yet to get, by key.
	pending map[string]pendingNode
	// taken are the keys of the nodes that the receiver was told of: of others it need not hear that they are gone.
	taken map[string]struct{}
}

type pendingNode struct {
	Node
	gone bool
}

// NewFeed returns a Feed whose channel is closed when ctx ends. It begins with Set.
func NewFeed(ctx context.Context) *Feed {
	f := &Feed{events: make(chan Event), wake: make(chan struct{}, 1), pending: map[string]pendingNode{}, taken: map[string]struct{}{}}
	go f.run(ctx)
	return f
}

// Events is what Watch returns.
func (f *Feed) Events() <-chan Event { return f.events }

// Set says that nodes are all there are, and ends Lost.
func (f *Feed) Set(nodes []Node) {
	f.change(func() {
		f.gap = f.gap || f.begun && f.lost && !f.told // what was known before is to stay for a while nonetheless
		f.set, f.lost, f.told = true, false, false
		clear(f.pending)
		f.putLocked(nodes)
	})
}

// Put says that nodes have come or changed.
func (f *Feed) Put(nodes ...Node) { f.change(func() { f.putLocked(nodes) }) }

// Delete says that nodes are gone. It is ignored after Lost, as long as there is no Set: what deletes nodes then is the outage.
func (f *Feed) Delete(nodes ...Node) {
	f.change(func() {
		for _, n := range nodes {
			if f.lost {
				continue
			}
			key := n.Key()
			delete(f.pending, key)
			if _, taken := f.taken[key]; taken && !f.set {
				f.pending[key] = pendingNode{n, true}
			}
		}
	})
}

// Lost says that the registry cannot be reached; again and again is once.
func (f *Feed) Lost() { f.change(func() { f.lost = true }) }

func (f *Feed) putLocked(nodes []Node) {
	for _, n := range nodes {
		f.pending[n.Key()] = pendingNode{n, false}
	}
}

func (f *Feed) change(change func()) {
	f.mu.Lock()
	change()
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run sends what is pending.
func (f *Feed) run(ctx context.Context) {
	defer close(f.events)
	for {
		select {
		case <-f.wake:
		case <-ctx.Done():
			return
		}
		for _, e := range f.take() {
			select {
			case f.events <- e:
			case <-ctx.Done():
				return
			}
		}
	}
}

// take returns what is pending as events, in the order in which they must come.
func (f *Feed) take() (events []Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var put, gone []Node
	if f.set {
		clear(f.taken)
	}
	for key, n := range f.pending {
		if n.gone {
			gone = append(gone, n.Node)
			delete(f.taken, key)
		} else {
			put = append(put, n.Node)
			f.taken[key] = struct{}{}
		}
	}
	clear(f.pending)
	f.begun = true
	if f.gap {
		f.gap = false
		events = append(events, Event{Kind: Lost})
	}
	if f.set {
		events = append(events, Event{Set, put})
	} else {
		if len(put) > 0 {
			events = append(events, Event{Put, put})
		}
		if len(gone) > 0 {
			events = append(events, Event{Delete, gone})
		}
	}
	f.set = false
	if f.lost && !f.told {
		f.told = true
		events = append(events, Event{Kind: Lost})
	}
	return events
}
