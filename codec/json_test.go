package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

type embedded struct {
	Shared  string
	Level   int8 `json:"level,omitempty"`
	private int
}

type textKey struct{ a, b uint8 }

func (k textKey) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%d/%d", k.a, k.b), nil
}

func (k *textKey) UnmarshalText(b []byte) error {
	_, err := fmt.Sscanf(string(b), "%d/%d", &k.a, &k.b)
	return err
}

// document has a field for every feature of encoding/json that programs use.
type document struct {
	embedded
	*Pointed
	Bool     bool
	Int      int
	Int8     int8
	Int16    int16
	Int32    int32
	Int64    int64
	Uint     uint
	Uint8    uint8
	Uint16   uint16
	Uint32   uint32
	Uint64   uint64
	Float32  float32
	Float64  float64
	String   string `json:"the string"`
	Bytes    []byte
	Array    [3]int
	Slice    []string
	Map      map[string]int
	IntMap   map[int]string
	TextMap  map[textKey]bool
	Any      any
	Anys     []any
	Pointer  *int
	Next     *document
	Nested   []struct{ A, B string }
	Omit     string         `json:",omitempty"`
	OmitPtr  *string        `json:"omitptr,omitempty"`
	OmitMap  map[string]any `json:"omitmap,omitempty"`
	Quoted   int64          `json:",string"`
	Skipped  string         `json:"-"`
	Number   json.Number
	Raw      json.RawMessage
	Time     time.Time
	Duration time.Duration
	Iface    fmt.Stringer
	hidden   string
}

// Pointed is embedded by pointer, which encoding/json wants exported.
type Pointed struct {
	Depth uint16
}

type generator struct{ *rand.Rand }

func (g generator) string() string {
	alphabet := []rune("abcXYZ 019\"\\/<>&\n\t\x00\x1f\u007f\u2028\u2029éß世界😀\ufffd'")
	var b strings.Builder
	for range g.IntN(12) {
		b.WriteRune(alphabet[g.IntN(len(alphabet))])
	}
	return b.String()
}

func (g generator) float() float64 {
	switch g.IntN(6) {
	case 0:
		return 0
	case 1:
		return float64(g.Int64())
	case 2:
		return -g.Float64()
	case 3:
		return g.NormFloat64() * 1e-9
	case 4:
		return g.NormFloat64() * 1e30
	}
	for {
		f := math.Float64frombits(g.Uint64())
		if !math.IsNaN(f) && !math.IsInf(f, 0) {
			return f
		}
	}
}

func (g generator) any(depth int) any {
	kinds := 7
	if depth <= 0 {
		kinds = 5
	}
	switch g.IntN(kinds) {
	case 0:
		return nil
	case 1:
		return g.IntN(2) == 0
	case 2:
		return g.float()
	case 3:
		return g.string()
	case 4:
		return ""
	case 5:
		list := make([]any, g.IntN(4))
		for i := range list {
			list[i] = g.any(depth - 1)
		}
		return list
	}
	m := map[string]any{}
	for range g.IntN(4) {
		m[g.string()] = g.any(depth - 1)
	}
	return m
}

func (g generator) document(depth int) *document {
	maybe := func() bool { return g.IntN(2) == 0 }
	d := &document{
		Bool: maybe(), Int: int(g.Int64()), Int8: int8(g.Int64()), Int16: int16(g.Int64()),
		Int32: int32(g.Int64()), Int64: -g.Int64(), Uint: uint(g.Uint64()), Uint8: uint8(g.Uint64()),
		Uint16: uint16(g.Uint64()), Uint32: uint32(g.Uint64()), Uint64: g.Uint64(),
		Float32: float32(g.NormFloat64()), Float64: g.float(), String: g.string(),
		Array: [3]int{g.IntN(9), -g.IntN(9), 0}, Any: g.any(3), Quoted: g.Int64() - g.Int64(),
		Skipped: "skipped", Number: json.Number(fmt.Sprint(g.IntN(1000))),
		Raw:      json.RawMessage([]string{`{"raw":[1,2,3]}`, `"x"`, `true`}[g.IntN(3)]),
		Duration: time.Duration(g.Int64()), hidden: "hidden",
		Time: time.Unix(g.Int64N(1<<32), g.Int64N(1e9)).UTC(),
	}
	d.Shared, d.Level, d.private = g.string(), int8(g.IntN(3)), 1
	if maybe() {
		d.Pointed = &Pointed{Depth: uint16(g.IntN(100))}
	}
	if maybe() {
		d.Bytes = []byte(g.string())
	}
	if maybe() {
		d.Slice = []string{g.string(), g.string()}
	}
	if maybe() {
		d.Map = map[string]int{g.string(): 1, g.string(): -2, "k": 3}
	}
	if maybe() {
		d.IntMap = map[int]string{g.IntN(50): "x", -g.IntN(50): g.string()}
	}
	if maybe() {
		d.TextMap = map[textKey]bool{{1, uint8(g.IntN(200))}: true, {2, 2}: false}
	}
	if maybe() {
		d.Anys = []any{g.any(1), g.any(2)}
	}
	if maybe() {
		n := g.IntN(100)
		d.Pointer = &n
	}
	if maybe() {
		d.Nested = make([]struct{ A, B string }, g.IntN(3))
	}
	if maybe() {
		d.Omit = g.string()
	}
	if maybe() {
		s := g.string()
		d.OmitPtr = &s
	}
	if maybe() {
		d.OmitMap = map[string]any{"a": g.any(1)}
	}
	if depth > 0 && maybe() {
		d.Next = g.document(depth - 1)
	}
	return d
}

