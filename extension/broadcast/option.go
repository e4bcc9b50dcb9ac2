package broadcast

import (
	"github.com/arpc-go/arpc"
)

// An Option configures a Hub.
type Option interface{ apply(*config) }

type config struct {
	limits  Limits
	refused func(Room, *arpc.Client, error)
	left    func(Room, *arpc.Client)
}

// Limits bounds what peers that may join can make a Hub hold. Zero means the default of a field, a negative value no limit. It
// is an Option.
type Limits struct {
	// Rooms is the number of rooms with members, and separately that of users with connections. Default 100,000.
	Rooms int
	// Members is the number of connections in a room. Default 100,000.
	Members int
	// RoomsPerMember is the number of rooms that a connection is in. Default 128.
	RoomsPerMember int
	// ConnectionsPerUser is the number of connections of a user. Default 64.
	ConnectionsPerUser int
	// Name is the number of bytes of the name of a room or user. Default 255.
	Name int
	// Message is the number of bytes of method and payload of a message. Default arpc.DefaultMaxBodyLen. Members of version 1 of the
	// protocol that accept less than what is sent close their connection; others are refused it.
	Message int
}

func (l Limits) apply(c *config) { c.limits = l }

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		value *int
		def   int
	}{
		{&l.Rooms, 100_000}, {&l.Members, 100_000}, {&l.RoomsPerMember, 128}, {&l.ConnectionsPerUser, 64}, {&l.Name, 255},
		{&l.Message, arpc.DefaultMaxBodyLen},
	} {
		switch {
		case *f.value == 0:
			*f.value = f.def
		case *f.value < 0:
			*f.value = 1<<31 - 1
		}
	}
	return l
}

type option func(*config)

func (o option) apply(c *config) { o(c) }

// OnRefused sets a function that is called for each member that did not get a message, with arpc.ErrClientOverstock when its
// send queue is full, or with why it has no connection. It runs before the next member's turn and should not block; while it does, the
// room's messages wait, and when there are too many of them Send fails. It may send, and for instance stop a member that is too
// slow:
//
//	broadcast.OnRefused(func(_ broadcast.Room, c *arpc.Client, _ error) { go c.Stop() })
//
// Default: none; Stats counts. Where the Handler has an overstock hook, that runs too.
func OnRefused(f func(r Room, c *arpc.Client, err error)) Option {
	return option(func(c *config) { c.refused = f })
}

// OnLeave sets a function that is called after a member has left a room, a user or the hub, for whatever reason, once for
// each: on the goroutine that called Leave, or on the one that finds that the connection is lost, before the disconnected
// hooks. It must not block. Default: none.
func OnLeave(f func(r Room, c *arpc.Client)) Option {
	return option(func(c *config) { c.left = f })
}
