package embedded

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/arpc-go/arpc/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestStart: a server without an address is for this process, with files that the next one has, too.
func TestStart(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for i := range 2 {
		s, err := Start(Config{Dir: dir})
		must(t, err)
		if s.URL() != "" {
			t.Errorf("it listens at %s", s.URL())
		}
		nc, err := nats.Connect("", nats.InProcessServer(s))
		must(t, err)
		js, err := jetstream.New(nc)
		must(t, err)
		if i == 0 {
			_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "s", Subjects: []string{"s"}})
		} else {
			_, err = js.Stream(ctx, "s")
		}
		must(t, err)
		nc.Close()
		s.Stop()
		s.Stop()
	}
}

// TestStartFails: whatever is wrong is said, and nothing is left running.
func TestStartFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for name, c := range map[string]Config{
		"a file for the directory": {Dir: file},
		"an address in use":        {Addr: ln.Addr().String()},
		"no address":               {Addr: "x"},
		"a cluster without a name": {ClusterAddr: "127.0.0.1:0"},
		"routes without a cluster": {Routes: []string{"nats://127.0.0.1:1"}},
		"a route that is none":     {Name: "a", Cluster: "c", ClusterAddr: "127.0.0.1:0", Routes: []string{"%"}},
	} {
		if s, err := Start(c); err == nil {
			s.Stop()
			t.Errorf("%s: it starts", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}
