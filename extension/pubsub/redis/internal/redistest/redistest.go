// Package redistest runs real Redis servers for tests. It installs redis-server with install.sh if there is none.
package redistest

import (
	"context"
	_ "embed"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

//go:embed install.sh
var installer string

var install = sync.OnceValue(func() error {
	out, err := exec.Command("bash", "-c", installer).CombinedOutput()
	if err != nil {
		return fmt.Errorf("installing redis-server: %w\n%s", err, out)
	}
	return nil
})

// patience bounds the wait for a server.
const patience = 20 * time.Second

// A Server is a redis-server process with a directory of its own, at one address for all its lives.
type Server struct {
	// Addr is where it listens.
	Addr string

	t      testing.TB
	dir    string
	args   []string
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start starts a server that keeps nothing on disk unless args, further options as of the command line, say so. It is ended with
// the test.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	if err := install(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for range 20 {
		// Below the ports that systems give to connections: while a server is down, a client that tries to connect could
		// get its port, and connect to itself.
		port := 20_000 + rand.IntN(10_000)
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		ln.Close() //nolint:errcheck // it is free again
		s := &Server{Addr: addr, t: t, dir: dir, args: append([]string{
			"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--logfile", filepath.Join(dir, "log"),
		}, args...)}
		t.Cleanup(func() {
			s.Kill()
			if t.Failed() {
				log, _ := os.ReadFile(filepath.Join(dir, "log")) //nolint:errcheck // the test has failed anyway
				t.Logf("redis-server: %s", log[max(0, len(log)-4000):])
			}
		})
		if s.start() {
			return s
		}
	}
	t.Fatal("redis-server does not start")
	return nil
}

// StartCluster starts a Redis Cluster of three masters, and waits until all of them say that it is complete.
func StartCluster(t testing.TB) []*Server {
	t.Helper()
	const nodes, slots = 3, 16384
	var servers []*Server
	var clients []rueidis.Client
	do := func(c rueidis.Client, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		text, err := c.Do(ctx, c.B().Arbitrary(args...).Build()).ToString()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for i := range nodes {
		s := Start(t, "--cluster-enabled", "yes", "--cluster-config-file", "nodes")
		c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{s.Addr}, ForceSingleClient: true, DisableCache: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		servers, clients = append(servers, s), append(clients, c)
		do(c, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*slots/nodes), strconv.Itoa((i+1)*slots/nodes-1))
		for _, other := range servers[:i] {
			host, port, _ := net.SplitHostPort(other.Addr) //nolint:errcheck // it is ours
			do(c, "CLUSTER", "MEET", host, port)
		}
	}
	for _, c := range clients {
		for end := time.Now().Add(patience); ; {
			info := do(c, "CLUSTER", "INFO")
			if strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprint("cluster_known_nodes:", nodes)) &&
				strings.Contains(info, fmt.Sprint("cluster_slots_ok:", slots)) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the cluster is not complete: %s", info)
			}
			time.Sleep(10 * time.Millisecond) // other processes; nothing says that they are ready
		}
	}
	return servers
}

// start starts the process, and waits until it answers. It reports false if it has ended instead.
func (s *Server) start() bool {
	s.t.Helper()
	s.cmd = exec.Command("redis-server", s.args...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		cmd.Wait() //nolint:errcheck // it was killed
		close(exited)
	}(s.cmd, s.exited)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if s.answers() {
			return true
		}
		select {
		case <-s.exited:
			return false
		case <-time.After(5 * time.Millisecond): // another process; nothing says that it is ready
		}
	}
	s.t.Fatal("redis-server does not answer")
	return false
}

func (s *Server) answers() bool {
	nc, err := net.Dial("tcp", s.Addr)
	if err != nil {
		return false
	}
	defer nc.Close()                            //nolint:errcheck // only read from
	nc.SetDeadline(time.Now().Add(time.Second)) //nolint:errcheck // the read fails too
	fmt.Fprint(nc, "PING\r\n")
	answer := make([]byte, 1)
	_, err = nc.Read(answer)
	return err == nil && answer[0] == '+' // and not: it is loading
}

// Kill ends the server as kill -9 does, and waits until it is gone.
func (s *Server) Kill() {
	s.cmd.Process.Kill() //nolint:errcheck // it may have ended
	<-s.exited
}

// Restart starts it again with what it has on disk.
func (s *Server) Restart() {
	s.t.Helper()
	if !s.start() {
		s.t.Fatal("redis-server does not start again")
	}
}

// Wipe removes what a server that does not run has on disk.
func (s *Server) Wipe() {
	s.t.Helper()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(s.dir, entry.Name())); err != nil {
			s.t.Fatal(err)
		}
	}
}

// Signal sends a signal, such as SIGSTOP and SIGCONT.
func (s *Server) Signal(signal syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
}
