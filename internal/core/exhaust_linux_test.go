package core

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Rule 13 is tested with a server in a process of its own that may have few descriptors only.

const exhaustLimit = 72

// exhaustReport is what the child says when asked.
type exhaustReport struct {
	CPU                                           time.Duration
	Conns                                         int
	Hogged                                        bool // no descriptor is left
	Accepted, AcceptErrors, RefusedFiles, Aborted int64
}

func init() {
	for _, std := range []string{"-1", "0", "1000"} {
		children["exhaust"+std] = func() { exhaustChild(std) }
	}
}

// childTB is the testing.TB of a child: what fails there fails the test, as the child's last words.
type childTB struct{ testing.TB }

func (childTB) Helper() {}

func (childTB) Errorf(format string, args ...any) {
	fmt.Printf("FAIL "+format+"\n", args...)
	os.Exit(1)
}

func (t childTB) Fatal(args ...any) { t.Errorf("%v", args) }

func exhaustChild(std string) {
	t := childTB{}
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: exhaustLimit, Max: exhaustLimit}))
	app := newApp(t)
	var aborted atomic.Int64
	app.onDown = func(_ *state, err error) {
		if err != io.EOF && !isReset(err) {
			aborted.Add(1)
			fmt.Fprintln(os.Stderr, "down:", err)
		}
	}
	cfg := Config{}
	must2(fmt.Sscan(std, &cfg.StdConns))
	ln := listenTCP(t)
	g := NewGroup(testConfig(app, cfg), app)
	go g.Serve(ln)
	fmt.Println(ln.Addr())
	var hogging atomic.Bool
	var full atomic.Bool
	hogged := make(chan struct{})
	var files []*os.File // while hogging, that goroutine's
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "report":
			var u unix.Rusage
			must(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
			json.NewEncoder(os.Stdout).Encode(exhaustReport{
				CPU:   time.Duration(u.Utime.Nano() + u.Stime.Nano()),
				Conns: g.Len(), Hogged: full.Load(),
				Accepted: g.Stats.Accepted.Load(), AcceptErrors: g.Stats.AcceptErrors.Load(),
				RefusedFiles: g.Stats.RefusedFiles.Load(), Aborted: aborted.Load(),
			})
		case "hog": // takes every descriptor, again and again
			hogging.Store(true)
			go func() {
				ticker := time.NewTicker(20 * time.Microsecond)
				defer ticker.Stop()
				for hogging.Load() {
					if f, err := os.Open(os.DevNull); err == nil {
						files = append(files, f)
					} else {
						full.Store(true)
						<-ticker.C
					}
				}
				hogged <- struct{}{}
			}()
			fmt.Println("ok")
		case "free":
			hogging.Store(false)
			<-hogged
			for _, f := range files {
				f.Close()
			}
			files = nil
			full.Store(false)
			fmt.Println("ok")
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait/2)
	defer cancel()
	if err := g.Stop(ctx, nil); err != nil {
		t.Errorf("Stop: %v", err)
	}
	fmt.Println("done")
}

// exhausted is the parent's view of a child.
type exhausted struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	addr string
}

func (e *exhausted) line() string {
	e.t.Helper()
	l, err := e.out.ReadString('\n')
	if err != nil || strings.HasPrefix(l, "FAIL") {
		e.t.Fatalf("child: %q, %v", l, err)
	}
	return strings.TrimSpace(l)
}

func (e *exhausted) ask(what string) string {
	e.t.Helper()
	must2(io.WriteString(e.in, what+"\n"))
	return e.line()
}

func (e *exhausted) report() (r exhaustReport) {
	e.t.Helper()
	must(e.t, json.Unmarshal([]byte(e.ask("report")), &r))
	return r
}

// fates counts how dialling ended.
type fates struct {
	served, reset, eof, silent atomic.Int32
	mu                         sync.Mutex
	conns                      []*client
}

// dial makes n connections at the same time and asks each for an echo.
func (e *exhausted) dial(n int, f *fates) {
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			var d net.Dialer
			d.Timeout = wait / 2
			nc, err := d.Dial("tcp", e.addr)
			if err == nil {
				c := newClient(e.t, nc)
				c.SetDeadline(time.Now().Add(wait / 2))
				if _, err = c.Write(makeFrame(kindOrdered, []byte("x"))); err == nil {
					_, _, err = c.read()
				}
				if err == nil {
					c.SetDeadline(time.Now().Add(2 * wait))
					f.served.Add(1)
					f.mu.Lock()
					f.conns = append(f.conns, c)
					f.mu.Unlock()
					return
				}
				c.Close()
			}
			switch {
			case isReset(err):
				f.reset.Add(1)
			case isTimeout(err):
				f.silent.Add(1)
			case errors.Is(err, io.EOF):
				f.eof.Add(1)
			default:
				e.t.Errorf("dial: %v", err)
			}
		})
	}
	wg.Wait()
}

func (f *fates) close() {
	for _, c := range f.conns {
		c.Close()
	}
	f.conns = nil
}

