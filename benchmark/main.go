// Command benchmark compares arpc with other RPC systems, side by side and
// reproducibly: server and client are separate processes on loopback, the
// systems take turns (A B C, A B C, ...), every answer is compared with its
// request, and every ratio is one of figures taken in the same round.
//
//	go run .                                  all systems, S1 to S6, three rounds
//	go run . -scenarios S1,S3 -systems arpc,arpc-go -rounds 5
//	go run . -scenarios burn                  fast calls beside a handler that burns 10 ms
//	go run . -scenarios idle                  memory per idle connection
//	go run . -scenarios fanout                one message to many connections
//	go run . -check                           PASS or FAIL against the project's bars
//	go run . -json                            raw figures instead of tables
//
// The command starts itself again as server and as client. What is measured,
// and how, is described in docs/performance.md. It needs Linux.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"
)

// settings are the choices of the command line.
type settings struct {
	scenarios []string // names of scenarios, in order; may hold burn and idle
	systems   []string // names of systems; nil: all that take part in the scenario
	rounds    int
	duration  time.Duration // length of the measured window
	warmup    time.Duration // load before the window
	idleConns []int         // sizes of the idle scenario

	fanOutConns []int // sizes of the fan-out scenario
	json        bool
	check       bool
	progress    io.Writer // one line for each figure taken
}

