package zstd

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/gzip"
	"github.com/arpc-go/arpc/extension/middleware/coder/internal/codertest"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone) // bad frames are logged; here they are the point
	leak.Main(m)
}

var request = codertest.Request

// wrap returns a frame whose compressed part is data.
func wrap(data []byte) []byte {
	return codertest.SetLen(append([]byte{0, 0, 0, 0, 0x40}, data...))
}

// pack returns the compressed form of a frame.
func pack(frame []byte) []byte {
	return wrap(encoder().EncodeAll(frame[compressed:], nil))
}

func decode(z *Zstd, frame []byte) *arpc.Message {
	return z.Decode(nil, &arpc.Message{Buffer: frame})
}

func TestRoundTrip(t *testing.T) {
	random := make([]byte, 4096)
	rand.NewChaCha8([32]byte{}).Read(random)
	text := []byte(strings.Repeat("some text that repeats ", 400))
	for _, tt := range []struct {
		name       string
		z          *Zstd
		payload    []byte
		compressed bool
	}{
		{"empty", New(), nil, false},
		{"small", New(), text[:100], false},
		{"at the threshold", New(), text[:DefaultMinSize-18], false},
		{"above the threshold", New(), text[:DefaultMinSize-17], true},
		{"large", New(), text, true},
		{"larger than the window", New(), bytes.Repeat(text, 500), true},
		{"incompressible", New(), random, false},
		{"own threshold", New(50), text[:100], true},
		{"empty with threshold zero", New(0), nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			frame := request("/m", tt.payload)
			frame[reservedOff] = 0x2a
			original := bytes.Clone(frame)
			msg := &arpc.Message{Buffer: frame}
			msg.Set("k", "v")
			sent := tt.z.Encode(nil, msg)
			if !bytes.Equal(frame, original) {
				t.Fatal("Encode modified the message")
			}
			if got := sent != msg; got != tt.compressed {
				t.Fatalf("compressed: %v, want %v", got, tt.compressed)
			}
			if tt.compressed && (len(sent.Buffer) >= len(frame) || sent.Buffer[4] != 0x6a || sent.BodyLen() != len(sent.Buffer)-arpc.HeadLen) {
				t.Fatalf("sent %x", sent.Buffer[:8])
			}
			wire := bytes.Clone(sent.Buffer)
			got := tt.z.Decode(nil, sent)
			if got == nil || !bytes.Equal(got.Buffer, original) {
				t.Fatalf("decoded %v", got)
			}
			if v, _ := got.Get("k"); v != "v" {
				t.Fatal("the values are lost")
			}
			if !bytes.Equal(sent.Buffer, wire) {
				t.Fatal("Decode modified the message")
			}
		})
	}
}

func TestAlreadyCompressedIsLeftAlone(t *testing.T) {
	msg := &arpc.Message{Buffer: request("/m", bytes.Repeat([]byte("x"), 1<<20))}
	for _, c := range []arpc.MessageCoder{New(0), gzip.New(0)} {
		once := c.Encode(nil, msg)
		if New(0).Encode(nil, once) != once || gzip.New(0).Encode(nil, once) != once {
			t.Errorf("%T: compressed twice", c)
		}
	}
}

