// The pubsub publisher publishes each line of its standard input to a topic, to all of its subscribers, or, with -one, to one.
// It stops at the end of the input.
package main

import (
	"bufio"
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
	topic := flag.String("topic", "Broadcast", "topic")
	one := flag.Bool("one", false, "publish to one subscriber")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, *password, *topic, *one); err != nil {
		fmt.Fprintln(os.Stderr, "pubsub publisher:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr, password, topic string, one bool) error {
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
	var opts []pubsub.PublishOption
	if one {
		opts = append(opts, pubsub.ToOne())
	}
	for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
		receipt, err := client.PublishWith(ctx, topic, scanner.Text(), opts...)
		if err != nil {
			return err
		}
		fmt.Println("published at offset", receipt.Position.Offset)
	}
	return nil
}
