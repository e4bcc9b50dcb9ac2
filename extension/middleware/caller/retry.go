package caller

import (
	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/attempts"
)

// Retry returns a Caller that tries again what c fails to do: calls, notifications, and the opening of streams, which is
// before anything of them is sent. An attempt is followed by another if its error is worth it (see Codes), if the call may
// be repeated (see the package; notifications only when they were not sent), if Attempts, Budget and the deadline allow,
// and after a pause that Backoff and the peer's arpc.RetryAfter decide. The error is that of the last attempt; it is
// returned at once when the pause would go beyond the deadline.
//
// A call's context goes to each of its attempts. Without a deadline each has Limits.CallTimeout for itself; a CallAsync's
// timeout is for all of them. The callback of a CallAsync runs once, with the Context of the last attempt.
//
// When c is a *arpc.Client that was stopped, or whose connection has ended and is a server's, there is no further attempt.
// It panics when c is nil.
func Retry(c arpc.Caller, opts ...Option) arpc.Caller {
	if c == nil {
		panic("caller: Retry of nil")
	}
	return attempts.Retry(c, newConfig(3, opts))
}
