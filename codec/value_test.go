package codec

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// plain is a Codec without AppendMarshal.
type plain struct{ StdJSON }

type point struct{ X, Y int }

func TestAppendValue(t *testing.T) {
	var (
		raw      = []byte("raw")
		str      = "str"
		err      = errors.New("failed")
		nilBytes *[]byte
		nilStr   *string
		nilErr   *error
		noErr    error
		nilPoint *point
	)
	tests := []struct {
		name string
		v    any
		want string
	}{
		{"nil", nil, ""},
		{"bytes", raw, "raw"},
		{"nil bytes", []byte(nil), ""},
		{"pointer to bytes", &raw, "raw"},
		{"nil pointer to bytes", nilBytes, ""},
		{"string", str, "str"},
		{"pointer to string", &str, "str"},
		{"nil pointer to string", nilStr, ""},
		{"error", err, "failed"},
		{"pointer to error", &err, "failed"},
		{"nil pointer to error", nilErr, ""},
		{"pointer to nil error", &noErr, ""},
		{"struct", point{1, 2}, `{"X":1,"Y":2}`},
		{"pointer to struct", &point{1, 2}, `{"X":1,"Y":2}`},
		{"nil pointer to struct", nilPoint, "null"},
		{"number", 12, "12"},
		{"string in a slice", []string{"a"}, `["a"]`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, c := range []Codec{JSONCodec{}, StdJSON{}, plain{}, nil} {
				got, err := AppendValue([]byte(">"), c, tt.v)
				if err != nil || string(got) != ">"+tt.want {
					t.Errorf("AppendValue with %T = %q, %v, want %q", c, got, err, ">"+tt.want)
				}
			}
		})
	}
}

func TestAppendValueCopies(t *testing.T) {
	raw := []byte("raw")
	got, err := AppendValue(nil, nil, raw)
	if err != nil {
		t.Fatal(err)
	}
	raw[0] = 'X'
	if string(got) != "raw" {
		t.Fatalf("the payload follows the value: %q", got)
	}
}

func TestAppendValueFailure(t *testing.T) {
	for _, c := range []Codec{JSONCodec{}, StdJSON{}, plain{}, Protobuf{}} {
		got, err := AppendValue([]byte("kept"), c, make(chan int))
		if err == nil || string(got) != "kept" {
			t.Errorf("AppendValue with %T = %q, %v", c, got, err)
		}
	}
}

func TestDecode(t *testing.T) {
	data := []byte(`{"X":1,"Y":2}`)
	var (
		raw      []byte
		str      string
		p        point
		nilBytes *[]byte
		nilStr   *string
	)
	for _, v := range []any{nil, nilBytes, nilStr, &raw, &str, &p} {
		if err := Decode(nil, data, v); err != nil {
			t.Errorf("Decode into %T: %v", v, err)
		}
	}
	data[2] = 'Z'
	if string(raw) != `{"X":1,"Y":2}` || str != `{"X":1,"Y":2}` || p != (point{1, 2}) {
		t.Errorf("decoded %q, %q, %v", raw, str, p)
	}
}

func TestDecodeEmpty(t *testing.T) {
	raw, str := []byte("old"), "old"
	if err := Decode(JSONCodec{}, nil, &raw); err != nil || raw == nil || len(raw) != 0 {
		t.Errorf("bytes: %q, %v", raw, err)
	}
	if err := Decode(JSONCodec{}, nil, &str); err != nil || str != "" {
		t.Errorf("string: %q, %v", str, err)
	}
	for _, c := range []Codec{JSONCodec{}, StdJSON{}} {
		if err := Decode(c, nil, new(point)); err == nil {
			t.Errorf("%T decoded an empty payload", c)
		}
	}
}

// The previous result must survive the next Decode into the same variable.
func TestDecodeDoesNotReuse(t *testing.T) {
	var v []byte
	if err := Decode(nil, []byte("first"), &v); err != nil {
		t.Fatal(err)
	}
	first := v
	if err := Decode(nil, []byte("other"), &v); err != nil {
		t.Fatal(err)
	}
	if string(first) != "first" || string(v) != "other" {
		t.Fatalf("%q, %q", first, v)
	}
}

func TestSetCodec(t *testing.T) {
	defer func(old Codec) { DefaultCodec = old }(DefaultCodec)
	SetCodec(Protobuf{})
	if _, err := AppendValue(nil, nil, point{}); !errors.Is(err, ErrNotProto) {
		t.Fatalf("err = %v", err)
	}
	defer func() {
		if recover() == nil {
			t.Fatal("SetCodec accepted nil")
		}
	}()
	SetCodec(nil)
}

