package gzip

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/internal/codertest"
	"github.com/arpc-go/arpc/extension/middleware/coder/zstd"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone) // bad frames are logged; here they are the point
	leak.Main(m)
}

// request returns the frame of a request.
func request(method string, payload []byte) []byte {
	b := make([]byte, arpc.HeadLen, arpc.HeadLen+len(method)+len(payload))
	binary.LittleEndian.PutUint32(b, uint32(len(method)+len(payload)))
	b[5], b[7] = arpc.CmdRequest, byte(len(method))
	binary.LittleEndian.PutUint64(b[8:], 2)
	return append(append(b, method...), payload...)
}

// pack returns the compressed form of frame, made by the standard library.
func pack(frame []byte) []byte {
	var out bytes.Buffer
	out.Write(frame[:compressed])
	w := stdgzip.NewWriter(&out)
	w.Write(frame[compressed:])
	w.Close()
	b := out.Bytes()
	b[reservedOff] |= 0x80
	setBodyLen(b)
	return b
}

func decode(g *Gzip, frame []byte) *arpc.Message {
	return g.Decode(nil, &arpc.Message{Buffer: frame})
}

// The frame was captured from the original implementation:
// Call("/e", 100 times "a").
func TestDecodeGoldenVector(t *testing.T) {
	frame, err := hex.DecodeString("19000000801f8b08000000000000ff62646062628000fdd4443a0040000000ffffc755fb7f71000000")
	if err != nil {
		t.Fatal(err)
	}
	msg := decode(New(), frame)
	if msg == nil {
		t.Fatal("refused")
	}
	if want := request("/e", bytes.Repeat([]byte("a"), 100)); !bytes.Equal(msg.Buffer, want) {
		t.Fatalf("decoded\n %x, want\n %x", msg.Buffer, want)
	}
}

func TestRoundTrip(t *testing.T) {
	random := make([]byte, 4096)
	r := rand.NewChaCha8([32]byte{})
	r.Read(random)
	text := []byte(strings.Repeat("some text that repeats ", 400))
	for _, tt := range []struct {
		name       string
		g          *Gzip
		payload    []byte
		compressed bool
	}{
		{"empty", New(), nil, false},
		{"small", New(), text[:100], false},
		{"at the threshold", New(), text[:DefaultMinSize-18], false},
		{"above the threshold", New(), text[:DefaultMinSize-17], true},
		{"large", New(), text, true},
		{"incompressible", New(), random, false},
		{"own threshold", New(50), text[:100], true},
		{"threshold zero", New(0), text[:100], true},
		{"empty with threshold zero", New(0), nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			frame := request("/m", tt.payload)
			original := bytes.Clone(frame)
			msg := &arpc.Message{Buffer: frame}
			sent := tt.g.Encode(nil, msg)
			if !bytes.Equal(frame, original) {
				t.Fatal("Encode modified the message")
			}
			if got := sent != msg; got != tt.compressed {
				t.Fatalf("compressed: %v, want %v", got, tt.compressed)
			}
			if tt.compressed {
				if len(sent.Buffer) >= len(frame) || sent.Buffer[4] != 0x80 || sent.Buffer[5] != 0x1f || sent.Buffer[6] != 0x8b {
					t.Fatalf("sent %x", sent.Buffer[:8])
				}
				if n := binary.LittleEndian.Uint32(sent.Buffer); int(n) != len(sent.Buffer)-arpc.HeadLen {
					t.Fatalf("the header says %d bytes, the frame has %d", n, len(sent.Buffer)-arpc.HeadLen)
				}
			}
			wire := bytes.Clone(sent.Buffer)
			got := tt.g.Decode(nil, sent)
			if got == nil || !bytes.Equal(got.Buffer, original) {
				t.Fatalf("decoded %v", got)
			}
			if !bytes.Equal(sent.Buffer, wire) {
				t.Fatal("Decode modified the message")
			}
		})
	}
}

