package otelarpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/arpc-go/arpc"
	otelarpc "github.com/arpc-go/arpc/extension/otel"
)

var (
	order   = arpc.NewMethod[string, string]("/order")
	confirm = arpc.NewMethod[string, string]("/confirm")
	price   = arpc.NewMethod[string, string]("/price")
)

// TestTraceGoesBothWays follows a trace from a client to the server, back to the client and to the server again.
func TestTraceGoesBothWays(t *testing.T) {
	for _, transport := range []string{"tcp", "websocket"} {
		t.Run(transport, func(t *testing.T) {
			there, here := newExporter(), newExporter()
			provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(here))
			p := connect(t, transport, otelarpc.NewObserver(traced(t, there)),
				otelarpc.NewObserver(otelarpc.WithTracerProvider(provider)), func(server, client arpc.Handler) {
					order.Handle(server, func(c *arpc.Context, what *string) (*string, error) {
						return confirm.Call(c, c.Client, what)
					})
					confirm.Handle(client, func(c *arpc.Context, what *string) (*string, error) {
						return price.Call(c, c.Client, what)
					})
					price.Handle(server, func(c *arpc.Context, what *string) (*string, error) {
						if member := baggage.FromContext(c).Member("tenant").Value(); member != "blue" {
							return nil, fmt.Errorf("the baggage says %q", member)
						}
						answer := "7 for " + *what
						return &answer, nil
					})
				})

			member, err := baggage.NewMember("tenant", "blue")
			must(t, err)
			bag, err := baggage.New(member)
			must(t, err)
			ctx, click := provider.Tracer("page").Start(baggage.ContextWithBaggage(patient(t), bag), "click")
			what := "tea"
			answer, err := order.Call(ctx, p.client, &what)
			must(t, err)
			if *answer != "7 for tea" {
				t.Fatalf("the answer is %q", *answer)
			}
			click.End()

			client, server := here.spans(t, 4), there.spans(t, 3)
			chain := []tracetest.SpanStub{
				find(t, client, "internal", "click"),
				find(t, client, "client", "/order"), find(t, server, "server", "/order"),
				find(t, server, "client", "/confirm"), find(t, client, "server", "/confirm"),
				find(t, client, "client", "/price"), find(t, server, "server", "/price"),
			}
			for i, s := range chain[1:] {
				if s.SpanContext.TraceID() != click.SpanContext().TraceID() {
					t.Errorf("%s %s is of another trace", s.SpanKind, s.Name)
				}
				if s.Parent.SpanID() != chain[i].SpanContext.SpanID() {
					t.Errorf("%s %s is no child of %s %s", s.SpanKind, s.Name, chain[i].SpanKind, chain[i].Name)
				}
				if remote := s.SpanKind == trace.SpanKindServer; s.Parent.IsRemote() != remote {
					t.Errorf("the parent of %s %s: remote is %v", s.SpanKind, s.Name, s.Parent.IsRemote())
				}
			}
		})
	}
}

// TestStreamHandlerCalls checks that what the handler of a stream calls belongs to the stream's trace.
func TestStreamHandlerCalls(t *testing.T) {
	there, here := newExporter(), newExporter()
	p := connect(t, "tcp", otelarpc.NewObserver(traced(t, there)), otelarpc.NewObserver(traced(t, here)), func(server, client arpc.Handler) {
		server.HandleStream("/stream", func(s *arpc.Stream) {
			what := "tea"
			if _, err := confirm.Call(s.Context(), s.Client(), &what); err != nil {
				s.Reset(err)
			}
		})
		confirm.Handle(client, func(_ *arpc.Context, what *string) (*string, error) { return what, nil })
	})
	s, err := p.client.OpenStream(patient(t), "/stream")
	must(t, err)
	must(t, s.CloseSend())
	for _, err := range s.All() {
		must(t, err)
	}
	client, server := here.spans(t, 2), there.spans(t, 2)
	parent := find(t, server, "server", "/stream").SpanContext.SpanID()
	if find(t, server, "client", "/confirm").Parent.SpanID() != parent {
		t.Error("the call of the stream's handler is no child of the stream")
	}
	if find(t, client, "server", "/confirm").SpanContext.TraceID() != find(t, client, "client", "/stream").SpanContext.TraceID() {
		t.Error("the call-back is of another trace")
	}
}

