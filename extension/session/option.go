package session

import (
	"crypto/tls"
	"encoding/binary"
	"time"

	"github.com/arpc-go/arpc/internal/frame"
	"github.com/arpc-go/arpc/internal/ws"
)

// An Option configures an end point; those that make no sense for it have no effect.
type Option func(*options)

// ServerOption and ClientOption are what Option is called in getty.
type (
	ServerOption = Option
	ClientOption = Option
)

type options struct {
	addr, path string
	origins    []string
	tls        *tls.Config
	pool       *TaskPool
	number     int
	interval   time.Duration
	std        int
}

// WithLocalAddress sets the address that a server listens on, host:port; without a port, or this option, a free one is taken.
func WithLocalAddress(addr string) Option { return func(o *options) { o.addr = addr } }

// WithWebsocketServerPath sets the path of the URL; default: any.
func WithWebsocketServerPath(path string) Option { return func(o *options) { o.path = path } }

// WithWebsocketServerOrigins allows web pages of other hosts to connect, by their origins, "*" for all; default none.
func WithWebsocketServerOrigins(origins ...string) Option {
	return func(o *options) { o.origins = origins }
}

// WithTLS makes TCP TLS, and is needed by a WSS server, for its certificate. The configuration is taken as it is: a client verifies
// the server unless it says otherwise.
func WithTLS(cfg *tls.Config) Option { return func(o *options) { o.tls = cfg } }

// WithServerTaskPool is Session.SetTaskPool for all sessions.
func WithServerTaskPool(p *TaskPool) Option { return func(o *options) { o.pool = p } }

// WithClientTaskPool is Session.SetTaskPool for all sessions.
func WithClientTaskPool(p *TaskPool) Option { return func(o *options) { o.pool = p } }

// WithServerAddress sets the address that a client dials: host:port, or a URL for WebSocket.
func WithServerAddress(addr string) Option { return func(o *options) { o.addr = addr } }

// WithConnectionNumber sets how many connections a client keeps; default 1.
func WithConnectionNumber(n int) Option { return func(o *options) { o.number = max(n, 1) } }

// WithReconnectInterval sets the pause after a connection that could not be made, or did not last that long, in nanoseconds, as
// int(time.Second) is; default 300 ms, at least 1 ms. It becomes longer with each further failure, up to ten times that.
func WithReconnectInterval(ns int) Option {
	return func(o *options) { o.interval = max(time.Duration(ns), time.Millisecond) }
}

// chunks takes what a read returned as it is.
type chunks struct{}

// Split implements frame.Splitter.
func (chunks) Split(p []byte) (n, need int, err error) { return len(p), 0, nil }

// messages is how messages of WebSocket are told apart, see ws.Config.Prefix.
var messages = frame.PrefixConfig{N: prefixLen, Order: binary.BigEndian, IncludesSelf: true, Max: prefixLen + maxMessage}

func stageConfig(client bool) *ws.Config {
	return &ws.Config{Client: client, ReadLimit: maxMessage, Prefix: true}
}
