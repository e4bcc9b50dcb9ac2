package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/arpc-go/arpc"
)

// An Option configures New.
type Option func(*config)

type config struct {
	buckets     []float64
	methodLimit int
}

// Buckets sets the upper bounds of the histograms' buckets, in seconds, in growing order; default those that the semantic
// conventions of OpenTelemetry advise, from 5 ms to 10 s. Calls within a machine or a rack want lower ones.
func Buckets(seconds ...float64) Option {
	return func(c *config) { c.buckets = seconds }
}

// MethodLimit sets how many methods have histograms of their own, counted for each kind and direction; default 1000. Later ones
// are "_OTHER", as names that are made of data would be without end.
func MethodLimit(n int) Option { return func(c *config) { c.methodLimit = n } }

// Metrics is an arpc.Observer and a prometheus.Collector.
type Metrics struct {
	took  [2]*prometheus.HistogramVec // by side
	calls [2][3]methods               // by side and kind

	mu      sync.Mutex
	watched map[string]func() arpc.Stats
}

var (
	_ arpc.Observer        = (*Metrics)(nil)
	_ prometheus.Collector = (*Metrics)(nil)
)

// side says whose view of a call it is.
type side int

const (
	client side = iota
	server
)

// New returns a Metrics, for Mux.SetObserver and for a Registerer.
func New(opts ...Option) *Metrics {
	c := config{
		buckets:     []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10},
		methodLimit: 1000,
	}
	for _, o := range opts {
		if o != nil {
			o(&c)
		}
	}
	m := &Metrics{watched: map[string]func() arpc.Stats{}}
	for s, text := range []struct{ name, help string }{
		{"rpc_client_call_duration_seconds", "How long outgoing calls, notifications and streams took."},
		{"rpc_server_call_duration_seconds", "How long incoming calls, notifications and streams took."},
	} {
		m.took[s] = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: text.name, Help: text.help, Buckets: c.buckets, ConstLabels: prometheus.Labels{"rpc_system_name": "arpc"},
		}, []string{"rpc_method", "arpc_kind", "rpc_response_status_code"})
		for kind := range m.calls[s] {
			t := &m.calls[s][kind]
			t.took, t.kind, t.limit = m.took[s], arpc.CallKind(kind).String(), c.methodLimit
		}
	}
	return m
}

// ConnOpened implements arpc.Observer.
func (m *Metrics) ConnOpened(*arpc.Client) {}

// ConnClosed implements arpc.Observer.
func (m *Metrics) ConnClosed(*arpc.Client, error) {}

// CallStarted implements arpc.Observer.
func (m *Metrics) CallStarted(ctx context.Context, _ *arpc.Client, _ arpc.CallInfo) context.Context {
	return ctx
}

// CallEnded implements arpc.Observer.
func (m *Metrics) CallEnded(_ context.Context, _ *arpc.Client, info arpc.CallInfo, err error) {
	m.ended(client, info, err)
}

// HandleStarted implements arpc.Observer.
func (m *Metrics) HandleStarted(*arpc.Context, arpc.CallInfo) context.Context { return nil }

// HandleEnded implements arpc.Observer.
func (m *Metrics) HandleEnded(_ *arpc.Context, info arpc.CallInfo, err error) {
	m.ended(server, info, err)
}

func (m *Metrics) ended(s side, info arpc.CallInfo, err error) {
	took := time.Since(info.Start)
	m.calls[s][info.Kind].get(info.Method, info.Unknown).histogram(arpc.CodeOf(err)).Observe(took.Seconds())
}
