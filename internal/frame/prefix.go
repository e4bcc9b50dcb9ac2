package frame

import (
	"encoding/binary"
	"fmt"
	"math"
)

// TooSmallError reports a frame whose announced length cannot be. Both are in bytes.
type TooSmallError struct{ Size, Limit uint64 }

func (e *TooSmallError) Error() string {
	return fmt.Sprintf("frame of %d bytes is below the minimum of %d bytes", e.Size, e.Limit)
}

// PrefixConfig describes frames that begin with their length.
type PrefixConfig struct {
	// N is the size of the length in bytes: 1, 2, 4 or 8. It is unsigned.
	N int
	// Order is its byte order; required, also for N = 1.
	Order binary.ByteOrder
	// IncludesSelf says that the length counts its own N bytes; otherwise it is the length of what follows them.
	IncludesSelf bool
	// Min and Max are the smallest and the largest length allowed, as the frame states it. Max may be above what N bytes can
	// say, and is that then.
	Min, Max int
}

// A Prefix splits frames that begin with their length, and writes that.
type Prefix struct {
	n, self  int // self is what the length counts of the prefix: n or 0
	order    binary.ByteOrder
	min, max uint64
}

// NewPrefix returns the splitter, or an error that says what is wrong with the description.
func NewPrefix(c PrefixConfig) (Prefix, error) {
	p := Prefix{n: c.N, order: c.Order}
	var format uint64 = math.MaxInt / 2 // a whole frame is an int
	switch c.N {
	case 1, 2, 4:
		format = min(format, 1<<(8*c.N)-1)
	case 8:
	default:
		return Prefix{}, fmt.Errorf("length of %d bytes: it must be 1, 2, 4 or 8", c.N)
	}
	if c.IncludesSelf {
		p.self = c.N
		c.Min = max(c.Min, c.N)
	}
	switch {
	case c.Order == nil:
		return Prefix{}, fmt.Errorf("length without a byte order")
	case c.Min < 0 || c.Max < c.Min || uint64(c.Min) > format:
		return Prefix{}, fmt.Errorf("lengths from %d to %d in %d bytes: there are none", c.Min, c.Max, c.N)
	}
	p.min, p.max = uint64(c.Min), min(uint64(c.Max), format)
	return p, nil
}

// Len returns the size of the length in bytes.
func (p Prefix) Len() int { return p.n }

// Max returns the largest length allowed, as the frame states it.
func (p Prefix) Max() int { return int(p.max) }

// Split implements Splitter.
func (p Prefix) Split(buf []byte) (n, need int, err error) { return p.SplitMax(buf, int(p.max)) }

// SplitMax is Split with another maximum; the lower of the two holds. Below the minimum, a maximum is the minimum.
func (p Prefix) SplitMax(buf []byte, limit int) (n, need int, err error) {
	if len(buf) < p.n {
		return 0, 0, nil
	}
	var size uint64
	switch p.n {
	case 1:
		size = uint64(buf[0])
	case 2:
		size = uint64(p.order.Uint16(buf))
	case 4:
		size = uint64(p.order.Uint32(buf))
	case 8:
		size = p.order.Uint64(buf)
	}
	if size < p.min {
		return 0, 0, &TooSmallError{Size: size, Limit: p.min}
	}
	if most := p.limit(limit); size > most { // before anything is made an int
		return 0, 0, &TooLargeError{Size: size, Limit: most}
	}
	total := p.n - p.self + int(size)
	if len(buf) < total {
		return 0, total, nil
	}
	return total, total, nil
}

func (p Prefix) limit(limit int) uint64 { return min(max(uint64(max(limit, 0)), p.min), p.max) }

// Put writes the length of a frame into its first Len bytes, which exist; body is the number of bytes that follow them.
// An error leaves the frame as it is: no length is ever truncated.
func (p Prefix) Put(frame []byte, body int) error { return p.PutMax(frame, body, int(p.max)) }

// PutMax is Put with another maximum, as SplitMax is Split with one.
func (p Prefix) PutMax(frame []byte, body, limit int) error {
	size := uint64(max(body, 0)) + uint64(p.self)
	if size < p.min {
		return &TooSmallError{Size: size, Limit: p.min}
	}
	if most := p.limit(limit); size > most {
		return &TooLargeError{Size: size, Limit: most}
	}
	switch p.n {
	case 1:
		frame[0] = byte(size)
	case 2:
		p.order.PutUint16(frame, uint16(size))
	case 4:
		p.order.PutUint32(frame, uint32(size))
	case 8:
		p.order.PutUint64(frame, size)
	}
	return nil
}
