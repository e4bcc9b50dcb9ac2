package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A load is a running scenario on the client's side.
//
//	start -> warm-up -> measuring -> not measuring -> stopping -> ended
//
// Callers run from start to stopping; measuring only decides whether their
// latencies are recorded. Every answer of the whole time is compared.
type load struct {
	sc        *scenario
	groups    []*groupLoad
	measuring atomic.Bool
	stopping  atomic.Bool
	lanes     sync.WaitGroup // lanes that still have a call in flight, or will make one
	alive     atomic.Int64   // how many those are

	firstError atomic.Pointer[string]
}

// groupLoad is the part of a load that one group makes.
type groupLoad struct {
	group
	lanes  []lane // in order of connections, callers of one connection together
	shards [8]histogram
}

// A lane has one call in flight at a time: a caller's goroutine, a chain of
// asynchronous calls, or a place in a window. Only one goroutine at a time
// touches it, except for the counters.
type lane struct {
	id         uint64
	latencies  *histogram
	right      atomic.Uint64 // calls answered with their own payload
	mismatches atomic.Uint64 // calls answered with something else
	errors     atomic.Uint64 // calls that failed
	_          [64]byte      // the next lane's counters are on other cache lines
}

// maxLaneErrors ends a lane whose calls keep failing.
const maxLaneErrors = 10

// startLoad opens the scenario's connections and sets its callers to work.
func startLoad(sys *system, sc *scenario, addr string) (*load, error) {
	conns := make([]any, sc.connections())
	for i := range conns {
		conn, err := sys.dial(addr)
		if err != nil {
			return nil, fmt.Errorf("connection %d of %d: %w", i+1, len(conns), err)
		}
		conns[i] = conn
	}
	l := &load{sc: sc}
	id := uint64(0)
	for _, g := range sc.groups {
		gl := &groupLoad{group: g, lanes: make([]lane, g.conns*g.callers)}
		for i := range gl.lanes {
			id++
			gl.lanes[i].id = id
			gl.lanes[i].latencies = &gl.shards[i%len(gl.shards)]
		}
		l.groups = append(l.groups, gl)
	}
	l.lanes.Add(int(id))
	l.alive.Add(int64(id))
	for _, g := range l.groups {
		for i := range g.conns {
			if err := l.startConn(conns[g.first+i], g, g.lanes[i*g.callers:][:g.callers]); err != nil {
				return nil, err
			}
		}
	}
	return l, nil
}

// startConn starts the lanes of one connection.
func (l *load) startConn(conn any, g *groupLoad, lanes []lane) error {
	switch c := conn.(type) {
	case windowCaller:
		go c.runWindow(l, g, lanes)
		return nil
	case noteCaller:
		for i := range lanes {
			go l.runNotes(g, &lanes[i], c)
		}
		return nil
	}
	if l.sc.async {
		c, ok := conn.(asyncCaller)
		if !ok {
			return fmt.Errorf("%T has no asynchronous calls", conn)
		}
		for i := range lanes {
			l.runAsync(g, &lanes[i], c)
		}
		return nil
	}
	c, ok := conn.(caller)
	if !ok {
		return fmt.Errorf("%T cannot call", conn)
	}
	for i := range lanes {
		go l.runCalls(g, &lanes[i], c)
	}
	return nil
}

func (l *load) runCalls(g *groupLoad, ln *lane, c caller) {
	defer l.endLane()
	req := newPayload(l.sc.size, ln.id)
	var rsp []byte
	for n := uint64(1); !l.stopping.Load(); n++ {
		stampPayload(req, ln.id, n)
		rsp = nil
		begin := l.begin(n)
		err := c.call(g.route, req, &rsp)
		l.end(ln, begin)
		if !l.judge(ln, err, bytes.Equal(req, rsp)) {
			return
		}
	}
}

func (l *load) runNotes(g *groupLoad, ln *lane, c noteCaller) {
	defer l.endLane()
	req := note{
		From: fmt.Sprintf("caller %d", ln.id),
		Text: strings.Repeat("x", max(l.sc.size-40, 8)),
	}
	var rsp note
	for n := uint64(1); !l.stopping.Load(); n++ {
		req.ID = number(ln.id, n)
		rsp = note{}
		begin := l.begin(n)
		err := c.callNote(g.route, &req, &rsp)
		l.end(ln, begin)
		if !l.judge(ln, err, req == rsp) {
			return
		}
	}
}

