package core

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/frame"
	"github.com/arpc-go/arpc/internal/work"
)

const (
	// MaxDatagram is the largest payload of UDP over IPv4, in bytes.
	MaxDatagram = 65507
	// maxPosted is the number of jobs that may wait for their turn.
	maxPosted = 1024
	// The pauses after reads that failed: a connected socket reports each refused datagram, others fail for good only
	// when they are closed.
	minReadPause = time.Millisecond
	maxReadPause = 50 * time.Millisecond
)

// DatagramConfig holds what applies to a Datagram. The zero value of a field means its default.
type DatagramConfig struct {
	// Max is the largest payload that is received or sent, in bytes; default and most MaxDatagram. What is received and
	// longer is dropped and counted.
	Max int
	// SendTimeout is how long Send waits at most for room in the socket's buffer, unless told otherwise; default 1 s.
	SendTimeout time.Duration
	// Handle gets each datagram, on the socket's goroutine; p is valid until it returns, and its to change. A panic is
	// recovered and goes to Failed. Required.
	Handle func(d *Datagram, p []byte, from netip.AddrPort)
	// Failed, if not nil, is told of reads that failed while the socket was open, such as the refusal of a datagram
	// that a connected socket has sent, and of panics. The socket stays open.
	Failed func(d *Datagram, err error)
	// Closed, if not nil, is called last, once, also if Start was not called; never on the stack of who calls Close.
	Closed func(d *Datagram)
	// Control, if not nil, is called before the socket is bound, as net.ListenConfig says.
	Control func(network, address string, c syscall.RawConn) error
}

// DatagramStats counts what has happened on a socket. The counters only grow.
type DatagramStats struct {
	In, BytesIn   atomic.Int64 // handled
	Out, BytesOut atomic.Int64 // taken by the socket
	Dropped       atomic.Int64 // longer than the limit
	ReadErrors    atomic.Int64
}

// A Datagram is a UDP socket with one goroutine, which reads.
//
//	bound --Start--> handles datagrams --Close--> no further call --the last call returns--> Closed, done
//
// Handle, Failed, posted jobs and Closed never overlap. Send, Post and Close may be called from anywhere, also by them.
type Datagram struct {
	// User belongs to the owner; set it before Start.
	User any
	// Stats may be read at any time.
	Stats DatagramStats

	cfg  DatagramConfig
	conn *net.UDPConn
	peer netip.AddrPort // of a connected socket

	turn    sync.Mutex    // held while code of the owner runs
	sending chan struct{} // has the token of who sends: the write deadline is one for the socket
	stop    chan struct{} // closed by Close
	done    chan struct{}

	mu      sync.Mutex // never held while turn is waited for
	started bool
	closed  bool
	jobs    []func()
	periods map[*time.Timer]struct{} // made by Every
	users   int                      // goroutines that may call the owner; 1 before Start
}

// ListenDatagram binds a UDP socket; network is udp, udp4 or udp6. Nothing is read before Start.
func ListenDatagram(network, addr string, cfg DatagramConfig) (*Datagram, error) {
	lc := net.ListenConfig{Control: cfg.Control}
	pc, err := lc.ListenPacket(context.Background(), network, addr)
	if err != nil {
		return nil, err
	}
	return newDatagram(pc, cfg)
}

// DialDatagram makes a UDP socket that exchanges datagrams with one peer only. Nothing is read before Start.
func DialDatagram(ctx context.Context, network, addr string, cfg DatagramConfig) (*Datagram, error) {
	d := net.Dialer{Control: cfg.Control}
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return newDatagram(nc, cfg)
}

func newDatagram(c any, cfg DatagramConfig) (*Datagram, error) {
	conn, ok := c.(*net.UDPConn)
	if !ok {
		c.(interface{ Close() error }).Close() //nolint:errcheck // it was never used
		return nil, fmt.Errorf("a %T is not a UDP socket", c)
	}
	if cfg.Max <= 0 || cfg.Max > MaxDatagram {
		cfg.Max = MaxDatagram
	}
	if cfg.SendTimeout <= 0 {
		cfg.SendTimeout = time.Second
	}
	d := &Datagram{
		cfg: cfg, conn: conn, users: 1,
		sending: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	if peer, ok := conn.RemoteAddr().(*net.UDPAddr); ok {
		d.peer = unmapped(peer.AddrPort())
	}
	work.Acquire()
	return d, nil
}

// unmapped makes an IPv4 address of one that a socket for both families returns in the form of IPv6.
func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// LocalAddr returns the socket's address.
func (d *Datagram) LocalAddr() net.Addr { return d.conn.LocalAddr() }

// Peer returns the peer of a connected socket; that of others is not valid.
func (d *Datagram) Peer() netip.AddrPort { return d.peer }

// Start begins to read. It does nothing when called again, or after Close.
func (d *Datagram) Start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started || d.closed {
		return
	}
	d.started = true
	work.Go((*datagramReader)(d))
}

// Close closes the socket. Calls under way go on; no further one begins, but that of Closed. It does not wait, and does
// nothing when called again.
func (d *Datagram) Close() {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	d.closed = true
	d.jobs = nil
	for timer := range d.periods {
		timer.Stop()
	}
	d.periods = nil
	started := d.started
	d.mu.Unlock()
	close(d.stop)
	d.conn.Close() //nolint:errcheck // nothing can be done about it
	if !started {
		work.Go((*datagramCloser)(d))
	}
}

// Done is closed when the socket is closed, the last call has returned and nothing of it runs any more.
func (d *Datagram) Done() <-chan struct{} { return d.done }

type datagramCloser Datagram

// RunTask implements work.Task.
func (c *datagramCloser) RunTask() { (*Datagram)(c).leave() }

