package router

import (
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/log"
)

// Logger returns a middleware that prints one line per request and notify when
// its handlers have returned or panicked: the kind, the method, the peer's
// address and the time the handlers took. The line has LevelInfo. If a handler
// answers after it returned (AnswerLater), the time until the answer is not
// part of it.
func Logger() arpc.HandlerFunc {
	return func(ctx *arpc.Context) {
		start := time.Now()
		kind := "call"
		if ctx.Message.Cmd() == arpc.CmdNotify {
			kind = "notify"
		}
		method := ctx.Message.Method()
		defer func() {
			log.Info("arpc: %s %q from %s took %v", kind, method, peer(ctx), time.Since(start))
		}()
		ctx.Next()
	}
}

// peer returns the address of the other end for a log line.
func peer(ctx *arpc.Context) string {
	if ctx.Client == nil || ctx.Client.Conn == nil {
		return "an unknown peer"
	}
	return ctx.Client.Conn.RemoteAddr().String()
}
