package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats/internal/wire"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What one request for several messages may bring.
const (
	batchMessages = 256
	batchBytes    = 1 << 20
)

// maxReads is how many questions for a history are under way at a time; others wait. JetStream drops all that it has not begun with
// when thousands come at once, as when all subscribers recover.
const maxReads = 64

// kept is a message as the stream has it.
type kept struct {
	*pubsub.Message
	at    time.Time
	begin bool
}

func (k *kept) offset() uint64 { return k.Position.Offset }

var errForeign = errors.New("a message in the stream was not put there by the engine")

// History implements pubsub.Engine.
//
// The stream has one message more of the topic than History returns: the one before the oldest. As messages only ever go from the
// front of a topic, nothing is missing after it, so a page is Complete if From is not before it and no message that History leaves
// out is behind From. For that to be so of a topic without messages, too, History puts a mark at its beginning. A topic's last
// message, or mark, stays for Config.Idle longer than its HistoryAge.
//
// The first and the last message are asked from the stream's leader, in that order after those between: any replica may have
// answered that, and may be behind.
func (e *Engine) History(ctx context.Context, topic string, q pubsub.Query) (pubsub.Page, error) {
	c := e.classOf(q.Topic)
	if c.size == 0 || e.js == nil {
		return pubsub.Page{}, nil
	}
	select {
	case e.reads <- struct{}{}:
		defer func() { <-e.reads }()
	case <-ctx.Done():
		return pubsub.Page{}, e.failure(ctx, ctx.Err())
	}
	bound, done, err := e.bound(ctx)
	if err != nil {
		return pubsub.Page{}, err
	}
	defer done()
	for again := false; ; again = true {
		st, err := e.stream(bound, c)
		if err == nil {
			var p pubsub.Page
			if p, err = e.history(bound, st, topic, q); err == nil {
				e.mu.Lock()
				x := e.entries[entryKey{Filter: pubsub.Filter{Name: topic}}]
				e.mu.Unlock()
				if x != nil && !p.Top.IsZero() {
					x.begin(p.Top)
				}
				return p, nil
			}
		}
		if !again && st != nil && streamGone(err) {
			e.forget(st)
			continue
		}
		return pubsub.Page{}, e.failureOf(ctx, bound, err)
	}
}

func (e *Engine) history(ctx context.Context, st *stream, topic string, q pubsub.Query) (p pubsub.Page, err error) {
	subject := wire.TopicSubject(st.head, topic)
	last, err := e.last(ctx, st, topic, subject)
	if err != nil || last == nil {
		return p, err
	}
	var have []*kept
	from := q.From.Offset
	mine := !q.From.IsZero() && q.From.Epoch == st.epoch && from <= last.offset()
	if !mine {
		from = 0
	}
	switch {
	case from == last.offset(), q.Limit < 0:
	case q.From.IsZero() && q.Limit == 1:
		have = []*kept{last}
	case q.From.IsZero() && q.Limit > 0:
		have, last, err = e.lastFew(ctx, st, topic, subject, last, q.Limit)
	default:
		most := 0
		if q.Limit > 0 {
			most = q.Limit + 1 // a mark may be among them
		}
		have, last, err = e.between(ctx, st, topic, subject, from, last, most)
	}
	if err != nil {
		return p, err
	}
	p.Top = last.Position
	complete := mine
	if mine && from < p.Top.Offset {
		first, err := e.get(ctx, st, topic, request{Seq: 1, Next: subject})
		if err != nil {
			return p, err
		}
		// A replica's clock may have made it drop what the leader still has; what is that old proves nothing.
		complete = first != nil && first.offset() <= from && (st.keeps == 0 || time.Since(first.at) < st.keeps)
	}
	have = slices.DeleteFunc(have, func(k *kept) bool { return k.begin })
	all := len(have)
	if len(have) > st.class.size {
		have = have[len(have)-st.class.size:]
	}
	if st.class.age > 0 {
		cut := time.Now().Add(-st.class.age)
		i := 0
		for i < len(have) && !have[i].at.After(cut) {
			i++
		}
		have = have[i:]
	}
	p.Complete = complete && len(have) == all
	switch {
	case q.Limit <= 0 || len(have) <= q.Limit:
	case q.From.IsZero():
		have = have[len(have)-q.Limit:]
	default:
		have = have[:q.Limit]
	}
	for _, k := range have {
		p.Messages = append(p.Messages, k.Message)
	}
	return p, nil
}

// last returns the last message of a topic, or the mark that it makes for one without messages; nil if there are too many topics
// for that.
func (e *Engine) last(ctx context.Context, st *stream, topic, subject string) (*kept, error) {
	for {
		last, err := e.get(ctx, st, topic, request{Last: subject})
		if err != nil || last != nil {
			return last, err
		}
		s, err := e.js.Stream(ctx, st.name)
		if err != nil {
			return nil, err
		}
		if s.CachedInfo().State.NumSubjects >= uint64(e.config.Topics) {
			return nil, nil // whoever subscribes need not suffer
		}
		mark := wire.Mark(time.Now().UnixNano())
		_, err = e.js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: mark}, jetstream.WithExpectLastSequencePerSubject(0))
		var api *jetstream.APIError
		taken := errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
		if err != nil && !taken {
			return nil, err
		}
	}
}

