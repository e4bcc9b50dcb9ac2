// Package coder holds what message coders share: the bits of a frame's reserved
// byte that the coders of this module use, and Appender, which sends a value
// with a message. The coders themselves are in its subpackages.
//
// A coder belongs to a Handler, see arpc.Mux.UseCoder. Encoding goes in the
// order of registration, decoding in reverse. Of the coders here, those with a
// method Name are applied to a peer of protocol version 2 only if it has them
// too; to a peer of version 1, which cannot say what it has, all are.
//
// Concurrency: coders may be used by any number of clients and servers at once.
//
// Ownership: no coder here changes the bytes that it is given, so that a message
// may be shared between connections.
//
// Limits: what a coder refuses closes the connection it came from. Each package
// says what is refused.
package coder
