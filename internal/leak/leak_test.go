package leak

import (
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func TestFindsGoroutine(t *testing.T) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		<-stop
	}()
	// The test runner's own goroutine of this package waits in m.Run.
	left := wait(time.Now())
	close(stop)
	<-stopped
	if !strings.Contains(left, "TestFindsGoroutine.func1") {
		t.Fatalf("not found in:\n%s", left)
	}
}
