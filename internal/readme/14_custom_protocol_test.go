package readme

import (
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/arpc-go/arpc"
)

func TestCustomNetProtocol(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s") // short, for the limit of socket names
	addr, err := net.ResolveUnixAddr("unix", path)
	must(t, err)

	// server
	var ln net.Listener
	ln, err = net.ListenUnix("unix", addr)
	must(t, err)
	svr := arpc.NewServer()
	svr.Handler.Handle("/echo", func(ctx *arpc.Context) { ctx.Write(ctx.Body()) })
	serveOn(t, svr, ln)

	// client
	dialer := func() (net.Conn, error) {
		return net.DialUnix("unix", nil, addr)
	}
	client, err := arpc.NewClient(dialer)
	must(t, err)
	defer client.Stop()

	rsp := ""
	if err := client.Call("/echo", "over a socket file", &rsp, patience); err != nil || rsp != "over a socket file" {
		t.Fatalf("%q, %v", rsp, err)
	}
}

// Any net.Conn will do, also one that is no socket at all.
func TestCustomListener(t *testing.T) {
	ln := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	svr := arpc.NewServer()
	svr.Handler.Handle("/echo", func(ctx *arpc.Context) { ctx.Write(ctx.Body()) })
	serveOn(t, svr, ln)
	client, err := arpc.NewClient(ln.dial)
	must(t, err)
	defer client.Stop()
	rsp := ""
	if err := client.Call("/echo", "through a pipe", &rsp, patience); err != nil || rsp != "through a pipe" {
		t.Fatalf("%q, %v", rsp, err)
	}
}

// pipeListener is a net.Listener in memory.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) dial() (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