func main() {
	if role := os.Getenv(roleVariable); role != "" {
		runWorker(role)
		return
	}
	set, err := parseSettings(os.Args[1:])
	if err == flag.ErrHelp {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	ok, err := execute(ctx, set, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

// execute takes all figures and writes the report to out. It returns false if
// a figure could not be taken or a bar of -check was missed.
func execute(ctx context.Context, set settings, out io.Writer) (bool, error) {
	raw := results{Machine: describeMachine(), Settings: set.String()}
	for round := 1; round <= set.rounds; round++ {
		for _, name := range set.scenarios {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			if run := map[string]func(context.Context, settings, int, *results) error{idleName: runIdle, fanOutName: runFanOut}[name]; run != nil {
				if err := run(ctx, set, round, &raw); err != nil {
					return false, err
				}
				continue
			}
			sc := scenarioByName(name)
			for _, sys := range taking(sc, set) {
				fig, err := measure(ctx, sys, sc, set.warmup, set.duration)
				if ctx.Err() != nil {
					return false, ctx.Err()
				}
				if err != nil {
					raw.fail(set, fmt.Errorf("%s, %s, round %d: %w", sc.name, sys.name, round, err))
					continue
				}
				fig.Round = round
				raw.Calls = append(raw.Calls, fig)
				fmt.Fprintln(set.progress, fig.progressLine())
			}
		}
	}
	ok := len(raw.Failures) == 0
	switch {
	case set.json:
		return ok, raw.writeJSON(out)
	case set.check:
		raw.writeTables(out, set.scenarios)
		return writeBars(out, checkBars(&raw)) && ok, nil
	default:
		raw.writeTables(out, set.scenarios)
		return ok, nil
	}
}

// taking returns the systems that take part in a scenario.
func taking(sc *scenario, set settings) []*system {
	var list []*system
	for _, sys := range systems {
		switch {
		case sc.async && !sys.async, sc.routes && !sys.routes:
		case set.check && !neededForCheck(sc.name, sys.name):
		case set.systems != nil && !slices.Contains(set.systems, sys.name):
		default:
			list = append(list, sys)
		}
	}
	return list
}

func parseSettings(args []string) (settings, error) {
	set := settings{progress: os.Stderr}
	flags := flag.NewFlagSet("benchmark", flag.ContinueOnError)
	scenarioList := flags.String("scenarios", "S1,S2,S3,S4,S5,S6",
		"scenarios to run, in this order; all = S1 to S6, burn, idle and fanout")
	systemList := flags.String("systems", "all", "systems to compare")
	flags.IntVar(&set.rounds, "rounds", 3, "rounds; each takes one figure of every system")
	flags.DurationVar(&set.duration, "duration", 1500*time.Millisecond, "measured window of a figure")
	flags.DurationVar(&set.warmup, "warmup", 400*time.Millisecond, "load before the window")
	idleList := flags.String("idle-conns", "1000,10000,19000", "connections held in the idle scenario")
	fanOutList := flags.String("fanout-conns", "100,1000,10000", "subscribers in the fan-out scenario")
	flags.BoolVar(&set.json, "json", false, "print raw figures as JSON")
	flags.BoolVar(&set.check, "check", false, "compare with the project's bars; takes no notice of -scenarios, -systems, -idle-conns and -fanout-conns; status 1 if one is missed")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: benchmark [flags]\n\nflags:\n")
		flags.PrintDefaults()
		fmt.Fprintf(flags.Output(), "\nscenarios:\n")
		for _, sc := range scenarios {
			fmt.Fprintf(flags.Output(), "  %-6s %s\n", sc.name, sc.about)
		}
		fmt.Fprintf(flags.Output(), "  %-6s %s\n", idleName, idleAbout)
		fmt.Fprintf(flags.Output(), "  %-6s %s\n", fanOutName, fanOutAbout)
		fmt.Fprintf(flags.Output(), "\nsystems:\n")
		for _, sys := range systems {
			fmt.Fprintf(flags.Output(), "  %-14s %s\n", sys.name, sys.about)
		}
		fmt.Fprintf(flags.Output(), "\nsystems of the idle scenario:\n")
		for _, sys := range idleSystems {
			fmt.Fprintf(flags.Output(), "  %-14s %s\n", sys.name, sys.about)
		}
		fmt.Fprintf(flags.Output(), "\nsystems of the fan-out scenario:\n")
		for _, sys := range fanOutSystems {
			fmt.Fprintf(flags.Output(), "  %-18s %s\n", sys.name, sys.about)
		}
	}
	if err := flags.Parse(args); err != nil {
		return set, err
	}
	if flags.NArg() > 0 {
		return set, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if set.rounds < 1 {
		return set, fmt.Errorf("-rounds is %d; it must be 1 or more", set.rounds)
	}
	if set.duration <= 0 || set.warmup < 0 {
		return set, fmt.Errorf("-duration must be above 0 and -warmup not below")
	}
	if set.check && set.json {
		return set, fmt.Errorf("-check and -json exclude each other")
	}
	if set.check || *scenarioList == "all" {
		for _, sc := range scenarios {
			set.scenarios = append(set.scenarios, sc.name)
		}
		set.scenarios = append(set.scenarios, idleName, fanOutName)
	} else {
		for name := range strings.SplitSeq(*scenarioList, ",") {
			if name != idleName && name != fanOutName && scenarioByName(name) == nil {
				return set, fmt.Errorf("no scenario %q", name)
			}
			set.scenarios = append(set.scenarios, name)
		}
	}
	if *systemList != "all" && !set.check {
		for name := range strings.SplitSeq(*systemList, ",") {
			if systemByName(name) == nil && idleSystemByName(name) == nil && fanOutSystemByName(name) == nil {
				return set, fmt.Errorf("no system %q", name)
			}
			set.systems = append(set.systems, name)
		}
	}
	if set.check {
		set.idleConns, set.fanOutConns = []int{idleBarConns, idleLimitConns}, []int{1000, 10_000}
		return set, nil
	}
	var err error
	if set.idleConns, err = parseCounts("-idle-conns", *idleList); err != nil {
		return set, err
	}
	if set.fanOutConns, err = parseCounts("-fanout-conns", *fanOutList); err != nil {
		return set, err
	}
	return set, nil
}

// parseCounts reads a list of numbers of connections.
func parseCounts(name, list string) (counts []int, err error) {
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%s: %q is not a number of connections", name, text)
		}
		counts = append(counts, n)
	}
	return counts, nil
}

// String is the part of the settings that a reader of the figures must know.
func (s settings) String() string {
	return fmt.Sprintf("Rounds: %d, windows of %v after %v", s.rounds, s.duration, s.warmup)
}
