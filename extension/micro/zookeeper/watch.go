package zookeeper

import (
	"context"
	"maps"
	"path"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/log"
	"github.com/go-zookeeper/zk"
)

// A follower keeps the nodes of one service as the store has them, for all watches of the service. Its goroutine lists everything
// when a session goes live, then what zk's events name:
//
//	waiting ──session live──► listing ──done──► in step ──events──► listing what they name ──► in step
//	   ▲                                                                │
//	   └───────────────────────── session down ─────────────────────────┘
type follower struct {
	r       *Registry
	service string
	ctx     context.Context // ends with the last of the watches
	cancel  context.CancelFunc
	wake    chan struct{}
	done    chan struct{} // closed when its goroutine has ended

	// What follows is guarded by the Registry's lock. Only the goroutine changes dirs and nodes, and may read them without.

	users  int // Watches that wait for the first list, and feeds
	feeds  map[*micro.Feed]struct{}
	dirty  map[string]struct{} // what events have named
	epoch  int                 // when everything was listed last
	inStep chan struct{}       // closed while nodes are what the store has
	refuse error               // why they cannot be had, if ZooKeeper refuses it
	dirs   map[string]children // of the service
	nodes  map[string]micro.Node
}

// children are the paths below a directory, also of what is no valid node.
type children map[string]struct{}

// Watch implements micro.Registry. The follower of a service ends with the last Watch of it; what it has set of ZooKeeper's watches goes when it
// fires, as the protocol of zk has no other way, or with the session, and is used by the next follower.
func (r *Registry) Watch(ctx context.Context, service string) (<-chan micro.Event, error) {
	waiting, cancel := r.within(ctx)
	defer cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.ended(waiting); err != nil {
		return nil, err
	}
	f := r.followLocked(service)
	for !f.isInStepLocked() {
		if err := f.refuse; err != nil {
			f.releaseLocked()
			return nil, err
		}
		inStep := f.inStep
		r.mu.Unlock()
		select {
		case <-inStep:
		case <-waiting.Done():
		}
		r.mu.Lock()
		if err := r.ended(waiting); err != nil {
			f.releaseLocked()
			return nil, err
		}
	}
	ctx, end := context.WithCancel(ctx)
	stop := context.AfterFunc(r.ctx, end)
	feed := micro.NewFeed(ctx)
	feed.Set(slices.Collect(maps.Values(f.nodes)))
	f.feeds[feed] = struct{}{}
	r.background.Add(1)
	context.AfterFunc(ctx, func() {
		defer r.background.Done()
		stop()
		end()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(f.feeds, feed)
		f.releaseLocked()
	})
	return feed.Events(), nil
}

// followLocked returns the follower of a service, with one user more.
func (r *Registry) followLocked(service string) *follower {
	if r.watches.session == nil {
		r.openLocked(&r.watches)
	}
	f := r.followers[service]
	if f == nil || f.ctx.Err() != nil {
		last := f
		f = &follower{
			r: r, service: service, wake: make(chan struct{}, 1), done: make(chan struct{}),
			feeds: map[*micro.Feed]struct{}{}, inStep: make(chan struct{}),
			dirs: map[string]children{}, nodes: map[string]micro.Node{},
		}
		f.ctx, f.cancel = context.WithCancel(r.ctx)
		r.followers[service] = f
		signal(f.wake)
		r.background.Go(func() {
			defer close(f.done)
			if last != nil {
				<-last.done // otherwise it could take over a watch that the other is about to set
			}
			f.run()
		})
	}
	f.users++
	return f
}

func (f *follower) releaseLocked() {
	if f.users--; f.users == 0 {
		f.cancel()
	}
}

func (f *follower) isInStepLocked() bool {
	select {
	case <-f.inStep:
		return true
	default:
		return false
	}
}

// lostLocked says that the session is down.
func (f *follower) lostLocked() {
	if f.isInStepLocked() {
		f.inStep = make(chan struct{})
	}
	f.refuse = nil
	for feed := range f.feeds {
		feed.Lost()
	}
}

// failedLocked tells those who wait if it is of no use.
func (f *follower) failedLocked(err error) {
	if f.refuse = refused(err); f.refuse != nil && !f.isInStepLocked() {
		close(f.inStep)
		f.inStep = make(chan struct{})
	}
}

