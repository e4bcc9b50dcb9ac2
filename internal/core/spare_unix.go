//go:build unix

package core

import (
	"net"
	"os"
	"sync"
	"time"
)

// spares serialises the use of spare descriptors, so that two listeners do not take each other's.
var spares sync.Mutex

// spare is a descriptor held back for the moment when there are none: it is freed to accept, and so to refuse, the
// connections that would otherwise wait in the backlog without an answer.
type spare struct{ f *os.File }

func newSpare() *spare {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return &spare{}
	}
	return &spare{f}
}

// refuse resets what is in the backlog of ln and returns how many that were.
func (s *spare) refuse(ln net.Listener) int {
	d, ok := ln.(interface{ SetDeadline(time.Time) error })
	s.ensure() // somebody else may have taken the number the last time
	if !ok || s.f == nil {
		return 0
	}
	spares.Lock()
	defer spares.Unlock()
	s.close()
	n := 0
	for {
		// A deadline that has passed makes Accept fail instead of waiting, but not before it has tried.
		if d.SetDeadline(time.Now().Add(time.Millisecond)) != nil {
			break
		}
		nc, err := ln.Accept()
		if err != nil {
			break
		}
		reset(nc)
		n++
	}
	d.SetDeadline(time.Time{}) //nolint:errcheck // it worked a moment ago
	*s = *newSpare()
	return n
}

// ensure takes a descriptor if there is none.
func (s *spare) ensure() {
	if s.f == nil {
		*s = *newSpare()
	}
}

func (s *spare) close() {
	if s.f != nil {
		s.f.Close() //nolint:errcheck // opened for reading only
		s.f = nil
	}
}
