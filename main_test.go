package arpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc/log"

	"github.com/arpc-go/arpc/internal/core"
)

// This file has what the tests of the package share: servers and clients that end with their test, peers that speak bytes, and the
// check that nothing is left when all tests are over.

// patience bounds every wait for something that must happen; it is not spent when all is well.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone) // panics and malformed frames are what many tests are about
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close() // the runtime's own poller is made on first use, and stays
	}
	files := openSockets()
	code := m.Run()
	if code == 0 {
		if left := leftBehind(files); left != "" {
			fmt.Fprintf(os.Stderr, "left behind by the tests:\n\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

// leftBehind says what is still running or open after patience.
func leftBehind(files map[string]string) string {
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		left := strings.Join(ourGoroutines(), "\n\n")
		for fd, what := range openSockets() {
			if files[fd] == "" {
				left += "\ndescriptor " + fd + " " + what
			}
		}
		if left == "" || time.Now().After(end) {
			return left
		}
	}
}

// openSockets returns the descriptors of sockets and pollers by number, where the system tells.
func openSockets() map[string]string {
	open := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		what, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.HasPrefix(what, "socket:") || strings.HasPrefix(what, "anon_inode:")) {
			open[e.Name()] = what
		}
	}
	return open
}

// ourGoroutines returns the stacks of the goroutines that run code of the module or of its poller, but for those that run a
// test and those whose stack contains one of the texts.
func ourGoroutines(but ...string) []string {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	but = append(but, "testing.tRunner(", "arpc.waitGroup.func1(", "testing.(*M).Run(", "testing.(*F).Fuzz(", "arpc.TestMain(")
	var ours []string
next:
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		if !strings.Contains(stack, "github.com/arpc-go/arpc") && !strings.Contains(stack, "github.com/lesismal/") {
			continue
		}
		for _, b := range but {
			if strings.Contains(stack, b) {
				continue next
			}
		}
		ours = append(ours, stack)
	}
	return ours
}

// adapters are the ways in which a server serves its connections.
var adapters = []struct {
	name string
	opt  ServerOption
}{
	{"std", StdConns(-1)},
	{"poll", StdConns(0)},
	{"moves", StdConns(1000)}, // from an event loop to a goroutine, when busy
}

// onAdapters runs a test in each of the ways.
func onAdapters(t *testing.T, f func(t *testing.T, adapter ServerOption)) {
	for _, a := range adapters {
		t.Run(a.name, func(t *testing.T) { f(t, a.opt) })
	}
}

// testServer is a running server that stops with its test.
type testServer struct {
	*Server
	addr string
}

// startServer runs a server with an empty Handler on a free port until the end of the test. A Handler among the options
// is used instead.
func startServer(t testing.TB, opts ...ServerOption) *testServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return startServerOn(t, ln, opts...)
}

// startServerOn is startServer on a listener.
func startServerOn(t testing.TB, ln net.Listener, opts ...ServerOption) *testServer {
	t.Helper()
	s := NewServer(append([]ServerOption{NewHandler()}, opts...)...)
	result := make(chan error, 1)
	go func() { result <- s.Serve(ln) }()
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := recv(t, result, "return from Serve"); !errors.Is(err, ErrServerStopped) {
			t.Errorf("Serve returned %v", err)
		}
	})
	return &testServer{s, ln.Addr().String()}
}

// waitClients waits until the server has n clients and returns them.
func (s *testServer) waitClients(t testing.TB, n int) []*Client {
	t.Helper()
	var clients []*Client
	eventually(t, fmt.Sprintf("%d clients", n), func() bool {
		clients = clients[:0]
		s.ForEach(func(c *Client) { clients = append(clients, c) })
		return len(clients) == n
	})
	return clients
}

// dialer returns a dialer for NewClient.
func dialer(addr string) func() (net.Conn, error) {
	return func() (net.Conn, error) { return net.DialTimeout("tcp", addr, patience) }
}

// dialClient connects a client with an empty Handler that stops with its test. A Handler among the options is used instead.
func dialClient(t testing.TB, addr string, opts ...ClientOption) *Client {
	t.Helper()
	return dialClientBy(t, dialer(addr), opts...)
}

