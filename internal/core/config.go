package core

import (
	"math"
	"runtime"
	"time"

	"github.com/arpc-go/arpc/internal/frame"
)

// Over says what happens to output above the high mark.
type Over uint8

// The policies at the high mark. Answers (Commit with answer set) are never refused; they are bounded by pausing the
// peer that causes them and by Config.Hard.
const (
	// Refuse makes Full report true, so that the sender gets an error; the default.
	Refuse Over = iota
	// Pause stops reading the peer until its output is below the low mark. Senders are not refused.
	Pause
	// Close closes the connection.
	Close
)

// Balance says how accepted connections are spread over the event loops.
type Balance uint8

const (
	// Turns gives each loop a connection in turn; the default.
	Turns Balance = iota
	// Random leaves it to chance.
	Random
	// Least takes the loop with the fewest connections.
	Least
)

// Config holds what a Group applies to its connections. The zero value of a field means its default; a negative limit or
// duration switches that limit off.
type Config struct {
	// Split finds the frames; required unless SplitConn is set, which does the same, for an App whose frames differ from one
	// connection to another. Both are called by the reader.
	Split     frame.Splitter
	SplitConn func(c *Conn, buf []byte) (n, need int, err error)
	// StdConns is the number of accepted TCP connections that may be served by a goroutine each at a time. A
	// connection begins on an event loop, where it costs little memory, and moves to a goroutine, where it is faster,
	// when it is busy. 0 leaves all to the event loops, a negative number makes no use of them. Where there is no
	// poller it has no effect.
	StdConns int
	// Loops is the number of event loops of the poll adapter; default GOMAXPROCS. Balance says which of them a connection goes to.
	Loops   int
	Balance Balance
	// High and Low are marks on the bytes accepted for sending and not yet taken by the socket; default 1 MiB, 256 KiB.
	// Output above Hard closes the connection; default 64 MiB. One
	// frame may exceed either, as a limit never cuts a frame.
	High, Low, Hard int
	// Messages is the number of messages that may be pending; default 4096.
	Messages int
	// Over is the policy at High; default Refuse.
	Over Over
	// Queue is the number of bytes of ordered frames waiting for the strand at which reading pauses; default 4 MiB.
	// At four times Queue further ordered frames are refused.
	Queue int
	// Async is the number of frames held (Conn.Hold) at which reading pauses; default 1024. At four times Async further
	// ones are refused.
	Async int
	// Nested is the number of ordered handlers of one connection that may wait in a call at the same time; default 128.
	Nested int
	// Idle closes a connection from which nothing was received for that long; default 3 minutes. After half of it
	// Probe is called.
	Idle time.Duration
	// Probe asks a silent peer for a sign of life. It is called on a goroutine of its own and must not block for long.
	Probe func(*Conn)
	// Partial closes a connection that leaves a frame incomplete for that long without sending a byte; default 30 s.
	Partial time.Duration
	// WriteStall closes a connection whose pending output has not moved for that long; default 15 s.
	WriteStall time.Duration
	// CloseFlush bounds the time between the end of a connection and its Close; default 5 s.
	CloseFlush time.Duration
	// Handshake bounds the TLS handshake of an accepted connection; default 10 s.
	Handshake time.Duration
	// MaxConns and MaxConnsPerIP limit accepted connections; default 0, none.
	MaxConns, MaxConnsPerIP int
	// Wrap, if not nil, may return a reader to take a connection's input from; such a connection is served by the std
	// adapter.
	Wrap WrapReader
	// Opened, if not nil, is called after Open, while the connection is read already but before the first ordered frame
	// runs; it may block. Until it returns, or gives its Turn away by Conn.Yield, ordered frames wait. WantOpened, if not nil, is asked first whether that is needed.
	Opened     func(*Conn, *Turn)
	WantOpened func() bool
	// Farewell, if not nil, is called by the first Close of a connection that is open, and may send a last message. It must
	// not block.
	Farewell func(*Conn, error)
	// BeforeWrite, if not nil, runs before each write, on the goroutine that writes; an error closes the connection.
	BeforeWrite func(*Conn) error
	// AfterWrite, if not nil, runs after each write, on the goroutine that writes, with the bytes that were taken and those
	// that are left. Neither hook runs while Lock is held.
	AfterWrite func(c *Conn, n, left int)
	// Logf receives what an operator should know; never called per frame. Required.
	Logf func(format string, args ...any)
}

// noLimit is a duration that does not pass.
const noLimit = math.MaxInt64 / 8 * time.Nanosecond

func (c *Config) setDefaults() {
	setInt := func(p *int, def int) {
		switch {
		case *p == 0:
			*p = def
		case *p < 0:
			*p = math.MaxInt / 8
		}
	}
	setTime := func(p *time.Duration, def time.Duration) {
		switch {
		case *p == 0:
			*p = def
		case *p < 0:
			*p = noLimit
		}
	}
	if c.Loops <= 0 {
		c.Loops = runtime.GOMAXPROCS(0)
	}
	setInt(&c.High, 1<<20)
	setInt(&c.Low, c.High/4)
	setInt(&c.Hard, max(64<<20, c.High))
	setInt(&c.Messages, 4096)
	setInt(&c.Queue, 4<<20)
	setInt(&c.Async, 1024)
	setInt(&c.Nested, 128)
	setInt(&c.MaxConns, math.MaxInt/8)
	setInt(&c.MaxConnsPerIP, math.MaxInt/8)
	setTime(&c.Idle, 3*time.Minute)
	setTime(&c.Partial, 30*time.Second)
	setTime(&c.WriteStall, 15*time.Second)
	setTime(&c.CloseFlush, 5*time.Second)
	setTime(&c.Handshake, 10*time.Second)
}
