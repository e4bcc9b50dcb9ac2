package etcd

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A post keeps transactions from etcd. The test answers and delivers them, in this order or the other, or does not.
type post struct {
	keeps  atomic.Pointer[func(*pb.TxnRequest) bool] // nil: none
	letter chan letter
}

// A letter is a transaction that is kept until its context ends.
type letter struct {
	*pb.TxnRequest
	answer chan error
}

func (p *post) keep(which func(*pb.TxnRequest) bool) { p.keeps.Store(&which) }

func all(*pb.TxnRequest) bool  { return true }
func none(*pb.TxnRequest) bool { return false }

func deletions(r *pb.TxnRequest) bool {
	return slices.ContainsFunc(r.Success, func(op *pb.RequestOp) bool { return op.GetRequestDeleteRange() != nil })
}

func (p *post) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	r, ok := req.(*pb.TxnRequest)
	if keeps := p.keeps.Load(); !ok || keeps == nil || !(*keeps)(r) {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	l := letter{r, make(chan error, 1)}
	select {
	case p.letter <- l:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-l.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *post) next(t *testing.T) letter {
	t.Helper()
	select {
	case l := <-p.letter:
		return l
	case <-time.After(patience):
		t.Fatal("no transaction")
		return letter{}
	}
}

// deliver has etcd carry out a transaction, and reports whether its condition was met.
func (l letter) deliver(t *testing.T, c *clientv3.Client) bool {
	t.Helper()
	got, err := pb.NewKVClient(c.ActiveConnection()).Txn(bounded(t), l.TxnRequest)
	must(t, err)
	return got.Succeeded
}

// posted opens a Registry whose transactions go through a post.
func (s *server) posted(t *testing.T, timeout time.Duration) (*Registry, *post) {
	t.Helper()
	p := &post{letter: make(chan letter)}
	return s.open(t, func(c *Config) {
		c.Timeout = timeout
		c.Client.DialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(p.intercept)}
	}), p
}

// cancelled cancels a call when its transaction, which it returns, is kept. Of what follows the post keeps some.
func (p *post) cancelled(t *testing.T, then func(*pb.TxnRequest) bool, call func(ctx context.Context) error) letter {
	t.Helper()
	p.keep(all)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- call(ctx) }()
	l := p.next(t)
	p.keep(then)
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return l
}

// settled waits until the keeper of a ttl has nothing left to do, or all have with 0.
func settled(t *testing.T, r *Registry, ttl time.Duration) {
	t.Helper()
	busy := func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for seconds, k := range r.keepers {
			if ttl > 0 && seconds != int64(ttl/time.Second) {
				continue
			}
			for _, e := range k.entries {
				if e.stop != nil {
					return true
				}
			}
			if len(k.dirty) > 0 {
				return true
			}
		}
		return false
	}
	for end := time.Now().Add(patience); busy(); {
		if time.Now().After(end) {
			t.Fatal("not settled")
		}
		<-time.After(time.Millisecond) // nothing tells of it
	}
}

const recheck = 2 * time.Second

// TestLate has the put of a Register that has failed arrive when it was undone.
func TestLate(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	for _, test := range []struct {
		name              string
		published, failed time.Duration // the ttl, 0: not
	}{{"SameLease", ttl, ttl}, {"OtherLease", ttl, 2 * ttl}, {"Unpublished", 0, ttl}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c, n := s.client(t), node(test.name)
			r, p := s.posted(t, recheck)
			if test.published > 0 {
				must(t, r.Register(bounded(t), n, test.published))
			}
			must(t, r.Register(bounded(t), node(test.name+"2"), test.failed)) // otherwise the lease would go, and the put with it
			before, lease := value(t, c, n)
			n.Weight = 7
			put := p.cancelled(t, none, func(ctx context.Context) error { return r.Register(ctx, n, test.failed) })
			settled(t, r, 0)
			put.deliver(t, c)
			until(t, c, n, func(v string, l clientv3.LeaseID) bool { return v == before && l == lease })
		})
	}
}

// TestLateDeletion is TestLate with another lease, where the deletion that undoes the put is late as well, and arrives after it.
func TestLateDeletion(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	for _, test := range []struct {
		name    string
		timeout time.Duration
		lost    bool // the deletion fails, and is repeated before the first one arrives
	}{{"Slow", time.Minute, false}, {"Lost", recheck, true}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c, n := s.client(t), node(test.name)
			r, p := s.posted(t, test.timeout)
			must(t, r.Register(bounded(t), n, ttl))
			must(t, r.Register(bounded(t), node(test.name+"2"), 2*ttl))
			before, lease := value(t, c, n)
			n.Weight = 7
			put := p.cancelled(t, deletions, func(ctx context.Context) error { return r.Register(ctx, n, 2*ttl) })
			deletion := p.next(t)
			p.keep(none)
			if test.lost {
				deletion.answer <- status.Error(codes.Unavailable, "lost")
				settled(t, r, 0)
			}
			settled(t, r, ttl)
			put.deliver(t, c)
			if !deletion.deliver(t, c) && !test.lost {
				t.Error("the put was corrected before its deletion came")
			}
			deletion.answer <- nil
			until(t, c, n, func(v string, l clientv3.LeaseID) bool { return v == before && l == lease })
		})
	}
}

// TestUnwanted has a Deregister fail, and then a Register: the node is not published again.
func TestUnwanted(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	c, n := s.client(t), node("one")
	r, p := s.posted(t, recheck)
	must(t, r.Register(bounded(t), n, ttl))
	p.cancelled(t, all, func(ctx context.Context) error { return r.Deregister(ctx, n) })
	n.Weight = 7
	p.cancelled(t, none, func(ctx context.Context) error { return r.Register(ctx, n, ttl) })
	settled(t, r, 0)
	if v, _ := value(t, c, n); v != "" {
		t.Error(v)
	}
}

// TestRefusedOnce does not look again at what etcd has refused, only at what may be late.
func TestRefusedOnce(t *testing.T) {
	t.Parallel()
	s := embedded(t)
	r, p := s.posted(t, recheck)
	must(t, r.Register(bounded(t), node("other"), ttl))
	p.keep(all)
	n, late := node("refused"), node("late")
	refused := make(chan error, 1)
	go func() { refused <- r.Register(bounded(t), n, ttl) }()
	for range 2 { // its put and its deletion
		p.next(t).answer <- status.Error(codes.PermissionDenied, "refused")
	}
	code(t, <-refused, arpc.CodePermissionDenied)
	settled(t, r, 0)
	var again atomic.Int32
	p.cancelled(t, none, func(ctx context.Context) error { return r.Register(ctx, late, ttl) })
	settled(t, r, 0)
	p.keep(func(r *pb.TxnRequest) bool {
		if string(r.Compare[0].Key) == n.Path("/getty") {
			again.Add(1)
		}
		return string(r.Compare[0].Key) == late.Path("/getty")
	})
	p.next(t).answer <- nil // it comes after that of the other would
	settled(t, r, 0)
	if a := again.Load(); a != 0 {
		t.Errorf("looked at again %d times", a)
	}
}
