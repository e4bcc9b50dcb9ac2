package arpc

import (
	"errors"

	"github.com/arpc-go/arpc/internal/core"
)

// GOAWAY says that an end does not want anything new on the connection, and why. With flagError set it is the last that the
// end sends: it closes the connection with that reason.

// goAway sends it, if the peer knows it.
func (l *link) goAway(reason error, final bool) {
	if !l.has(featGoAway) {
		return
	}
	flag := byte(0)
	if final {
		flag = flagError
	}
	var e *Error
	if !errors.As(reason, &e) {
		text := "closed"
		if reason != nil {
			text = lostError(&Error{}, reason).Message[len(": "):]
		}
		e = &Error{Code: CodeUnavailable, Message: text}
	}
	l.control(cmdGoAway, flag, 0, appendError(nil, e, nil), core.Now) //nolint:errcheck // the connection is gone
}

// drain tells the peer that nothing new is wanted, and asks for a pong: what it has sent before it knew comes before that, and must be
// refused rather than lost.
func (l *link) drain() {
	if !l.has(featGoAway) {
		return
	}
	l.cn.Lock()
	l.extraLocked().draining.Store(true)
	l.cn.Unlock()
	l.goAway(errDraining, false)
	l.pong(pingFrame)
}

// draining reports whether that pong is missing.
func (l *link) draining() bool {
	x := l.x.Load()
	return x != nil && x.draining.Load()
}

// goAwayFrame handles GOAWAY.
func (l *link) goAwayFrame(frame []byte) error {
	if frame[indexMethodLen] != 0 {
		return errFrame
	}
	e := decodeError(frame[HeadLen:], nil)
	l.cn.Lock()
	x := l.extraLocked()
	if frame[indexFlag]&flagError != 0 {
		x.farewell = e
	} else if l.gate&gateGoing == 0 {
		l.gate |= gateGoing
		x.going = e
	}
	l.cn.Unlock()
	if c := l.client; c.dial != nil && frame[indexFlag]&flagError == 0 {
		c.lost(l, lostError(errGoingAway, e))
	}
	return nil
}
