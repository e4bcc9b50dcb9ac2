package micro

import (
	"context"
	"time"
)

// A limited is a context with a deadline and without a timer: calls have one for each connection, and what else waits looks at the deadline.
// An attempt that it is given to itself is the first; if that has not waited for a node, it has the whole timeout.
type limited struct {
	context.Context
	deadline time.Time
	timeout  time.Duration
	waited   bool
}

func limit(timeout time.Duration) *limited {
	return &limited{Context: context.Background(), deadline: time.Now().Add(timeout), timeout: timeout}
}

// Deadline implements context.Context.
func (l *limited) Deadline() (time.Time, bool) { return l.deadline, true }

// Err implements context.Context.
func (l *limited) Err() error {
	if time.Now().Before(l.deadline) {
		return nil
	}
	return context.DeadlineExceeded
}
