package pubsub

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/arpc-go/arpc"
)

// An EventKind says what an Event is.
type EventKind uint8

// The kinds of events.
const (
	// EventSubscribed: the subscription has begun, or has begun again after Resumed. It comes before the messages.
	EventSubscribed EventKind = iota
	// EventLost: Lost messages could not be delivered, because this client was too slow for its queue at the server.
	EventLost
	// EventJoined and EventLeft: Member has come, or has gone.
	EventJoined
	EventLeft
	// EventInterrupted: the server has lost its engine, for the reason Err. EventSubscribed follows when it is back.
	EventInterrupted
	// EventEnded: the subscription is over and will not be restored, for the reason Err.
	EventEnded
	// EventMalformed: a message could not be decoded, Err says why. Only of typed topics.
	EventMalformed
)

// String returns the kind's name.
func (k EventKind) String() string {
	return [...]string{"subscribed", "lost", "joined", "left", "interrupted", "ended", "malformed", "?"}[min(k, 7)]
}

// An Event is what happens to a subscription beside messages.
type Event struct {
	Kind EventKind
	// Resumed, of EventSubscribed, says that it has begun at a place that was known: that of From, or where it was when its
	// connection was lost.
	Resumed bool
	// Recovered, of EventSubscribed, says that nothing is missing between that place and what follows. With Resumed and without
	// Recovered there may be a gap: what the messages stand for must be read anew. It is never true where something is missing.
	Recovered bool
	// Position, of EventSubscribed, is the place before the first message that follows; zero without history.
	Position Position
	// Lost is the number of messages.
	Lost uint64
	// Member is who has come or gone.
	Member Member
	// Err is the reason.
	Err error
}

// A SubscribeOption says something about a subscription.
type SubscribeOption func(*Subscription)

// From begins a subscription after a place in the topic's history, such as that of the last message that a program has dealt
// with before it was restarted.
func From(p Position) SubscribeOption {
	return func(s *Subscription) { s.position, s.resumed = p, !p.IsZero() }
}

// Last begins a subscription with the last n messages of the topic's history.
func Last(n int) SubscribeOption { return func(s *Subscription) { s.request.Last = n } }

// Group makes a subscription one of a queue group: each message goes to one of its subscriptions, of all connections to all
// servers of an engine. A group has no history.
func Group(name string) SubscribeOption { return func(s *Subscription) { s.request.Group = name } }

// OnOverflow says what happens when this client is too slow; the default is DropOldest.
func OnOverflow(o Overflow) SubscribeOption {
	return func(s *Subscription) { s.request.Overflow = o.String() }
}

// QueueSize sets the number of messages that may wait at the server while the connection is full. The server has a largest,
// which is the default.
func QueueSize(n int) SubscribeOption { return func(s *Subscription) { s.request.Queue = n } }

// Present makes the subscription a member of its topic, with info about itself, which is JSON or nil. The topic must have
// presence.
func Present(info json.RawMessage) SubscribeOption {
	return func(s *Subscription) { s.request.Join, s.request.Info = true, info }
}

// WatchPresence asks for EventJoined and EventLeft.
func WatchPresence() SubscribeOption { return func(s *Subscription) { s.request.Presence = true } }

// OnEvent sets a function for what happens to the subscription beside messages. It is called in line with the handler, and at
// the end of the subscription.
func OnEvent(f func(Event)) SubscribeOption { return func(s *Subscription) { s.onEvent = f } }

// A Subscription is one that SubscribeWith has made.
type Subscription struct {
	client  *Client
	topic   string
	handler func(*Message)
	onEvent func(Event)
	request subscribeRequest
	id      uint64 // the server's number for its messages; guarded by client.mu
	stale   bool   // the server has to be asked again; so is this

	running sync.Mutex // while the handler runs: an old connection's and a new one's do not run together

	mu       sync.Mutex
	position Position
	resumed  bool // position is one that messages came up to, or From
	begun    bool
	waiting  bool   // something is missing: until the next start messages do not count, as they will come again
	told     uint64 // messages that the server has said are lost, and that have not been missed yet
	member   string
	err      error
	done     chan struct{}
	over     bool
}

