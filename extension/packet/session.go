package packet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/work"
	"github.com/arpc-go/arpc/log"
)

// A MessageHandler is given to Session.SetMessageHandler.
type MessageHandler interface {
	Handle(session *Session, message []byte)
}

// A Session is one end of a connection.
type Session struct {
	// State is the program's.
	State any

	id      uint64
	proto   Protocol
	nc      net.Conn // nil if accepted
	limits  *Limits  // nil if accepted
	started atomic.Bool
	onClose func(*Session) // given to Start
	handler atomic.Pointer[func(*Session, []byte)]
	cn      atomic.Pointer[core.Conn] // nil before Start; set under mu

	receive, send atomic.Int64 // the largest bodies

	sent    uint64        // bytes accepted; guarded by the connection's lock
	taken   atomic.Uint64 // bytes that the system has taken
	waiting atomic.Int32  // SyncSends that look at it

	mu       sync.Mutex
	down     bool // nothing is received any more
	over     bool // nothing is sent any more
	err      error
	moved    sync.Cond // taken or over has changed
	channels map[*Channel]struct{}
}

var dialled atomic.Uint64

// Dial connects to an address as package net has them, TCP or Unix, without a time limit but the system's. Start begins the session.
func Dial(network, addr string, proto Protocol, limits ...Limits) (*Session, error) {
	return DialTimeout(network, addr, 0, proto, limits...)
}

// DialTimeout is Dial that gives up after a time; 0 means never.
func DialTimeout(network, addr string, timeout time.Duration, proto Protocol, limits ...Limits) (*Session, error) {
	a, err := address(network, addr, proto)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), positive(timeout, math.MaxInt64))
	defer cancel()
	nc, err := a.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return NewSession(nc, proto, limits...), nil
}

// address checks that the network has streams, and that there is a protocol.
func address(network, addr string, proto Protocol) (core.Address, error) {
	a := core.Address{Network: network, Addr: addr}
	switch {
	case proto == nil:
		return a, fmt.Errorf("%w: there is none", ErrProtocol)
	case network != "unix" && !strings.HasPrefix(network, "tcp"):
		return a, net.UnknownNetworkError(network)
	}
	return a, nil
}

// NewSession is Dial with a connection that is there already, which belongs to the session from then on.
func NewSession(nc net.Conn, proto Protocol, limits ...Limits) *Session {
	l := limited(limits)
	s := newSession(dialled.Add(1), proto, l)
	s.nc, s.limits = nc, l
	return s
}

func newSession(id uint64, proto Protocol, l *Limits) *Session {
	s := &Session{id: id, proto: proto}
	s.moved.L = &s.mu
	s.SetMaxSize(l.Receive, l.Send)
	return s
}

// SetMaxSize replaces Limits.Receive and Limits.Send of this session, in bytes. What has arrived already, which may be while the start
// hook runs, was measured by what held before.
func (s *Session) SetMaxSize(receive, send int) {
	s.receive.Store(int64(receive))
	s.send.Store(int64(send))
}

// SetTimeouts replaces Limits.Idle and Limits.Write of this session; 0 means what it was made with, a negative duration none. A dialled
// session must have been started.
func (s *Session) SetTimeouts(idle, write time.Duration) error {
	cn := s.cn.Load()
	if cn == nil {
		return cmp.Or(s.Err(), ErrNotStarted)
	}
	cn.SetTimeouts(idle, write)
	return nil
}

// Start begins a dialled session: packets are received from then on. onClose, if not nil, is called when the session is over.
// A second Start returns ErrStarted, one after Close ErrClosed.
func (s *Session) Start(onClose func(*Session)) error {
	if s.started.Swap(true) {
		return ErrStarted
	}
	s.onClose = onClose
	g := core.NewGroup(s.limits.config(-1), app{session: s})
	if _, err := g.Adopt(s.nc); err != nil { // Close came first
		work.Go(stopper{g})
		return ErrClosed
	}
	return nil
}

// Id returns a number that is unique, and increasing, among the sessions of a server, from 1 on, or among those of the process that dial.
func (s *Session) Id() uint64 { return s.id }

// OnMessage sets what is called with each packet, one after the other; it may block, and the bytes are valid until it returns. Set in
// the start hook, or before Start, it misses none. Without one, or with nil, packets are dropped.
func (s *Session) OnMessage(f func(session *Session, message []byte)) {
	s.handler.Store(&f)
}

// SetMessageHandler is OnMessage with a MessageHandler.
func (s *Session) SetMessageHandler(h MessageHandler) {
	if h == nil {
		s.OnMessage(nil)
	} else {
		s.OnMessage(h.Handle)
	}
}

// Send sends a message. It does not wait: if as much as Limits allows waits for the peer already, it closes the session and
// returns ErrBlocked. Other errors are ErrTooLarge, which leaves the session open, ErrClosed and ErrNotStarted. nil means accepted: it
// arrives unless the connection fails, or the peer ends it or does not read it within the limits.
func (s *Session) Send(m Message) error { return s.encoded(m, false) }

