package redis

import (
	"context"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/enginetest"
	"github.com/arpc-go/arpc/extension/pubsub/redis/internal/redistest"
	"github.com/arpc-go/arpc/internal/leak"
)

// patience bounds every wait for something that must happen; it is not spent when all is well.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	enginetest.Child(openAt)
	leak.Main(m)
}

// testConfig is that of the engines of the tests.
func testConfig(addr string) Config {
	return Config{Client: rueidis.ClientOption{InitAddress: []string{addr}}, PresenceTTL: time.Second}
}

func openAt(addr string) (pubsub.Engine, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return New(ctx, testConfig(addr))
}

// open makes an engine that is closed at the end of the test.
func open(t testing.TB, c Config) *Engine {
	t.Helper()
	e, err := New(within(t), c)
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	return e
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// waitFor polls for what no event tells.
func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestEngine runs the suite on one server, which is emptied for each test.
func TestEngine(t *testing.T) {
	server := redistest.Start(t)
	enginetest.Run(t, func(t *testing.T) func() pubsub.Engine {
		c := testConfig(server.Addr)
		c.Prefix = t.Name() + ":"
		return func() pubsub.Engine { return open(t, c) }
	})
}

// TestCluster runs the suite on a Redis Cluster.
func TestCluster(t *testing.T) {
	servers := redistest.StartCluster(t)
	enginetest.Run(t, func(t *testing.T) func() pubsub.Engine {
		next := 0
		return func() pubsub.Engine {
			next++
			c := testConfig(servers[next%len(servers)].Addr)
			c.Prefix = t.Name() + ":"
			return open(t, c)
		}
	})
}

func TestProcesses(t *testing.T) {
	enginetest.RunProcesses(t, func(t *testing.T) string { return redistest.Start(t).Addr }, openAt)
}
