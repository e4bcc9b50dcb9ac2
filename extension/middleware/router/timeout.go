package router

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/arpc-go/arpc"
)

// TimeoutOptions say how Timeout works. The zero value is the default.
type TimeoutOptions struct {
	// Routes has the times of single methods, instead of the general one. One
	// that is not positive is no limit.
	Routes map[string]time.Duration
	// Log gets a line with LevelWarn for each notification whose time was up
	// before its handler had returned; default slog.Default(), as it is then.
	Log *slog.Logger
}

// Timeout returns a middleware that gives the handlers after it at most d, from
// when it runs; a d that is not positive is no limit. An earlier deadline of the
// caller stays as it is.
//
// The handler's context, and that of a stream, has the deadline. When it passes
// while the handler runs, the caller is answered with CodeDeadlineExceeded at
// once, also if the handler does not look at its context, and a stream is reset
// with that code; of a notification there is only a line in the log. The
// handler is not stopped, as nothing in Go can do that: it goes on to its end,
// an ordered one keeps those that arrived after it waiting, and its own answer
// fails with arpc.ErrAnswered (a typed handler's is dropped). The caller never
// gets two answers. The work may have been done, so the answer is no refusal in
// the sense of arpc.Refused.
//
// For a handler that has called AnswerLater the deadline in its context stays,
// but nobody answers for it once it has returned: it must do so at ctx.Done().
// At most one TimeoutOptions is used, the last.
func Timeout(d time.Duration, opts ...TimeoutOptions) arpc.HandlerFunc {
	o := last(opts)
	routes := maps.Clone(o.Routes)
	return func(ctx *arpc.Context) {
		limit := d
		if routes != nil {
			if l, ok := routes[method(ctx)]; ok {
				limit = l
			}
		}
		if limit <= 0 {
			return
		}
		deadline := time.Now().Add(limit)
		if earlier, ok := ctx.Deadline(); ok && !deadline.Before(earlier) {
			return
		}
		var own context.Context
		ctx.Derive(func(c context.Context) context.Context {
			var cancel context.CancelFunc
			own, cancel = context.WithDeadline(c, deadline)
			ctx.OnEnd(func(error) { cancel() })
			return own
		})
		over := make(chan struct{})
		stop := context.AfterFunc(own, func() {
			defer close(over)
			if own.Err() == context.DeadlineExceeded {
				o.expired(ctx, limit)
			}
		})
		defer func() {
			switch {
			case !stop():
				<-over // the Context may be valid only until this returns
			case ctx.Stream() != nil && own.Err() == context.DeadlineExceeded:
				o.expired(ctx, limit) // the handler was quicker to see it; it must not look like an ordinary end
			}
		}()
		ctx.Next()
	}
}

// expired answers for a handler that still runs.
func (o *TimeoutOptions) expired(ctx *arpc.Context, limit time.Duration) {
	if kind(ctx) != notification {
		fail(ctx, &arpc.Error{Code: arpc.CodeDeadlineExceeded, Message: fmt.Sprintf("the handler took more than %v", limit)})
		return
	}
	if log, enabled := logTo(o.Log, slog.LevelWarn); enabled {
		log.LogAttrs(context.Background(), slog.LevelWarn, "arpc: a handler goes on after its time", slog.String("method", method(ctx)),
			slog.String("kind", notification), slog.String("peer", peer(ctx)), slog.Duration("limit", limit))
	}
}