// changedLocked says that zk has named a path.
func (r *Registry) changedLocked(path string) {
	if path == r.rootPath() {
		r.root.epoch = 0
		r.root.changes++
		for _, f := range r.followers {
			f.changedLocked(path)
		}
		return
	}
	n, ok := micro.ParseDir(r.config.Root, path)
	if !ok {
		n, ok = micro.ParsePath(r.config.Root, path)
	}
	if f := r.followers[n.Service]; ok && f != nil {
		f.changedLocked(path)
	}
}

func (f *follower) changedLocked(path string) {
	if f.dirty == nil {
		f.dirty = map[string]struct{}{}
	}
	f.dirty[path] = struct{}{}
	signal(f.wake)
}

// run follows until ctx ends.
func (f *follower) run() {
	r := f.r
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.followers[f.service] == f {
			delete(r.followers, f.service)
		}
	}()
	for {
		select {
		case <-f.wake:
		case <-f.ctx.Done():
			return
		}
		r.mu.Lock()
		s, epoch, dirty := r.watches.session, r.watches.epoch, f.dirty
		f.dirty = nil
		all, live := f.epoch != epoch, s.live
		r.mu.Unlock()
		if !live || !all && len(dirty) == 0 {
			continue // everything is listed when it is live
		}
		c := f.list(s, epoch, all, dirty)
		r.mu.Lock()
		var pause time.Duration
		switch {
		case !r.watches.isLive(s, epoch): // everything is listed when it is again
		case c.err != nil:
			f.failedLocked(c.err)
			for path := range dirty {
				f.changedLocked(path)
			}
			pause = retryPause
			signal(f.wake)
		default:
			f.applyLocked(epoch, c)
			if c.listed {
				pause = min(time.Duration(len(f.nodes))*pausePerNode, maxPause)
			}
		}
		r.mu.Unlock()
		if c.err != nil {
			s.failed("listing "+f.service, c.err)
		}
		f.pause(pause)
	}
}

// Each node that comes or goes makes ZooKeeper say that the directory has changed, but not how, so that its names have to be had again, which is
// much for big services while many of their nodes come. A pause that grows with the service joins what happens meanwhile.
const (
	pausePerNode = 10 * time.Microsecond
	maxPause     = 200 * time.Millisecond
)

func (f *follower) pause(d time.Duration) {
	if d < time.Millisecond {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.ctx.Done():
	}
}

// A change is what a follower has listed.
type change struct {
	all    bool                // everything was listed
	listed bool                // a directory was
	dirs   map[string]children // as they are now; nil if they are gone
	found  map[string]node     // nodes as they are now
	err    error
}

// A node is what the store has at a path.
type node struct {
	micro.Node
	exists bool // if only as something that is no valid node
	valid  bool
}

