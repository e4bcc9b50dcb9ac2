package micro

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/attempts"
)

// A Strategy says what happens when an attempt fails.
type Strategy uint8

// The strategies. With all but Broadcast, what certainly was not carried out because a node is going away, or its connection was lost before,
// goes to another node at once and does not count: a drained server is not an error.
const (
	// Failover makes further attempts at other nodes, within Attempts, the budget and the deadline: of what certainly was not carried out, and
	// of what is idempotent. See package caller for what may be repeated.
	Failover Strategy = iota
	// Failfast makes one attempt. Nothing is taken for idempotent, nor hedged.
	Failfast
	// Failback is Failover, and keeps notifications that could not be sent: NotifyWith returns nil, and they are sent later, in order,
	// when that is possible within FailbackAge. Their values must not be changed any more. FailbackQueue full is CodeResourceExhausted.
	Failback
	// Broadcast calls or notifies all connected nodes, also those that are out, 64 at a time, once each. It fails if one has failed, and says how many have; the
	// answer is that of the first node that has given one. A node that joins meanwhile is left out. Calls with callbacks and streams are
	// CodeUnimplemented.
	Broadcast
)

// String returns the strategy's name in lower case.
func (s Strategy) String() string {
	if names := [...]string{"failover", "failfast", "failback", "broadcast"}; int(s) < len(names) {
		return names[s]
	}
	return "none"
}

// A Client calls one service, whichever nodes it has. Typed methods take it as they take an *arpc.Client. It connects to its nodes when it
// is first used, once to each, and all calls share these connections. Its methods may be called from any goroutine.
type Client struct {
	*clientShared
	strategy Strategy
}

// clientShared is what the Clients of With share.
type clientShared struct {
	pool               *pool
	failover, failfast *attempts.Retrier
	failback           *failback
}

var _ arpc.Caller = (*Client)(nil)

