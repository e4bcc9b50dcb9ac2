// Package otelarpc makes OpenTelemetry traces and metrics of what arpc connections do. It is one Observer for clients and servers:
//
//	o := otelarpc.NewObserver()
//	server.Handler.SetObserver(o)
//	o.Watch("api", server.Stats)
//
// docs/observability.md has the whole, with what a web page does to take part.
//
// # Traces
//
// Calls, notifications and streams have a span of kind client where they are made and one of kind server where they are handled,
// with the names and attributes of the semantic conventions for RPC. Who calls is the client, whichever end has dialled. The
// trace context travels as metadata, in both directions, to peers of version 2 of the protocol. A handler's Context carries its span: calls
// made with it are children, and trace.SpanFromContext finds it there. Calls that have no context (Call, CallAsync, Notify)
// begin traces of their own.
//
// # Metrics
//
// The histograms rpc.client.call.duration and rpc.server.call.duration have the method, the kind and the code. What Watch is given
// becomes gauges and counters that are read when metrics are collected.
//
// # Limits
//
// A method that no handler has is counted as "_OTHER", and so is every method after the first thousand, see WithMethodLimit. A field
// of the trace context that is longer than 4 KiB is not sent.
//
// # Concurrency
//
// An Observer may serve any number of Clients and Servers. It never waits for a peer or an exporter, if span processors do not: use
// batching ones.
package otelarpc
