// Package registrytest is the suite that every Registry of package micro must pass, with its store:
//
//	func TestMain(m *testing.M) {
//		registrytest.Provider(open) // does not return in the processes that the suite starts
//		leak.Main(m)
//	}
//
//	func TestRegistry(t *testing.T) {
//		registrytest.Run(t, registrytest.Store{Open: open, Target: "127.0.0.1:2379", Stop: ..., Start: ...})
//	}
//
// The suite waits for what must happen, and never for the absence of something but by what comes after it.
package registrytest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/micro"
)

// patience bounds every wait whose length the contract does not say.
const patience = 20 * time.Second

// A Store is what the registries under test share.
type Store struct {
	// Open makes a registry on the store at target, with a connection of its own if the registry has connections.
	Open func(target string) (micro.Registry, error)
	// Target is where the store is. Other processes open it too, unless it is empty: then the store is in this process, and the tests
	// with processes are left out.
	Target string
	// Stop ends the store's process, Start starts it again with what it had stored. They return when that is done. nil leaves
	// the tests of an outage out.
	Stop, Start func() error
	// TTL is what the suite registers with, and must not be less than what Open's registries allow. Default 2 seconds.
	TTL time.Duration
	// Outage is how long the store stays stopped. Default 3 seconds; longer than TTL makes the store forget in some.
	Outage time.Duration
	// Watches is how many watches the store serves at the moment, nil if nobody knows.
	Watches func() int
	// ReadOnly is for registries that nobody can register with: only their Watch is tested, and Publish says what there is.
	ReadOnly bool
	// Publish replaces the nodes of a service, for those that are ReadOnly.
	Publish func(service string, nodes []micro.Node)
	// Node makes the nodes "one" and "two" of a service as Publish's registry tells of them; nil if that tells everything.
	Node func(service, id string) micro.Node
}

// Run runs the suite.
func Run(t *testing.T, s Store) {
	if s.TTL == 0 {
		s.TTL = 2 * time.Second
	}
	if s.Outage == 0 {
		s.Outage = 3 * time.Second
	}
	for _, test := range []struct {
		name string
		need bool
		run  func(*testing.T, Store)
	}{
		{"Register", !s.ReadOnly, testRegister},
		{"Update", !s.ReadOnly, testUpdate},
		{"Check", !s.ReadOnly, testCheck},
		{"Published", s.ReadOnly, testPublished},
		{"Renew", !s.ReadOnly, testRenew},
		{"Services", !s.ReadOnly, testServices},
		{"Close", !s.ReadOnly, testClose},
		{"Ended", true, testEnded},
		{"Many", !s.ReadOnly, testMany},
		{"Leaks", true, testLeaks},
		{"Kill", !s.ReadOnly && s.Target != "", testKill},
		{"Outage", !s.ReadOnly && s.Stop != nil, testOutage},
	} {
		if test.need {
			t.Run(test.name, func(t *testing.T) { test.run(t, s) })
		}
	}
}

// open opens a registry until the end of the test.
func (s Store) open(t *testing.T) micro.Registry {
	t.Helper()
	r, err := s.Open(s.Target)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

// service is a name that only this test uses.
func service(t *testing.T) string { return t.Name() + fmt.Sprintf(" &=%%é %x", time.Now().UnixNano()) }

func node(service, id string) micro.Node {
	return micro.Node{
		Service: service, Version: "v1", Group: "idc-bj", Protocol: "arpc", ID: id, Addr: "127.0.0.1:8888",
		Weight: 3, Meta: map[string]string{"zone": "a/1"},
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A View is what a watch has told so far.
type View struct {
	mu     sync.Mutex
	nodes  map[string]micro.Node
	kinds  []micro.Kind
	closed bool
	change chan struct{} // closed by each event
	cancel context.CancelFunc
}

// Follow watches a service until the end of the test, or Stop, and fails the test if what the watch tells breaks the contract: the
// first event is Set, and between Lost and Set there is no Delete.
func Follow(t *testing.T, r micro.Registry, service string) *View {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	v := &View{nodes: map[string]micro.Node{}, change: make(chan struct{}), cancel: cancel}
	events, err := r.Watch(ctx, service)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range events {
			v.apply(t, service, e)
		}
		v.mu.Lock()
		v.closed = true
		close(v.change)
		v.mu.Unlock()
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("the watch does not end with its context")
		}
	})
	return v
}

