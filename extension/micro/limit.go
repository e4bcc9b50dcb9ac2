package micro

import (
	"context"
	"time"
)

// A limited is a context with a deadline and without a timer: calls have one for each connection, and what else waits looks at the deadline.
type limited struct {
	context.Context
	deadline time.Time
}

func limit(timeout time.Duration) *limited {
	return &limited{context.Background(), time.Now().Add(timeout)}
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
