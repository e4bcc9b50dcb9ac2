package coder_test

import (
	"fmt"
	"net"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder"
)

// tenant sends a string under the key "tenant" with each message that has one.
func tenant() *coder.Appender {
	return coder.NewAppender("tenant", 1,
		func(v any) ([]byte, error) { return []byte(v.(string)), nil },
		func(b []byte) (any, error) { return string(b), nil })
}

func ExampleAppender() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := arpc.NewServer()
	server.Handler.UseCoder(tenant())
	server.Handler.Handle("/whoami", func(ctx *arpc.Context) {
		v, _ := ctx.Get("tenant")
		ctx.Write(fmt.Sprint(v))
	})
	go server.Serve(ln)
	defer server.Stop()

	handler := arpc.NewHandler()
	handler.UseCoder(tenant())
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }, handler)
	if err != nil {
		panic(err)
	}
	defer client.Stop()
	var answer string
	err = client.Call("/whoami", nil, &answer, 5*time.Second, map[any]any{"tenant": "acme"})
	fmt.Println(answer, err)
	// Output: acme <nil>
}
