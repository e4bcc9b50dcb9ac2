package arpc

import (
	"context"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/log"
)

// Codec encodes and decodes the values of calls; see package codec.
type Codec = codec.Codec

// Logger receives what the framework logs; see package log.
type Logger = log.Logger

// A Client is one end of a connection: one that dials, and dials again when the connection is lost, or one that a Server
// accepted, which ends with its connection. Both may call the other end.
//
// The fields may be replaced before the first message is sent or received, not later.
type Client struct {
	// Conn is a view of the current connection, for its addresses and to close it. It is never nil and does not change.
	Conn net.Conn
	// Codec encodes and decodes values that are not raw.
	Codec codec.Codec
	// Handler has the routes for what the peer sends, and the hooks.
	Handler Handler

	link atomic.Pointer[link]
	dial *dialing // nil for an accepted client

	rare atomic.Pointer[rareClient] // nil until needed
}

// rareClient is what only some clients need, so that an idle one of a server stays small.
type rareClient struct {
	mu             sync.Mutex
	values         map[any]any
	onDisconnected func(*Client)
	keepalive      *time.Timer
}

// extra returns the rare part.
func (c *Client) extra() *rareClient {
	if x := c.rare.Load(); x != nil {
		return x
	}
	c.rare.CompareAndSwap(nil, &rareClient{})
	return c.rare.Load()
}

// dialing is what only a client that dials has.
type dialing struct {
	dialer func() (net.Conn, error)
	rpc    rpc
	config clientConfig

	mu      sync.Mutex
	group   *core.Group
	settled *link // the connection that calls use, once the peer has answered HELLO; the last one
	gone    *link // a connection that was lost before it was settled
	epoch   int   // counts Stop and Restart, so that what began before one does not go on after it
	stopped bool
	stop    chan struct{} // closed by Stop
	ready   chan struct{} // closed while there is a connection
	reason  error         // why there is none
}

// NewClient connects with the dialer and returns a client that keeps connected until Stop. The dialer is called again,
// on a goroutine of the client's, whenever the connection is lost; it should give up after some time. If the first
// connection fails, the dialer's error is returned. Without a Handler among the options the client gets a copy of
// DefaultHandler.
func NewClient(dialer func() (net.Conn, error), opts ...ClientOption) (*Client, error) {
	cfg := clientConfig{backoff: backoff{100 * time.Millisecond, 10 * time.Second}, version: protocolVersion}
	for _, o := range opts {
		if o != nil {
			o.applyToClient(&cfg)
		}
	}
	if cfg.handler == nil {
		cfg.handler = DefaultHandler.Clone()
	}
	c := &Client{
		Codec: codec.DefaultCodec, Handler: cfg.handler,
		dial: &dialing{dialer: dialer, config: cfg},
	}
	if cfg.codec != nil {
		c.Codec = cfg.codec
	}
	c.Conn = (*connView)(c)
	d := c.dial
	d.rpc.open, d.rpc.down, d.rpc.close = c.opened, c.lost, c.closed
	d.rpc.version = cfg.version
	d.rpc.limit(cfg.limits)
	if err := d.start(c, 0); err != nil {
		return nil, err
	}
	return c, nil
}

// start makes the first connection of an epoch.
func (d *dialing) start(c *Client, epoch int) error {
	nc, err := d.dialer()
	if err != nil {
		d.mu.Lock()
		if d.epoch == epoch {
			d.reason = err
		}
		d.mu.Unlock()
		return err
	}
	cfg := d.rpc.config(d.config.limits, c.Handler)
	cfg.WantOpened = func() bool { return c.Handler.connectedHook(c) != nil }
	cfg.Wrap = c.Handler.wrap
	cfg.BeforeWrite = beforeWrite(c.Handler)
	d.mu.Lock()
	if d.epoch != epoch {
		d.mu.Unlock()
		nc.Close() //nolint:errcheck // it was never used
		return ErrClientStopped
	}
	if old := d.group; old != nil && !d.stopped { // a Restart that began earlier was quicker
		close(d.stop)
		defer stopGroup(old)
	}
	g := core.NewGroup(cfg, &d.rpc)
	d.group, d.stopped, d.reason = g, false, nil
	d.stop, d.ready = make(chan struct{}), make(chan struct{})
	d.mu.Unlock()
	if err = c.connect(g, nc); err != nil {
		d.shut(g, err)
		stopGroup(g)
	}
	return err
}

