package micro

import (
	"context"
	"time"
)

// A limited is a context with a deadline and without a timer: calls have one for each connection, and what else waits looks at the deadline.
type limited struct {
	context.Context
	begun, timeout time.Duration // begun since epoch
}

func limit(begun, timeout time.Duration) *limited {
	return &limited{context.Background(), begun, timeout}
}

// epoch is when the program began. The time since needs one clock only.
var epoch = time.Now()

func since() time.Duration { return time.Since(epoch) }

// Deadline implements context.Context.
func (l *limited) Deadline() (time.Time, bool) { return epoch.Add(l.begun).Add(l.timeout), true }

// Err implements context.Context.
func (l *limited) Err() error {
	if since()-l.begun < l.timeout {
		return nil
	}
	return context.DeadlineExceeded
}
