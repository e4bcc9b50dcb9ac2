package poller

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestStorm has two loops echo to hundreds of clients. Most are rude: they reset, half close, don't read, and their
// connections are closed on the server's side at random moments from other goroutines, twice. The others send random amounts and
// expect every byte back. It takes 1 s, or 5 s with ARPC_LONG=1.
func TestStorm(t *testing.T) {
	length := time.Second
	if os.Getenv("ARPC_LONG") != "" {
		length = 5 * time.Second
	}
	s := &storm{t: t, p: start(t, 2), end: time.Now().Add(length), data: pattern(256 << 10)}
	s.listen()
	var accepting, clients, killers sync.WaitGroup
	accepting.Go(s.accept)
	for range 100 {
		clients.Go(s.innocents)
	}
	for range 300 {
		clients.Go(s.rudes)
	}
	var over atomic.Bool
	for range 4 {
		killers.Go(func() {
			for !over.Load() {
				s.kill()
			}
		})
	}
	clients.Wait()
	over.Store(true)
	killers.Wait()
	must(t, unix.Shutdown(s.ln, unix.SHUT_RDWR))
	accepting.Wait()
	must(t, unix.Close(s.ln))
	closed := make(chan struct{})
	go func() { s.open.Wait(); close(closed) }()
	recv(t, closed, "end of all connections")

	t.Logf("%d connections, %d of them innocent, %d killed", s.opens.Load(), s.innocent.Load(), s.kills.Load())
	if n := s.wrong.Load(); n > 0 {
		t.Errorf("%d innocent connections failed", n)
	}
	if o, c := s.opens.Load(), s.closes.Load(); o != c {
		t.Errorf("%d opens, %d closes", o, c)
	}
	if n := s.overlaps.Load(); n > 0 {
		t.Errorf("%d callbacks at the same time as another of their loop", n)
	}
	if n := s.late.Load(); n > 0 {
		t.Errorf("%d events after Detach", n)
	}
	if s.innocent.Load() == 0 || s.kills.Load() == 0 {
		t.Error("nothing happened")
	}
}

type storm struct {
	t    *testing.T
	p    *Poller
	ln   int
	port int
	end  time.Time
	data []byte

	open                                                  sync.WaitGroup
	opens, closes, innocent, kills, wrong, overlaps, late atomic.Int64
	busy                                                  sync.Map // *Loop to *atomic.Bool
	mu                                                    sync.Mutex
	prey                                                  []*stormConn
}

func (s *storm) listen() {
	for i := range s.p.Loops() {
		s.busy.Store(s.p.Loop(i), new(atomic.Bool))
	}
	var err error
	s.ln, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(s.t, err)
	must(s.t, unix.Bind(s.ln, &unix.SockaddrInet4{}))
	must(s.t, unix.Listen(s.ln, 1024))
	addr, err := unix.Getsockname(s.ln)
	must(s.t, err)
	s.port = addr.(*unix.SockaddrInet4).Port
}

func (s *storm) accept() {
	for {
		fd, _, err := unix.Accept4(s.ln, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			c := &stormConn{s: s, l: s.p.Next(), fd: fd}
			s.open.Add(1)
			c.l.Post(taskFunc(c.start))
		case errors.Is(err, unix.EINVAL): // shut down
			return
		case !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EINTR):
			s.t.Error(err)
			return
		}
	}
}

// kill closes a rude client's connection, twice.
func (s *storm) kill() {
	s.mu.Lock()
	var c *stormConn
	if n := len(s.prey); n > 0 {
		i := rand.IntN(n)
		c = s.prey[i]
		s.prey[i] = s.prey[n-1]
		s.prey = s.prey[:n-1]
	}
	s.mu.Unlock()
	if c != nil {
		c.l.Post(taskFunc(c.killed))
		c.l.Post(taskFunc(c.killed))
	}
}

func (s *storm) dial() (*net.TCPConn, error) {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.%d:%d", 1+rand.IntN(250), s.port))
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(wait))
}

func (s *storm) innocents() {
	for time.Now().Before(s.end) {
		if err := s.oneInnocent(); err != nil {
			s.wrong.Add(1)
			s.t.Log(err)
		}
		s.innocent.Add(1)
	}
}

