package action

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	gobwas "github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/leak"
)

// patience bounds every wait for something that must happen; it is not spent when all is well.
const patience = 20 * time.Second

func TestMain(m *testing.M) { leak.Main(m) }

// A server is an Instance with a listener of each kind, which is stopped at the end of the test.
type server struct {
	*Instance
	tcp, ws string
	stop    func() error // what Run returns
}

func serve(t testing.TB, setup func(*Instance), opts ...Option) *server {
	t.Helper()
	s := &server{Instance: New(opts...)}
	tcp, err := s.ListenTCP("127.0.0.1:0")
	must(t, err)
	websocket, err := s.ListenWebsocket("127.0.0.1:0")
	must(t, err)
	s.tcp, s.ws = tcp.String(), "ws://"+websocket.String()+"/"
	if setup != nil {
		setup(s.Instance)
	}
	started := make(chan struct{})
	s.On(AfterStart, func() { close(started) })
	quit, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- s.Run(quit) }()
	recv(t, started, "start")
	s.stop = sync.OnceValue(func() error {
		close(quit)
		return recv(t, result, "return from Run")
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
	return s
}

// adapters runs a test with connections on event loops, and with a goroutine each.
func adapters(t *testing.T, f func(t *testing.T, adapter Option)) {
	t.Run("poll", func(t *testing.T) { f(t, StdConns(0)) })
	t.Run("std", func(t *testing.T) { f(t, StdConns(-1)) })
}

func echo(ctx *Context) (any, error) {
	var v map[string]any
	if err := ctx.Bind(&v); err != nil {
		return nil, err
	}
	return v, nil
}

// A peer speaks the wire by hand.
type peer interface {
	// send sends packets, without the length that TCP has before them.
	send(packets ...[]byte)
	recv() []byte // a packet
	end()         // waits for the end of the connection
	Close() error
}

type tcpPeer struct {
	t testing.TB
	net.Conn
}

func dialPeer(t testing.TB, addr string) *tcpPeer {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, patience)
	must(t, err)
	t.Cleanup(func() { nc.Close() })
	must(t, nc.SetDeadline(time.Now().Add(patience)))
	return &tcpPeer{t, nc}
}

func framed(p []byte) []byte {
	n := len(p) + 4
	return append([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, p...)
}

func (p *tcpPeer) send(packets ...[]byte) {
	p.t.Helper()
	var all []byte
	for _, b := range packets {
		all = append(all, framed(b)...)
	}
	p.write(all)
}

func (p *tcpPeer) write(b []byte) {
	p.t.Helper()
	_, err := p.Write(b)
	must(p.t, err)
}

func (p *tcpPeer) recv() []byte {
	p.t.Helper()
	b, err := readFrame(p.Conn)
	must(p.t, err)
	return b
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	b := make([]byte, int(head[0])<<24+int(head[1])<<16+int(head[2])<<8+int(head[3])-4)
	_, err := io.ReadFull(r, b)
	return b, err
}

func (p *tcpPeer) end() {
	p.t.Helper()
	if rest, err := io.ReadAll(p.Conn); len(rest) > 0 || errors.Is(err, context.DeadlineExceeded) {
		p.t.Fatalf("got %x, %v, not the end of the connection", rest, err)
	}
}

type wsPeer struct {
	t testing.TB
	net.Conn
	r  io.Reader // the connection's
	op gobwas.OpCode
}

func (p *wsPeer) Read(b []byte) (int, error) { return p.r.Read(b) }

func dialWSPeer(t testing.TB, url string) *wsPeer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	nc, br, _, err := gobwas.Dial(ctx, url)
	must(t, err)
	var r io.Reader = nc
	if br != nil { // the server has spoken already
		r = io.MultiReader(io.LimitReader(br, int64(br.Buffered())), nc)
	}
	t.Cleanup(func() { nc.Close() })
	must(t, nc.SetDeadline(time.Now().Add(patience)))
	return &wsPeer{t, nc, r, gobwas.OpBinary}
}

func (p *wsPeer) send(packets ...[]byte) {
	p.t.Helper()
	var all bytes.Buffer
	for _, b := range packets {
		must(p.t, wsutil.WriteClientMessage(&all, p.op, bytes.Clone(b)))
	}
	_, err := p.Write(all.Bytes())
	must(p.t, err)
}

func (p *wsPeer) recv() []byte {
	p.t.Helper()
	b, op, err := wsutil.ReadServerData(p)
	must(p.t, err)
	if op != gobwas.OpBinary {
		p.t.Fatalf("a message of kind %v", op)
	}
	return b
}

func (p *wsPeer) end() {
	p.t.Helper()
	if b, _, err := wsutil.ReadServerData(p); err == nil || errors.Is(err, context.DeadlineExceeded) {
		p.t.Fatalf("got %x, %v, not the end of the connection", b, err)
	}
}

// transports runs a test over TCP and WebSocket, under both adapters.
func transports(t *testing.T, setup func(*Instance), f func(t *testing.T, s *server, dial func() peer), opts ...Option) {
	adapters(t, func(t *testing.T, adapter Option) {
		s := serve(t, setup, append(opts, adapter)...)
		t.Run("tcp", func(t *testing.T) { f(t, s, func() peer { return dialPeer(t, s.tcp) }) })
		t.Run("websocket", func(t *testing.T) { f(t, s, func() peer { return dialWSPeer(t, s.ws) }) })
	})
}

func packet(action, seq int16, body string) []byte {
	return append([]byte{byte(uint16(action) >> 8), byte(action), byte(uint16(seq) >> 8), byte(seq)}, body...)
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	must(t, err)
	return b
}

func wantPacket(t testing.TB, got []byte, action, seq int16, body string) {
	t.Helper()
	if !bytes.Equal(got, packet(action, seq, body)) {
		t.Fatalf("got %q, not action %d seq %d %q", got, action, seq, body)
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func wantCode(t testing.TB, err error, code arpc.Code) {
	t.Helper()
	if arpc.CodeOf(err) != code {
		t.Fatalf("error %v, code %v, not %v", err, arpc.CodeOf(err), code)
	}
}