// SyncSend is Send that waits until the system has taken all of the packet, and so does not mind that the queue is full. If
// it takes nothing for Limits.Write, the session is closed with ErrTimeout; and it is closed when goroutines that wait hold more than 64 MiB
// together. In a handler SyncSend delays the session's next packet, so two ends that do so may wait for each other until then.
func (s *Session) SyncSend(m Message) error { return s.encoded(m, true) }

func (s *Session) encoded(m Message, wait bool) error {
	limit := int(s.send.Load())
	b := buf.Get(hint(m, limit))
	defer b.Free()
	p, err := encode(b.B, s.proto, m, limit)
	if err != nil {
		return err
	}
	return s.put(p, false, wait)
}

// SendPacket is Send of bytes that are framed already: one packet or several. For bytes that are not it returns ErrProtocol.
func (s *Session) SendPacket(packet []byte) error { return s.framed(packet, false) }

// SyncSendPacket is SyncSend of bytes that are framed already.
func (s *Session) SyncSendPacket(packet []byte) error { return s.framed(packet, true) }

func (s *Session) framed(packet []byte, wait bool) error {
	for rest := packet; len(rest) > 0; {
		n, _, err := split(s.proto, rest, int(s.send.Load()))
		if n == 0 {
			return cmp.Or(err, fmt.Errorf("%w: %d bytes are no whole packet", ErrProtocol, len(rest)))
		}
		rest = rest[n:]
	}
	return s.put(packet, false, wait)
}

// put sends framed bytes, which are never changed again if they are shared.
func (s *Session) put(p []byte, shared, wait bool) error {
	cn := s.cn.Load()
	if cn == nil {
		return cmp.Or(s.Err(), ErrNotStarted)
	}
	cn.Lock()
	if err := cn.CanSend(); err != nil {
		cn.Unlock()
		return closed(err)
	}
	if !wait && cn.Full() {
		cn.Unlock()
		cn.Abort(ErrBlocked)
		return ErrBlocked
	}
	if shared {
		cn.AppendShared(p)
	} else {
		copy(cn.Reserve(len(p)), p)
	}
	s.sent += uint64(len(p))
	upto := s.sent
	if !wait {
		cn.Commit(core.Answer, false) // which may wait for what else the handler sends
		return nil
	}
	cn.Commit(core.Now, false)
	return s.wait(upto)
}

// wait waits until so many bytes are taken.
func (s *Session) wait(upto uint64) error {
	s.waiting.Add(1) // before taken is looked at
	defer s.waiting.Add(-1)
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.taken.Load() < upto {
		if s.over {
			return closed(s.err)
		}
		s.moved.Wait()
	}
	return nil
}

// afterWrite is core.Config.AfterWrite.
func afterWrite(cn *core.Conn, n, _ int) {
	s := cn.User.(*Session)
	s.taken.Add(uint64(n))
	if s.waiting.Load() > 0 {
		s.mu.Lock() // nobody is between looking and waiting
		s.moved.Broadcast()
		s.mu.Unlock()
	}
}

// Close ends the session, and does not wait for that: what was accepted for sending is sent, the handler that runs may finish,
// and further packets are dropped. Calling it again does nothing.
func (s *Session) Close() {
	s.mu.Lock()
	cn := s.cn.Load()
	s.down = s.down || cn == nil
	s.mu.Unlock()
	if cn == nil {
		s.nc.Close() //nolint:errcheck // it is not used, be it that Start has begun
	} else {
		cn.Close(ErrClosed)
	}
}

// Err returns why the session has ended: io.EOF after the peer has closed it, ErrClosed after Close, one of the other errors of this
// package or the network's; nil while it has not. The last packets may still be handled then.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return cmp.Or(s.err, ErrClosed)
	}
	return nil
}

// safely runs code of the program's, whose panic closes the session.
func (s *Session) safely(what string, f func()) {
	if !survives(what, f) {
		s.cn.Load().Close(ErrPanic)
	}
}

// survives runs code of the program's and reports whether it has not panicked.
func survives(what string, f func()) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("packet: panic in a %s: %v\n%s", what, p, debug.Stack())
		}
	}()
	f()
	return true
}

// RawConn returns the connection of a dialled session, which must not be read or written. For one of a server, which may be one of many on an
// event loop, it is a view: it has the addresses, and Close, which is the session's; the rest are errors.
func (s *Session) RawConn() net.Conn {
	if s.nc != nil {
		return s.nc
	}
	return view{s}
}

type view struct{ s *Session }

func (v view) Read([]byte) (int, error)         { return 0, errors.ErrUnsupported }
func (v view) Write([]byte) (int, error)        { return 0, errors.ErrUnsupported }
func (v view) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (v view) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (v view) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }
func (v view) Close() error                     { v.s.Close(); return nil }
func (v view) LocalAddr() net.Addr              { return v.s.cn.Load().LocalAddr() }
func (v view) RemoteAddr() net.Addr             { return v.s.cn.Load().RemoteAddr() }
