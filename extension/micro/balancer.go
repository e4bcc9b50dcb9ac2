package micro

import (
	"context"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"sort"
	"sync/atomic"
)

// A Balancer makes of the peers that can be called, at least one, the function that chooses among them. It is called whenever they
// change, never twice at a time for one Client, and must neither change nor block; the function is called by many goroutines. A
// program's own Balancer is a function like those here.
type Balancer func(peers []*Peer) Pick

// A Pick chooses a peer for an attempt of a call with ctx, one that tried does not have if there is one. nil leaves the choice to the
// Client: any that was not tried.
type Pick func(ctx context.Context, tried *Tried) *Peer

// RoundRobin chooses one after the other.
func RoundRobin() Balancer {
	var next atomic.Uint64
	return func(peers []*Peer) Pick {
		return func(_ context.Context, tried *Tried) *Peer {
			return tried.from(peers, int(next.Add(1)%uint64(len(peers))))
		}
	}
}

// Random chooses each with the same probability.
func Random() Balancer {
	return func(peers []*Peer) Pick {
		return func(_ context.Context, tried *Tried) *Peer { return tried.from(peers, rand.IntN(len(peers))) }
	}
}

// Weighted chooses at random, each with the probability that its Weight is of all weights.
func Weighted() Balancer {
	return func(peers []*Peer) Pick {
		sums, sum := make([]int, len(peers)), 0
		for i, p := range peers {
			sum += p.weight()
			sums[i] = sum
		}
		return func(_ context.Context, tried *Tried) *Peer {
			for range 4 { // so that shares stay right when some were tried
				if p := peers[sort.SearchInts(sums, rand.IntN(sum)+1)]; !tried.Has(p) {
					return p
				}
			}
			return nil
		}
	}
}

// LeastLoaded looks at two peers at random and chooses the one with fewer calls in flight for its weight. It is the default: a
// slow peer gets fewer calls.
func LeastLoaded() Balancer {
	return func(peers []*Peer) Pick {
		return func(_ context.Context, tried *Tried) *Peer {
			if len(peers) == 1 {
				return tried.from(peers, 0)
			}
			i := rand.IntN(len(peers))
			a := tried.from(peers, i)
			if a == nil {
				return nil
			}
			b := tried.from(peers, (i+1+rand.IntN(len(peers)-1))%len(peers))
			if b != nil && b.load() < a.load() { // a hedged call may have tried the last one meanwhile
				return b
			}
			return a
		}
	}
}

// ConsistentHash chooses by a key that key takes from the context of a call: calls with one key go to one peer, in all programs that
// know the same peers, in shares that the weights say. When a peer leaves, its keys are spread over the others, and no other key moves
// (rendezvous hashing). It looks at every peer for each call. With Subset, each Client has other peers. Calls without a key, for which
// it returns false, are spread at random. A CallAsync has no context: key gets context.Background(). It panics without key.
func ConsistentHash(key func(ctx context.Context) (string, bool)) Balancer {
	if key == nil {
		panic("micro: ConsistentHash without a function")
	}
	return func(peers []*Peer) Pick {
		return func(ctx context.Context, tried *Tried) *Peer {
			k, ok := key(ctx)
			if !ok {
				return tried.from(peers, rand.IntN(len(peers)))
			}
			h := hash(k)
			var best *Peer
			most := math.Inf(-1)
			for _, p := range peers {
				// The greatest of weight / -ln(x), x uniform in (0, 1), falls to a peer with the probability that its weight has.
				x := (float64(mix(h^p.hash)>>11) + 0.5) / (1 << 53)
				if score := float64(p.weight()) / -math.Log(x); score > most && !tried.Has(p) {
					best, most = p, score
				}
			}
			return best
		}
	}
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s)) //nolint:errcheck // it never fails
	return h.Sum64()
}

// mix spreads the bits of x (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Locality chooses by inner among the peers whose metadata "zone" is zone, and among the others only when there is none of those, or
// all were tried. It panics without inner.
func Locality(zone string, inner Balancer) Balancer {
	if inner == nil {
		panic("micro: Locality without a Balancer")
	}
	return func(peers []*Peer) Pick {
		var near, far []*Peer
		for _, p := range peers {
			if p.Meta["zone"] == zone {
				near = append(near, p)
			} else {
				far = append(far, p)
			}
		}
		var picks []Pick
		for _, peers := range [][]*Peer{near, far} {
			if len(peers) > 0 {
				picks = append(picks, inner(peers))
			}
		}
		return func(ctx context.Context, tried *Tried) *Peer {
			for _, pick := range picks {
				if p := pick(ctx, tried); p != nil && !tried.Has(p) {
					return p
				}
			}
			return nil
		}
	}
}