// connect makes nc the client's connection: it is there when the peer has answered HELLO and taken the credentials.
func (c *Client) connect(g *core.Group, nc net.Conn) error {
	d := c.dial
	cn, err := g.Adopt(nc)
	if err != nil {
		return err
	}
	l := cn.User.(*link)
	if l.x.Load() == nil { // there is nothing to negotiate
		return nil
	}
	if err = c.greet(l); err == nil {
		d.mu.Lock()
		if l == d.gone {
			err = d.reason
		} else {
			d.settled = l
			c.readyLocked()
		}
		d.mu.Unlock()
	}
	cn.Lock()
	if err == nil {
		l.gate &^= gateGreeting
	}
	down := l.gate&gateDown != 0
	if x := l.x.Load(); err == nil && !down {
		close(x.ready)
	}
	cn.Unlock()
	if err != nil {
		cn.Close(err)
	}
	return err
}

// greet waits for the answer to HELLO and sends the credentials.
func (c *Client) greet(l *link) error {
	x := l.x.Load()
	ctx, cancel := context.WithTimeout(context.Background(), l.rpc.greeting)
	defer cancel()
	if x.greeted != nil {
		select {
		case <-x.greeted:
		case <-x.ready: // only the end of the connection closes it before that
			l.cn.Lock()
			defer l.cn.Unlock()
			return lostError(ErrClientReconnecting, x.going)
		case <-ctx.Done():
			return &Error{Code: CodeUnavailable, Message: "no answer to the first ping within the handshake limit"}
		}
	}
	if c.dial.config.credentials == nil {
		return nil
	}
	return c.authenticate(ctx, l)
}

// opened makes the link of a new connection.
func (c *Client) opened(cn *core.Conn) *link {
	d := c.dial
	l := &link{cn: cn, client: c, rpc: &d.rpc, seq: 1}
	if old := c.link.Load(); old != nil {
		old.cn.Lock()
		l.seq = old.seq // so that an answer is never taken for another connection's
		old.cn.Unlock()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.group != cn.Group() {
		return l // of an earlier epoch; it is being closed
	}
	if d.config.version < protocolVersion && d.config.credentials == nil {
		c.link.Store(l)
		d.settled = l
		c.readyLocked()
		return l
	}
	x := &linkExtra{ready: make(chan struct{})}
	if d.config.version >= protocolVersion {
		x.greeted = make(chan struct{})
	}
	l.gate |= gateGreeting
	l.x.Store(x)
	c.link.Store(l) // with its gate shut
	return l
}

// readyLocked tells who waits that there is a connection. dialing.mu is held.
func (c *Client) readyLocked() {
	d := c.dial
	select {
	case <-d.ready:
	default:
		close(d.ready)
	}
	d.reason = nil
}

// lost is called when a connection goes down, and before that when the peer wants it no longer.
func (c *Client) lost(l *link, err error) {
	d := c.dial
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped || c.link.Load() != l {
		return
	}
	if d.settled != l { // who connects finds out
		d.gone, d.reason = l, err
		return
	}
	if d.gone == l { // it was replaced already
		return
	}
	d.gone, d.reason = l, err
	d.ready = make(chan struct{})
	go c.reconnect(d.group, d.stop)
}

// closed is called when a connection is over.
func (c *Client) closed(*link, error) {
	x := c.rare.Load()
	if x == nil {
		return
	}
	x.mu.Lock()
	h := x.onDisconnected
	x.mu.Unlock()
	if h != nil {
		c.safely("disconnected hook", func() { h(c) })
	}
}

// reconnect dials until it succeeds, the client is stopped, or it has failed too often.
func (c *Client) reconnect(g *core.Group, stop chan struct{}) {
	d := c.dial
	pause := d.config.backoff.min
	for attempt := 1; ; attempt++ {
		if attempt > 1 {
			timer := time.NewTimer(pause - time.Duration(rand.Int64N(int64(pause/2)+1)))
			select {
			case <-stop:
				timer.Stop()
				return
			case <-timer.C:
			}
			pause = min(2*pause, d.config.backoff.max)
		}
		nc, err := d.dialer()
		select {
		case <-stop:
			if err == nil {
				nc.Close() //nolint:errcheck // it was never used
			}
			return
		default:
		}
		if err == nil {
			err = c.connect(g, nc)
		}
		if h := c.Handler.load().reconnect; h != nil {
			c.safely("reconnect hook", func() { h(c, attempt, err) })
		}
		if err == nil {
			return
		}
		d.mu.Lock()
		if d.group == g && !d.stopped {
			d.reason = err
		}
		d.mu.Unlock()
		if limit := c.Handler.MaxReconnectTimes(); limit > 0 && attempt >= limit {
			if !d.shut(g, err) {
				return
			}
			c.stopTimers()
			c.Handler.forget(c)
			d.drained(g)
			g.Stop(context.Background(), ErrClientStopped) //nolint:errcheck // there is no connection
			return
		}
	}
}

// drainTick is how often drained looks.
const drainTick = 5 * time.Millisecond

// drained waits until the connections of a client that has given up are over: one that drains still answers what it was
// asked. Stop and Restart end it.
func (d *dialing) drained(g *core.Group) {
	d.mu.Lock()
	epoch := d.epoch
	d.mu.Unlock()
	ticker := time.NewTicker(drainTick)
	defer ticker.Stop()
	for range ticker.C {
		d.mu.Lock()
		cut := d.epoch != epoch
		d.mu.Unlock()
		if cut || g.Len() == 0 {
			return
		}
	}
}

// shut marks the client stopped if g is its group. It reports whether it was not stopped before.
func (d *dialing) shut(g *core.Group, reason error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped || d.group != g {
		return false
	}
	d.stopped = true
	if reason != nil {
		d.reason = reason
	}
	close(d.stop)
	return true
}

// stopWait bounds what Stop waits for: the sending of what was accepted, then the peer's side of the close.
const (
	stopWait  = time.Second
	closeWait = 100 * time.Millisecond
)

// Stop ends the client: calls in flight fail with ErrClientStopped, what was accepted for sending is sent, and the
// connection is closed. It waits for the sending, at most a second; what remains is cleaned up in the background. Calling
// it again does nothing.
func (c *Client) Stop() {
	d := c.dial
	if d == nil {
		c.stopTimers()
		c.link.Load().cn.Close(ErrClientStopped)
		return
	}
	d.mu.Lock()
	d.epoch++
	g, l := d.group, c.link.Load()
	d.mu.Unlock()
	if !d.shut(g, ErrClientStopped) {
		return
	}
	c.stopTimers()
	c.Handler.forget(c)
	l.cn.Close(ErrClientStopped)
	timer := time.NewTimer(stopWait)
	for l.cn.Lock(); ; l.cn.Lock() {
		if l.cn.Pending() == 0 {
			l.cn.Unlock()
			break
		}
		if !l.cn.Room(nil, nil, timer.C) {
			break
		}
	}
	timer.Stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		stopGroup(g)
	}()
	timer.Reset(closeWait)
	select {
	case <-done:
	case <-timer.C:
	}
	timer.Stop()
}

