// Package action serves numbered actions over TCP and WebSocket: a packet says which action it is for, and the handler's result goes
// back under the same action and sequence number. It speaks the wire of github.com/ebar-go/znet.
//
//	instance := action.New()
//	instance.ListenTCP(":8081")
//	instance.ListenWebsocket(":8082")
//	instance.Router().Route(1, func(ctx *action.Context) (any, error) {
//		return map[string]any{"foo": "bar"}, nil
//	})
//	instance.Run(action.SetupSignalHandler())
//
// # Wire
//
//	TCP        length:4 action:2 seq:2 body    most significant byte first; the length counts itself
//	WebSocket         action:2 seq:2 body      one binary message; with JSON a text message is taken, too
//
// The wire has no errors: a handler that fails, an action without a handler and a value that cannot be encoded are told to
// OnError only, and the peer's call ends with its time.
//
// # Concurrency
//
// Handlers of one connection run one after the other, in the order of its requests, and so do the replies go out; those of an
// Unordered route run beside them. Connections do not wait for each other: a handler may block. Everything but what is said to
// be otherwise may be called from any goroutine.
//
// # Ownership of buffers
//
// The Body of a Packet is valid until the handler returns. Whoever passes bytes or values to this package may reuse them when
// the call has returned.
//
// # Limits
//
// See Limits. What waits to be sent to a peer is limited to 1 MiB: then pushes are refused, and the peer is not read before it
// has taken its replies. A peer that takes nothing for 15 seconds, or leaves a packet incomplete for 30, is closed.
package action
