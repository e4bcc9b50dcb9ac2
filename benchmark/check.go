package main

import (
	"fmt"
	"io"
)

// The bars of the project's first issue. A ratio is to the published arpc with
// its default settings in the same round; the median over the rounds counts.

// A bar is one requirement and what was measured for it.
type bar struct {
	Name string
	Want string
	Got  string
	OK   bool
}

// rateBars are lower limits for ratios of calls per second.
var rateBars = []struct {
	scenario, system, baseline string
	least                      float64
}{
	{"S1", defaultName, "arpc", 4.0},
	{"S2", defaultName, "arpc", 1.25},
	{"S3", defaultName, "arpc", 5.5},
	{"S4", defaultName, "arpc", 3.5},
	{"S5", defaultName, "arpc", 1.25},
	{"S6", defaultName, "arpc", 7.0},
	{"S1", "arpc-go-json", "arpc-json", 2.5},
	{"S1", "arpc-go-async", "arpc", 3.5},
	{"S1", "arpc-go-meta", "arpc-go", 0.85},
	{"S1", wsName, "arpc-go", 0.75},
	{"S1", "arpc-go-five", "arpc-go", 0.95},
	{"S1", "arpc-go-metrics", "arpc-go", 0.85},
	{"S1", "arpc-go-traced", "arpc-go", 0.85},
	{"S1", "arpc-go-micro", "arpc-go", 0.85},
}

// Further bars.
const (
	mostAllocs      = 4.0    // per call and side, S1
	mostP999        = 1.0    // × arpc, S1
	mostBurnP99     = 5.0    // ms, of calls that need not wait for the burning handler
	mostBurnRatio   = 1.0    // × arpc
	idleBarConns    = 10_000 // for the next two
	mostIdleAdded   = 12e6   // bytes, all connections together, default settings
	mostIdlePerConn = 1024   // bytes each, all on the poller
	mostIdleWS      = 20e6   // bytes, as many WebSocket connections together, default settings
	idleLimitConns  = 19_000 // must be held at once
)

// Names of ours under which there are both a system and an idle system.
const (
	defaultName = "arpc-go"
	pollName    = "arpc-go-poll"
)

// neededForCheck leaves out what no bar looks at.
func neededForCheck(scenario, system string) bool {
	if scenario == burnScenario.name {
		return system == defaultName || system == "arpc"
	}
	for _, b := range rateBars {
		if b.scenario == scenario && (b.system == system || b.baseline == system) {
			return true
		}
	}
	return false
}

func neededForIdleCheck(system string, conns int) bool {
	switch conns {
	case idleBarConns:
		return system == defaultName || system == pollName || system == wsName
	case idleLimitConns:
		return system == defaultName
	default:
		return false
	}
}

