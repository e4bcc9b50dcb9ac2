package arpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/internal/core"
)

// A Code classifies an error. The numbers and meanings are gRPC's; there is none for success.
type Code uint32

// The codes.
const (
	CodeCanceled           Code = 1  // the caller cancelled
	CodeUnknown            Code = 2  // an error without a code, such as a text from a handler of an old peer
	CodeInvalidArgument    Code = 3  // the request makes no sense, whatever the state of the system
	CodeDeadlineExceeded   Code = 4  // the time was up; the work may have been done
	CodeNotFound           Code = 5  // what was asked for does not exist
	CodeAlreadyExists      Code = 6  // what was to be created exists
	CodePermissionDenied   Code = 7  // the caller may not do that
	CodeResourceExhausted  Code = 8  // a limit was reached
	CodeFailedPrecondition Code = 9  // the system is not in a state for that
	CodeAborted            Code = 10 // a conflict; try the whole again
	CodeOutOfRange         Code = 11 // past the end
	CodeUnimplemented      Code = 12 // there is no such method
	CodeInternal           Code = 13 // a fault of the program that answered
	CodeUnavailable        Code = 14 // no connection, or the peer is going away
	CodeDataLoss           Code = 15 // data is lost or damaged
	CodeUnauthenticated    Code = 16 // the caller has not said who it is
)

var codeNames = [...]string{
	"", "canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied",
	"resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable",
	"data_loss", "unauthenticated",
}

// String returns the code's name in lower case with underscores.
func (c Code) String() string {
	if c > 0 && int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code_%d", uint32(c))
}

// Error makes a Code an error of its own: a handler may return it, and errors.Is(err, CodeNotFound) holds for every error
// with that code.
func (c Code) Error() string { return c.String() }

// An Error is how a call, a notification or a connection fails.
//
// errors.Is(err, context.Canceled) holds for CodeCanceled, errors.Is(err, context.DeadlineExceeded) for
// CodeDeadlineExceeded, and errors.Is(err, code) for the code; errors.Is against one of this package's errors compares code
// and message, so that it holds for an error that came over the wire too, but for ErrClientStopped, ErrClientReconnecting and
// ErrClientOverstock, which are about this side.
type Error struct {
	Code Code
	// Message is for people, and goes to the peer.
	Message string
	// Details are further values for programs. They go to peers of version 2 of the protocol.
	Details []Detail
	// Remote says that the peer decided, false that this side did.
	Remote bool
	// Unsent says that a call, notification or stream ended before anything of it was sent: the peer has not got it and will not. It is about
	// this side, and does not travel.
	Unsent bool

	refused bool // by the peer, see IsRefused
	ours    bool // says something of this side, so no error of a peer's is it
	causes  []error
}

// A Detail is one value of an Error, under a name that both ends know.
type Detail struct {
	// Name has at most 255 bytes.
	Name string
	// Value is encoded like that of a call. In an Error that came from the peer it is the encoding, a []byte.
	Value any

	codec codec.Codec
}

