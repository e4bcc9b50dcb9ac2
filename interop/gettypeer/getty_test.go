package gettypeer

import (
	"bufio"
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

	"github.com/arpc-go/arpc/extension/session"
	"github.com/arpc-go/arpc/interop/gettypeer/internal/echo"
)

// patience bounds every wait for something that must happen.
const patience = time.Minute

// peer is the program in the directory of that name.
var peer string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "gettypeer")
	if err == nil {
		peer = filepath.Join(dir, "peer.exe")
		var out []byte
		if out, err = exec.Command("go", "build", "-o", peer, "./peer").CombinedOutput(); err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
	}
	code := 1
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// process is a running peer.
type process struct {
	t     *testing.T
	stdin io.WriteCloser
	out   chan string
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	cmd := exec.Command(peer, args...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	p := &process{t, stdin, make(chan string, 1000)}
	go func() {
		defer close(p.out)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.out <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		stdin.Close()
		for range p.out {
		}
		cmd.Wait()
	})
	return p
}

// expect waits for so many lines that are want, and skips others.
func (p *process) expect(want string, times int) {
	p.t.Helper()
	if n := p.count(want, times, patience); n < times {
		p.t.Fatalf("%d of %d lines %q", n, times, want)
	}
}

func (p *process) count(want string, times int, patience time.Duration) (n int) {
	p.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for n < times {
		select {
		case line, ok := <-p.out:
			if !ok {
				p.t.Fatalf("getty ended, after %d of %d lines %q", n, times, want)
			}
			if line == want {
				n++
			}
		case <-timer.C:
			return n
		}
	}
	return n
}

// comesBack sends until so many sessions answer: getty may still have some that are over, and some that the server before had in line.
func (p *process) comesBack(times int) {
	p.t.Helper()
	n := 0
	for i := range int(patience / time.Second) {
		text := fmt.Sprint("again ", i)
		p.send(text)
		if n = p.count("echo "+text, times, time.Second); n == times {
			return
		}
	}
	p.t.Fatalf("%d of %d sessions have come back", n, times)
}

func (p *process) send(text string) {
	p.t.Helper()
	_, err := io.WriteString(p.stdin, text+"\n")
	must(p.t, err)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) (v T) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v = <-ch:
	case <-timer.C:
		t.Fatalf("no %s", what)
	}
	return v
}

type codec struct{}

func (codec) Read(_ session.Session, p []byte) (any, int, error) {
	pkg, n, err := echo.Decode(p)
	if pkg == nil {
		return nil, n, err
	}
	return pkg, n, err
}

func (codec) Write(_ session.Session, v any) ([]byte, error) {
	if u, ok := v.(session.UDPContext); ok {
		v = u.Pkg
	}
	pkg, ok := v.(*echo.Package)
	if !ok {
		return nil, errors.New("no package")
	}
	return pkg.Encode(), nil
}

// listener is an EventListener that tells of everything; without echoes it answers.
type listener struct {
	t              *testing.T
	opened, closed chan session.Session
	echoes         chan string
}

func newListener(t *testing.T, echoes chan string) *listener {
	return &listener{t, make(chan session.Session, 100), make(chan session.Session, 100), echoes}
}

func (l *listener) OnOpen(s session.Session) error       { l.opened <- s; return nil }
func (l *listener) OnClose(s session.Session)            { l.closed <- s }
func (l *listener) OnError(_ session.Session, err error) { l.t.Logf("OnError: %v", err) }
func (l *listener) OnCron(session.Session)               {}
func (l *listener) OnMessage(s session.Session, pkg any) {
	if l.echoes == nil {
		if _, _, err := s.WritePkg(pkg, 0); err != nil {
			l.t.Errorf("answer: %v", err)
		}
		return
	}
	if u, ok := pkg.(session.UDPContext); ok {
		pkg = u.Pkg
	}
	l.echoes <- pkg.(*echo.Package).Text
}

func newSession(l *listener, compress ...session.CompressType) session.NewSessionCallback {
	return func(s session.Session) error {
		s.SetPkgHandler(codec{})
		s.SetEventListener(l)
		s.SetCronPeriod(50)
		s.SetWaitTime(100 * time.Millisecond)
		for _, c := range compress {
			s.SetCompressType(c)
		}
		return nil
	}
}

