package poller

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lesismal/nbio"
	"github.com/lesismal/nbio/logging"
	"golang.org/x/sys/unix"
)

// The tests in this file are about nbio, not about this package: each pins a behaviour that the package relies on, or
// one that it avoids. When one fails, nbio has changed: read what the package does about it before changing the test.

// hooks are an engine's callbacks; nil ones are left out. With read set, nbio doesn't read by itself.
type hooks struct {
	open    func(c *nbio.Conn)
	read    func(c *nbio.Conn)
	data    func(c *nbio.Conn, data []byte)
	close   func(c *nbio.Conn, err error)
	written func(n int)
	refused func(err error) // OnAcceptError
}

// engine starts an nbio engine with one poller and stops it, within bounds, at the end of the test.
func engine(t *testing.T, conf nbio.Config, h hooks) *nbio.Engine {
	t.Helper()
	prepareNbio()
	conf.NPoller = 1
	e := nbio.NewEngine(conf)
	probe := make(chan struct{})
	var probed *nbio.Conn
	if h.open != nil {
		e.OnOpen(func(c *nbio.Conn) {
			if c != probed {
				h.open(c)
			}
		})
	}
	if h.read != nil {
		e.OnRead(func(c *nbio.Conn) {
			if c == probed {
				c.Close()
				return
			}
			h.read(c)
		})
	}
	if h.data != nil {
		e.OnData(h.data)
	}
	if h.written != nil {
		e.OnWrittenSize(func(_ *nbio.Conn, _ []byte, n int) { h.written(n) })
	}
	if h.refused != nil {
		e.OnAcceptError(h.refused)
	}
	e.OnClose(func(c *nbio.Conn, err error) {
		if c == probed {
			close(probe)
		} else if h.close != nil {
			h.close(c, err)
		}
	})
	// The first event proves that the loop runs, so that Stop is safe: a descriptor with input, which nbio can't read
	// because it is of type 0, and closes.
	fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	must(t, err)
	probed, err = nbio.NBConn(rawConn{fd: fd})
	must(t, err)
	unix.Close(fd)
	unix.CloseOnExec(probed.Hash())
	must(t, e.Start())
	_, err = e.AddConn(probed)
	must(t, err)
	recv(t, probe, "first event")
	// It must not have an event under way when its number has a new owner, so it is emptied now and closed at the end.
	_, err = unix.Read(probed.Hash(), make([]byte, 8))
	must(t, err)
	t.Cleanup(func() {
		stopped := make(chan struct{})
		go func() { e.Stop(); close(stopped) }()
		recv(t, stopped, "end of Stop")
		unix.Close(probed.Hash())
	})
	return e
}

// typeZero gives nbio a socket as the package does. The descriptor is closed at the end of the test.
func typeZero(t *testing.T) (c *nbio.Conn, peer *net.TCPConn) {
	t.Helper()
	fd, peer := pair(t)
	c, err := nbio.NBConn(rawConn{fd: fd})
	must(t, err)
	unix.Close(fd)
	t.Cleanup(func() { unix.Close(c.Hash()) })
	return c, peer
}

// tcp returns a connection that nbio knows as TCP, and will close.
func tcp(t *testing.T) (c net.Conn, peer *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	p, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	t.Cleanup(func() { p.Close() })
	c, err = ln.Accept()
	must(t, err)
	return c, p.(*net.TCPConn)
}

// adoptAs gives nbio duplicates of fd until one has a number that is wanted. It may run on a loop; nil means failure.
func adoptAs(t *testing.T, fd int, wanted func(n int) bool) *nbio.Conn {
	t.Helper()
	for range 1000 {
		c, err := nbio.NBConn(rawConn{fd: fd})
		if err != nil {
			t.Error(err)
			return nil
		}
		if wanted(c.Hash()) {
			return c
		}
		defer unix.Close(c.Hash())
	}
	t.Error("the number isn't free")
	return nil
}

// Relied on.

