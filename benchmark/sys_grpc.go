package main

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

var grpcSystem = &system{
	name: "grpc", about: "unary calls over HTTP/2, bytes as they are (no protobuf)",
	module: "google.golang.org/grpc", baseline: "arpc",
	serve: serveGRPC, dial: dialGRPC,
}

const grpcMethod = "/benchmark.Echo/Call"

// grpcBytes is a codec for *[]byte.
type grpcBytes struct{}

func (grpcBytes) Name() string { return "bytes" }

func (grpcBytes) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (grpcBytes) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func serveGRPC() (string, error) {
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(grpcBytes{}))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "benchmark.Echo",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Call",
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				req := new([]byte)
				if err := decode(req); err != nil {
					return nil, err
				}
				return req, nil
			},
		}},
	}, nil)
	go server.Serve(ln)
	return addr, nil
}

type grpcClient struct {
	*grpc.ClientConn
	options []grpc.CallOption
}

func dialGRPC(addr string) (any, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(_ context.Context, addr string) (net.Conn, error) { return dialLoopback(addr) }),
	)
	if err != nil {
		return nil, err
	}
	// The connection is opened now, not by the first call.
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return nil, ctx.Err()
		}
	}
	return grpcClient{conn, []grpc.CallOption{grpc.ForceCodecV2(grpcBytes{})}}, nil
}

func (c grpcClient) call(_ string, req []byte, rsp *[]byte) error {
	return c.Invoke(context.Background(), grpcMethod, &req, rsp, c.options...)
}
