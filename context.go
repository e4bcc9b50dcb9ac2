package arpc

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/log"
)

// A Context is a request or notification in the hands of its handler, or the end of a CallAsync in the hands of its
// callback. It is a context.Context with the caller's deadline, done when the caller cancels the call, when the connection
// ends and when the handler has returned; context.Cause says why. Passing it on to a call tells the framework which handler
// waits there. With a peer of version 1 of the protocol there is neither deadline nor cancellation by the caller.
//
// A Context must not be used after its handler has returned, unless AnswerLater was called: it may stand for another
// message of the connection then. Its Client remains the right one.
type Context struct {
	// Client is the connection that the message came from: calling it calls the peer.
	Client *Client
	// Message is what was received.
	Message *Message

	msg   Message
	turn  core.Turn
	link  *link
	route *route        // nil in a callback
	frame *buf.Buf      // holds the message of an async request
	async *atomic.Int32 // counts it
	watch *observation  // nil without an Observer, and when it has been told
	err   error         // how a CallAsync ended
	index int
	mode  mode
	// grouped says that an async request runs before others that arrived with it, on the same goroutine.
	grouped bool
	state   atomic.Uint32

	deadline int64                       // the caller's, nanoseconds since epoch; 0 for none
	rare     atomic.Pointer[contextRare] // nil until needed
}

// contextRare is what only some handlers use.
type contextRare struct {
	wait      atomic.Pointer[contextWait] // nil until somebody asks when to stop
	nextAsked *Context                    // with the same sequence number; guarded by the connection's lock
	seq       uint64                      // of the message; so is this
	request   bool                        // and this: the message is a request
	finished  bool                        // and this: nobody is to wait for the handler any more
	stream    *Stream

	answering sync.Mutex // between who answers and AnswerLater

	mu       sync.Mutex
	onEnd    []func(error)
	returned bool // the handlers have
	answered bool // after AnswerLater, with the outcome
	outcome  error
	out      metadataBlock // of the answer
}

// contextWait is the standard context that stands behind a Context.
type contextWait struct {
	context.Context
	cancel context.CancelCauseFunc
	stop   context.CancelFunc // may be nil
}

func (c *Context) extra() *contextRare {
	if x := c.rare.Load(); x != nil {
		return x
	}
	c.rare.CompareAndSwap(nil, &contextRare{})
	return c.rare.Load()
}

// cancel tells who waits that the handler should stop.
func (x *contextRare) cancel(cause error) {
	if w := x.wait.Load(); w != nil {
		w.cancel(cause)
		if w.stop != nil {
			w.stop()
		}
	}
}

// waits returns the standard context behind c, which it makes when it is first asked for.
func (c *Context) waits() *contextWait {
	x := c.extra()
	if w := x.wait.Load(); w != nil {
		return w
	}
	l := c.link
	var cause error
	l.cn.Lock()
	w := x.wait.Load()
	if w == nil {
		w = &contextWait{}
		w.Context, w.cancel = context.WithCancelCause(context.Background())
		if c.deadline != 0 {
			w.Context, w.stop = context.WithDeadline(w.Context, epoch.Add(time.Duration(c.deadline)))
		}
		x.wait.Store(w)
		lx, seq := l.extraLocked(), c.msg.Seq()
		x.seq, x.request = seq, c.msg.Cmd() == CmdRequest
		switch {
		case x.finished:
			cause = errHandled
		case l.gate&gateDown != 0:
			cause = lostError(&Error{Code: CodeUnavailable, Message: "connection lost"}, l.cn.Err())
		case lx.canceled.m[seq] != nil && x.request:
			cause = lx.canceled.m[seq]
		default:
			if lx.asked == nil {
				lx.asked = map[uint64]*Context{}
			}
			x.nextAsked = lx.asked[seq]
			lx.asked[seq] = c
		}
	}
	l.cn.Unlock()
	if cause != nil {
		x.cancel(cause)
	}
	return w
}

