package arpc

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/arpc-go/arpc/codec"
)

// FuzzHello decodes any bytes as a HELLO; what is one means the same when it is encoded again.
func FuzzHello(f *testing.F) {
	for _, h := range []hello{
		{version: 2, features: ourFeatures, maxBody: 1 << 20, metadata: 1 << 10, window: 4 << 10, connWindow: 4 << 10, streams: 1, names: "json,"},
		{version: 255, features: 1<<32 - 1, maxBody: 1<<32 - 1, metadata: 1<<32 - 1, window: 1<<31 - 1, connWindow: 1<<31 - 1, streams: 1<<32 - 1},
		{version: 2, maxBody: 4 << 10, names: "json,protobuf,x,"},
	} {
		f.Add(h.append(nil))
	}
	longer := (&hello{version: 3, maxBody: 4 << 10}).append(nil)
	longer[5] += 4 // a later version's fixed part
	f.Add(append(longer, "more"...))
	f.Add([]byte("arpc"))
	f.Add(append((&hello{version: 2, maxBody: 4 << 10}).append(nil), 3, 'a', ',', 'b'))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		if !isHello(b) {
			return
		}
		h, err := parseHello(b)
		if !bytes.Equal(b, before) {
			t.Fatal("the bytes were changed")
		}
		if err != nil {
			if CodeOf(err) != CodeInvalidArgument {
				t.Fatalf("%v", err)
			}
			return
		}
		if h.version < 2 || h.features&featStreams != 0 && (h.window < minStreamWindow || h.connWindow < h.window) {
			t.Fatalf("%+v is accepted", h)
		}
		again := h.append(nil)
		got, err := parseHello(again)
		if err != nil || got != h {
			t.Fatalf("%+v became %+v, %v", h, got, err)
		}
		frame := helloFrame(CmdPing, h)
		if m := (&Message{Buffer: frame}); m.Cmd() != CmdPing || m.BodyLen() != len(again) || !bytes.Equal(frame[HeadLen:], again) {
			t.Fatalf("%x", frame)
		}
	})
}

// FuzzMetadata reads what stands between method and payload of any frame, and makes it again.
func FuzzMetadata(f *testing.F) {
	block, _ := appendMetadata(nil, Metadata{"k": "v"})
	f.Add(byte(flagMetadata|flagDeadline), "/m", append(append([]byte{1, 2, 3, 4, byte(len(block)), 0}, block...), "payload"...), uint16(100))
	f.Add(byte(flagMetadata), "/m", []byte{0, 0}, uint16(0))
	f.Add(byte(flagMetadata), "/m", []byte{5, 0, 1, 'k', 200, 200, 1}, uint16(100))
	f.Add(byte(flagMetadata), "/m", []byte{8, 0, 1, 'k', 0, 0, 1, 'k', 0, 0}, uint16(100))
	f.Add(byte(flagDeadline), "/m", []byte{1, 2, 3}, uint16(100))
	f.Add(byte(0xff), "", []byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, flag byte, method string, body []byte, limit uint16) {
		// As a block by itself.
		md := decodeMetadata(body)
		if validMetadata(body) {
			again, err := appendMetadata(nil, md)
			if len(body) > 65535 {
				return
			}
			if err != nil || len(again) > len(body) || !validMetadata(again) || !maps.Equal(decodeMetadata(again), md) {
				t.Fatalf("%q became %q, %v", md, decodeMetadata(again), err)
			}
		}
		// As the body of a frame.
		if method == "" || len(method) > MaxMethodLen {
			return
		}
		frame := frameOf(CmdRequest, flag, 1, method, string(body))
		if checkExtension(frame, int(limit)) != nil {
			return
		}
		m := &Message{Buffer: frame}
		n := extensionLen(frame)
		ms, deadline := timeLeft(frame)
		in := metadataIn(frame)
		want := 0
		if deadline {
			want += 4
		}
		if flag&flagMetadata != 0 {
			want += 2 + len(in)
		}
		if n != want || n > len(body) || len(in) > int(limit) || !validMetadata(in) || !bytes.Equal(m.Data(), body[n:]) {
			t.Fatalf("%d bytes of %x", n, frame)
		}
		again := make([]byte, n)
		if rest := putExtension(again, flag, ms, in); len(rest) > 0 || !bytes.Equal(again, body[:n]) {
			t.Fatalf("%x became %x", body[:n], again)
		}
	})
}

// FuzzError decodes any bytes as an error, and errors that were made of bytes.
func FuzzError(f *testing.F) {
	f.Add(appendError(nil, &Error{Code: CodeAborted, Message: "no", Details: []Detail{{Name: "d", Value: 1}}}, codec.DefaultCodec), byte(5), "text", "name", []byte("value"), byte(2))
	f.Add([]byte{1, 0, 0xff, 0xff, 0xff, 0xff}, byte(0), "text", "", []byte{}, byte(0))
	f.Add([]byte{1, 1, 0, 0, 0, 0, 1, 'n', 0xff, 0xff, 0xff, 0xff}, byte(255), "", string(make([]byte, 256)), []byte{}, byte(1))
	f.Add([]byte{0, 0, 0, 0, 0, 0}, byte(16), string(make([]byte, maxErrorText+1)), "n", []byte{}, byte(255))
	f.Fuzz(func(t *testing.T, b []byte, code byte, text, name string, value []byte, details byte) {
		got := decodeError(b, codec.DefaultCodec)
		if got == nil || got.Code == 0 || !got.Remote {
			t.Fatalf("%#v", got)
		}
		for _, d := range got.Details {
			var raw []byte
			if err := d.Bind(&raw); err != nil || !bytes.Equal(raw, d.Value.([]byte)) {
				t.Fatalf("%q, %v", raw, err)
			}
		}
		e := &Error{Code: Code(code), Message: text}
		wantCode := e.Code
		if code == 0 { // an Error that was given none
			wantCode = CodeUnknown
		}
		for range details {
			e.Details = append(e.Details, Detail{Name: name, Value: value})
		}
		for _, err := range []error{e, fmt.Errorf("wrapped: %w", e)} {
			back := decodeError(appendError([]byte("x"), err, codec.DefaultCodec)[1:], codec.DefaultCodec)
			want := err.Error()
			want = want[:min(len(want), maxErrorText)]
			if back.Code != wantCode || back.Message != want || !errors.Is(back, wantCode) {
				t.Fatalf("%#v became %#v", e, back)
			}
			if len(name) > 255 {
				details = 0
			}
			if len(back.Details) != int(details) {
				t.Fatalf("%d details became %d", details, len(back.Details))
			}
			for _, d := range back.Details {
				if d.Name != name || !bytes.Equal(d.Value.([]byte), value) {
					t.Fatalf("%q: %q became %q: %q", name, value, d.Name, d.Value)
				}
			}
		}
	})
}
