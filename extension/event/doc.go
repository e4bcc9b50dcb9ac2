// Package event serves raw bytes: fill in Events and call Serve, with an API that programs written for evio (its first,
// id-based version) compile against.
//
//	events.Data = func(id int, in []byte) (out []byte, action event.Action) { return in, event.None }
//	err := event.Serve(events, "tcp://localhost:5000", "unix://socket")
//
// # Concurrency
//
// Each connection belongs to one loop. No two events of a loop overlap, each sees what the ones before it did, and they need no locks of
// their own; with NumLoops at most 1, as is the default, that holds for all events. They do not always run on the same
// goroutine. An event that blocks holds up its loop. Serve blocks its caller until an event returns Shutdown or a listener fails.
//
// # Ownership of buffers
//
// The bytes given to Data are Data's to keep, unless the connection has Options.ReuseInputBuffer: then they are valid until Data
// returns. What an event returns to be sent is copied before the next event of the loop begins.
//
// # Limits
//
// While 1 MiB of output or more is waiting for a peer to read it, the peer is not read and is not woken. A peer that has more
// than 64 MiB waiting, or that takes nothing of what is waiting for 15 s, is closed. What one event returns may exceed these. Silence is
// no reason to close a connection. After Close a peer has 5 s, after Shutdown one second, to read what is left and to close its side.
package event
