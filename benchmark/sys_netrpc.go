package main

import (
	"net/rpc"
)

var netRPCSystem = &system{
	name: "net/rpc", about: "the standard library's, with gob", baseline: "arpc",
	serve: serveNetRPC, dial: dialNetRPC,
}

// EchoService is exported because net/rpc wants it so.
type EchoService struct{}

// Call answers with the request.
func (EchoService) Call(req *[]byte, rsp *[]byte) error {
	*rsp = *req
	return nil
}

func serveNetRPC() (string, error) {
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	server := rpc.NewServer()
	if err := server.RegisterName("Echo", EchoService{}); err != nil {
		return "", err
	}
	go server.Accept(ln)
	return addr, nil
}

type netRPCClient struct {
	*rpc.Client
}

func dialNetRPC(addr string) (any, error) {
	conn, err := dialLoopback(addr)
	if err != nil {
		return nil, err
	}
	return netRPCClient{rpc.NewClient(conn)}, nil
}

func (c netRPCClient) call(_ string, req []byte, rsp *[]byte) error {
	return c.Call("Echo.Call", req, rsp)
}
