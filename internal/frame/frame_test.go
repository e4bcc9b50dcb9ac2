package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

func fixed(limit int) Length { return Length{Header: 16, Max: func() int { return limit }} }

func frameOf(body int) []byte {
	b := make([]byte, 16+body)
	binary.LittleEndian.PutUint32(b, uint32(body))
	return b
}

func TestLength(t *testing.T) {
	const limit = 100
	for _, tt := range []struct {
		name    string
		buf     []byte
		n, need int
		tooBig  uint64
	}{
		{"nothing", nil, 0, 0, 0},
		{"three bytes", frameOf(7)[:3], 0, 0, 0},
		{"the length alone", frameOf(7)[:4], 0, 23, 0},
		{"the header", frameOf(7)[:16], 0, 23, 0},
		{"one byte less", frameOf(7)[:22], 0, 23, 0},
		{"whole", frameOf(7), 23, 23, 0},
		{"and more", append(frameOf(7), 1, 2, 3), 23, 23, 0},
		{"empty body", frameOf(0), 16, 16, 0},
		{"empty body, not whole", frameOf(0)[:15], 0, 16, 0},
		{"at the limit", frameOf(limit), 16 + limit, 16 + limit, 0},
		{"above the limit", frameOf(limit + 1), 0, 0, limit + 1},
		{"above the limit, four bytes", frameOf(limit + 1)[:4], 0, 0, limit + 1},
		{"the largest length", []byte{255, 255, 255, 255}, 0, 0, 1<<32 - 1},
		{"the sign bit", []byte{0, 0, 0, 128}, 0, 0, 1 << 31},
	} {
		n, need, err := fixed(limit).Split(tt.buf)
		if n != tt.n || need != tt.need {
			t.Errorf("%s: %d, %d", tt.name, n, need)
		}
		var tooLarge *TooLargeError
		if errors.As(err, &tooLarge) != (tt.tooBig > 0) || tooLarge != nil && (tooLarge.Size != tt.tooBig || tooLarge.Limit != limit) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// The limit is asked for each frame.
func TestLengthLimitChanges(t *testing.T) {
	limit := 10
	l := Length{Header: 16, Max: func() int { return limit }}
	if _, _, err := l.Split(frameOf(11)); err == nil {
		t.Error("above the limit")
	}
	limit = 11
	if n, _, err := l.Split(frameOf(11)); n != 27 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestTooLargeErrorText(t *testing.T) {
	if text := (&TooLargeError{Size: 2, Limit: 1}).Error(); text != "frame of 2 bytes is above the limit of 1 bytes" {
		t.Error(text)
	}
}

// split returns the frames of data as they become whole while it arrives in pieces, and the error that ends the stream.
func split(t *testing.T, l Length, data []byte, next func(left int) int) (frames [][]byte, err error) {
	limit := l.Header + l.Max()
	var buf []byte
	for len(data) > 0 {
		k := next(len(data))
		buf, data = append(buf, data[:k]...), data[k:]
		for {
			n, need, err := l.Split(buf)
			switch {
			case err != nil:
				if n != 0 || need != 0 || len(buf) < 4 {
					t.Fatalf("an error with %d, %d after %d bytes", n, need, len(buf))
				}
				return frames, err
			case n > len(buf) || n > limit || need > limit || n > 0 && (n < l.Header || need != n):
				t.Fatalf("%d, %d for %d bytes, limit %d", n, need, len(buf), limit)
			case n == 0 && need != 0 && need <= len(buf), n == 0 && need == 0 && len(buf) >= 4:
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

// Any bytes in any pieces give the same frames as the whole, and none is above the limit.
func FuzzSplit(f *testing.F) {
	f.Add([]byte{}, []byte{}, uint16(0))
	f.Add(frameOf(0), []byte{1}, uint16(0))
	f.Add(append(frameOf(3), frameOf(0)...), []byte{1, 2, 3}, uint16(3))
	f.Add(append(frameOf(300), frameOf(9)[:20]...), []byte{255, 0, 16}, uint16(300))
	f.Add(append(frameOf(5), 255, 255, 255, 255), []byte{7}, uint16(1000))
	f.Add([]byte{1, 1, 0, 0}, []byte{3, 1}, uint16(256))
	f.Fuzz(func(t *testing.T, data, cuts []byte, limit uint16) {
		l := fixed(int(limit))
		whole, wholeErr := split(t, l, data, func(left int) int { return left })
		i := 0
		parts, partsErr := split(t, l, data, func(left int) int {
			if len(cuts) == 0 {
				return 1
			}
			k := int(cuts[i%len(cuts)])
			i++
			return min(max(k, 1), left)
		})
		if !slices.EqualFunc(whole, parts, bytes.Equal) {
			t.Fatalf("%d frames at once, %d in pieces", len(whole), len(parts))
		}
		var a, b *TooLargeError
		if (wholeErr == nil) != (partsErr == nil) || errors.As(wholeErr, &a) && errors.As(partsErr, &b) && *a != *b {
			t.Fatalf("%v at once, %v in pieces", wholeErr, partsErr)
		}
		total := 0
		for _, fr := range whole {
			total += len(fr)
		}
		if wholeErr == nil && len(data)-total >= l.Header+int(limit) && len(data)-total >= 4 {
			t.Fatalf("%d bytes are left over", len(data)-total)
		}
		if !bytes.HasPrefix(data, bytes.Join(whole, nil)) {
			t.Fatal("the frames are not the data")
		}
	})
}
