package caller

import (
	"fmt"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/attempts"
)

// Hedge returns a Caller that makes a further attempt at a call which is not answered after a time, and takes the first
// answer: for the price of some more calls the slowest are quicker. A good time is what 19 of 20 calls need less than. Each
// attempt goes through c; Pick makes it another connection.
//
// Only calls that are idempotent (see the package) are hedged. CallAsync, notifications and streams go to c as they are, as
// nobody can take them back.
//
// The first attempt that succeeds, or fails with an error that is not worth another attempt (see Codes), ends the call: the
// others are cancelled, and their handlers told. After a failure that is worth one no attempt begins, but those under way
// go on; trying again is the task of Retry. A further attempt costs a token of Budget; without one the call is not hedged.
// Attempts sets how many there may be, each after the time. CallWith returns when all its attempts have, so c should heed
// its context.
//
// It panics when c is nil, and unless after is positive.
func Hedge(c arpc.Caller, after time.Duration, opts ...Option) arpc.Caller {
	if c == nil {
		panic("caller: Hedge of nil")
	}
	if after <= 0 {
		panic(fmt.Sprintf("caller: Hedge after %v: must be positive", after))
	}
	return attempts.Hedge(c, after, newConfig(2, opts))
}
