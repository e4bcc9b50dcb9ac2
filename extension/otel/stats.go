package otelarpc

import (
	"context"
	"maps"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/arpc-go/arpc"
)

// endpointKey is the attribute of what Watch is given.
const endpointKey = attribute.Key("arpc.endpoint")

// Watch makes metrics of a Server's or Client's Stats, which is called each time that metrics are collected:
//
//	o.Watch("api", server.Stats)
//
// The name is their attribute arpc.endpoint. A later call with the same name replaces what was there, nil removes it.
func (o *Observer) Watch(name string, stats func() arpc.Stats) {
	name = valid(name)
	o.mu.Lock()
	defer o.mu.Unlock()
	if stats == nil {
		delete(o.watched, name)
		return
	}
	o.watched[name] = stats
}

// observeStats makes the instruments that are read from Stats.
func (o *Observer) observeStats(meter metric.Meter) {
	type source struct {
		instrument metric.Int64Observable
		value      func(*arpc.Stats) int64
	}
	var sources []source
	gauge := func(name, unit, text string, value func(*arpc.Stats) int64) {
		i, err := meter.Int64ObservableUpDownCounter(name, metric.WithUnit(unit), metric.WithDescription(text))
		report(err)
		if err == nil {
			sources = append(sources, source{i, value})
		}
	}
	counter := func(name, unit, text string, value func(*arpc.Stats) int64) {
		i, err := meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(text))
		report(err)
		if err == nil {
			sources = append(sources, source{i, value})
		}
	}

	gauge("arpc.connections", "{connection}", "Connections that are open.", func(s *arpc.Stats) int64 { return int64(s.Connections) })
	gauge("arpc.streams", "{stream}", "Streams that are not over, opened by either end.", func(s *arpc.Stats) int64 { return int64(s.Streams) })
	gauge("arpc.calls_in_flight", "{call}", "Calls to peers that are not answered.", func(s *arpc.Stats) int64 { return int64(s.Calls) })
	gauge("arpc.send_queue", "By", "Bytes that wait to be sent.", func(s *arpc.Stats) int64 { return s.SendQueue })
	gauge("arpc.requests_queued", "By", "Bytes of ordered requests that wait for their turn.", func(s *arpc.Stats) int64 { return s.Requests })

	counter("arpc.messages_received", "{message}", "Messages received, of all kinds.", func(s *arpc.Stats) int64 { return s.MessagesIn })
	counter("arpc.messages_sent", "{message}", "Messages sent, of all kinds.", func(s *arpc.Stats) int64 { return s.MessagesOut })
	counter("arpc.received", "By", "Bytes received.", func(s *arpc.Stats) int64 { return s.BytesIn })
	counter("arpc.sent", "By", "Bytes sent.", func(s *arpc.Stats) int64 { return s.BytesOut })
	counter("arpc.connections_accepted", "{connection}", "Connections accepted.", func(s *arpc.Stats) int64 { return s.Accepted })
	counter("arpc.accept_errors", "{error}", "Failures to accept a connection.", func(s *arpc.Stats) int64 { return s.AcceptErrors })
	counter("arpc.connections_refused_limit", "{connection}", "Connections refused because of a limit.",
		func(s *arpc.Stats) int64 { return s.RefusedLimit })
	counter("arpc.connections_refused_files", "{connection}", "Connections refused because no descriptor was left.",
		func(s *arpc.Stats) int64 { return s.RefusedFiles })
	counter("arpc.handshake_errors", "{connection}", "Connections closed because of a failed handshake.",
		func(s *arpc.Stats) int64 { return s.OpenErrors })
	counter("arpc.protocol_errors", "{error}", "Received messages that make no sense.", func(s *arpc.Stats) int64 { return s.ProtocolErrors })
	counter("arpc.connections_silent", "{connection}", "Connections closed because nothing came.",
		func(s *arpc.Stats) int64 { return s.Silent })
	counter("arpc.connections_stalled", "{connection}", "Connections closed because the peer took nothing.",
		func(s *arpc.Stats) int64 { return s.Stalled })

	instruments := make([]metric.Observable, len(sources))
	for i, s := range sources {
		instruments[i] = s.instrument
	}
	_, err := meter.RegisterCallback(func(_ context.Context, to metric.Observer) error {
		o.mu.Lock()
		watched := maps.Clone(o.watched)
		o.mu.Unlock()
		for name, ask := range watched { // without the lock: it is the user's code
			stats := ask()
			of := metric.WithAttributeSet(attribute.NewSet(endpointKey.String(name)))
			for _, s := range sources {
				to.ObserveInt64(s.instrument, s.value(&stats), of)
			}
		}
		return nil
	}, instruments...)
	report(err)
}
