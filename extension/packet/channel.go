package packet

import "sync"

// A Channel is a set of sessions that get the same messages. They leave it by themselves when they end.
type Channel struct {
	proto Protocol

	// mu may be held when a Session's is taken, not the other way round.
	mu      sync.Mutex
	members map[*Session]func()
	list    []*Session // the members, nil when they have changed
}

// NewChannel returns a channel for sessions of one protocol.
func NewChannel(proto Protocol) *Channel {
	return &Channel{proto: proto, members: map[*Session]func(){}}
}

// Join makes a session a member; kicked, if not nil, is called when it is kicked. A session that is a member already gets another
// callback. ErrClosed says that the session has ended, ErrNotStarted that a dialled one has not begun.
func (c *Channel) Join(s *Session, kicked func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.down:
		return closed(s.err)
	case s.cn.Load() == nil:
		return ErrNotStarted
	}
	if s.channels == nil {
		s.channels = map[*Channel]struct{}{}
	}
	s.channels[c] = struct{}{}
	c.members[s], c.list = kicked, nil
	return nil
}

// Exit ends a membership, if there is one.
func (c *Channel) Exit(s *Session) { c.remove(s) }

// Kick ends the membership of the session with an ID, if there is one, and calls its callback. IDs are unique per
// server; of members with the same all are kicked.
func (c *Channel) Kick(id uint64) {
	for _, s := range c.snapshot() {
		if s.id == id {
			if kicked := c.remove(s); kicked != nil {
				s.safely("kick callback", kicked)
			}
		}
	}
}

// remove ends a membership and returns its callback.
func (c *Channel) remove(s *Session) (kicked func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.mu.Lock()
	delete(s.channels, c)
	s.mu.Unlock()
	kicked = c.members[s]
	delete(c.members, s)
	c.list = nil
	return kicked
}

// snapshot returns the members; the slice never changes.
func (c *Channel) snapshot() []*Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.list == nil {
		c.list = make([]*Session, 0, len(c.members))
		for s := range c.members {
			c.list = append(c.list, s)
		}
	}
	return c.list
}

// Fetch calls f for each session that is a member when Fetch is called.
func (c *Channel) Fetch(f func(*Session)) {
	for _, s := range c.snapshot() {
		f(s)
	}
}

// Len returns the number of members.
func (c *Channel) Len() int {
	return len(c.snapshot())
}

// Broadcast sends a message to all members. It is encoded once, and waits for nobody: a member whose queue is full is
// closed, as by Send. ErrTooLarge says that members whose Limits.Send is below it do not get it; another error that
// nobody does. What one goroutine broadcasts arrives in that order.
func (c *Channel) Broadcast(m Message) error {
	members := c.snapshot()
	limit := int64(-1)
	for _, s := range members {
		limit = max(limit, s.send.Load())
	}
	if limit < 0 {
		return nil // nobody is there
	}
	p, err := encode(make([]byte, 0, hint(m, int(limit))), c.proto, m, int(limit))
	if err != nil {
		return err
	}
	size := len(c.proto.Body(p))
	for _, s := range members {
		if own := s.send.Load(); int64(size) > own {
			err = above(size, int(own))
			continue
		}
		s.put(p, true, false) //nolint:errcheck // who has ended or is blocked leaves by itself
	}
	return err
}
