package enginetest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

// chaosVariable is the environment variable that makes a test binary a server of Chaos: what to open.
const chaosVariable = "ARPC_CHAOS_WHERE"

// EnvChaos is the environment variable that says for how long Chaos runs, such as 2m. Without it it runs for eight seconds, with
// fewer messages under the race detector.
const EnvChaos = "ARPC_CHAOS"

// What chaos consists of.
const (
	chaosServers    = 3
	chaosTopics     = 50
	chaosPublishers = 100 // each of one topic
	chaosKept       = 5000
)

// chaosChild runs a server on the engine that open makes, and does not return, in a process that Chaos has started; otherwise it
// does nothing.
func chaosChild(open func(where string) (pubsub.Engine, error)) {
	where, ok := os.LookupEnv(chaosVariable)
	if !ok {
		return
	}
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail(err)
	}
	e, err := open(where)
	if err != nil {
		fail(err)
	}
	s, err := pubsub.NewServerWith(pubsub.Config{Engine: e, Topics: func(string) pubsub.TopicConfig {
		return pubsub.TopicConfig{HistorySize: chaosKept, HistoryAge: time.Hour}
	}})
	if err != nil {
		fail(err)
	}
	go func() { fail(s.Serve(ln)) }()
	fmt.Println(ln.Addr())
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end, with that of the test, is all that matters
	os.Exit(0)
}

// Chaos has three servers, each a process of its own on the engine at where, 200 subscribers, and publishers that together publish
// 10,000 messages per second and publish again, with the same ID, what may have failed. Every few seconds one server is killed
// and the one before is started again; clients go on to any that lives. Each subscriber must get what each publisher of its
// topic has published, without a gap and nothing twice, unless it was told that something is missing. TestMain must call Child,
// whose open is given where.
func Chaos(t *testing.T, where string) {
	length, rate, subscribers := 8*time.Second, 10_000, 200
	if raceEnabled {
		rate, subscribers = 1000, 100
	}
	if v := os.Getenv(EnvChaos); v != "" {
		var err error
		length, err = time.ParseDuration(v)
		must(t, err)
		rate, subscribers = 10_000, 200
	}
	c := &chaos{t: t, where: where, next: make([]atomic.Int64, chaosPublishers)}
	for i := range c.servers {
		c.start(i)
	}
	defer c.end()
	var subs []*chaosSubscriber
	for i := range subscribers {
		subs = append(subs, c.subscribe(i%chaosTopics))
	}
	began := time.Now()
	stop := make(chan struct{})
	var publishing sync.WaitGroup
	for i := range chaosPublishers {
		publishing.Go(func() { c.publish(i, time.Duration(chaosPublishers)*time.Second/time.Duration(rate), stop) })
	}
	kills, dead := 0, -1
	for time.Since(began) < length && c.fault.Load() == nil {
		pause := min(3*time.Second, length/6)
		time.Sleep(pause/2 + rand.N(pause)) // this is the chaos
		next := rand.IntN(chaosServers)
		for next == dead {
			next = rand.IntN(chaosServers)
		}
		if dead >= 0 {
			c.start(dead)
		}
		c.kill(next)
		dead = next
		kills++
	}
	close(stop)
	publishing.Wait()
	published, took := int64(0), time.Since(began)
	for i := range c.next {
		published += c.next[i].Load()
	}
	for end := time.Now().Add(patience); c.fault.Load() == nil; time.Sleep(10 * time.Millisecond) {
		behind := 0
		for _, s := range subs {
			if !s.complete() {
				behind++
			}
		}
		if behind == 0 {
			break
		}
		if time.Now().After(end) {
			c.fail("%d subscribers do not come to the end, and nobody has told them that something is missing", behind)
		}
	}
	t.Logf("%d messages in %v, %.0f per second; %d received by %d subscribers; %d servers killed; %d recoveries, %d told of a gap, %d of a loss; %d published again, %d duplicates noticed",
		published, took.Round(time.Millisecond), float64(published)/took.Seconds(), c.received.Load(), len(subs), kills, c.recoveries.Load(), c.gaps.Load(), c.losses.Load(), c.retries.Load(), c.duplicates.Load())
	if text := c.fault.Load(); text != nil {
		t.Fatal(*text)
	}
	if c.recoveries.Load() == 0 {
		t.Error("it was not wild enough")
	}
}

type chaos struct {
	t       *testing.T
	where   string
	servers [chaosServers]chaosServer
	next    []atomic.Int64 // message of each publisher

	fault                                                   atomic.Pointer[string]
	received, recoveries, gaps, losses, retries, duplicates atomic.Int64

	mu      sync.Mutex
	clients []*pubsub.Client
}

// chaosServer is a process, or where one was and will be.
type chaosServer struct {
	addr   atomic.Pointer[string] // nil while there is none
	cmd    *exec.Cmd
	stdin  io.Closer
	stderr *bytes.Buffer
	killed atomic.Bool
	ended  chan struct{}
}

func (c *chaos) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.fault.CompareAndSwap(nil, &text)
}