func (s *storm) oneInnocent() error {
	c, err := s.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	want := append([]byte("i"), s.data[:rand.IntN(1<<(4+rand.IntN(14)))]...)
	sent := make(chan error, 1)
	go func() {
		rest := want
		var err error
		for len(rest) > 0 && err == nil {
			n := min(len(rest), 1+rand.IntN(20_000))
			_, err = c.Write(rest[:n])
			rest = rest[n:]
		}
		if err == nil {
			err = c.CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(c)
	if err2 := <-sent; err2 != nil || err != nil {
		return fmt.Errorf("innocent: %d of %d bytes: %w", len(got), len(want), errors.Join(err, err2))
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("innocent: %d of %d bytes", len(got), len(want))
	}
	return nil
}

func (s *storm) rudes() {
	for time.Now().Before(s.end) {
		c, err := s.dial()
		if err != nil {
			s.t.Error(err)
			return
		}
		how := rand.IntN(6)
		if how != 0 {
			c.Write([]byte("r"))
		}
		switch how {
		case 1, 2: // half an exchange
			c.Write(s.data[:rand.IntN(30_000)])
			io.CopyN(io.Discard, c, int64(rand.IntN(2000)))
		case 3: // half close, read on
			c.Write(s.data[:rand.IntN(1000)])
			c.CloseWrite()
			io.CopyN(io.Discard, c, int64(rand.IntN(1500)))
		case 4: // block the server's output
			c.SetWriteDeadline(time.Now().Add(time.Duration(rand.IntN(int(20 * time.Millisecond)))))
			for err == nil {
				_, err = c.Write(s.data)
			}
		}
		if rand.IntN(2) == 0 {
			c.SetLinger(0)
		}
		c.Close()
	}
}

// stormConn is the server's side of a connection: an owner as internal/core might be, with its lock around output.
type stormConn struct {
	Reg
	s    *storm
	l    *Loop
	fd   int
	seen bool // the first byte; loop only

	mu     sync.Mutex
	out    []byte
	ended  bool
	closed bool
}

// enter notes that a callback runs; what it returns notes the end.
func (c *stormConn) enter(event bool) (leave func()) {
	b, _ := c.s.busy.Load(c.l)
	busy := b.(*atomic.Bool)
	if !busy.CompareAndSwap(false, true) {
		c.s.overlaps.Add(1)
	}
	if event && c.closed {
		c.s.late.Add(1)
	}
	return func() { busy.Store(false) }
}

func (c *stormConn) start() {
	defer c.enter(true)()
	fd, err := c.l.Attach(c.fd, c, &c.Reg)
	if err != nil {
		c.s.t.Error(err)
		_ = CloseFD(c.fd)
		c.s.open.Done()
		return
	}
	c.fd = fd
	c.s.opens.Add(1)
}

func (c *stormConn) killed() {
	defer c.enter(false)()
	if !c.closed {
		c.s.kills.Add(1)
	}
	c.close()
}

func (c *stormConn) Readable() { defer c.enter(true)(); c.read() }
func (c *stormConn) HangUp()   { defer c.enter(true)(); c.read() }
func (c *stormConn) Writable() { defer c.enter(true)(); c.flush(); c.closeAtEnd() }

// resume goes on reading after an early stop.
func (c *stormConn) resume() { defer c.enter(false)(); c.read() }

func (c *stormConn) atEnd() { defer c.enter(false)(); c.closeAtEnd() }

func (c *stormConn) read() {
	if c.closed {
		return
	}
	var buf [4096]byte
	for range 4 {
		n, err := unix.Read(c.fd, buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			c.close()
			return
		case n == 0:
			c.mu.Lock()
			c.ended = true
			c.mu.Unlock()
			c.closeAtEnd()
			return
		}
		if !c.seen {
			c.seen = true
			if buf[0] == 'r' {
				c.s.mu.Lock()
				c.s.prey = append(c.s.prey, c)
				c.s.mu.Unlock()
			}
		}
		c.mu.Lock()
		idle := len(c.out) == 0
		c.out = append(c.out, buf[:n]...)
		c.mu.Unlock()
		if idle && rand.IntN(4) > 0 {
			c.flush()
		} else if idle { // output from elsewhere
			go func() {
				if c.flush() {
					c.l.Post(taskFunc(c.atEnd))
				}
			}()
		}
	}
	c.l.Post(taskFunc(c.resume))
}

// flush writes what it can. It tells whether nothing is left after the end of input.
func (c *stormConn) flush() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.out) > 0 && !c.closed {
		n, err := unix.Write(c.fd, c.out)
		if errors.Is(err, unix.EAGAIN) {
			if err := c.Arm(); err != nil {
				c.s.t.Error(err)
			}
			return false
		}
		if err != nil { // reading will tell
			c.out = nil
			break
		}
		c.out = c.out[n:]
	}
	return c.ended
}

func (c *stormConn) closeAtEnd() {
	c.mu.Lock()
	end := c.ended && len(c.out) == 0
	c.mu.Unlock()
	if end {
		c.close()
	}
}

func (c *stormConn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	c.Detach()
	if err := CloseFD(c.fd); err != nil {
		c.s.t.Error(err)
	}
	c.s.closes.Add(1)
	c.s.open.Done()
}
