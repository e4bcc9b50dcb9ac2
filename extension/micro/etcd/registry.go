package etcd

import (
	"context"
	"sync"
	"time"

	"github.com/arpc-go/arpc/extension/micro"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Registry is a micro.Registry on etcd. It has a connection to etcd of its own.
type Registry struct {
	config Config
	client *clientv3.Client
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	group  sync.WaitGroup // keepers, followers and watches
	ended  chan struct{}  // Close has done everything
	failed error          // of Close, once ended

	mu       sync.Mutex // taken before that of a follower
	closed   bool
	keepers  map[int64]*keeper  // by the seconds of their leases
	own      map[string]*keeper // who has put a key
	follower *follower          // nil while nobody watches
}

var _ micro.Registry = (*Registry)(nil)

// New returns a Registry, and connects to etcd in the background, except that with a user name it waits for etcd to accept that, for DialTimeout at
// most. The error is for a configuration that cannot be, or that etcd refuses.
func New(config Config) (*Registry, error) {
	config = config.withDefaults()
	client, err := clientv3.New(config.Client)
	if err != nil {
		return nil, failed(err)
	}
	r := &Registry{config: config, client: client, ended: make(chan struct{}), keepers: map[int64]*keeper{}, own: map[string]*keeper{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Register implements micro.Registry. A ttl of more than 2^31 seconds is refused.
func (r *Registry) Register(ctx context.Context, n micro.Node, ttl time.Duration) error {
	if err := n.Check(); err != nil {
		return err
	}
	value, err := n.MarshalValue()
	if err != nil {
		return err
	}
	if ttl == 0 {
		ttl = r.config.TTL
	}
	seconds := int64(ttl / time.Second)
	if seconds < 1 || seconds > 1<<31 {
		return invalid("a ttl of " + ttl.String())
	}
	return r.store(ctx, n.Path(r.config.Root), string(value), seconds)
}

// Deregister implements micro.Registry. Whenever it fails it goes on in the background, also if ctx has ended before.
func (r *Registry) Deregister(ctx context.Context, n micro.Node) error {
	return r.store(ctx, n.Path(r.config.Root), "", 0)
}

// store has a keeper put a value, or delete it if it is empty, and waits until that is done.
func (r *Registry) store(ctx context.Context, path, value string, seconds int64) error {
	if value != "" && ctx.Err() != nil {
		return ended(ctx, nil)
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return micro.ErrClosed
	}
	k := r.own[path]
	if value != "" {
		k = r.keeper(seconds)
	} else if k == nil {
		r.mu.Unlock()
		return nil
	}
	w := k.want(path, value)
	r.mu.Unlock()

	timer := time.NewTimer(r.config.Timeout)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-ctx.Done():
	case <-timer.C:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if k.waits(path, w) {
		k.giveUp(path, ended(ctx, k.failure))
	}
	return w.err
}

// keeper returns that of a ttl.
func (r *Registry) keeper(seconds int64) *keeper {
	k := r.keepers[seconds]
	if k == nil {
		k = newKeeper(r, seconds)
		r.keepers[seconds] = k
		r.group.Go(k.run)
	}
	return k
}

// Watch implements micro.Registry.
func (r *Registry) Watch(ctx context.Context, service string) (<-chan micro.Event, error) {
	if ctx.Err() != nil {
		return nil, ended(ctx, nil)
	}
	f, err := r.follow()
	if err != nil {
		return nil, err
	}
	if err := f.wait(ctx); err != nil {
		r.unfollow(f)
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(r.ctx, cancel)
	feed := micro.NewFeed(ctx)
	f.add(service, feed)
	context.AfterFunc(ctx, func() {
		stop()
		f.remove(service, feed)
		r.unfollow(f)
	})
	return feed.Events(), nil
}

// follow returns the follower, and counts who uses it.
func (r *Registry) follow() (*follower, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, micro.ErrClosed
	}
	f := r.follower
	if f == nil {
		f = newFollower(r)
		r.follower = f
		r.group.Go(f.run)
	}
	f.users++
	r.group.Add(1)
	return f, nil
}

// unfollow ends the follower with its last user.
func (r *Registry) unfollow(f *follower) {
	defer r.group.Done()
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.users--; f.users == 0 {
		f.cancel()
		r.follower = nil
	}
}

// Close implements micro.Registry. It waits for etcd to revoke the leases for at most 3 seconds; otherwise nodes go with their ttl. A call of it
// while another one is under way waits for that.
func (r *Registry) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		<-r.ended
		return r.failed
	}
	r.closed = true
	for _, k := range r.keepers {
		k.close()
	}
	r.mu.Unlock()
	r.cancel()
	r.group.Wait()
	if err := r.client.Close(); err != nil {
		r.failed = failed(err)
	}
	close(r.ended)
	return r.failed
}
