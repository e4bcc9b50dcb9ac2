package core

import (
	"runtime/debug"
	"sync/atomic"

	"github.com/arpc-go/arpc/internal/work"
)

type refs struct{ n atomic.Int32 }

func (r *refs) set(n int32)       { r.n.Store(n) }
func (r *refs) add(n int32) int32 { return r.n.Add(n) }
func (r *refs) get() int32        { return r.n.Load() }

// A Turn stands for one ordered frame while it runs; its zero value holds the strand. The App makes one per frame and
// embeds it in what it gives to the handler.
//
//	holds --LetGo--> away --TakeBack--> back --LetGo--> away
//	holds, back, away --Run returns--> done
//
// From LetGo on the rest of the input is the queue's. Any goroutine of the handler's may call LetGo and TakeBack, also while Run
// returns: each step is a compare and swap.
type Turn struct{ state atomic.Int32 }

const (
	turnHolds int32 = iota
	turnAway
	turnBack
	turnDone
)

// Finish ends a Turn whose handler has returned and never let the strand go; nobody knows the Turn afterwards. It reports
// false for others, which Run returns.
func (t *Turn) Finish() bool { return t.state.CompareAndSwap(turnHolds, turnDone) }

// release ends a Turn that holds the strand, whether it has let it go before or not.
func (t *Turn) release() bool {
	return t.state.CompareAndSwap(turnHolds, turnDone) || t.state.CompareAndSwap(turnBack, turnDone)
}

// Reset makes a Turn that was finished or detached as good as new.
func (t *Turn) Reset() { t.state.Store(turnHolds) }

// Detached makes a Turn that holds no strand, for frames that are not ordered.
func (t *Turn) Detached() { t.state.Store(turnDone) }

type waiter struct {
	turn  *Turn
	ready chan struct{}
}

// strand is a Conn whose strand token is to be used by a goroutine of package work.
type strand Conn

// RunTask implements work.Task.
func (s *strand) RunTask() {
	c := (*Conn)(s)
	c.mu.Lock()
	in := c.nextLocked()
	if in == nil {
		c.flushUnlock(false)
		return
	}
	c.watchLocked()
	c.flags |= flagDefer
	c.mu.Unlock()
	c.runStrand(in, false)
}

// opened runs Config.Opened as the first thing on the strand.
type opened Conn

// RunTask implements work.Task.
func (o *opened) RunTask() {
	c := (*Conn)(o)
	var t Turn
	func() {
		defer c.recover("Opened")
		c.group.cfg.Opened(c, &t)
	}()
	if t.release() {
		(*strand)(c).RunTask()
	}
}

// Yield gives the strand away for good on behalf of t, if that holds it. The caller holds Lock.
func (c *Conn) Yield(t *Turn) {
	if t.release() {
		work.Go((*strand)(c)) // flagRunning stays set: the token goes to that goroutine
	}
}

// left reports whether a span is still to run.
func (in *Input) left() bool { return int(in.i.Load()) < len(in.spans) }

// pushLocked queues an input behind the others.
func (c *Conn) pushLocked(in *Input) {
	c.queued += in.bytes()
	if c.head == nil {
		c.head = in
	} else {
		c.tail.next = in
	}
	c.tail = in
}

// nextLocked decides what the strand's holder does next: it returns an input, or nil when the token was passed to a
// waiting handler or released.
func (c *Conn) nextLocked() *Input {
	c.cur = nil
	for len(c.look().waiters) > 0 {
		w := c.look().waiters[0]
		c.rare.waiters[0] = nil
		c.rare.waiters = c.rare.waiters[1:]
		c.attention.Add(-1)
		delete(c.rare.away, w.turn)
		if w.turn.state.CompareAndSwap(turnAway, turnBack) {
			c.flags &^= flagDefer
			c.stretch.Add(1)
			close(w.ready)
			return nil // flagRunning stays set: the waiter holds the token now
		}
		close(w.ready)
	}
	if c.has(flagCrowded) {
		c.flags &^= flagCrowded
		c.attention.Add(-crowded)
	}
	in := c.head
	if in != nil && c.unreadLocked(c.group.cfg.High) {
		c.flags |= flagParked
		c.flags &^= flagDefer
		return nil
	}
	if in == nil {
		if c.rare != nil {
			c.rare.waiters = nil
		}
		c.flags &^= flagRunning | flagDefer
		if c.has(flagDown | flagDetach) {
			c.finishLocked()
		}
		return nil
	}
	c.head = in.next
	if c.head == nil {
		c.tail = nil
	}
	in.next = nil
	c.queued -= in.bytes()
	c.cur = in
	c.maybeResumeLocked()
	return in
}

// runStrand runs ordered frames as the holder of the strand, beginning with those of in, whose reference it takes. With
// inline the caller is the reader too; the result is whether it still is.
func (c *Conn) runStrand(in *Input, inline bool) bool {
	for {
		c.stretch.Add(1) // odd: a handler runs
		held := c.runInput(in, inline)
		if !held { // somebody else holds the strand, and reads
			in.Release()
			return false
		}
		c.stretch.Add(1)
		c.mu.Lock()
		c.progress++
		reader := inline && c.has(flagInline)
		inline = false
		c.flags &^= flagInline
		c.reading = nil
		if c.cur == in && in.left() && !c.has(flagNoRun) {
			c.pushFrontLocked(in)
		} else {
			in.Release()
		}
		in = c.nextLocked()
		if in == nil {
			if reader {
				c.mu.Unlock() // the reader flushes at the end of its turn
			} else {
				c.flushUnlock(false)
			}
			return reader
		}
		if reader { // what is left is not for the reader: it is slow, or a waiting handler came first
			c.pushFrontLocked(in)
			work.Go((*strand)(c))
			c.mu.Unlock()
			return true
		}
		c.flags |= flagDefer
		c.mu.Unlock()
	}
}

