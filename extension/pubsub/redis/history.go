package redis

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

// What one answer of Redis may have, more or less, so that a long history holds nobody up.
const (
	pageMessages = 512
	pageBytes    = 1 << 20
)

var errRestless = &arpc.Error{Code: arpc.CodeUnavailable, Message: "redis: the topic has begun anew again and again"}

// History implements pubsub.Engine. A topic that does not grow while it is read is read in as many commands as it needs.
func (e *Engine) History(ctx context.Context, topic string, q pubsub.Query) (pubsub.Page, error) {
	if e.closed.Load() {
		return pubsub.Page{}, errClosed
	}
	for range 3 {
		p, ok, err := e.history(ctx, topic, q)
		if ok || err != nil {
			return p, err
		}
	}
	return pubsub.Page{}, errRestless
}

// history reads a page. It reports false if the topic has begun anew meanwhile.
func (e *Engine) history(ctx context.Context, topic string, q pubsub.Query) (p pubsub.Page, ok bool, err error) {
	c, keep := &e.config, e.keep(q.Topic)
	wanted := q.Limit
	if q.Limit == 0 {
		wanted = c.Messages
	}
	create := keep > 0
	for next := uint64(0); ; {
		if next == 0 && create {
			create = e.asked.room(c.Topics, c.Idle)
		}
		count := min(pageMessages, max(wanted-len(p.Messages), 1))
		args := []string{
			strconv.Itoa(keep), milliseconds(q.Topic.HistoryAge), milliseconds(c.Idle), freshEpoch(), flag(c.Persistent), flag(create && next == 0),
			strconv.FormatUint(q.From.Epoch, 10), strconv.FormatUint(q.From.Offset, 10), strconv.Itoa(q.Limit), strconv.FormatUint(next, 10),
			strconv.Itoa(count), strconv.Itoa(pageBytes),
		}
		reply, err := again(ctx, func() (rueidis.RedisMessage, error) {
			return e.exec(ctx, scriptHistory, []string{c.topicKey(topic)}, args)
		})
		if err != nil {
			return pubsub.Page{}, false, err
		}
		parts, err := reply.ToArray()
		if err != nil || len(parts) != 5 {
			return pubsub.Page{}, false, errAnswer
		}
		epoch, err1 := parts[0].AsUint64()
		top, err2 := parts[1].AsUint64()
		complete, err3 := parts[2].AsUint64()
		entries, err4 := parts[3].ToArray()
		begun, err5 := parts[4].AsUint64()
		if errors.Join(err1, err2, err3, err4, err5) != nil || len(entries)%2 != 0 {
			return pubsub.Page{}, false, errAnswer
		}
		switch {
		case next == 0:
			if epoch == 0 {
				return pubsub.Page{}, true, nil
			}
			p.Top, p.Complete = pubsub.Position{Epoch: epoch, Offset: top}, complete == 1
			if begun == 1 {
				e.asked.count()
			}
		case epoch != p.Top.Epoch:
			return pubsub.Page{}, false, nil
		}
		for i := 0; i < len(entries); i += 2 {
			offset, err := entries[i].AsUint64()
			record, err2 := entries[i+1].ToString()
			if err != nil || err2 != nil {
				return pubsub.Page{}, false, errAnswer
			}
			if q.Limit != 0 && len(p.Messages) == wanted {
				return p, true, nil
			}
			if offset > p.Top.Offset {
				p.Complete = p.Complete && next > p.Top.Offset // or the rest was dropped while we read
				return p, true, nil
			}
			_, m, err := decodeRecord(topic, record)
			if err != nil {
				return pubsub.Page{}, false, &arpc.Error{Code: arpc.CodeDataLoss, Message: err.Error()}
			}
			m.Position = pubsub.Position{Epoch: epoch, Offset: offset}
			before := q.From.Offset
			if n := len(p.Messages); n > 0 {
				before = p.Messages[n-1].Position.Offset
			}
			if offset != before+1 { // so was what is between
				p.Complete = false
			}
			p.Messages = append(p.Messages, m)
			next = offset + 1
		}
		if len(entries) == 0 && len(p.Messages) > 0 && next <= p.Top.Offset { // and here
			p.Complete = false
		}
		if len(entries) == 0 || next > p.Top.Offset || q.Limit != 0 && len(p.Messages) >= wanted {
			return p, true, nil
		}
	}
}

// askedTopics counts topics that have begun because they were asked for.
type askedTopics struct {
	mu    sync.Mutex
	since time.Time
	n     int
}

// room reports whether there may be one more.
func (a *askedTopics) room(limit int, window time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); now.Sub(a.since) >= window {
		a.since, a.n = now, 0
	}
	return a.n < limit
}

func (a *askedTopics) count() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
}