// SubscribeWith calls h for each message of a topic, or of all topics that match a pattern: words that dots separate, of which *
// stands for any one and a last > for any one or more. Several subscriptions of a client to one topic each get the messages.
// After a lost connection the subscription goes on from where it was; OnEvent tells whether anything is missing.
func (c *Client) SubscribeWith(ctx context.Context, topic string, h func(*Message), opts ...SubscribeOption) (*Subscription, error) {
	s := &Subscription{client: c, topic: topic, handler: h, done: make(chan struct{})}
	for _, o := range opts {
		o(s)
	}
	if _, err := newFilter(topic); err != nil {
		return nil, err
	}
	s.request.Topic = topic
	c.mu.Lock()
	c.lastToken++
	s.request.Token = c.lastToken
	c.subs[c.lastToken] = s
	c.mu.Unlock()
	if err := s.subscribe(ctx); err != nil {
		s.forget()
		if e, ok := err.(*arpc.Error); !ok || !e.Remote { // the server may have subscribed
			c.Notify(methodUnsub, s.unsubscribe(), arpc.TimeZero) //nolint:errcheck // without a connection there is no subscription
		}
		return nil, err
	}
	return s, nil
}

// subscribe asks the server, to begin where the subscription is.
func (s *Subscription) subscribe(ctx context.Context) error {
	req := s.request
	s.mu.Lock()
	if s.resumed {
		p := s.position
		req.From = &p
	}
	if s.begun {
		req.Last = 0
	}
	s.mu.Unlock()
	var rsp []byte
	if err := s.client.callJSON(ctx, methodSub, req, &rsp); err != nil {
		return err
	}
	var reply subscribeReply
	if err := json.Unmarshal(rsp, &reply); err != nil {
		return fmt.Errorf("pubsub: malformed answer: %w", err)
	}
	s.mu.Lock()
	s.member = reply.Member
	s.mu.Unlock()
	return nil
}

// restore subscribes again. An error says that it is worth another attempt.
func (s *Subscription) restore(ctx context.Context) error {
	c := s.client
	c.mu.Lock()
	if c.subs[s.request.Token] != s {
		c.mu.Unlock()
		return nil
	}
	s.stale = false
	c.mu.Unlock()
	err := s.subscribe(ctx)
	switch {
	case err == nil:
	case final(err):
		s.running.Lock()
		s.end(err)
		s.running.Unlock()
		return nil
	default:
		c.mu.Lock()
		s.stale = true
		c.mu.Unlock()
	}
	return err
}

// boundLocked notes the server's number. The client is locked.
func (s *Subscription) boundLocked(id uint64) {
	c := s.client
	if c.byID[s.id] == s {
		delete(c.byID, s.id)
	}
	s.id = id
	c.byID[id] = s
}

// forget takes the subscription out of the client. It reports whether it was there.
func (s *Subscription) forget() bool {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID[s.id] == s {
		delete(c.byID, s.id)
	}
	if c.subs[s.request.Token] != s {
		return false
	}
	delete(c.subs, s.request.Token)
	return true
}

func (s *Subscription) unsubscribe() []byte {
	b, _ := json.Marshal(unsubscribeRequest{s.request.Token}) //nolint:errchkjson // a number is no error
	return b
}

// Unsubscribe ends the subscription: the handler is not called for messages that arrive later, whatever the server answers. A
// handler may call it.
func (s *Subscription) Unsubscribe(ctx context.Context) error {
	if !s.forget() {
		return nil
	}
	s.finish(nil)
	return s.client.CallWith(ctx, methodUnsub, s.unsubscribe(), nil)
}

