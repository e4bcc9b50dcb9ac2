package core

import (
	"runtime"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/work"
)

const (
	firstChunk = 4 << 10
	minChunk   = 512 // with a stage, where a chunk may be one frame
	maxChunk   = 64 << 10
	// maxRounds is how often a flusher writes for others before it hands the token to a goroutine of its own.
	maxRounds = 8
	// shareAbove is the size, in bytes, from which a shared frame is queued by reference instead of copied.
	shareAbove = 8 << 10
)

// MaxPending is the number of bytes of output that all connections of the process together may have waiting for
// sockets that are full; the connection that would exceed it is closed.
const MaxPending = 1 << 30

var processPending atomic.Int64

// CanSend returns the error with which output is refused, nil if it is not. The caller holds Lock.
func (c *Conn) CanSend() error {
	if !c.has(flagNoSend|flagLate) && (!c.has(flagDown) || c.has(flagEOF)) {
		return nil
	}
	if err := c.look().err; err != nil {
		return err
	}
	return ErrClosed
}

// Full reports whether output is above the high mark, in bytes or messages. While somebody waits for room it stays full
// down to the low mark, so that those who do not wait cannot take all of it. The caller holds Lock.
func (c *Conn) Full() bool {
	return c.pending >= c.group.cfg.High || int64(c.msgs) >= c.group.messages.Load() ||
		c.pending >= c.group.cfg.Low && c.look().waitRoom > 0
}

// Pending returns the bytes accepted and not yet taken by the socket. The caller holds Lock.
func (c *Conn) Pending() int { return c.pending }

// Queued returns the bytes of ordered frames that have not begun. The caller holds Lock.
func (c *Conn) Queued() int {
	n := c.queued
	if c.cur != nil {
		n += c.cur.bytes()
	}
	return n
}

// Reserve appends one message of n bytes to the output and returns its bytes to be filled in before Commit. The caller
// holds Lock, has asked CanSend, and commits before unlocking.
func (c *Conn) Reserve(n int) []byte {
	if c.stage != nil {
		return c.reserveWrapped(n)
	}
	return c.reserve(n)
}

// reserveWrapped leaves room for the wrapping before the first frame of a chunk, or before each.
func (c *Conn) reserveWrapped(n int) []byte {
	if c.out != nil && (c.stage.Single() || len(c.out.B)+n > maxChunk) {
		c.closeChunkLocked()
	}
	if c.out == nil {
		c.out = buf.Get(max(n+c.stage.Room(), minChunk))
		c.out.B = c.out.B[:c.stage.Room()]
	}
	return c.reserve(n)
}

func (c *Conn) reserve(n int) []byte {
	b := c.out
	if b == nil {
		b = buf.Get(max(n, firstChunk))
		c.out = b
	} else if len(b.B)+n > cap(b.B) {
		if len(b.B)+n <= maxChunk {
			nb := buf.Get(2 * (len(b.B) + n))
			nb.B = append(nb.B, b.B...)
			nb.Messages, nb.Answers = b.Messages, b.Answers
			b.Free()
			b = nb
		} else {
			c.closeChunkLocked()
			b = buf.Get(max(n, maxChunk))
		}
		c.out = b
	}
	l := len(b.B)
	b.B = b.B[:l+n]
	b.Messages++
	c.acceptLocked(n)
	return b.B[l : l+n : l+n]
}

// ReserveAnswer is Reserve for an answer to the peer: it waits for nothing, so the peer is not read while too many bytes of
// answers are pending.
func (c *Conn) ReserveAnswer(n int) []byte {
	p := c.Reserve(n)
	c.out.Answers += uint32(n)
	c.answers += uint32(n)
	return p
}

