package arpc

import (
	"context"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/log"
)

// An Observer is told what connections and calls do, for metrics and traces; see Mux.SetObserver. Its methods run on the goroutines
// of the message path: they must not block, and what they cost each message costs. A panic of theirs is logged. What can be counted is in Stats.
type Observer interface {
	// ConnOpened is called when a connection is established, ConnClosed when it is over, with the reason.
	ConnOpened(c *Client)
	ConnClosed(c *Client, err error)
	// CallStarted is called before a call, a notification or a stream of this side is sent. The context that it returns, which
	// must come from ctx, stands for ctx: what AddMetadata has added to it is sent.
	CallStarted(ctx context.Context, c *Client, info CallInfo) context.Context
	// CallEnded is called once for each CallStarted, with its context: when a call has ended, before its callback if there is one;
	// when a notification is accepted for sending, or is not; when a stream is over, with nil if both ends have closed it.
	CallEnded(ctx context.Context, c *Client, info CallInfo, err error)
	// HandleStarted is called before the middleware and handler of what the peer has sent. The values of the context that it returns
	// are found by the Value method of the handler's Context; it must not come from that. nil is none.
	HandleStarted(c *Context, info CallInfo) context.Context
	// HandleEnded is called once for each HandleStarted, with what Context.Outcome says: when the handler has returned, or when it has
	// answered if that is later.
	HandleEnded(c *Context, info CallInfo, err error)
}

// CallKind says what a CallInfo is about.
type CallKind uint8

// The kinds.
const (
	KindCall CallKind = iota
	KindNotify
	KindStream
)

// String returns "call", "notify" or "stream".
func (k CallKind) String() string { return [...]string{"call", "notify", "stream"}[k%3] }

// CallInfo says what an Observer is told about.
type CallInfo struct {
	Kind   CallKind
	Method string
	// Unknown says that no handler has that name: the peer chose it, so it is no label for metrics.
	Unknown bool
	// Start is when it began.
	Start time.Time
}

// SetObserver sets the Observer, nil for none, of messages and connections from now on.
func (m *Mux) SetObserver(o Observer) {
	if o != nil {
		o = guarded{o}
	}
	m.change(func(s *muxState) { s.observer = o })
}

// guarded survives the panics of an Observer: most of it runs on goroutines of the framework, where one would end the process.
type guarded struct{ o Observer }

// survive is deferred around an Observer's method.
func survive(c *Client) {
	if p := recover(); p != nil {
		log.Error("%s panic in an Observer: %v\n%s", c.Handler.LogTag(), p, debug.Stack())
	}
}

func (g guarded) ConnOpened(c *Client) {
	defer survive(c)
	g.o.ConnOpened(c)
}

func (g guarded) ConnClosed(c *Client, err error) {
	defer survive(c)
	g.o.ConnClosed(c, err)
}

func (g guarded) CallStarted(ctx context.Context, c *Client, info CallInfo) (started context.Context) {
	started = ctx
	defer survive(c)
	if got := g.o.CallStarted(ctx, c, info); got != nil {
		started = got
	}
	return started
}

func (g guarded) CallEnded(ctx context.Context, c *Client, info CallInfo, err error) {
	defer survive(c)
	g.o.CallEnded(ctx, c, info, err)
}

func (g guarded) HandleStarted(c *Context, info CallInfo) context.Context {
	defer survive(c.Client)
	return g.o.HandleStarted(c, info)
}

func (g guarded) HandleEnded(c *Context, info CallInfo, err error) {
	defer survive(c.Client)
	g.o.HandleEnded(c, info, err)
}

// errCallPanicked is how a call ends for an Observer when the caller's codec, or a coder, panics.
var errCallPanicked = &Error{Code: CodeInternal, Message: "panic in the call"}

// observed calls f, which does a call, between CallStarted and CallEnded.
func (c *Client) observed(o Observer, ctx context.Context, kind CallKind, method string, f func(context.Context) error) error {
	info := CallInfo{Kind: kind, Method: method, Start: time.Now()}
	ctx = o.CallStarted(ctx, c, info)
	err := error(errCallPanicked)
	defer func() { o.CallEnded(ctx, c, info, err) }()
	err = f(ctx)
	return err
}

// observed sends a notification between CallStarted and CallEnded.
func (s *sending) observed(o Observer, ctx context.Context) error {
	n := *s // or all would be on the heap
	return n.client.observed(o, ctx, KindNotify, n.method, func(ctx context.Context) error {
		n.opts = optionsOf(ctx)
		return n.send()
	})
}

// observe tells the Observer of a request or notification.
func (c *Context) observe(o Observer) {
	info := CallInfo{Method: c.route.method, Start: time.Now()}
	if info.Method == "" { // the route for all unknown ones
		info.Method, info.Unknown = c.msg.Method(), true
	}
	if c.msg.Cmd() == CmdNotify {
		info.Kind = KindNotify
	}
	c.watch = c.observeAs(o, info)
}

