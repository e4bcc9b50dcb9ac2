package broadcast_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/broadcast"
	"github.com/arpc-go/arpc/extension/websocket"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone)
	leak.Main(m)
}

// transports are the ways in which members are connected.
var transports = []struct {
	name      string
	websocket bool
	server    []arpc.ServerOption
	client    []arpc.ClientOption
}{
	{name: "std", server: []arpc.ServerOption{arpc.StdConns(-1)}},
	{name: "poll", server: []arpc.ServerOption{arpc.StdConns(0)}},
	{name: "version 1", client: []arpc.ClientOption{arpc.Protocol(1)}},
	{name: "websocket", websocket: true},
	{name: "websocket version 1", websocket: true, client: []arpc.ClientOption{arpc.Protocol(1)}},
}

func onTransports(t *testing.T, f func(t *testing.T, n *network)) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			n := serve(t, tr.websocket, tr.server...)
			n.clientOptions = tr.client
			f(t, n)
		})
	}
}

// network is a server and what connects to it.
type network struct {
	t             testing.TB
	server        *arpc.Server
	addr          string
	dial          func() (net.Conn, error)
	clientOptions []arpc.ClientOption
	joined        chan *arpc.Client
}

// serve runs a server whose clients say "/here" and are delivered by joined then.
func serve(t testing.TB, ws bool, opts ...arpc.ServerOption) *network {
	t.Helper()
	n := &network{t: t, joined: make(chan *arpc.Client, 1)}
	var ln net.Listener
	var err error
	if ws {
		ln, err = websocket.Listen("127.0.0.1:0", websocket.Path("/ws"))
	} else {
		ln, err = net.Listen("tcp", "127.0.0.1:0")
	}
	must(t, err)
	n.addr = ln.Addr().String()
	n.dial = func() (net.Conn, error) { return net.Dial("tcp", n.addr) }
	if ws {
		n.dial = websocket.Dialer("ws://" + n.addr + "/ws")
	}
	n.server = arpc.NewServer(append([]arpc.ServerOption{arpc.NewHandler()}, opts...)...)
	n.server.Handler.Handle("/here", func(ctx *arpc.Context) {
		n.joined <- ctx.Client
		ctx.Write(nil)
	})
	served := make(chan error, 1)
	go func() { served <- n.server.Serve(ln) }()
	t.Cleanup(func() {
		if err := n.server.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve: %v", err)
		}
	})
	return n
}

// connect returns both ends of a new connection. h is the handler of the one that dials, and may be nil.
func (n *network) connect(h arpc.Handler, opts ...arpc.ClientOption) (dialled, accepted *arpc.Client) {
	n.t.Helper()
	if h == nil {
		h = arpc.NewHandler()
	}
	opts = append(append([]arpc.ClientOption{h}, n.clientOptions...), opts...)
	c, err := arpc.NewClient(n.dial, opts...)
	must(n.t, err)
	n.t.Cleanup(c.Stop)
	return c, n.accept(c)
}

// accept returns the server's end of a connection.
func (n *network) accept(c *arpc.Client) *arpc.Client {
	n.t.Helper()
	must(n.t, c.CallAsync("/here", nil, func(*arpc.Context) {}, patience))
	return recv(n.t, n.joined, "connection")
}

// inbox is a handler that delivers what is sent to "/m".
func inbox(size int) (arpc.Handler, chan string) {
	h, ch := arpc.NewHandler(), make(chan string, size)
	h.Handle("/m", func(ctx *arpc.Context) {
		var s string
		if err := ctx.Bind(&s); err != nil {
			s = err.Error()
		}
		ch <- s
	})
	return h, ch
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
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

// eventually waits for a condition that nothing signals.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(patience); !cond(); <-ticker.C {
		if time.Now().After(end) {
			t.Fatalf("not reached: %s", what)
		}
	}
}

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// send checks what a Send gives.
func send(t testing.TB, r broadcast.Room, v any, sent int, except ...*arpc.Client) {
	t.Helper()
	got, err := r.Send("/m", v, except...)
	if err != nil || got != sent {
		t.Fatalf("Send to %v %q: %d, %v; want %d", r.Kind(), r.Name(), got, err, sent)
	}
}

func wantCode(t testing.TB, what string, err error, code arpc.Code) {
	t.Helper()
	if arpc.CodeOf(err) != code {
		t.Errorf("%s: %v, want %v", what, err, code)
	}
}

func names(rooms []broadcast.Room) map[string]bool {
	m := map[string]bool{}
	for _, r := range rooms {
		m[r.Name()] = true
	}
	return m
}
