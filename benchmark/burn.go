package main

import (
	"sync/atomic"
	"time"
)

// The burn scenario shows what a handler that computes for long does to
// everybody else: to calls on other connections, and to calls of routes on the
// same connection that need not wait for it.

// burnTime is how long one core works for a call of routeBurn.
const burnTime = 10 * time.Millisecond

// Groups of burnScenario, as its table and its bars name them.
const (
	burnOthers = "other connections"
	burnInline = "same connection, Inline"
	burnAsync  = "same connection, Async"
	burnSelf   = "burning calls"
)

var burnScenario = &scenario{
	name:   "burn",
	about:  "4 connections x 5 fast callers; on a fifth, 1 caller of a handler that burns 10 ms, 4 of an Inline and 2 of an Async route",
	size:   64,
	routes: true,
	sample: 1,
	groups: []group{
		{name: burnOthers, route: routeEcho, first: 0, conns: 4, callers: 5},
		{name: burnInline, route: routeInline, first: 4, conns: 1, callers: 4},
		{name: burnAsync, route: routeAsync, first: 4, conns: 1, callers: 2},
		{name: burnSelf, route: routeBurn, first: 4, conns: 1, callers: 1},
	},
}

// spinsPerBurn is the amount of work that takes burnTime on a core of its own.
// Work, not a clock: a handler that watched the clock would do less when it
// has to share the core, and every system would look equally good.
var spinsPerBurn atomic.Uint64

// calibrateBurn measures the core's speed. It takes the fastest of a few
// attempts, since neighbours only ever make it slower.
func calibrateBurn() {
	const attempt = 2_000_000
	best := time.Duration(1 << 62)
	for range 8 {
		start := time.Now()
		spin(attempt)
		best = min(best, time.Since(start))
	}
	spinsPerBurn.Store(uint64(float64(attempt) * float64(burnTime) / float64(best)))
}

// burn works for burnTime.
func burn() { spin(spinsPerBurn.Load()) }

var spinResult atomic.Uint64

func spin(n uint64) {
	x := uint64(88172645463325252)
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	spinResult.Store(x)
}