func TestPinTypeZeroCloseLeavesDescriptorOpen(t *testing.T) {
	closed := make(chan error, 1)
	e := engine(t, nbio.Config{EpollMod: nbio.EPOLLET}, hooks{
		read:  func(c *nbio.Conn) { t.Error("event after Close") },
		close: func(c *nbio.Conn, err error) { closed <- err },
	})
	c, peer := typeZero(t)
	if c.Type() != 0 {
		t.Fatalf("type %d", c.Type())
	}
	_, err := e.AddConn(c)
	must(t, err)
	must(t, c.Close())
	if err := recv(t, closed, "OnClose"); err != nil {
		t.Errorf("OnClose(%v) for Close", err)
	}
	if !isOpen(c.Hash()) {
		t.Error("the descriptor was closed")
	}
	peer.Write([]byte("x")) // ignored by nbio, see read above
	await(t, c.Hash(), unix.POLLIN)
}

func TestPinOnCloseFollowsRdhup(t *testing.T) {
	type event struct {
		what string
		err  error
	}
	events := make(chan event, 10)
	e := engine(t, nbio.Config{EpollMod: nbio.EPOLLET}, hooks{
		read:  func(c *nbio.Conn) { events <- event{"read", nil} },
		close: func(c *nbio.Conn, err error) { events <- event{"close", err} },
	})
	c, peer := typeZero(t)
	peer.CloseWrite()
	await(t, c.Hash(), unix.POLLRDHUP)
	_, err := e.AddConn(c)
	must(t, err)
	if got := recv(t, events, "OnRead"); got.what != "read" {
		t.Errorf("first %v", got)
	}
	if got := recv(t, events, "OnClose"); got != (event{"close", io.EOF}) {
		t.Errorf("then %v", got)
	}
	if !isOpen(c.Hash()) {
		t.Error("the descriptor was closed")
	}
}

// NBConn duplicates, closes what it was given, and AddConn takes its result without another duplicate.
func TestPinNBConnDuplicatesWithoutCloexec(t *testing.T) {
	e := engine(t, nbio.Config{EpollMod: nbio.EPOLLET}, hooks{read: func(*nbio.Conn) {}})
	fd, _ := pair(t)
	defer unix.Close(fd)
	closed := false
	c, err := nbio.NBConn(closeNotice{rawConn{fd: fd}, &closed})
	must(t, err)
	defer unix.Close(c.Hash())
	if c.Hash() == fd || !closed {
		t.Errorf("no duplicate, or not closed (%v)", closed)
	}
	if flags, err := unix.FcntlInt(uintptr(c.Hash()), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		t.Errorf("flags %x, %v", flags, err)
	}
	before := len(openFiles())
	added, err := e.AddConn(c)
	must(t, err)
	if added != c || len(openFiles()) != before {
		t.Error("AddConn duplicated")
	}
}

type closeNotice struct {
	rawConn
	closed *bool
}

func (c closeNotice) Close() error { *c.closed = true; return nil }

func TestPinOnOpenRunsInsideAddConn(t *testing.T) {
	opened := ""
	e := engine(t, nbio.Config{EpollMod: nbio.EPOLLET}, hooks{
		read: func(*nbio.Conn) {},
		open: func(*nbio.Conn) { opened = goroutineID() },
	})
	c, _ := typeZero(t)
	_, err := e.AddConn(c)
	must(t, err)
	if opened != goroutineID() {
		t.Error("OnOpen elsewhere")
	}
}

func TestPinFailedAddConnLeavesDescriptorOpen(t *testing.T) {
	closed := make(chan error, 1)
	e := engine(t, nbio.Config{EpollMod: nbio.EPOLLET}, hooks{
		read:  func(*nbio.Conn) {},
		close: func(c *nbio.Conn, err error) { closed <- err },
	})
	file, err := os.Create(filepath.Join(t.TempDir(), "file")) // can't be polled
	must(t, err)
	defer file.Close()
	c, err := nbio.NBConn(rawConn{fd: int(file.Fd())})
	must(t, err)
	if _, err = e.AddConn(c); !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
	if err := recv(t, closed, "OnClose"); !errors.Is(err, unix.EPERM) { // told apart from io.EOF
		t.Error(err)
	}
	must(t, unix.Close(c.Hash()))
}

