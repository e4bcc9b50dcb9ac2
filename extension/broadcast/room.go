package broadcast

import (
	"iter"

	"github.com/arpc-go/arpc"
)

// Kind says what a Room is.
type Kind uint8

// The kinds.
const (
	// KindRoom is a room that has a name.
	KindRoom Kind = iota
	// KindUser is the connections of a user.
	KindUser
	// KindAll is everybody.
	KindAll

	kinds = 3
)

// String returns "room", "user" or "all".
func (k Kind) String() string { return [...]string{"room", "user", "all"}[k%kinds] }

type key struct {
	kind Kind
	name string
}

// A Room is a name for connections of a Hub: those in a room, those of a user, or all. It is a small value, to be made when it is
// needed; two of the same Hub, Kind and name are equal. The zero Room cannot be used.
type Room struct {
	hub *Hub
	key key
}

// Kind returns what the Room is.
func (r Room) Kind() Kind { return r.key.kind }

// Name returns the name of the room or user, "" for everybody.
func (r Room) Name() string { return r.key.name }

// Join makes c a member until it leaves or its connection ends; one that is a member already remains one. The error may be
// answered to a peer: CodeInvalidArgument for a name that is empty or too long, CodeResourceExhausted for one of Limits,
// CodeFailedPrecondition for a connection that is another user's, and CodeUnavailable for one that has ended. For a Client
// that dials it is the connection that it has when it joins that counts; joining again makes it the one of then.
func (r Room) Join(c *arpc.Client) error { return r.hub.join(c, r.key) }

// Leave ends the membership of c and reports whether it was a member. A Send that has begun may still reach it.
func (r Room) Leave(c *arpc.Client) bool { return r.hub.leave(c, r.key) }

// Has reports whether c is a member.
func (r Room) Has(c *arpc.Client) bool {
	has := false
	r.hub.each(c, func(k key) { has = has || k == r.key })
	return has
}

// Len returns the number of members.
func (r Room) Len() int {
	sh := r.hub.roomShard(r.key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if r := sh.rooms[r.key]; r != nil {
		return len(r.seats)
	}
	return 0
}

// Members returns the members of the moment at which it is ranged over, in no order.
func (r Room) Members() iter.Seq[*arpc.Client] {
	return func(yield func(*arpc.Client) bool) {
		for _, s := range r.hub.lend(r.key) {
			if !yield(s.member.client) {
				return
			}
		}
	}
}