var errHandled = &Error{Code: CodeCanceled, Message: "the handler has returned"}

// end ends who waits for the handler, when that has returned or has answered later.
func (c *Context) end() {
	x := c.rare.Load()
	if x == nil {
		return
	}
	l := c.link
	l.cn.Lock()
	x.finished = true
	if x.wait.Load() == nil {
		l.cn.Unlock()
		return
	}
	seq := x.seq
	if lx := l.x.Load(); lx != nil {
		if first := lx.asked[seq]; first == c {
			if x.nextAsked == nil {
				delete(lx.asked, seq)
			} else {
				lx.asked[seq] = x.nextAsked
			}
		} else {
			for p := first; p != nil; p = p.rare.Load().nextAsked {
				if p.rare.Load().nextAsked == c {
					p.rare.Load().nextAsked = x.nextAsked
					break
				}
			}
		}
	}
	l.cn.Unlock()
	x.cancel(errHandled)
}

// startedAt sets the deadline that the message carries, counted from when it arrived, 0 for now.
func (c *Context) startedAt(at int64) {
	ms, ok := timeLeft(c.msg.Buffer)
	if !ok {
		return
	}
	if at == 0 {
		at = now()
	}
	c.deadline = at + int64(ms)*int64(time.Millisecond)
}

// State of a Context.
const (
	stateAnswered uint32 = 1 << iota
	stateLater           // AnswerLater was called
	stateUsed            // the answer of a CallAsync was asked for
	stateEarly           // with stateAnswered: before AnswerLater
)

// contexts hands out Contexts by the slab, as a handler may keep its own for as long as it likes: eight for one allocation.
var contexts = sync.Pool{New: func() any { return new(contextSlab) }}

type contextSlab struct {
	next int
	ctxs *[8]Context
}

func newContext() *Context {
	s := contexts.Get().(*contextSlab)
	if s.ctxs == nil {
		s.ctxs, s.next = new([8]Context), 0
	}
	c := &s.ctxs[s.next]
	if s.next++; s.next == len(s.ctxs) {
		s.ctxs = nil
	}
	contexts.Put(s)
	return c
}

// requestContext makes the Context of a received request or notification.
func (l *link) requestContext(r *route, frame []byte, values map[any]any) *Context {
	return l.fill(newContext(), r, frame, values)
}

func (l *link) fill(c *Context, r *route, frame []byte, values map[any]any) *Context {
	if c.link == nil { // a new one; others are of the same connection
		c.Client, c.link = l.client, l
	}
	c.msg = Message{Buffer: frame, values: values}
	c.Message = &c.msg
	c.route = r
	c.index = -1
	c.mode = r.mode
	return c
}

// reusable reports whether a Context may stand for the next message of its batch: it has done what it was for, and nothing
// says that it is wanted longer.
func (c *Context) reusable(fulfilled uint32) bool {
	return c.state.Load()&(fulfilled|stateLater) == fulfilled && c.frame == nil && c.rare.Load() == nil
}

// reuse makes a Context that is reusable as good as new.
func (c *Context) reuse() {
	c.turn.Reset()
	c.err, c.deadline = nil, 0
	c.state.Store(0)
}

// run runs the chain and makes sure that a request is answered.
func (c *Context) run() {
	defer c.returned()
	if o := c.Client.Handler.load().observer; o != nil {
		c.observe(o)
	}
	c.Next()
}

