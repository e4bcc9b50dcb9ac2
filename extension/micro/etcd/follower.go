package etcd

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/log"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"
)

// A follower has all nodes of the store for the watches of a Registry, and a goroutine that follows what changes:
//
//	listing ──▶ watching ──▶ over: nobody watches any more, or Close
//	   ▲           │
//	   └───────────┘ compacted; or the connection, or the leader, is lost: everybody is told
type follower struct {
	registry *Registry
	prefix   string
	ctx      context.Context
	cancel   context.CancelFunc
	users    int // the Registry's lock guards it

	mu      sync.Mutex
	live    bool          // nodes is what the store has
	failure *arpc.Error   // why it is not
	changed chan struct{} // closed when one of these two changes
	nodes   map[string]map[string]micro.Node
	feeds   map[string]map[*micro.Feed]struct{} // by service, as nodes
}

func newFollower(r *Registry) *follower {
	f := &follower{
		registry: r, prefix: r.config.Root + "/", changed: make(chan struct{}), feeds: map[string]map[*micro.Feed]struct{}{},
	}
	f.ctx, f.cancel = context.WithCancel(r.ctx)
	return f
}

// wait waits for the first listing, or for the next after a loss.
func (f *follower) wait(ctx context.Context) error {
	timer := time.NewTimer(f.registry.config.Timeout)
	defer timer.Stop()
	for {
		f.mu.Lock()
		live, failure, changed := f.live, f.failure, f.changed
		f.mu.Unlock()
		var last error
		if failure != nil {
			last = failure
		}
		switch {
		case live:
			return nil
		case f.ctx.Err() != nil:
			return micro.ErrClosed
		case failure != nil && failure.Code != arpc.CodeUnavailable:
			return failure
		}
		select {
		case <-changed:
		case <-f.ctx.Done():
		case <-ctx.Done():
			return ended(ctx, last)
		case <-timer.C:
			return ended(ctx, last)
		}
	}
}

// add begins to tell a feed of a service.
func (f *follower) add(service string, feed *micro.Feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.feeds[service] == nil {
		f.feeds[service] = map[*micro.Feed]struct{}{}
	}
	f.feeds[service][feed] = struct{}{}
	feed.Set(slices.Collect(maps.Values(f.nodes[service])))
	if !f.live {
		feed.Lost()
	}
}

func (f *follower) remove(service string, feed *micro.Feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if delete(f.feeds[service], feed); len(f.feeds[service]) == 0 {
		delete(f.feeds, service)
	}
}

// run is the goroutine.
func (f *follower) run() {
	for p := pause(0); f.ctx.Err() == nil; {
		revision, err := f.list()
		if err == nil {
			p = 0
			err = f.watch(revision + 1)
		}
		if f.ctx.Err() != nil || errors.Is(err, rpctypes.ErrCompacted) {
			continue
		}
		f.lost(failed(err))
		p.wait(f.ctx)
	}
}

// page is how many nodes are listed at a time.
const page = 1000

// list gets all nodes, and the revision at which the store had them.
func (f *follower) list() (revision int64, err error) {
	nodes := map[string]map[string]micro.Node{}
	end := clientv3.GetPrefixRangeEnd(f.prefix)
	for key := f.prefix; ; {
		ctx, cancel := context.WithTimeout(f.ctx, f.registry.config.Timeout)
		got, err := f.registry.client.Get(ctx, key, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(revision))
		cancel()
		if err != nil {
			return 0, err
		}
		if revision == 0 {
			revision = got.Header.Revision
		}
		for _, kv := range got.Kvs {
			key = string(kv.Key) + "\x00" // the next one there can be
			if n, ok := f.parse(string(kv.Key), kv.Value); ok {
				if nodes[n.Service] == nil {
					nodes[n.Service] = map[string]micro.Node{}
				}
				nodes[n.Service][n.Key()] = n
			}
		}
		if !got.More {
			break
		}
	}
	f.set(nodes)
	return revision, nil
}

// parse returns the node of a key and a value.
func (f *follower) parse(key string, value []byte) (micro.Node, bool) {
	at, ok := micro.ParsePath(f.registry.config.Root, key)
	if !ok {
		return micro.Node{}, false
	}
	n, err := micro.UnmarshalValue(value)
	if err != nil || n.Key() != at.Key() {
		log.Debug("micro/etcd: the value of %s is not a node of that name: %v", key, err)
		return micro.Node{}, false
	}
	return n, true
}

var (
	errDisconnected = errors.New("the connection to etcd was lost")
	errWatch        = errors.New("the watch has ended")
)

// watch applies changes, beginning with those of a revision, and returns why it has ended. etcd's client would go on after a lost connection by
// itself, and tell nobody; so the watch ends with the connection.
func (f *follower) watch(revision int64) error {
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(f.ctx))
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel(nil)
	group.Go(func() {
		if f.registry.client.ActiveConnection().WaitForStateChange(ctx, connectivity.Ready) {
			cancel(errDisconnected)
		}
	})
	changes := f.registry.client.Watch(ctx, f.prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	for c := range changes {
		if err := c.Err(); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return err
		}
		f.apply(c.Events)
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return errWatch
}

func (f *follower) changeLocked(live bool, failure *arpc.Error) {
	f.live, f.failure = live, failure
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *follower) set(nodes map[string]map[string]micro.Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		log.Info("micro/etcd: the nodes below %s are known again", f.prefix)
	}
	f.nodes = nodes
	f.changeLocked(true, nil)
	for service, feeds := range f.feeds {
		for feed := range feeds {
			feed.Set(slices.Collect(maps.Values(nodes[service])))
		}
	}
}

func (f *follower) lost(failure *arpc.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.live {
		log.Warn("micro/etcd: the nodes below %s are not followed: %v", f.prefix, failure)
	}
	f.changeLocked(false, failure)
	for _, feeds := range f.feeds {
		for feed := range feeds {
			feed.Lost()
		}
	}
}

func (f *follower) apply(events []*clientv3.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		at, ok := micro.ParsePath(f.registry.config.Root, string(e.Kv.Key))
		if !ok {
			continue
		}
		before, known := f.nodes[at.Service][at.Key()]
		var n micro.Node
		there := false
		if e.Type == clientv3.EventTypePut {
			n, there = f.parse(string(e.Kv.Key), e.Kv.Value)
		}
		switch {
		case there && !(known && reflect.DeepEqual(before, n)):
			if f.nodes[at.Service] == nil {
				f.nodes[at.Service] = map[string]micro.Node{}
			}
			f.nodes[at.Service][at.Key()] = n
			for feed := range f.feeds[at.Service] {
				feed.Put(n)
			}
		case !there && known:
			if delete(f.nodes[at.Service], at.Key()); len(f.nodes[at.Service]) == 0 {
				delete(f.nodes, at.Service)
			}
			for feed := range f.feeds[at.Service] {
				feed.Delete(at)
			}
		}
	}
}
