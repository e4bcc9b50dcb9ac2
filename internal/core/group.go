package core

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/internal/poller"
	"github.com/arpc-go/arpc/internal/work"
)

// ErrStopped is returned by Serve and Adopt after Stop, and ends the connections that Stop closes.
var ErrStopped = errors.New("stopped")

// stopLimit bounds what Stop waits for beyond its context.
const stopLimit = 5 * time.Second

// WrapReader returns the reader to take a connection's input from, nil for the connection itself.
type WrapReader func(net.Conn) io.Reader

// Stats counts what has happened to the connections of a Group. The counters only grow.
type Stats struct {
	Accepted       atomic.Int64 // accepted, and given to App.Open
	AcceptErrors   atomic.Int64 // failures of accept(2), each followed by a pause
	RefusedLimit   atomic.Int64 // reset because of MaxConns or MaxConnsPerIP
	RefusedFiles   atomic.Int64 // reset because no descriptor was left
	OpenErrors     atomic.Int64 // refused by App.Open or a failed handshake
	ProtocolErrors atomic.Int64 // closed because of malformed input
	Silent         atomic.Int64 // closed because nothing came within the idle or partial limit
	Stalled        atomic.Int64 // closed because nothing was taken within the write-stall limit

	FramesIn, BytesIn   atomic.Int64 // received; bytes as a stage has unwrapped them
	FramesOut, BytesOut atomic.Int64 // taken by sockets, with what a stage adds
}

// A Group is a set of connections with one App.
type Group struct {
	// Stats may be read at any time.
	Stats Stats

	cfg      Config
	app      App
	messages atomic.Int64

	mu        sync.Mutex
	first     *Conn // doubly linked, in order of age
	last      *Conn
	n         int
	nstd      int
	nextID    uint64
	byID      map[uint64]*Conn // nil until Get is called
	nextLoop  int
	perLoop   []int // connections, if the balance depends on them
	perIP     map[string]int
	ips       map[*Conn]string // which address a connection counts for, if addresses are limited
	listeners map[net.Listener]struct{}
	serving   sync.WaitGroup
	polls     *polls
	noPolls   bool
	stopping  bool
	stop      chan struct{} // closed by Stop
	// handshakes is done when the group stops accepting: who is in a handshake has nothing to lose.
	handshakes     context.Context
	stopHandshakes context.CancelFunc
	empty          chan struct{} // closed when stopping and no connection is left
	stopped        chan struct{} // closed when Stop has done everything

	every    uint32 // ticks between sweeps
	logRates map[string]*logRate
}

// NewGroup returns a group that is ready to Serve and Adopt. Stop it when done.
func NewGroup(cfg Config, app App) *Group {
	cfg.setDefaults()
	g := &Group{
		cfg: cfg, app: app,
		perIP:     map[string]int{},
		ips:       map[*Conn]string{},
		listeners: map[net.Listener]struct{}{},
		stop:      make(chan struct{}),
		empty:     make(chan struct{}),
		stopped:   make(chan struct{}),
		logRates:  map[string]*logRate{},
	}
	g.handshakes, g.stopHandshakes = context.WithCancel(context.Background())
	g.messages.Store(int64(cfg.Messages))
	work.Acquire()
	sweeper.add(g)
	return g
}

// SetMessages changes Config.Messages.
func (g *Group) SetMessages(n int) { g.messages.Store(int64(n)) }

// Len returns the number of connections.
func (g *Group) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

// Get returns the connection with an id, nil if there is none any more. The first call makes an index of the connections, which is
// kept from then on.
func (g *Group) Get(id uint64) *Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byID == nil {
		g.byID = make(map[uint64]*Conn, g.n)
		for c := g.first; c != nil; c = c.next {
			g.byID[c.id] = c
		}
	}
	return g.byID[id]
}

// Each calls f for each connection that was there when Each was called, until f returns false. No lock is held meanwhile.
func (g *Group) Each(f func(*Conn) bool) {
	for _, c := range g.snapshot() {
		if !f(c) {
			return
		}
	}
}

