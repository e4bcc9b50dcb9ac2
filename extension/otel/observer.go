package otelarpc

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/rpcconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/arpc-go/arpc"
)

// scope is the instrumentation scope of spans and metrics.
const scope = "github.com/arpc-go/arpc/extension/otel"

// maxField bounds what one field of the trace context adds to the metadata of a message, in bytes: a peer takes 16 KiB in all by
// default, and a call must not fail because of its trace.
const maxField = 4 << 10

// An Observer is an arpc.Observer that makes traces and metrics.
type Observer struct {
	config
	plain   bool // the trace context travels as W3C Trace Context says
	tracer  trace.Tracer
	started [2][]trace.SpanStartOption // by side
	took    [2]metric.Float64Histogram
	methods [2][3]methods // by side and kind

	passed [2]context.Context // what stands for context.Background() of a trace that head sampling has not chosen, by side

	mu      sync.Mutex
	watched map[string]func() arpc.Stats
}

var _ arpc.Observer = (*Observer)(nil)

// side says whose view of a call it is.
type side int

const (
	client side = iota
	server
)

// NewObserver returns an Observer for Mux.SetObserver. Instruments that cannot be made are reported to the error handler of
// package otel, and do nothing.
func NewObserver(opts ...Option) *Observer {
	o := &Observer{config: configOf(opts), watched: map[string]func() arpc.Stats{}}
	fields := o.propagator.Fields()
	slices.Sort(fields)
	o.plain = slices.Equal(fields, []string{"baggage", traceParent, traceState}) || slices.Equal(fields, []string{traceParent, traceState})
	o.tracer = o.tracers.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL))
	o.started[client] = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient)}
	o.started[server] = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}
	meter := o.meters.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	ours, err := rpcconv.NewClientCallDuration(meter)
	report(err)
	theirs, err := rpcconv.NewServerCallDuration(meter)
	report(err)
	o.took = [2]metric.Float64Histogram{ours.Inst(), theirs.Inst()}
	for s := range o.methods {
		for kind := range o.methods[s] {
			o.methods[s][kind].kind = arpc.CallKind(kind)
			o.methods[s][kind].limit = o.methodLimit
		}
	}
	passed := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID(random(16)), SpanID: trace.SpanID(random(8))})
	o.passed[server] = trace.ContextWithRemoteSpanContext(context.Background(), passed)
	o.passed[client] = o.inject(o.passed[server])
	o.observeStats(meter)
	return o
}

func report(err error) {
	if err != nil {
		otel.Handle(err)
	}
}

// ConnOpened implements arpc.Observer.
func (o *Observer) ConnOpened(*arpc.Client) {}

// ConnClosed implements arpc.Observer.
func (o *Observer) ConnClosed(*arpc.Client, error) {}

// CallStarted implements arpc.Observer.
func (o *Observer) CallStarted(ctx context.Context, c *arpc.Client, info arpc.CallInfo) context.Context {
	if o.passes(ctx) {
		switch {
		case ctx == context.Background():
			return o.passed[client]
		case !trace.SpanContextFromContext(ctx).IsValid():
			ctx = trace.ContextWithSpanContext(ctx, trace.SpanContextFromContext(o.passed[client]))
		}
		return o.inject(ctx)
	}
	m := o.method(client, info)
	ctx, span := o.tracer.Start(ctx, m.span, o.started[client]...)
	if span.IsRecording() {
		span.SetAttributes(m.attributes...)
		describe(span, client, m, info, c)
	}
	return o.inject(ctx)
}

// passes reports whether head sampling leaves out what is begun with ctx: it is of a trace that is not sampled, or begins one.
func (o *Observer) passes(ctx context.Context) bool {
	if o.share >= 1 {
		return false
	}
	span := trace.SpanFromContext(ctx)
	of := span.SpanContext()
	return !of.IsSampled() && !span.IsRecording() && (of.IsValid() || rand.Float64() >= o.share)
}

// inject returns a context whose calls carry the trace context of ctx.
func (o *Observer) inject(ctx context.Context) context.Context {
	out := outgoing{ctx}
	o.propagator.Inject(ctx, &out)
	return out.Context
}

// CallEnded implements arpc.Observer.
func (o *Observer) CallEnded(ctx context.Context, _ *arpc.Client, info arpc.CallInfo, err error) {
	o.ended(ctx, trace.SpanFromContext(ctx), client, info, err)
}

// HandleStarted implements arpc.Observer.
func (o *Observer) HandleStarted(c *arpc.Context, info arpc.CallInfo) context.Context {
	if o.share < 1 && o.public == nil && o.plain {
		if parent, ok := leftOut(c); ok {
			return parent
		}
	}
	m := o.method(server, info)
	ctx, started := context.Background(), o.started[server]
	public := o.public != nil && o.public(c.Client)
	if ctx = o.propagator.Extract(ctx, incoming{c, public}); ctx != context.Background() {
		if public {
			link := trace.Link{SpanContext: trace.SpanContextFromContext(ctx)}
			if ctx = context.Background(); link.SpanContext.IsValid() {
				started = []trace.SpanStartOption{started[0], trace.WithLinks(link)}
			}
		}
	}
	if o.passes(ctx) {
		if !trace.SpanContextFromContext(ctx).IsValid() {
			return o.passed[server]
		}
		return ctx
	}
	ctx, span := o.tracer.Start(ctx, m.span, started...)
	if span.IsRecording() {
		span.SetAttributes(m.attributes...)
		describe(span, server, m, info, c.Client)
		ctx = context.WithValue(ctx, handledKey{}, span)
	}
	return ctx
}

