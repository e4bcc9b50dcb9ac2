package nats

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Config is what an engine may be given. Zero means the default of a field.
type Config struct {
	// URL is where nats-server listens; several of one cluster, which commas separate, are tried in turn. Default
	// nats://127.0.0.1:4222.
	URL string
	// Server is one of this process, such as one of package embedded, and is connected to without a network instead of URL. The
	// engine does not end it.
	Server nats.InProcessConnProvider
	// Options are for the connection: credentials, TLS, a name. The callbacks among them are called, and the engine's own too. The
	// engine always reconnects for as long as it is open, and keeps nothing for publishing later.
	Options []nats.Option
	// Core does without JetStream: there is neither history nor idempotency. Otherwise New fails where JetStream is off.
	Core bool
	// Prefix begins all subjects and names of streams, so that several systems can use one account. It consists of at most 32
	// letters, digits, _ and -. Default "arpc".
	Prefix string
	// Replicas is the number of servers that keep each message, from 1 to 5. Default 1. It is that of streams made from now on.
	Replicas int
	// Storage is where streams made from now on keep messages. Default jetstream.FileStorage. jetstream.MemoryStorage is for a
	// single nats-server; New refuses it where that is part of a cluster.
	Storage jetstream.StorageType
	// MaxBytes bounds each stream: beyond, the oldest messages of all its topics go. Default 256 MiB. JetStream reserves it.
	MaxBytes int64
	// Messages is the largest HistorySize; topics that are configured for more keep that many. Default 100,000.
	Messages int
	// Topics is the number of topics of one stream from which on a question for the past of a topic without messages does not
	// begin it. Default 50,000.
	Topics int
	// Streams is the number of different pairs of HistorySize and HistoryAge that this engine deals with, as each is a stream.
	// More are refused with CodeResourceExhausted. Default 32.
	Streams int
	// IDAge is for how long IDs are remembered, in the memory of the stream's servers, with about 100 bytes each; after a restart of
	// all of them, those of messages that are still kept. Default 2 minutes, at least 100 ms.
	IDAge time.Duration
	// Idle is for how much longer than HistoryAge a topic remembers its last position, so that a subscriber who has missed nothing
	// in that time is told so. Default 1 hour.
	Idle time.Duration
	// Heartbeat is how often an engine with or without members says that it is there. The members of one that has not for three
	// times as long have left. Default 1 second, at least 10 ms; it must be the same for all.
	Heartbeat time.Duration
	// Timeout bounds the wait for one answer of nats-server, beside the caller's context, and New's for the connection. The server is
	// pinged as often, if nats.PingInterval is not among the Options. Default 5 seconds.
	Timeout time.Duration
	// Pending and PendingBytes bound what waits in this process for one subscription of the engine. Beyond, messages are dropped
	// and subscribers recover. Default 16,384 and 16 MiB.
	Pending, PendingBytes int
}

// minIDAge is JetStream's.
const minIDAge = 100 * time.Millisecond

// withDefaults returns the configuration in force, or an error with CodeInvalidArgument.
func (c Config) withDefaults() (Config, error) {
	invalid := func(format string, args ...any) (Config, error) {
		return c, &arpc.Error{Code: arpc.CodeInvalidArgument, Message: fmt.Sprintf("nats: "+format, args...)}
	}
	if c.URL == "" {
		c.URL = nats.DefaultURL
	}
	if c.Prefix == "" {
		c.Prefix = "arpc"
	}
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
	}
	if len(c.Prefix) > 32 || strings.ContainsFunc(c.Prefix, bad) {
		return invalid("the prefix %q is not at most 32 letters, digits, _ and -", c.Prefix)
	}
	def(&c.Replicas, 1)
	def(&c.MaxBytes, 256<<20)
	def(&c.Messages, 100_000)
	def(&c.Topics, 50_000)
	def(&c.Streams, 32)
	def(&c.IDAge, 2*time.Minute)
	def(&c.Idle, time.Hour)
	def(&c.Heartbeat, time.Second)
	def(&c.Timeout, 5*time.Second)
	def(&c.Pending, 16<<10)
	def(&c.PendingBytes, 16<<20)
	switch {
	case c.Replicas > 5:
		return invalid("%d replicas, at most 5 are possible", c.Replicas)
	case c.IDAge < minIDAge:
		return invalid("IDAge %v, at least %v are possible", c.IDAge, minIDAge)
	case c.Heartbeat < 10*time.Millisecond:
		return invalid("heartbeats every %v, at least 10ms are possible", c.Heartbeat)
	case c.Messages > math.MaxInt32:
		return invalid("histories of %d messages", c.Messages)
	}
	return c, nil
}

func def[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}
