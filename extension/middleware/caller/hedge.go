package caller

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
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
	return &hedge{Caller: c, config: newConfig(2, opts), after: after}
}

type hedge struct {
	arpc.Caller
	config
	after time.Duration
}

var errSlower = errors.New("another attempt was quicker")

// CallWith implements arpc.Caller.
func (h *hedge) CallWith(ctx context.Context, method string, req, rsp any, values ...map[any]any) error {
	if p := reflect.ValueOf(rsp); h.attempts < 2 || rsp != nil && (p.Kind() != reflect.Pointer || p.IsNil()) ||
		!h.idempotent[method] && !arpc.IsIdempotent(ctx) {
		return h.Caller.CallWith(ctx, method, req, rsp, values...)
	}
	x := &hedged{hedge: h, method: method, req: req, rsp: rsp, values: values, begun: 1}
	x.ctx, x.cancel = context.WithCancelCause(ctx)
	defer x.cancel(nil)
	x.mu.Lock()
	x.timer = time.AfterFunc(h.after, x.another)
	x.mu.Unlock()
	x.ended(h.Caller.CallWith(x.ctx, method, req, rsp, values...), nil)
	x.timer.Stop()
	x.others.Wait() // they use req
	if x.move != nil {
		x.move()
	}
	return x.err
}

// A hedged is a call with its attempts:
//
//	open ──an attempt fails──▶ shut (no further one begins) ──an answer, or a final error──▶ settled
//	  └────────────────────an answer, or a final error────────────────────────────────────────┘
type hedged struct {
	*hedge
	ctx      context.Context
	cancel   context.CancelCauseFunc
	method   string
	req, rsp any
	values   []map[any]any

	others sync.WaitGroup // attempts but the first; it grows only while the call is open, with mu held

	mu      sync.Mutex
	timer   *time.Timer
	begun   int // attempts
	shut    bool
	settled bool
	err     error  // of the attempt that settled the call, otherwise of the first that failed
	move    func() // hands over what a further attempt has brought; nil if the first settles the call, which needs none
}

// another makes an attempt when the time has come.
func (x *hedged) another() {
	x.mu.Lock()
	if x.shut || !x.budget.take() {
		x.mu.Unlock()
		return
	}
	x.others.Add(1)
	if x.begun++; x.begun < x.attempts {
		x.timer.Reset(x.after)
	}
	x.mu.Unlock()
	defer x.others.Done()
	v, move := apart(x.rsp)
	ctx, commit := again(x.ctx)
	err := x.Caller.CallWith(ctx, x.method, x.req, v, x.values...)
	x.ended(err, func() {
		if commit(); err == nil {
			move()
		}
	})
}

// ended notes the end of an attempt.
func (x *hedged) ended(err error, move func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.shut = true
	if x.settled {
		return
	}
	if err != nil && x.worth(err) {
		if x.err == nil {
			x.err = err
		}
		if move != nil {
			x.move = move
		}
		return
	}
	x.settled, x.err, x.move = true, err, move
	var e *arpc.Error
	if err == nil || errors.As(err, &e) && e.Remote {
		x.budget.answered()
	}
	x.cancel(errSlower)
}
