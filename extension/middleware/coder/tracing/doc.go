// Package tracing is a coder that sends the identity of a span of OpenTracing's
// basic tracer with a message, as arpc's coder of that name does, byte for byte.
// It is for talking to programs that have it. New programs trace with W3C
// trace contexts in the metadata of protocol version 2, see extension/otel.
//
// Concurrency: a coder may be used by any number of clients and servers.
//
// Ownership: what is decoded does not alias the frame.
//
// Limits: a span context takes at most 65,517 bytes. One that is malformed
// closes the connection it came from.
package tracing
