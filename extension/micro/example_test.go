package micro_test

import (
	"context"
	"fmt"
	"net"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
)

type (
	Request  struct{ Name string }
	Response struct{ Text string }
)

// Greet may be carried out twice without harm, so a call whose connection breaks is made again, at another node.
var Greet = arpc.NewMethod[Request, Response]("/greet", arpc.Idempotent)

// serve starts a provider: a server, and its node in the registry.
func serve(ctx context.Context, registry micro.Registry, id string) (*arpc.Server, *micro.Publication, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	server := arpc.NewServer(arpc.NewHandler())
	Greet.Handle(server.Handler, func(_ *arpc.Context, req *Request) (*Response, error) {
		return &Response{"hello " + req.Name}, nil
	})
	go server.Serve(listener)
	node := micro.Node{Service: "greeter", ID: id, Addr: listener.Addr().String(), Meta: map[string]string{"zone": "a"}}
	published, err := micro.Publish(ctx, registry, node, 0)
	return server, published, err
}

func run(ctx context.Context) error {
	registry := micro.NewMemory() // or etcd.New(...), zookeeper.New(...), micro.NewDNS(...)
	defer registry.Close()
	first, published, err := serve(ctx, registry, "first")
	if err != nil {
		return err
	}
	second, _, err := serve(ctx, registry, "second")
	if err != nil {
		return err
	}
	defer second.Stop()

	client, err := micro.NewClient(ctx, registry, "greeter", micro.Config{Balancer: micro.Locality("a", micro.LeastLoaded())})
	if err != nil {
		return err
	}
	defer client.Close()
	for i := range 100 {
		if i == 50 { // the first one leaves, and nobody notices
			if err := micro.Shutdown(ctx, first, published); err != nil {
				return err
			}
		}
		if _, err := Greet.Call(ctx, client, &Request{"Bob"}); err != nil {
			return err
		}
	}
	fmt.Println("100 calls,", len(client.Stats().Nodes), "node left")
	return nil
}

func Example() {
	if err := run(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output: 100 calls, 1 node left
}
