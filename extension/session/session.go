package session

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/ws"
	"github.com/arpc-go/arpc/log"
)

// A Session is a connection, or the one socket of a UDP server. It is never nil in a callback, and stays usable after its end:
// what needs a connection then returns ErrSessionClosed.
type Session = *Conn

// A Reader finds packages in what a peer sent. It returns
//
//	nil, 0, err    the bytes make no sense: a TCP session ends with err, other sessions drop the datagram or message
//	nil, 0, nil    more bytes are needed to say anything
//	nil, n, nil    the first package is n bytes long: Read is called again when they are there
//	pkg, n, nil    the first n bytes are pkg: it is handed on, and Read is called with the rest
//
// A package that is complete is read once.
type Reader interface {
	Read(s Session, p []byte) (pkg any, n int, err error)
}

// A Writer encodes packages. On a UDP server it gets the UDPContext that WritePkg got.
type Writer interface {
	Write(s Session, pkg any) ([]byte, error)
}

// ReadWriter is a codec.
type ReadWriter interface {
	Reader
	Writer
}

// An EventListener is told what happens to a session; see the package for the order and the goroutines.
type EventListener interface {
	// OnOpen comes first. An error closes the session, and OnClose is not called.
	OnOpen(Session) error
	// OnClose comes last, once if OnOpen returned nil.
	OnClose(Session)
	// OnError says what ended a session, or, with UDP, that sending to the peer has failed. The end of the peer's output is no error.
	OnError(Session, error)
	// OnCron is called once in each CronPeriod.
	OnCron(Session)
	// OnMessage gets each package; with UDP it is a UDPContext.
	OnMessage(Session, any)
}

// UDPContext is a package with the peer that it came from or goes to.
type UDPContext struct {
	Pkg      any
	PeerAddr *net.UDPAddr
}

// Errors of this package. Those of codecs and of the system come as they are.
var (
	// ErrSessionClosed is returned for output of a session that is closed.
	ErrSessionClosed = errors.New("session closed")
	// ErrSessionBlocked is returned when the peer leaves so much unread that there was no room within the timeout.
	ErrSessionBlocked = errors.New("session blocked: the peer does not read")
	// ErrNullPeerAddr is returned when a UDP server is to write a package without a peer.
	ErrNullPeerAddr = errors.New("peer address is nil")
	// ErrSelfConnect is reported when a client has reached itself.
	ErrSelfConnect = errors.New("connected to itself")
	// ErrMsgTooLong ends a TCP session whose peer sends a package above MaxMsgLen.
	ErrMsgTooLong = errors.New("package above the limit of the session")

	errRefused = errors.New("session refused")
	errReader  = errors.New("Reader.Read returned an impossible length")
	errNoTLS   = errors.New("WSS without WithTLS")
	errRunning = errors.New("RunEventLoop was called before, or the end point is closed")
	errFlooded = errors.New("too many packages in line")
	errWriter  = errors.New("session without a Writer")
	errPanic   = errors.New("panic in a callback")
	errPartial = errors.New("package incomplete, nothing received within the read timeout")
)

// minPartial is the least time that an incomplete package is waited for: packets that are lost take seconds to come again.
var minPartial = 10 * time.Second

type settings struct {
	name                string
	reader              Reader
	writer              Writer
	listener            EventListener
	pool                *TaskPool
	maxMsg              int
	cron, wait          time.Duration
	readLimit, writeMax time.Duration
	compress            CompressType
	compressed          bool
}

// A link is what carries a session.
type link interface {
	// send sends p as one message or datagram, and returns how many bytes were accepted.
	send(s *Conn, peer *net.UDPAddr, wait time.Duration, p []byte) (int, error)
	Every(d time.Duration, job func()) (stop func())
	end(error) // in order
	abort()
}

// Conn is what a Session points to.
//
//	new --newSession and OnOpen ok--> open --Close, end of input, error--> closed --callbacks and output done--> over: OnClose
//	new --one of them fails--> refused
type Conn struct {
	end           *endPoint
	id            uint32
	link          link
	local, remote string
	born          time.Time

	mu       sync.Mutex
	set      atomic.Pointer[settings] // replaced under mu, never changed
	attrs    sync.Map
	stopCron func()
	closer   *time.Timer    // bounds the end
	tasks    sync.WaitGroup // of the pool

	state   atomic.Int32
	closed  atomic.Bool
	over    chan struct{} // closed with closed
	ready   chan struct{} // closed when OnOpen is done
	openErr error         // before ready is closed
	active  atomic.Int64  // ns since 1970

	readBytes, writeBytes, readPkgs, writePkgs, dropped atomic.Uint64

	in  input
	out packer
}

