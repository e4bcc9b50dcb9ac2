package msgpack

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/internal/codertest"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone) // bad frames are logged; here they are the point
	leak.Main(m)
}

// The frames were captured from the original implementation.
func TestGoldenVectors(t *testing.T) {
	for _, tt := range []struct {
		hex    string
		values map[any]any
	}{
		{"170000000001000202000000000000002f6582a4426f6479c40568656c6c6fa656616c756573c0", nil},
		{"1b0000000001000202000000000000002f6582a4426f6479c40568656c6c6fa656616c75657381a16ba176", map[any]any{"k": "v"}},
	} {
		want, err := hex.DecodeString(tt.hex)
		if err != nil {
			t.Fatal(err)
		}
		m := &arpc.Message{Buffer: codertest.Request("/e", []byte("hello"))}
		for k, v := range tt.values {
			m.Set(k, v)
		}
		original := bytes.Clone(m.Buffer)
		if got := New().Encode(nil, m); !bytes.Equal(got.Buffer, want) {
			t.Errorf("encoded\n%x, want\n%x", got.Buffer, want)
		}
		if !bytes.Equal(m.Buffer, original) {
			t.Error("Encode modified the message")
		}
		wire := bytes.Clone(want)
		back := New().Decode(nil, &arpc.Message{Buffer: want})
		if back == nil || !bytes.Equal(back.Buffer, original) || !reflect.DeepEqual(back.Values(), tt.values) {
			t.Fatalf("decoded %v", back)
		}
		if !bytes.Equal(want, wire) {
			t.Error("Decode modified the message")
		}
		clear(want)
		if !reflect.DeepEqual(back.Values(), tt.values) {
			t.Error("the values alias the frame")
		}
	}
}

func TestEncodeFails(t *testing.T) {
	m := &arpc.Message{Buffer: codertest.Request("/e", nil)}
	m.Set("k", make(chan int))
	if New().Encode(nil, m) != nil {
		t.Error("sent a channel")
	}
	m = &arpc.Message{Buffer: codertest.Request("/e", nil)}
	m.Buffer[7] = 100
	if New().Encode(nil, m) != nil {
		t.Error("sent a malformed header")
	}
}

func TestDecodeRefusesBadFrames(t *testing.T) {
	_, addr := codertest.Serve(t, New())
	for _, payload := range []string{
		"", "hello", "\x82", "\xc1", "\x93\x01\x02\x03", "\x81\xa4Body\x01", "\x81\xa6Values\x01", "\x81\xa6Values\x81\x90\x01", "\x80\x80",
		"\x82\xa4Body\xc6\xff\xff\xff\xff", "\x82\xa4Body\xc4\x05hello\xa6Values\xdf\xff\xff\xff\xff",
	} {
		frame := codertest.Request("/echo", []byte(payload))
		if m := New().Decode(nil, &arpc.Message{Buffer: frame}); m != nil {
			t.Errorf("%q: passed on as %x", payload, m.Buffer)
		}
		codertest.Closes(t, addr, frame)
	}
	long := codertest.Request("/echo", nil)
	long[7] = 100
	if New().Decode(nil, &arpc.Message{Buffer: long}) != nil {
		t.Error("a malformed header was passed on")
	}
}

// The server gets the values, calls the client back with them, and answers with
// them.
func TestConnection(t *testing.T) {
	values := map[any]any{"text": "v", int64(1): []any{true, 2.5}, "map": map[string]any{"k": []byte("v")}}
	codertest.BothWays(t, New(), New(), values)

	server, addr := codertest.Serve(t, New())
	seen := make(chan map[any]any, 1)
	server.Handler.Handle("/seen", func(ctx *arpc.Context) {
		seen <- ctx.Values()
		ctx.Write(nil)
	})
	client := codertest.Connect(t, addr, codertest.Handler(New()))
	if err := client.Call("/seen", nil, nil, codertest.Patience, values); err != nil {
		t.Fatal(err)
	}
	if got := <-seen; !reflect.DeepEqual(got, values) {
		t.Errorf("seen %#v", got)
	}
	answers := make(chan map[any]any, 1)
	if err := client.CallAsync("/echo", "x", func(ctx *arpc.Context) { answers <- ctx.Values() }, codertest.Patience, values); err != nil {
		t.Fatal(err)
	}
	if got := <-answers; !reflect.DeepEqual(got, values) {
		t.Errorf("answered %#v", got)
	}
}

func FuzzDecode(f *testing.F) {
	m := &arpc.Message{Buffer: codertest.Request("/e", []byte("hello"))}
	m.Set("k", 1)
	f.Add(New().Encode(nil, m).Buffer[18:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		frame := codertest.Request("/e", payload)
		original := bytes.Clone(frame)
		m := New().Decode(nil, &arpc.Message{Buffer: frame})
		if !bytes.Equal(frame, original) {
			t.Fatal("changed")
		}
		if m != nil && (m.BodyLen() != len(m.Buffer)-arpc.HeadLen || m.Method() != "/e") {
			t.Fatalf("decoded to %x", m.Buffer)
		}
	})
}

func BenchmarkMsgPack(b *testing.B) {
	c := New()
	m := &arpc.Message{Buffer: codertest.Request("/e", make([]byte, 1000))}
	m.Set("key", "value")
	sent := c.Encode(nil, m)
	b.Run("Encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Encode(nil, m)
		}
	})
	b.Run("Decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Decode(nil, sent)
		}
	})
}
