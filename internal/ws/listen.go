package ws

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ServerConfig says which handshakes a Listener answers, and how.
type ServerConfig struct {
	// Stage is for all connections; Deflate accepts the offer of compression.
	Stage   *Config
	Deflate bool
	// Protocols are the subprotocols to choose from.
	Protocols []string
	// Path is the only path that is answered; empty for any.
	Path string
	// Origins are those of pages that may connect besides pages of the same host; "*" stands for all. Who sends no Origin,
	// which browsers always do, may connect.
	Origins []string
	// TLS, if not nil, is for connections that begin with it.
	TLS *tls.Config
	// Handshake bounds the time until a handshake is done; default 10 seconds.
	Handshake time.Duration
	// Handshakes is the number of connections whose handshake may be going on; more are closed at once. Default 8192.
	Handshakes int
}

// Listener returns connections for a core Group, whose handshake is done. The handshakes run beside each other, so a peer that
// stays silent is in nobody's way.
type Listener struct {
	cfg    ServerConfig
	addr   net.Addr
	port   net.Listener // nil if the requests come from elsewhere
	http   *http.Server // nil likewise
	conns  chan net.Conn
	closed chan struct{}
	err    error // why; set before closed is
	once   sync.Once
	going  atomic.Int64 // handshakes
}

// NewListener makes a Listener of the requests that its ServeHTTP gets. TLS and the limits of handshakes are up to who calls that.
func NewListener(addr net.Addr, cfg ServerConfig) *Listener {
	return &Listener{cfg: cfg, addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Listen makes a Listener of one of plain connections, which belongs to it. It has a goroutine of its own and one for each handshake;
// they end with Close.
func Listen(ln net.Listener, cfg ServerConfig) *Listener {
	if cfg.Handshake <= 0 {
		cfg.Handshake = 10 * time.Second
	}
	if cfg.Handshakes <= 0 {
		cfg.Handshakes = 8192
	}
	l := NewListener(ln.Addr(), cfg)
	l.port = ln
	if cfg.TLS != nil {
		t := cfg.TLS.Clone()
		t.NextProtos = []string{"http/1.1"}
		ln = tls.NewListener(ln, t)
	}
	l.http = &http.Server{
		Handler: l, ConnState: l.state, ErrorLog: log.New(io.Discard, "", 0),
		ReadTimeout: cfg.Handshake, IdleTimeout: cfg.Handshake,
	}
	go func() { l.end(l.http.Serve(ln)) }()
	return l
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.addr }

// state counts handshakes: a connection is none any more when it has become a WebSocket, or is closed.
func (l *Listener) state(nc net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		if l.going.Add(1) > int64(l.cfg.Handshakes) {
			nc.Close() //nolint:errcheck // nothing was said yet
		}
	case http.StateHijacked, http.StateClosed:
		l.going.Add(-1)
	}
}

// ServeHTTP implements http.Handler.
func (l *Listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if l.cfg.Path != "" && r.URL.Path != l.cfg.Path {
		http.NotFound(w, r)
		return
	}
	if !l.allowed(r) {
		http.Error(w, "origin not allowed", http.StatusForbidden)
		return
	}
	select {
	case <-l.closed:
		http.Error(w, "server stopped", http.StatusServiceUnavailable)
		return
	default:
	}
	c, err := Upgrade(w, r, l.cfg.Stage, l.cfg.Deflate, l.cfg.Protocols)
	if err != nil {
		return // the response says why
	}
	c.SetDeadline(time.Time{}) //nolint:errcheck // the limits are the group's from now on
	select {
	case l.conns <- c:
	case <-l.closed:
		c.Close() //nolint:errcheck // nobody has it
	}
}

// allowed reports whether the page that a request comes from may connect.
func (l *Listener) allowed(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	if slices.ContainsFunc(l.cfg.Origins, func(o string) bool { return o == "*" || strings.EqualFold(o, origin) }) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, l.err
	}
}

// Close implements net.Listener. Handshakes that are going on end.
func (l *Listener) Close() error {
	l.end(net.ErrClosed)
	return nil
}

func (l *Listener) end(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.closed)
		if l.http != nil {
			l.http.Close() //nolint:errcheck // it has no connections that matter
			l.port.Close() //nolint:errcheck // in case http had not begun
		}
	})
}
