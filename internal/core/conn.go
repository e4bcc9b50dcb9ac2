package core

import (
	"errors"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/work"
)

// An App is what a Group's connections are for. For one connection Open comes first, then Batch and Run, then Down,
// then Close; Open, Down and Close come once each. A panic in any of them is recovered, logged and closes the connection.
type App interface {
	// Open is called before anything is read; it must not block. What it sends precedes every answer. An error refuses
	// the connection: nothing else is called for it.
	Open(c *Conn) error
	// Batch handles the frames of one read, on the reader: it must not block. It takes them with Input.Next, and either
	// is done with a frame at once or puts it in line with Input.Ordered. An error closes the connection with it.
	Batch(c *Conn, in *Input) error
	// Run handles one ordered frame of in, with the tag that Batch gave it; it may block. It returns the Turn that stands
	// for it, or nil if that was Finished.
	Run(c *Conn, in *Input, frame []byte, tag any) *Turn
	// Down says that the connection carries no further input, and why. It is called at once, possibly while Run runs;
	// it must not block.
	Down(c *Conn, err error)
	// Close says that the connection is over. No Batch, and no Run that did not return within Config.CloseFlush, is
	// running. It may block.
	Close(c *Conn, err error)
}

// Errors that end a connection or refuse to send on it.
var (
	// ErrClosed is returned for output on a connection that was closed by this side.
	ErrClosed = errors.New("connection closed")
	// ErrIdle closes a connection that was silent for Config.Idle.
	ErrIdle = errors.New("nothing received within the idle limit")
	// ErrPartial closes a connection that left a frame incomplete for Config.Partial.
	ErrPartial = errors.New("incomplete frame, nothing received within its limit")
	// ErrStalled closes a connection that took no output for Config.WriteStall.
	ErrStalled = errors.New("peer does not read: output stalled")
	// ErrHard closes a connection whose pending output went above Config.Hard, or that would have taken the process
	// above its own limit.
	ErrHard = errors.New("peer does not read: output above the hard limit")
	// ErrNested refuses to let a further handler of a connection wait in a call.
	ErrNested = errors.New("too many handlers of this connection wait in calls")
	errPanic  = errors.New("panic while handling a frame")
	errFlush  = errors.New("connection was not closed in time")
)

// socket is what an adapter offers a connection.
type socket interface {
	// start makes the adapter read, on a goroutine of its own. Called with Conn.mu held.
	start()
	// tryWrite writes what the socket takes at once. A short count without an error means that it is full.
	tryWrite(p []byte) (int, error)
	// armWrite makes the adapter carry on with Conn.flush when the socket takes more; the flusher token goes with it.
	// Called with Conn.mu held.
	armWrite()
	// closeWrite shuts the writing side down.
	closeWrite()
	// kick makes reads and writes end soon; the reader then reports readerGone. Any goroutine, once.
	kick()
	// destroy gives the descriptor back. Called once, when there is no reader and no flusher any more.
	destroy()
	// halt makes the reader, which may be waiting for input, look at flagDetach soon. Called with Conn.mu held.
	halt() error
	// detach is destroy for a socket that somebody else is given: done gets it, on whatever goroutine.
	detach(done func(net.Conn, error))
	// keepAlive sets the TCP keep-alive period. Called with Conn.mu held, before flagFinished is set.
	keepAlive(d time.Duration) error
	// inline says whether the reader may run ordered frames itself, because its reading can be handed over.
	inline() bool
	localAddr() net.Addr
	remoteAddr() net.Addr
}

