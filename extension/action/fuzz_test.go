package action

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/core"
)

// FuzzServer gives a server any bytes, in pieces of any size, and compares what it answers with what a simple reader makes of them.
func FuzzServer(f *testing.F) {
	good := append(framed(packet(1, 7, "hello")), framed(packet(2, -1, ""))...)
	f.Add(good, uint8(1))
	f.Add(good, uint8(200))
	f.Add(append(good, 0, 0, 0, 7), uint8(5))
	f.Add(append(good, framed(packet(3, 1, "nobody"))...), uint8(3))
	f.Add([]byte{0x7f, 0xff, 0xff, 0xff, 0, 1}, uint8(2))
	n := New(Limits{Frame: 4096})
	size := func(ctx *Context) (any, error) { return len(ctx.Packet().Body), nil }
	n.Router().Route(1, size).Route(2, size)
	g := core.NewGroup(n.cfg.core(), (*app)(n))
	f.Cleanup(func() { g.Stop(context.Background(), nil) })
	sentinel := framed(packet(1, 99, "end"))
	f.Fuzz(func(t *testing.T, data []byte, piece uint8) {
		var want []byte
		rest := data
		for len(rest) >= 4 {
			size := binary.BigEndian.Uint32(rest)
			if size < 8 || size > 4096 || int(size) > len(rest) {
				break
			}
			if action := int16(binary.BigEndian.Uint16(rest[4:])); action == 1 || action == 2 {
				b, reply, err := n.cfg.encode(action, int16(binary.BigEndian.Uint16(rest[6:])), size-8)
				must(t, err)
				want = append(want, reply...)
				b.Free()
			}
			rest = rest[size:]
		}
		ours, theirs := net.Pipe()
		if _, err := g.Adopt(theirs); err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		whole := len(rest) == 0
		if whole {
			want = append(want, framed(packet(1, 99, "3"))...)
			data = append(bytes.Clone(data), sentinel...)
		}
		must(t, ours.SetDeadline(time.Now().Add(patience)))
		got := make(chan []byte, 1)
		go func() {
			b := make([]byte, len(want))
			k, _ := io.ReadFull(ours, b)
			got <- b[:k]
		}()
		for k := max(int(piece), 1); len(data) > 0; data = data[min(k, len(data)):] {
			if _, err := ours.Write(data[:min(k, len(data))]); err != nil {
				break // the server has seen that it is no frame
			}
		}
		if !whole {
			ours.Close() // what was read before the fault may be answered or not
		}
		if b := recv(t, got, "replies"); whole && !bytes.Equal(b, want) || !bytes.HasPrefix(want, b) {
			t.Fatalf("got %x, not %x", b, want)
		}
	})
}

// FuzzClient gives a client any bytes: it neither panics nor stays.
func FuzzClient(f *testing.F) {
	f.Add(framed(packet(1, 1, "{}")), uint8(3))
	f.Add([]byte{0, 0, 0, 1}, uint8(9))
	f.Fuzz(func(t *testing.T, data []byte, piece uint8) {
		ours, theirs := net.Pipe()
		c, err := newClient(newConfig([]Option{OnPush(func(_ *Client, p *Packet) {
			var v any
			p.Bind(&v) //nolint:errcheck // it may be anything
		})}), theirs, nil)
		must(t, err)
		called := make(chan error, 1)
		go func() { called <- c.Call(within(t), 1, nil, nil) }()
		go io.Copy(io.Discard, ours) //nolint:errcheck // it ends with the pipe
		must(t, ours.SetWriteDeadline(time.Now().Add(patience)))
		for k := max(int(piece), 1); len(data) > 0; data = data[min(k, len(data)):] {
			if _, err := ours.Write(data[:min(k, len(data))]); err != nil {
				break
			}
		}
		ours.Close()
		recv(t, called, "end of the call")
		recv(t, c.Done(), "end of the client")
	})
}
