package packet

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/log"
)

// stdConns is how many sessions may have a goroutine each; the others are on event loops.
const stdConns = 1024

// A Server has a Session for each connection that it accepts.
type Server struct {
	// State is the program's.
	State any

	proto            Protocol
	ln               net.Listener
	std              int
	sessions         atomic.Int64
	onStart, onClose atomic.Pointer[func(*Session)]
	onStop           atomic.Pointer[func(*Server)]

	mu        sync.Mutex
	limits    *Limits     // only Packets ever changes
	group     *core.Group // nil before Start
	stopped   bool
	accepting sync.WaitGroup
}

// ListenAndServe listens on an address as package net has them, TCP or Unix. Start begins to accept; who connects before waits for that.
func ListenAndServe(network, addr string, proto Protocol, limits ...Limits) (*Server, error) {
	a, err := address(network, addr, proto)
	if err != nil {
		return nil, err
	}
	ln, err := a.Listen()
	if err != nil {
		return nil, err
	}
	return NewServer(ln, proto, limits...), nil
}

// NewServer is ListenAndServe with a listener of any kind, which belongs to the server from then on.
func NewServer(ln net.Listener, proto Protocol, limits ...Limits) *Server {
	return &Server{proto: proto, ln: ln, std: stdConns, limits: limited(limits)}
}

// Listener returns the listener, for its address; it must not be used for accepting.
func (s *Server) Listener() net.Listener { return s.ln }

// Protocol returns what splits and frames the sessions' packets.
func (s *Server) Protocol() Protocol { return s.proto }

// SetSendChanSize changes Limits.Packets of all sessions; 0 or less means the default.
func (s *Server) SetSendChanSize(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits.Packets = positive(n, defaultPackets)
	if s.group != nil {
		s.group.SetMessages(s.limits.Packets)
	}
}

// SendChanSize returns Limits.Packets.
func (s *Server) SendChanSize() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limits.Packets
}

// OnSessionStart sets what is called with each new session before its first packet is handled; it may set the session's handler,
// send, block or close it.
func (s *Server) OnSessionStart(f func(*Session)) { s.onStart.Store(&f) }

// OnSessionClose sets what is called with each session when it is over.
func (s *Server) OnSessionClose(f func(*Session)) { s.onClose.Store(&f) }

// OnServerStop sets what is called once, by the first Stop, when all sessions are over.
func (s *Server) OnServerStop(f func(*Server)) { s.onStop.Store(&f) }

// Start begins to accept, and does not wait. A second Start returns ErrStarted, one after Stop ErrStopped.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return ErrStopped
	case s.group != nil:
		return ErrStarted
	}
	a := app{server: s}
	cfg := s.limits.config(s.std)
	cfg.Opened = a.Opened
	s.group = core.NewGroup(cfg, a)
	s.accepting.Go(func() {
		if err := s.group.Serve(s.ln); !errors.Is(err, core.ErrStopped) {
			log.Error("packet: the listener on %v has failed: %v", s.ln.Addr(), err)
		}
	})
	return nil
}

// Stop closes the listener and all sessions, as Session.Close does, and waits until their close hooks have returned; what takes longer
// than Limits.Close is aborted. Then the stop hook runs. A further Stop waits for the sessions too. A handler or hook of a session that calls
// Stop waits for itself, which Limits.Close ends, but for a close hook 5 seconds later: there "go server.Stop()" is better.
func (s *Server) Stop() {
	s.mu.Lock()
	first, g, limit := !s.stopped, s.group, s.limits.Close
	s.stopped = true
	s.mu.Unlock()
	if g == nil {
		s.ln.Close() //nolint:errcheck // it was never used
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		g.Stop(ctx, ErrStopped) //nolint:errcheck // it aborts what is left
		s.accepting.Wait()
	}
	if h := s.onStop.Load(); first && h != nil && *h != nil {
		survives("stop hook", func() { (*h)(s) })
	}
}

// Fetch calls f for each session that was open when Fetch was called and still is.
func (s *Server) Fetch(f func(*Session)) {
	s.mu.Lock()
	g := s.group
	s.mu.Unlock()
	if g == nil {
		return
	}
	g.Each(func(cn *core.Conn) bool {
		if cn.Alive() {
			f(cn.User.(*Session))
		}
		return true
	})
}

// Len returns the number of open sessions.
func (s *Server) Len() int { return int(s.sessions.Load()) }
