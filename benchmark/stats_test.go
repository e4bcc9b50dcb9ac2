package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBucketsAreContinuous(t *testing.T) {
	last := 0
	for d := time.Duration(0); d < 1<<14; d++ {
		b := bucketOf(d)
		if b != last && b != last+1 {
			t.Fatalf("%d ns is in bucket %d, the one before in %d", d, b, last)
		}
		last = b
	}
	for _, d := range []time.Duration{-1, 0, 1<<histogramMaxBits - 1, 1 << histogramMaxBits, math.MaxInt64} {
		if b := bucketOf(d); b < 0 || b >= histogramBuckets {
			t.Errorf("%d ns is in bucket %d of %d", d, b, histogramBuckets)
		}
	}
	if b := bucketOf(1<<histogramMaxBits - 1); b != histogramBuckets-1 {
		t.Errorf("the longest duration is in bucket %d of %d", b, histogramBuckets)
	}
}

func TestBucketMiddleIsWithinOnePercent(t *testing.T) {
	for d := time.Duration(1); d < 1<<(histogramMaxBits-1); d = d*101/100 + 1 {
		got := bucketMiddle(bucketOf(d))
		if off := math.Abs(float64(got-d)) / float64(d); off > 0.01 {
			t.Errorf("%d ns became %d, %.1f%% off", d, got, off*100)
		}
		if bucketOf(got) != bucketOf(d) {
			t.Errorf("the middle of the bucket of %d ns is in another one", d)
		}
	}
}

func TestQuantiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var (
		exact  []time.Duration
		shards [4]histogram
		all    distribution
	)
	for i := range 50_000 {
		d := time.Duration(math.Exp(rng.NormFloat64()*2+11)) + 1 // around 60 µs, with a long tail
		exact = append(exact, d)
		shards[i%len(shards)].add(d)
	}
	for i := range shards {
		all.merge(&shards[i])
	}
	slices.Sort(exact)
	for _, q := range []float64{0.001, 0.5, 0.99, 0.999, 1} {
		want := exact[int(math.Ceil(q*float64(len(exact))))-1]
		got := all.quantile(q)
		if off := math.Abs(float64(got-want)) / float64(want); off > 0.01 {
			t.Errorf("quantile %g is %v, exactly %v", q, got, want)
		}
	}
	sum := all.summary()
	if sum.Samples != uint64(len(exact)) || sum.P50 > sum.P99 || sum.P99 > sum.P999 {
		t.Errorf("summary %+v", sum)
	}
	if got := new(distribution).quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   spread
		text   string
	}{
		{nil, spread{}, "-"},
		{[]float64{2}, spread{2, 2, 2, 1}, "2.00x"},
		{[]float64{3, 1, 2}, spread{2, 1, 3, 3}, "2.00x (1.00..3.00)"},
		{[]float64{4, 1, 3, 2}, spread{2.5, 1, 4, 4}, "2.50x (1.00..4.00)"},
	} {
		got := spreadOf(test.values)
		if got != test.want || got.format() != test.text {
			t.Errorf("%v: got %+v %q", test.values, got, got.format())
		}
	}
}

// Ratios are of one round each; the median of them is not the ratio of medians.
func TestRatios(t *testing.T) {
	got := ratios(map[int]float64{1: 10, 2: 90, 3: 8, 4: 5}, map[int]float64{1: 1, 2: 30, 3: 2, 5: 7})
	if want := []float64{3, 4, 10}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := ratios(map[int]float64{1: 10}, map[int]float64{1: 0}); len(got) != 0 {
		t.Errorf("divided by zero: %v", got)
	}
}