// Bind decodes the value of a Detail that came from the peer into v, like Context.Bind.
func (d Detail) Bind(v any) error {
	b, ok := d.Value.([]byte)
	if !ok {
		return &Error{Code: CodeFailedPrecondition, Message: "the detail did not come from a peer"}
	}
	return codec.Decode(d.codec, b, v)
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Is implements the comparisons described at Error.
func (e *Error) Is(target error) bool {
	switch target {
	case context.Canceled:
		return e.Code == CodeCanceled
	case context.DeadlineExceeded:
		return e.Code == CodeDeadlineExceeded
	}
	if code, ok := target.(Code); ok {
		return e.Code == code
	}
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == e.Message && !(t.ours && e.Remote)
}

// Unwrap returns what led to the error on this side.
func (e *Error) Unwrap() []error { return e.causes }

// CodeOf returns the code of err: its own if it is an *Error, the fitting one for the errors of package context,
// CodeUnknown for others, and 0 for nil.
func CodeOf(err error) Code {
	if err == nil {
		return 0
	}
	var e *Error
	var code Code
	switch {
	case errors.As(err, &e) && e.Code > 0:
		return e.Code
	case errors.As(err, &code) && code > 0 && int(code) < len(codeNames):
		return code
	case errors.Is(err, context.Canceled):
		return CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return CodeDeadlineExceeded
	}
	return CodeUnknown
}

// Errors of clients and servers. All are decided by this side, but ErrMethodNotFound.
var (
	// ErrTimeout ends a call or a wait whose time is up. The peer may have done the work.
	ErrTimeout = &Error{Code: CodeDeadlineExceeded, Message: "timeout"}
	// ErrClientTimeout is ErrTimeout.
	ErrClientTimeout = ErrTimeout
	// ErrClientInvalidTimeoutZero refuses a call with a timeout of 0.
	ErrClientInvalidTimeoutZero = &Error{Code: CodeInvalidArgument, Message: "invalid timeout: must not be 0", Unsent: true}
	// ErrClientInvalidTimeoutLessThanZero refuses a negative timeout.
	ErrClientInvalidTimeoutLessThanZero = &Error{Code: CodeInvalidArgument, Message: "invalid timeout: must not be negative", Unsent: true}
	// ErrClientInvalidAsyncHandler refuses a CallAsync without a callback.
	ErrClientInvalidAsyncHandler = &Error{Code: CodeInvalidArgument, Message: "invalid callback: must not be nil", Unsent: true}
	// ErrClientInvalidPoolDialers refuses a pool without connections.
	ErrClientInvalidPoolDialers = &Error{Code: CodeInvalidArgument, Message: "invalid pool: no connections"}
	// ErrInvalidMethod refuses a method that is empty or longer than MaxMethodLen.
	ErrInvalidMethod = &Error{Code: CodeInvalidArgument, Message: "invalid method: must have 1 to 127 bytes", Unsent: true}
	// ErrClientOverstock refuses a message because the send queue is full: the peer reads more slowly than we send.
	ErrClientOverstock = &Error{Code: CodeResourceExhausted, Message: "send queue is full", Unsent: true, ours: true}
	// ErrClientReconnecting fails a call made while there is no connection, or during which the connection was lost; in the
	// latter case the peer may have done the work.
	ErrClientReconnecting = &Error{Code: CodeUnavailable, Message: "client reconnecting", ours: true}
	// ErrClientStopped fails what is asked of a client that was stopped, or whose connection, being a server's, ended. The variable
	// itself says that nothing was sent; what was in flight gets an error for which errors.Is holds and which does not say so.
	ErrClientStopped = &Error{Code: CodeUnavailable, Message: "client stopped", Unsent: true, ours: true}
	// ErrMethodNotFound is the peer's answer to a call of a method that it does not have.
	ErrMethodNotFound = &Error{Code: CodeUnimplemented, Message: "method not found"}
	// ErrContextResponseToNotify refuses to answer a notification.
	ErrContextResponseToNotify = &Error{Code: CodeFailedPrecondition, Message: "a notification cannot be answered"}
	// ErrAnswered refuses to answer a request twice.
	ErrAnswered = &Error{Code: CodeFailedPrecondition, Message: "the request was answered already"}
	// ErrServerStopped is what Run and Serve return after Stop or Shutdown.
	ErrServerStopped = &Error{Code: CodeUnavailable, Message: "server stopped"}
)

// Answers that the framework gives on its own.
var (
	errPanicked   = &Error{Code: CodeInternal, Message: "internal error: the handler panicked"}
	errNoAnswer   = &Error{Code: CodeInternal, Message: "internal error: the handler gave no answer"}
	errEncode     = &Error{Code: CodeInternal, Message: "internal error: the answer cannot be encoded"}
	errTooMany    = &Error{Code: CodeResourceExhausted, Message: "too many requests in line"}
	errDraining   = &Error{Code: CodeUnavailable, Message: "server is shutting down"}
	errBadMethod  = &Error{Code: CodeInvalidArgument, Message: "malformed request: method length"}
	errTooNested  = &Error{Code: CodeResourceExhausted, Message: "too many handlers of this connection wait in calls", Unsent: true}
	errInlineCall = &Error{Code: CodeFailedPrecondition, Message: "an inline handler must not wait in a call", Unsent: true}
	errTooLarge   = &Error{Code: CodeInvalidArgument, Message: "message is longer than the peer accepts"}
	errGoingAway  = &Error{Code: CodeUnavailable, Message: "the peer is going away"}
	errNoAuth     = &Error{Code: CodeUnauthenticated, Message: "the connection is not authenticated"}
	errCalls      = &Error{Code: CodeResourceExhausted, Message: "too many calls in flight"}
)

// wireErrors finds the code of a text, as version 1 of the protocol carries texts only.
var wireErrors = func() map[string]Code {
	codes := map[string]Code{}
	for _, e := range []*Error{ErrMethodNotFound, errPanicked, errNoAnswer, errEncode, errTooMany, errDraining, errBadMethod,
		errTooNested, errNoAuth} {
		codes[e.Message] = e.Code
	}
	return codes
}()

func remoteError(text string) *Error {
	code, ok := wireErrors[text]
	if !ok {
		code = CodeUnknown
	}
	return &Error{Code: code, Message: text, Remote: true}
}

// Limits of an encoded error.
const (
	maxDetails   = 255
	maxErrorText = 64 << 10 // bytes; a longer message is cut
)

// appendError appends the encoding of an error as version 2 of the protocol has it: code, number of details, length of
// the message in 4 bytes, message; then for each detail the length of its name, name, length of the value in 4 bytes, value. A
// detail that cannot be encoded is left out.
func appendError(b []byte, err error, c codec.Codec) []byte {
	code, text := CodeOf(err), err.Error()
	if code > 255 {
		code = CodeUnknown
	}
	if len(text) > maxErrorText {
		text = text[:maxErrorText]
	}
	at := len(b) + 1
	b = append(b, byte(code), 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	b = append(b, text...)
	if _, ok := err.(*refusal); ok { // not one within another error: who wraps it has done something
		b[at]++
		b = append(append(append(b, byte(len(refusedDetail))), refusedDetail...), 0, 0, 0, 0)
	}
	var e *Error
	if !errors.As(err, &e) {
		return b
	}
	for _, d := range e.Details {
		if len(d.Name) > 255 || b[at] == maxDetails {
			continue
		}
		start := len(b)
		b = append(append(b, byte(len(d.Name))), d.Name...)
		size := len(b)
		b = append(b, 0, 0, 0, 0)
		out, err := codec.AppendValue(b, c, d.Value)
		if err != nil {
			b = b[:start]
			continue
		}
		b = out
		binary.LittleEndian.PutUint32(b[size:], uint32(len(b)-size-4))
		b[at]++
	}
	return b
}

// decodeError decodes what appendError has encoded; nothing of b is kept. Of one that is malformed it makes CodeInternal.
func decodeError(b []byte, c codec.Codec) *Error {
	bad := &Error{Code: CodeInternal, Message: "malformed error", Remote: true}
	if len(b) < 6 || b[0] == 0 {
		return bad
	}
	e := &Error{Code: Code(b[0]), Remote: true}
	details, n := int(b[1]), int64(binary.LittleEndian.Uint32(b[2:]))
	b = b[6:]
	if n > int64(len(b)) {
		return bad
	}
	e.Message = string(b[:n])
	b = b[n:]
	for range details {
		if len(b) < 1 || len(b) < 1+int(b[0])+4 {
			return bad
		}
		d := Detail{Name: string(b[1 : 1+int(b[0])]), codec: c}
		b = b[1+int(b[0]):]
		n := int64(binary.LittleEndian.Uint32(b))
		b = b[4:]
		if n > int64(len(b)) {
			return bad
		}
		value := b[:n]
		b = b[n:]
		if d.Name == refusedDetail {
			e.refused = true
			continue
		}
		d.Value = append([]byte{}, value...)
		e.Details = append(e.Details, d)
	}
	return e
}

// errorIn returns the error that a received frame stands for.
func errorIn(frame []byte, c codec.Codec) *Error {
	payload := frame[HeadLen+int(frame[indexMethodLen])+extensionLen(frame):]
	if frame[indexFlag]&flagCoded != 0 {
		return decodeError(payload, c)
	}
	return remoteError(string(payload))
}

// contextError is the error of a call that ended because its context did.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	e := &Error{Code: CodeCanceled, Message: err.Error(), causes: []error{err}}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Code, e.Message = CodeDeadlineExceeded, ErrTimeout.Message
	}
	if cause != nil && cause != err {
		e.causes = append(e.causes, cause)
		if e.Code == CodeCanceled {
			e.Message += ": " + cause.Error()
		}
	}
	return e
}

// notSent marks err as one of what was not sent; an error of a codec stays as it is.
func notSent(err error) error {
	e, ok := err.(*Error)
	if !ok || e.Unsent {
		return err
	}
	c := *e
	c.Unsent = true
	return &c
}

// lostError is the error of what depended on a connection that ended because of cause.
func lostError(kind *Error, cause error) *Error {
	if cause == nil || cause == kind {
		return &Error{Code: kind.Code, Message: kind.Message, ours: kind.ours, causes: []error{kind}}
	}
	text := cause.Error()
	switch {
	case errors.Is(cause, io.EOF):
		text = "the peer closed the connection"
		var said interface{ PeerReason() string }
		if errors.As(cause, &said) {
			text += ": " + said.PeerReason()
		}
	case errors.Is(cause, core.ErrStopped):
		text = "stopped"
	}
	if e, ok := cause.(*Error); ok && e.Remote {
		text = "the peer says: " + e.Message
	}
	return &Error{Code: kind.Code, Message: kind.Message + ": " + text, causes: []error{kind, cause}}
}
