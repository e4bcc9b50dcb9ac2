package main

import (
	"bytes"
	"strings"
	"testing"
)

// passing returns figures that just meet every bar in three rounds, in a
// machine that gets twice as fast from round to round.
func passing() *results {
	r := &results{}
	speed := 100.0
	for round := 1; round <= 3; round++ {
		add := func(scenario, system string, rate, p999 float64) {
			r.Calls = append(r.Calls, figure{
				Round: round, Scenario: scenario, System: system, Rate: rate,
				ClientAllocs: 4, ServerAllocs: 4,
				Groups: []groupFigure{{Name: "all", latency: latency{P999: p999}}},
			})
		}
		for _, name := range []string{"S1", "S2", "S3", "S4", "S5", "S6"} {
			add(name, "arpc", speed, 50)
		}
		add("S1", "arpc-json", speed/2, 50)
		for _, b := range rateBars {
			add(b.scenario, b.system, r.find(round, b.scenario, b.baseline).Rate*b.least, 50)
		}
		for _, system := range []string{"arpc-go", "arpc"} {
			fig := figure{Round: round, Scenario: burnScenario.name, System: system}
			for _, g := range burnScenario.groups {
				fig.Groups = append(fig.Groups, groupFigure{Name: g.name, latency: latency{P99: 5000}})
			}
			r.Calls = append(r.Calls, fig)
		}
		r.Idle = append(r.Idle,
			idleFigure{Round: round, System: defaultName, Conns: idleBarConns, Before: 1e6, Natural: 13e6},
			idleFigure{Round: round, System: wsName, Conns: idleBarConns, Before: 1e6, Natural: 21e6},
			idleFigure{Round: round, System: pollName, Conns: idleBarConns, PerConn: 1024},
			idleFigure{Round: round, System: defaultName, Conns: idleLimitConns, Held: idleLimitConns},
		)
		for _, conns := range []int{1000, 10_000} {
			for _, flight := range fanOutFlights {
				for _, sys := range fanOutSystems {
					cpu := map[string]float64{fanOutNATS: 10, fanOutGWS: 10}[sys.name]
					if cpu == 0 {
						cpu = 1.5
					}
					r.FanOut = append(r.FanOut, fanOutFigure{
						Round: round, System: sys.name, Conns: conns, Flight: flight, ServerCPU: cpu, Before: 1e6, RSS: 31e6,
					})
				}
			}
		}
		speed *= 2
	}
	return r
}

func TestCheckBars(t *testing.T) {
	var out bytes.Buffer
	if !writeBars(&out, checkBars(passing())) || strings.Contains(out.String(), "FAIL") {
		t.Errorf("figures that meet all bars failed:\n%s", out.String())
	}
	every := len(checkBars(passing()))
	for _, b := range checkBars(&results{}) {
		if b.OK {
			t.Errorf("passed without a figure: %s", b.Name)
		}
	}
	for _, test := range []struct {
		name   string
		missed int
		spoil  func(r *results)
	}{
		{"one slow round of three is forgiven", 0, func(r *results) { r.find(2, "S3", "arpc-go").Rate = 1 }},
		{"two are not", 1, func(r *results) { r.find(1, "S3", "arpc-go").Rate = 1; r.find(3, "S3", "arpc-go").Rate = 1 }},
		{"one mismatch", 1, func(r *results) { r.find(3, "S2", "arpc").Mismatches = 1 }},
		{"one error", 1, func(r *results) { r.find(1, "S2", "arpc-go").Errors = 1 }},
		{"one lost call", 1, func(r *results) { r.find(1, "burn", "arpc-go").Lost = 1 }},
		{"allocations", 2, func(r *results) {
			for round := range 3 {
				f := r.find(round+1, "S1", "arpc-go")
				f.ClientAllocs, f.ServerAllocs = 5, 4.2
			}
		}},
		{"tail", 1, func(r *results) {
			for round := range 3 {
				r.find(round+1, "S1", "arpc-go").Groups[0].P999 = 51
			}
		}},
		{"burn, absolutely and against arpc", 2, func(r *results) {
			for round := range 3 {
				r.find(round+1, "burn", "arpc-go").Groups[1].P99 = 5100
			}
		}},
		{"a figure that could not be taken", 1, func(r *results) { r.Failures = []string{"no"} }},
		{"fan-out", 3, func(r *results) {
			for i := range r.FanOut {
				if f := &r.FanOut[i]; f.System == fanOutPubSub {
					f.ServerCPU, f.RSS = 1.6, 32e6
				}
			}
			r.FanOut[0].Wrong = 1
		}},
		{"memory", 4, func(r *results) {
			for i := range r.Idle {
				r.Idle[i].Natural++
				r.Idle[i].PerConn++
				r.Idle[i].Held--
			}
		}},
	} {
		r := passing()
		test.spoil(r)
		bars := checkBars(r)
		missed := 0
		for _, b := range bars {
			if !b.OK {
				missed++
			}
		}
		if missed != test.missed || len(bars) != every {
			t.Errorf("%s: %d bars missed, want %d of %d", test.name, missed, test.missed, every)
		}
	}
}

// find returns a figure to spoil.
func (r *results) find(round int, scenario, system string) *figure {
	for i := range r.Calls {
		f := &r.Calls[i]
		if f.Round == round && f.Scenario == scenario && f.System == system {
			return f
		}
	}
	panic("no such figure")
}
