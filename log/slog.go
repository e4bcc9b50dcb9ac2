package log

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// New returns a Logger that gives its lines to h, at LevelInfo until SetLevel
// is called. A line is printed if both the Logger's level and h allow it. A
// line that is not printed is not formatted either.
func New(h slog.Handler) Logger {
	l := &slogger{handler: h}
	l.level.Store(LevelInfo)
	return l
}

type slogger struct {
	handler slog.Handler
	level   atomic.Int64
}

func (l *slogger) SetLevel(level int) { l.level.Store(int64(level)) }

func (l *slogger) Debug(format string, v ...any) { l.print(LevelDebug, slog.LevelDebug, format, v) }
func (l *slogger) Info(format string, v ...any)  { l.print(LevelInfo, slog.LevelInfo, format, v) }
func (l *slogger) Warn(format string, v ...any)  { l.print(LevelWarn, slog.LevelWarn, format, v) }
func (l *slogger) Error(format string, v ...any) { l.print(LevelError, slog.LevelError, format, v) }

func (l *slogger) print(level int64, as slog.Level, format string, v []any) {
	ctx := context.Background()
	if level < l.level.Load() || !l.handler.Enabled(ctx, as) {
		return
	}
	text := format
	if len(v) > 0 {
		text = fmt.Sprintf(format, v...)
	}
	// There is nobody to tell that a log line could not be written.
	_ = l.handler.Handle(ctx, slog.NewRecord(time.Now(), as, text, 0))
}
