package core

import (
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/work"
)

const (
	minRead = 4 << 10
	// maxReadShift makes the largest read 64 KiB.
	maxReadShift = 4
)

// An Input is what one read returned: a buffer, the frames in it, and which of them are in line for the strand.
type Input struct {
	// Scratch is the App's, for Run; it lasts as long as the Input.
	Scratch any

	conn  *Conn
	b     *buf.Buf
	off   int // where the next frame starts
	start int // where the current one starts
	spans []span
	i     atomic.Int32 // the next span to run; its owner's: the reader, the strand's holder, or the queue under mu
	woke  int
	count int // frames that Next has returned
	next  *Input

	job    func() // runs instead of frames; there is no b then
	at     int64  // when it arrived, if Stamp was called
	refuse bool   // no more ordered frames
	refs   refs
}

type span struct {
	start, end uint32
	slow       bool
	tag        any
}

var inputs = sync.Pool{New: func() any { return new(Input) }}

func newInput(c *Conn, b *buf.Buf) *Input {
	in := inputs.Get().(*Input)
	in.conn, in.b = c, b
	in.refs.set(1)
	return in
}

// Retain keeps the frames of the input valid beyond Batch until Release is called as often.
func (in *Input) Retain() { in.refs.add(1) }

// Release undoes one Retain.
func (in *Input) Release() {
	if in.refs.add(-1) > 0 {
		return
	}
	if in.b != nil {
		in.b.Free()
	}
	clear(in.spans)
	in.Scratch, in.conn, in.b, in.next, in.job = nil, nil, nil, nil, nil
	in.off, in.start, in.woke, in.count, in.at, in.refuse = 0, 0, 0, 0, 0, false
	in.spans = in.spans[:0]
	in.i.Store(0)
	inputs.Put(in)
}

// Next returns the next whole frame, nil when there is none.
func (in *Input) Next() ([]byte, error) {
	rest := in.b.B[in.off:]
	if len(rest) == 0 {
		return nil, nil
	}
	var n, need int
	var err error
	if cfg := &in.conn.group.cfg; cfg.SplitConn == nil {
		n, need, err = cfg.Split.Split(rest)
	} else {
		n, need, err = cfg.SplitConn(in.conn, rest)
	}
	if err != nil {
		return nil, err
	}
	if n == 0 {
		in.conn.need = uint32(min(need, math.MaxUint32))
		return nil, nil
	}
	in.start = in.off
	in.off += n
	in.count++
	return rest[:n:n], nil
}

// Ordered puts the frame that Next returned last in line for the strand; Run gets it with the tag. slow says that running
// it takes long enough to be worth another goroutine. It reports false when too much is in line already.
func (in *Input) Ordered(slow bool, tag any) bool {
	if in.refuse {
		return false
	}
	in.spans = append(in.spans, span{uint32(in.start), uint32(in.off), slow, tag})
	return true
}

// Stamp notes when the input arrived, for Run, by the App's clock; it asks that once.
func (in *Input) Stamp(now func() int64) {
	if in.at == 0 {
		in.at = now()
	}
}

// Stamped returns what Stamp has noted, 0 if it was not called.
func (in *Input) Stamped() int64 { return in.at }

// Woke counts goroutines that Batch has woken up and that are likely to send soon; with several of them the reader lets
// them run before it writes.
func (in *Input) Woke(n int) { in.woke += n }

func (in *Input) bytes() int {
	n := 0
	for _, s := range in.spans[in.i.Load():] {
		n += int(s.end-s.start) + 64
	}
	return n
}

// turn handles the bytes in b as the reader. It reports whether the caller is still the reader.
func (c *Conn) turn(b *buf.Buf) bool {
	c.inTick.Store(c.group.tick())
	c.mu.Lock()
	if c.has(flagDiscard) {
		c.mu.Unlock()
		b.Free()
		return true
	}
	c.flags |= flagBatch
	refuse := c.queued > 4*c.group.cfg.Queue
	c.mu.Unlock()
	in := newInput(c, b)
	in.refuse = refuse
	c.need = 0
	err := c.batch(in)
	c.group.Stats.FramesIn.Add(int64(in.count))
	c.group.Stats.BytesIn.Add(int64(in.off))
	if in.woke > 1 {
		runtime.Gosched()
	}
	c.mu.Lock()
	c.flags &^= flagBatch | flagPartial | flagProbed
	if in.off < len(in.b.B) {
		c.flags |= flagPartial
	}
	if len(in.spans) == 0 || c.has(flagNoRun) {
		c.mu.Unlock()
		c.keepTail(in)
		return c.endTurn(err)
	}
	if c.has(flagRunning) || !c.sock.inline() || in.spans[0].slow || err != nil {
		rest := in.restBuf()
		in.compact()
		c.pushLocked(in)
		if !c.has(flagRunning) {
			c.flags |= flagRunning
			c.watchLocked()
			work.Go((*strand)(c))
		}
		c.mu.Unlock()
		c.in = rest
		return c.endTurn(err)
	}
	c.flags |= flagRunning | flagInline | flagDefer
	c.cur, c.reading = in, in
	c.watchLocked()
	in.Retain() // for the tail, which the reader takes over afterwards
	c.mu.Unlock()
	if !c.runStrand(in, true) {
		in.Release()
		return false // somebody else reads now
	}
	c.keepTail(in)
	return c.endTurn(err)
}

