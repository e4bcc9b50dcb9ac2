package readme

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
)

func TestHooksOnConnections(t *testing.T) {
	freshDefault(t)
	var received, sent, wrapped, read atomic.Int64

	arpc.DefaultHandler.BeforeRecv(func(conn net.Conn) error {
		received.Add(1)
		return nil
	})
	arpc.DefaultHandler.BeforeSend(func(conn net.Conn) error {
		sent.Add(1)
		return nil
	})
	arpc.DefaultHandler.SetReaderWrapper(func(conn net.Conn) io.Reader {
		wrapped.Add(1)
		return bufio.NewReader(countingReader{conn, &read})
	})

	svr := arpc.NewServer()
	handleEcho(svr.Handler)
	callEcho(t, connect(t, serve(t, svr)))

	if wrapped.Load() != 2 { // one reader for each end
		t.Errorf("%d readers were wrapped, want 2", wrapped.Load())
	}
	if received.Load() < 2 || sent.Load() < 2 || read.Load() < 2*arpc.HeadLen {
		t.Errorf("%d receives, %d sends, %d bytes read", received.Load(), sent.Load(), read.Load())
	}
}

type countingReader struct {
	r io.Reader
	n *atomic.Int64
}

func (c countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// An error of either hook closes the connection, and nothing else.
func TestHookErrorCloses(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(h arpc.Handler, hook func(net.Conn) error)
	}{
		{"BeforeRecv", func(h arpc.Handler, hook func(net.Conn) error) { h.BeforeRecv(hook) }},
		{"BeforeSend", func(h arpc.Handler, hook func(net.Conn) error) { h.BeforeSend(hook) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var refuse atomic.Bool
			svr := arpc.NewServer()
			tt.set(svr.Handler, func(conn net.Conn) error {
				if refuse.CompareAndSwap(true, false) {
					return errors.New("refused")
				}
				return nil
			})
			closed := make(chan struct{}, 1)
			svr.Handler.HandleDisconnected(func(*arpc.Client) { send(closed, struct{}{}) })
			handleEcho(svr.Handler)
			addr := serve(t, svr)

			bystander, client := connect(t, addr), connect(t, addr)
			callEcho(t, bystander)
			callEcho(t, client)
			refuse.Store(true)
			if err := client.Call("/call/echo", &Echo{}, &Echo{}, patience); err == nil {
				// BeforeRecv may have run for this call before the hook was
				// armed; then the next frame meets it.
				err = client.Call("/call/echo", &Echo{}, &Echo{}, patience)
				if err == nil {
					t.Error("no error after the hook's")
				}
			}
			recv(t, closed, "disconnect after the hook's error")
			callEcho(t, bystander)
		})
	}
}