// A Conn is one connection of a Group.
type Conn struct {
	// User belongs to the App; set it in Open.
	User any
	// Calls counts what the App awaits from the peer; guarded by Lock. While it is positive, reading is not paused for
	// long, as that could be waiting for itself.
	Calls int

	mu    sync.Mutex
	flags flags  // under mu
	need  uint32 // the reader's: length of the incomplete frame, once known
	group *Group
	sock  socket
	stage *stage // nil for frames that are not wrapped
	id    uint64

	loop     uint16 // index of the event loop that it belongs to
	listener int16  // index of the listener, -1 if there is none

	prev, next *Conn // the group's table, under Group.mu

	// Output, under mu.
	out         *buf.Buf // what is being appended to
	first, last *buf.Buf // what was appended before it
	pending     int      // bytes pending
	msgs        int32    // messages pending
	answers     uint32   // bytes pending that are answers

	// Input, the reader's.
	in *buf.Buf // the incomplete frame; its length is need

	// The strand, under mu unless said otherwise.
	head, tail *Input       // waiting, oldest first
	queued     int          // bytes in it
	cur        *Input       // what the holder works on; its owner changes it only between handlers
	reading    *Input       // the input whose rest the next reader takes over, while flagInline
	held       int32        // frames held by Hold; under mu
	progress   uint16       // counts handlers finished and output taken, while that matters; under mu
	readShift  uint8        // the reader's: reads ask for minRead<<readShift bytes
	attention  atomic.Int32 // the strand's holder is to look at waiters or flagNoRun between two frames; see strand.go
	stretch    atomic.Uint32

	inTick, outTick atomic.Uint32 // last time of input, of output progress; in sweeper ticks

	rare *rare // under mu; see extra
}

// rare is what only some connections need, so that an idle one stays small.
type rare struct {
	room      chan struct{} // closed when output is below the low mark
	waitRoom  int           // goroutines waiting for that
	charged   int           // bytes counted against the process limit
	waiters   []*waiter     // handlers that want the strand back
	away      map[*Turn]any // handlers waiting in a call, with the tags of their frames
	owed      int           // answers owed, by Owe
	deferring int           // goroutines that send several messages and then flush
	closer    *time.Timer   // bounds the end of the connection
	err       error         // why it went down
	lateAbort bool          // with flagLate: it was Abort
	periods   []*period     // made by Every
	limits    *limits       // nil: the group's
	detached  func(net.Conn, []byte)
}

var noRare rare // reads as all zero; never written

// look returns the rare part for reading.
func (c *Conn) look() *rare {
	if c.rare == nil {
		return &noRare
	}
	return c.rare
}

// extra returns the rare part for writing.
func (c *Conn) extra() *rare {
	if c.rare == nil {
		c.rare = &rare{}
	}
	return c.rare
}

type flags uint32

const (
	flagFlushing   flags = 1 << iota // the flusher token is taken
	flagBatch                        // the reader is in Batch and will flush
	flagDefer                        // the strand is in a stretch and will flush the answers of ordered frames
	flagInline                       // the reader runs ordered frames
	flagRunning                      // the strand token is taken
	flagPaused                       // nobody reads; the reader token lies here
	flagParked                       // no ordered frame runs because too many answers are unread; the strand token lies here
	flagCrowded                      // attention was asked for because of that
	flagForced                       // read on above the soft limits until below them
	flagWatched                      // known to the watchdog
	flagEOF                          // the peer shut down its writing half
	flagNoSend                       // refuses output
	flagNoRun                        // ordered frames are dropped
	flagDropOut                      // pending output is dropped
	flagDiscard                      // input is dropped
	flagReaderGone                   // the reader has ended for good
	flagDown                         // App.Down is being called
	flagDownDone                     // App.Down has returned
	flagForceEnd                     // closes without waiting for handlers
	flagBlocked                      // the socket is full; the flusher token lies with the adapter
	flagPartial                      // a frame is incomplete
	flagProbed                       // Probe was called for this silence
	flagFinished                     // App.Close is on its way
	flagHard                         // output was appended above the hard limit
	flagShut                         // the writing side is shut down
	flagOpened                       // App.Open succeeded
	flagAborted                      // Abort was called, or as good as
	flagDetach                       // goes to somebody else as soon as it is idle; see Detach
	flagFarewell                     // Config.Farewell was called
	flagNoLinger                     // closes when its output is out, without waiting for the peer
	flagLater                        // somebody has promised to flush soon, see CommitLater
	flagLate                         // Close or Abort came before Open had returned; err says why
)

func (c *Conn) has(f flags) bool { return c.flags&f != 0 }

// ID returns the connection's number, unique and increasing within its group.
func (c *Conn) ID() uint64 { return c.id }

// Loop returns the index of the event loop that the connection belongs to, below Config.Loops; those of the std adapter count
// too.
func (c *Conn) Loop() int { return int(c.loop) }

