package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/lesismal/nbio"
	"github.com/lesismal/nbio/logging"
)

// The idle scenario measures what a connection costs the server while nothing
// happens on it. Each has done one call of 64 B before. The clients are other
// processes that speak the wire by hand, from a few goroutines.

const (
	idleName    = "idle"
	idleAbout   = "memory of the server per idle connection that has done one 64 B call"
	idlePayload = 64
)

// idleClientConns is how many connections one client process opens at most.
const idleClientConns = 10_000

// idleSpareFiles are the descriptors a process needs besides its connections.
const idleSpareFiles = 200

// An idleSystem is one way to hold connections. All answer an arpc request
// frame: those that speak arpc with a response, the others with an echo.
type idleSystem struct {
	name  string
	about string
	arpc  bool
	serve func() (addr string, err error)
	dial  func(addr string) (net.Conn, error) // nil for dialLoopback
}

var idleSystems = slices.Concat(arpcGoIdleSystems, []*idleSystem{
	{name: wsName, about: "this project with its default settings, over WebSocket", arpc: true, serve: serveWebSocket, dial: dialWebSocket},
	{name: "nbio", about: "plain nbio, an echo in OnData", serve: serveIdleNBIO},
	{name: "goroutine", about: "plain net: a goroutine and a 4 KiB buffer per connection", serve: serveIdleNet},
})

func idleSystemByName(name string) *idleSystem {
	i := slices.IndexFunc(idleSystems, func(s *idleSystem) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return idleSystems[i]
}

func serveIdleNBIO() (string, error) {
	return startNBIO(func(c *nbio.Conn, data []byte) { c.Write(data) })
}

// startNBIO runs an engine of plain nbio until the process ends.
func startNBIO(onData func(*nbio.Conn, []byte)) (string, error) {
	logging.SetLevel(logging.LevelNone)
	addr := make(chan string, 1)
	engine := nbio.NewEngine(nbio.Config{
		Network: "tcp",
		Addrs:   []string{"127.0.0.1:0"},
		Listen: func(network, address string) (net.Listener, error) {
			ln, err := net.Listen(network, address)
			if err == nil {
				addr <- ln.Addr().String()
			}
			return ln, err
		},
	})
	engine.OnData(onData)
	if err := engine.Start(); err != nil {
		return "", err
	}
	return <-addr, nil
}

func serveIdleNet() (string, error) {
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go echoRaw(conn, 4<<10)
		}
	}()
	return addr, nil
}

// An idleFigure is the memory of one server that holds Conns connections.
// Bytes per connection are the growth since before the first one.
type idleFigure struct {
	Round       int     `json:"round"`
	System      string  `json:"system"`
	Conns       int     `json:"conns"`
	Held        int     `json:"held"`              // connections that answered again after the measurement
	Before      int64   `json:"rss_before"`        // bytes, no connection yet
	Natural     int64   `json:"rss"`               // bytes, as the server happens to be
	Collected   int64   `json:"rss_collected"`     // bytes, after a garbage collection that returned memory
	HeapPerConn float64 `json:"heap_per_conn"`     // live bytes
	StackPer    float64 `json:"stack_per_conn"`    // bytes
	CPUPerConn  float64 `json:"cpu_us_per_conn"`   // accept and one call
	PerConn     float64 `json:"rss_per_conn"`      // bytes, natural
	PerConnGC   float64 `json:"rss_per_conn_gced"` // bytes, collected
}

// added is what all connections added to the resident memory, naturally.
func (f *idleFigure) added() int64 { return f.Natural - f.Before }

// runIdle takes one round of figures into raw. It returns an error only if
// the command should end.
func runIdle(ctx context.Context, set settings, round int, raw *results) error {
	limit, err := openFileLimit()
	if err != nil {
		return err
	}
	for _, conns := range set.idleConns {
		if conns+idleSpareFiles > limit {
			fmt.Fprintf(set.progress, "round %d  idle with %d connections left out: a process may have %d descriptors\n", round, conns, limit)
			continue
		}
		for _, sys := range idleSystems {
			if set.check && !neededForIdleCheck(sys.name, conns) {
				continue
			}
			if !set.check && set.systems != nil && !slices.Contains(set.systems, sys.name) {
				continue
			}
			fig, err := measureIdle(ctx, sys, conns)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				raw.fail(set, fmt.Errorf("%s, %s, %d connections, round %d: %w", idleName, sys.name, conns, round, err))
				continue
			}
			fig.Round = round
			raw.Idle = append(raw.Idle, fig)
			fmt.Fprintf(set.progress, "round %d  idle %-14s %6d connections  %5.2f KiB each, %.1f MiB in all, %d held\n",
				round, sys.name, conns, fig.PerConn/1024, float64(fig.Natural)/(1<<20), fig.Held)
		}
	}
	return nil
}

