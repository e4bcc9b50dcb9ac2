// Package ws is WebSocket (RFC 6455, RFC 7692) as a stage of a core connection: it takes the contents out of the frames that
// arrive, checks them, answers pings and the closing handshake, and wraps what is sent in binary messages.
//
// # Concurrency
//
// A Stage belongs to one connection. Decode is called by the connection's reader, the other methods with the connection's lock
// held; what both use is atomic.
//
// # Ownership of buffers
//
// Decode works in the memory it is given and keeps nothing of it. Decompressed messages are in memory of the Stage's, valid until
// the next Decode.
//
// # Limits
//
// A message is at most Config.ReadLimit bytes long, before and after decompression, and has at most maxEmpty empty fragments in
// a row. A Listener bounds the number of handshakes and their time; who calls Upgrade or Dial bounds that one's.
package ws
