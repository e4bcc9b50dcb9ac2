//go:build unix

package micro_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
)

// A child is a server process.
type child struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	node micro.Node
	read chan struct{} // closed when all that it has said is read
}

func (c *child) say(text string) { io.WriteString(c.in, text+"\n") } //nolint:errcheck // it may be gone

// end waits for the end of a process that was told to end.
func (c *child) end() {
	<-c.read
	c.cmd.Wait() //nolint:errcheck // it may have been killed
}

// chaos is what TestChaos counts.
type chaos struct {
	mu      sync.Mutex
	runs    map[string]int // of "/once", by request
	calls   []sample
	windows []window // of disturbances
}

type sample struct {
	start time.Time
	took  time.Duration
}

type window struct {
	kind     string
	from, to time.Time
}

func (x *chaos) start(t *testing.T, id int) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverVariable+"=1", "GORACE=atexit_sleep_ms=0") // or each takes a second to end
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	c := &child{cmd: cmd, in: in, read: make(chan struct{})}
	t.Cleanup(func() { cmd.Process.Kill() }) //nolint:errcheck // it may have ended
	if !lines.Scan() {
		t.Fatal("no address")
	}
	c.node = micro.Node{Service: "svc", ID: fmt.Sprint("server", id), Addr: lines.Text()}
	go func() {
		defer close(c.read)
		for lines.Scan() {
			x.mu.Lock()
			x.runs[lines.Text()]++
			x.mu.Unlock()
		}
	}()
	return c
}

// settle is how long after the begin or the end of a disturbance calls count neither as disturbed nor as undisturbed.
const settle = 400 * time.Millisecond

// p99 returns the median of the p99 of the times, so that what holds up the whole machine once does not count, and the number of their calls.
func (x *chaos) p99(times []window) (median time.Duration, calls int) {
	var of []time.Duration
	for _, w := range times {
		var took []time.Duration
		for _, s := range x.calls {
			if s.start.After(w.from) && s.start.Before(w.to) {
				took = append(took, s.took)
			}
		}
		slices.Sort(took)
		if calls += len(took); len(took) > 0 {
			of = append(of, took[len(took)*99/100])
		}
	}
	slices.Sort(of)
	if len(of) > 0 {
		median = of[len(of)/2]
	}
	return median, calls
}