// stopGroup closes the connections of a group, and aborts them when that takes too long.
func stopGroup(g *core.Group) {
	ctx, cancel := context.WithTimeout(context.Background(), stopWait)
	defer cancel()
	g.Stop(ctx, ErrClientStopped) //nolint:errcheck // it aborts what is left
}

func (c *Client) stopTimers() {
	x := c.rare.Load()
	if x == nil {
		return
	}
	x.mu.Lock()
	if x.keepalive != nil {
		x.keepalive.Stop()
		x.keepalive = nil
	}
	x.mu.Unlock()
}

// Restart stops the client and connects it again, with the dialer's error if that fails; the client is stopped then. It
// works for clients that dial only.
func (c *Client) Restart() error {
	if c.dial == nil {
		return ErrClientStopped
	}
	c.Stop()
	d := c.dial
	d.mu.Lock()
	d.epoch++
	epoch := d.epoch
	d.mu.Unlock()
	return d.start(c, epoch)
}

// CheckState returns nil while there is a connection, otherwise why there is none: an error that is ErrClientStopped or
// ErrClientReconnecting.
func (c *Client) CheckState() error {
	d := c.dial
	if d == nil {
		l := c.link.Load()
		l.cn.Lock()
		defer l.cn.Unlock()
		if l.gate&gateDown != 0 {
			return stoppedError(l.cn.Err())
		}
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stateLocked()
}

func (d *dialing) stateLocked() error {
	switch {
	case d.stopped:
		return stoppedError(d.reason)
	case d.reason != nil:
		return lostError(ErrClientReconnecting, d.reason)
	}
	return nil
}

// stoppedError is what a client says that has ended because of reason: ErrClientStopped itself, which programs compare, if it was Stop.
func stoppedError(reason error) error {
	if reason == ErrClientStopped {
		return ErrClientStopped
	}
	return lostError(ErrClientStopped, reason)
}

// lostKind is the error that a lost connection means.
func (c *Client) lostKind() *Error {
	if d := c.dial; d != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !d.stopped {
			return ErrClientReconnecting
		}
	}
	return ErrClientStopped
}