func serve(t *testing.T, transport, addr string, f session.NewSessionCallback) session.Server {
	t.Helper()
	opts := []session.Option{session.WithLocalAddress(addr), session.WithWebsocketServerPath("/echo")}
	server := map[string]func(...session.Option) session.Server{
		"tcp": session.NewTCPServer, "ws": session.NewWSServer, "udp": session.NewUDPEndPoint,
	}[transport](opts...)
	must(t, server.RunEventLoop(f))
	t.Cleanup(server.Close)
	return server
}

// getty's clients talk to our server, and come back when that does.
func TestGettyClient(t *testing.T) {
	for _, transport := range []string{"tcp", "ws", "udp"} {
		t.Run(transport, func(t *testing.T) {
			l := newListener(t, nil)
			server := serve(t, transport, "127.0.0.1:0", newSession(l))
			addr := server.Addr().String()
			n := map[string]int{"tcp": 4, "ws": 2, "udp": 1}[transport]
			client := start(t, "client", transport, addr, "", fmt.Sprint(n))
			if transport == "udp" {
				client = start(t, "client", transport, addr)
			}
			client.expect("open", n)
			for _, text := range []string{"", "hello", strings.Repeat("x", 255)} {
				client.send(text)
				client.expect("echo "+text, n)
			}
			if transport == "udp" {
				return
			}
			server.Close()
			serve(t, transport, addr, newSession(l))
			client.comesBack(n)
		})
	}
}

// Our clients talk to getty's server.
func TestGettyServer(t *testing.T) {
	for _, transport := range []string{"tcp", "ws", "udp"} {
		t.Run(transport, func(t *testing.T) {
			addr := free(t, transport)
			start(t, "server", transport, addr).expect("running", 1)
			dial(t, transport, addr, 4)
		})
	}
}

func free(t *testing.T, transport string) string {
	if transport == "udp" {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		must(t, err)
		defer pc.Close()
		return pc.LocalAddr().String()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	return ln.Addr().String()
}

// dial makes clients of a server and has their texts echoed.
func dial(t *testing.T, transport, addr string, n int, compress ...session.CompressType) {
	t.Helper()
	l := newListener(t, make(chan string, 100))
	if transport == "ws" {
		addr = "ws://" + addr + "/echo"
	}
	client := map[string]func(...session.Option) session.Client{
		"tcp": session.NewTCPClient, "ws": session.NewWSClient, "udp": session.NewUDPClient,
	}[transport](session.WithServerAddress(addr), session.WithConnectionNumber(n))
	defer client.Close()
	must(t, client.RunEventLoop(newSession(l, compress...)))
	for range n {
		s := recv(t, l.opened, "OnOpen")
		for _, text := range []string{"", "hello", strings.Repeat("x", 255)} {
			if _, _, err := s.WritePkg(&echo.Package{Command: echo.Echo, Text: text}, 0); err != nil {
				t.Fatal(err)
			}
			if got := recv(t, l.echoes, "echo"); got != text {
				t.Errorf("%q came back as %q", text, got)
			}
		}
	}
}

// DEFLATE streams are understood in both directions.
func TestGettyCompression(t *testing.T) {
	for _, c := range []session.CompressType{session.CompressNone, session.CompressZip, session.CompressBestSpeed} {
		addr := free(t, "tcp")
		start(t, "server", "tcp", addr, fmt.Sprint(int(c))).expect("running", 1)
		dial(t, "tcp", addr, 1, c)

		server := serve(t, "tcp", "127.0.0.1:0", newSession(newListener(t, nil), c))
		client := start(t, "client", "tcp", server.Addr().String(), fmt.Sprint(int(c)))
		client.expect("open", 1)
		for i := range 5 {
			text := strings.Repeat("abc", i)
			client.send(text)
			client.expect("echo "+text, 1)
		}
		server.Close()
	}
}

// The quick start is the same for getty and for us, but for the import.
func TestSameQuickStart(t *testing.T) {
	body := func(file string) string {
		b, err := os.ReadFile(file)
		must(t, err)
		_, body, _ := strings.Cut(string(b), "// Codec puts")
		return body
	}
	theirs, ours := body("quickstart/quickstart_test.go"), body("../../extension/session/quickstart_test.go")
	if theirs != ours || len(theirs) < 1000 {
		t.Error("the two differ")
	}
}
