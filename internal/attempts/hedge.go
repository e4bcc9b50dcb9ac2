package attempts

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
)

// Hedge returns a Caller that makes further attempts at calls which next does not end in time; caller.Hedge says how.
func Hedge(next arpc.Caller, after time.Duration, c Config) arpc.Caller {
	return &hedge{Caller: next, Config: c, after: after}
}

type hedge struct {
	arpc.Caller
	Config
	after time.Duration
}

// ErrSlower is the cause of the end of an attempt that another one was quicker than.
var ErrSlower = errors.New("another attempt was quicker")

// CallWith implements arpc.Caller.
func (h *hedge) CallWith(ctx context.Context, method string, req, rsp any, values ...map[any]any) error {
	if p := reflect.ValueOf(rsp); h.Attempts < 2 || rsp != nil && (p.Kind() != reflect.Pointer || p.IsNil()) ||
		!h.Idempotent[method] && !arpc.IsIdempotent(ctx) {
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
	return unsure(x.err, x.begun > 1)
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
	if x.shut || !x.Budget.take() {
		x.mu.Unlock()
		return
	}
	x.others.Add(1)
	if x.begun++; x.begun < x.Attempts {
		x.timer.Reset(x.after)
	}
	x.mu.Unlock()
	defer x.others.Done()
	v, move := Apart(x.rsp)
	ctx, commit := arpc.Attempt(x.ctx)
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
			x.err, x.move = err, move
		}
		return
	}
	x.settled, x.err, x.move = true, err, move
	var e *arpc.Error
	if err == nil || errors.As(err, &e) && e.Remote {
		x.Budget.Answered()
	}
	x.cancel(ErrSlower)
}
