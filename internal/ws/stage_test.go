package ws

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"github.com/arpc-go/arpc/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// unhex decodes hex with blanks. M is a mask that changes nothing, so that the contents can be read; "x*100" is repeated.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var all []byte
	for word := range strings.FieldsSeq(strings.ReplaceAll(s, "M", " 00000000 ")) {
		word, times, repeated := strings.Cut(word, "*")
		n := 1
		if repeated {
			if _, err := fmt.Sscan(times, &n); err != nil {
				t.Fatal(err)
			}
		}
		b, err := hex.DecodeString(word)
		if err != nil {
			t.Fatalf("%q: %v", word, err)
		}
		all = append(all, bytes.Repeat(b, n)...)
	}
	return all
}

// config is a Config whose own closes have status 1000.
func config(change func(*Config)) *Config {
	c := &Config{ReadLimit: 1 << 20, StatusOf: func(err error) (ws.StatusCode, string) {
		return ws.StatusNormalClosure, fmt.Sprint(err)
	}}
	if change != nil {
		change(c)
	}
	return c
}

// outcome is all that comes of some input.
type outcome struct {
	out, replies []byte
	err          error
	most         int  // bytes that one Decode has returned at most
	ended        bool // the input has ended after a fault
}

// decodeIn feeds a Stage with pieces, each in memory of its own with nothing behind it.
func decodeIn(t testing.TB, s *Stage, data []byte, next func(left int) int) outcome {
	t.Helper()
	var o outcome
	for len(data) > 0 {
		k := next(len(data))
		p := append(make([]byte, 0, k), data[:k]...)
		data = data[k:]
		out, err := s.Decode(p, func(raw []byte) { o.replies = append(o.replies, raw...) })
		if o.err != nil && (len(out) > 0 || err != nil && (err != io.EOF || o.ended || errors.Is(o.err, io.EOF))) {
			t.Fatalf("after %v: %d bytes, %v", o.err, len(out), err)
		}
		if o.err != nil && err != nil {
			o.ended = true
			continue
		}
		o.out = append(o.out, out...)
		o.most = max(o.most, len(out))
		if err != nil {
			o.err = err
			var fault *Error
			if !errors.As(err, &fault) {
				o.replies = append(o.replies, s.Goodbye(err)...) // as core does then
			}
		}
	}
	return o
}

func atOnce(left int) int { return left }
func byBytes(int) int     { return 1 }

// status is that of an error of Decode: 0 for none, 1 for the end of input.
func status(t testing.TB, err error) int {
	t.Helper()
	var e *Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return int(e.Status)
	case !errors.Is(err, io.EOF):
		t.Fatalf("unexpected %T: %v", err, err)
	}
	return 1
}

// unmasked takes the masks off whole frames of a client.
func unmasked(t testing.TB, raw []byte) []byte {
	t.Helper()
	var plain []byte
	for r := bytes.NewReader(raw); r.Len() > 0; {
		h, err := ws.ReadHeader(r)
		if err != nil || !h.Masked || h.Length > int64(r.Len()) {
			t.Fatalf("%+v, %v in %x", h, err, clip(raw))
		}
		f := ws.Frame{Header: h, Payload: make([]byte, h.Length)}
		r.Read(f.Payload)
		plain = append(plain, ws.MustCompileFrame(ws.UnmaskFrame(f))...)
	}
	return plain
}

func client(c *Config)   { c.Client = true }
func limit10(c *Config)  { c.ReadLimit = 10 }
func deflated(c *Config) { c.Deflate = true }

const eof = 1 // the status of io.EOF

