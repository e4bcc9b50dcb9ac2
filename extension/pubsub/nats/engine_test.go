package nats

import (
	"testing"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/enginetest"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
)

func TestSuite(t *testing.T) {
	t.Parallel()
	enginetest.Run(t, func(t *testing.T) func() pubsub.Engine {
		s := start(t, embedded.Config{})
		return func() pubsub.Engine { return open(t, Config{Server: s, Heartbeat: beat}) }
	})
}

func TestProcesses(t *testing.T) {
	t.Parallel()
	enginetest.RunProcesses(t, func(t *testing.T) string { return start(t, embedded.Config{Addr: "127.0.0.1:0"}).URL() }, openAt)
}
