package poller

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/lesismal/nbio"
	"golang.org/x/sys/unix"
)

// Reg is the registration of one descriptor with a loop. It is meant to be a field of what the owner keeps for the
// descriptor. The zero value is detached.
type Reg struct {
	loop    *Loop
	ev      Events
	conn    *nbio.Conn // nil when nbio let go of the descriptor, and when detached
	fd      int32
	gone    bool // nbio let go; used by the loop only
	armed   bool // Writable is owed; guarded by the loop's watchMu
	watched bool // registered in the loop's own epoll; guarded by the loop's watchMu
}

// Attach registers fd, a non-blocking stream socket, so that ev is told about it from now on; the first call may be for
// what has already arrived. It closes fd and returns the number that the socket has instead, which the caller owns and
// closes after Detach. After an error fd is as it was and still the caller's; the error is EMFILE, in the sense of
// errors.Is, when there is no number left. r must be detached and must not be moved or changed until it is again. Attach
// must be called on the loop's goroutine.
func (l *Loop) Attach(fd int, ev Events, r *Reg) (owned int, err error) {
	if r.conn != nil || r.gone {
		return -1, errors.New("poller: the registration is in use")
	}
	if l.over {
		return -1, errors.New("poller: stopped")
	}
	c, err := l.adopt(fd)
	if err != nil {
		return -1, err
	}
	owned = c.Hash()
	*r = Reg{loop: l, ev: ev, conn: c, fd: int32(owned)}
	c.SetSession(r)
	if _, err = l.engine.AddConn(c); err != nil {
		c.SetSession(nil)
		*r = Reg{}
		_ = CloseFD(owned)
		return -1, fmt.Errorf("poller: %w", err)
	}
	l.attached++
	_ = CloseFD(fd)
	return owned, nil
}

// Arm asks for one Writable. While one is owed it does nothing. It may be called from any goroutine, but not at the
// same time as Attach or Detach. On a detached Reg it fails.
func (r *Reg) Arm() error {
	l := r.loop
	if l == nil {
		return errors.New("poller: not attached")
	}
	l.watchMu.Lock()
	defer l.watchMu.Unlock()
	if r.armed {
		return nil
	}
	err := l.watchFor(r, onOutput)
	r.armed = err == nil
	return err
}

// Detach ends the registration: no method of its Events is called any more, and the owner may close the
// descriptor. It must be called on the loop's goroutine, or anywhere once Post has returned false. On a detached Reg it does
// nothing.
func (r *Reg) Detach() {
	if r.conn == nil && !r.gone {
		return
	}
	l := r.loop
	if r.conn != nil {
		r.conn.SetSession(nil)
		_ = r.conn.Close() // takes the number out of nbio's table, leaves the descriptor
	}
	l.watchMu.Lock()
	if r.watched {
		_ = unix.EpollCtl(l.watch, unix.EPOLL_CTL_DEL, int(r.fd), nil)
		delete(l.watching, r.fd)
	}
	l.recent[int(r.fd)] = struct{}{}
	l.attached--
	l.watchMu.Unlock()
	*r = Reg{}
}

// CloseFD closes a descriptor when no child process is between fork and exec. Such a child would hold the socket open, and
// with it the epoll entries under a number that may have a new owner by then.
func CloseFD(fd int) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return unix.Close(fd)
}

// adopt returns a connection of nbio's type 0 on a duplicate of fd that child processes don't inherit, which isn't registered
// yet. The duplicate's number is its Hash.
func (l *Loop) adopt(fd int) (*nbio.Conn, error) {
	syscall.ForkLock.RLock() // nbio's dup doesn't set CLOEXEC
	defer syscall.ForkLock.RUnlock()
	for {
		c, err := nbio.NBConn(rawConn{fd: fd})
		if err != nil {
			return nil, fmt.Errorf("poller: dup: %w", err)
		}
		n := c.Hash()
		unix.CloseOnExec(n)
		if n >= l.limit {
			unix.Close(n)
			return nil, fmt.Errorf("poller: descriptor %d is not below the limit of %d: %w", n, l.limit, unix.EMFILE)
		}
		if !l.mayHaveEvents(n) {
			return c, nil
		}
		if err := unix.Dup3(l.wake, n, unix.O_CLOEXEC); err != nil {
			unix.Close(n)
			return nil, fmt.Errorf("poller: dup: %w", err)
		}
		l.held = append(l.held, n)
	}
}

// mayHaveEvents tells whether events for an earlier owner of the number n may still be delivered.
func (l *Loop) mayHaveEvents(n int) bool {
	if _, ok := l.recent[n]; ok {
		return true
	}
	_, ok := l.older[n]
	return ok
}

// rawConn is a descriptor in the shape that nbio takes. Being none of the types nbio knows makes the connection type 0. nbio
// duplicates the descriptor, asks for the addresses and closes the rawConn, which here means nothing.
type rawConn struct {
	net.Conn
	fd int
}

func (rawConn) LocalAddr() net.Addr                     { return nil }
func (rawConn) RemoteAddr() net.Addr                    { return nil }
func (rawConn) Close() error                            { return nil }
func (c rawConn) SyscallConn() (syscall.RawConn, error) { return rawControl(c.fd), nil }

type rawControl int

func (c rawControl) Control(f func(fd uintptr)) error { f(uintptr(c)); return nil }
func (rawControl) Read(func(fd uintptr) bool) error   { return errors.ErrUnsupported }
func (rawControl) Write(func(fd uintptr) bool) error  { return errors.ErrUnsupported }
