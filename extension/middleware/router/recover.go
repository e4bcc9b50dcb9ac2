package router

import (
	"runtime/debug"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/log"
)

// panicText is the text that the framework itself answers when a handler
// panics without this middleware; callers derive CodeInternal from it where
// the protocol carries texts only.
const panicText = "internal error: the handler panicked"

// Recover returns a middleware that turns a panic of the handlers after it
// into an error answer with CodeInternal. The caller learns that the handler
// panicked and nothing else; the value and the stack go to the log, at
// LevelError. A panicking handler of a notify is only logged. The handlers
// that had not run yet do not run.
//
// A panic in another goroutine that a handler started ends the program as it
// does everywhere in Go.
func Recover() arpc.HandlerFunc {
	return func(ctx *arpc.Context) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			ctx.Abort()
			log.Error("arpc: panic in the handler of %q for %s: %v\n%s", ctx.Message.Method(), peer(ctx), p, debug.Stack())
			if ctx.Message.Cmd() != arpc.CmdRequest {
				return
			}
			err := ctx.Error(&arpc.Error{Code: arpc.CodeInternal, Message: panicText})
			if err != nil {
				log.Debug("arpc: the panic of %q was not reported to %s: %v", ctx.Message.Method(), peer(ctx), err)
			}
		}()
		ctx.Next()
	}
}
