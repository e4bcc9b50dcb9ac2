package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/extension/micro/registrytest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// outage is how long the servers of the suite stay stopped: ARPC_OUTAGE, or little longer than nodes live.
func outage(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("ARPC_OUTAGE")
	if text == "" {
		return 3 * time.Second
	}
	d, err := time.ParseDuration(text)
	must(t, err)
	return d
}

func suite(t *testing.T, s *server) {
	registrytest.Run(t, registrytest.Store{
		Open: open, Target: s.addr, Stop: s.stop, Start: s.start, Outage: outage(t), Watches: func() int { return s.watches(t) },
	})
}

const ofProcess = "ARPC_ETCD_PROCESS"

// TestRegistry runs the suite on an etcd in this process and on the system's. They are mostly waiting, so they run at the same time, the second one in
// a test process of its own, as the suite counts goroutines.
func TestRegistry(t *testing.T) {
	if os.Getenv(ofProcess) != "" {
		suite(t, process(t))
		return
	}
	must(t, install())
	other := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRegistry$", "-test.v")
	other.Env = append(os.Environ(), ofProcess+"=1")
	var out bytes.Buffer
	other.Stdout, other.Stderr = &out, &out
	must(t, other.Start())
	t.Run("Embedded", func(t *testing.T) { suite(t, embedded(t)) })
	t.Run("Process", func(t *testing.T) {
		if err := other.Wait(); err != nil {
			t.Errorf("%v\n%s", err, out.String())
		}
	})
}

func node(id string) micro.Node {
	return micro.Node{Service: "Svc", Version: "v1", Group: "g", Protocol: "arpc", ID: id, Addr: "127.0.0.1:8888", Weight: 2}
}

const ttl = 2 * time.Second

// value is what is stored of a node, and under which lease.
func value(t testing.TB, c *clientv3.Client, n micro.Node) (string, clientv3.LeaseID) {
	t.Helper()
	got, err := c.Get(bounded(t), n.Path("/getty"))
	must(t, err)
	if len(got.Kvs) == 0 {
		return "", clientv3.NoLease
	}
	return string(got.Kvs[0].Value), clientv3.LeaseID(got.Kvs[0].Lease)
}

// until waits for what the store has of a node.
func until(t testing.TB, c *clientv3.Client, n micro.Node, ok func(value string, lease clientv3.LeaseID) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	changes := c.Watch(ctx, n.Path("/getty"))
	for {
		v, lease := value(t, c, n)
		if ok(v, lease) {
			return
		}
		select {
		case <-changes:
		case <-time.After(100 * time.Millisecond): // the watch may have begun after the change
		case <-ctx.Done():
			t.Fatalf("%q under %x", v, lease)
		}
	}
}

func gone(v string, _ clientv3.LeaseID) bool { return v == "" }

// TestStored compares what is stored with what qsocket stores.
func TestStored(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	r, c := s.open(t), s.client(t)
	n := micro.Node{
		Service: "Svc", Version: "v1", Group: "idc-bj", Protocol: "json", ID: "node0", Addr: "127.0.0.1:20000",
		Meta: map[string]string{"getty-micro-meta-key": "x"},
	}
	must(t, r.Register(bounded(t), n, ttl))
	got, err := c.Get(bounded(t), "/", clientv3.WithPrefix())
	must(t, err)
	if len(got.Kvs) != 1 {
		t.Fatal(got.Kvs)
	}
	const key = "/getty/group%3Didc-bj%26protocol%3Djson%26role%3DSRT_Provider%26service%3DSvc%26version%3Dv1/node0"
	if k := string(got.Kvs[0].Key); k != key {
		t.Error(k)
	}
	const want = `{"Attr":{"Group":"idc-bj","Service":"Svc","Protocol":"json","Version":"v1","Role":1},` +
		`"Nodes":[{"ID":"node0","Address":"127.0.0.1","Port":20000,"Metadata":{"getty-micro-meta-key":"x"}}]}`
	if v := string(got.Kvs[0].Value); v != want {
		t.Error(v)
	}
	left, err := c.TimeToLive(bounded(t), clientv3.LeaseID(got.Kvs[0].Lease))
	must(t, err)
	if left.GrantedTTL != 2 {
		t.Error(left.GrantedTTL)
	}
}

