// Package broadcast has rooms of connections: sending to all in a room, to all connections of a user, to everybody, and calling
// everybody and gathering the answers. Members are Clients of any kind, those that a server has accepted and those that dial.
//
//	hub := broadcast.NewHub()
//
//	handler.Handle("/join", func(ctx *arpc.Context) {
//		ctx.Write(hub.Room("news").Join(ctx.Client))
//	})
//
//	hub.Room("news").Send("/headline", "Dewey defeats Truman")
//
// # Sending
//
// A message is encoded once, and no member is waited for: one whose send queue is full does not get it, and the others do not notice.
// OnRefused names those, Stats counts them. What is accepted for a member arrives at most once.
//
// Send puts the message in line, and returns; one task for each room gives what is in line to one member after the other. At 1,024
// messages or 1 MiB in line Send waits for that task. There is no order between what is sent to a room and what is sent to a member
// otherwise, or in another room.
//
// What one goroutine sends to a room arrives in that order at each member. Of what several send at the same time each member gets
// each one's in its order, but not all members the same mixture.
//
// A room is who was in it when Send began: who joins or leaves meanwhile may or may not get the message.
//
// # Membership
//
// A connection is in any number of rooms, and belongs to at most one user. It leaves all by itself when it ends; a Client
// that dials has to join again when it has connected again, for instance in its connected hook. A room exists
// while it has members, so names that peers make up cost nothing when these have gone. Limits bounds the rest.
//
// A Hub knows nothing about permissions: who may join is up to the handler that calls Join.
//
// # Concurrency
//
// Everything may be called from any goroutine, handlers and hooks included. No lock is held while a message is sent or a hook
// runs. Locks are taken in the order member, shard; those of connections are not held beside them.
//
// # Ownership of values
//
// Send does not keep the value. A Message that was pushed must not be changed any more: the queues of the members may hold it.
package broadcast
