package log

import (
	"log/slog"
	"os"
	"reflect"
	"sync/atomic"
)

// Levels, in the order of importance. A Logger at a level prints what is of
// that level or above: LevelAll prints everything, LevelNone nothing.
const (
	LevelAll = iota
	LevelDebug
	LevelInfo
	LevelWarn
	LevelError
	LevelNone
)

// Logger prints formatted lines. The format and its arguments are those of
// fmt.Printf, without a newline at the end. Implementations must be safe for
// concurrent use.
type Logger interface {
	// SetLevel sets the lowest level that is printed, one of the Level
	// constants.
	SetLevel(level int)
	Debug(format string, v ...any)
	Info(format string, v ...any)
	Warn(format string, v ...any)
	Error(format string, v ...any)
}

// DefaultLogger is what the functions of this package print to, unless
// SetLogger was called after it was last assigned. It prints to standard error
// from LevelInfo up. Assigning to it is not protected against concurrent
// logging; SetLogger is.
var DefaultLogger Logger = New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))

// override is what SetLogger chose, and the DefaultLogger that it replaced. It
// holds for as long as nobody assigns another DefaultLogger.
type override struct {
	logger   Logger
	replaced Logger // nil if it cannot be compared
}

var overridden atomic.Pointer[override]

// SetLogger makes the functions of this package print to l. It does not change
// the variable DefaultLogger, but an assignment to that variable afterwards
// counts. It panics if l is nil.
func SetLogger(l Logger) {
	if l == nil {
		panic("log: SetLogger with a nil Logger")
	}
	o := &override{logger: l}
	if d := DefaultLogger; d != nil && reflect.ValueOf(d).Comparable() {
		o.replaced = d
	}
	overridden.Store(o)
}

// current returns the Logger in force.
func current() Logger {
	o, d := overridden.Load(), DefaultLogger
	if o != nil && (o.replaced == nil || o.replaced == d) {
		return o.logger
	}
	return d
}

// SetLevel sets the lowest level that is printed by the Logger in force.
func SetLevel(level int) { current().SetLevel(level) }

// Debug prints a line of LevelDebug.
func Debug(format string, v ...any) { current().Debug(format, v...) }

// Info prints a line of LevelInfo.
func Info(format string, v ...any) { current().Info(format, v...) }

// Warn prints a line of LevelWarn.
func Warn(format string, v ...any) { current().Warn(format, v...) }

// Error prints a line of LevelError.
func Error(format string, v ...any) { current().Error(format, v...) }
