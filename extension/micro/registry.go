package micro

import (
	"context"
	"time"

	"github.com/arpc-go/arpc"
)

// A Registry knows which nodes there are. Its methods may be called from any goroutine. Package registrytest has the tests that
// every one must pass.
type Registry interface {
	// Register publishes a node and keeps it published until Deregister or Close, by itself: it renews what must be renewed, and
	// publishes the node again when the registry comes back without it. A node with the key of one that this Registry has
	// published already takes its place: that is how weight, address and metadata are changed, and watchers see one Put, no Delete.
	//
	// A node whose process dies is gone after ttl and at most a second, or what the registry says of it; 0 is its default. It returns when the node is
	// published. When it returns an error the node is not published and will not be, or its former state stays: that of Node.Check,
	// CodeInvalidArgument for a ttl that the registry cannot keep, an error that is ctx's, ErrClosed, or CodeUnavailable.
	Register(ctx context.Context, n Node, ttl time.Duration) error
	// Deregister withdraws a node, by its key. One that this Registry has not published is no error; after Close it may be ErrClosed. When it fails because the
	// store cannot be reached, the node is no longer renewed, nor published again, and goes with its ttl.
	Deregister(ctx context.Context, n Node) error
	// Watch tells what nodes a service has, of every version, group and protocol: first all of them, also if there is none, by an
	// event of kind Set, then what changes. It follows the service until ctx ends or the Registry is closed, then the channel is
	// closed, and what the watch used is freed. A slow receiver does not hold others up: what it has not taken is joined, so
	// that no more is kept than the nodes that there are and were when it received last. See Feed, which does that.
	//
	// When the registry cannot be reached there is one event of kind Lost, no Delete, and when it can be again, one Set. It is an
	// error of ctx, ErrClosed or CodeUnavailable if the first set cannot be had; nothing is watched then.
	Watch(ctx context.Context, service string) (<-chan Event, error)
	// Close withdraws what was registered, as far as the store can be reached within a few seconds, ends all watches and waits for
	// them. Calling it again does nothing.
	Close() error
}

// ErrClosed is the error of a Registry, Client or Publication that was closed.
var ErrClosed = &arpc.Error{Code: arpc.CodeCanceled, Message: "micro: closed", Unsent: true}

// A Kind says what an Event tells.
type Kind uint8

// The kinds.
const (
	// Set: Nodes are all there are. It is the first event, the first after Lost, and may come at any time.
	Set Kind = iota + 1
	// Put: Nodes have come or have changed.
	Put
	// Delete: Nodes are gone; only their keys count.
	Delete
	// Lost: the registry cannot be reached. What was known last stays in use.
	Lost
)

// String returns "set", "put", "delete" or "lost".
func (k Kind) String() string {
	return [...]string{"none", "set", "put", "delete", "lost"}[min(k, Lost+1)%5]
}

// An Event tells how the nodes of a service change. Nodes belongs to the receiver, the metadata in it to everybody.
type Event struct {
	Kind  Kind
	Nodes []Node
}
