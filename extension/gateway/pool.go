package gateway

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/log"
)

// A pool holds connections to the server. A request gets one for itself as long as there may be more, as ordered handlers of a
// connection run one after the other.
//
// A request that ends before its handler leaves the connection occupied: it is set aside until the answer has come, and stopped
// if that takes too long.
type pool struct {
	connect func(gone <-chan struct{}, missed func()) (*arpc.Client, error)
	max     int
	grace   time.Duration

	wg sync.WaitGroup // openings and stops

	mu      sync.Mutex
	all     map[*conn]struct{} // not stopped
	ready   []*conn            // to be used; the first are used most
	aside   int                // conns with a timer
	opening int
	opened  chan struct{} // closed and replaced when one of those has an end
	failed  time.Time     // when the last opening failed
	closed  bool
}

// A conn is one connection.
type conn struct {
	client *arpc.Client
	gone   chan struct{} // closed before client is stopped

	// Guarded by the pool's lock.
	busy    int         // requests that use it
	owed    int         // answers to come that nobody waits for; below 0 if one was quicker than the request's end
	timer   *time.Timer // while set aside
	retired bool        // stopped, or to be stopped when it is not busy
	stopped bool
}

const (
	// retryPause is how long a pool makes do with what it has when the server takes no more connections.
	retryPause = time.Second
	// answerGrace is how long a connection is kept for an answer that nobody waits for any more.
	answerGrace = 5 * time.Second
)

func newPool(connect func(<-chan struct{}, func()) (*arpc.Client, error), most int) *pool {
	return &pool{connect: connect, max: most, grace: answerGrace, all: map[*conn]struct{}{}, opened: make(chan struct{})}
}

// get returns a connection, which the caller gives back by put.
func (p *pool) get(ctx context.Context) (*conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		best := p.best()
		room := len(p.ready)+p.opening < p.max && (best == nil || time.Since(p.failed) > retryPause)
		if best != nil && (best.busy == 0 || !room) {
			best.busy++
			return best, nil
		}
		if !room {
			opened := p.opened
			p.mu.Unlock()
			select {
			case <-opened:
			case <-ctx.Done():
			}
			p.mu.Lock()
			continue
		}
		c, err := p.open()
		if err == nil {
			c.busy++
			return c, nil
		}
		if best = p.best(); best == nil || p.closed {
			log.Warn("gateway: no connection to the server: %v", err)
			break
		}
	}
	return nil, errUnavailable
}

// best returns the least busy connection, nil if there is none.
func (p *pool) best() *conn {
	for {
		var best *conn
		for _, c := range p.ready {
			if best == nil || c.busy < best.busy {
				best = c
				if c.busy == 0 {
					break
				}
			}
		}
		if best == nil || best.client.CheckState() == nil {
			return best
		}
		p.retire(best)
	}
}

// open makes a connection that is ready. The lock is not held meanwhile.
func (p *pool) open() (*conn, error) {
	p.opening++
	p.wg.Add(1)
	p.mu.Unlock()
	c := &conn{gone: make(chan struct{})}
	var err error
	c.client, err = p.connect(c.gone, func() { p.missed(c) })
	p.mu.Lock()
	p.opening--
	defer p.wg.Done()
	defer func() {
		close(p.opened)
		p.opened = make(chan struct{})
	}()
	if err != nil {
		p.failed = time.Now()
		close(c.gone)
		return nil, err
	}
	p.all[c] = struct{}{}
	if p.closed {
		p.retire(c)
		return nil, errUnavailable
	}
	p.ready = append(p.ready, c)
	return c, nil
}

// put gives a connection back. owes says that its answer is still to come.
func (p *pool) put(c *conn, owes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.busy--
	if owes {
		c.owed++
	}
	switch {
	case c.retired:
		p.retire(c)
	case c.owed > 0 && c.timer == nil:
		if p.aside >= p.max {
			p.retire(c)
			return
		}
		p.unready(c)
		p.aside++
		var timer *time.Timer
		timer = time.AfterFunc(p.grace, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if c.timer == timer {
				p.retire(c)
			}
		})
		c.timer = timer
	}
}

// missed is told of an answer that nobody waits for.
func (p *pool) missed(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.owed--
	if c.timer == nil || c.owed > 0 {
		return
	}
	if p.closed || len(p.ready)+p.opening >= p.max {
		p.retire(c)
		return
	}
	p.notAside(c)
	p.ready = append(p.ready, c)
}

func (p *pool) unready(c *conn) {
	if i := slices.Index(p.ready, c); i >= 0 {
		p.ready = slices.Delete(p.ready, i, i+1)
	}
}

func (p *pool) notAside(c *conn) {
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
		p.aside--
	}
}

// retire takes a connection out of use, and stops it when nobody uses it.
func (p *pool) retire(c *conn) {
	p.unready(c)
	p.notAside(c)
	c.retired = true
	if c.busy <= 0 {
		p.stop(c)
	}
}

// stop ends a connection.
func (p *pool) stop(c *conn) {
	if c.stopped {
		return
	}
	p.unready(c)
	p.notAside(c)
	c.stopped, c.retired = true, true
	delete(p.all, c)
	close(c.gone)
	p.wg.Go(c.client.Stop)
}

// drain lets what is in use end, and makes nothing new.
func (p *pool) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for c := range p.all {
		p.retire(c)
	}
}

// close ends all connections and waits for that.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	for c := range p.all {
		p.stop(c)
	}
	p.mu.Unlock()
	p.wg.Wait()
}