// WaitReady waits until the client has a connection. Errors are that of ctx, and ErrClientStopped.
func (c *Client) WaitReady(ctx context.Context) error { return c.waitReady(ctx, nil) }

func (c *Client) waitReady(ctx context.Context, timeout <-chan time.Time) error {
	d := c.dial
	if d == nil {
		return c.CheckState()
	}
	for {
		d.mu.Lock()
		err, ready, stop := d.stateLocked(), d.ready, d.stop
		if err == nil || d.stopped {
			d.mu.Unlock()
			return err
		}
		d.mu.Unlock()
		select {
		case <-ready:
		case <-stop:
		case <-ctx.Done():
			return contextError(ctx)
		case <-timeout:
			return lostError(ErrTimeout, err)
		}
	}
}

// OnDisconnected sets a hook that runs after a connection of this client has ended, besides that of the Handler.
func (c *Client) OnDisconnected(h func(*Client)) {
	x := c.extra()
	x.mu.Lock()
	x.onDisconnected = h
	x.mu.Unlock()
}

// AfterConn makes f run once when the connection that the client has now is lost or closed, before the disconnected hooks, on the
// goroutine that finds out, or at once, on one of its own, if that has happened already. f must not block. stop takes it back, and
// reports whether it will not run. Any number may be set; a client that connects again needs another.
func (c *Client) AfterConn(f func()) (stop func() bool) {
	l, p := c.link.Load(), &f
	l.cn.Lock()
	defer l.cn.Unlock()
	if l.gate&gateDown != 0 {
		go c.safely("function of AfterConn", f)
		return func() bool { return false }
	}
	x := l.extraLocked()
	x.after = append(x.after, p)
	return func() bool {
		l.cn.Lock()
		defer l.cn.Unlock()
		i := slices.Index(x.after, p)
		if i >= 0 {
			x.after = slices.Delete(x.after, i, i+1)
		}
		return i >= 0
	}
}

// Get returns the value stored under key.
func (c *Client) Get(key any) (any, bool) {
	x := c.rare.Load()
	if x == nil {
		return nil, false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	v, ok := x.values[key]
	return v, ok
}

// Set stores a value under key. Values belong to the Client: a client that dials keeps them when it connects again. A nil
// key or value is ignored.
func (c *Client) Set(key, value any) {
	if key == nil || value == nil {
		return
	}
	x := c.extra()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.values == nil {
		x.values = map[any]any{}
	}
	x.values[key] = value
}

// Delete removes the value under key.
func (c *Client) Delete(key any) {
	if x := c.rare.Load(); x != nil {
		x.mu.Lock()
		delete(x.values, key)
		x.mu.Unlock()
	}
}

// Call calls a method of the peer and waits for the answer, which is decoded into rsp: raw into a *[]byte or *string, by
// Codec into others, not at all into nil. req is sent raw if it is a []byte or a string, not at all if it is nil, otherwise
// encoded by Codec. timeout must be positive; TimeForever means none. values travel with the call where coders carry them.
//
// The error is an *Error: what the peer answered (Remote), ErrTimeout, ErrClientReconnecting or ErrClientStopped with the
// reason, or what is wrong with the arguments; an error of Codec is returned as it is.
func (c *Client) Call(method string, req, rsp any, timeout time.Duration, values ...map[any]any) error {
	if timeout <= 0 {
		if err := c.CheckState(); err != nil {
			return notSent(err)
		}
		return badTimeout(timeout)
	}
	if o := c.Handler.load().observer; o != nil {
		return c.observed(o, context.Background(), KindCall, method, func(ctx context.Context) error {
			return c.call(ctx, method, req, rsp, timeout, values, nil)
		})
	}
	return c.call(context.Background(), method, req, rsp, timeout, values, nil)
}

// CallWith is Call within a context: when that ends first, the call ends with an error for which errors.Is holds with
// ctx.Err(), and the peer's handler is told. The handler gets ctx's deadline, and the metadata of WithMetadata; without a
// deadline the call has Limits.CallTimeout. With the Context of an ordered handler, further handlers of the connection may run while this one waits.
func (c *Client) CallWith(ctx context.Context, method string, req, rsp any, values ...map[any]any) error {
	if ctx.Err() != nil {
		return notSent(contextError(ctx))
	}
	timeout := c.link.Load().rpc.timeout
	if t, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(t), 1)
	}
	if o := c.Handler.load().observer; o != nil {
		return c.observed(o, ctx, KindCall, method, func(ctx context.Context) error {
			return c.call(ctx, method, req, rsp, timeout, values, nil)
		})
	}
	return c.call(ctx, method, req, rsp, timeout, values, nil)
}

