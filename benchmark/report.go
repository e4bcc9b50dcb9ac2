package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// results is all that was measured.
type results struct {
	Machine  machine        `json:"machine"`
	Settings string         `json:"settings"`
	Calls    []figure       `json:"calls,omitempty"`
	Idle     []idleFigure   `json:"idle,omitempty"`
	FanOut   []fanOutFigure `json:"fanout,omitempty"`
	Failures []string       `json:"failures,omitempty"` // figures that could not be taken
}

// fail notes that a figure could not be taken. The others go on.
func (r *results) fail(set settings, err error) {
	r.Failures = append(r.Failures, err.Error())
	fmt.Fprintln(set.progress, "FAILED:", err)
}

func (r *results) writeJSON(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// of returns the figures of one system in one scenario, in order of rounds.
func (r *results) of(scenario, system string) []figure {
	var list []figure
	for _, f := range r.Calls {
		if f.Scenario == scenario && f.System == system {
			list = append(list, f)
		}
	}
	return list
}

// perRound picks one number of each figure.
func perRound(figures []figure, pick func(*figure) float64) map[int]float64 {
	values := make(map[int]float64, len(figures))
	for i := range figures {
		values[figures[i].Round] = pick(&figures[i])
	}
	return values
}

// median over the rounds of one number of the figures.
func median(figures []figure, pick func(*figure) float64) float64 {
	values := make([]float64, len(figures))
	for i := range figures {
		values[i] = pick(&figures[i])
	}
	return spreadOf(values).Median
}

// ratio compares two systems in the rounds in which both ran.
func (r *results) ratio(scenario, system, baseline string, pick func(*figure) float64) spread {
	return spreadOf(ratios(perRound(r.of(scenario, system), pick), perRound(r.of(scenario, baseline), pick)))
}

// What is picked from figures.
func pickRate(f *figure) float64         { return f.Rate }
func pickCallsPerCPU(f *figure) float64  { return 1 / max(f.cpu(), 1e-9) }
func pickClientCPU(f *figure) float64    { return f.ClientCPU }
func pickServerCPU(f *figure) float64    { return f.ServerCPU }
func pickClientAllocs(f *figure) float64 { return f.ClientAllocs }
func pickServerAllocs(f *figure) float64 { return f.ServerAllocs }
func pickP999(f *figure) float64         { return f.Groups[0].P999 }

// pickGroup picks from the group of that name.
func pickGroup(name string, pick func(*groupFigure) float64) func(*figure) float64 {
	return func(f *figure) float64 {
		i := slices.IndexFunc(f.Groups, func(g groupFigure) bool { return g.Name == name })
		if i < 0 {
			return 0
		}
		return pick(&f.Groups[i])
	}
}

func groupP50(g *groupFigure) float64  { return g.P50 }
func groupP99(g *groupFigure) float64  { return g.P99 }
func groupP999(g *groupFigure) float64 { return g.P999 }
func groupRate(g *groupFigure) float64 { return g.Rate }

// writeTables writes everything for people, as markdown.
func (r *results) writeTables(out io.Writer, scenarioNames []string) {
	fmt.Fprintf(out, "Machine: %s\n\n%s; medians, ratios are of one round each: median (min..max).\n", r.Machine, r.Settings)
	for _, name := range scenarioNames {
		switch name {
		case idleName:
			r.writeIdleTable(out)
		case fanOutName:
			r.writeFanOutTable(out)
		case burnScenario.name:
			r.writeBurnTable(out)
		default:
			r.writeCallTable(out, scenarioByName(name))
		}
	}
	if len(r.Failures) > 0 {
		fmt.Fprintf(out, "\n### Figures that could not be taken\n\n")
		for _, text := range r.Failures {
			fmt.Fprintln(out, "-", text)
		}
	}
}

// writeCallTable: ratios of systems with JSON are to arpc with JSON.
func (r *results) writeCallTable(out io.Writer, sc *scenario) {
	fmt.Fprintf(out, "\n### %s: %s\n\n", sc.name, sc.about)
	fmt.Fprintln(out, "| system | calls/s | calls/s × arpc | calls per CPU second × arpc | CPU µs per call, client+server | p50 / p99 / p99.9 µs | allocations per call, client/server | wrong |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|---|")
	for _, sys := range systems {
		figures := r.of(sc.name, sys.name)
		if len(figures) == 0 {
			continue
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s | %.2f+%.2f | %.0f / %.0f / %.0f | %.1f/%.1f | %d |\n",
			sys.label(), rateText(median(figures, pickRate)),
			r.ratioText(sc, sys, pickRate), r.ratioText(sc, sys, pickCallsPerCPU),
			median(figures, pickClientCPU), median(figures, pickServerCPU),
			median(figures, pickGroup("all", groupP50)), median(figures, pickGroup("all", groupP99)), median(figures, pickGroup("all", groupP999)),
			median(figures, pickClientAllocs), median(figures, pickServerAllocs),
			wrongIn(figures))
	}
}

func (sys *system) label() string {
	if sys.json {
		return sys.name + " (× arpc-json)"
	}
	return sys.name
}

func (r *results) ratioText(sc *scenario, sys *system, pick func(*figure) float64) string {
	if sys.name == sys.baseline {
		return "1"
	}
	return r.ratio(sc.name, sys.name, sys.baseline, pick).format()
}

func wrongIn(figures []figure) uint64 {
	n := uint64(0)
	for i := range figures {
		n += figures[i].wrong()
	}
	return n
}

func (r *results) writeBurnTable(out io.Writer) {
	fmt.Fprintf(out, "\n### %s: %s\n\n", burnScenario.name, burnScenario.about)
	fmt.Fprintln(out, "| system | calls | calls/s | p50 / p99 / p99.9 ms | p99 × arpc | wrong |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|")
	for _, sys := range systems {
		figures := r.of(burnScenario.name, sys.name)
		if len(figures) == 0 {
			continue
		}
		for _, g := range burnScenario.groups {
			ratio := "1"
			if sys.name != sys.baseline {
				ratio = r.ratio(burnScenario.name, sys.name, sys.baseline, pickGroup(g.name, groupP99)).format()
			}
			fmt.Fprintf(out, "| %s | %s | %s | %.2f / %.2f / %.2f | %s | %d |\n", sys.name, g.name,
				rateText(median(figures, pickGroup(g.name, groupRate))),
				median(figures, pickGroup(g.name, groupP50))/1e3,
				median(figures, pickGroup(g.name, groupP99))/1e3,
				median(figures, pickGroup(g.name, groupP999))/1e3,
				ratio, wrongIn(figures))
		}
	}
}

// idleOf returns the figures of one system with one number of connections.
func (r *results) idleOf(system string, conns int) []idleFigure {
	var list []idleFigure
	for _, f := range r.Idle {
		if f.System == system && f.Conns == conns {
			list = append(list, f)
		}
	}
	return list
}

func idleMedian(figures []idleFigure, pick func(*idleFigure) float64) float64 {
	values := make([]float64, len(figures))
	for i := range figures {
		values[i] = pick(&figures[i])
	}
	return spreadOf(values).Median
}

func (r *results) writeIdleTable(out io.Writer) {
	fmt.Fprintf(out, "\n### %s: %s\n\n", idleName, idleAbout)
	fmt.Fprintln(out, "| server | connections | held | RSS MiB before → after → after GC | KiB RSS per connection | after GC | live heap B | stack B | accept and call, CPU µs |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|---|---|")
	var sizes []int
	for _, f := range r.Idle {
		if !slices.Contains(sizes, f.Conns) {
			sizes = append(sizes, f.Conns)
		}
	}
	for _, conns := range sizes {
		for _, sys := range idleSystems {
			figures := r.idleOf(sys.name, conns)
			if len(figures) == 0 {
				continue
			}
			of := func(pick func(*idleFigure) float64) float64 { return idleMedian(figures, pick) }
			fmt.Fprintf(out, "| %s | %d | %.0f | %.1f → %.1f → %.1f | %.2f | %.2f | %.0f | %.0f | %.1f |\n",
				sys.name, conns, of(func(f *idleFigure) float64 { return float64(f.Held) }),
				of(func(f *idleFigure) float64 { return float64(f.Before) / (1 << 20) }),
				of(func(f *idleFigure) float64 { return float64(f.Natural) / (1 << 20) }),
				of(func(f *idleFigure) float64 { return float64(f.Collected) / (1 << 20) }),
				of(func(f *idleFigure) float64 { return f.PerConn / 1024 }),
				of(func(f *idleFigure) float64 { return f.PerConnGC / 1024 }),
				of(func(f *idleFigure) float64 { return f.HeapPerConn }),
				of(func(f *idleFigure) float64 { return f.StackPer }),
				of(func(f *idleFigure) float64 { return f.CPUPerConn }))
		}
	}
}

// rateText writes 126k for 126,000.
func rateText(rate float64) string {
	switch {
	case rate >= 9.95e6:
		return fmt.Sprintf("%.1fM", rate/1e6)
	case rate >= 1e6:
		return fmt.Sprintf("%.2fM", rate/1e6)
	case rate >= 1e4:
		return fmt.Sprintf("%.0fk", rate/1e3)
	case rate >= 1e3:
		return fmt.Sprintf("%.1fk", rate/1e3)
	default:
		return fmt.Sprintf("%.0f", rate)
	}
}