// finish marks the subscription over. It reports whether it was not.
func (s *Subscription) finish(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	s.over, s.err = true, err
	close(s.done)
	return true
}

// end ends the subscription from the server's side, and tells. running is held.
func (s *Subscription) end(err error) {
	s.forget()
	if s.finish(err) {
		s.tell(Event{Kind: EventEnded, Err: err})
	}
}

// Topic returns the topic, or the pattern.
func (s *Subscription) Topic() string { return s.topic }

// Position returns the place after the last message that was handed to the handler; zero without history. From goes on from there.
func (s *Subscription) Position() Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.position
}

// Member returns the ID that the subscription has at the moment as a Member of its topic; empty without Present.
func (s *Subscription) Member() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.member
}

// Done is closed when the subscription is over: after Unsubscribe, and when the server does not restore it.
func (s *Subscription) Done() <-chan struct{} { return s.done }

// Err returns why the server does not go on with the subscription, nil otherwise.
func (s *Subscription) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *Subscription) tell(e Event) {
	if s.onEvent != nil {
		s.onEvent(e)
	}
}

// missedLocked reports whether messages are missing before one, and nobody has said so: then they were lost between the server's
// connection and here. With Conflate messages are missing all the time.
func (s *Subscription) missedLocked(e *wireEvent) bool {
	if e.before.IsZero() || e.before.Epoch != s.position.Epoch || e.before.Offset <= s.position.Offset || s.request.Overflow == Conflate.String() {
		return false
	}
	n := e.before.Offset - s.position.Offset
	missed := n > s.told
	if e.flags&flagBefore != 0 { // offsets are not consecutive, so that they say nothing about how many are missing
		missed = s.told == 0
	}
	s.told -= min(n, s.told)
	return missed
}

// handle handles an event of the server's.
func (s *Subscription) handle(e *wireEvent) {
	s.running.Lock()
	defer s.running.Unlock()
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	switch e.kind {
	case eventMessage:
		m := e.message
		if p := m.Position; !p.IsZero() {
			again := p.Epoch == s.position.Epoch && p.Offset <= s.position.Offset // it came by the connection before, too
			if again || s.waiting {
				s.mu.Unlock()
				return
			}
			if s.missedLocked(e) {
				s.waiting = true
				s.mu.Unlock()
				s.client.again(s)
				return
			}
			s.position, s.resumed = p, true
		}
		s.mu.Unlock()
		if e.flags&flagTopic == 0 {
			m.Topic = s.topic
		}
		s.handler(m)
		return
	case eventStart:
		out := Event{Kind: EventSubscribed, Position: e.position, Recovered: e.flags&flagRecovered != 0, Resumed: s.resumed || s.begun}
		// After a recovery messages of the connection before may have come meanwhile, which will come again.
		if !out.Recovered || s.position.Epoch != e.position.Epoch || s.position.Offset < e.position.Offset {
			s.position = e.position
		}
		s.resumed, s.begun = !s.position.IsZero(), true
		s.waiting, s.told = false, 0
		s.mu.Unlock()
		s.tell(out)
		return
	}
	switch e.kind {
	case eventLost:
		s.told += e.count
	case eventInterrupted, eventAgain: // what comes before the next start is after what is missing
		s.waiting = s.resumed
	}
	s.mu.Unlock()
	switch e.kind {
	case eventLost:
		s.tell(Event{Kind: EventLost, Lost: e.count})
	case eventJoined:
		s.tell(Event{Kind: EventJoined, Member: e.member})
	case eventLeft:
		s.tell(Event{Kind: EventLeft, Member: e.member})
	case eventInterrupted:
		s.tell(Event{Kind: EventInterrupted, Err: &arpc.Error{Code: arpc.CodeUnavailable, Message: e.text, Remote: true}})
	case eventAgain:
		s.client.again(s)
	case eventEnded:
		s.end(&arpc.Error{Code: e.code, Message: e.text, Remote: true})
	}
}
