package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/log"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"
)

// A keeper has the nodes with one ttl, and a goroutine that makes the store have what is wanted, one request at a time:
//
//	granting ──▶ keeping ──▶ over: nothing is wanted any more, or Close; the lease is revoked
//	    ▲           │
//	    └───────────┘ the lease is lost: everything is put again under the next one
//
// The Registry's lock guards it.
type keeper struct {
	registry *Registry
	seconds  int64 // ttl of the leases
	wake     chan struct{}

	entries map[string]*entry // by path
	dirty   map[string]bool   // those that the store may not have
	failure error             // of the last request, nil if it has succeeded
}

// An entry is what the store is to have at a path. It is replaced when something else is wanted.
type entry struct {
	value  string             // empty: nothing
	former string             // what is wanted if this cannot be had
	lease  clientv3.LeaseID   // what was put last is under it
	waiter *waiter            // nil if nobody waits
	stop   context.CancelFunc // ends the request that is under way
}

type waiter struct {
	done chan struct{}
	err  error // once done
}

func newKeeper(r *Registry, seconds int64) *keeper {
	return &keeper{registry: r, seconds: seconds, wake: make(chan struct{}, 1), entries: map[string]*entry{}, dirty: map[string]bool{}}
}

var errReplaced = &arpc.Error{Code: arpc.CodeAborted, Message: "micro/etcd: the node was registered or deregistered by another call meanwhile"}

// want makes a value what is wanted.
func (k *keeper) want(path, value string) *waiter {
	w := &waiter{done: make(chan struct{})}
	e := &entry{value: value, waiter: w}
	if before := k.entries[path]; before != nil {
		e.former, e.lease = before.former, before.lease
		if value == "" {
			e.former = ""
		}
		before.finish(errReplaced)
	}
	k.set(path, e)
	return w
}

func (k *keeper) set(path string, e *entry) {
	k.entries[path] = e
	k.again(path)
}