// runAsync issues the first call of a lane; each callback issues the next.
func (l *load) runAsync(g *groupLoad, ln *lane, c asyncCaller) {
	var (
		req   = newPayload(l.sc.size, ln.id)
		n     uint64
		begin time.Time
		issue func([]byte) error
		ended atomic.Bool
	)
	finish := func() {
		if ended.CompareAndSwap(false, true) {
			l.endLane()
		}
	}
	next := func() {
		if l.stopping.Load() {
			finish()
			return
		}
		n++
		stampPayload(req, ln.id, n)
		begin = l.begin(n)
		if err := issue(req); err != nil {
			// Whether a callback follows is not known here, so the lane ends.
			l.judge(ln, err, false)
			finish()
		}
	}
	issue = c.newAsync(g.route, func(rsp []byte, err error) {
		l.end(ln, begin)
		if ended.Load() {
			return
		}
		if !l.judge(ln, err, bytes.Equal(req, rsp)) {
			finish()
			return
		}
		next()
	})
	next()
}

// begin returns the time if the n-th call of a lane is to be timed, otherwise
// the zero time.
func (l *load) begin(n uint64) time.Time {
	if n%l.sc.sample != 0 || !l.measuring.Load() {
		return time.Time{}
	}
	return time.Now()
}

// end records how long a call took, if begin has timed it and the window is
// still open.
func (l *load) end(ln *lane, begin time.Time) {
	if !begin.IsZero() && l.measuring.Load() {
		ln.latencies.add(time.Since(begin))
	}
}

// judge counts a finished call. It returns false if the lane should end.
func (l *load) judge(ln *lane, err error, equal bool) bool {
	switch {
	case err != nil:
		text := err.Error()
		l.firstError.CompareAndSwap(nil, &text)
		return ln.errors.Add(1) < maxLaneErrors
	case !equal:
		return ln.mismatches.Add(1) < maxLaneErrors
	default:
		ln.right.Add(1)
		return true
	}
}

// endLane is called once by every lane, when it has no call in flight and will
// make none.
func (l *load) endLane() {
	l.alive.Add(-1)
	l.lanes.Done()
}

// answered returns the calls of each group that were answered rightly so far.
func (l *load) answered() []uint64 {
	counts := make([]uint64, len(l.groups))
	for i, g := range l.groups {
		for j := range g.lanes {
			counts[i] += g.lanes[j].right.Load()
		}
	}
	return counts
}

// loadResult is what a load found out, besides what the marks tell.
type loadResult struct {
	Latencies  []latency `json:"latencies"` // of each group
	Mismatches uint64    `json:"mismatches"`
	Errors     uint64    `json:"errors"`
	Lost       uint64    `json:"lost"` // lanes whose last call did not end in callTimeout
	FirstError string    `json:"first_error,omitempty"`
}

// stop ends the load, once the calls in flight have ended, or should have.
func (l *load) stop() *loadResult {
	l.stopping.Store(true)
	ended := make(chan struct{})
	go func() {
		l.lanes.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(callTimeout + time.Second):
	}
	res := &loadResult{Lost: uint64(l.alive.Load())}
	for _, g := range l.groups {
		var all distribution
		for i := range g.shards {
			all.merge(&g.shards[i])
		}
		res.Latencies = append(res.Latencies, all.summary())
		for i := range g.lanes {
			res.Mismatches += g.lanes[i].mismatches.Load()
			res.Errors += g.lanes[i].errors.Load()
		}
	}
	if text := l.firstError.Load(); text != nil {
		res.FirstError = *text
	}
	return res
}

// number is unique among the calls of a load.
func number(lane, n uint64) uint64 { return lane<<40 | n }

// newPayload returns a payload whose middle depends on the lane.
func newPayload(size int, lane uint64) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(lane*31 + uint64(i))
	}
	return p
}

// stampPayload writes the call's number at both ends of a payload, so that one
// made of parts of two others is noticed. A payload has at least 16 bytes.
func stampPayload(p []byte, lane, n uint64) {
	binary.LittleEndian.PutUint64(p, number(lane, n))
	binary.LittleEndian.PutUint64(p[len(p)-8:], number(lane, n))
}