// TestForeignSpans checks that spans which others have begun are left to them: a caller's while there is no tracer, and those of middleware.
func TestForeignSpans(t *testing.T) {
	there, own := newExporter(), newExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(own))
	var middle trace.Span
	p := connect(t, "tcp", otelarpc.NewObserver(traced(t, there)), otelarpc.NewObserver(otelarpc.WithTracerProvider(noop.NewTracerProvider())),
		func(server, _ arpc.Handler) {
			server.Use(func(c *arpc.Context) {
				c.Derive(func(ctx context.Context) context.Context {
					ctx, middle = provider.Tracer("middleware").Start(trace.ContextWithSpan(ctx, trace.SpanFromContext(c)), "middle")
					return ctx
				})
				c.Next()
			})
			server.Handle("/ok", func(c *arpc.Context) {
				if trace.SpanFromContext(c) != middle {
					t.Error("the handler's span is not the middleware's")
				}
				c.Write("x")
			})
		})
	ctx, click := provider.Tracer("page").Start(patient(t), "click")
	must(t, p.client.CallWith(ctx, "/ok", "x", nil))
	handled := find(t, there.spans(t, 1), "server", "/ok")
	if handled.Parent.SpanID() != click.SpanContext().SpanID() {
		t.Error("the server's span is no child of the caller's")
	}
	if !click.IsRecording() || !middle.IsRecording() || len(own.GetSpans()) != 0 {
		t.Error("a span was ended that is somebody else's")
	}
	click.End()
	middle.End()
	if find(t, own.GetSpans(), "internal", "middle").Parent.SpanID() != handled.SpanContext.SpanID() {
		t.Error("the middleware's span is no child of the handler's")
	}
}