// TestForeign has what others may have put below the root.
func TestForeign(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	c := s.client(t)
	good, name := node("good"), node("name")
	v, err := good.MarshalValue()
	must(t, err)
	put := func(key, value string) {
		t.Helper()
		_, err := c.Put(bounded(t), key, value)
		must(t, err)
	}
	put(good.Path("/getty"), string(v))
	put(name.Path("/getty"), string(v)) // another node's value
	put(node("none").Path("/getty"), "{")
	put(node("empty").Path("/getty"), "")
	put("/getty/", "x")
	put("/getty/x/y/z", "x")
	put("/gettyx/x", "x")
	put(strings.Replace(good.Path("/getty"), "Provider", "Consumer", 1), string(v))
	view := registrytest.Follow(t, s.open(t), good.Service)
	view.Is(t, patience, good)
	put("/getty/more", "x")
	v2, err := name.MarshalValue()
	must(t, err)
	put(name.Path("/getty"), string(v2))
	view.Is(t, patience, good, name)
	put(good.Path("/getty"), "not any more")
	view.Is(t, patience, name)
	put(good.Path("/getty"), string(v))
	view.Is(t, patience, good, name)
}

// TestPages lists more than a page.
func TestPages(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	c := s.client(t)
	var all []micro.Node
	var puts []clientv3.Op
	for i := range 2*page + 1 {
		n := node(fmt.Sprint("n", i))
		v, err := n.MarshalValue()
		must(t, err)
		all = append(all, n)
		if puts = append(puts, clientv3.OpPut(n.Path("/getty"), string(v))); len(puts) == 100 || i == 2*page {
			_, err := c.Txn(bounded(t)).Then(puts...).Commit()
			must(t, err)
			puts = nil
		}
	}
	registrytest.Follow(t, s.open(t), "Svc").Is(t, patience, all...)
}

// TestRevoked takes the lease away.
func TestRevoked(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	r, c, n := s.open(t), s.client(t), node("one")
	view := registrytest.Follow(t, s.open(t), n.Service)
	must(t, r.Register(bounded(t), n, ttl))
	view.Is(t, patience, n)
	_, lease := value(t, c, n)
	_, err := c.Revoke(bounded(t), lease)
	must(t, err)
	until(t, c, n, func(v string, now clientv3.LeaseID) bool { return v != "" && now != lease })
	view.Is(t, patience, n)
	must(t, r.Deregister(bounded(t), n))
	view.Is(t, patience)
}

// TestDataLost restarts etcd without its data.
func TestDataLost(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	r, other := s.open(t), s.open(t)
	n, m := node("one"), node("two")
	view := registrytest.Follow(t, other, n.Service)
	must(t, r.Register(bounded(t), n, ttl))
	must(t, other.Register(bounded(t), m, 0))
	view.Is(t, patience, n, m)
	must(t, s.stop())
	view.Last(t, patience, micro.Lost)
	s.wipe(t)
	must(t, s.start())
	begin := time.Now()
	c := s.client(t)
	for _, n := range []micro.Node{n, m} {
		until(t, c, n, func(v string, _ clientv3.LeaseID) bool { return v != "" })
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("back after %v", d)
	}
	view.Is(t, patience, n, m)
}

// TestDeletedWhileDisconnected finds, after a reconnection, that a node is missing though its lease is not, as after a restoration of etcd.
func TestDeletedWhileDisconnected(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	way := newCable(t, s.addr)
	c, n := s.client(t), node("one")
	r := s.open(t, func(c *Config) { c.Client.Endpoints = []string{way.addr} })
	must(t, r.Register(bounded(t), n, time.Minute))
	_, lease := value(t, c, n)
	way.setCut(true)
	_, err := c.Delete(bounded(t), n.Path("/getty"))
	must(t, err)
	way.setCut(false)
	until(t, c, n, func(v string, now clientv3.LeaseID) bool { return v != "" && now == lease })
}