var shortExponent = regexp.MustCompile(`(\de-)0(\d)\b`)

// sameJSON reports whether two encodings differ at most in the width of small
// negative exponents, the one difference that JSONCodec documents for values
// without a MarshalJSON of their own.
func sameJSON(a, b []byte) bool {
	return bytes.Equal(a, b) ||
		bytes.Equal(shortExponent.ReplaceAll(a, []byte("$1$2")), shortExponent.ReplaceAll(b, []byte("$1$2")))
}

func TestJSONAgreesWithStandardLibrary(t *testing.T) {
	g := generator{rand.New(rand.NewPCG(1, 2))}
	for i := range 1500 {
		var v any
		switch i % 3 {
		case 0, 1:
			v = g.document(2)
		default:
			v = g.any(4)
		}
		std, err := StdJSON{}.Marshal(v)
		if err != nil {
			t.Fatalf("encoding/json refused a generated value: %v", err)
		}
		ours, err := JSONCodec{}.Marshal(v)
		if err != nil {
			t.Fatalf("Marshal: %v\nvalue: %s", err, std)
		}
		if !sameJSON(ours, std) {
			t.Fatalf("encodings differ\n ours %s\n std  %s", ours, std)
		}
		appended, err := JSONCodec{}.AppendMarshal([]byte("prefix"), v)
		if err != nil || string(appended) != "prefix"+string(ours) {
			t.Fatalf("AppendMarshal = %q, %v\n want prefix%s", appended, err, ours)
		}
		for _, newTarget := range []func() any{
			func() any { return new(document) },
			func() any { return new(any) },
			func() any { return new(map[string]any) },
		} {
			compareDecoding(t, std, newTarget)
			compareDecoding(t, ours, newTarget)
		}
	}
}

// compareDecoding checks that data, which encoding/json wrote or would accept,
// gives the same value or an error under both codecs.
func compareDecoding(t *testing.T, data []byte, newTarget func() any) {
	t.Helper()
	want, got := newTarget(), newTarget()
	wantErr := StdJSON{}.Unmarshal(data, want)
	gotErr := JSONCodec{}.Unmarshal(data, got)
	if (wantErr == nil) != (gotErr == nil) {
		t.Fatalf("decoding %s into %T\n encoding/json: %v\n JSONCodec: %v", data, want, wantErr, gotErr)
	}
	if wantErr == nil && !reflect.DeepEqual(want, got) {
		t.Fatalf("decoding %s into %T\n encoding/json: %+v\n JSONCodec: %+v", data, want, want, got)
	}
}

func TestJSONErrors(t *testing.T) {
	type tree struct {
		A int
		B string
	}
	for _, bad := range []string{"", " ", "{", `{"A":1`, `{"A":}`, `{"A":1,}`, `[1,2`, `"a`, "tru", "-", `{"A":1}}`, `{"A":"x"}`, `{"A":1.5}`, `{"A":99999999999999999999}`, `{A:1}`, `[]`} {
		for _, c := range []Codec{JSONCodec{}, StdJSON{}} {
			if err := c.Unmarshal([]byte(bad), new(tree)); err == nil {
				t.Errorf("%T accepted %q", c, bad)
			}
		}
	}
	for _, v := range []any{make(chan int), func() {}, math.NaN(), map[string]any{"f": math.Inf(1)}} {
		for _, c := range []Codec{JSONCodec{}, StdJSON{}} {
			if data, err := c.Marshal(v); err == nil {
				t.Errorf("%T encoded %T as %q", c, v, data)
			}
		}
		kept := []byte("kept")
		if out, err := AppendValue(kept, JSONCodec{}, v); err == nil || string(out) != "kept" {
			t.Errorf("AppendValue(%T) = %q, %v", v, out, err)
		}
	}
}

