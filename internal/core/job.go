package core

import (
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/internal/work"
)

// Post puts job in line behind the ordered frames received so far, on the strand: it overlaps with no Run and no other job, and never
// runs on the caller's stack. It may block. It reports false when the connection is down, or when so much is in line that ordered
// frames are refused (see Config.Queue; a job counts as 64 bytes). A job that is in line when the connection is closed does not
// run.
func (c *Conn) Post(job func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.has(flagDown|flagNoRun) || c.queued > 4*c.group.cfg.Queue {
		return false
	}
	in := inputs.Get().(*Input)
	in.conn, in.job = c, job
	in.refs.set(1)
	in.spans = append(in.spans, span{slow: true}) // one step, which the reader leaves to a worker
	c.pushLocked(in)
	if c.has(flagOpened) && !c.has(flagRunning) { // before that Open is still running, and the job waits for its end
		c.flags |= flagRunning
		work.Go((*strand)(c))
	}
	return true
}

func (c *Conn) runJob(job func()) {
	defer func() {
		if p := recover(); p != nil {
			c.group.cfg.Logf("arpc: panic in a job of connection %d: %v\n%s", c.id, p, debug.Stack())
			c.Close(errPanic)
		}
	}()
	job()
}

// A period is what Every keeps.
type period struct {
	c     *Conn
	d     time.Duration
	job   func()
	timer *time.Timer
	busy  atomic.Bool // in line or running
	ended atomic.Bool // stop was called
}

// Every posts job each time d has passed, as Post does, but not while it is still in line or running. It ends with the
// connection, or when stop is called; after that job does not begin any more. d must be positive.
func (c *Conn) Every(d time.Duration, job func()) (stop func()) {
	p := &period{c: c, d: d, job: job}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.has(flagDown | flagNoRun) {
		return func() {}
	}
	p.timer = time.AfterFunc(d, p.fire)
	x := c.extra()
	x.periods = append(x.periods, p)
	return p.stop
}

// fire is the timer's.
func (p *period) fire() {
	if p.busy.CompareAndSwap(false, true) && !p.c.Post(p.run) {
		p.busy.Store(false)
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if slices.Contains(p.c.look().periods, p) {
		p.timer.Reset(p.d)
	}
}

func (p *period) run() {
	defer p.busy.Store(false)
	if !p.ended.Load() {
		p.job()
	}
}

func (p *period) stop() {
	p.ended.Store(true)
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.timer.Stop()
	if x := p.c.rare; x != nil {
		x.periods = slices.DeleteFunc(x.periods, func(q *period) bool { return q == p })
	}
}
