package codec

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"net/url"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var binaryCodecs = []Named{MessagePack{}, CBOR{}}

func eachBinary(t *testing.T, f func(t *testing.T, c Named)) {
	for _, c := range binaryCodecs {
		t.Run(c.Name(), func(t *testing.T) { f(t, c) })
	}
}

type inner struct {
	Promoted string
	Hidden   int // by the outer struct's
}

type Embedded struct{ Deep string }

type named byte

type everything struct {
	inner
	*Embedded
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
	Text     string `json:"the text"`
	Bytes    []byte
	Array    [3]int
	Hash     [4]byte
	Named    [2]named
	Nameds   []named
	Slice    []string
	Map      map[string]int
	IntMap   map[int8]string
	AddrMap  map[netip.Addr]bool
	Any      any
	Pointer  *int
	Next     *everything
	Structs  []struct{ A, B string }
	Omitted  string    `msgpack:",omitempty" cbor:",omitempty"`
	OmitZero time.Time `json:",omitzero"`
	Skipped  string    `json:"-"`
	Time     time.Time
	Duration time.Duration
	Big      *big.Int
	URL      *url.URL
	Addr     netip.Addr
	Proto    *wrapperspb.StringValue
	Hidden   int
	hidden   int
}

func example() *everything {
	seven := 7
	u, _ := url.Parse("https://example.org/path?q=1")
	return &everything{
		inner: inner{Promoted: "promoted"}, Embedded: &Embedded{"deep"},
		Bool: true, Int: -1, Int8: math.MinInt8, Int16: math.MinInt16, Int32: math.MinInt32, Int64: math.MinInt64,
		Uint: 1 << 20, Uint8: 255, Uint16: 65535, Uint32: math.MaxUint32, Uint64: math.MaxUint64,
		Float32: 1.5, Float64: math.Pi, Text: "text ß 世界", Bytes: []byte{0, 1, 0xff}, Array: [3]int{1, -300, 70000},
		Hash: [4]byte{1, 2, 3, 4}, Named: [2]named{5, 6}, Nameds: []named{7}, Slice: []string{"", strings.Repeat("x", 40), strings.Repeat("y", 300), strings.Repeat("z", 70000)},
		Map: map[string]int{"a": 1}, IntMap: map[int8]string{-1: "x"}, AddrMap: map[netip.Addr]bool{netip.MustParseAddr("::1"): true},
		Any:     []any{nil, true, int64(1), int64(-1), uint64(math.MaxUint64), 1.5, "s", []byte("b"), map[string]any{"k": []any{}}, map[any]any{int64(1): "one", "two": int64(2)}},
		Pointer: &seven, Next: &everything{Int: 2, Structs: []struct{ A, B string }{}}, Structs: []struct{ A, B string }{{"a", "b"}, {}},
		Time: time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC), Duration: time.Second,
		Big: big.NewInt(1).Lsh(big.NewInt(1), 100), URL: u, Addr: netip.MustParseAddr("192.0.2.1"),
		Proto: wrapperspb.String("proto"), Hidden: 3,
	}
}

func TestBinaryRoundTrip(t *testing.T) {
	eachBinary(t, func(t *testing.T, c Named) {
		in := example()
		in.Skipped, in.hidden = "skipped", 5
		data, err := c.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, absent := range []string{"Omitted", "OmitZero", "skipped", "hidden"} {
			if bytes.Contains(data[:len(data)/2], []byte(absent)) {
				t.Errorf("%q is there", absent)
			}
		}
		out := &everything{}
		if err := c.Unmarshal(data, out); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(in.Proto, out.Proto) {
			t.Errorf("proto: %v", out.Proto)
		}
		in.Skipped, in.hidden, in.Proto, out.Proto = "", 0, nil, nil
		if !reflect.DeepEqual(in, out) {
			t.Errorf("got\n%+v, want\n%+v", out, in)
		}
		// By value, of which methods of pointers and arrays have no address.
		if byValue, err := c.Marshal(*example()); err != nil || len(byValue) == 0 {
			t.Errorf("by value: %v", err)
		}
	})
}

