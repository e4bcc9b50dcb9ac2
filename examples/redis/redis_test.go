package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/event"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/tidwall/redcon"
)

const patience = 10 * time.Second

func TestMain(m *testing.M) { leak.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// server is the example, running in this process.
type server struct {
	t     testing.TB
	addr  string
	ended chan error
}

// start serves until the test ends.
func start(t testing.TB, network string) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{t: t, ended: make(chan error, 1)}
	addr := make(chan net.Addr, 1)
	go func() { s.ended <- serve(ctx, func(a net.Addr) { addr <- a }, network+"://127.0.0.1:0") }()
	t.Cleanup(func() {
		cancel()
		s.end()
	})
	select {
	case a := <-addr:
		s.addr = a.String()
	case <-time.After(patience):
		t.Fatal("not listening")
	}
	return s
}

// end waits for the end of the server.
func (s *server) end() {
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Error(err)
		}
		s.ended <- err
	case <-time.After(patience):
		s.t.Error("the server does not end")
	}
}

func (s *server) dial() net.Conn {
	s.t.Helper()
	nc, err := net.Dial("tcp", s.addr)
	must(s.t, err)
	nc.SetDeadline(time.Now().Add(patience)) //nolint:errcheck // a new connection takes it
	s.t.Cleanup(func() { nc.Close() })
	return nc
}

func eachNetwork(t *testing.T, f func(t *testing.T, s *server)) {
	for _, network := range []string{"tcp", "tcp-net"} {
		t.Run(network, func(t *testing.T) { f(t, start(t, network)) })
	}
}

// install installs the tools once.
var install = sync.OnceValue(func() error {
	if out, err := exec.Command("./install.sh").CombinedOutput(); err != nil {
		return fmt.Errorf("install.sh: %w\n%s", err, out)
	}
	return nil
})

// tool runs a tool of Redis against an address.
func tool(t *testing.T, name, addr string, stdin string, args ...string) string {
	t.Helper()
	must(t, install())
	host, port, err := net.SplitHostPort(addr)
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, append([]string{"-h", host, "-p", port}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// commandLines are what both this server and Redis are told; they must say the same.
const commandLines = `PING
ping hello
ECHO hello
ECHO
SET a 1
GET a
get missing
GET
SET a
SET a b c
INCR a
INCR a
incr fresh
SET word hello
INCR word
SET big 9223372036854775806
INCR big
INCR big
SET padded 007
INCR padded
INCR
DEL a fresh missing a word
DEL
GET a
SET empty ""
GET empty
INCR empty
PING one two
CONFIG GET save
CONFIG GET appendonly
CONFIG GET
NOSUCH
NOSUCH one two
A-COMMAND-WITH-A-VERY-LONG-NAME one "two three"
quit
`

// Rows E17 and its check: redis-cli gets the answers that a real Redis gives, errors included.
func TestE17SameAsRedis(t *testing.T) {
	real := realRedis(t)
	eachNetwork(t, func(t *testing.T, s *server) {
		ours := tool(t, "redis-cli", s.addr, commandLines)
		theirs := tool(t, "redis-cli", real, commandLines)
		if ours != theirs {
			t.Errorf("answers\n%s\ninstead of\n%s", ours, theirs)
		}
		if n := strings.Count(ours, "\n"); n < strings.Count(commandLines, "\n") {
			t.Errorf("only %d lines", n)
		}
	})
}

// realRedis starts a Redis and returns its address.
func realRedis(t *testing.T) string {
	t.Helper()
	must(t, install())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := ln.Addr().String()
	ln.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir())
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // killed
	})
	for end := time.Now().Add(patience); ; {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			nc.Close()
			return addr
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
}

// Row E17: redis-benchmark gets its answers, one by one and pipelined.
func TestE17RedisBenchmark(t *testing.T) {
	eachNetwork(t, func(t *testing.T, s *server) {
		for pipeline, n := range map[string]string{"1": "2000", "32": "20000"} {
			out := tool(t, "redis-benchmark", s.addr, "", "-t", "ping,set,get,incr", "-n", n, "-c", "50", "-P", pipeline, "--csv")
			if n := len(regexp.MustCompile(`(?m)^"(PING_INLINE|PING_MBULK|SET|GET|INCR)","[1-9]`).FindAllString(out, -1)); n != 5 || strings.Contains(out, "rror") {
				t.Errorf("%s", out)
			}
		}
	})
}

// SHUTDOWN ends the server, also for others.
func TestShutdown(t *testing.T) {
	eachNetwork(t, func(t *testing.T, s *server) {
		other := s.dial()
		tool(t, "redis-cli", s.addr, "", "SHUTDOWN")
		if n, err := other.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("the other client sees %d, %v", n, err)
		}
		other.Close()
		s.end()
	})
}