// Status of the cases is 0 for none, or eof, or what the peer is told. Where text is wrong, how much of it came through depends
// on the pieces, and out is the most.
var decodeTests = []struct {
	name    string
	change  func(*Config)
	in      string
	out     string // hex as well
	replies string
	status  int
}{
	{"nothing", nil, "", "", "", 0},
	{"RFC 6455 5.7, masked text", nil, "818537fa213d7f9f4d5158", "48656c6c6f", "", 0},
	{"binary", nil, "8283M616263", "616263", "", 0},
	{"messages of both types", nil, "8281M61 8182M6263 8281Mff", "616263ff", "", 0},
	{"empty messages", nil, "8280M 8180M 8281M61", "61", "", 0},
	{"half a header", nil, "82", "", "", 0},
	{"half a mask", nil, "82810000", "", "", 0},
	{"half a message", nil, "8283M6162", "6162", "", 0},
	{"a mask that goes on", nil, "8287 01020304 60606060646064", "61626364656267", "", 0},

	{"three fragments", nil, "0281M61 0081M62 8081M63", "616263", "", 0},
	{"each fragment with its mask", nil, "0282 01020304 6060 8082 10203040 7344", "61626364", "", 0},
	{"a ping between fragments", nil, "0281M61 8981M70 8081M62", "6162", "8a0170", 0},
	{"a ping in an unmasked stream of a server", client, "020161 890170 800162", "6162", "8a0170", 0},
	{"two pings and a pong between fragments", nil, "0181M61 8981M70 8a81M70 0081M62 8981M71 8081M63", "616263", "8a0170 8a0171", 0},
	{"empty fragments", nil, "0280M 0080M 0081M61 0080M 8080M", "61", "", 0},
	{"a continuation of nothing", nil, "8081M61", "", "", 1002},
	{"a continuation after the end", nil, "8281M61 0081M62", "61", "", 1002},
	{"a message within a message", nil, "0281M61 8281M62", "61", "", 1002},
	{"a text within a message", nil, "0281M61 0181M62", "61", "", 1002},

	{"ping", nil, "8980M", "", "8a00", 0},
	{"ping with contents", nil, "8985 37fa213d 7f9f4d5158", "", "8a05 48656c6c6f", 0},
	{"ping of 125 bytes", nil, "89fdM 70*125", "", "8a7d 70*125", 0},
	{"ping of 126 bytes", nil, "89fe007eM 70*126", "", "", 1002},
	{"ping of 64-bit length", nil, "89ff0000000000010000M", "", "", 1002},
	{"close of 126 bytes", nil, "88fe007eM 03e8", "", "", 1002},
	{"fragmented ping", nil, "0980M", "", "", 1002},
	{"fragmented pong", nil, "0a80M", "", "", 1002},
	{"fragmented close", nil, "0880M", "", "", 1002},
	{"pong that nobody asked for", nil, "8a82M7071 8281M61", "61", "", 0},
	{"ping to a client", client, "890170", "", "8a0170", 0},

	{"close without a code", nil, "8880M", "", "8800", eof},
	{"close", nil, "8882M03e8", "", "880203e8", eof},
	{"close with a reason", nil, "8885M03e8627965", "", "880203e8", eof},
	{"close with the longest reason", nil, "88fdM03e8 61*123", "", "880203e8", eof},
	{"close and more", nil, "8281M61 8882M03e9 8281M62 8981M70", "61", "880203e9", eof},
	{"close within a message", nil, "0281M61 8880M", "61", "8800", eof},
	{"two closes", nil, "8880M 8880M", "", "8800", eof},
	{"close to a client", client, "880203e8", "", "880203e8", eof},
	{"close of one byte", nil, "8881M03", "", "", 1002},
	{"close with a reason that is not UTF-8", nil, "8884M03e8c328", "", "", 1002},

	{"reserved bit 1", nil, "c281M61", "", "", 1002},
	{"reserved bit 2", nil, "a281M61", "", "", 1002},
	{"reserved bit 3", nil, "9281M61", "", "", 1002},
	{"reserved bit of a ping", nil, "c980M", "", "", 1002},
	{"what came before is kept", nil, "8281M61 9281M61", "61", "", 1002},
	{"unmasked from a client", nil, "820161", "", "", 1002},
	{"unmasked ping from a client", nil, "8900", "", "", 1002},
	{"masked from a server", client, "8281M61", "", "", 1002},
	{"unmasked from a server", client, "820161 8a00 0101c3 8001a9", "61c3a9", "", 0},

	{"16-bit length", nil, "82fe007eM 61*126", "61*126", "", 0},
	{"16-bit length, the longest", nil, "82feffffM 61*65535", "61*65535", "", 0},
	{"64-bit length", nil, "82ff0000000000010000M 61*65536", "61*65536", "", 0},
	{"16-bit length of a server", client, "827e007e 61*126 820162", "61*126 62", "", 0},
	{"64-bit length, highest bit", nil, "82ff8000000000000001M", "", "", 1002},
	{"64-bit length, all bits", nil, "82ffffffffffffffffffM", "", "", 1002},
	{"64-bit length, the longest", nil, "82ff7fffffffffffffffM", "", "", 1009},

	{"at the limit", limit10, "828aM 61*10 828aM 62*10", "61*10 62*10", "", 0},
	{"above the limit", limit10, "828bM 61*11", "", "", 1009},
	{"above the limit in fragments", limit10, "0286M 61*6 8085M 61*5", "61*6", "", 1009},
	{"at the limit in fragments, with pings", limit10, "0286M 61*6 8985M 70*5 8084M 61*4", "61*10", "8a05 70*5", 0},
	{"above the limit, a sum above 63 bits", limit10, "0281M61 80ff7fffffffffffffffM", "61", "", 1009},

	{"100 empty fragments", nil, "0280M 008000000000*99 8081M61", "61", "", 0},
	{"101 empty fragments", nil, "0280M 008000000000*100 8081M61", "", "", 1008},
	{"empty fragments between others", nil, "0280M 008000000000*99 0081M61 008000000000*100 8080M 0280M 008000000000*99 8080M",
		"61", "", 0},
	{"empty fragments between pings", nil, "0280M 898000000000008000000000*100", "", "8a00*100", 1008},

	{"a character in two fragments", nil, "0181Mc3 8081Ma9", "c3a9", "", 0},
	{"a character in three fragments", nil, "0181Me2 0081M82 8081Mac", "e282ac", "", 0},
	{"a character in four fragments, with a ping", nil, "0181Mf0 0081M9f 8980M 0080M 0081M98 8081M80", "f09f9880", "8a00", 0},
	{"the ends of ranges", nil, "8199M 7f c280 dfbf e0a080 ed9fbf ee8080 efbfbf f0908080 f48fbfbf",
		"7f c280 dfbf e0a080 ed9fbf ee8080 efbfbf f0908080 f48fbfbf", "", 0},
	{"a replacement character", nil, "0182Mefbf 8081Mbd", "efbfbd", "", 0},
	{"not UTF-8 in a binary message", nil, "8281Mff", "ff", "", 0},
	{"not UTF-8", nil, "8181Mff", "", "", 1007},
	{"not UTF-8 at the end", nil, "8183M6162ff", "6162", "", 1007},
	{"a continuation byte", nil, "8181M80", "", "", 1007},
	{"overlong", nil, "8182Mc0af", "", "", 1007},
	{"overlong of three", nil, "8183Me080af", "e0", "", 1007},
	{"overlong of four", nil, "8184Mf08080af", "f0", "", 1007},
	{"a surrogate", nil, "8183Meda080", "ed", "", 1007},
	{"above U+10FFFF", nil, "8184Mf4908080", "f4", "", 1007},
	{"a lead byte that there is not", nil, "8184Mf5808080", "", "", 1007},
	{"ends within a character", nil, "8181Mc3", "c3", "", 1007},
	{"ends within a character, empty fragment", nil, "0181Mc3 8080M", "c3", "", 1007},
	{"the next fragment does not go on", nil, "0181Mc3 8081M61", "c3", "", 1007},
	{"half a surrogate, before the message ends", nil, "0182Meda0", "ed", "", 1007},
	{"above U+10FFFF, over fragments", nil, "0181Mf4 0081M90", "f4", "", 1007},
	{"an incomplete message is no harm to the next", nil, "0281Mc3 8080M 8181M61", "c361", "", 0},

	{"RFC 7692 7.2.3.1", deflated, "c187M f248cdc9c90700", "48656c6c6f", "", 0},
	{"RFC 7692 7.2.3.1, fragments and a ping", deflated, "4183M f248cd 8981M70 8084M c9c90700", "48656c6c6f", "8a0170", 0},
	{"RFC 7692 7.2.3.2, context takeover that was not agreed upon", deflated, "c187M f248cdc9c90700 c185M f200110000",
		"48656c6c6f", "", 1007},
	{"RFC 7692 7.2.3.3, not compressed", deflated, "c18bM 000500faff48656c6c6f00", "48656c6c6f", "", 0},
	{"RFC 7692 7.2.3.4, final block", deflated, "c188M f348cdc9c9070000", "48656c6c6f", "", 0},
	{"RFC 7692 7.2.3.5, two blocks", deflated, "c18dM f2480500 0000ffff cac9c90700", "48656c6c6f", "", 0},
	{"compressed and not", deflated, "c287M f248cdc9c90700 8281M61 c287M f248cdc9c90700", "48656c6c6f 61 48656c6c6f", "", 0},
	{"an empty compressed message", deflated, "c281M00 8281M61", "61", "", 0},
	{"a compressed fragment", deflated, "4283M f248cd c084M c9c90700", "", "", 1002},
	{"a compressed ping", deflated, "c980M", "", "", 1002},
	{"reserved bit 2 beside compression", deflated, "e287M f248cdc9c90700", "", "", 1002},
	{"compression that was not agreed upon", nil, "c287M f248cdc9c90700", "", "", 1002},
	{"garbage", deflated, "8281M61 c283Mffffff", "61", "", 1007},
	{"compressed text that is not UTF-8", deflated, "c187M 000100feffff00", "", "", 1007},
	{"compressed binary that is not UTF-8", deflated, "c287M 000100feffff00", "ff", "", 0},
	{"compressed text that ends within a character", deflated, "c187M 000100feffc300", "", "", 1007},
	{"above the limit before it is unpacked", func(c *Config) { deflated(c); limit10(c) }, "c28bM f248cdc9c90700", "", "", 1009},
	{"above the limit after it was unpacked", func(c *Config) { deflated(c); c.ReadLimit = 12 }, // "a", and 12 times the same
		"c286M 4a4c44020000", "", "", 1009},
}