func TestProtobuf(t *testing.T) {
	want := durationpb.New(90e9)
	direct, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	data, err := AppendValue([]byte(">"), Protobuf{}, want)
	if err != nil || string(data) != ">"+string(direct) {
		t.Fatalf("AppendValue = %q, %v", data, err)
	}
	if alone, err := (Protobuf{}).Marshal(want); err != nil || !bytes.Equal(alone, direct) {
		t.Fatalf("Marshal = %q, %v", alone, err)
	}
	got := durationpb.New(5)
	if err := Decode(Protobuf{}, data[1:], got); err != nil || !proto.Equal(got, want) {
		t.Fatalf("Decode = %v, %v", got, err)
	}
	if err := Decode(Protobuf{}, nil, got); err != nil || !proto.Equal(got, &durationpb.Duration{}) {
		t.Fatalf("an empty payload is the zero message, got %v, %v", got, err)
	}
	if err := Decode(Protobuf{}, []byte{0xff}, got); err == nil {
		t.Fatal("a truncated message was accepted")
	}
}

func TestProtobufDoesNotAliasInput(t *testing.T) {
	data, err := proto.Marshal(wrapperspb.Bytes([]byte("payload")))
	if err != nil {
		t.Fatal(err)
	}
	got := new(wrapperspb.BytesValue)
	if err := Decode(Protobuf{}, data, got); err != nil {
		t.Fatal(err)
	}
	for i := range data {
		data[i] = 'X'
	}
	if string(got.Value) != "payload" {
		t.Fatalf("overwriting the input changed the message to %q", got.Value)
	}
}

func TestProtobufRefusesOthers(t *testing.T) {
	if _, err := (Protobuf{}).Marshal(point{}); !errors.Is(err, ErrNotProto) || !strings.Contains(err.Error(), "codec.point") {
		t.Errorf("Marshal: %v", err)
	}
	if err := (Protobuf{}).Unmarshal(nil, &point{}); !errors.Is(err, ErrNotProto) || !strings.Contains(err.Error(), "*codec.point") {
		t.Errorf("Unmarshal: %v", err)
	}
	// Raw kinds never reach the codec.
	var s string
	if err := Decode(Protobuf{}, []byte("text"), &s); err != nil || s != "text" {
		t.Errorf("Decode = %q, %v", s, err)
	}
}

func TestRawKindsDoNotAllocate(t *testing.T) {
	raw, str, failed := []byte("raw"), "str", errors.New("failed")
	var bytesValue, strValue, errValue any = raw, str, failed
	dst := make([]byte, 0, 64)
	for name, v := range map[string]any{"nil": nil, "bytes": bytesValue, "string": strValue, "error": errValue, "*bytes": &raw, "*string": &str, "*error": &failed} {
		if n := testing.AllocsPerRun(100, func() { _, _ = AppendValue(dst, nil, v) }); n != 0 {
			t.Errorf("AppendValue(%s) allocates %v times", name, n)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _ = Decode(nil, raw, nil) }); n != 0 {
		t.Errorf("Decode into nil allocates %v times", n)
	}
}

func BenchmarkAppendValue(b *testing.B) {
	raw, str := bytes.Repeat([]byte("x"), 128), strings.Repeat("x", 128)
	doc := &point{X: 12345, Y: -67890}
	message := durationpb.New(90e9)
	for _, bb := range []struct {
		name string
		c    Codec
		v    any
	}{
		{"nil", nil, nil},
		{"bytes", nil, raw},
		{"string", nil, str},
		{"json", JSONCodec{}, doc},
		{"stdjson", StdJSON{}, doc},
		{"protobuf", Protobuf{}, message},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			dst := make([]byte, 0, 256)
			for b.Loop() {
				if _, err := AppendValue(dst, bb.c, bb.v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	text := bytes.Repeat([]byte("x"), 128)
	doc := []byte(`{"X":12345,"Y":-67890}`)
	message, err := proto.Marshal(durationpb.New(90e9))
	if err != nil {
		b.Fatal(err)
	}
	var raw []byte
	var str string
	for _, bb := range []struct {
		name string
		c    Codec
		data []byte
		v    any
	}{
		{"nil", nil, text, nil},
		{"bytes", nil, text, &raw},
		{"string", nil, text, &str},
		{"json", JSONCodec{}, doc, new(point)},
		{"stdjson", StdJSON{}, doc, new(point)},
		{"protobuf", Protobuf{}, message, new(durationpb.Duration)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Decode(bb.c, bb.data, bb.v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