// Listener returns the index given to ServeAs, -1 for a connection that was adopted.
func (c *Conn) Listener() int { return int(c.listener) }

// SetKeepAlive sets the time after which the system looks whether the peer of a silent TCP connection is still there, rounded
// up to seconds; with 0 or less it does not. The error says that this is not TCP, or that the connection is closed.
func (c *Conn) SetKeepAlive(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.has(flagFinished) {
		return ErrClosed
	}
	return c.sock.keepAlive(d)
}

// LocalAddr returns the local address, nil when the socket no longer knows.
func (c *Conn) LocalAddr() net.Addr { return c.socket().localAddr() }

// RemoteAddr returns the peer's address, nil when the socket no longer knows.
func (c *Conn) RemoteAddr() net.Addr { return c.socket().remoteAddr() }

// NetConn returns the connection under a connection of the std adapter, nil for others. It must not be read or written.
func (c *Conn) NetConn() net.Conn {
	if s, ok := c.socket().(*stdSocket); ok {
		return s.nc
	}
	return nil
}

// Polled reports whether the connection is served by the poll adapter.
func (c *Conn) Polled() bool { return !c.socket().inline() }

// socket returns the adapter's part, for who is neither reader nor flusher: a busy connection moves from one adapter to
// the other.
func (c *Conn) socket() socket {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sock
}

// Lock guards the connection, and what the App keeps per connection with it. It is held for short stretches only.
func (c *Conn) Lock() { c.mu.Lock() }

// Unlock undoes Lock.
func (c *Conn) Unlock() { c.mu.Unlock() }

// Err returns why the connection went down, nil while it has not. The caller holds Lock.
func (c *Conn) Err() error { return c.look().err }

// Because replaces what Err returns after the connection has gone down. The caller holds Lock.
func (c *Conn) Because(err error) { c.extra().err = err }

// Close ends the connection: App.Down is called with err, output accepted so far is sent, the writing side is shut down,
// input is discarded until the peer closes too, and App.Close follows. It does not wait. A nil err is ErrClosed.
func (c *Conn) Close(err error) {
	if err == nil {
		err = ErrClosed
	}
	c.mu.Lock()
	if !c.has(flagOpened) {
		c.lateLocked(err)
		return
	}
	if c.has(flagDown | flagFinished) {
		if c.has(flagEOF) { // the peer is gone already: nothing to wait for but the output
			c.flags |= flagNoSend
			c.noRunLocked()
			c.finishLocked()
		}
		c.mu.Unlock()
		return
	}
	if f := c.group.cfg.Farewell; f != nil && !c.has(flagFarewell|flagNoSend) {
		c.flags |= flagFarewell
		c.mu.Unlock()
		func() {
			defer c.recover("Farewell")
			f(c, err)
		}()
		c.Close(err)
		return
	}
	if c.stage != nil && c.CanSend() == nil {
		if raw := c.stage.Goodbye(err); raw != nil {
			c.rawLocked(raw)
		}
	}
	c.flags |= flagNoSend | flagDiscard
	c.noRunLocked()
	c.downLocked(err) // unlocks
	c.mu.Lock()
	if c.has(flagPaused) {
		c.resumeLocked()
	}
	if c.pending == 0 && !c.has(flagFlushing) {
		c.shutLocked()
	}
	c.flushUnlock(false)
}

// Abort ends the connection without sending what is pending.
func (c *Conn) Abort(err error) {
	if err == nil {
		err = ErrClosed
	}
	c.mu.Lock()
	c.abortLocked(err)
}

// abortLocked unlocks.
func (c *Conn) abortLocked(err error) {
	if c.has(flagFinished | flagAborted) {
		c.mu.Unlock()
		return
	}
	if !c.has(flagOpened) {
		c.extra().lateAbort = true
		c.lateLocked(err)
		return
	}
	c.flags |= flagAborted | flagNoSend | flagDropOut | flagDiscard
	c.noRunLocked()
	c.downLocked(err)
	c.sock.kick()
	c.mu.Lock()
	if c.has(flagPaused) {
		c.flags = c.flags&^flagPaused | flagReaderGone
	}
	c.finishLocked()
	c.mu.Unlock()
}