func badTimeout(timeout time.Duration) error {
	if timeout == 0 {
		return ErrClientInvalidTimeoutZero
	}
	return ErrClientInvalidTimeoutLessThanZero
}

func firstValues(values []map[any]any) map[any]any {
	if len(values) == 0 {
		return nil
	}
	return values[0]
}

// call does a call and waits for its end. on is the connection to use, nil for the current one.
func (c *Client) call(ctx context.Context, method string, req, rsp any, timeout time.Duration, values []map[any]any, on *link) error {
	handler, done := contextOf(ctx), ctx.Done()
	if handler != nil && handler.mode == modeInline && handler.Client == c {
		return errInlineCall
	}
	p := callPool.Get().(*call)
	switch rsp.(type) {
	case nil:
	case *[]byte:
		p.want = wantBytes
	case *string:
		p.want = wantText
	default:
		p.want = wantValue
	}
	s := sending{client: c, ctx: ctx, timeout: timeout, cmd: CmdRequest, method: method, value: req, call: p, wait: true, on: on}
	s.opts = optionsOf(ctx)
	p.wantMeta = s.opts.response != nil
	if len(values) > 0 {
		s.values = values[0]
	}
	if handler != nil && handler.link == c.link.Load() {
		away, err := handler.link.cn.LetGo(&handler.turn)
		if err != nil {
			p.free()
			return errTooNested
		}
		if away {
			defer handler.link.cn.TakeBack(&handler.turn)
		}
	}
	if err := s.send(); err != nil {
		p.free()
		return err
	}
	if done == nil {
		<-p.done
	} else {
		select {
		case <-p.done:
		case <-done:
			s.link.cn.Lock()
			mine := s.link.take(s.seq) == p
			s.link.cn.Unlock()
			if mine {
				p.free()
				s.link.sendCancel(s.seq, ctx)
				return contextError(ctx)
			}
			<-p.done // somebody is ending it right now
		}
	}
	err := p.err
	if md := s.opts.response; md != nil {
		*md = decodeMetadata(p.meta)
	}
	if err == nil {
		switch rsp := rsp.(type) {
		case nil:
		case *[]byte:
			if rsp != nil {
				*rsp = p.bytes
			}
		case *string:
			if rsp != nil {
				*rsp = p.text
			}
		default:
			err = codec.Decode(s.codec(), p.frame.B, rsp)
		}
	}
	p.frame.Free()
	p.free()
	return err
}

// CallAsync calls a method of the peer and returns at once; callback runs when the call has ended, exactly once, whatever
// happens, also if CallAsync returns an error: its Context's Err says how, Bind gives the answer. The callback runs on a
// goroutine of the framework; callbacks of answers that arrived together run one after the other, so it should not block for
// long, though it may call. timeout must be positive; TimeForever means none. When the send queue is full, CallAsync
// waits for room within the timeout.
func (c *Client) CallAsync(method string, req any, callback func(*Context), timeout time.Duration, values ...map[any]any) error {
	if callback == nil {
		return ErrClientInvalidAsyncHandler
	}
	var opts *callOptions
	if o := c.Handler.load().observer; o != nil {
		info := CallInfo{Kind: KindCall, Method: method, Start: time.Now()}
		ctx, f := o.CallStarted(context.Background(), c, info), callback
		opts = optionsOf(ctx)
		callback = func(answer *Context) {
			o.CallEnded(ctx, c, info, answer.Err())
			f(answer)
		}
	}
	pending := callPool.Get().(*call)
	pending.callback = callback
	s := sending{client: c, opts: opts, timeout: timeout, cmd: CmdRequest, flag: flagAsync, method: method, value: req, call: pending}
	if len(values) > 0 {
		s.values = values[0]
	}
	var err error
	if timeout <= 0 {
		if err = notSent(c.CheckState()); err == nil {
			err = badTimeout(timeout)
		}
	} else {
		err = s.send()
	}
	if err != nil {
		c.link.Load().fail([]*call{pending}, err)
	}
	return err
}

// Notify sends a notification: a message without an answer, delivered at most once. nil means that it is accepted for
// sending. When the send queue is full it fails with ErrClientOverstock, at once if timeout is TimeZero, otherwise
// after waiting for room for that long.
func (c *Client) Notify(method string, data any, timeout time.Duration, values ...map[any]any) error {
	if timeout < 0 {
		return ErrClientInvalidTimeoutLessThanZero
	}
	s := sending{client: c, timeout: timeout, cmd: CmdNotify, flag: flagAsync, method: method, value: data, values: firstValues(values)}
	if o := c.Handler.load().observer; o != nil {
		return s.observed(o, context.Background())
	}
	return s.send()
}