func TestDecode(t *testing.T) {
	for _, tt := range decodeTests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(tt.change)
			in, out, replies := unhex(t, tt.in), unhex(t, tt.out), unhex(t, tt.replies)
			check := func(how string, o outcome) {
				t.Helper()
				got := o.replies
				if cfg.Client {
					got = unmasked(t, got)
				}
				same := bytes.Equal(o.out, out) || tt.status == 1007 && bytes.HasPrefix(out, o.out)
				if s := status(t, o.err); !same || !bytes.Equal(got, replies) || s != tt.status {
					t.Fatalf("%s: %x, replies %x, status %d (%v)", how, clip(o.out), clip(got), s, o.err)
				}
			}
			check("at once", decodeIn(t, New(cfg, true), in, atOnce))
			check("by bytes", decodeIn(t, New(cfg, true), in, byBytes))
			for at := 1; at < len(in); at++ {
				if at > 300 && at < len(in)-20 && at%997 != 0 {
					continue // within the contents of a long message
				}
				first := true
				check(fmt.Sprintf("split at %d", at), decodeIn(t, New(cfg, true), in, func(left int) int {
					if first {
						first = false
						return at
					}
					return left
				}))
			}
		})
	}
}

// clip shortens what an error shows.
func clip(b []byte) []byte { return b[:min(len(b), 100)] }

