// Package pubsub is publish and subscribe over arpc connections.
//
// A Server keeps topics, a Client publishes to them and subscribes. The methods that take a timeout are those of the original
// arpc and speak its format, so that its programs work against these and the other way round. The methods that take a context,
// SubscribeWith and PublishWith, do more: positions and recovery, wildcards, queue groups, presence, last values, conflation,
// idempotent publishing. Their format is in docs/pubsub.md. Both kinds share the topics.
//
// # Delivery
//
// A message reaches each subscriber at most once, and what one publisher has published arrives in that order. A publisher whose
// Publish has returned without an error knows that the engine has the message, not that anybody got it. On a topic that keeps
// history a subscriber that was away gets what it missed, or is told that it cannot have it: Event.Recovered is true only if
// nothing is missing.
//
// # Slow subscribers
//
// Publishing never waits for a subscriber. While the connection of one is full, its messages wait in a bounded queue whose
// Overflow policy decides what happens at the bound; the subscriber is told how many messages that has cost it.
//
// # Concurrency
//
// Everything may be called from any goroutine. The handlers of a client's subscriptions run one at a time in the order of
// arrival, and may block, publish, subscribe and unsubscribe; a handler that takes long holds back the others of its connection,
// and in the end the server's queue for it.
//
// # Buffers
//
// Data of a received Topic or Message belongs to the handler. What is published is copied before the call returns.
package pubsub
