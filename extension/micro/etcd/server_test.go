package etcd

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// patience bounds every wait for something that must happen; it is not spent when all is well.
const patience = 20 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A server is an etcd with a directory and an address of its own, for all its lives.
type server struct {
	addr  string
	dir   string
	start func() error
	stop  func() error
}

// freeAddr returns an address below the ports that systems give to connections: while a server is down, a client that tries to connect could
// get its port, and connect to itself.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 20 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(20_000+rand.IntN(10_000)))
		if ln, err := net.Listen("tcp", addr); err == nil {
			must(t, ln.Close())
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

// embedded starts an etcd in this process until the end of the test.
func embedded(t testing.TB) *server {
	t.Helper()
	s := member(t, "default", "127.0.0.1:0", "default=http://127.0.0.1:0", 1000)
	must(t, s.start())
	return s
}

// member makes a member of a cluster, which is to be started. It listens for the others at peer, and misses the leader after some milliseconds.
func member(t testing.TB, name, peer, cluster string, election uint) *server {
	t.Helper()
	// Connections are cut when it is stopped: it would wait for the streams to end.
	addr := freeAddr(t)
	way := newCable(t, addr)
	s := &server{addr: way.addr, dir: filepath.Join(t.TempDir(), name)}
	var e *embed.Etcd
	s.start = func() (err error) {
		c := embed.NewConfig()
		c.Name, c.Dir, c.UnsafeNoFsync, c.BcryptCost = name, s.dir, true, 4
		c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
		client, peer := url.URL{Scheme: "http", Host: addr}, url.URL{Scheme: "http", Host: peer}
		c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
		c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		c.InitialCluster, c.ElectionMs, c.TickMs = cluster, election, election/10
		if e, err = embed.StartEtcd(c); err != nil {
			return err
		}
		select {
		case <-e.Server.ReadyNotify():
			way.setCut(false)
			return nil
		case <-time.After(patience):
			e.Close()
			e = nil
			return fmt.Errorf("etcd is not ready within %v", patience)
		}
	}
	s.stop = func() error {
		way.setCut(true)
		if e != nil {
			e.Close()
			e = nil
		}
		return nil
	}
	t.Cleanup(func() { must(t, s.stop()) })
	return s
}

var install = sync.OnceValue(func() error {
	if out, err := exec.Command("testdata/install-etcd.sh").CombinedOutput(); err != nil {
		return fmt.Errorf("installing etcd: %w\n%s", err, out)
	}
	return nil
})

// process starts the system's etcd until the end of the test. It is killed to be stopped.
func process(t testing.TB) *server {
	t.Helper()
	must(t, install())
	s := &server{addr: freeAddr(t), dir: filepath.Join(t.TempDir(), "data")}
	var cmd *exec.Cmd
	s.start = func() error {
		client, peer := "http://"+s.addr, "http://127.0.0.1:0"
		cmd = exec.Command("etcd", "--data-dir", s.dir, "--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--log-level", "error")
		if err := cmd.Start(); err != nil {
			return err
		}
		for end := time.Now().Add(patience); time.Now().Before(end); {
			if text, err := get(client + "/health"); err == nil && strings.Contains(text, "true") {
				return nil
			}
			<-time.After(10 * time.Millisecond) // another process; nothing says that it is ready
		}
		return fmt.Errorf("etcd is not ready within %v", patience)
	}
	s.stop = func() error {
		if cmd.ProcessState == nil {
			cmd.Process.Kill() //nolint:errcheck // it may have ended
			cmd.Wait()         //nolint:errcheck // it was killed
		}
		return nil
	}
	t.Cleanup(func() { must(t, s.stop()) })
	must(t, s.start())
	return s
}

// get does not keep its connection, as goroutines are counted.
func get(url string) (string, error) {
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// watches returns how many the server has, as it says itself.
func (s *server) watches(t testing.TB) int {
	t.Helper()
	text, err := get("http://" + s.addr + "/metrics")
	must(t, err)
	for line := range strings.Lines(text) {
		if n, ok := strings.CutPrefix(line, "etcd_debugging_mvcc_watcher_total "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(n), 64)
			must(t, err)
			return int(v)
		}
	}
	t.Fatal("the server does not count its watches")
	return 0
}

// wipe removes the data of a server that is stopped.
func (s *server) wipe(t testing.TB) {
	t.Helper()
	must(t, os.RemoveAll(s.dir))
}

// client connects to the server without a Registry.
func (s *server) client(t testing.TB) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.addr}, Logger: zap.NewNop()})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

// open opens a Registry until the end of the test.
func (s *server) open(t testing.TB, change ...func(*Config)) *Registry {
	t.Helper()
	c := Config{Client: clientv3.Config{Endpoints: []string{s.addr}}}
	for _, f := range change {
		f(&c)
	}
	r, err := New(c)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

func bounded(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A cable is a way to a server that can be cut.
type cable struct {
	addr string
	to   string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
	group sync.WaitGroup
}

func newCable(t testing.TB, to string) *cable {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := &cable{addr: ln.Addr().String(), to: to, conns: map[net.Conn]struct{}{}}
	c.group.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			c.group.Go(func() { c.serve(nc) })
		}
	})
	t.Cleanup(func() {
		ln.Close() //nolint:errcheck // it is over
		c.setCut(true)
		c.group.Wait()
	})
	return c
}

func (c *cable) serve(near net.Conn) {
	defer near.Close() //nolint:errcheck // it is over
	far, err := net.Dial("tcp", c.to)
	if err != nil {
		return
	}
	defer far.Close() //nolint:errcheck // it is over
	c.mu.Lock()
	if c.cut {
		c.mu.Unlock()
		return
	}
	c.conns[near], c.conns[far] = struct{}{}, struct{}{}
	c.mu.Unlock()
	c.group.Go(func() {
		io.Copy(far, near) //nolint:errcheck // it is cut
		far.Close()        //nolint:errcheck // it is over
	})
	io.Copy(near, far) //nolint:errcheck // it is cut
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, near)
	delete(c.conns, far)
}

func (c *cable) setCut(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	for nc := range c.conns {
		if cut {
			nc.Close() //nolint:errcheck // it is cut
		}
	}
}
