package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arpc-go/arpc"
)

// testBreaker is a breaker whose time is that of the bubble.
func testBreaker(o BreakerOptions) *breakers {
	o.Log = slog.New(slog.DiscardHandler)
	return newBreakers(o)
}

// run lets one through and reports err; the error is the breaker's.
func (b *breakers) run(method string, err error) error {
	report, refusal := b.enter(method, false)
	if refusal == nil {
		report(err)
	}
	return refusal
}

func mustRefuse(t *testing.T, err error, after time.Duration) {
	t.Helper()
	if arpc.CodeOf(err) != arpc.CodeUnavailable {
		t.Errorf("got %v, want CodeUnavailable", err)
	}
	if d, ok := arpc.RetryDelay(err); !ok || d != after {
		t.Errorf("RetryAfter: %v, %v, want %v", d, ok, after)
	}
}

func TestBreakerStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testBreaker(BreakerOptions{Ratio: 0.5, Least: 10, Window: 10 * time.Second, Open: 5 * time.Second, Probes: 2})
		for i := range 10 {
			var err error = arpc.CodeInternal
			if i%2 == 0 {
				err = nil
			}
			if refusal := b.run("/x", err); refusal != nil {
				t.Fatalf("closed, message %d: %v", i, refusal)
			}
		}
		mustRefuse(t, b.run("/x", nil), 5*time.Second)
		if err := b.run("/y", nil); err != nil {
			t.Errorf("another method: %v", err)
		}
		time.Sleep(3 * time.Second)
		mustRefuse(t, b.run("/x", nil), 2*time.Second)
		time.Sleep(2*time.Second + 1)

		// Half-open: two probes at the same time, no third.
		first, err1 := b.enter("/x", false)
		second, err2 := b.enter("/x", false)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		mustRefuse(t, b.run("/x", nil), time.Second)
		first(nil)
		second(arpc.CodeUnavailable)
		mustRefuse(t, b.run("/x", nil), 5*time.Second)

		time.Sleep(5*time.Second + 1)
		for range 2 {
			if err := b.run("/x", nil); err != nil {
				t.Fatalf("a probe: %v", err)
			}
		}
		for range 5 {
			if err := b.run("/x", arpc.CodeInternal); err != nil {
				t.Fatalf("closed again: %v", err)
			}
		}
	})
}

// What is older than Window does not count.
func TestBreakerWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testBreaker(BreakerOptions{Least: 10, Window: 10 * time.Second})
		for i := range 100 {
			if err := b.run("/x", arpc.CodeInternal); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			time.Sleep(1200 * time.Millisecond)
		}
	})
}

// A probe without an outcome does not keep the breaker half-open.
func TestBreakerSilentProbe(t *testing.T) {
	for _, stream := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := testBreaker(BreakerOptions{Least: 1, Open: 5 * time.Second})
			if err := b.run("/x", arpc.CodeInternal); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5*time.Second + 1)
			report, err := b.enter("/x", stream)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if stream {
				if err := b.run("/x", nil); err != nil {
					t.Errorf("after a stream that lasts: %v", err)
				}
			} else {
				mustRefuse(t, b.run("/x", nil), 5*time.Second)
				time.Sleep(5*time.Second + 1)
				if err := b.run("/x", nil); err != nil {
					t.Errorf("the next probe: %v", err)
				}
			}
			report(arpc.CodeInternal) // too late to count
			if err := b.run("/x", nil); err != nil {
				t.Errorf("after the late outcome: %v", err)
			}
		})
	}
}

// What is the caller's fault opens nothing, and does not hide what is not.
func TestBreakerCodes(t *testing.T) {
	plain := errors.New("the database is down")
	failures := []error{plain, arpc.CodeUnknown, arpc.CodeDeadlineExceeded, arpc.CodeInternal, arpc.CodeUnavailable, arpc.CodeDataLoss,
		context.DeadlineExceeded, fmt.Errorf("wrapped: %w", arpc.CodeInternal)}
	others := []error{arpc.CodeCanceled, arpc.CodeInvalidArgument, arpc.CodeNotFound, arpc.CodeAlreadyExists, arpc.CodePermissionDenied,
		arpc.CodeResourceExhausted, arpc.CodeFailedPrecondition, arpc.CodeAborted, arpc.CodeOutOfRange, arpc.CodeUnimplemented,
		arpc.CodeUnauthenticated, context.Canceled, errByPeer}
	for _, err := range failures {
		b := testBreaker(BreakerOptions{Least: 3})
		for i := range 3 {
			for _, other := range others {
				if refusal := b.run("/x", other); refusal != nil {
					t.Fatalf("%v: after %v, %d failures: %v", err, other, i, refusal)
				}
			}
			if refusal := b.run("/x", err); refusal != nil {
				t.Fatalf("%v: %v", err, refusal)
			}
		}
		if b.run("/x", nil) == nil {
			t.Errorf("three times %v has not opened it", err)
		}
	}
	b := testBreaker(BreakerOptions{Least: 1, Failed: func(error) bool { return true }})
	b.run("/x", errByPeer) //nolint:errcheck // it is closed
	if err := b.run("/x", nil); err != nil {
		t.Errorf("the peer has opened it: %v", err)
	}
}

// Names that peers make up do not pile up.
func TestBreakerHostileNames(t *testing.T) {
	b := testBreaker(BreakerOptions{})
	for i := range 5 * maxRoutes {
		if err := b.run(fmt.Sprint(i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(b.routes.byKey); n > maxRoutes {
		t.Errorf("%d methods", n)
	}
}