// lastFew returns at least the last n of what a topic has, if it has as many, and the last one. How far apart they are in the stream
// is not known, so it tries a part of it that grows.
func (e *Engine) lastFew(ctx context.Context, st *stream, topic, subject string, last *kept, n int) (have []*kept, _ *kept, err error) {
	for width := 2 * uint64(n); ; width *= 8 {
		from := last.offset() - min(width, last.offset())
		have, last, err = e.between(ctx, st, topic, subject, from, last, 0)
		if err != nil || len(have) > n || from == 0 { // more than n, as a mark may be among them
			return have, last, err
		}
	}
}

// between returns what a topic has after an offset, up to last at least or about the most that are wanted, 0 for all, and the last
// one.
func (e *Engine) between(ctx context.Context, st *stream, topic, subject string, from uint64, last *kept, most int) (have []*kept, _ *kept, err error) {
	next, size := from+1, batchMessages
	if most > 0 {
		size = min(size, most)
	}
	for {
		some, err := e.batch(ctx, st, topic, request{Seq: next, Next: subject, Batch: size, Bytes: batchBytes})
		if err != nil {
			return nil, nil, err
		}
		if n := len(some); n > 0 {
			have = append(have, some...)
			// More than the topic may keep: what is in front has gone meanwhile.
			if extra := len(have) - 2*st.class.size - batchMessages; extra > 0 {
				have = slices.Delete(have, 0, extra)
			}
			if end := some[n-1]; end.offset() >= last.offset() {
				return have, end, nil
			}
			if most > 0 && len(have) >= most {
				return have, last, nil
			}
			next = some[n-1].offset() + 1
			continue
		}
		// A replica that is behind, or the last message has gone.
		if last, err = e.last(ctx, st, topic, subject); err != nil {
			return nil, nil, err
		}
		if last == nil {
			return nil, nil, errors.New("the topic was removed meanwhile")
		}
		if last.offset() < next { // as after a removal
			return have, last, nil
		}
		pause := time.NewTimer(10 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, nil, ctx.Err()
		}
	}
}

// request is one of JetStream's for stored messages.
type request struct {
	Seq   uint64 `json:"seq,omitempty"`
	Last  string `json:"last_by_subj,omitempty"`
	Next  string `json:"next_by_subj,omitempty"`
	Batch int    `json:"batch,omitempty"`
	Bytes int    `json:"max_bytes,omitempty"`
}

// get asks the stream's leader for a message; nil if there is none.
func (e *Engine) get(ctx context.Context, st *stream, topic string, r request) (*kept, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	rsp, err := e.conn.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+st.name, body)
	if errors.Is(err, nats.ErrNoResponders) {
		err = jetstream.ErrNoStreamResponse
	}
	if err != nil {
		return nil, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Seq  uint64    `json:"seq"`
			Data []byte    `json:"data"`
			Time time.Time `json:"time"`
		} `json:"message"`
	}
	if err = json.Unmarshal(rsp.Data, &answer); err != nil {
		return nil, fmt.Errorf("malformed answer of JetStream: %w", err)
	}
	switch {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, nil
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeStreamNotFound:
		return nil, jetstream.ErrStreamNotFound
	case answer.Error != nil:
		return nil, answer.Error
	case answer.Message == nil:
		return nil, errors.New("malformed answer of JetStream: no message")
	}
	return st.kept(topic, answer.Message.Seq, answer.Message.Time, answer.Message.Data)
}

func (st *stream) kept(topic string, seq uint64, at time.Time, data []byte) (*kept, error) {
	m, begin, ok := wire.ParseMessage(data)
	if !ok {
		return nil, errForeign
	}
	m.Topic, m.Position = topic, pubsub.Position{Epoch: st.epoch, Offset: seq}
	return &kept{m, at, begin}, nil
}

// batch asks any replica for several messages; none is no error.
func (e *Engine) batch(ctx context.Context, st *stream, topic string, r request) (list []*kept, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	inbox := e.conn.NewRespInbox()
	sub, err := e.conn.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer sub.Unsubscribe() //nolint:errcheck // it fails if the connection is closed, and then it is over too
	if err = e.conn.PublishRequest("$JS.API.DIRECT.GET."+st.name, inbox, body); err != nil {
		return nil, err
	}
	for {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			if errors.Is(err, nats.ErrNoResponders) {
				err = jetstream.ErrNoStreamResponse
			}
			return nil, err
		}
		switch status := msg.Header.Get("Status"); status {
		case "":
		case "204": // the end
			return list, nil
		case "404":
			return nil, nil
		default:
			return nil, fmt.Errorf("JetStream refuses to read: %s %s", status, msg.Header.Get("Description"))
		}
		seq, err := strconv.ParseUint(msg.Header.Get("Nats-Sequence"), 10, 53)
		if err != nil {
			return nil, fmt.Errorf("malformed answer of JetStream: %w", err)
		}
		at, err := time.Parse(time.RFC3339Nano, msg.Header.Get("Nats-Time-Stamp"))
		if err != nil {
			return nil, fmt.Errorf("malformed answer of JetStream: %w", err)
		}
		k, err := st.kept(topic, seq, at, msg.Data)
		if err != nil {
			return nil, err
		}
		list = append(list, k)
	}
}
