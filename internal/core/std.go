package core

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/work"
)

// stdSocket serves any net.Conn with a goroutine that reads. Where the connection has a descriptor that can be written
// without waiting, whoever has output writes; otherwise a goroutine does for as long as there is some.
type stdSocket struct {
	c    *Conn
	nc   net.Conn
	raw  syscall.RawConn // nil if there is none
	wrap io.Reader       // reads instead of nc, if not nil

	// What the callbacks of raw read and write, so that they need not be allocated for each call. The first group is
	// the reader's, the second the flusher's.
	rbuf *buf.Buf
	rn   int
	rerr error
	read func(fd uintptr) bool

	wp    []byte
	wn    int
	werr  error
	write func(fd uintptr) bool

	once sync.Once

	stopped bool // by halt; under Conn.mu
}

func newStdSocket(c *Conn, nc net.Conn, wrap io.Reader) *stdSocket {
	s := &stdSocket{c: c, nc: nc, wrap: wrap}
	if rawIO {
		switch nc := nc.(type) {
		case *net.TCPConn:
			s.raw, _ = nc.SyscallConn()
		case *net.UnixConn:
			s.raw, _ = nc.SyscallConn()
		}
	}
	if s.raw != nil {
		s.read, s.write = s.rawRead, s.rawWrite
	}
	return s
}

func (s *stdSocket) start() { work.Go(s) }

func (s *stdSocket) inline() bool { return true }

// RunTask is the reader.
func (s *stdSocket) RunTask() {
	c := s.c
	if reader, err := c.begin(); !reader {
		return
	} else if err != nil {
		c.readerGone(err)
		return
	}
	for {
		b, n, err := s.next()
		if n > 0 {
			reader, end := c.taken(b, len(b.B)-n)
			if !reader {
				return
			}
			if end != nil {
				err = end
			}
		} else if b != nil {
			if len(b.B) == 0 {
				b.Free()
			} else {
				c.in = b
			}
		}
		if err != nil {
			halted := errors.Is(err, os.ErrDeadlineExceeded) && s.wasHalted()
			if (halted || err == io.EOF) && c.detaching() {
				return
			}
			if halted {
				continue
			}
			c.readerGone(err)
			return
		}
	}
}

// halt lets the read that is under way, or the next one, fail.
func (s *stdSocket) halt() error {
	s.stopped = true
	return s.nc.SetReadDeadline(time.Unix(1, 0))
}

// wasHalted undoes halt, and reports whether there was something to undo.
func (s *stdSocket) wasHalted() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.stopped {
		return false
	}
	s.stopped = false
	s.nc.SetReadDeadline(time.Time{}) //nolint:errcheck // the next read tells
	return true
}

func (s *stdSocket) detach(done func(net.Conn, error)) {
	s.wasHalted()
	done(s.nc, nil)
}

func (s *stdSocket) keepAlive(d time.Duration) error {
	tc, ok := s.nc.(*net.TCPConn)
	if !ok {
		return errors.ErrUnsupported
	}
	if d <= 0 {
		return tc.SetKeepAlive(false)
	}
	return tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: d, Interval: d})
}

// next waits for input and returns it behind the incomplete frame, with the number of new bytes.
func (s *stdSocket) next() (*buf.Buf, int, error) {
	c := s.c
	if s.raw != nil && s.wrap == nil {
		s.rbuf, s.rn, s.rerr = nil, 0, nil
		if err := s.raw.Read(s.read); err != nil && s.rerr == nil {
			s.rerr = err
		}
		b := s.rbuf
		s.rbuf = nil
		return b, s.rn, s.rerr
	}
	b := c.readBuf()
	have, room := len(b.B), cap(b.B)-len(b.B)
	var n int
	var err error
	if s.wrap != nil {
		n, err = s.wrap.Read(b.B[have:cap(b.B)])
	} else {
		n, err = s.nc.Read(b.B[have:cap(b.B)])
	}
	if n > 0 {
		b.B = b.B[:have+n]
		c.didRead(n, room)
	}
	return b, n, err
}