// HandleEnded implements arpc.Observer.
func (o *Observer) HandleEnded(c *arpc.Context, info arpc.CallInfo, err error) {
	span, ok := c.Value(handledKey{}).(trace.Span)
	if !ok {
		o.ended(context.Background(), nil, server, info, err)
		return
	}
	o.ended(c, span, server, info, err)
}

// handledKey is the key of the recorded span of a handler, as middleware may have put one of its own before it.
type handledKey struct{}

// ended ends a span, which may be nil, and counts the call.
func (o *Observer) ended(ctx context.Context, span trace.Span, s side, info arpc.CallInfo, err error) {
	counts := o.took[s].Enabled(ctx)
	if !counts && (span == nil || !span.IsRecording()) {
		return
	}
	took := time.Since(info.Start)
	code := arpc.CodeOf(err)
	if counts {
		m := o.method(s, info)
		o.took[s].Record(ctx, took.Seconds(), m.record(s, code)...)
	}
	if span == nil || !span.IsRecording() {
		return
	}
	span.SetAttributes(outcome(s, code)...)
	if failed(s, code) {
		span.SetStatus(codes.Error, valid(err.Error()))
	}
	span.End()
}

func (o *Observer) method(s side, info arpc.CallInfo) *method {
	return o.methods[s][info.Kind].get(info.Method, info.Unknown)
}

var _ propagation.TextMapCarrier = incoming{}

// Fields of W3C Trace Context and Baggage.
const (
	traceParent, traceState = "traceparent", "tracestate"
	traceParentLen          = 55 // of version 00
)

// leftOut returns the context of a message whose trace is not sampled and has nothing but an id, as most are: it is made of that only
// when it is asked for.
func leftOut(c *arpc.Context) (context.Context, bool) {
	id, ok := c.MetadataValue(traceParent)
	if !ok || len(id) != traceParentLen || string(id[:3]) != "00-" || string(id[traceParentLen-3:]) != "-00" {
		return nil, false
	}
	for _, key := range []string{traceState, "baggage"} {
		if _, ok := c.MetadataValue(key); ok {
			return nil, false
		}
	}
	p := &lazyParent{Context: context.Background()}
	copy(p.id[:], id)
	return p, true
}

// lazyParent is a context with the span context of an id.
type lazyParent struct {
	context.Context
	id   [traceParentLen]byte
	once sync.Once
	made context.Context
}

// Value implements context.Context.
func (p *lazyParent) Value(key any) any {
	if key == (handledKey{}) {
		return nil
	}
	p.once.Do(func() {
		p.made = propagation.TraceContext{}.Extract(p.Context, propagation.MapCarrier{traceParent: string(p.id[:])})
	})
	return p.made.Value(key)
}

// incoming is a propagation.TextMapCarrier that reads what came with a message.
type incoming struct {
	*arpc.Context
	public bool // without baggage: what is malformed would be reported
}

func (i incoming) Get(key string) string {
	if i.public && key == "baggage" {
		return ""
	}
	value, _ := i.MetadataValue(key)
	return string(value)
}

func (i incoming) Set(string, string) {}

func (i incoming) Keys() []string {
	var keys []string
	for key := range i.Metadata() {
		keys = append(keys, key)
	}
	return keys
}

// outgoing is a propagation.TextMapCarrier that adds to the metadata of a context's calls.
type outgoing struct{ context.Context }

func (o *outgoing) Get(string) string { return "" }
func (o *outgoing) Keys() []string    { return nil }

func (o *outgoing) Set(key, value string) {
	if len(value) <= maxField {
		o.Context = arpc.AddMetadata(o.Context, key, value)
	}
}

// describe sets the attributes of a span that are not the same for each message of a method.
func describe(span trace.Span, s side, m *method, info arpc.CallInfo, c *arpc.Client) {
	var list [5]attribute.KeyValue
	attrs := list[:0]
	if m.other {
		attrs = append(attrs, semconv.RPCMethodOriginal(valid(info.Method)))
	}
	host, port := split(c.Conn.RemoteAddr())
	attrs = append(attrs, semconv.NetworkPeerAddress(host))
	if port > 0 {
		attrs = append(attrs, semconv.NetworkPeerPort(port))
	}
	if s == client {
		attrs = append(attrs, semconv.ServerAddress(host))
		if port > 0 {
			attrs = append(attrs, semconv.ServerPort(port))
		}
	}
	span.SetAttributes(attrs...)
}

// split returns the two halves of an address. One that has no port is all host.
func split(a net.Addr) (host string, port int) {
	if a == nil {
		return "", 0
	}
	text := a.String()
	host, number, err := net.SplitHostPort(text)
	if err != nil {
		return text, 0
	}
	port, err = strconv.Atoi(number)
	if err != nil {
		return text, 0
	}
	return host, port
}

// valid makes a peer's text fit for exporters, which refuse what is not UTF-8.
func valid(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

// random returns an id, which is not zero.
func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + rand.IntN(255))
	}
	return b
}
