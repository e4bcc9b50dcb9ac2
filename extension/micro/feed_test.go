package micro

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
)

// TestFeed joins what the receiver has not taken, and keeps the order of what it says.
func TestFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		f := NewFeed(ctx)
		node := func(id string) Node { return Node{Service: "s", ID: id, Addr: "a"} }
		expect := func(kind Kind, ids ...string) {
			t.Helper()
			synctest.Wait() // so that events are made of all that was said
			e := <-f.Events()
			got := map[string]bool{}
			for _, n := range e.Nodes {
				got[n.ID] = true
			}
			if all := slices.Sorted(maps.Keys(got)); e.Kind != kind || !slices.Equal(all, ids) || len(all) != len(e.Nodes) {
				t.Errorf("%v %v, not %v %v", e.Kind, all, kind, ids)
			}
		}
		f.Set([]Node{node("a"), node("b")})
		synctest.Wait() // the event is on its way: what follows is another
		for range 100 {
			f.Put(node("c"), node("d"))
			f.Delete(node("a"), node("d"))
		}
		expect(Set, "a", "b")
		expect(Put, "c")
		expect(Delete, "a")
		f.Lost()
		f.Lost()
		expect(Lost)
		f.Delete(node("b")) // is the outage's doing
		f.Lost()
		f.Set([]Node{node("b"), node("c")})
		f.Put(node("e"))
		f.Delete(node("b"))
		synctest.Wait()
		<-f.Events() // Set, of what had been said when it was made
		f.Set(nil)
		f.Lost()
		expect(Set)
		expect(Lost)
		f.Set(nil)
		synctest.Wait() // the Set is on its way
		f.Lost()        // and over before anybody hears of it
		f.Set([]Node{node("a")})
		expect(Set)
		expect(Lost)
		expect(Set, "a")
		// What comes and goes while nobody receives is not kept.
		f.Put(node("b"))
		synctest.Wait()
		for i := range 1000 {
			f.Put(node(fmt.Sprint(i)))
			f.Delete(node(fmt.Sprint(i)))
		}
		if len(f.pending) != 0 {
			t.Errorf("%d nodes pending", len(f.pending))
		}
		expect(Put, "b")
		cancel()
		if _, ok := <-f.Events(); ok {
			t.Error("an event after the end")
		}
	})
	// Set is the first, whatever was said before anybody took it.
	f := &Feed{pending: map[string]pendingNode{}, taken: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	f.Set(nil)
	f.Lost()
	f.Set(nil)
	if events := f.take(); len(events) != 1 || events[0].Kind != Set {
		t.Errorf("%v", events)
	}
	if Lost.String() != "lost" || Set.String() != "set" {
		t.Error("names")
	}
}
