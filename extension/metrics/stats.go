package metrics

import (
	"maps"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/arpc-go/arpc"
)

// Watch makes metrics of a Server's or Client's Stats, which is called each time that a page is scraped:
//
//	m.Watch("api", server.Stats)
//
// The name is their label arpc_endpoint. A later call with the same name replaces what was there, nil removes it.
func (m *Metrics) Watch(name string, stats func() arpc.Stats) {
	name = strings.ToValidUTF8(name, "\uFFFD")
	m.mu.Lock()
	defer m.mu.Unlock()
	if stats == nil {
		delete(m.watched, name)
		return
	}
	m.watched[name] = stats
}

// figure is a metric that is read from Stats.
type figure struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*arpc.Stats) int64
}

var figures = []figure{
	gauge("arpc_connections", "Connections that are open.", func(s *arpc.Stats) int64 { return int64(s.Connections) }),
	gauge("arpc_streams", "Streams that are not over, opened by either end.", func(s *arpc.Stats) int64 { return int64(s.Streams) }),
	gauge("arpc_calls_in_flight", "Calls to peers that are not answered.", func(s *arpc.Stats) int64 { return int64(s.Calls) }),
	gauge("arpc_send_queue_bytes", "Bytes that wait to be sent.", func(s *arpc.Stats) int64 { return s.SendQueue }),
	gauge("arpc_requests_queued_bytes", "Bytes of ordered requests that wait for their turn.", func(s *arpc.Stats) int64 { return s.Requests }),

	counter("arpc_messages_received_total", "Messages received, of all kinds.", func(s *arpc.Stats) int64 { return s.MessagesIn }),
	counter("arpc_messages_sent_total", "Messages sent, of all kinds.", func(s *arpc.Stats) int64 { return s.MessagesOut }),
	counter("arpc_received_bytes_total", "Bytes received.", func(s *arpc.Stats) int64 { return s.BytesIn }),
	counter("arpc_sent_bytes_total", "Bytes sent.", func(s *arpc.Stats) int64 { return s.BytesOut }),
	counter("arpc_connections_accepted_total", "Connections accepted.", func(s *arpc.Stats) int64 { return s.Accepted }),
	counter("arpc_accept_errors_total", "Failures to accept a connection.", func(s *arpc.Stats) int64 { return s.AcceptErrors }),
	counter("arpc_connections_refused_limit_total", "Connections refused because of a limit.", func(s *arpc.Stats) int64 { return s.RefusedLimit }),
	counter("arpc_connections_refused_files_total", "Connections refused because no descriptor was left.",
		func(s *arpc.Stats) int64 { return s.RefusedFiles }),
	counter("arpc_handshake_errors_total", "Connections closed because of a failed handshake.", func(s *arpc.Stats) int64 { return s.OpenErrors }),
	counter("arpc_protocol_errors_total", "Received messages that make no sense.", func(s *arpc.Stats) int64 { return s.ProtocolErrors }),
	counter("arpc_connections_silent_total", "Connections closed because nothing came.", func(s *arpc.Stats) int64 { return s.Silent }),
	counter("arpc_connections_stalled_total", "Connections closed because the peer took nothing.", func(s *arpc.Stats) int64 { return s.Stalled }),
}

func gauge(name, help string, value func(*arpc.Stats) int64) figure {
	return figure{prometheus.NewDesc(name, help, []string{"arpc_endpoint"}, nil), prometheus.GaugeValue, value}
}

func counter(name, help string, value func(*arpc.Stats) int64) figure {
	return figure{prometheus.NewDesc(name, help, []string{"arpc_endpoint"}, nil), prometheus.CounterValue, value}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(to chan<- *prometheus.Desc) {
	for _, h := range m.took {
		h.Describe(to)
	}
	for _, f := range figures {
		to <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(to chan<- prometheus.Metric) {
	for _, h := range m.took {
		h.Collect(to)
	}
	m.mu.Lock()
	watched := maps.Clone(m.watched)
	m.mu.Unlock()
	for name, ask := range watched { // without the lock: it is the user's code
		s := ask()
		for _, f := range figures {
			to <- prometheus.MustNewConstMetric(f.desc, f.kind, float64(f.value(&s)), name)
		}
	}
}
