package core

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/arpc-go/arpc/internal/poller"
	"github.com/arpc-go/arpc/internal/work"
)

// pollBudget is the number of bytes read from one connection before others of its loop have their turn.
const pollBudget = 512 << 10

// pollSocket serves a TCP connection on an event loop. Everything but writing happens on the loop's goroutine.
type pollSocket struct {
	c    *Conn
	reg  poller.Reg
	ip   [16]byte // the peer's; a zone is not kept
	port uint16   // the peer's
	fd   int32

	// The loop's own.
	since uint16 // when turns was 0; the lower half of a tick
	turns uint8
	state pollState

	armed bool // the flusher token lies here; under Conn.mu
}

type pollState uint8

const (
	pollAttached pollState = 1 << iota
	pollReading            // the reader token is the loop's
	pollHup                // an end or an error is behind what is buffered
	pollDead               // nothing will be read any more
	pollMoved              // the connection has another socket now
)

func (s *pollSocket) is(p pollState) bool { return s.state&p != 0 }

// newPollSocket takes the descriptor over from nc, which is closed; on an error nc is untouched.
func newPollSocket(c *Conn, nc *net.TCPConn) (*pollSocket, error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = dupErr
	}
	if err != nil {
		return nil, err
	}
	s := &pollSocket{c: c, fd: int32(fd)}
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		s.ip, s.port = a.AddrPort().Addr().As16(), uint16(a.Port)
	}
	nc.Close() //nolint:errcheck // the duplicate lives on
	return s, nil
}

func (s *pollSocket) inline() bool { return false }

func (s *pollSocket) start() { s.post((*pollStart)(s)) }

// post runs t on the loop, or at once when that has ended and so cannot interfere.
func (s *pollSocket) post(t poller.Task) {
	if !s.on().Post(t) {
		work.Go(t)
	}
}

// on returns the socket's loop.
func (s *pollSocket) on() *poller.Loop { return s.c.group.polls.p.Loop(s.c.Loop()) }

type pollBegin pollSocket

// RunTask attaches a new socket, and opens the connection: on the loop, because attaching changes the descriptor's number,
// and only when that has worked, so that who cannot be served is refused instead of cut off.
func (p *pollBegin) RunTask() {
	s := (*pollSocket)(p)
	c := s.c
	c.mu.Lock() // who asks for the address must not find a number that is given back
	fd, err := s.on().Attach(int(s.fd), s, &s.reg)
	if err == nil {
		s.fd = int32(fd)
		s.state |= pollAttached
	}
	c.mu.Unlock()
	if err == nil {
		c.openAccepted()
		return
	}
	g := c.group
	if outOfFiles(err) {
		g.Stats.RefusedFiles.Add(1)
	}
	g.logLimited("attach", "cannot take a connection over: %v", err)
	unix.SetsockoptLinger(int(s.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) //nolint:errcheck // an ordinary close then
	s.state |= pollDead
	poller.CloseFD(int(s.fd)) //nolint:errcheck // nothing can be done about it
	g.remove(c)
}

type pollStart pollSocket

// RunTask makes the loop the reader.
func (p *pollStart) RunTask() {
	s := (*pollSocket)(p)
	if s.is(pollDead | pollMoved) {
		return
	}
	s.state |= pollReading
	if reader, err := s.c.begin(); !reader {
		s.state &^= pollReading
		return
	} else if err != nil {
		s.fail(err)
		return
	}
	s.read()
}

// Readable implements poller.Events.
func (s *pollSocket) Readable() {
	if s.is(pollReading) {
		s.read()
	}
}

// HangUp implements poller.Events.
func (s *pollSocket) HangUp() {
	s.state |= pollHup
	if s.is(pollReading) {
		s.read()
	}
}

// Writable implements poller.Events.
func (s *pollSocket) Writable() {
	s.c.mu.Lock()
	if !s.armed {
		s.c.mu.Unlock()
		return
	}
	s.armed = false
	s.c.flushLocked()
}

type pollRead pollSocket

// RunTask goes on reading after others had their turn.
func (p *pollRead) RunTask() {
	if s := (*pollSocket)(p); s.is(pollReading) {
		s.read()
	}
}

// read takes everything that is there, up to the budget.
func (s *pollSocket) read() {
	c := s.c
	for budget := pollBudget; ; {
		b := c.readBuf()
		have, room := len(b.B), cap(b.B)-len(b.B)
		n, err := sysRead(uintptr(s.fd), b.B[have:cap(b.B)])
		if n > 0 {
			b.B = b.B[:have+n]
			c.didRead(n, room)
			reader, err := c.taken(b, have)
			if !reader {
				s.state &^= pollReading
				return
			}
			if err != nil {
				s.fail(err)
				return
			}
			if s.busy() && s.promote() {
				return
			}
			if n < room && !s.is(pollHup) {
				return
			}
			if budget -= n; budget <= 0 {
				s.post((*pollRead)(s))
				return
			}
			continue
		}
		if have > 0 {
			c.in = b
		} else {
			b.Free()
		}
		if err == errWouldBlock {
			return
		}
		if err == nil {
			err = io.EOF
		}
		s.fail(err)
		return
	}
}

const (
	// busyTurns turns within busyTicks make a connection busy: worth a goroutine of its own.
	busyTurns = 32
	busyTicks = uint16(time.Second / sweepTick)
)

// busy counts a turn and reports whether there were many lately.
func (s *pollSocket) busy() bool {
	now := uint16(s.c.group.tick())
	if now-s.since > busyTicks {
		s.since, s.turns = now, 0
	}
	s.turns++
	return s.turns >= busyTurns
}

// promote moves a busy connection to the std adapter, if that has room. It reports whether it did; the caller is not the
// reader any more then.
func (s *pollSocket) promote() bool {
	s.turns = 0
	c := s.c
	if s.is(pollHup) || !c.group.takeStd() {
		return false
	}
	c.mu.Lock()
	if c.has(flagDown | flagFlushing | flagPaused | flagNoSend) {
		c.mu.Unlock()
		c.group.giveStd()
		return false
	}
	nc, err := dupConn(int(s.fd))
	if err == nil && !s.reg.Release() {
		nc.Close() //nolint:errcheck // the connection stays where it is
		err = errors.ErrUnsupported
	}
	if err != nil {
		c.mu.Unlock()
		c.group.giveStd()
		return false
	}
	poller.CloseFD(int(s.fd)) //nolint:errcheck // nothing can be done about it
	s.state = pollMoved
	c.sock = newStdSocket(c, nc, nil)
	c.sock.start()
	c.mu.Unlock()
	return true
}

// dupConn returns a connection on a duplicate of a socket's descriptor.
func dupConn(fd int) (net.Conn, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), "")
	defer f.Close() //nolint:errcheck // FileConn makes a duplicate of its own
	return net.FileConn(f)
}

