// Package work runs short tasks on reused goroutines.
//
// # Concurrency
//
// Go may be called from any goroutine. Tasks run in parallel and in no order; a task may block for as long as
// it likes, because another goroutine is started when none is idle. The number of running tasks is therefore the
// caller's to limit.
//
// # Limits
//
// At most MaxIdle goroutines wait for work. They live only while somebody holds the package open (Acquire), so
// that a program that has stopped its servers and clients has no goroutine left.
package work

import "sync"

// MaxIdle is the number of goroutines that are kept waiting for work.
const MaxIdle = 128

// A Task is run once, on a goroutine of this package. It must not panic: whoever submits it recovers.
type Task interface{ RunTask() }

type worker struct {
	task chan Task
	next *worker
}

var pool struct {
	sync.Mutex
	idle  *worker // last in, first out: the warmest stack and cache first
	nidle int
	users int
}

// Acquire keeps idle goroutines alive until Release.
func Acquire() {
	pool.Lock()
	pool.users++
	pool.Unlock()
}

// Release undoes one Acquire; after the last one the idle goroutines end.
func Release() {
	pool.Lock()
	pool.users--
	if pool.users < 0 {
		pool.Unlock()
		panic("work: Release without Acquire")
	}
	var idle *worker
	if pool.users == 0 {
		idle, pool.idle, pool.nidle = pool.idle, nil, 0
	}
	pool.Unlock()
	for w := idle; w != nil; w = w.next {
		close(w.task)
	}
}

// Go runs t on an idle goroutine, or on a new one when none is idle. It never waits.
func Go(t Task) {
	pool.Lock()
	w := pool.idle
	if w == nil {
		pool.Unlock()
		go run(t)
		return
	}
	pool.idle = w.next
	pool.nidle--
	pool.Unlock()
	w.task <- t // never waits: an idle worker's channel is empty and has room for one
}

func run(t Task) {
	w := &worker{task: make(chan Task, 1)}
	for {
		t.RunTask()
		pool.Lock()
		if pool.users == 0 || pool.nidle >= MaxIdle {
			pool.Unlock()
			return
		}
		w.next = pool.idle
		pool.idle = w
		pool.nidle++
		pool.Unlock()
		var ok bool
		if t, ok = <-w.task; !ok {
			return
		}
	}
}
