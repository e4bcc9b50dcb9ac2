// Package values maps Go values to and from formats of the family of
// MessagePack and CBOR: nil, booleans, numbers, texts, bytes, arrays, maps and
// times. What the two share is here; a Format knows the bytes of one.
//
// No library does this for both: those that are at hand truncate integers that
// do not fit, allocate what a length merely claims, or weigh ten times the rest
// of a program.
//
// Concurrency: a Codec may be used by any number of goroutines. Its state is a
// cache of what it knows about types; it grows with the types of the program,
// not with data.
//
// Ownership: nothing that Unmarshal stores aliases its input.
//
// Limits: values nest maxDepth levels deep, in either direction, so that a value
// that contains itself is an error too. Memory is taken for elements that are
// there, not for those that a length announces.
package values
