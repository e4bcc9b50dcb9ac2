package arpc

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/internal/work"
)

const (
	// asyncGroupSize is how many async requests of one read run after one another at most.
	asyncGroupSize = 16
	// asyncPatience is how long the others of a group wait for a handler that was quick so far.
	asyncPatience = time.Millisecond
	// asyncSlow is the time, in nanoseconds, above which a handler gets a goroutine of its own.
	asyncSlow = 10_000
)

// asyncGroup runs async requests that arrived together: those of routes that are quick on one goroutine, as waking one for each would
// cost more than they do, and their answers are written together. Others, and those behind one that turns out to block, run on
// goroutines of their own.
type asyncGroup struct {
	link *link
	list []*Context
	next atomic.Int32 // who raises it has the one before
	owes atomic.Bool  // EndDefer is owed
}

var asyncGroups = sync.Pool{New: func() any { return &asyncGroup{list: make([]*Context, 0, asyncGroupSize)} }}

// add takes a request. The group is full when it returns true.
func (g *asyncGroup) add(ctx *Context) bool {
	g.list = append(g.list, ctx)
	return len(g.list) == asyncGroupSize
}

// start runs the group, which its caller must not use any more.
func (g *asyncGroup) start() {
	if len(g.list) == 1 {
		work.Go((*asyncRequest)(g.list[0]))
		g.recycle()
		return
	}
	for _, ctx := range g.list {
		ctx.grouped = true
	}
	work.Go(g)
}

func (g *asyncGroup) recycle() {
	clear(g.list)
	g.link, g.list = nil, g.list[:0]
	g.next.Store(0)
	asyncGroups.Put(g)
}

// take returns the next request, nil if there is none.
func (g *asyncGroup) take() *Context {
	if i := int(g.next.Add(1)) - 1; i < len(g.list) {
		return g.list[i]
	}
	return nil
}

// alone runs a request on a goroutine of its own.
func alone(ctx *Context) {
	ctx.grouped = false
	work.Go((*asyncRequest)(ctx))
}

// RunTask implements work.Task.
func (g *asyncGroup) RunTask() {
	g.owes.Store(true)
	g.link.cn.Defer()
	timer := time.AfterFunc(asyncPatience, g.blocked)
	for ctx := g.take(); ctx != nil; ctx = g.take() {
		if ctx.route.cost.isSlow() {
			alone(ctx)
		} else {
			(*asyncRequest)(ctx).RunTask()
		}
	}
	g.endDefer()
	if timer.Stop() {
		g.recycle()
	}
}

// blocked lets go on what waits behind a handler.
func (g *asyncGroup) blocked() {
	for ctx := g.take(); ctx != nil; ctx = g.take() {
		alone(ctx)
	}
	g.endDefer()
}

func (g *asyncGroup) endDefer() {
	if g.owes.CompareAndSwap(true, false) {
		g.link.cn.EndDefer()
	}
}
