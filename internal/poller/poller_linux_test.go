package poller

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/lesismal/nbio/logging"
	"golang.org/x/sys/unix"
)

// start makes a Poller that is stopped, without anything attached, at the end of the test.
func start(t testing.TB, loops int) *Poller {
	t.Helper()
	p, err := New(loops, t.Logf)
	must(t, err)
	t.Cleanup(func() {
		nbioLogf.Store(nil)
		if err := p.Stop(wait); err != nil {
			t.Error(err)
		}
	})
	return p
}

// do runs f on the loop and waits for it.
func do(t testing.TB, l *Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(taskFunc(func() { f(); close(done) })) {
		t.Fatal("Post refused")
	}
	recv(t, done, "end of task")
}

// settle waits until the loop has processed all events that the kernel had, and what nbio's own goroutine makes of them.
func settle(t testing.TB, l *Loop) {
	t.Helper()
	for range 3 {
		do(t, l, func() {})
		quiet := make(chan struct{})
		l.engine.Async(func() { close(quiet) })
		recv(t, quiet, "end of nbio's queue")
	}
	do(t, l, func() {})
}

// sock is an owner that hands its events to the test. Nil functions send to the channels.
type sock struct {
	Reg
	fd                       int
	readable, writable, hung chan struct{}
	onReadable               func()
	onWritable               func()
	onHangUp                 func()
}

func (s *sock) Readable() { signal(s.onReadable, s.readable) }
func (s *sock) Writable() { signal(s.onWritable, s.writable) }
func (s *sock) HangUp()   { signal(s.onHangUp, s.hung) }

func signal(f func(), ch chan struct{}) {
	if f != nil {
		f()
		return
	}
	ch <- struct{}{}
}

func newSock(fd int) *sock {
	make100 := func() chan struct{} { return make(chan struct{}, 100) }
	return &sock{fd: fd, readable: make100(), writable: make100(), hung: make100()}
}

// attach attaches s and closes it at the end of the test.
func (s *sock) attach(t testing.TB, l *Loop) *sock {
	t.Helper()
	var err error
	do(t, l, func() { s.fd, err = l.Attach(s.fd, s, &s.Reg) })
	must(t, err)
	t.Cleanup(func() { do(t, l, s.close) })
	return s
}

func (s *sock) close() {
	if s.fd >= 0 {
		s.Detach()
		_ = CloseFD(s.fd)
		s.fd = -1
	}
}

func TestNewAndStop(t *testing.T) {
	p, err := New(0, nil)
	must(t, err)
	if p.Loops() != runtime.GOMAXPROCS(0) {
		t.Errorf("%d loops", p.Loops())
	}
	must(t, p.Stop(wait))
	must(t, p.Stop(wait))
	if p.Loop(0).Post(taskFunc(func() { t.Error("task after Stop") })) {
		t.Error("Post after Stop")
	}

	p = start(t, 3)
	for i := range 7 {
		if p.Next() != p.Loop(i%3) {
			t.Errorf("Next %d isn't in turn", i)
		}
	}
}

func TestNewStopThousandTimes(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 50
	}
	for range n {
		p, err := New(1, nil)
		must(t, err)
		must(t, p.Stop(wait))
	}
}

// TestNewWithoutDescriptors lets New fail at every place where a descriptor is made.
func TestNewWithoutDescriptors(t *testing.T) {
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	highest := 0
	for fd := range openFiles() {
		n, _ := strconv.Atoi(fd)
		highest = max(highest, n)
	}
	for n := 0; n <= highest; { // fill the gaps
		var err error
		n, err = unix.Dup(0)
		must(t, err)
		defer unix.Close(n)
	}
	before := openFiles()
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) }()
	for room := range 8 { // a loop keeps four
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(highest + 2 + room), Max: old.Max}))
		p, err := New(2, nil)
		if err == nil {
			must(t, p.Stop(wait))
		}
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
		if !errors.Is(err, unix.EMFILE) {
			t.Errorf("room for %d: %v", room, err)
		}
		if after := openFiles(); len(after) != len(before) {
			t.Errorf("room for %d: %v became %v", room, before, after)
		}
	}
}

