package action

import (
	"cmp"
	"crypto/tls"
	"encoding/binary"
	"math"
	"time"

	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/frame"
	"github.com/arpc-go/arpc/internal/ws"
	"github.com/arpc-go/arpc/log"
)

// An Option configures New, DialTCP and DialWebSocket. Those that make no sense for one of them have no effect there.
type Option interface{ apply(*config) }

type option func(*config)

func (o option) apply(c *config) { o(c) }

type config struct {
	Limits
	codec    codec.Codec
	frames   frame.Prefix
	stdConns int
	loops    int
	path     string
	origins  []string
	tls      *tls.Config

	middleware []func(*Context)
	onOpen     func(*Connection)
	onClose    func(*Connection)
	onError    func(*Context, error)
	onPush     func(*Client, *Packet)
}

// MaxFrame is the most that Limits.Frame can be: 16 MiB.
const MaxFrame = 16 << 20

// Limits bounds what peers can make this side spend. It is an Option. Zero means the default of a field, a negative value no limit,
// where that is possible.
type Limits struct {
	// Frame is the size of a packet in bytes with the length before it, in either direction: a longer one is not sent, and
	// closes the connection if it is received. Default 64 KiB, at most MaxFrame.
	Frame int
	// Connections is the number of connections that are accepted, ConnectionsPerIP the number from one address; more are
	// reset at once. Default: no limit but the system's.
	Connections, ConnectionsPerIP int
	// Workers is the number of requests of Unordered routes that are handled at the same time, Parallel the number of one
	// connection, at which it is not read any further. What is above Workers runs in order. Default 10,000 and 1024.
	Workers, Parallel int
	// Idle closes a connection from which nothing came for that long. Default: no limit, as the wire has no heartbeat;
	// hosts that are gone are found by TCP's.
	Idle time.Duration
	// Shutdown is the time that requests have to be answered when Run ends; then they are cut, at once if it is negative.
	// Default 10 seconds.
	Shutdown time.Duration
	// Call is the time of a Client.Call whose context has no deadline; never without. Default 1 minute.
	Call time.Duration
}

func (l Limits) apply(c *config) { c.Limits = l }

// Codec sets what bodies are encoded with; nothing on the wire says so, so both ends must agree. Default codec.JSONCodec{}; the
// other one that peers of znet know is codec.Protobuf{}.
func Codec(c codec.Codec) Option { return option(func(cfg *config) { cfg.codec = c }) }

// StdConns sets how many busy TCP connections may have a goroutine each instead of an event loop; see arpc.StdConns. Default 1024.
func StdConns(n int) Option { return option(func(c *config) { c.stdConns = n }) }

// Loops sets the number of event loops, each a thread; default GOMAXPROCS.
func Loops(n int) Option { return option(func(c *config) { c.loops = n }) }

// Path sets the only path on which WebSocket connections are accepted; default: any.
func Path(path string) Option { return option(func(c *config) { c.path = path }) }

// Origins allows pages of other origins, such as "https://app.example.com", to connect by WebSocket, or those of all with "*".
// Without it only pages of the same host may, and clients that are no browsers.
func Origins(origins ...string) Option { return option(func(c *config) { c.origins = origins }) }

// TLS makes listeners, which need a certificate, and clients use TLS.
func TLS(t *tls.Config) Option { return option(func(c *config) { c.tls = t }) }

// Use appends middleware. They run before the handler, in order; see Context.Next and Context.Abort.
func Use(middleware ...func(*Context)) Option {
	return option(func(c *config) { c.middleware = append(c.middleware, middleware...) })
}

// OnOpen sets what is called for a new connection, before its first request is handled; it may block.
func OnOpen(f func(*Connection)) Option { return option(func(c *config) { c.onOpen = f }) }

// OnClose sets what is called when a connection is over, once, after its handlers; it may block.
func OnClose(f func(*Connection)) Option { return option(func(c *config) { c.onClose = f }) }

// OnError sets what is called with the failure of a request, in place of a reply: a handler's error, a *PanicError, ErrNotFound,
// or the reason why the result was not sent. It may call Context.Reply.
func OnError(f func(*Context, error)) Option { return option(func(c *config) { c.onError = f }) }

// OnPush sets what a Client calls with each packet that answers no call in flight, in their order; the next one waits.
// The packet is valid until it returns.
func OnPush(f func(*Client, *Packet)) Option { return option(func(c *config) { c.onPush = f }) }

func newConfig(opts []Option) *config {
	c := &config{codec: codec.JSONCodec{}, stdConns: 1024}
	for _, o := range opts {
		if o != nil {
			o.apply(c)
		}
	}
	if c.Frame = cmp.Or(c.Frame, 64<<10); c.Frame < 0 {
		c.Frame = MaxFrame
	}
	c.Frame = min(max(c.Frame, headLen), MaxFrame)
	if c.Workers = cmp.Or(c.Workers, 10_000); c.Workers < 0 {
		c.Workers = math.MaxInt
	}
	c.Idle = cmp.Or(c.Idle, -1)
	c.Shutdown = cmp.Or(c.Shutdown, 10*time.Second)
	c.Call = cmp.Or(c.Call, time.Minute)
	var err error
	c.frames, err = frame.NewPrefix(frame.PrefixConfig{N: prefixLen, Order: binary.BigEndian, IncludesSelf: true, Min: headLen, Max: c.Frame})
	if err != nil {
		panic(err) // the limit is a possible one
	}
	return c
}

func (c *config) core() core.Config {
	return core.Config{
		Split: c.frames, StdConns: c.stdConns, Loops: c.loops, Async: c.Parallel, Idle: c.Idle,
		MaxConns: c.Connections, MaxConnsPerIP: c.ConnectionsPerIP, Logf: log.Info,
		Opened: opened, WantOpened: func() bool { return c.onOpen != nil },
	}
}

// stage configures WebSocket: a length before each message makes them the same frames as those of TCP.
func (c *config) stage(client bool) *ws.Config {
	named, _ := c.codec.(interface{ Name() string })
	return &ws.Config{
		Client: client, ReadLimit: int64(c.Frame - prefixLen), Prefix: true,
		NoText: named == nil || named.Name() != "json",
	}
}