// Times keep their nanoseconds, whatever they are.
func TestBinaryTimes(t *testing.T) {
	eachBinary(t, func(t *testing.T, c Named) {
		for _, want := range []time.Time{
			{}, time.Unix(0, 0), time.Unix(1<<32-1, 0), time.Unix(1<<32, 0), time.Unix(1<<32, 1), time.Unix(1<<34, 5), time.Unix(-1, 999_999_999),
			time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.FixedZone("", 3600)), time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC),
		} {
			data, err := c.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			var got time.Time
			var some any
			if err := c.Unmarshal(data, &got); err != nil || !got.Equal(want) || got.Location() != time.UTC {
				t.Errorf("%v became %v, %v", want, got, err)
			}
			if err := c.Unmarshal(data, &some); err != nil || !some.(time.Time).Equal(want) {
				t.Errorf("%v became %v, %v", want, some, err)
			}
		}
	})
}

// The encodings are those of the specifications: of MessagePack, and of RFC 8949,
// appendix A.
func TestBinaryVectors(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, tt := range []struct {
		c    Codec
		hex  string
		v    any
		back bool // also the encoding of v
	}{
		{MessagePack{}, "c0", nil, true},
		{MessagePack{}, "c2", false, true},
		{MessagePack{}, "c3", true, true},
		{MessagePack{}, "00", int64(0), true},
		{MessagePack{}, "7f", int64(127), true},
		{MessagePack{}, "cc80", int64(128), true},
		{MessagePack{}, "ccff", int64(255), true},
		{MessagePack{}, "cd0100", int64(256), true},
		{MessagePack{}, "ce00010000", int64(65536), true},
		{MessagePack{}, "cf0000000100000000", int64(1) << 32, true},
		{MessagePack{}, "ff", int64(-1), true},
		{MessagePack{}, "e0", int64(-32), true},
		{MessagePack{}, "d0df", int64(-33), true},
		{MessagePack{}, "d080", int64(-128), true},
		{MessagePack{}, "d1ff7f", int64(-129), true},
		{MessagePack{}, "d2ffff7fff", int64(-32769), true},
		{MessagePack{}, "d3ffffffff7fffffff", int64(-1)<<31 - 1, true},
		{MessagePack{}, "d001", int64(1), false},
		{MessagePack{}, "d300000000000000ff", int64(255), false},
		{MessagePack{}, "cb3ff8000000000000", 1.5, true},
		{MessagePack{}, "ca3fc00000", float32(1.5), true},
		{MessagePack{}, "a0", "", true},
		{MessagePack{}, "a161", "a", true},
		{MessagePack{}, "d903616263", "abc", false},
		{MessagePack{}, "da0003616263", "abc", false},
		{MessagePack{}, "db00000003616263", "abc", false},
		{MessagePack{}, "c403010203", []byte{1, 2, 3}, true},
		{MessagePack{}, "90", []any{}, true},
		{MessagePack{}, "9301a161c0", []any{int64(1), "a", nil}, true},
		{MessagePack{}, "80", map[string]any{}, true},
		{MessagePack{}, "81a16101", map[string]any{"a": int64(1)}, true},
		{MessagePack{}, "d6ff00000001", time.Unix(1, 0).UTC(), true},
		{MessagePack{}, "d7ff0000000400000001", time.Unix(1, 1).UTC(), true},
		{MessagePack{}, "c70cff00000001ffffffffffffffff", time.Unix(-1, 1).UTC(), true},

		{CBOR{}, "00", int64(0), true},
		{CBOR{}, "17", int64(23), true},
		{CBOR{}, "1818", int64(24), true},
		{CBOR{}, "1903e8", int64(1000), true},
		{CBOR{}, "1a000f4240", int64(1000000), true},
		{CBOR{}, "1b000000e8d4a51000", int64(1000000000000), true},
		{CBOR{}, "1bffffffffffffffff", uint64(math.MaxUint64), true},
		{CBOR{}, "20", int64(-1), true},
		{CBOR{}, "3863", int64(-100), true},
		{CBOR{}, "3903e7", int64(-1000), true},
		{CBOR{}, "3b7fffffffffffffff", int64(math.MinInt64), true},
		{CBOR{}, "f90000", 0.0, false},
		{CBOR{}, "f93c00", 1.0, false},
		{CBOR{}, "f93e00", 1.5, false},
		{CBOR{}, "f97bff", 65504.0, false},
		{CBOR{}, "f90001", 5.960464477539063e-8, false},
		{CBOR{}, "f90400", 0.00006103515625, false},
		{CBOR{}, "f9c400", -4.0, false},
		{CBOR{}, "f97c00", inf, false},
		{CBOR{}, "f97e00", nan, false},
		{CBOR{}, "f9fc00", -inf, false},
		{CBOR{}, "fa47c35000", float32(100000), true},
		{CBOR{}, "fb3ff199999999999a", 1.1, true},
		{CBOR{}, "f4", false, true},
		{CBOR{}, "f5", true, true},
		{CBOR{}, "f6", nil, true},
		{CBOR{}, "f7", nil, false},
		{CBOR{}, "c074323031332d30332d32315432303a30343a30305a", time.Date(2013, 3, 21, 20, 4, 0, 0, time.UTC), true},
		{CBOR{}, "c11a514b67b0", time.Unix(1363896240, 0).UTC(), false},
		{CBOR{}, "c1fb41d452d9ec200000", time.Unix(1363896240, 5e8).UTC(), false},
		{CBOR{}, "c120", time.Unix(-1, 0).UTC(), false},
		{CBOR{}, "40", []byte{}, true},
		{CBOR{}, "4401020304", []byte{1, 2, 3, 4}, true},
		{CBOR{}, "60", "", true},
		{CBOR{}, "6449455446", "IETF", true},
		{CBOR{}, "62c3bc", "\u00fc", true},
		{CBOR{}, "80", []any{}, true},
		{CBOR{}, "8301820203820405", []any{int64(1), []any{int64(2), int64(3)}, []any{int64(4), int64(5)}}, true},
		{CBOR{}, "a0", map[string]any{}, true},
		{CBOR{}, "a201020304", map[any]any{int64(1): int64(2), int64(3): int64(4)}, false},
		{CBOR{}, "5f42010243030405ff", []byte{1, 2, 3, 4, 5}, false},
		{CBOR{}, "7f657374726561646d696e67ff", "streaming", false},
		{CBOR{}, "9fff", []any{}, false},
		{CBOR{}, "9f018202039f0405ffff", []any{int64(1), []any{int64(2), int64(3)}, []any{int64(4), int64(5)}}, false},
		{CBOR{}, "bf61610161629f0203ffff", map[string]any{"a": int64(1), "b": []any{int64(2), int64(3)}}, false},
		{CBOR{}, "d9d9f7820102", []any{int64(1), int64(2)}, false},
	} {
		data, err := hex.DecodeString(tt.hex)
		if err != nil {
			t.Fatal(err)
		}
		if tt.back {
			if got, err := tt.c.Marshal(tt.v); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%T: %#v is %x, %v, want %s", tt.c, tt.v, got, err, tt.hex)
			}
		}
		want := tt.v
		if f, ok := want.(float32); ok {
			want = float64(f)
		}
		var got any
		err = tt.c.Unmarshal(data, &got)
		if f, ok := want.(float64); ok && math.IsNaN(f) && err == nil && math.IsNaN(got.(float64)) {
			continue
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%T: %s is %#v, %v, want %#v", tt.c, tt.hex, got, err, want)
		}
	}
}

