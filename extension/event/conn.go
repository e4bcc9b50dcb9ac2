package event

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/arpc-go/arpc/internal/core"
)

// conn is a connection. What it has is guarded by its loop's mutex, unless said otherwise.
type conn struct {
	s    *server
	c    *core.Conn
	id   int
	loop *sync.Mutex

	reuse  bool
	action Action // Close or Detach once that was asked for: no Data any more
	over   bool   // Closed or Detached was called, or is not to be
	kept   []byte // received after Detach was asked for

	woken  atomic.Bool
	wakeUp func() // is runWake, so that it is allocated once; set before the connection is the core's
}

var errShutdown = errors.New("shutting down")

// userOf returns what belongs to c; nil before Opened.
func userOf(c *core.Conn) *conn {
	c.Lock()
	defer c.Unlock()
	cn, _ := c.User.(*conn)
	return cn
}

// Open implements core.App.
func (s *server) Open(c *core.Conn) error {
	cn := &conn{s: s, c: c, id: int(c.ID()), loop: &s.loops[c.Loop()]}
	cn.wakeUp = cn.runWake
	action, err := cn.open()
	if err != nil {
		return err
	}
	c.Flush()
	cn.act(action)
	return nil
}

// open calls Opened.
func (cn *conn) open() (Action, error) {
	cn.loop.Lock()
	defer cn.loop.Unlock()
	s, c := cn.s, cn.c
	if s.ending.Load() {
		return None, errShutdown
	}
	c.Lock()
	c.User = cn
	c.Unlock()
	if s.events.Opened == nil {
		return None, nil
	}
	index := c.Listener()
	addr := Addr{Index: index, Local: s.addrs[index], Remote: s.addrs[index]}
	if _, unix := addr.Local.(*net.UnixAddr); !unix {
		addr.Local, addr.Remote = c.LocalAddr(), c.RemoteAddr()
	}
	out, opts, action := s.events.Opened(cn.id, addr)
	cn.reuse = opts.ReuseInputBuffer
	if opts.TCPKeepAlive > 0 {
		c.SetKeepAlive(opts.TCPKeepAlive) //nolint:errcheck // unix connections have none
	}
	return cn.took(out, action), nil
}

// took sends out, for an event that also asked for action, without writing yet.
func (cn *conn) took(out []byte, action Action) Action {
	if len(out) > 0 {
		cn.c.Lock()
		if cn.c.CanSend() == nil {
			copy(cn.c.Reserve(len(out)), out)
			cn.c.CommitHeld()
		} else {
			cn.c.Unlock()
		}
	}
	if action == Detach && cn.s.events.Detached == nil {
		action = Close
	}
	if action == Close || action == Detach {
		cn.action = action
	}
	return action
}

// act does what an event asked for. The loop's mutex is not held.
func (cn *conn) act(action Action) {
	switch action {
	case Detach:
		cn.c.Detach(cn.detached) //nolint:errcheck // it is down already, and Closed follows
	case Close:
		cn.c.Close(nil)
	case Shutdown:
		cn.s.shutdown(cn, nil)
	}
}

// Batch implements core.App.
func (s *server) Batch(c *core.Conn, in *core.Input) error {
	cn := c.User.(*conn)
	for {
		p, err := in.Next()
		if p == nil || err != nil {
			return err
		}
		cn.act(cn.data(p))
	}
}

// data calls Data for what was received, or, with nil, for wake.
func (cn *conn) data(p []byte) Action {
	cn.loop.Lock()
	defer cn.loop.Unlock()
	switch {
	case cn.action == Detach:
		cn.kept = append(cn.kept, p...)
		return None
	case cn.action != None || cn.over || cn.s.events.Data == nil || cn.s.ending.Load():
		return None
	}
	if !cn.reuse {
		p = slices.Clone(p)
	}
	return cn.took(cn.s.events.Data(cn.id, p))
}

// wake is what Serving is given.
func (s *server) wake(id int) bool {
	c := s.group.Get(uint64(id))
	if c == nil || id <= 0 {
		return false
	}
	cn := userOf(c)
	if cn == nil {
		return false
	}
	if !cn.woken.CompareAndSwap(false, true) {
		return true
	}
	if !c.Post(cn.wakeUp) {
		cn.woken.Store(false)
		return false
	}
	return true
}

// runWake is the job that wake has posted.
func (cn *conn) runWake() {
	cn.woken.Store(false)
	action := cn.data(nil)
	cn.c.Flush()
	cn.act(action)
}

// Run implements core.App; nothing is put in line for it.
func (s *server) Run(*core.Conn, *core.Input, []byte, any) *core.Turn { return nil }

// Down implements core.App.
func (s *server) Down(*core.Conn, error) {}

// Close implements core.App.
func (s *server) Close(c *core.Conn, err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, core.ErrClosed) || errors.Is(err, core.ErrStopped) {
		err = nil
	}
	cn := c.User.(*conn)
	if cn.closed(err) == Shutdown {
		s.shutdown(nil, nil)
	}
}

// closed calls Closed, unless the connection is over.
func (cn *conn) closed(err error) Action {
	cn.loop.Lock()
	defer cn.loop.Unlock()
	if cn.over {
		return None
	}
	cn.over = true
	if cn.s.events.Closed == nil {
		return None
	}
	return cn.s.events.Closed(cn.id, err)
}

// detached is called when the connection is nobody else's any more.
func (cn *conn) detached(nc net.Conn, unread []byte) {
	if cn.callDetached(nc, unread) == Shutdown {
		cn.s.shutdown(nil, nil)
	}
}

func (cn *conn) callDetached(nc net.Conn, unread []byte) Action {
	cn.loop.Lock()
	defer cn.loop.Unlock()
	if cn.over { // Serve has ended
		nc.Close() //nolint:errcheck // nobody wants it any more
		return None
	}
	cn.over = true
	if unread = append(cn.kept, unread...); len(unread) > 0 {
		nc = &resumed{nc, unread}
	}
	return cn.s.events.Detached(cn.id, nc)
}

// resumed is a connection of which a part was read already.
type resumed struct {
	net.Conn
	unread []byte
}

// Read implements net.Conn.
func (r *resumed) Read(p []byte) (int, error) {
	if len(r.unread) > 0 {
		n := copy(p, r.unread)
		r.unread = r.unread[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// beforeWrite is core.Config.BeforeWrite.
func (s *server) beforeWrite(c *core.Conn) error {
	cn := c.User.(*conn)
	if cn.callPrewrite() == Shutdown {
		s.shutdown(cn, nil)
	}
	return nil
}

func (cn *conn) callPrewrite() Action {
	cn.loop.Lock()
	defer cn.loop.Unlock()
	if cn.over || cn.s.events.Prewrite == nil {
		return None
	}
	cn.c.Lock()
	n := cn.c.Pending()
	cn.c.Unlock()
	return cn.s.events.Prewrite(cn.id, n)
}

// afterWrite is core.Config.AfterWrite.
func (s *server) afterWrite(c *core.Conn, n, left int) {
	cn := c.User.(*conn)
	if cn.callPostwrite(n, left) == Shutdown {
		s.shutdown(cn, nil)
	}
}

func (cn *conn) callPostwrite(n, left int) Action {
	cn.loop.Lock()
	defer cn.loop.Unlock()
	if cn.over || cn.s.events.Postwrite == nil {
		return None
	}
	return cn.s.events.Postwrite(cn.id, n, left)
}
