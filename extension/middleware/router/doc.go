// Package router holds middlewares for routes: arpc.HandlerFuncs that are
// installed with Use and run around the handler of every request and notify.
//
//	server.Handler.Use(router.Logger())
//	server.Handler.Use(router.Recover())
//
// The order of Use is the order of wrapping: Logger above sees the time of a
// call whose handler panicked, because Recover is inside it.
//
// Concurrency: one value may serve any number of handlers and connections.
// Ownership: no middleware keeps a Context or a Message after it returned.
// Limits: none of them keeps state, waits or starts a goroutine.
package router