func TestBinaryRefusesBadData(t *testing.T) {
	for _, tt := range []struct {
		c   Codec
		hex string
		v   any
	}{
		{MessagePack{}, "", new(any)},
		{MessagePack{}, "c1", new(any)},
		{MessagePack{}, "0101", new(any)}, // trailing
		{MessagePack{}, "cd01", new(any)},
		{MessagePack{}, "a261", new(any)},
		{MessagePack{}, "92c0", new(any)},
		{MessagePack{}, "81a161", new(any)},
		{MessagePack{}, "c6ffffffff00", new([]byte)},
		{MessagePack{}, "ddffffffff00", new([]string)},
		{MessagePack{}, "dfffffffff00", new(map[string]int)},
		{MessagePack{}, "d40500", new(any)},                              // extension type 5
		{MessagePack{}, "d5ff0000", new(any)},                            // timestamp of 2 bytes
		{MessagePack{}, "d7ffffffffff00000000", new(any)},                // a second has no such nanosecond
		{MessagePack{}, "8190c0", new(any)},                              // an array as key
		{MessagePack{}, "8180c0", new(map[any]any)},                      // a map as key
		{MessagePack{}, "81c40161c0", new(any)},                          // bytes as key
		{MessagePack{}, "c0", nil},                                       // no target
		{MessagePack{}, "c0", everything{}},                              // not a pointer
		{MessagePack{}, "c0", (*int)(nil)},                               // nil
		{MessagePack{}, "cd012c", new(int8)},                             // 300
		{MessagePack{}, "cd012c", new(uint8)},                            // 300
		{MessagePack{}, "ff", new(uint)},                                 // -1
		{MessagePack{}, "cfffffffffffffffff", new(int64)},                // 2^64-1
		{MessagePack{}, "cb47efffffffffffff", new(float32)},              // too large
		{MessagePack{}, "cb3ff8000000000000", new(int)},                  // 1.5
		{MessagePack{}, "a161", new(int)},                                // a text
		{MessagePack{}, "01", new(string)},                               // a number
		{MessagePack{}, "01", new(bool)},                                 //
		{MessagePack{}, "01", new([]int)},                                //
		{MessagePack{}, "01", new(map[string]int)},                       //
		{MessagePack{}, "01", new(everything)},                           //
		{MessagePack{}, "01", new(time.Time)},                            //
		{MessagePack{}, "01", new(netip.Addr)},                           //
		{MessagePack{}, "a161", new(fmt.Stringer)},                       // which type?
		{MessagePack{}, "c40101", new(netip.Addr)},                       // refused by its UnmarshalBinary
		{MessagePack{}, "c40108", new(wrapperspb.StringValue)},           // refused by protobuf
		{MessagePack{}, "9101", new(chan int)},                           //
		{MessagePack{}, "930102", new([2]int)},                           //
		{MessagePack{}, "93010203", new([2]int)},                         //
		{MessagePack{}, "c403010203", new([2]byte)},                      //
		{MessagePack{}, "81a8496e7438cc80" + "cc80", new(everything)},    // trailing
		{MessagePack{}, "82a4496e7438cd012ca4496e7438", new(everything)}, // truncated
		{CBOR{}, "", new(any)},
		{CBOR{}, "ff", new(any)},
		{CBOR{}, "1c", new(any)},
		{CBOR{}, "1f", new(any)},
		{CBOR{}, "df00", new(any)},
		{CBOR{}, "0000", new(any)},
		{CBOR{}, "1901", new(any)},
		{CBOR{}, "3bffffffffffffffff", new(any)},
		{CBOR{}, "5bffffffffffffffff00", new(any)},
		{CBOR{}, "9bffffffffffffffff00", new(any)},
		{CBOR{}, "9bffffffffffffffff00ff", new(any)},
		{CBOR{}, "bbffffffffffffffff00", new(any)},
		{CBOR{}, "9b000000007fffffff00", new([]int)},
		{CBOR{}, "61ff", new(any)},                   // not UTF-8
		{CBOR{}, "7f61c361bcff", new(any)},           // a character in two parts
		{CBOR{}, "5f6161ff", new(any)},               // a text among bytes
		{CBOR{}, "5f5f4101ffff", new(any)},           // parts in parts
		{CBOR{}, "5f4101", new(any)},                 // no end
		{CBOR{}, "9f01", new(any)},                   // no end
		{CBOR{}, "bf01ff", new(any)},                 // a key without a value
		{CBOR{}, "bf01ff", new(everything)},          // the same
		{CBOR{}, "81ff", new(any)},                   // break in an array of one
		{CBOR{}, "c249010000000000000000", new(any)}, // a big number
		{CBOR{}, "c06161", new(any)},                 // not a time
		{CBOR{}, "c101", new(int)},                   // a time
		{CBOR{}, "c1f97e00", new(any)},               // not a number
		{CBOR{}, "c11bffffffffffffffff", new(any)},
		{CBOR{}, "c1c101", new(any)},
		{CBOR{}, "c1", new(any)},
		{CBOR{}, "d9d9f7d9d9f701", new(any)},
		{CBOR{}, "d9d9f7", new(any)},
		{CBOR{}, "f8ff", new(any)},
		{CBOR{}, "e0", new(any)},
	} {
		data, err := hex.DecodeString(tt.hex)
		if err != nil {
			t.Fatal(tt.hex, err)
		}
		if err := tt.c.Unmarshal(data, tt.v); err == nil {
			t.Errorf("%T: %s was accepted as %#v", tt.c, tt.hex, tt.v)
		} else if !strings.HasPrefix(err.Error(), "codec: ") {
			t.Errorf("%T: error %q", tt.c, err)
		}
	}
}