func TestOtherFlagBitsSurvive(t *testing.T) {
	frame := request("/m", bytes.Repeat([]byte("x"), 5000))
	frame[reservedOff] = 0x29
	g := New()
	sent := g.Encode(nil, &arpc.Message{Buffer: frame})
	if sent.Buffer[reservedOff] != 0x29|0x80 {
		t.Fatalf("sent with %#x", sent.Buffer[reservedOff])
	}
	if got := g.Decode(nil, sent); got == nil || !bytes.Equal(got.Buffer, frame) {
		t.Fatal("not restored")
	}
}

func TestAlreadyCompressedIsLeftAlone(t *testing.T) {
	msg := &arpc.Message{Buffer: pack(request("/m", bytes.Repeat([]byte("x"), 1<<20)))}
	if New().Encode(nil, msg) != msg {
		t.Fatal("compressed twice")
	}
}

func TestValuesSurvive(t *testing.T) {
	g := New()
	msg := &arpc.Message{Buffer: request("/m", bytes.Repeat([]byte("x"), 5000))}
	msg.Set("k", "v")
	sent := g.Encode(nil, msg)
	if v, ok := sent.Get("k"); sent == msg || !ok || v != "v" {
		t.Fatalf("after Encode: %v, %v", v, ok)
	}
	got := g.Decode(nil, sent)
	if v, ok := got.Get("k"); got == sent || !ok || v != "v" {
		t.Fatalf("after Decode: %v, %v", v, ok)
	}
}

// A message pushed to many clients is encoded by all of them at once. Run
// under the race detector.
func TestSharedMessage(t *testing.T) {
	g := New()
	frame := request("/m", bytes.Repeat([]byte("shared "), 1000))
	original := bytes.Clone(frame)
	msg := &arpc.Message{Buffer: frame}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				got := g.Decode(nil, g.Encode(nil, msg))
				if got == nil || !bytes.Equal(got.Buffer, original) {
					t.Error("a copy was damaged")
					return
				}
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(frame, original) {
		t.Fatal("the shared message was modified")
	}
}

func TestDecodedLenIsLimited(t *testing.T) {
	frame := pack(request("/m", make([]byte, 1000-18)))
	exact := New()
	exact.MaxDecodedLen = 1000
	if decode(exact, frame) == nil {
		t.Error("a frame of just the limit was refused")
	}
	small := New()
	small.MaxDecodedLen = 999
	if decode(small, frame) != nil {
		t.Error("a frame above the limit was accepted")
	}
	// The default is checked on a length that is only claimed, to save time.
	claim := bytes.Clone(frame)
	binary.LittleEndian.PutUint32(claim[len(claim)-4:], DefaultMaxDecodedLen-compressed+1)
	if _, err := decompress(claim, DefaultMaxDecodedLen); err == nil || !strings.Contains(err.Error(), "the limit is 67108864") {
		t.Errorf("above the default limit: %v", err)
	}
	binary.LittleEndian.PutUint32(claim[len(claim)-4:], DefaultMaxDecodedLen-compressed)
	if _, err := decompress(claim, DefaultMaxDecodedLen); err != errClaim {
		t.Errorf("at the default limit: %v", err)
	}
}

// A bomb is refused before anything is allocated for what it would become,
// also when it lies about its size.
func TestBomb(t *testing.T) {
	g := New()
	g.MaxDecodedLen = 4 << 20
	bomb := pack(request("/m", make([]byte, 8<<20)))
	liar := bytes.Clone(bomb)
	binary.LittleEndian.PutUint32(liar[len(liar)-4:], 1<<20)
	claim := pack(request("/m", nil))
	binary.LittleEndian.PutUint32(claim[len(claim)-4:], uint32(g.MaxDecodedLen-compressed))
	for name, frame := range map[string][]byte{"honest": bomb, "with a false length": liar, "small with a large claim": claim} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if decode(g, frame) != nil {
			t.Errorf("%s: accepted", name)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 2<<20 {
			t.Errorf("%s: %d bytes allocated for %d received", name, got, len(frame))
		}
	}
}

