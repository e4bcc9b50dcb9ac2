// Package router holds middlewares for routes: arpc.HandlerFuncs that are
// installed with Use and run around the handlers of calls, notifications and
// streams, on servers and on clients.
//
//	h := server.Handler // or client.Handler
//	h.Use(router.Logger())
//	h.Use(router.Recover())
//	h.Use(graceful.Handler())
//	h.Use(router.Auth(verify))
//	h.Use(router.Limit(router.LimitOptions{Route: router.Quota{Rate: 1000}}))
//	h.Use(router.Timeout(5 * time.Second))
//	h.Handle("/echo", echo)
//
// The order of Use is the order of wrapping: Logger above sees the time and
// the code of a call whose handler panicked, because Recover is inside it.
// Install them before the routes: one that is installed later runs after the
// handlers of the routes that are there, where Auth and Limit guard nothing.
//
// A middleware that refuses a call answers it with an error that is marked by
// arpc.Refused, as no work was done; a stream is reset with that error; a
// notification has no answer and is dropped. Logger sees all three. See
// docs/middleware.md for the codes.
//
// Concurrency: one value may serve any number of handlers and connections.
// Ownership: no middleware keeps a Context or a Message after it was dealt
// with.
// Limits: what is remembered about peers and routes is bounded, see
// LimitOptions. None of them makes messages wait, but Auth while its function
// runs.
package router