func TestPinSessionAndLogger(t *testing.T) {
	c, _ := typeZero(t)
	if c.Session() != nil {
		t.Error("a session from the start")
	}
	var r Reg
	c.SetSession(&r)
	if c.Session() != &r {
		t.Error("session lost")
	}
	if logging.DefaultLogger != (nbioLogger{}) {
		t.Error("SetLogger doesn't set DefaultLogger")
	}
}

// Avoided: starting and stopping.

// TestPinStopHang: an engine that is told to stop before its loop runs never stops. The loop is held where it logs its start,
// and the engine's count of loops lowered, because the Stop that is pinned here would wait for ever.
func TestPinStopHang(t *testing.T) {
	started, stopped, release := make(chan struct{}), make(chan struct{}), make(chan struct{})
	old := logging.DefaultLogger
	logging.SetLogger(debugLogger(func(format string) {
		if strings.HasSuffix(format, "] start") {
			close(started)
			<-release
		} else if strings.HasSuffix(format, "] stopped") {
			close(stopped)
		}
	}))
	defer logging.SetLogger(old)
	e := nbio.NewEngine(nbio.Config{NPoller: 1, EpollMod: nbio.EPOLLET})
	alive := make(chan struct{})
	e.OnRead(func(*nbio.Conn) { // the loop works although Stop is over
		close(alive)
		runtime.Goexit() // the only way to end this loop
	})
	must(t, e.Start())
	recv(t, started, "start of the loop")
	e.Done()
	e.Stop()
	e.Add(1)
	c, peer := typeZero(t)
	peer.Write([]byte("x"))
	_, err := e.AddConn(c)
	must(t, err)
	close(release)
	recv(t, stopped, "end of the loop")
	select {
	case <-alive:
	default:
		t.Error("the loop stops by itself now")
	}
	c.Close()
	e.Wait()
}

type debugLogger func(format string)

func (f debugLogger) Debug(format string, _ ...any) { f(format) }
func (debugLogger) Info(string, ...any)             {}
func (debugLogger) Warn(string, ...any)             {}
func (debugLogger) Error(string, ...any)            {}

func TestPinEngineDescriptorsWithoutCloexec(t *testing.T) {
	inherited := func() (n int) {
		for fd := range openFiles() {
			var number uintptr
			for _, d := range fd {
				number = number*10 + uintptr(d-'0')
			}
			if flags, err := unix.FcntlInt(number, unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
				n++
			}
		}
		return n
	}
	before := inherited()
	engine(t, nbio.Config{EpollMod: nbio.EPOLLET}, hooks{read: func(*nbio.Conn) {}})
	if n := inherited() - before; n != 2 {
		t.Errorf("%d descriptors without CLOEXEC, were 2: epoll and eventfd", n)
	}
}

func TestPinDescriptorTable(t *testing.T) {
	prepareNbio()
	old := nbio.MaxOpenFiles
	defer func() { nbio.MaxOpenFiles = old }()
	nbio.MaxOpenFiles = 1 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	engine(t, nbio.Config{}, hooks{})
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n < 8<<20 {
		t.Errorf("an engine allocates %d bytes", n)
	}
	nbio.MaxOpenFiles = 100
	e := engine(t, nbio.Config{}, hooks{open: func(*nbio.Conn) { t.Error("OnOpen") }})
	c, _ := typeZero(t)
	beyond := adoptAs(t, c.Hash(), func(n int) bool { return n >= nbio.MaxOpenFiles })
	defer unix.Close(beyond.Hash())
	if _, err := e.AddConn(beyond); err == nil {
		t.Error("a number beyond the table was taken")
	}
}

func TestPinDefaultPollers(t *testing.T) {
	if n := nbio.NewEngine(nbio.Config{}).NPoller; n != max(1, runtime.NumCPU()/4) {
		t.Errorf("%d pollers on %d CPUs", n, runtime.NumCPU())
	}
}

