package main

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"
)

func needLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("measuring needs Linux")
	}
}

// TestSystems takes a short figure of every system in every kind of scenario
// that it takes part in, over real processes. All answers must be right.
func TestSystems(t *testing.T) {
	needLinux(t)
	for _, sc := range []*scenario{scenarioByName("S1"), scenarioByName("S6"), burnScenario} {
		for _, sys := range taking(sc, settings{}) {
			t.Run(sc.name+" "+strings.ReplaceAll(sys.name, "/", "-"), func(t *testing.T) {
				fig, err := measure(t.Context(), sys, sc, 50*time.Millisecond, 200*time.Millisecond)
				if err != nil {
					t.Fatal(err)
				}
				if fig.wrong() > 0 {
					t.Errorf("%d mismatches, %d errors, %d lost; first error: %s", fig.Mismatches, fig.Errors, fig.Lost, fig.FirstError)
				}
				if fig.Calls == 0 || fig.Rate <= 0 || fig.ClientCPU <= 0 || fig.ServerCPU <= 0 {
					t.Errorf("no load: %+v", fig)
				}
				for _, g := range fig.Groups {
					if g.Calls > 100 && (g.Samples == 0 || g.P50 <= 0 || g.P50 > g.P99 || g.P99 > g.P999) {
						t.Errorf("%s: unlikely latencies: %+v", g.Name, g)
					}
				}
			})
		}
	}
}

func TestIdleSystems(t *testing.T) {
	needLinux(t)
	const conns = 100
	for _, sys := range idleSystems {
		t.Run(sys.name, func(t *testing.T) {
			fig, err := measureIdle(t.Context(), sys, conns)
			if err != nil {
				t.Fatal(err)
			}
			if fig.Held != conns {
				t.Errorf("%d of %d connections held", fig.Held, conns)
			}
			if fig.Before <= 0 || fig.Natural <= 0 || fig.Collected <= 0 || fig.CPUPerConn <= 0 {
				t.Errorf("counters are missing: %+v", fig)
			}
		})
	}
}

// TestFanOutSystems takes a short figure of every system: everything arrives, in order.
func TestFanOutSystems(t *testing.T) {
	needLinux(t)
	if runtime.NumCPU() < 2 {
		t.Skip("client and server need a core each")
	}
	for _, sys := range fanOutSystems {
		for _, flight := range fanOutFlights {
			t.Run(fmt.Sprint(sys.name, " ", flight), func(t *testing.T) {
				fig, err := measureFanOut(t.Context(), sys, 20, flight, 50*time.Millisecond, 200*time.Millisecond)
				if err != nil {
					t.Fatal(err)
				}
				if fig.Wrong > 0 || fig.Deliveries == 0 || fig.ServerCPU <= 0 || fig.Before <= 0 || fig.RSS <= 0 {
					t.Errorf("%+v", fig)
				}
			})
		}
	}
}

// TestExecute runs the command as a user does.
func TestExecute(t *testing.T) {
	needLinux(t)
	args := []string{"-scenarios", "S2,idle", "-systems", "arpc,raw,goroutine", "-rounds", "2", "-duration", "50ms", "-warmup", "10ms", "-idle-conns", "20"}
	for _, test := range []struct {
		args []string
		want []string
	}{
		{args, []string{"Machine: ", "github.com/lesismal/arpc v", "### S2", "| arpc |", "| raw |", "### idle", "| goroutine | 20 | 20 |"}},
		{append(args, "-json"), []string{`"calls_per_second"`, `"rss_per_conn"`, `"round": 2`}},
	} {
		set, err := parseSettings(test.args)
		if err != nil {
			t.Fatal(err)
		}
		set.progress = io.Discard
		var out bytes.Buffer
		ok, err := execute(t.Context(), set, &out)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		for _, want := range test.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%q is not in the output:\n%s", want, out.String())
			}
		}
	}
}

// TestWorkerErrors: a worker reports what goes wrong and stays usable.
func TestWorkerErrors(t *testing.T) {
	needLinux(t)
	w, err := startWorker(t.Context(), roleServer)
	if err != nil {
		t.Fatal(err)
	}
	defer w.stop()
	if _, err := w.do(order{Do: doStart, System: "nobody"}); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("start of an unknown system: %v", err)
	}
	if _, err := w.do(order{Do: doStop}); err == nil {
		t.Error("a server accepted an order for clients")
	}
	if _, err := w.mark(doMark); err != nil {
		t.Error(err)
	}
}
