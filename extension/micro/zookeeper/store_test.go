package zookeeper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/extension/micro/registrytest"
	"github.com/arpc-go/arpc/extension/micro/zookeeper/internal/zktest"
)

// connect returns a connection that is not a Registry's.
func connect(t testing.TB, server *zktest.Server) *zk.Conn {
	t.Helper()
	conn, events, err := zk.Connect([]string{server.Addr}, testSession, zk.WithLogger(logger{}))
	must(t, err)
	t.Cleanup(func() {
		conn.Close()
		for range events {
		}
	})
	return conn
}

const (
	gettyDir  = "/getty/group%3Didc-bj%26protocol%3Djson%26role%3DSRT_Provider%26service%3DSvc%26version%3Dv1"
	gettyPath = gettyDir + "/node0"
	gettyJSON = `{"Attr":{"Group":"idc-bj","Service":"Svc","Protocol":"json","Version":"v1","Role":1},` +
		`"Nodes":[{"ID":"node0","Address":"127.0.0.1","Port":20000,"Metadata":{"getty-micro-meta-key":"m"}}]}`
)

// TestStored looks at what is stored, byte by byte.
func TestStored(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t)
	r := open(t, Config{Servers: []string{server.Addr}})
	n := testNode("node0")
	n.Meta = map[string]string{"getty-micro-meta-key": "m"}
	must(t, r.Register(bounded(t), n, 0))
	conn := connect(t, server)
	data, stat, err := conn.Get(gettyPath)
	must(t, err)
	if string(data) != gettyJSON {
		t.Errorf("the value is %s", data)
	}
	if stat.EphemeralOwner != r.sessionID() {
		t.Errorf("the node is that of %d", stat.EphemeralOwner)
	}
	for _, dir := range []string{"/getty", gettyDir} {
		data, stat, err := conn.Get(dir)
		must(t, err)
		if len(data) != 0 || stat.EphemeralOwner != 0 {
			t.Errorf("%s has %q, and is that of %d", dir, data, stat.EphemeralOwner)
		}
		acl, _, err := conn.GetACL(dir)
		must(t, err)
		if len(acl) != 1 || acl[0] != zk.WorldACL(zk.PermAll)[0] {
			t.Errorf("the ACL of %s is %v", dir, acl)
		}
	}
	before := stat.Mzxid
	must(t, r.Register(bounded(t), n, 0)) // no change is none in the store
	if _, stat, err = conn.Get(gettyPath); err != nil || stat.Mzxid != before {
		t.Errorf("written again at %d after %d: %v", stat.Mzxid, before, err)
	}
	must(t, conn.Delete(gettyPath, -1)) // somebody does, and then the connection is lost
	r.current(&r.nodes).dialer.hangUp()
	waitFor(t, "the node is there again", func() bool {
		exists, _, err := conn.Exists(gettyPath)
		return err == nil && exists
	})
}

// TestForeign finds what others have stored, and stands what is none of its business.
func TestForeign(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t)
	conn := connect(t, server)
	r := open(t, Config{Servers: []string{server.Addr}})
	watch := registrytest.Follow(t, r, "Svc") // there is no root yet
	watch.Is(t, patience)
	write := func(path, data string) {
		t.Helper()
		_, err := conn.Create(path, []byte(data), zk.FlagPersistent, zk.WorldACL(zk.PermAll))
		if errors.Is(err, zk.ErrNodeExists) {
			_, err = conn.Set(path, []byte(data), -1)
		}
		must(t, err)
	}
	n := testNode("node0")
	n.Meta = map[string]string{"getty-micro-meta-key": "m"}
	write("/getty", "")
	write("/getty/file", "no directory")
	write("/getty/group%3D%26role%3DSRT_Consumer%26service%3DSvc", "")
	write("/getty/group%3D%26role%3DSRT_Consumer%26service%3DSvc/node0", gettyJSON)
	write(gettyDir, "")
	write(gettyDir+"/other", gettyJSON) // says that it is node0
	write(gettyDir+"/broken", "{")
	write(gettyPath, gettyJSON)
	watch.Is(t, patience, n)
	write(gettyPath, "now this is broken too")
	watch.Is(t, patience)
	write(gettyPath, gettyJSON)
	watch.Is(t, patience, n)

	must(t, conn.Delete(gettyPath, -1))
	must(t, conn.Delete(gettyDir+"/other", -1))
	must(t, conn.Delete(gettyDir+"/broken", -1))
	must(t, conn.Delete(gettyDir, -1))
	watch.Is(t, patience)
	must(t, r.Register(bounded(t), n, 0)) // which makes the directory again
	watch.Is(t, patience, n)
	stays := registrytest.Follow(t, r, "Svc")
	watch.Stop()
	stays.Is(t, patience, n)
}

