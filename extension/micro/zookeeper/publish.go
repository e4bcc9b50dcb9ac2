package zookeeper

import (
	"bytes"
	"context"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/go-zookeeper/zk"
)

// retryPause is how long it takes until what has failed, with a session that is live, is tried again.
const retryPause = 500 * time.Millisecond

// own is a node of this Registry. Its fields are guarded by the Registry's lock. One goroutine at a time brings the store to what it
// says.
type own struct {
	version int    // counts the changes of want
	want    []byte // the value that the store should have, nil if none
	had     []byte // that of the last Register that has succeeded, to which one that fails returns; nil after Deregister
	unset   int    // the version of the last Deregister
	owner   int64  // the session in which the store may have got it, 0 if none
	waiters []waiter
}

// A waiter is a Register or Deregister that waits until the store has what it wants.
type waiter struct {
	version int
	done    chan error
}

// changeLocked makes value, which may be nil, what the store should have.
func (r *Registry) changeLocked(key string, o *own, value []byte) {
	o.version++
	o.want = value
	r.dirty[key] = struct{}{}
	signal(r.wake)
}

// set makes value what the store has. When it fails, the store gets back what it had.
func (r *Registry) set(ctx context.Context, key string, value []byte) error {
	r.mu.Lock()
	if err := r.ended(ctx); err != nil {
		r.mu.Unlock()
		return err
	}
	o := r.own[key]
	if o == nil {
		o = new(own)
		r.own[key] = o
	}
	r.changeLocked(key, o, value)
	return r.await(ctx, key, o, func(version int) {
		if o.version == version {
			r.changeLocked(key, o, o.had)
		}
	})
}

// unset removes what the store has.
func (r *Registry) unset(ctx context.Context, key string) error {
	r.mu.Lock()
	o := r.own[key]
	if o == nil {
		r.mu.Unlock()
		return nil
	}
	r.changeLocked(key, o, nil)
	o.had, o.unset = nil, o.version
	return r.await(ctx, key, o, func(int) {})
}

// await waits until the store has what o says now, or calls failed with the lock held. It unlocks the Registry's lock, with which it is called.
func (r *Registry) await(ctx context.Context, key string, o *own, failed func(version int)) error {
	w := waiter{o.version, make(chan error, 1)}
	o.waiters = append(o.waiters, w)
	r.mu.Unlock()
	var err error
	select {
	case err = <-w.done:
	case <-ctx.Done():
		err = r.ended(ctx)
	}
	if err == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case late := <-w.done:
		if late == nil {
			return nil
		}
		err = late
	default:
		o.waiters = slices.DeleteFunc(o.waiters, func(other waiter) bool { return other == w })
	}
	if r.own[key] == o {
		failed(w.version)
	}
	return err
}

// publish brings the store to what own says, until the Registry is closed.
func (r *Registry) publish() {
	for {
		select {
		case <-r.wake:
		case <-r.ctx.Done():
			return
		}
		r.mu.Lock()
		s, epoch := r.nodes.session, r.nodes.epoch
		var keys []string
		if r.nodes.isLive(s, epoch) { // otherwise they all are dirty again when it is
			keys = slices.Collect(maps.Keys(r.dirty))
			clear(r.dirty)
		}
		r.mu.Unlock()
		each(keys, func(_ int, key string) error { //nolint:errcheck // there is none
			r.settle(s, epoch, key)
			return nil
		})
	}
}

// settle brings the store to what own says of a key.
func (r *Registry) settle(s *session, epoch int, key string) {
	r.mu.Lock()
	o := r.own[key]
	if o == nil || !r.nodes.isLive(s, epoch) {
		r.mu.Unlock()
		return
	}
	version, want := o.version, o.want
	r.mu.Unlock()
	var err error
	if want != nil {
		err = r.put(s, key, o, want)
	} else {
		err = r.remove(s, key, o)
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	refusal := refused(err)
	if err != nil {
		s.failed(key, err)
	}
	if err == nil && want != nil && version > o.unset {
		o.had = want
	}
	if err == nil || refusal != nil {
		o.waiters = slices.DeleteFunc(o.waiters, func(w waiter) bool {
			if w.version > version {
				return false
			}
			w.done <- refusal
			return true
		})
	}
	switch {
	case o.version != version:
		r.dirty[key] = struct{}{}
		signal(r.wake)
	case err == nil && want == nil:
		delete(r.own, key)
	case err != nil:
		time.AfterFunc(retryPause, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.own[key] == o {
				r.dirty[key] = struct{}{}
				signal(r.wake)
			}
		})
	}
}

// put makes value what the store has for a key, as a node of this session.
func (r *Registry) put(s *session, key string, o *own, value []byte) (err error) {
	const attempts = 5 // others may change the node at the same time
	for range attempts {
		id := s.conn.SessionID()
		if id == 0 {
			return zk.ErrSessionExpired
		}
		data, stat, getErr := s.conn.Get(key)
		if getErr != nil && getErr != zk.ErrNoNode {
			return getErr
		}
		r.mu.Lock()
		o.owner = id
		r.mu.Unlock()
		switch {
		case getErr != nil:
			_, err = s.conn.Create(key, value, zk.FlagEphemeral, zk.WorldACL(zk.PermAll))
			if err == zk.ErrNoNode {
				if err := s.makeDir(path.Dir(key)); err != nil {
					return err
				}
			}
		case stat.EphemeralOwner == id && bytes.Equal(data, value):
			return nil
		case stat.EphemeralOwner == id:
			_, err = s.conn.Set(key, value, -1)
		default:
			// It is that of another session, and would go with it.
			err = s.multi(&zk.DeleteRequest{Path: key, Version: stat.Version},
				&zk.CreateRequest{Path: key, Data: value, Acl: zk.WorldACL(zk.PermAll), Flags: zk.FlagEphemeral})
		}
		switch err {
		case zk.ErrNoNode, zk.ErrNodeExists, zk.ErrBadVersion:
		default:
			return err
		}
	}
	return err
}

// remove removes the node of a key, unless it is not ours.
func (r *Registry) remove(s *session, key string, o *own) error {
	r.mu.Lock()
	owner := o.owner
	r.mu.Unlock()
	if owner == 0 {
		return nil
	}
	exists, stat, err := s.conn.Exists(key)
	if err != nil || !exists || stat.EphemeralOwner != owner {
		return err
	}
	if err = s.conn.Delete(key, stat.Version); err == zk.ErrNoNode {
		err = nil
	}
	return err
}

// multi does all or nothing.
func (s *session) multi(ops ...any) error {
	answers, err := s.conn.Multi(ops...)
	for _, a := range answers {
		if err == nil {
			err = a.Error
		}
	}
	return err
}

// makeDir makes a directory, as qsocket does: without data, and open to everybody.
func (s *session) makeDir(dir string) error {
	_, err := s.conn.Create(dir, []byte{}, 0, zk.WorldACL(zk.PermAll))
	if err == zk.ErrNoNode && path.Dir(dir) != "/" {
		if err := s.makeDir(path.Dir(dir)); err != nil {
			return err
		}
		_, err = s.conn.Create(dir, []byte{}, 0, zk.WorldACL(zk.PermAll))
	}
	if err == zk.ErrNodeExists {
		return nil
	}
	return err
}