type orderTask struct {
	got  *[]int
	i    int
	done *sync.WaitGroup
}

func (o *orderTask) RunTask() { *o.got = append(*o.got, o.i); o.done.Done() }

func TestPostKeepsOrder(t *testing.T) {
	const posters, each = 8, 500
	l := start(t, 1).Loop(0)
	got := make([][]int, posters)
	var done sync.WaitGroup
	done.Add(posters * each)
	for g := range posters {
		go func() {
			for i := range each {
				l.Post(&orderTask{&got[g], i, &done})
			}
		}()
	}
	done.Wait()
	for _, seq := range got {
		if !slices.IsSorted(seq) || len(seq) != each {
			t.Fatal("out of order")
		}
	}
}

// TestPostCoalesces counts the writes to the eventfd, which is never read.
func TestPostCoalesces(t *testing.T) {
	l := start(t, 1).Loop(0)
	writes := func() (n int) {
		info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", l.wake))
		must(t, err)
		_, rest, _ := strings.Cut(string(info), "eventfd-count:")
		_, err = fmt.Sscanf(rest, "%x", &n)
		must(t, err)
		return n
	}
	do(t, l, func() {})
	settle(t, l)
	before := writes()
	inside, release := make(chan struct{}), make(chan struct{})
	l.Post(taskFunc(func() { close(inside); <-release })) // one write
	recv(t, inside, "task")
	ran := 0
	for range 1000 {
		l.Post(taskFunc(func() { ran++ })) // none: the loop is awake
	}
	if n := writes() - before; n != 1 {
		t.Errorf("%d writes", n)
	}
	close(release)
	do(t, l, func() {})
	if ran != 1000 {
		t.Errorf("%d of 1000 ran", ran)
	}
}

type countTask struct{ done chan struct{} }

func (c *countTask) RunTask() { c.done <- struct{}{} }

