package crypto

import (
	"slices"
	"sort"
	"sync"
	"weak"

	"github.com/arpc-go/arpc"
)

// MaxSessions is the number of ended sessions that a Crypto remembers.
const MaxSessions = 1 << 16

// maxGaps is the number of stretches of missing frames that a session remembers.
const maxGaps = 1024

// A session is what was received of the frames that a peer's Client has sent.
type session struct {
	id sessionID
	of weak.Pointer[arpc.Client] // that it belongs to; sessions.mu protects it

	mu    sync.Mutex
	owner sessionID // what the connection that it belongs to sends; it outlives the connection's state
	next  uint64    // the counter after the highest received
	gaps  []gap     // what is missing below next, in order
}

// gap is the counters from first up to, not including, end.
type gap struct{ first, end uint64 }

// receive counts a frame of the connection that the session belongs to, or is to
// belong to.
func (s *session) receive(conn *connection, n uint64, take bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !take && s.owner != conn.id {
		return errForeign
	}
	if !s.accept(n) {
		return errReplayed
	}
	s.owner = conn.id
	return nil
}

// accept counts a frame as received, false if it was already. The lock is held.
func (s *session) accept(n uint64) bool {
	if n >= s.next {
		if n > s.next {
			if len(s.gaps) == maxGaps {
				s.gaps = slices.Delete(s.gaps, 0, 1)
			}
			s.gaps = append(s.gaps, gap{s.next, n})
		}
		s.next = n + 1
		return true
	}
	i := sort.Search(len(s.gaps), func(i int) bool { return s.gaps[i].end > n })
	if i == len(s.gaps) || s.gaps[i].first > n {
		return false
	}
	g := &s.gaps[i]
	switch {
	case g.first == n && g.end == n+1:
		s.gaps = slices.Delete(s.gaps, i, i+1)
	case g.first == n:
		g.first++
	case g.end == n+1:
		g.end--
	default:
		rest := gap{n + 1, g.end}
		g.end = n
		s.gaps = slices.Insert(s.gaps, i+1, rest)
		if len(s.gaps) > maxGaps {
			s.gaps = slices.Delete(s.gaps, 0, 1)
		}
	}
	if len(s.gaps) == 0 {
		s.gaps = nil // as it was, for nearly all sessions
	}
	return true
}

// sessions is all that a Crypto remembers.
//
// Lock order: connection.mu, sessions.mu, session.mu.
type sessions struct {
	mu    sync.Mutex
	known map[sessionID]*session
	order []*session // the oldest first
}

// receive counts an authentic frame of a connection, whose lock is held.
func (a *sessions) receive(conn *connection, client *arpc.Client, id sessionID, n uint64) error {
	old := conn.session
	if old != nil && old.id == id {
		return old.receive(conn, n, false)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s, known := a.known[id]
	if known && old != nil {
		// After connecting again the peer has another session, but a new one.
		return errForeign
	}
	if !known {
		s = &session{id: id}
	}
	if err := s.receive(conn, n, true); err != nil {
		return err
	}
	if old != nil {
		old.of = weak.Pointer[arpc.Client]{}
	}
	s.of = weak.Make(client)
	conn.session = s
	if !known {
		a.add(s)
	}
	return nil
}

// add remembers a session, and forgets the oldest that has ended if there are
// many.
func (a *sessions) add(s *session) {
	if a.known == nil {
		a.known = map[sessionID]*session{}
	}
	a.known[s.id] = s
	a.order = append(a.order, s)
	for tries := 0; len(a.known) > MaxSessions && tries < 16; tries++ {
		oldest := a.order[0]
		a.order = a.order[1:]
		if c := oldest.of.Value(); c != nil && c.CheckState() == nil {
			a.order = append(a.order, oldest)
		} else {
			delete(a.known, oldest.id)
		}
	}
}