// lateLocked remembers an end that was asked for while App.Open runs, and unlocks.
func (c *Conn) lateLocked(err error) {
	if !c.has(flagLate) {
		c.flags |= flagLate
		c.extra().err = err
	}
	c.mu.Unlock()
}

// open runs App.Open and starts the reading. It reports whether the connection lives.
func (c *Conn) open() bool {
	err := c.callOpen()
	c.mu.Lock()
	if err != nil {
		c.flags |= flagFinished | flagNoSend | flagNoRun | flagDropOut
		if !c.has(flagFlushing) {
			c.dropOutputLocked()
		}
		c.mu.Unlock()
		c.sock.kick()
		c.sock.destroy()
		c.group.remove(c)
		return false
	}
	c.flags |= flagOpened
	late, abort := c.has(flagLate), c.has(flagLate) && c.rare.lateAbort
	if late {
		err, c.rare.err = c.rare.err, nil
	}
	c.inTick.Store(c.group.tick())
	if cfg := &c.group.cfg; cfg.Opened != nil && (cfg.WantOpened == nil || cfg.WantOpened()) {
		c.flags |= flagRunning
		work.Go((*opened)(c))
	} else if c.head != nil { // posted meanwhile
		c.flags |= flagRunning
		work.Go((*strand)(c))
	}
	if c.has(flagDetach) {
		c.flags |= flagPaused
		c.finishLocked()
		c.flushUnlock(false)
	} else {
		c.sock.start()
		c.mu.Unlock()
	}
	switch {
	case abort:
		c.Abort(err)
	case late:
		c.Close(err)
	}
	return true
}

func (c *Conn) callOpen() (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.group.cfg.Logf("arpc: panic in Open of connection %d: %v\n%s", c.id, p, debug.Stack())
			err = errPanic
		}
	}()
	return c.group.app.Open(c)
}

// downLocked calls App.Down if that has not happened, and unlocks.
func (c *Conn) downLocked(err error) {
	if c.has(flagDown) {
		c.mu.Unlock()
		return
	}
	c.flags |= flagDown
	c.flags &^= flagDetach
	c.extra().err = err
	c.wakeRoomLocked()
	x := c.extra()
	for _, p := range x.periods {
		p.timer.Stop()
	}
	x.periods = nil
	if x.closer != nil {
		x.closer.Stop()
	}
	x.closer = time.AfterFunc(c.group.cfg.CloseFlush, c.closeExpired)
	c.mu.Unlock()
	c.callDown(err)
	c.mu.Lock()
	c.flags |= flagDownDone
	c.finishLocked()
	c.mu.Unlock()
}

func (c *Conn) callDown(err error) {
	defer c.recover("Down")
	c.group.app.Down(c, err)
}

// closeExpired bounds the end of a connection.
func (c *Conn) closeExpired() {
	c.mu.Lock()
	c.flags |= flagForceEnd
	if c.has(flagFinished) {
		c.mu.Unlock()
		return
	}
	if !c.has(flagAborted) {
		c.abortLocked(errFlush)
		return
	}
	c.finishLocked()
	c.mu.Unlock()
}

// readerGone is called by the adapter when nothing will be read any more. err is io.EOF after a clean end of input.
func (c *Conn) readerGone(err error) {
	c.mu.Lock()
	c.flags |= flagReaderGone
	if c.in != nil {
		c.in.Free()
		c.in = nil
		if err == io.EOF && !c.has(flagDiscard) {
			err = io.ErrUnexpectedEOF
		}
	}
	if err == io.EOF {
		c.flags |= flagEOF
		if !c.has(flagDown) {
			if failed := c.look().err; failed != nil { // of writing: no clean end then
				err = failed
			}
			c.downLocked(err)
			c.mu.Lock()
		}
		c.finishLocked()
		c.mu.Unlock()
		return
	}
	if !c.has(flagAborted) {
		c.abortLocked(err)
		return
	}
	c.finishLocked()
	c.mu.Unlock()
}

