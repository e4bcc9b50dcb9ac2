package micro

import (
	"context"
	"errors"
	"sync/atomic"
)

// Tried is the peers of the earlier attempts of a call, the first eight.
type Tried struct {
	n     atomic.Int32
	peers [8]atomic.Pointer[state]
}

// Has reports whether p is one of them. A nil Tried has none.
func (t *Tried) Has(p *Peer) bool {
	if t == nil {
		return false
	}
	for i := range min(int(t.n.Load()), len(t.peers)) {
		if t.peers[i].Load() == p.state {
			return true
		}
	}
	return false
}

func (t *Tried) add(p *Peer) {
	if t == nil {
		return
	}
	if i := int(t.n.Add(1)) - 1; i < len(t.peers) {
		t.peers[i].Store(p.state)
	}
}

// from returns the first peer that was not tried, beginning with i; nil if there is none.
func (t *Tried) from(peers []*Peer, i int) *Peer {
	for range peers {
		if p := peers[i%len(peers)]; !t.Has(p) {
			return p
		}
		i++
	}
	return nil
}

// Most calls have one attempt. So that these cost nothing, only the second attempt has a context with a Tried: the first peer is known from
// the error of the first attempt. Attempts at the same time, when hedging, have one from the beginning.

// triedKey finds the Tried of a call in the context of its attempts.
type triedKey struct{}

type triedContext struct {
	context.Context
	tried Tried
}

// Value implements context.Context.
func (c *triedContext) Value(key any) any {
	if key == (triedKey{}) {
		return &c.tried
	}
	return c.Context.Value(key)
}

func triedOf(ctx context.Context) *Tried {
	t, _ := ctx.Value(triedKey{}).(*Tried)
	return t
}

// remembering returns the context of the first attempts of a call.
func (c *Client) remembering(ctx context.Context) context.Context {
	if c.pool.Hedge > 0 {
		return &triedContext{Context: ctx}
	}
	return ctx
}

// failedAt is the error of an attempt that had no Tried.
type failedAt struct {
	error
	peer *Peer
}

func (e *failedAt) Unwrap() error { return e.error }

// plain returns an error as others may see it.
func plain(err error) error {
	if e, ok := err.(*failedAt); ok {
		return e.error
	}
	return err
}

// remember is attempts.Config.Again.
func remember(ctx context.Context, last error) context.Context {
	var e *failedAt
	if !errors.As(last, &e) {
		return ctx
	}
	c := &triedContext{Context: ctx}
	c.tried.add(e.peer)
	return c
}
