package arpc

import (
	"errors"
	"strconv"
	"time"
)

// refusal is an error that says that nothing was done.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// Refused marks what a middleware answers, or a stream is reset with, before any work was done: its caller may try again, or
// elsewhere. It travels to peers of version 2 of the protocol; see IsRefused. The framework's own refusals are marked. A nil err is nil.
func Refused(err error) error {
	if err == nil {
		return nil
	}
	return &refusal{err}
}

// IsRefused reports whether err says that nothing was done, and nothing will be: the peer has refused before any work, or has not got it, see
// Error.Unsent. If it is false, that is not known. Of the Context of a callback that package caller or micro has called it is about the
// last attempt.
func IsRefused(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Remote && e.refused || !e.Remote && e.Unsent)
}

// Names of details that the framework gives a meaning; see docs/protocol.md.
const (
	refusedDetail    = reservedPrefix + "refused"
	retryAfterDetail = reservedPrefix + "retry_after"
)

// RetryAfter returns a detail of an error that asks the caller not to try again before d has passed.
func RetryAfter(d time.Duration) Detail {
	ms := int64(d / time.Millisecond)
	if d%time.Millisecond > 0 { // rounded up, without overflow
		ms++
	}
	return Detail{Name: retryAfterDetail, Value: strconv.FormatInt(max(ms, 0), 10)}
}

// RetryDelay returns what a RetryAfter among the details of err asks for, rounded up to milliseconds.
func RetryDelay(err error) (d time.Duration, ok bool) {
	var e *Error
	if !errors.As(err, &e) {
		return 0, false
	}
	for _, detail := range e.Details {
		if detail.Name != retryAfterDetail {
			continue
		}
		var text string
		switch v := detail.Value.(type) {
		case []byte:
			text = string(v)
		case string:
			text = v
		}
		if ms, err := strconv.ParseInt(text, 10, 64); err == nil && ms >= 0 && ms <= int64(maxRetryDelay/time.Millisecond) {
			return time.Duration(ms) * time.Millisecond, true
		}
	}
	return 0, false
}

// maxRetryDelay is the longest delay that makes sense; a peer's longer one is ignored.
const maxRetryDelay = 24 * time.Hour