// endTurn flushes what the turn produced, and pauses or ends the reading if need be.
func (c *Conn) endTurn(err error) bool {
	if err != nil {
		if c.in != nil {
			c.in.Free()
			c.in = nil
		}
		c.group.Stats.ProtocolErrors.Add(1)
		c.group.cfg.Logf("arpc: connection %d from %v closed: %v", c.id, c.RemoteAddr(), err)
		c.Close(err)
		return true
	}
	c.mu.Lock()
	if c.shouldPauseLocked() {
		c.flags |= flagPaused
		if c.has(flagDetach) {
			c.finishLocked()
		} else {
			c.watchLocked()
		}
		c.flushUnlock(false)
		return false
	}
	c.flushUnlock(false)
	return true
}

// batch calls App.Batch.
func (c *Conn) batch(in *Input) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.group.cfg.Logf("arpc: panic in Batch of connection %d: %v\n%s", c.id, p, debug.Stack())
			err = errPanic
		}
	}()
	return c.group.app.Batch(c, in)
}

// restBuf copies what follows the last whole frame into a buffer of its own; nil if there is nothing.
func (in *Input) restBuf() *buf.Buf {
	rest := in.b.B[in.off:]
	if len(rest) == 0 {
		return nil
	}
	b := buf.Get(max(2*len(rest), minRead))
	b.B = append(b.B, rest...)
	return b
}

// compact moves the ordered frames of a mostly empty buffer into one of their size, so that a queue of small
// requests does not pin large read buffers.
func (in *Input) compact() {
	if in.refs.get() > 1 {
		return // frames of this input are in use elsewhere: leave them where they are
	}
	size := 0
	for _, s := range in.spans {
		size += int(s.end - s.start)
	}
	if 2*size >= cap(in.b.B) {
		return
	}
	b := buf.Get(size)
	for i, s := range in.spans {
		at := len(b.B)
		b.B = append(b.B, in.b.B[s.start:s.end]...)
		in.spans[i].start, in.spans[i].end = uint32(at), uint32(len(b.B))
	}
	in.b.Free()
	in.b = b
	in.off = len(b.B)
}

// keepTail takes what follows the last whole frame back into c.in and releases the input. The caller is the reader and
// owns in.
func (c *Conn) keepTail(in *Input) {
	rest := len(in.b.B) - in.off
	switch {
	case rest == 0:
		in.Release()
	case in.refs.get() == 1:
		b := in.b
		copy(b.B, b.B[in.off:])
		b.B = b.B[:rest]
		b.Retain()
		in.Release()
		c.in = b
	default:
		c.in = in.restBuf()
		in.Release()
	}
}

// readBuf returns the buffer to read into, behind the incomplete frame if there is one. A frame's buffer grows with what
// has arrived, never ahead of it by more than its own length: an announced length alone costs nothing.
func (c *Conn) readBuf() *buf.Buf {
	b := c.in
	c.in = nil
	if b == nil {
		return buf.Get(minRead << c.readShift)
	}
	have := len(b.B)
	if int(c.need) > have {
		if want := min(int(c.need), 2*max(have, minRead)); want > cap(b.B) {
			nb := buf.Get(want)
			nb.B = append(nb.B, b.B...)
			b.Free()
			b = nb
		}
	} else if cap(b.B)-have < minRead/4 {
		nb := buf.Get(2 * cap(b.B))
		nb.B = append(nb.B, b.B...)
		b.Free()
		b = nb
	}
	return b
}

// didRead adapts the size of further reads to one that took n of room bytes.
func (c *Conn) didRead(n, room int) {
	switch {
	case n == room && c.readShift < maxReadShift:
		c.readShift++
	case n < room/8 && c.readShift > 0:
		c.readShift--
	}
}

// shouldPauseLocked reports whether reading must wait for this side's handlers or for the peer to read.
func (c *Conn) shouldPauseLocked() bool {
	cfg := &c.group.cfg
	if c.has(flagDown | flagDropOut | flagDetach) {
		return c.has(flagDetach)
	}
	if !c.has(flagForced) && (c.queued > cfg.Queue || int(c.held) >= cfg.Async) {
		return true
	}
	return c.unreadLocked(cfg.High)
}

// unreadLocked reports whether the peer leaves so much unread that it must not be read either. By default only answers count,
// and only while nothing is awaited from the peer, which awaits these answers: so two ends cannot stop each other.
func (c *Conn) unreadLocked(mark int) bool {
	if c.group.cfg.Over == Pause {
		return c.pending >= mark
	}
	return int64(c.answers) >= int64(mark) && c.Calls == 0 && c.look().waitRoom == 0
}

// maybeResumeLocked goes on reading when the reason for the pause has gone.
func (c *Conn) maybeResumeLocked() {
	cfg := &c.group.cfg
	if c.has(flagForced) && c.queued <= cfg.Queue/2 && int(c.held) <= cfg.Async/2 {
		c.flags &^= flagForced
	}
	if c.has(flagParked) && !c.unreadLocked(cfg.Low) {
		c.flags &^= flagParked
		work.Go((*strand)(c)) // flagRunning is still set: the token goes to that goroutine
	}
	if !c.has(flagPaused) || c.has(flagDetach) {
		return
	}
	busy := !c.has(flagForced) && (c.queued > cfg.Queue/2 || int(c.held) > cfg.Async/2)
	if !busy && !c.unreadLocked(cfg.Low) {
		c.resumeLocked()
	}
}

func (c *Conn) resumeLocked() {
	c.flags &^= flagPaused
	c.sock.start()
}