const (
	stateNew int32 = iota
	stateOpen
	stateRefused
	stateOver // finished before OnOpen returned
)

var ids atomic.Uint32

func newConn(e *endPoint, l link, local, remote string) *Conn {
	s := &Conn{
		end: e, id: ids.Add(1), link: l, local: local, remote: remote,
		born: time.Now(), over: make(chan struct{}), ready: make(chan struct{}),
	}
	s.set.Store(&settings{pool: e.opts.pool, maxMsg: 64 << 10, cron: time.Minute, wait: 3 * time.Second, readLimit: 30 * time.Second, writeMax: time.Second})
	s.UpdateActive()
	return s
}

func (s *Conn) update(f func(*settings)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := *s.set.Load()
	f(&set)
	s.set.Store(&set)
}

// ID returns a number that no other session of the process has.
func (s *Conn) ID() uint32 { return s.id }

// EndPoint returns what made the session.
func (s *Conn) EndPoint() EndPoint { return s.end }

// LocalAddr returns this end's address.
func (s *Conn) LocalAddr() string { return s.local }

// RemoteAddr returns the peer's address, empty for that of a UDP server, which has many.
func (s *Conn) RemoteAddr() string { return s.remote }

// SetName gives the session a name, for Stat.
func (s *Conn) SetName(name string) { s.update(func(c *settings) { c.name = name }) }

// SetMaxMsgLen limits the length of packages that are received, in bytes; default 64 KiB.
func (s *Conn) SetMaxMsgLen(n int) { s.update(func(c *settings) { c.maxMsg = n }) }

// SetPkgHandler sets the codec.
func (s *Conn) SetPkgHandler(h ReadWriter) { s.update(func(c *settings) { c.reader, c.writer = h, h }) }

// SetReader sets one half of the codec.
func (s *Conn) SetReader(r Reader) { s.update(func(c *settings) { c.reader = r }) }

// SetWriter sets the other half of the codec.
func (s *Conn) SetWriter(w Writer) { s.update(func(c *settings) { c.writer = w }) }

// SetEventListener sets who is told what happens.
func (s *Conn) SetEventListener(l EventListener) { s.update(func(c *settings) { c.listener = l }) }

// SetTaskPool makes OnMessage run on p; with nil it runs on the session's own strand, the default.
func (s *Conn) SetTaskPool(p *TaskPool) { s.update(func(c *settings) { c.pool = p }) }

// SetWaitTime bounds how long Close waits for output, tasks and the peer; default 3 s, at most 15 s.
func (s *Conn) SetWaitTime(d time.Duration) { s.update(func(c *settings) { c.wait = d }) }

// SetReadTimeout bounds how long the rest of a package is waited for while nothing comes; default 30 s, at least 10 s. It
// is looked at once in a CronPeriod. A peer that is silent between packages is OnCron's to close.
func (s *Conn) SetReadTimeout(d time.Duration) { s.update(func(c *settings) { c.readLimit = d }) }

// SetWriteTimeout bounds how long a write without a timeout of its own waits for room; default 1 s.
func (s *Conn) SetWriteTimeout(d time.Duration) { s.update(func(c *settings) { c.writeMax = d }) }

// SetCronPeriod sets the time between calls of OnCron, in milliseconds, at least 1; default a minute.
func (s *Conn) SetCronPeriod(ms int) {
	s.update(func(c *settings) {
		c.cron = time.Duration(max(ms, 1)) * time.Millisecond
		if s.stopCron != nil {
			s.stopCron()
			s.stopCron = s.link.Every(c.cron, s.cron)
		}
	})
}

// UpdateActive sets the time that GetActive returns to now.
func (s *Conn) UpdateActive() { s.active.Store(time.Now().UnixNano()) }

// GetActive returns when something was last received, pongs of a WebSocket included, or UpdateActive was called.
func (s *Conn) GetActive() time.Time {
	t := time.Unix(0, s.active.Load())
	if l, ok := s.link.(stream); ok && l.ws && l.LastInput().After(t) {
		t = l.LastInput() // of a pong, to about 50 ms
	}
	return t
}

// GetAttribute returns the value of a key, nil if it has none.
func (s *Conn) GetAttribute(key any) any {
	v, _ := s.attrs.Load(key)
	return v
}

// SetAttribute keeps a value with the session.
func (s *Conn) SetAttribute(key, value any) { s.attrs.Store(key, value) }

