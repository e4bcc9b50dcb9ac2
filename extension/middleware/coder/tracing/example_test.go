package tracing_test

import (
	"fmt"
	"net"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/tracing"
)

func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := arpc.NewServer()
	server.Handler.UseCoder(tracing.New())
	server.Handler.Handle("/traced", func(ctx *arpc.Context) {
		span, ok := tracing.From(ctx)
		ctx.Write(fmt.Sprintf("trace %x, span %x: %v", span.TraceID, span.SpanID, ok))
	})
	go server.Serve(ln)
	defer server.Stop()

	handler := arpc.NewHandler()
	handler.UseCoder(tracing.New())
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }, handler)
	if err != nil {
		panic(err)
	}
	defer client.Stop()
	span := tracing.SpanContext{TraceID: 0xabc, SpanID: 0xdef, Sampled: true}
	var answer string
	err = client.Call("/traced", nil, &answer, 5*time.Second, tracing.Values(span))
	fmt.Println(answer, err)
	// Output: trace abc, span def: true <nil>
}
