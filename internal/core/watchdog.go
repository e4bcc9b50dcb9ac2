package core

import (
	"sync"
	"time"
)

// The watchdog looks after connections that have run handlers lately: once per watchTick it exposes a stretch of
// handlers that lasts longer than a tick or two, so that nothing waits behind a handler that blocks. It is one goroutine
// per process, and ends when no connection needs it.
const (
	watchTick = 2 * time.Millisecond
	// watchIdle is the number of ticks after which a quiet connection is no longer watched.
	watchIdle = 10
	// watchStuck is the number of ticks without progress after which a paused connection reads on.
	watchStuck = 10
)

type watched struct {
	c        *Conn
	stretch  uint32
	same     int
	idle     int
	progress uint16
	stuck    int
}

var watchdog struct {
	sync.Mutex
	conns   []*watched
	running bool
}

// watchLocked makes the watchdog look after the connection.
func (c *Conn) watchLocked() {
	if c.has(flagWatched) {
		return
	}
	c.flags |= flagWatched
	watchdog.Lock()
	watchdog.conns = append(watchdog.conns, &watched{c: c})
	if !watchdog.running {
		watchdog.running = true
		go watch()
	}
	watchdog.Unlock()
}

func watch() {
	ticker := time.NewTicker(watchTick)
	defer ticker.Stop()
	var conns []*watched
	for range ticker.C {
		watchdog.Lock()
		if len(watchdog.conns) == 0 {
			watchdog.running = false
			watchdog.conns = nil
			watchdog.Unlock()
			return
		}
		conns = append(conns[:0], watchdog.conns...)
		watchdog.Unlock()
		gone := false
		for _, w := range conns {
			if !w.look() {
				w.c = nil
				gone = true
			}
		}
		if !gone {
			continue
		}
		watchdog.Lock()
		kept := watchdog.conns[:0]
		for _, w := range watchdog.conns {
			if w.c != nil {
				kept = append(kept, w)
			}
		}
		clear(watchdog.conns[len(kept):])
		watchdog.conns = kept
		watchdog.Unlock()
	}
}

// look is one tick for one connection. It reports whether the connection is still to be watched.
func (w *watched) look() bool {
	c := w.c
	stretch := c.stretch.Load()
	if stretch != w.stretch {
		w.stretch, w.same, w.idle = stretch, 0, 0
	} else {
		w.same++
	}
	c.mu.Lock()
	if stretch&1 == 1 {
		w.idle = 0
		if w.same == 1 && c.stretch.Load() == stretch { // a tick has passed in it
			c.flags &^= flagDefer
			c.HandOver()
			c.flushUnlock(false)
			c.mu.Lock()
		}
	}
	if c.look().deferring > 0 && c.pending > 0 && !c.has(flagFlushing) {
		w.idle = 0
		c.flushUnlock(false)
		c.mu.Lock()
	}
	if c.has(flagPaused) && !c.has(flagDetach) && (c.Calls > 0 || c.look().waitRoom > 0 || len(c.look().away) > 0) {
		w.idle = 0
		if c.progress != w.progress {
			w.progress, w.stuck = c.progress, 0
		} else if w.stuck++; w.stuck >= watchStuck {
			w.stuck = 0
			c.flags |= flagForced
			c.resumeLocked()
		}
	}
	w.idle++
	if w.idle <= watchIdle || (c.has(flagPaused) || c.look().deferring > 0) && !c.has(flagFinished) {
		c.mu.Unlock()
		return true
	}
	c.flags &^= flagWatched
	c.mu.Unlock()
	return false
}
