package micro_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
)

// TestClientFollows sees nodes come, change their place and go, without a call that fails.
func TestClientFollows(t *testing.T) {
	r, p := cluster(t, 3)
	c := connect(t, r, micro.Config{Balancer: micro.RoundRobin(), Strategy: micro.Failfast})
	ready(t, c, 3)
	seen := func() map[string]int {
		got := map[string]int{}
		for range 60 {
			got[ask(t, c, once)]++
		}
		return got
	}
	if got := seen(); got["node0"] != 20 || got["node1"] != 20 || got["node2"] != 20 {
		t.Errorf("%v", got)
	}
	added := provide(t, "svc", "added")
	must(t, r.Register(context.Background(), added.node, 0))
	ready(t, c, 4)
	if got := seen(); got["added"] != 15 {
		t.Errorf("%v", got)
	}
	moved := provide(t, "svc", "node1")
	must(t, r.Register(context.Background(), moved.node, 0))
	until(t, "calls at the new place", func() bool { ask(t, c, once); return moved.calls.Load() > 0 })
	before := p[1].calls.Load()
	seen()
	if p[1].calls.Load() != before {
		t.Error("calls at the old place")
	}
	must(t, r.Deregister(context.Background(), p[0].node))
	until(t, "three nodes", func() bool { return len(c.Stats().Nodes) == 3 })
	if got := seen(); got["node0"] != 0 || len(got) != 3 {
		t.Errorf("%v", got)
	}
	until(t, "the connection is closed", func() bool { return p[0].Stats().Connections == 0 && p[1].Stats().Connections == 0 })
}

// TestOneConnection has many calls share one connection for each node, which is made with the first call.
func TestOneConnection(t *testing.T) {
	r, p := cluster(t, 2)
	c := connect(t, r, micro.Config{})
	if c.Stats().Nodes != nil || p[0].Stats().Accepted+p[1].Stats().Accepted != 0 {
		t.Error("connections before the first call")
	}
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() { ask(t, c.With(micro.Failfast), who) })
	}
	group.Wait()
	ready(t, c, 2)
	if a, b := p[0].Stats().Accepted, p[1].Stats().Accepted; a != 1 || b != 1 {
		t.Errorf("%d and %d connections", a, b)
	}
}

func TestFailover(t *testing.T) {
	r, p := cluster(t, 3)
	c := connect(t, r, micro.Config{Balancer: micro.RoundRobin(), EjectShare: -1, Burst: 1000})
	ready(t, c, 3)
	p[1].fail.Store(&arpc.Error{Code: arpc.CodeUnavailable, Message: "perhaps done"})
	for range 60 {
		if got := ask(t, c, who); got == "node1" {
			t.Fatal("a failure is an answer")
		}
	}
	failed := 0
	for range 60 {
		if _, err := once.Call(within(t), c, new(string)); errors.Is(err, arpc.CodeUnavailable) {
			failed++
		} else {
			must(t, err)
		}
	}
	if failed != 20 {
		t.Errorf("%d calls have failed that may have been carried out, not 20", failed)
	}
	fast, calls := c.With(micro.Failfast), p[1].calls.Load()
	failed = 0
	for range 60 {
		if _, err := who.Call(within(t), fast, new(string)); err != nil {
			failed++
		}
	}
	if failed != 20 || p[1].calls.Load() != calls+20 {
		t.Errorf("Failfast: %d failures, %d calls", failed, p[1].calls.Load()-calls)
	}
	p[1].fail.Store(nil)
	must(t, p[1].Stop())
	for range 60 {
		ask(t, c, who)
	}
	for _, m := range []arpc.Method[string, string]{who, once} {
		must(t, r.Register(context.Background(), p[1].node, 0)) // nobody is there
		ask(t, fast, m)
	}
}

// load makes calls until the function that it returns is called, which returns how many have succeeded. None may fail.
func load(t *testing.T, c *micro.Client, m arpc.Method[string, string]) (progress func(), end func() int64) {
	var succeeded atomic.Int64
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := m.Call(within(t), c, new(string)); err != nil {
					t.Errorf("a call fails: %v", err)
					return
				}
				succeeded.Add(1)
			}
		})
	}
	progress = func() {
		n := succeeded.Load() + 200
		until(t, "calls", func() bool { return succeeded.Load() > n || t.Failed() })
	}
	return progress, func() int64 {
		close(stop)
		group.Wait()
		return succeeded.Load()
	}
}