func TestReservedOpcodes(t *testing.T) {
	for _, op := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		for _, next := range []func(int) int{atOnce, byBytes} {
			o := decodeIn(t, New(config(nil), true), unhex(t, fmt.Sprintf("8281M61 %02x80M", 0x80|op)), next)
			if string(o.out) != "a" || status(t, o.err) != 1002 || len(o.replies) > 0 {
				t.Errorf("opcode %d: %x, %v, replies %x", op, o.out, o.err, o.replies)
			}
		}
	}
}

func TestCloseCodes(t *testing.T) {
	for _, valid := range []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999} {
		o := decodeIn(t, New(config(nil), true), unhex(t, fmt.Sprintf("8882M%04x", valid)), byBytes)
		if want := unhex(t, fmt.Sprintf("8802%04x", valid)); !errors.Is(o.err, io.EOF) || !bytes.Equal(o.replies, want) {
			t.Errorf("%d: %v, replies %x", valid, o.err, o.replies)
		}
	}
	for _, invalid := range []int{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999} {
		o := decodeIn(t, New(config(nil), true), unhex(t, fmt.Sprintf("8882M%04x", invalid)), byBytes)
		if status(t, o.err) != 1002 || len(o.replies) > 0 {
			t.Errorf("%d: %v, replies %x", invalid, o.err, o.replies)
		}
	}
}

