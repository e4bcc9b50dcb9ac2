package session

import (
	"context"
	"crypto/tls"
	"math"
	"net"
	"time"

	gobwas "github.com/gobwas/ws"

	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/ws"
	"github.com/arpc-go/arpc/log"
)

const dialWait = 3 * time.Second

// maintain keeps the number of connections until Close. It is one goroutine per client, and no session's.
func (e *endPoint) maintain() {
	defer e.live.Done()
	for {
		var pause time.Duration = math.MaxInt64
		e.mu.Lock()
		if len(e.sessions) < e.opts.number {
			pause = time.Duration(min(e.tries, 10)) * e.opts.interval
		}
		e.mu.Unlock()
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			e.connect() //nolint:errcheck // it is logged
		case <-e.lost:
		case <-e.life.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// connect makes one connection, whose OnOpen has returned when it does.
func (e *endPoint) connect() error {
	ctx, cancel := context.WithTimeout(e.life, dialWait)
	defer cancel()
	s, err := e.dial(ctx)
	if err == nil {
		select {
		case <-s.ready:
			err = s.openErr
		case <-e.life.Done():
			err = ErrSessionClosed
		}
	}
	if err != nil && !e.IsClosed() {
		log.Info("session: connecting to %s: %v", e.opts.addr, err)
		e.mu.Lock()
		e.tries++
		e.mu.Unlock()
	}
	return err
}

func (e *endPoint) dial(ctx context.Context) (*Conn, error) {
	if e.kind == UDP_CLIENT {
		d, err := core.DialDatagram(ctx, "udp", e.opts.addr, e.datagrams())
		if err != nil {
			return nil, err
		}
		if d.LocalAddr().String() == d.Peer().String() {
			d.Close()
			return nil, ErrSelfConnect
		}
		d.Send([]byte(probe), d.Peer(), 0) //nolint:errcheck // it is for nobody
		return e.start(d)
	}
	nc, err := e.dialStream(ctx)
	if err != nil {
		return nil, err
	}
	return e.adopt(nc)
}

func (e *endPoint) adopt(nc net.Conn) (*Conn, error) {
	if nc.LocalAddr().String() == nc.RemoteAddr().String() { // an ephemeral port can happen to be the one that is dialled
		nc.Close() //nolint:errcheck // it was never used
		return nil, ErrSelfConnect
	}
	c, err := e.group.Adopt(nc)
	if err != nil {
		return nil, err
	}
	return c.User.(*Conn), nil
}

func (e *endPoint) dialStream(ctx context.Context) (net.Conn, error) {
	if e.ws {
		return ws.Dial(ctx, &gobwas.Dialer{TLSConfig: e.opts.tls}, e.opts.addr, stageConfig(true), false)
	}
	nc, err := core.Address{Network: "tcp", Addr: e.opts.addr}.Dial(ctx)
	if err != nil || e.opts.tls == nil {
		return nc, err
	}
	cfg := e.opts.tls.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(e.opts.addr)
	}
	t := tls.Client(nc, cfg)
	if err = t.HandshakeContext(ctx); err != nil {
		nc.Close() //nolint:errcheck // it was never used
	}
	return t, err
}
