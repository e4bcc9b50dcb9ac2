// Package codertest has what the tests of all coders need: ends of real
// connections.
package codertest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// Patience bounds every wait for something that must happen.
const Patience = 20 * time.Second

// Serve runs a server with the coders until the end of the test.
func Serve(t testing.TB, coders ...arpc.MessageCoder) (server *arpc.Server, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server = arpc.NewServer(Handler(coders...))
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return server, ln.Addr().String()
}

// Handler returns a Handler with the coders, and routes for Calls.
func Handler(coders ...arpc.MessageCoder) arpc.Handler {
	h := arpc.NewHandler()
	for _, c := range coders {
		h.UseCoder(c)
	}
	h.Handle("/echo", func(ctx *arpc.Context) {
		var text string
		if err := ctx.Bind(&text); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(text)
	})
	h.Handle("/back", func(ctx *arpc.Context) {
		var text, answer string
		err := ctx.Bind(&text)
		if err == nil {
			err = ctx.Client.CallWith(ctx, "/echo", text, &answer, ctx.Values())
		}
		if err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(answer)
	}, true)
	h.HandleStream("/stream", func(s *arpc.Stream) {
		for {
			var text string
			if err := s.Recv(&text); err != nil {
				s.CloseSend()
				return
			}
			if s.Send(text) != nil {
				return
			}
		}
	})
	return h
}

// Connect makes a client of a Handler that is stopped at the end of the test.
func Connect(t testing.TB, addr string, h arpc.Handler, opts ...arpc.ClientOption) *arpc.Client {
	t.Helper()
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.DialTimeout("tcp", addr, Patience) },
		append(opts, h)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Stop)
	return client
}

// Calls calls from both ends, small and large, and uses a stream.
func Calls(t testing.TB, client *arpc.Client, values ...map[any]any) {
	t.Helper()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, text := range []string{"", "small", strings.Repeat("large ", 50_000)} {
				for _, method := range []string{"/echo", "/back"} {
					var got string
					if err := client.Call(method, text, &got, Patience, values...); err != nil || got != text {
						t.Errorf("%s of %d bytes: %d bytes, %v", method, len(text), len(got), err)
					}
				}
			}
		})
	}
	wg.Wait()
	s := client.NewStream("/stream")
	for _, text := range []string{"small", strings.Repeat("large ", 5_000)} {
		var got string
		if err := errors.Join(s.Send(text), s.Recv(&got)); err != nil || got != text {
			t.Errorf("stream of %d bytes: %d bytes, %v", len(text), len(got), err)
		}
	}
	var end string
	if err := errors.Join(s.CloseSend(), s.Recv(&end)); !errors.Is(err, io.EOF) {
		t.Errorf("end of the stream: %v", err)
	}
}

// BothWays connects ends with the coders, of each version of the protocol, and
// makes Calls.
func BothWays(t *testing.T, server, client arpc.MessageCoder, values ...map[any]any) {
	t.Helper()
	_, addr := Serve(t, server)
	Calls(t, Connect(t, addr, Handler(client)), values...)
	Calls(t, Connect(t, addr, Handler(client), arpc.Protocol(1)), values...)
}

// OneSided makes Calls where only one end has the coder, which protocol version
// 2 then leaves out.
func OneSided(t *testing.T, coder arpc.MessageCoder) {
	t.Helper()
	_, with := Serve(t, coder)
	Calls(t, Connect(t, with, Handler()))
	_, without := Serve(t)
	Calls(t, Connect(t, without, Handler(coder)))
}

// Closes sends a frame to a server that must close the connection and say
// nothing.
func Closes(t testing.TB, addr string, frame []byte) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(Patience))
	if _, err := conn.Write(frame); err != nil {
		return // closed while we wrote
	}
	if n, err := conn.Read(make([]byte, 100)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a bad frame was met with %d bytes and %v", n, err)
	}
}

// Request returns the frame of a request.
func Request(method string, payload []byte) []byte {
	b := make([]byte, arpc.HeadLen, arpc.HeadLen+len(method)+len(payload))
	binary.LittleEndian.PutUint32(b, uint32(len(method)+len(payload)))
	b[5], b[7] = arpc.CmdRequest, byte(len(method))
	binary.LittleEndian.PutUint64(b[8:], 2)
	return append(append(b, method...), payload...)
}

// SetLen writes the length of a frame into its header.
func SetLen(frame []byte) []byte {
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-arpc.HeadLen))
	return frame
}

// Allocated returns the number of bytes that f allocates.
func Allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