// AppendShared appends one message that other connections may send too; it must never change again. The caller holds
// Lock, has asked CanSend, and commits before unlocking.
func (c *Conn) AppendShared(p []byte) {
	if len(p) < shareAbove || c.stage != nil {
		copy(c.Reserve(len(p)), p)
		return
	}
	c.closeChunkLocked()
	b := buf.Of(p)
	b.Messages = 1
	c.queueLocked(b)
	c.acceptLocked(len(p))
}

// acceptLocked counts one message. What was pending before it decides about the hard limit, so that a limit never cuts a
// frame.
func (c *Conn) acceptLocked(n int) {
	if c.pending >= c.group.cfg.Hard {
		c.flags |= flagHard
	}
	c.pending += n
	c.msgs++
}

// closeChunkLocked queues what is being appended to. In the queue a Buf's Off says how much of it is sent.
func (c *Conn) closeChunkLocked() {
	if b := c.out; b != nil {
		if c.stage != nil {
			payload := len(b.B) - c.stage.Room()
			start, end := c.stage.Wrap(b.B)
			b.B, b.Off = b.B[:end], start
			c.pending += end - start - payload
		}
		c.queueLocked(b)
		c.out = nil
	}
}

func (c *Conn) queueLocked(b *buf.Buf) {
	if c.first == nil {
		c.first = b
	} else {
		c.last.Next = b
	}
	c.last = b
}

// Urgency says how long a message may wait to be written together with others.
type Urgency uint8

const (
	// Now is for what somebody waits for. It still waits while the reader handles a batch, which ends soon.
	Now Urgency = iota
	// Answer is the answer of an ordered frame: it may wait for the end of the strand's stretch.
	Answer
	// Soon may wait for a goroutine that called Defer.
	Soon
)

// Commit unlocks and has the output written: by whoever has promised to flush, by whoever is writing, or by the caller.
// yield lets other goroutines append before the caller writes.
func (c *Conn) Commit(u Urgency, yield bool) {
	if (c.pending >= c.group.cfg.High || c.rare != nil && c.rare.charged > 0) && !c.limitsUnlock(u) {
		return
	}
	if c.has(flagPaused|flagParked) && c.Calls > 0 {
		c.maybeResumeLocked() // what is awaited may be behind what is not read
	}
	if c.has(flagBatch) || u == Answer && c.has(flagDefer) || u == Soon && c.look().deferring > 0 && c.pending < maxChunk {
		c.mu.Unlock()
		return
	}
	c.flushUnlock(yield)
}

// limitsUnlock applies the limits to output that was just appended. If it reports false, the connection was closed and Lock
// released.
func (c *Conn) limitsUnlock(u Urgency) bool {
	if x := c.rare; x != nil && x.charged > 0 && c.pending-x.charged >= maxChunk && !c.chargeLocked() {
		c.abortLocked(ErrHard)
		return false
	}
	if c.pending < c.group.cfg.High {
		return true
	}
	if u == Answer && c.unreadLocked(c.group.cfg.High) {
		c.crowdedLocked()
	}
	switch {
	case c.has(flagHard):
		c.abortLocked(ErrHard)
	case c.group.cfg.Over == Close:
		c.abortLocked(ErrStalled)
	default:
		return true
	}
	return false
}

// CommitHeld is Commit for who holds a lock that the hooks around a write want: nothing is written before the caller, who has let
// go of it, calls Flush, which must be soon.
func (c *Conn) CommitHeld() {
	if c.limitsUnlock(Now) {
		c.mu.Unlock()
	}
}

// CommitLater is Commit, but leaves the writing to the caller where it reports true: Flush must follow soon. Otherwise
// somebody else writes, or has promised to.
func (c *Conn) CommitLater() bool {
	if c.has(flagBatch|flagFlushing|flagPaused|flagParked) || c.pending >= min(maxChunk, c.group.cfg.High) {
		c.Commit(Soon, false)
		return false
	}
	mine := !c.has(flagLater)
	c.flags |= flagLater
	c.mu.Unlock()
	return mine
}

