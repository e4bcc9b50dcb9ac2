package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
)

func prefix(t testing.TB, c PrefixConfig) Prefix {
	t.Helper()
	p, err := NewPrefix(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewPrefix(t *testing.T) {
	big := binary.BigEndian
	for _, tt := range []struct {
		name string
		c    PrefixConfig
		max  int // -1: refused
	}{
		{"no bytes", PrefixConfig{N: 0, Order: big, Max: 10}, -1},
		{"three bytes", PrefixConfig{N: 3, Order: big, Max: 10}, -1},
		{"16 bytes", PrefixConfig{N: 16, Order: big, Max: 10}, -1},
		{"negative", PrefixConfig{N: -1, Order: big, Max: 10}, -1},
		{"no order", PrefixConfig{N: 4, Max: 10}, -1},
		{"negative maximum", PrefixConfig{N: 4, Order: big, Max: -1}, -1},
		{"negative minimum", PrefixConfig{N: 4, Order: big, Min: -1, Max: 10}, -1},
		{"minimum above the maximum", PrefixConfig{N: 4, Order: big, Min: 11, Max: 10}, -1},
		{"minimum above the format", PrefixConfig{N: 1, Order: big, Min: 256, Max: 1000}, -1},
		{"maximum below itself", PrefixConfig{N: 4, Order: big, IncludesSelf: true, Max: 3}, -1},
		{"one byte", PrefixConfig{N: 1, Order: big, Max: 1 << 20}, 255},
		{"two bytes", PrefixConfig{N: 2, Order: big, Max: 1 << 20}, 65535},
		{"four bytes", PrefixConfig{N: 4, Order: big, Max: 1 << 20}, 1 << 20},
		{"eight bytes", PrefixConfig{N: 8, Order: big, Max: math.MaxInt}, math.MaxInt / 2},
		{"empty only", PrefixConfig{N: 8, Order: big}, 0},
		{"itself only", PrefixConfig{N: 4, Order: big, IncludesSelf: true, Max: 4}, 4},
	} {
		p, err := NewPrefix(tt.c)
		if (err != nil) != (tt.max < 0) || err == nil && (p.Max() != tt.max || p.Len() != tt.c.N) {
			t.Errorf("%s: maximum %d, %v", tt.name, p.Max(), err)
		}
	}
}

func TestPrefixSplit(t *testing.T) {
	for _, tt := range []struct {
		name     string
		c        PrefixConfig
		buf      string
		n, need  int
		tooLarge uint64
		tooSmall uint64
	}{
		{"nothing", PrefixConfig{N: 1, Order: binary.BigEndian, Max: 9}, "", 0, 0, 0, 0},
		{"empty, 1", PrefixConfig{N: 1, Order: binary.BigEndian, Max: 9}, "\x00", 1, 1, 0, 0},
		{"2 of 3, 1", PrefixConfig{N: 1, Order: binary.BigEndian, Max: 9}, "\x02a", 0, 3, 0, 0},
		{"whole, 1", PrefixConfig{N: 1, Order: binary.BigEndian, Max: 9}, "\x02abc", 3, 3, 0, 0},
		{"at the limit, 1", PrefixConfig{N: 1, Order: binary.BigEndian, Max: 255}, "\xff", 0, 256, 0, 0},
		{"above the limit, 1", PrefixConfig{N: 1, Order: binary.BigEndian, Max: 9}, "\x0a", 0, 0, 10, 0},
		{"half a length, 2", PrefixConfig{N: 2, Order: binary.BigEndian, Max: 9}, "\x00", 0, 0, 0, 0},
		{"big endian, 2", PrefixConfig{N: 2, Order: binary.BigEndian, Max: 999}, "\x01\x00", 0, 258, 0, 0},
		{"little endian, 2", PrefixConfig{N: 2, Order: binary.LittleEndian, Max: 999}, "\x01\x00a", 3, 3, 0, 0},
		{"the largest, 4", PrefixConfig{N: 4, Order: binary.BigEndian, Max: 1 << 20}, "\xff\xff\xff\xff", 0, 0, 1<<32 - 1, 0},
		{"little endian, 4", PrefixConfig{N: 4, Order: binary.LittleEndian, Max: 9}, "\x01\x00\x00\x00ab", 5, 5, 0, 0},
		{"empty, 8", PrefixConfig{N: 8, Order: binary.BigEndian, Max: 9}, "\x00\x00\x00\x00\x00\x00\x00\x00", 8, 8, 0, 0},
		{"seven bytes, 8", PrefixConfig{N: 8, Order: binary.BigEndian, Max: 9}, "\xff\xff\xff\xff\xff\xff\xff", 0, 0, 0, 0},
		{"top bit, 8", PrefixConfig{N: 8, Order: binary.BigEndian, Max: math.MaxInt}, "\x80\x00\x00\x00\x00\x00\x00\x00", 0, 0, 1 << 63, 0},
		{"all bits, 8", PrefixConfig{N: 8, Order: binary.LittleEndian, Max: math.MaxInt}, "\xff\xff\xff\xff\xff\xff\xff\xff", 0, 0, math.MaxUint64, 0},
		{"itself only", PrefixConfig{N: 4, Order: binary.BigEndian, IncludesSelf: true, Max: 99}, "\x00\x00\x00\x04", 4, 4, 0, 0},
		{"itself and more", PrefixConfig{N: 4, Order: binary.BigEndian, IncludesSelf: true, Max: 99}, "\x00\x00\x00\x06abc", 6, 6, 0, 0},
		{"less than itself", PrefixConfig{N: 4, Order: binary.BigEndian, IncludesSelf: true, Max: 99}, "\x00\x00\x00\x03", 0, 0, 0, 3},
		{"below the minimum", PrefixConfig{N: 4, Order: binary.BigEndian, IncludesSelf: true, Min: 8, Max: 99}, "\x00\x00\x00\x07", 0, 0, 0, 7},
		{"at the minimum", PrefixConfig{N: 4, Order: binary.BigEndian, IncludesSelf: true, Min: 8, Max: 99}, "\x00\x00\x00\x08", 0, 8, 0, 0},
	} {
		n, need, err := prefix(t, tt.c).Split([]byte(tt.buf))
		var large *TooLargeError
		var small *TooSmallError
		if errors.As(err, &large); large != nil && large.Size != tt.tooLarge || (large != nil) != (tt.tooLarge > 0) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if errors.As(err, &small); small != nil && small.Size != tt.tooSmall || (small != nil) != (tt.tooSmall > 0) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if n != tt.n || need != tt.need || err != nil && large == nil && small == nil {
			t.Errorf("%s: %d, %d, %v", tt.name, n, need, err)
		}
	}
}

// What does not fit is refused, not truncated, and what is written is found again.
func TestPrefixPut(t *testing.T) {
	for _, n := range []int{1, 2, 4, 8} {
		for _, order := range []binary.ByteOrder{binary.BigEndian, binary.LittleEndian} {
			for _, self := range []bool{false, true} {
				p := prefix(t, PrefixConfig{N: n, Order: order, IncludesSelf: self, Max: 100_000})
				own := 0
				if self {
					own = n
				}
				for _, body := range []int{0, 1, 255 - own, 256 - own, 65535 - own, 65536 - own, 100_000 - own, 100_001 - own, math.MaxInt} {
					fits := body+own <= p.Max() && body >= 0
					buf := bytes.Repeat([]byte{'x'}, n)
					err := p.Put(buf, body)
					if (err == nil) != (fits && body != math.MaxInt) {
						t.Fatalf("%d bytes %v, body of %d: %v", n, order, body, err)
					}
					if err != nil {
						var large *TooLargeError
						if !errors.As(err, &large) || string(buf) != string(bytes.Repeat([]byte{'x'}, n)) {
							t.Fatalf("%d bytes %v, body of %d: %v, %q", n, order, body, err, buf)
						}
						continue
					}
					if got, need, err := p.Split(buf); err != nil || need != n+body || (got != 0) != (body == 0) {
						t.Fatalf("%d bytes %v, body of %d: %d, %d, %v", n, order, body, got, need, err)
					}
				}
			}
		}
	}
}

func TestPrefixOtherLimit(t *testing.T) {
	p := prefix(t, PrefixConfig{N: 2, Order: binary.BigEndian, Min: 2, Max: 10})
	buf := []byte{0, 6}
	for _, tt := range []struct {
		limit int
		ok    bool
	}{{5, false}, {6, true}, {1 << 40, true}, {0, false}, {-1, false}} {
		if _, _, err := p.SplitMax([]byte{0, 6}, tt.limit); (err == nil) != tt.ok {
			t.Errorf("limit %d: %v", tt.limit, err)
		}
		if err := p.PutMax(buf, 6, tt.limit); (err == nil) != tt.ok {
			t.Errorf("limit %d: %v", tt.limit, err)
		}
	}
	if err := p.PutMax(buf, 11, 1<<40); err == nil {
		t.Error("the lower limit does not hold")
	}
	if err := p.PutMax(buf, 1, 10); err == nil {
		t.Error("the minimum does not hold")
	}
	if text := fmt.Sprint(&TooSmallError{Size: 1, Limit: 2}); text != "frame of 1 bytes is below the minimum of 2 bytes" {
		t.Error(text)
	}
}

// Any bytes in any pieces give the same frames as the whole, none is above the limit, and Put makes the same prefix again.
func FuzzPrefix(f *testing.F) {
	f.Add([]byte{}, []byte{}, uint8(0), uint32(0))
	f.Add([]byte{3, 'a', 'b', 'c', 0, 1, 'z'}, []byte{1, 2}, uint8(0), uint32(10))
	f.Add([]byte{0, 0, 0, 5, 'x', 0, 0, 0, 4}, []byte{}, uint8(2|8), uint32(100))
	f.Add([]byte{0x80, 0, 0, 0, 0, 0, 0, 0, 1}, []byte{7}, uint8(3), uint32(1<<31))
	f.Add([]byte{2, 0, 'a', 'b', 0xff, 0xff}, []byte{255, 3}, uint8(1|4), uint32(70000))
	f.Fuzz(func(t *testing.T, data, cuts []byte, form uint8, limit uint32) {
		c := PrefixConfig{N: 1 << (form & 3), Order: binary.BigEndian, IncludesSelf: form&8 != 0, Max: int(limit & math.MaxInt32)}
		if form&4 != 0 {
			c.Order = binary.LittleEndian
		}
		p, err := NewPrefix(c)
		if err != nil {
			return
		}
		whole, wholeErr := prefixed(t, p, data, nil)
		parts, partsErr := prefixed(t, p, data, append(slices.Clip(cuts), 1)) // Clip: the fuzzer may keep both in one piece of memory
		if !slices.EqualFunc(whole, parts, bytes.Equal) || fmt.Sprint(wholeErr) != fmt.Sprint(partsErr) {
			t.Fatalf("%d frames at once and %v, %d in pieces and %v", len(whole), wholeErr, len(parts), partsErr)
		}
		if !bytes.HasPrefix(data, bytes.Join(whole, nil)) {
			t.Fatal("the frames are not the data")
		}
		for _, fr := range whole {
			again := make([]byte, p.Len())
			if err := p.Put(again, len(fr)-p.Len()); err != nil || !bytes.Equal(again, fr[:p.Len()]) {
				t.Fatalf("%x became %x, %v", fr[:p.Len()], again, err)
			}
		}
	})
}

// prefixed returns the frames of data, which arrives in pieces of the sizes cuts has, or at once.
func prefixed(t *testing.T, p Prefix, data, cuts []byte) (frames [][]byte, err error) {
	var buf []byte
	for i := 0; len(data) > 0; i++ {
		k := len(data)
		if len(cuts) > 0 {
			k = min(k, max(1, int(cuts[i%len(cuts)])))
		}
		buf, data = append(buf, data[:k]...), data[k:]
		for {
			n, need, err := p.Split(buf)
			most := p.Len() + p.Max()
			switch {
			case err != nil:
				if n != 0 || need != 0 || len(buf) < p.Len() {
					t.Fatalf("an error with %d, %d after %d bytes", n, need, len(buf))
				}
				return frames, err
			case n < 0 || n > len(buf) || need > most || n > 0 && (n < p.Len() || need != n):
				t.Fatalf("%d, %d for %d bytes", n, need, len(buf))
			case n == 0 && need != 0 && need <= len(buf), n == 0 && need == 0 && len(buf) >= p.Len():
				t.Fatalf("%d bytes of %d are not enough", len(buf), need)
			}
			if n == 0 {
				break
			}
			frames = append(frames, slices.Clone(buf[:n]))
			buf = buf[n:]
		}
	}
	return frames, nil
}
