package etcd_test

import (
	"context"
	"fmt"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/extension/micro/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var hello = arpc.NewMethod[string, string]("/hello", arpc.Idempotent)

// A server publishes itself, and clients call it by the name of its service. It is not run, as it needs an etcd; see examples/micro for a
// program that does.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := etcd.New(etcd.Config{Client: clientv3.Config{Endpoints: []string{"127.0.0.1:2379"}}})
	if err != nil {
		panic(err)
	}
	defer r.Close()

	s := arpc.NewServer()
	hello.Handle(s.Handler, func(_ *arpc.Context, name *string) (*string, error) {
		answer := "hello " + *name
		return &answer, nil
	})
	go s.Run("127.0.0.1:8888")
	p, err := micro.Publish(ctx, r, micro.Node{Service: "greeter", ID: "one", Addr: "127.0.0.1:8888"}, 0)
	if err != nil {
		panic(err)
	}
	defer micro.Shutdown(ctx, s, p)

	c, err := micro.NewClient(ctx, r, "greeter", micro.Config{})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	name := "Bob"
	fmt.Println(hello.Call(ctx, c, &name))
}
