package ws

import (
	"bytes"
	"testing"
)

// Any bytes in any pieces give the same contents, replies and end as the whole, and no message is above the limit.
func FuzzDecode(f *testing.F) {
	for _, tt := range decodeTests {
		if len(tt.in) > 1000 {
			continue
		}
		cfg := config(tt.change)
		var mode byte
		if cfg.Client {
			mode |= 1
		}
		if cfg.Deflate {
			mode |= 2
		}
		f.Add(unhex(f, tt.in), []byte{3, 1}, mode, uint16(min(cfg.ReadLimit, 1000)))
		f.Add(unhex(f, tt.in), []byte{2, 5}, mode|4, uint16(min(cfg.ReadLimit, 1000)))
	}
	f.Fuzz(func(t *testing.T, data, cuts []byte, mode byte, limit uint16) {
		cfg := config(func(c *Config) {
			c.Client, c.Deflate, c.Prefix, c.ReadLimit = mode&1 != 0, mode&2 != 0, mode&4 != 0, int64(limit)
		})
		i := 0
		inPieces := func(left int) int {
			if len(cuts) == 0 {
				return left
			}
			i++
			return min(max(int(cuts[i%len(cuts)]), 1), left)
		}
		whole := decodeIn(t, New(cfg, true), bytes.Clone(data), atOnce)
		parts := decodeIn(t, New(cfg, true), bytes.Clone(data), inPieces)
		bytewise := decodeIn(t, New(cfg, true), bytes.Clone(data), byBytes)
		if bytewise.most > int(limit)+prefixLen { // a byte ends one message at most
			t.Fatalf("a message of %d bytes is above the limit of %d", bytewise.most, limit)
		}
		if !cfg.Deflate && !cfg.Prefix && len(whole.out) > len(data) {
			t.Fatalf("%d bytes of %d", len(whole.out), len(data))
		}
		for name, o := range map[string]outcome{"at once": whole, "in pieces": parts} {
			st := status(t, o.err)
			if st != status(t, bytewise.err) || st > 1 && o.err.Error() != bytewise.err.Error() {
				t.Fatalf("%s %v, by bytes %v", name, o.err, bytewise.err)
			}
			// of a text that is wrong, the beginning may have come through
			if !bytes.Equal(o.out, bytewise.out) && !(st == 1007 && bytes.HasPrefix(bytewise.out, o.out)) {
				t.Fatalf("%s %x, by bytes %x", name, o.out, bytewise.out)
			}
			got, want := o.replies, bytewise.replies
			if cfg.Client {
				got, want = unmasked(t, got), unmasked(t, want)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s replies %x, by bytes %x", name, got, want)
			}
		}
	})
}
