package zookeeper

import (
	"context"
	"sync"
	"time"

	"github.com/arpc-go/arpc/extension/micro"
)

// A Registry is a micro.Registry on ZooKeeper.
type Registry struct {
	config Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	// background counts what Close waits for. It grows only with mu held and ctx not ended.
	background sync.WaitGroup
	closed     chan struct{} // closed when Close is done
	wake       chan struct{} // tells publish of dirty

	mu       sync.Mutex
	nodes    link
	watches  link
	writable chan struct{} // closed while the session of nodes is live
	own      map[string]*own
	dirty    map[string]struct{} // paths of own that may not be in the store as they should
	// followers are those of the services that are watched. One that is ending is replaced by its successor.
	followers map[string]*follower
	root      rootList
}

// New returns a Registry, which connects when it is used, and again after each loss of a connection. Its error is about the Config.
func New(config Config) (*Registry, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	r := &Registry{
		config: config, closed: make(chan struct{}), wake: make(chan struct{}, 1), writable: make(chan struct{}), watches: link{watches: true},
		own: map[string]*own{}, dirty: map[string]struct{}{}, followers: map[string]*follower{},
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.background.Go(r.publish)
	return r, nil
}

// writableLocked says that the session of nodes is live: everything may have changed while it was not.
func (r *Registry) writableLocked() {
	close(r.writable)
	for path := range r.own {
		r.dirty[path] = struct{}{}
	}
	signal(r.wake)
}

// watchableLocked says that the session of watches is live.
func (r *Registry) watchableLocked() {
	for _, f := range r.followers {
		signal(f.wake)
	}
}

// within bounds a wait by the Config's timeout and the Registry's end.
func (r *Registry) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(r.ctx, func() { cancel(micro.ErrClosed) })
	ctx, end := context.WithTimeoutCause(ctx, r.config.Timeout, errTimeout)
	return ctx, func() {
		stop()
		end()
		cancel(nil)
	}
}

// granted waits until nodes can be written, and returns the timeout of their session.
func (r *Registry) granted(ctx context.Context) (time.Duration, error) {
	for {
		r.mu.Lock()
		if err := r.ended(ctx); err != nil {
			r.mu.Unlock()
			return 0, err
		}
		if r.nodes.session == nil {
			r.openLocked(&r.nodes)
		}
		writable, live, granted := r.writable, r.nodes.session.live, r.nodes.session.granted
		r.mu.Unlock()
		if live {
			return granted, nil
		}
		select {
		case <-writable:
		case <-ctx.Done():
		}
	}
}

// Register implements micro.Registry. The ttl of all nodes is the session timeout that ZooKeeper has granted, which is also what 0 stands for: it is an
// error with CodeInvalidArgument if that is longer than ttl, or than what the Config asks for. Others are
// CodePermissionDenied, CodeUnauthenticated, CodeInvalidArgument and CodeFailedPrecondition when the store refuses the node.
func (r *Registry) Register(ctx context.Context, n micro.Node, ttl time.Duration) error {
	if err := n.Check(); err != nil {
		return err
	}
	value, err := n.MarshalValue()
	if err != nil {
		return err
	}
	if ttl < 0 || ttl > 0 && ttl < r.config.SessionTimeout {
		return invalid("a ttl of %v, with a session timeout of %v", ttl, r.config.SessionTimeout)
	}
	ctx, cancel := r.within(ctx)
	defer cancel()
	granted, err := r.granted(ctx)
	if err != nil {
		return err
	}
	if ttl > 0 && ttl < granted {
		return invalid("a ttl of %v; the server's least session timeout is %v", ttl, granted)
	}
	return r.set(ctx, n.Path(r.config.Root), value)
}

// Deregister implements micro.Registry.
func (r *Registry) Deregister(ctx context.Context, n micro.Node) error {
	ctx, cancel := r.within(ctx)
	defer cancel()
	return r.unset(ctx, n.Path(r.config.Root))
}

// Close implements micro.Registry.
func (r *Registry) Close() error {
	r.mu.Lock()
	first := r.ctx.Err() == nil
	if first {
		r.cancel()
		clear(r.own)
		for _, l := range []*link{&r.nodes, &r.watches} {
			s := l.session
			if s == nil || s.over {
				continue
			}
			if s.over = true; s.expire != nil {
				s.expire.Stop()
			}
			r.background.Go(func() { s.close(closePatience) }) // what is left of the session's nodes goes with it
		}
	}
	r.mu.Unlock()
	if first {
		r.background.Wait()
		close(r.closed)
	}
	<-r.closed
	return nil
}

// closePatience is how long Close waits for ZooKeeper to end the session.
const closePatience = 3 * time.Second

// signal wakes the one who receives from c.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// each calls f for all keys, some at a time, and returns the first error. Then it calls f no more.
func each(keys []string, f func(i int, key string) error) error {
	const parallel = 64
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	next := 0
	for range min(parallel, len(keys)) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				stop := failed != nil || i >= len(keys)
				mu.Unlock()
				if stop {
					return
				}
				if err := f(i, keys[i]); err != nil {
					mu.Lock()
					if failed == nil {
						failed = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failed
}

var _ micro.Registry = (*Registry)(nil)
