package attempts

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
)

// maxWait is the longest time that a call without a deadline waits to try again.
const maxWait = time.Minute

// Retry returns a Caller that tries again what next fails to do; caller.Retry says how.
func Retry(next arpc.Caller, c Config) *Retrier {
	_, alone := next.(*arpc.Client)
	return &Retrier{Config: c, next: next, alone: alone}
}

// A Retrier tries again what another Caller fails to do.
type Retrier struct {
	Config
	next  arpc.Caller
	alone bool // next is a client: once that is stopped, it remains so
}

// pause decides whether an attempt, the n-th, is followed by another, and how long after it. left is the time that the call
// has, negative for any.
func (r *Retrier) pause(n int, err error, repeatable bool, left time.Duration) (time.Duration, bool) {
	var e *arpc.Error
	remote := errors.As(err, &e) && e.Remote
	if !r.worth(err) {
		if remote {
			r.Budget.Answered()
		}
		return 0, false
	}
	if n >= r.Attempts || !repeatable && !arpc.IsRefused(err) || r.alone && !remote && errors.Is(err, arpc.ErrClientStopped) {
		return 0, false
	}
	limit := r.Max
	if n < 32 && r.Min<<(n-1)>>(n-1) == r.Min { // not so many bits that they do not fit
		limit = min(r.Min<<(n-1), r.Max)
	}
	d := rand.N(limit) // all of it is random, so that those who failed together do not come back together
	push, _ := arpc.RetryDelay(err)
	if r.Elsewhere {
		push = 0
	}
	if left < 0 {
		left = maxWait
	}
	if d >= left-push || !r.Budget.take() {
		return 0, false
	}
	return d + push, true
}

// free reports whether the next attempt costs nothing; n counts those.
func (r *Retrier) free(n *int, err error) bool {
	if r.Free == nil || *n >= maxFree || !arpc.IsRefused(err) || !r.worth(err) || !r.Free(err) {
		return false
	}
	*n++
	return true
}

// more makes attempts after the first one, which has ended with err, until one is the last; last is the error of the one before.
// repeatable says that there may be another one after an attempt that may have been carried out.
func (r *Retrier) more(ctx context.Context, err error, repeatable bool, try func(last error) error) error {
	free, maybe := 0, false
	for n := 1; err != nil; n++ {
		if ctx.Err() != nil {
			return unsure(err, maybe)
		}
		if r.free(&free, err) {
			n--
			err = try(err)
			continue
		}
		left := time.Duration(-1)
		if t, ok := ctx.Deadline(); ok {
			left = max(time.Until(t), 0)
		}
		d, ok := r.pause(n, err, repeatable, left)
		if !ok {
			return unsure(err, maybe)
		}
		maybe = maybe || !arpc.IsRefused(err)
		timer := time.NewTimer(d)
		select {
		case <-timer.C:
		case <-ctx.Done(): // the next attempt says so
			timer.Stop()
		}
		err = try(err)
	}
	r.Budget.Answered()
	return nil
}

// CallWith implements arpc.Caller.
func (r *Retrier) CallWith(ctx context.Context, method string, req, rsp any, values ...map[any]any) error {
	return r.After(ctx, r.next.CallWith(ctx, method, req, rsp, values...), method, req, rsp, values...)
}

// After is CallWith after a first attempt, which has ended with err.
func (r *Retrier) After(ctx context.Context, err error, method string, req, rsp any, values ...map[any]any) error {
	if err == nil {
		r.Budget.Answered()
		return nil
	}
	attempt := ctx
	return r.more(ctx, err, !r.Never && (r.Idempotent[method] || arpc.IsIdempotent(ctx)), func(last error) error {
		attempt = r.again(attempt, last)
		v, move := Apart(rsp)
		err := r.next.CallWith(attempt, method, req, v, values...)
		if err == nil {
			move()
		}
		return err
	})
}

// again returns the context of the attempt after that of ctx, which has ended with last.
func (r *Retrier) again(ctx context.Context, last error) context.Context {
	if r.Again == nil {
		return ctx
	}
	return r.Again(ctx, last)
}

// unsure returns the error of the last attempt. If an earlier one may have been carried out, it does not say any more that nothing was.
func unsure(err error, maybe bool) error {
	if maybe && arpc.IsRefused(err) {
		return &unsureError{err}
	}
	return err
}

type unsureError struct{ error }

