package pubsub

import (
	"context"

	"github.com/arpc-go/arpc/codec"
)

// A Publisher publishes: a *Client or a *Server.
type Publisher interface {
	PublishWith(ctx context.Context, topic string, v any, opts ...PublishOption) (Receipt, error)
}

var (
	_ Publisher = (*Client)(nil)
	_ Publisher = (*Server)(nil)
)

// A TypedTopic is a topic whose messages are values of one type, one value shared by publishers and subscribers:
//
//	var Prices = pubsub.NewTopic[Price]("prices")
type TypedTopic[T any] struct{ name string }

// NewTopic returns a topic, or with a pattern as its name many, for subscribers only. It panics when the name is empty, longer
// than MaxTopicNameLen or no pattern.
func NewTopic[T any](name string) TypedTopic[T] {
	if _, err := newFilter(name); err != nil {
		panic("pubsub: " + err.Error())
	}
	return TypedTopic[T]{name}
}

// Name returns the topic's name.
func (t TypedTopic[T]) Name() string { return t.name }

// Publish publishes v, see Client.PublishWith.
func (t TypedTopic[T]) Publish(ctx context.Context, p Publisher, v *T, opts ...PublishOption) (Receipt, error) {
	return p.PublishWith(ctx, t.name, v, opts...)
}

// Subscribe calls h for each message, see Client.SubscribeWith. m is the message that v came in. One that the client's Codec
// cannot decode is an EventMalformed.
func (t TypedTopic[T]) Subscribe(ctx context.Context, c *Client, h func(v *T, m *Message), opts ...SubscribeOption) (*Subscription, error) {
	var tell func(Event)
	opts = append(opts[:len(opts):len(opts)], func(s *Subscription) { tell = s.tell })
	return c.SubscribeWith(ctx, t.name, func(m *Message) {
		v := new(T)
		if err := codec.Decode(c.Codec, m.Data, v); err != nil {
			tell(Event{Kind: EventMalformed, Err: err})
			return
		}
		h(v, m)
	}, opts...)
}
