package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/leak"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) { leak.Main(m) }

// start serves until the test ends and returns the address.
func start(t testing.TB, network string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	addr, ended := make(chan net.Addr, 1), make(chan error, 1)
	go func() {
		ended <- serve(ctx, func(a net.Addr) { addr <- a }, network+"://127.0.0.1:0")
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case a := <-addr:
		return a.String()
	case <-time.After(patience):
		t.Fatal("not listening")
		return ""
	}
}

// install installs the tools once.
var install = sync.OnceValue(func() error {
	if out, err := exec.Command("./install.sh").CombinedOutput(); err != nil {
		return fmt.Errorf("install.sh: %w\n%s", err, out)
	}
	return nil
})

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if err := install(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

func eachNetwork(t *testing.T, f func(t *testing.T, addr string)) {
	for _, network := range []string{"tcp", "tcp-net"} {
		t.Run(network, func(t *testing.T) { f(t, start(t, network)) })
	}
}

// Row E17 and its check: curl gets answers with Date and Content-Length, over one connection for several requests.
func TestE17Curl(t *testing.T) {
	eachNetwork(t, func(t *testing.T, addr string) {
		out := run(t, "curl", "-sS", "-i", "-v", "http://"+addr+"/one", "http://"+addr+"/two")
		for _, want := range []string{"HTTP/1.1 200 OK\r\n", "Content-Length: 16\r\n", "hello from /one\n", "hello from /two\n", "Re-using existing connection"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		date := regexp.MustCompile("\r?\nDate: (.*)\r\n").FindStringSubmatch(out)
		if date == nil {
			t.Fatalf("no Date in\n%s", out)
		}
		if when, err := http.ParseTime(date[1]); err != nil || time.Since(when).Abs() > time.Minute {
			t.Errorf("Date %s, %v", date[1], err)
		}
		if out = run(t, "curl", "-sS", "-i", "--http1.0", "http://"+addr+"/"); !strings.Contains(out, "Connection: close") {
			t.Errorf("HTTP/1.0: %s", out)
		}
		if out = run(t, "curl", "-sS", "-I", "http://"+addr+"/"); !strings.Contains(out, "Content-Length: 13") || strings.Contains(out, "hello") {
			t.Errorf("HEAD: %s", out)
		}
		if out = run(t, "curl", "-sS", "-i", "-X", "DELETE", "http://"+addr+"/"); !strings.Contains(out, "405") {
			t.Errorf("DELETE: %s", out)
		}
		body := strings.Repeat("0123456789", 100_000)
		if out = run(t, "curl", "-sS", "-H", "Expect: 100-continue", "--data-binary", body[:maxArg], "http://"+addr+"/"); out != body[:maxArg] {
			t.Errorf("POST: %d bytes", len(out))
		}
	})
}

// maxArg is the length of an argument that every system takes.
const maxArg = 100_000

// A load generator that keeps connections open and sends several requests at once sees nothing but answers.
func TestE17Wrk(t *testing.T) {
	eachNetwork(t, func(t *testing.T, addr string) {
		out := run(t, "wrk", "-t1", "-c20", "-d1s", "-s", "testdata/pipeline.lua", "http://"+addr+"/")
		if !regexp.MustCompile(`[1-9]\d* requests in`).MatchString(out) || strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
			t.Errorf("wrk:\n%s", out)
		}
	})
}

// However the bytes are cut, requests that come together are answered in order.
func TestPipeline(t *testing.T) {
	eachNetwork(t, func(t *testing.T, addr string) {
		const n = 200
		var all bytes.Buffer
		for i := range n {
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", i, i, strings.Repeat("x", i))
		}
		for _, cut := range []int{all.Len(), 1000, 7} {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			nc.SetDeadline(time.Now().Add(patience)) //nolint:errcheck // a new connection takes it
			go func() {
				for p := all.Bytes(); len(p) > 0; p = p[min(cut, len(p)):] {
					if _, err := nc.Write(p[:min(cut, len(p))]); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			r := bufio.NewReader(nc)
			for i := range n {
				rsp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(rsp.Body)
				if err != nil || len(body) != i {
					t.Fatalf("answer %d has %d bytes, %v", i, len(body), err)
				}
			}
			nc.Close()
		}
	})
}

// What is no request, or too large, gets an error and the end of the connection.
func TestRefuses(t *testing.T) {
	eachNetwork(t, func(t *testing.T, addr string) {
		for request, status := range map[string]int{
			"nonsense\r\n\r\n": 400,
			"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n":           400,
			"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n":  411,
			"POST / HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n":     413,
			"GET /" + strings.Repeat("x", maxHead) + " HTTP/1.1\r\n": 431,
		} {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			nc.SetDeadline(time.Now().Add(patience)) //nolint:errcheck // a new connection takes it
			if _, err := io.WriteString(nc, request); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(nc)
			rsp, err := http.ReadResponse(r, nil)
			if err != nil || rsp.StatusCode != status || !rsp.Close {
				t.Fatalf("%.30q: %+v, %v", request, rsp, err)
			}
			if _, err := io.Copy(io.Discard, rsp.Body); err != nil {
				t.Error(err)
			}
			if _, err := r.ReadByte(); err != io.EOF {
				t.Errorf("%.30q: %v", request, err)
			}
			nc.Close()
		}
	})
}

// FuzzData cuts requests in two anywhere, which must not change the answers.
func FuzzData(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST /a HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc"), 20)
	f.Add([]byte("GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"), 3)
	f.Fuzz(func(t *testing.T, p []byte, at int) {
		whole, action := new(client).data("now", nil, p)
		at = min(max(at, 0), len(p))
		c := new(client)
		out, first := c.data("now", nil, bytes.Clone(p[:at]))
		if first == 0 && at < len(p) {
			out, first = c.data("now", out, bytes.Clone(p[at:]))
		}
		out = bytes.ReplaceAll(out, []byte("HTTP/1.1 100 Continue\r\n\r\n"), nil)
		whole = bytes.ReplaceAll(whole, []byte("HTTP/1.1 100 Continue\r\n\r\n"), nil)
		if len(p) <= maxHead && (!bytes.Equal(out, whole) || first != action) {
			t.Errorf("%q and then %v, in two parts %q and %v", whole, action, out, first)
		}
	})
}

// The program prints where it listens and ends on Ctrl-C.
func TestProgram(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no way to press Ctrl-C")
	}
	program := filepath.Join(t.TempDir(), "http")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(program, "-addr", "tcp://127.0.0.1:0")
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() }) //nolint:errcheck // the test sees it
	defer timer.Stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	run(t, "curl", "-sS", "http://"+strings.TrimSpace(strings.TrimPrefix(line, "listening on ")))
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