// Avoided: accepting and dialling.

// accepting returns a configuration with a listener that is made of a function. Once that returns errDone, Accept waits for
// Close.
func accepting(t *testing.T, accept func() (net.Conn, error)) nbio.Config {
	real, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	l := listener{real, accept, make(chan struct{})}
	return nbio.Config{
		Network: "tcp", Addrs: []string{""},
		Listen: func(string, string) (net.Listener, error) { return l, nil },
	}
}

type listener struct {
	net.Listener
	accept func() (net.Conn, error)
	closed chan struct{}
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.accept()
	if err == errDone {
		<-l.closed
	}
	return c, err
}

func (l listener) Close() error {
	close(l.closed)
	return l.Listener.Close()
}

var errDone = errors.New("no more")

func TestPinAcceptErrorsSpin(t *testing.T) {
	const n = 500 // with a pause of 5 ms each, 2.5 s
	count := 0
	begin := time.Now()
	took := make(chan time.Duration, 1)
	engine(t, accepting(t, func() (net.Conn, error) {
		if count++; count > n {
			if count == n+1 {
				took <- time.Since(begin)
			}
			return nil, errDone
		}
		return nil, &net.OpError{Op: "accept", Err: unix.EMFILE}
	}), hooks{})
	if d := recv(t, took, "end of errors"); d > n*5*time.Millisecond {
		t.Errorf("%d accept errors took %v: nbio pauses now", n, d)
	}
}

// A connection that can't be duplicated after it was accepted is dropped without a word.
func TestPinAcceptFailureIsSilent(t *testing.T) {
	dropped := make(chan struct{})
	var told atomic.Int32
	first := true
	engine(t, accepting(t, func() (net.Conn, error) {
		if first {
			first = false
			return noDup{closed: dropped}, nil
		}
		return nil, errDone
	}), hooks{refused: func(error) { told.Add(1) }})
	recv(t, dropped, "close of the connection")
	if n := told.Load(); n != 0 {
		t.Errorf("OnAcceptError was called %d times", n)
	}
}

// noDup is a connection whose descriptor can't be had.
type noDup struct {
	net.Conn
	closed chan struct{}
}

func (c noDup) Close() error { close(c.closed); return nil }

func TestPinOnOpenBlocksAccept(t *testing.T) {
	c, _ := tcp(t)
	acceptor, opener := make(chan string, 1), make(chan string, 1)
	first := true
	engine(t, accepting(t, func() (net.Conn, error) {
		if first {
			first = false
			acceptor <- goroutineID()
			return c, nil
		}
		return nil, errDone
	}), hooks{open: func(*nbio.Conn) { opener <- goroutineID() }})
	if recv(t, acceptor, "Accept") != recv(t, opener, "OnOpen") {
		t.Error("OnOpen runs elsewhere now")
	}
}

