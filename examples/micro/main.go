// Micro calls a service by its name while its servers come and go: it starts an etcd, three servers in processes of their own, and a client that
// prints each second how many calls which server has answered. Meanwhile a server is killed, one is drained, and new ones are added. It ends by
// itself with a summary, or on Ctrl-C, and fails if a call has failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/arpc-go/arpc/extension/micro"
)

func main() {
	beServer()
	length := flag.Duration("for", 15*time.Second, "how long it runs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *length); err != nil {
		fmt.Fprintln(os.Stderr, "micro:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, length time.Duration) (err error) {
	dir, err := os.MkdirTemp("", "arpc-micro")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	e, addr, err := startEtcd(dir)
	if err != nil {
		return err
	}
	defer e.Close()
	fmt.Fprintf(out, "etcd is at %s\n", addr)

	servers := map[string]*server{}
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.drain())
		}
	}()
	add := func(name string) error {
		s, err := startServer(name, addr)
		if err == nil {
			servers[name] = s
			fmt.Fprintf(out, "server %s is at %s\n", name, s.addr)
		}
		return err
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := add(name); err != nil {
			return err
		}
	}

	registry, err := connect(addr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Close()) }()
	client, err := micro.NewClient(ctx, registry, service, micro.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()

	calls := newCalls(client)
	defer calls.stop()
	steps := []func() error{
		func() error {
			fmt.Fprintln(out, "--- kill server a")
			servers["a"].kill()
			delete(servers, "a")
			return nil
		},
		func() error {
			fmt.Fprintln(out, "--- drain server b")
			b := servers["b"]
			delete(servers, "b")
			return b.drain()
		},
		func() error {
			fmt.Fprintln(out, "--- add server d")
			return add("d")
		},
		func() error {
			fmt.Fprintln(out, "--- start server a again")
			return add("a")
		},
	}
	if err := play(ctx, out, calls, length, steps); err != nil {
		return err
	}
	calls.stop()
	return calls.summary(out)
}

// play takes the steps at equal distances, and prints each second, and before each step, who has answered since.
func play(ctx context.Context, out io.Writer, calls *calls, length time.Duration, steps []func() error) error {
	begin := time.Now()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	step := time.NewTicker(max(length/time.Duration(len(steps)+1), 1))
	defer step.Stop()
	for {
		select {
		case <-ctx.Done():
			fmt.Fprintln(out, "stopping")
			return nil
		case <-second.C:
			calls.print(out, time.Since(begin))
		case <-step.C:
			calls.print(out, time.Since(begin))
			if len(steps) == 0 {
				return nil
			}
			if err := steps[0](); err != nil {
				return err
			}
			steps = steps[1:]
		}
	}
}

// calls makes calls until stop.
type calls struct {
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu      sync.Mutex
	recent  map[string]int // answers by server, since they were printed
	all     map[string]int
	failed  int
	failure error // the first
}

// Each caller calls again after the pause.
const (
	callers = 8
	pause   = 2 * time.Millisecond
)

func newCalls(client *micro.Client) *calls {
	c := &calls{recent: map[string]int{}, all: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	for range callers {
		c.group.Go(func() {
			ticker := time.NewTicker(pause)
			defer ticker.Stop()
			for {
				c.call(client)
				select {
				case <-ticker.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return c
}

func (c *calls) call(client *micro.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	question := "where?"
	name, err := where.Call(ctx, client, &question)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.recent[*name]++
		c.all[*name]++
	} else if c.failed++; c.failure == nil {
		c.failure = err
	}
}

// stop waits for the last answers.
func (c *calls) stop() {
	c.cancel()
	c.group.Wait()
}

func byServer(counts map[string]int) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, "  %s %5d", name, counts[name])
	}
	return b.String()
}

func (c *calls) print(out io.Writer, at time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.recent) == 0 { // printed just now
		return
	}
	fmt.Fprintf(out, "%5.1f s%s\n", at.Seconds(), byServer(c.recent))
	clear(c.recent)
}

// summary is an error if a call has failed.
func (c *calls) summary(out io.Writer) error {
	n := c.failed
	for _, count := range c.all {
		n += count
	}
	fmt.Fprintf(out, "%d calls, %d failed:%s\n", n, c.failed, byServer(c.all))
	if c.failure != nil {
		return fmt.Errorf("a call has failed: %w", c.failure)
	}
	return nil
}
