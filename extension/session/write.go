package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/arpc-go/arpc/internal/core"
)

// WritePkg encodes a package and sends it: what it returns is the length of its encoding and how much of that was accepted, which
// is all or nothing. It waits for room for timeout at most, 0 for the write timeout. Errors are ErrSessionClosed,
// ErrSessionBlocked, ErrNullPeerAddr and those of the Writer. On a UDP server pkg is a UDPContext.
func (s *Conn) WritePkg(pkg any, timeout time.Duration) (total, sent int, err error) {
	w := s.set.Load().writer
	if s.closed.Load() {
		return 0, 0, ErrSessionClosed
	}
	if w == nil {
		return 0, 0, errWriter
	}
	var peer *net.UDPAddr
	switch u := pkg.(type) {
	case UDPContext:
		peer = u.PeerAddr
	case *UDPContext:
		peer = u.PeerAddr
	}
	if peer == nil && s.end.kind == UDP_ENDPOINT {
		return 0, 0, ErrNullPeerAddr
	}
	b, err := w.Write(s, pkg)
	if err != nil {
		return 0, 0, err
	}
	sent, err = s.write(b, peer, timeout)
	return len(b), sent, err
}

// WriteBytes sends bytes that are encoded, as one package. It waits as WritePkg with a timeout of 0, and cannot be used on a UDP
// server.
func (s *Conn) WriteBytes(p []byte) (int, error) {
	if s.end.kind == UDP_ENDPOINT {
		return 0, ErrNullPeerAddr
	}
	return s.write(p, nil, 0)
}

// WriteBytesArray is WriteBytes for what lies in several pieces. Nothing of others comes between them.
func (s *Conn) WriteBytesArray(parts ...[]byte) (int, error) {
	return s.WriteBytes(bytes.Join(parts, nil))
}

func (s *Conn) write(p []byte, peer *net.UDPAddr, timeout time.Duration) (int, error) {
	if s.closed.Load() {
		return 0, ErrSessionClosed
	}
	if timeout <= 0 {
		timeout = s.set.Load().writeMax
	}
	n, err := s.link.send(s, peer, timeout, p)
	if err == nil {
		s.writePkgs.Add(1)
		s.writeBytes.Add(uint64(n))
	}
	return n, err
}

// stream is a connection of core.
type stream struct {
	*core.Conn
	ws bool
}

func (l stream) end(err error) { l.Close(err) }
func (l stream) abort()        { l.Abort(nil) }

func (l stream) send(s *Conn, _ *net.UDPAddr, wait time.Duration, p []byte) (n int, err error) {
	n = len(p)
	var timer *time.Timer
	for l.Lock(); l.CanSend() == nil && l.Full(); l.Lock() {
		if timer == nil {
			timer = time.NewTimer(wait)
			defer timer.Stop()
		}
		if !l.Room(nil, nil, timer.C) {
			return 0, ErrSessionBlocked
		}
	}
	if set := s.set.Load(); set.compressed && !l.ws {
		l.Unlock()
		s.out.mu.Lock()
		defer s.out.mu.Unlock()
		if p, err = s.out.pack(set.compress, p); err != nil {
			return 0, err
		}
		l.Lock()
	}
	if l.CanSend() != nil {
		l.Unlock()
		return 0, ErrSessionClosed
	}
	var head int
	if l.ws {
		head = prefixLen
	}
	b := l.Reserve(head + len(p))
	if l.ws {
		binary.BigEndian.PutUint32(b, uint32(len(b)))
	}
	copy(b[head:], p)
	l.Commit(core.Answer, false) // what callbacks write goes out together; see core
	return n, nil
}

// packets is a UDP socket of core.
type packets struct{ *core.Datagram }

func (l packets) end(error) { l.Close() }
func (l packets) abort()    { l.Close() }

func (l packets) send(_ *Conn, peer *net.UDPAddr, wait time.Duration, p []byte) (int, error) {
	var to netip.AddrPort
	if peer != nil {
		to = peer.AddrPort()
	}
	switch err := l.Send(p, to, wait); {
	case errors.Is(err, core.ErrClosed):
		return 0, ErrSessionClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, ErrSessionBlocked
	case err != nil:
		return 0, err
	}
	return len(p), nil
}
