package zookeeper

import (
	"context"
	"sync"
	"time"

	"github.com/arpc-go/arpc/log"
	"github.com/go-zookeeper/zk"
)

// A session is one session with ZooKeeper. A Registry has one for its nodes and one for its watches, each only if it is used:
//
//	connecting ──► live ◄──► down ──► over      nodes
//	                 └───────────────► over
//
//	connecting ──► live ──► over                watches
//
// That of the nodes moves from server to server. It is over when ZooKeeper says that it has expired, and when it was down for longer than its
// timeout: most likely it has expired then, and a server that has lost its data would refuse it for ever, as the session knows of changes that the
// server does not. That of the watches is over with its connection: to set watches again zk reads what the last change was while answers
// of the new connection change it, and so may miss one. A session that never was live goes on trying. One that is over is replaced.
//
// zk calls its events back on goroutines of its own, sometimes with its locks held: what they call must not wait, nor call zk.
type session struct {
	conn   *zk.Conn
	events <-chan zk.Event // closed when zk has ended; nobody reads what is in it
	dialer *dialer
	cancel context.CancelFunc

	mu sync.Mutex
	// armed are the paths that have a watch, of one kind at a time, so that zk is not asked for a second one.
	armed map[string]struct{}

	// What follows is guarded by the Registry's lock.

	live    bool
	since   time.Time     // when it went live
	over    bool          // was, or is being, replaced
	granted time.Duration // the timeout, once live
	expire  *time.Timer   // runs while down
}

// patience is how long a server may take to be reached, and to answer, before the next one is tried.
func (c Config) patience() time.Duration {
	return min(max(c.SessionTimeout/2, time.Second), 5*time.Second)
}

// A link is one of a Registry's sessions after the other. Its fields are guarded by the Registry's lock.
type link struct {
	session *session // nil if there was no use for one yet
	epoch   int      // counts how often one went live
	watches bool     // it is the one for watches
}

// isLive reports whether s is the session, and live since epoch.
func (l *link) isLive(s *session, epoch int) bool {
	return l.session == s && s != nil && s.live && l.epoch == epoch
}

// openLocked makes a session.
func (r *Registry) openLocked(l *link) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{cancel: cancel, armed: map[string]struct{}{}}
	s.dialer = &dialer{ctx: ctx, dial: r.config.Dial, patience: r.config.patience(), granted: func(timeout time.Duration) {
		r.mu.Lock()
		s.granted = timeout
		r.mu.Unlock()
	}}
	conn, events, err := zk.Connect(r.config.Servers, r.config.SessionTimeout, zk.WithDialer(s.dialer.Dial), zk.WithHostProvider(new(ring)),
		zk.WithLogger(logger{}), zk.WithMaxBufferSize(maxPacket), zk.WithMaxConnBufferSize(maxRequest), zk.WithEventCallback(func(e zk.Event) { r.event(l, s, e) }))
	if err != nil {
		panic("micro/zookeeper: " + err.Error()) // there are no servers, or ring fails
	}
	s.conn, s.events, l.session = conn, events, s
}

const (
	// maxPacket is the longest packet that is taken from a server. The names of ten thousand nodes are a megabyte at most.
	maxPacket = 64 << 20
	// maxRequest is the longest that zk sends: a node, which has 64 KiB with its key, and that key once more.
	maxRequest = 256 << 10
)

// event is called by zk.
func (r *Registry) event(l *link, s *session, e zk.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.over || l.session != s {
		return
	}
	switch {
	case e.Type == zk.EventNotWatching:
		// The session has expired, or is closed: the state says so too.
	case e.Type != zk.EventSession:
		s.disarm(e.Path)
		r.changedLocked(e.Path)
	case e.State == zk.StateHasSession && !s.live:
		if s.expire != nil {
			s.expire.Stop()
		}
		s.live, s.since = true, time.Now()
		l.epoch++
		if l.watches {
			r.watchableLocked()
		} else {
			r.writableLocked()
		}
	case e.State == zk.StateDisconnected && s.live && l.watches:
		r.replaceLocked(l, s)
	case e.State == zk.StateDisconnected && s.live:
		r.downLocked(l)
		s.expire = time.AfterFunc(s.granted, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if !s.live {
				r.replaceLocked(l, s)
			}
		})
	case e.State == zk.StateExpired:
		r.replaceLocked(l, s)
	}
}

// downLocked says that the session is not live any more.
func (r *Registry) downLocked(l *link) {
	l.session.live = false
	if !l.watches {
		r.writable = make(chan struct{})
		return
	}
	for _, f := range r.followers {
		f.lostLocked()
	}
}

// replaceLocked ends a session and begins another, not at once if the last one was short.
func (r *Registry) replaceLocked(l *link, s *session) {
	if s.over || r.ctx.Err() != nil {
		return
	}
	s.over = true
	if s.live {
		r.downLocked(l)
	}
	s.cancel() // zk cannot connect again
	r.background.Go(func() { s.close(0) })
	lasted := time.Since(s.since)
	if lasted >= retryPause {
		r.openLocked(l)
		return
	}
	time.AfterFunc(retryPause-lasted, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if l.session == s && r.ctx.Err() == nil {
			r.openLocked(l)
		}
	})
}

// close ends the session at ZooKeeper, if that answers within patience, and waits for all of zk.
func (s *session) close(patience time.Duration) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.conn.Close() // waits for the answer for a second
	}()
	timer := time.NewTimer(patience)
	select {
	case <-closed:
	case <-timer.C:
	}
	timer.Stop()
	s.cancel()
	s.dialer.hangUp()
	<-closed
	for range s.events { // until zk closes it
	}
}

// arm reports whether the path has no watch, and takes it for having one.
func (s *session) arm(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, armed := s.armed[path]
	s.armed[path] = struct{}{}
	return !armed
}

func (s *session) disarm(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.armed, path)
}

// children returns the names below a path, which has a watch then; or zk.ErrNoNode, and then it has one for its creation if that is wanted.
func (s *session) children(path string, creation bool) ([]string, error) {
	for {
		if !s.arm(path) {
			names, _, err := s.conn.Children(path)
			return names, err
		}
		names, _, _, err := s.conn.ChildrenW(path)
		if err != zk.ErrNoNode || !creation {
			if err != nil {
				s.disarm(path)
			}
			return names, err
		}
		exists, _, _, err := s.conn.ExistsW(path)
		if err != nil {
			s.disarm(path)
			return nil, err
		}
		if !exists {
			return nil, zk.ErrNoNode
		}
		// It has come in between. The watch for its data that it has now never fires unless it is removed: nobody writes to it.
		s.disarm(path)
	}
}

// get returns the data of a path, which has a watch then, unless there is none.
func (s *session) get(path string) ([]byte, error) {
	if !s.arm(path) {
		data, _, err := s.conn.Get(path)
		return data, err
	}
	data, _, _, err := s.conn.GetW(path)
	if err != nil {
		s.disarm(path)
	}
	return data, err
}

// failed deals with what zk says of a request.
func (s *session) failed(path string, err error) {
	log.Debug("micro/zookeeper: %s: %v", path, err)
	if err == zk.ErrSessionMoved { // to a server that this connection does not lead to
		s.dialer.hangUp()
	}
}