// TestShutdown drains servers under load: no call fails, though nothing is repeated, and each is carried out once.
func TestShutdown(t *testing.T) {
	r, p := cluster(t, 3)
	c := connect(t, r, micro.Config{Strategy: micro.Failfast})
	ready(t, c, 3)
	progress, end := load(t, c, once)
	progress()
	for _, p := range p[:2] {
		pub, err := micro.Publish(within(t), r, p.node, 0)
		must(t, err)
		must(t, micro.Shutdown(within(t), p.Server, pub))
		progress()
	}
	succeeded := end()
	if n := p[0].calls.Load() + p[1].calls.Load() + p[2].calls.Load(); n != succeeded {
		t.Errorf("%d calls were carried out, %d have succeeded", n, succeeded)
	}
}

// TestDrain drains servers that the registry still names.
func TestDrain(t *testing.T) {
	r, p := cluster(t, 3)
	c := connect(t, r, micro.Config{})
	ready(t, c, 3)
	progress, end := load(t, c, once)
	progress()
	for _, p := range p[:2] {
		must(t, p.Shutdown(within(t)))
		progress()
	}
	end()
}

// TestCallers uses the client as what package arpc has: calls, callbacks, notifications, streams, and calls of the server's.
func TestCallers(t *testing.T) {
	r, p := cluster(t, 1)
	h := arpc.NewHandler()
	h.Handle("/back", func(ctx *arpc.Context) { ctx.Write("from the client") })
	p[0].Handler.Handle("/call-me", func(ctx *arpc.Context) {
		var text string
		if err := ctx.Client.CallWith(ctx, "/back", nil, &text); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(text)
	})
	c := connect(t, r, micro.Config{Options: []arpc.ClientOption{h}})
	for _, s := range []micro.Strategy{micro.Failover, micro.Failfast, micro.Failback} {
		c := c.With(s)
		var text string
		must(t, c.Call("/call-me", nil, &text, patience))
		if text != "from the client" {
			t.Errorf("%q", text)
		}
		if got := ask(t, c, who); got != "node0" {
			t.Errorf("%q", got)
		}
		result := make(chan error, 1)
		who.CallAsync(c, new(string), func(_ *string, err error) { result <- err }, patience)
		must(t, recv(t, result, "callback"))
		must(t, c.Notify("/note", fmt.Sprint("hello ", s), patience))
		if got := recv(t, p[0].notes, "notification"); got != fmt.Sprint("hello ", s) {
			t.Errorf("%q", got)
		}
		stream, err := c.OpenStream(within(t), "/stream")
		must(t, err)
		must(t, stream.Send("!"))
		must(t, stream.Recv(&text))
		if text != "node0!" {
			t.Errorf("%q", text)
		}
		if n := c.Stats().Nodes[0].InFlight; n != 1 {
			t.Errorf("%d in flight", n)
		}
		must(t, stream.CloseSend())
		stream.Recv(&text) //nolint:errcheck // its end
		until(t, "nothing in flight", func() bool { return c.Stats().Nodes[0].InFlight == 0 })
	}
	if s := c.Stats(); s.Known != 1 || s.Nodes[0].Calls < 15 || s.Nodes[0].Latency <= 0 || s.Nodes[0].Failures != 0 || s.Nodes[0].Node.ID != "node0" {
		t.Errorf("%+v", s)
	}
	if c.Service() != "svc" || micro.Broadcast.String() != "broadcast" {
		t.Error("names")
	}
}