// TestCompacted compacts what a watch would need: between the listing and its begin, and while it is disconnected.
func TestCompacted(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	way := newCable(t, s.addr)
	c, gone, stays, comes := s.client(t), node("gone"), node("stays"), node("comes")
	provider := s.open(t)
	must(t, provider.Register(bounded(t), gone, ttl))
	must(t, provider.Register(bounded(t), stays, ttl))
	listed, compacted := make(chan struct{}), make(chan struct{})
	var watches atomic.Int32
	hold := func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		if strings.HasSuffix(method, "/Watch") && watches.Add(1) == 1 {
			close(listed)
			<-compacted
		}
		return streamer(ctx, desc, cc, method, opts...)
	}
	r := s.open(t, func(c *Config) {
		c.Client.Endpoints = []string{way.addr}
		c.Client.DialOptions = []grpc.DialOption{grpc.WithChainStreamInterceptor(hold)}
	})
	compact := func() {
		t.Helper()
		last, err := c.Put(bounded(t), "/other", "x")
		must(t, err)
		_, err = c.Compact(bounded(t), last.Header.Revision)
		must(t, err)
	}
	view := registrytest.Follow(t, r, stays.Service)
	view.Is(t, patience, gone, stays)
	<-listed
	must(t, provider.Deregister(bounded(t), gone))
	compact()
	close(compacted)
	view.Is(t, patience, stays)
	for _, k := range view.Kinds() {
		if k != micro.Set {
			t.Errorf("a compaction is no reason for %v", view.Kinds())
		}
	}

	way.setCut(true)
	view.Last(t, patience, micro.Lost)
	must(t, provider.Register(bounded(t), comes, ttl))
	must(t, provider.Deregister(bounded(t), stays))
	compact()
	view.Is(t, patience, stays) // what was known
	way.setCut(false)
	view.Is(t, 5*time.Second, comes)
}

// TestOneOfTwo loses one of two endpoints, then the other: that is no loss.
func TestOneOfTwo(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	ways := []*cable{newCable(t, s.addr), newCable(t, s.addr)}
	var mu sync.Mutex
	served := map[string]bool{} // the endpoints that have answered requests
	record := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		var p peer.Peer
		err := invoke(ctx, method, req, reply, cc, append(opts, grpc.Peer(&p))...)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			served[p.Addr.String()] = true
		}
		return err
	}
	r := s.open(t, func(c *Config) {
		c.Client.Endpoints = []string{ways[0].addr, ways[1].addr}
		c.Client.DialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(record)}
	})
	connected := func() {
		t.Helper()
		mu.Lock()
		clear(served)
		mu.Unlock()
		for ctx, n := bounded(t), 0; n < len(ways); { // requests go to one after the other that is connected
			_, err := r.client.Get(ctx, "x")
			must(t, err)
			mu.Lock()
			n = len(served)
			mu.Unlock()
		}
	}
	view := registrytest.Follow(t, r, "Svc")
	var nodes []micro.Node
	for i := range 4 {
		connected()
		ways[i%2].setCut(true)
		n := node(fmt.Sprint(i))
		for err := error(micro.ErrClosed); err != nil; { // one that was under way may fail
			err = r.Register(bounded(t), n, ttl)
		}
		nodes = append(nodes, n)
		view.Is(t, patience, nodes...)
		ways[i%2].setCut(false)
	}
	for _, k := range view.Kinds() {
		if k == micro.Lost || k == micro.Delete {
			t.Errorf("%v", view.Kinds())
		}
	}
}