// A pipeline that arrives at once is answered by one write, however large it is.
func TestPipeline(t *testing.T) {
	eachNetwork(t, func(t *testing.T, s *server) {
		var in, want []byte
		for i := range 2000 {
			key, value := []byte(fmt.Sprint("key", i%10)), bytes.Repeat([]byte{'v'}, i)
			in = redcon.AppendArray(in, 3)
			in = redcon.AppendBulk(redcon.AppendBulk(redcon.AppendBulkString(in, "SET"), key), value)
			in = redcon.AppendArray(in, 2)
			in = redcon.AppendBulk(redcon.AppendBulkString(in, "GET"), key)
			want = redcon.AppendBulk(redcon.AppendOK(want), value)
		}
		for _, cut := range []int{len(in), 4001, 113} {
			nc := s.dial()
			go func() {
				for p := in; len(p) > 0; p = p[min(cut, len(p)):] {
					if _, err := nc.Write(p[:min(cut, len(p))]); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			got := make([]byte, len(want))
			if _, err := io.ReadFull(nc, got); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("wrong, %v", err)
			}
			nc.Close()
		}
		nc := s.dial()
		if _, err := io.WriteString(nc, strings.Repeat("PING\r\n", 32)); err != nil {
			t.Fatal(err)
		}
		answers := make([]byte, 4096)
		n, err := nc.Read(answers)
		if err != nil || n != 32*len("+PONG\r\n") {
			t.Errorf("the first read brings %d bytes, %v", n, err)
		}
	})
}

// Hostile input gets an error, and the end of that connection only.
func TestHostile(t *testing.T) {
	eachNetwork(t, func(t *testing.T, s *server) {
		good := s.dial()
		for _, in := range []string{
			"*1\r\n$-2\r\n\r\n", "*1\r\n$-1\r\nxx\r\n", "*-5\r\n", "*x\r\n", "*2\r\n$x\r\n", "*1\r\n:4\r\nPING\r\n", "*1\r\n$4\r\nPINGxx",
			"$4 PING\r\n", "*99999999999999999999\r\n" + strings.Repeat("$1\r\nx\r\n", maxQuery/7), "*2\r\n$4\r\nECHO\r\n$-9223372036854775808\r\nxx\r\n",
			"*1\r\n$2000000000\r\n" + strings.Repeat("x", maxQuery), strings.Repeat("y", maxQuery+1), "SET \"a b\r\n",
		} {
			nc := s.dial()
			go io.WriteString(nc, in) //nolint:errcheck // it may be closed before all is sent
			out, err := io.ReadAll(nc)
			var ne net.Error
			if len(out) == 0 && err == nil || errors.As(err, &ne) && ne.Timeout() || len(out) > 0 && out[0] != '-' {
				t.Errorf("%.30q is answered %.60q, %v", in, out, err)
			}
			nc.Close()
		}
		if _, err := io.WriteString(good, "PING\r\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(good).ReadString('\n'); line != "+PONG\r\n" {
			t.Errorf("%q, %v", line, err)
		}
	})
}

// The program prints where it listens and ends on Ctrl-C.
func TestProgram(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no way to press Ctrl-C")
	}
	program := filepath.Join(t.TempDir(), "redis")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(program, "-addr", "tcp://127.0.0.1:0")
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() }) //nolint:errcheck // the test sees it
	defer timer.Stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	must(t, err)
	nc, err := net.Dial("tcp", strings.TrimSpace(strings.TrimPrefix(line, "listening on ")))
	must(t, err)
	nc.Close()
	must(t, cmd.Process.Signal(os.Interrupt))
	must(t, cmd.Wait())
}

// FuzzData cuts commands in two anywhere, which must not change the answers.
func FuzzData(f *testing.F) {
	f.Add([]byte("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n*2\r\n$4\r\nINCR\r\n$1\r\na\r\nPING\r\n"), 17)
	f.Add([]byte("*1\r\n$-2\r\n\r\nGET a\r\nQUIT\r\nPING\r\n"), 3)
	f.Add([]byte("$A "), 1)
	f.Add([]byte("del a b\r\nconfig get save\r\nCOMMAND DOCS\r\nnope '\"x\r\n"), 9)
	f.Fuzz(func(t *testing.T, p []byte, at int) {
		whole, action := new(client).data(newStore(), nil, bytes.Clone(p))
		at = min(max(at, 0), len(p))
		c, s := new(client), newStore()
		out, first := c.data(s, nil, bytes.Clone(p[:at]))
		if first == event.None && at < len(p) {
			out, first = c.data(s, out, bytes.Clone(p[at:]))
		}
		if !bytes.Equal(out, whole) || first != action {
			t.Errorf("%q: %q and %v, in two parts at %d %q and %v", p, whole, action, at, out, first)
		}
	})
}

// BenchmarkPipeline is what a loop does with 32 commands that arrive together.
func BenchmarkPipeline(b *testing.B) {
	for _, name := range []string{"PING", "SET key value", "GET key"} {
		b.Run(strings.Fields(name)[0], func(b *testing.B) {
			words := strings.Fields(name)
			one := redcon.AppendArray(nil, len(words))
			for _, w := range words {
				one = redcon.AppendBulkString(one, w)
			}
			batch := bytes.Repeat(one, 32)
			c, s := new(client), newStore()
			var out []byte
			b.ReportAllocs()
			b.SetBytes(int64(len(batch)))
			for b.Loop() {
				out, _ = c.data(s, out[:0], batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(32*b.N), "ns/command")
		})
	}
}
