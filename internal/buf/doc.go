// Package buf lends byte buffers by size class.
//
// # Concurrency
//
// Every function and method may be called from any goroutine. A Buf has one owner at a time for writing; its
// references only say how many holders still read it.
//
// # Ownership of buffers
//
// Get gives one reference. Whoever passes a Buf on either hands over the own reference or adds one with Retain; each
// holder calls Free once. Nothing may refer to the bytes after the last Free: the next Get may return the same memory.
//
// # Limits
//
// Buffers above MaxPooled bytes are allocated exactly and left to the garbage collector.
package buf