// TestQuorum has a cluster that is connected, but cannot decide anything as a member is missing.
func TestQuorum(t *testing.T) {
	t.Parallel()
	peers := []string{freeAddr(t), freeAddr(t)}
	cluster := "m0=http://" + peers[0] + ",m1=http://" + peers[1]
	members := []*server{member(t, "m0", peers[0], cluster, 400), member(t, "m1", peers[1], cluster, 400)}
	var group sync.WaitGroup
	for _, m := range members {
		group.Go(func() {
			if err := m.start(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	r, n := members[0].open(t), node("one")
	view := registrytest.Follow(t, r, n.Service)
	must(t, r.Register(bounded(t), n, 2*time.Minute))
	view.Is(t, patience, n)
	must(t, members[1].stop())
	view.Last(t, patience, micro.Lost)
	view.Is(t, patience, n)
	must(t, members[1].start())
	view.Last(t, patience, micro.Set)
	view.Is(t, patience, n)
}

// unsure makes answers of transactions get lost, while it is on.
type unsure struct {
	on   atomic.Bool
	lost chan struct{}
}

func (u *unsure) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	if err == nil && strings.HasSuffix(method, "/Txn") && u.on.Load() {
		select {
		case u.lost <- struct{}{}:
		default:
		}
		return status.Error(codes.Unavailable, "the answer is lost")
	}
	return err
}

// TestUndone fails calls that were carried out.
func TestUndone(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	u := &unsure{lost: make(chan struct{}, 1)}
	r := s.open(t, func(c *Config) {
		c.Client.DialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(u.intercept)}
	})
	c := s.client(t)
	fail := func(call func(ctx context.Context) error) {
		t.Helper()
		select {
		case <-u.lost:
		default:
		}
		u.on.Store(true)
		defer u.on.Store(false)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			<-u.lost
			cancel()
		}()
		if err := call(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	n := node("one")
	fail(func(ctx context.Context) error { return r.Register(ctx, n, ttl) })
	until(t, c, n, gone)

	must(t, r.Register(bounded(t), n, ttl))
	before, _ := value(t, c, n)
	update := n
	update.Weight = 7
	for _, ttl := range []time.Duration{ttl, 2 * ttl} { // within one lease, and with another
		fail(func(ctx context.Context) error { return r.Register(ctx, update, ttl) })
		until(t, c, n, func(v string, _ clientv3.LeaseID) bool { return v == before })
	}

	fail(func(ctx context.Context) error { return r.Deregister(ctx, n) })
	until(t, c, n, gone)
	must(t, r.Deregister(bounded(t), n))
}

// TestLeases has one lease for each ttl that is in use.
func TestLeases(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	r, c := s.open(t), s.client(t)
	leases := func(want int) {
		t.Helper()
		for end := time.Now().Add(patience); ; {
			got, err := c.Leases(bounded(t))
			must(t, err)
			if len(got.Leases) == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d leases, want %d", len(got.Leases), want)
			}
			<-time.After(time.Millisecond) // nothing tells of leases
		}
	}
	for i := range 5 {
		must(t, r.Register(bounded(t), node(fmt.Sprint(i)), ttl))
	}
	leases(1)
	must(t, r.Register(bounded(t), node("0"), 4*ttl))
	_, lease := value(t, c, node("0"))
	left, err := c.TimeToLive(bounded(t), lease)
	must(t, err)
	if left.GrantedTTL != 8 {
		t.Error(left.GrantedTTL)
	}
	leases(2)
	must(t, r.Register(bounded(t), node("0"), ttl))
	leases(1)
	if v, _ := value(t, c, node("0")); v == "" {
		t.Error("a node is gone with a lease that it has left")
	}
	for i := range 5 {
		must(t, r.Deregister(bounded(t), node(fmt.Sprint(i))))
	}
	leases(0)
	must(t, r.Register(bounded(t), node("0"), ttl))
	leases(1)
	must(t, r.Close())
	leases(0)
}

// TestTaken leaves a node alone whose place another process has taken.
func TestTaken(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	before, after, c := s.open(t), s.open(t), s.client(t)
	n := node("one")
	must(t, before.Register(bounded(t), n, ttl))
	must(t, after.Register(bounded(t), n, ttl))
	must(t, before.Deregister(bounded(t), n))
	must(t, before.Close())
	if v, _ := value(t, c, n); v == "" {
		t.Error("the node of the other is gone")
	}
}

// TestTogether registers and deregisters a node by many calls at once. The last one decides.
func TestTogether(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	r, c, n := s.open(t), s.client(t), node("one")
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for j := range 10 {
				m := n
				m.Weight = 1 + i + j
				err := r.Register(bounded(t), m, ttl+time.Duration(j%2)*time.Second)
				if j%3 == 0 {
					err = errors.Join(err, r.Deregister(bounded(t), m))
				}
				if err != nil && arpc.CodeOf(err) != arpc.CodeAborted {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	must(t, r.Register(bounded(t), n, ttl))
	want, err := n.MarshalValue()
	must(t, err)
	until(t, c, n, func(v string, _ clientv3.LeaseID) bool { return v == string(want) })
	must(t, r.Deregister(bounded(t), n))
	until(t, c, n, gone)
}

func code(t *testing.T, err error, want arpc.Code) {
	t.Helper()
	var e *arpc.Error
	if !errors.As(err, &e) || e.Code != want {
		t.Errorf("%v (%v), want %v", err, arpc.CodeOf(err), want)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	r, c, n := s.open(t, func(c *Config) { c.Timeout = time.Second }), s.client(t), node("one")
	for _, ttl := range []time.Duration{time.Second, time.Millisecond, -1, 1 << 62} { // etcd's minimum is 2 seconds
		code(t, r.Register(bounded(t), n, ttl), arpc.CodeInvalidArgument)
	}
	if leases, err := c.Leases(bounded(t)); err != nil || len(leases.Leases) > 0 {
		t.Error(leases, err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	code(t, r.Register(ended, n, ttl), arpc.CodeCanceled)
	must(t, r.Deregister(ended, n))
	_, err := r.Watch(ended, n.Service)
	code(t, err, arpc.CodeCanceled)
	must(t, r.Register(bounded(t), n, ttl))

	must(t, s.stop())
	code(t, r.Register(bounded(t), node("two"), ttl), arpc.CodeUnavailable)
	_, err = r.Watch(bounded(t), n.Service)
	code(t, err, arpc.CodeUnavailable)
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	code(t, r.Register(short, node("two"), ttl), arpc.CodeDeadlineExceeded)
	code(t, r.Deregister(short, n), arpc.CodeDeadlineExceeded)
	must(t, s.start())
	until(t, c, n, gone)
	if v, _ := value(t, c, node("two")); v != "" {
		t.Error("a node that could not be registered is there")
	}

	must(t, r.Close())
	code(t, r.Register(bounded(t), n, ttl), arpc.CodeCanceled)
	code(t, r.Deregister(bounded(t), n), arpc.CodeCanceled)
	_, err = New(Config{Client: clientv3.Config{MaxCallSendMsgSize: 2, MaxCallRecvMsgSize: 1}})
	code(t, err, arpc.CodeUnavailable)
}

// TestDenied has a user who may only write what is of one service, and one who is none.
func TestDenied(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	c, ctx := s.client(t), bounded(t)
	mine, other := node("one"), node("one")
	other.Service = "other"
	for _, user := range []string{"root", "some"} {
		_, err := c.UserAdd(ctx, user, "secret")
		must(t, err)
		_, err = c.RoleAdd(ctx, user)
		must(t, err)
		_, err = c.UserGrantRole(ctx, user, user)
		must(t, err)
	}
	dir := mine.Dir("/getty")
	_, err := c.RoleGrantPermission(ctx, "some", dir, clientv3.GetPrefixRangeEnd(dir), clientv3.PermissionType(clientv3.PermReadWrite))
	must(t, err)
	_, err = c.AuthEnable(ctx)
	must(t, err)
	r := s.open(t, func(c *Config) { c.Client.Username, c.Client.Password = "some", "secret" })
	must(t, r.Register(ctx, mine, ttl))
	code(t, r.Register(ctx, other, ttl), arpc.CodePermissionDenied)
	_, err = r.Watch(ctx, mine.Service)
	code(t, err, arpc.CodePermissionDenied)
	must(t, r.Deregister(ctx, mine))
	_, err = New(Config{Client: clientv3.Config{Endpoints: []string{s.addr}, Username: "some", Password: "wrong"}})
	code(t, err, arpc.CodeInvalidArgument)
}

// TestHung does not wait for ever for a server that accepts, and says nothing.
func TestHung(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	hung := make(chan struct{})
	hang := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		select {
		case <-hung:
			<-ctx.Done()
			return ctx.Err()
		default:
			return invoke(ctx, method, req, reply, cc, opts...)
		}
	}
	r := s.open(t, func(c *Config) {
		c.Timeout = 200 * time.Millisecond
		c.Client.DialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(hang)}
	})
	must(t, r.Register(bounded(t), node("one"), ttl))
	close(hung)
	code(t, r.Register(context.Background(), node("two"), ttl), arpc.CodeUnavailable)
	code(t, r.Register(context.Background(), node("two"), 2*ttl), arpc.CodeUnavailable)
	code(t, r.Deregister(context.Background(), node("one")), arpc.CodeUnavailable)
	_, err := r.Watch(context.Background(), "Svc")
	code(t, err, arpc.CodeUnavailable)
	must(t, r.Close())
}
