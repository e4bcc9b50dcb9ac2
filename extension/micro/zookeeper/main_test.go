package zookeeper

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/extension/micro/registrytest"
	"github.com/arpc-go/arpc/extension/micro/zookeeper/internal/zktest"
	"github.com/arpc-go/arpc/internal/leak"
)

const (
	// patience bounds every wait for something that must happen; it is not spent when all is well.
	patience = 20 * time.Second
	// testSession is long enough for machines that are busy: a third of it may pass until the answer to a ping comes.
	testSession = 2400 * time.Millisecond
	testTTL     = 2500 * time.Millisecond
)

func TestMain(m *testing.M) {
	registrytest.Provider(openAt)
	leak.Main(m)
}

func openAt(target string) (micro.Registry, error) {
	return New(Config{Servers: []string{target}, SessionTimeout: testSession})
}

// TestRegistry runs the suite. ARPC_OUTAGE is how long ZooKeeper is down in it, for longer tests.
func TestRegistry(t *testing.T) {
	server := zktest.Start(t)
	store := registrytest.Store{
		Open: openAt, Target: server.Addr, TTL: testTTL,
		Stop:  func() error { server.Kill(); return nil },
		Start: server.Restart,
		Watches: func() int {
			n, _ := server.Metric("zk_watch_count")
			return n
		},
	}
	if outage := os.Getenv("ARPC_OUTAGE"); outage != "" {
		var err error
		store.Outage, err = time.ParseDuration(outage)
		must(t, err)
	}
	registrytest.Run(t, store)
}

// open makes a Registry that is closed at the end of the test.
func open(t testing.TB, c Config) *Registry {
	t.Helper()
	if c.SessionTimeout == 0 {
		c.SessionTimeout = testSession
	}
	r, err := New(c)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// waitFor polls for what no event tells.
func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}