func TestPostDoesNotAllocate(t *testing.T) {
	l := start(t, 1).Loop(0)
	task := &countTask{make(chan struct{}, 1)}
	if n := testing.AllocsPerRun(200, func() { l.Post(task); <-task.done }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// A task that posts itself again leaves room for descriptors.
type selfTask struct {
	l    *Loop
	stop bool
	n    int
	end  chan struct{}
}

func (s *selfTask) RunTask() {
	if s.n++; s.stop {
		close(s.end)
		return
	}
	s.l.Post(s)
}

func TestSelfPostingTaskDoesNotStarve(t *testing.T) {
	l := start(t, 1).Loop(0)
	fd, peer := pair(t)
	s := newSock(fd)
	task := &selfTask{l: l, end: make(chan struct{})}
	s.onReadable = func() { task.stop = true }
	s.attach(t, l)
	l.Post(task)
	peer.Write([]byte("x"))
	recv(t, task.end, "event beside the task")
}

func TestCallbacksRunOnOneGoroutine(t *testing.T) {
	l := start(t, 2).Loop(1)
	fd, peer := pair(t)
	s := newSock(fd)
	ids := make(chan string, 10)
	report := func() { ids <- goroutineID() }
	s.onReadable, s.onWritable, s.onHangUp = report, report, report
	s.attach(t, l)
	l.Post(taskFunc(report))
	id := recv(t, ids, "task")
	must(t, s.Arm())
	if got := recv(t, ids, "Writable"); got != id {
		t.Error("Writable elsewhere")
	}
	peer.Write([]byte("x"))
	if got := recv(t, ids, "Readable"); got != id {
		t.Error("Readable elsewhere")
	}
	peer.CloseWrite()
	for range 2 { // Readable for the end, HangUp
		if got := recv(t, ids, "HangUp"); got != id {
			t.Error("HangUp elsewhere")
		}
	}
}

func TestReadable(t *testing.T) {
	l := start(t, 1).Loop(0)
	fd, peer := pair(t)
	peer.Write([]byte("early"))
	await(t, fd, unix.POLLIN)
	s := newSock(fd).attach(t, l)
	for _, want := range []string{"early", "later", "last"} {
		if want != "early" {
			peer.Write([]byte(want))
		}
		recv(t, s.readable, "Readable")
		if got, err := readAll(s.fd); string(got) != want || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
	settle(t, l)
	none(t, s.readable, "Readable")
	none(t, s.writable, "Writable without Arm")
	none(t, s.hung, "HangUp")
}

func TestAttachGivesTheNumber(t *testing.T) {
	l := start(t, 1).Loop(0)
	fd, _ := pair(t)
	s := newSock(fd).attach(t, l)
	if s.fd == fd || isOpen(fd) {
		t.Errorf("%d became %d and is still open", fd, s.fd)
	}
	if flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("no CLOEXEC: %x, %v", flags, err)
	}
	if flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("blocking: %x, %v", flags, err)
	}
}

func TestAttachFails(t *testing.T) {
	l := start(t, 1).Loop(0)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	must(t, err)
	defer file.Close()
	before := len(openFiles())
	var r Reg
	attach := func(fd int) (err error) {
		do(t, l, func() { _, err = l.Attach(fd, newSock(fd), &r) })
		return err
	}
	if err := attach(int(file.Fd())); !errors.Is(err, unix.EPERM) {
		t.Errorf("a file: %v", err)
	}
	if err := attach(-1); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
	do(t, l, func() { l.limit = 1 })
	if err := attach(int(file.Fd())); !errors.Is(err, unix.EMFILE) {
		t.Errorf("beyond the limit: %v", err)
	}
	if n := len(openFiles()); n != before || !isOpen(int(file.Fd())) {
		t.Errorf("%d descriptors, were %d", n, before)
	}
	do(t, l, func() { l.limit = 1 << 20 })
	if err := r.Arm(); err == nil {
		t.Error("Arm of a detached registration")
	}
	r.Detach()

	fd, _ := pair(t)
	s := newSock(fd).attach(t, l)
	do(t, l, func() { _, err = l.Attach(int(file.Fd()), s, &s.Reg) })
	if err == nil {
		t.Error("attached twice")
	}
}

func TestArm(t *testing.T) {
	l := start(t, 1).Loop(0)
	fd, peer := pair(t)
	s := newSock(fd).attach(t, l)
	for range 3 { // already writable
		must(t, s.Arm())
		recv(t, s.writable, "Writable")
	}
	inside, release := make(chan struct{}), make(chan struct{})
	l.Post(taskFunc(func() { close(inside); <-release }))
	recv(t, inside, "task")
	must(t, s.Arm())
	must(t, s.Arm())
	close(release)
	recv(t, s.writable, "Writable")
	settle(t, l)
	none(t, s.writable, "second Writable for two Arm before it")

	sent := fill(t, s.fd)
	must(t, s.Arm())
	settle(t, l)
	none(t, s.writable, "Writable of a full socket")
	io.CopyN(io.Discard, peer, int64(sent))
	recv(t, s.writable, "Writable")
	settle(t, l)
	none(t, s.writable, "Writable without Arm")
}

// fill writes until the socket takes no more.
func fill(t testing.TB, fd int) (sent int) {
	t.Helper()
	for buf := make([]byte, 64<<10); ; {
		n, err := unix.Write(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return sent
		}
		must(t, err)
		sent += n
	}
}

func TestArmFails(t *testing.T) {
	l := start(t, 1).Loop(0)
	fd, _ := pair(t)
	s := newSock(fd).attach(t, l)
	do(t, l, func() {
		l.watchMu.Lock()
		watch := l.watch
		l.watch = -1
		l.watchMu.Unlock()
		if err := s.Arm(); !errors.Is(err, unix.EBADF) {
			t.Error(err)
		}
		l.watchMu.Lock()
		l.watch = watch
		l.watchMu.Unlock()
	})
	must(t, s.Arm())
	recv(t, s.writable, "Writable")
}

// TestHalfClose: what came before the peer's end is all there, and output goes on after it.
func TestHalfClose(t *testing.T) {
	l := start(t, 1).Loop(0)
	fd, peer := pair(t)
	in, out := pattern(300_000), pattern(4<<20)
	s := newSock(fd)
	var got []byte
	hung := make(chan error, 10)
	s.onReadable = func() {} // stop early; HangUp must be enough
	s.onHangUp = func() {
		data, err := readAll(s.fd)
		got = append(got, data...)
		hung <- err
	}
	rest := out
	flush := func() {
		for len(rest) > 0 {
			n, err := unix.Write(s.fd, rest)
			if err != nil {
				if err := s.Arm(); err != nil {
					t.Error(err)
				}
				return
			}
			rest = rest[n:]
		}
		unix.Shutdown(s.fd, unix.SHUT_WR)
	}
	s.onWritable = flush
	s.attach(t, l)
	go func() {
		peer.Write(in)
		peer.CloseWrite()
	}()
	// The receive buffer may be smaller than the input: read until the end has arrived.
	for ended := false; !ended; {
		select {
		case err := <-hung:
			if ended = true; err != io.EOF {
				t.Fatal(err)
			}
		default:
			do(t, l, func() {
				data, _ := readAll(s.fd)
				got = append(got, data...)
			})
		}
	}
	if !bytes.Equal(got, in) {
		t.Errorf("%d of %d bytes", len(got), len(in))
	}
	l.Post(taskFunc(flush)) // so much that it blocks
	answer, err := io.ReadAll(peer)
	if err != nil || !bytes.Equal(answer, out) {
		t.Errorf("%d of %d bytes back, %v", len(answer), len(out), err)
	}
}

// TestFailureAfterHalfClose: a half closed socket still tells that its peer is gone, whether it never had output to wait
// for, had some, or has some.
func TestFailureAfterHalfClose(t *testing.T) {
	for _, output := range []string{"none", "before", "blocked"} {
		t.Run(output, func(t *testing.T) {
			l := start(t, 1).Loop(0)
			fd, peer := pair(t)
			s := newSock(fd)
			s.onReadable = func() {}
			s.attach(t, l)
			if output == "blocked" {
				fill(t, s.fd)
				must(t, s.Arm())
			}
			peer.CloseWrite()
			recv(t, s.hung, "HangUp at the end")
			settle(t, l)
			none(t, s.hung, "HangUp")
			none(t, s.writable, "Writable")
			if output == "before" {
				must(t, s.Arm())
				recv(t, s.writable, "Writable")
			}
			reset(t, peer)
			if output == "blocked" {
				recv(t, s.writable, "Writable")
			}
			recv(t, s.hung, "HangUp at the failure")
			settle(t, l)
			none(t, s.hung, "HangUp")
		})
	}
}

// TestReset: what came before a reset can be read.
func TestReset(t *testing.T) {
	l := start(t, 1).Loop(0)
	fd, peer := pair(t)
	s := newSock(fd)
	s.onReadable = func() {}
	s.attach(t, l)
	data := pattern(10_000)
	peer.Write(data)
	reset(t, peer)
	recv(t, s.hung, "HangUp")
	got, err := readAll(s.fd)
	if !bytes.Equal(got, data) || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%d of %d bytes, %v", len(got), len(data), err)
	}
}

