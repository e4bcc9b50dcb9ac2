package arpc

import (
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/log"
)

// A Context is a request or notification in the hands of its handler, or the end of a CallAsync in the hands of its
// callback. It is a context.Context that is done when the connection ends; passing it on to a call tells the framework
// which handler waits there.
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
	chain []HandlerFunc
	frame *buf.Buf // holds the message of an async request
	err   error    // how a CallAsync ended
	index int
	mode  mode
	state atomic.Uint32
}

// State of a Context.
const (
	stateAnswered uint32 = 1 << iota
	stateLater           // AnswerLater was called
	stateUsed            // the answer of a CallAsync was asked for
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
	c.chain = r.chain
	c.index = -1
	c.mode = r.mode
	return c
}

// reusable reports whether a Context may stand for the next message of its batch: it has done what it was for, and nothing
// says that it is wanted longer.
func (c *Context) reusable(fulfilled uint32) bool {
	return c.state.Load()&(fulfilled|stateLater) == fulfilled && c.frame == nil
}

// reuse makes a Context that is reusable as good as new.
func (c *Context) reuse() {
	c.turn.Reset()
	c.err = nil
	c.state.Store(0)
}

// run runs the chain and makes sure that a request is answered.
func (c *Context) run() {
	defer c.returned()
	c.Next()
}

// returned is deferred around a handler.
func (c *Context) returned() {
	fault := errNoAnswer
	if p := recover(); p != nil {
		log.Error("%s panic in the handler of %q: %v\n%s", c.Client.Handler.LogTag(), c.Message.Method(), p, debug.Stack())
		fault = errPanicked
	}
	if c.state.Load()&(stateAnswered|stateLater) == 0 && c.msg.Cmd() == CmdRequest {
		c.answer(nil, fault) //nolint:errcheck // there is nobody to tell
	}
}

// Next runs the rest of the chain and returns when that has returned. Middleware need not call it.
func (c *Context) Next() {
	for c.index++; c.index < len(c.chain); c.index++ {
		c.chain[c.index](c)
	}
}

// Abort keeps the rest of the chain from running.
func (c *Context) Abort() { c.index = len(c.chain) }

// Bind decodes the payload into v: a *[]byte gets a copy, a *string the text, other pointers what the client's Codec
// makes of it; a nil v ignores it. If the message is an error, or the CallAsync failed, that error is returned.
func (c *Context) Bind(v any) error {
	c.used()
	if c.err != nil {
		return c.err
	}
	if c.msg.IsError() {
		return remoteError(string(c.msg.Data()))
	}
	return decode(c.Client.Codec, c.msg.Data(), v)
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
	return c.send(v, flagError)
}

func (c *Context) answer(v any, err error) error {
	if err != nil {
		return c.send(err.Error(), flagError)
	}
	return c.send(v, 0)
}

// send answers once.
func (c *Context) send(v any, flag byte) error {
	if c.msg.Cmd() != CmdRequest {
		return ErrContextResponseToNotify
	}
	for {
		s := c.state.Load()
		if s&stateAnswered != 0 {
			return ErrAnswered
		}
		if c.state.CompareAndSwap(s, s|stateAnswered) {
			break
		}
	}
	if c.state.Load()&stateLater != 0 {
		defer c.link.cn.Paid()
	}
	flag |= c.msg.Buffer[indexFlag] & flagAsync
	answered := false
	defer func() {
		if !answered { // the codec or a coder failed, perhaps by a panic, which goes on to the handler's end
			c.refuse(flag | flagError)
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
	err = c.link.reply(c, flag, errEncode.Message)
}

// AnswerLater says that the request will be answered after the handler has returned, once, from whatever goroutine. The
// Context and its message stay valid, those of a notification too; without an answer the caller waits until its time is up.
func (c *Context) AnswerLater() {
	for {
		s := c.state.Load()
		if s&stateLater != 0 {
			return
		}
		if c.state.CompareAndSwap(s, s|stateLater) {
			if s&stateAnswered == 0 && c.msg.Cmd() == CmdRequest {
				c.link.cn.Owe()
			}
			break
		}
	}
	c.msg.Buffer = append([]byte(nil), c.msg.Buffer...)
}

// Values returns the values that travel with the message where coders carry them; nil if there are none.
func (c *Context) Values() map[any]any { return c.msg.values }

// Get returns the message's value under key.
func (c *Context) Get(key any) (any, bool) { return c.msg.Get(key) }

// Set stores a value in the message.
func (c *Context) Set(key, value any) { c.msg.Set(key, value) }

// Deadline implements context.Context; there is none.
func (c *Context) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context: the channel is closed when the connection ends.
func (c *Context) Done() <-chan struct{} { return c.link.doneChan() }

// Err implements context.Context: it returns context.Canceled after the end of the connection. In the callback of a
// CallAsync it returns how the call ended, nil if it succeeded.
func (c *Context) Err() error {
	if c.mode == modeCallback {
		c.used()
		if c.err == nil && c.msg.IsError() {
			return remoteError(string(c.msg.Data()))
		}
		return c.err
	}
	select {
	case <-c.Done():
		return context.Canceled
	default:
		return nil
	}
}

type contextKey struct{}

// Value implements context.Context: it returns the message's value under key.
func (c *Context) Value(key any) any {
	if key == (contextKey{}) {
		return c
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
	ctx.run()
	cn, frame := ctx.link.cn, ctx.frame
	ctx.frame = nil
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
