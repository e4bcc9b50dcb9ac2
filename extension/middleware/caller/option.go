package caller

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/attempts"
)

// An Option configures Retry or Hedge.
type Option interface{ apply(*attempts.Config) }

type option func(*attempts.Config)

func (o option) apply(c *attempts.Config) { o(c) }

const (
	defaultBurst = 10
	defaultRatio = 0.1
)

func newConfig(n int, opts []Option) attempts.Config {
	c := attempts.Config{
		Attempts: n, Min: 50 * time.Millisecond, Max: 2 * time.Second,
		Codes: []arpc.Code{arpc.CodeUnavailable}, Budget: attempts.NewBudget(defaultBurst, defaultRatio),
		Idempotent: map[string]bool{},
	}
	for _, o := range opts {
		if o != nil {
			o.apply(&c)
		}
	}
	return c
}

// Attempts sets how many attempts a call has, the first included. Default 3 for Retry and 2 for Hedge; 1 turns either off.
// It panics when n is less than 1.
func Attempts(n int) Option {
	if n < 1 {
		panic(fmt.Sprintf("caller: Attempts(%d): must be at least 1", n))
	}
	return option(func(c *attempts.Config) { c.Attempts = n })
}

// Backoff sets how long Retry waits before it tries again: a random time of up to min before the second attempt, and of up to
// twice as long before each further one, at most max. Default 50 milliseconds and 2 seconds. What the peer asks for by
// arpc.RetryAfter comes on top. Hedge does not wait. It panics unless 0 < min <= max.
func Backoff(min, max time.Duration) Option {
	if min <= 0 || max < min {
		panic(fmt.Sprintf("caller: Backoff(%v, %v): must be positive and in order", min, max))
	}
	return option(func(c *attempts.Config) { c.Min, c.Max = min, max })
}

// Codes sets which errors are worth another attempt, instead of arpc.CodeUnavailable. arpc.CodeResourceExhausted always is,
// if the peer says when by arpc.RetryAfter. Any other error is final. Whether the call may be repeated is another question,
// see the package. It panics without codes and for 0, which is no code.
func Codes(codes ...arpc.Code) Option {
	if len(codes) == 0 || slices.Contains(codes, 0) {
		panic(fmt.Sprintf("caller: Codes(%v): must name codes", codes))
	}
	codes = slices.Clone(codes)
	return option(func(c *attempts.Config) { c.Codes = codes })
}

// Idempotent names methods that are idempotent, besides those that are called with a context of arpc.WithIdempotent. It may
// be given more than once. It panics for an empty name.
func Idempotent(methods ...string) Option {
	if slices.Contains(methods, "") {
		panic("caller: Idempotent: a method has no name")
	}
	methods = slices.Clone(methods)
	return option(func(c *attempts.Config) {
		for _, m := range methods {
			c.Idempotent[m] = true
		}
	})
}

// Budget bounds the further attempts of all calls together: burst at first, and ratio for each call that is answered; what
// is not spent adds up to burst. Default 10 and 0.1: a tenth more attempts than calls, and none once ten have been in vain.
// One value given to several interceptors is one budget for all of them, to which each adds its part; without it each has
// its own. It panics unless burst is at least 1 and ratio between 0 and 1,000.
func Budget(burst int, ratio float64) Option {
	if burst < 1 || math.IsNaN(ratio) || ratio < 0 || ratio > 1000 {
		panic(fmt.Sprintf("caller: Budget(%d, %v): must be at least 1, and between 0 and 1000", burst, ratio))
	}
	b := attempts.NewBudget(burst, ratio)
	return option(func(c *attempts.Config) { c.Budget = b })
}
