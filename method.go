package arpc

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// A Caller calls the methods of a peer: a *Client, of a program that dials or of one that accepts.
type Caller interface {
	CallWith(ctx context.Context, method string, req, rsp any, values ...map[any]any) error
	CallAsync(method string, req any, callback func(*Context), timeout time.Duration, values ...map[any]any) error
	NotifyWith(ctx context.Context, method string, data any, values ...map[any]any) error
	OpenStream(ctx context.Context, method string) (*Stream, error)
}

var _ Caller = (*Client)(nil)

// A Trait says something about a method that both ends know.
type Trait uint8

// The traits. A method is Ordered unless it has Async or Inline.
const (
	// Ordered handlers run one at a time per connection, in the order of arrival; see Mux.Handle.
	Ordered Trait = iota
	// Async handlers run in parallel, see Mux.Handle.
	Async
	// Inline handlers must not block, see Mux.HandleInline.
	Inline
	// Idempotent says that doing the work twice does no harm, so that a call may be tried again when it is not known whether
	// it was carried out. Nothing in this package does so, but Callers that do are told, see WithIdempotent.
	Idempotent
)

// traits is what a typed method knows besides its types.
type traits struct {
	name       string
	mode       mode
	idempotent bool
}

func newTraits(name string, list []Trait) traits {
	checkMethod(name, false)
	t := traits{name: name}
	for _, trait := range list {
		switch trait {
		case Ordered:
			t.mode = modeOrdered
		case Async:
			t.mode = modeAsync
		case Inline:
			t.mode = modeInline
		case Idempotent:
			t.idempotent = true
		}
	}
	return t
}

// Name returns the method's name on the wire.
func (t traits) Name() string { return t.name }

// IsIdempotent reports whether the method has the trait Idempotent.
func (t traits) IsIdempotent() bool { return t.idempotent }

// A Method is a method with typed request and response, one value shared by both ends:
//
//	var Echo = arpc.NewMethod[EchoRequest, EchoResponse]("/echo")
//
// Either end may handle it, and the other call it.
type Method[Req, Res any] struct{ traits }

// NewMethod returns a method. It panics when the name is empty or longer than MaxMethodLen.
func NewMethod[Req, Res any](name string, list ...Trait) Method[Req, Res] {
	return Method[Req, Res]{newTraits(name, list)}
}

// Handle registers f for the method, to run as its traits say. What f returns is the answer; an error, with the code of an
// *Error or Code in it, goes to the caller instead. A request that cannot be decoded is answered with CodeInvalidArgument. Of
// a notification the answer is dropped. It panics for the same reasons as Mux.Handle.
func (m Method[Req, Res]) Handle(h Handler, f func(*Context, *Req) (*Res, error)) {
	h.handle(m.name, m.mode, func(c *Context) {
		req := new(Req)
		if err := c.Bind(req); err != nil {
			c.answerTyped(nil, decodeFault(err))
			return
		}
		res, err := f(c, req)
		if err != nil {
			c.answerTyped(nil, err)
			return
		}
		c.answerTyped(res, nil)
	})
}

// decodeFault is what a caller is told whose request cannot be decoded.
func decodeFault(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: CodeInvalidArgument, Message: "malformed request: " + err.Error()}
}

// answerTyped answers a request, unless somebody has or will.
func (c *Context) answerTyped(v any, err error) {
	switch {
	case c.msg.Cmd() != CmdRequest:
		c.err = err // for Outcome
	case c.state.Load()&(stateAnswered|stateLater) == 0:
		c.answer(v, err) //nolint:errcheck // there is nobody to tell
	}
}

// Call calls the method at the other end of c; see Client.CallWith for ctx and errors.
func (m Method[Req, Res]) Call(ctx context.Context, c Caller, req *Req) (*Res, error) {
	res := new(Res)
	if m.idempotent {
		if _, plain := c.(*Client); !plain {
			ctx = WithIdempotent(ctx)
		}
	}
	if err := c.CallWith(ctx, m.name, req, res); err != nil {
		return nil, err
	}
	return res, nil
}

// CallAsync calls the method and returns at once; callback runs exactly once, whatever happens, as that of Client.CallAsync
// does. timeout must be positive.
func (m Method[Req, Res]) CallAsync(c Caller, req *Req, callback func(*Res, error), timeout time.Duration) {
	c.CallAsync(m.name, req, func(ctx *Context) { //nolint:errcheck // the callback has it
		res := new(Res)
		if err := ctx.Bind(res); err != nil {
			callback(nil, err)
			return
		}
		callback(res, nil)
	}, timeout)
}

// Notify sends req without waiting for an answer; see Client.NotifyWith.
func (m Method[Req, Res]) Notify(ctx context.Context, c Caller, req *Req) error {
	return c.NotifyWith(ctx, m.name, req)
}

// A TypedStream is a Stream whose messages have types: Out those that this end sends, In those that it receives.
type TypedStream[Out, In any] struct{ *Stream }

// Send is Stream.Send.
func (s TypedStream[Out, In]) Send(v *Out) error { return s.Stream.Send(v) }

