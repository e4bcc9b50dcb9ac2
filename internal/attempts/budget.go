package attempts

import (
	"math"
	"sync/atomic"
)

// token is a whole token of a bucket, which counts in thousandths.
const token = 1000

// A Budget holds the tokens that further attempts cost.
type Budget struct {
	left   atomic.Int64
	max    int64
	refill int64 // for each call that is answered
}

// NewBudget returns one that is full: burst, at least 1, and ratio more for each call that is answered, up to burst.
func NewBudget(burst int, ratio float64) *Budget {
	b := &Budget{}
	if int64(burst) < math.MaxInt64/(2*token) { // so that a refill does not overflow
		b.max = int64(burst) * token
	} else {
		b.max = math.MaxInt64 / 2
	}
	b.refill = int64(math.Round(ratio * token))
	b.left.Store(b.max)
	return b
}

// take takes a token, if there is one.
func (b *Budget) take() bool {
	for {
		n := b.left.Load()
		if n < token {
			return false
		}
		if b.left.CompareAndSwap(n, n-token) {
			return true
		}
	}
}

// Answered notes that the peer has answered a call. A full bucket is not written to, so that calls of all cores can share it.
func (b *Budget) Answered() {
	for {
		n := b.left.Load()
		if n == b.max || b.left.CompareAndSwap(n, min(n+b.refill, b.max)) {
			return
		}
	}
}