// TestChaos calls five server processes while one after the other is killed, drained, paused or slowed: no idempotent call fails, and no
// other is carried out twice. 8 seconds with few calls, or ARPC_CHAOS (a duration) with 2,000 per second.
func TestChaos(t *testing.T) {
	length, rate := 8*time.Second, 400
	if v := os.Getenv("ARPC_CHAOS"); v != "" {
		d, err := time.ParseDuration(v)
		must(t, err)
		length, rate = d, 2000
	} else if testing.Short() {
		t.Skip("eight seconds")
	}
	x := &chaos{runs: map[string]int{}}
	registry := micro.NewMemory()
	defer registry.Close()
	var servers []*child
	next := 0
	launch := func() {
		c := x.start(t, next)
		next++
		must(t, registry.Register(context.Background(), c.node, 0))
		servers = append(servers, c)
	}
	for range 5 {
		launch()
	}
	c, err := micro.NewClient(context.Background(), registry, "svc", micro.Config{
		Hedge: 50 * time.Millisecond, Check: 250 * time.Millisecond, CheckTimeout: 250 * time.Millisecond,
		Burst: rate / 4, Options: []arpc.ClientOption{arpc.NewHandler()},
	})
	must(t, err)
	defer c.Close()
	ready(t, c, 5)

	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var calls sync.WaitGroup
	var total, others, failed, lost atomic.Int64
	calls.Go(func() { // a tick's calls begin together, whether those before have ended or not
		const tick = 5 * time.Millisecond
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		begin, done := time.Now(), 0
		for {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
			for due := int(time.Since(begin) * time.Duration(rate) / time.Second); done < due; done++ {
				text, m := fmt.Sprint("call", done), who
				if done%10 == 0 {
					m = once
				}
				calls.Go(func() {
					call, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					start := time.Now()
					got, err := m.Call(call, c, &text)
					switch {
					case err == nil && *got != text:
						t.Errorf("%s got the answer of %s", text, *got)
					case m == once:
						others.Add(1)
						if err != nil && lost.Add(1) < 10 {
							t.Logf("%s, which is not idempotent, fails after %v: %v", text, time.Since(start), err)
						}
					case err != nil:
						if failed.Add(1) < 10 {
							t.Errorf("%s fails after %v: %v", text, time.Since(start), err)
						}
					default:
						total.Add(1)
						x.mu.Lock()
						x.calls = append(x.calls, sample{start, time.Since(start)})
						x.mu.Unlock()
					}
				})
			}
		}
	})
	pause := func(d time.Duration) bool {
		select {
		case <-time.After(d):
			return true
		case <-ctx.Done():
			return false
		}
	}
	var order []string
	for pause(600 * time.Millisecond) {
		if len(order) == 0 {
			order = []string{"kill", "drain", "pause", "slow"}
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		kind, i := order[0], rand.IntN(len(servers))
		order = order[1:]
		s, from := servers[i], time.Now()
		switch kind {
		case "kill": // the registry finds out later, by the end of the lease
			must(t, s.cmd.Process.Kill())
			s.end()
			pause(700 * time.Millisecond)
			must(t, registry.Deregister(context.Background(), s.node))
		case "drain":
			must(t, registry.Deregister(context.Background(), s.node))
			s.say("drain")
			s.end()
		case "pause":
			must(t, s.cmd.Process.Signal(syscall.SIGSTOP))
			pause(1200 * time.Millisecond)
			must(t, s.cmd.Process.Signal(syscall.SIGCONT))
		case "slow":
			s.say("slow")
			pause(800 * time.Millisecond)
			s.say("fast")
		}
		x.windows = append(x.windows, window{kind, from, time.Now()})
		if kind == "kill" || kind == "drain" {
			servers = slices.Delete(servers, i, i+1)
			launch()
		}
	}
	for _, w := range x.windows {
		t.Logf("%s: %v", w.kind, w.to.Sub(w.from))
	}
	ended := time.Now()
	calls.Wait()
	t.Logf("the last calls end after %v", time.Since(ended))
	for _, n := range c.Stats().Nodes {
		t.Logf("%s: %d calls, %d failures, %d ejections, %v on average", n.Node.ID, n.Calls, n.Failures, n.Ejections, n.Latency)
	}
	must(t, c.Close())
	for _, s := range servers {
		s.in.Close() // they end
		s.end()
	}
	t.Logf("the servers end after %v", time.Since(ended))
	twice := 0
	for text, n := range x.runs {
		if !strings.HasPrefix(text, "call") {
			t.Errorf("a server says %q", text)
		} else if n > 1 {
			twice++
		}
	}
	if twice > 0 {
		t.Errorf("%d calls that are not idempotent were carried out twice", twice)
	}
	if failed.Load() > 0 {
		t.Errorf("%d of %d idempotent calls have failed", failed.Load(), total.Load()+failed.Load())
	}
	if done := others.Load() - lost.Load(); int64(len(x.runs)) < done {
		t.Errorf("%d calls that are not idempotent have succeeded, %d were carried out", done, len(x.runs))
	}
	var pauses, calms []window
	for i, w := range x.windows {
		if w.kind == "pause" {
			pauses = append(pauses, window{from: w.from.Add(settle), to: w.to})
		}
		if i > 0 {
			calms = append(calms, window{from: x.windows[i-1].to.Add(settle), to: w.from})
		}
	}
	calm, n := x.p99(calms)
	paused, m := x.p99(pauses)
	t.Logf("%d idempotent calls, none may fail; of %d others %d have failed; %d disturbances; median p99 %v undisturbed (%d), %v while a server is paused and ejected (%d)",
		total.Load(), others.Load(), lost.Load(), len(x.windows), calm, n, paused, m)
	limit := 3 * calm
	if os.Getenv("ARPC_CHAOS") == "" { // a few hundred calls beside other tests: only what waits for the paused one is found
		limit = max(limit, 200*time.Millisecond)
	}
	if m > 0 && paused > limit {
		t.Errorf("p99 %v while a server is paused, %v undisturbed", paused, calm)
	}
}
