package router

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/arpc-go/arpc"
)

// breakerBuckets is the number of pieces in which a breaker's Window moves on.
const breakerBuckets = 10

// BreakerOptions say how Breaker works. The zero value is the default.
type BreakerOptions struct {
	// Ratio is the share of failures, of what has ended within Window, at which
	// the breaker of a method opens; default 0.5. Before Least messages have
	// ended within Window it does not; default 20.
	Ratio float64
	Least int
	// Window is the time that counts; default 10 seconds.
	Window time.Duration
	// Open is how long everything is refused before Probes messages are let
	// through; default 5 seconds. If all of those succeed the breaker closes, with
	// the first failure it opens again. Default of Probes is 1.
	Open   time.Duration
	Probes int
	// Failed reports whether an error is a failure of what the breaker guards.
	// Other errors count neither as failure nor as success. Default are the codes
	// Unknown, DeadlineExceeded, Internal, Unavailable and DataLoss.
	Failed func(err error) bool
	// Log gets a line with LevelWarn when a breaker opens and one with LevelInfo
	// when it closes; default slog.Default(), as it is then.
	Log *slog.Logger
}

// Breaker returns a middleware that stops calling the handler of a method for a
// while when too many of its calls fail, so that what the handler depends on is
// left alone, and its callers learn at once. It is a circuit breaker per method,
// for all peers together:
//
//	closed --Ratio of failures in Window--> open --Open passed--> half-open
//	half-open --Probes successes--> closed
//	half-open --a failure--> open
//
// What it refuses gets CodeUnavailable with the detail arpc.RetryAfter. A probe
// that takes longer than Open is a failure, that of a stream a success.
//
// A peer cannot open the breaker by its own doing: what ends because the caller
// cancelled, reset the stream or went away does not count, nor does what ends
// after a deadline of the caller that left the handler less than a second; nor
// do the codes that say that the request was wrong. (A stream's handler that
// passes on another peer's error looks as if its own peer had reset it: wrap
// such errors in one of its own.) Put Recover and Timeout after it, and Auth
// and Limit before it.
//
// Of methods, 1024 are remembered, those used last. At most one BreakerOptions
// is used, the last.
func Breaker(opts ...BreakerOptions) arpc.HandlerFunc { return newBreakers(last(opts)).handle }

func newBreakers(o BreakerOptions) *breakers {
	if o.Ratio <= 0 {
		o.Ratio = 0.5
	}
	if o.Least <= 0 {
		o.Least = 20
	}
	if o.Window <= 0 {
		o.Window = 10 * time.Second
	}
	if o.Open <= 0 {
		o.Open = 5 * time.Second
	}
	if o.Probes <= 0 {
		o.Probes = 1
	}
	if o.Failed == nil {
		o.Failed = failed
	}
	b := &breakers{o: o}
	b.routes = newTable[string](maxRoutes, b.fresh, func(*breaker) bool { return false })
	return b
}

// failed is the default of BreakerOptions.Failed.
func failed(err error) bool {
	switch arpc.CodeOf(err) {
	case arpc.CodeUnknown, arpc.CodeDeadlineExceeded, arpc.CodeInternal, arpc.CodeUnavailable, arpc.CodeDataLoss:
		return true
	}
	return false
}

type breakers struct {
	o BreakerOptions

	mu     sync.Mutex
	routes *table[string, *breaker]
}

// A breaker is that of one method.
type breaker struct {
	*gobreaker.TwoStepCircuitBreaker[struct{}]
	o *BreakerOptions

	mu     sync.Mutex
	opened time.Time // when it opened last
	turned bool      // and nobody has said so
	open   bool      // as turned
}