// returned is deferred around a handler.
func (c *Context) returned() {
	fault := errNoAnswer
	if p := recover(); p != nil {
		log.Error("%s panic in the handler of %q: %v\n%s", c.Client.Handler.LogTag(), c.Message.Method(), p, debug.Stack())
		fault = errPanicked
		if c.msg.Cmd() != CmdRequest {
			c.err = errPanicked
		}
	}
	if c.state.Load()&(stateAnswered|stateLater) == 0 && c.msg.Cmd() == CmdRequest {
		if fault == errNoAnswer {
			fault = c.gaveUp()
		}
		c.answer(nil, fault) //nolint:errcheck // there is nobody to tell
	}
	s := c.state.Load()
	later := s&(stateLater|stateEarly) == stateLater && c.msg.Cmd() == CmdRequest
	if later {
		if c.watch != nil {
			c.watch.later(c)
		}
		c.ended(func(x *contextRare) { x.returned = true })
	} else {
		if c.rare.Load() != nil {
			c.ended(func(x *contextRare) { x.returned, x.answered, x.outcome = true, true, c.err })
		}
		if c.watch != nil {
			c.watch.ended(c, c.err)
		}
	}
	if s&stateLater == 0 || s&stateAnswered != 0 || c.msg.Cmd() != CmdRequest {
		c.end()
	}
}

// ended runs what OnEnd has registered when change makes the message dealt with.
func (c *Context) ended(change func(*contextRare)) {
	x := c.rare.Load()
	if x == nil {
		return
	}
	x.mu.Lock()
	change(x)
	var all []func(error)
	if x.returned && x.answered {
		all, x.onEnd = x.onEnd, nil
	}
	outcome := x.outcome
	x.mu.Unlock()
	for i := len(all) - 1; i >= 0; i-- {
		c.Client.safely("function of OnEnd", func() { all[i](outcome) })
	}
}

// OnEnd registers a function that runs once when the message is dealt with, the last one first: its handlers have returned and a request has
// its answer, which may be later; a stream is over. err is what Outcome says then. It runs on the goroutine of the handler or of the
// answer. It is for middleware, before Next; a request that is never answered has no end.
func (c *Context) OnEnd(f func(err error)) {
	x := c.extra()
	x.mu.Lock()
	x.onEnd = append(x.onEnd, f)
	x.mu.Unlock()
}

// Derive replaces the context behind c by what f makes of it, with further values or an earlier deadline, before the handler runs: for
// middleware, before Next. f gets a context that ends with the caller's and must return one that comes from it; whoever makes one with a
// deadline cancels it when Next has returned, or by OnEnd. A stream's Context is that one too.
func (c *Context) Derive(f func(context.Context) context.Context) {
	w, x := c.waits(), c.extra()
	base := w.Context
	if x.stream != nil {
		base = x.stream.Context()
	}
	ctx := f(base)
	x.wait.Store(&contextWait{Context: ctx, cancel: w.cancel, stop: w.stop})
	if t, ok := ctx.Deadline(); ok {
		c.deadline = int64(t.Sub(epoch))
	}
	if x.stream != nil {
		x.stream.derived.Store(&ctx)
	}
}

// gaveUp is the answer for a handler that gives none: it may have stopped because it was to.
func (c *Context) gaveUp() *Error {
	if x := c.rare.Load(); x != nil {
		if w := x.wait.Load(); w != nil {
			switch w.Err() {
			case context.DeadlineExceeded:
				return ErrTimeout
			case context.Canceled:
				return errStopped
			}
		}
	}
	return errNoAnswer
}

// Next runs the rest of the chain and returns when that has returned. Middleware need not call it.
func (c *Context) Next() {
	if c.route == nil {
		return
	}
	for c.index++; c.index < len(c.route.chain); c.index++ {
		c.route.chain[c.index](c)
	}
}

// Abort keeps the rest of the chain from running.
func (c *Context) Abort() {
	if c.route != nil {
		c.index = len(c.route.chain)
	}
}

// Bind decodes the payload into v: a *[]byte gets a copy, a *string the text, other pointers what the client's Codec
// makes of it; a nil v ignores it. If the message is an error, or the CallAsync failed, that error is returned.
func (c *Context) Bind(v any) error {
	c.used()
	if c.mode == modeCallback && c.err != nil {
		return c.err
	}
	if c.msg.IsError() {
		return errorIn(c.msg.Buffer, c.Client.Codec)
	}
	cc := c.Client.Codec
	if c.msg.Buffer[indexFlag]&flagMetadata != 0 {
		var err error
		if cc, err = codecOf(metadataIn(c.msg.Buffer), cc); err != nil {
			return err
		}
	}
	return decode(cc, c.msg.Data(), v)
}