func TestUnixSocket(t *testing.T) {
	l := start(t, 1).Loop(0)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	s := newSock(fds[0]).attach(t, l)
	peer := os.NewFile(uintptr(fds[1]), "peer")
	peer.WriteString("hello")
	recv(t, s.readable, "Readable")
	must(t, s.Arm())
	recv(t, s.writable, "Writable")
	peer.Close()
	recv(t, s.hung, "HangUp")
	if got, err := readAll(s.fd); string(got) != "hello" || err != io.EOF {
		t.Errorf("%q, %v", got, err)
	}
}

// TestDetachInOwnEvents: each kind of event may detach and close, and nothing comes after it.
func TestDetachInOwnEvents(t *testing.T) {
	l := start(t, 1).Loop(0)
	for _, event := range []string{"Readable", "Writable", "HangUp"} {
		fd, peer := pair(t)
		s := newSock(fd)
		closed := make(chan struct{})
		end := func() { s.close(); close(closed) }
		s.onReadable = func() {}
		switch event {
		case "Readable":
			s.onReadable = end
		case "Writable":
			s.onWritable = end
		case "HangUp":
			s.onHangUp = end
		}
		s.attach(t, l)
		if event == "Writable" {
			must(t, s.Arm())
		}
		// One event with input and end in it.
		do(t, l, func() {
			peer.Write([]byte("x"))
			peer.CloseWrite()
		})
		recv(t, closed, event)
		settle(t, l)
		if event != "HangUp" {
			none(t, s.hung, "HangUp after Detach in "+event)
		}
		peer.Close()
	}
}