// TestCallTimeout: the timeout of Call, which has no timer of its own, ends the wait for a node and the wait for an answer.
func TestCallTimeout(t *testing.T) {
	r, p := cluster(t, 0)
	c := connect(t, r, micro.Config{Wait: patience})
	hedged := connect(t, r, micro.Config{Wait: patience, Hedge: time.Millisecond, Idempotent: []string{"/who"}})
	for _, f := range []func() error{
		func() error { return c.Call("/who", nil, nil, 20*time.Millisecond) },
		func() error { return c.Notify("/note", "x", 20*time.Millisecond) },
		func() error { return c.With(micro.Broadcast).Call("/who", nil, nil, 20*time.Millisecond) },
		func() error { return c.Call("/who", nil, nil, -1) },
		func() error { return hedged.Call("/who", nil, nil, 20*time.Millisecond) },
		func() error {
			result := make(chan error, 1)
			c.CallAsync("/who", nil, func(ctx *arpc.Context) { result <- ctx.Err() }, 20*time.Millisecond) //nolint:errcheck // the callback has it
			return recv(t, result, "callback")
		},
	} {
		if err := f(); arpc.CodeOf(err) != arpc.CodeDeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	}
	if len(p) != 0 {
		t.Fatal("there are nodes")
	}
	r, p = cluster(t, 1)
	release := make(chan struct{})
	defer close(release)
	p[0].Handler.Handle("/hold", func(*arpc.Context) { <-release }, true)
	for _, config := range []micro.Config{{}, {Hedge: time.Millisecond, Idempotent: []string{"/hold"}}} {
		if err := connect(t, r, config).Call("/hold", nil, nil, 20*time.Millisecond); arpc.CodeOf(err) != arpc.CodeDeadlineExceeded {
			t.Errorf("%+v: %v", config, err)
		}
	}
}