type circle struct{ Next *circle }

type nest []nest

type selfPointer *selfPointer

func TestBinaryRefusesBadValues(t *testing.T) {
	eachBinary(t, func(t *testing.T, c Named) {
		round := &circle{}
		round.Next = round
		deep := any(nil)
		for range 1001 {
			deep = []any{deep}
		}
		var p selfPointer
		p = &p
		for name, v := range map[string]any{
			"channel": make(chan int), "function": func() {}, "complex": 1i, "field": struct{ F func() }{}, "element": []any{make(chan int)},
			"circle": round, "deep": deep, "pointer": p, "key": map[any]int{[1]chan int{}: 1}, "map": map[string]any{"x": func() {}},
			"year": map[string]time.Time{"x": time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
		} {
			if name == "year" && c.Name() == "msgpack" {
				continue
			}
			dst := []byte("before")
			out, err := AppendValue(dst, c, v)
			if err == nil || string(out) != "before" {
				t.Errorf("%s: %q, %v", name, out, err)
			}
		}
		if err := c.Unmarshal([]byte{1}, new(selfPointer)); err == nil {
			t.Error("decoded into a pointer to itself")
		}
		deep = deep.([]any)[0]
		data, err := c.Marshal(deep)
		if err != nil {
			t.Fatalf("1000 levels: %v", err)
		}
		var back any
		if err := c.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, deep) {
			t.Errorf("1000 levels: %v", err)
		}
	})
}