func (v *View) apply(t *testing.T, service string, e micro.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	last := micro.Kind(0)
	if len(v.kinds) > 0 {
		last = v.kinds[len(v.kinds)-1]
	}
	switch {
	case last == 0 && e.Kind != micro.Set:
		t.Errorf("the first event is %v", e.Kind)
	case last == micro.Lost && (e.Kind == micro.Delete || e.Kind == micro.Lost):
		t.Errorf("%v after lost", e.Kind)
	}
	v.kinds = append(v.kinds, e.Kind)
	if e.Kind == micro.Set {
		clear(v.nodes)
	}
	for _, n := range e.Nodes {
		if n.Service != service {
			t.Errorf("a node of %q", n.Service)
		}
		if e.Kind == micro.Delete {
			delete(v.nodes, n.Key())
		} else {
			v.nodes[n.Key()] = n
		}
	}
	close(v.change)
	v.change = make(chan struct{})
}

// Nodes returns what there is, by key.
func (v *View) Nodes() map[string]micro.Node {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.nodes)
}

// Kinds returns the kinds of the events so far.
func (v *View) Kinds() []micro.Kind {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]micro.Kind(nil), v.kinds...)
}

// Stop ends the watch.
func (v *View) Stop() { v.cancel() }

// Is waits until exactly these nodes are there, in all their fields.
func (v *View) Is(t *testing.T, within time.Duration, nodes ...micro.Node) {
	t.Helper()
	want := map[string]micro.Node{}
	for _, n := range nodes {
		want[n.Key()] = n
	}
	v.wait(t, within, func(v *View) bool { return reflect.DeepEqual(v.nodes, want) })
}

// Last waits until the last event is of a kind.
func (v *View) Last(t *testing.T, within time.Duration, kind micro.Kind) {
	t.Helper()
	v.wait(t, within, func(v *View) bool { return len(v.kinds) > 0 && v.kinds[len(v.kinds)-1] == kind })
}

// wait waits until f is true, which is called with the View locked, so that it must not call its methods.
func (v *View) wait(t *testing.T, within time.Duration, f func(*View) bool) {
	t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		v.mu.Lock()
		ok, closed, change, have, kinds := f(v), v.closed, v.change, maps.Clone(v.nodes), fmt.Sprint(v.kinds)
		v.mu.Unlock()
		if ok {
			return
		}
		if closed {
			t.Fatalf("the watch has ended; %d nodes after %s", len(have), kinds)
		}
		select {
		case <-change:
		case <-timer.C:
			if len(have) > 10 {
				t.Fatalf("after %v: %d nodes", within, len(have))
			}
			t.Fatalf("after %v: %v after %s", within, have, kinds)
		}
	}
}

func testRegister(t *testing.T, s Store) {
	name := service(t)
	a, b := s.open(t), s.open(t)
	watch := Follow(t, b, name)
	watch.Is(t, patience)
	one, two := node(name, "one"), node(name, "two")
	two.Version, two.Addr, two.Weight, two.Meta = "", "[::1]:9999", 0, nil
	must(t, a.Register(bounded(t), one, s.TTL))
	watch.Is(t, patience, one)
	must(t, b.Register(bounded(t), two, 0))
	watch.Is(t, patience, one, two)
	Follow(t, s.open(t), name).Is(t, patience, one, two)
	Follow(t, a, name).Is(t, patience, one, two) // a registry sees its own
	must(t, a.Deregister(bounded(t), one))
	watch.Is(t, patience, two)
	must(t, a.Deregister(bounded(t), one)) // again
	must(t, a.Register(bounded(t), one, s.TTL))
	watch.Is(t, patience, one, two)
}

func testUpdate(t *testing.T, s Store) {
	name := service(t)
	r := s.open(t)
	watch := Follow(t, s.open(t), name)
	n := node(name, "one")
	must(t, r.Register(bounded(t), n, s.TTL))
	watch.Is(t, patience, n)
	for i := range 5 {
		n.Weight, n.Meta = i+10, map[string]string{"zone": fmt.Sprint("b", i)}
		must(t, r.Register(bounded(t), n, s.TTL))
		watch.Is(t, patience, n)
	}
	n.Addr = "127.0.0.1:7777"
	must(t, r.Register(bounded(t), n, s.TTL))
	watch.Is(t, patience, n)
	for _, k := range watch.Kinds() {
		if k == micro.Delete {
			t.Fatalf("an update is not a delete: %v", watch.Kinds())
		}
	}
	must(t, r.Deregister(bounded(t), n))
	watch.Is(t, patience)
}

