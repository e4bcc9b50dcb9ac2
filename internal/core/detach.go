package core

import (
	"errors"
	"fmt"
	"net"

	"github.com/arpc-go/arpc/internal/work"
)

// Detach takes the connection out of the group. From now on nothing is read and no output is accepted; ordered frames and jobs that
// have not begun are dropped. When those under way have ended and pending output is written, done gets the connection, on a goroutine
// of its own, with bytes that were read but belong to no whole frame; both are done's, and the net.Conn is nobody else's. Neither
// App.Down nor App.Close is called then.
//
// If the connection ends before that, because of an error, Config.WriteStall, Close, Abort or Stop, App.Down and App.Close follow
// as ever and done is not called. Detach fails, and changes nothing, with ErrClosed for a connection that is down and with
// errors.ErrUnsupported for one with a Stage or Config.Wrap. It may be called wherever Close may, and does not wait.
func (c *Conn) Detach(done func(nc net.Conn, unread []byte)) error {
	c.mu.Lock()
	if c.has(flagDown | flagDetach | flagNoSend | flagLate | flagFinished | flagEOF | flagDropOut) {
		c.mu.Unlock()
		return ErrClosed
	}
	if std, ok := c.sock.(*stdSocket); c.stage != nil || ok && std.wrap != nil {
		c.mu.Unlock()
		return fmt.Errorf("detach: %w", errors.ErrUnsupported)
	}
	if c.has(flagOpened) && !c.has(flagBatch|flagPaused) {
		if err := c.sock.halt(); err != nil {
			c.mu.Unlock()
			return fmt.Errorf("detach: %w", err)
		}
	}
	c.flags |= flagDetach | flagNoSend
	c.extra().detached = done
	c.noRunLocked()
	if c.has(flagOpened) {
		c.finishLocked()
	}
	if c.has(flagBatch) { // the reader flushes
		c.mu.Unlock()
		return nil
	}
	c.flushUnlock(false)
	return nil
}

// detaching is called by a reader that halt has made look, or that has come to the end of the input, which is no concern of ours
// any more then. If it reports true the caller is not the reader any more; otherwise the connection is not to be detached.
func (c *Conn) detaching() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.has(flagDetach) {
		return false
	}
	c.flags |= flagPaused
	c.finishLocked()
	return true
}

// finishDetachLocked hands the connection over when nothing stands in the way any more.
func (c *Conn) finishDetachLocked() {
	if !c.has(flagPaused) || c.has(flagFlushing|flagRunning|flagFinished) || c.pending > 0 || len(c.look().away) > 0 {
		return
	}
	c.flags |= flagFinished
	for _, p := range c.rare.periods {
		p.timer.Stop()
	}
	c.rare.periods = nil
	work.Go((*detacher)(c))
}

type detacher Conn

// RunTask implements work.Task.
func (d *detacher) RunTask() {
	c := (*Conn)(d)
	c.sock.detach(func(nc net.Conn, err error) { work.Go(detached{c, nc, err}) })
}

type detached struct {
	c   *Conn
	nc  net.Conn
	err error
}

// RunTask implements work.Task.
func (d detached) RunTask() {
	c := d.c
	var unread []byte
	if c.in != nil {
		unread = append(unread, c.in.B...)
		c.in.Free()
		c.in = nil
	}
	if d.err != nil { // there is no descriptor to give
		c.callDown(d.err)
		c.callClose(d.err)
		c.group.remove(c)
		return
	}
	func() {
		defer c.recover("a detached connection's function")
		c.rare.detached(d.nc, unread)
	}()
	c.group.remove(c)
}
