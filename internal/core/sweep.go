package core

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/internal/work"
)

// sweepTick is the unit of the coarse clock with which silence and stalls are measured.
const sweepTick = 50 * time.Millisecond

// The sweeper applies the limits on silence and on stalled output: one goroutine per process walks over the connections
// of each group now and then, instead of a timer per connection. It runs while there is a group.
var sweeper sweepers

type sweepers struct {
	mu     sync.Mutex
	groups map[*Group]struct{}
	quit   chan struct{}
	now    atomic.Uint32
}

// tick returns the coarse time.
func (g *Group) tick() uint32 { return sweeper.now.Load() }

func (s *sweepers) add(g *Group) {
	g.every = sweepsFor(min(g.cfg.Idle/2, g.cfg.Partial, g.cfg.WriteStall))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.groups == nil {
		s.groups = map[*Group]struct{}{}
	}
	if len(s.groups) == 0 {
		s.quit = make(chan struct{})
		go s.run(s.quit)
	}
	s.groups[g] = struct{}{}
}

// sweepsFor returns the ticks between two sweeps that look after a limit.
func sweepsFor(limit time.Duration) uint32 { return uint32(min(max(limit/8/sweepTick, 1), 100)) }

// SetTimeouts replaces Config.Idle and Config.WriteStall for this connection. As there, 0 means the default, which is what the group
// has, and a negative duration no limit.
func (c *Conn) SetTimeouts(idle, stall time.Duration) {
	set := func(p *time.Duration, d, def time.Duration) {
		switch *p = d; {
		case d == 0:
			*p = def
		case d < 0:
			*p = noLimit
		}
	}
	g := c.group
	c.mu.Lock()
	x := c.extra()
	x.limits = new(limits)
	set(&x.limits.idle, idle, g.cfg.Idle)
	set(&x.limits.stall, stall, g.cfg.WriteStall)
	shortest := min(x.limits.idle/2, x.limits.stall)
	c.mu.Unlock()
	sweeper.mu.Lock()
	g.every = min(g.every, sweepsFor(shortest))
	sweeper.mu.Unlock()
}

// limits are those of a connection that does not have the group's.
type limits struct{ idle, stall time.Duration }

// LastInput returns when something was received last, to about 50 ms; before that, when the connection was opened.
func (c *Conn) LastInput() time.Time {
	return time.Now().Add(-time.Duration(c.group.tick()-c.inTick.Load()) * sweepTick)
}

func (s *sweepers) remove(g *Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.groups, g)
	if len(s.groups) == 0 {
		close(s.quit)
	}
}

func (s *sweepers) run(quit chan struct{}) {
	ticker := time.NewTicker(sweepTick)
	defer ticker.Stop()
	var due []*Group
	for {
		select {
		case <-quit:
			return
		case <-ticker.C:
		}
		now := s.now.Add(1)
		s.mu.Lock()
		due = due[:0]
		for g := range s.groups {
			if now%g.every == 0 {
				due = append(due, g)
			}
		}
		s.mu.Unlock()
		for _, g := range due {
			g.sweep(now)
		}
	}
}

// sweep applies the limits to each connection.
func (g *Group) sweep(now uint32) {
	for _, c := range g.snapshot() {
		if err, probe := c.overdue(now); err != nil {
			g.logLimited(err.Error(), "connection %d from %v closed: %v", c.id, c.RemoteAddr(), err)
			if err == ErrStalled {
				c.Abort(err)
			} else {
				c.closeSilent(err)
			}
		} else if probe && g.cfg.Probe != nil {
			work.Go(prober{c})
		}
	}
}

// closeSilent closes a connection whose peer says nothing: what is said to it in the end may well arrive, but its own end of
// the connection is not waited for.
func (c *Conn) closeSilent(err error) {
	c.Close(err)
	c.mu.Lock()
	c.flags |= flagNoLinger
	if c.pending == 0 && !c.has(flagFlushing) {
		c.abortLocked(err)
		return
	}
	c.mu.Unlock()
}

type aborter struct{ c *Conn }

// RunTask implements work.Task.
func (a aborter) RunTask() { a.c.Abort(nil) }

type prober struct{ c *Conn }

// RunTask implements work.Task.
func (p prober) RunTask() {
	defer p.c.recover("Probe")
	p.c.group.cfg.Probe(p.c)
}

// overdue returns the limit that the connection exceeds, or whether it is time to probe it.
func (c *Conn) overdue(now uint32) (err error, probe bool) {
	cfg := &c.group.cfg
	c.mu.Lock()
	defer c.mu.Unlock()
	idle, stall := cfg.Idle, cfg.WriteStall
	if l := c.look().limits; l != nil {
		idle, stall = l.idle, l.stall
	}
	silent := time.Duration(now-c.inTick.Load()) * sweepTick // under the lock: opening sets it first
	if !c.has(flagOpened) || c.has(flagFinished|flagAborted) {
		return nil, false
	}
	if c.has(flagBlocked) && time.Duration(now-c.outTick.Load())*sweepTick >= stall {
		c.group.Stats.Stalled.Add(1)
		return ErrStalled, false
	}
	if c.has(flagPaused | flagDown) {
		return nil, false
	}
	switch {
	case c.has(flagPartial) && silent >= cfg.Partial:
		err = ErrPartial
	case silent >= idle:
		err = ErrIdle
	case silent >= idle/2 && !c.has(flagProbed):
		c.flags |= flagProbed
		return nil, true
	}
	if err != nil {
		c.group.Stats.Silent.Add(1)
	}
	return err, false
}