// TestTaken registers nodes that there are, in other sessions.
func TestTaken(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t)
	first, second := open(t, Config{Servers: []string{server.Addr}}), open(t, Config{Servers: []string{server.Addr}})
	watch := registrytest.Follow(t, open(t, Config{Servers: []string{server.Addr}}), "Svc")
	n := testNode("n")
	must(t, first.Register(bounded(t), n, 0))
	watch.Is(t, patience, n)
	n.Weight = 2
	must(t, second.Register(bounded(t), n, 0))
	watch.Is(t, patience, n)
	must(t, first.Deregister(bounded(t), n)) // is that of the second now
	must(t, first.Close())
	mark := testNode("mark")
	must(t, second.Register(bounded(t), mark, 0))
	watch.Is(t, patience, n, mark)
	if kinds := watch.Kinds(); count(kinds, micro.Delete) != 0 {
		t.Errorf("the events are %v", kinds)
	}
	must(t, second.Deregister(bounded(t), n))
	watch.Is(t, patience, mark)
}

// TestCreatedAgain deletes a node before its directory is listed, and creates it again before it is looked at itself.
func TestCreatedAgain(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t)
	var holds atomic.Bool
	asked, goOn := make(chan string), make(chan struct{})
	g := &gate{sends: func(request []byte) {
		const opcode, getData, path = 8, 4, 16
		if !holds.Load() || len(request) < path || binary.BigEndian.Uint32(request[opcode:]) != getData {
			return
		}
		select {
		case asked <- string(request[path : len(request)-1]): // the last byte asks for a watch
			<-goOn
		case <-t.Context().Done():
		}
	}}
	next := func(n micro.Node) {
		t.Helper()
		select {
		case path := <-asked:
			if path != n.Path("/getty") {
				t.Errorf("%s is looked at", path)
			}
		case <-time.After(patience):
			t.Fatalf("%s is not looked at", n.ID)
		}
	}
	r, other := open(t, Config{Servers: []string{server.Addr}, Dial: g.dial}), open(t, Config{Servers: []string{server.Addr}})
	mark, n := testNode("mark"), testNode("n")
	must(t, other.Register(bounded(t), mark, 0))
	must(t, other.Register(bounded(t), n, 0))
	watch := registrytest.Follow(t, r, "Svc")
	watch.Is(t, patience, mark, n)

	resume := sync.OnceFunc(func() {
		holds.Store(false)
		close(goOn)
	})
	defer resume()
	holds.Store(true)
	mark.Weight = 2
	must(t, other.Register(bounded(t), mark, 0))
	next(mark)
	must(t, other.Deregister(bounded(t), n))
	waitFor(t, "both events have come", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		dirty := r.followers["Svc"].dirty
		_, dir := dirty[n.Dir("/getty")]
		_, path := dirty[n.Path("/getty")]
		return dir && path
	})
	goOn <- struct{}{}
	next(n)
	n.Weight = 3
	must(t, other.Register(bounded(t), n, 0))
	resume()
	watch.Is(t, patience, mark, n)
}

// TestUnreadable has a directory that may not be read, which does not matter to the others, and then a root.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t)
	conn := connect(t, server)
	other := open(t, Config{Servers: []string{server.Addr}})
	n, hidden, later := testNode("n"), testNode("hidden"), testNode("later")
	hidden.Version = "v2"
	must(t, other.Register(bounded(t), n, 0))
	unreadable := zk.WorldACL(zk.PermAll &^ zk.PermRead)
	_, err := conn.Create(hidden.Dir("/getty"), nil, 0, unreadable)
	must(t, err)
	must(t, other.Register(bounded(t), hidden, 0))
	watch := registrytest.Follow(t, open(t, Config{Servers: []string{server.Addr}}), "Svc")
	watch.Is(t, patience, n)
	must(t, other.Register(bounded(t), later, 0))
	watch.Is(t, patience, n, later)

	_, err = conn.SetACL("/getty", unreadable, -1)
	must(t, err)
	r := open(t, Config{Servers: []string{server.Addr}})
	if _, err := r.Watch(bounded(t), "Svc"); arpc.CodeOf(err) != arpc.CodePermissionDenied {
		t.Errorf("Watch: %v", err)
	}
	_, err = conn.SetACL("/getty", zk.WorldACL(zk.PermAll), -1)
	must(t, err)
	registrytest.Follow(t, r, "Svc").Is(t, patience, n, later)
}