// A frame of 1 MiB that becomes 1 GiB, made of one piece that is repeated.
func TestBombOf1GiB(t *testing.T) {
	const piece, pieces = 1 << 20, 1 << 10
	zeros := make([]byte, piece)
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(zeros)
	w.Flush() // so that it ends at a byte, and can be repeated
	sum := uint32(0)
	bomb := []byte{0, 0, 0, 0, 0x80, 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}
	for range pieces {
		bomb = append(bomb, packed.Bytes()...)
		sum = crc32.Update(sum, crc32.IEEETable, zeros)
	}
	bomb = append(bomb, 1, 0, 0, 0xff, 0xff) // the last block, empty
	bomb = binary.LittleEndian.AppendUint32(bomb, sum)
	bomb = binary.LittleEndian.AppendUint32(bomb, piece*pieces)
	setBodyLen(bomb)
	z, err := stdgzip.NewReader(bytes.NewReader(bomb[compressed:]))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := z.Read(zeros); n == 0 || err != nil {
		t.Fatalf("the bomb is none: %d, %v", n, err)
	}

	liar := bytes.Clone(bomb)
	g := New()
	g.MaxDecodedLen = 16 << 20
	binary.LittleEndian.PutUint32(liar[len(liar)-4:], uint32(g.MaxDecodedLen-compressed))
	_, addr := codertest.Serve(t, g)
	for name, tt := range map[string]struct {
		frame []byte
		most  uint64
	}{"honest": {bomb, 1 << 20}, "with a false length": {liar, uint64(g.MaxDecodedLen) + 1<<20}} {
		got := codertest.Allocated(func() {
			if decode(g, tt.frame) != nil {
				t.Errorf("%s: accepted", name)
			}
		})
		if got > tt.most {
			t.Errorf("%s: %d bytes allocated for %d received", name, got, len(tt.frame))
		}
		codertest.Closes(t, addr, tt.frame)
	}
}

func TestBothWays(t *testing.T) { codertest.BothWays(t, New(), New(100)) }

func TestOneSided(t *testing.T) { codertest.OneSided(t, New()) }

// Of two compressing coders, each end uses the first that both have.
func TestWithZstd(t *testing.T) {
	_, addr := codertest.Serve(t, zstd.New(), New())
	h := codertest.Handler(zstd.New())
	h.UseCoder(New())
	_, other := codertest.Serve(t, New())
	codertest.Calls(t, codertest.Connect(t, addr, h))
	codertest.Calls(t, codertest.Connect(t, other, h))
}

func TestDecodeRefusesBadFrames(t *testing.T) {
	good := pack(request("/m", bytes.Repeat([]byte("good "), 1000)))
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(good)) }
	short := make([]byte, arpc.HeadLen)
	short[reservedOff] = 0x80
	tiny := pack(make([]byte, arpc.HeadLen-1))
	for name, frame := range map[string][]byte{
		"header only":          short,
		"no header inside":     tiny,
		"not gzip":             edit(func(b []byte) []byte { b[compressed] ^= 0xff; return b }),
		"damaged data":         edit(func(b []byte) []byte { b[30] ^= 0xff; return b }),
		"damaged checksum":     edit(func(b []byte) []byte { b[len(b)-8] ^= 1; return b }),
		"damaged length":       edit(func(b []byte) []byte { b[len(b)-4] ^= 1; return b }),
		"truncated":            good[:len(good)-1],
		"truncated in half":    good[:len(good)/2],
		"bytes after the end":  append(bytes.Clone(good), 1, 2, 3, 4, 5, 6, 7, 8),
		"a second member":      append(bytes.Clone(good), good[compressed:]...),
		"reserved method":      edit(func(b []byte) []byte { b[compressed+2] = 9; return b }),
		"random":               append(bytes.Clone(good[:compressed]), bytes.Repeat([]byte{0x5a}, 100)...),
		"extra field too long": edit(func(b []byte) []byte { b[compressed+3] = 4; b[compressed+10], b[compressed+11] = 0xff, 0xff; return b }),
	} {
		if msg := decode(New(), frame); msg != nil {
			t.Errorf("%s: passed on as %d bytes", name, len(msg.Buffer))
		}
	}
	if decode(New(), good) == nil {
		t.Error("the undamaged frame was refused")
	}
}

