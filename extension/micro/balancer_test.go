package micro

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
)

func peersOf(n int, weight func(i int) int) []*Peer {
	var peers []*Peer
	for i := range n {
		node := Node{Service: "s", ID: fmt.Sprint(i), Addr: fmt.Sprint("host:", i), Weight: weight(i), Meta: map[string]string{"zone": fmt.Sprint(i % 2)}}
		peers = append(peers, &Peer{Node: node, state: &state{}, hash: hash(node.Key())})
	}
	return peers
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func even(int) int { return 0 }

func counts(b Balancer, peers []*Peer, n int) map[*Peer]int {
	pick, got := b(peers), map[*Peer]int{}
	for range n {
		got[pick(context.Background(), nil)]++
	}
	return got
}

// chiSquare fails if the counts are off what the weights say by more than chance makes them once in a hundred thousand runs.
func chiSquare(t *testing.T, peers []*Peer, got map[*Peer]int) {
	t.Helper()
	n, sum := 0, 0
	for _, p := range peers {
		n, sum = n+got[p], sum+p.weight()
	}
	x := 0.0
	for _, p := range peers {
		want := float64(n) * float64(p.weight()) / float64(sum)
		x += (float64(got[p]) - want) * (float64(got[p]) - want) / want
	}
	k := float64(len(peers) - 1)
	const z = 4.26 // the normal quantile of 1 - 1e-5, in Wilson and Hilferty's approximation
	if limit := k * math.Pow(1-2/(9*k)+z*math.Sqrt(2/(9*k)), 3); x > limit {
		t.Errorf("chi-square %.1f of %d picks, at most %.1f: %v", x, n, limit, got)
	}
}

func TestRoundRobin(t *testing.T) {
	peers, b := peersOf(7, even), RoundRobin()
	got := map[*Peer]int{}
	var mu sync.Mutex
	var group sync.WaitGroup
	pick := b(peers)
	for range 10 {
		group.Go(func() {
			for range 101 {
				p := pick(context.Background(), nil)
				mu.Lock()
				got[p]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	for _, p := range peers {
		if n := got[p]; n < 144 || n > 145 { // 1010 / 7, give or take one
			t.Errorf("%d picks of %s", n, p.ID)
		}
	}
}

func TestRandom(t *testing.T) {
	peers := peersOf(10, even)
	chiSquare(t, peers, counts(Random(), peers, 100_000))
}

func TestWeighted(t *testing.T) {
	far := peersOf(3, func(int) int { return math.MaxInt }) // of a Registry that does not check
	chiSquare(t, far, counts(Weighted(), far, 1000))
	peers := peersOf(10, func(i int) int { return i * i }) // 0 counts as 1
	chiSquare(t, peers, counts(Weighted(), peers, 100_000))
}

// TestLeastLoaded has one peer that takes five times as long: the others' load stays near the mean, and the slow one does not collect more
// than twice that.
func TestLeastLoaded(t *testing.T) {
	const n, steps = 10, 200_000
	peers := peersOf(n, even)
	pick := LeastLoaded()(peers)
	ends := map[int][]*Peer{}
	load, calls := make([]float64, n), map[*Peer]int{}
	for now := range steps {
		for _, p := range ends[now] {
			p.ended.Add(1)
		}
		delete(ends, now)
		p := pick(context.Background(), nil)
		p.calls.Add(1)
		calls[p]++
		took := 200
		if p == peers[0] {
			took = 1000
		}
		at := now + took/2 + rand.IntN(took)
		ends[at] = append(ends[at], p)
		if now > steps/10 {
			for i, p := range peers {
				load[i] += float64(p.InFlight())
			}
		}
	}
	mean := 0.0
	for _, l := range load {
		mean += l / n
	}
	for i, l := range load {
		if l > 1.3*mean {
			t.Errorf("peer %d has %.2f of the mean load", i, l/mean)
		}
	}
	if slow, all := float64(calls[peers[0]]), float64(steps)/n; slow > all/2 {
		t.Errorf("the slow peer gets %.2f of an even share", slow/all)
	}
}

func TestLeastLoadedWeighs(t *testing.T) {
	peers := peersOf(2, func(i int) int { return 1 + 2*i })
	peers[0].calls.Store(4)
	peers[1].calls.Store(10)
	for range 100 {
		if p := LeastLoaded()(peers)(context.Background(), nil); p != peers[1] { // 11/3 is less than 5
			t.Fatal("the load of the heavy one is less")
		}
	}
}

type keyed struct{}

func byKey(ctx context.Context) (string, bool) {
	k, ok := ctx.Value(keyed{}).(string)
	return k, ok
}

// TestConsistentHash removes one of n peers: only its keys move, no more than its share.
func TestConsistentHash(t *testing.T) {
	const n, keys = 10, 100_000
	for name, weight := range map[string]func(int) int{"even": even, "weighted": func(i int) int { return 1 + i%3 }} {
		t.Run(name, func(t *testing.T) {
			peers := peersOf(n, weight)
			all, less := ConsistentHash(byKey)(peers), ConsistentHash(byKey)(peers[1:])
			got, moved := map[*Peer]int{}, 0
			for i := range keys {
				ctx := context.WithValue(context.Background(), keyed{}, fmt.Sprint("user-", i))
				before, after := all(ctx, nil), less(ctx, nil)
				got[before]++
				if before != after {
					if moved++; before != peers[0] {
						t.Fatalf("key %d moves from one that has not left", i)
					}
				}
				if i < 100 && all(ctx, nil) != before {
					t.Fatal("a key has two peers")
				}
			}
			chiSquare(t, peers, got)
			if moved != got[peers[0]] {
				t.Errorf("%d keys have moved, %d had to", moved, got[peers[0]])
			}
		})
	}
	peers := peersOf(n, even)
	chiSquare(t, peers, counts(ConsistentHash(byKey), peers, 20_000)) // without a key
	ctx := context.WithValue(context.Background(), keyed{}, "k")
	tried := &Tried{}
	pick := ConsistentHash(byKey)(peers)
	first := pick(ctx, tried)
	tried.add(first)
	if second := pick(ctx, tried); second == first || second == nil {
		t.Error("a peer that was tried")
	}
}

func TestLocality(t *testing.T) {
	peers := peersOf(6, even)
	b := Locality("1", RoundRobin())
	got := counts(b, peers, 300)
	for i, p := range peers {
		if want := i % 2 * 100; got[p] != want {
			t.Errorf("%d picks of %d", got[p], i)
		}
	}
	tried := &Tried{}
	for _, i := range []int{1, 3, 5} {
		tried.add(peers[i])
	}
	if p := b(peers)(context.Background(), tried); p == nil || p.Meta["zone"] != "0" {
		t.Error("the others stand in for those that were tried")
	}
	if p := Locality("none", Random())(peers)(context.Background(), nil); p == nil {
		t.Error("there are others")
	}
}

// TestTried has every Balancer avoid what was tried, as long as there is something else.
func TestTried(t *testing.T) {
	for name, b := range map[string]Balancer{
		"RoundRobin": RoundRobin(), "Random": Random(), "Weighted": Weighted(), "LeastLoaded": LeastLoaded(),
		"ConsistentHash": ConsistentHash(byKey), "Locality": Locality("0", LeastLoaded()),
	} {
		for n := range 5 {
			peers := peersOf(n+1, even)
			pick, tried := b(peers), &Tried{}
			for range n + 1 {
				for range 50 {
					if p := pick(context.Background(), tried); p != nil && tried.Has(p) {
						t.Fatalf("%s chooses what was tried", name)
					}
				}
				tried.add(tried.from(peers, rand.IntN(n+1)))
			}
			if p := pick(context.Background(), tried); p != nil && name != "Weighted" {
				t.Errorf("%s: all were tried", name)
			}
		}
	}
	var none *Tried
	none.add(nil)
	if none.Has(&Peer{}) {
		t.Error("nothing was tried")
	}
}

// TestTriedMeanwhile has attempts of one hedged call choose at the same time.
func TestTriedMeanwhile(t *testing.T) {
	peers := peersOf(2, even)
	for name, b := range map[string]Balancer{
		"RoundRobin": RoundRobin(), "Random": Random(), "Weighted": Weighted(), "LeastLoaded": LeastLoaded(), "ConsistentHash": ConsistentHash(byKey),
		"Locality": Locality("0", LeastLoaded()),
	} {
		v := &view{peers: peers, pick: b(peers)}
		for range 20_000 {
			tried := &Tried{}
			var group sync.WaitGroup
			group.Go(func() { tried.add(peers[0]); tried.add(peers[1]) })
			if v.choose(context.Background(), tried) == nil {
				t.Fatal(name, "chooses none")
			}
			group.Wait()
		}
	}
}

// TestManyNodes updates a client with ten thousand nodes, at once and one by one.
func TestManyNodes(t *testing.T) {
	const n = 10_000
	m := NewMemory()
	defer m.Close()
	c, err := NewClient(context.Background(), m, "s", Config{Wait: -1, Attempts: 1, Filter: func(n Node) bool { return n.Addr != "" }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var nodes []Node
	for i := range n {
		nodes = append(nodes, Node{Service: "s", ID: fmt.Sprint(i), Addr: "127.0.0.1:1"})
	}
	known := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); c.Stats().Known != want; <-time.After(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d nodes", c.Stats().Known)
			}
		}
	}
	limit := time.Second
	if raceEnabled {
		limit = 10 * time.Second
	}
	start := time.Now()
	must(t, m.Replace("s", nodes...))
	known(n)
	t.Logf("%d nodes at once: %v", n, time.Since(start))
	if d := time.Since(start); d > limit {
		t.Errorf("%v for the whole set", d)
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for i := range 5 { // what changes again and again costs no more
		for j := range nodes {
			nodes[j].Weight = i + 1
		}
		must(t, m.Replace("s", nodes...))
	}
	must(t, m.Replace("s", nodes[:1]...))
	known(1)
	must(t, m.Replace("s", nodes...))
	known(n)
	grown := heap() - before
	t.Logf("five updates of %d nodes have taken %d bytes", n, grown)
	if grown > 10<<20 {
		t.Errorf("five updates of %d nodes have taken %d bytes", n, grown)
	}
	c.CallWith(context.Background(), "/", nil, nil) //nolint:errcheck // nobody is there; the subset is employed
	one := m.Open()
	defer one.Close()
	start = time.Now()
	for i := range n {
		node := nodes[i]
		node.ID = fmt.Sprint("x", i)
		if err := one.Register(context.Background(), node, 0); err != nil {
			t.Fatal(err)
		}
	}
	known(2 * n)
	t.Logf("%d nodes one by one: %v", n, time.Since(start))
	if d := time.Since(start); d > limit {
		t.Errorf("%v for nodes one by one", d)
	}
	if got := len(c.Stats().Nodes); got > 100 {
		t.Errorf("%d connections", got)
	}
}

// BenchmarkPick is what choosing costs.
func BenchmarkPick(b *testing.B) {
	ctx := context.WithValue(context.Background(), keyed{}, "key")
	for _, n := range []int{3, 100} {
		peers := peersOf(n, even)
		for _, of := range []struct {
			name string
			Balancer
		}{
			{"RoundRobin", RoundRobin()}, {"Random", Random()}, {"Weighted", Weighted()}, {"LeastLoaded", LeastLoaded()}, {"ConsistentHash", ConsistentHash(byKey)},
		} {
			b.Run(fmt.Sprint(of.name, "/", n), func(b *testing.B) {
				pick, tried := of.Balancer(peers), &Tried{}
				b.ReportAllocs()
				for b.Loop() {
					pick(ctx, tried)
				}
			})
		}
	}
}