// Data that nests, or announces, more than it is worth costs neither stack nor
// memory.
func TestBinaryBombs(t *testing.T) {
	const size = 32 << 20
	for name, tt := range map[string]struct {
		c    Codec
		data []byte
		v    any
	}{
		"nested arrays, MessagePack":  {MessagePack{}, bytes.Repeat([]byte{0x91}, size), new(any)},
		"nested maps, MessagePack":    {MessagePack{}, bytes.Repeat([]byte{0x81}, size), new(any)},
		"typed, MessagePack":          {MessagePack{}, bytes.Repeat([]byte{0x91}, size), new(nest)},
		"skipped, MessagePack":        {MessagePack{}, append([]byte{0x81, 0xa1, 'q'}, bytes.Repeat([]byte{0x91}, size)...), new(everything)},
		"nested arrays, CBOR":         {CBOR{}, bytes.Repeat([]byte{0x81}, size), new(any)},
		"nested open arrays, CBOR":    {CBOR{}, bytes.Repeat([]byte{0x9f}, size), new(any)},
		"nested tags, CBOR":           {CBOR{}, bytes.Repeat([]byte{0xc1}, size), new(any)},
		"skipped, CBOR":               {CBOR{}, append([]byte{0xa1, 0x61, 'q'}, bytes.Repeat([]byte{0x81}, size)...), new(everything)},
		"long array, MessagePack":     {MessagePack{}, append([]byte{0xdd, 0x01, 0xff, 0xff, 0xff, 0xc1}, make([]byte, size)...), new([][1 << 10]int)},
		"long map, CBOR":              {CBOR{}, append([]byte{0xba, 0x01, 0xff, 0xff, 0xff, 0xff}, make([]byte, size)...), new(map[string]int)},
		"long array of nothing, CBOR": {CBOR{}, []byte{0x9a, 0xff, 0xff, 0xff, 0xff}, new([]struct{})},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := tt.c.Unmarshal(tt.data, tt.v)
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 2<<20 {
			t.Errorf("%s: %d bytes allocated", name, got)
		}
	}
}

