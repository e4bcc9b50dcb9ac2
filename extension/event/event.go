package event

import (
	"io"
	"net"
	"time"
)

// An Action is what an event wants to happen next.
type Action int

const (
	// None means that nothing is to happen.
	None Action = iota
	// Detach takes the connection out of the loop when its output is sent; see Events.Detached.
	Detach
	// Close closes the connection when its output is sent.
	Close
	// Shutdown ends Serve.
	Shutdown
)

// A LoadBalance says how connections are spread over the loops.
type LoadBalance int

const (
	// Random leaves it to chance; the default.
	Random LoadBalance = iota
	// RoundRobin gives each loop a connection in turn.
	RoundRobin
	// LeastConnections takes the loop with the fewest.
	LeastConnections
)

// Options are a connection's, returned by Events.Opened.
type Options struct {
	// TCPKeepAlive, if positive, is the time after which the system looks whether a silent peer of a TCP connection is still there;
	// otherwise that is 15 s.
	TCPKeepAlive time.Duration
	// ReuseInputBuffer makes the bytes given to Data valid only until it returns, which saves a copy.
	ReuseInputBuffer bool
}

// Addr tells where a connection comes from.
type Addr struct {
	// Index is that of the address in the call of Serve.
	Index int
	// Local and Remote are the connection's. Those of a unix connection are both the listener's.
	Local, Remote net.Addr
}

// Events are the functions that Serve calls; each may be nil. See the package comment for when they may overlap. A panic in an
// event of a connection is logged and closes it.
//
//	Opened -> (Data | Data after wake)* -> Closed | Detached
//
// An id is positive and never used again during a Serve. Datagrams (udp) have neither Opened nor Closed: for each one there is
// Data, with the id -1-i where i is the index of the address, and what it returns goes to the sender; more than fits into
// a datagram is dropped.
//
// Serving, Closed, Detached, Prewrite, Postwrite and Tick, and Data for a datagram, may ask for Shutdown; the other actions mean nothing there.
type Events struct {
	// NumLoops is the number of loops; 0 is one, a negative number one per processor.
	NumLoops int
	// LoadBalance spreads connections over several loops.
	LoadBalance LoadBalance

	// Serving is called once before anything is accepted, with the addresses in the order of Serve's arguments, as the system has
	// them. wake makes Data be called with nil for a connection, soon and not on the caller's stack; several calls may be answered
	// by one Data. It may be called from anywhere. It reports false when there is no such connection, or none that could be woken.
	// Shutdown makes Serve return at once.
	Serving func(wake func(id int) bool, addrs []net.Addr) Action
	// Opened is called for each new connection, before anything is read. out is sent.
	Opened func(id int, addr Addr) (out []byte, opts Options, action Action)
	// Closed is called once for each Opened unless Detached is. err is nil when one side closed the connection in
	// order. After the action Close it is called when the peer has closed its side too.
	Closed func(id int, err error) Action
	// Detached is called once after the action Detach. The connection is rwc's owner's, who may use it from any
	// goroutine and closes it. If the connection fails before all output is sent, Closed is called instead; if this is nil, Detach
	// is Close. rwc is a net.Conn.
	Detached func(id int, rwc io.ReadWriteCloser) Action
	// Data is called with what was received, or with nil after wake. out is sent.
	Data func(id int, in []byte) (out []byte, action Action)
	// Prewrite is called before each attempt to write, with the bytes that wait to be written.
	Prewrite func(id int, amount int) Action
	// Postwrite is called after each attempt to write, with the bytes that were written and those that still wait.
	Postwrite func(id int, amount, remaining int) Action
	// Tick is called when Serve begins, and again whenever the delay that it returned has passed, at least a millisecond. With several
	// loops it is an event of the first one.
	Tick func() (delay time.Duration, action Action)
}

// An InputStream keeps what Data could not use yet until more arrives. The zero value is empty.
type InputStream struct{ rest []byte }

// Begin returns packet behind what was kept. If nothing was kept, that is packet itself.
func (is *InputStream) Begin(packet []byte) (data []byte) {
	if len(is.rest) == 0 {
		return packet
	}
	is.rest = append(is.rest, packet...)
	return is.rest
}

// End keeps data, the unused end of what Begin returned.
func (is *InputStream) End(data []byte) {
	if len(data) == 0 {
		is.rest = nil
		return
	}
	is.rest = append(is.rest[:0], data...)
}
