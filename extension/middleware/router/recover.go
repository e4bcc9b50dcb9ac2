package router

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/log"
)

// errPanicked is what the framework itself answers when a handler panics
// without this middleware; callers derive CodeInternal from the text where the
// protocol carries texts only.
var errPanicked = &arpc.Error{Code: arpc.CodeInternal, Message: "internal error: the handler panicked"}

// RecoverOptions say how Recover works.
type RecoverOptions struct {
	// Log gets a line with LevelError for each panic; default is package log of
	// this module, where the framework reports panics too.
	Log *slog.Logger
}

// Recover returns a middleware that turns a panic of the handlers after it
// into an error answer with CodeInternal; a stream is reset with it. The caller
// learns that the handler panicked and nothing else; the value and the stack go
// to the log. A panicking handler of a notification is only logged. The
// handlers that had not run yet do not run. At most one RecoverOptions is used,
// the last.
//
// The framework does the same without this middleware; with it the middlewares
// before it see an ordinary return.
//
// A panic in another goroutine that a handler started ends the program as it
// does everywhere in Go.
func Recover(opts ...RecoverOptions) arpc.HandlerFunc {
	o := last(opts)
	return func(ctx *arpc.Context) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			ctx.Abort()
			if stack := debug.Stack(); o.Log == nil {
				log.Error("arpc: panic in the handler of %q for %s: %v\n%s", method(ctx), peer(ctx), p, stack)
			} else {
				o.Log.LogAttrs(ctx, slog.LevelError, "arpc: panic in a handler", slog.String("method", method(ctx)),
					slog.String("kind", kind(ctx)), slog.String("peer", peer(ctx)), slog.String("panic", fmt.Sprint(p)),
					slog.String("stack", string(stack)))
			}
			fail(ctx, errPanicked)
		}()
		ctx.Next()
	}
}

// fail is refuse for an error of a handler that has run.
func fail(ctx *arpc.Context, err error) {
	if s := ctx.Stream(); s != nil {
		s.Reset(err)
		return
	}
	ctx.Error(err) //nolint:errcheck // answered already, a notification, or the connection is gone
}

// last returns the options that count.
func last[O any](opts []O) (o O) {
	if len(opts) > 0 {
		o = opts[len(opts)-1]
	}
	return o
}

// logTo returns the logger that was asked for, or the default one of this
// moment.
func logTo(l *slog.Logger, level slog.Level) (*slog.Logger, bool) {
	if l == nil {
		l = slog.Default()
	}
	return l, l.Enabled(context.Background(), level)
}
