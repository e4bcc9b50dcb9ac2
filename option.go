package arpc

import (
	"time"

	"github.com/arpc-go/arpc/internal/core"
)

// A ClientOption configures a Client. A Handler is one: the client uses it instead of a copy of DefaultHandler.
type ClientOption interface{ applyToClient(*clientConfig) }

// A ServerOption configures a Server. A Handler is one: the server uses it instead of a copy of DefaultHandler.
type ServerOption interface{ applyToServer(*serverConfig) }

type clientConfig struct {
	handler   Handler
	limits    Limits
	waitReady bool
	backoff   backoff
}

type serverConfig struct {
	handler  Handler
	limits   Limits
	stdConns int
}

func (m *Mux) applyToClient(c *clientConfig) { c.handler = m }
func (m *Mux) applyToServer(c *serverConfig) { c.handler = m }

// Limits bounds what peers can make this side spend. Zero means the default of a field, a negative value no limit. It is an
// option of clients and servers.
type Limits struct {
	// Connections is the number of connections that a server accepts, ConnectionsPerIP the number from one address; more are
	// reset at once. Default: no limit but the system's.
	Connections, ConnectionsPerIP int
	// Calls is the number of calls in flight per connection; more fail with CodeResourceExhausted. Default 1,048,576.
	Calls int
	// AsyncRequests is the number of async requests of one connection handled at the same time; reading pauses there.
	// Default 1024.
	AsyncRequests int
	// QueuedRequests is the number of bytes of one connection's ordered requests waiting for their turn; reading pauses
	// there. At four times that requests fail with CodeResourceExhausted. Default 4 MiB.
	QueuedRequests int
	// NestedCalls is the number of ordered handlers of one connection that wait in a call made with their context. Default
	// 128.
	NestedCalls int
	// SendHigh is the number of bytes waiting to be sent on a connection at which notifications and pushed messages are
	// refused or wait, and calls wait; it goes on below a quarter of it. Default 1 MiB.
	SendHigh int
	// SendHard is the number of bytes waiting to be sent at which a connection is closed. Default 64 MiB.
	SendHard int
	// Idle closes a connection from which nothing came for that long; after half of it the peer is pinged. Default 3 minutes.
	Idle time.Duration
	// PartialFrame closes a connection that leaves a frame incomplete for that long. Default 30 seconds.
	PartialFrame time.Duration
	// WriteStall closes a connection whose peer takes nothing of what waits for that long. Default 15 seconds.
	WriteStall time.Duration
	// CloseFlush bounds the time that a closed connection has to send what was accepted. Default 5 seconds.
	CloseFlush time.Duration
	// Handshake bounds the TLS handshake of an accepted connection. Default 10 seconds.
	Handshake time.Duration
	// WhenFull says what else happens at SendHigh: nothing (the default), stop reading the peer, or close the connection.
	WhenFull FullPolicy
}

// A FullPolicy says what happens to a connection when SendHigh bytes wait to be sent.
type FullPolicy uint8

const (
	// RefuseWhenFull refuses notifications and pushed messages, or lets them wait, as their timeout says.
	RefuseWhenFull FullPolicy = iota
	// PauseWhenFull stops reading the peer as well. Two peers that both do so can stop each other until WriteStall.
	PauseWhenFull
	// CloseWhenFull closes the connection.
	CloseWhenFull
)

const defaultCalls = 1 << 20

func (l Limits) applyToClient(c *clientConfig) { c.limits = l }
func (l Limits) applyToServer(c *serverConfig) { c.limits = l }

func (l Limits) core() core.Config {
	return core.Config{
		MaxConns: l.Connections, MaxConnsPerIP: l.ConnectionsPerIP,
		Async: l.AsyncRequests, Queue: l.QueuedRequests, Nested: l.NestedCalls,
		High: l.SendHigh, Hard: l.SendHard, Over: core.Over(l.WhenFull),
		Idle: l.Idle, Partial: l.PartialFrame, WriteStall: l.WriteStall, CloseFlush: l.CloseFlush, Handshake: l.Handshake,
	}
}

func (l Limits) calls() int {
	if l.Calls <= 0 {
		return defaultCalls
	}
	return l.Calls
}

// defaultStdConns is how many busy connections may have a goroutine; docs/performance.md has the figures behind it.
const defaultStdConns = 1024

type stdConns int

func (n stdConns) applyToServer(c *serverConfig) { c.stdConns = int(n) }

// StdConns sets how many TCP connections of a server may have a goroutine each at a time. A connection begins on an event
// loop, which costs less memory, and gets a goroutine, which is faster, when it is busy: 32 reads within a second. 0 leaves
// all connections to the event loops, a negative n gives each a goroutine at once. The default is 1024. Connections that
// are not plain TCP, and all connections on systems other than Linux, always have goroutines.
func StdConns(n int) ServerOption { return stdConns(n) }

type waitForReady struct{}

func (waitForReady) applyToClient(c *clientConfig) { c.waitReady = true }

// WaitForReady makes calls and notifications that find the client without a connection wait for one, within their
// timeout, instead of failing with ErrClientReconnecting at once.
func WaitForReady() ClientOption { return waitForReady{} }

// backoff is the time between attempts to connect.
type backoff struct{ min, max time.Duration }

func (b backoff) applyToClient(c *clientConfig) { c.backoff = b }

// Backoff sets how long a client waits between attempts to connect again: first at once, then min, then twice as long each
// time up to max, less a random part of up to a half. Default 100 milliseconds and 10 seconds.
func Backoff(min, max time.Duration) ClientOption { return backoff{min, max} }