// NotifyWith is Notify within a context: when the send queue is full it waits for room until ctx is done.
func (c *Client) NotifyWith(ctx context.Context, method string, data any, values ...map[any]any) error {
	if ctx.Err() != nil {
		return notSent(contextError(ctx))
	}
	s := sending{client: c, ctx: ctx, timeout: TimeForever, cmd: CmdNotify, flag: flagAsync, method: method, value: data,
		values: firstValues(values), opts: optionsOf(ctx)}
	if o := c.Handler.load().observer; o != nil {
		return s.observed(o, ctx)
	}
	return s.send()
}

// NewMessage makes a message for PushMsg with the next sequence number and a value encoded as for Call. If the value
// cannot be encoded, or the method is not valid, it returns nil and logs why.
func (c *Client) NewMessage(cmd byte, method string, v any, values ...map[any]any) *Message {
	l := c.link.Load()
	l.cn.Lock()
	l.seq++
	seq := l.seq
	l.cn.Unlock()
	return buildMessage(c.Handler, c.Codec, cmd, seq, method, v, firstValues(values))
}

func buildMessage(h Handler, cc codec.Codec, cmd byte, seq uint64, method string, v any, values map[any]any) *Message {
	if method == "" || len(method) > MaxMethodLen {
		log.Error("%s no message: %v", h.LogTag(), ErrInvalidMethod)
		return nil
	}
	payload, err := codec.AppendValue(nil, cc, v)
	if err != nil {
		log.Error("%s no message for %q: %v", h.LogTag(), method, err)
		return nil
	}
	return newMessage(cmd, 0, seq, method, payload, values)
}

// PushMsg sends a message that was made by NewMessage. It may be pushed to many clients, and must not be changed
// afterwards. timeout is that of Notify; TimeForever and negative values wait without a limit.
func (c *Client) PushMsg(m *Message, timeout time.Duration) error {
	if m == nil || len(m.Buffer) < HeadLen {
		return ErrInvalidMethod
	}
	if timeout < 0 {
		timeout = TimeForever
	}
	s := sending{client: c, timeout: timeout, message: m}
	return s.send()
}

// sending is a message on its way to the connection.
type sending struct {
	later, mine bool // see PushLater
	client      *Client
	ctx         context.Context // may be nil
	timeout     time.Duration   // 0: do not wait
	cmd         byte
	flag        byte
	method      string
	value       any
	values      map[any]any
	call        *call    // ends when the answer comes; nil for others
	wait        bool     // the caller will wait for the answer
	message     *Message // instead of cmd, flag, method and value
	on          *link    // the connection to use before it is open to others; nil for the current one
	opts        *callOptions

	done <-chan struct{} // of ctx
	link *link           // result
	seq  uint64          // result
}

// codec returns the codec of the message and its answer.
func (s *sending) codec() codec.Codec {
	if s.opts != nil && s.opts.codec != nil {
		return s.opts.codec
	}
	return s.client.Codec
}

// send accepts the message for sending, or says why not.
func (s *sending) send() error { return notSent(s.accept()) }

