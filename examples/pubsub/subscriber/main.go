// The pubsub subscriber prints the messages of a topic, or of all topics that match a pattern such as "news.*". When its
// connection is lost it connects again, and says whether it has missed anything. It stops on Ctrl-C.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8890", "address of the server")
	password := flag.String("password", "123qwe", "password of the server")
	topic := flag.String("topic", "Broadcast", "topic or pattern")
	last := flag.Int("last", 0, "number of past messages to begin with")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, *password, *topic, *last); err != nil {
		fmt.Fprintln(os.Stderr, "pubsub subscriber:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr, password, topic string, last int) error {
	client, err := pubsub.NewClient(func() (net.Conn, error) {
		return net.DialTimeout("tcp", addr, 5*time.Second)
	})
	if err != nil {
		return err
	}
	defer client.Stop()
	client.Password = password
	if err := client.AuthenticateWith(ctx); err != nil {
		return err
	}
	sub, err := client.SubscribeWith(ctx, topic, func(m *pubsub.Message) {
		fmt.Printf("%s [%s] %q\n", time.Unix(0, m.Timestamp).Format("15:04:05.000"), m.Topic, m.Data)
	}, pubsub.Last(last), pubsub.OnEvent(func(e pubsub.Event) {
		switch {
		case e.Kind == pubsub.EventSubscribed && !e.Resumed:
			fmt.Println("subscribed to", topic)
		case e.Kind == pubsub.EventSubscribed && e.Recovered:
			fmt.Println("subscribed again, nothing is missing")
		case e.Kind == pubsub.EventSubscribed:
			fmt.Println("subscribed again, messages may be missing")
		case e.Kind == pubsub.EventLost:
			fmt.Println("too slow,", e.Lost, "messages lost")
		}
	}))
	if err != nil {
		return err
	}
	select {
	case <-sub.Done():
		return sub.Err()
	case <-ctx.Done():
		fmt.Println("stopping")
		return nil
	}
}