// rawRead is called with the descriptor whenever it may be readable. While it waits, the connection has no buffer
// unless a frame is incomplete.
func (s *stdSocket) rawRead(fd uintptr) bool {
	c := s.c
	b := s.rbuf
	if b == nil {
		b = c.readBuf()
	}
	have, room := len(b.B), cap(b.B)-len(b.B)
	n, err := sysRead(fd, b.B[have:cap(b.B)])
	switch {
	case n > 0:
		b.B = b.B[:have+n]
		s.rbuf, s.rn = b, n
		c.didRead(n, room)
		return true
	case err == errWouldBlock:
		if have == 0 {
			b.Free()
			s.rbuf = nil
		} else {
			s.rbuf = b
		}
		return false
	case err == nil:
		err = io.EOF
	}
	s.rbuf, s.rerr = b, err
	return true
}

func (s *stdSocket) tryWrite(p []byte) (int, error) {
	if s.raw == nil {
		return 0, nil
	}
	s.wp, s.wn, s.werr = p, 0, nil
	err := s.raw.Write(s.write)
	if s.werr != nil {
		err = s.werr
	}
	s.wp = nil
	return s.wn, err
}

// rawWrite writes once; it never makes its caller wait.
func (s *stdSocket) rawWrite(fd uintptr) bool {
	s.wn, s.werr = sysWrite(fd, s.wp)
	return true
}

// armWrite hands the flusher token to a goroutine that waits.
func (s *stdSocket) armWrite() { work.Go((*stdWriter)(s)) }

type stdWriter stdSocket

// RunTask writes, waiting for as long as that takes, until the socket no longer is full; then it goes on as an ordinary
// flusher.
func (w *stdWriter) RunTask() {
	c := w.c
	c.mu.Lock()
	for !c.has(flagDropOut) && (c.first != nil || c.out != nil) {
		if c.first == nil {
			c.closeChunkLocked()
		}
		p := c.first.B[c.first.Off:]
		if len(p) > maxChunk {
			p = p[:maxChunk] // so that progress is seen
		}
		c.mu.Unlock()
		n, err := w.hookedWrite(p)
		c.mu.Lock()
		done := c.tookLocked(n)
		if err != nil {
			c.writeFailedLocked(err)
			return
		}
		c.relieveLocked()
		if done && w.raw != nil {
			break
		}
	}
	c.flushLocked()
}

// hookedWrite writes p. For who has a hook after each write there is one before each, too; others were asked before they came here.
func (w *stdWriter) hookedWrite(p []byte) (int, error) {
	cfg := &w.c.group.cfg
	if cfg.BeforeWrite != nil && cfg.AfterWrite != nil {
		if err := w.c.beforeWrite(); err != nil {
			w.c.Abort(err)
			return 0, err
		}
	}
	n, err := w.nc.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if cfg.AfterWrite != nil {
		w.c.afterWrite(n)
	}
	return n, err
}

func (s *stdSocket) closeWrite() {
	if cw, ok := s.nc.(interface{ CloseWrite() error }); ok {
		cw.CloseWrite() //nolint:errcheck // the reader finds out
		return
	}
	s.kick()
}

// kick closes the connection under a tls.Conn, whose own Close waits for a peer that does not read.
func (s *stdSocket) kick() {
	s.once.Do(func() {
		nc := s.nc
		if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
			nc = t.NetConn()
		}
		if s.raw != nil {
			nc.Close() //nolint:errcheck // nothing can be done about it
			return
		}
		work.Go(closer{nc}) // it may take its time, and who kicks may be anybody
	})
}

type closer struct{ nc net.Conn }

// RunTask implements work.Task.
func (c closer) RunTask() { c.nc.Close() } //nolint:errcheck // nothing can be done about it

func (s *stdSocket) destroy() { s.kick() }

func (s *stdSocket) localAddr() net.Addr  { return s.nc.LocalAddr() }
func (s *stdSocket) remoteAddr() net.Addr { return s.nc.RemoteAddr() }