// pack compresses a message as RFC 7692 has it.
func pack(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(p)
	w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte{0, 0, 0xff, 0xff})
}

// clientFrame is a frame of a client with a mask of its own.
func clientFrame(first byte, payload []byte) []byte {
	f := ws.Frame{Header: ws.Header{Fin: first&0x80 != 0, Rsv: first >> 4 & 7, OpCode: ws.OpCode(first & 15), Length: int64(len(payload))},
		Payload: payload}
	return ws.MustCompileFrame(ws.MaskFrame(f))
}

func TestBomb(t *testing.T) {
	const limit = 64 << 10
	for _, n := range []int{limit, limit + 1, 8 << 20} {
		packed := pack(t, make([]byte, n))
		// twice: a Stage that was given a bomb is over, and the inflater that met it is fit for others
		for range 2 {
			s := New(config(func(c *Config) { c.Deflate, c.ReadLimit = true, 256<<10 }), true)
			if n <= limit+1 {
				s = New(config(func(c *Config) { c.Deflate, c.ReadLimit = true, limit }), true)
			}
			o := decodeIn(t, s, clientFrame(0xc2, packed), atOnce)
			if n <= limit {
				if o.err != nil || !bytes.Equal(o.out, make([]byte, n)) {
					t.Errorf("%d bytes: %d, %v", n, len(o.out), o.err)
				}
			} else if status(t, o.err) != 1009 || len(o.out) > 0 {
				t.Errorf("%d bytes: %d, %v", n, len(o.out), o.err)
			}
		}
	}
	o := decodeIn(t, New(config(deflated), true), unhex(t, "c187M f248cdc9c90700"), atOnce)
	if string(o.out) != "Hello" {
		t.Errorf("%q, %v", o.out, o.err)
	}
}

// Several compressed messages in one piece that are longer together than the piece, between others.
func TestInflateBesideOthers(t *testing.T) {
	a, b := bytes.Repeat([]byte("a"), 5000), bytes.Repeat([]byte("bc"), 70_000)
	in := bytes.Join([][]byte{clientFrame(0x82, []byte("x")), clientFrame(0xc2, pack(t, a)), clientFrame(0x82, []byte("y")),
		clientFrame(0xc2, pack(t, b)), clientFrame(0xc2, pack(t, a)), clientFrame(0x82, []byte("z"))}, nil)
	want := bytes.Join([][]byte{[]byte("x"), a, []byte("y"), b, a, []byte("z")}, nil)
	for name, next := range map[string]func(int) int{"at once": atOnce, "by bytes": byBytes} {
		if o := decodeIn(t, New(config(deflated), true), in, next); o.err != nil || !bytes.Equal(o.out, want) {
			t.Errorf("%s: %d bytes, %v", name, len(o.out), o.err)
		}
	}
}

// wrap wraps a copy of p.
func wrap(t testing.TB, s *Stage, p []byte) []byte {
	t.Helper()
	b := append(make([]byte, s.Room()), p...)
	start, end := s.Wrap(b)
	if start < 0 || start > s.Room() || end < s.Room() || end > len(b) {
		t.Fatalf("%d bytes are wrapped in [%d:%d]", len(p), start, end)
	}
	return b[start:end]
}

