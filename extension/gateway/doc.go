// Package gateway lets HTTP clients call the handlers of an arpc server:
//
//	http.ListenAndServe(":8080", gateway.New(server))
//
//	curl -d '{"name":"x"}' http://localhost:8080/hello
//
// A request runs as a call over a connection in memory: through the same middleware, with its deadline and metadata, and
// cancelled when the HTTP client goes away. docs/http.md says how requests, answers and errors look.
//
// # Whose connection it is
//
// HTTP requests have no connection of their own. A handler's Client is one of the gateway's, and serves another user next: what
// a program keeps with a Client, such as a login made by an earlier call, must not be reached this way, see Expose; who the user
// is belongs into metadata, see Metadata. Calls and notifications to such a Client find no handler. The server's hooks see the
// gateway's connections as any others.
//
// # Concurrency
//
// A Gateway may be used from any goroutine. A request gets a connection for itself, up to the number of Connections: ordered
// handlers of different requests run in parallel then. Further requests share connections.
//
// # Ownership of buffers
//
// The gateway keeps nothing of a request or of its answer.
//
// # Limits
//
// Body, metadata, time and connections are bounded by options; how long a client may take to send its request, and how many
// there are, is the http.Server's to say. A connection whose handler goes on after its request has ended is not used meanwhile,
// and closed if that lasts.
package gateway
