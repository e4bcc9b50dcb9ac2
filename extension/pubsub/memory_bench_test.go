package pubsub

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// serverVariable makes the test binary a server, which ends with its standard input.
const serverVariable = "ARPC_PUBSUB_TEST_SERVER"

func serveAlone() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go NewServer().Serve(ln) //nolint:errcheck // it ends with the process
	fmt.Println(ln.Addr())
	bufio.NewReader(os.Stdin).ReadByte() //nolint:errcheck // its end is meant
}

// BenchmarkMemory is the resident memory of a process that serves pub/sub and nothing else to 10,000 subscribers.
func BenchmarkMemory(b *testing.B) {
	const members = 10_000
	self, err := os.Executable()
	must(b, err)
	for b.Loop() {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), serverVariable+"=1")
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		must(b, err)
		out, err := cmd.StdoutPipe()
		must(b, err)
		must(b, cmd.Start())
		addr, err := bufio.NewReader(out).ReadString('\n')
		must(b, err)
		conns := make([]net.Conn, members)
		for i := range conns {
			conns[i] = benchPeer(b, strings.TrimSpace(addr), func(net.Conn) {})
		}
		rss := residentBytes(b, cmd.Process.Pid)
		for _, nc := range conns {
			nc.Close()
		}
		in.Close()
		must(b, cmd.Wait())
		b.ReportMetric(float64(rss)/1e6, "MB")
	}
}

func residentBytes(b *testing.B, pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Skip("this system does not tell: ", err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kb, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.ParseInt(kb, 10, 64)
	must(b, err)
	return n << 10
}