// checkBars compares. A bar without a figure is missed.
func checkBars(r *results) []bar {
	var bars []bar
	for _, b := range rateBars {
		got := r.ratio(b.scenario, b.system, b.baseline, pickRate)
		bars = append(bars, bar{
			Name: fmt.Sprintf("%s, %s: calls/s × %s", b.scenario, b.system, b.baseline),
			Want: fmt.Sprintf(">= %.2f", b.least), Got: got.format(),
			OK: got.N > 0 && got.Median >= b.least,
		})
	}

	s1 := r.of("S1", defaultName)
	for _, side := range []struct {
		name string
		pick func(*figure) float64
	}{{"client", pickClientAllocs}, {"server", pickServerAllocs}} {
		got := median(s1, side.pick)
		bars = append(bars, bar{
			Name: "S1, arpc-go: allocations per call, " + side.name,
			Want: fmt.Sprintf("<= %.0f", mostAllocs), Got: fmt.Sprintf("%.2f", got),
			// Timers and goroutines of the runtime allocate now and then.
			OK: len(s1) > 0 && got <= mostAllocs+0.05,
		})
	}
	tail := r.ratio("S1", defaultName, "arpc", pickP999)
	bars = append(bars, bar{
		Name: "S1, arpc-go: p99.9 × arpc", Want: fmt.Sprintf("<= %.1f", mostP999), Got: tail.format(),
		OK: tail.N > 0 && tail.Median <= mostP999,
	})

	burning := r.of(burnScenario.name, defaultName)
	for _, name := range []string{burnOthers, burnInline, burnAsync} {
		pick := pickGroup(name, groupP99)
		ms := median(burning, pick) / 1e3
		ratio := r.ratio(burnScenario.name, defaultName, "arpc", pick)
		bars = append(bars, bar{
			Name: "burn, arpc-go: p99 ms, " + name,
			Want: fmt.Sprintf("<= %.0f", mostBurnP99), Got: fmt.Sprintf("%.2f", ms),
			OK: ms > 0 && ms <= mostBurnP99,
		}, bar{
			Name: "burn, arpc-go: p99 × arpc, " + name,
			Want: fmt.Sprintf("<= %.1f", mostBurnRatio), Got: ratio.format(),
			OK: ratio.N > 0 && ratio.Median <= mostBurnRatio,
		})
	}

	idle := r.idleOf(defaultName, idleBarConns)
	added := idleMedian(idle, func(f *idleFigure) float64 { return float64(f.added()) })
	bars = append(bars, bar{
		Name: fmt.Sprintf("idle, arpc-go: MB added by %d connections", idleBarConns),
		Want: fmt.Sprintf("<= %.0f", mostIdleAdded/1e6), Got: fmt.Sprintf("%.1f", added/1e6),
		OK: len(idle) > 0 && added <= mostIdleAdded,
	})
	ws := r.idleOf(wsName, idleBarConns)
	added = idleMedian(ws, func(f *idleFigure) float64 { return float64(f.added()) })
	bars = append(bars, bar{
		Name: fmt.Sprintf("idle, %s: MB added by %d connections", wsName, idleBarConns),
		Want: fmt.Sprintf("<= %.0f", mostIdleWS/1e6), Got: fmt.Sprintf("%.1f", added/1e6),
		OK: len(ws) > 0 && added <= mostIdleWS,
	})
	poll := r.idleOf(pollName, idleBarConns)
	each := idleMedian(poll, func(f *idleFigure) float64 { return f.PerConn })
	bars = append(bars, bar{
		Name: "idle, arpc-go-poll: KiB per connection",
		Want: fmt.Sprintf("<= %.1f", mostIdlePerConn/1024.0), Got: fmt.Sprintf("%.2f", each/1024),
		OK: len(poll) > 0 && each <= mostIdlePerConn,
	})
	limit := r.idleOf(defaultName, idleLimitConns)
	held := idleMedian(limit, func(f *idleFigure) float64 { return float64(f.Held) })
	bars = append(bars, bar{
		Name: "idle, arpc-go: connections held", Want: fmt.Sprint(idleLimitConns), Got: fmt.Sprintf("%.0f", held),
		OK: len(limit) > 0 && held == idleLimitConns,
	})

	bars = append(bars, fanOutBars(r)...)

	wrong := wrongIn(r.Calls)
	for _, f := range r.FanOut {
		wrong += f.Wrong
	}
	return append(bars, bar{
		Name: "figures that could not be taken", Want: "0", Got: fmt.Sprint(len(r.Failures)),
		OK: len(r.Calls) > 0 && len(r.Failures) == 0,
	}, bar{
		Name: "mismatches, errors and lost calls in all figures", Want: "0", Got: fmt.Sprint(wrong),
		OK: len(r.Calls) > 0 && wrong == 0,
	})
}

// writeBars returns whether all were met.
func writeBars(out io.Writer, bars []bar) bool {
	missed := 0
	fmt.Fprintf(out, "\n### Bars\n\n| | bar | wanted | got |\n|---|---|---|---|\n")
	for _, b := range bars {
		verdict := "PASS"
		if !b.OK {
			verdict = "FAIL"
			missed++
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s |\n", verdict, b.Name, b.Want, b.Got)
	}
	if missed > 0 {
		fmt.Fprintf(out, "\nFAIL: %d of %d bars missed.\n", missed, len(bars))
		return false
	}
	fmt.Fprintf(out, "\nPASS: all %d bars met.\n", len(bars))
	return true
}
