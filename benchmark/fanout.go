package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// The fan-out scenario measures what it costs a server to give a message of
// one publisher to many subscribers. Server and client are processes with one
// core each and GOMAXPROCS=1. The client is all subscribers and the publisher;
// it speaks every wire by hand and polls without sleeping, so that a server
// does not pay for waking it up. So many messages are in flight that the
// next is published when all subscribers have the oldest one.

const (
	fanOutName    = "fanout"
	fanOutAbout   = "CPU time of the server per delivery of a 128 B message, client and server on a core each"
	fanOutPayload = 128
)

// fanOutFlights are the numbers of messages in flight that are tried.
var fanOutFlights = []int{1, 32}

// A fanOutSystem is one way to give messages to subscribers.
type fanOutSystem struct {
	name   string
	about  string
	module string
	// serve starts a server on a loopback port.
	serve func() (addr string, err error)
	// subscribe makes a fresh connection a subscriber; nothing that the server sends before the first delivery is left unread.
	subscribe func(rw io.ReadWriter) error
	// begin makes a fresh connection the publisher.
	begin func(rw io.ReadWriter) error
	// publish appends the frame of one publication.
	publish func(b, payload []byte) []byte
	// before and after are what surrounds the payload of a delivery, in bytes.
	before, after int
	// skip is what a server sends between deliveries now and then.
	skip string
}

func fanOutSystemByName(name string) *fanOutSystem {
	i := slices.IndexFunc(fanOutSystems, func(s *fanOutSystem) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return fanOutSystems[i]
}

// A fanOutFigure is what one window of one system gave.
type fanOutFigure struct {
	Round      int     `json:"round"`
	System     string  `json:"system"`
	Conns      int     `json:"subscribers"`
	Flight     int     `json:"in_flight"`
	Deliveries uint64  `json:"deliveries"`
	Rate       float64 `json:"deliveries_per_second"`
	ServerCPU  float64 `json:"server_cpu_us_per_delivery"`
	Allocs     float64 `json:"server_allocs_per_delivery"`
	Before     int64   `json:"rss_before"` // bytes, the server's whole process, which holds the code of all systems, before the first connection
	RSS        int64   `json:"rss"`        // bytes, at the end of the window
	Wrong      uint64  `json:"wrong"`
}

// runFanOut takes one round of figures into raw. It returns an error only if the command should end.
func runFanOut(ctx context.Context, set settings, round int, raw *results) error {
	limit, err := openFileLimit()
	if err != nil {
		return err
	}
	for _, conns := range set.fanOutConns {
		if conns+idleSpareFiles > limit {
			fmt.Fprintf(set.progress, "round %d  fan-out to %d subscribers left out: a process may have %d descriptors\n", round, conns, limit)
			continue
		}
		for _, flight := range fanOutFlights {
			for _, sys := range fanOutSystems {
				if !set.check && set.systems != nil && !slices.Contains(set.systems, sys.name) {
					continue
				}
				fig, err := measureFanOut(ctx, sys, conns, flight, set.warmup, set.duration)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					raw.fail(set, fmt.Errorf("%s, %s, %d subscribers, %d in flight, round %d: %w", fanOutName, sys.name, conns, flight, round, err))
					continue
				}
				fig.Round = round
				raw.FanOut = append(raw.FanOut, fig)
				fmt.Fprintf(set.progress, "round %d  fan-out %-18s %6d subscribers, %2d in flight  %9.0f/s  %6.3f us of the server, %.1f MiB\n",
					round, sys.name, conns, flight, fig.Rate, fig.ServerCPU, float64(fig.RSS)/(1<<20))
			}
		}
	}
	return nil
}

func measureFanOut(ctx context.Context, sys *fanOutSystem, conns, flight int, warmup, duration time.Duration) (figure fanOutFigure, err error) {
	server, err := startPinned(ctx, roleFanOutServer, 0)
	if err != nil {
		return fanOutFigure{}, err
	}
	defer server.stop()
	start := order{Do: doStart, System: sys.name, Conns: conns, Flight: flight}
	rep, err := server.do(start)
	if err != nil {
		return fanOutFigure{}, err
	}
	before, err := server.mark(doMark)
	if err != nil {
		return fanOutFigure{}, err
	}
	client, err := startPinned(ctx, roleFanOutClient, 1)
	if err != nil {
		return fanOutFigure{}, err
	}
	defer client.stop()
	start.Addr = rep.Addr
	if _, err := client.do(start); err != nil {
		return fanOutFigure{}, err
	}
	if err := wait(ctx, warmup); err != nil {
		return fanOutFigure{}, err
	}
	client0, server0, err := markBoth(client, server)
	if err != nil {
		return fanOutFigure{}, err
	}
	if err := wait(ctx, duration); err != nil {
		return fanOutFigure{}, err
	}
	client1, server1, err := markBoth(client, server)
	if err != nil {
		return fanOutFigure{}, err
	}
	rep, err = client.do(order{Do: doStop})
	if err != nil {
		return fanOutFigure{}, err
	}
	seconds := (client1.Elapsed - client0.Elapsed).Seconds()
	n := client1.Calls[0] - client0.Calls[0]
	if n == 0 || rep.Load == nil {
		return fanOutFigure{}, errors.New("nothing was delivered")
	}
	scale := seconds / (server1.Elapsed - server0.Elapsed).Seconds()
	return fanOutFigure{
		System: sys.name, Conns: conns, Flight: flight, Deliveries: n,
		Rate:      float64(n) / seconds,
		ServerCPU: float64(server1.CPU-server0.CPU) / 1e3 / float64(n) * scale,
		Allocs:    float64(server1.Mallocs-server0.Mallocs) / float64(n) * scale,
		Before:    before.RSS, RSS: server1.RSS, Wrong: rep.Load.Mismatches,
	}, nil
}

