package nats

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats/internal/wire"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Publish implements pubsub.Engine. It returns when nats-server has the message: for a topic with history, or with an ID, when the
// stream has stored it; otherwise when the server has answered a ping behind it.
func (e *Engine) Publish(ctx context.Context, m *pubsub.Message, o pubsub.PublishOptions) (pubsub.Receipt, error) {
	c := e.classOf(o.Topic)
	if m.ToOne {
		c = class{one: true}
	}
	if c.size > 0 || o.ID != "" {
		if e.js == nil {
			return pubsub.Receipt{}, errNoCore
		}
		r, err := e.store(ctx, m, c, o.ID)
		m.Position = r.Position
		return r, err
	}
	head := e.headAll()
	if m.ToOne {
		head = e.headOne()
	}
	bound, done, err := e.bound(ctx)
	if err != nil {
		return pubsub.Receipt{}, err
	}
	defer done()
	if err = e.conn.Publish(wire.TopicSubject(head, m.Topic), wire.AppendMessage(nil, m)); err == nil {
		err = e.conn.FlushWithContext(bound)
	}
	return pubsub.Receipt{}, e.failureOf(ctx, bound, err)
}

// failureOf is failure for what was done within the bound that came of the caller's ctx; nil for nil.
func (e *Engine) failureOf(ctx, bound context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() == nil {
		switch {
		case errors.Is(err, context.Canceled) && bound.Err() != nil: // the connection is lost
			err = context.Cause(bound)
		case errors.Is(err, context.DeadlineExceeded):
			err = fmt.Errorf("no answer within %v", e.config.Timeout)
		}
	}
	return e.failure(ctx, err)
}

// store publishes by a stream.
func (e *Engine) store(ctx context.Context, m *pubsub.Message, c class, id string) (pubsub.Receipt, error) {
	bound, done, err := e.bound(ctx)
	if err != nil {
		return pubsub.Receipt{}, err
	}
	defer done()
	payload := wire.AppendMessage(nil, m)
	for again := false; ; again = true {
		st, err := e.stream(bound, c)
		if err != nil {
			return pubsub.Receipt{}, e.failureOf(ctx, bound, err)
		}
		msg := &nats.Msg{Subject: wire.TopicSubject(st.head, m.Topic), Data: payload}
		var opts []jetstream.PublishOpt
		if id != "" {
			opts = append(opts, jetstream.WithMsgID(messageID(m.Topic, id)))
		}
		ack, err := e.js.PublishMsg(bound, msg, opts...)
		if err != nil {
			// The stream is not there any more, or has another epoch, and nobody got the message.
			if !again && streamGone(err) {
				e.forget(st)
				continue
			}
			return pubsub.Receipt{}, e.failureOf(ctx, bound, err)
		}
		r := pubsub.Receipt{Duplicate: ack.Duplicate}
		if st.epoch != 0 {
			r.Position = pubsub.Position{Epoch: st.epoch, Offset: ack.Sequence}
		}
		return r, nil
	}
}

// streamGone says that the stream that was known may not exist.
func streamGone(err error) bool {
	return errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, jetstream.ErrStreamNotFound)
}

// messageID is a publication's ID in its stream, where those of all topics are.
func messageID(topic, id string) string {
	sum := sha256.Sum256(append(append([]byte(topic), 0), id...))
	return base64.RawURLEncoding.EncodeToString(sum[:18])
}