func (s *sending) accept() error {
	c := s.client
	if s.message == nil && (s.method == "" || len(s.method) > MaxMethodLen) {
		if err := c.CheckState(); err != nil {
			return err
		}
		return ErrInvalidMethod
	}
	if s.ctx != nil {
		s.done = s.ctx.Done() // a handler's Context takes the lock for that
	}
	if s.opts == nil {
		s.opts = &noCallOptions
	}
	if s.opts.err != nil {
		return s.opts.err
	}
	meta := s.opts.block
	var deadline int64
	if s.timeout > 0 && s.timeout != TimeForever {
		deadline = now() + int64(s.timeout)
	}
	var raw []byte
	var text string
	coders := c.Handler.load().coders
	if s.message != nil {
		raw = s.message.Buffer
	} else {
		var ok bool
		if raw, text, ok = rawValue(s.value); !ok {
			var scratch *buf.Buf
			var err error
			if scratch, raw, err = encode(s.codec(), s.value); err != nil {
				return err
			}
			defer scratch.Free()
		}
		if uint64(len(s.method)+len(raw)+len(text)) > 1<<32-1 {
			return errTooLarge
		}
	}
	for again := false; ; again = true {
		l := s.on
		if l == nil {
			l = c.link.Load()
		}
		l.cn.Lock()
		if l.gate&(gateGreeting|gateGoing) != 0 && s.on == nil {
			if err := s.gated(l, deadline); err != nil {
				return err
			}
			continue
		}
		err := l.cn.CanSend()
		if err == nil && l.gate&gateDown != 0 { // only answers are sent after the peer's end of input
			err = l.cn.Err()
		}
		if err != nil {
			down := l.gate&gateDown != 0
			l.cn.Unlock()
			if s.on != nil {
				return lostError(c.lostKind(), err)
			}
			if err = s.unavailable(deadline, down, err); err != nil {
				return err
			}
			continue
		}
		if len(meta) > 0 && l.has(featMetadata) && uint32(len(meta)) > l.peer.Value().metadata {
			limit := l.peer.Value().metadata
			l.cn.Unlock()
			return errMetadata("%d bytes, the peer takes %d", len(meta), limit)
		}
		if s.opts.codec != nil && !l.decodesLocked(s.opts.codecName) {
			l.cn.Unlock()
			return errCodec
		}
		if l.cn.Full() {
			if err := s.room(l, deadline); err != nil {
				return err
			}
			continue
		}
		if s.call != nil && l.cn.Calls >= l.rpc.maxCalls {
			l.cn.Unlock()
			return errCalls
		}
		s.link = l
		urgency := core.Soon
		switch {
		case s.message != nil:
		case s.call != nil:
			s.seq = l.add(s.call)
			if deadline != 0 {
				s.call.deadline = deadline
				l.schedule(deadline)
			}
			if s.wait {
				l.cn.HandOver()
				if x := l.x.Load(); x != nil && x.hook != nil { // the connected hook may be who waits here: others need not wait for it any more
					l.cn.Yield(x.hook)
					x.hook = nil
				}
				urgency = core.Now
			}
		default:
			l.seq++
			s.seq = l.seq
		}
		yield := l.cn.Calls > 1
		flag, ext, left := s.flag, 0, uint32(0)
		if s.message == nil && l.has(featMetadata) {
			if deadline != 0 && s.call != nil {
				d := s.timeout
				if again {
					d = time.Duration(max(deadline-now(), 1))
				}
				if ms := (d + time.Millisecond - 1) / time.Millisecond; ms <= math.MaxUint32 {
					left, flag, ext = uint32(ms), flag|flagDeadline, 4
				}
			}
			if len(meta) > 0 {
				flag, ext = flag|flagMetadata, ext+2+len(meta)
			}
		}
		if s.message != nil && len(raw)-HeadLen > checkedBody && l.feat.Load() != 0 && len(coders) == 0 && len(raw)-HeadLen > int(l.peer.Value().maxBody) {
			l.cn.Unlock()
			return errTooLarge
		}
		if n := len(s.method) + ext + len(raw) + len(text); n > checkedBody && l.feat.Load() != 0 && s.message == nil && len(coders) == 0 {
			switch limit := int(l.peer.Value().maxBody); {
			case n <= limit:
			case n-ext <= limit && len(meta) == 0: // the peer takes it without the deadline
				flag, ext = flag&^flagDeadline, 0
			default:
				if s.call != nil {
					l.take(s.seq)
				}
				l.cn.Unlock()
				return errTooLarge
			}
		}
		switch {
		case len(coders) > 0:
			// Coders are the user's: they run without the lock, and may change what they are given.
			l.cn.Unlock()
			m := s.message
			if m == nil {
				payload := append(append(make([]byte, ext), raw...), text...)
				putExtension(payload, flag, left, meta)
				m = newMessage(s.cmd, flag, s.seq, s.method, payload, maps.Clone(s.values))
			} else {
				m = &Message{Buffer: append([]byte(nil), m.Buffer...), values: maps.Clone(m.values)}
			}
			m, err := encodeAll(coders, l, m)
			if err == nil {
				err = l.send(m, urgency)
			}
			return s.sent(err)
		case s.message != nil:
			l.cn.AppendShared(raw)
		default:
			b := l.cn.Reserve(HeadLen + len(s.method) + ext + len(raw) + len(text))
			putFrame(b, s.cmd, flag, s.seq, s.method)
			b = b[HeadLen+len(s.method):]
			if ext > 0 {
				b = putExtension(b, flag, left, meta)
			}
			copy(b, raw)
			copy(b, text)
		}
		if s.later {
			s.mine = l.cn.CommitLater()
			return nil
		}
		l.cn.Commit(urgency, yield)
		return nil
	}
}

// PushLater is PushMsg with TimeZero, but where it reports true the caller must call Flush soon.
func (c *Client) PushLater(m *Message) (flush bool, err error) {
	if m == nil || len(m.Buffer) < HeadLen {
		return false, ErrInvalidMethod
	}
	s := sending{client: c, message: m, later: true}
	err = s.send()
	return s.mine, err
}