func testCheck(t *testing.T, s Store) {
	r := s.open(t)
	name := service(t)
	watch := Follow(t, r, name)
	bad := node(name, "a/b")
	if err := r.Register(bounded(t), bad, s.TTL); err == nil {
		t.Error("a node with the ID a/b is published")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	never := node(name, "never")
	if err := r.Register(ctx, never, s.TTL); err == nil {
		t.Error("a node is published though the context has ended")
	}
	n := node(name, "one")
	must(t, r.Register(bounded(t), n, s.TTL))
	watch.Is(t, patience, n)
}

// testRenew finds the node still there after several times its ttl, without a Delete in between.
func testRenew(t *testing.T, s Store) {
	name := service(t)
	r, other := s.open(t), s.open(t)
	watch := Follow(t, other, name)
	n := node(name, "one")
	must(t, r.Register(bounded(t), n, s.TTL))
	watch.Is(t, patience, n)
	<-time.After(5 * s.TTL / 2)
	mark := node(name, "mark")
	must(t, other.Register(bounded(t), mark, s.TTL))
	watch.Is(t, patience, n, mark)
	for _, k := range watch.Kinds() {
		if k == micro.Delete || k == micro.Lost {
			t.Fatalf("%v while all was well", watch.Kinds())
		}
	}
}

func testServices(t *testing.T, s Store) {
	name := service(t)
	r := s.open(t)
	one, other := Follow(t, r, name), Follow(t, r, name+"x")
	a, b := node(name, "id"), node(name+"x", "id")
	must(t, r.Register(bounded(t), a, s.TTL))
	must(t, r.Register(bounded(t), b, s.TTL))
	one.Is(t, patience, a)
	other.Is(t, patience, b)
	must(t, r.Deregister(bounded(t), a))
	one.Is(t, patience)
	other.Is(t, patience, b)
}

func testClose(t *testing.T, s Store) {
	name := service(t)
	r, err := s.Open(s.Target)
	must(t, err)
	watch, own := Follow(t, s.open(t), name), Follow(t, r, name)
	n := node(name, "one")
	must(t, r.Register(bounded(t), n, s.TTL))
	watch.Is(t, patience, n)
	own.Is(t, patience, n)
	must(t, r.Close())
	must(t, r.Close())
	watch.Is(t, s.TTL+time.Second) // withdrawn, at the latest with its ttl
	own.mu.Lock()
	change, closed := own.change, own.closed
	own.mu.Unlock()
	for !closed { // at most the events of the withdrawal come before
		select {
		case <-change:
		case <-time.After(patience):
			t.Fatal("Close does not end watches")
		}
		own.mu.Lock()
		change, closed = own.change, own.closed
		own.mu.Unlock()
	}
	if err := r.Register(bounded(t), n, s.TTL); err == nil {
		t.Error("Register after Close")
	}
	if _, err := r.Watch(bounded(t), name); err == nil {
		t.Error("Watch after Close")
	}
}

// testEnded ends watches whose events nobody receives.
func testEnded(t *testing.T, s Store) {
	r := s.open(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events, err := r.Watch(ctx, service(t))
	must(t, err)
	cancel()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case _, ok := <-events:
			if !ok {
				return
			}
		case <-timer.C:
			t.Fatal("the watch does not end")
		}
	}
}

func testMany(t *testing.T, s Store) {
	name := service(t)
	r := s.open(t)
	idle, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := r.Watch(idle, name) // nobody receives, which must not hold others up
	must(t, err)
	watch := Follow(t, s.open(t), name)
	var nodes []micro.Node
	for i := range 200 {
		n := node(name, fmt.Sprint("n", i))
		must(t, r.Register(bounded(t), n, s.TTL))
		nodes = append(nodes, n)
	}
	watch.Is(t, patience, nodes...)
	Follow(t, r, name).Is(t, patience, nodes...)
	for _, n := range nodes[100:] {
		must(t, r.Deregister(bounded(t), n))
	}
	watch.Is(t, patience, nodes[:100]...)
}

// testLeaks ends many watches, and finds neither goroutines nor the store's watches left.
func testLeaks(t *testing.T, s Store) {
	r := s.open(t)
	name := service(t)
	round := func(n int) {
		var ended []<-chan micro.Event
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		for i := range n {
			events, err := r.Watch(ctx, fmt.Sprint(name, i%5))
			must(t, err)
			<-events
			ended = append(ended, events)
		}
		cancel()
		for _, events := range ended {
			for range events {
			}
		}
	}
	round(5) // what a registry keeps once it has watched
	goroutines, watches := runtime.NumGoroutine(), 0
	if s.Watches != nil {
		watches = s.Watches()
	}
	round(50)
	eventually(t, "goroutines or watches are left", func() bool {
		return runtime.NumGoroutine() <= goroutines+5 && (s.Watches == nil || s.Watches() <= watches+1)
	})
}

// eventually polls what nothing tells of.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
		runtime.Gosched()
	}
}

func testPublished(t *testing.T, s Store) {
	name := service(t)
	r := s.open(t)
	make := node
	if s.Node != nil {
		make = s.Node
	}
	one, two := make(name, "one"), make(name, "two")
	s.Publish(name, []micro.Node{one})
	watch := Follow(t, r, name)
	watch.Is(t, patience, one)
	s.Publish(name, []micro.Node{two, one})
	watch.Is(t, patience, one, two)
	s.Publish(name, nil)
	watch.Is(t, patience)
	if err := r.Register(bounded(t), one, 0); err == nil {
		t.Error("Register of a registry that cannot")
	}
}