// leave counts one user less; the last one ends the socket.
func (d *Datagram) leave() {
	d.mu.Lock()
	d.users--
	last := d.users == 0
	d.mu.Unlock()
	if !last {
		return
	}
	if d.cfg.Closed != nil {
		d.guard(func() { d.cfg.Closed(d) })
	}
	work.Release()
	close(d.done)
}

// guard runs code of the owner when it is its turn.
func (d *Datagram) guard(f func()) {
	d.turn.Lock()
	defer d.turn.Unlock()
	defer func() {
		if p := recover(); p != nil && d.cfg.Failed != nil {
			defer func() { recover() }() //nolint:errcheck // who panics while told of a panic is not told again
			d.cfg.Failed(d, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
		}
	}()
	f()
}

// isClosed reports whether Close was called.
func (d *Datagram) isClosed() bool {
	select {
	case <-d.stop:
		return true
	default:
		return false
	}
}

// Post runs job in turn with Handle, never on the caller's stack; jobs run in the order of the calls. It reports false when
// the socket is closed or too many jobs wait. A job that waits when the socket is closed does not run.
func (d *Datagram) Post(job func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || len(d.jobs) >= maxPosted {
		return false
	}
	d.jobs = append(d.jobs, job)
	if len(d.jobs) == 1 {
		d.users++
		work.Go((*datagramPoster)(d))
	}
	return true
}

// Every posts job each time period has passed, but not while it is still in line or running. It ends with the socket, or when
// stop is called, after which job does not begin any more unless it is in line already. period must be positive.
func (d *Datagram) Every(period time.Duration, job func()) (stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return func() {}
	}
	var timer *time.Timer
	var busy atomic.Bool
	timer = time.AfterFunc(period, func() {
		run := func() { defer busy.Store(false); job() }
		if busy.CompareAndSwap(false, true) && !d.Post(run) {
			busy.Store(false)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if _, ok := d.periods[timer]; ok {
			timer.Reset(period)
		}
	})
	if d.periods == nil {
		d.periods = map[*time.Timer]struct{}{}
	}
	d.periods[timer] = struct{}{}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		timer.Stop()
		delete(d.periods, timer)
	}
}

type datagramPoster Datagram

// RunTask runs the jobs. The first one stays in line while it runs, so that there is one poster.
func (p *datagramPoster) RunTask() {
	d := (*Datagram)(p)
	defer d.leave()
	for {
		d.mu.Lock()
		if len(d.jobs) == 0 {
			d.mu.Unlock()
			return
		}
		job := d.jobs[0]
		d.mu.Unlock()
		d.guard(func() {
			if !d.isClosed() {
				job()
			}
		})
		d.mu.Lock()
		if len(d.jobs) > 0 {
			d.jobs[0] = nil
			d.jobs = d.jobs[1:]
		}
		d.mu.Unlock()
	}
}

type datagramReader Datagram

// RunTask reads until the socket is closed.
func (r *datagramReader) RunTask() {
	d := (*Datagram)(r)
	defer d.leave()
	b := buf.Get(d.cfg.Max + 1) // one more byte, so that longer ones are noticed
	defer b.Free()
	p := b.B[:d.cfg.Max+1]
	pause := minReadPause
	for {
		n, from, err := d.conn.ReadFromUDPAddrPort(p)
		if d.isClosed() {
			return
		}
		switch {
		case err != nil:
			d.Stats.ReadErrors.Add(1)
			if d.cfg.Failed != nil {
				d.guard(func() {
					if !d.isClosed() {
						d.cfg.Failed(d, err)
					}
				})
			}
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-d.stop:
				timer.Stop()
			}
			pause = min(2*pause, maxReadPause)
			continue
		case n > d.cfg.Max:
			d.Stats.Dropped.Add(1)
		default:
			d.guard(func() {
				if !d.isClosed() {
					d.Stats.In.Add(1)
					d.Stats.BytesIn.Add(int64(n))
					d.cfg.Handle(d, p[:n:n], unmapped(from))
				}
			})
		}
		pause = minReadPause
	}
}

// Send sends one datagram, and waits for room in the socket's buffer for timeout at most, 0 for DatagramConfig.SendTimeout. to
// is ignored by a connected socket. p is the caller's when Send returns. Errors: ErrClosed, *frame.TooLargeError,
// os.ErrDeadlineExceeded, and those of the system.
func (d *Datagram) Send(p []byte, to netip.AddrPort, timeout time.Duration) error {
	if len(p) > d.cfg.Max {
		return &frame.TooLargeError{Size: uint64(len(p)), Limit: uint64(d.cfg.Max)}
	}
	if timeout <= 0 {
		timeout = d.cfg.SendTimeout
	}
	deadline := time.Now().Add(timeout)
	select {
	case d.sending <- struct{}{}:
	default:
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		select {
		case d.sending <- struct{}{}:
		case <-timer.C:
			return os.ErrDeadlineExceeded
		case <-d.stop:
			return ErrClosed
		}
	}
	defer func() { <-d.sending }()
	d.conn.SetWriteDeadline(deadline) //nolint:errcheck // it fails when the socket is closed, and then writing does
	err := d.write(p, to)
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = d.write(p, to) // that was the fate of an earlier one; this one was not sent
	}
	switch {
	case err == nil:
		d.Stats.Out.Add(1)
		d.Stats.BytesOut.Add(int64(len(p)))
	case d.isClosed():
		err = ErrClosed
	}
	return err
}

func (d *Datagram) write(p []byte, to netip.AddrPort) (err error) {
	if d.peer.IsValid() {
		_, err = d.conn.Write(p)
	} else {
		_, err = d.conn.WriteToUDPAddrPort(p, to)
	}
	return err
}