// Frames without the flag pass through untouched, whatever they hold.
func TestDecodeIgnoresPlainFrames(t *testing.T) {
	msg := &arpc.Message{Buffer: request("/m", []byte{0x1f, 0x8b, 8})}
	if New().Decode(nil, msg) != msg {
		t.Fatal("not the same message")
	}
}

// Over a connection: large and small calls work, a bad frame closes its
// connection and no other.
func TestConnection(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := arpc.NewServer()
	server.Handler.UseCoder(New())
	server.Handler.Handle("/echo", func(ctx *arpc.Context) {
		var text string
		if err := ctx.Bind(&text); err == nil {
			ctx.Write(text)
		}
	})
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	defer func() {
		server.Stop()
		<-served
	}()
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer client.Stop()
	client.Handler.UseCoder(New())
	echo := func(text string) {
		t.Helper()
		var got string
		if err := client.Call("/echo", text, &got, patience); err != nil || got != text {
			t.Errorf("echo of %d bytes: %d bytes, %v", len(text), len(got), err)
		}
	}
	echo("small")
	echo(strings.Repeat("large ", 100_000))

	hostile, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer hostile.Close()
	bad := request("/echo", bytes.Repeat([]byte("x"), 100))
	bad[reservedOff] = 0x80
	if _, err := hostile.Write(bad); err != nil {
		t.Fatal(err)
	}
	hostile.SetReadDeadline(time.Now().Add(patience))
	if n, err := hostile.Read(make([]byte, 100)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a bad frame was met with %d bytes and %v", n, err)
	}
	echo("small, after a bad frame elsewhere")
}

func FuzzDecode(f *testing.F) {
	f.Add(pack(request("/m", nil))[compressed:])
	f.Add(pack(request("/m", bytes.Repeat([]byte("text "), 300)))[compressed:])
	f.Add([]byte{0x1f, 0x8b})
	f.Fuzz(func(t *testing.T, member []byte) {
		frame := append([]byte{0, 0, 0, 0, 0x80}, member...)
		if len(frame) < arpc.HeadLen {
			return // not a frame; the framework does not hand it on
		}
		setBodyLen(frame)
		g := New()
		g.MaxDecodedLen = 1 << 20
		msg := decode(g, frame)
		if msg == nil {
			return
		}
		if n := len(msg.Buffer); n < arpc.HeadLen || n > g.MaxDecodedLen || int(binary.LittleEndian.Uint32(msg.Buffer)) != n-arpc.HeadLen {
			t.Fatalf("decoded to %d bytes, header %x", n, msg.Buffer[:5])
		}
		if msg.Buffer[reservedOff] != 0 {
			t.Fatalf("reserved byte %#x", msg.Buffer[reservedOff])
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("payload"), byte(0))
	f.Add(bytes.Repeat([]byte("a"), 2000), byte(0x7f))
	f.Fuzz(func(t *testing.T, payload []byte, reserved byte) {
		frame := request("/m", payload)
		frame[reservedOff] = reserved &^ 0x80
		g := New(0)
		got := g.Decode(nil, g.Encode(nil, &arpc.Message{Buffer: bytes.Clone(frame)}))
		if got == nil || !bytes.Equal(got.Buffer, frame) {
			t.Fatal("not restored")
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	g := New()
	msg := &arpc.Message{Buffer: request("/m", bytes.Repeat([]byte(`{"name":"value","n":12345},`), 400))}
	b.ReportAllocs()
	b.SetBytes(int64(len(msg.Buffer)))
	for b.Loop() {
		g.Encode(nil, msg)
	}
}

func BenchmarkDecode(b *testing.B) {
	g := New()
	frame := request("/m", bytes.Repeat([]byte(`{"name":"value","n":12345},`), 400))
	msg := &arpc.Message{Buffer: pack(frame)}
	b.ReportAllocs()
	b.SetBytes(int64(len(frame)))
	for b.Loop() {
		if g.Decode(nil, msg) == nil {
			b.Fatal("refused")
		}
	}
}