// codec returns the codec of the message, and so of the answer.
func (c *Context) codec() codec.Codec {
	if c.msg.Buffer[indexFlag]&flagMetadata == 0 {
		return c.Client.Codec
	}
	cc, _ := codecOf(metadataIn(c.msg.Buffer), c.Client.Codec) // of one that nobody knows Bind says so
	return cc
}

// Body returns the payload, see Bind. It is valid until the handler returns.
func (c *Context) Body() []byte {
	c.used()
	return c.msg.Data()
}

// used notes that the callback of a CallAsync has asked for the answer.
func (c *Context) used() {
	if c.mode == modeCallback {
		c.state.Store(stateUsed)
	}
}

// Write answers the request with v: raw if it is a []byte or a string, an error answer if it is an error, nothing if
// it is nil, otherwise encoded by the client's Codec. It does not wait for the peer; errors are ErrAnswered,
// ErrContextResponseToNotify, what the Codec returns (the peer is told that the answer could not be encoded), and why the
// connection is gone. Without AnswerLater it must be called before the handler returns.
func (c *Context) Write(v any) error {
	if err, ok := v.(error); ok {
		return c.answer(nil, err)
	}
	return c.answer(v, nil)
}

// WriteWithTimeout is Write: an answer never waits, so the timeout has no part in it.
func (c *Context) WriteWithTimeout(v any, _ time.Duration) error { return c.Write(v) }

// Error answers the request with an error: v is an error, a text, or a value that the client's Codec encodes. A nil v is an
// empty answer.
func (c *Context) Error(v any) error {
	switch v := v.(type) {
	case nil:
		return c.answer(nil, nil)
	case error:
		return c.answer(nil, v)
	}
	return c.send(v, flagError, &Error{Code: CodeUnknown, Message: fmt.Sprint(v)})
}

func (c *Context) answer(v any, err error) error {
	if err == nil {
		return c.send(v, 0, nil)
	}
	if c.link.has(featErrors) {
		return c.send(appendError(nil, err, c.Client.Codec), flagError|flagCoded, err)
	}
	return c.send(err.Error(), flagError, err)
}

// Outcome returns the error that the request was answered with, for middleware after Next: nil for a result, and while there is
// no answer. Of a typed method's notification it is what the handler returned, of a stream why it has ended. It does not know of
// answers after AnswerLater.
func (c *Context) Outcome() error {
	if s := c.Stream(); s != nil {
		return s.outcome()
	}
	if c.mode == modeCallback {
		return nil
	}
	if x := c.rare.Load(); x != nil { // a middleware may answer meanwhile
		x.answering.Lock()
		defer x.answering.Unlock()
	}
	return c.err
}

// send answers once. outcome is the error that the answer is.
func (c *Context) send(v any, flag byte, outcome error) error {
	later := false
	defer func() { // also after a panic of the codec
		if later {
			if c.watch != nil {
				c.extra() // the handler's return looks there
			}
			c.ended(func(x *contextRare) { x.answered, x.outcome = true, outcome })
		}
	}()
	return c.sendOnce(v, flag, &outcome, &later)
}

