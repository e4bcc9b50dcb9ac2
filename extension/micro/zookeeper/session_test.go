package zookeeper

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/extension/micro/registrytest"
	"github.com/arpc-go/arpc/extension/micro/zookeeper/internal/zktest"
)

func testNode(id string) micro.Node {
	return micro.Node{Service: "Svc", Version: "v1", Group: "idc-bj", Protocol: "json", ID: id, Addr: "127.0.0.1:20000"}
}

func count(kinds []micro.Kind, kind micro.Kind) (n int) {
	for _, k := range kinds {
		if k == kind {
			n++
		}
	}
	return n
}

// current is the session that a link has now.
func (r *Registry) current(l *link) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return l.session
}

// sessionID is that of the nodes.
func (r *Registry) sessionID() int64 { return r.current(&r.nodes).conn.SessionID() }

// TestExpired cuts a Registry off until its session has expired: others lose its node then, and have it again when the network is back. It
// itself keeps what it knows.
func TestExpired(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t)
	g := new(gate)
	r := open(t, Config{Servers: []string{server.Addr}, SessionTimeout: 1500 * time.Millisecond, Dial: g.dial})
	other := open(t, Config{Servers: []string{server.Addr}})
	own, foreign := testNode("own"), testNode("foreign")
	must(t, r.Register(bounded(t), own, testTTL))
	must(t, other.Register(bounded(t), foreign, testTTL))
	mine, theirs := registrytest.Follow(t, r, "Svc"), registrytest.Follow(t, other, "Svc")
	mine.Is(t, patience, own, foreign)
	theirs.Is(t, patience, own, foreign)
	expired := r.sessionID()

	g.shut.Store(true)
	theirs.Is(t, testTTL+time.Second, foreign)
	mine.Last(t, patience, micro.Lost)
	must(t, other.Deregister(bounded(t), foreign))
	if have := mine.Nodes(); len(have) != 2 {
		t.Errorf("cut off, the list is %v", have)
	}
	g.shut.Store(false)
	theirs.Is(t, 5*time.Second, own)
	mine.Is(t, patience, own)
	if r.sessionID() == expired {
		t.Error("the session is the one that has expired")
	}
	must(t, other.Register(bounded(t), foreign, testTTL)) // watches are in force again
	mine.Is(t, patience, own, foreign)
	if kinds := mine.Kinds(); count(kinds, micro.Lost) != 1 || count(kinds, micro.Delete) != 0 {
		t.Errorf("the events are %v", kinds)
	}
	must(t, r.Deregister(bounded(t), own))
	theirs.Is(t, patience, foreign)
}

// TestReconnected loses connections, but not the session, again and again.
func TestReconnected(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t)
	r := open(t, Config{Servers: []string{server.Addr}})
	other := open(t, Config{Servers: []string{server.Addr}})
	own := testNode("own")
	must(t, r.Register(bounded(t), own, testTTL))
	mine, theirs := registrytest.Follow(t, r, "Svc"), registrytest.Follow(t, other, "Svc")
	theirs.Is(t, patience, own)
	id := r.sessionID()
	watches, _ := server.Metric("zk_watch_count")
	for i := range 4 {
		nodes := []micro.Node{own}
		for j := range 3 {
			n := testNode(fmt.Sprint("n", j))
			n.Weight = i + 1
			nodes = append(nodes, n)
		}
		r.current(&r.nodes).dialer.hangUp()
		r.current(&r.watches).dialer.hangUp()
		for _, n := range nodes[1:] {
			must(t, other.Register(bounded(t), n, testTTL))
		}
		mine.Is(t, patience, nodes...)
	}
	if r.sessionID() != id {
		t.Error("the session has changed")
	}
	for j := range 3 {
		must(t, other.Deregister(bounded(t), testNode(fmt.Sprint("n", j))))
	}
	mine.Is(t, patience, own)
	theirs.Is(t, patience, own)
	if kinds := mine.Kinds(); count(kinds, micro.Lost) == 0 {
		t.Errorf("the events are %v", kinds)
	}
	for _, e := range theirs.Kinds() {
		if e == micro.Lost {
			t.Errorf("the other was told %v", theirs.Kinds())
		}
	}
	waitFor(t, "no more watches than before", func() bool {
		n, ok := server.Metric("zk_watch_count")
		return ok && n <= watches
	})
	s := r.current(&r.watches)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.armed); n != 3 { // the root, the directory, the node
		t.Errorf("%d watches", n)
	}
}

