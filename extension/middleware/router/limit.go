package router

import (
	"maps"
	"net/netip"
	"sync"
	"time"
	"weak"

	"golang.org/x/time/rate"

	"github.com/arpc-go/arpc"
)

// Sizes of what is remembered.
const (
	defaultPeers = 10_000
	maxRoutes    = 1024
)

// A Quota bounds what passes. The zero value is no bound.
type Quota struct {
	// Rate is the number of messages per second; 0 is no limit. Streams count
	// when they are opened.
	Rate float64
	// Burst is how many may come at once after a pause; default what Rate allows
	// in a tenth of a second, at least 1. In t seconds Burst + t·Rate pass at most.
	Burst int
	// Concurrency is the number of handlers that run at the same time; 0 is no
	// limit. A stream's counts until it returns.
	Concurrency int
}

// LimitOptions say how Limit works. What is zero does not limit.
type LimitOptions struct {
	// Route is the quota of each method, for all peers together.
	Route Quota
	// Routes has the quotas of single methods, instead of Route.
	Routes map[string]Quota
	// Peer is the quota of each peer, for all methods together.
	Peer Quota
	// Key says who a peer is; two messages with the same key share Peer. Default
	// is the address without the port: IPv4 addresses, and networks of 64 bits of
	// IPv6. Peers without an IP address are told apart by their connections. What
	// Key returns is remembered, so it should be short.
	Key func(*arpc.Context) string
	// Peers is how many peers are remembered; default 10,000, of about 500 bytes
	// each. For a new one that is forgotten which was seen longest ago, so that it
	// begins with a full Burst when it comes again. Peers whose handlers run are
	// not forgotten; where there are that many of them, all others share one
	// quota.
	Peers int
}

// Limit returns a middleware that refuses what exceeds a quota with
// CodeResourceExhausted; where a Rate was exceeded, with the detail
// arpc.RetryAfter, which says when the next may pass. What is refused takes
// nothing from any quota. Nothing waits: for that the framework has lines of
// its own, see arpc.Limits.
//
// Of methods, 1024 are remembered in the way of Peers; more than that can only
// come where it runs before a HandleNotFound.
//
// The handler of an ordered route runs one at a time per connection anyway, so
// its Concurrency bounds connections. A handler that answers later counts until
// it has answered, so it must.
func Limit(o LimitOptions) arpc.HandlerFunc { return newLimiter(o, time.Now).handle }

type limiter struct {
	o   LimitOptions
	now func() time.Time

	mu     sync.Mutex
	routes *table[string, *usage] // those of Route; nil if it has no limit
	named  map[string]*usage      // those of Routes; never changes
	peers  *table[peerKey, *usage]
}

// A peerKey says who a peer is: one of its fields does.
type peerKey struct {
	prefix netip.Prefix
	conn   weak.Pointer[arpc.Client]
	name   string
}

// usage is what a quota has let pass; guarded by the limiter's lock.
type usage struct {
	quota   Quota
	tokens  *rate.Limiter // nil without a rate
	running int
}

func (q Quota) limits() bool { return q.Rate > 0 || q.Concurrency > 0 }

func (q Quota) usage() *usage {
	u := &usage{quota: q}
	if q.Rate > 0 {
		burst := q.Burst
		if burst <= 0 {
			burst = max(1, int(min(q.Rate/10, 1<<30)))
		}
		u.tokens = rate.NewLimiter(rate.Limit(q.Rate), burst)
	}
	return u
}

func newLimiter(o LimitOptions, now func() time.Time) *limiter {
	l := &limiter{o: o, now: now, named: map[string]*usage{}}
	running := func(u *usage) bool { return u.running > 0 }
	if o.Route.limits() {
		l.routes = newTable[string](maxRoutes, o.Route.usage, running)
	}
	for name, q := range maps.All(o.Routes) {
		l.named[name] = q.usage()
	}
	if o.Peer.limits() {
		if o.Peers <= 0 {
			o.Peers = defaultPeers
		}
		l.peers = newTable[peerKey](o.Peers, o.Peer.usage, running)
	}
	return l
}

func (l *limiter) handle(ctx *arpc.Context) {
	var key peerKey
	if l.peers != nil {
		key = l.keyOf(ctx)
	}
	peer, route, err := l.enter(key, method(ctx))
	if err != nil {
		refuse(ctx, err)
		return
	}
	if peer == nil && route == nil {
		return
	}
	ctx.OnEnd(func(error) { l.leave(peer, route) })
}

func (l *limiter) keyOf(ctx *arpc.Context) peerKey {
	if l.o.Key != nil {
		return peerKey{name: l.o.Key(ctx)}
	}
	if p, ok := prefixOf(ctx); ok {
		return peerKey{prefix: p}
	}
	return peerKey{conn: weak.Make(ctx.Client)}
}

// enter takes from the quotas, or says why it does not. leave gives back.
func (l *limiter) enter(key peerKey, method string) (peer, route *usage, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.peers != nil {
		peer = l.peers.get(key)
	}
	if u, ok := l.named[method]; ok {
		route = u
	} else if l.routes != nil {
		route = l.routes.get(method)
	}
	now := l.now() // with the lock, as the buckets do not take time that goes back
	if err := peer.full(now, "this peer"); err != nil {
		return nil, nil, err
	}
	if err := route.full(now, "this method"); err != nil {
		return nil, nil, err
	}
	peer.take(now)
	route.take(now)
	return peer, route, nil
}

func (l *limiter) leave(peer, route *usage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if peer != nil {
		peer.running--
	}
	if route != nil {
		route.running--
	}
}

// full says why nothing more may pass now, if that is so.
func (u *usage) full(now time.Time, whose string) error {
	if u == nil {
		return nil
	}
	if u.quota.Concurrency > 0 && u.running >= u.quota.Concurrency {
		return &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "too many requests of " + whose + " at the same time"}
	}
	if u.tokens != nil {
		if missing := 1 - u.tokens.TokensAt(now); missing > 0 {
			wait := time.Duration(missing / u.quota.Rate * float64(time.Second))
			return &arpc.Error{
				Code: arpc.CodeResourceExhausted, Message: "too many requests of " + whose + " per second",
				Details: []arpc.Detail{arpc.RetryAfter(wait)},
			}
		}
	}
	return nil
}

func (u *usage) take(now time.Time) {
	if u == nil {
		return
	}
	u.running++
	if u.tokens != nil {
		u.tokens.AllowN(now, 1)
	}
}
