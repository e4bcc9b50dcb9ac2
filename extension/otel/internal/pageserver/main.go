// Command pageserver is the Go end of the browser's trace test. It prints its address; for a line with a number it waits until that many
// spans have ended, and prints all of them as JSON. It ends with its standard input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/arpc-go/arpc"
	otelarpc "github.com/arpc-go/arpc/extension/otel"
	"github.com/arpc-go/arpc/extension/websocket"
)

var (
	order   = arpc.NewMethod[string, string]("/order")
	confirm = arpc.NewMethod[string, string]("/confirm") // of the page
	price   = arpc.NewMethod[string, int]("/price")
)

func main() {
	e := &exporter{tracetest.NewInMemoryExporter(), make(chan struct{}, 1000)}
	o := otelarpc.NewObserver(otelarpc.WithTracerProvider(trace.NewTracerProvider(trace.WithSyncer(e))))
	s := arpc.NewServer(arpc.NewHandler())
	s.Handler.SetObserver(o)
	order.Handle(s.Handler, func(c *arpc.Context, what *string) (*string, error) { return confirm.Call(c, c.Client, what) })
	price.Handle(s.Handler, func(_ *arpc.Context, what *string) (*int, error) {
		n := len(*what)
		return &n, nil
	})
	ln, err := websocket.Listen("127.0.0.1:0", websocket.AnyOrigin())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ln.Addr())
	go func() {
		if err := s.Serve(ln); !errors.Is(err, arpc.ErrServerStopped) {
			log.Fatal(err)
		}
	}()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			log.Fatal(err)
		}
		if err := e.print(n); err != nil {
			log.Fatal(err)
		}
	}
	s.Stop() //nolint:errcheck // the process ends
}

// exporter is the in-memory exporter, which tells of each span.
type exporter struct {
	*tracetest.InMemoryExporter
	ended chan struct{}
}

func (e *exporter) ExportSpans(ctx context.Context, spans []trace.ReadOnlySpan) error {
	err := e.InMemoryExporter.ExportSpans(ctx, spans)
	for range spans {
		e.ended <- struct{}{}
	}
	return err
}

// print waits for n spans and prints all.
func (e *exporter) print(n int) error {
	for range n {
		<-e.ended
	}
	type span struct{ Name, Kind, Trace, ID, Parent string }
	all := []span{}
	for _, s := range e.GetSpans() {
		all = append(all, span{s.Name, s.SpanKind.String(), s.SpanContext.TraceID().String(), s.SpanContext.SpanID().String(), s.Parent.SpanID().String()})
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}
