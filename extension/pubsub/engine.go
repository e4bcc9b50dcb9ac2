package pubsub

import (
	"context"
	"time"

	"github.com/arpc-go/arpc"
)

// A Position is a place in a topic: after the message that has it. The zero Position is no place; messages of topics without
// history have it.
type Position struct {
	// Epoch tells one life of a topic's history from the next: offsets of different epochs cannot be compared. It is less than
	// 2^53.
	Epoch uint64 `json:"epoch,omitempty"`
	// Offset grows from message to message. It is less than 2^53.
	Offset uint64 `json:"offset,omitempty"`
}

// IsZero reports whether p is no place.
func (p Position) IsZero() bool { return p == Position{} }

// A Message is one message of a topic.
type Message struct {
	// Topic is where it was published; for a subscription with a wildcard, one that matches.
	Topic string
	// Data is the value as published: raw bytes and strings as they are, others encoded by the publisher's Codec.
	Data []byte
	// Key is what a newer message replaces it by, see Conflate. It may be empty.
	Key string
	// Timestamp is when the server got it, or what the publisher says where that is a program of the original arpc, in nanoseconds
	// since 1970.
	Timestamp int64
	// Position is where the message is in its topic; zero without history.
	Position Position
	// ToOne says that one subscriber gets it. Such a message is not kept, and has no Position.
	ToOne bool
}

// TopicConfig says what a topic has beside delivery. The zero value has nothing.
type TopicConfig struct {
	// HistorySize is how many messages are kept; 0 for none.
	HistorySize int
	// HistoryAge is how long they are kept; 0 for as long as HistorySize lets them.
	HistoryAge time.Duration
	// LastValue makes a new subscription begin with the last message. It keeps that one message even without HistorySize.
	LastValue bool
	// Presence lets subscribers say that they are there, and see who else is.
	Presence bool
}

// history returns how many messages are to be kept.
func (t TopicConfig) history() int {
	if t.LastValue {
		return max(t.HistorySize, 1)
	}
	return max(t.HistorySize, 0)
}

// A Receipt is what a publisher gets.
type Receipt struct {
	// Position is that of the message, zero on a topic without history.
	Position Position
	// Duplicate says that a message with that ID had been published before: Position is its, and nothing was published now.
	Duplicate bool
}

// A Filter is a name of a topic, or a pattern that matches many.
type Filter struct {
	// Name is the topic; with Wildcard it is a pattern: words that dots separate, of which * stands for any one and a last > for
	// any one or more.
	Name     string
	Wildcard bool
}

// A Member is one who is present at a topic.
type Member struct {
	// ID is unique among all members of all servers of an engine.
	ID string
	// Info is what the member says about itself; it may be empty.
	Info []byte
}

// A Query says what part of a topic's history is wanted: what comes after From, or without it the last messages.
type Query struct {
	// From is the place to begin after. A zero From asks for the last Limit messages.
	From Position
	// Limit is the largest number of messages, the first ones after From; 0 for all that are kept, negative for none, only Top.
	Limit int
	// Topic is the topic's configuration: if it says that there is history, Top begins a topic that has no messages yet.
	Topic TopicConfig
}

// A Page is a part of a topic's history.
type Page struct {
	// Messages are in the order of their offsets.
	Messages []*Message
	// Top is the place after the last message that the topic had when the page was made; zero if there is no history.
	Top Position
	// Complete says that From is a place in the epoch of Top, and that nothing is missing between it and the last of Messages,
	// or Top if the Limit has cut nothing.
	Complete bool
}

// Capabilities says what an Engine can do. A server that is configured for more does not start.
type Capabilities struct {
	// Name is for errors and logs.
	Name string
	// History: positions, Engine.History, LastValue. Presence: Join and Members. Wildcards: subscriptions with patterns. Groups:
	// subscriptions of which one gets each message. Idempotency: Publish with an ID.
	History, Presence, Wildcards, Groups, Idempotency bool
	// Shared says that several servers, in different processes, may use the same topics.
	Shared bool
}

// PublishOptions goes with a message to the engine.
type PublishOptions struct {
	// ID makes the publication idempotent: of those with one ID to one topic, within the time that the engine remembers them,
	// only the first is published. Empty for none.
	ID string
	// Topic is the topic's configuration.
	Topic TopicConfig
}

// An Engine moves messages from publishers to servers and keeps what topics remember. One may serve several servers, which form
// one publish and subscribe then. The suite in package enginetest says what it must do; all methods may be called at the same
// time.
type Engine interface {
	Capabilities() Capabilities

	// Publish stores the message, if the topic has history, and delivers it to the sinks whose filters match, or, with ToOne, to
	// one of them that takes it. It sets the message's Position. Messages of one topic reach every sink in the order of their
	// positions, and those that one goroutine has published one after the other in that order. The engine may keep m; nobody
	// changes it afterwards.
	Publish(ctx context.Context, m *Message, o PublishOptions) (Receipt, error)

	// Subscribe delivers what matches f to s from when it has returned until cancel is called. Of the sinks with the same filter
	// and the same group, if that is not empty, on all servers together, one gets each message. After cancel has returned there
	// may still be a delivery on its way.
	Subscribe(ctx context.Context, f Filter, group string, s Sink) (cancel func(), err error)

	// History returns a part of what a topic has kept. What a Subscribe before it delivers and what it returns overlap or
	// adjoin: no message is between them.
	History(ctx context.Context, topic string, q Query) (Page, error)

	// Join makes m a member of the topic until leave is called or this process has ended; the sinks of the topic are told of both.
	Join(ctx context.Context, topic string, m Member) (leave func(), err error)
	// Members returns who is present at a topic, in no order.
	Members(ctx context.Context, topic string) ([]Member, error)

	// Close ends the engine. Servers that use it must be stopped before.
	Close() error
}

// A Sink is where an Engine delivers. Its methods do not wait for subscribers, but may wait for the processor.
type Sink interface {
	// Deliver takes a message; false says that there is nobody for it any more, so that one to one subscriber or group member is
	// for another sink. The message must not be changed.
	Deliver(m *Message) bool
	// Presence tells that a member has joined a topic or has left it.
	Presence(topic string, m Member, joined bool)
	// Interrupted tells that the engine is out of reach, and messages may be missing from now on.
	Interrupted(err error)
	// Resumed tells, after Interrupted, that deliveries go on. Subscribers recover what they have missed from the history.
	Resumed()
}

// errCapability is the error of a configuration that the engine cannot serve.
func errCapability(engine, what string) error {
	return &arpc.Error{Code: arpc.CodeUnimplemented, Message: "the engine " + engine + " has no " + what}
}