// shutLocked shuts the writing side down once everything is out.
func (c *Conn) shutLocked() {
	if c.has(flagShut) || c.has(flagReaderGone) || c.stage != nil { // a stage has said goodbye
		return
	}
	c.flags |= flagShut
	work.Go(shutter{c})
}

type shutter struct{ c *Conn }

func (s shutter) RunTask() { s.c.sock.closeWrite() }

// finishLocked ends the connection when nothing stands in the way any more.
func (c *Conn) finishLocked() {
	if c.has(flagDetach) {
		c.finishDetachLocked()
		return
	}
	if c.has(flagFinished) || !c.has(flagDownDone) || !c.has(flagReaderGone) || c.has(flagFlushing) {
		return
	}
	if !c.has(flagForceEnd) {
		if c.has(flagRunning) || c.head != nil || len(c.look().away) > 0 {
			return
		}
		if int(c.held)+c.look().owed > 0 && !c.has(flagNoRun) {
			return
		}
		if c.pending > 0 && !c.has(flagDropOut) {
			return
		}
	}
	c.flags |= flagFinished | flagNoSend
	c.dropOutputLocked()
	c.noRunLocked()
	if closer := c.look().closer; closer != nil {
		closer.Stop()
	}
	work.Go(finisher{c})
}

type finisher struct{ c *Conn }

func (f finisher) RunTask() {
	c := f.c
	c.sock.destroy()
	c.mu.Lock()
	err := c.look().err
	c.mu.Unlock()
	c.callClose(err)
	c.group.remove(c)
}

func (c *Conn) callClose(err error) {
	defer c.recover("Close")
	c.group.app.Close(c, err)
}

// recover logs a panic of App code.
func (c *Conn) recover(where string) {
	if p := recover(); p != nil {
		c.group.cfg.Logf("arpc: panic in %s of connection %d: %v\n%s", where, c.id, p, debug.Stack())
	}
}

// Hold keeps a frame's work alive beyond Batch: the connection is not closed for lack of work while it is held, and
// reading pauses when Config.Async are. It reports false, and holds nothing, when there are too many. The caller holds
// Lock.
func (c *Conn) Hold() bool {
	if int(c.held) >= 4*c.group.cfg.Async {
		return false
	}
	c.held++
	return true
}

// Release undoes one Hold. The caller does not hold Lock.
func (c *Conn) Release() {
	c.mu.Lock()
	c.held--
	c.progress++
	if c.has(flagDown) {
		c.finishLocked()
	} else {
		c.maybeResumeLocked()
	}
	c.mu.Unlock()
}

// Owe says that an answer will be given after the frame's handler has returned, so that the connection is not closed for
// lack of work. Paid undoes it.
func (c *Conn) Owe() {
	c.mu.Lock()
	c.extra().owed++
	c.mu.Unlock()
}

// Paid undoes one Owe.
func (c *Conn) Paid() {
	c.mu.Lock()
	c.extra().owed--
	if c.has(flagDown) {
		c.finishLocked()
	}
	c.mu.Unlock()
}

// Busy reports whether frames are being handled or in line, or answers are owed.
func (c *Conn) Busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.has(flagRunning|flagBatch) || c.head != nil || int(c.held)+c.look().owed+len(c.look().away) > 0
}

// EachOrdered calls f with the tag of each ordered frame that runs, waits in a call or is in line. Lock is held meanwhile.
func (c *Conn) EachOrdered(f func(tag any)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	each := func(in *Input, from int32) {
		if in.job != nil {
			return
		}
		for _, s := range in.spans[max(from, 0):] {
			f(s.tag)
		}
	}
	if c.cur != nil && c.has(flagRunning) {
		each(c.cur, c.cur.i.Load()-1)
	}
	for _, tag := range c.look().away {
		f(tag)
	}
	for in := c.head; in != nil; in = in.next {
		each(in, in.i.Load())
	}
}

// Alive reports whether Open has succeeded, and User therefore is set, and the connection has not gone down.
func (c *Conn) Alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.has(flagOpened) && !c.has(flagDown|flagFinished)
}

// Group returns the connection's group.
func (c *Conn) Group() *Group { return c.group }

// Partial reports whether a frame has begun to arrive and is not complete.
func (c *Conn) Partial() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.has(flagPartial)
}
