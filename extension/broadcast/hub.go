package broadcast

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/arpc-go/arpc"
)

// shards is the number of independent parts of a Hub's tables, a power of two.
const shards = 64

// A Hub has rooms and users and knows who is in them.
type Hub struct {
	config  config
	seed    maphash.Seed
	clients [shards]clientShard
	rooms   [shards]roomShard
	count   [kinds]atomic.Int64 // rooms with members, of each kind
	seq     atomic.Uint64

	sent, refused atomic.Int64
}

type clientShard struct {
	mu      sync.Mutex
	members map[*arpc.Client]*member
}

type roomShard struct {
	mu    sync.Mutex
	rooms map[key]*room
}

// A member is a connection that is in a Hub. It is new, then in, then gone for good; a Client that connects again becomes a
// new member.
type member struct {
	client *arpc.Client
	stop   func() bool // takes back what waits for the end of the connection; guarded by mu

	mu   sync.Mutex
	gone bool
	in   []*seat // the first is that of everybody
}

// A seat is a member's place in a room.
type seat struct {
	member *member
	room   *room
	at     int // index in room.seats; guarded by the shard
}

// A room exists while it has members. It is guarded by its shard.
type room struct {
	key   key
	seats []*seat
	// lent says that somebody may be reading seats, up to its length of then: it may be appended to, but is copied before
	// anything else changes.
	lent bool
	out  *outbox // nil until something is sent
}

// NewHub returns an empty Hub. It needs no end: it holds nothing but members.
func NewHub(opts ...Option) *Hub {
	h := &Hub{seed: maphash.MakeSeed()}
	for _, o := range opts {
		if o != nil {
			o.apply(&h.config)
		}
	}
	h.config.limits = h.config.limits.withDefaults()
	for i := range h.rooms {
		h.rooms[i].rooms = map[key]*room{}
		h.clients[i].members = map[*arpc.Client]*member{}
	}
	return h
}

// Room returns the room of a name, which need not exist.
func (h *Hub) Room(name string) Room { return Room{h, key{KindRoom, name}} }

// User returns the connections of a user as a Room. Joining it says that a connection is that user's.
func (h *Hub) User(id string) Room { return Room{h, key{KindUser, id}} }

// All returns everybody as a Room: who has joined anything, until the connection ends or Leave is called, which is what
// leaving this room does. A connection that is to get what is sent to all, but is in no room, joins this one.
func (h *Hub) All() Room { return Room{h, key{kind: KindAll}} }

// Leave removes c from all rooms, from its user and from All. It reports whether it was in any.
func (h *Hub) Leave(c *arpc.Client) bool {
	m := h.find(c)
	return m != nil && h.end(m)
}

// RoomsOf returns the rooms that c is in, in no order; without its user, which UserOf returns.
func (h *Hub) RoomsOf(c *arpc.Client) []Room {
	var rooms []Room
	h.each(c, func(k key) {
		if k.kind == KindRoom {
			rooms = append(rooms, Room{h, k})
		}
	})
	return rooms
}

// UserOf returns the user that c belongs to, and false if there is none.
func (h *Hub) UserOf(c *arpc.Client) (id string, ok bool) {
	h.each(c, func(k key) {
		if k.kind == KindUser {
			id, ok = k.name, true
		}
	})
	return id, ok
}

func (h *Hub) each(c *arpc.Client, f func(key)) {
	m := h.find(c)
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.in {
		f(s.room.key)
	}
}

// Rooms returns the rooms that have members, in no order.
func (h *Hub) Rooms() []Room { return h.list(KindRoom) }

// Users returns the users that have connections, in no order.
func (h *Hub) Users() []Room { return h.list(KindUser) }

func (h *Hub) list(kind Kind) []Room {
	var rooms []Room
	for i := range h.rooms {
		s := &h.rooms[i]
		s.mu.Lock()
		for k := range s.rooms {
			if k.kind == kind {
				rooms = append(rooms, Room{h, k})
			}
		}
		s.mu.Unlock()
	}
	return rooms
}

// Stats says what a Hub holds, and what has happened since it was made.
type Stats struct {
	// Rooms and Users are those that have members, Members the connections in the Hub.
	Rooms, Users, Members int
	// Sent counts the messages that are in the send queue of a member, Refused those that no member got: a message to a room of a
	// thousand is a thousand.
	Sent, Refused int64
}

