package arpc

import "testing"

func TestCostLearning(t *testing.T) {
	const fast, slow = slowAfter, slowAfter + 1
	runs := func(n int, ns int64) (r []int64) {
		for range n {
			r = append(r, ns)
		}
		return r
	}
	join := func(parts ...[]int64) (r []int64) {
		for _, p := range parts {
			r = append(r, p...)
		}
		return r
	}
	for _, tt := range []struct {
		name string
		runs []int64
		want bool
	}{
		{"unknown", nil, false},
		{"exactly at the threshold", runs(100, fast), false},
		{"one slow run", runs(1, slow), false},
		{"slow runs with a fast one between", join(runs(1, slow), runs(1, fast), runs(1, slow), runs(1, fast), runs(1, slow)), false},
		{"two slow runs in a row", runs(2, slow), true},
		{"two in a row after fast ones", join(runs(50, fast), runs(2, slow)), true},
		{"slow, then 15 fast runs", join(runs(2, slow), runs(15, fast)), true},
		{"slow, then 16 fast runs", join(runs(2, slow), runs(16, fast)), false},
		{"slow, 15 fast, one slow, 15 fast", join(runs(2, slow), runs(15, fast), runs(1, slow), runs(15, fast)), true},
		{"slow, 15 fast, one slow, 16 fast", join(runs(2, slow), runs(15, fast), runs(1, slow), runs(16, fast)), false},
		{"fast again, one slow run", join(runs(2, slow), runs(16, fast), runs(1, slow)), false},
		{"fast again, slow again", join(runs(2, slow), runs(16, fast), runs(2, slow)), true},
	} {
		var c cost
		for _, ns := range tt.runs {
			c.took(ns, slowAfter)
		}
		if c.isSlow() != tt.want {
			t.Errorf("%s: slow is %v", tt.name, c.isSlow())
		}
	}
}

func TestCostSampling(t *testing.T) {
	var c cost
	measured := func(n int) (m int) {
		for range n {
			if c.sample() {
				m++
			}
		}
		return m
	}
	if m := measured(40 * sampleEvery); m != 40 {
		t.Errorf("of %d runs of a fast route %d are measured", 40*sampleEvery, m)
	}
	c.took(slowAfter+1, slowAfter) // suspicious: the next run decides
	if m := measured(10); m != 10 {
		t.Errorf("of 10 runs of a suspicious route %d are measured", m)
	}
	c.took(slowAfter+1, slowAfter)
	if m := measured(10); m != 10 {
		t.Errorf("of 10 runs of a slow route %d are measured", m)
	}
	for range fastRuns {
		c.took(0, slowAfter)
	}
	if m := measured(40 * sampleEvery); m != 40 {
		t.Errorf("of %d runs of a route that is fast again %d are measured", 40*sampleEvery, m)
	}
}

func TestCostOfRoutesSurvivesUse(t *testing.T) {
	m := NewHandler()
	m.Handle("/r", func(*Context) {})
	before := m.load().routes["/r"].cost
	m.Use(func(*Context) {})
	if after := m.load().routes["/r"].cost; after != before {
		t.Error("a middleware made a route forget its cost")
	}
	c := m.Clone()
	c.Handle("/s", func(*Context) {})
	if c.load().routes["/s"].cost == before {
		t.Error("two routes share a cost")
	}
}