// observation is a message that an Observer has been told of.
type observation struct {
	o      Observer
	info   CallInfo
	values context.Context // nil for none
}

var observations = sync.Pool{New: func() any { return new(observation) }}

// ended tells the Observer of the end. The observation is not valid any more then.
func (w *observation) ended(c *Context, err error) {
	w.o.HandleEnded(c, w.info, err)
	c.watch = nil
	*w = observation{}
	observations.Put(w)
}

// later has the Observer told of the end by the answer.
func (w *observation) later(c *Context) {
	x := c.extra()
	x.mu.Lock()
	x.onEnd = append([]func(error){func(err error) { w.ended(c, err) }}, x.onEnd...) // the last to run
	x.mu.Unlock()
}

func (c *Context) observeAs(o Observer, info CallInfo) *observation {
	values := o.HandleStarted(c, info)
	if s := c.Stream(); s != nil && values != nil {
		ctx := context.Context(streamValues{s.Context(), values})
		s.derived.Store(&ctx)
	}
	w := observations.Get().(*observation)
	w.o, w.info, w.values = o, info, values
	return w
}

// streamValues is a stream's context with the values of an Observer's.
type streamValues struct {
	context.Context
	values context.Context
}

// Value implements context.Context.
func (s streamValues) Value(key any) any {
	if v := s.Context.Value(key); v != nil {
		return v
	}
	return s.values.Value(key)
}

// outcome returns why the stream has ended, nil if it has not or is closed in order.
func (s *Stream) outcome() error {
	s.link.cn.Lock()
	reset := s.reset
	s.link.cn.Unlock()
	switch cause := context.Cause(s.ctx); {
	case cause == errStreamHandled, !reset && (cause == errStreamOver || cause == io.EOF):
		return nil
	default:
		return cause
	}
}

// Stats says what a Client, or all connections of a Server, hold at the moment, and what has happened since it was made; the numbers of
// what has happened only grow.
type Stats struct {
	// Connections is the number of those that are open.
	Connections int
	// Streams is the number of those that either end has opened and that are not over.
	Streams int
	// Calls is the number of calls to peers that are not answered.
	Calls int
	// SendQueue is the number of bytes that wait to be sent.
	SendQueue int64
	// Requests is the number of bytes of ordered requests that wait for their turn.
	Requests int64

	// Messages and bytes that were received and sent, of all kinds, pings and credit too. Of WebSocket, the bytes received are those
	// that its messages contain.
	MessagesIn, BytesIn, MessagesOut, BytesOut int64
	// Connections accepted; failures to accept; connections refused because of a limit, because no descriptor was left, and because
	// of a failed handshake.
	Accepted, AcceptErrors, RefusedLimit, RefusedFiles, OpenErrors int64
	// ProtocolErrors is the number of messages that make no sense, Silent that of connections closed because nothing came, Stalled of those
	// whose peer took nothing.
	ProtocolErrors, Silent, Stalled int64
}

// Stats returns what the server's connections do.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	g := s.group
	s.mu.Unlock()
	return statsOf(g)
}

// Stats returns what the client's connections do, since NewClient or Restart. Of an accepted client it is what the connection holds at the
// moment; the server counts what has happened.
func (c *Client) Stats() Stats {
	d := c.dial
	if d == nil {
		var s Stats
		s.add(c.link.Load().cn)
		return s
	}
	d.mu.Lock()
	g := d.group
	d.mu.Unlock()
	return statsOf(g)
}

// statsOf returns those of a group, which may be nil.
func statsOf(g *core.Group) (s Stats) {
	if g == nil {
		return s
	}
	g.Each(func(cn *core.Conn) bool {
		s.add(cn)
		return true
	})
	of := &g.Stats
	s.MessagesIn, s.BytesIn, s.MessagesOut, s.BytesOut = of.FramesIn.Load(), of.BytesIn.Load(), of.FramesOut.Load(), of.BytesOut.Load()
	s.Accepted, s.AcceptErrors, s.RefusedLimit = of.Accepted.Load(), of.AcceptErrors.Load(), of.RefusedLimit.Load()
	s.RefusedFiles, s.OpenErrors, s.ProtocolErrors = of.RefusedFiles.Load(), of.OpenErrors.Load(), of.ProtocolErrors.Load()
	s.Silent, s.Stalled = of.Silent.Load(), of.Stalled.Load()
	return s
}

// add adds what a connection holds.
func (s *Stats) add(cn *core.Conn) {
	if !cn.Alive() {
		return
	}
	l := cn.User.(*link)
	cn.Lock()
	defer cn.Unlock()
	s.Connections++
	s.Calls += cn.Calls
	s.SendQueue += int64(cn.Pending())
	s.Requests += int64(cn.Queued())
	if x := l.x.Load(); x != nil && x.streams != nil {
		s.Streams += len(x.streams.ours) + len(x.streams.theirs)
	}
}
