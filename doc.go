// Package arpc is a bidirectional RPC framework: over one connection either end may Call, CallAsync and Notify, with the
// same routes and the same handlers on a server and on a client.
//
// # Concurrency
//
// Every method of Client, Server, ClientPool and Mux may be called from any goroutine. Handlers run in one of three ways,
// chosen per route: ordered (the default), one at a time per connection in the order of arrival; async, in parallel; inline,
// on the goroutine that reads. A handler may call its own caller back; when it does so with its own Context, the next ordered
// handler of the connection may run meanwhile. No lock is held while a handler, a hook or a callback runs.
//
// # Delivery
//
// A notification is delivered at most once, a call is attempted once. Each call ends exactly once, with a result or with an
// error that carries a Code. An error with a code says which side decided (Error.Remote).
//
// # Ownership of buffers
//
// What is passed to Call, Notify, Write and the like is encoded before they return and is the caller's again. Bind gives
// copies. Context.Body and Message.Buffer of a received message are valid until the handler or callback returns, unless
// Context.AnswerLater was called.
//
// # Limits
//
// Limits lists all of them with their defaults.
package arpc
