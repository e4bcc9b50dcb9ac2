// Package caller has client-side interceptors: Callers that wrap an arpc.Caller and do more than it does. Typed methods, and
// whatever else takes a Caller, take them:
//
//	c := caller.Retry(client)
//	res, err := Get.Call(ctx, c, req)
//
// They wrap one another, the outermost comes first: Retry(Hedge(c, after)) hedges each attempt. A server calls its clients
// through them as well. Nobody gets any of them without wrapping.
//
// Retry tries again what has failed, Hedge sends a slow call twice, Pick chooses a connection for each attempt. An
// interceptor of your own is a struct that embeds an arpc.Caller and has the methods that are to be different; it should
// pass the context, or one that is derived from it, on.
//
// # What may be repeated
//
// A call that may have been carried out is repeated only if it is idempotent: a typed method with the trait Idempotent, a
// context of arpc.WithIdempotent, or a method that the option Idempotent names, which is the only way for CallAsync of an
// untyped method or a typed one, as it has no context. Other calls are repeated when it is certain that they were not
// carried out, see arpc.IsRefused: they were never handed to the connection, or the peer has refused them before any work. An
// error that Retry and Hedge return says so only if it is true of all attempts; the Context of a callback has that of the last one.
//
// # Concurrency
//
// What the functions return may be used from any goroutine. A call and its later attempts run on the goroutine that calls,
// but for the further attempts of Hedge, which end before the call returns, and those of a CallAsync, which run on a
// timer's. A handler that waits to try again keeps its place: further ordered handlers of its connection wait too.
//
// # Ownership of values
//
// The request of a CallAsync is encoded again by each attempt: it must not be changed until the callback has run. The value
// that an answer is decoded into is that of one attempt as a whole: later ones decode into a value of their own, which
// replaces the caller's when it is complete.
//
// # Limits
//
// Attempts bounds what one call can cause, Budget what all calls can cause together: in an outage a burst is tried again,
// and then nothing until there are answers again. A call never waits beyond its deadline to try again, and never longer
// than a minute if it has none.
package caller
