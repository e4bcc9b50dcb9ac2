package poller

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/lesismal/nbio"
	"golang.org/x/sys/unix"
)

// Loop is one goroutine with an epoll. It is an nbio engine with a single poller, in which three kinds of descriptors are
// registered, all as connections of nbio's type 0, which nbio neither reads nor closes:
//
//   - the owner's sockets, edge triggered. When a peer shuts down or a socket fails, nbio closes its connection, which for
//     type 0 means only that it lets go of the descriptor: the socket lives on and its owner gets HangUp.
//   - an eventfd, written when tasks are posted. It is never read: its edge comes with each write.
//   - an epoll of our own. It watches sockets for what nbio can't tell: that output is possible again, and
//     failures of sockets that nbio let go.
//
// nbio looks an event up by the descriptor's number, so an event that was fetched before a close would be taken for one of
// the number's next owner. No number is therefore registered while an event fetched for an earlier owner may still be
// under way, see recent.
type Loop struct {
	engine *nbio.Engine
	limit  int // nbio takes numbers below this
	epoll  int // nbio's, or -1

	mu       sync.Mutex // guards the next four
	queue    []Task
	woken    bool // the eventfd has been written, or is about to be, for what is in the queue
	stopping bool // over follows when the queue is empty
	over     bool // nothing runs any more; also read by the loop without mu
	ended    chan struct{}
	spare    []Task // an empty slice to be the next queue; used by the loop only

	wakeMu   sync.RWMutex // held for reading while the eventfd is written, so that it isn't closed meanwhile
	wake     int          // the eventfd, or -1
	wakeConn *nbio.Conn

	watchMu   sync.Mutex // guards the next two and Reg.armed, Reg.watched
	watch     int        // our own epoll, or -1
	watching  map[int32]*Reg
	watchConn *nbio.Conn
	ready     [64]unix.EpollEvent // used by the loop only

	// recent holds the numbers detached since the last task pass began, older those of the time between the two passes
	// before it. A pass is one event, so two passes never belong to the same batch of events, and a number that is
	// in neither set was detached in an earlier batch. Used by the loop only.
	recent, older map[int]struct{}
	held          []int // numbers from these two that the kernel offered, occupied with duplicates of the eventfd meanwhile
	attached      int   // registrations; like recent, under watchMu when the loop is over
	left          int   // registrations when the loop was over
}

func newLoop() (*Loop, error) {
	l := &Loop{
		wake: -1, watch: -1, limit: nbio.MaxOpenFiles, epoll: -1, ended: make(chan struct{}),
		watching: map[int32]*Reg{}, recent: map[int]struct{}{}, older: map[int]struct{}{},
	}
	l.engine = nbio.NewEngine(nbio.Config{Name: "arpc", NPoller: 1, EpollMod: nbio.EPOLLET, ReadBufferSize: 1})
	l.engine.OnRead(l.onRead)
	l.engine.OnClose(l.onClose)
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if l.wake, l.wakeConn, err = l.own(wake, err); err != nil {
		return nil, err
	}
	watch, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if l.watch, l.watchConn, err = l.own(watch, err); err != nil {
		l.closeOwn()
		return nil, err
	}
	if err = l.engine.Start(); err != nil {
		l.closeOwn()
		return nil, fmt.Errorf("poller: %w", err)
	}
	if _, err = l.engine.AddConn(l.wakeConn); err != nil {
		// The kernel is out of epoll entries. An engine that isn't known to run can't be stopped: see below. It stays, waiting.
		l.closeOwn()
		return nil, fmt.Errorf("poller: %w", err)
	}
	runs := make(chan struct{})
	l.Post(taskFunc(func() { close(runs) }))
	<-runs // an nbio loop that is told to stop before it runs would run for ever
	l.epoll = l.findEpoll()
	if _, err = l.engine.AddConn(l.watchConn); err != nil {
		l.stop()
		return nil, fmt.Errorf("poller: %w", err)
	}
	return l, nil
}

// own adopts a descriptor that the loop has just made, unless that failed with err.
func (l *Loop) own(fd int, err error) (int, *nbio.Conn, error) {
	if err != nil {
		return -1, nil, fmt.Errorf("poller: %w", err)
	}
	defer unix.Close(fd)
	c, err := l.adopt(fd)
	if err != nil {
		return -1, nil, err
	}
	return c.Hash(), c, nil
}

// stop ends the loop when it has no tasks left.
func (l *Loop) stop() {
	l.mu.Lock()
	l.stopping = true
	l.mu.Unlock()
	l.kick()
	<-l.ended
	l.engine.Stop()
	l.closeOwn()
}

func (l *Loop) closeOwn() {
	for _, n := range l.held {
		_ = CloseFD(n)
	}
	l.held = nil
	l.wakeMu.Lock()
	if l.wake >= 0 {
		_ = CloseFD(l.wake)
	}
	l.wake = -1
	l.wakeMu.Unlock()
	l.watchMu.Lock()
	if l.watch >= 0 {
		_ = CloseFD(l.watch)
	}
	l.watch = -1
	l.watchMu.Unlock()
}

