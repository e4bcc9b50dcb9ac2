package readme

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/leak"
)

// patience bounds every wait for something that must happen; it is not spent
// when all is well.
const patience = 20 * time.Second

func TestMain(m *testing.M) { leak.Main(m) }

// freshDefault gives the test a DefaultHandler of its own.
func freshDefault(t *testing.T) {
	old := arpc.DefaultHandler
	arpc.DefaultHandler = arpc.NewHandler()
	t.Cleanup(func() { arpc.DefaultHandler = old })
}

// serve runs svr on a free port until the end of the test.
func serve(t *testing.T, svr *arpc.Server) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	serveOn(t, svr, ln)
	return ln.Addr().String()
}

func serveOn(t *testing.T, svr *arpc.Server, ln net.Listener) {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- svr.Serve(ln) }()
	t.Cleanup(func() {
		if err := svr.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := recv(t, result, "return from Serve"); !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve returned %v", err)
		}
	})
}

func dialer(addr string) func() (net.Conn, error) {
	return func() (net.Conn, error) { return net.DialTimeout("tcp", addr, patience) }
}

// connect makes a client that is stopped at the end of the test.
func connect(t *testing.T, addr string) *arpc.Client {
	t.Helper()
	client, err := arpc.NewClient(dialer(addr))
	must(t, err)
	t.Cleanup(client.Stop)
	return client
}

// listenSilently accepts connections that nobody reads from once the first ping is answered, as a peer of version 1 does it.
func listenSilently(t *testing.T) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	var conns []net.Conn
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns = append(conns, conn)
			head := make([]byte, arpc.HeadLen)
			if _, err := io.ReadFull(conn, head); err != nil {
				continue
			}
			io.CopyN(io.Discard, conn, int64(binary.LittleEndian.Uint32(head)))
			pong := make([]byte, arpc.HeadLen)
			pong[5] = arpc.CmdPong
			conn.Write(pong)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
		for _, conn := range conns {
			conn.Close()
		}
	})
	return ln.Addr().String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// recv waits for a value.
func recv[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// send gives a value to a channel that has room for all that a test expects,
// and drops it otherwise, so that no hook blocks.
func send[T any](ch chan T, v T) {
	select {
	case ch <- v:
	default:
	}
}