func TestWrapHeader(t *testing.T) {
	for _, tt := range []struct {
		n    int
		head string
	}{
		{0, "8200"}, {1, "8201"}, {125, "827d"}, {126, "827e007e"}, {65_535, "827effff"},
		{65_536, "827f0000000000010000"}, {1 << 20, "827f0000000000100000"},
	} {
		p := bytes.Repeat([]byte{7}, tt.n)
		if got, want := wrap(t, New(config(nil), true), p), append(unhex(t, tt.head), p...); !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %x", tt.n, clip(got))
		}
		s := New(config(client), true)
		got := wrap(t, s, p)
		h, err := ws.ReadHeader(bytes.NewReader(got))
		if err != nil || !h.Masked || !h.Fin || h.OpCode != ws.OpBinary || h.Rsv != 0 || h.Length != int64(tt.n) {
			t.Errorf("%d bytes of a client: %+v, %v", tt.n, h, err)
		}
		if !bytes.Equal(unmasked(t, got), append(unhex(t, tt.head), p...)) {
			t.Errorf("%d bytes of a client: %x", tt.n, clip(got))
		}
	}
}

// Masks differ: a proxy must not be made to see what a page wants it to.
func TestMasksDiffer(t *testing.T) {
	seen := map[string]bool{}
	s := New(config(client), true)
	for range 100 {
		seen[string(wrap(t, s, []byte("a"))[2:6])] = true
	}
	if len(seen) < 95 {
		t.Errorf("%d masks of 100 frames", len(seen))
	}
}

// What one end wraps the other decodes, in both directions, in any pieces.
func TestRoundTrip(t *testing.T) {
	noise := make([]byte, 70_000)
	src := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(src.Uint32())
	}
	for _, compress := range []int{0, 1, 1000} {
		for _, fromClient := range []bool{true, false} {
			cfg := func(isClient bool) *Config {
				return config(func(c *Config) { c.Client, c.Deflate, c.Compress = isClient, compress > 0, compress })
			}
			from := New(cfg(fromClient), true)
			var in, want []byte
			for _, n := range []int{0, 1, 3, 125, 126, 999, 1000, 65_535, 65_536, 70_000} {
				for _, p := range [][]byte{noise[:n], bytes.Repeat([]byte("arpc"), n/4+1)[:n]} {
					w := wrap(t, from, p)
					packed, compressible := w[0]&0x40 != 0, n >= 126 && p[0] == 'a'
					if compress > 0 && n >= compress && compressible && !(packed && len(w) < n/2) {
						t.Errorf("%d bytes from %d on became %d", n, compress, len(w))
					}
					if packed && (compress == 0 || n < compress || len(w) > n+14) {
						t.Errorf("%d bytes, compression from %d on, are compressed to %d", n, compress, len(w))
					}
					in, want = append(in, w...), append(want, p...)
				}
			}
			for name, next := range map[string]func(int) int{"at once": atOnce, "by bytes": byBytes,
				"by 1,000": func(left int) int { return min(left, 1000) }} {
				o := decodeIn(t, New(cfg(!fromClient), true), in, next)
				if o.err != nil || !bytes.Equal(o.out, want) || len(o.replies) > 0 {
					t.Errorf("client %v, compression from %d on, %s: %d of %d bytes, %v", fromClient, compress, name, len(o.out), len(want), o.err)
				}
			}
		}
	}
}

// closeOf parses one close frame of a server.
func closeOf(t testing.TB, raw []byte) (int, string) {
	t.Helper()
	if len(raw) < 4 || raw[0] != 0x88 || int(raw[1]) != len(raw)-2 || len(raw) > 127 {
		t.Fatalf("no close frame: %x", raw)
	}
	return int(binary.BigEndian.Uint16(raw[2:])), string(raw[4:])
}