// TestSpans checks names, kinds, attributes and status, for all ways in which a message ends.
func TestSpans(t *testing.T) {
	fails := &arpc.Error{Code: arpc.CodeNotFound, Message: "no \xff such"}
	breaks := &arpc.Error{Code: arpc.CodeDataLoss, Message: "it is broken"}
	register := func(server, _ arpc.Handler) {
		server.Handle("/ok", func(c *arpc.Context) { c.Write("x") })
		server.Handle("/later", func(c *arpc.Context) {
			c.AnswerLater()
			go c.Write(breaks)
		})
		server.Handle("/fails", func(c *arpc.Context) { c.Write(fails) })
		server.Handle("/breaks", func(c *arpc.Context) { c.Write(breaks) })
		server.Handle("/panics", func(*arpc.Context) { panic("as it should") })
		server.HandleStream("/stream", func(s *arpc.Stream) {
			for range s.All() {
			}
		})
		server.HandleStream("/resets", func(s *arpc.Stream) { s.Reset(breaks) })
	}
	call := func(method string) func(context.Context, *arpc.Client) error {
		return func(ctx context.Context, c *arpc.Client) error { return c.CallWith(ctx, method, "x", nil) }
	}
	for _, test := range []struct {
		name, method, kind     string
		do                     func(context.Context, *arpc.Client) error
		code, clientErr        string // clientErr is its description
		serverFails, noHandler bool
		apart                  bool // the call has no context, so its trace is its own
	}{
		{name: "call", method: "/ok", kind: "call", do: call("/ok"), code: "ok"},
		{name: "error", method: "/fails", kind: "call", do: call("/fails"), code: "not_found", clientErr: "no \uFFFD such"},
		{name: "fault", method: "/breaks", kind: "call", do: call("/breaks"), code: "data_loss", clientErr: "it is broken", serverFails: true},
		{name: "later", method: "/later", kind: "call", do: call("/later"), code: "data_loss", clientErr: "it is broken", serverFails: true},
		{name: "panic", method: "/panics", kind: "call", do: call("/panics"), code: "internal",
			clientErr: "internal error: the handler panicked", serverFails: true},
		{name: "unknown", method: "/nobody/\xfe", kind: "call", do: call("/nobody/\xfe"), code: "unimplemented", clientErr: "method not found",
			serverFails: true, noHandler: true},
		{name: "async", method: "/ok", kind: "call", code: "ok", apart: true, do: func(_ context.Context, c *arpc.Client) error {
			done := make(chan error, 1)
			if err := c.CallAsync("/ok", "x", func(c *arpc.Context) { done <- c.Err() }, patience); err != nil {
				return err
			}
			return <-done
		}},
		{name: "plain", method: "/ok", kind: "call", code: "ok", apart: true,
			do: func(_ context.Context, c *arpc.Client) error { return c.Call("/ok", "x", nil, patience) }},
		{name: "notify", method: "/ok", kind: "notify", code: "ok",
			do: func(ctx context.Context, c *arpc.Client) error { return c.NotifyWith(ctx, "/ok", "x") }},
		{name: "stream", method: "/stream", kind: "stream", code: "ok", do: func(ctx context.Context, c *arpc.Client) error {
			s, err := c.OpenStream(ctx, "/stream")
			if err != nil {
				return err
			}
			if err = s.SendAndClose("x"); err != nil {
				return err
			}
			if err = s.Recv(nil); err != io.EOF {
				return fmt.Errorf("the stream ends with %w", err)
			}
			return nil
		}},
		{name: "reset", method: "/resets", kind: "stream", code: "data_loss", clientErr: "it is broken", serverFails: true,
			do: func(ctx context.Context, c *arpc.Client) error {
				s, err := c.OpenStream(ctx, "/resets")
				if err != nil {
					return err
				}
				return s.Recv(nil)
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			there, here := newExporter(), newExporter()
			p := connect(t, "tcp", otelarpc.NewObserver(traced(t, there)), otelarpc.NewObserver(traced(t, here)), register)
			root := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
			err := test.do(trace.ContextWithSpanContext(patient(t), root), p.client)
			if (err != nil) != (test.clientErr != "") {
				t.Fatalf("the end is %v", err)
			}

			valid := strings.ToValidUTF8(test.method, "\uFFFD")
			ours := find(t, here.spans(t, 1), "client", valid)
			name := valid
			if test.noHandler {
				name = "arpc"
			}
			theirs := find(t, there.spans(t, 1), "server", name)
			if test.apart {
				if ours.Parent.IsValid() || ours.SpanContext.TraceID() == root.TraceID() {
					t.Error("the call has a parent")
				}
			} else if ours.Parent.SpanID() != root.SpanID() {
				t.Error("the client's span is no child of the caller's")
			}
			if theirs.Parent.SpanID() != ours.SpanContext.SpanID() || theirs.SpanContext.TraceID() != ours.SpanContext.TraceID() {
				t.Error("the server's span is no child of the client's")
			}
			if theirs.EndTime.Before(theirs.StartTime) || ours.EndTime.Before(ours.StartTime) {
				t.Error("a span ends before it begins")
			}

			// The client's.
			host, port := split(t, p.client.Conn.RemoteAddr())
			want := map[string]string{"rpc.system.name": "arpc", "rpc.method": valid, "arpc.kind": test.kind, "rpc.response.status_code": test.code,
				"network.peer.address": host, "network.peer.port": port, "server.address": host, "server.port": port}
			status := sdktrace.Status{}
			if test.clientErr != "" {
				want["error.type"] = test.code
				status = sdktrace.Status{Code: codes.Error, Description: test.clientErr}
			}
			check(t, ours, want, status)

			// The server's.
			host, port = split(t, p.client.Conn.LocalAddr())
			want = map[string]string{"rpc.system.name": "arpc", "rpc.method": valid, "arpc.kind": test.kind, "rpc.response.status_code": test.code,
				"network.peer.address": host, "network.peer.port": port}
			if test.noHandler {
				want["rpc.method"], want["rpc.method_original"] = "_OTHER", valid
			}
			status = sdktrace.Status{}
			if test.serverFails {
				want["error.type"] = test.code
				status = sdktrace.Status{Code: codes.Error, Description: test.clientErr}
			}
			check(t, theirs, want, status)
		})
	}
}

