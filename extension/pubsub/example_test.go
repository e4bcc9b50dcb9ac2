package pubsub_test

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
)

// Price is what the topic of the example is about.
type Price struct {
	Symbol string
	Cents  int
}

var Prices = pubsub.NewTopic[Price]("prices")

func Example() {
	server, err := pubsub.NewServerWith(pubsub.Config{
		Topics: func(string) pubsub.TopicConfig { return pubsub.TopicConfig{HistorySize: 100, HistoryAge: time.Hour} },
	})
	if err != nil {
		panic(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go server.Serve(listener)
	defer server.Stop()

	client, err := pubsub.NewClient(func() (net.Conn, error) { return net.Dial("tcp", listener.Addr().String()) })
	if err != nil {
		panic(err)
	}
	defer client.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err = Prices.Publish(ctx, server, &Price{"ARPC", 99}); err != nil {
		panic(err)
	}
	got := make(chan bool)
	_, err = Prices.Subscribe(ctx, client, func(p *Price, m *pubsub.Message) {
		fmt.Println(p.Symbol, p.Cents, "at", m.Position.Offset)
		got <- true
	}, pubsub.Last(1), pubsub.OnEvent(func(e pubsub.Event) {
		fmt.Println("subscribed, resumed:", e.Resumed)
	}))
	if err != nil {
		panic(err)
	}
	<-got
	if _, err = Prices.Publish(ctx, client, &Price{"ARPC", 101}); err != nil {
		panic(err)
	}
	<-got
	// Output:
	// subscribed, resumed: false
	// ARPC 99 at 1
	// ARPC 101 at 2
}