func (e *unsureError) Unwrap() error { return e.error }

// As gives the *arpc.Error without what is known of its attempt only.
func (e *unsureError) As(target any) bool {
	t, ok := target.(**arpc.Error)
	var of *arpc.Error
	if !ok || !errors.As(e.error, &of) {
		return false
	}
	*t = &arpc.Error{Code: of.Code, Message: of.Message, Details: of.Details, Remote: of.Remote}
	return true
}

// NotifyWith implements arpc.Caller.
func (r *Retrier) NotifyWith(ctx context.Context, method string, data any, values ...map[any]any) error {
	attempt := ctx
	return r.more(ctx, r.next.NotifyWith(ctx, method, data, values...), false, func(last error) error {
		attempt = r.again(attempt, last)
		return r.next.NotifyWith(attempt, method, data, values...)
	})
}

// OpenStream implements arpc.Caller. Whatever fails here has not been carried out.
func (r *Retrier) OpenStream(ctx context.Context, method string) (s *arpc.Stream, err error) {
	s, err = r.next.OpenStream(ctx, method)
	attempt := ctx
	err = r.more(ctx, err, true, func(last error) error {
		attempt = r.again(attempt, last)
		s, err = r.next.OpenStream(attempt, method)
		return err
	})
	return s, err
}

// CallAsync implements arpc.Caller.
func (r *Retrier) CallAsync(method string, req any, callback func(*arpc.Context), timeout time.Duration, values ...map[any]any) error {
	if callback == nil || timeout <= 0 {
		return r.next.CallAsync(method, req, callback, timeout, values...)
	}
	a := &async{r: r, method: method, req: req, callback: callback, values: values}
	if timeout != arpc.TimeForever {
		a.deadline = time.Now().Add(timeout)
	}
	a.ended = a.end
	return a.try(timeout)
}

// An async is a CallAsync with its attempts. One attempt's callback runs before the next attempt begins.
type async struct {
	r        *Retrier
	method   string
	req      any
	values   []map[any]any
	callback func(*arpc.Context)
	ended    func(*arpc.Context) // end, made once
	deadline time.Time           // zero for none

	mu      sync.Mutex // held while an attempt is handed over: its callback may come before that is done
	n, free int        // attempts, and those besides that cost nothing
	decided bool       // by the one who handed it over, as it was not sent
	again   bool
	pause   time.Duration
}

// try makes an attempt. Its error, which the callback gets too, means that it was not sent.
func (a *async) try(timeout time.Duration) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
	err := a.r.next.CallAsync(a.method, a.req, a.ended, timeout, a.values...)
	if err != nil {
		a.decided = true
		if a.decide(err, true); a.again {
			return nil
		}
	}
	return err
}

// decide decides whether there is another attempt. The lock is held.
func (a *async) decide(err error, repeatable bool) {
	if a.r.free(&a.free, err) {
		a.n--
		a.pause, a.again = 0, true
		return
	}
	left := time.Duration(-1)
	if !a.deadline.IsZero() {
		left = max(time.Until(a.deadline), 0)
	}
	a.pause, a.again = a.r.pause(a.n, err, repeatable, left)
}

// end is the callback of an attempt.
func (a *async) end(ctx *arpc.Context) {
	err := ctx.Err()
	if err == nil {
		a.r.Budget.Answered()
		a.callback(ctx)
		return
	}
	a.mu.Lock()
	if !a.decided {
		a.decide(err, !a.r.Never && a.r.Idempotent[a.method])
	}
	again, pause := a.again, a.pause
	a.decided, a.again = false, false
	a.mu.Unlock()
	if !again {
		a.callback(ctx)
		return
	}
	time.AfterFunc(pause, func() {
		timeout := time.Duration(arpc.TimeForever)
		if !a.deadline.IsZero() {
			timeout = max(time.Until(a.deadline), 1)
		}
		a.try(timeout) //nolint:errcheck // the callback has it
	})
}

// Apart returns a value of the kind of rsp to decode into, and what makes it the value of rsp. What is moved is never used
// again where it was, which values that must not be copied, such as protobuf's, need.
func Apart(rsp any) (v any, move func()) {
	p := reflect.ValueOf(rsp)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return rsp, func() {}
	}
	own := reflect.New(p.Type().Elem())
	return own.Interface(), func() { p.Elem().Set(own.Elem()) }
}
