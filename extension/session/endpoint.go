package session

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/frame"
	"github.com/arpc-go/arpc/internal/ws"
	"github.com/arpc-go/arpc/log"
)

// EndPointType says what an EndPoint is.
type EndPointType int32

// The kinds of EndPoint.
const (
	UDP_ENDPOINT EndPointType = 0 //nolint:revive // the names are those of getty
	UDP_CLIENT   EndPointType = 1
	TCP_CLIENT   EndPointType = 2
	WS_CLIENT    EndPointType = 3
	WSS_CLIENT   EndPointType = 4
	TCP_SERVER   EndPointType = 7
	WS_SERVER    EndPointType = 8
	WSS_SERVER   EndPointType = 9
)

// EndPointID is the number of an EndPoint.
type EndPointID = int32

// NewSessionCallback prepares a new session. An error closes it, and OnOpen and OnClose are not called.
type NewSessionCallback func(Session) error

// An EndPoint is a server or a client.
type EndPoint interface {
	ID() EndPointID
	EndPointType() EndPointType
	// RunEventLoop starts the end point, and does not wait for its end. A server listens when it returns nil; the error says why
	// it does not. A client has all its connections when it returns nil; otherwise it goes on trying, and the error says why it
	// has to. It is called once.
	RunEventLoop(newSession NewSessionCallback) error
	// Addr returns the address that a server listens on, nil for clients and servers that do not listen.
	Addr() net.Addr
	IsClosed() bool
	// Close closes the sessions, as Session.Close does, and waits for their end, for 5 s at most; then they are aborted. It is not
	// for callbacks, whose end it would wait for.
	Close()
	GetTaskPool() *TaskPool
}

// Client and Server are kinds of EndPoint.
type (
	Client = EndPoint
	Server = EndPoint
)

const (
	closeWait = 5 * time.Second
	prefixLen = 4 // of messages, see ws.Config.Prefix
	// maxMessage bounds a WebSocket message before the session's own limit is asked.
	maxMessage = 16 << 20
	stdConns   = 1024
	probe      = "connect-ping" // the first datagram of a UDP client, for nobody
)

type endPoint struct {
	id         EndPointID
	kind       EndPointType
	client, ws bool
	opts       options
	newSession NewSessionCallback
	group      *core.Group  // nil for UDP
	addr       atomic.Value // net.Addr

	life context.Context // ends with Close
	kill func()
	live sync.WaitGroup // sessions, and who dials

	mu       sync.Mutex
	sessions map[*Conn]struct{}
	tries    int           // connections of a client that came to nothing, in a row
	lost     chan struct{} // has a token when sessions has become smaller
}

var endPointIDs atomic.Int32

func newEndPoint(kind EndPointType, opts []Option) *endPoint {
	e := &endPoint{
		id: endPointIDs.Add(1), kind: kind, client: kind >= UDP_CLIENT && kind <= WSS_CLIENT,
		ws:   kind == WS_CLIENT || kind == WSS_CLIENT || kind == WS_SERVER || kind == WSS_SERVER,
		opts: options{number: 1, interval: 300 * time.Millisecond, std: stdConns}, sessions: map[*Conn]struct{}{}, lost: make(chan struct{}, 1),
	}
	for _, o := range opts {
		o(&e.opts)
	}
	e.life, e.kill = context.WithCancel(context.Background())
	return e
}

// NewTCPServer returns a server of TCP, or of TLS.
func NewTCPServer(opts ...Option) Server { return newEndPoint(TCP_SERVER, opts) }

// NewUDPEndPoint returns a server of UDP: one session for all peers.
func NewUDPEndPoint(opts ...Option) Server { return newEndPoint(UDP_ENDPOINT, opts) }

// NewWSServer returns a server of WebSocket.
func NewWSServer(opts ...Option) Server { return newEndPoint(WS_SERVER, opts) }

// NewWSSServer returns a server of WebSocket over TLS.
func NewWSSServer(opts ...Option) Server { return newEndPoint(WSS_SERVER, opts) }

// NewTCPClient returns a client of TCP, or of TLS.
func NewTCPClient(opts ...Option) Client { return newEndPoint(TCP_CLIENT, opts) }

// NewUDPClient returns a client of UDP. Its first datagram to the server is "connect-ping", which a server of this package, and getty's, drops.
func NewUDPClient(opts ...Option) Client { return newEndPoint(UDP_CLIENT, opts) }

// NewWSClient returns a client of WebSocket; its address is a URL.
func NewWSClient(opts ...Option) Client { return newEndPoint(WS_CLIENT, opts) }

// NewWSSClient returns a client of WebSocket over TLS; its address is a URL.
func NewWSSClient(opts ...Option) Client { return newEndPoint(WSS_CLIENT, opts) }

func (e *endPoint) ID() EndPointID             { return e.id }
func (e *endPoint) EndPointType() EndPointType { return e.kind }
func (e *endPoint) GetTaskPool() *TaskPool     { return e.opts.pool }
func (e *endPoint) IsClosed() bool             { return e.life.Err() != nil }

func (e *endPoint) Addr() net.Addr {
	a, _ := e.addr.Load().(net.Addr)
	return a
}

func (e *endPoint) RunEventLoop(newSession NewSessionCallback) (err error) {
	e.mu.Lock()
	if e.newSession != nil || e.IsClosed() {
		e.mu.Unlock()
		return errRunning
	}
	e.newSession = newSession
	if e.kind != UDP_ENDPOINT && e.kind != UDP_CLIENT {
		e.group = core.NewGroup(e.config(), (*app)(e))
	}
	if e.client {
		e.live.Add(1)
		defer func() { go e.maintain() }()
	}
	e.mu.Unlock()
	if !e.client {
		if err = e.listen(); err != nil {
			e.Close()
		}
		return err
	}
	for i := 0; i < e.opts.number && err == nil; i++ {
		err = e.connect()
	}
	return err
}

