// Package attempts makes several attempts at one call: what extension/middleware/caller and extension/micro share. The documentation
// of package caller says what Retry and Hedge do, and what they promise.
package attempts

import (
	"context"
	"slices"
	"time"

	"github.com/arpc-go/arpc"
)

// Config says which attempts there are. The fields after Idempotent may be left out; it must not be changed afterwards.
type Config struct {
	// Attempts is how many a call has, the first included.
	Attempts int
	// Min and Max bound the random pause before a further attempt: up to Min before the second, up to twice as long before each
	// further one, at most Max.
	Min, Max time.Duration
	// Codes are the errors that are worth another attempt. CodeResourceExhausted is one if the peer says when.
	Codes []arpc.Code
	// Budget is what further attempts of all calls cost.
	Budget *Budget
	// Idempotent are methods that may be carried out twice, besides the calls whose context says so.
	Idempotent map[string]bool

	// Worth reports whether an error that Codes has is worth another attempt. nil is always.
	Worth func(err error) bool
	// Free reports whether a failure is one of the way and not of the call: the next attempt follows at once, and costs nothing, up to
	// 16 times. It is asked only if the call was not carried out. nil is none.
	Free func(err error) bool
	// Again makes the context of the next attempt, of that of the last one and its error. nil leaves it as it is.
	Again func(ctx context.Context, last error) context.Context
	// Elsewhere says that the next attempt is made at another peer, which does not have to wait as this one asks.
	Elsewhere bool
	// Never takes no call for idempotent.
	Never bool
}

// maxFree bounds the attempts that cost nothing.
const maxFree = 16

// worth reports whether another attempt could end better.
func (c *Config) worth(err error) bool {
	if c.Worth != nil && !c.Worth(err) {
		return false
	}
	code := arpc.CodeOf(err)
	if slices.Contains(c.Codes, code) {
		return true
	}
	_, asked := arpc.RetryDelay(err)
	return asked && code == arpc.CodeResourceExhausted
}
