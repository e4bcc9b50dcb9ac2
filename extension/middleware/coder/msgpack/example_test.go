package msgpack_test

import (
	"fmt"
	"net"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/msgpack"
)

func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := arpc.NewServer()
	server.Handler.UseCoder(msgpack.New())
	server.Handler.Handle("/greet", func(ctx *arpc.Context) {
		name, _ := ctx.Get("name")
		ctx.Write(fmt.Sprintf("hello, %v", name))
	})
	go server.Serve(ln)
	defer server.Stop()

	handler := arpc.NewHandler()
	handler.UseCoder(msgpack.New())
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }, handler)
	if err != nil {
		panic(err)
	}
	defer client.Stop()
	var answer string
	err = client.Call("/greet", nil, &answer, 5*time.Second, map[any]any{"name": "world"})
	fmt.Println(answer, err)
	// Output: hello, world <nil>
}
