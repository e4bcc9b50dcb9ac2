package main

import (
	"context"

	"storj.io/drpc"
	"storj.io/drpc/drpcconn"
	"storj.io/drpc/drpcserver"
)

var drpcSystem = &system{
	name: "drpc", about: "one call in flight per connection, the others wait (it does not multiplex)",
	module: "storj.io/drpc", baseline: "arpc",
	serve: serveDRPC, dial: dialDRPC,
}

// drpcBytes is an encoding for *[]byte.
type drpcBytes struct{}

func (drpcBytes) Marshal(msg drpc.Message) ([]byte, error) { return *msg.(*[]byte), nil }

func (drpcBytes) Unmarshal(buf []byte, msg drpc.Message) error {
	*msg.(*[]byte) = append([]byte(nil), buf...) // buf is drpc's
	return nil
}

type drpcEcho struct{}

func (drpcEcho) HandleRPC(stream drpc.Stream, _ string) error {
	var b []byte
	if err := stream.MsgRecv(&b, drpcBytes{}); err != nil {
		return err
	}
	if err := stream.MsgSend(&b, drpcBytes{}); err != nil {
		return err
	}
	return stream.CloseSend()
}

func serveDRPC() (string, error) {
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	go drpcserver.New(drpcEcho{}).Serve(context.Background(), ln)
	return addr, nil
}

type drpcClient struct {
	*drpcconn.Conn
}

func dialDRPC(addr string) (any, error) {
	conn, err := dialLoopback(addr)
	if err != nil {
		return nil, err
	}
	return drpcClient{drpcconn.New(conn)}, nil
}

func (c drpcClient) call(route string, req []byte, rsp *[]byte) error {
	return c.Invoke(context.Background(), route, drpcBytes{}, &req, rsp)
}
