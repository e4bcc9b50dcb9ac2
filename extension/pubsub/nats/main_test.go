package nats

import (
	"context"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/enginetest"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
	"github.com/arpc-go/arpc/internal/leak"
)

// patience bounds every wait for something that must happen; it is not spent when all is well.
const patience = 20 * time.Second

// beat is the time between heartbeats. It is not shorter, as a busy machine may stop a process for a while, and its members would
// have left.
const beat = 500 * time.Millisecond

func TestMain(m *testing.M) {
	enginetest.Child(openAt)
	leak.Main(m)
}

// openAt is how a process of its own gets an engine.
func openAt(url string) (pubsub.Engine, error) {
	e, err := New(context.Background(), Config{URL: url, Heartbeat: beat})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// start runs a nats-server with JetStream until the end of the test.
func start(t testing.TB, c embedded.Config) *embedded.Server {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	s, err := embedded.Start(c)
	must(t, err)
	t.Cleanup(s.Stop)
	return s
}

// open makes an engine that is closed at the end of the test.
func open(t testing.TB, c Config) *Engine {
	t.Helper()
	e, err := New(within(t), c)
	must(t, err)
	t.Cleanup(func() { e.Close() })
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
