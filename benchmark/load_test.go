package main

import (
	"encoding/hex"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
)

// echoFake answers every call, some of them wrongly.
type echoFake struct {
	ready chan struct{} // calls wait until it is closed
	calls atomic.Uint64
	wrong func(n uint64, rsp []byte) error // may spoil the n-th answer
}

func (f *echoFake) call(_ string, req []byte, rsp *[]byte) error {
	<-f.ready
	*rsp = slices.Clone(req)
	return f.wrong(f.calls.Add(1), *rsp)
}

func (f *echoFake) newAsync(route string, done func([]byte, error)) func([]byte) error {
	pending := make(chan []byte, 1)
	go func() {
		for req := range pending {
			var rsp []byte
			err := f.call(route, req, &rsp)
			done(rsp, err)
		}
	}()
	fakeChannels <- pending
	return func(req []byte) error {
		pending <- req
		return nil
	}
}

// fakeChannels collects what a test has to close.
var fakeChannels = make(chan chan []byte, 100)

// TestLoadCountsWrongAnswers: 8 of the calls are spoilt, in the middle of a
// payload, at its end, or with an error; exactly these must be counted.
func TestLoadCountsWrongAnswers(t *testing.T) {
	for _, async := range []bool{false, true} {
		enough := make(chan struct{})
		fake := &echoFake{ready: make(chan struct{}), wrong: func(n uint64, rsp []byte) error {
			switch {
			case n == 5000:
				close(enough)
			case n%100 == 0 && n <= 300:
				return errors.New("spoilt")
			case n%100 == 50 && n <= 300:
				rsp[len(rsp)/2] ^= 1
			case n%100 == 51 && n <= 200:
				rsp[len(rsp)-1] ^= 1
			}
			return nil
		}}
		sc := &scenario{size: 64, sample: 1, async: async, groups: []group{{name: "all", route: routeEcho, conns: 2, callers: 3}}}
		l, err := startLoad(&system{dial: func(string) (any, error) { return fake, nil }}, sc, "")
		if err != nil {
			t.Fatal(err)
		}
		l.measuring.Store(true)
		close(fake.ready)
		<-enough
		res := l.stop()
		if res.Mismatches != 5 || res.Errors != 3 || res.Lost != 0 || res.FirstError != "spoilt" {
			t.Errorf("async %v: got %+v", async, res)
		}
		if got, want := l.answered()[0], fake.calls.Load()-8; got != want {
			t.Errorf("async %v: %d right answers counted, of %d", async, got, want)
		}
		if res.Latencies[0].Samples == 0 {
			t.Errorf("async %v: no latencies", async)
		}
		if async {
			for range 6 {
				close(<-fakeChannels)
			}
		}
	}
}

// TestLoadGivesUp: a lane whose calls keep failing ends by itself.
func TestLoadGivesUp(t *testing.T) {
	fake := &echoFake{ready: make(chan struct{}), wrong: func(uint64, []byte) error { return errors.New("never") }}
	sc := &scenario{size: 64, sample: 1, groups: []group{{conns: 1, callers: 2}}}
	l, err := startLoad(&system{dial: func(string) (any, error) { return fake, nil }}, sc, "")
	if err != nil {
		t.Fatal(err)
	}
	close(fake.ready)
	l.lanes.Wait()
	if res := l.stop(); res.Errors != 2*maxLaneErrors {
		t.Errorf("%d errors, want %d", res.Errors, 2*maxLaneErrors)
	}
}

func TestGroupsShareConnections(t *testing.T) {
	if n := burnScenario.connections(); n != 5 {
		t.Errorf("%d connections, want 5", n)
	}
	if n := scenarioByName("S5").connections(); n != 1000 {
		t.Errorf("%d connections, want 1000", n)
	}
}

func TestPayloadsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for lane := range uint64(100) {
		p := newPayload(64, lane)
		for n := range uint64(100) {
			stampPayload(p, lane, n)
			if seen[string(p)] {
				t.Fatalf("call %d of lane %d has the payload of another one", n, lane)
			}
			seen[string(p)] = true
		}
	}
}

func TestRequestFrame(t *testing.T) {
	got := hex.EncodeToString(requestFrame(2, "/e", []byte("hi")))
	if want := "040000000001000202000000000000002f656869"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