func (b *breakers) fresh() *breaker {
	r := &breaker{o: &b.o}
	r.TwoStepCircuitBreaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests:  uint32(b.o.Probes),
		Interval:     b.o.Window,
		BucketPeriod: max(b.o.Window/breakerBuckets, 1),
		Timeout:      b.o.Open,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			ended := c.TotalSuccesses + c.TotalFailures
			return ended >= uint32(b.o.Least) && float64(c.TotalFailures) >= b.o.Ratio*float64(ended)
		},
		OnStateChange: r.turn,
		IsExcluded:    func(err error) bool { return err == errByPeer || err != nil && !b.o.Failed(err) },
	})
	return r
}

func (b *breakers) handle(ctx *arpc.Context) {
	report, err := b.enter(method(ctx), ctx.Stream() != nil)
	if err != nil {
		refuse(ctx, err)
		return
	}
	start := time.Now()
	deadline, limited := ctx.Deadline()
	ctx.OnEnd(func(err error) {
		if err != nil && byPeer(ctx, err) || limited && deadline.Sub(start) < time.Second && !time.Now().Before(deadline) {
			err = errByPeer
		}
		report(err)
	})
}

// enter lets a message through and returns the function to report its outcome
// with, or says why it does not.
func (b *breakers) enter(method string, stream bool) (report func(error), err error) {
	b.mu.Lock()
	r := b.routes.get(method)
	b.mu.Unlock()
	done, err := r.Allow()
	if err != nil {
		return nil, r.refusal()
	}
	report = func(err error) {
		done(err)
		r.tell(method)
	}
	if r.State() == gobreaker.StateHalfOpen {
		report = r.probe(stream, report)
	}
	return report, nil
}

// errByPeer stands for errors that the peer itself has brought about.
var errByPeer = errors.New("the peer's own doing")

// byPeer reports whether err may be the peer's own doing: it has cancelled, has
// reset the stream or is gone.
func byPeer(ctx *arpc.Context, err error) bool {
	if ctx.Client.CheckState() != nil {
		return true
	}
	var e *arpc.Error
	if ctx.Stream() == nil { // other middlewares may have cancelled what they derived: without an *Error
		return ctx.Err() == context.Canceled && errors.As(context.Cause(ctx), &e)
	}
	return errors.As(err, &e) && e.Remote
}

// probe bounds the time that the outcome of a probe is waited for: without one,
// everything would be refused for good.
func (r *breaker) probe(stream bool, report func(error)) func(error) {
	var late error
	if !stream {
		late = arpc.CodeDeadlineExceeded
	}
	var once sync.Once
	timer := time.AfterFunc(r.o.Open, func() { once.Do(func() { report(late) }) })
	return func(err error) {
		timer.Stop()
		once.Do(func() { report(err) })
	}
}

// turn is told of changes while the breaker is locked.
func (r *breaker) turn(_ string, _, to gobreaker.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch to {
	case gobreaker.StateOpen:
		r.opened = time.Now()
		r.turned = true
		r.open = true
	case gobreaker.StateClosed:
		r.turned = true
		r.open = false
	}
}

// tell writes to the log what has changed.
func (r *breaker) tell(method string) {
	r.mu.Lock()
	turned, open := r.turned, r.open
	r.turned = false
	r.mu.Unlock()
	if !turned {
		return
	}
	level, text := slog.LevelInfo, "arpc: a circuit breaker has closed"
	if open {
		level, text = slog.LevelWarn, "arpc: a circuit breaker has opened"
	}
	if log, enabled := logTo(r.o.Log, level); enabled {
		log.LogAttrs(context.Background(), level, text, slog.String("method", method))
	}
}

// refusal says for how long nothing passes.
func (r *breaker) refusal() error {
	r.mu.Lock()
	left := r.o.Open - time.Since(r.opened)
	r.mu.Unlock()
	if left <= 0 { // probes are on their way
		left = min(r.o.Open, time.Second)
	}
	return &arpc.Error{
		Code: arpc.CodeUnavailable, Message: "too many calls of this method have failed",
		Details: []arpc.Detail{arpc.RetryAfter(left)},
	}
}
