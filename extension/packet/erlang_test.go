package packet_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"

	"github.com/arpc-go/arpc/extension/packet"
)

// erlang returns a command that runs the Erlang peer, whose interpreter is installed if that can be done.
func erlang(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	installErlang(t)
	if _, err := os.ReadFile("testdata/peer.escript"); err != nil { // for the cache of test results
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "escript", append([]string{"testdata/peer.escript"}, args...)...)
	cmd.Stderr = new(bytes.Buffer)
	return cmd
}

var installed sync.Once

func installErlang(t *testing.T) {
	installed.Do(func() {
		if _, err := exec.LookPath("escript"); err == nil {
			return
		}
		if _, err := exec.LookPath("apt-get"); err != nil || os.Getuid() != 0 || runtime.GOOS != "linux" {
			t.Skip("no escript; as root on Debian testdata/install-erlang.sh installs it")
		}
		if out, err := exec.Command("testdata/install-erlang.sh").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
	if _, err := exec.LookPath("escript"); err != nil {
		t.Skip("no escript")
	}
}

// An Erlang client and our server, for each length that Erlang knows.
func TestP02ErlangClient(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		args := []string{"client"}
		for _, n := range []int{1, 2, 4} {
			server := serve(t, std, packet.NewFixProtocol(n, binary.BigEndian), packet.Limits{}, onMessage(echo))
			_, port, err := net.SplitHostPort(addr(server))
			must(t, err)
			args = append(args, fmt.Sprintf("%d:%s", n, port))
		}
		cmd := erlang(t, args...)
		if out, err := cmd.Output(); err != nil || string(out) != "done\n" {
			t.Fatalf("%v: %s%s", err, out, cmd.Stderr)
		}
	})
}

// An Erlang server and our client.
func TestP02ErlangServer(t *testing.T) {
	cmd := erlang(t, "server", "1", "2", "4")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for range 3 {
		if !lines.Scan() {
			t.Fatalf("no port: %v %s", cmd.Wait(), cmd.Stderr)
		}
		var n, port int
		_, err := fmt.Sscan(lines.Text(), &n, &port)
		must(t, err)
		s, err := packet.Dial("tcp", fmt.Sprint("127.0.0.1:", port), packet.NewFixProtocol(n, binary.BigEndian))
		must(t, err)
		c := start(t, s)
		sizes := []int{1, 2, 100, []int{1: 255, 2: 65535, 4: 1 << 20}[n], 0, 1}
		for _, size := range sizes { // one at a time
			must(t, c.Send(packet.Bytes(random(size))))
			c.want(random(size))
		}
		for _, size := range sizes { // all at once
			must(t, c.Send(packet.Bytes(random(size))))
		}
		for _, size := range sizes {
			c.want(random(size))
		}
		c.Close()
		recv(t, c.closed, "close callback")
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, cmd.Stderr)
	}
}
