package router

import (
	"fmt"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// A clock is a time that tests set.
type clock struct{ nanos atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(1_000_000, c.nanos.Load()) }
func (c *clock) advance(d time.Duration) { c.nanos.Add(int64(d)) }

func peerOf(i int) peerKey { return peerKey{name: fmt.Sprint(i)} }

// Whatever is asked for, by however many at once, what passes is the
// configured rate within 5 %.
func TestLimitRate(t *testing.T) {
	const span = 20 * time.Second
	for _, q := range []Quota{{Rate: 1}, {Rate: 10}, {Rate: 333.3}, {Rate: 1000}, {Rate: 100, Burst: 50}} {
		for _, per := range []string{"route", "peer", "both"} {
			t.Run(fmt.Sprint(q.Rate, " per ", per), func(t *testing.T) {
				var c clock
				o := LimitOptions{}
				if per != "peer" {
					o.Route = q
				}
				if per != "route" {
					o.Peer = q
				}
				l := newLimiter(o, c.now)
				var passed atomic.Int64
				const workers, steps = 4, 10_000
				var wg sync.WaitGroup
				for range workers {
					wg.Go(func() {
						for range steps { // the clock goes on while others ask
							if peer, route, err := l.enter(peerOf(1), "/x"); err == nil {
								passed.Add(1)
								l.leave(peer, route)
							}
							c.advance(span / (workers * steps))
						}
					})
				}
				wg.Wait()
				burst := float64(q.usage().tokens.Burst())
				want := burst + q.Rate*span.Seconds()
				if off := float64(passed.Load())/want - 1; math.Abs(off) > 0.05 {
					t.Errorf("%d have passed, want %.0f: %+.1f %%", passed.Load(), want, 100*off)
				}
			})
		}
	}
}

// What Retry-After says is right: not a moment earlier.
func TestLimitRetryAfter(t *testing.T) {
	var c clock
	l := newLimiter(LimitOptions{Route: Quota{Rate: 4, Burst: 1}}, c.now)
	enter := func() error {
		_, _, err := l.enter(peerKey{}, "/x")
		return err
	}
	if err := enter(); err != nil {
		t.Fatal(err)
	}
	for range 100 { // what is refused takes nothing
		d, ok := arpc.RetryDelay(enter())
		if !ok || d != 250*time.Millisecond {
			t.Fatalf("%v, %v", d, ok)
		}
	}
	c.advance(200 * time.Millisecond)
	if d, ok := arpc.RetryDelay(enter()); !ok || d != 50*time.Millisecond {
		t.Errorf("%v, %v", d, ok)
	}
	c.advance(50 * time.Millisecond)
	if err := enter(); err != nil {
		t.Error(err)
	}
}

func TestLimitConcurrency(t *testing.T) {
	var c clock
	l := newLimiter(LimitOptions{
		Route: Quota{Concurrency: 7}, Routes: map[string]Quota{"/few": {Concurrency: 3}, "/free": {}}, Peer: Quota{Concurrency: 5},
	}, c.now)
	running := map[string]*atomic.Int32{"/x": {}, "/few": {}, "1": {}, "2": {}}
	most := map[string]int32{"/x": 7, "/few": 3, "1": 5, "2": 5}
	var reached, passed atomic.Int32
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			for n := range 2000 {
				key, method := []string{"1", "2"}[i%2], []string{"/x", "/few"}[(i/2+n)%2]
				peer, route, err := l.enter(peerKey{name: key}, method)
				if err != nil {
					if _, ok := arpc.RetryDelay(err); ok || arpc.CodeOf(err) != arpc.CodeResourceExhausted {
						t.Errorf("%v", err)
					}
					continue
				}
				passed.Add(1)
				for _, what := range []string{key, method} {
					switch n := running[what].Add(1); {
					case n > most[what]:
						t.Errorf("%d of %s at the same time", n, what)
					case n == most[what]:
						reached.Add(1)
					}
				}
				for range n % 50 {
					c.now()
				}
				running[key].Add(-1)
				running[method].Add(-1)
				l.leave(peer, route)
			}
		})
	}
	wg.Wait()
	if passed.Load() == 0 {
		t.Error("nothing has passed")
	}
	// All of it was given back.
	for i := range 5 {
		if _, _, err := l.enter(peerOf(1), []string{"/x", "/few"}[i%2]); err != nil {
			t.Errorf("in the end: %v", err)
		}
	}
	if _, _, err := l.enter(peerOf(1), "/x"); err == nil {
		t.Error("a sixth has passed")
	}
	if _, route, err := l.enter(peerOf(3), "/free"); err != nil || route.quota.limits() {
		t.Errorf("%v, %v", route, err)
	}
}

