package buf

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// Size classes are powers of two from 512 bytes to MaxPooled.
const (
	minShift = 9
	maxShift = 20
	// MaxPooled is the largest size, in bytes, that is kept for reuse.
	MaxPooled = 1 << maxShift
)

var pools [maxShift - minShift + 1]sync.Pool

// A Buf is a buffer with a reference count. B may be resliced within its capacity, never replaced.
type Buf struct {
	B []byte
	// Next, Off, Messages and Answers are for an owner that queues buffers; a new Buf has them zero.
	Next              *Buf
	Off               int
	Messages, Answers uint32

	refs atomic.Int32
	// class is the pool's index, -1 for a buffer that is not pooled.
	class int8
}

// Of returns a buffer around bytes that are not to be reused, with one reference.
func Of(p []byte) *Buf {
	b := &Buf{B: p, class: -1}
	b.refs.Store(1)
	return b
}

// Get returns a buffer with one reference, length 0 and a capacity of at least n bytes.
func Get(n int) *Buf {
	class := 0
	if n > 1<<minShift {
		class = bits.Len(uint(n-1)) - minShift
	}
	if class >= len(pools) {
		return Of(make([]byte, 0, n))
	}
	if b, _ := pools[class].Get().(*Buf); b != nil {
		b.refs.Store(1)
		return b
	}
	b := &Buf{B: make([]byte, 0, 1<<(class+minShift)), class: int8(class)}
	b.refs.Store(1)
	return b
}

// Retain adds a reference.
func (b *Buf) Retain() { b.refs.Add(1) }

// Shared reports whether more than one reference is held.
func (b *Buf) Shared() bool { return b.refs.Load() > 1 }

// Free drops one reference; the last one gives the memory back. Free of a nil Buf does nothing.
func (b *Buf) Free() {
	if b == nil {
		return
	}
	switch n := b.refs.Add(-1); {
	case n > 0:
		return
	case n < 0:
		panic("buf: freed more often than retained")
	}
	if b.class >= 0 {
		b.B, b.Next, b.Off, b.Messages, b.Answers = b.B[:0], nil, 0, 0, 0
		pools[b.class].Put(b)
	}
}