// TrySend is Stream.TrySend.
func (s TypedStream[Out, In]) TrySend(v *Out) error { return s.Stream.TrySend(v) }

// SendAndClose is Stream.SendAndClose.
func (s TypedStream[Out, In]) SendAndClose(v *Out) error { return s.Stream.SendAndClose(v) }

// Recv is Stream.Recv.
func (s TypedStream[Out, In]) Recv() (*In, error) {
	v := new(In)
	if err := s.Stream.Recv(v); err != nil {
		return nil, err
	}
	return v, nil
}

// All returns the messages that arrive. The sequence ends with the stream; its last pair is an error unless that was in
// order. Leaving it early does not end the stream.
func (s TypedStream[Out, In]) All() iter.Seq2[*In, error] {
	return func(yield func(*In, error) bool) {
		for {
			v, err := s.Recv()
			if err == io.EOF {
				return
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// handleStream registers a stream handler that may return an error.
func handleStream(h Handler, name string, f func(*Stream) error) {
	h.HandleStream(name, func(s *Stream) {
		if err := f(s); err != nil {
			s.Reset(err)
		}
	})
}

// A BidiStream is a method whose both ends send any number of messages.
type BidiStream[Req, Res any] struct{ traits }

// NewBidiStream returns a method of that shape; see NewMethod. Its traits Ordered, Async and Inline have no effect: a stream's
// handler has a goroutine of its own.
func NewBidiStream[Req, Res any](name string, list ...Trait) BidiStream[Req, Res] {
	return BidiStream[Req, Res]{newTraits(name, list)}
}

// Handle registers f for the method; the stream ends when it returns, with its error if that is not nil.
func (m BidiStream[Req, Res]) Handle(h Handler, f func(TypedStream[Res, Req]) error) {
	handleStream(h, m.name, func(s *Stream) error { return f(TypedStream[Res, Req]{s}) })
}

// Open opens a stream; see Client.OpenStream for ctx and errors.
func (m BidiStream[Req, Res]) Open(ctx context.Context, c Caller) (TypedStream[Req, Res], error) {
	s, err := c.OpenStream(ctx, m.name)
	return TypedStream[Req, Res]{s}, err
}

// A ServerStream is a method whose request is answered with any number of messages.
type ServerStream[Req, Res any] struct{ traits }

// NewServerStream returns a method of that shape; see NewBidiStream.
func NewServerStream[Req, Res any](name string, list ...Trait) ServerStream[Req, Res] {
	return ServerStream[Req, Res]{newTraits(name, list)}
}

// Handle registers f for the method; the stream ends when it returns, with its error if that is not nil.
func (m ServerStream[Req, Res]) Handle(h Handler, f func(TypedStream[Res, Req], *Req) error) {
	handleStream(h, m.name, func(s *Stream) error {
		t := TypedStream[Res, Req]{s}
		req, err := t.Recv()
		if err != nil {
			return requestFault(err)
		}
		return f(t, req)
	})
}

// requestFault is the end of a stream whose handler did not get its request.
func requestFault(err error) error {
	if err == io.EOF {
		return &Error{Code: CodeInvalidArgument, Message: "the stream carries no request"}
	}
	return decodeFault(err)
}

// Call sends the request and returns the stream of answers, of which only the receiving side is open.
func (m ServerStream[Req, Res]) Call(ctx context.Context, c Caller, req *Req) (TypedStream[Req, Res], error) {
	s, err := c.OpenStream(ctx, m.name)
	if err != nil {
		return TypedStream[Req, Res]{}, err
	}
	if err = s.SendAndClose(req); err != nil {
		s.Reset(err)
		return TypedStream[Req, Res]{}, err
	}
	return TypedStream[Req, Res]{s}, nil
}

// A ClientStream is a method that takes any number of messages and gives one answer.
type ClientStream[Req, Res any] struct{ traits }

// NewClientStream returns a method of that shape; see NewBidiStream.
func NewClientStream[Req, Res any](name string, list ...Trait) ClientStream[Req, Res] {
	return ClientStream[Req, Res]{newTraits(name, list)}
}

// Handle registers f for the method. What it returns is the answer.
func (m ClientStream[Req, Res]) Handle(h Handler, f func(TypedStream[Res, Req]) (*Res, error)) {
	handleStream(h, m.name, func(s *Stream) error {
		res, err := f(TypedStream[Res, Req]{s})
		if err != nil {
			return err
		}
		return s.SendAndClose(res)
	})
}

// Open opens a stream; after the messages CloseAndRecv gets the answer.
func (m ClientStream[Req, Res]) Open(ctx context.Context, c Caller) (TypedStream[Req, Res], error) {
	s, err := c.OpenStream(ctx, m.name)
	return TypedStream[Req, Res]{s}, err
}

// CloseAndRecv ends the sending and returns the next message: the answer of a ClientStream.
func (s TypedStream[Out, In]) CloseAndRecv() (*In, error) {
	if err := s.CloseSend(); err != nil {
		return nil, err
	}
	v, err := s.Recv()
	if err == io.EOF {
		return nil, &Error{Code: CodeInternal, Message: "the stream carries no answer", Remote: true}
	}
	return v, err
}