// TestDetachDropsPendingEvents: events already fetched, or waiting in nbio's queue, don't reach a detached owner.
func TestDetachDropsPendingEvents(t *testing.T) {
	l := start(t, 1).Loop(0)
	fd, peer := pair(t)
	s := newSock(fd).attach(t, l)
	do(t, l, func() {
		if err := s.Arm(); err != nil {
			t.Error(err)
		}
		peer.Write([]byte("x"))
		peer.CloseWrite()
		await(t, s.fd, unix.POLLRDHUP)
		s.close()
		s.Detach() // does nothing
	})
	settle(t, l)
	none(t, s.readable, "Readable")
	none(t, s.writable, "Writable")
	none(t, s.hung, "HangUp")

	// The registration can serve another descriptor.
	fd, peer = pair(t)
	s.fd = fd
	s.attach(t, l)
	settle(t, l)
	none(t, s.hung, "HangUp of an earlier descriptor")
	peer.Write([]byte("x"))
	recv(t, s.readable, "Readable")
}

// TestDetachLeavesNothing: no trace in our own epoll, even before the owner closes.
func TestDetachLeavesNothing(t *testing.T) {
	l := start(t, 1).Loop(0)
	fd, _ := pair(t)
	s := newSock(fd).attach(t, l)
	must(t, s.Arm())
	recv(t, s.writable, "Writable")
	do(t, l, s.Detach)
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", l.watch))
	must(t, err)
	if strings.Contains(string(info), "tfd:") || len(l.watching) > 0 {
		t.Errorf("%d remain, epoll has\n%s", len(l.watching), info)
	}
}

// TestDetachWhileLetGoIsQueued holds nbio's queue, so that the news of the end come after the registration was
// used again.
func TestDetachWhileLetGoIsQueued(t *testing.T) {
	l := start(t, 1).Loop(0)
	fd, peer := pair(t)
	s := newSock(fd).attach(t, l)
	held, release := make(chan struct{}), make(chan struct{})
	l.engine.Async(func() { close(held); <-release })
	recv(t, held, "nbio's queue")
	peer.CloseWrite()
	recv(t, s.readable, "Readable")
	var err error
	fd, peer = pair(t)
	do(t, l, func() {
		s.close()
		s.fd, err = l.Attach(fd, s, &s.Reg)
	})
	close(release)
	must(t, err)
	settle(t, l)
	none(t, s.hung, "HangUp of an earlier descriptor")
	peer.CloseWrite()
	recv(t, s.hung, "HangUp")
}

