package readme

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
)

func sprintf(format string, v ...any) string { return fmt.Sprintf(format, v...) }

// runPubsubPublisher is the third of the programs; there it is main, and publishes for ever, once a second.
func runPubsubPublisher(dial func() (net.Conn, error), n int) {
	client, err := pubsub.NewClient(dial)
	if err != nil {
		panic(err)
	}
	client.Password = password
	defer client.Stop()

	// authentication
	err = client.Authenticate()
	if err != nil {
		panic(err)
	}

	for i := 0; i < n; i++ {
		if i%5 == 0 {
			client.Publish(topicName, fmt.Sprintf("message from client %d", i), time.Second*10)
		} else {
			client.PublishToOne(topicName, fmt.Sprintf("message from client %d", i), time.Second*10)
		}
	}
}

func TestPubsubPublisher(t *testing.T) {
	address, _ := startPubsubServer(t)
	const n = 20
	got := make(chan string, 100)
	for range 2 {
		client, err := pubsub.NewClient(dialUntilListening(address))
		must(t, err)
		t.Cleanup(client.Stop)
		client.Password = password
		must(t, client.Authenticate())
		must(t, client.Subscribe(topicName, func(topic *pubsub.Topic) { got <- string(topic.Data) }, patience))
	}
	runPubsubPublisher(dialUntilListening(address), n)
	seen := map[string]int{}
	for range n + n/5 {
		seen[recv(t, got, "message")]++
	}
	for i := range n {
		want := 1
		if i%5 == 0 {
			want = 2
		}
		if m := fmt.Sprintf("message from client %d", i); seen[m] != want {
			t.Errorf("%q came %d times, not %d", m, seen[m], want)
		}
	}
}