// runInput runs the frames of in until they are done, until one of them is better run elsewhere or until a handler that
// was away wants the strand back. It reports whether the strand is still held.
func (c *Conn) runInput(in *Input, inline bool) bool {
	exposed := false // slow frames run with nothing held back
	for in.left() && c.attention.Load() == 0 {
		s := in.spans[in.i.Load()]
		if s.slow != exposed {
			if s.slow && inline {
				return true
			}
			exposed = s.slow
			c.mu.Lock()
			if exposed {
				c.flags &^= flagDefer
				c.flushUnlock(false)
			} else {
				c.flags |= flagDefer
				c.stretch.Add(2) // a new stretch to the watchdog
				c.mu.Unlock()
			}
		}
		in.i.Add(1)
		if in.job != nil {
			c.runJob(in.job)
			return true
		}
		t := c.run(in, in.b.B[s.start:s.end:s.end], s.tag)
		if t != nil && !t.Finish() {
			c.mu.Lock()
			held := t.state.Swap(turnDone) == turnBack
			c.mu.Unlock()
			return held
		}
		if exposed {
			c.mu.Lock()
			c.progress++
			c.mu.Unlock()
		}
	}
	return true
}

// run calls App.Run. A panic, which the App should have prevented, counts as a finished Turn.
func (c *Conn) run(in *Input, frame []byte, tag any) (t *Turn) {
	defer func() {
		if p := recover(); p != nil {
			c.group.cfg.Logf("arpc: panic in Run of connection %d: %v\n%s", c.id, p, debug.Stack())
			c.Close(errPanic)
		}
	}()
	return c.group.app.Run(c, in, frame, tag)
}

// pushFrontLocked puts an input before the others.
func (c *Conn) pushFrontLocked(in *Input) {
	c.queued += in.bytes()
	in.next = c.head
	if c.head == nil {
		c.tail = in
	}
	c.head = in
}

// noRun is added to attention when no ordered frame is to start any more; the rest of it is the number of waiters.
const noRun = 1 << 20

// crowded is added to attention when so many answers are unread that the strand should wait.
const crowded = 1 << 16

// crowdedLocked makes the strand's holder look whether it should wait.
func (c *Conn) crowdedLocked() {
	if !c.has(flagCrowded) {
		c.flags |= flagCrowded
		c.attention.Add(crowded)
	}
}

// noRunLocked keeps ordered frames that have not started from doing so.
func (c *Conn) noRunLocked() {
	if !c.has(flagNoRun) {
		c.flags |= flagNoRun
		c.attention.Add(noRun)
	}
	if c.has(flagParked) {
		c.flags &^= flagParked | flagRunning
	}
	c.dropQueueLocked()
}

// dropQueueLocked drops the ordered frames that have not started.
func (c *Conn) dropQueueLocked() {
	for in := c.head; in != nil; {
		next := in.next
		in.next = nil
		in.Release()
		in = next
	}
	c.head, c.tail, c.queued = nil, nil, 0
}

// LetGo gives the strand away while the handler that t stands for waits for something that may need it. It reports
// whether TakeBack must be called afterwards; a Turn that does not hold the strand has nothing to give.
func (c *Conn) LetGo(t *Turn) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := t.state.Load()
	if state != turnHolds && state != turnBack {
		return false, nil
	}
	x := c.extra()
	if len(x.away) >= c.group.cfg.Nested {
		return false, ErrNested
	}
	if !t.state.CompareAndSwap(state, turnAway) {
		return false, nil // the handler returns right now
	}
	if x.away == nil {
		x.away = map[*Turn]any{}
	}
	x.away[t] = nil
	if in := c.cur; in != nil && in.i.Load() > 0 {
		x.away[t] = in.spans[in.i.Load()-1].tag
	}
	c.stretch.Add(1)
	c.HandOver()
	if in := c.cur; in != nil && in.left() && !c.has(flagNoRun) {
		in.Retain()
		c.pushFrontLocked(in)
	}
	c.cur = nil
	c.flags &^= flagDefer
	if c.head != nil || len(c.look().waiters) > 0 {
		work.Go((*strand)(c)) // flagRunning stays set: the token goes to that goroutine
	} else {
		c.flags &^= flagRunning
	}
	return true, nil
}

// TakeBack waits until the strand is free and takes it again for t.
func (c *Conn) TakeBack(t *Turn) {
	c.mu.Lock()
	if t.state.Load() != turnAway { // the handler has returned
		delete(c.rare.away, t)
		if c.has(flagDown) {
			c.finishLocked()
		}
		c.mu.Unlock()
		return
	}
	if !c.has(flagRunning) || c.has(flagParked) {
		delete(c.rare.away, t)
		c.flags |= flagRunning
		c.flags &^= flagParked
		t.state.Store(turnBack)
		c.stretch.Add(1)
		c.watchLocked()
		c.mu.Unlock()
		return
	}
	w := &waiter{t, make(chan struct{})}
	c.extra().waiters = append(c.look().waiters, w)
	c.attention.Add(1)
	c.mu.Unlock()
	<-w.ready
}

// HandOver lets another goroutine read while the reader runs ordered frames, because one of them is about to wait or has
// taken long. The caller holds Lock.
func (c *Conn) HandOver() {
	if !c.has(flagInline) {
		return
	}
	c.flags &^= flagInline
	c.in = c.reading.restBuf()
	c.reading = nil
	c.sock.start()
}