// fail ends the reading for good.
func (s *pollSocket) fail(err error) {
	if err == io.EOF && s.c.detaching() {
		s.state &^= pollReading
		return
	}
	s.state = s.state&^pollReading | pollDead
	s.c.readerGone(err)
}

func (s *pollSocket) tryWrite(p []byte) (int, error) { return sysWrite(uintptr(s.fd), p) }

func (s *pollSocket) armWrite() {
	s.armed = true
	if err := s.reg.Arm(); err != nil {
		work.Go(armFailed{s, err})
	}
}

type armFailed struct {
	s   *pollSocket
	err error
}

// RunTask ends a connection whose socket cannot be waited for.
func (a armFailed) RunTask() { a.s.c.Abort(a.err) }

func (s *pollSocket) closeWrite() {
	s.c.mu.Lock() // so that the descriptor is still ours
	if !s.c.has(flagFinished) {
		unix.Shutdown(int(s.fd), unix.SHUT_WR) //nolint:errcheck // the reader finds out
	}
	s.c.mu.Unlock()
}

func (s *pollSocket) kick() { s.post((*pollKick)(s)) }

type pollKick pollSocket

// RunTask ends the reading and takes an owed Writable back.
func (p *pollKick) RunTask() {
	s := (*pollSocket)(p)
	c := s.c
	c.mu.Lock()
	if s.armed {
		s.armed = false
		c.flags &^= flagFlushing | flagBlocked
		c.dropOutputLocked()
	}
	c.mu.Unlock()
	if s.is(pollDead) {
		c.mu.Lock()
		c.finishLocked()
		c.mu.Unlock()
		return
	}
	s.fail(ErrClosed)
}

func (s *pollSocket) halt() error {
	s.post((*pollHalt)(s))
	return nil
}

type pollHalt pollSocket

// RunTask stops the reading for the time being.
func (p *pollHalt) RunTask() {
	if s := (*pollSocket)(p); s.is(pollReading) && s.c.detaching() {
		s.state &^= pollReading
	}
}

func (s *pollSocket) detach(done func(net.Conn, error)) { s.post(&pollDetach{s, done}) }

type pollDetach struct {
	s    *pollSocket
	done func(net.Conn, error)
}

// RunTask gives the connection away on a descriptor of its own.
func (p *pollDetach) RunTask() {
	s := p.s
	nc, err := dupConn(int(s.fd))
	if err == nil && !s.reg.Release() { // the loop would go on getting its events
		nc.Close() //nolint:errcheck // the connection is lost
		nc, err = nil, errors.ErrUnsupported
	}
	(*pollDestroy)(s).RunTask()
	p.done(nc, err)
}

func (s *pollSocket) keepAlive(d time.Duration) error {
	if d <= 0 {
		return unix.SetsockoptInt(int(s.fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
	}
	secs := int((d + time.Second - 1) / time.Second)
	return errors.Join(
		unix.SetsockoptInt(int(s.fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, secs),
		unix.SetsockoptInt(int(s.fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, secs),
		unix.SetsockoptInt(int(s.fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
	)
}

func (s *pollSocket) destroy() { s.post((*pollDestroy)(s)) }

type pollDestroy pollSocket

// RunTask gives the descriptor back.
func (p *pollDestroy) RunTask() {
	s := (*pollSocket)(p)
	s.state = s.state&^pollReading | pollDead
	if s.is(pollAttached) {
		s.reg.Detach()
	}
	poller.CloseFD(int(s.fd)) //nolint:errcheck // nothing can be done about it
}

func (s *pollSocket) localAddr() net.Addr {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.sock == socket(s) && !s.c.has(flagFinished) {
		sa, err := unix.Getsockname(int(s.fd))
		if err == nil {
			switch sa := sa.(type) {
			case *unix.SockaddrInet4:
				return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)))
			case *unix.SockaddrInet6:
				return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)))
			}
		}
	}
	return &net.TCPAddr{}
}

func (s *pollSocket) remoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom16(s.ip).Unmap(), s.port))
}

// polls is a set of event loops.
type polls struct{ p *poller.Poller }

func newPolls(loops int, logf func(string, ...any)) (*polls, error) {
	p, err := poller.New(loops, logf)
	if err != nil {
		return nil, err
	}
	return &polls{p}, nil
}

// adopt makes nc a connection of its loop, which opens it. The caller holds Conn.mu.
func (p *polls) adopt(c *Conn, nc *net.TCPConn) error {
	s, err := newPollSocket(c, nc)
	if err != nil {
		return err
	}
	c.sock = s
	s.post((*pollBegin)(s))
	return nil
}

func (p *polls) stop() error { return p.p.Stop(stopLimit) }