// start starts a server and waits until it listens.
func (c *chaos) start(i int) {
	c.t.Helper()
	exe, err := os.Executable()
	must(c.t, err)
	s := &c.servers[i]
	s.cmd, s.stderr, s.ended = exec.Command(exe), &bytes.Buffer{}, make(chan struct{})
	s.killed.Store(false)
	s.cmd.Env = append(os.Environ(), chaosVariable+"="+c.where)
	s.cmd.Stderr = s.stderr
	s.stdin, err = s.cmd.StdinPipe()
	must(c.t, err)
	stdout, err := s.cmd.StdoutPipe()
	must(c.t, err)
	must(c.t, s.cmd.Start())
	ready := make(chan string, 1)
	go func() {
		defer close(s.ended)
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		ready <- line
		if err := s.cmd.Wait(); !s.killed.Load() {
			c.fail("a server has ended by itself: %v\n%s", err, s.stderr)
		}
	}()
	addr := strings.TrimSpace(recv(c.t, ready, "server"))
	if addr == "" {
		<-s.ended
		c.t.Fatalf("a server does not start\n%s", s.stderr)
	}
	s.addr.Store(&addr)
}

// kill kills a server as kill -9 does.
func (c *chaos) kill(i int) {
	s := &c.servers[i]
	s.killed.Store(true)
	s.addr.Store(nil)
	s.cmd.Process.Kill() //nolint:errcheck // it may have ended
	<-s.ended
}

func (c *chaos) end() {
	for _, client := range c.clients {
		client.Stop()
	}
	for i := range c.servers {
		if c.servers[i].cmd != nil {
			c.kill(i)
		}
	}
}

// client makes a client that connects to any server that lives; nil if it cannot.
func (c *chaos) client() *pubsub.Client {
	client, err := pubsub.NewClient(func() (nc net.Conn, err error) {
		for _, i := range rand.Perm(chaosServers) {
			if addr := c.servers[i].addr.Load(); addr != nil {
				if nc, err = net.DialTimeout("tcp", *addr, time.Second); err == nil {
					return nc, nil
				}
			}
		}
		return nil, errors.Join(err, errors.New("no server lives"))
	}, arpc.Backoff(5*time.Millisecond, 100*time.Millisecond), arpc.WaitForReady())
	if err != nil {
		c.fail("%v", err)
		return nil
	}
	c.mu.Lock()
	c.clients = append(c.clients, client)
	c.mu.Unlock()
	return client
}

func chaosTopic(i int) string { return fmt.Sprint("chaos.", i%chaosTopics) }

// publish publishes as publisher i until stop.
func (c *chaos) publish(i int, every time.Duration, stop <-chan struct{}) {
	client := c.client()
	if client == nil {
		return
	}
	pace := time.NewTicker(every)
	defer pace.Stop()
	began := time.Now()
	for n := int64(0); c.fault.Load() == nil; n++ {
		for n > int64(time.Since(began)/every) { // otherwise it is behind
			select {
			case <-pace.C:
			case <-stop:
				return
			}
		}
		select {
		case <-stop:
			return
		default:
		}
		data, id := fmt.Sprintf("%d %d %0100d", i, n, 0), fmt.Sprint(i, "-", n)
		for attempt := 0; ; attempt++ {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			r, err := client.PublishWith(ctx, chaosTopic(i), data, pubsub.WithID(id))
			cancel()
			if err == nil {
				if r.Duplicate {
					c.duplicates.Add(1)
					if attempt == 0 {
						c.fail("publisher %d: message %d is a duplicate at once", i, n)
					}
				}
				break
			}
			c.retries.Add(1)
			if !errors.Is(err, arpc.CodeUnavailable) && !errors.Is(err, arpc.CodeDeadlineExceeded) || attempt > 100 {
				c.fail("publisher %d: %v", i, err)
				return
			}
		}
		c.next[i].Store(n + 1)
	}
}

// chaosSubscriber is what one subscriber has got.
type chaosSubscriber struct {
	chaos *chaos
	topic int

	mu   sync.Mutex
	next map[int]int64 // message of each publisher; none if anything may come
}

func (c *chaos) subscribe(topic int) *chaosSubscriber {
	c.t.Helper()
	s := &chaosSubscriber{chaos: c, topic: topic, next: map[int]int64{}}
	for p := topic; p < chaosPublishers; p += chaosTopics {
		s.next[p] = 0
	}
	client := c.client()
	if client == nil {
		c.t.Fatal(*c.fault.Load())
	}
	_, err := client.SubscribeWith(within(c.t), chaosTopic(topic), s.message, pubsub.OnEvent(s.event))
	must(c.t, err)
	return s
}

func (s *chaosSubscriber) message(m *pubsub.Message) {
	var p int
	var n int64
	if _, err := fmt.Sscan(string(m.Data), &p, &n); err != nil {
		s.chaos.fail("%q: %v", m.Data, err)
		return
	}
	s.chaos.received.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if next, ok := s.next[p]; ok && n != next {
		s.chaos.fail("a subscriber of %s got message %d of publisher %d, not %d, and nobody said so (position %+v)", m.Topic, n, p, next, m.Position)
	}
	s.next[p] = n + 1
}

func (s *chaosSubscriber) event(e pubsub.Event) {
	c := s.chaos
	switch {
	case e.Kind == pubsub.EventLost:
		c.losses.Add(1)
	case e.Kind == pubsub.EventEnded:
		c.fail("a subscription has ended: %v", e.Err)
		return
	case e.Kind == pubsub.EventSubscribed && e.Resumed && e.Recovered:
		c.recoveries.Add(1)
		return
	case e.Kind == pubsub.EventSubscribed && e.Resumed:
		c.gaps.Add(1)
	default:
		return
	}
	s.mu.Lock()
	clear(s.next)
	s.mu.Unlock()
}

// complete says whether nothing is missing at the end, but of what the subscriber was told.
func (s *chaosSubscriber) complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, next := range s.next {
		if next != s.chaos.next[p].Load() {
			return false
		}
	}
	return true
}