func (g *Group) snapshot() []*Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	conns := make([]*Conn, 0, g.n)
	for c := g.first; c != nil; c = c.next {
		conns = append(conns, c)
	}
	return conns
}

// Adopt makes nc a connection of the group, served by the std adapter, and calls App.Open before it returns. nc belongs to
// the group, also after an error.
func (g *Group) Adopt(nc net.Conn) (*Conn, error) {
	nc, stage := unwrap(nc)
	c := &Conn{group: g, stage: stage, listener: -1}
	c.sock = newStdSocket(c, nc, g.wrapReader(nc))
	if err := g.insert(c, true, ""); err != nil {
		nc.Close() //nolint:errcheck // it was never used
		return nil, err
	}
	if !c.open() {
		return nil, fmt.Errorf("connection refused by its own side")
	}
	return c, nil
}

func (g *Group) wrapReader(nc net.Conn) io.Reader {
	if g.cfg.Wrap == nil {
		return nil
	}
	return g.cfg.Wrap(nc)
}

// errLimit refuses a connection.
var errLimit = errors.New("connection limit reached")

// insert puts a connection into the table.
func (g *Group) insert(c *Conn, std bool, ip string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopping {
		return ErrStopped
	}
	if ip != "" {
		if g.perIP[ip] >= g.cfg.MaxConnsPerIP {
			return errLimit
		}
		g.perIP[ip]++
		g.ips[c] = ip
	}
	g.nextID++
	c.id = g.nextID
	if g.byID != nil {
		g.byID[c.id] = c
	}
	c.loop = uint16(g.pickLoop())
	c.prev = g.last
	if g.last != nil {
		g.last.next = c
	} else {
		g.first = c
	}
	g.last = c
	g.n++
	if std {
		g.nstd++
	}
	return nil
}

// remove takes a connection out of the table.
func (g *Group) remove(c *Conn) {
	s := c.socket()
	std := s != nil && s.inline()
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		g.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		g.last = c.prev
	}
	c.prev, c.next = nil, nil
	delete(g.byID, c.id)
	if g.perLoop != nil {
		g.perLoop[c.loop]--
	}
	g.n--
	if std {
		g.nstd--
	}
	if ip, ok := g.ips[c]; ok {
		delete(g.ips, c)
		if g.perIP[ip]--; g.perIP[ip] == 0 {
			delete(g.perIP, ip)
		}
	}
	if g.stopping && g.n == 0 {
		close(g.empty)
	}
}

// pickLoop returns the event loop of the next connection. The caller holds mu.
func (g *Group) pickLoop() int {
	switch g.cfg.Balance {
	case Random:
		return rand.IntN(g.cfg.Loops)
	case Least:
		if g.perLoop == nil {
			g.perLoop = make([]int, g.cfg.Loops)
		}
		least := 0
		for i, n := range g.perLoop {
			if n < g.perLoop[least] {
				least = i
			}
		}
		g.perLoop[least]++
		return least
	}
	g.nextLoop = (g.nextLoop + 1) % g.cfg.Loops
	return g.nextLoop
}

// pollsFor returns the event loops, nil if there are none.
func (g *Group) pollsFor() *polls {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.noPolls || g.stopping || !poller.Supported || g.cfg.StdConns < 0 {
		return nil
	}
	if g.polls == nil {
		p, err := newPolls(g.cfg.Loops, g.cfg.Logf)
		if err != nil {
			g.noPolls = true
			g.cfg.Logf("arpc: no event loops, connections get a goroutine each: %v", err)
			return nil
		}
		g.polls = p
	}
	return g.polls
}

// takeStd reports whether one more connection may be served by the std adapter, and counts it.
func (g *Group) takeStd() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.nstd >= g.cfg.StdConns || g.stopping {
		return false
	}
	g.nstd++
	return true
}

// giveStd undoes takeStd.
func (g *Group) giveStd() {
	g.mu.Lock()
	g.nstd--
	g.mu.Unlock()
}

