package micro

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/attempts"
)

// A Peer is a node that a Client can call, as Balancers see it. It does not change but for its load; a node that has changed is another
// Peer.
type Peer struct {
	Node
	*state
	hash uint64
}

// InFlight returns how many calls and streams of this Client the node has.
func (p *Peer) InFlight() int { return int(p.inFlight()) }

func (p *Peer) weight() int { return min(max(p.Weight, 1), maxWeight) }

func (p *Peer) load() float64 { return float64(p.inFlight()+1) / float64(p.weight()) }

// A state is what a Client has of a node: the connection, what is counted, and a goroutine, which runs until the node has gone:
//
//	connecting ──▶ in ◀──a check succeeds──▶ out (a check failed, or ejected)
//	    ▲           │ lost, or GOAWAY         │
//	    └───────────┴────────────◀────────────┘            any ──gone──▶ draining ──▶ over
type state struct {
	client       atomic.Pointer[arpc.Client] // nil before the first connection
	calls, ended atomic.Int64                // attempts that have begun and ended
	row          atomic.Int32                // failures in a row
	out          atomic.Bool

	pool *pool
	peer atomic.Pointer[Peer] // the pool's goroutine changes it
	ctx  context.Context      // ends when the node has gone
	gone context.CancelFunc
	trip chan struct{} // asks for ejection

	shown               atomic.Bool // as connected, in the last view
	failures, ejections atomic.Int64
	busy, timed         atomic.Int64 // nanoseconds that sampled attempts took, and their number

	mu                         sync.Mutex
	since                      time.Time // begin of the window of the circuit breaker
	callsBefore, failureBefore int64     // before the window
}

// inFlight returns how many attempts have begun and not ended.
func (s *state) inFlight() int64 {
	ended := s.ended.Load() // first, as it follows the other
	return s.calls.Load() - ended
}

// connected reports whether calls can be sent.
func (s *state) connected() bool {
	c := s.client.Load()
	return c != nil && c.CheckState() == nil
}

// run is the goroutine.
func (s *state) run() {
	defer s.pool.states.Done()
	defer s.setOut(false) // for the count
	ticker := time.NewTicker(s.pool.Check)
	defer ticker.Stop()
	t := &tending{state: s}
	for s.ctx.Err() == nil {
		c := s.connect()
		if c == nil {
			return
		}
		s.client.Store(c)
		for s.ctx.Err() == nil {
			lost := make(chan struct{})
			stop := c.AfterConn(func() { close(lost) })
			s.pool.kick()
			// All that was in flight has failed with the connection before, but that is one failure, and over.
			s.row.Store(min(s.row.Load(), int32(s.pool.EjectAfter-1)))
			select {
			case <-s.trip:
			default:
			}
			t.tend(c, lost, ticker.C)
			stop()
			s.pool.kick()
			if err := c.WaitReady(s.ctx); errors.Is(err, arpc.ErrClientStopped) { // it has reconnected too often
				break
			}
		}
		s.drain(c)
		c.Stop()
	}
}

