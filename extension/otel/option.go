package otelarpc

import (
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/arpc-go/arpc"
)

// An Option configures NewObserver.
type Option func(*config)

type config struct {
	tracers     trace.TracerProvider
	meters      metric.MeterProvider
	propagator  propagation.TextMapPropagator
	public      func(*arpc.Client) bool
	methodLimit int
	share       float64
}

// WithTracerProvider sets what makes the spans; default otel.GetTracerProvider().
func WithTracerProvider(p trace.TracerProvider) Option { return func(c *config) { c.tracers = p } }

// WithMeterProvider sets what makes the metrics; default otel.GetMeterProvider().
func WithMeterProvider(p metric.MeterProvider) Option { return func(c *config) { c.meters = p } }

// WithPropagator sets how the trace context becomes metadata; default W3C Trace Context and Baggage, whatever the global propagator
// is. Baggage goes to all peers, so to web pages as well: propagation.TraceContext{} alone leaves it at home.
func WithPropagator(p propagation.TextMapPropagator) Option {
	return func(c *config) { c.propagator = p }
}

// WithPublicEndpoint sets which peers are strangers. What they send is handled in a new trace, which has a link to theirs, so that they
// do not decide what is sampled, and their baggage is dropped. Default: none.
func WithPublicEndpoint(stranger func(*arpc.Client) bool) Option {
	return func(c *config) { c.public = stranger }
}

// WithHeadSampling makes the Observer itself choose, before anything is asked of the tracer, which of the traces that begin here are
// offered to it: that share of them, between 0 and 1. The others, and what peers say is not sampled, cost far less than a sampler
// of the tracer's, as they get no spans. They have one trace id in common, which peers with a sampler based on the parent do not record.
// Metrics count all. Default 1: the tracer decides.
func WithHeadSampling(share float64) Option { return func(c *config) { c.share = share } }

// WithMethodLimit sets how many methods have metrics and span names of their own, counted for each kind and direction; default
// 1000. Later ones are "_OTHER", as names that are made of data would be without end.
func WithMethodLimit(n int) Option { return func(c *config) { c.methodLimit = n } }

func configOf(opts []Option) config {
	c := config{
		tracers:     otel.GetTracerProvider(),
		meters:      otel.GetMeterProvider(),
		propagator:  propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
		methodLimit: 1000,
		share:       1,
	}
	for _, o := range opts {
		if o != nil {
			o(&c)
		}
	}
	return c
}
