// Package msgpack is a coder that sends all values of a message with it: the
// payload becomes a MessagePack map of the payload and the values, as arpc's
// coder of that name has it, byte for byte.
//
// It marks its frames by nothing, so both ends must have it: it has no name to
// be negotiated by. To encode payloads themselves in MessagePack use
// codec.MessagePack; for small texts that travel with a call use the metadata
// of protocol version 2.
//
// The values of a message are those that a call is given, see arpc.Client.Call;
// a handler finds them with arpc.Context.Get. Numbers arrive as int64, uint64
// above its range, or float64, see codec.MessagePack. An answer carries the values of
// its request.
//
// Concurrency: a coder may be used by any number of clients and servers.
//
// Ownership: what is decoded does not alias the frame.
//
// Limits: those of the frame, and of codec.MessagePack. A payload that is no such
// map closes the connection it came from.
package msgpack