// TestNumberIsNotReusedWithinBatch is nbio's trap "stale-event": events of one batch are found by number. In a batch with
// events of all victims, the first closes the others and attaches as many newcomers, for which the kernel offers the same
// numbers. It may do so in an event, in a task, or half in the one and half in the other.
func TestNumberIsNotReusedWithinBatch(t *testing.T) {
	const victims = 30
	for _, how := range []string{"event", "task", "close in event, attach in task", "close in task, attach in event", "Writable"} {
		t.Run(how, func(t *testing.T) {
			l := start(t, 1).Loop(0)
			type end struct {
				s    *sock
				peer *net.TCPConn
			}
			connect := func() end {
				fd, peer := pair(t)
				s := newSock(fd)
				s.onReadable = func() {}
				return end{s, peer}
			}
			var old, young []end
			gate, first := connect(), connect()
			gate.s.attach(t, l)
			first.s.attach(t, l)
			for range victims {
				e := connect()
				e.s.attach(t, l)
				old = append(old, e)
				young = append(young, connect())
			}

			numbers := map[int]bool{}
			done := make(chan struct{})
			closeOld := func() {
				for _, e := range old {
					numbers[e.s.fd] = true
					e.s.close()
				}
			}
			attachYoung := func() {
				for _, e := range young {
					var err error
					if e.s.fd, err = l.Attach(e.s.fd, e.s, &e.s.Reg); err != nil {
						t.Error(err)
					}
					if numbers[e.s.fd] {
						t.Errorf("%d is used again", e.s.fd)
					}
				}
				close(done)
			}
			inside, release := make(chan struct{}), make(chan struct{})
			do(t, l, func() { gate.s.onReadable = func() { close(inside); <-release } })
			gate.peer.Write([]byte("x"))
			recv(t, inside, "gate")
			// The loop is held. The batch that comes next has its events in the order in which they are caused here.
			both := func() { closeOld(); attachYoung() }
			event := func(f func()) {
				first.s.onReadable = f
				first.peer.Write([]byte("x"))
				await(t, first.s.fd, unix.POLLIN)
			}
			switch how {
			case "event":
				event(both)
			case "task":
				l.Post(taskFunc(both))
			case "close in event, attach in task":
				event(closeOld)
				l.Post(taskFunc(attachYoung))
			case "close in task, attach in event":
				l.Post(taskFunc(closeOld))
				event(attachYoung)
			case "Writable":
				first.s.onWritable = both
				must(t, first.s.Arm())
			}
			for _, e := range old {
				e.peer.CloseWrite()
				await(t, e.s.fd, unix.POLLRDHUP)
			}
			close(release)
			recv(t, done, "end of the scene")
			settle(t, l)
			do(t, l, func() {
				if len(l.held) > 0 {
					t.Errorf("%d numbers are still held", len(l.held))
				}
			})
			for i, e := range young {
				none(t, e.s.hung, "HangUp of a newcomer")
				if e.s.conn == nil {
					t.Errorf("newcomer %d was closed", i)
				}
				answered := make(chan struct{}, 10)
				do(t, l, func() { e.s.onReadable = func() { answered <- struct{}{} } })
				e.peer.Write([]byte("x"))
				recv(t, answered, "Readable of a newcomer")
				do(t, l, e.s.close)
			}
		})
	}
}

// TestHeldNumbersAreGivenBack: what is occupied so that it isn't used again too early is free soon after, without a task.
func TestHeldNumbersAreGivenBack(t *testing.T) {
	l := start(t, 1).Loop(0)
	eventfds := func() (n int) {
		for _, what := range openFiles() {
			if strings.Contains(what, "eventfd") {
				n++
			}
		}
		return n
	}
	fd, _ := pair(t)
	old := newSock(fd).attach(t, l)
	fd, _ = pair(t)
	young := newSock(fd)
	before, held := eventfds(), 0
	var err error
	do(t, l, func() {
		old.close()
		young.fd, err = l.Attach(young.fd, young, &young.Reg)
		held = eventfds() - before
	})
	must(t, err)
	if held != 1 {
		t.Errorf("%d held", held)
	}
	for end := time.Now().Add(wait); eventfds() > before; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("still held")
		}
	}
	do(t, l, young.close)
}

func TestStopRunsTasks(t *testing.T) {
	p, err := New(1, nil)
	must(t, err)
	ran := 0
	inside, release := make(chan struct{}), make(chan struct{})
	p.Loop(0).Post(taskFunc(func() { close(inside); <-release }))
	recv(t, inside, "task")
	for range 100 {
		p.Loop(0).Post(taskFunc(func() { ran++ }))
	}
	if err := p.Stop(time.Millisecond); err == nil {
		t.Error("Stop beside a task that doesn't end")
	}
	close(release)
	must(t, p.Stop(wait))
	if ran != 100 {
		t.Errorf("%d of 100 tasks ran", ran)
	}
}

