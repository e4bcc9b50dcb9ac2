// Package zktest runs real ZooKeeper servers for tests. It installs ZooKeeper with install.sh if there is none.
package zktest

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

//go:embed install.sh
var installer string

var install = sync.OnceValue(func() error {
	out, err := exec.Command("bash", "-c", installer).CombinedOutput()
	if err != nil {
		return fmt.Errorf("installing ZooKeeper: %w\n%s", err, out)
	}
	return nil
})

// patience bounds the wait for a server.
const patience = 30 * time.Second

// Tick is that of the servers, which let a session expire up to one too late. Its double is the least timeout of a session.
const Tick = 200 * time.Millisecond

// A Server is a process with a directory of its own, at one address for all its lives.
type Server struct {
	// Addr is where it listens.
	Addr string

	dir    string
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start starts a server, which ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	return StartEnsemble(t, 1)[0]
}

// StartEnsemble starts servers that are one ZooKeeper, and end with the test.
func StartEnsemble(t testing.TB, n int) []*Server {
	t.Helper()
	if err := install(); err != nil {
		t.Fatal(err)
	}
	const attempts = 5 // somebody else may take a port meanwhile
	var err error
	for range attempts {
		var servers []*Server
		if servers, err = start(t, n); err == nil {
			return servers
		}
	}
	t.Fatal(err)
	return nil
}

func start(t testing.TB, n int) (servers []*Server, err error) {
	dir := t.TempDir()
	var ensemble strings.Builder
	for i := range n {
		s := &Server{Addr: net.JoinHostPort("127.0.0.1", freePort(t)), dir: filepath.Join(dir, strconv.Itoa(i))}
		servers = append(servers, s)
		if n > 1 {
			fmt.Fprintf(&ensemble, "server.%d=127.0.0.1:%s:%s\n", i, freePort(t), freePort(t))
		}
	}
	for i, s := range servers {
		_, port, _ := net.SplitHostPort(s.Addr) //nolint:errcheck // it is ours
		config := fmt.Sprintf("tickTime=%d\ninitLimit=50\nsyncLimit=25\ndataDir=%s\nclientPortAddress=127.0.0.1\nclientPort=%s\nmaxSessionTimeout=60000\n",
			Tick.Milliseconds(), s.data(), port) + "admin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n" + ensemble.String()
		err := errors.Join(os.MkdirAll(s.data(), 0o700), os.WriteFile(filepath.Join(s.data(), "myid"), []byte(strconv.Itoa(i)), 0o600),
			os.WriteFile(s.config(), []byte(config), 0o600))
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() {
			s.Kill()
			if t.Failed() {
				log, _ := os.ReadFile(filepath.Join(s.dir, "log")) //nolint:errcheck // the test has failed anyway
				t.Logf("zookeeper: %s", log[max(0, len(log)-4000):])
			}
		})
		if err := s.start(); err != nil {
			return nil, err
		}
	}
	for _, s := range servers {
		if err := s.await(); err != nil {
			return nil, err
		}
	}
	return servers, nil
}

// freePort returns a port that nobody uses, below those that systems give to connections: while a server is down, a client that tries
// to connect could get its port, and connect to itself.
func freePort(t testing.TB) string {
	t.Helper()
	const attempts = 20
	for range attempts {
		port := strconv.Itoa(20_000 + rand.IntN(10_000))
		if ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			ln.Close() //nolint:errcheck // it is free again
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

func (s *Server) data() string   { return filepath.Join(s.dir, "data") }
func (s *Server) config() string { return filepath.Join(s.dir, "zoo.cfg") }

// Restart starts the process, with what the one before has stored, and waits until it serves.
func (s *Server) Restart() error {
	if err := s.start(); err != nil {
		return err
	}
	return s.await()
}

func (s *Server) start() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the process has its own
	s.cmd = exec.Command("java", "-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dzookeeper.forceSync=no",
		"-cp", "/usr/share/java/zookeeper.jar", "org.apache.zookeeper.server.quorum.QuorumPeerMain", s.config())
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		cmd.Wait() //nolint:errcheck // it was killed
		close(exited)
	}(s.cmd, s.exited)
	return nil
}

// await waits until the server serves.
func (s *Server) await() error {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, serves := s.Metric("zk_watch_count"); serves {
			return nil
		}
		select {
		case <-s.exited:
			return errors.New("zookeeper has ended")
		case <-time.After(5 * time.Millisecond): // another process; nothing says that it is ready
		}
	}
	s.Kill()
	return errors.New("zookeeper does not answer")
}

// Metric returns one of the numbers that the server tells of itself; ok is false if it does not serve.
func (s *Server) Metric(name string) (n int, ok bool) {
	nc, err := net.DialTimeout("tcp", s.Addr, time.Second)
	if err != nil {
		return 0, false
	}
	defer nc.Close() //nolint:errcheck // only read from
	// A server that is starting takes connections that it forgets.
	nc.SetDeadline(time.Now().Add(300 * time.Millisecond)) //nolint:errcheck // the read fails too
	fmt.Fprint(nc, "mntr")                                 //nolint:errcheck // the read fails too
	text, _ := io.ReadAll(io.LimitReader(nc, 1e6))         //nolint:errcheck // what came is looked at
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, name+"\t"); found {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			return n, err == nil
		}
	}
	return 0, false
}

// Kill ends the server as kill -9 does, and waits until it is gone.
func (s *Server) Kill() {
	if s.exited == nil {
		return
	}
	s.cmd.Process.Kill() //nolint:errcheck // it may have ended
	<-s.exited
}

// Wipe removes what a server that does not run has stored.
func (s *Server) Wipe() error { return os.RemoveAll(s.data()) }

// Pause stops all threads of the process, until Resume. It returns when they stand still, which is not yet so when the signal has been sent.
func (s *Server) Pause() error {
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.cmd.Process.Pid))
		if err != nil {
			return err
		}
		moving := slices.ContainsFunc(stats, func(path string) bool {
			text, err := os.ReadFile(path)
			_, state, _ := strings.Cut(string(text), ") ") // behind the name of the thread
			return err != nil || !strings.HasPrefix(state, "T")
		})
		if len(stats) > 0 && !moving {
			return nil
		}
		<-time.After(time.Millisecond) // another process
	}
	return errors.New("zookeeper does not stop")
}

// Resume ends a Pause.
func (s *Server) Resume() error { return s.cmd.Process.Signal(syscall.SIGCONT) }