// sendOnce sets later if the answer is one after AnswerLater, and outcome if the answer is another than that.
func (c *Context) sendOnce(v any, flag byte, outcome *error, later *bool) error {
	if x := c.rare.Load(); x != nil {
		x.answering.Lock()
		defer x.answering.Unlock()
	}
	if c.msg.Cmd() != CmdRequest {
		if c.state.Load()&stateLater == 0 && *outcome != nil {
			c.err = *outcome
		}
		return ErrContextResponseToNotify
	}
	for {
		s := c.state.Load()
		if s&stateAnswered != 0 {
			return ErrAnswered
		}
		if s&stateLater != 0 {
			if c.state.CompareAndSwap(s, s|stateAnswered) {
				break
			}
		} else if c.state.CompareAndSwap(s, s|stateAnswered|stateEarly) {
			c.err = *outcome
			break
		}
	}
	if c.state.Load()&stateLater != 0 {
		*later = true
		defer c.link.cn.Paid()
		defer c.later(-1)
		defer c.end()
	}
	flag |= c.msg.Buffer[indexFlag] & flagAsync
	answered := false
	defer func() {
		if !answered { // the codec or a coder failed, perhaps by a panic, which goes on to the handler's end
			if *outcome = errEncode; !*later {
				c.err = errEncode
			}
			c.refuse(flag&flagAsync | flagError)
		}
	}()
	err := c.link.reply(c, flag, v)
	answered = err == nil || CodeOf(err) == CodeUnavailable
	return err
}

// refuse answers that the answer cannot be encoded. If not even that can, the connection is closed: the caller must not wait
// for nothing.
func (c *Context) refuse(flag byte) {
	err := error(errEncode)
	defer func() {
		if recover() != nil || err != nil && CodeOf(err) != CodeUnavailable {
			c.link.cn.Close(errEncode)
		}
	}()
	if c.link.has(featErrors) {
		err = c.link.reply(c, flag|flagCoded, appendError(nil, errEncode, nil))
		return
	}
	err = c.link.reply(c, flag, errEncode.Message)
}

// AnswerLater says that the request will be answered after the handler has returned, once, from whatever goroutine. The
// Context and its message stay valid, those of a notification too; without an answer the caller waits until its time is up. It must be
// called before the handler returns, and before another goroutine may answer.
func (c *Context) AnswerLater() {
	if x := c.rare.Load(); x != nil { // a middleware may answer meanwhile
		x.answering.Lock()
		defer x.answering.Unlock()
	}
	for {
		s := c.state.Load()
		if s&stateLater != 0 {
			return
		}
		if c.state.CompareAndSwap(s, s|stateLater) {
			if s&stateAnswered == 0 && c.msg.Cmd() == CmdRequest {
				c.link.cn.Owe()
				c.later(1)
			}
			break
		}
	}
	c.msg.Buffer = append([]byte(nil), c.msg.Buffer...)
}

// later counts requests that will be answered later.
func (c *Context) later(n int) {
	l := c.link
	l.cn.Lock()
	x := l.extraLocked()
	if x.later == nil {
		x.later = map[string]int{}
	}
	method := c.msg.Buffer[HeadLen : HeadLen+c.msg.MethodLen()]
	if x.later[string(method)] += n; x.later[string(method)] == 0 {
		delete(x.later, string(method))
	}
	l.cn.Unlock()
}

// Values returns the values that travel with the message where coders carry them; nil if there are none.
func (c *Context) Values() map[any]any { return c.msg.values }

// Get returns the message's value under key.
func (c *Context) Get(key any) (any, bool) { return c.msg.Get(key) }

// Set stores a value in the message.
func (c *Context) Set(key, value any) { c.msg.Set(key, value) }

// Metadata returns what the caller sent with the message, in a callback what came with the answer; nil if there is none.
// It is decoded each time.
func (c *Context) Metadata() Metadata {
	c.used()
	return decodeMetadata(metadataIn(c.msg.Buffer))
}

// MetadataValue returns the value of one key of Metadata without decoding all, false if there is none. It is valid until the handler
// returns.
func (c *Context) MetadataValue(key string) (value []byte, ok bool) {
	c.used()
	if strings.HasPrefix(key, reservedPrefix) {
		return nil, false
	}
	return pairIn(metadataIn(c.msg.Buffer), key)
}

