// Package websocket lets servers and clients speak over WebSocket, so that a web page is a peer like any other.
//
//	listener, err := websocket.Listen(":8888", websocket.Path("/arpc"))   // a port of its own
//	server.Serve(listener)
//
//	mux.Handle("/arpc", websocket.NewHandler(server))                     // beside other HTTP handlers
//
//	client, err := arpc.NewClient(websocket.Dialer("ws://localhost:8888/arpc"))
//
// Connections are the same as over TCP: they begin on an event loop where there is one, and share queues, limits and
// broadcasts. Bytes travel in binary messages; text messages are taken for the same. A peer of version 1 of the protocol gets one
// frame per message, others may get several.
//
// # Security
//
// A page of another origin is refused unless it is allowed, see Origins. TLS is the standard library's: Listen takes a TLS
// option, and a Handler belongs to whatever http.Server serves it.
//
// # Close codes
//
// 1000 after Client.Stop, 1001 after Server.Stop and for silence, 1002 for what breaks RFC 6455, 1007 for text that is not UTF-8,
// 1008 for malformed frames and refused credentials, 1009 for messages above a limit, 1011 for faults of this side.
package websocket

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"

	gobwas "github.com/gobwas/ws"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/frame"
	"github.com/arpc-go/arpc/internal/ws"
)

// An Option configures Listen, NewHandler and Dialer. Those that make no sense for one of them have no effect there.
type Option func(*config)

type config struct {
	path      string
	origins   []string // "*" for all
	protocols []string
	limit     int64
	deflate   bool
	compress  int
	tls       *tls.Config
	timeout   time.Duration
	header    http.Header
}

// Path sets the path that Listen answers; default: any.
func Path(path string) Option { return func(c *config) { c.path = path } }

// Origins allows pages of other origins, such as "https://app.example.com", besides those of the same host and clients that
// send no Origin, which browsers always do.
func Origins(origins ...string) Option {
	return func(c *config) { c.origins = append(c.origins, origins...) }
}

// AnyOrigin allows pages of all origins: any page that a user visits may then use the connection with the user's cookies.
func AnyOrigin() Option { return Origins("*") }

// Subprotocols sets the subprotocols that a server chooses from, or a client asks for; default none.
func Subprotocols(names ...string) Option { return func(c *config) { c.protocols = names } }

// ReadLimit sets the longest message that is accepted, in bytes; default 64 MiB and 64 KiB. A longer one closes the connection.
func ReadLimit(n int64) Option { return func(c *config) { c.limit = n } }

// Compression agrees on permessage-deflate, without context takeover, with peers that offer or accept it, and compresses
// messages from the given number of bytes on; default none. It costs CPU time while a connection is locked.
func Compression(from int) Option {
	return func(c *config) { c.deflate, c.compress = true, max(from, 1) }
}

// TLS sets the configuration of Listen, which needs a certificate, and of Dialer for wss URLs.
func TLS(cfg *tls.Config) Option { return func(c *config) { c.tls = cfg } }

// HandshakeTimeout bounds the handshake; default 10 seconds. That of a Handler is up to its http.Server.
func HandshakeTimeout(d time.Duration) Option { return func(c *config) { c.timeout = d } }

// Header sets header fields that Dialer sends, such as Origin or Cookie.
func Header(h http.Header) Option { return func(c *config) { c.header = h } }

func newConfig(opts []Option) *config {
	c := &config{limit: 64<<20 + 64<<10, timeout: 10 * time.Second}
	for _, o := range opts {
		o(c)
	}
	return c
}

func (c *config) stage(client bool) *ws.Config {
	return &ws.Config{Client: client, ReadLimit: c.limit, Compress: c.compress, StatusOf: statusOf}
}

func (c *config) server() ws.ServerConfig {
	return ws.ServerConfig{
		Stage: c.stage(false), Deflate: c.deflate, Protocols: c.protocols,
		Path: c.path, Origins: c.origins, TLS: c.tls, Handshake: c.timeout,
	}
}

// statusOf is the close code and text for the reason of a close.
func statusOf(err error) (ws.Status, string) {
	var e *arpc.Error
	var large *frame.TooLargeError
	switch {
	case errors.Is(err, arpc.ErrClientStopped), errors.Is(err, core.ErrClosed):
		return gobwas.StatusNormalClosure, ""
	case errors.Is(err, arpc.ErrServerStopped), errors.Is(err, core.ErrStopped), errors.Is(err, core.ErrIdle):
		return gobwas.StatusGoingAway, err.Error()
	case errors.As(err, &large):
		return gobwas.StatusMessageTooBig, err.Error()
	case errors.As(err, &e) && e.Code == arpc.CodeInternal:
		return gobwas.StatusInternalServerError, e.Message
	}
	return gobwas.StatusPolicyViolation, err.Error()
}

type muxAddr struct{}

func (muxAddr) Network() string { return "websocket" }
func (muxAddr) String() string  { return "websocket" }

// NewHandler returns a handler that makes the WebSocket connections which come to it server's. It serves until the server
// stops; then, and after it, it answers with 503.
func NewHandler(server *arpc.Server, opts ...Option) http.Handler {
	ln := ws.NewListener(muxAddr{}, newConfig(opts).server())
	go server.Serve(ln) //nolint:errcheck // it ends with the server
	return ln
}

// Listen listens on a TCP address and returns a listener for Server.Serve, whose connections have done their handshake. 8,192
// handshakes may be going on at a time; further connections are closed.
func Listen(addr string, opts ...Option) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return ws.Listen(ln, newConfig(opts).server()), nil
}

// Dialer returns a dialer for arpc.NewClient. The URL begins with ws:// or wss://.
func Dialer(url string, opts ...Option) func() (net.Conn, error) {
	cfg := newConfig(opts)
	d := &gobwas.Dialer{Timeout: cfg.timeout, Protocols: cfg.protocols, TLSConfig: cfg.tls}
	if cfg.header != nil {
		d.Header = gobwas.HandshakeHeaderHTTP(cfg.header)
	}
	stage := cfg.stage(true)
	return func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), cfg.timeout)
		defer cancel()
		return ws.Dial(ctx, d, url, stage, cfg.deflate)
	}
}