// connect makes the first connection; the client keeps it. nil when the node has gone.
func (s *state) connect() *arpc.Client {
	var greeting atomic.Pointer[func() bool] // of the first connection: nothing but its end ends NewClient
	dial := func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(s.ctx, s.pool.DialTimeout)
		defer cancel()
		nc, err := s.pool.Dial(ctx, s.peer.Load().Node)
		if err == nil && greeting.Load() == nil {
			stop := context.AfterFunc(s.ctx, func() { nc.Close() }) //nolint:errcheck // the node has gone
			greeting.Store(&stop)
		}
		return nc, err
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 3*time.Second) {
		select {
		case s.pool.dials <- struct{}{}:
		case <-s.ctx.Done():
			return nil
		}
		c, err := arpc.NewClient(dial, s.pool.Options...)
		<-s.pool.dials
		if stop := greeting.Load(); stop != nil {
			(*stop)()
		}
		if err == nil {
			return c
		}
		greeting.Store(nil)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// tending is what the goroutine knows of a node's health.
type tending struct {
	*state
	until  time.Time     // the end of the ejection
	length time.Duration // of the ejection
	failed int           // checks in a row
}

// tend checks the node until its connection is lost or it has gone.
func (t *tending) tend(c *arpc.Client, lost <-chan struct{}, tick <-chan time.Time) {
	for {
		select {
		case <-lost:
			return
		case <-t.ctx.Done():
			return
		case <-t.trip:
			t.eject()
		case now := <-tick:
			connected := c.CheckState() == nil
			if connected != t.shown.Load() { // after GOAWAY the client has another connection before this one is lost
				t.pool.kick()
			}
			if !connected || now.Before(t.until) {
				continue
			}
			well, answered := t.check(c)
			if well || answered {
				t.failed = 0
			}
			if well {
				if t.out.Load() {
					t.row.Store(int32(t.pool.EjectAfter - 1)) // one failure is enough now
					t.setOut(false)
				}
				continue
			}
			select {
			case <-lost: // the check has ended with it
				return
			default:
			}
			t.setOut(true)
			if answered {
				continue
			}
			if t.failed++; t.failed == 3 {
				t.failed = 0
				c.Conn.Close() //nolint:errcheck // what it waits for will not come
			}
		}
	}
}

// eject takes the node out for a while, if so many may be out.
func (t *tending) eject() {
	if t.out.Load() || !t.pool.mayEject() {
		t.row.Store(0)
		return
	}
	if t.length = min(2*t.length, maxEject); t.length == 0 || time.Since(t.until) > steady {
		t.length = t.pool.EjectTime
	}
	t.until = time.Now().Add(t.length)
	t.ejections.Add(1)
	t.setOut(true)
}

func (s *state) setOut(out bool) {
	if s.out.Swap(out) == out {
		return
	}
	if out {
		s.pool.outs.Add(1)
	} else {
		s.pool.outs.Add(-1)
	}
	s.pool.kick()
}

// check asks the node whether it is well. One that is not may have answered.
func (s *state) check(c *arpc.Client) (well, answered bool) {
	ctx, cancel := context.WithTimeout(s.ctx, s.pool.CheckTimeout)
	defer cancel()
	if route := s.pool.HealthRoute; route != "" {
		err := c.CallWith(ctx, route, nil, nil)
		var e *arpc.Error
		well = err == nil || arpc.IsRefused(err) && arpc.CodeOf(err) == arpc.CodeUnimplemented // it has no such route
		return well, errors.As(err, &e) && e.Remote
	}
	before := c.Stats().MessagesIn
	c.Ping()
	for pause := time.Millisecond; ; pause *= 2 { // whatever comes shows that the peer lives; there is nothing to wait on
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			well = c.Stats().MessagesIn != before
			return well, well
		}
		if c.Stats().MessagesIn != before {
			return true, true
		}
	}
}

// drain waits until the node has answered everything.
func (s *state) drain(c *arpc.Client) {
	ticker, timer := time.NewTicker(20*time.Millisecond), time.NewTimer(s.pool.Drain)
	defer ticker.Stop()
	defer timer.Stop()
	for of := c.Stats(); s.inFlight() > 0 || of.Calls+of.Streams > 0; of = c.Stats() {
		select {
		case <-ticker.C:
		case <-timer.C:
			return
		case <-s.pool.ctx.Done():
			return
		}
	}
}

// sampled is how many attempts there are for one whose time is taken, which would cost all of them too much.
const sampled = 8

// begin notes an attempt, end how it has ended.
func (s *state) begin() (start time.Duration) {
	if s.calls.Add(1)%sampled == 1 {
		start = since()
	}
	return start
}

func (s *state) end(ctx context.Context, start time.Duration, err error) {
	s.ended.Add(1)
	if start > 0 {
		s.busy.Add(int64(since() - start))
		s.timed.Add(1)
	}
	if err == nil {
		if s.row.Load() != 0 {
			s.row.Store(0)
		}
		return
	}
	var e *arpc.Error
	remote := errors.As(err, &e) && e.Remote
	switch code := arpc.CodeOf(err); {
	case code == arpc.CodeUnavailable:
		if !remote {
			s.pool.kick()
			if e != nil && e.Unsent {
				return
			}
		}
	case code == arpc.CodeDeadlineExceeded && !remote:
	case code == arpc.CodeCanceled && context.Cause(ctx) == attempts.ErrSlower:
	default:
		if remote {
			s.row.Store(0)
		}
		return
	}
	s.failures.Add(1)
	if int(s.row.Add(1)) >= s.pool.EjectAfter || s.tooMany() {
		select {
		case s.trip <- struct{}{}:
		default:
		}
	}
}

// The circuit breaker opens when half of at least breakerLeast calls within a window have failed.
const (
	breakerWindow = 10 * time.Second
	breakerLeast  = 20
)

// tooMany reports whether the circuit breaker opens.
func (s *state) tooMany() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls, failures := s.calls.Load(), s.failures.Load()
	if now := time.Now(); now.Sub(s.since) > breakerWindow {
		s.since, s.callsBefore, s.failureBefore = now, calls-1, failures-1
	}
	calls, failures = calls-s.callsBefore, failures-s.failureBefore
	if calls < breakerLeast || 2*failures < calls {
		return false
	}
	s.since = time.Time{}
	return true
}
