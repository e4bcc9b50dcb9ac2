package arpc

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/arpc-go/arpc/internal/core"
)

// maxCanceled is the number of cancelled requests of a connection that are remembered until they are answered; of more the
// oldest are forgotten, and their handlers are stopped by their deadline only.
const maxCanceled = 4096

// canceledSet holds the requests that were cancelled by their caller and that no handler has asked about yet: they may be in
// line, or their handler may ask later. It is guarded by the connection's lock.
type canceledSet struct {
	n     atomic.Int32 // len(m), for who does not hold the lock
	m     map[uint64]*Error
	order []uint64 // a ring once it is full
	next  int
}

func (s *canceledSet) add(seq uint64, cause *Error) {
	if s.m == nil {
		s.m = map[uint64]*Error{}
	}
	if len(s.order) < maxCanceled {
		s.order = append(s.order, seq)
	} else {
		delete(s.m, s.order[s.next])
		s.order[s.next] = seq
		s.next = (s.next + 1) % maxCanceled
	}
	s.m[seq] = cause
	s.n.Store(int32(len(s.m)))
}

func (s *canceledSet) remove(seq uint64) {
	if len(s.m) > 0 {
		delete(s.m, seq)
		s.n.Store(int32(len(s.m)))
	}
}

// has reports whether the request in frame was cancelled before it ran. The lock is not held.
func (s *canceledSet) has(l *link, frame []byte) bool {
	if s.n.Load() == 0 || frame[indexCmd] != CmdRequest {
		return false
	}
	l.cn.Lock()
	defer l.cn.Unlock()
	return s.m[(&Message{Buffer: frame}).Seq()] != nil
}

var errCanceledEarly = &Error{Code: CodeCanceled, Message: "cancelled by the caller before it ran"}

// errStopped is the answer for a handler that stopped without one because its caller cancelled.
var errStopped = &Error{Code: CodeCanceled, Message: "the handler has stopped"}

// maxCause is the number of bytes of a cause that travel.
const maxCause = 1 << 10

// sendCancel tells the peer that nobody waits for the answer of a request any more, and why.
func (l *link) sendCancel(seq uint64, ctx context.Context) {
	if !l.has(featCancel) || errors.Is(ctx.Err(), context.DeadlineExceeded) { // the peer knows the deadline
		return
	}
	text := context.Cause(ctx).Error()
	if len(text) > maxCause {
		text = text[:maxCause]
	}
	body := append(make([]byte, 0, 1+len(text)), byte(CodeCanceled))
	l.control(cmdCancel, 0, seq, append(body, text...), core.Now) //nolint:errcheck // the connection's end says more
}

// cancelFrame handles CANCEL.
func (l *link) cancelFrame(frame []byte) error {
	body := frame[HeadLen:]
	if frame[indexMethodLen] != 0 || len(body) < 1 || Code(body[0]) != CodeCanceled {
		return errFrame
	}
	text := string(body[1:min(len(body), 1+maxCause)])
	cause := &Error{Code: CodeCanceled, Message: "cancelled by the caller: " + text, Remote: true, causes: []error{context.Canceled}}
	seq := (&Message{Buffer: frame}).Seq()
	l.cn.Lock()
	x := l.extraLocked()
	c := x.asked[seq]
	var all []*Context
	for ; c != nil; c = c.rare.Load().nextAsked {
		if c.rare.Load().request {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		x.canceled.add(seq, cause)
	}
	l.cn.Unlock()
	for _, c := range all {
		c.rare.Load().cancel(cause)
	}
	return nil
}

// control sends a frame of the protocol's own, without a method.
func (l *link) control(cmd, flag byte, seq uint64, body []byte, urgency core.Urgency) error {
	m := newMessage(cmd, flag, seq, "", body, nil)
	if coders := l.client.Handler.load().coders; len(coders) > 0 {
		var err error
		if m, err = encodeAll(coders, l, m); err != nil {
			return err
		}
	}
	return l.send(m, urgency)
}
