package session

import (
	"bytes"
	"net"
	"sync"
	"sync/atomic"

	"github.com/arpc-go/arpc/internal/work"
)

// input is what of a session's input is not yet a package. It belongs to the strand.
type input struct {
	rest []byte // the beginning of a package; nil if there is none
	need int    // its length, once known
	part atomic.Bool

	mu     sync.Mutex // held by the strand while it is at work
	unpack *unpacker  // nil without compression
	over   atomic.Bool
}

// waiting reports whether a package has begun and is not complete.
func (in *input) waiting() bool { return in.part.Load() }

// release gives unpack back, now or when the strand is done with it.
func (in *input) release() {
	in.over.Store(true)
	in.tryRelease()
}

func (in *input) tryRelease() {
	if in.over.Load() && in.mu.TryLock() {
		if in.unpack != nil {
			in.unpack.quit()
		}
		in.mu.Unlock()
	}
}

// stream handles what one read of a TCP session has returned.
func (s *Conn) stream(p []byte) error {
	s.UpdateActive()
	s.readBytes.Add(uint64(len(p)))
	in := &s.in
	defer in.tryRelease()
	in.mu.Lock()
	defer in.mu.Unlock()
	if set := s.set.Load(); in.unpack == nil && set.compressed {
		in.unpack = newUnpacker(set.compress)
	}
	if in.unpack == nil {
		return s.split(p)
	}
	return in.unpack.feed(p, s.split)
}

// split hands on the packages in the next bytes of a stream.
func (s *Conn) split(p []byte) error {
	if s.closed.Load() {
		return ErrSessionClosed
	}
	in := &s.in
	var kept []byte
	if len(in.rest) > 0 {
		kept = append(in.rest, p...)
		if p, in.rest = kept, kept; len(p) < in.need {
			return nil
		}
	}
	rest, need, err := s.packages(p, nil)
	in.need = need
	switch {
	case len(rest) == 0:
		in.rest = nil
	case len(rest) != len(kept): // packages may still be used, with the memory that they are in
		in.rest = bytes.Clone(rest)
	}
	in.part.Store(len(in.rest) > 0)
	return err
}

// packages hands on the packages at the beginning of p, and returns what follows and how long its first package is, if known.
func (s *Conn) packages(p []byte, peer *net.UDPAddr) (rest []byte, need int, err error) {
	for len(p) > 0 && !s.closed.Load() {
		set := s.set.Load()
		if set.reader == nil {
			return nil, 0, nil // whoever wants no packages sets no Reader
		}
		var pkg any
		var n int
		if r := s.call("Reader.Read", func() { pkg, n, err = set.reader.Read(s, p) }); r != nil {
			err = r
		}
		switch {
		case err != nil:
			return nil, 0, err
		case n > set.maxMsg || n == 0 && len(p) > set.maxMsg:
			return nil, 0, ErrMsgTooLong
		case n < 0 || pkg != nil && (n == 0 || n > len(p)):
			return nil, 0, errReader
		case pkg == nil:
			return p, n, nil
		}
		s.readPkgs.Add(1)
		if peer != nil {
			pkg = UDPContext{pkg, peer}
		}
		if err = s.deliver(set, pkg); err != nil {
			return nil, 0, err
		}
		p = p[n:]
	}
	return nil, 0, nil
}

// whole handles a datagram or message, which has whole packages only. What cannot be understood is dropped.
func (s *Conn) whole(p []byte, peer *net.UDPAddr) {
	s.UpdateActive()
	s.readBytes.Add(uint64(len(p)))
	rest, _, err := s.packages(p, peer)
	if err == errPanic && peer == nil { // with UDP anybody could end the session of all
		s.fail(err)
	} else if err != nil || len(rest) > 0 {
		s.dropped.Add(1)
	}
}

// deliver calls OnMessage, or has the pool do so.
func (s *Conn) deliver(set *settings, pkg any) error {
	if set.listener == nil {
		return nil
	}
	if set.pool == nil {
		return s.call("OnMessage", func() { set.listener.OnMessage(s, pkg) })
	}
	select {
	case set.pool.slots <- struct{}{}:
		s.tasks.Add(1)
		work.Go(task(func() {
			defer s.tasks.Done()
			defer func() { <-set.pool.slots }()
			if err := s.call("OnMessage", func() { set.listener.OnMessage(s, pkg) }); err != nil {
				s.fail(err)
			}
		}))
	case <-s.over:
	}
	return nil
}

type task func()

// RunTask implements work.Task.
func (t task) RunTask() { t() }

// A TaskPool runs OnMessage for the sessions that use it, on at most so many goroutines as NewTaskPool was told. Packages of a
// session then are handled side by side, in no order. While all goroutines are busy packages wait, and in the end their peers do.
type TaskPool struct{ slots chan struct{} }

// NewTaskPool returns a pool of at most n goroutines, which exist while they have something to do.
func NewTaskPool(n int) *TaskPool { return &TaskPool{make(chan struct{}, max(n, 1))} }
