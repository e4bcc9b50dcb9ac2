//go:build unix

package event

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv makes the test binary a server with few descriptors; its value is the network.
const childEnv = "ARPC_EVENT_CHILD"

// exhaustChild echoes, until its input ends.
func exhaustChild() {
	limit := unix.Rlimit{Cur: 64, Max: 64}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		fmt.Println("limit:", err)
		return
	}
	stop := make(chan struct{})
	go func() {
		bufio.NewReader(os.Stdin).ReadString('\n') //nolint:errcheck // either way it ends
		close(stop)
	}()
	err := Serve(Events{
		Serving: func(_ func(int) bool, a []net.Addr) Action { fmt.Println("listening", a[0]); return None },
		Data:    func(_ int, in []byte) ([]byte, Action) { return in, None },
		Tick: func() (time.Duration, Action) {
			select {
			case <-stop:
				return 0, Shutdown
			default:
				return 5 * time.Millisecond, None
			}
		},
	}, os.Getenv(childEnv)+"://127.0.0.1:0")
	fmt.Println("ended", err)
}

// A defect of evio's: a lack of descriptors does not end Serve. Those who are connected are served on, and so are others as soon as
// there is room.
func TestDescriptorExhaustion(t *testing.T) {
	bothWays(t, func(t *testing.T, suffix string) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"=tcp"+suffix)
		stdin, err := cmd.StdinPipe()
		must(t, err)
		stdout, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := make(chan string, 100)
		go func() {
			for s := bufio.NewScanner(stdout); s.Scan(); {
				lines <- s.Text()
			}
			close(lines)
		}()
		addr, ok := strings.CutPrefix(recv(t, lines, "address"), "listening ")
		if !ok {
			t.Fatal(addr)
		}
		var clients []net.Conn
		for range 100 {
			if nc, err := net.Dial("tcp", addr); err == nil { // it may be reset at once
				nc.SetDeadline(time.Now().Add(wait)) //nolint:errcheck // a new connection takes it
				clients = append(clients, nc)
			}
		}
		alive := func(nc net.Conn) bool {
			_, err := nc.Write([]byte("x"))
			if err == nil {
				_, err = nc.Read(make([]byte, 1))
			}
			return err == nil
		}
		var served []net.Conn
		for _, nc := range clients {
			if alive(nc) {
				served = append(served, nc)
			} else {
				nc.Close()
			}
		}
		if len(served) < 10 || len(served) > 64 {
			t.Errorf("%d of 100 served", len(served))
		}
		for _, nc := range served[5:] {
			nc.Close()
		}
		if !within(wait, func() bool {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				return false
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(wait)) //nolint:errcheck // a new connection takes it
			return alive(nc)
		}) {
			t.Error("nobody is accepted any more")
		}
		for _, nc := range served[:5] {
			if !alive(nc) {
				t.Error("one that was served is not any more")
			}
			nc.Close()
		}
		stdin.Close()
		if line := recv(t, lines, "end"); line != "ended <nil>" {
			t.Error(line)
		}
		must(t, cmd.Wait())
	})
}