// TestNobody fails what has no node, and says that nothing was sent.
func TestNobody(t *testing.T) {
	r, _ := cluster(t, 0)
	c := connect(t, r, micro.Config{Wait: -1, Attempts: 2})
	for _, s := range []micro.Strategy{micro.Failover, micro.Failfast, micro.Broadcast} {
		c := c.With(s)
		for name, f := range map[string]func(ctx context.Context) error{
			"call":   func(ctx context.Context) error { return c.CallWith(ctx, "/who", nil, nil) },
			"notify": func(ctx context.Context) error { return c.NotifyWith(ctx, "/who", nil) },
		} {
			if err := f(within(t)); !errors.Is(err, arpc.CodeUnavailable) || !arpc.IsRefused(err) {
				t.Errorf("%v %s: %v, refused %v", s, name, err, arpc.IsRefused(err))
			}
		}
		if s == micro.Broadcast {
			continue
		}
		if _, err := c.OpenStream(within(t), "/stream"); !errors.Is(err, arpc.CodeUnavailable) {
			t.Error(err)
		}
		result := make(chan error, 2)
		c.CallAsync("/who", nil, func(ctx *arpc.Context) { result <- ctx.Err() }, patience) //nolint:errcheck // the callback has it
		if err := recv(t, result, "callback"); !errors.Is(err, arpc.CodeUnavailable) {
			t.Error(err)
		}
	}
	if err := c.CallAsync("/who", nil, nil, patience); err != arpc.ErrClientInvalidAsyncHandler {
		t.Error(err)
	}
	waits, start := connect(t, r, micro.Config{Wait: 300 * time.Millisecond}), time.Now()
	if err := waits.CallWith(within(t), "/who", nil, nil); !errors.Is(err, arpc.CodeUnavailable) {
		t.Error(err)
	}
	if d := time.Since(start); d < 300*time.Millisecond || d > 1100*time.Millisecond { // each of its attempts would take as long
		t.Errorf("it waits for %v", d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.CallWith(ctx, "/who", nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := micro.NewClient(ctx, r, "svc", micro.Config{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	must(t, c.Close())
	if err := c.CallWith(within(t), "/who", nil, nil); !errors.Is(err, micro.ErrClosed) {
		t.Error(err)
	}
}

// TestWaits has a call wait for a node that comes.
func TestWaits(t *testing.T) {
	r, _ := cluster(t, 0)
	c := connect(t, r, micro.Config{Wait: patience})
	result := make(chan error, 1)
	go func() {
		_, err := once.Call(within(t), c, new(string))
		result <- err
	}()
	p := provide(t, "svc", "late")
	must(t, r.Register(context.Background(), p.node, 0))
	must(t, recv(t, result, "answer"))
}

func TestFailback(t *testing.T) {
	r, _ := cluster(t, 0)
	c := connect(t, r, micro.Config{Strategy: micro.Failback, Wait: -1, Attempts: 1, FailbackQueue: 2})
	must(t, c.NotifyWith(within(t), "/note", "0"))
	until(t, "an attempt", func() bool { return c.Stats().Waiting == 1 })
	i := 1
	until(t, "two in line and one that is being sent", func() bool {
		if c.NotifyWith(within(t), "/note", fmt.Sprint(i)) == nil {
			i++
		}
		return i == 3
	})
	if err := c.NotifyWith(within(t), "/note", "more"); !errors.Is(err, arpc.CodeResourceExhausted) || !arpc.IsRefused(err) {
		t.Error(err, arpc.IsRefused(err))
	}
	if n := c.Stats().Waiting; n != 3 {
		t.Errorf("%d wait", n)
	}
	p := provide(t, "svc", "late")
	must(t, r.Register(context.Background(), p.node, 0))
	for i := range 3 {
		if got := recv(t, p.notes, "notification"); got != fmt.Sprint(i) {
			t.Errorf("%q instead of %d", got, i)
		}
	}
	until(t, "an empty queue", func() bool { return c.Stats().Waiting == 0 })
	must(t, c.NotifyWith(within(t), "/note", "now"))
	recv(t, p.notes, "notification")

	short := connect(t, micro.NewMemory(), micro.Config{Strategy: micro.Failback, Wait: -1, Attempts: 1, FailbackAge: time.Millisecond})
	must(t, short.NotifyWith(within(t), "/note", "lost"))
	until(t, "it is dropped", func() bool { return short.Stats().Dropped == 1 })
	ended := connect(t, micro.NewMemory(), micro.Config{Strategy: micro.Failback, Wait: -1, Attempts: 1})
	must(t, ended.NotifyWith(within(t), "/note", "lost"))
	must(t, ended.Close())
	if s := ended.Stats(); s.Dropped != 1 || s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
	if err := ended.NotifyWith(within(t), "/note", "late"); !errors.Is(err, micro.ErrClosed) {
		t.Error(err)
	}
	// Whatever comes while it is closed is kept and dropped, or refused.
	for range 20 {
		closing := connect(t, micro.NewMemory(), micro.Config{Strategy: micro.Failback, Wait: -1, Attempts: 1})
		var group sync.WaitGroup
		var kept atomic.Int64
		for range 4 {
			group.Go(func() {
				for {
					if err := closing.NotifyWith(within(t), "/note", "?"); errors.Is(err, micro.ErrClosed) {
						return
					} else if err == nil {
						kept.Add(1)
					}
				}
			})
		}
		until(t, "a notification", func() bool { return kept.Load() > 0 })
		must(t, closing.Close())
		group.Wait()
		if s := closing.Stats(); s.Dropped+int64(s.Waiting) != kept.Load() {
			t.Errorf("%d were kept: %+v", kept.Load(), s)
		}
	}
}

func TestBroadcast(t *testing.T) {
	r, p := cluster(t, 5)
	c := connect(t, r, micro.Config{Strategy: micro.Broadcast})
	ready(t, c.With(micro.Failover), 5)
	ask(t, c, once)
	must(t, c.NotifyWith(within(t), "/note", "all"))
	for _, p := range p {
		recv(t, p.notes, "notification")
		if p.calls.Load() != 1 {
			t.Errorf("%s: %d calls", p.node.ID, p.calls.Load())
		}
	}
	p[2].fail.Store(&arpc.Error{Code: arpc.CodeNotFound, Message: "not here"})
	_, err := once.Call(within(t), c, new(string))
	if !errors.Is(err, arpc.CodeNotFound) || err.Error() != "micro: 1 of 5 nodes have failed, "+p[2].node.Addr+": not here" {
		t.Error(err)
	}
	if _, err := c.OpenStream(within(t), "/stream"); !errors.Is(err, arpc.CodeUnimplemented) {
		t.Error(err)
	}
	result := make(chan error, 2)
	c.CallAsync("", nil, func(ctx *arpc.Context) { result <- ctx.Err() }, patience) //nolint:errcheck // the callback has it
	if err := recv(t, result, "callback"); !errors.Is(err, arpc.CodeUnimplemented) {
		t.Error(err)
	}
}

// TestBroadcastReachesThoseThatAreOut: no other node stands for them.
func TestBroadcastReachesThoseThatAreOut(t *testing.T) {
	r, p := cluster(t, 2)
	micro.HandleHealth(p[0].Handler, "/health", func(context.Context) error { return arpc.CodeFailedPrecondition })
	c := connect(t, r, micro.Config{HealthRoute: "/health"})
	ready(t, c, 1)
	until(t, "one of two nodes is out", func() bool { return c.Stats().Nodes[0].Out && c.Stats().Nodes[1].Connected })
	must(t, c.With(micro.Broadcast).NotifyWith(within(t), "/note", "all"))
	for _, p := range p {
		recv(t, p.notes, "notification")
	}
}

// TestLostConnection does not hold what was in flight against a node that is back.
func TestLostConnection(t *testing.T) {
	r, p := cluster(t, 1)
	conns := make(chan net.Conn, 10)
	var dialed atomic.Pointer[micro.Node]
	c := connect(t, r, micro.Config{EjectTime: time.Hour, EjectShare: 1, Dial: func(ctx context.Context, n micro.Node) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", n.Addr)
		if err == nil {
			dialed.Store(&n)
			conns <- nc
		}
		return nc, err
	}})
	ready(t, c, 1)
	hold := make(chan struct{})
	defer close(hold)
	p[0].hold.Store(&hold)
	var group sync.WaitGroup
	for range 15 { // less than the circuit breaker takes
		group.Go(func() {
			if err := c.CallWith(within(t), "/once", "", nil); !errors.Is(err, arpc.CodeUnavailable) {
				t.Error(err)
			}
		})
	}
	until(t, "calls in flight", func() bool { return p[0].calls.Load() == 15 })
	changed := p[0].node
	changed.Meta = map[string]string{"k": "2"}
	must(t, r.Register(context.Background(), changed, 0))
	until(t, "the change", func() bool { return c.Stats().Nodes[0].Node.Meta["k"] == "2" })
	must(t, recv(t, conns, "connection").Close())
	group.Wait()
	p[0].hold.Store(nil)
	recv(t, conns, "second connection")
	ready(t, c, 1)
	ask(t, c, once)
	if n := c.Stats().Nodes[0]; n.Out || n.Ejections != 0 || n.Failures != 15 {
		t.Errorf("%+v", n)
	}
	if dialed.Load().Meta["k"] != "2" {
		t.Errorf("dialed %+v", dialed.Load())
	}
}

// TestMoved has a server drain while the node's address leads to another one already.
func TestMoved(t *testing.T) {
	r, p := cluster(t, 1)
	next := provide(t, "svc", "next")
	var to atomic.Pointer[string]
	to.Store(&p[0].node.Addr)
	gap := make(chan struct{})
	c := connect(t, r, micro.Config{Wait: -1, Attempts: 1, Dial: func(ctx context.Context, _ micro.Node) (net.Conn, error) {
		addr := *to.Load()
		if addr != p[0].node.Addr {
			select { // calls fail meanwhile
			case <-gap:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}})
	ready(t, c, 1)
	hold := make(chan struct{})
	p[0].hold.Store(&hold)
	held := make(chan error, 1)
	go func() {
		_, err := once.Call(within(t), c, new(string))
		held <- err
	}()
	until(t, "a call in flight", func() bool { return p[0].calls.Load() == 1 })
	to.Store(&next.node.Addr)
	drained := make(chan error, 1)
	go func() { drained <- p[0].Shutdown(within(t)) }()
	until(t, "the node is not connected", func() bool {
		err := c.CallWith(within(t), "/nothing", nil, nil)
		return errors.Is(err, arpc.CodeUnavailable) && !c.Stats().Nodes[0].Connected
	})
	close(gap)
	until(t, "an answer of the other server", func() bool {
		got, err := who.Call(within(t), c, new(string))
		return err == nil && *got == "next"
	})
	close(hold) // only now
	must(t, recv(t, held, "answer"))
	must(t, recv(t, drained, "end of the drain"))
}

// TestEjection takes a node out that fails, and in again when it is well.
func TestEjection(t *testing.T) {
	r, p := cluster(t, 3)
	c := connect(t, r, micro.Config{Balancer: micro.RoundRobin(), Burst: 1000})
	ready(t, c, 3)
	p[0].fail.Store(&arpc.Error{Code: arpc.CodeUnavailable, Message: "ill"})
	until(t, "an ejection", func() bool { ask(t, c, who); return c.Stats().Nodes[0].Ejections > 0 })
	p[0].fail.Store(nil)
	calls := p[0].calls.Load()
	until(t, "calls again", func() bool { ask(t, c, who); return p[0].calls.Load() > calls })
	// Answers that are no failures do not eject, and never so many nodes that none are left.
	for _, p := range p {
		p.fail.Store(&arpc.Error{Code: arpc.CodeNotFound, Message: "no"})
	}
	before := c.Stats()
	for range 100 {
		who.Call(within(t), c, new(string)) //nolint:errcheck // it fails
	}
	for i, n := range c.Stats().Nodes {
		if n.Ejections != before.Nodes[i].Ejections {
			t.Errorf("%s was ejected", n.Node.ID)
		}
	}
	for _, p := range p {
		p.fail.Store(&arpc.Error{Code: arpc.CodeUnavailable, Message: "ill"})
	}
	for range 100 {
		who.Call(within(t), c, new(string)) //nolint:errcheck // it fails
		out := 0
		for _, n := range c.Stats().Nodes {
			if n.Out {
				out++
			}
		}
		if out > 1 {
			t.Fatalf("%d of 3 are out", out)
		}
	}
}

// TestCircuitBreaker ejects a node of which half of the calls fail, never several in a row.
func TestCircuitBreaker(t *testing.T) {
	r, p := cluster(t, 2)
	var n atomic.Int64
	p[0].Handler.Handle("/half", func(ctx *arpc.Context) {
		if n.Add(1)%2 == 0 {
			ctx.Error(arpc.CodeUnavailable)
			return
		}
		ctx.Write(nil)
	})
	p[1].Handler.Handle("/half", func(ctx *arpc.Context) { ctx.Write(nil) })
	c := connect(t, r, micro.Config{Balancer: micro.RoundRobin(), EjectTime: time.Hour, Check: 10 * time.Millisecond})
	ready(t, c, 2)
	for range 100 {
		c.CallWith(within(t), "/half", nil, nil) //nolint:errcheck // some fail
	}
	until(t, "an ejection", func() bool { return c.Stats().Nodes[0].Ejections == 1 && c.Stats().Nodes[0].Out })
	if got := n.Load(); got < 18 || got > 60 {
		t.Errorf("after %d calls", got)
	}
}

// TestHealthRoute takes a node out that says that it is ill.
func TestHealthRoute(t *testing.T) {
	r, p := cluster(t, 2)
	var ill atomic.Bool
	var checks atomic.Int64
	micro.HandleHealth(p[0].Handler, "/health", func(context.Context) error {
		checks.Add(1)
		if ill.Load() {
			return arpc.CodeFailedPrecondition
		}
		return nil
	})
	c := connect(t, r, micro.Config{HealthRoute: "/health"})
	ready(t, c, 2) // node1 has no such route
	ill.Store(true)
	ready(t, c, 1)
	if !c.Stats().Nodes[0].Out {
		t.Errorf("%+v", c.Stats())
	}
	for range 20 {
		if ask(t, c, who) != "node1" {
			t.Error("a call at a node that is ill")
		}
	}
	ill.Store(false)
	ready(t, c, 2)
	// That a node is ill does not end what it does.
	hold, was := make(chan struct{}), p[0].calls.Load()
	p[0].hold.Store(&hold)
	held, calls := make(chan error, 1000), 0
	until(t, "a call in flight", func() bool {
		calls++
		go func() { held <- c.CallWith(within(t), "/once", "", nil) }()
		return p[0].calls.Load() > was
	})
	ill.Store(true)
	ready(t, c, 1)
	before := checks.Load()
	until(t, "further checks", func() bool { return checks.Load() > before+5 })
	close(hold)
	for range calls {
		must(t, recv(t, held, "answer"))
	}
}

// TestHedge gets an answer though a node does not give one, and ejects it.
func TestHedge(t *testing.T) {
	r, p := cluster(t, 3)
	c := connect(t, r, micro.Config{Hedge: 5 * time.Millisecond, Balancer: micro.RoundRobin(), Burst: 1000, EjectTime: time.Hour})
	ready(t, c, 3)
	hold := make(chan struct{})
	defer close(hold)
	p[1].hold.Store(&hold)
	until(t, "an ejection", func() bool {
		if ask(t, c, who) == "node1" {
			t.Error("an answer of the node that has none")
		}
		return c.Stats().Nodes[1].Out
	})
}

// TestOutage keeps the nodes when the registry is lost, and for a while when it comes back without them.
func TestOutage(t *testing.T) {
	_, p := cluster(t, 3)
	r := &script{first: []micro.Node{p[0].node, p[1].node}}
	c := connect(t, r, micro.Config{Grace: 300 * time.Millisecond})
	ready(t, c, 2)
	r.feed().Lost()
	until(t, "lost", func() bool { return c.Stats().Lost })
	r.feed().Delete(p[0].node)
	ask(t, c, who)
	back := time.Now()
	r.feed().Set(nil)
	until(t, "found", func() bool { return !c.Stats().Lost })
	if n := c.Stats().Known; n != 2 && time.Since(back) < 300*time.Millisecond {
		t.Errorf("%d nodes", n)
	}
	ask(t, c, who)
	r.feed().Put(p[1].node, p[2].node)
	until(t, "the fresh set", func() bool {
		nodes := c.Stats().Nodes
		return len(nodes) == 2 && nodes[0].Node.ID == "node1" && nodes[1].Node.ID == "node2"
	})
	if d := time.Since(back); d < 300*time.Millisecond {
		t.Errorf("node0 is gone after %v", d)
	}
	ask(t, c, who)
	r.feed().Set(nil) // this time the registry means it
	until(t, "no nodes", func() bool { return c.Stats().Known == 0 })
}

func TestWantAndSubset(t *testing.T) {
	var nodes []micro.Node
	for i := range 40 {
		nodes = append(nodes, micro.Node{Service: "svc", Version: fmt.Sprint("v", i%2), ID: fmt.Sprint(i), Addr: "127.0.0.1:1"})
	}
	r, err := micro.NewStatic(nodes...)
	must(t, err)
	of := func(c micro.Config) map[string]bool {
		c.Wait, c.Attempts = -1, 1
		client := connect(t, r, c)
		client.CallWith(within(t), "/", nil, nil) //nolint:errcheck // nobody is there
		ids := map[string]bool{}
		until(t, "nodes", func() bool { return len(client.Stats().Nodes) > 0 })
		for _, n := range client.Stats().Nodes {
			ids[n.Node.ID] = true
		}
		return ids
	}
	if got := of(micro.Config{Want: micro.Node{Version: "v1"}}); len(got) != 20 || !got["1"] || got["2"] {
		t.Errorf("%v", got)
	}
	if got := of(micro.Config{Filter: func(n micro.Node) bool { return n.ID == "7" }}); len(got) != 1 || !got["7"] {
		t.Errorf("%v", got)
	}
	if got := of(micro.Config{Subset: -1}); len(got) != 40 {
		t.Errorf("%v", got)
	}
	all := map[string]bool{}
	for range 30 {
		got := of(micro.Config{Subset: 4})
		if len(got) != 4 {
			t.Fatalf("%v", got)
		}
		for id := range got {
			all[id] = true
		}
	}
	if len(all) < 30 { // of 40, each is left out by all with a probability of 0.9^30
		t.Errorf("subsets of all clients: %d nodes", len(all))
	}
}

func TestPublish(t *testing.T) {
	r, p := cluster(t, 1)
	other := micro.Node{Service: "svc", ID: "b", Addr: p[0].node.Addr, Weight: 1}
	pub, err := micro.Publish(within(t), r, other, 0)
	must(t, err)
	c := connect(t, r, micro.Config{})
	ready(t, c, 2)
	must(t, pub.Update(within(t), func(n *micro.Node) { n.Weight, n.Meta = 7, map[string]string{"zone": "z"} }))
	until(t, "the weight", func() bool {
		n := c.Stats().Nodes[0].Node
		return n.Weight == 7 && n.Meta["zone"] == "z"
	})
	if n := pub.Node(); n.Weight != 7 {
		t.Errorf("%+v", n)
	}
	for _, change := range []func(*micro.Node){func(n *micro.Node) { n.ID = "c" }, func(n *micro.Node) { n.Weight = -1 }} {
		if err := pub.Update(within(t), change); !errors.Is(err, arpc.CodeInvalidArgument) {
			t.Error(err)
		}
	}
	must(t, pub.Withdraw(within(t)))
	must(t, pub.Withdraw(within(t)))
	until(t, "one node", func() bool { return len(c.Stats().Nodes) == 1 })
	if err := pub.Update(within(t), func(*micro.Node) {}); err != micro.ErrClosed {
		t.Error(err)
	}
	if _, err := micro.Publish(within(t), r, micro.Node{}, 0); !errors.Is(err, arpc.CodeInvalidArgument) {
		t.Error(err)
	}
}

// A hung registry takes as long as the context.
type hung struct{ micro.Registry }

func (hung) Register(ctx context.Context, _ micro.Node, _ time.Duration) error {
	if _, limited := ctx.Deadline(); !limited {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// TestWithdrawDoesNotWait for an Update longer than its context says.
func TestWithdrawDoesNotWait(t *testing.T) {
	pub, err := micro.Publish(context.Background(), hung{}, micro.Node{}, 0)
	must(t, err)
	ctx, end := context.WithTimeout(context.Background(), patience)
	begun, updated := make(chan struct{}), make(chan error, 1)
	go func() { updated <- pub.Update(ctx, func(*micro.Node) { close(begun) }) }()
	recv(t, begun, "update")
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := pub.Withdraw(ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	end()
	if err := recv(t, updated, "end of the update"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A freezer is a connection on which, once it is frozen, nothing arrives any more, and nothing ends.
type freezer struct {
	net.Conn
	frozen chan struct{} // closed to freeze
	closed chan struct{}
	once   sync.Once
}

func (f *freezer) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	select {
	case <-f.frozen:
		<-f.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (f *freezer) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.Conn.Close()
}

// TestSilentNode has a node hang: it gets no new calls, its connection is closed, and what waited there is done elsewhere if it is idempotent.
func TestSilentNode(t *testing.T) {
	r, p := cluster(t, 2)
	frozen := make(chan struct{})
	c := connect(t, r, micro.Config{
		Balancer: micro.RoundRobin(), CheckTimeout: 20 * time.Millisecond, Check: 10 * time.Millisecond,
		Dial: func(ctx context.Context, n micro.Node) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, "tcp", n.Addr)
			if err != nil || n.ID != "node0" {
				return nc, err
			}
			return &freezer{Conn: nc, frozen: frozen, closed: make(chan struct{})}, nil
		},
	})
	ready(t, c, 2)
	hold := make(chan struct{})
	p[0].hold.Store(&hold)
	type result struct {
		got        *string
		err        error
		idempotent bool
	}
	results := make(chan result, 4)
	for range 2 {
		for _, m := range []arpc.Method[string, string]{who, once} {
			go func() {
				got, err := m.Call(within(t), c, new(string))
				results <- result{got, err, m.IsIdempotent()}
			}()
		}
	}
	until(t, "calls at the node", func() bool { return p[0].calls.Load() > 0 })
	close(frozen)
	close(hold)
	for range 4 {
		select {
		case r := <-results:
			switch {
			case r.err == nil && *r.got != "node1", r.err != nil && (r.idempotent || !errors.Is(r.err, arpc.CodeUnavailable)):
				t.Errorf("%+v", r)
			}
		case <-time.After(patience):
			t.Fatal("a call waits at a node that hangs")
		}
	}
	for range 20 {
		if got := ask(t, c.With(micro.Failfast), once); got != "node1" {
			t.Errorf("a call at %s", got)
		}
	}
}

// TestOwnBalancer chooses by what a function of the program makes of the call's context and the nodes' metadata.
func TestOwnBalancer(t *testing.T) {
	r, p := cluster(t, 3)
	type colour struct{}
	for i, name := range []string{"red", "green", "blue"} {
		n := p[i].node
		n.Meta = map[string]string{"colour": name}
		must(t, r.Register(within(t), n, 0))
	}
	c := connect(t, r, micro.Config{Balancer: func(peers []*micro.Peer) micro.Pick {
		return func(ctx context.Context, tried *micro.Tried) *micro.Peer {
			for _, p := range peers {
				if p.Meta["colour"] == ctx.Value(colour{}) && !tried.Has(p) && p.InFlight() < 100 {
					return p
				}
			}
			return nil // any other
		}
	}})
	ready(t, c, 3)
	for i, name := range []string{"red", "green", "blue"} {
		got, err := who.Call(context.WithValue(within(t), colour{}, name), c, new(string))
		must(t, err)
		if *got != p[i].node.ID {
			t.Errorf("%s is at %s", name, *got)
		}
	}
	p[1].fail.Store(&arpc.Error{Code: arpc.CodeUnavailable, Message: "ill"})
	got, err := who.Call(context.WithValue(within(t), colour{}, "green"), c, new(string))
	must(t, err)
	if *got == "node1" {
		t.Error("the one that has failed was asked again")
	}
}
