package main

import (
	"context"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
)

// What calling a service by name costs: the same calls as arpc-go, each connection that of a micro client with one node.
var microSystem = &system{
	name: "arpc-go-micro", about: "this project through extension/micro, a static registry of one node", module: arpcGoModule, baseline: defaultName,
	serve: func() (string, error) { return serveArpcGo(nil, answerArpcGo) },
	dial: func(addr string) (any, error) {
		r, err := micro.NewStatic(micro.Node{Service: "echo", ID: "one", Addr: addr})
		if err != nil {
			return nil, err
		}
		c, err := micro.NewClient(context.Background(), r, "echo", micro.Config{Options: []arpc.ClientOption{arpc.NewHandler()}})
		return microClient{c}, err
	},
}

type microClient struct{ *micro.Client }

func (c microClient) call(route string, req []byte, rsp *[]byte) error {
	return c.Call(route, req, rsp, callTimeout)
}
