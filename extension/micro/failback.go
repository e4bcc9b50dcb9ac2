package micro

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc"
)

// failback keeps notifications that could not be sent, and sends them later, in order.
type failback struct {
	caller  arpc.Caller
	pool    *pool
	queue   chan note
	kept    atomic.Int64 // in the queue, and the one that is being sent
	dropped atomic.Int64
	begin   sync.Once
	worker  sync.WaitGroup
}

type note struct {
	ctx    context.Context
	method string
	data   any
	values []map[any]any
	until  time.Time
}

var errFailbackFull = &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "micro: too many notifications wait to be sent", Unsent: true}

// notify sends a notification, or keeps it.
func (f *failback) notify(ctx context.Context, method string, data any, values []map[any]any) error {
	if f.kept.Load() == 0 {
		if err := f.caller.NotifyWith(ctx, method, data, values...); !keeps(err) {
			return plain(err)
		}
	}
	if f.pool.ctx.Err() != nil {
		return ErrClosed
	}
	f.begin.Do(func() { f.worker.Go(f.work) })
	f.kept.Add(1)
	select {
	case f.queue <- note{context.WithoutCancel(ctx), method, data, values, time.Now().Add(f.pool.FailbackAge)}:
		return nil
	default:
		f.kept.Add(-1)
		return errFailbackFull
	}
}

// keeps reports whether a notification that has failed can be sent later.
func keeps(err error) bool {
	code := arpc.CodeOf(err)
	return code == arpc.CodeUnavailable || code == arpc.CodeResourceExhausted
}

// work sends what is kept, until the Client is closed.
func (f *failback) work() {
	for {
		select {
		case n := <-f.queue:
			if f.send(n) != nil {
				f.dropped.Add(1)
			}
			f.kept.Add(-1)
		case <-f.pool.ctx.Done():
			f.drop()
			return
		}
	}
}

// drop gives up what is in line when the Client is closed.
func (f *failback) drop() {
	for {
		select {
		case <-f.queue:
			f.dropped.Add(1)
			f.kept.Add(-1)
		default:
			return
		}
	}
}

// send tries as long as that makes sense.
func (f *failback) send(n note) error {
	ctx, cancel := context.WithDeadline(n.ctx, n.until)
	defer cancel()
	defer context.AfterFunc(f.pool.ctx, cancel)()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := f.caller.NotifyWith(ctx, n.method, n.data, n.values...)
		if !keeps(err) || ctx.Err() != nil {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}