// dialClientBy is dialClient with a dialer.
func dialClientBy(t testing.TB, dialer func() (net.Conn, error), opts ...ClientOption) *Client {
	t.Helper()
	c, err := NewClient(dialer, append([]ClientOption{NewHandler()}, opts...)...)
	must(t, err)
	t.Cleanup(c.Stop)
	return c
}

// listenSmall and dialSmall use small socket buffers: what they return are plain TCP connections.
func listenSmall(t testing.TB, size int) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: setBuffers(size)}
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	must(t, err)
	return ln
}

func dialSmall(addr string, size int) func() (net.Conn, error) {
	d := net.Dialer{Control: setBuffers(size), Timeout: patience}
	return func() (net.Conn, error) { return d.Dial("tcp", addr) }
}

func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return ln
}

// rawPeer speaks bytes.
type rawPeer struct {
	net.Conn
	t testing.TB
}

// dialRaw connects to a server.
func dialRaw(t testing.TB, addr string) *rawPeer {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, patience)
	must(t, err)
	return newRaw(t, nc)
}

func newRaw(t testing.TB, nc net.Conn) *rawPeer {
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience)) //nolint:errcheck // a bound on reads that never end
	return &rawPeer{nc, t}
}

// rawServer is a listener whose connections are a test's to speak on.
type rawServer struct {
	net.Listener
	t testing.TB
}

// listenRaw listens for clients.
func listenRaw(t testing.TB) *rawServer {
	t.Helper()
	ln := listenTCP(t)
	t.Cleanup(func() { ln.Close() })
	return &rawServer{ln, t}
}

func (s *rawServer) addr() string { return s.Listener.Addr().String() }

// accept returns the next connection.
func (s *rawServer) accept() *rawPeer {
	s.t.Helper()
	s.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience)) //nolint:errcheck // a bound only
	nc, err := s.Listener.Accept()
	must(s.t, err)
	return newRaw(s.t, nc)
}

// send writes frames in one segment, as far as they fit one.
func (p *rawPeer) send(frames ...[]byte) {
	p.t.Helper()
	var all []byte
	for _, f := range frames {
		all = append(all, f...)
	}
	_, err := p.Conn.Write(all)
	must(p.t, err)
}

// frame reads one frame.
func (p *rawPeer) frame() *Message {
	p.t.Helper()
	m, err := readFrame(p.Conn)
	must(p.t, err)
	return m
}

// end reads until the end of the connection, of whatever kind, and returns what came.
func (p *rawPeer) end() []byte {
	p.t.Helper()
	rest, err := io.ReadAll(p.Conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.t.Fatalf("the connection is still open, after %x", rest)
	}
	return rest
}

// reset closes with RST.
func (p *rawPeer) reset() { reset(p.Conn) }

func reset(nc net.Conn) {
	if tc, ok := nc.(*net.TCPConn); ok {
		tc.SetLinger(0) //nolint:errcheck // an ordinary close then
	}
	nc.Close() //nolint:errcheck // it is to be gone
}

func readFrame(r io.Reader) (*Message, error) {
	b := make([]byte, HeadLen)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	body := make([]byte, binary.LittleEndian.Uint32(b))
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return &Message{Buffer: append(b, body...)}, nil
}

// frameOf builds a frame.
func frameOf(cmd, flag byte, seq uint64, method, payload string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(method)+len(payload)))
	b = append(b, 0, cmd, flag, byte(len(method)))
	b = binary.LittleEndian.AppendUint64(b, seq)
	return append(append(b, method...), payload...)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// recv waits for a value.
func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		t.Fatalf("no %s; goroutines:\n%s", what, strings.Join(ourGoroutines(), "\n\n"))
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
			t.Fatalf("not reached: %s; goroutines:\n%s", what, strings.Join(ourGoroutines(), "\n\n"))
		}
	}
}

// waitGroup waits for goroutines of the test's.
func waitGroup(t testing.TB, wg *sync.WaitGroup, what string) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	recv(t, done, what)
}

// patient returns a context that is done after patience.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (s *testServer) core() *core.Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.group
}

// answers checks that the connection lives: a request sent on it is answered next.
func (p *rawPeer) answers() {
	p.t.Helper()
	p.send(frameOf(CmdRequest, 0, 77, "/echo", "x"))
	if m := p.frame(); m.Seq() != 77 || string(m.Data()) != "x" {
		p.t.Fatalf("instead of the answer %x", m.Buffer)
	}
}