func TestGoodbye(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error
		code   int
		reason string
	}{
		{"of the connection's", errors.New("bye"), 1000, "bye"},
		{"of the stage's", errTooBig, 1009, errTooBig.Text},
		{"of the stage's, wrapped", fmt.Errorf("x: %w", errEmpty), 1008, errEmpty.Text},
		{"long", errors.New(strings.Repeat("a", 200)), 1000, strings.Repeat("a", 123)},
		{"just short enough", errors.New(strings.Repeat("a", 123)), 1000, strings.Repeat("a", 123)},
		{"a character is not cut", errors.New(strings.Repeat("é", 100)), 1000, strings.Repeat("é", 61)},
		{"nor a longer one", errors.New("aa" + strings.Repeat("😀", 100)), 1000, "aa" + strings.Repeat("😀", 30)},
		{"not UTF-8", errors.New("a\xffb"), 1000, "a"},
	} {
		s := New(config(nil), true)
		if code, reason := closeOf(t, s.Goodbye(tt.err)); code != tt.code || reason != tt.reason {
			t.Errorf("%s: %d %q", tt.name, code, reason)
		}
		if again := s.Goodbye(tt.err); again != nil {
			t.Errorf("%s: said twice: %x", tt.name, again)
		}
		s = New(config(client), true)
		if code, reason := closeOf(t, unmasked(t, s.Goodbye(tt.err))); code != tt.code || reason != tt.reason {
			t.Errorf("%s: %d %q of a client", tt.name, code, reason)
		}
	}
}

// A close is said once, whoever begins; after it nothing else is said.
func TestGoodbyeAndClose(t *testing.T) {
	s := New(config(nil), true)
	s.Goodbye(errors.New("bye"))
	o := decodeIn(t, s, unhex(t, "8281M61 8980M 8882M03e8"), atOnce)
	if string(o.out) != "a" || !errors.Is(o.err, io.EOF) || len(o.replies) > 0 {
		t.Errorf("after our close: %q, %v, replies %x", o.out, o.err, o.replies)
	}
	s = New(config(nil), true)
	o = decodeIn(t, s, unhex(t, "8882M03e8"), atOnce)
	if raw := s.Goodbye(errors.New("bye")); !errors.Is(o.err, io.EOF) || raw != nil {
		t.Errorf("after the peer's close: %v, %x", o.err, raw)
	}
}

// After a fault nothing but the peer's close frame is recognised, however it arrives: it ends the input.
func TestCloseAfterFault(t *testing.T) {
	for _, tt := range []struct{ name, fault, between string }{
		{"reserved bits", "F281M61", ""},
		{"unknown opcode", "8384M61626364", ""},
		{"long control frame", "89FE0080M" + strings.Repeat("00", 128), ""},
		{"not masked", "820161", ""},
		{"not UTF-8", "8184M61FF6162", ""},
		{"above the limit", "828BM" + strings.Repeat("61", 11), ""},
		{"messages between", "F281M61", "8281M61 8980M 0181M61 810161"},
		{"rest of it arrives later", "828BM6161", strings.Repeat("61", 9)},
		{"lost track", "F281M61", "lost"},
	} {
		for _, next := range []func(int) int{atOnce, byBytes} {
			s := New(config(limit10), true)
			fault := decodeIn(t, s, unhex(t, tt.fault), next)
			if status(t, fault.err) < 1002 || fault.ended {
				t.Fatalf("%s: %v, ended: %v", tt.name, fault.err, fault.ended)
			}
			if tt.between == "lost" { // a length that cannot be: the end is not found any more
				if _, err := s.Decode(unhex(t, "82FFFFFFFFFFFFFFFFFFM"), nil); err != io.EOF {
					t.Errorf("%s: %v", tt.name, err)
				}
				continue
			}
			data := unhex(t, tt.between+"8882M03ea")
			for i := range data {
				if _, err := s.Decode(data[i:i+1], nil); (err == io.EOF) != (i == len(data)-1) || err != nil && err != io.EOF {
					t.Fatalf("%s: byte %d of %d: %v", tt.name, i, len(data), err)
				}
			}
			if out, err := s.Decode([]byte{1, 2, 3}, nil); out != nil || err != nil {
				t.Errorf("%s: after the end %x, %v", tt.name, out, err)
			}
		}
	}
}

func TestSingle(t *testing.T) {
	for _, single := range []bool{true, false} {
		s := New(config(nil), single)
		if s.Single() != single {
			t.Errorf("new: %v", s.Single())
		}
		s.SetSingle(!single)
		if s.Single() == single {
			t.Errorf("set: %v", s.Single())
		}
	}
}
