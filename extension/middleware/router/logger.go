package router

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/arpc-go/arpc"
)

// maxLoggedError is the length, in bytes, at which the text of an error is cut
// for the log: it may be made of what the peer has sent.
const maxLoggedError = 256

// LoggerOptions say how Logger works. The zero value is the default.
type LoggerOptions struct {
	// Log is where the lines go; default slog.Default(), as it is when a line is
	// written.
	Log *slog.Logger
	// Every makes Logger write one line for that many messages that ended
	// without an error; default 1, all of them. Errors are not counted.
	Every int
	// PerSecond is the most lines in a second, errors included; default 0, no
	// limit. The first line after a gap has "skipped", the number of lines that
	// were left out because of it.
	PerSecond int
}

// Logger returns a middleware that writes one line per call, notification and
// stream when it is dealt with: its handlers have returned or panicked and, if
// they have called AnswerLater, the answer was given. It has these attributes:
//
//	method    the method
//	kind      "call", "notify" or "stream"
//	peer      the peer's address
//	code      "ok", or the name of the arpc.Code that was answered
//	duration  how long that took from when Logger ran
//	error     the text of the error, if there is one; cut at 256 bytes
//
// The line has LevelInfo with the code "ok", otherwise LevelWarn. The code of a
// notification is why it was refused or what its typed handler returned, though
// the peer gets neither. At most one LoggerOptions is used, the last.
func Logger(opts ...LoggerOptions) arpc.HandlerFunc {
	o := last(opts)
	var ok atomic.Uint64
	var lines *rate.Limiter
	var skipped atomic.Int64
	if o.PerSecond > 0 {
		lines = rate.NewLimiter(rate.Limit(o.PerSecond), o.PerSecond)
	}
	return func(ctx *arpc.Context) {
		start := time.Now()
		ctx.OnEnd(func(err error) {
			level := slog.LevelInfo
			if err != nil {
				level = slog.LevelWarn
			} else if o.Every > 1 && ok.Add(1)%uint64(o.Every) != 1 {
				return
			}
			log, enabled := logTo(o.Log, level)
			if !enabled {
				return
			}
			if lines != nil && !lines.Allow() {
				skipped.Add(1)
				return
			}
			attrs := append(make([]slog.Attr, 0, 7), slog.String("method", method(ctx)), slog.String("kind", kind(ctx)),
				slog.String("peer", peer(ctx)), slog.String("code", codeName(err)), slog.Duration("duration", time.Since(start)))
			if err != nil {
				attrs = append(attrs, slog.String("error", cut(err.Error())))
			}
			if n := skipped.Swap(0); n > 0 {
				attrs = append(attrs, slog.Int64("skipped", n))
			}
			log.LogAttrs(ctx, level, "arpc: "+kind(ctx), attrs...)
		})
	}
}

func codeName(err error) string {
	if err == nil {
		return "ok"
	}
	return arpc.CodeOf(err).String()
}

func cut(text string) string {
	if len(text) > maxLoggedError {
		return strings.ToValidUTF8(text[:maxLoggedError], "") + "…"
	}
	return text
}