// Post runs t on the loop's goroutine, after the tasks posted before it, and returns true. It returns false when the loop is
// over because of Stop: then nothing runs or will run on it, and t is the caller's again. What tasks post while they run is run
// after the loop has looked at its descriptors again, so that a task may go on by posting itself without starving them. If
// t is a pointer, Post allocates nothing but, now and then, a longer queue.
func (l *Loop) Post(t Task) bool {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return false
	}
	l.queue = append(l.queue, t)
	wake := !l.woken
	l.woken = true
	l.mu.Unlock()
	if wake {
		l.kick()
	}
	return true
}

var one = binary.NativeEndian.AppendUint64(nil, 1)

// kick makes the loop run a pass. The counter of the eventfd can't overflow in a lifetime.
func (l *Loop) kick() {
	l.wakeMu.RLock()
	if l.wake >= 0 {
		_, _ = unix.Write(l.wake, one)
	}
	l.wakeMu.RUnlock()
}

// onRead is nbio's callback for input on c, on the loop's goroutine.
func (l *Loop) onRead(c *nbio.Conn) {
	switch c {
	case l.wakeConn:
		l.pass()
	case l.watchConn:
		l.fire()
	default:
		if r, ok := c.Session().(*Reg); ok && !l.over {
			r.ev.Readable()
		}
	}
}

// onClose is nbio's callback after it closed c, on a goroutine of nbio's. The error is io.EOF if the event loop did it.
func (l *Loop) onClose(c *nbio.Conn, err error) {
	if err == io.EOF {
		l.Post((*letGo)(c))
	}
}

// pass runs the tasks that were posted before it began.
func (l *Loop) pass() {
	l.older, l.recent = l.recent, l.older
	clear(l.recent)
	l.held = slices.DeleteFunc(l.held, func(n int) bool { return !l.mayHaveEvents(n) && CloseFD(n) == nil })

	l.mu.Lock()
	tasks := l.queue
	l.queue = l.spare
	l.mu.Unlock()
	for _, t := range tasks {
		t.RunTask()
	}
	clear(tasks)
	l.spare = tasks[:0]
	if cap(tasks) > 1024 { // after a burst, give the memory back
		l.spare = nil
	}

	l.mu.Lock()
	l.woken = len(l.queue) > 0
	if l.stopping && !l.woken {
		l.over, l.left = true, l.attached
	}
	over, again := l.over, l.woken || len(l.held) > 0
	l.mu.Unlock()
	switch {
	case over:
		l.wakeConn.Close()
		l.watchConn.Close()
		close(l.ended)
	case again:
		l.kick()
	}
}

// fire delivers what the loop's own epoll has to say.
func (l *Loop) fire() {
	for n := len(l.ready); n == len(l.ready); {
		n, _ = unix.EpollWait(l.watch, l.ready[:], 0)
		for _, e := range l.ready[:max(n, 0)] {
			l.fireOne(e)
		}
	}
}

func (l *Loop) fireOne(e unix.EpollEvent) {
	failed := e.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0
	l.watchMu.Lock()
	r := l.watching[e.Fd]
	if r == nil { // detached by an event before this one
		l.watchMu.Unlock()
		return
	}
	armed := r.armed
	r.armed = false
	if armed && r.gone && !failed {
		_ = l.watchFor(r, onFailure)
	}
	l.watchMu.Unlock()
	if armed {
		r.ev.Writable()
	}
	if failed && r.gone {
		r.ev.HangUp()
	}
}

// What our own epoll reports of a socket; it always reports failures.
const (
	onFailure = unix.EPOLLET
	onOutput  = unix.EPOLLOUT | unix.EPOLLET | unix.EPOLLONESHOT
)

// watchFor sets what our own epoll reports of r. The caller holds watchMu.
func (l *Loop) watchFor(r *Reg, events uint32) error {
	op := unix.EPOLL_CTL_MOD
	if !r.watched {
		op = unix.EPOLL_CTL_ADD
	}
	if err := unix.EpollCtl(l.watch, op, int(r.fd), &unix.EpollEvent{Events: events, Fd: r.fd}); err != nil {
		return fmt.Errorf("poller: epoll_ctl: %w", err)
	}
	if !r.watched {
		r.watched = true
		l.watching[r.fd] = r
	}
	return nil
}

// letGo is the task for an owner's connection that nbio closed.
type letGo nbio.Conn

func (t *letGo) RunTask() {
	c := (*nbio.Conn)(t)
	r, ok := c.Session().(*Reg)
	if !ok { // detached
		return
	}
	c.SetSession(nil)
	r.conn, r.gone = nil, true
	r.ev.HangUp()
	if !r.gone {
		return
	}
	l := r.loop
	l.watchMu.Lock()
	if !r.armed {
		_ = l.watchFor(r, onFailure)
	}
	l.watchMu.Unlock()
}

type taskFunc func()

func (f taskFunc) RunTask() { f() }
