// Package codec turns values into the payload bytes of a frame and back.
//
// A Codec does the encoding proper. Here are JSONCodec (the default), StdJSON,
// Protobuf, MessagePack, CBOR and Raw, and any type with the two methods of Codec
// will do. AppendValue and Decode put the rule in front of it that every arpc peer
// shares: bytes, strings and errors travel raw, nothing becomes an empty
// payload, and only other values reach the codec.
//
// A connection has one codec, see arpc.WithCodec, and calls on protocol version 2
// may choose another that both ends have registered under its name, see Register
// and arpc.UseCodec. JSON and Protobuf are registered from the start; the others
// when the program asks for it, as each is one more decoder that peers can reach,
// and one more in the program:
//
//	codec.Register(codec.MessagePack{})
//
// # Values that encode themselves
//
// What a value with methods of its own becomes depends on the codec:
//
//	              proto.Message     BinaryMarshaler    TextMarshaler
//	JSON          as any struct     as any value       text
//	Protobuf      its binary form   refused            refused
//	MessagePack   bytes             bytes              text
//	CBOR          bytes             bytes              text
//	Raw           its binary form   its binary form    refused
//
// The first that applies, from the left, counts. JSON does not use binary forms
// although many types have one: time.Time or url.URL would change on the wire.
//
// Concurrency: the codecs of this package may be used from any number of
// goroutines, and so may Register and Lookup. DefaultCodec is a plain variable;
// set it before the first client or server is made.
//
// Ownership: no codec of this package keeps a reference to its input or
// output. AppendValue copies what it appends; Decode copies what it stores.
// Decoding therefore may read straight from a connection's input buffer, and
// encoding may write straight into its output buffer. A codec of your own must
// keep to the same rule, and so must the UnmarshalBinary, UnmarshalText and
// UnmarshalJSON of types: copy the part of data that outlives the call.
//
// Limits: the size of data is bounded by the frame limit of the connection; JSON,
// MessagePack and CBOR nest 1,000 levels deep at most (StdJSON: 10,000).
// MessagePack and CBOR take memory for what is there, not for what a length
// announces; an element of data can still be as large in memory as the element
// type of the slice that it is decoded into.
package codec
