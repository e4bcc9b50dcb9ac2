// Package packet has sessions that exchange packets over persistent connections: TCP, Unix sockets, or what a listener or
// dialer of the program's makes, such as TLS. How the bytes are split into packets is a Protocol's, what is in
// them a Message's. It has packnet's API.
//
//	proto := packet.NewFixProtocol(4, binary.BigEndian)
//	server, err := packet.ListenAndServe("tcp", "127.0.0.1:8080", proto)
//	...
//	server.OnSessionStart(func(session *packet.Session) {
//		session.OnMessage(func(session *packet.Session, message []byte) {
//			session.Send(packet.Bytes(message))
//		})
//	})
//	server.Start()
//
// # Life of a session
//
//	accepted --> start hook --> packets, one after the other ----------> close hook
//	dialled  --> Start      ------^           | end of input, an error, Close, Stop
//	                                          v
//	                                 not in the table and in no channel any more
//
// What the peer has sent before it closed is handled, and what was accepted for sending before Close is sent; each is bounded
// by Limits.Close, after which the close hook may run beside a handler that has not returned.
//
// # Concurrency
//
// Everything may be called from any goroutine, hooks and handlers included, but for the fields State: these are the
// program's to guard. No lock is held while a hook, a handler, a Message or what Fetch is given runs. The hooks and the handler
// of one session run one at a time and in order, on whatever goroutine; each may block, which delays its own session only.
// A panic in one of them is logged and closes its session with ErrPanic. What one goroutine sends to a session arrives in that order.
//
// # Ownership of buffers
//
// The bytes that a handler gets are valid until it returns. What is given to a send method may be reused after it.
//
// # Limits
//
// See Limits: packets, queues and waits are bounded by default, and a length is checked before memory is allocated for it.
package packet
