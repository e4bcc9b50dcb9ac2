package nats

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats/internal/presence"
	"github.com/arpc-go/arpc/log"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	errClosed = &arpc.Error{Code: arpc.CodeUnavailable, Message: "nats: the engine is closed"}
	errDown   = &arpc.Error{Code: arpc.CodeUnavailable, Message: "nats: the connection to nats-server is lost"}
	errMissed = &arpc.Error{Code: arpc.CodeUnavailable, Message: "nats: messages were lost between nats-server and the engine"}
	errNoCore = &arpc.Error{Code: arpc.CodeUnimplemented, Message: "nats: the engine runs without JetStream, which keeps history and IDs"}
)

// minVersion is the oldest nats-server that can be asked for several messages at once.
var minVersion = [2]int{2, 11}

// Engine is a pubsub.Engine on NATS. See the package's comment.
//
// Lock order: that of presence, mu, an entry's.
type Engine struct {
	config   Config
	conn     *nats.Conn
	js       jetstream.JetStream // nil with Config.Core
	presence *presence.Table
	streams  streams
	work     sync.WaitGroup // the engine's goroutines
	stop     chan struct{}  // closed by Close
	reads    chan struct{}  // has one for each question for a history

	mu      sync.Mutex
	closed  bool
	life    context.Context // of the connection, canceled with its loss
	end     context.CancelCauseFunc
	entries map[entryKey]*entry
	subs    map[*nats.Subscription]*entry // the plain ones, which may be too slow
}

var _ pubsub.Engine = (*Engine)(nil)

// New connects and returns an engine. The error says why it cannot be one: there is no server (CodeUnavailable), it is too old or
// has no JetStream (CodeFailedPrecondition), the configuration is not possible (CodeInvalidArgument).
func New(ctx context.Context, config Config) (*Engine, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, config.Timeout)
	defer cancel()
	e := &Engine{
		config: config, stop: make(chan struct{}), reads: make(chan struct{}, maxReads),
		entries: map[entryKey]*entry{}, subs: map[*nats.Subscription]*entry{},
	}
	e.life, e.end = context.WithCancelCause(context.Background())
	net := presenceNet{e, make(chan *nats.Msg, 4096)}
	e.presence = presence.New(config.Heartbeat, net, e.tellPresence)
	if err = e.connect(); err == nil {
		if err = e.check(ctx); err == nil {
			err = net.start(ctx)
		}
		if err != nil {
			e.mu.Lock()
			e.closed = true
			e.mu.Unlock()
			e.conn.Close()
		}
	}
	if err != nil {
		e.end(errClosed)
		return nil, err
	}
	if e.js != nil {
		e.work.Go(e.sweep)
	}
	return e, nil
}

// connect connects with the options of the configuration and the engine's own.
func (e *Engine) connect() error {
	o := nats.GetDefaultOptions()
	o.Servers = nil
	o.Url = e.config.URL
	if strings.Contains(o.Url, ",") {
		o.Servers, o.Url = strings.Split(o.Url, ","), ""
		for i := range o.Servers {
			o.Servers[i] = strings.TrimSpace(o.Servers[i])
		}
	}
	o.Name = "arpc"
	o.Timeout = e.config.Timeout
	o.PingInterval, o.MaxPingsOut = e.config.Timeout, 2
	o.ReconnectWait = o.ReconnectWait / 8
	for _, option := range e.config.Options {
		if err := option(&o); err != nil {
			return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "nats: " + err.Error()}
		}
	}
	if e.config.Server != nil {
		o.InProcessServer = e.config.Server
	}
	// What is not sent at once is refused, not kept: a publisher must not believe that the engine has it.
	o.AllowReconnect, o.MaxReconnect, o.ReconnectBufSize, o.RetryOnFailedConnect = true, -1, -1, false
	o.IgnoreAuthErrorAbort, o.NoEcho = true, false
	lost, back, failed := o.DisconnectedErrCB, o.ReconnectedCB, o.AsyncErrorCB
	o.DisconnectedErrCB = func(nc *nats.Conn, err error) {
		e.lost(err)
		if lost != nil {
			lost(nc, err)
		}
	}
	o.ReconnectedCB = func(nc *nats.Conn) {
		e.back()
		if back != nil {
			back(nc)
		}
	}
	o.AsyncErrorCB = func(nc *nats.Conn, sub *nats.Subscription, err error) {
		e.failed(sub, err)
		if failed != nil {
			failed(nc, sub, err)
		}
	}
	var err error
	if e.conn, err = o.Connect(); err != nil {
		return &arpc.Error{Code: arpc.CodeUnavailable, Message: fmt.Sprintf("nats: cannot connect to %s: %v", e.config.URL, err)}
	}
	return nil
}

