package caller

import (
	"math"
	"sync/atomic"
)

const (
	defaultBurst = 10
	defaultRatio = 0.1
)

// token is a whole token of a bucket, which counts in thousandths.
const token = 1000

// A bucket holds the tokens that further attempts cost.
type bucket struct {
	left   atomic.Int64
	max    int64
	refill int64 // for each call that is answered
}

func newBucket(burst int, ratio float64) *bucket {
	b := &bucket{}
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
func (b *bucket) take() bool {
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

// answered notes that the peer has answered a call. A full bucket is not written to, so that calls of all cores can share it.
func (b *bucket) answered() {
	for {
		n := b.left.Load()
		if n == b.max || b.left.CompareAndSwap(n, min(n+b.refill, b.max)) {
			return
		}
	}
}
