// The pubsub server keeps topics for the pubsub publisher and subscribers, and says something on the topic Broadcast itself once
// a second. Each topic remembers its last hundred messages, so that a subscriber that connects again misses nothing. It stops on
// Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8890", "address to listen on")
	password := flag.String("password", "123qwe", "password of the clients")
	every := flag.Duration("every", time.Second, "time between the server's own messages; 0 for none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, *password, *every); err != nil {
		fmt.Fprintln(os.Stderr, "pubsub server:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr, password string, every time.Duration) error {
	server, err := pubsub.NewServerWith(pubsub.Config{
		Password: password,
		Topics:   func(string) pubsub.TopicConfig { return pubsub.TopicConfig{HistorySize: 100, HistoryAge: time.Hour} },
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	var tick <-chan time.Time
	if every > 0 {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		tick = ticker.C
	}
	for i := 0; ; i++ {
		select {
		case <-tick:
			if err := server.Publish("Broadcast", fmt.Sprintf("message from server %d", i)); err != nil {
				return err
			}
		case err := <-served:
			return err
		case <-ctx.Done():
			fmt.Println("stopping")
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if err := server.Shutdown(ctx); err != nil {
				return err
			}
			if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
				return err
			}
			return nil
		}
	}
}