// check fails if the server is not one that the engine can run on.
func (e *Engine) check(ctx context.Context) error {
	lacks := func(format string, args ...any) error {
		return &arpc.Error{Code: arpc.CodeFailedPrecondition, Message: fmt.Sprintf("nats: "+format, args...)}
	}
	if v := e.conn.ConnectedServerVersion(); !newEnough(v) {
		return lacks("nats-server %s is too old, the engine needs %d.%d", v, minVersion[0], minVersion[1])
	}
	if !e.conn.HeadersSupported() {
		return lacks("the server has headers disabled")
	}
	if e.config.Core {
		return nil
	}
	js, err := jetstream.New(e.conn)
	if err != nil {
		return e.failure(ctx, err)
	}
	switch _, err = js.AccountInfo(ctx); {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
		return lacks("JetStream is off at %s, and the engine keeps history and IDs there; "+
			"start the server with it (nats-server -js), or set Config.Core to do without them", e.conn.ConnectedUrlRedacted())
	case err != nil:
		return e.failure(ctx, err)
	}
	// A cluster remembers a stream in memory although it has lost what was in it, and would use its offsets again.
	if e.config.Storage == jetstream.MemoryStorage && e.conn.ConnectedClusterName() != "" {
		return lacks("streams in memory are not safe on a cluster, use jetstream.FileStorage")
	}
	e.js = js
	return nil
}

// newEnough reports whether a version such as 2.11.0-beta.1 is at least minVersion.
func newEnough(version string) bool {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	if err1 != nil || err2 != nil {
		return false
	}
	return major > minVersion[0] || major == minVersion[0] && minor >= minVersion[1]
}

// Capabilities implements pubsub.Engine.
func (e *Engine) Capabilities() pubsub.Capabilities {
	return pubsub.Capabilities{
		Name: "nats", History: e.js != nil, Idempotency: e.js != nil,
		Presence: true, Wildcards: true, Groups: true, Shared: true,
	}
}

// Close implements pubsub.Engine. Further calls fail with CodeUnavailable. The members of the engine leave.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.end(errClosed)
	close(e.stop)
	e.mu.Unlock()
	e.presence.End()
	e.conn.FlushTimeout(e.config.Heartbeat) //nolint:errcheck // without it the others find out later
	e.conn.Close()
	e.work.Wait()
	return nil
}

// lost is called when the connection is.
func (e *Engine) lost(err error) {
	if err == nil {
		err = errDown
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.end(errDown)
	entries := e.allLocked()
	e.mu.Unlock()
	log.Warn("nats: the connection to nats-server is lost: %v", err)
	e.presence.Lost()
	for _, x := range entries {
		x.interrupted(err)
	}
}

// back is called when there is a connection again, to which the subscriptions have been told already.
func (e *Engine) back() {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.end(errDown) // if one has been lost without a word
	e.life, e.end = context.WithCancelCause(context.Background())
	entries := e.allLocked()
	e.mu.Unlock()
	log.Info("nats: connected to nats-server again")
	e.presence.Back()
	for _, x := range entries {
		x.resumed()
	}
}

func (e *Engine) allLocked() []*entry {
	all := make([]*entry, 0, len(e.entries))
	for _, x := range e.entries {
		all = append(all, x)
	}
	return all
}

// failed is called for what is wrong with a subscription.
func (e *Engine) failed(sub *nats.Subscription, err error) {
	if !errors.Is(err, nats.ErrSlowConsumer) {
		log.Warn("nats: %v", err)
		return
	}
	e.mu.Lock()
	x := e.subs[sub]
	e.mu.Unlock()
	if x != nil {
		x.missed()
	}
}

// bound returns a context for one request: it ends with ctx, with the connection, and after Config.Timeout.
func (e *Engine) bound(ctx context.Context) (context.Context, func(), error) {
	e.mu.Lock()
	life := e.life
	e.mu.Unlock()
	if life.Err() != nil {
		return nil, nil, context.Cause(life)
	}
	ctx, cancel := context.WithTimeout(ctx, e.config.Timeout)
	inner, interrupt := context.WithCancelCause(ctx)
	stop := context.AfterFunc(life, func() { interrupt(context.Cause(life)) })
	return inner, func() {
		stop()
		interrupt(nil)
		cancel()
	}, nil
}

// failure is the error that a caller gets; ctx is the caller's.
func (e *Engine) failure(ctx context.Context, err error) error {
	var known *arpc.Error
	var api *jetstream.APIError
	code := arpc.CodeUnavailable
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(ctx.Err(), context.Canceled):
		code = arpc.CodeCanceled
	case ctx.Err() != nil:
		code = arpc.CodeDeadlineExceeded
	case errors.Is(err, nats.ErrMaxPayload):
		code = arpc.CodeInvalidArgument
	case errors.As(err, &api):
		switch api.ErrorCode {
		case errCodeResources, errCodeInsufficient, errCodeStorage, errCodeMemory, errCodeMaxStreams, errCodeStoreFailed:
			code = arpc.CodeResourceExhausted
		case jetstream.JSErrCodeStreamMessageExceedsMaximum:
			code = arpc.CodeInvalidArgument
		}
	}
	return &arpc.Error{Code: code, Message: "nats: " + strings.TrimPrefix(err.Error(), "nats: ")}
}

// Codes of JetStream's errors that its client has no names for.
const (
	errCodeResources    jetstream.ErrorCode = 10002 // of the account
	errCodeInsufficient jetstream.ErrorCode = 10023
	errCodeMaxStreams   jetstream.ErrorCode = 10027
	errCodeMemory       jetstream.ErrorCode = 10028
	errCodeStorage      jetstream.ErrorCode = 10047
	errCodeStoreFailed  jetstream.ErrorCode = 10077
)
