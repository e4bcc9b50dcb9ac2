package packet

import (
	"context"
	"fmt"

	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/work"
)

// app is the core.App of a server or of a session that dials.
type app struct {
	server  *Server
	session *Session
}

// splitConn is core.Config.SplitConn.
func splitConn(cn *core.Conn, buf []byte) (n, need int, err error) {
	s := cn.User.(*Session)
	return split(s.proto, buf, int(s.receive.Load()))
}

// Open implements core.App.
func (a app) Open(cn *core.Conn) error {
	s := a.session
	if s == nil {
		s = newSession(cn.ID(), a.server.proto, a.server.limits)
		s.started.Store(true)
		a.server.sessions.Add(1)
	}
	cn.User = s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down { // Close came first
		return ErrClosed
	}
	s.cn.Store(cn)
	return nil
}

// Opened is core.Config.Opened.
func (a app) Opened(cn *core.Conn, _ *core.Turn) {
	s := cn.User.(*Session)
	if h := a.server.onStart.Load(); h != nil && *h != nil {
		s.safely("start hook", func() { (*h)(s) })
	}
}

// Batch implements core.App.
func (a app) Batch(_ *core.Conn, in *core.Input) error {
	for {
		packet, err := in.Next()
		if err != nil || packet == nil {
			return err
		}
		if !in.Ordered(false, nil) {
			return fmt.Errorf("%w: too much for the handler", ErrProtocol)
		}
	}
}

// Run implements core.App.
func (a app) Run(cn *core.Conn, _ *core.Input, packet []byte, _ any) *core.Turn {
	s := cn.User.(*Session)
	if h := s.handler.Load(); h != nil && *h != nil {
		s.safely("message handler", func() { (*h)(s, s.proto.Body(packet)) })
	}
	return nil
}

// Down implements core.App.
func (a app) Down(cn *core.Conn, err error) {
	s := cn.User.(*Session)
	s.mu.Lock()
	s.down, s.err = true, err
	channels := s.channels
	s.channels = nil
	s.mu.Unlock()
	for ch := range channels {
		ch.remove(s)
	}
	if a.server != nil {
		a.server.sessions.Add(-1)
	}
}

// Close implements core.App.
func (a app) Close(cn *core.Conn, _ error) {
	s := cn.User.(*Session)
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.moved.Broadcast()
	h := s.onClose
	if a.server != nil {
		if f := a.server.onClose.Load(); f != nil {
			h = *f
		}
	} else {
		work.Go(stopper{cn.Group()})
	}
	if h != nil {
		s.safely("close hook", func() { h(s) })
	}
}

// stopper ends the group of a session that has dialled.
type stopper struct{ g *core.Group }

// RunTask implements work.Task.
func (s stopper) RunTask() { s.g.Stop(context.Background(), nil) } //nolint:errcheck // nothing is left in it
