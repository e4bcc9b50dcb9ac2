// Package gzip is a message coder that compresses frames, wire-compatible with
// the gzip coder of other arpc implementations. It is used where both ends of a
// connection have it. Only a peer of protocol version 1 cannot say so and must
// have it: it would take compressed bytes for a frame.
//
//	server.Handler.UseCoder(gzip.New())
//	client.Handler.UseCoder(gzip.New())
//
// On the wire, bit 7 of the frame's reserved byte says that everything after
// that byte (command, flags, method length, sequence, method and payload) is
// one gzip member.
//
// Concurrency: one Gzip may serve any number of handlers and connections.
// Ownership: Encode and Decode leave the given message as it is and return a
// new one, so that a message pushed to many clients is safe.
// Limits: a frame that would decode to more than MaxDecodedLen bytes, or is
// damaged, closes the connection. Decoding allocates at most 1,032 bytes for
// every byte received, the most that the format can expand.
package gzip