func TestPinDialAsyncReportsNoError(t *testing.T) {
	e := engine(t, nbio.Config{}, hooks{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := ln.Addr().String()
	ln.Close()
	result := make(chan error, 1)
	must(t, e.DialAsync("tcp", addr, func(_ *nbio.Conn, err error) { result <- err }))
	if err := recv(t, result, "result of the dial"); err != nil {
		t.Errorf("a refused dial reports %v now", err)
	}
}

func TestPinDialAsyncIgnoresTheAddress(t *testing.T) {
	e := engine(t, nbio.Config{}, hooks{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	accepted := make(chan struct{})
	go func() {
		if c, err := ln.Accept(); err == nil {
			c.Close()
			close(accepted)
		}
	}()
	must(t, e.DialAsync("tcp", "127.0.0.2:"+port, func(*nbio.Conn, error) {}))
	recv(t, accepted, "connection to 127.0.0.1 after a dial to 127.0.0.2")
}

// Avoided: writing.

// countTo reads from r until mark and returns how many bytes came before.
func countTo(t *testing.T, r io.Reader, mark string) (n int) {
	t.Helper()
	var tail []byte
	buf := make([]byte, 64<<10)
	for {
		m, err := r.Read(buf)
		n += m
		tail = append(tail, buf[:m]...)
		tail = tail[max(0, len(tail)-len(mark)):]
		if string(tail) == mark {
			return n - len(mark)
		}
		must(t, err)
	}
}

const mark = "\x01the end\x02"

func TestPinWritevLoses(t *testing.T) {
	e := engine(t, nbio.Config{}, hooks{})
	s, peer := tcp(t)
	must(t, s.(*net.TCPConn).SetWriteBuffer(64<<10))
	c, err := e.AddConn(s)
	must(t, err)
	const size, buffers = 64 << 10, 128
	in := make([][]byte, buffers)
	for i := range in {
		in[i] = make([]byte, size)
	}
	if _, err = c.Writev(in); err != nil {
		t.Fatalf("Writev tells of its loss now: %v", err)
	}
	_, err = c.Write([]byte(mark))
	must(t, err)
	if n := countTo(t, peer, mark); n >= size*buffers {
		t.Errorf("all %d bytes arrived", n)
	}
}

func TestPinUnixWriteDropsTheRest(t *testing.T) {
	var sent atomic.Int64
	e := engine(t, nbio.Config{}, hooks{written: func(n int) { sent.Add(int64(n)) }})
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	conn := func(fd int) net.Conn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		must(t, err)
		return c
	}
	peer := conn(fds[1])
	defer peer.Close()
	c, err := e.AddConn(conn(fds[0]))
	must(t, err)
	const size = 4 << 20
	if n, err := c.Write(make([]byte, size)); n != size || err != nil {
		t.Fatalf("Write tells of its loss now: %d, %v", n, err)
	}
	_, err = io.CopyN(io.Discard, peer, sent.Load()) // the buffer is empty, the mark goes through
	must(t, err)
	first := int(sent.Load())
	_, err = c.Write([]byte(mark))
	must(t, err)
	if n := first + countTo(t, peer, mark); n >= size {
		t.Errorf("all %d bytes arrived", n)
	}
}

// TestPinWriteInOnOpenStalls: the rest of a write is never sent, although the loop had an event of the socket while
// it took output.
func TestPinWriteInOnOpenStalls(t *testing.T) {
	var sent atomic.Int64
	data := make(chan struct{}, 10)
	e := engine(t, nbio.Config{}, hooks{
		open:    func(c *nbio.Conn) { c.Write(make([]byte, 16<<20)) },
		data:    func(c *nbio.Conn, _ []byte) { data <- struct{}{} },
		written: func(n int) { sent.Add(int64(n)) },
	})
	s, peer := tcp(t)
	_, err := e.AddConn(s)
	must(t, err)
	first := sent.Load()
	_, err = io.CopyN(io.Discard, peer, first)
	must(t, err)
	peer.Write([]byte("x"))
	recv(t, data, "OnData")
	if n := sent.Load(); n != first {
		t.Errorf("output goes on: %d after %d bytes", n, first)
	}
}

func TestPinCloseDropsOutput(t *testing.T) {
	e := engine(t, nbio.Config{}, hooks{})
	s, peer := tcp(t)
	c, err := e.AddConn(s)
	must(t, err)
	const size = 16 << 20
	_, err = c.Write(make([]byte, size))
	must(t, err)
	must(t, c.Close())
	if n, _ := io.Copy(io.Discard, peer); n >= size {
		t.Errorf("all %d bytes arrived", n)
	}
}

func TestPinWriteOverflowCloses(t *testing.T) {
	closed := make(chan error, 1)
	e := engine(t, nbio.Config{MaxWriteBufferSize: 1024}, hooks{close: func(_ *nbio.Conn, err error) { closed <- err }})
	s, _ := tcp(t)
	c, err := e.AddConn(s)
	must(t, err)
	if _, err = c.Write(make([]byte, 2048)); err == nil {
		t.Error("a large write to an idle socket works now")
	}
	recv(t, closed, "OnClose")
}

// TestPinOnWrittenSizeHoldsTheLock: another goroutine doesn't get the connection's lock meanwhile.
func TestPinOnWrittenSizeHoldsTheLock(t *testing.T) {
	var c *nbio.Conn
	var locked atomic.Bool
	done := make(chan struct{})
	e := engine(t, nbio.Config{}, hooks{written: func(int) {
		go func() {
			c.Lock()
			locked.Store(true)
			c.Unlock()
			close(done)
		}()
		for range 1000 {
			runtime.Gosched()
		}
		if locked.Load() {
			t.Error("the lock is free now")
		}
	}})
	s, _ := tcp(t)
	c, err := nbio.NBConn(s)
	must(t, err)
	_, err = e.AddConn(c)
	must(t, err)
	_, err = c.Write([]byte("x"))
	must(t, err)
	recv(t, done, "lock")
}

// Avoided: reading and closing.

func TestPinLevelModeLosesTheTail(t *testing.T) {
	const size = 40_000
	got := 0
	closed := make(chan struct{})
	e := engine(t, nbio.Config{ReadBufferSize: 4096}, hooks{
		data:  func(_ *nbio.Conn, data []byte) { got += len(data) },
		close: func(*nbio.Conn, error) { close(closed) },
	})
	s, peer := tcp(t)
	peer.Write(make([]byte, size))
	peer.CloseWrite()
	c, err := nbio.NBConn(s)
	must(t, err)
	await(t, c.Hash(), unix.POLLRDHUP)
	_, err = e.AddConn(c)
	must(t, err)
	recv(t, closed, "OnClose")
	if got >= size {
		t.Errorf("all %d bytes were read", got)
	}
}

func TestPinHalfCloseEndsOutput(t *testing.T) {
	const size = 16 << 20
	closed := make(chan struct{})
	e := engine(t, nbio.Config{}, hooks{
		data:  func(c *nbio.Conn, _ []byte) { c.Write(make([]byte, size)) },
		close: func(*nbio.Conn, error) { close(closed) },
	})
	s, peer := tcp(t)
	_, err := e.AddConn(s)
	must(t, err)
	peer.Write([]byte("x"))
	peer.CloseWrite()
	recv(t, closed, "OnClose")
	if n, _ := io.Copy(io.Discard, peer); n >= size {
		t.Errorf("all %d bytes arrived", n)
	}
}

func TestPinOnCloseDuringOnDataElsewhere(t *testing.T) {
	loop, closer := make(chan string, 1), make(chan string, 1)
	release := make(chan struct{})
	e := engine(t, nbio.Config{}, hooks{
		data:  func(*nbio.Conn, []byte) { loop <- goroutineID(); <-release },
		close: func(*nbio.Conn, error) { closer <- goroutineID() },
	})
	s, peer := tcp(t)
	c, err := e.AddConn(s)
	must(t, err)
	peer.Write([]byte("x"))
	id := recv(t, loop, "OnData")
	c.Close()
	if recv(t, closer, "OnClose while OnData runs") == id {
		t.Error("OnClose runs on the loop now")
	}
	close(release)
}

// TestPinCloseAfterReopen: a number's new owner is opened before its old one's OnClose.
func TestPinCloseAfterReopen(t *testing.T) {
	type event struct {
		c    *nbio.Conn
		what string
	}
	events := make(chan event, 10)
	release := make(chan struct{})
	e := engine(t, nbio.Config{}, hooks{
		open: func(c *nbio.Conn) { events <- event{c, "open"} },
		close: func(c *nbio.Conn, _ error) {
			<-release
			events <- event{c, "close"}
		},
	})
	s, _ := tcp(t)
	old, err := e.AddConn(s)
	must(t, err)
	recv(t, events, "OnOpen")
	old.Close()
	other, _ := typeZero(t)
	young := other
	if young.Hash() != old.Hash() {
		young = adoptAs(t, other.Hash(), func(n int) bool { return n == old.Hash() })
		defer unix.Close(young.Hash())
	}
	_, err = e.AddConn(young)
	must(t, err)
	if got := recv(t, events, "OnOpen"); got != (event{young, "open"}) {
		t.Errorf("first %v", got)
	}
	close(release)
	if got := recv(t, events, "OnClose"); got != (event{old, "close"}) {
		t.Errorf("then %v", got)
	}
}

// TestPinStaleEventClosesNewcomer: two events are in one batch. The first closes the second's connection, and its number
// goes to a new one, which then gets the second event, an end.
func TestPinStaleEventClosesNewcomer(t *testing.T) {
	var mu sync.Mutex // nbio gives the race detector no order
	mu.Lock()
	onRead := map[*nbio.Conn]func(){}
	closed := make(chan *nbio.Conn, 10)
	e := engine(t, nbio.Config{EpollMod: nbio.EPOLLET}, hooks{
		read: func(c *nbio.Conn) {
			mu.Lock()
			f := onRead[c]
			mu.Unlock()
			if f != nil {
				f()
			}
		},
		close: func(c *nbio.Conn, _ error) { closed <- c },
	})
	gate, gatePeer := typeZero(t)
	first, firstPeer := typeZero(t)
	s, victimPeer := tcp(t)
	victim, err := nbio.NBConn(s)
	must(t, err)
	spare, _ := typeZero(t)
	var young *nbio.Conn
	inside, release := make(chan struct{}), make(chan struct{})
	var once sync.Once // the event of the registration may already have the input
	onRead[gate] = func() { once.Do(func() { close(inside); <-release }) }
	onRead[first] = func() {
		if young != nil {
			return
		}
		victim.Close()
		young = adoptAs(t, spare.Hash(), func(n int) bool { return n == victim.Hash() })
		if _, err := e.AddConn(young); err != nil {
			t.Error(err)
		}
	}
	mu.Unlock()
	for _, c := range []*nbio.Conn{gate, first, victim} {
		_, err := e.AddConn(c)
		must(t, err)
	}
	gatePeer.Write([]byte("x"))
	recv(t, inside, "gate")
	firstPeer.Write([]byte("x"))
	await(t, first.Hash(), unix.POLLIN)
	victimPeer.CloseWrite()
	await(t, victim.Hash(), unix.POLLRDHUP)
	close(release)
	if c := recv(t, closed, "OnClose"); c != victim {
		t.Errorf("first %p", c)
	}
	if c := recv(t, closed, "OnClose of the newcomer"); c != young {
		t.Errorf("then %p", c)
	}
	unix.Close(young.Hash())
}

// TestPinCloseInOnOpenIsRegistered: AddConn goes on with a connection that OnOpen closed.
func TestPinCloseInOnOpenIsRegistered(t *testing.T) {
	read := make(chan struct{}, 10)
	e := engine(t, nbio.Config{EpollMod: nbio.EPOLLET}, hooks{
		open: func(c *nbio.Conn) { c.Close() },
		read: func(*nbio.Conn) { read <- struct{}{} },
	})
	c, peer := typeZero(t)
	peer.Write([]byte("x"))
	_, err := e.AddConn(c)
	must(t, err)
	recv(t, read, "OnRead of a closed connection")
}

// TestPinNoRecover runs itself in a child process, which a panic in a callback ends.
func TestPinNoRecover(t *testing.T) {
	const env = "ARPC_TEST_PANIC"
	if os.Getenv(env) != "" {
		e := engine(t, nbio.Config{EpollMod: nbio.EPOLLET}, hooks{read: func(*nbio.Conn) { panic("in OnRead") }})
		c, peer := typeZero(t)
		peer.Write([]byte("x"))
		_, err := e.AddConn(c)
		must(t, err)
		recv(t, make(chan struct{}), "end of the process")
	}
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, "-test.run=^TestPinNoRecover$", "-test.timeout=30s")
	cmd.Env = append(os.Environ(), env+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("panic: in OnRead")) {
		t.Errorf("%v\n%s", err, out)
	}
}
