package interop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/interop/internal/script"
)

// The storm makes conns*callers*calls calls, of which none may be lost and
// none answered with another's answer.
const (
	stormConns   = 8
	stormCallers = 100
	stormCalls   = 250
)

// peer is the program of the published arpc.
var peer string

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "arpc-interop")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	peer = filepath.Join(dir, "peer.exe")
	if out, err := exec.Command("go", "build", "-o", peer, "./peer").CombinedOutput(); err != nil {
		return 1, fmt.Errorf("building the peer: %w\n%s", err, out)
	}
	return leak.Run(m), nil
}

// caller is our end as the script wants it.
type caller struct{ c *arpc.Client }

func (c caller) Call(method string, req, rsp any) error {
	err := c.c.Call(method, req, rsp, script.Timeout)
	if err != nil {
		var e *arpc.Error
		switch {
		case !errors.As(err, &e):
			return fmt.Errorf("not an *arpc.Error: %w", err)
		case method == "/no/such/method" && (e.Code != arpc.CodeUnimplemented || !e.Remote || !errors.Is(err, arpc.ErrMethodNotFound)):
			return fmt.Errorf("unknown method, but %#v", e)
		}
	}
	return err
}

func (c caller) CallAsync(method string, req any, done func(func(any) error)) error {
	return c.c.CallAsync(method, req, func(ctx *arpc.Context) { done(ctx.Bind) }, script.Timeout)
}

func (c caller) Notify(method string, data any) error {
	return c.c.Notify(method, data, script.Timeout)
}

func (c caller) NewStream(method string) script.Stream { return stream{c.c.NewStream(method)} }

type stream struct{ s *arpc.Stream }

func (s stream) Send(v any) error         { return s.s.Send(v) }
func (s stream) SendAndClose(v any) error { return s.s.SendAndClose(v) }
func (s stream) Recv(v any) error         { return s.s.Recv(v) }
func (s stream) CloseSend() error         { return s.s.CloseSend() }

type handling struct{ *arpc.Context }

func (c handling) Peer() script.Caller { return caller{c.Client} }

func routes(h arpc.Handler, broadcast func(string, any)) {
	handle := func(method string, async bool, f func(script.Context)) {
		h.Handle(method, func(ctx *arpc.Context) { f(handling{ctx}) }, async)
	}
	script.Routes(handle, broadcast)
	script.StreamBack(handle)
	script.StreamRoutes(func(method string, f func(script.Stream)) {
		h.HandleStream(method, func(s *arpc.Stream) { f(stream{s}) })
	})
}

type transform struct{}

func (transform) Encode(_ *arpc.Client, m *arpc.Message) *arpc.Message {
	return &arpc.Message{Buffer: script.Transform(m.Buffer)}
}

func (transform) Decode(_ *arpc.Client, m *arpc.Message) *arpc.Message {
	out, err := script.Restore(m.Buffer)
	if err != nil {
		return nil
	}
	return &arpc.Message{Buffer: out}
}

// command prepares a run of the peer.
func command(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	// A test result is cached for the files that the test itself has read.
	if _, err := os.ReadFile("peer/main.go"); err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(ctx, peer, args...)
}

// servePeer starts the peer as a server.
func servePeer(t *testing.T, args ...string) (addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	cmd := command(ctx, t, append([]string{"serve"}, args...)...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		io.Copy(io.Discard, stdout)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the peer ended with %v", err)
		}
		cancel()
	})
	addr, err = bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

// runPeer runs the peer as a client.
func runPeer(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if out, err := command(ctx, t, args...).CombinedOutput(); err != nil {
		t.Fatalf("peer %v: %v\n%s", args, err, out)
	}
}

func dial(t *testing.T, addr string, coder bool, opts ...arpc.ClientOption) *arpc.Client {
	t.Helper()
	h := arpc.NewHandler()
	routes(h, nil)
	if coder {
		h.UseCoder(transform{})
	}
	opts = append([]arpc.ClientOption{h}, opts...)
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", addr) }, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Stop)
	return client
}

// serve starts a server of ours.
func serve(t *testing.T, stdConns int, coder bool) (addr string) {
	t.Helper()
	server := arpc.NewServer(arpc.StdConns(stdConns), arpc.NewHandler())
	routes(server.Handler, func(method string, v any) { server.Broadcast(method, v) })
	if coder {
		server.Handler.UseCoder(transform{})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln.Addr().String()
}

func TestOurClient(t *testing.T) {
	if err := script.Check(caller{dial(t, servePeer(t), false)}); err != nil {
		t.Error(err)
	}
}

func TestOurClientWithCoder(t *testing.T) {
	if err := script.Check(caller{dial(t, servePeer(t, "-coder"), true)}); err != nil {
		t.Error(err)
	}
}

func TestOurClientPings(t *testing.T) {
	addr := servePeer(t)
	var watched *script.PongConn
	client, err := arpc.NewClient(func() (net.Conn, error) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		watched = script.Watch(conn)
		return watched, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Stop()
	if err := watched.CheckPing(client.Ping); err != nil {
		t.Error(err)
	}
}

func TestOurClientStorm(t *testing.T) {
	addr := servePeer(t)
	var conns []script.Caller
	for range stormConns {
		conns = append(conns, caller{dial(t, addr, false)})
	}
	if err := script.Storm(conns, stormCallers, stormCalls); err != nil {
		t.Error(err)
	}
}

// adapters are the two ways in which a server of ours serves connections.
var adapters = []struct {
	name     string
	stdConns int
}{{"std", -1}, {"poll", 0}}

func TestOurServer(t *testing.T) {
	for _, a := range adapters {
		t.Run(a.name, func(t *testing.T) {
			runPeer(t, "client", "-addr", serve(t, a.stdConns, false))
		})
		t.Run(a.name+" with coder", func(t *testing.T) {
			runPeer(t, "client", "-coder", "-addr", serve(t, a.stdConns, true))
		})
	}
}

func TestOurServerStorm(t *testing.T) {
	for _, a := range adapters {
		t.Run(a.name, func(t *testing.T) {
			runPeer(t, "storm", "-addr", serve(t, a.stdConns, false),
				"-conns", fmt.Sprint(stormConns), "-callers", fmt.Sprint(stormCallers), "-calls", fmt.Sprint(stormCalls))
		})
	}
}

// The same with both ends ours, for a difference to be seen as the peer's.
func TestOurselves(t *testing.T) {
	for _, a := range adapters {
		t.Run(a.name, func(t *testing.T) {
			if err := script.Check(caller{dial(t, serve(t, a.stdConns, false), false)}); err != nil {
				t.Error(err)
			}
		})
		t.Run(a.name+" with coder", func(t *testing.T) {
			if err := script.Check(caller{dial(t, serve(t, a.stdConns, true), true)}); err != nil {
				t.Error(err)
			}
		})
	}
}
