package nats_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
)

// Two servers, as in two processes, whose topics are the same.
func Example() {
	dir, err := os.MkdirTemp("", "topics")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ns, err := embedded.Start(embedded.Config{Dir: dir})
	if err != nil {
		panic(err)
	}
	defer ns.Stop()
	ctx := context.Background()
	serve := func() (server *pubsub.Server, stop func(), dial func() (net.Conn, error)) {
		engine, err := nats.New(ctx, nats.Config{Server: ns})
		if err != nil {
			panic(err)
		}
		server, err = pubsub.NewServerWith(pubsub.Config{
			Engine:  engine,
			Topics:  func(string) pubsub.TopicConfig { return pubsub.TopicConfig{HistorySize: 100, HistoryAge: time.Hour} },
			Require: pubsub.Capabilities{History: true, Shared: true},
		})
		if err != nil {
			panic(err)
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		go server.Serve(ln) //nolint:errcheck // it ends with Stop
		stop = func() {
			server.Stop()
			engine.Close()
		}
		return server, stop, func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }
	}
	one, stopOne, _ := serve()
	defer stopOne()
	_, stopTwo, dial := serve()
	defer stopTwo()

	if err = one.Publish("news", "kept"); err != nil {
		panic(err)
	}
	client, err := pubsub.NewClient(dial)
	if err != nil {
		panic(err)
	}
	defer client.Stop()
	got := make(chan string, 10)
	_, err = client.SubscribeWith(ctx, "news", func(m *pubsub.Message) { got <- string(m.Data) }, pubsub.Last(1))
	if err != nil {
		panic(err)
	}
	if err = one.Publish("news", "fresh"); err != nil {
		panic(err)
	}
	fmt.Println(<-got)
	fmt.Println(<-got)
	// Output:
	// kept
	// fresh
}
