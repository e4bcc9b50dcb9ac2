package action_test

import (
	"context"
	"fmt"
	"log"

	"github.com/arpc-go/arpc/extension/action"
)

// A server and a client, with types.
func Example() {
	type Request struct{ Name string }
	type Response struct{ Greeting string }

	instance := action.New()
	addr, err := instance.ListenTCP("127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	instance.Router().Route(1, action.StandardHandler(func(_ *action.Context, req *Request) (*Response, error) {
		return &Response{"Hello " + req.Name}, nil
	}))
	stop, stopped := make(chan struct{}), make(chan error)
	go func() { stopped <- instance.Run(stop) }()

	ctx := context.Background()
	client, err := action.DialTCP(ctx, addr.String())
	if err != nil {
		log.Fatal(err)
	}
	var rsp Response
	if err := client.Call(ctx, 1, Request{"world"}, &rsp); err != nil {
		log.Fatal(err)
	}
	fmt.Println(rsp.Greeting)
	client.Close()
	close(stop)
	fmt.Println(<-stopped)
	// Output:
	// Hello world
	// <nil>
}
