package zstd_test

import (
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/zstd"
)

func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := arpc.NewServer()
	server.Handler.UseCoder(zstd.New())
	server.Handler.Handle("/echo", func(ctx *arpc.Context) {
		var text string
		if ctx.Bind(&text) == nil {
			ctx.Write(text)
		}
	})
	go server.Serve(ln)
	defer server.Stop()

	handler := arpc.NewHandler()
	coder := zstd.New(512)         // compress what is longer than 512 bytes
	coder.MaxDecodedLen = 16 << 20 // and take no more than 16 MiB
	handler.UseCoder(coder)
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }, handler)
	if err != nil {
		panic(err)
	}
	defer client.Stop()
	var answer string
	err = client.Call("/echo", strings.Repeat("again and ", 1000)+"again", &answer, 5*time.Second)
	fmt.Println(len(answer), err)
	// Output: 10005 <nil>
}
