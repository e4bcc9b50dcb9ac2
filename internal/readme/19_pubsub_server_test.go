package readme

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

// The README's three programs have these as variables of theirs, the address with a fixed port.
const (
	password  = "123qwe"
	topicName = "Broadcast"
)

// runPubsubServer is the first of the programs; there it is main, and publishes once a second.
func runPubsubServer(s *pubsub.Server, address string, tick <-chan time.Time) error {
	s.Password = password

	// server publish to all clients
	go func() {
		for i := 0; true; i++ {
			if _, ok := <-tick; !ok {
				return
			}
			s.Publish(topicName, fmt.Sprintf("message from server %v", i))
		}
	}()

	return s.Run(address)
}

// startPubsubServer runs it until the end of the test. It publishes for each value that tick gets.
func startPubsubServer(t *testing.T) (address string, tick chan time.Time) {
	t.Helper()
	address, tick = freeAddr(t), make(chan time.Time)
	s := pubsub.NewServer()
	result := make(chan error, 1)
	go func() { result <- runPubsubServer(s, address, tick) }()
	t.Cleanup(func() {
		close(tick)
		must(t, s.Stop())
		if err := recv(t, result, "return from Run"); !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Run returned %v", err)
		}
	})
	return address, tick
}

func TestPubsubServer(t *testing.T) {
	address, tick := startPubsubServer(t)
	client, err := pubsub.NewClient(dialUntilListening(address))
	must(t, err)
	t.Cleanup(client.Stop)
	client.Password = password
	must(t, client.Authenticate())
	got := make(chan string, 3)
	must(t, client.Subscribe(topicName, func(topic *pubsub.Topic) { got <- string(topic.Data) }, patience))
	for i := range 3 {
		tick <- time.Time{}
		if m := recv(t, got, "message"); m != fmt.Sprintf("message from server %v", i) {
			t.Fatalf("%q", m)
		}
	}
}