// Flush writes what PushLater has left.
func (c *Client) Flush() { c.link.Load().cn.Flush() }

// gated waits until the connection is open to calls, or until there is another one, or says why neither is to be. The
// connection is locked before, and unlocked after.
func (s *sending) gated(l *link, deadline int64) error {
	c, x := s.client, l.x.Load()
	if l.gate&gateGoing != 0 {
		reason := x.going
		l.cn.Unlock()
		if c.dial == nil {
			return lostError(errGoingAway, reason)
		}
		return s.unavailable(deadline, true, reason)
	}
	if s.wait {
		l.cn.HandOver() // the answer that is waited for must be read
	}
	l.cn.Unlock()
	if s.timeout == 0 {
		return lostError(ErrClientReconnecting, errGreeting)
	}
	return s.timed(deadline, func(timeout <-chan time.Time) error {
		select {
		case <-x.ready:
			return nil
		case <-s.done:
			return contextError(s.ctx)
		case <-timeout:
			return lostError(ErrTimeout, errGreeting)
		}
	})
}

// errGreeting is why a call waits.
var errGreeting = &Error{Code: CodeUnavailable, Message: "the connection is being set up"}

// sent makes sure that a call whose message was not sent is not in the table any more. If somebody else has ended it
// already, that is its end.
func (s *sending) sent(err error) error {
	if err == nil || s.call == nil {
		return err
	}
	s.link.cn.Lock()
	mine := s.link.take(s.seq) == s.call
	s.link.cn.Unlock()
	if mine {
		return err
	}
	return nil
}

// unavailable waits for a connection if the client is to do so, and otherwise says why there is none.
func (s *sending) unavailable(deadline int64, down bool, cause error) error {
	c := s.client
	if c.dial == nil || !c.dial.config.waitReady || s.timeout == 0 {
		if err := c.CheckState(); err != nil {
			return err
		}
		return lostError(c.lostKind(), cause)
	}
	if err := c.CheckState(); err == nil {
		// The connection is going down and has not been given up yet: it will be, at once.
		if !down {
			c.link.Load().cn.Abort(cause)
		}
		runtime.Gosched()
	}
	ctx := s.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	return s.timed(deadline, func(timeout <-chan time.Time) error { return c.waitReady(ctx, timeout) })
}

// timed calls f with a channel that delivers at the deadline.
func (s *sending) timed(deadline int64, f func(<-chan time.Time) error) error {
	if deadline == 0 {
		return f(nil)
	}
	timer := time.NewTimer(time.Duration(deadline - now()))
	defer timer.Stop()
	return f(timer.C)
}

// room waits for room in the send queue, or refuses. The connection is locked before, and unlocked after.
func (s *sending) room(l *link, deadline int64) error {
	if s.timeout == 0 {
		l.cn.Unlock()
		return s.overstock()
	}
	return s.timed(deadline, func(timeout <-chan time.Time) error {
		if l.cn.Room(s.done, nil, timeout) {
			return nil
		}
		if s.ctx != nil && s.ctx.Err() != nil {
			return contextError(s.ctx)
		}
		if s.call != nil {
			return ErrTimeout
		}
		return s.overstock()
	})
}

func (s *sending) overstock() error {
	c := s.client
	if h := c.Handler.load().overstock; h != nil {
		c.safely("overstock hook", func() { h(c) })
	}
	return ErrClientOverstock
}

// Ping sends a ping, which the peer answers by itself; errors are ignored.
func (c *Client) Ping() {
	c.PushMsg(&Message{Buffer: pingFrame}, TimeZero) //nolint:errcheck // a connection that is gone needs no ping
}

// Keepalive sends a ping each interval while there is a connection, until Stop; an interval that is not positive means 30
// seconds. Calling it again changes the interval. A peer that does not answer is found out by Limits.Idle.
func (c *Client) Keepalive(interval time.Duration) {
	if interval <= 0 {
		interval = 30 * time.Second
	}
	x := c.extra()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.keepalive != nil {
		x.keepalive.Stop()
	}
	var timer *time.Timer
	timer = time.AfterFunc(interval, func() {
		err := c.CheckState()
		if err == nil {
			c.Ping()
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.keepalive == timer && !errors.Is(err, ErrClientStopped) {
			timer.Reset(interval)
		}
	})
	x.keepalive = timer
}

// safely runs code of the user's and survives its panic.
func (c *Client) safely(what string, f func()) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("%s panic in a %s: %v\n%s", c.Handler.LogTag(), what, p, debug.Stack())
		}
	}()
	f()
}
