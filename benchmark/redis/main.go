// Command redis compares small Redis servers by the CPU time that they take per request: examples/redis on package event, the clone
// in evio's examples, one on gnet, and Redis itself. Each has one event loop and serves redis-benchmark's PING, SET and GET. Rounds are
// interleaved and medians reported, so that what else the machine does hits all alike; for numbers worth telling it should do nothing.
//
//	go run .             # all
//	go run . -check      # and fail if a bar is missed
//
// It needs Linux, for /proc, and redis-server and redis-benchmark; ../../examples/redis/install.sh installs them on Debian.
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// patience bounds the wait for a server to listen.
const patience = 20 * time.Second

// commands are what redis-benchmark is asked to send, one after the other.
var commands = []string{"ping_mbulk", "set", "get"}

// A contestant is a server to be measured.
type contestant struct {
	name string
	// build makes the program, given where; nil if it is installed.
	build func(program string) error
	// args are for the program, or for its name, to listen on a port of 127.0.0.1.
	args func(port string) []string

	program string
	port    string
	cmd     *exec.Cmd
}

// goBuild builds a package from a directory.
func goBuild(dir, pkg string) func(string) error {
	return func(program string) error {
		cmd := exec.Command("go", "build", "-o", program, pkg)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
		}
		return nil
	}
}

func contestants() []*contestant {
	return []*contestant{
		{name: "arpc event", build: goBuild("../../examples/redis", "."), args: func(port string) []string {
			return []string{"-addr", "tcp://127.0.0.1:" + port}
		}},
		{name: "evio 1.0.8", build: goBuild(".", "github.com/tidwall/evio/examples/redis-server"), args: func(port string) []string {
			return []string{"-port", port, "-unixsocket", "", "-loops", "1"}
		}},
		{name: "gnet 2.9.5", build: goBuild(".", "./gnetserver"), args: func(port string) []string {
			return []string{"-addr", "tcp://127.0.0.1:" + port}
		}},
		{name: "redis-server", program: "redis-server", args: func(port string) []string {
			return []string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"}
		}},
	}
}

// start builds and starts the server and waits until it listens. It has what it prints thrown away.
func (c *contestant) start(dir string) error {
	if c.build != nil {
		c.program = filepath.Join(dir, strings.ReplaceAll(c.name, " ", "-"))
		if err := c.build(c.program); err != nil {
			return err
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := ln.Addr().String()
	ln.Close()
	_, c.port, _ = net.SplitHostPort(addr)
	c.cmd = exec.Command(c.program, c.args(c.port)...)
	c.cmd.Dir = dir
	if err := c.cmd.Start(); err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			return nc.Close()
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not listen: %w", c.name, err)
		}
	}
}

func (c *contestant) stop() {
	if c.cmd != nil && c.cmd.Process != nil {
		c.cmd.Process.Kill() //nolint:errcheck // it may have ended
		c.cmd.Wait()         //nolint:errcheck // killed
	}
}

// cpu returns the CPU time that the server has taken, in seconds, to a hundredth: clock ticks of Linux.
func (c *contestant) cpu() (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // the name may contain spaces
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("cannot read %q", stat)
	}
	var ticks float64
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return ticks / 100, nil
}

// A load is a way to run redis-benchmark.
type load struct {
	command            string
	pipeline, requests int
}

// loads are all commands with a pipeline of 32, and without one a tenth as often.
func loads(requests int) (list []load) {
	for _, pipeline := range []int{32, 1} {
		for _, command := range commands {
			list = append(list, load{command, pipeline, requests})
		}
		requests = max(requests/10, 1)
	}
	return list
}

// A result is one run: requests per second of the server's CPU time, and of time.
type result struct{ perCPU, perSecond float64 }

func (c *contestant) run(l load) (result, error) {
	before, err := c.cpu()
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	out, err := exec.Command("redis-benchmark", "-h", "127.0.0.1", "-p", c.port, "-t", l.command, "-q", "-c", "50",
		"-P", strconv.Itoa(l.pipeline), "-n", strconv.Itoa(l.requests)).CombinedOutput()
	took := time.Since(began).Seconds()
	if err != nil {
		return result{}, fmt.Errorf("%s: redis-benchmark: %w\n%s", c.name, err, out)
	}
	after, err := c.cpu()
	if err != nil {
		return result{}, err
	}
	n := float64(l.requests)
	return result{n / max(after-before, 0.01), n / took}, nil
}

// A bar is what the first contestant is to reach, as a multiple of another's requests per CPU second.
type bar struct {
	name     string
	pipeline int
	least    float64
}

var bars = []bar{{"evio 1.0.8", 32, 1.1}, {"redis-server", 32, 1.5}, {"evio 1.0.8", 1, 1.05}}

func median(of []result, get func(result) float64) float64 {
	values := make([]float64, len(of))
	for i, r := range of {
		values[i] = get(r)
	}
	slices.Sort(values)
	mid := len(values) / 2
	if len(values)%2 == 0 {
		return (values[mid-1] + values[mid]) / 2
	}
	return values[mid]
}

func perCPU(r result) float64    { return r.perCPU }
func perSecond(r result) float64 { return r.perSecond }

// compare runs all contestants under each load and writes a table. It returns which bars were missed.
func compare(w io.Writer, all []load, rounds int) (missed []string, err error) {
	dir, err := os.MkdirTemp("", "arpc-redis")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	servers := contestants()
	for _, c := range servers {
		defer c.stop()
		if err := c.start(dir); err != nil {
			return nil, err
		}
	}
	for _, l := range all {
		results := map[string][]result{}
		for round := range rounds + 1 {
			for i := range servers { // another one first each time
				c := servers[(i+round)%len(servers)]
				r, err := c.run(l)
				if err != nil {
					return nil, err
				}
				if round > 0 { // the first one warms up
					results[c.name] = append(results[c.name], r)
				}
			}
		}
		fmt.Fprintf(w, "%s, pipeline of %d, 50 connections, medians of %d rounds of %d requests\n", l.command, l.pipeline, rounds, l.requests)
		ours := median(results[servers[0].name], perCPU)
		for _, c := range servers {
			cpu := median(results[c.name], perCPU)
			fmt.Fprintf(w, "  %-14s %10.0f per CPU second %10.0f per second   %s has %.2f times as many per CPU second\n",
				c.name, cpu, median(results[c.name], perSecond), servers[0].name, ours/cpu)
			for _, b := range bars {
				if b.name == c.name && b.pipeline == l.pipeline && ours/cpu < b.least {
					missed = append(missed, fmt.Sprintf("%s, pipeline of %d: %.2f times %s instead of %.2f", l.command, l.pipeline, ours/cpu, b.name, b.least))
				}
			}
		}
	}
	return missed, nil
}

func main() {
	rounds := flag.Int("rounds", 5, "rounds per command and pipeline")
	requests := flag.Int("n", 1_000_000, "requests per round and command, with a pipeline of 32; a tenth of it without")
	check := flag.Bool("check", false, "fail if a bar is missed")
	flag.Parse()
	missed, err := compare(os.Stdout, loads(*requests), *rounds)
	if err != nil {
		fmt.Fprintln(os.Stderr, "redis:", err)
		os.Exit(1)
	}
	for _, m := range missed {
		fmt.Println("missed:", m)
	}
	if *check && len(missed) > 0 {
		os.Exit(1)
	}
}
