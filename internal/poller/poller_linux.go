package poller

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lesismal/nbio"
	"github.com/lesismal/nbio/logging"
	"golang.org/x/sys/unix"
)

// Supported tells whether New works on this system.
const Supported = true

// Poller is a set of loops. See the package comment for who may call what.
type Poller struct {
	loops []*Loop
	next  atomic.Uint32

	stopping sync.Once
	stopped  chan struct{} // closed when every loop has ended; stopErr is set before
	stopErr  error
}

// New starts a Poller with so many loops, or with GOMAXPROCS of them if loops is not positive. It returns when every loop
// runs. Warnings and errors of nbio go to logf, if it isn't nil; nbio's log is one for the whole process, so the newest
// Poller's logf gets all of them, and a program that gave nbio a logger of its own keeps that instead.
func New(loops int, logf func(format string, args ...any)) (*Poller, error) {
	if loops <= 0 {
		loops = runtime.GOMAXPROCS(0)
	}
	if logf != nil {
		nbioLogf.Store(&logf)
	}
	prepareNbio()
	p := &Poller{stopped: make(chan struct{})}
	for range loops {
		l, err := newLoop()
		if err != nil {
			return nil, errors.Join(err, p.Stop(10*time.Second))
		}
		p.loops = append(p.loops, l)
	}
	return p, nil
}

// Loops returns the number of loops.
func (p *Poller) Loops() int { return len(p.loops) }

// Loop returns the loop with index i, from 0 to Loops()-1.
func (p *Poller) Loop(i int) *Loop { return p.loops[i] }

// Next returns the loops in turn.
func (p *Poller) Next() *Loop { return p.loops[int(p.next.Add(1)-1)%len(p.loops)] }

// Stop ends each loop as soon as it has no tasks left, and releases all goroutines and descriptors of the Poller. Every
// descriptor should have been detached; Stop reports those that weren't, which get no more events but stay open. It
// waits at most limit and then returns an error, while the rest of the work goes on behind. Calling it again waits again. A
// task can't stop its own Poller: that waits until the limit.
func (p *Poller) Stop(limit time.Duration) error {
	p.stopping.Do(func() { go p.stop() })
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.stopped:
		return p.stopErr
	case <-timer.C:
		return fmt.Errorf("poller: not stopped within %v", limit)
	}
}

func (p *Poller) stop() {
	var wg sync.WaitGroup
	for _, l := range p.loops {
		wg.Go(l.stop)
	}
	wg.Wait()
	left := 0
	for _, l := range p.loops {
		left += l.left
	}
	if left > 0 {
		p.stopErr = fmt.Errorf("poller: stopped with %d descriptors attached", left)
	}
	close(p.stopped)
}

// nbioOwnLogger is nbio's logger as it was before anyone could replace it.
var nbioOwnLogger = logging.DefaultLogger

var nbioLogf atomic.Pointer[func(format string, args ...any)]

// prepareNbio sets what is global in nbio, before the first engine: each engine makes a table of MaxOpenFiles pointers.
var prepareNbio = sync.OnceFunc(func() {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil && limit.Cur < uint64(nbio.MaxOpenFiles) {
		nbio.MaxOpenFiles = int(limit.Cur)
	}
	if logging.DefaultLogger == nbioOwnLogger {
		logging.SetLogger(nbioLogger{})
	}
})

// nbioLogger is nbio's logging.Logger. It drops what nbio says at each start and stop.
type nbioLogger struct{}

func (nbioLogger) Debug(string, ...any) {}
func (nbioLogger) Info(string, ...any)  {}

func (nbioLogger) Warn(format string, args ...any) { nbioLogger{}.Error(format, args...) }

func (nbioLogger) Error(format string, args ...any) {
	if logf := nbioLogf.Load(); logf != nil {
		(*logf)("poller: "+format, args...)
	}
}
