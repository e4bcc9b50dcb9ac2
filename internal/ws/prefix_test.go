package ws

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/gobwas/ws"
)

// prefixed is a message as a Stage with Config.Prefix hands it on, and takes it.
func prefixed(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(prefixLen+len(message))), message...)
}

// FuzzPrefix sends messages, which data has with zeros between them, to a Stage that keeps them apart: from another Stage, and by
// hand, in fragments.
func FuzzPrefix(f *testing.F) {
	f.Add([]byte("several\x00messages\x00\x00and an empty one"), uint64(1), false)
	f.Add(bytes.Repeat([]byte("long "), 100), uint64(2), true)
	f.Fuzz(checkPrefix)
}

// Messages around the lengths at which headers grow, and around the length of a chunk.
func TestPrefixLengths(t *testing.T) {
	for _, client := range []bool{false, true} {
		var data []byte
		for _, n := range []int{0, 1, 125, 126, 127, 65_000, 500, 65_535, 65_536, 1, 70_000, 70_000, 3} {
			data = append(append(data, bytes.Repeat([]byte{'x'}, n)...), 0)
		}
		checkPrefix(t, data, 4999, client)
	}
}

func checkPrefix(t *testing.T, data []byte, seed uint64, client bool) {
	random := rand.New(rand.NewPCG(seed, 1))
	var want []byte
	messages := bytes.Split(data, []byte{0})
	for _, m := range messages {
		want = append(want, prefixed(m)...)
	}
	cut := func(left int) int { return 1 + random.IntN(min(left, 1+int(seed%5000))) }

	from := New(&Config{Client: client, Prefix: true}, false)
	var sent []byte
	chunk := make([]byte, from.Room())
	flush := func() {
		if len(chunk) > from.Room() {
			start, end := from.Wrap(chunk)
			sent = append(sent, chunk[start:end]...)
			chunk = make([]byte, from.Room())
		}
	}
	for _, m := range messages { // as core does it
		if from.Single() || len(chunk)+prefixLen+len(m) > 64<<10 {
			flush()
		}
		chunk = append(chunk, prefixed(m)...)
	}
	flush()
	if from.Single() != client {
		t.Fatal("only clients, who mask, wrap messages one by one")
	}
	o := decodeIn(t, New(config(func(c *Config) { c.Client, c.Prefix = !client, true }), false), sent, cut)
	if o.err != nil || !bytes.Equal(o.out, want) {
		t.Fatalf("got %d bytes, not %d; error %v", len(o.out), len(want), o.err)
	}

	sent = nil
	for _, m := range messages { // by hand, with fragments and pings between them
		op := ws.OpBinary
		for first := true; first || len(m) > 0; first = false {
			k := len(m)
			if random.IntN(2) == 0 {
				k = random.IntN(len(m) + 1)
			}
			fin := k == len(m)
			frame := ws.NewFrame(op, fin, bytes.Clone(m[:k]))
			if !client { // it is the server that reads
				sent = append(sent, ws.MustCompileFrame(ws.MaskFrame(ws.NewPingFrame([]byte("p"))))...)
				frame = ws.MaskFrame(frame)
			}
			sent = append(sent, ws.MustCompileFrame(frame)...)
			m, op = m[k:], ws.OpContinuation
			if fin {
				break
			}
		}
	}
	o = decodeIn(t, New(config(func(c *Config) { c.Client, c.Prefix = client, true }), false), sent, cut)
	var fault *Error
	if errors.As(o.err, &fault) && fault.Status == ws.StatusPolicyViolation {
		return // too many empty fragments
	}
	if o.err != nil || !bytes.Equal(o.out, want) {
		t.Fatalf("by hand: got %d bytes, not %d; error %v", len(o.out), len(want), o.err)
	}
}

// Compressed messages are kept apart, too.
func TestPrefixDeflate(t *testing.T) {
	message := bytes.Repeat([]byte("compress me "), 100)
	from := New(&Config{Prefix: true, Deflate: true, Compress: 100}, false)
	var sent, want []byte
	for _, m := range [][]byte{message, []byte("short"), message} {
		chunk := append(make([]byte, from.Room()), prefixed(m)...)
		start, end := from.Wrap(chunk)
		sent = append(sent, chunk[start:end]...)
		want = append(want, prefixed(m)...)
	}
	if len(sent) > len(message) {
		t.Errorf("%d bytes", len(sent))
	}
	o := decodeIn(t, New(config(func(c *Config) { c.Client, c.Prefix, c.Deflate = true, true, true }), false), sent, func(int) int { return 1 })
	if o.err != nil || !bytes.Equal(o.out, want) {
		t.Fatalf("got %q, %v", o.out, o.err)
	}
}

func TestNoText(t *testing.T) {
	o := decodeIn(t, New(config(func(c *Config) { c.NoText = true }), false), unhex(t, "8182 M 6869"), func(left int) int { return left })
	var fault *Error
	if !errors.As(o.err, &fault) || fault.Status != ws.StatusUnsupportedData || len(o.out) > 0 {
		t.Fatalf("%q, %v", o.out, o.err)
	}
}