// SetMetadata adds a pair to what is sent with the answer. It is left out for peers of version 1 of the protocol. Errors are
// those of the limits at Metadata.
func (c *Context) SetMetadata(key, value string) error {
	x := c.extra()
	x.mu.Lock()
	defer x.mu.Unlock()
	out, err := appendUserPair(x.out, key, value)
	if err == nil {
		err = c.link.checkMetadata(out)
	}
	if err != nil {
		return err
	}
	x.out = out
	if x.stream != nil {
		x.stream.setMetadata(out)
	}
	return nil
}

func (x *contextRare) outgoing() metadataBlock {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.out
}

// checkMetadata reports whether the peer takes a block of that size.
func (l *link) checkMetadata(block metadataBlock) error {
	if !l.has(featMetadata) {
		return nil
	}
	l.cn.Lock()
	limit := l.peer.Value().metadata
	l.cn.Unlock()
	if uint32(len(block)) > limit {
		return errMetadata("%d bytes, the peer takes %d", len(block), limit)
	}
	return nil
}

// Stream returns the stream that a middleware of a stream's handler is about, nil for others.
func (c *Context) Stream() *Stream {
	if x := c.rare.Load(); x != nil {
		return x.stream
	}
	return nil
}

// Peer says who sent the message.
func (c *Context) Peer() Peer { return c.link.peerInfo() }

// Deadline implements context.Context: it is the caller's, by this side's clock.
func (c *Context) Deadline() (time.Time, bool) {
	if c.deadline == 0 {
		return time.Time{}, false
	}
	return epoch.Add(time.Duration(c.deadline)), true
}

// Done implements context.Context.
func (c *Context) Done() <-chan struct{} { return c.waits().Done() }

// Err implements context.Context: context.DeadlineExceeded after the deadline, context.Canceled after the other reasons to
// stop. In the callback of a CallAsync it returns how the call ended, nil if it succeeded.
func (c *Context) Err() error {
	if c.mode == modeCallback {
		c.used()
		if c.err == nil && c.msg.IsError() {
			return errorIn(c.msg.Buffer, c.Client.Codec)
		}
		return c.err
	}
	return c.waits().Err()
}

type contextKey struct{}

// Value implements context.Context: it returns the message's value under key.
func (c *Context) Value(key any) any {
	if key == (contextKey{}) {
		return c
	}
	if x := c.rare.Load(); x != nil {
		if w := x.wait.Load(); w != nil {
			if v := w.Context.Value(key); v != nil { // package context finds its own there
				return v
			}
		}
	}
	if c.watch != nil && c.watch.values != nil {
		if v := c.watch.values.Value(key); v != nil {
			return v
		}
	}
	if len(c.msg.values) == 0 {
		return nil
	}
	v, _ := c.msg.Get(key)
	return v
}

// contextOf returns the handler's Context that ctx is or was derived from, nil if there is none.
func contextOf(ctx context.Context) *Context {
	if c, ok := ctx.(*Context); ok {
		return c
	}
	c, _ := ctx.Value(contextKey{}).(*Context)
	return c
}

// RunTask handles an async request; it is not for users.
func (c *asyncRequest) RunTask() {
	ctx := (*Context)(c)
	if cost := ctx.route.cost; cost.sample() {
		start := now()
		ctx.run()
		cost.took(now()-start, asyncSlow)
	} else {
		ctx.run()
	}
	cn, frame := ctx.link.cn, ctx.frame
	ctx.frame = nil
	ctx.async.Add(-1)
	if ctx.state.Load()&stateLater == 0 {
		ctx.msg.Buffer = deadFrame
	}
	frame.Free()
	cn.Release()
}

type asyncRequest Context

// deadFrame stands for a message that is no longer valid.
var deadFrame = newMessage(CmdNotify, 0, 0, "gone", nil, nil).Buffer

func decode(c codec.Codec, data []byte, v any) error { return codec.Decode(c, data, v) }
