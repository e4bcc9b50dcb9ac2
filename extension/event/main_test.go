package event

import (
	"bufio"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/leak"
)

// wait bounds every wait for something that must happen; it is never spent when all is well.
const wait = 20 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		exhaustChild()
		return
	}
	leak.Main(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// within looks for a condition again and again until the time is up.
func within(d time.Duration, cond func() bool) bool {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(d); !cond(); <-ticker.C {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// bothWays runs a test on event loops and on the standard library; suffix goes behind a network's name.
func bothWays(t *testing.T, f func(t *testing.T, suffix string)) {
	t.Run("poll", func(t *testing.T) { f(t, "") })
	t.Run("net", func(t *testing.T) { f(t, "-net") })
}

// running is a Serve that has begun.
type running struct {
	t     testing.TB
	addrs []net.Addr
	wake  func(int) bool
	end   chan error

	stop chan struct{}
}

// start serves and waits until addresses are known. Unless the test's events end it, it is ended when the test does.
func start(t testing.TB, ev Events, addrs ...string) *running {
	t.Helper()
	r := &running{t: t, end: make(chan error, 1), stop: make(chan struct{})}
	began := make(chan struct{})
	serving, tick := ev.Serving, ev.Tick
	ev.Serving = func(wake func(int) bool, addrs []net.Addr) Action {
		r.wake, r.addrs = wake, addrs
		close(began)
		if serving != nil {
			return serving(wake, addrs)
		}
		return None
	}
	ev.Tick = func() (time.Duration, Action) {
		delay := 5 * time.Millisecond
		action := None
		if tick != nil {
			delay, action = tick()
		}
		select {
		case <-r.stop:
			action = Shutdown
		default:
		}
		return delay, action
	}
	go func() { r.end <- Serve(ev, addrs...) }()
	select {
	case <-began:
	case err := <-r.end:
		select {
		case <-began: // and it has ended, both at once
			r.end <- err
		default:
			t.Fatalf("Serve: %v", err)
		}
	}
	t.Cleanup(func() {
		close(r.stop)
		must(t, recv(t, r.end, "end of Serve"))
	})
	return r
}

// ended waits for the end of Serve, which must be one without an error.
func (r *running) ended() {
	r.t.Helper()
	err := recv(r.t, r.end, "end of Serve")
	if err != nil {
		r.t.Errorf("Serve: %v", err)
	}
	r.end <- err // for Cleanup
}

// client is a connection to an address.
type client struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func (r *running) dial(i int) *client { return dial(r.t, r.addrs[i]) }

func dial(t testing.TB, a net.Addr) *client {
	t.Helper()
	nc, err := net.Dial(a.Network(), a.String())
	must(t, err)
	nc.SetDeadline(time.Now().Add(wait)) //nolint:errcheck // a new connection takes it
	t.Cleanup(func() { nc.Close() })
	return &client{nc, t, bufio.NewReaderSize(nc, 64<<10)}
}

func (c *client) send(s string) {
	c.t.Helper()
	_, err := io.WriteString(c.Conn, s)
	must(c.t, err)
}

func (c *client) expect(want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
		c.t.Fatalf("got %q, %v, want %q", clip(string(got[:n])), err, clip(want))
	}
}

// eof expects the end.
func (c *client) eof() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		c.t.Fatalf("got %q, %v instead of the end", clip(string(rest)), err)
	}
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 60)], "?") }
