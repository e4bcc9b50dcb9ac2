package main

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"
)

// A histogram counts durations in buckets whose width is 1/64 of their value,
// so a quantile read from it is within 1% of the exact one. Adding is one
// atomic add, from any goroutine.
type histogram struct {
	counts [histogramBuckets]atomic.Uint64
}

const (
	histogramBits    = 6  // log2 of the buckets per doubling
	histogramMaxBits = 40 // durations from 2^40 ns (18 minutes) fall into the last bucket
	histogramBuckets = (histogramMaxBits - histogramBits + 1) << histogramBits
)

func (h *histogram) add(d time.Duration) { h.counts[bucketOf(d)].Add(1) }

// bucketOf: below 128 ns a bucket is a nanosecond; from there on every
// doubling has 64 buckets.
func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	if v >= 1<<histogramMaxBits {
		return histogramBuckets - 1
	}
	shift := max(bits.Len64(v)-histogramBits-1, 0)
	return shift<<histogramBits + int(v>>shift)
}

// bucketMiddle is the value that stands for a bucket.
func bucketMiddle(i int) time.Duration {
	if i < 2<<histogramBits {
		return time.Duration(i)
	}
	shift := i>>histogramBits - 1
	low := uint64(i-shift<<histogramBits) << shift
	return time.Duration(low + 1<<shift/2)
}

// A distribution is what was counted by one or more histograms.
type distribution struct {
	counts [histogramBuckets]uint64
	total  uint64
}

func (d *distribution) merge(h *histogram) {
	for i := range h.counts {
		n := h.counts[i].Load()
		d.counts[i] += n
		d.total += n
	}
}

// quantile returns the smallest duration that at least the fraction q of all
// does not exceed; 0 if nothing was counted.
func (d *distribution) quantile(q float64) time.Duration {
	if d.total == 0 {
		return 0
	}
	rank := uint64(math.Ceil(q * float64(d.total)))
	rank = min(max(rank, 1), d.total)
	seen := uint64(0)
	for i, n := range d.counts {
		if seen += n; seen >= rank {
			return bucketMiddle(i)
		}
	}
	return bucketMiddle(histogramBuckets - 1)
}

// latency is what is reported of a distribution, in microseconds.
type latency struct {
	Samples uint64  `json:"samples"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
}

func (d *distribution) summary() latency {
	us := func(q float64) float64 { return float64(d.quantile(q)) / 1e3 }
	return latency{Samples: d.total, P50: us(0.50), P99: us(0.99), P999: us(0.999)}
}

// A spread is the median of a few figures, and how far they lie apart.
type spread struct {
	Median, Min, Max float64
	N                int
}

// spreadOf returns the zero spread for no figures. The median of an even
// number of them is the mean of the middle two.
func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{
		Median: (sorted[(n-1)/2] + sorted[n/2]) / 2,
		Min:    sorted[0],
		Max:    sorted[n-1],
		N:      n,
	}
}

// ratios divides figures by those of the same round. Rounds in which either is
// missing, or the divisor is 0, are left out.
func ratios(of, by map[int]float64) []float64 {
	var list []float64
	for round, value := range of {
		if base := by[round]; base > 0 {
			list = append(list, value/base)
		}
	}
	slices.Sort(list)
	return list
}

// format writes "4.5x (4.3..4.7)".
func (s spread) format() string {
	switch s.N {
	case 0:
		return "-"
	case 1:
		return fmt.Sprintf("%.2fx", s.Median)
	default:
		return fmt.Sprintf("%.2fx (%.2f..%.2f)", s.Median, s.Min, s.Max)
	}
}