// A failed encoding must leave the pooled encoder fit for the next one.
func TestJSONAfterFailure(t *testing.T) {
	for range 100 {
		if _, err := (JSONCodec{}).AppendMarshal(make([]byte, 0, 64), map[string]any{"a": "text", "f": math.NaN()}); err == nil {
			t.Fatal("NaN was encoded")
		}
		out, err := JSONCodec{}.Marshal([]int{1, 2})
		if err != nil || string(out) != "[1,2]" {
			t.Fatalf("Marshal = %q, %v", out, err)
		}
	}
}

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("MarshalJSON") }

func TestJSONAfterPanic(t *testing.T) {
	for range 100 {
		func() {
			defer func() {
				if recover() == nil {
					t.Fatal("the panic was swallowed")
				}
			}()
			_, _ = JSONCodec{}.AppendMarshal([]byte("x"), []any{"abc", panicking{}})
		}()
		out, err := JSONCodec{}.AppendMarshal([]byte("y"), true)
		if err != nil || string(out) != "ytrue" {
			t.Fatalf("AppendMarshal = %q, %v", out, err)
		}
	}
}

// Deeply nested input is refused at once: it must not exhaust the stack, nor
// take time in the square of its depth.
func TestJSONDepthIsLimited(t *testing.T) {
	type list []list
	type chain struct{ N *chain }
	nest := func(open, close string, n int) []byte {
		return []byte(strings.Repeat(open, n) + strings.Repeat(close, n))
	}
	for _, tt := range []struct {
		name   string
		data   []byte
		v      any
		wantOK bool
	}{
		{"any at the limit", nest("[", "]", maxJSONDepth), new(any), true},
		{"any above it", nest("[", "]", maxJSONDepth+1), new(any), false},
		{"any, unclosed", nest("[", "", 1<<20), new(any), false},
		{"slice at the limit", nest("[", "]", maxJSONDepth), new(list), true},
		{"slice of itself, unclosed", nest("[", "", 1<<20), new(list), false},
		{"struct, unclosed", nest(`{"N":`, "", 1<<18), new(chain), false},
		{"skipped field", append([]byte(`{"X":`), nest("[", "", 1<<20)...), new(chain), false},
		{"wide, not deep", []byte("[" + strings.Repeat("[],", 5000) + "{}]"), new(any), true},
		{"brackets in a string", []byte(`"` + strings.Repeat(`[{\"\\`, 5000) + `"`), new(string), true},
		{"after a string", []byte(`["\\",` + string(nest("[", "]", 5000)) + `]`), new(any), false},
	} {
		if err := (JSONCodec{}).Unmarshal(tt.data, tt.v); (err == nil) != tt.wantOK {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestJSONDoesNotAliasInput(t *testing.T) {
	type target struct {
		S string
		B []byte
		R json.RawMessage
		N json.Number
		A any
		M map[string]string
	}
	data := []byte(`{"S":"text","B":"AAAA","R":{"a":1},"N":12,"A":{"k":"v"},"M":{"k":"v"}}`)
	for _, c := range []Codec{JSONCodec{}, StdJSON{}} {
		buf := bytes.Clone(data)
		var before, after target
		if err := c.Unmarshal(buf, &after); err != nil {
			t.Fatal(err)
		}
		if err := c.Unmarshal(bytes.Clone(data), &before); err != nil {
			t.Fatal(err)
		}
		for i := range buf {
			buf[i] = 'X'
		}
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%T: overwriting the input changed the decoded value to %+v", c, after)
		}
	}
}

// Whatever a peer sends, JSONCodec returns, and a document that encoding/json
// accepts gives the same value.
func FuzzJSON(f *testing.F) {
	g := generator{rand.New(rand.NewPCG(3, 4))}
	for range 20 {
		data, err := json.Marshal(g.document(1))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range []string{"", "{", `[1,2`, `"\ud800"`, "\"\xff\"", `1e5`, `{"a":1,"A":2}`, "tru", "1\x00", "+1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, newTarget := range []func() any{
			func() any { return new(document) },
			func() any { return new(any) },
			func() any { return new(int32) },
			func() any { return new(string) },
			func() any { return new([]float64) },
		} {
			got := newTarget()
			gotErr := JSONCodec{}.Unmarshal(data, got)
			want := newTarget()
			// The documented differences: invalid UTF-8, and numbers out of range.
			if StdJSON.Unmarshal(StdJSON{}, data, want) != nil || !utf8.Valid(data) || hugeNumber(data) {
				continue
			}
			if gotErr != nil {
				t.Fatalf("%q into %T: %v", data, got, gotErr)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%q into %T:\n got  %+v\n want %+v", data, got, got, want)
			}
		}
	})
}

func hugeNumber(data []byte) bool {
	var v any
	return json.Unmarshal(data, &v) != nil
}
