// Package leak fails a test binary that ends with goroutines of this module
// still running. A package that starts goroutines calls it from its TestMain:
//
//	func TestMain(m *testing.M) { leak.Main(m) }
package leak

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// grace is how long goroutines may take to end after the last test. It is
// spent only when something is wrong.
const grace = 10 * time.Second

// Main runs the tests and exits the process with the result of Run.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run runs the tests and returns their exit code, or 1 if they passed but left
// goroutines behind.
func Run(m *testing.M) int {
	code := m.Run()
	if code == 0 {
		if left := wait(time.Now().Add(grace)); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines left behind by the tests:\n\n%s\n", left)
			code = 1
		}
	}
	return code
}

// wait returns what is still running at the deadline.
func wait(deadline time.Time) string {
	for {
		left := ours()
		if left == "" || time.Now().After(deadline) {
			return left
		}
		runtime.Gosched()
	}
}

// ours returns the stacks of all goroutines but the calling one that run code
// of this module or of its poller.
func ours() string {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	_, others, _ := strings.Cut(string(buf), "\n\n")
	var left []string
	for stack := range strings.SplitSeq(others, "\n\n") {
		if strings.Contains(stack, "github.com/arpc-go/arpc") || strings.Contains(stack, "github.com/lesismal/") {
			left = append(left, stack)
		}
	}
	return strings.Join(left, "\n\n")
}