func obeyAsFanOutServer(o order) (reply, error) {
	switch o.Do {
	case doStart:
		sys := fanOutSystemByName(o.System)
		if sys == nil {
			return reply{}, fmt.Errorf("no fan-out system %q", o.System)
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

// fanOutOf returns the figures of one system at one size.
func (r *results) fanOutOf(system string, conns, flight int) []fanOutFigure {
	var list []fanOutFigure
	for _, f := range r.FanOut {
		if f.System == system && f.Conns == conns && f.Flight == flight {
			list = append(list, f)
		}
	}
	return list
}

func pickFanOutCPU(f *fanOutFigure) float64 { return f.ServerCPU }

func fanOutMedian(figures []fanOutFigure, pick func(*fanOutFigure) float64) float64 {
	values := make([]float64, len(figures))
	for i := range figures {
		values[i] = pick(&figures[i])
	}
	return spreadOf(values).Median
}

// fanOutRatio compares the CPU time of two systems in the rounds in which both ran.
func (r *results) fanOutRatio(system, baseline string, conns, flight int) spread {
	of := func(name string) map[int]float64 {
		values := make(map[int]float64)
		for _, f := range r.fanOutOf(name, conns, flight) {
			values[f.Round] = f.ServerCPU
		}
		return values
	}
	return spreadOf(ratios(of(system), of(baseline)))
}

func (r *results) writeFanOutTable(out io.Writer) {
	fmt.Fprintf(out, "\n### %s: %s\n\n", fanOutName, fanOutAbout)
	fmt.Fprintln(out, "| system | subscribers | in flight | server CPU µs per delivery | × nats | × gws | deliveries/s | server allocations per delivery | RSS MiB before → with subscribers | wrong |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|---|---|---|")
	var sizes []int
	for _, f := range r.FanOut {
		if !slices.Contains(sizes, f.Conns) {
			sizes = append(sizes, f.Conns)
		}
	}
	for _, conns := range sizes {
		for _, flight := range fanOutFlights {
			for _, sys := range fanOutSystems {
				figures := r.fanOutOf(sys.name, conns, flight)
				if len(figures) == 0 {
					continue
				}
				wrong := uint64(0)
				for _, f := range figures {
					wrong += f.Wrong
				}
				fmt.Fprintf(out, "| %s | %d | %d | %.3f | %s | %s | %s | %.3f | %.1f → %.1f | %d |\n", sys.name, conns, flight,
					fanOutMedian(figures, pickFanOutCPU),
					r.fanOutRatio(sys.name, fanOutNATS, conns, flight).format(), r.fanOutRatio(sys.name, fanOutGWS, conns, flight).format(),
					rateText(fanOutMedian(figures, func(f *fanOutFigure) float64 { return f.Rate })),
					fanOutMedian(figures, func(f *fanOutFigure) float64 { return f.Allocs }),
					fanOutMedian(figures, func(f *fanOutFigure) float64 { return float64(f.Before) / (1 << 20) }),
					fanOutMedian(figures, func(f *fanOutFigure) float64 { return float64(f.RSS) / (1 << 20) }), wrong)
			}
		}
	}
}

// fanOutBars are the bars of pub/sub and of rooms.
func fanOutBars(r *results) []bar {
	var bars []bar
	for _, b := range []struct {
		baseline      string
		conns, flight int
		most          float64
	}{
		{fanOutNATS, 1000, 1, 0.55},
		{fanOutGWS, 1000, 1, 0.9},
		{fanOutNATS, 1000, 32, 0.55},
		{fanOutNATS, 10_000, 32, 0.15},
	} {
		for _, system := range []string{fanOutPubSub, fanOutBroadcast} {
			got := r.fanOutRatio(system, b.baseline, b.conns, b.flight)
			bars = append(bars, bar{
				Name: fmt.Sprintf("fan-out, %s: server CPU × %s, %d subscribers, %d in flight", system, b.baseline, b.conns, b.flight),
				Want: fmt.Sprintf("<= %.2f", b.most), Got: got.format(), OK: got.N > 0 && got.Median <= b.most,
			})
		}
	}
	for _, system := range []string{fanOutPubSub, fanOutBroadcast} {
		rss := 0.0
		for _, flight := range fanOutFlights {
			rss = max(rss, fanOutMedian(r.fanOutOf(system, 10_000, flight), func(f *fanOutFigure) float64 { return float64(f.RSS - f.Before) }))
		}
		bars = append(bars, bar{
			Name: fmt.Sprintf("fan-out, %s: MB added by 10,000 subscribers", system),
			Want: "<= 30", Got: fmt.Sprintf("%.1f", rss/1e6), OK: rss > 0 && rss <= 30e6,
		})
	}
	return bars
}
