package arpc

import (
	"context"
	"errors"
	"fmt"
	"io"

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

// An Error is how a call, a notification or a connection fails.
//
// errors.Is(err, context.Canceled) holds for CodeCanceled and errors.Is(err, context.DeadlineExceeded) for
// CodeDeadlineExceeded; errors.Is against one of this package's errors compares code and message, so that it holds for
// an error that came over the wire too.
type Error struct {
	Code Code
	// Message is for people, and goes to the peer.
	Message string
	// Remote says that the peer decided, false that this side did.
	Remote bool

	causes []error
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
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == e.Message
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
	switch {
	case errors.As(err, &e):
		return e.Code
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
	ErrClientInvalidTimeoutZero = &Error{Code: CodeInvalidArgument, Message: "invalid timeout: must not be 0"}
	// ErrClientInvalidTimeoutLessThanZero refuses a negative timeout.
	ErrClientInvalidTimeoutLessThanZero = &Error{Code: CodeInvalidArgument, Message: "invalid timeout: must not be negative"}
	// ErrClientInvalidAsyncHandler refuses a CallAsync without a callback.
	ErrClientInvalidAsyncHandler = &Error{Code: CodeInvalidArgument, Message: "invalid callback: must not be nil"}
	// ErrClientInvalidPoolDialers refuses a pool without connections.
	ErrClientInvalidPoolDialers = &Error{Code: CodeInvalidArgument, Message: "invalid pool: no connections"}
	// ErrInvalidMethod refuses a method that is empty or longer than MaxMethodLen.
	ErrInvalidMethod = &Error{Code: CodeInvalidArgument, Message: "invalid method: must have 1 to 127 bytes"}
	// ErrClientOverstock refuses a message because the send queue is full: the peer reads more slowly than we send.
	ErrClientOverstock = &Error{Code: CodeResourceExhausted, Message: "send queue is full"}
	// ErrClientReconnecting fails a call made while there is no connection, or during which the connection was lost; in the
	// latter case the peer may have done the work.
	ErrClientReconnecting = &Error{Code: CodeUnavailable, Message: "client reconnecting"}
	// ErrClientStopped fails what is asked of a client that was stopped, or whose connection, being a server's, ended.
	ErrClientStopped = &Error{Code: CodeUnavailable, Message: "client stopped"}
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
	errTooNested  = &Error{Code: CodeResourceExhausted, Message: "too many handlers of this connection wait in calls"}
	errInlineCall = &Error{Code: CodeFailedPrecondition, Message: "an inline handler must not wait in a call"}
	errTooLarge   = &Error{Code: CodeInvalidArgument, Message: "message is longer than the format allows"}
	errCalls      = &Error{Code: CodeResourceExhausted, Message: "too many calls in flight"}
)

// wireErrors finds the code of a text, as version 1 of the protocol carries texts only.
var wireErrors = func() map[string]Code {
	codes := map[string]Code{}
	for _, e := range []*Error{ErrMethodNotFound, errPanicked, errNoAnswer, errEncode, errTooMany, errDraining, errBadMethod,
		errTooNested} {
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

// contextError is the error of a call that ended because its context did.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	e := &Error{Code: CodeCanceled, Message: err.Error(), causes: []error{err}}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Code, e.Message = CodeDeadlineExceeded, ErrTimeout.Message
	}
	if cause != nil && cause != err {
		e.causes = append(e.causes, cause)
	}
	return e
}

// lostError is the error of what depended on a connection that ended because of cause.
func lostError(kind *Error, cause error) *Error {
	if cause == nil || cause == kind {
		return kind
	}
	text := cause.Error()
	switch {
	case errors.Is(cause, io.EOF):
		text = "the peer closed the connection"
	case errors.Is(cause, core.ErrStopped):
		text = "stopped"
	}
	return &Error{Code: kind.Code, Message: kind.Message + ": " + text, causes: []error{kind, cause}}
}
