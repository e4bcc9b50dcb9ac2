package router

import "container/list"

// A table remembers values under keys that peers may choose, so it is bounded:
// for a new key, the value that was used longest ago is forgotten. Values that
// are in use are kept; where they fill the table, new keys share one value. The
// user of a table locks.
type table[K comparable, V any] struct {
	max    int
	fresh  func() V
	inUse  func(V) bool
	byKey  map[K]*list.Element
	order  list.List // of *tableEntry, the one used last in front
	shared V
}

type tableEntry[K comparable, V any] struct {
	key   K
	value V
}

// evictTries is how many values are looked at to find one that is not in use.
// Those that are move to the front, so that the next search starts elsewhere.
const evictTries = 8

func newTable[K comparable, V any](max int, fresh func() V, inUse func(V) bool) *table[K, V] {
	return &table[K, V]{max: max, fresh: fresh, inUse: inUse, byKey: map[K]*list.Element{}, shared: fresh()}
}

// get returns the value of a key, which it makes if there is none.
func (t *table[K, V]) get(key K) V {
	if e, ok := t.byKey[key]; ok {
		t.order.MoveToFront(e)
		return e.Value.(*tableEntry[K, V]).value
	}
	if len(t.byKey) >= t.max && !t.evict() {
		return t.shared
	}
	v := t.fresh()
	t.byKey[key] = t.order.PushFront(&tableEntry[K, V]{key, v})
	return v
}

// evict makes room for one key. It reports false if everything is in use.
func (t *table[K, V]) evict() bool {
	for range evictTries {
		e := t.order.Back()
		old := e.Value.(*tableEntry[K, V])
		if !t.inUse(old.value) {
			t.order.Remove(e)
			delete(t.byKey, old.key)
			return true
		}
		t.order.MoveToFront(e)
	}
	return false
}