// StopAccepting closes the listeners and waits until Serve has returned, with ErrStopped, or ctx is done. Connections go
// on.
func (g *Group) StopAccepting(ctx context.Context) {
	g.mu.Lock()
	select {
	case <-g.stop:
	default:
		close(g.stop)
		g.stopHandshakes()
	}
	lns := g.listeners
	g.listeners = map[net.Listener]struct{}{}
	g.mu.Unlock()
	for ln := range lns {
		ln.Close() //nolint:errcheck // Serve returns
	}
	served := make(chan struct{})
	go func() {
		g.serving.Wait()
		close(served)
	}()
	select {
	case <-served:
	case <-ctx.Done():
	}
}

// Stop closes the listeners and then the connections with err (nil: ErrStopped), as Conn.Close does, and waits until
// all of that is over. When ctx is done first, what is left is aborted and Stop returns ctx's error, without waiting for
// handlers that are still running. Calling it again waits again.
func (g *Group) Stop(ctx context.Context, err error) error {
	if err == nil {
		err = ErrStopped
	}
	g.StopAccepting(ctx)
	g.mu.Lock()
	first := !g.stopping
	g.stopping = true
	if first && g.n == 0 {
		close(g.empty)
	}
	g.mu.Unlock()
	for _, c := range g.snapshot() {
		c.Close(err)
	}
	var result error
	select {
	case <-g.empty:
	case <-ctx.Done():
		select {
		case <-g.empty: // both: everything was done
		default:
			result = ctx.Err()
			for _, c := range g.snapshot() {
				c.mu.Lock()
				c.flags |= flagForceEnd
				c.finishLocked()
				c.mu.Unlock()
				c.Abort(err)
			}
			timer := time.NewTimer(stopLimit)
			select {
			case <-g.empty:
			case <-timer.C:
			}
			timer.Stop()
		}
	}
	if first {
		if g.polls != nil {
			if perr := g.polls.stop(); perr != nil && result == nil {
				result = perr
			}
		}
		sweeper.remove(g)
		work.Release()
		close(g.stopped)
	} else {
		<-g.stopped
	}
	return result
}

// Drain is Stop for who has time: it lets each connection finish what it is busy with (see Conn.Busy) before that is closed. When ctx is
// done it goes on as Stop does.
func (g *Group) Drain(ctx context.Context, err error) error {
	g.StopAccepting(ctx)
	g.CloseIdle(ctx, err, (*Conn).Busy)
	return g.Stop(ctx, err)
}

// idleTick is how often CloseIdle looks whether connections have become idle.
const idleTick = 5 * time.Millisecond

// CloseIdle closes each connection with err as soon as it is not busy, until none is or ctx is done.
func (g *Group) CloseIdle(ctx context.Context, err error, busy func(*Conn) bool) {
	ticker := time.NewTicker(idleTick)
	defer ticker.Stop()
	for wait := true; wait && ctx.Err() == nil; {
		wait = false
		g.Each(func(c *Conn) bool {
			if busy(c) {
				wait = true
			} else {
				c.Close(err)
			}
			return true
		})
		if wait {
			select {
			case <-ticker.C:
			case <-ctx.Done():
			}
		}
	}
}

// A logRate lets one line through per second and counts the others.
type logRate struct {
	last  time.Time
	count int
}

// logLimited logs a kind of event at most once per second.
func (g *Group) logLimited(kind, format string, args ...any) {
	g.mu.Lock()
	r := g.logRates[kind]
	if r == nil {
		r = &logRate{}
		g.logRates[kind] = r
	}
	r.count++
	now := time.Now()
	if now.Sub(r.last) < time.Second {
		g.mu.Unlock()
		return
	}
	n := r.count
	r.count, r.last = 0, now
	g.mu.Unlock()
	g.cfg.Logf("arpc: %s (%d times since the last such line)", fmt.Sprintf(format, args...), n)
}
