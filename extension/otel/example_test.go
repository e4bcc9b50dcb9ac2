package otelarpc_test

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/arpc-go/arpc"
	otelarpc "github.com/arpc-go/arpc/extension/otel"
)

type Order struct{ What string }

var (
	Buy = arpc.NewMethod[Order, Order]("/buy")  // of the server
	Ask = arpc.NewMethod[Order, Order]("/sure") // of the client, which the server calls back
)

// A call that is answered after a call back is one trace.
func Example() {
	exporter := tracetest.NewInMemoryExporter() // in a program: an OTLP exporter, with trace.WithBatcher
	provider := trace.NewTracerProvider(trace.WithSyncer(exporter))
	observer := otelarpc.NewObserver(otelarpc.WithTracerProvider(provider))

	server := arpc.NewServer(arpc.NewHandler())
	server.Handler.SetObserver(observer)
	observer.Watch("shop", server.Stats)
	Buy.Handle(server.Handler, func(ctx *arpc.Context, o *Order) (*Order, error) {
		return Ask.Call(ctx, ctx.Client, o) // ctx carries the trace
	})
	listener, dial := arpc.Pipe()
	go server.Serve(listener)

	handler := arpc.NewHandler()
	handler.SetObserver(observer)
	Ask.Handle(handler, func(_ *arpc.Context, o *Order) (*Order, error) { return o, nil })
	client, err := arpc.NewClient(dial, handler)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, click := provider.Tracer("shop").Start(context.Background(), "click")
	bought, err := Buy.Call(ctx, client, &Order{"tea"})
	click.End()
	fmt.Println(bought.What, err)
	client.Stop()
	server.Stop()

	traces := map[string]bool{}
	for _, s := range exporter.GetSpans() {
		traces[s.SpanContext.TraceID().String()] = true
	}
	fmt.Println(len(exporter.GetSpans()), "spans,", len(traces), "trace")
	// Output:
	// tea <nil>
	// 5 spans, 1 trace
}