// TestEnsemble kills the server to which a Registry is connected: the session goes on at another.
func TestEnsemble(t *testing.T) {
	t.Parallel()
	var addrs []string
	servers := zktest.StartEnsemble(t, 3)
	for _, s := range servers {
		addrs = append(addrs, s.Addr)
	}
	r := open(t, Config{Servers: addrs, SessionTimeout: 10 * time.Second})
	n := testNode("n")
	must(t, r.Register(bounded(t), n, 0))
	watch := registrytest.Follow(t, r, "Svc")
	watch.Is(t, patience, n)
	id := r.sessionID()
	dead := slices.Index(addrs, r.current(&r.nodes).conn.Server())
	servers[dead].Kill()
	waitFor(t, "the session is at another server", func() bool {
		s := r.current(&r.nodes)
		r.mu.Lock()
		defer r.mu.Unlock()
		return s.live && s.conn.Server() != servers[dead].Addr
	})
	if r.sessionID() != id {
		t.Error("the session has changed")
	}
	other := open(t, Config{Servers: slices.Delete(addrs, dead, dead+1)})
	later := testNode("later")
	must(t, other.Register(bounded(t), later, 0))
	watch.Is(t, patience, n, later)
	if kinds := watch.Kinds(); count(kinds, micro.Delete) != 0 {
		t.Errorf("the events are %v", kinds)
	}
	must(t, r.Deregister(bounded(t), n))
	registrytest.Follow(t, other, "Svc").Is(t, patience, later)
}

// TestWiped starts a ZooKeeper that has lost everything, and so refuses the session for ever.
func TestWiped(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t)
	r := open(t, Config{Servers: []string{server.Addr}, SessionTimeout: time.Second})
	n := testNode("n")
	must(t, r.Register(bounded(t), n, testTTL))
	watch := registrytest.Follow(t, r, "Svc")
	watch.Is(t, patience, n)
	server.Kill()
	must(t, server.Wipe())
	must(t, server.Restart())
	other := open(t, Config{Servers: []string{server.Addr}})
	registrytest.Follow(t, other, "Svc").Is(t, patience, n)
	later := testNode("later")
	must(t, other.Register(bounded(t), later, testTTL))
	watch.Is(t, patience, n, later)
}

// TestPaused has a Register fail whose request ZooKeeper carries out later.
func TestPaused(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t)
	r := open(t, Config{Servers: []string{server.Addr}, SessionTimeout: time.Second})
	n := testNode("n")
	must(t, r.Register(bounded(t), n, testTTL))
	watch := registrytest.Follow(t, r, "Svc")
	watch.Is(t, patience, n)
	must(t, server.Pause())
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	changed := n
	changed.Weight = 7
	for _, n := range []micro.Node{changed, testNode("never")} {
		if err := r.Register(ctx, n, testTTL); arpc.CodeOf(err) != arpc.CodeDeadlineExceeded {
			t.Errorf("Register: %v", err)
		}
	}
	cancel()
	must(t, server.Resume())
	settled(t, r)
	mark := testNode("mark")
	must(t, r.Register(bounded(t), mark, testTTL))
	watch.Is(t, patience, n, mark)

	must(t, server.Pause()) // until it is noticed
	watch.Last(t, patience, micro.Lost)
	must(t, server.Resume())
	watch.Last(t, patience, micro.Set)
	watch.Is(t, patience, n, mark)
}

// settled waits until r has nothing left to do in the store.
func settled(t *testing.T, r *Registry) {
	t.Helper()
	waitFor(t, "everything is in the store", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, o := range r.own {
			if !slices.Equal(o.want, o.had) || o.want == nil {
				return false
			}
		}
		return len(r.dirty) == 0
	})
}
