package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// A worker is this program started by itself, as one end of a measurement. It
// reads orders from standard input and answers each with one reply on standard
// output, both one JSON value per line. It ends with its input, so no worker
// outlives the command.

// roleVariable tells a process that it is a worker, and which.
const roleVariable = "ARPC_BENCHMARK_ROLE"

// Roles.
const (
	roleServer     = "server"
	roleClient     = "client"
	roleIdleServer = "idle-server"
	roleIdleClient = "idle-client"

	roleFanOutServer = "fanout-server"
	roleFanOutClient = "fanout-client"
)

// Orders. Every role understands doStart and doMark.
const (
	doStart   = "start"   // serve, or connect and put the load on
	doMark    = "mark"    // read all counters; on a client, open or close the window
	doStop    = "stop"    // client: end the load and report
	doCollect = "collect" // collect garbage and return memory before a mark
	doVerify  = "verify"  // idle client: make one more call on every connection
)

type order struct {
	Do       string `json:"do"`
	System   string `json:"system,omitempty"`
	Scenario string `json:"scenario,omitempty"`
	Addr     string `json:"addr,omitempty"`
	Conns    int    `json:"conns,omitempty"`
	Flight   int    `json:"flight,omitempty"` // fan-out: messages in flight
}

type reply struct {
	Err    string      `json:"err,omitempty"`
	Addr   string      `json:"addr,omitempty"`
	Mark   *mark       `json:"mark,omitempty"`
	Load   *loadResult `json:"load,omitempty"`
	Served int         `json:"served,omitempty"` // connections whose call was answered rightly
}

// A mark is a process's counters at one moment.
type mark struct {
	Elapsed time.Duration `json:"elapsed_ns"` // since the worker began
	CPU     time.Duration `json:"cpu_ns"`     // user and system time of the process
	Mallocs uint64        `json:"mallocs"`
	RSS     int64         `json:"rss"`    // bytes
	Heap    uint64        `json:"heap"`   // bytes of live and not yet swept objects
	Stacks  uint64        `json:"stacks"` // bytes
	Calls   []uint64      `json:"calls"`  // of each group, client only
}

var workerBegin = time.Now()

// takeMark reads the clock and the CPU time first: reading the memory
// statistics stops all goroutines for some microseconds, which falls outside
// of the window at its end, and inside at its start, as for every system.
func takeMark(l *load) (*mark, error) {
	m := &mark{Elapsed: time.Since(workerBegin)}
	if l != nil {
		m.Calls = l.answered()
	}
	var err error
	if m.CPU, err = processCPU(); err != nil {
		return nil, err
	}
	if m.RSS, err = residentBytes(); err != nil {
		return nil, err
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	m.Mallocs = mem.Mallocs
	m.Heap = mem.HeapAlloc
	m.Stacks = mem.StackInuse
	return m, nil
}

// runWorker obeys orders until the input ends.
func runWorker(role string) {
	// Replies have the real standard output to themselves, whatever the
	// systems under test may print.
	out := json.NewEncoder(os.Stdout)
	os.Stdout = os.Stderr
	in := json.NewDecoder(os.Stdin)

	obey := roleOf(role)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			if errors.Is(err, io.EOF) {
				os.Exit(0)
			}
			fmt.Fprintf(os.Stderr, "%s: order: %v\n", role, err)
			os.Exit(1)
		}
		rep, err := obey(o)
		if err != nil {
			rep = reply{Err: err.Error()}
		}
		if err := out.Encode(rep); err != nil {
			os.Exit(1) // whoever gave the order is gone
		}
	}
}

func roleOf(role string) func(order) (reply, error) {
	switch role {
	case roleServer:
		return obeyAsServer
	case roleClient:
		return new(clientWorker).obey
	case roleIdleServer:
		return obeyAsIdleServer
	case roleIdleClient:
		return new(idleClient).obey
	case roleFanOutServer:
		return obeyAsFanOutServer
	case roleFanOutClient:
		return new(fanOutClient).obey
	default:
		return func(order) (reply, error) { return reply{}, fmt.Errorf("no role %q", role) }
	}
}

func obeyAsServer(o order) (reply, error) {
	switch o.Do {
	case doStart:
		sys := systemByName(o.System)
		if sys == nil {
			return reply{}, fmt.Errorf("no system %q", o.System)
		}
		if o.Scenario == burnScenario.name {
			calibrateBurn()
		}
		addr, err := sys.serve()
		return reply{Addr: addr}, err
	case doMark:
		m, err := takeMark(nil)
		return reply{Mark: m}, err
	default:
		return reply{}, fmt.Errorf("a server cannot %q", o.Do)
	}
}

// clientWorker puts the load on.
type clientWorker struct {
	load *load
}

func (w *clientWorker) obey(o order) (reply, error) {
	switch o.Do {
	case doStart:
		sys, sc := systemByName(o.System), scenarioByName(o.Scenario)
		if sys == nil || sc == nil {
			return reply{}, fmt.Errorf("no system %q or no scenario %q", o.System, o.Scenario)
		}
		var err error
		w.load, err = startLoad(sys, sc, o.Addr)
		return reply{}, err
	case doMark:
		// The first mark opens the window, the second closes it.
		m, err := takeMark(w.load)
		w.load.measuring.Store(!w.load.measuring.Load())
		return reply{Mark: m}, err
	case doStop:
		return reply{Load: w.load.stop()}, nil
	default:
		return reply{}, fmt.Errorf("a client cannot %q", o.Do)
	}
}

// collectGarbage returns all the memory that can be returned.
func collectGarbage() {
	runtime.GC()
	debug.FreeOSMemory()
}
