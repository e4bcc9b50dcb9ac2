package packet_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/packet"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone)
	leak.Main(m)
}

var four = packet.NewFixProtocol(4, binary.BigEndian)

// onAdapters runs a test with the sessions of a server with a goroutine each, on event loops, and, as is the default, moving from there to
// a goroutine when they are busy.
func onAdapters(t *testing.T, f func(t *testing.T, std int)) {
	t.Run("std", func(t *testing.T) { f(t, -1) })
	t.Run("poll", func(t *testing.T) { f(t, 0) })
	t.Run("default", func(t *testing.T) { f(t, 1024) })
}

// serve starts a server after setup, and stops it at the end.
func serve(t testing.TB, std int, proto packet.Protocol, limits packet.Limits, setup func(*packet.Server)) *packet.Server {
	t.Helper()
	server := listen(t, std, proto, limits)
	setup(server)
	must(t, server.Start())
	return server
}

func listen(t testing.TB, std int, proto packet.Protocol, limits packet.Limits) *packet.Server {
	t.Helper()
	server, err := packet.ListenAndServe("tcp", "127.0.0.1:0", proto, limits)
	must(t, err)
	server.SetStdConns(std)
	t.Cleanup(server.Stop)
	return server
}

// onMessage makes a setup of a handler.
func onMessage(f func(*packet.Session, []byte)) func(*packet.Server) {
	return func(server *packet.Server) {
		server.OnSessionStart(func(s *packet.Session) { s.OnMessage(f) })
	}
}

func echo(s *packet.Session, message []byte) { s.Send(packet.Bytes(message)) } //nolint:errcheck // the session is closed then

// client is a session that dials and collects what it gets.
type client struct {
	*packet.Session
	t      testing.TB
	got    chan []byte
	closed chan struct{}
}

func dial(t testing.TB, server *packet.Server, limits ...packet.Limits) *client {
	t.Helper()
	s, err := packet.Dial("tcp", addr(server), server.Protocol(), limits...)
	must(t, err)
	return start(t, s)
}

func start(t testing.TB, s *packet.Session) *client {
	t.Helper()
	c := &client{s, t, make(chan []byte, 1000), make(chan struct{})}
	s.OnMessage(func(_ *packet.Session, m []byte) { c.got <- bytes.Clone(m) })
	must(t, s.Start(func(*packet.Session) { close(c.closed) }))
	t.Cleanup(s.Close)
	return c
}

func (c *client) want(m []byte) {
	c.t.Helper()
	if got := recv(c.t, c.got, "packet"); !bytes.Equal(got, m) {
		c.t.Fatalf("got %d bytes %.40q, want %d bytes %.40q", len(got), got, len(m), m)
	}
}

func addr(server *packet.Server) string { return server.Listener().Addr().String() }

// raw is a connection that this package does not know.
func raw(t testing.TB, server *packet.Server) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr(server))
	must(t, err)
	t.Cleanup(func() { nc.Close() })
	must(t, nc.SetDeadline(time.Now().Add(patience)))
	return nc
}

func write(t testing.TB, w io.Writer, p []byte) {
	t.Helper()
	_, err := w.Write(p)
	must(t, err)
}

// read expects exactly these bytes.
func read(t testing.TB, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %.40q, %v; want %.40q", got, err, want)
	}
}

// hangUp waits until the other end has closed and closes, too.
func hangUp(t testing.TB, nc net.Conn) {
	t.Helper()
	if rest, err := io.ReadAll(nc); err != nil || len(rest) > 0 {
		t.Errorf("read %q, %v; want the end", rest, err)
	}
	nc.Close()
}

// framed is the packet of four with a body.
func framed(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func random(n int) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(n))
	b := make([]byte, n)
	rand.NewChaCha8(seed).Read(b) //nolint:errcheck // it never fails
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, what string, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("%s: %v, want %v", what, err, target)
		}
	}
}

func wantTooLarge(t testing.TB, what string, err error, size, limit uint64) {
	t.Helper()
	var e *packet.TooLargeError
	if !errors.Is(err, packet.ErrTooLarge) || !errors.As(err, &e) || e.Size != size || e.Limit != limit {
		t.Errorf("%s: %v; want %d bytes above %d", what, err, size, limit)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}