func TestBinaryFieldsOfOneName(t *testing.T) {
	type A struct{ X, Y, Z int }
	type B struct {
		X int
		Y int `json:"Y"`
	}
	type both struct {
		A
		B
		Z int
	}
	eachBinary(t, func(t *testing.T, c Named) {
		data, err := c.Marshal(both{A{1, 2, 3}, B{4, 5}, 6})
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]int
		if err := c.Unmarshal(data, &got); err != nil || !reflect.DeepEqual(got, map[string]int{"Y": 5, "Z": 6}) {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestBinaryDoesNotAliasInput(t *testing.T) {
	type target struct {
		Text  string
		Bytes []byte
		Raw   any
		Name  map[string]string
		URL   url.URL
	}
	eachBinary(t, func(t *testing.T, c Named) {
		u, _ := url.Parse("http://host/path")
		in := target{"text", []byte("bytes"), []any{[]byte("more"), "text"}, map[string]string{"key": "value"}, *u}
		data, err := c.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var out target
		if err := c.Unmarshal(data, &out); err != nil {
			t.Fatal(err)
		}
		for i := range data {
			data[i] = 'x'
		}
		if !reflect.DeepEqual(in, out) {
			t.Errorf("%+v changed with the data", out)
		}
	})
}

// Fields that are missing keep their value; what is there replaces it.
func TestBinaryIntoUsedTarget(t *testing.T) {
	type target struct {
		Kept  int
		List  []int
		Map   map[string]int
		Array [2]int
		P     *int
	}
	eachBinary(t, func(t *testing.T, c Named) {
		data, err := c.Marshal(map[string]any{"List": []int{1}, "Map": map[string]int{"b": 2}, "Array": []int{5}, "P": nil, "Unknown": []any{map[string]any{"x": 1}}})
		if err != nil {
			t.Fatal(err)
		}
		list, m := []int{7, 8, 9}, map[string]int{"a": 1}
		got := target{3, list, m, [2]int{1, 2}, new(int)}
		if err := c.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		if want := (target{3, []int{1}, map[string]int{"b": 2}, [2]int{5, 0}, nil}); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if list[0] != 7 || m["a"] != 1 {
			t.Error("the former slice or map was changed")
		}
	})
}

func TestRaw(t *testing.T) {
	when := time.Unix(5, 6).UTC()
	want, _ := when.MarshalBinary()
	data, err := AppendValue([]byte("x"), Raw{}, when)
	if err != nil || string(data) != "x"+string(want) {
		t.Fatalf("%x, %v", data, err)
	}
	var got time.Time
	if err := Decode(Raw{}, data[1:], &got); err != nil || !got.Equal(when) {
		t.Errorf("%v, %v", got, err)
	}
	message := wrapperspb.String("text")
	inProto, _ := proto.Marshal(message)
	if data, err := (Raw{}).Marshal(message); err != nil || !bytes.Equal(data, inProto) {
		t.Errorf("proto: %x, %v", data, err)
	}
	back := &wrapperspb.StringValue{}
	if err := (Raw{}).Unmarshal(inProto, back); err != nil || back.Value != "text" {
		t.Errorf("proto: %v, %v", back, err)
	}
	u, _ := url.Parse("http://host/") // has no AppendBinary
	if data, err := (Raw{}).Marshal(u); err != nil || string(data) != "http://host/" {
		t.Errorf("URL: %s, %v", data, err)
	}
	if _, err := (Raw{}).Marshal(5); !errors.Is(err, ErrNotBinary) || !strings.Contains(err.Error(), "int") {
		t.Errorf("5: %v", err)
	}
	if err := (Raw{}).Unmarshal(nil, new(int)); !errors.Is(err, ErrNotBinary) {
		t.Errorf("into an int: %v", err)
	}
	if err := (Raw{}).Unmarshal([]byte{99}, &got); err == nil {
		t.Error("a malformed time was accepted")
	}
	// The default stays what JSON makes of it.
	if data, err := AppendValue(nil, JSONCodec{}, when); err != nil || data[0] != '"' {
		t.Errorf("JSON: %s, %v", data, err)
	}
}

func fuzzBinary(f *testing.F, c Named) {
	for _, v := range []any{nil, example(), 5, -5, "text", []byte("bytes"), []any{1, 2.5}, map[string]any{"a": nil}, time.Unix(1, 1)} {
		data, err := c.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		original := bytes.Clone(data)
		c.Unmarshal(data, &everything{}) //nolint:errcheck // must not panic
		c.Unmarshal(data, new(map[any]any))
		var v any
		err := c.Unmarshal(data, &v)
		if !bytes.Equal(data, original) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			return
		}
		again, err := c.Marshal(v)
		if err != nil {
			if strings.Contains(err.Error(), "year") {
				return
			}
			t.Fatalf("%#v cannot be encoded: %v", v, err)
		}
		var w any
		if err := c.Unmarshal(again, &w); err != nil {
			t.Fatalf("%#v became %x: %v", v, again, err)
		}
		if fmt.Sprint(v) != fmt.Sprint(w) { // NaN is not equal to itself
			t.Fatalf("%#v became %#v", v, w)
		}
	})
}

func FuzzMessagePack(f *testing.F) { fuzzBinary(f, MessagePack{}) }

func FuzzCBOR(f *testing.F) { fuzzBinary(f, CBOR{}) }

func BenchmarkBinary(b *testing.B) {
	type item struct {
		ID    int
		Name  string
		Tags  []string
		Price float64
	}
	type order struct {
		Customer string
		Items    []item
		At       time.Time
	}
	v := &order{Customer: "customer", At: time.Unix(1e9, 0)}
	for i := range 10 {
		v.Items = append(v.Items, item{i, "an item of the order", []string{"red", "green"}, 12.5})
	}
	for _, c := range []Named{JSONCodec{}, MessagePack{}, CBOR{}} {
		data, err := c.Marshal(v)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("append/"+c.Name(), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			dst := make([]byte, 0, 4096)
			for b.Loop() {
				if _, err := AppendValue(dst, c, v); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("decode/"+c.Name(), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				var out order
				if err := Decode(c, data, &out); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