func split(t testing.TB, a net.Addr) (host, port string) {
	host, port, err := net.SplitHostPort(a.String())
	must(t, err)
	return host, port
}

func check(t testing.TB, s tracetest.SpanStub, want map[string]string, status sdktrace.Status) {
	t.Helper()
	got := map[string]string{}
	for _, a := range s.Attributes {
		if got[string(a.Key)] != "" {
			t.Errorf("%s %s has %s twice", s.SpanKind, s.Name, a.Key)
		}
		got[string(a.Key)] = a.Value.String()
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s %s: %s is %q, not %q", s.SpanKind, s.Name, k, got[k], v)
		}
		delete(got, k)
	}
	if len(got) > 0 {
		t.Errorf("%s %s has further attributes: %v", s.SpanKind, s.Name, got)
	}
	if s.Status != status {
		t.Errorf("%s %s has the status %+v, not %+v", s.SpanKind, s.Name, s.Status, status)
	}
}

// TestUnix checks the address of a peer that has no port.
func TestUnix(t *testing.T) {
	h := arpc.NewHandler()
	h.Handle("/ok", func(c *arpc.Context) { c.Write("x") })
	s := arpc.NewServer(h)
	path := t.TempDir() + "/arpc"
	ln, err := net.Listen("unix", path)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	defer recv(t, done, "return from Serve")
	defer s.Stop() //nolint:errcheck // nothing is left to do
	here := newExporter()
	hc := arpc.NewHandler()
	hc.SetObserver(otelarpc.NewObserver(traced(t, here)))
	c, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("unix", path) }, hc)
	must(t, err)
	defer c.Stop()
	must(t, c.CallWith(patient(t), "/ok", "x", nil))
	check(t, find(t, here.spans(t, 1), "client", "/ok"), map[string]string{"rpc.system.name": "arpc", "rpc.method": "/ok", "arpc.kind": "call",
		"rpc.response.status_code": "ok", "network.peer.address": path, "server.address": path}, sdktrace.Status{})
}

// TestNotSampled checks that a decision not to sample is one for the whole trace: the parts that follow do not decide again.
func TestNotSampled(t *testing.T) {
	there, here := newExporter(), newExporter()
	never := sdktrace.NewTracerProvider(sdktrace.WithSyncer(here), sdktrace.WithSampler(sdktrace.NeverSample()))
	var got string
	p := connect(t, "tcp", otelarpc.NewObserver(traced(t, there)), otelarpc.NewObserver(otelarpc.WithTracerProvider(never)),
		func(server, client arpc.Handler) {
			order.Handle(server, func(c *arpc.Context, what *string) (*string, error) {
				got = c.Metadata()["traceparent"]
				return confirm.Call(c, c.Client, what)
			})
			confirm.Handle(client, func(_ *arpc.Context, what *string) (*string, error) { return what, nil })
		})
	what := "tea"
	_, err := order.Call(patient(t), p.client, &what)
	must(t, err)
	if parts := strings.Split(got, "-"); len(parts) != 4 || parts[3] != "00" {
		t.Errorf("traceparent is %q", got)
	}
	must(t, p.server.Stop()) // and with it all handlers
	if n := len(there.GetSpans()) + len(here.GetSpans()); n != 0 {
		t.Errorf("there are %d spans", n)
	}
}

