package packet

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/frame"
	"github.com/arpc-go/arpc/log"
)

// Limits bounds what a session may cost; it is given when a server or session is made. A field that is 0 is its default, and so
// is a negative number; a negative duration switches its limit off, but for Close.
type Limits struct {
	// Receive and Send are the largest packets, in bytes without what the Protocol adds; default 1 MiB each. A
	// session that receives a larger one is closed; sending one fails.
	Receive, Send int
	// Packets and Bytes are how many packets and bytes may wait for the peer to read them; default 1024 and 16 MiB. When either is
	// reached, Send closes the session.
	Packets, Bytes int
	// Idle closes a session from which nothing was received for that long; default none, as packets have no heartbeat. TCP's
	// keep-alive finds out that a machine is gone.
	Idle time.Duration
	// Partial closes a session that leaves a packet incomplete for that long without sending a byte; default 30 s.
	Partial time.Duration
	// Write closes a session that takes nothing for that long while something waits for it; default 15 s. It is also
	// how long SyncSend waits.
	Write time.Duration
	// Close bounds the time that the end of a session takes, and that Server.Stop waits for sessions; default 5 s.
	Close time.Duration
	// Sessions and SessionsPerIP are how many sessions a Server has at the same time; default none.
	Sessions, SessionsPerIP int
}

// limited returns the limits given, if any, with the defaults where they say nothing.
func limited(given []Limits) *Limits {
	l := Limits{}
	if len(given) > 0 {
		l = given[0]
	}
	return &Limits{
		Receive: positive(l.Receive, 1<<20), Send: positive(l.Send, 1<<20),
		Packets: positive(l.Packets, defaultPackets), Bytes: positive(l.Bytes, 16<<20),
		Idle: cmp.Or(l.Idle, -1), Partial: cmp.Or(l.Partial, 30*time.Second),
		Write: cmp.Or(l.Write, 15*time.Second), Close: positive(l.Close, 5*time.Second),
		Sessions: positive(l.Sessions, 0), SessionsPerIP: positive(l.SessionsPerIP, 0),
	}
}

const defaultPackets = 1024

func positive[T int | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

func (l *Limits) config(std int) core.Config {
	return core.Config{
		SplitConn: splitConn, StdConns: std, AfterWrite: afterWrite, Logf: log.Error,
		High: l.Bytes, Messages: l.Packets, MaxConns: l.Sessions, MaxConnsPerIP: l.SessionsPerIP,
		Idle: l.Idle, Partial: l.Partial, WriteStall: l.Write, CloseFlush: l.Close,
	}
}

// Errors of sessions and servers. They come wrapped, with the reason: compare them with errors.Is.
var (
	// ErrClosed refuses to send on a session that has ended, to start it or to let it join a channel.
	ErrClosed = errors.New("packet: session closed")
	// ErrBlocked is returned by the Send that found the queue full, and is why the session was closed.
	ErrBlocked = errors.New("packet: send queue full")
	// ErrTooLarge is a packet above a limit; errors.As finds a *TooLargeError in it.
	ErrTooLarge = errors.New("packet: too large")
	// ErrTimeout is why a session was closed whose peer took nothing for Limits.Write; a SyncSend that waits returns it.
	ErrTimeout = core.ErrStalled
	// ErrNotStarted refuses to send on a dialled session before Start.
	ErrNotStarted = errors.New("packet: session not started")
	// ErrStarted is returned by a second Start.
	ErrStarted = errors.New("packet: started already")
	// ErrStopped is returned by Start of a server after Stop, and is why its sessions have ended.
	ErrStopped = errors.New("packet: server stopped")
	// ErrProtocol is why a session was closed whose Protocol has split or framed packets in a way that cannot be, or
	// that has sent more packets than its handler could take.
	ErrProtocol = errors.New("packet: protocol violated")
	// ErrPanic is why a session was closed whose hook or handler has panicked.
	ErrPanic = errors.New("packet: panic in a handler")
)

// A TooLargeError has the size of a packet and the limit, both in bytes.
type TooLargeError = frame.TooLargeError

// tooLarge makes ErrTooLarge of a splitter's error.
func tooLarge(err error) error {
	if e := (*TooLargeError)(nil); errors.As(err, &e) && !errors.Is(err, ErrTooLarge) {
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return err
}

func above(size, limit int) error {
	return tooLarge(&TooLargeError{Size: uint64(size), Limit: uint64(limit)})
}

// closed is the error for what needs a session that has ended because of err.
func closed(err error) error {
	if err == nil || errors.Is(err, ErrClosed) {
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}
