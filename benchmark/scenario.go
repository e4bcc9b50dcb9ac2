package main

import "slices"

// A scenario is a pattern of load: connections and callers, who call what.
type scenario struct {
	name   string
	about  string
	size   int     // payload bytes of a request and of its answer
	async  bool    // callers issue the next call from the callback of the last
	routes bool    // calls more than the echo route
	sample uint64  // every n-th call of a caller is timed
	groups []group // who calls
}

// A group is a set of equal callers. All connections of a scenario are
// numbered; groups may share them.
type group struct {
	name    string
	route   string
	first   int // number of the first connection
	conns   int
	callers int // per connection, each with one call in flight
}

// Routes that every system with routes registers. The others only echo.
const (
	routeEcho   = "/echo"   // the default way to run a handler
	routeInline = "/inline" // a handler on the I/O goroutine, where there is such a way
	routeAsync  = "/async"  // a handler beside the others of its connection
	routeBurn   = "/burn"   // the default way; takes burnTime of a core
)

// scenarios in the order in which they are reported.
//
// Timing every call would cost the fastest of them several percent, so there
// only every fourth or eighth call of each caller is timed.
var scenarios = []*scenario{
	echoScenario("S1", "8 connections x 10 callers, 64 B", 8, 10, 64, 4),
	echoScenario("S2", "1 connection x 1 caller, 64 B", 1, 1, 64, 1),
	echoScenario("S3", "1 connection x 100 callers, 64 B", 1, 100, 64, 4),
	echoScenario("S4", "8 connections x 10 callers, 1 KiB", 8, 10, 1024, 4),
	echoScenario("S5", "1000 connections x 1 caller, 64 B", 1000, 1, 64, 1),
	asyncScenario("S6", "8 connections x 125 asynchronous calls in flight, 64 B", 8, 125, 64, 8),
	burnScenario,
}

func echoScenario(name, about string, conns, callers, size int, sample uint64) *scenario {
	return &scenario{
		name: name, about: about, size: size, sample: sample,
		groups: []group{{name: "all", route: routeEcho, conns: conns, callers: callers}},
	}
}

func asyncScenario(name, about string, conns, callers, size int, sample uint64) *scenario {
	sc := echoScenario(name, about, conns, callers, size, sample)
	sc.async = true
	return sc
}

func scenarioByName(name string) *scenario {
	i := slices.IndexFunc(scenarios, func(sc *scenario) bool { return sc.name == name })
	if i < 0 {
		return nil
	}
	return scenarios[i]
}

// connections is how many connections the client opens.
func (sc *scenario) connections() int {
	n := 0
	for _, g := range sc.groups {
		n = max(n, g.first+g.conns)
	}
	return n
}
