package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// A worker seen from the command: a child process that obeys orders.
type worker struct {
	role    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	replies chan workerReply // closed after the last one
}

type workerReply struct {
	reply reply
	err   error
}

// orderTimeout is how long a worker may take for one order. The longest is
// opening 19,000 connections on a busy machine.
const orderTimeout = 60 * time.Second

// startWorker starts this program as a worker, with env added to the environment. stop must be called.
func startWorker(ctx context.Context, role string, env ...string) (*worker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(append(os.Environ(), roleVariable+"="+role), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w := &worker{role: role, cmd: cmd, in: in, replies: make(chan workerReply)}
	go w.read(out)
	return w, nil
}

func (w *worker) read(out io.Reader) {
	defer close(w.replies)
	dec := json.NewDecoder(out)
	for {
		var r reply
		err := dec.Decode(&r)
		if errors.Is(err, io.EOF) {
			return
		}
		w.replies <- workerReply{r, err}
		if err != nil {
			return
		}
	}
}

// send gives an order; receive waits for the reply to the oldest one that was
// not received yet.
func (w *worker) send(o order) error {
	line, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if _, err := w.in.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w", w.role, err)
	}
	return nil
}

func (w *worker) receive() (reply, error) {
	timer := time.NewTimer(orderTimeout)
	defer timer.Stop()
	select {
	case r, ok := <-w.replies:
		switch {
		case !ok:
			return reply{}, fmt.Errorf("%s ended early", w.role)
		case r.err != nil:
			return reply{}, fmt.Errorf("%s: %w", w.role, r.err)
		case r.reply.Err != "":
			return reply{}, fmt.Errorf("%s: %s", w.role, r.reply.Err)
		}
		return r.reply, nil
	case <-timer.C:
		return reply{}, fmt.Errorf("%s: no reply within %v", w.role, orderTimeout)
	}
}

func (w *worker) do(o order) (reply, error) {
	if err := w.send(o); err != nil {
		return reply{}, err
	}
	return w.receive()
}

// stop ends the worker and waits until it is gone.
func (w *worker) stop() {
	w.in.Close()
	timer := time.AfterFunc(5*time.Second, func() { w.cmd.Process.Kill() })
	defer timer.Stop()
	for range w.replies { // a reply nobody waited for
	}
	w.cmd.Wait()
}

// A figure is what one window of one system in one scenario gave.
type figure struct {
	Round        int           `json:"round"`
	Scenario     string        `json:"scenario"`
	System       string        `json:"system"`
	Seconds      float64       `json:"seconds"` // the window, by the client's clock
	Calls        uint64        `json:"calls"`
	Rate         float64       `json:"calls_per_second"`
	ClientCPU    float64       `json:"client_cpu_us_per_call"`
	ServerCPU    float64       `json:"server_cpu_us_per_call"`
	ClientAllocs float64       `json:"client_allocs_per_call"`
	ServerAllocs float64       `json:"server_allocs_per_call"`
	Groups       []groupFigure `json:"groups"`
	Mismatches   uint64        `json:"mismatches"`
	Errors       uint64        `json:"errors"`
	Lost         uint64        `json:"lost"`
	FirstError   string        `json:"first_error,omitempty"`
}

type groupFigure struct {
	Name  string  `json:"name"`
	Calls uint64  `json:"calls"`
	Rate  float64 `json:"calls_per_second"`
	latency
}

// cpu is the CPU time of both ends for a call, in microseconds.
func (f *figure) cpu() float64 { return f.ClientCPU + f.ServerCPU }

// wrong counts everything that did not end with the right answer.
func (f *figure) wrong() uint64 { return f.Mismatches + f.Errors + f.Lost }

func (f *figure) progressLine() string {
	var b strings.Builder
	fmt.Fprintf(&b, "round %d  %-4s %-14s %9.0f/s  %6.2f+%.2f us CPU", f.Round, f.Scenario, f.System, f.Rate, f.ClientCPU, f.ServerCPU)
	if n := f.wrong(); n > 0 {
		fmt.Fprintf(&b, "  WRONG: %d (%d mismatches, %d errors, %d lost) %s", n, f.Mismatches, f.Errors, f.Lost, f.FirstError)
	}
	return b.String()
}

// measure takes one figure, with a fresh process at each end.
func measure(ctx context.Context, sys *system, sc *scenario, warmup, duration time.Duration) (figure, error) {
	server, err := startWorker(ctx, roleServer)
	if err != nil {
		return figure{}, err
	}
	defer server.stop()
	start := order{Do: doStart, System: sys.name, Scenario: sc.name}
	rep, err := server.do(start)
	if err != nil {
		return figure{}, err
	}

	client, err := startWorker(ctx, roleClient)
	if err != nil {
		return figure{}, err
	}
	defer client.stop()
	start.Addr = rep.Addr
	if _, err := client.do(start); err != nil {
		return figure{}, err
	}

	if err := wait(ctx, warmup); err != nil {
		return figure{}, err
	}
	client0, server0, err := markBoth(client, server)
	if err != nil {
		return figure{}, err
	}
	if err := wait(ctx, duration); err != nil {
		return figure{}, err
	}
	client1, server1, err := markBoth(client, server)
	if err != nil {
		return figure{}, err
	}
	rep, err = client.do(order{Do: doStop})
	if err != nil {
		return figure{}, err
	}
	if rep.Load == nil || len(rep.Load.Latencies) != len(sc.groups) {
		return figure{}, errors.New("the client did not report its load")
	}
	return figureOf(sys, sc, client0, client1, server0, server1, rep.Load), nil
}

// markBoth has both ends read their counters at the same time.
func markBoth(client, server *worker) (c, s *mark, err error) {
	for _, w := range []*worker{client, server} {
		if err := w.send(order{Do: doMark}); err != nil {
			return nil, nil, err
		}
	}
	crep, err := client.receive()
	if err != nil {
		return nil, nil, err
	}
	srep, err := server.receive()
	if err != nil {
		return nil, nil, err
	}
	if crep.Mark == nil || srep.Mark == nil {
		return nil, nil, errors.New("a worker did not report its counters")
	}
	return crep.Mark, srep.Mark, nil
}

func figureOf(sys *system, sc *scenario, c0, c1, s0, s1 *mark, res *loadResult) figure {
	seconds := (c1.Elapsed - c0.Elapsed).Seconds()
	fig := figure{
		Scenario: sc.name, System: sys.name, Seconds: seconds,
		Mismatches: res.Mismatches, Errors: res.Errors, Lost: res.Lost, FirstError: res.FirstError,
	}
	for i, g := range sc.groups {
		calls := c1.Calls[i] - c0.Calls[i]
		fig.Calls += calls
		fig.Groups = append(fig.Groups, groupFigure{
			Name: g.name, Calls: calls, Rate: float64(calls) / seconds, latency: res.Latencies[i],
		})
	}
	fig.Rate = float64(fig.Calls) / seconds
	if fig.Calls > 0 {
		n := float64(fig.Calls)
		// A window of the server is as long as the client's, but for the time
		// that the orders took; what it counted is scaled to the client's.
		scale := seconds / (s1.Elapsed - s0.Elapsed).Seconds()
		fig.ClientCPU = float64(c1.CPU-c0.CPU) / 1e3 / n
		fig.ServerCPU = float64(s1.CPU-s0.CPU) / 1e3 / n * scale
		fig.ClientAllocs = float64(c1.Mallocs-c0.Mallocs) / n
		fig.ServerAllocs = float64(s1.Mallocs-s0.Mallocs) / n * scale
	}
	return fig
}

// wait returns early, with an error, if the command is interrupted.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