// list asks the store for everything, or for what is dirty. It changes nothing.
func (f *follower) list(s *session, epoch int, all bool, dirty map[string]struct{}) (c change) {
	root := f.r.config.Root
	c = change{all: all, dirs: map[string]children{}, found: map[string]node{}}
	list, fetch := children{}, children{}
	if _, ok := dirty[f.r.rootPath()]; ok || all {
		names, err := f.r.list(s, epoch)
		if err != nil {
			c.err = err
			return c
		}
		now := children{}
		for _, name := range names {
			if n, ok := micro.ParseDir(root, root+"/"+name); ok && n.Service == f.service {
				now[root+"/"+name] = struct{}{}
			}
		}
		for dir := range f.dirs {
			if _, ok := now[dir]; !ok {
				c.dirs[dir] = nil
			}
		}
		for dir := range now {
			if _, known := f.dirs[dir]; all || !known {
				list[dir] = struct{}{}
			}
		}
	}
	for dir := range dirty {
		_, known := f.dirs[dir]
		if _, gone := c.dirs[dir]; known && !gone {
			list[dir] = struct{}{}
		}
	}
	c.listed = len(list) > 0
	var mu sync.Mutex
	c.err = each(slices.Collect(maps.Keys(list)), func(_ int, dir string) error {
		names, err := s.children(dir, false)
		if refused(err) != nil {
			log.Debug("micro/zookeeper: %s: %v", dir, err) // the others can be had
		} else if err != nil && err != zk.ErrNoNode {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		c.dirs[dir] = nil
		if err != nil {
			return nil
		}
		now := make(children, len(names))
		for _, name := range names {
			path := dir + "/" + name
			now[path] = struct{}{}
			if _, known := f.dirs[dir][path]; all || !known {
				fetch[path] = struct{}{}
			}
		}
		c.dirs[dir] = now
		return nil
	})
	if c.err != nil {
		return c
	}
	for path := range dirty {
		n, ok := micro.ParsePath(root, path)
		if _, known := f.dirs[n.Dir(root)]; ok && known {
			fetch[path] = struct{}{}
		}
	}
	c.err = each(slices.Collect(maps.Keys(fetch)), func(_ int, path string) error {
		n, err := s.node(root, path)
		mu.Lock()
		defer mu.Unlock()
		c.found[path] = n
		return err
	})
	return c
}

// node returns what there is at a path.
func (s *session) node(root, path string) (node, error) {
	data, err := s.get(path)
	switch {
	case err == zk.ErrNoNode:
		return node{}, nil
	case refused(err) != nil:
		log.Debug("micro/zookeeper: %s: %v", path, err)
		return node{exists: true}, nil
	case err != nil:
		return node{}, err
	}
	n, err := micro.UnmarshalValue(data)
	if id, ok := micro.ParsePath(root, path); err != nil || !ok || id.Key() != n.Key() {
		log.Debug("micro/zookeeper: %s is not what its path says: %v", path, err)
		return node{exists: true}, nil
	}
	return node{n, true, true}, nil
}

// applyLocked takes over what was listed, and tells the feeds.
func (f *follower) applyLocked(epoch int, c change) {
	if c.all {
		clear(f.dirs)
		clear(f.nodes)
	}
	var put, gone []micro.Node
	remove := func(path string) {
		if n, ok := f.nodes[path]; ok {
			gone = append(gone, n)
			delete(f.nodes, path)
		}
	}
	for dir, now := range c.dirs {
		for path := range f.dirs[dir] {
			if _, ok := now[path]; !ok {
				remove(path)
			}
		}
		if f.dirs[dir] = now; now == nil {
			delete(f.dirs, dir)
		}
	}
	for at, n := range c.found {
		siblings := f.dirs[path.Dir(at)]
		switch old, ok := f.nodes[at]; {
		case !n.exists || siblings == nil:
			delete(siblings, at) // so that it is news when it is listed again
			remove(at)
		case !n.valid:
			siblings[at] = struct{}{}
			remove(at)
		default:
			siblings[at] = struct{}{}
			if f.nodes[at] = n.Node; !ok || !reflect.DeepEqual(old, n.Node) {
				put = append(put, n.Node)
			}
		}
	}
	if !c.all {
		for feed := range f.feeds { // what was deleted and created while it was listed is in both
			feed.Delete(gone...)
			feed.Put(put...)
		}
		return
	}
	for feed := range f.feeds {
		feed.Set(put)
	}
	f.epoch, f.refuse = epoch, nil
	if !f.isInStepLocked() {
		close(f.inStep)
	}
}

// rootList is what is below the root, for all followers. Its fields are guarded by the Registry's lock.
type rootList struct {
	turn    sync.Mutex // taken before the Registry's lock by the one who asks the store
	names   []string
	epoch   int // when they were had, 0 if they must be had again
	changes int // counts the events
}

// list returns the names below the root.
func (r *Registry) list(s *session, epoch int) ([]string, error) {
	r.root.turn.Lock()
	defer r.root.turn.Unlock()
	r.mu.Lock()
	names, changes, known := r.root.names, r.root.changes, r.root.epoch == epoch
	r.mu.Unlock()
	if known {
		return names, nil
	}
	names, err := s.children(r.rootPath(), true)
	if err == zk.ErrNoNode {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.root.changes == changes && r.watches.isLive(s, epoch) {
		r.root.names, r.root.epoch = names, epoch
	}
	return names, nil
}

// rootPath is the path of the root, which Config.Root is not if that is "/".
func (r *Registry) rootPath() string {
	if r.config.Root == "" {
		return "/"
	}
	return r.config.Root
}