// testKill kills the process of a provider: its node is gone after its ttl and a second.
func testKill(t *testing.T, s Store) {
	name := service(t)
	r := s.open(t)
	watch := Follow(t, r, name)
	stays, dies := node(name, "stays"), node(name, "dies")
	must(t, r.Register(bounded(t), stays, s.TTL))
	p := StartProvider(t, s, dies)
	watch.Is(t, patience, stays, dies)
	must(t, p.Kill())
	watch.Is(t, s.TTL+time.Second, stays)
	again := StartProvider(t, s, dies) // the place is free
	watch.Is(t, patience, stays, dies)
	must(t, again.Kill())
	watch.Is(t, s.TTL+time.Second, stays)
}

// testOutage stops the store: nothing is deleted, and five seconds after its return the list is right.
func testOutage(t *testing.T, s Store) {
	name := service(t)
	r, other := s.open(t), s.open(t)
	watch := Follow(t, other, name)
	a, b, dies := node(name, "a"), node(name, "b"), node(name, "dies")
	must(t, r.Register(bounded(t), a, s.TTL))
	must(t, other.Register(bounded(t), b, s.TTL))
	p := StartProvider(t, s, dies)
	watch.Is(t, patience, a, b, dies)

	before := time.Now()
	must(t, s.Stop())
	started := false
	defer func() {
		if !started {
			s.Start() //nolint:errcheck // the test has failed
		}
	}()
	watch.Last(t, patience, micro.Lost)
	must(t, p.Kill())
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	if err := r.Register(ctx, node(name, "never"), s.TTL); err == nil {
		t.Error("Register while the store is stopped")
	}
	cancel()
	<-time.After(time.Until(before.Add(s.Outage)))
	if have := watch.Nodes(); len(have) != 3 {
		t.Errorf("during the outage: %v", have)
	}
	must(t, s.Start())
	started = true
	if s.Outage > s.TTL { // the store may count the ttl of the one that has died from its own start
		watch.Is(t, max(5*time.Second, s.TTL+time.Second), a, b)
	} else {
		watch.Is(t, 5*time.Second+s.TTL, a, b)
	}
	later := node(name, "later")
	must(t, other.Register(bounded(t), later, s.TTL))
	watch.Is(t, patience, a, b, later)
	must(t, r.Deregister(bounded(t), a)) // what came back is still ours
	watch.Is(t, patience, b, later)
}

const (
	targetVariable = "ARPC_REGISTRYTEST_TARGET"
	nodeVariable   = "ARPC_REGISTRYTEST_NODE"
	readyLine      = "registered"
)

// Provider returns at once unless this process is one that the suite has started: that registers a node, lives until it is killed
// or the suite's process is gone, and never returns. It must be the first in TestMain.
func Provider(open func(target string) (micro.Registry, error)) {
	data := os.Getenv(nodeVariable)
	if data == "" {
		return
	}
	err := provide(open, data)
	fmt.Println(err)
	os.Exit(1)
}

func provide(open func(target string) (micro.Registry, error), data string) error {
	value, ttl, _ := strings.Cut(data, "\n")
	n, err := micro.UnmarshalValue([]byte(value))
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(ttl)
	if err != nil {
		return err
	}
	r, err := open(os.Getenv(targetVariable))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.Register(ctx, n, d); err != nil {
		return err
	}
	fmt.Println(readyLine)
	_, err = io.Copy(io.Discard, os.Stdin) // ends with the process that has started this one
	return err
}

// A Process is a provider of its own.
type Process struct {
	cmd   *exec.Cmd
	ended sync.Once
}

// StartProvider starts a process that provides n with s.TTL until the end of the test, and returns when it is registered.
func StartProvider(t *testing.T, s Store, n micro.Node) *Process {
	t.Helper()
	value, err := n.MarshalValue()
	must(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), targetVariable+"="+s.Target, nodeVariable+"="+string(value)+"\n"+s.TTL.String())
	cmd.Stderr = os.Stderr
	_, err = cmd.StdinPipe() // open until this process ends, or Wait
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	p := &Process{cmd: cmd}
	t.Cleanup(func() { p.Kill() }) //nolint:errcheck // it may be dead already
	line, _ := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != readyLine {
		t.Fatalf("the provider says %q", line)
	}
	return p
}

// Kill ends the process at once, as kill -9 does.
func (p *Process) Kill() (err error) {
	p.ended.Do(func() {
		err = p.cmd.Process.Kill()
		p.cmd.Wait() //nolint:errcheck // it was killed
	})
	return err
}
