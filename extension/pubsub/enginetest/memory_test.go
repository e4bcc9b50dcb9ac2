package enginetest

import (
	"testing"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestMemory(t *testing.T) {
	Run(t, func(t *testing.T) func() pubsub.Engine {
		e := pubsub.NewMemory(pubsub.MemoryConfig{})
		t.Cleanup(func() { e.Close() })
		return func() pubsub.Engine { return e }
	})
}
