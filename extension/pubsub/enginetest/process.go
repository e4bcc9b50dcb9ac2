package enginetest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
)

// childVariable is the environment variable that makes a test binary a Process: what to open.
const childVariable = "ARPC_ENGINETEST_WHERE"

// Child makes this process serve an engine, and ends it, if it is one that StartProcess or Chaos has started; otherwise it
// returns. TestMain calls it before it runs the tests. where is what StartProcess or Chaos was given.
func Child(open func(where string) (pubsub.Engine, error)) {
	chaosChild(open)
	where, ok := os.LookupEnv(childVariable)
	if !ok {
		return
	}
	if err := child(where, open); err != nil {
		fmt.Fprintln(os.Stderr, "enginetest:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// command is one line for a Process.
type command struct {
	Do    string // join, publish or subscribe
	Topic string
	Text  string // of what is joined or published
	ID    string // of the member
	Group string
	Kept  bool // the topic has history
}

// report is one line of a Process: the answer to a command, or what its sinks get.
type report struct {
	What     string // done, message or presence
	Err      string
	Topic    string
	Text     string
	Position pubsub.Position
	Joined   bool
}

// child serves commands until its input ends.
func child(where string, open func(where string) (pubsub.Engine, error)) error {
	e, err := open(where)
	if err != nil {
		return err
	}
	s := &childSink{out: json.NewEncoder(os.Stdout)}
	s.say(report{What: "done"})
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	for {
		var c command
		if in.Decode(&c) != nil { // its parent has closed it, or is dead
			return e.Close()
		}
		r := report{What: "done"}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		switch c.Do {
		case "join":
			_, err = e.Join(ctx, c.Topic, pubsub.Member{ID: c.ID, Info: []byte(c.Text)})
		case "publish":
			o := pubsub.PublishOptions{}
			if c.Kept {
				o.Topic = kept
			}
			var receipt pubsub.Receipt
			receipt, err = e.Publish(ctx, &pubsub.Message{Topic: c.Topic, Data: []byte(c.Text)}, o)
			r.Position = receipt.Position
		case "subscribe":
			_, err = e.Subscribe(ctx, pubsub.Filter{Name: c.Topic, Wildcard: strings.ContainsAny(c.Topic, "*>")}, c.Group, s)
		default:
			err = errors.New("unknown command")
		}
		cancel()
		if err != nil {
			r.Err = err.Error()
		}
		s.say(r)
	}
}

// childSink reports what it gets.
type childSink struct {
	mu  sync.Mutex
	out *json.Encoder
}

func (s *childSink) say(r report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Encode(r) //nolint:errcheck // the parent notices
}

func (s *childSink) Deliver(m *pubsub.Message) bool {
	s.say(report{What: "message", Topic: m.Topic, Text: string(m.Data), Position: m.Position})
	return true
}

func (s *childSink) Presence(topic string, m pubsub.Member, joined bool) {
	s.say(report{What: "presence", Topic: topic, Text: m.ID, Joined: joined})
}

func (s *childSink) Interrupted(error) {}
func (s *childSink) Resumed()          {}

// A Process is an engine in a process of its own. Its methods fail the test, and are for one goroutine.
type Process struct {
	t        *testing.T
	cmd      *exec.Cmd
	in       *json.Encoder
	done     chan report
	messages chan report
	ended    chan struct{} // its output
	end      func(signal os.Signal) error
}

// StartProcess starts this test binary once more, whose TestMain must call Child, and waits until it has an engine on where. It
// is ended with the test.
func StartProcess(t *testing.T, where string) *Process {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childVariable+"="+where, "GORACE=atexit_sleep_ms=0") // the race detector waits for a second else
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	p := &Process{
		t: t, cmd: cmd, in: json.NewEncoder(in), done: make(chan report, 1), messages: make(chan report, 100_000), ended: make(chan struct{}),
	}
	go func() {
		defer close(p.ended)
		for d := json.NewDecoder(out); ; {
			var r report
			if d.Decode(&r) != nil {
				return
			}
			if r.What == "done" {
				p.done <- r
			} else {
				p.messages <- r
			}
		}
	}()
	var once sync.Once
	p.end = func(signal os.Signal) (err error) {
		once.Do(func() {
			if signal == nil {
				in.Close() //nolint:errcheck // it ends either way
			} else {
				err = cmd.Process.Signal(signal)
			}
			<-p.ended
			if waited := cmd.Wait(); err == nil && signal == nil {
				err = waited
			}
		})
		return err
	}
	t.Cleanup(func() { p.end(os.Kill) }) //nolint:errcheck // what has to be said is said by Stop
	p.answer()
	return p
}

func (p *Process) answer() report {
	p.t.Helper()
	select {
	case r := <-p.done:
		if r.Err != "" {
			p.t.Fatal(r.Err)
		}
		return r
	case <-p.ended:
		p.t.Fatal("the process has ended")
	case <-time.After(patience):
		p.t.Fatal("the process does not answer")
	}
	panic("unreachable")
}

func (p *Process) do(c command) report {
	p.t.Helper()
	must(p.t, p.in.Encode(c))
	return p.answer()
}

// Join makes a member, which stays as long as the process.
func (p *Process) Join(topic, id, info string) {
	p.t.Helper()
	p.do(command{Do: "join", Topic: topic, ID: id, Text: info})
}

// Publish publishes to a topic, one with history if kept is set, and returns the message's position.
func (p *Process) Publish(topic, data string, kept bool) pubsub.Position {
	p.t.Helper()
	return p.do(command{Do: "publish", Topic: topic, Text: data, Kept: kept}).Position
}

// Subscribe subscribes to a topic or pattern; Next returns what comes.
func (p *Process) Subscribe(topic, group string) {
	p.t.Helper()
	p.do(command{Do: "subscribe", Topic: topic, Group: group})
}

// Next returns the next message of all subscriptions of the process, as topic and data.
func (p *Process) Next() (topic, data string, at pubsub.Position) {
	p.t.Helper()
	r := recv(p.t, p.messages, "message in the process")
	return r.Topic, r.Text, r.Position
}

// Kill ends the process as kill -9 does, and returns when it is gone.
func (p *Process) Kill() {
	p.t.Helper()
	must(p.t, p.end(os.Kill))
}

// Stop closes the engine and ends the process.
func (p *Process) Stop() {
	p.t.Helper()
	must(p.t, p.end(nil))
}

// RunProcesses tests engines in several processes. fresh makes a place without topics, and open opens an engine on it; Child must
// have been called with an open that does the same. What a process that was killed leaves must be gone after a time that fits in
// twenty seconds.
func RunProcesses(t *testing.T, fresh func(t *testing.T) (where string), open func(where string) (pubsub.Engine, error)) {
	for _, test := range []struct {
		name string
		need func(pubsub.Capabilities) bool
		run  func(t *testing.T, where string, e pubsub.Engine)
	}{
		{"Messages", history, testProcessMessages},
		{"Groups", func(c pubsub.Capabilities) bool { return c.Groups }, testProcessGroups},
		{"Presence", func(c pubsub.Capabilities) bool { return c.Presence }, testProcessPresence},
	} {
		t.Run(test.name, func(t *testing.T) {
			where := fresh(t)
			e, err := open(where)
			must(t, err)
			t.Cleanup(func() { e.Close() }) //nolint:errcheck // not what is tested
			if !test.need(e.Capabilities()) {
				t.Skipf("the engine %s cannot do that", e.Capabilities().Name)
			}
			test.run(t, where, e)
		})
	}
}

// testProcessMessages: two processes and this one publish; all have everything, in the same order, and the history has it too.
func testProcessMessages(t *testing.T, where string, e pubsub.Engine) {
	const n = 60
	a, b := StartProcess(t, where), StartProcess(t, where)
	a.Subscribe("t", "")
	b.Subscribe("*", "")
	s := subscribe(t, e, "t", false, "")
	for i := range n {
		switch text := fmt.Sprint(i); i % 3 {
		case 0:
			a.Publish("t", text, true)
		case 1:
			b.Publish("t", text, true)
		default:
			publish(t, e, "t", text, pubsub.PublishOptions{Topic: kept})
		}
	}
	for i := range n {
		m := s.next(t)
		for _, p := range []*Process{a, b} {
			topic, text, at := p.Next()
			if string(m.Data) != fmt.Sprint(i) || text != fmt.Sprint(i) || topic != "t" || at != m.Position {
				t.Fatalf("message %d is %q at %+v, in another process %q of %q at %+v", i, m.Data, m.Position, text, topic, at)
			}
		}
	}
	a.Stop()
	if got := data(page(t, e, "t", pubsub.Query{Limit: 2})); !slices.Equal(got, []string{fmt.Sprint(n - 2), fmt.Sprint(n - 1)}) {
		t.Fatalf("history %q", got)
	}
	b.Stop()
}

// testProcessGroups: each message is for one of the group, in whatever process, and in the end all of them get some.
func testProcessGroups(t *testing.T, where string, e pubsub.Engine) {
	const n = 30
	a, b := StartProcess(t, where), StartProcess(t, where)
	a.Subscribe("jobs.*", "workers")
	b.Subscribe("jobs.*", "workers")
	s := subscribe(t, e, "jobs.*", true, "workers")
	seen, shares := map[string]bool{}, [3]int{}
	timeout := time.After(patience)
	for slices.Contains(shares[:], 0) {
		for range n {
			publish(t, e, "jobs.x", fmt.Sprint(len(seen)), pubsub.PublishOptions{})
			var text string
			select {
			case m := <-s.got:
				text = string(m.Data)
				shares[0]++
			case r := <-a.messages:
				text = r.Text
				shares[1]++
			case r := <-b.messages:
				text = r.Text
				shares[2]++
			case <-timeout:
				t.Fatalf("%d came, shares %v", len(seen), shares)
			}
			if seen[text] {
				t.Fatalf("%q came twice", text)
			}
			seen[text] = true
		}
	}
}

// testProcessPresence: what a process that was killed leaves behind goes away, everybody is told, and others stay.
func testProcessPresence(t *testing.T, where string, e pubsub.Engine) {
	watch := subscribe(t, e, "room", false, "")
	a, b := StartProcess(t, where), StartProcess(t, where)
	b.Subscribe("room", "")
	want := func(event string) {
		t.Helper()
		if got := recv(t, watch.presence, "event "+event); got != event {
			t.Fatalf("%q, not %q", got, event)
		}
	}
	a.Join("room", "1", "one")
	want("room 1 one true")
	a.Join("room", "2", "")
	want("room 2  true")
	b.Join("room", "3", "")
	want("room 3  true")
	members, err := e.Members(within(t), "room")
	must(t, err)
	if len(members) != 3 {
		t.Fatalf("%+v", members)
	}
	a.Kill()
	killed := time.Now()
	gone := []string{recv(t, watch.presence, "event"), recv(t, watch.presence, "event")}
	slices.Sort(gone)
	if !slices.Equal(gone, []string{"room 1 one false", "room 2  false"}) {
		t.Fatalf("%q", gone)
	}
	t.Logf("the members of a process that was killed were gone after %v", time.Since(killed).Round(time.Millisecond))
	if members, err = e.Members(within(t), "room"); err != nil || len(members) != 1 || members[0].ID != "3" {
		t.Fatalf("%+v, %v", members, err)
	}
	var events []report
	for range 5 {
		events = append(events, recv(t, b.messages, "event in a process"))
	}
	for _, r := range events[3:] {
		if r.What != "presence" || r.Joined || r.Text == "3" {
			t.Fatalf("%+v", events)
		}
	}
	b.Stop() // it says good-bye
	want("room 3  false")
}
