package nats

import (
	"testing"

	"github.com/arpc-go/arpc/extension/pubsub/enginetest"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
)

// TestChaos runs for eight seconds, and longer by the environment variable ARPC_CHAOS: ARPC_CHAOS=2m.
func TestChaos(t *testing.T) {
	s := start(t, embedded.Config{Addr: "127.0.0.1:0"})
	enginetest.Chaos(t, s.URL())
}
