package caller

import (
	"context"
	"time"

	"github.com/arpc-go/arpc"
)

// Pick returns a Caller that asks f for each call, notification and stream who is to do it, such as the next client of a
// pool:
//
//	c := caller.Retry(caller.Pick(func() arpc.Caller { return pool.Next() }))
//
// Each attempt of Retry and Hedge around it may take another. f may be called from many goroutines at a time and must not
// return nil. It panics when f is nil.
func Pick(f func() arpc.Caller) arpc.Caller {
	if f == nil {
		panic("caller: Pick without a function")
	}
	return pick(f)
}

type pick func() arpc.Caller

// CallWith implements arpc.Caller.
func (f pick) CallWith(ctx context.Context, method string, req, rsp any, values ...map[any]any) error {
	return f().CallWith(ctx, method, req, rsp, values...)
}

// CallAsync implements arpc.Caller.
func (f pick) CallAsync(method string, req any, callback func(*arpc.Context), timeout time.Duration, values ...map[any]any) error {
	return f().CallAsync(method, req, callback, timeout, values...)
}

// NotifyWith implements arpc.Caller.
func (f pick) NotifyWith(ctx context.Context, method string, data any, values ...map[any]any) error {
	return f().NotifyWith(ctx, method, data, values...)
}

// OpenStream implements arpc.Caller.
func (f pick) OpenStream(ctx context.Context, method string) (*arpc.Stream, error) {
	return f().OpenStream(ctx, method)
}