func TestErrors(t *testing.T) {
	t.Parallel()
	server := zktest.Start(t)
	code := func(want arpc.Code, err error) {
		t.Helper()
		var typed *arpc.Error
		if !errors.As(err, &typed) || typed.Code != want {
			t.Errorf("%v: %v, want %v", err, arpc.CodeOf(err), want)
		}
	}
	for _, c := range []Config{{Root: "getty"}, {SessionTimeout: time.Nanosecond}, {SessionTimeout: 48 * time.Hour}} {
		_, err := New(c)
		code(arpc.CodeInvalidArgument, err)
	}
	r := open(t, Config{Servers: []string{server.Addr}, SessionTimeout: 100 * time.Millisecond})
	n := testNode("n")
	code(arpc.CodeInvalidArgument, r.Register(bounded(t), n, 50*time.Millisecond))
	code(arpc.CodeInvalidArgument, r.Register(bounded(t), n, -1))
	code(arpc.CodeInvalidArgument, r.Register(bounded(t), n, 2*zktest.Tick-time.Millisecond)) // the server grants no less
	must(t, r.Register(bounded(t), n, 2*zktest.Tick))
	code(arpc.CodeInvalidArgument, r.Register(bounded(t), testNode("\uf000"), 0)) // ZooKeeper has no such names
	must(t, r.Deregister(bounded(t), testNode("unknown")))

	conn := connect(t, server)
	locked, readOnly := testNode("locked"), testNode("read only")
	locked.Service, readOnly.Service = "Locked", "ReadOnly"
	_, err := conn.Create(locked.Dir("/getty"), nil, 0, zk.WorldACL(zk.PermRead))
	must(t, err)
	code(arpc.CodePermissionDenied, r.Register(bounded(t), locked, 0))
	_, err = conn.Create(readOnly.Dir("/getty"), nil, zk.FlagEphemeral, zk.WorldACL(zk.PermAll))
	must(t, err)
	code(arpc.CodeFailedPrecondition, r.Register(bounded(t), readOnly, 0))
	settledOwn(t, r, 1) // those that have failed are forgotten

	must(t, r.Close())
	for _, err := range []error{r.Register(bounded(t), n, 0), func() error { _, err := r.Watch(bounded(t), "Svc"); return err }()} {
		if !errors.Is(err, micro.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// settledOwn waits until r has n nodes.
func settledOwn(t *testing.T, r *Registry, n int) {
	t.Helper()
	waitFor(t, "what has failed is forgotten", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.own) == n
	})
}

// TestSilent has a server that takes connections, and says nothing.
func TestSilent(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	dialled := make(chan struct{}, 100)
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()        //nolint:errcheck // it is done
				io.Copy(io.Discard, nc) //nolint:errcheck // until it ends
			}()
			dialled <- struct{}{}
		}
	}()
	defer ln.Close() //nolint:errcheck // it is done
	r := open(t, Config{Servers: []string{ln.Addr().String()}, Timeout: 100 * time.Millisecond})
	if err := r.Register(bounded(t), testNode("n"), 0); arpc.CodeOf(err) != arpc.CodeUnavailable {
		t.Errorf("Register: %v", err)
	}
	if _, err := r.Watch(bounded(t), "Svc"); arpc.CodeOf(err) != arpc.CodeUnavailable {
		t.Errorf("Watch: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.Watch(ctx, "Svc"); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := r.Register(ctx, testNode("n"), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Register: %v", err)
	}
	for range 4 { // both sessions give up, and try again
		<-dialled
	}
	must(t, r.Close())
}

// TestTenThousand follows a big service.
func TestTenThousand(t *testing.T) {
	const nodes, batch = 10_000, 250
	server := zktest.Start(t)
	conn := connect(t, server)
	first := testNode("first")
	r := open(t, Config{Servers: []string{server.Addr}})
	must(t, r.Register(bounded(t), first, 0)) // and the directory
	for i := 0; i < nodes; i += batch {
		var ops []any
		for j := range batch {
			n := testNode(fmt.Sprint("n", i+j))
			value, err := n.MarshalValue()
			must(t, err)
			ops = append(ops, &zk.CreateRequest{Path: n.Path("/getty"), Data: value, Acl: zk.WorldACL(zk.PermAll), Flags: zk.FlagEphemeral})
		}
		_, err := conn.Multi(ops...)
		must(t, err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	events, err := r.Watch(bounded(t), "Svc")
	must(t, err)
	next := func(kind micro.Kind, n int) {
		t.Helper()
		select {
		case e := <-events:
			if e.Kind != kind || len(e.Nodes) != n {
				t.Fatalf("%v of %d nodes, want %v of %d", e.Kind, len(e.Nodes), kind, n)
			}
		case <-time.After(patience):
			t.Fatalf("no %v", kind)
		}
	}
	next(micro.Set, nodes+1)
	listed := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	first.Weight = 5
	began = time.Now()
	must(t, r.Register(bounded(t), first, 0))
	next(micro.Put, 1)
	changed := time.Since(began)
	began = time.Now()
	must(t, r.Register(bounded(t), testNode("second"), 0))
	next(micro.Put, 1)
	came := time.Since(began)
	began = time.Now()
	must(t, r.Deregister(bounded(t), first))
	next(micro.Delete, 1)
	went := time.Since(began)
	t.Logf("listed in %v, %d KiB; changed in %v, came in %v, went in %v", listed, (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>10, changed, came, went)
}
