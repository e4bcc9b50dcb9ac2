package core

import (
	"errors"
	"io"
	"net"

	"github.com/arpc-go/arpc/internal/buf"
)

// A Stage stands between the bytes of a connection and its frames, and wraps them, such as WebSocket does. One belongs to one
// connection. Decode is called by the reader, the others with Lock held.
type Stage interface {
	// Decode takes bytes as they were read and returns what they wrap: in the same memory, from its beginning on, or in
	// other memory that is valid until the next call. What the other end is to be told at once goes to reply, raw. io.EOF,
	// or an error that is it, says that the peer has ended the connection; another error closes it, and after that it returns
	// nothing but io.EOF, when the peer has answered.
	Decode(p []byte, reply func(raw []byte)) ([]byte, error)
	// Single reports whether each frame is to be wrapped on its own, and SetSingle changes that.
	Single() bool
	SetSingle(bool)
	// Room is the number of bytes that wrapping puts before its contents at most.
	Room() int
	// Wrap wraps p[Room():] in place and returns where the result begins and ends.
	Wrap(p []byte) (start, end int)
	// Goodbye returns what is sent last, raw; nil if that was sent already.
	Goodbye(err error) []byte
}

// Staged is a connection that a listener or dialer made, with what the bytes on it are wrapped in. It is not read or written
// itself.
type Staged interface {
	net.Conn
	// Unwrap returns the connection under it, the stage, and bytes that were read from the connection already.
	Unwrap() (net.Conn, Stage, []byte)
}

// unwrap takes a Staged apart.
func unwrap(nc net.Conn) (net.Conn, *stage) {
	s, ok := nc.(Staged)
	if !ok {
		return nc, nil
	}
	nc, st, rest := s.Unwrap()
	return nc, &stage{Stage: st, rest: rest}
}

// stage is a connection's.
type stage struct {
	Stage
	rest []byte // read before the connection was the group's
}

// begin is called by the reader when it starts. It handles what was read before, and reports whether the caller still is the
// reader, and the error that ends the input.
func (c *Conn) begin() (bool, error) {
	if c.stage == nil || c.stage.rest == nil {
		return true, nil
	}
	rest := c.stage.rest
	c.stage.rest = nil
	b := buf.Get(len(rest))
	b.B = append(b.B, rest...)
	return c.taken(b, 0)
}

// taken handles what was read into b behind its first have bytes. It reports whether the caller still is the reader, and
// io.EOF when the peer has ended the connection.
func (c *Conn) taken(b *buf.Buf, have int) (bool, error) {
	if c.stage == nil {
		return c.turn(b), nil
	}
	c.inTick.Store(c.group.tick())
	out, err := c.stage.Decode(b.B[have:], c.reply)
	if have+len(out) > cap(b.B) {
		nb := buf.Get(have + len(out))
		nb.B = append(nb.B, b.B[:have]...)
		b.Free()
		b = nb
	}
	b.B = append(b.B[:have], out...)
	reader := true
	switch {
	case len(out) > 0:
		reader = c.turn(b)
	case have > 0:
		c.in = b
	default:
		b.Free()
	}
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		c.stageEnded(err, reader)
		err = io.EOF
	default:
		c.group.Stats.ProtocolErrors.Add(1)
		c.group.cfg.Logf("arpc: connection %d from %v closed: %v", c.id, c.RemoteAddr(), err)
		c.Close(err)
		err = nil // what follows is read, and dropped, until the peer has closed
	}
	return reader, err
}

// stageEnded deals with the end of the input as the stage knows it. Frames that came before it are still run, as before the end
// of any other input; but the peer wants to hear nothing any more.
func (c *Conn) stageEnded(err error, reader bool) {
	c.mu.Lock()
	c.flags |= flagFarewell
	busy := c.has(flagRunning) || c.head != nil || len(c.look().away) > 0
	if busy {
		c.flags |= flagNoSend
	}
	c.mu.Unlock()
	switch {
	case !busy:
		c.Close(err)
	case !reader: // who is, or will be, does not know
		c.Post(func() { c.Close(err) })
	}
}

// Stage returns what the connection's bytes are wrapped in, nil if there is nothing.
func (c *Conn) Stage() Stage {
	if c.stage == nil {
		return nil
	}
	return c.stage.Stage
}

// SendRaw sends bytes of the stage's, such as a ping, as they are. It returns the error with which output is refused.
func (c *Conn) SendRaw(raw []byte) error {
	c.mu.Lock()
	if err := c.CanSend(); err != nil {
		c.mu.Unlock()
		return err
	}
	c.rawLocked(raw)
	c.Commit(Now, false)
	return nil
}

// Together lets the stage of a connection, if it has one, wrap several frames at once. The caller holds Lock.
func (c *Conn) Together() {
	if c.stage != nil && c.stage.Single() {
		c.closeChunkLocked()
		c.stage.SetSingle(false)
	}
}

// reply sends raw bytes of the stage's.
func (c *Conn) reply(raw []byte) { c.SendRaw(raw) } //nolint:errcheck // the connection is about to end then

// rawLocked appends bytes that are not wrapped.
func (c *Conn) rawLocked(raw []byte) {
	c.closeChunkLocked()
	b := buf.Get(len(raw))
	b.B = append(b.B, raw...)
	b.Messages, b.Answers = 1, uint32(len(raw)) // so that who does not read them is not read either
	c.answers += uint32(len(raw))
	c.queueLocked(b)
	c.acceptLocked(len(raw))
}
