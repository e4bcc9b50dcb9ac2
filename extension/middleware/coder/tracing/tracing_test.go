package tracing

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"

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

var span = SpanContext{TraceID: 0x1122334455667788, SpanID: 0x99, Sampled: true, Baggage: map[string]string{"b": "c"}}

// The frame was captured from the original implementation.
func TestGoldenVector(t *testing.T) {
	want, err := hex.DecodeString("350000000101000202000000000000002f6568656c6c6f617270632d6f70656e74726163696e67" +
		"098877665544332211119900000000000000180122060a0162120163002e")
	if err != nil {
		t.Fatal(err)
	}
	m := &arpc.Message{Buffer: codertest.Request("/e", []byte("hello"))}
	for k, v := range Values(span) {
		m.Set(k, v)
	}
	if got := New().Encode(nil, m); !bytes.Equal(got.Buffer, want) {
		t.Errorf("encoded\n%x, want\n%x", got.Buffer, want)
	}
	back := New().Decode(nil, &arpc.Message{Buffer: want})
	if back == nil || !bytes.Equal(back.Buffer, m.Buffer) {
		t.Fatalf("decoded %v", back)
	}
	if sc, ok := From(back); !ok || !reflect.DeepEqual(sc, span) {
		t.Errorf("got %+v, %v", sc, ok)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, sc := range []SpanContext{{}, span, {TraceID: 1}, {Baggage: map[string]string{"": "", "a": "b", "c": "d"}}} {
		b, err := encode(sc)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(b)
		if err != nil || !reflect.DeepEqual(got, sc) {
			t.Errorf("%+v became %+v, %v", sc, got, err)
		}
	}
	if _, err := encode("text"); err == nil {
		t.Error("encoded a text")
	}
	if _, ok := From(&arpc.Message{}); ok {
		t.Error("found what is not there")
	}
	// Fields that are not known are skipped.
	if got, err := decode([]byte{0x28, 1, 0x09, 8, 7, 6, 5, 4, 3, 2, 1}); err != nil || got.(SpanContext).TraceID != 0x0102030405060708 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestDecodeRefusesBadSpans(t *testing.T) {
	_, addr := codertest.Serve(t, New())
	for _, span := range []string{"\x09", "\x09\x01", "\x18", "\x18\xff", "\x22\x05", "\x22\x02\x0a\x05", "\x22\x01\x0a", "\x00\x00", "\x0f\x00", "\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"} {
		if v, err := decode([]byte(span)); err == nil {
			t.Errorf("%x: %+v", span, v)
		}
		frame := append(append(codertest.Request("/echo", nil), Key...), span...)
		frame = codertest.SetLen(append(frame, 0, byte(len(Key)+len(span)+2)))
		frame[4] = 1
		codertest.Closes(t, addr, frame)
	}
}

// The server gets the span, calls the client back with it, and answers with it.
func TestConnection(t *testing.T) {
	codertest.BothWays(t, New(), New(), Values(span))
	codertest.OneSided(t, New())

	server, addr := codertest.Serve(t, New(), gzip.New(0))
	h := codertest.Handler(New(), gzip.New(0))
	seen := make(chan SpanContext, 1)
	h.Handle("/seen", func(ctx *arpc.Context) {
		sc, _ := From(ctx)
		seen <- sc
		ctx.Write(nil)
	})
	server.Handler.Handle("/trace", func(ctx *arpc.Context) {
		sc, ok := From(ctx)
		if !ok {
			ctx.Error("no span")
			return
		}
		sc.SpanID++
		if err := ctx.Client.CallWith(ctx, "/seen", nil, nil, Values(sc)); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(nil)
	}, true)
	client := codertest.Connect(t, addr, h)
	if err := client.Call("/trace", nil, nil, codertest.Patience, Values(span)); err != nil {
		t.Fatal(err)
	}
	want := span
	want.SpanID++
	if got := <-seen; !reflect.DeepEqual(got, want) {
		t.Errorf("seen %+v", got)
	}
	if err := client.Call("/trace", nil, nil, codertest.Patience, map[any]any{Key: "no span"}); err == nil {
		t.Error("a value that is no span did not fail the call")
	}
}

func FuzzDecode(f *testing.F) {
	b, err := encode(span)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := decode(data)
		if err != nil {
			return
		}
		again, err := encode(v)
		if err != nil {
			t.Fatal(err)
		}
		if w, err := decode(again); err != nil || !reflect.DeepEqual(v, w) {
			t.Fatalf("%+v became %+v, %v", v, w, err)
		}
	})
}

func BenchmarkTracing(b *testing.B) {
	a := New()
	m := &arpc.Message{Buffer: codertest.Request("/e", make([]byte, 1000))}
	m.Set(Key, span)
	sent := a.Encode(nil, m)
	b.Run("Encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a.Encode(nil, m)
		}
	})
	b.Run("Decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a.Decode(nil, sent)
		}
	})
}
