package arpc

import "sync/atomic"

const (
	// slowAfter is the time, in nanoseconds, above which running a handler costs more than moving it to another goroutine.
	slowAfter = 50_000
	// slowRuns is how many measured runs in a row make a route slow, fastRuns how many make it fast again: one alone may
	// have met the garbage collector.
	slowRuns, fastRuns = 2, 16
	// sampleEvery is how many runs of a fast route pass for one that is measured.
	sampleEvery = 4
)

// cost learns whether a route is slow.
//
//	fast --2 slow runs in a row--> slow --16 fast runs in a row--> fast
type cost struct {
	slow  atomic.Bool
	row   atomic.Int32 // runs in a row that speak for the other state
	count atomic.Uint32
}

func (c *cost) isSlow() bool { return c.slow.Load() }

// sample reports whether the next run is to be measured.
func (c *cost) sample() bool {
	return c.slow.Load() || c.row.Load() > 0 || c.count.Add(1)%sampleEvery == 0
}

// took learns from a run of that many nanoseconds, of which more than limit are slow.
func (c *cost) took(ns, limit int64) {
	slow := c.slow.Load()
	if (ns > limit) == slow {
		if c.row.Load() != 0 {
			c.row.Store(0)
		}
		return
	}
	rows := int32(slowRuns)
	if slow {
		rows = fastRuns
	}
	if c.row.Add(1) >= rows {
		c.row.Store(0)
		c.slow.Store(!slow)
	}
}
