package nats

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/nats-io/nats.go/jetstream"
)

// A class is all topics that are kept alike; they share a stream.
type class struct {
	size int           // messages of each topic; 0 for a stream that only remembers IDs
	age  time.Duration // 0 for no limit
	one  bool          // of messages to one, with size 0
}

// classOf returns the class of a topic.
func (e *Engine) classOf(t pubsub.TopicConfig) class {
	c := class{size: max(t.HistorySize, 0), age: max(t.HistoryAge, 0)}
	if t.LastValue {
		c.size = max(c.size, 1)
	}
	if c.size = min(c.size, e.config.Messages); c.size == 0 {
		c.age = 0
	}
	return c
}

// Tokens of the streams that only remember IDs: of messages to all, and to one.
const (
	tokenAll = "all"
	tokenOne = "one"
)

// token is the class's in subjects and names of streams.
func (c class) token() string {
	switch {
	case c.one:
		return tokenOne
	case c.size == 0:
		return tokenAll
	}
	return strconv.Itoa(c.size) + "-" + strconv.FormatInt(int64(c.age), 10)
}

// A stream is where the messages of one class are. The subjects that it takes have its epoch, which its maker has chosen, so that
// one that was lost or removed and made again cannot be taken for the same: who still publishes to the subjects of the old one is
// told that nobody is there. The name does not have it, so that of several who make a stream at the same time one does.
type stream struct {
	class class
	name  string
	epoch uint64        // 0 if its messages have no positions
	head  string        // of the subjects that it takes
	keeps time.Duration // how long it keeps messages for certain; 0 for no limit
}

// streams is the engine's streams by class.
type streams struct {
	mu sync.Mutex
	m  map[class]*slot
}

// slot is the place of one class's stream.
type slot struct {
	mu     sync.Mutex // while it is looked for
	stream *stream    // nil if it is not known
}

// skew is by how much the clocks of servers, and of this process, may differ.
const skew = time.Minute

// headStream begins the subjects of a class's stream.
func (e *Engine) headStream(c class) string { return e.config.Prefix + ".h." + c.token() + "." }

// parseSubject returns the token and the epoch of a stream's subject; the epoch is 0 if its messages have no positions.
func (e *Engine) parseSubject(subject string) (token string, epoch uint64, ok bool) {
	rest, ok := strings.CutPrefix(subject, e.config.Prefix+".h.")
	if !ok {
		return "", 0, false
	}
	token, rest, _ = strings.Cut(rest, ".")
	number, _, ok := strings.Cut(rest, ".")
	if !ok {
		return "", 0, false
	}
	epoch, err := strconv.ParseUint(number, 16, 53)
	if err != nil || epoch == 0 {
		return "", 0, false
	}
	if token == tokenAll || token == tokenOne {
		epoch = 0
	}
	return token, epoch, true
}

// stream returns the stream of a class, which it looks for, and makes if there is none.
func (e *Engine) stream(ctx context.Context, c class) (*stream, error) {
	e.streams.mu.Lock()
	s := e.streams.m[c]
	if s == nil {
		if len(e.streams.m) >= e.config.Streams {
			e.streams.mu.Unlock()
			return nil, &arpc.Error{Code: arpc.CodeResourceExhausted, Message: fmt.Sprintf("nats: topics have more than %d different "+
				"pairs of HistorySize and HistoryAge, each of which is a stream", e.config.Streams)}
		}
		if e.streams.m == nil {
			e.streams.m = map[class]*slot{}
		}
		s = &slot{}
		e.streams.m[c] = s
	}
	e.streams.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream != nil {
		return s.stream, nil
	}
	found, err := e.findStream(ctx, c)
	if err == nil {
		s.stream = found
	}
	return found, err
}

// forget makes the next one look for the stream again.
func (e *Engine) forget(st *stream) {
	e.streams.mu.Lock()
	s := e.streams.m[st.class]
	e.streams.mu.Unlock()
	s.mu.Lock()
	if s.stream == st {
		s.stream = nil
	}
	s.mu.Unlock()
}

func (e *Engine) findStream(ctx context.Context, c class) (*stream, error) {
	name := e.config.Prefix + "_" + c.token()
	for {
		s, err := e.js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			s, err = e.js.CreateStream(ctx, e.streamConfig(name, fmt.Sprintf("%s%x.", e.headStream(c), 1+rand.Uint64N(1<<53-1)), c))
			if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // somebody else was faster
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		return e.knownStream(s.CachedInfo().Config, c)
	}
}

// knownStream returns a stream that exists, if it is as the engine needs it.
func (e *Engine) knownStream(have jetstream.StreamConfig, c class) (*stream, error) {
	foreign := &arpc.Error{Code: arpc.CodeFailedPrecondition, Message: fmt.Sprintf("nats: the stream %s was not made by the engine, or was changed", have.Name)}
	if len(have.Subjects) != 1 {
		return nil, foreign
	}
	head, ok := strings.CutSuffix(have.Subjects[0], ">")
	token, epoch, known := e.parseSubject(have.Subjects[0])
	if !ok || !known || token != c.token() {
		return nil, foreign
	}
	want := e.streamConfig(have.Name, head, c)
	if have.MaxMsgsPerSubject != want.MaxMsgsPerSubject || have.RePublish == nil || *have.RePublish != *want.RePublish ||
		!have.AllowDirect || have.Retention != want.Retention || have.Discard != want.Discard {
		return nil, foreign
	}
	st := &stream{class: c, name: have.Name, head: head, epoch: epoch}
	if have.MaxAge > 0 {
		st.keeps = max(have.MaxAge-skew, 1)
	}
	return st, nil
}

// streamConfig is that of a new stream. It keeps one message more of each topic than is asked for, the one before the oldest, and
// for longer: see History.
func (e *Engine) streamConfig(name, head string, c class) jetstream.StreamConfig {
	out := e.headAll()
	if c.one {
		out = e.headOne()
	}
	s := jetstream.StreamConfig{
		Name: name, Subjects: []string{head + ">"}, Description: "topics of arpc's publish and subscribe",
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, Storage: e.config.Storage, Replicas: e.config.Replicas,
		MaxBytes: e.config.MaxBytes, Duplicates: e.config.IDAge, AllowDirect: true, MaxMsgsPerSubject: -1,
		RePublish: &jetstream.RePublish{Source: head + ">", Destination: out + ">"},
	}
	switch {
	case c.size == 0:
		s.MaxAge = e.config.IDAge
	default:
		s.MaxMsgsPerSubject = int64(c.size) + 1
		if c.age > 0 {
			s.MaxAge = max(c.age+e.config.Idle+skew, e.config.IDAge)
		}
	}
	return s
}
