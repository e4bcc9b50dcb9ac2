package micro

import (
	"context"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
)

// Memory is a Registry within the process, for tests and for programs that are their own cluster. Its nodes stay until they are
// deregistered or their Memory is closed: a ttl means nothing.
type Memory struct {
	store  *memoryStore
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	feeds  sync.WaitGroup
}

// memoryStore is what Memories share.
type memoryStore struct {
	mu    sync.Mutex
	nodes map[string]map[string]owned // by service and key
	feeds map[string]map[*Feed]struct{}
}

// owned is a node of the Memory that has registered it last.
type owned struct {
	Node
	by *Memory
}

// of returns the nodes of a service.
func (s *memoryStore) of(service string) (nodes []Node) {
	for _, o := range s.nodes[service] {
		nodes = append(nodes, o.Node)
	}
	return nodes
}

// NewMemory returns an empty one.
func NewMemory() *Memory {
	return newMemory(&memoryStore{nodes: map[string]map[string]owned{}, feeds: map[string]map[*Feed]struct{}{}})
}

// NewStatic returns a Memory with nodes that the program knows, from its configuration. Its error is that of Node.Check.
func NewStatic(nodes ...Node) (*Memory, error) {
	m := NewMemory()
	for _, n := range nodes {
		if err := m.Register(context.Background(), n, 0); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func newMemory(s *memoryStore) *Memory {
	m := &Memory{store: s}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Open returns another Registry with the same nodes, as another process would have it.
func (m *Memory) Open() *Memory { return newMemory(m.store) }

// lock locks the store, and reports why it does not.
func (m *Memory) lock(ctx context.Context) error {
	if err := ended(ctx); err != nil {
		return err
	}
	m.store.mu.Lock()
	if m.ctx.Err() != nil {
		m.store.mu.Unlock()
		return ErrClosed
	}
	return nil
}

// ended is the error of a context that has ended, nil if it has not. A context derived from a limited one does not know of its deadline.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if t, ok := ctx.Deadline(); err == nil && ok && !time.Now().Before(t) {
		err, cause = context.DeadlineExceeded, context.DeadlineExceeded
	}
	if err != nil {
		return &arpc.Error{Code: arpc.CodeOf(err), Message: "micro: " + cause.Error(), Unsent: true}
	}
	return nil
}

// Register implements Registry.
func (m *Memory) Register(ctx context.Context, n Node, _ time.Duration) error {
	if err := n.Check(); err != nil {
		return err
	}
	if err := m.lock(ctx); err != nil {
		return err
	}
	defer m.store.mu.Unlock()
	m.put(n)
	for f := range m.store.feeds[n.Service] {
		f.Put(n)
	}
	return nil
}

func (m *Memory) put(n Node) {
	if m.store.nodes[n.Service] == nil {
		m.store.nodes[n.Service] = map[string]owned{}
	}
	m.store.nodes[n.Service][n.Key()] = owned{n, m}
}

// Deregister implements Registry.
func (m *Memory) Deregister(_ context.Context, n Node) error {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	m.withdraw(n)
	return nil
}

// withdraw removes a node of this Memory and says so.
func (m *Memory) withdraw(n Node) {
	if m.remove(n) {
		for f := range m.store.feeds[n.Service] {
			f.Delete(n)
		}
	}
}

// remove removes a node, unless another Memory has registered it since, or nobody has.
func (m *Memory) remove(n Node) bool {
	if of := m.store.nodes[n.Service]; of[n.Key()].by == m {
		if delete(of, n.Key()); len(of) == 0 {
			delete(m.store.nodes, n.Service)
		}
		return true
	}
	return false
}

// Replace makes nodes all that this Memory has of a service. Its errors are those of Register; nothing has changed then.
func (m *Memory) Replace(service string, nodes ...Node) error {
	for _, n := range nodes {
		if err := n.Check(); err != nil {
			return err
		}
		if n.Service != service {
			return invalid("a node of %q among those of %q", n.Service, service)
		}
	}
	if err := m.lock(context.Background()); err != nil {
		return err
	}
	defer m.store.mu.Unlock()
	for _, n := range m.store.of(service) {
		m.remove(n)
	}
	for _, n := range nodes {
		m.put(n)
	}
	for f := range m.store.feeds[service] {
		f.Set(m.store.of(service))
	}
	return nil
}

// Watch implements Registry.
func (m *Memory) Watch(ctx context.Context, service string) (<-chan Event, error) {
	if err := m.lock(ctx); err != nil {
		return nil, err
	}
	s := m.store
	defer s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(m.ctx, cancel)
	f := NewFeed(ctx)
	if s.feeds[service] == nil {
		s.feeds[service] = map[*Feed]struct{}{}
	}
	s.feeds[service][f] = struct{}{}
	f.Set(s.of(service))
	m.feeds.Add(1)
	context.AfterFunc(ctx, func() {
		defer m.feeds.Done()
		stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		if delete(s.feeds[service], f); len(s.feeds[service]) == 0 {
			delete(s.feeds, service)
		}
	})
	return f.Events(), nil
}

// Close implements Registry: the nodes of this Memory are gone.
func (m *Memory) Close() error {
	m.store.mu.Lock()
	for service := range m.store.nodes {
		for _, n := range m.store.of(service) {
			m.withdraw(n)
		}
	}
	m.cancel()
	m.store.mu.Unlock()
	m.feeds.Wait()
	return nil
}