// A message pushed to many clients is encoded by all of them at once. Run
// under the race detector.
func TestSharedMessage(t *testing.T) {
	z := New()
	frame := request("/m", bytes.Repeat([]byte("shared "), 1000))
	msg := &arpc.Message{Buffer: frame}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if got := z.Decode(nil, z.Encode(nil, msg)); got == nil || !bytes.Equal(got.Buffer, frame) {
					t.Error("a copy was damaged")
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestDecodedLenIsLimited(t *testing.T) {
	frame := pack(request("/m", make([]byte, 1000-18)))
	z := New()
	z.MaxDecodedLen = 1000
	if decode(z, frame) == nil {
		t.Error("a frame of just the limit was refused")
	}
	z.MaxDecodedLen = 999
	if decode(z, frame) != nil {
		t.Error("a frame above the limit was accepted")
	}
	for _, limit := range []int{1, compressed} {
		z.MaxDecodedLen = limit
		if decode(z, frame) != nil {
			t.Errorf("accepted with a limit of %d", limit)
		}
	}
}

// bomb is a frame of 32 KiB that becomes 1 GiB. claim is the length that it
// tells, or -1 for none.
func bomb(claim int) []byte {
	const block = 128 << 10
	b := []byte{0x28, 0xb5, 0x2f, 0xfd}
	if claim >= 0 {
		b = binary.LittleEndian.AppendUint32(append(b, 0xa0), uint32(claim))
	} else {
		b = append(b, 0, 0x50) // a window of 1 MiB
	}
	for i := range 1 << 30 / block {
		head := uint32(block<<3 | 1<<1) // one byte, repeated
		if i == 1<<30/block-1 {
			head |= 1
		}
		b = append(b, byte(head), byte(head>>8), byte(head>>16), 0)
	}
	return wrap(b)
}

func TestBomb(t *testing.T) {
	// It is one, to who does not look.
	d, err := zstd.NewReader(bytes.NewReader(bomb(-1)[compressed:]))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var chunk [1 << 20]byte
	if n, err := d.Read(chunk[:]); n == 0 || err != nil {
		t.Fatalf("the bomb is none: %d, %v", n, err)
	}
	z := New()
	z.MaxDecodedLen = 8 << 20
	_, addr := codertest.Serve(t, z)
	encoder() // not counted
	decode(z, pack(request("/m", nil)))
	for name, tt := range map[string]struct {
		frame []byte
		most  uint64
	}{
		"honest":              {bomb(1 << 30), 1 << 20},
		"without a length":    {bomb(-1), 1 << 20},
		"with a false length": {bomb(z.MaxDecodedLen - compressed), 3 * uint64(z.MaxDecodedLen)}, // the library notices after a block too many
		"small with a claim":  {wrap([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0x70, 0, 1, 0, 0}), 1 << 20},
	} {
		got := codertest.Allocated(func() {
			if decode(z, tt.frame) != nil {
				t.Errorf("%s: accepted", name)
			}
		})
		if got > tt.most {
			t.Errorf("%s: %d bytes allocated for %d received", name, got, len(tt.frame))
		}
		codertest.Closes(t, addr, tt.frame)
	}
}

func TestDecodeRefusesBadFrames(t *testing.T) {
	good := pack(request("/m", bytes.Repeat([]byte("good "), 1000)))
	edit := func(f func([]byte) []byte) []byte { return codertest.SetLen(f(bytes.Clone(good))) }
	frames := map[string][]byte{
		"header only":         wrap(make([]byte, arpc.HeadLen-compressed)),
		"no header inside":    pack(make([]byte, arpc.HeadLen-1)),
		"not zstd":            edit(func(b []byte) []byte { b[compressed] ^= 0xff; return b }),
		"damaged checksum":    edit(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }),
		"truncated":           edit(func(b []byte) []byte { return b[:len(b)-1] }),
		"truncated in half":   edit(func(b []byte) []byte { return b[:len(b)/2] }),
		"bytes after the end": edit(func(b []byte) []byte { return append(b, 1, 2, 3, 4, 5, 6, 7, 8) }),
		"a second frame":      edit(func(b []byte) []byte { return append(b, b[compressed:]...) }),
		"skippable":           wrap(append([]byte{0x50, 0x2a, 0x4d, 0x18, 8, 0, 0, 0}, make([]byte, 8)...)),
		"a dictionary":        wrap([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 20, 0xa1, 0, 0, 0, 0}),
	}
	for name, frame := range frames {
		if msg := decode(New(), frame); msg != nil {
			t.Errorf("%s: passed on as %x", name, msg.Buffer)
		}
	}
	if decode(New(), good) == nil {
		t.Error("the undamaged frame was refused")
	}
	plain := &arpc.Message{Buffer: request("/m", []byte{0x28, 0xb5, 0x2f, 0xfd})}
	if New().Decode(nil, plain) != plain {
		t.Error("a plain frame did not pass")
	}
	_, addr := codertest.Serve(t, New())
	codertest.Closes(t, addr, frames["not zstd"])
}

func TestConnection(t *testing.T) { codertest.BothWays(t, New(), New(100)) }

func TestOneSided(t *testing.T) { codertest.OneSided(t, New()) }

func FuzzDecode(f *testing.F) {
	f.Add(pack(request("/m", nil))[compressed:])
	f.Add(pack(request("/m", bytes.Repeat([]byte("text "), 300)))[compressed:])
	f.Add(bomb(1 << 19)[compressed:])
	f.Fuzz(func(t *testing.T, data []byte) {
		frame := wrap(data)
		if len(frame) < arpc.HeadLen {
			return // not a frame; the framework does not hand it on
		}
		z := New()
		z.MaxDecodedLen = 1 << 20
		msg := decode(z, frame)
		if msg == nil {
			return
		}
		if n := len(msg.Buffer); n < arpc.HeadLen || n > z.MaxDecodedLen || msg.BodyLen() != n-arpc.HeadLen || msg.Buffer[reservedOff] != 0 {
			t.Fatalf("decoded to %d bytes, header %x", n, msg.Buffer[:5])
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	z := New()
	msg := &arpc.Message{Buffer: request("/m", bytes.Repeat([]byte(`{"name":"value","n":12345},`), 400))}
	b.ReportAllocs()
	b.SetBytes(int64(len(msg.Buffer)))
	for b.Loop() {
		z.Encode(nil, msg)
	}
}

func BenchmarkDecode(b *testing.B) {
	z := New()
	frame := request("/m", bytes.Repeat([]byte(`{"name":"value","n":12345},`), 400))
	msg := &arpc.Message{Buffer: pack(frame)}
	b.ReportAllocs()
	b.SetBytes(int64(len(frame)))
	for b.Loop() {
		if z.Decode(nil, msg) == nil {
			b.Fatal("refused")
		}
	}
}
