// Package codec turns values into the payload bytes of a frame and back.
//
// A Codec does the encoding proper: JSONCodec (the default), StdJSON and
// Protobuf are here, and any type with the two methods of Codec will do.
// AppendValue and Decode put the rule in front of it that every arpc peer
// shares: bytes, strings and errors travel raw, nothing becomes an empty
// payload, and only other values reach the codec.
//
// Concurrency: the codecs of this package have no state and may be used from
// any number of goroutines. DefaultCodec is a plain variable; set it before
// the first client or server is made.
//
// Ownership: no codec of this package keeps a reference to its input or
// output. AppendValue copies what it appends; Decode copies what it stores.
// Decoding therefore may read straight from a connection's input buffer, and
// encoding may write straight into its output buffer. A codec of your own must
// keep to the same rule: copy the part of data that outlives Unmarshal.
//
// Limits: none of its own. The size of data is bounded by the frame limit of
// the connection; JSON may nest 1,000 levels deep (StdJSON: 10,000).
package codec