func measureIdle(ctx context.Context, sys *idleSystem, conns int) (figure idleFigure, err error) {
	server, err := startWorker(ctx, roleIdleServer)
	if err != nil {
		return idleFigure{}, err
	}
	defer server.stop()
	rep, err := server.do(order{Do: doStart, System: sys.name})
	if err != nil {
		return idleFigure{}, err
	}
	addr := rep.Addr
	before, err := server.mark(doMark)
	if err != nil {
		return idleFigure{}, err
	}

	var clients []*worker
	for left := conns; left > 0; left -= idleClientConns {
		client, err := startWorker(ctx, roleIdleClient)
		if err != nil {
			return idleFigure{}, err
		}
		defer client.stop()
		clients = append(clients, client)
		// One after the other: they would only wait for the same server.
		if _, err := client.do(order{Do: doStart, System: sys.name, Addr: addr, Conns: min(left, idleClientConns)}); err != nil {
			return idleFigure{}, err
		}
	}
	natural, err := server.mark(doMark)
	if err != nil {
		return idleFigure{}, err
	}
	collected, err := server.mark(doCollect)
	if err != nil {
		return idleFigure{}, err
	}
	held := 0
	for _, client := range clients {
		rep, err := client.do(order{Do: doVerify})
		if err != nil {
			return idleFigure{}, err
		}
		held += rep.Served
	}
	n := float64(conns)
	return idleFigure{
		System: sys.name, Conns: conns, Held: held,
		Before: before.RSS, Natural: natural.RSS, Collected: collected.RSS,
		PerConn:     float64(natural.RSS-before.RSS) / n,
		PerConnGC:   float64(collected.RSS-before.RSS) / n,
		HeapPerConn: (float64(collected.Heap) - float64(before.Heap)) / n,
		StackPer:    (float64(natural.Stacks) - float64(before.Stacks)) / n,
		CPUPerConn:  float64(natural.CPU-before.CPU) / 1e3 / n,
	}, nil
}

// mark orders a mark of one kind.
func (w *worker) mark(do string) (*mark, error) {
	rep, err := w.do(order{Do: do})
	if err != nil {
		return nil, err
	}
	if rep.Mark == nil {
		return nil, fmt.Errorf("%s did not report its counters", w.role)
	}
	return rep.Mark, nil
}

func obeyAsIdleServer(o order) (reply, error) {
	switch o.Do {
	case doStart:
		sys := idleSystemByName(o.System)
		if sys == nil {
			return reply{}, fmt.Errorf("no system %q", o.System)
		}
		addr, err := sys.serve()
		// Garbage of the start would later be taken for heap that connections
		// gave back. Memory is not returned to the system here: what follows
		// is to grow as it would anywhere.
		runtime.GC()
		return reply{Addr: addr}, err
	case doCollect:
		collectGarbage()
		fallthrough
	case doMark:
		m, err := takeMark(nil)
		return reply{Mark: m}, err
	default:
		return reply{}, fmt.Errorf("a server cannot %q", o.Do)
	}
}

// idleClient holds connections.
type idleClient struct {
	sys   *idleSystem
	conns []net.Conn
}

func (c *idleClient) obey(o order) (reply, error) {
	switch o.Do {
	case doStart:
		c.sys = idleSystemByName(o.System)
		if c.sys == nil {
			return reply{}, fmt.Errorf("no system %q", o.System)
		}
		c.conns = make([]net.Conn, o.Conns)
		return c.each(func(i int) error {
			dial := c.sys.dial
			if dial == nil {
				dial = dialLoopback
			}
			conn, err := dial(o.Addr)
			if err != nil {
				return err
			}
			c.conns[i] = conn
			return c.callOnce(i, 1)
		})
	case doVerify:
		return c.each(func(i int) error { return c.callOnce(i, 2) })
	default:
		return reply{}, fmt.Errorf("an idle client cannot %q", o.Do)
	}
}

// each runs f for every connection, a few at a time. All must succeed.
func (c *idleClient) each(f func(i int) error) (reply, error) {
	const workers = 8
	var (
		group  sync.WaitGroup
		mu     sync.Mutex
		served int
		first  error
	)
	for w := range workers {
		group.Go(func() {
			for i := w; i < len(c.conns); i += workers {
				err := f(i)
				mu.Lock()
				if err == nil {
					served++
				} else if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if first != nil {
		return reply{}, fmt.Errorf("%d of %d connections were served; first error: %w", served, len(c.conns), first)
	}
	return reply{Served: served}, nil
}

// callOnce makes one call on connection i and compares the answer.
func (c *idleClient) callOnce(i int, n uint64) error {
	conn := c.conns[i]
	if conn == nil {
		return errors.New("not connected")
	}
	payload := newPayload(idlePayload, uint64(i))
	stampPayload(payload, uint64(i), n)
	frame := requestFrame(n, routeEcho, payload)
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write(frame); err != nil {
		return err
	}
	want := frame
	if c.sys.arpc {
		want[frameCommand] = frameResponse
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("connection %d answered %x, not %x", i, got, want)
	}
	return nil
}

// arpc's frame: bodyLen:4 reserved:1 cmd:1 flag:1 methodLen:1 seq:8, little
// endian, then method and payload.
const (
	frameHeader   = 16
	frameCommand  = 5 // offset of cmd
	frameRequest  = 1 // values of cmd
	frameResponse = 2
)

func requestFrame(seq uint64, method string, payload []byte) []byte {
	frame := make([]byte, frameHeader, frameHeader+len(method)+len(payload))
	binary.LittleEndian.PutUint32(frame, uint32(len(method)+len(payload)))
	frame[frameCommand] = frameRequest
	frame[7] = byte(len(method))
	binary.LittleEndian.PutUint64(frame[8:], seq)
	frame = append(frame, method...)
	return append(frame, payload...)
}
