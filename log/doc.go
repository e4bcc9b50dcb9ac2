// Package log is the logging of arpc: printf-style functions with a level, on
// top of log/slog.
//
// By default lines go to standard error in slog's text form, from LevelInfo
// up. SetLogger puts any Logger in place; New makes one from a slog.Handler,
// so that arpc logs where the rest of the program does:
//
//	log.SetLogger(log.New(slog.Default().Handler()))
//
// Concurrency: all functions, and the Logger that New returns, may be used
// from any number of goroutines. DefaultLogger is a plain variable; assign to
// it only at the start of the program, and call SetLogger at any time.
//
// arpc logs events of connections and failures of user code, never one line
// per message unless the Logger middleware is installed.
package log
