package main

import (
	"context"

	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/log"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/server"
)

var rpcxSystem = &system{
	name: "rpcx", about: "raw bytes, one client per connection", module: "github.com/smallnest/rpcx", baseline: "arpc",
	serve: serveRPCX, dial: dialRPCX,
}

// RPCXEcho is exported because rpcx wants it so.
type RPCXEcho struct{}

// Call answers with the request.
func (RPCXEcho) Call(_ context.Context, req *[]byte, rsp *[]byte) error {
	*rsp = *req
	return nil
}

func serveRPCX() (string, error) {
	log.SetDummyLogger()
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	s := server.NewServer()
	if err := s.RegisterName("Echo", RPCXEcho{}, ""); err != nil {
		return "", err
	}
	go s.ServeListener("tcp", ln)
	return addr, nil
}

type rpcxClient struct {
	*client.Client
}

func dialRPCX(addr string) (any, error) {
	log.SetDummyLogger()
	option := client.DefaultOption
	option.SerializeType = protocol.SerializeNone
	c := client.NewClient(option)
	if err := c.Connect("tcp", addr); err != nil {
		return nil, err
	}
	return rpcxClient{c}, nil
}

func (c rpcxClient) call(_ string, req []byte, rsp *[]byte) error {
	return c.Call(context.Background(), "Echo", "Call", req, rsp)
}
