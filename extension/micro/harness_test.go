package micro_test

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

var (
	who  = arpc.NewMethod[string, string]("/who", arpc.Async, arpc.Idempotent)
	once = arpc.NewMethod[string, string]("/once", arpc.Async)
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// until polls what nothing tells of.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		<-time.After(time.Millisecond)
	}
}

// A provider is a server with a node.
type provider struct {
	*arpc.Server
	node  micro.Node
	calls atomic.Int64
	notes chan string
	fail  atomic.Pointer[arpc.Error] // answer of both methods
	hold  atomic.Pointer[chan struct{}]
	ended chan struct{}
}

func (p *provider) answer(ctx *arpc.Context, _ *string) (*string, error) {
	p.calls.Add(1)
	if hold := p.hold.Load(); hold != nil {
		select {
		case <-*hold:
		case <-ctx.Done():
		}
	}
	if err := p.fail.Load(); err != nil {
		return nil, err
	}
	return &p.node.ID, nil
}

// provide starts a server for service, whose handlers answer with id.
func provide(t testing.TB, service, id string, prepare ...func(arpc.Handler)) *provider {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &provider{
		Server: arpc.NewServer(arpc.NewHandler()), notes: make(chan string, 10_000), ended: make(chan struct{}),
		node: micro.Node{Service: service, ID: id, Addr: ln.Addr().String()},
	}
	who.Handle(p.Handler, p.answer)
	once.Handle(p.Handler, p.answer)
	p.Handler.Handle("/note", func(ctx *arpc.Context) { p.notes <- string(ctx.Body()) })
	p.Handler.HandleStream("/stream", func(s *arpc.Stream) {
		for {
			var text string
			if s.Recv(&text) != nil || s.Send(p.node.ID+text) != nil {
				return
			}
		}
	})
	for _, f := range prepare {
		f(p.Handler)
	}
	go func() {
		defer close(p.ended)
		p.Serve(ln) //nolint:errcheck // it is stopped
	}()
	t.Cleanup(func() {
		must(t, p.Stop())
		<-p.ended
	})
	return p
}

// cluster starts providers and a registry that knows them.
func cluster(t testing.TB, n int) (*micro.Memory, []*provider) {
	t.Helper()
	r := micro.NewMemory()
	t.Cleanup(func() { must(t, r.Close()) })
	var all []*provider
	for i := range n {
		p := provide(t, "svc", fmt.Sprint("node", i))
		must(t, r.Register(context.Background(), p.node, 0))
		all = append(all, p)
	}
	return r, all
}

// quick finds out what happens in tests' time.
func quick(c micro.Config) micro.Config {
	c.Check, c.EjectTime = cmp.Or(c.Check, 20*time.Millisecond), cmp.Or(c.EjectTime, 20*time.Millisecond)
	c.Options = append([]arpc.ClientOption{arpc.NewHandler(), arpc.Backoff(5*time.Millisecond, 20*time.Millisecond)}, c.Options...)
	return c
}

func connect(t testing.TB, r micro.Registry, c micro.Config) *micro.Client {
	t.Helper()
	client, err := micro.NewClient(context.Background(), r, "svc", quick(c))
	must(t, err)
	t.Cleanup(func() { must(t, client.Close()) })
	return client
}

// ready calls until n nodes are connected and in.
func ready(t testing.TB, c *micro.Client, n int) {
	t.Helper()
	c.CallWith(context.Background(), "/nothing", nil, nil) //nolint:errcheck // it makes the connections
	until(t, fmt.Sprint(n, " nodes that are connected"), func() bool {
		in := 0
		for _, node := range c.Stats().Nodes {
			if node.Connected && !node.Out {
				in++
			}
		}
		return in == n
	})
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func ask(t testing.TB, c arpc.Caller, m arpc.Method[string, string]) string {
	t.Helper()
	text := ""
	got, err := m.Call(within(t), c, &text)
	must(t, err)
	return *got
}

// A script is a registry whose events the test tells.
type script struct {
	micro.Registry
	mu    sync.Mutex
	feeds []*micro.Feed
	first []micro.Node
}

func (s *script) Watch(ctx context.Context, _ string) (<-chan micro.Event, error) {
	f := micro.NewFeed(ctx)
	f.Set(s.first)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.feeds = append(s.feeds, f)
	return f.Events(), nil
}

func (s *script) feed() *micro.Feed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.feeds[len(s.feeds)-1]
}