// Defer announces several messages that can be written together; Flush follows soon, through EndDefer. The watchdog
// flushes meanwhile, should that take longer than expected.
func (c *Conn) Defer() {
	c.mu.Lock()
	c.extra().deferring++
	c.watchLocked()
	c.mu.Unlock()
}

// EndDefer undoes one Defer and flushes.
func (c *Conn) EndDefer() {
	c.mu.Lock()
	c.extra().deferring--
	c.flushUnlock(false)
}

// Flush writes what is pending without waiting for whoever promised to.
func (c *Conn) Flush() {
	c.mu.Lock()
	c.flushUnlock(false)
}

// flushUnlock unlocks, and writes what is pending unless somebody is doing so.
func (c *Conn) flushUnlock(yield bool) {
	c.flags &^= flagLater
	if c.pending == 0 || c.has(flagFlushing) {
		c.mu.Unlock()
		return
	}
	c.flags |= flagFlushing
	if yield {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	c.flushLocked()
}

// flushLocked writes until nothing is pending or the socket is full. The caller holds mu, which is released, and the
// flusher token, which is released or handed on.
func (c *Conn) flushLocked() {
	for round := 0; ; round++ {
		if c.has(flagDropOut) {
			c.dropOutputLocked()
		}
		if c.first == nil {
			if c.out == nil {
				c.flags &^= flagFlushing | flagBlocked
				c.drainedLocked()
				c.mu.Unlock()
				return
			}
			c.closeChunkLocked()
		}
		if round == maxRounds {
			c.mu.Unlock()
			work.Go(flusher{c})
			return
		}
		p := c.first.B[c.first.Off:]
		c.mu.Unlock()
		if c.group.cfg.BeforeWrite != nil {
			if err := c.beforeWrite(); err != nil {
				c.mu.Lock()
				c.flags &^= flagFlushing
				c.abortLocked(err)
				return
			}
		}
		n, err := c.sock.tryWrite(p)
		if c.group.cfg.AfterWrite != nil {
			c.afterWrite(n)
		}
		c.mu.Lock()
		if !c.wroteLocked(n, err) {
			return
		}
	}
}

type flusher struct{ c *Conn }

func (f flusher) RunTask() {
	f.c.mu.Lock()
	f.c.flushLocked()
}

// wroteLocked accounts for a write that does not wait. It reports whether the caller is still the flusher and holds mu;
// otherwise the token was handed on and mu released.
func (c *Conn) wroteLocked(n int, err error) bool {
	done := c.tookLocked(n)
	switch {
	case err != nil:
		c.writeFailedLocked(err)
		return false
	case done, c.has(flagDropOut): // given up meanwhile: the caller drops the rest
		return true
	case !c.chargeLocked():
		c.flags &^= flagFlushing
		c.abortLocked(ErrHard)
		return false
	}
	if !c.has(flagBlocked) {
		c.flags |= flagBlocked
		c.outTick.Store(c.group.tick())
	}
	c.relieveLocked()
	c.sock.armWrite()
	c.mu.Unlock()
	return false
}

// relieveLocked lets go on who waits for output to be below the low mark.
func (c *Conn) relieveLocked() {
	if c.pending >= c.group.cfg.Low {
		return
	}
	c.wakeRoomLocked()
	if c.has(flagPaused | flagParked) {
		c.maybeResumeLocked()
	}
}

// tookLocked accounts for n bytes of the first segment and reports whether that is done with.
func (c *Conn) tookLocked(n int) bool {
	if n <= 0 {
		return false
	}
	c.pending -= n
	c.group.Stats.BytesOut.Add(int64(n))
	if c.has(flagBlocked) {
		c.progress++
		c.outTick.Store(c.group.tick())
	}
	b := c.first
	if b.Off += n; b.Off < len(b.B) {
		return false
	}
	c.msgs -= int32(b.Messages)
	c.answers -= b.Answers
	c.group.Stats.FramesOut.Add(int64(b.Messages))
	if c.first = b.Next; c.first == nil {
		c.last = nil
	}
	b.Free()
	if c.look().charged > 0 {
		c.chargeLocked()
	}
	return true
}

// writeFailedLocked gives up the output, the flusher token and mu. What the peer sent before it went away is still to be
// read, so it is the reader who finds the end of the connection.
func (c *Conn) writeFailedLocked(err error) {
	c.flags |= flagNoSend | flagDropOut
	if c.has(flagDetach) { // nobody wants what is still to be read
		c.flags |= flagDiscard
	}
	c.flags &^= flagFlushing | flagBlocked | flagDetach
	if x := c.extra(); x.err == nil {
		x.err = err
	}
	c.dropOutputLocked()
	if c.has(flagPaused) {
		c.resumeLocked()
	}
	c.finishLocked()
	if c.look().closer == nil {
		c.extra().closer = time.AfterFunc(c.group.cfg.CloseFlush, func() { c.lostWriter(err) })
	}
	c.mu.Unlock()
}

// lostWriter ends a connection whose writing failed and whose reader has not found out why.
func (c *Conn) lostWriter(err error) {
	c.mu.Lock()
	c.flags |= flagForceEnd
	c.abortLocked(err)
}

// chargeLocked counts the pending output of a connection whose socket is full against the process limit.
func (c *Conn) chargeLocked() bool {
	total := processPending.Add(int64(c.pending - c.look().charged))
	c.extra().charged = c.pending
	return total <= MaxPending
}

func (c *Conn) dropOutputLocked() {
	c.closeChunkLocked()
	for b := c.first; b != nil; {
		next := b.Next
		b.Free()
		b = next
	}
	c.first, c.last = nil, nil
	c.pending, c.msgs, c.answers = 0, 0, 0
	if c.look().charged > 0 {
		c.chargeLocked()
	}
	c.wakeRoomLocked()
}

// drainedLocked is called when everything is out.
func (c *Conn) drainedLocked() {
	if c.look().charged > 0 {
		c.chargeLocked()
	}
	c.relieveLocked()
	if c.has(flagNoLinger) {
		work.Go(aborter{c})
	}
	if c.has(flagDown) && !c.has(flagEOF) && c.has(flagNoSend) {
		c.shutLocked()
	}
	if c.has(flagDown | flagDetach) {
		c.finishLocked()
	}
}

func (c *Conn) wakeRoomLocked() {
	if c.look().room != nil {
		close(c.rare.room)
		c.rare.room = nil
	}
}

// Room waits until output is below the low mark, the connection goes down, or stop or timeout (if not nil) deliver. It
// reports false for the latter two. The caller holds Lock, which is released.
func (c *Conn) Room(stop, stop2 <-chan struct{}, timeout <-chan time.Time) bool {
	if c.look().room == nil {
		c.extra().room = make(chan struct{})
	}
	room := c.look().room
	c.extra().waitRoom++
	if c.has(flagPaused | flagParked) {
		c.maybeResumeLocked()
	}
	c.mu.Unlock()
	ok := true
	select {
	case <-room:
	case <-stop:
		ok = false
	case <-stop2:
		ok = false
	case <-timeout:
		ok = false
	}
	c.mu.Lock()
	c.extra().waitRoom--
	c.mu.Unlock()
	return ok
}

func (c *Conn) beforeWrite() (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.group.cfg.Logf("arpc: panic before a write of connection %d: %v", c.id, p)
			err = errPanic
		}
	}()
	return c.group.cfg.BeforeWrite(c)
}

// afterWrite calls Config.AfterWrite. What was taken is still counted as pending, and the caller is the flusher, so nobody else
// counts it meanwhile.
func (c *Conn) afterWrite(n int) {
	c.mu.Lock()
	left := c.pending - n
	c.mu.Unlock()
	defer c.recover("AfterWrite")
	c.group.cfg.AfterWrite(c, n, left)
}
