package event

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/log"
)

const (
	// minDelay is the shortest time between two Ticks.
	minDelay = time.Millisecond
	// shutdownLimit bounds what Shutdown waits for.
	shutdownLimit = time.Second
)

// server is a call of Serve.
type server struct {
	events Events
	group  *core.Group
	loops  []sync.Mutex // one is held while an event of its loop runs; nothing of core's is held then
	addrs  []net.Addr
	lns    []net.Listener
	udp    []*core.Datagram

	ending atomic.Bool // set before quit is closed: no event but the last ones of each connection
	quit   chan struct{}
	err    error // why, set before quit is closed
	asker  *conn // who wanted it, or nil; likewise
}

// Serve listens on each address and calls the events until one returns Shutdown; then it closes all connections, those with the
// highest ids first, and returns nil. An address is
//
//	[network[-net]://]address[?reuseport=true]
//
// with a network of tcp (the default), tcp4, tcp6, unix, udp, udp4 or udp6. One address with -net makes all connections of this Serve be
// read by a goroutine each instead of event loops. With reuseport other sockets, also of other processes, may listen on the same port.
// At the path of a unix socket, one that nobody answers on is replaced, and anything else is an error.
//
// Serve returns an error when an address is wrong, cannot be listened on, or stops being so later. It waits out a lack of descriptors.
func Serve(events Events, addrs ...string) error {
	s := &server{events: events, quit: make(chan struct{})}
	parsed := make([]core.Address, len(addrs))
	std := 0
	for i, text := range addrs {
		var err error
		if parsed[i], err = core.ParseAddress(text); err != nil {
			return err
		}
		if parsed[i].Std {
			std = -1
		}
	}
	if len(addrs) == 0 {
		return errors.New("event: no address to serve")
	}
	switch n := events.NumLoops; {
	case n < 0:
		s.loops = make([]sync.Mutex, runtime.NumCPU())
	default:
		s.loops = make([]sync.Mutex, max(n, 1))
	}
	cfg := core.Config{
		Split: chunks{}, StdConns: std, Loops: len(s.loops), Over: core.Pause,
		Balance: map[LoadBalance]core.Balance{Random: core.Random, LeastConnections: core.Least}[events.LoadBalance],
		Idle:    -1, Partial: -1, Logf: log.Warn,
	}
	if events.Prewrite != nil || events.Postwrite != nil {
		cfg.BeforeWrite, cfg.AfterWrite = s.beforeWrite, s.afterWrite
	}
	s.group = core.NewGroup(cfg, s)
	defer s.end()
	for i, a := range parsed {
		if err := s.listen(i, a); err != nil {
			return err
		}
	}
	if events.Serving != nil && s.serving() == Shutdown {
		return nil
	}
	for i, ln := range s.lns {
		if ln == nil { // datagrams
			continue
		}
		go func() {
			if err := s.group.ServeAs(i, ln); err != core.ErrStopped {
				s.shutdown(nil, err)
			}
		}()
		s.lns[i] = nil // the group's now
	}
	for _, d := range s.udp {
		d.Start()
	}
	s.tick()
	return s.err
}

// listen opens an address.
func (s *server) listen(i int, a core.Address) error {
	if a.Packet() {
		d, err := a.ListenDatagram(core.DatagramConfig{Handle: s.datagram})
		if err != nil {
			return err
		}
		d.User = i
		s.udp = append(s.udp, d)
		s.lns = append(s.lns, nil)
		s.addrs = append(s.addrs, d.LocalAddr())
		return nil
	}
	ln, err := a.Listen()
	if err != nil {
		return err
	}
	s.lns = append(s.lns, ln)
	s.addrs = append(s.addrs, ln.Addr())
	return nil
}

func (s *server) serving() Action {
	s.loops[0].Lock()
	defer s.loops[0].Unlock()
	return s.events.Serving(s.wake, slices.Clone(s.addrs))
}

// tick waits for the end, and ticks meanwhile.
func (s *server) tick() {
	if s.events.Tick == nil {
		<-s.quit
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.quit:
			return
		case <-timer.C:
		}
		delay, action := s.callTick()
		if action == Shutdown {
			s.shutdown(nil, nil)
			<-s.quit // somebody else may have begun it
			return
		}
		timer.Reset(max(delay, minDelay))
	}
}

func (s *server) callTick() (time.Duration, Action) {
	s.loops[0].Lock()
	defer s.loops[0].Unlock()
	if s.ending.Load() {
		return 0, Shutdown
	}
	return s.events.Tick()
}

// shutdown makes Serve return err. asker is who asked for it, if that was an event of a connection.
func (s *server) shutdown(asker *conn, err error) {
	if s.ending.CompareAndSwap(false, true) {
		s.asker, s.err = asker, err
		close(s.quit)
	}
}

// end closes everything. It is called when Serve is about to return, for whatever reason.
func (s *server) end() {
	for _, ln := range s.lns {
		if ln != nil { // never served
			ln.Close() //nolint:errcheck // nothing was accepted
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownLimit)
	defer cancel()
	s.group.StopAccepting(ctx)
	for i := range s.loops { // an event that has not seen it is over after this
		s.loops[i].Lock()
		s.ending.Store(true)
		s.loops[i].Unlock()
	}
	var conns []*conn
	s.group.Each(func(c *core.Conn) bool {
		if cn := userOf(c); cn != nil {
			conns = append(conns, cn)
		}
		return true
	})
	slices.SortFunc(conns, func(a, b *conn) int {
		switch s.asker {
		case a:
			return -1
		case b:
			return 1
		}
		return cmp.Compare(b.id, a.id)
	})
	for _, cn := range conns {
		cn.c.Flush()
		cn.closed(nil)
		cn.c.Close(nil)
	}
	s.group.Stop(ctx, nil) //nolint:errcheck // those that did not close in time were aborted
	for _, d := range s.udp {
		d.Close()
		<-d.Done()
	}
}

// datagram is core.DatagramConfig.Handle.
func (s *server) datagram(d *core.Datagram, p []byte, from netip.AddrPort) {
	if s.events.Data == nil {
		return
	}
	out, action := s.datagramEvent(d.User.(int), p)
	if len(out) > 0 {
		d.Send(out, from, 0) //nolint:errcheck // datagrams may get lost
	}
	if action == Shutdown {
		s.shutdown(nil, nil)
	}
}

func (s *server) datagramEvent(index int, p []byte) ([]byte, Action) {
	loop := &s.loops[index%len(s.loops)]
	loop.Lock()
	defer loop.Unlock()
	if s.ending.Load() {
		return nil, None
	}
	out, action := s.events.Data(-1-index, slices.Clone(p))
	return slices.Clone(out), action
}

// chunks makes whatever was read a frame.
type chunks struct{}

// Split implements frame.Splitter.
func (chunks) Split(buf []byte) (n, need int, err error) { return len(buf), len(buf), nil }