// NewClient watches a service and returns its Client. ctx is that of the first answer of the registry; see Registry.Watch for errors. A
// registry that is lost later, or closed, leaves the nodes that are known. The registry is not closed with the Client. Call Close in the end.
func NewClient(ctx context.Context, r Registry, service string, config Config) (*Client, error) {
	c := config.withDefaults()
	c.Options = append([]arpc.ClientOption{arpc.DefaultHandler.Clone(), arpc.Backoff(100*time.Millisecond, 3*time.Second)}, c.Options...)
	watching, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	events, err := r.Watch(watching, service)
	if !stop() {
		err = ended(ctx)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	p := newPool(service, events, c)
	context.AfterFunc(p.ctx, cancel)
	try := attempts.Config{
		Attempts: c.Attempts, Min: 10 * time.Millisecond, Max: time.Second, Codes: []arpc.Code{arpc.CodeUnavailable},
		Budget: attempts.NewBudget(c.Burst, c.Ratio), Idempotent: map[string]bool{}, Elsewhere: true, Again: remember, Free: going,
		Worth: func(err error) bool { return !errors.Is(err, p.nobody) }, // it has waited
	}
	for _, method := range c.Idempotent {
		try.Idempotent[method] = true
	}
	once := try
	once.Attempts, once.Never = 1, true
	s := &clientShared{pool: p, failfast: attempts.Retry(p, once)}
	if c.Hedge > 0 {
		s.failover = attempts.Retry(attempts.Hedge(p, c.Hedge, try), try)
	} else {
		s.failover = attempts.Retry(p, try)
	}
	s.failback = &failback{caller: s.failover, pool: p, queue: make(chan note, c.FailbackQueue)}
	return &Client{s, c.Strategy}, nil
}

// going reports whether a call that was not carried out has met a node that is going or has gone.
func going(err error) bool {
	_, asked := arpc.RetryDelay(err)
	return arpc.CodeOf(err) == arpc.CodeUnavailable && !asked
}

// With returns a Client with the same connections and another strategy. Closing one closes all.
func (c *Client) With(s Strategy) *Client { return &Client{c.clientShared, s} }

// Service returns the name of the service.
func (c *Client) Service() string { return c.pool.service }

// Close closes the connections at once, ends what is in flight, drops what Failback has kept, and waits for all of it. Calling it again
// does nothing.
func (c *Client) Close() error {
	c.pool.close()
	<-c.pool.ended
	c.failback.begin.Do(func() {}) // it does not begin any more
	c.failback.worker.Wait()
	return nil
}

func (c *Client) caller() *attempts.Retrier {
	if c.strategy == Failfast {
		return c.failfast
	}
	return c.failover
}

// CallWith implements arpc.Caller; see Client.CallWith of package arpc. The error is that of the last attempt.
func (c *Client) CallWith(ctx context.Context, method string, req, rsp any, values ...map[any]any) error {
	if c.strategy == Broadcast {
		return c.all(ctx, rsp, func(ctx context.Context, p *Peer, rsp any) error {
			return p.call(ctx, method, req, rsp, values)
		})
	}
	return plain(c.caller().CallWith(c.remembering(ctx), method, req, rsp, values...))
}

// Call is CallWith with a timeout, which must be positive; arpc.TimeForever is none.
func (c *Client) Call(method string, req, rsp any, timeout time.Duration, values ...map[any]any) error {
	begun, v := since(), c.pool.view.Load()
	if c.strategy == Broadcast || c.pool.Hedge > 0 || len(v.peers) == 0 {
		return c.CallWith(limit(begun, timeout), method, req, rsp, values...)
	}
	// The first attempt, which most calls have only, needs no context.
	peer := v.choose(context.Background(), nil)
	err := peer.callFor(timeout, method, req, rsp, values)
	if err == nil {
		c.caller().Budget.Answered()
		return nil
	}
	return plain(c.caller().After(limit(begun, timeout), peer.failed(nil, err), method, req, rsp, values...))
}

// CallAsync implements arpc.Caller. It waits for a node if none is connected, for Wait at most. An attempt after the first does not know
// which node had that, but leaves it to the Balancer.
func (c *Client) CallAsync(method string, req any, callback func(*arpc.Context), timeout time.Duration, values ...map[any]any) error {
	if c.strategy == Broadcast {
		return fail(errBroadcast, callback)
	}
	return c.caller().CallAsync(method, req, callback, timeout, values...)
}

var errBroadcast = &arpc.Error{Code: arpc.CodeUnimplemented, Message: "micro: Broadcast has neither calls with callbacks nor streams", Unsent: true}

// NotifyWith implements arpc.Caller.
func (c *Client) NotifyWith(ctx context.Context, method string, data any, values ...map[any]any) error {
	switch c.strategy {
	case Failback:
		return c.failback.notify(ctx, method, data, values)
	case Broadcast:
		return c.all(ctx, nil, func(ctx context.Context, p *Peer, _ any) error { return p.notify(ctx, method, data, values) })
	}
	return plain(c.caller().NotifyWith(ctx, method, data, values...))
}

// Notify is NotifyWith with a timeout for finding a node and for room in its send queue.
func (c *Client) Notify(method string, data any, timeout time.Duration, values ...map[any]any) error {
	return c.NotifyWith(limit(since(), max(timeout, time.Millisecond)), method, data, values...)
}

// OpenStream implements arpc.Caller. Once it is open a stream stays with its node, and fails with it.
func (c *Client) OpenStream(ctx context.Context, method string) (*arpc.Stream, error) {
	if c.strategy == Broadcast {
		return nil, errBroadcast
	}
	s, err := c.caller().OpenStream(ctx, method)
	return s, plain(err)
}

// maxParallel is how many nodes Broadcast calls at a time.
const maxParallel = 64

// all calls f with every peer, and stores the first answer in rsp.
func (c *Client) all(ctx context.Context, rsp any, f func(ctx context.Context, p *Peer, rsp any) error) error {
	v, err := c.pool.await(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var first error
	answered, failed := false, 0
	one := func(p *Peer) {
		own, move := attempts.Apart(rsp)
		attempt, commit := arpc.Attempt(ctx) // the peers' own, as they run at the same time
		err := f(attempt, p, own)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			if failed++; first == nil {
				first = &arpc.Error{Code: arpc.CodeOf(err), Message: p.Addr + ": " + err.Error()}
			}
		case !answered:
			answered = true
			move()
			commit()
		}
	}
	var peers []*Peer // those that are out too: no other node can stand for them
	for _, m := range v.all {
		if m.connected {
			peers = append(peers, m.Peer)
		}
	}
	var group sync.WaitGroup
	var next atomic.Int64
	for range min(maxParallel, len(peers)) {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(peers)); i = next.Add(1) - 1 {
				one(peers[i])
			}
		})
	}
	group.Wait()
	if failed == 0 {
		return nil
	}
	return &arpc.Error{Code: arpc.CodeOf(first), Message: fmt.Sprintf("micro: %d of %d nodes have failed, %v", failed, len(peers), first)}
}

// Stats is what a Client has.
type Stats struct {
	// Known is the number of nodes that the registry has told of. Lost says that it cannot be reached at the moment.
	Known int
	Lost  bool
	// Waiting is the number of notifications that Failback keeps, Dropped of those that it has given up.
	Waiting int
	Dropped int64
	// Nodes are those that the Client connects to, sorted by ID; none before the first call.
	Nodes []NodeStats
}

// NodeStats is what a Client has of a node, counted since it is among its nodes.
type NodeStats struct {
	Node Node
	// Connected says that there is a connection, Out that there are no new calls, because of a check or an ejection.
	Connected, Out bool
	// InFlight are calls and streams that are not over, Calls all attempts, Failures those that speak against the node, Ejections how
	// often they have led to one.
	InFlight                   int
	Calls, Failures, Ejections int64
	// Latency is how long attempts took on average, measured with one of eight.
	Latency time.Duration
}

// Stats returns what the Client has. It is a sum of parts that change meanwhile.
func (c *Client) Stats() Stats {
	p := c.pool
	s := Stats{Known: int(p.counts.known.Load()), Lost: p.lost.Load(), Dropped: c.failback.dropped.Load(), Waiting: int(c.failback.kept.Load())}
	for _, of := range p.view.Load().all {
		n := NodeStats{
			Node: of.Node, Connected: of.connected, Out: of.out, InFlight: of.InFlight(),
			Calls: of.calls.Load(), Failures: of.failures.Load(), Ejections: of.ejections.Load(),
		}
		if timed := of.timed.Load(); timed > 0 {
			n.Latency = time.Duration(of.busy.Load() / timed)
		}
		s.Nodes = append(s.Nodes, n)
	}
	return s
}