// However many peers come, what is remembered does not grow, a peer whose
// handlers run keeps its quota, and so does one that has come lately.
func TestLimitHostilePeers(t *testing.T) {
	const peers = 100
	var c clock
	l := newLimiter(LimitOptions{Peer: Quota{Rate: 1, Burst: 1, Concurrency: 1}, Route: Quota{Rate: 1e9}, Peers: peers}, c.now)
	busy, _, err := l.enter(peerKey{name: "busy"}, "/x")
	if err != nil {
		t.Fatal(err)
	}
	c.advance(time.Hour) // not its rate, its concurrency refuses it
	if _, _, err := l.enter(peerKey{name: "regular"}, "/x"); err != nil {
		t.Fatal(err)
	}
	for i := range 20 * peers {
		peer, route, err := l.enter(peerOf(i), fmt.Sprintf("/%d", i))
		if err != nil {
			t.Fatal(err)
		}
		l.leave(peer, route)
		if i%(peers/2) == 0 {
			if _, _, err := l.enter(peerKey{name: "busy"}, "/x"); err == nil {
				t.Fatal("the busy peer was forgotten")
			}
			if _, _, err := l.enter(peerKey{name: "regular"}, "/x"); err == nil {
				t.Fatal("the regular peer was forgotten")
			}
		}
	}
	if n := len(l.peers.byKey); n > peers || n != l.peers.order.Len() {
		t.Errorf("%d peers in the table, %d in its order", n, l.peers.order.Len())
	}
	if n := len(l.routes.byKey); n > maxRoutes {
		t.Errorf("%d routes", n)
	}
	l.leave(busy, nil)

	// All run: the others share one quota.
	l = newLimiter(LimitOptions{Peer: Quota{Concurrency: 2}, Peers: peers}, c.now)
	for i := range peers {
		if _, _, err := l.enter(peerOf(i), "/x"); err != nil {
			t.Fatal(err)
		}
	}
	a, _, err1 := l.enter(peerOf(1000), "/x")
	b, _, err2 := l.enter(peerOf(1001), "/x")
	if err1 != nil || err2 != nil || a != b {
		t.Errorf("%v, %v: %p, %p", err1, err2, a, b)
	}
	if _, _, err := l.enter(peerOf(1002), "/x"); err == nil {
		t.Error("a third one of those that share has passed")
	}
	if n := len(l.peers.byKey); n != peers {
		t.Errorf("%d peers", n)
	}
	l.leave(a, nil)
	if _, _, err := l.enter(peerOf(1002), "/x"); err != nil {
		t.Error(err)
	}
}

func TestPrefix(t *testing.T) {
	for _, same := range [][2]string{
		{"192.0.2.7:1", "192.0.2.7:65535"},
		{"[::ffff:192.0.2.7]:1", "192.0.2.7:2"},
		{"[2001:db8:1:2::1]:1", "[2001:db8:1:2:ffff::9]:2"},
		{"[fe80::1%eth0]:1", "[fe80::2%eth1]:2"},
	} {
		a, ok1 := prefix(netip.MustParseAddrPort(same[0]).Addr())
		b, ok2 := prefix(netip.MustParseAddrPort(same[1]).Addr())
		if !ok1 || !ok2 || a != b {
			t.Errorf("%v: %v, %v", same, a, b)
		}
	}
	a, _ := prefix(netip.MustParseAddr("2001:db8:1:2::1"))
	b, _ := prefix(netip.MustParseAddr("2001:db8:1:3::1"))
	if a == b {
		t.Errorf("two networks have the prefix %v", a)
	}
	if _, ok := prefix(netip.Addr{}); ok {
		t.Error("no address has a prefix")
	}
}

// BenchmarkLimitPeers measures the table where peers come and go.
func BenchmarkLimitPeers(b *testing.B) {
	l := newLimiter(LimitOptions{Peer: Quota{Rate: 1, Concurrency: 1}, Peers: 1000}, time.Now)
	keys := make([]peerKey, 4000)
	for i := range keys {
		keys[i] = peerOf(i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if peer, route, err := l.enter(keys[i%len(keys)], "/x"); err == nil {
			l.leave(peer, route)
		}
	}
}