// TestPublicEndpoint checks that strangers decide nothing: their context is a link.
func TestPublicEndpoint(t *testing.T) {
	there := newExporter()
	stranger := func(c *arpc.Client) bool { return c != nil }
	var bag string
	p := connect(t, "tcp", otelarpc.NewObserver(traced(t, there), otelarpc.WithPublicEndpoint(stranger)), nil, func(server, _ arpc.Handler) {
		server.Handle("/ok", func(c *arpc.Context) {
			bag = baggage.FromContext(c).String()
			c.Write("x")
		})
	})
	for i, parent := range []string{"00-01000000000000000000000000000000-0200000000000000-00", "nonsense"} {
		ctx := arpc.WithMetadata(patient(t), arpc.Metadata{"traceparent": parent, "baggage": "tenant=blue"})
		must(t, p.client.CallWith(ctx, "/ok", "x", nil))
		s := there.spans(t, 1)[i]
		if s.Parent.IsValid() || !s.SpanContext.IsSampled() || s.SpanContext.TraceID() == (trace.TraceID{1}) {
			t.Errorf("the span is of the stranger's trace: %v", s.SpanContext)
		}
		if i == 0 && (len(s.Links) != 1 || s.Links[0].SpanContext.SpanID() != trace.SpanID{2}) || i == 1 && len(s.Links) != 0 {
			t.Errorf("the links are %v", s.Links)
		}
		if bag != "" {
			t.Errorf("the baggage is %q", bag)
		}
	}
}

// TestStrangeContext sends what is no trace context, and one that is too long to be passed on.
func TestStrangeContext(t *testing.T) {
	there, here := newExporter(), newExporter()
	var got arpc.Metadata
	p := connect(t, "tcp", otelarpc.NewObserver(traced(t, there)), otelarpc.NewObserver(traced(t, here), otelarpc.WithPropagator(long{})),
		func(server, _ arpc.Handler) {
			server.Handle("/ok", func(c *arpc.Context) {
				got = c.Metadata()
				c.Write("x")
			})
		})
	for _, parent := range []string{"", "00", "00-" + strings.Repeat("0", 32) + "-0200000000000000-01", "ff-\xff", strings.Repeat("-", 4000)} {
		ctx := arpc.WithMetadata(patient(t), arpc.Metadata{"traceparent": parent, "tracestate": "\xff=\x00,,", "baggage": "%zz;;="})
		must(t, p.client.CallWith(ctx, "/ok", "x", nil))
		s := there.spans(t, 1)
		if last := s[len(s)-1]; last.Parent.IsValid() {
			t.Errorf("%q is the parent %v", parent, last.Parent)
		}
	}
	if keys := len(got); keys != 4 || got["fits"] == "" { // the three and what fits
		t.Errorf("the metadata is %d keys", keys)
	}
}

// long is a propagator of large values.
type long struct{ propagation.TraceContext }

func (long) Inject(_ context.Context, c propagation.TextMapCarrier) {
	if c.Get("fits") != "" || len(c.Keys()) != 0 {
		panic("the carrier is empty at first")
	}
	c.Set("fits", strings.Repeat("x", 4<<10))
	c.Set("long", strings.Repeat("x", 4<<10+1))
}

// TestVersion1 checks that a peer without metadata does not mind.
func TestVersion1(t *testing.T) {
	here := newExporter()
	h := arpc.NewHandler()
	h.Handle("/ok", func(c *arpc.Context) { c.Write(strconv.Itoa(len(c.Metadata()))) })
	s := arpc.NewServer(h)
	ln, dial := arpc.Pipe()
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	defer recv(t, done, "return from Serve")
	defer s.Stop() //nolint:errcheck // nothing is left to do
	hc := arpc.NewHandler()
	hc.SetObserver(otelarpc.NewObserver(traced(t, here)))
	c, err := arpc.NewClient(dial, hc, arpc.Protocol(1))
	must(t, err)
	defer c.Stop()
	var n string
	must(t, c.CallWith(patient(t), "/ok", "x", &n))
	if n != "0" {
		t.Errorf("%s pairs arrived", n)
	}
	check(t, find(t, here.spans(t, 1), "client", "/ok"), map[string]string{"rpc.system.name": "arpc", "rpc.method": "/ok", "arpc.kind": "call",
		"rpc.response.status_code": "ok", "network.peer.address": "pipe", "server.address": "pipe"}, sdktrace.Status{})
}