func (f *fates) String() string {
	return fmt.Sprintf("%d served, %d reset, %d closed, %d silent", f.served.Load(), f.reset.Load(), f.eof.Load(), f.silent.Load())
}

// busy uses each of the connections often, at the same time.
func (e *exhausted) busy(f *fates) {
	e.t.Helper()
	for range 50 {
		for i, c := range f.conns {
			if _, err := c.Write(makeFrame(kindOrdered, []byte("busy"))); err != nil {
				e.t.Errorf("existing connection %d: %v", i, err)
				return
			}
		}
		for i, c := range f.conns {
			if _, b, err := c.read(); err != nil || string(b) != "busy" {
				e.t.Errorf("existing connection %d: %v", i, err)
				return
			}
		}
	}
}

// Rule 13: without descriptors existing connections go on, new ones are reset and counted, the processor is not burnt, and
// accepting goes on when there are descriptors again.
func TestDescriptorExhaustion(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	defer all.Wait()
	for _, std := range []string{"-1", "0", "1000"} {
		all.Go(func() { t.Run("StdConns "+std, func(t *testing.T) { exhaust(t, std) }) })
	}
}

func exhaust(t *testing.T, std string) {
	e := &exhausted{t: t, cmd: exec.Command(os.Args[0])}
	e.cmd.Env = append(os.Environ(), childEnv+"=exhaust"+std)
	e.cmd.Stderr = os.Stderr
	var err error
	e.in, err = e.cmd.StdinPipe()
	must(t, err)
	out, err := e.cmd.StdoutPipe()
	must(t, err)
	e.out = bufio.NewReader(out)
	must(t, e.cmd.Start())
	defer func() {
		e.in.Close()
		if err := e.cmd.Wait(); err != nil {
			t.Errorf("child: %v", err)
		}
	}()
	e.addr = e.line()

	var old fates
	defer old.close()
	e.dial(10, &old)
	if old.served.Load() != 10 {
		t.Fatalf("at first: %v", &old)
	}
	before := e.report()
	var f fates
	e.dial(150, &f)
	after := e.report()
	within(2*time.Second, func() bool { // a run of refusals is counted at its end
		after = e.report()
		return after.RefusedFiles == int64(f.reset.Load()+f.eof.Load())
	})
	if f.served.Load() == 0 || f.reset.Load() == 0 {
		t.Error("not exhausted, or not served")
	}
	if f.eof.Load() != 0 || f.silent.Load() != 0 {
		t.Errorf("not all refusals are resets: %v", &f)
	}
	if n := after.RefusedFiles; n != int64(f.reset.Load()+f.eof.Load()) {
		t.Errorf("%d refusals counted, %d seen", n, f.reset.Load()+f.eof.Load())
	}
	if n := after.AcceptErrors; n > 100 {
		t.Errorf("%d failed accepts", n)
	}
	// While nothing can be accepted, a little time is spent, not all of it.
	more := make(chan struct{})
	var late fates
	go func() {
		defer close(more)
		for range 5 {
			e.dial(4, &late)
		}
	}()
	start := time.Now()
	recv(t, more, "end of the late ones")
	within(300*time.Millisecond, func() bool { return false })
	idle := e.report()
	if cpu, d := idle.CPU-after.CPU, time.Since(start); cpu > d/2 {
		t.Errorf("%v of %v spent", cpu, d)
	}
	if cpu := after.CPU - before.CPU; cpu > 3*time.Second {
		t.Errorf("the storm cost %v", cpu)
	}
	if late.silent.Load() != 0 || late.eof.Load() != 0 {
		t.Errorf("late: %v", &late)
	}
	e.busy(&old)
	if n := e.report().Aborted; n != 0 {
		t.Errorf("%d connections ended by the server", n)
	}
	f.close()
	late.close()
	var again fates
	eventually(t, "served again", func() bool {
		e.dial(1, &again)
		return again.served.Load() > 0
	})
	again.close()
	if again.silent.Load() != 0 {
		t.Errorf("again: %v", &again)
	}

	// Another part of the program takes whatever descriptor is freed, for a while, the spare one too.
	var quiet fates
	defer quiet.close()
	e.dial(5, &quiet)
	e.ask("hog")
	eventually(t, "no descriptor left", func() bool { return e.report().Hogged })
	var hogged fates
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.dial(10, &hogged)
	}()
	errs := e.report().AcceptErrors
	eventually(t, "failed accepts, or all told", func() bool { return e.report().AcceptErrors >= errs+3 || isDone(done) })
	e.busy(&quiet)
	e.ask("free")
	recv(t, done, "end of those who came meanwhile")
	hogged.close()
	eventually(t, "only the old connections", func() bool { return e.report().Conns <= len(old.conns)+len(quiet.conns) })
	var last fates
	e.dial(120, &last)
	if last.reset.Load() == 0 || last.silent.Load() != 0 || last.eof.Load() != 0 {
		t.Errorf("after that: %v", &last)
	}
	last.close()
	for _, c := range old.conns {
		c.echo(kindOrdered, "old")
	}
}
