package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be the workers of the tests that measure, and
// checks that no goroutine is left over.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		runWorker(role)
		return
	}
	// Under the race detector every worker would sleep for a second at its end.
	os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	before := runtime.NumGoroutine()
	code := m.Run()
	if code == 0 {
		deadline := time.Now().Add(5 * time.Second)
		for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
			runtime.Gosched()
		}
		if n := runtime.NumGoroutine(); n > before {
			buf := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "%d goroutines left:\n%s\n", n-before, buf[:runtime.Stack(buf, true)])
			code = 1
		}
	}
	os.Exit(code)
}

func TestParseSettings(t *testing.T) {
	set, err := parseSettings([]string{"-scenarios", "S1,idle", "-systems", "arpc,nbio", "-rounds", "5", "-duration", "2s", "-idle-conns", "10,20"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(set.scenarios, []string{"S1", "idle"}) || !slices.Equal(set.systems, []string{"arpc", "nbio"}) ||
		set.rounds != 5 || set.duration != 2*time.Second || !slices.Equal(set.idleConns, []int{10, 20}) {
		t.Errorf("got %+v", set)
	}
	for _, args := range [][]string{
		{"-scenarios", "S9"},
		{"-systems", "nobody"},
		{"-rounds", "0"},
		{"-duration", "0s"},
		{"-idle-conns", "many"},
		{"-check", "-json"},
		{"S1"},
	} {
		if _, err := parseSettings(args); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}

func TestCheckRunsWhatTheBarsNeed(t *testing.T) {
	set, err := parseSettings([]string{"-check", "-scenarios", "S2", "-systems", "grpc", "-idle-conns", "7"})
	if err != nil {
		t.Fatal(err)
	}
	set.progress = io.Discard
	for _, b := range rateBars {
		if !slices.Contains(set.scenarios, b.scenario) {
			t.Errorf("%s is not run", b.scenario)
		}
		var names []string
		for _, sys := range taking(scenarioByName(b.scenario), set) {
			names = append(names, sys.name)
		}
		for _, name := range []string{b.system, b.baseline} {
			if !slices.Contains(names, name) {
				t.Errorf("%s does not run in %s, only %s", name, b.scenario, strings.Join(names, ", "))
			}
		}
	}
	if !slices.Contains(set.idleConns, idleBarConns) || !slices.Contains(set.idleConns, idleLimitConns) {
		t.Errorf("idle runs with %v connections", set.idleConns)
	}
}

func TestEverySystemHasABaseline(t *testing.T) {
	for _, sys := range systems {
		if systemByName(sys.baseline) == nil {
			t.Errorf("%s: no system %q", sys.name, sys.baseline)
		}
	}
}
