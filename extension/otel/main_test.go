package otelarpc_test

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/arpc-go/arpc"
	otelarpc "github.com/arpc-go/arpc/extension/otel"
	"github.com/arpc-go/arpc/extension/websocket"
	"github.com/arpc-go/arpc/log"
)

// patience bounds every wait for something that must happen; it is not spent when all is well.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone)                                 // a panic is what one of the tests is about
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {})) // as is malformed baggage
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// recv waits for a value.
func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// exporter is the in-memory exporter, which tells of each span.
type exporter struct {
	*tracetest.InMemoryExporter
	ended chan struct{}
}

func newExporter() *exporter {
	return &exporter{tracetest.NewInMemoryExporter(), make(chan struct{}, 1000)}
}

func (e *exporter) ExportSpans(ctx context.Context, spans []trace.ReadOnlySpan) error {
	err := e.InMemoryExporter.ExportSpans(ctx, spans)
	for range spans {
		e.ended <- struct{}{}
	}
	return err
}

// spans waits until n more spans have ended, and returns all.
func (e *exporter) spans(t testing.TB, n int) tracetest.SpanStubs {
	t.Helper()
	for range n {
		recv(t, e.ended, "end of a span")
	}
	return e.GetSpans()
}

// find returns the only span with a kind and a name.
func find(t testing.TB, spans tracetest.SpanStubs, kind, name string) tracetest.SpanStub {
	t.Helper()
	var found []tracetest.SpanStub
	for _, s := range spans {
		if s.SpanKind.String() == kind && s.Name == name {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans %s %s among %v", len(found), kind, name, names(spans))
	}
	return found[0]
}

func names(spans tracetest.SpanStubs) (all []string) {
	for _, s := range spans {
		all = append(all, s.SpanKind.String()+" "+s.Name)
	}
	return all
}

// traced returns the options of an Observer whose spans, all of them, go to e.
func traced(t testing.TB, e *exporter) otelarpc.Option {
	p := trace.NewTracerProvider(trace.WithSyncer(e))
	t.Cleanup(func() { p.Shutdown(context.Background()) }) //nolint:errcheck // nothing is left to export
	return otelarpc.WithTracerProvider(p)
}

// pair is a server, and a client that is connected to it.
type pair struct {
	server *arpc.Server
	client *arpc.Client
}

// connect starts both with their Observers, nil for none. The handlers are registered by the function, as those of the
// client have to be there first.
func connect(t testing.TB, transport string, ofServer, ofClient arpc.Observer, register func(server, client arpc.Handler)) pair {
	t.Helper()
	hs, hc := arpc.NewHandler(), arpc.NewHandler()
	hs.SetObserver(ofServer)
	hc.SetObserver(ofClient)
	register(hs, hc)
	s := arpc.NewServer(hs)
	var ln net.Listener
	var dial func() (net.Conn, error)
	var err error
	switch transport {
	case "websocket":
		ln, err = websocket.Listen("127.0.0.1:0")
		must(t, err)
		dial = websocket.Dialer("ws://" + ln.Addr().String())
	default:
		ln, err = net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		dial = func() (net.Conn, error) { return net.DialTimeout("tcp", ln.Addr().String(), patience) }
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		must(t, s.Stop())
		if err := recv(t, done, "return from Serve"); !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve returned %v", err)
		}
	})
	c, err := arpc.NewClient(dial, hc)
	must(t, err)
	t.Cleanup(c.Stop)
	return pair{s, c}
}