// Stats returns the state of the Hub.
func (h *Hub) Stats() Stats {
	return Stats{
		Rooms: int(h.count[KindRoom].Load()), Users: int(h.count[KindUser].Load()), Members: h.All().Len(),
		Sent: h.sent.Load(), Refused: h.refused.Load(),
	}
}

func (h *Hub) clientShard(c *arpc.Client) *clientShard {
	return &h.clients[maphash.Comparable(h.seed, c)%shards]
}

func (h *Hub) roomShard(k key) *roomShard {
	return &h.rooms[(maphash.String(h.seed, k.name)+uint64(k.kind))%shards]
}

// find returns the member that c is, nil if it is none.
func (h *Hub) find(c *arpc.Client) *member {
	s := h.clientShard(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.members[c]
}

// member returns the member that c is from now on.
func (h *Hub) member(c *arpc.Client) *member {
	s := h.clientShard(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.members[c]
	if m == nil {
		m = &member{client: c}
		s.members[c] = m
	}
	return m
}

// forget removes a member that is gone, so that c may become another one.
func (h *Hub) forget(m *member) {
	s := h.clientShard(m.client)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members[m.client] == m {
		delete(s.members, m.client)
	}
}

// join puts c into a room, until the connection that c has now ends. A member that is found gone is on its way out of the table:
// another takes its place.
func (h *Hub) join(c *arpc.Client, k key) error {
	if c == nil {
		return errNoClient
	}
	if k.kind != KindAll && (k.name == "" || len(k.name) > h.config.limits.Name) {
		return limitError(arpc.CodeInvalidArgument, "a name has 1 to %d bytes", h.config.limits.Name)
	}
	for {
		if connected := c.AfterConn(func() {})(); !connected {
			if err := c.CheckState(); err != nil {
				return err
			}
			return arpc.ErrClientReconnecting
		}
		m := h.member(c)
		switch err := h.enter(m, k); {
		case err == errGone:
			h.forget(m)
		case err != nil:
			return err
		case h.bind(m):
			return nil
		}
	}
}

// bind makes a member last as long as the connection that its Client has now. It reports false if an earlier connection has ended
// meanwhile, and the member with it.
func (h *Hub) bind(m *member) bool {
	stop := m.client.AfterConn(func() { h.end(m) })
	m.mu.Lock()
	gone, before := m.gone, m.stop
	if !gone {
		m.stop = stop
	}
	m.mu.Unlock()
	if gone {
		stop()
		return false
	}
	if before != nil && !before() {
		h.end(m)
		return false
	}
	return true
}

// enter gives a member a place in a room, and among everybody. Who has none before and gets none does not stay.
func (h *Hub) enter(m *member, k key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return errGone
	}
	rooms := 0
	for _, s := range m.in {
		switch {
		case s.room.key == k:
			return nil
		case s.room.key.kind == KindRoom:
			rooms++
		case s.room.key.kind == KindUser && k.kind == KindUser:
			return errOtherUser
		}
	}
	if k.kind == KindRoom && rooms >= h.config.limits.RoomsPerMember {
		return limitError(arpc.CodeResourceExhausted, "a connection may be in %d rooms", h.config.limits.RoomsPerMember)
	}
	fresh := len(m.in) == 0
	if err := h.sit(m, k); err != nil {
		if fresh {
			m.gone = true
			h.forget(m)
		}
		return err
	}
	if all := (key{kind: KindAll}); fresh && k != all {
		h.sit(m, all) //nolint:errcheck // there is always room
		m.in[0], m.in[1] = m.in[1], m.in[0]
	}
	return nil
}

// sit appends a member, whose lock is held, to a room, which it makes if there is none.
func (h *Hub) sit(m *member, k key) error {
	sh := h.roomShard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.rooms[k]
	if r == nil {
		if n := h.count[k.kind].Add(1); k.kind != KindAll && n > int64(h.config.limits.Rooms) {
			h.count[k.kind].Add(-1)
			return limitError(arpc.CodeResourceExhausted, "there are %d "+k.kind.String()+"s already", h.config.limits.Rooms)
		}
		k.name = strings.Clone(k.name) // it may be a part of something large
		r = &room{key: k}
		sh.rooms[k] = r
	}
	switch {
	case k.kind == KindRoom && len(r.seats) >= h.config.limits.Members:
		return limitError(arpc.CodeResourceExhausted, "a room has %d members at most", h.config.limits.Members)
	case k.kind == KindUser && len(r.seats) >= h.config.limits.ConnectionsPerUser:
		return limitError(arpc.CodeResourceExhausted, "a user has %d connections at most", h.config.limits.ConnectionsPerUser)
	}
	s := &seat{member: m, room: r, at: len(r.seats)}
	r.seats = append(r.seats, s)
	m.in = append(m.in, s)
	return nil
}

// leave takes c out of a room.
func (h *Hub) leave(c *arpc.Client, k key) bool {
	if k.kind == KindAll {
		return h.Leave(c)
	}
	m := h.find(c)
	if m == nil {
		return false
	}
	m.mu.Lock()
	i := slices.IndexFunc(m.in, func(s *seat) bool { return s.room.key == k })
	if i < 0 {
		m.mu.Unlock()
		return false
	}
	s := m.in[i]
	m.in = slices.Delete(m.in, i, i+1)
	h.rise(s)
	m.mu.Unlock()
	h.left(s)
	return true
}

// end takes a member out of everything. It reports whether this was its end.
func (h *Hub) end(m *member) bool {
	m.mu.Lock()
	if m.gone {
		m.mu.Unlock()
		return false
	}
	m.gone = true
	in, stop := m.in, m.stop
	m.in = nil
	for _, s := range in {
		h.rise(s)
	}
	m.mu.Unlock()
	h.forget(m)
	if stop != nil {
		stop()
	}
	for _, s := range slices.Backward(in) { // everybody's last
		h.left(s)
	}
	return true
}

// rise takes a seat out of its room, and the room out of the table if it was the last. The member's lock is held.
func (h *Hub) rise(s *seat) {
	r := s.room
	sh := h.roomShard(r.key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if len(r.seats) == 1 {
		delete(sh.rooms, r.key)
		h.count[r.key.kind].Add(-1)
		return
	}
	if r.lent {
		r.seats, r.lent = slices.Clone(r.seats), false
	}
	n := len(r.seats) - 1
	last := r.seats[n]
	r.seats[s.at], last.at = last, s.at
	r.seats[n] = nil
	r.seats = r.seats[:n]
	if cap(r.seats) > 64 && n < cap(r.seats)/4 {
		r.seats = append(make([]*seat, 0, n*2), r.seats...)
	}
}

func (h *Hub) left(s *seat) {
	if f := h.config.left; f != nil {
		f(Room{h, s.room.key}, s.member.client)
	}
}

// lend returns who is in a room at the moment. The slice never changes.
func (h *Hub) lend(k key) []*seat {
	sh := h.roomShard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.rooms[k]
	if r == nil {
		return nil
	}
	r.lent = true
	return r.seats
}

// outbox returns who is in a room at the moment, as lend does, and where to put what they are to get; nil, nil for a room without
// members.
func (h *Hub) outbox(k key) ([]*seat, *outbox) {
	sh := h.roomShard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.rooms[k]
	if r == nil {
		return nil, nil
	}
	if r.out == nil {
		r.out = &outbox{room: Room{h, r.key}}
	}
	r.lent = true
	return r.seats, r.out
}

// isStopped reports whether err says that there is no connection and never will be. It is the first cause that tells: others may be
// texts of the peer's, which look like anything.
func isStopped(err error) bool {
	var e *arpc.Error
	if !errors.As(err, &e) {
		return false
	}
	if causes := e.Unwrap(); len(causes) > 0 {
		return causes[0] == error(arpc.ErrClientStopped)
	}
	return e == arpc.ErrClientStopped
}

var (
	errNoClient  = &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "broadcast: no client"}
	errOtherUser = &arpc.Error{Code: arpc.CodeFailedPrecondition, Message: "the connection is another user's already"}
	errGone      = errors.New("the member is gone")
)

// limitError is the answer to what exceeds a limit. It may go to a peer.
func limitError(code arpc.Code, format string, limit int) error {
	return &arpc.Error{Code: code, Message: fmt.Sprintf(format, limit)}
}
