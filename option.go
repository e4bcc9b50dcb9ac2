package arpc

import (
	"math"
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

	credentials credentials
	version     int
	codec       Codec
}

type serverConfig struct {
	handler  Handler
	limits   Limits
	stdConns int
	codec    Codec
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
	// there. At four times that, which takes a peer that is called by a handler, requests fail with CodeResourceExhausted, and a
	// notification, of which nobody could be told, closes the connection. Default 4 MiB.
	QueuedRequests int
	// NestedCalls is the number of ordered handlers of one connection that wait in a call made with their context. Default
	// 128.
	NestedCalls int
	// SendHigh is the number of bytes waiting to be sent on a connection at which notifications and pushed messages are
	// refused or wait, and calls wait; it goes on below a quarter of it. Default 1 MiB.
	SendHigh int
	// SendHard is the number of bytes waiting to be sent at which a connection is closed. Default 64 MiB.
	SendHard int
	// CallTimeout is the time of a call that is given none: CallWith with a context that has no deadline. Default 1 minute.
	CallTimeout time.Duration
	// Metadata is the number of bytes of metadata that a message may have, at most 65,535. More is not sent, and closes the
	// connection if it is received. Default 16 KiB.
	Metadata int
	// Streams is the number of streams that the peer may have opened on a connection at a time. Default 1024.
	Streams int
	// StreamWindow is the number of bytes of a stream that may be waiting to be received, StreamWindows that of all streams
	// of a connection together; the peer waits then. At least 4 KiB. Default 512 KiB and 16 MiB.
	StreamWindow, StreamWindows int
	// Idle closes a connection from which nothing came for that long; after half of it the peer is pinged. Default 3 minutes.
	Idle time.Duration
	// PartialFrame closes a connection that leaves a frame incomplete for that long. Default 30 seconds.
	PartialFrame time.Duration
	// WriteStall closes a connection whose peer takes nothing of what waits for that long. Default 15 seconds.
	WriteStall time.Duration
	// CloseFlush bounds the time that a closed connection has to send what was accepted. Default 5 seconds.
	CloseFlush time.Duration
	// Handshake bounds the TLS handshake of an accepted connection, and the time until a connection has agreed on the
	// protocol and the client has authenticated itself. Default 10 seconds.
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

func orDefault[T int | time.Duration](v, def, none T) T {
	switch {
	case v == 0:
		return def
	case v < 0:
		return none
	}
	return v
}

func (l Limits) metadata() int {
	return min(orDefault(l.Metadata, 16<<10, math.MaxUint16), math.MaxUint16)
}
func (l Limits) streams() int { return orDefault(l.Streams, 1024, math.MaxInt32) }

func (l Limits) windows() (stream, all int) {
	stream = max(min(orDefault(l.StreamWindow, 512<<10, 1<<30), 1<<30), minStreamWindow)
	return stream, max(min(orDefault(l.StreamWindows, 16<<20, 1<<30), 1<<30), stream)
}

func (l Limits) callTimeout() time.Duration {
	return orDefault(l.CallTimeout, time.Minute, TimeForever)
}
func (l Limits) handshake() time.Duration {
	return orDefault(l.Handshake, 10*time.Second, 24*time.Hour)
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

// An Option is one of clients and of servers.
type Option interface {
	ClientOption
	ServerOption
}

type withCodec struct{ Codec }

func (c withCodec) applyToClient(cfg *clientConfig) { cfg.codec = c.Codec }
func (c withCodec) applyToServer(cfg *serverConfig) { cfg.codec = c.Codec }

// WithCodec sets the Codec from the first message on; the default is codec.DefaultCodec. A nil c is ignored.
func WithCodec(c Codec) Option { return withCodec{c} }

type protocol int

func (v protocol) applyToClient(c *clientConfig) { c.version = int(v) }

// Protocol sets the highest version of the protocol that a client offers: 2, the default, or 1, with which the client sends
// nothing that programs of before arpc 1.2.11 do not know. A server of version 1 is found out by itself.
func Protocol(version int) ClientOption { return protocol(version) }

// backoff is the time between attempts to connect.
type backoff struct{ min, max time.Duration }

func (b backoff) applyToClient(c *clientConfig) { c.backoff = b }

// Backoff sets how long a client waits between attempts to connect again: first at once, then min, then twice as long each
// time up to max, less a random part of up to a half. Default 100 milliseconds and 10 seconds.
func Backoff(min, max time.Duration) ClientOption { return backoff{min, max} }