func TestStopReportsAttached(t *testing.T) {
	p, err := New(2, nil)
	must(t, err)
	l := p.Loop(1)
	fd, _ := pair(t)
	s := newSock(fd)
	do(t, l, func() { s.fd, err = l.Attach(s.fd, s, &s.Reg) })
	must(t, err)
	if err := p.Stop(wait); err == nil || !strings.Contains(err.Error(), "1 descriptors") {
		t.Error(err)
	}
	if !isOpen(s.fd) {
		t.Error("the owner's descriptor was closed")
	}
	must(t, CloseFD(s.fd))
}

// TestPostRacesWithStop: what was accepted runs; once something was refused, nothing runs any more.
func TestPostRacesWithStop(t *testing.T) {
	for range 50 {
		p, err := New(1, nil)
		must(t, err)
		l := p.Loop(0)
		fd, peer := pair(t)
		s := newSock(fd)
		refused := false // with ran, tells the race detector of a task beside a refusal
		ran := 0
		s.onReadable = func() {
			if refused {
				t.Error("event after a refusal")
			}
		}
		do(t, l, func() { s.fd, err = l.Attach(s.fd, s, &s.Reg) })
		must(t, err)
		var posters sync.WaitGroup
		var mu sync.Mutex
		accepted := 0
		for range 4 {
			posters.Go(func() {
				for {
					done := make(chan struct{})
					if !l.Post(taskFunc(func() { ran++; close(done) })) {
						break
					}
					<-done
					mu.Lock()
					accepted++
					mu.Unlock()
				}
				mu.Lock()
				refused = true
				if s.fd >= 0 {
					s.close() // the loop can't object
				}
				if _, err := l.Attach(0, s, &s.Reg); err == nil {
					t.Error("attached to a loop that is over")
				}
				mu.Unlock()
			})
		}
		peer.Write([]byte("x"))
		_ = p.Stop(wait) // may find the descriptor attached
		posters.Wait()
		if accepted != ran {
			t.Fatalf("%d accepted, %d ran", accepted, ran)
		}
	}
}

func TestLog(t *testing.T) {
	var lines []string
	p, err := New(1, func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) })
	must(t, err)
	defer nbioLogf.Store(nil)
	logging.Debug("d")
	logging.Info("i")
	logging.Warn("w %d", 1)
	logging.Error("e %d", 2)
	must(t, p.Stop(wait))
	if !slices.Equal(lines, []string{"poller: w 1", "poller: e 2"}) {
		t.Error(lines)
	}
}

// TestMemory counts eventfds in place of sockets, because they need no second end.
func TestMemory(t *testing.T) {
	const n = 10_000
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	if limit.Cur < n+200 {
		t.Skipf("needs %d descriptors", n)
	}
	l := start(t, 1).Loop(0)
	owners := make([]sock, n) // without the cost of this, but for the Reg
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	const regSize = int(unsafe.Sizeof(Reg{}))
	before := heap()
	do(t, l, func() {
		for i := range owners {
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			if err == nil {
				owners[i].fd, err = l.Attach(fd, &owners[i], &owners[i].Reg)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	settle(t, l)
	each := int(heap()-before)/n + regSize
	t.Logf("%d bytes each, of which Reg %d", each, regSize)
	if each > 350 {
		t.Errorf("%d bytes each", each)
	}
	do(t, l, func() {
		for i := range owners {
			owners[i].close()
		}
	})
}

// BenchmarkPost is the way of one task to the loop and of its answer back.
func BenchmarkPost(b *testing.B) {
	l := start(b, 1).Loop(0)
	task := &countTask{make(chan struct{}, 1)}
	b.ReportAllocs()
	for b.Loop() {
		l.Post(task)
		<-task.done
	}
}