// TestNotSent checks the span of a call that never left.
func TestNotSent(t *testing.T) {
	here := newExporter()
	p := connect(t, "tcp", nil, otelarpc.NewObserver(traced(t, here)), func(_, _ arpc.Handler) {})
	p.client.Stop()
	if err := p.client.CallWith(patient(t), "/ok", "x", nil); !errors.Is(err, arpc.ErrClientStopped) {
		t.Fatal(err)
	}
	s := find(t, here.spans(t, 1), "client", "/ok")
	if !slices.Contains(s.Attributes, attribute.String("error.type", "unavailable")) || s.Status.Code != codes.Error {
		t.Errorf("%v, %v", s.Attributes, s.Status)
	}
}

// TestHeadSampling checks that a trace is there as a whole or not at all, whichever end it begins at.
func TestHeadSampling(t *testing.T) {
	const calls = 300
	e := newExporter()
	reader := metric.NewManualReader()
	o := otelarpc.NewObserver(traced(t, e), otelarpc.WithHeadSampling(0.5),
		otelarpc.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))))
	var chosen, plain int
	p := connect(t, "tcp", o, o, func(server, client arpc.Handler) {
		order.Handle(server, func(c *arpc.Context, what *string) (*string, error) {
			if trace.SpanContextFromContext(c).IsSampled() {
				chosen++
			}
			if !trace.SpanContextFromContext(c).IsValid() {
				t.Error("there is no trace")
			}
			return confirm.Call(c, c.Client, what)
		})
		price.Handle(server, func(c *arpc.Context, what *string) (*string, error) {
			if trace.SpanFromContext(c).IsRecording() {
				plain++
			}
			return what, nil
		})
		confirm.Handle(client, func(_ *arpc.Context, what *string) (*string, error) { return what, nil })
	})
	ctx, what := patient(t), "tea"
	for range calls {
		_, err := order.Call(ctx, p.client, &what)
		must(t, err)
		_, err = price.Call(context.Background(), p.client, &what)
		must(t, err)
	}
	if min, max := calls/4, calls*3/4; chosen < min || chosen > max || plain < min || plain > max {
		t.Errorf("%d and %d of %d traces were chosen", chosen, plain, calls)
	}
	traces := map[trace.TraceID]int{}
	for _, s := range e.spans(t, 4*chosen+2*plain) {
		traces[s.SpanContext.TraceID()]++
	}
	for id, n := range traces {
		if n != 4 && n != 2 {
			t.Errorf("trace %v has %d spans", id, n)
		}
	}
	if len(traces) != chosen+plain {
		t.Errorf("%d traces instead of %d", len(traces), chosen+plain)
	}

	// What belongs to a trace is left to its beginning, and a span of the caller's stays the caller's.
	var ended int
	recordOnly := sdktrace.NewTracerProvider(sdktrace.WithSampler(onlyRecords{}), sdktrace.WithSpanProcessor(counter{&ended}))
	within, own := recordOnly.Tracer("own").Start(ctx, "own")
	_, err := price.Call(within, p.client, &what)
	must(t, err)
	if ended != 0 || !own.IsRecording() {
		t.Error("the caller's span was ended")
	}
	p.client.Stop()
	must(t, p.server.Stop())
	got := collect(t, reader)
	if n := int64(3*calls + 1); got["rpc.client.call.duration"] != n || got["rpc.server.call.duration"] != n {
		t.Errorf("%d and %d calls are counted, not %d", got["rpc.client.call.duration"], got["rpc.server.call.duration"], n)
	}
}

type onlyRecords struct{}

func (onlyRecords) ShouldSample(sdktrace.SamplingParameters) sdktrace.SamplingResult {
	return sdktrace.SamplingResult{Decision: sdktrace.RecordOnly}
}
func (onlyRecords) Description() string { return "onlyRecords" }

type counter struct{ ended *int }

func (counter) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (c counter) OnEnd(sdktrace.ReadOnlySpan)                   { *c.ended++ }
func (counter) Shutdown(context.Context) error                  { return nil }
func (counter) ForceFlush(context.Context) error                { return nil }