// again has a path looked at.
func (k *keeper) again(path string) {
	k.dirty[path] = true
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// tell tells who waits.
func (e *entry) tell(err error) {
	if e.waiter != nil {
		e.waiter.err = err
		close(e.waiter.done)
		e.waiter = nil
	}
}

// finish tells who waits, and ends what is under way.
func (e *entry) finish(err error) {
	e.tell(err)
	if e.stop != nil {
		e.stop()
		e.stop = nil
	}
}

func (k *keeper) waits(path string, w *waiter) bool {
	e := k.entries[path]
	return e != nil && e.waiter == w
}

// giveUp fails who waits. A value that may have been put is replaced by what was wanted before; a deletion stays wanted.
func (k *keeper) giveUp(path string, err error) {
	e := k.entries[path]
	switch {
	case e.value == "":
		e.tell(err)
		return
	case e.former == "" && e.lease == clientv3.NoLease: // nothing was sent
		k.forget(path)
	default:
		k.set(path, &entry{value: e.former, former: e.former, lease: e.lease})
	}
	e.finish(err)
	if other := k.registry.own[path]; other != nil && other != k {
		other.again(path) // its value may have been replaced
	}
}

// forget leaves a path as it is.
func (k *keeper) forget(path string) {
	delete(k.entries, path)
	delete(k.dirty, path)
}

// close fails all who wait.
func (k *keeper) close() {
	for _, e := range k.entries {
		e.finish(micro.ErrClosed)
	}
}

// over reports whether nothing is wanted any more. The Registry has another keeper then.
func (k *keeper) over() bool {
	r := k.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(k.entries) > 0 || r.closed {
		return false
	}
	delete(r.keepers, k.seconds)
	return true
}

// run is the goroutine.
func (k *keeper) run() {
	r, lost := k.registry, clientv3.NoLease
	for p := pause(0); ; {
		// Its own: a Lease that has failed once cannot keep anything alive.
		leases := clientv3.NewLease(r.client)
		id, err := k.grant(leases, lost == clientv3.NoLease)
		if err == nil {
			p = 0
			if !k.keep(leases, id, lost) {
				k.revoke(context.Background(), leases, id)
				leases.Close() //nolint:errcheck // it returns nil
				return
			}
			lost = id
			log.Warn("micro/etcd: the lease of nodes with a ttl of %d seconds is lost; they are published again when etcd can be reached", k.seconds)
		}
		leases.Close() //nolint:errcheck // it returns nil
		if err != nil && k.over() || !p.wait(r.ctx) {
			return
		}
	}
}

// revoke takes a lease back, and deletes what is under it. If that fails it goes with its ttl.
func (k *keeper) revoke(ctx context.Context, leases clientv3.Lease, id clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(ctx, min(maxRevoke, k.registry.config.Timeout))
	defer cancel()
	leases.Revoke(ctx, id) //nolint:errcheck // see above
}

// maxRevoke bounds the withdrawal of nodes in Close.
const maxRevoke = 3 * time.Second

// grant gets a lease. When it cannot be had at all those who wait are told.
func (k *keeper) grant(leases clientv3.Lease, first bool) (clientv3.LeaseID, error) {
	r := k.registry
	ctx, cancel := context.WithTimeout(r.ctx, r.config.Timeout)
	defer cancel()
	granted, err := leases.Grant(ctx, k.seconds)
	if err == nil && (granted.TTL <= k.seconds || !first) {
		return granted.ID, nil
	}
	var failure *arpc.Error
	if err != nil {
		failure = failed(err)
	} else {
		k.revoke(r.ctx, leases, granted.ID)
		failure = invalid(fmt.Sprintf("etcd makes %d seconds of a ttl of %d", granted.TTL, k.seconds))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k.failure = failure
	if failure.Code != arpc.CodeUnavailable {
		for path, e := range k.entries {
			if e.waiter != nil {
				k.giveUp(path, failure)
			}
		}
	}
	return clientv3.NoLease, failure
}

// keep keeps a lease alive and has the store keep all entries under it. It reports true when the lease is lost. lost is the one before, which may
// be there still.
func (k *keeper) keep(leases clientv3.Lease, id, lost clientv3.LeaseID) bool {
	r := k.registry
	ctx, cancel := context.WithCancel(r.ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	alive, err := leases.KeepAlive(ctx, id)
	if err != nil {
		return r.ctx.Err() == nil
	}
	group.Go(func() {
		for range alive { // until it is lost
		}
		cancel()
	})
	group.Go(func() { k.reconnected(ctx) })
	k.all()
	for p := pause(0); ctx.Err() == nil; {
		path, e, request := k.next(ctx, id)
		if e == nil {
			if lost != clientv3.NoLease {
				k.revoke(ctx, leases, lost) // everything is under the new one
				lost = clientv3.NoLease
				log.Info("micro/etcd: all nodes with a ttl of %d seconds are published again", k.seconds)
			}
			if k.over() {
				return false
			}
			select {
			case <-k.wake:
			case <-ctx.Done():
			}
			continue
		}
		err := k.send(request, path, e, id)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			k.done(path, e, err)
			break
		}
		if k.done(path, e, err) {
			p = 0
		} else {
			p.wait(ctx)
		}
	}
	return r.ctx.Err() == nil
}

// all has all entries looked at.
func (k *keeper) all() {
	k.registry.mu.Lock()
	defer k.registry.mu.Unlock()
	for path := range k.entries {
		k.again(path)
	}
}

// reconnected has all looked at whenever there is a connection again: etcd may have been restored from what it was before.
func (k *keeper) reconnected(ctx context.Context) {
	conn := k.registry.client.ActiveConnection()
	for conn.WaitForStateChange(ctx, connectivity.Ready) {
		for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
			if !conn.WaitForStateChange(ctx, s) {
				return
			}
		}
		k.all()
	}
}

// next takes a path that is to be looked at; the entry is nil if there is none. The context is that of the request.
func (k *keeper) next(ctx context.Context, id clientv3.LeaseID) (string, *entry, context.Context) {
	k.registry.mu.Lock()
	defer k.registry.mu.Unlock()
	for path := range k.dirty {
		delete(k.dirty, path)
		if e := k.entries[path]; e != nil {
			if e.value != "" {
				e.lease = id
			}
			ctx, e.stop = context.WithTimeout(ctx, k.registry.config.Timeout)
			return path, e, ctx
		}
	}
	return "", nil, nil
}

// send makes the store have what an entry says. What it has already is left alone, so that nobody is told of a change; and only what is
// still ours is deleted.
func (k *keeper) send(ctx context.Context, path string, e *entry, id clientv3.LeaseID) error {
	txn := k.registry.client.Txn(ctx)
	lease := clientv3.Compare(clientv3.LeaseValue(path), "=", e.lease)
	if e.value == "" {
		_, err := txn.If(lease).Then(clientv3.OpDelete(path)).Commit()
		return err
	}
	_, err := txn.If(clientv3.Compare(clientv3.Value(path), "=", e.value), lease).
		Else(clientv3.OpPut(path, e.value, clientv3.WithLease(id))).Commit()
	return err
}

// done takes the outcome of a request, and reports whether the next may follow at once.
func (k *keeper) done(path string, e *entry, err error) bool {
	r := k.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.stop != nil {
		e.stop()
		e.stop = nil
	}
	if err != nil && failed(err).Code == arpc.CodeUnavailable { // what is refused was not carried out
		k.recheck(path, e.lease)
	}
	if k.entries[path] != e {
		return true // something else is wanted, and to be looked at
	}
	if err == nil {
		k.failure = nil
		e.former = e.value
		own := r.own[path]
		if e.value == "" {
			if own != nil && own != k {
				own.again(path) // its value may have been replaced, and then deleted
			}
			k.forget(path)
			if own == k {
				delete(r.own, path)
			}
		} else {
			r.own[path] = k
			if own != nil && own != k {
				own.entries[path].finish(errReplaced)
				own.forget(path)
				own.again(path) // it may be over
			}
		}
		e.finish(nil)
		return true
	}
	before, failure := k.failure, failed(err)
	k.failure = failure
	k.dirty[path] = true
	switch {
	case failure.Code == arpc.CodeUnavailable:
		return false
	case e.value == "": // nothing will help, but the end of the lease
		k.forget(path)
		if r.own[path] == k {
			delete(r.own, path)
		}
		e.finish(failure)
		return true
	case e.waiter == nil:
		if before == nil {
			log.Warn("micro/etcd: %s is not published again: %v", path, failure)
		}
		return false
	}
	k.giveUp(path, failure)
	return true
}

// recheck has a path looked at once more when a request whose outcome is not known should not arrive any more: it may after what was sent next.
// In an outage there are as many timers as requests have failed within Config.Timeout. A deletion leaves alone what is not under the lease.
func (k *keeper) recheck(path string, lease clientv3.LeaseID) {
	r := k.registry
	time.AfterFunc(r.config.Timeout, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		switch own := r.own[path]; {
		case r.closed:
		case k.entries[path] != nil:
			k.again(path)
		case own != nil:
			own.again(path)
		case r.keepers[k.seconds] == k:
			k.set(path, &entry{lease: lease})
		}
	})
}