// RemoveAttribute undoes SetAttribute.
func (s *Conn) RemoveAttribute(key any) { s.attrs.Delete(key) }

// Stats are the counters of a session. Bytes are those on the wire, without the headers of WebSocket; Dropped are the datagrams and
// messages that the Reader could not understand.
type Stats struct{ ReadBytes, WriteBytes, ReadPkgs, WritePkgs, Dropped uint64 }

// Stats returns the counters.
func (s *Conn) Stats() Stats {
	return Stats{s.readBytes.Load(), s.writeBytes.Load(), s.readPkgs.Load(), s.writePkgs.Load(), s.dropped.Load()}
}

// Stat describes the session in a line, for logs.
func (s *Conn) Stat() string {
	return fmt.Sprintf("session %s-%d, %s <-> %s, %+v", s.set.Load().name, s.id, s.LocalAddr(), s.RemoteAddr(), s.Stats())
}

// IsClosed reports whether the session takes no more output.
func (s *Conn) IsClosed() bool { return s.closed.Load() }

// Close ends the session: no further OnMessage or OnCron begins, what was written is sent, and OnClose follows. It does not
// wait, and does nothing when called again.
func (s *Conn) Close() { s.fail(core.ErrClosed) }

// fail is Close with a reason.
func (s *Conn) fail(err error) {
	s.shut()
	s.link.end(err)
}

// shut marks the session closed and bounds its end.
func (s *Conn) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Swap(true) {
		return
	}
	close(s.over)
	if s.stopCron != nil {
		s.stopCron()
		s.stopCron = nil
	}
	s.closer = time.AfterFunc(s.set.Load().wait, s.link.abort)
}

// call runs a callback of the user's and makes an error of a panic.
func (s *Conn) call(what string, f func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("session %d: panic in %s: %v\n%s", s.id, what, p, debug.Stack())
			err = errPanic
		}
	}()
	f()
	return nil
}

// begin calls newSession and OnOpen, and starts the cron. What carries the session calls nothing else meanwhile.
func (s *Conn) begin() {
	defer close(s.ready)
	var err error
	var l EventListener
	if s.call("newSession and OnOpen", func() {
		if err = s.end.newSession(s); err != nil {
			return
		}
		if l = s.set.Load().listener; l != nil {
			err = l.OnOpen(s)
		}
	}) != nil {
		err = errPanic
	}
	switch {
	case err != nil:
		s.openErr = err
		s.state.CompareAndSwap(stateNew, stateRefused)
		log.Info("%s refused: %v", s.Stat(), err)
		s.fail(errRefused)
	case s.state.CompareAndSwap(stateNew, stateOpen):
		s.update(func(c *settings) {
			if !s.closed.Load() {
				s.stopCron = s.link.Every(c.cron, s.cron)
			}
		})
	case l != nil: // OnOpen has outlasted the session
		s.call("OnClose", func() { l.OnClose(s) }) //nolint:errcheck // it is logged
	}
}

func (s *Conn) cron() {
	if s.closed.Load() {
		return
	}
	set := s.set.Load()
	if s.in.waiting() && time.Since(s.GetActive()) > max(set.readLimit, minPartial) {
		s.fail(errPartial)
		return
	}
	if l, ok := s.link.(stream); ok && l.ws {
		l.SendRaw(l.Stage().(*ws.Stage).Ping(nil)) //nolint:errcheck // a session that is closed needs none
	}
	if set.listener == nil {
		return
	}
	if err := s.call("OnCron", func() { set.listener.OnCron(s) }); err != nil {
		s.fail(err)
	}
}

// finish is called when the session is over.
func (s *Conn) finish(err error) {
	s.shut()
	s.in.release()
	s.closer.Stop()
	s.tasks.Wait()
	l := s.set.Load().listener
	if !s.state.CompareAndSwap(stateNew, stateOver) && s.state.Load() == stateOpen && l != nil {
		if !orderly(err) {
			s.report(err)
		}
		s.call("OnClose", func() { l.OnClose(s) }) //nolint:errcheck // it is logged
	}
	s.end.gone(s)
}

// report tells the listener of an error.
func (s *Conn) report(err error) {
	if l := s.set.Load().listener; l != nil {
		s.call("OnError", func() { l.OnError(s, err) }) //nolint:errcheck // it is logged
	}
}

// orderly reports whether an end is none that OnError is told of.
func orderly(err error) bool {
	return err == nil || slices.ContainsFunc([]error{io.EOF, core.ErrClosed, core.ErrStopped, errRefused}, func(e error) bool { return errors.Is(err, e) })
}