func (e *endPoint) config() core.Config {
	cfg := core.Config{
		Split: chunks{}, StdConns: e.opts.std, Over: core.Pause, Idle: -1, Logf: log.Error, CloseFlush: 15 * time.Second,
		Opened: func(c *core.Conn, _ *core.Turn) { c.User.(*Conn).begin() },
	}
	if e.ws {
		p, _ := frame.NewPrefix(messages) // it is valid
		cfg.SplitConn = func(c *core.Conn, b []byte) (n, need int, err error) {
			return p.SplitMax(b, prefixLen+c.User.(*Conn).set.Load().maxMsg)
		}
	}
	return cfg
}

// listen makes a server's socket and starts to serve it.
func (e *endPoint) listen() error {
	if e.kind == UDP_ENDPOINT {
		d, err := core.ListenDatagram("udp", e.opts.addr, e.datagrams())
		if err != nil {
			return err
		}
		e.addr.Store(d.LocalAddr())
		_, err = e.start(d)
		return err
	}
	if e.kind == WSS_SERVER && e.opts.tls == nil {
		return errNoTLS
	}
	ln, err := core.Address{Network: "tcp", Addr: e.opts.addr}.Listen()
	if err != nil {
		return err
	}
	e.addr.Store(ln.Addr())
	switch {
	case e.ws:
		ln = ws.Listen(ln, ws.ServerConfig{Stage: stageConfig(false), Path: e.opts.path, TLS: e.opts.tls, Origins: e.opts.origins})
	case e.opts.tls != nil:
		ln = tls.NewListener(ln, e.opts.tls)
	}
	go func() {
		if err := e.group.Serve(ln); !errors.Is(err, core.ErrStopped) {
			log.Error("session: server on %v ended: %v", e.Addr(), err)
		}
	}()
	return nil
}

// Close implements EndPoint.
func (e *endPoint) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	e.mu.Lock()
	e.kill()
	group, sessions := e.group, slices.Collect(maps.Keys(e.sessions))
	e.mu.Unlock()
	for _, s := range sessions {
		s.fail(core.ErrStopped)
	}
	if group != nil {
		group.Stop(ctx, nil) //nolint:errcheck // what is left is aborted
	}
	idle := make(chan struct{})
	go func() {
		e.live.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// add makes a session of what carries it.
func (e *endPoint) add(l link, local, remote string) (*Conn, error) {
	s := newConn(e, l, local, remote)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.IsClosed() {
		return nil, ErrSessionClosed
	}
	e.live.Add(1)
	e.sessions[s] = struct{}{}
	return s, nil
}

// gone is called when a session is over.
func (e *endPoint) gone(s *Conn) {
	e.mu.Lock()
	delete(e.sessions, s)
	if e.tries++; time.Since(s.born) >= e.opts.interval {
		e.tries = 0
	}
	e.mu.Unlock()
	e.live.Done()
	select {
	case e.lost <- struct{}{}:
	default:
	}
}

// app is an endPoint as core sees it.
type app endPoint

// Open implements core.App.
func (a *app) Open(c *core.Conn) error {
	s, err := (*endPoint)(a).add(stream{c, a.ws}, c.LocalAddr().String(), c.RemoteAddr().String())
	c.User = s
	return err
}

// Batch implements core.App.
func (a *app) Batch(_ *core.Conn, in *core.Input) error {
	for {
		f, err := in.Next()
		if f == nil || err != nil {
			return err
		}
		if !in.Ordered(false, nil) {
			return errFlooded
		}
	}
}

// Run implements core.App.
func (a *app) Run(c *core.Conn, _ *core.Input, f []byte, _ any) *core.Turn {
	s := c.User.(*Conn)
	if a.ws {
		s.whole(f[prefixLen:], nil)
	} else if err := s.stream(f); err != nil {
		s.fail(err)
	}
	return nil
}

// Down implements core.App.
func (a *app) Down(c *core.Conn, err error) {
	if !errors.Is(err, io.EOF) { // otherwise what the peer sent before its end is still handled and answered
		c.User.(*Conn).shut()
	}
}

// Close implements core.App.
func (a *app) Close(c *core.Conn, err error) { c.User.(*Conn).finish(err) }

// datagrams is the configuration of a UDP socket.
func (e *endPoint) datagrams() core.DatagramConfig {
	return core.DatagramConfig{
		Handle: func(d *core.Datagram, p []byte, from netip.AddrPort) {
			if e.client || string(p) != probe {
				d.User.(*Conn).whole(p, net.UDPAddrFromAddrPort(from))
			}
		},
		Failed: func(d *core.Datagram, err error) { d.User.(*Conn).report(err) },
		Closed: func(d *core.Datagram) {
			if s, ok := d.User.(*Conn); ok {
				s.finish(nil)
			}
		},
	}
}

// start makes a session of a UDP socket.
func (e *endPoint) start(d *core.Datagram) (*Conn, error) {
	remote := ""
	if e.client {
		remote = d.Peer().String()
	}
	s, err := e.add(packets{d}, d.LocalAddr().String(), remote)
	if err != nil {
		d.Close()
		return nil, err
	}
	d.User = s
	s.begin()
	d.Start()
	return s, s.openErr
}
