package core

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/arpc-go/arpc/internal/work"
)

const (
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// Serve accepts connections until Stop or StopAccepting, and then returns ErrStopped. Failures that pass, such as a lack of
// descriptors, are waited out with growing pauses; another failure of the listener is returned. ln is closed in any case.
// Serve may be called for several listeners.
func (g *Group) Serve(ln net.Listener) error { return g.ServeAs(0, ln) }

// ServeAs is Serve for a listener that its connections can be told by: Conn.Listener returns index, which is below 1<<15.
func (g *Group) ServeAs(index int, ln net.Listener) error {
	g.mu.Lock()
	select {
	case <-g.stop:
		g.mu.Unlock()
		ln.Close() //nolint:errcheck // it was never used
		return ErrStopped
	default:
	}
	g.listeners[ln] = struct{}{}
	g.serving.Add(1)
	g.mu.Unlock()
	spare := newSpare()
	defer func() {
		g.mu.Lock()
		_, open := g.listeners[ln]
		delete(g.listeners, ln)
		g.mu.Unlock()
		if open { // StopAccepting has not closed it
			ln.Close() //nolint:errcheck // the error that ends Serve is known
		}
		spare.close()
		g.serving.Done()
	}()
	var pause time.Duration
	for {
		nc, err := ln.Accept()
		if err == nil {
			pause = 0
			spare.ensure()
			g.accepted(nc, index)
			continue
		}
		select {
		case <-g.stop:
			return ErrStopped
		default:
		}
		if !passing(err) {
			return err
		}
		g.Stats.AcceptErrors.Add(1)
		g.logLimited("accept", "cannot accept on %v: %v", ln.Addr(), err)
		if outOfFiles(err) {
			// Nobody waits in vain: who is in the backlog is told at once.
			g.Stats.RefusedFiles.Add(int64(spare.refuse(ln)))
		}
		if pause = min(max(2*pause, minBackoff), maxBackoff); true {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-g.stop:
				timer.Stop()
			}
		}
	}
}

// passing reports whether an accept that failed may work later.
func passing(err error) bool {
	if outOfFiles(err) {
		return true
	}
	for _, e := range []syscall.Errno{syscall.ECONNABORTED, syscall.ECONNRESET, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func outOfFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// accepted makes an accepted connection one of the group's, or resets it.
func (g *Group) accepted(nc net.Conn, index int) {
	nc, stage := unwrap(nc)
	var ip string
	if g.cfg.MaxConnsPerIP < 1<<30 {
		if host, _, err := net.SplitHostPort(nc.RemoteAddr().String()); err == nil {
			ip = host
		}
	}
	if g.Len() >= g.cfg.MaxConns {
		g.refuse(nc, errLimit)
		return
	}
	c := &Conn{group: g, stage: stage, listener: int16(index)}
	tc, isTCP := nc.(*net.TCPConn)
	wrap := g.wrapReader(nc)
	var p *polls
	if isTCP && wrap == nil {
		p = g.pollsFor()
	}
	if err := g.insert(c, p == nil, ip); err != nil {
		g.refuse(nc, err)
		return
	}
	c.mu.Lock() // it is in the table already
	var err error
	if p == nil {
		c.sock = newStdSocket(c, nc, wrap)
	} else {
		err = p.adopt(c, tc)
	}
	c.mu.Unlock()
	if err != nil {
		g.remove(c)
		if outOfFiles(err) {
			g.Stats.RefusedFiles.Add(1)
		}
		g.logLimited("adopt", "cannot take a connection over: %v", err)
		reset(nc)
		return
	}
	if p != nil {
		return // the loop opens it
	}
	if h, ok := nc.(handshaker); ok {
		work.Go(opener{c, h, nc.RemoteAddr()})
		return
	}
	c.openAccepted()
}

func (c *Conn) openAccepted() {
	c.group.Stats.Accepted.Add(1)
	if !c.open() {
		c.group.Stats.OpenErrors.Add(1)
	}
}

// handshaker is a tls.Conn, or what behaves like one.
type handshaker interface {
	HandshakeContext(ctx context.Context) error
}

// opener opens a connection after a handshake, on a goroutine of its own.
type opener struct {
	c    *Conn
	h    handshaker
	peer net.Addr
}

// RunTask implements work.Task.
func (o opener) RunTask() {
	c := o.c
	ctx, cancel := context.WithTimeout(c.group.handshakes, c.group.cfg.Handshake)
	err := o.h.HandshakeContext(ctx)
	cancel()
	if err != nil {
		c.group.Stats.OpenErrors.Add(1)
		c.group.logLimited("handshake", "handshake with %v failed: %v", o.peer, err)
		c.sock.destroy()
		c.group.remove(c)
		return
	}
	c.openAccepted()
}

// refuse resets a connection that is one too many.
func (g *Group) refuse(nc net.Conn, err error) {
	if err == errLimit {
		g.Stats.RefusedLimit.Add(1)
		g.logLimited("limit", "connection from %v refused: %v", nc.RemoteAddr(), err)
	}
	reset(nc)
}

// reset closes a connection in a way that its peer sees at once.
func reset(nc net.Conn) {
	if tc, ok := nc.(*net.TCPConn); ok {
		tc.SetLinger(0) //nolint:errcheck // closing is what matters
	}
	nc.Close() //nolint:errcheck // it was never used
}
