package pubsub

import (
	"context"
	"encoding/json"
	"net"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/log"
)

// authTimeout is the time that Authenticate, and each step of restoring after a lost connection, may take.
const authTimeout = 5 * time.Second

// Pauses between attempts to restore subscriptions on a connection that stands.
const (
	minPause = 20 * time.Millisecond
	maxPause = 5 * time.Second
)

// A Client is an arpc.Client that publishes and subscribes. When its connection is lost and there is another one, it
// authenticates itself again, if it has before, and restores its subscriptions.
type Client struct {
	*arpc.Client
	// Password is what Authenticate tells the server. It must be set before Authenticate.
	Password string

	mu        sync.Mutex
	ctx       context.Context // until Stop
	cancel    context.CancelFunc
	authed    bool
	onPublish TopicHandler
	handlers  map[string]TopicHandler // of the original arpc's format
	subs      map[uint32]*Subscription
	byID      map[uint64]*Subscription // by the server's number of the topic
	lastToken uint32
	rounds    int // counts reasons to restore: connections, and what the server says
	restoring bool
}

// NewClient connects with the dialer and returns a client, see arpc.NewClient. A Handler among the options is copied.
func NewClient(dialer func() (net.Conn, error), opts ...arpc.ClientOption) (*Client, error) {
	c := &Client{handlers: map[string]TopicHandler{}, subs: map[uint32]*Subscription{}, byID: map[uint64]*Subscription{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	handler := arpc.DefaultHandler
	all := make([]arpc.ClientOption, 0, len(opts)+1)
	for _, o := range opts {
		if h, ok := o.(arpc.Handler); ok && h != nil {
			handler = h
			continue
		}
		all = append(all, o)
	}
	handler = handler.Clone()
	handler.Handle(methodPublish, c.handleRecord, false)
	handler.Handle(methodEvent, c.handleEvent, false)
	all = append(all, handler)
	started := make(chan struct{})
	ac, err := arpc.NewClient(func() (net.Conn, error) {
		nc, err := dialer()
		if err == nil && c.dialed() {
			go func() {
				<-started
				c.restore()
			}()
		}
		return nc, err
	}, all...)
	if err != nil {
		c.cancel()
	}
	c.Client = ac
	close(started)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Stop is arpc.Client.Stop.
func (c *Client) Stop() {
	c.mu.Lock()
	c.cancel()
	c.mu.Unlock()
	c.Client.Stop()
}

// Restart is arpc.Client.Restart; subscriptions are restored.
func (c *Client) Restart() error {
	c.mu.Lock()
	c.cancel()
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.mu.Unlock()
	if err := c.Client.Restart(); err != nil {
		return err
	}
	c.restore()
	return nil
}

// Authenticate tells the server the Password. It waits at most five seconds.
func (c *Client) Authenticate() error {
	ctx, cancel := context.WithTimeout(context.Background(), authTimeout)
	defer cancel()
	return c.AuthenticateWith(ctx)
}

// AuthenticateWith is Authenticate within a context.
func (c *Client) AuthenticateWith(ctx context.Context) error {
	if err := c.CallWith(ctx, methodAuth, c.Password, nil); err != nil {
		return textError(err)
	}
	c.mu.Lock()
	c.authed = true
	c.mu.Unlock()
	return nil
}

// Subscribe calls h for each message of a topic from now on, in the format of the original arpc; names are taken as they are,
// without wildcards. It takes the place of an earlier one of the topic. If it fails, the topic has no handler.
func (c *Client) Subscribe(topic string, h TopicHandler, timeout time.Duration) error {
	if err := checkName(topic); err != nil {
		return err
	}
	c.mu.Lock()
	c.handlers[topic] = h
	c.mu.Unlock()
	err := textError(c.Call(methodSubscribe, appendRecord(nil, topic, now()), nil, timeout))
	if err != nil {
		c.mu.Lock()
		delete(c.handlers, topic)
		c.mu.Unlock()
	}
	return err
}

// Unsubscribe ends a Subscribe. The handler is not called for messages that arrive later, even if it fails.
func (c *Client) Unsubscribe(topic string, timeout time.Duration) error {
	if err := checkName(topic); err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.handlers, topic)
	c.mu.Unlock()
	return textError(c.Call(methodCancel, appendRecord(nil, topic, now()), nil, timeout))
}

// OnPublish sets a handler that is called for the messages of all topics instead of those of Subscribe; nil for none.
func (c *Client) OnPublish(h TopicHandler) {
	c.mu.Lock()
	c.onPublish = h
	c.mu.Unlock()
}

// Publish publishes v, encoded as for a call, to all subscribers of a topic, this client too. It returns when the server has it.
func (c *Client) Publish(topic string, v any, timeout time.Duration) error {
	return c.publishRecord(methodPublish, topic, v, timeout)
}

// PublishToOne publishes v to one of the subscribers of a topic, if there is one.
func (c *Client) PublishToOne(topic string, v any, timeout time.Duration) error {
	return c.publishRecord(methodToOne, topic, v, timeout)
}

func (c *Client) publishRecord(method, topic string, v any, timeout time.Duration) error {
	if err := checkName(topic); err != nil {
		return err
	}
	data, err := codec.AppendValue(nil, c.Codec, v)
	if err != nil {
		return err
	}
	return textError(c.Call(method, appendRecord(data, topic, now()), nil, timeout))
}

// handleRecord handles a message in the original arpc's format.
func (c *Client) handleRecord(ctx *arpc.Context) {
	t, err := parseRecord(ctx.Body())
	if err != nil {
		log.Warn("%s pubsub: %v from %v", c.Handler.LogTag(), err, ctx.Client.Conn.RemoteAddr())
		return
	}
	c.mu.Lock()
	h := c.onPublish
	if h == nil {
		h = c.handlers[t.Name]
	}
	c.mu.Unlock()
	if h == nil { // unsubscribed meanwhile
		return
	}
	t.Data = append([]byte{}, t.Data...)
	h(&t)
}

// A PublishOption says something about one publication.
type PublishOption func(*publication)

// WithKey gives a message a key, of at most 255 bytes: a newer message with the same key takes its place where subscribers ask
// for that, see Conflate.
func WithKey(key string) PublishOption { return func(p *publication) { p.key = key } }

// WithID makes a publication idempotent: if one with the same ID, of at most 255 bytes, was published to the topic a short while
// ago, nothing is published and the receipt is that one's. So a publication whose outcome is not known can be repeated.
func WithID(id string) PublishOption { return func(p *publication) { p.id = id } }

// ToOne gives the message to one subscriber, if there is one. It is not kept in the topic's history.
func ToOne() PublishOption { return func(p *publication) { p.toOne = true } }

// PublishWith publishes v, encoded as for a call, to a topic, and returns when the server's engine has it. After an error that
// is not the peer's it is not known whether it has been published: with WithID it can be repeated.
func (c *Client) PublishWith(ctx context.Context, topic string, v any, opts ...PublishOption) (Receipt, error) {
	if err := checkName(topic); err != nil {
		return Receipt{}, err
	}
	data, err := codec.AppendValue(nil, c.Codec, v)
	if err != nil {
		return Receipt{}, err
	}
	p := publication{topic: topic, data: data}
	for _, o := range opts {
		o(&p)
	}
	req, err := p.append(nil)
	if err != nil {
		return Receipt{}, err
	}
	var rsp []byte
	if err := c.CallWith(ctx, methodPub, req, &rsp); err != nil {
		return Receipt{}, err
	}
	return parseReceipt(rsp)
}

// History returns a part of what a topic has kept. The server may leave out what does not fit into one answer: then the last of
// Messages is before Top, and the next Query is from there.
func (c *Client) History(ctx context.Context, topic string, q Query) (Page, error) {
	req := historyRequest{Topic: topic, Limit: q.Limit}
	if !q.From.IsZero() {
		req.From = &q.From
	}
	var rsp []byte
	if err := c.callJSON(ctx, methodHistory, req, &rsp); err != nil {
		return Page{}, err
	}
	return parsePage(rsp)
}

// Members returns who is present at a topic, in no order.
func (c *Client) Members(ctx context.Context, topic string) ([]Member, error) {
	var rsp []byte
	if err := c.callJSON(ctx, methodMembers, membersRequest{topic}, &rsp); err != nil {
		return nil, err
	}
	var list []wireMember
	if err := json.Unmarshal(rsp, &list); err != nil {
		return nil, err
	}
	members := make([]Member, 0, len(list))
	for _, m := range list {
		members = append(members, Member{m.ID, m.Info})
	}
	return members, nil
}

func (c *Client) callJSON(ctx context.Context, method string, req any, rsp *[]byte) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	return c.CallWith(ctx, method, body, rsp)
}

// dialed is called for each connection that the dialer has made, before it is used. It reports whether there may be something to
// restore.
func (c *Client) dialed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rounds++
	for _, s := range c.subs {
		s.stale = true
	}
	return c.rounds > 1
}

// again makes sure that a subscription is restored.
func (c *Client) again(s *Subscription) {
	c.mu.Lock()
	c.rounds++
	s.stale = true
	c.mu.Unlock()
	c.restore()
}

// restore restores what is stale on the current connection, or the next.
func (c *Client) restore() {
	c.mu.Lock()
	start := !c.restoring && c.ctx.Err() == nil
	c.restoring = c.restoring || start
	ctx := c.ctx
	c.mu.Unlock()
	if start {
		go c.restoreAll(ctx)
	}
}

// restoreAll restores until it has done so on the last connection, or the client is stopped.
func (c *Client) restoreAll(ctx context.Context) {
	pause := minPause
	for {
		err := c.WaitReady(ctx)
		c.mu.Lock()
		if err != nil { // stopped
			c.restoring = false
			c.mu.Unlock()
			return
		}
		rounds := c.rounds
		c.mu.Unlock()
		err = c.restoreOnce(ctx)
		c.mu.Lock()
		if err == nil && c.rounds == rounds {
			c.restoring = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		if err == nil {
			pause = minPause
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, maxPause)
	}
}

// restoreOnce authenticates and subscribes again. An error says that it is worth another attempt.
func (c *Client) restoreOnce(ctx context.Context) error {
	step := func(f func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, authTimeout)
		defer cancel()
		return f(ctx)
	}
	c.mu.Lock()
	authed := c.authed
	c.mu.Unlock() // a connection that is lost meanwhile makes subscriptions stale again
	if authed {
		if err := step(c.AuthenticateWith); err != nil {
			return err
		}
	}
	c.mu.Lock()
	topics := make([]string, 0, len(c.handlers))
	for topic := range c.handlers {
		topics = append(topics, topic)
	}
	subs := make([]*Subscription, 0, len(c.subs))
	for _, s := range c.subs {
		if s.stale {
			subs = append(subs, s)
		}
	}
	c.mu.Unlock()
	var failed error
	for _, topic := range topics {
		err := step(func(ctx context.Context) error {
			return textError(c.CallWith(ctx, methodSubscribe, appendRecord(nil, topic, now()), nil))
		})
		switch {
		case err == nil:
		case final(err):
			log.Warn("%s pubsub: the subscription to %q cannot be restored: %v", c.Handler.LogTag(), topic, err)
			c.mu.Lock()
			delete(c.handlers, topic)
			c.mu.Unlock()
		default:
			failed = err
		}
	}
	for _, s := range subs {
		if err := step(s.restore); err != nil {
			failed = err
		}
	}
	return failed
}

// final says that the server will not change its mind.
func final(err error) bool {
	switch arpc.CodeOf(err) {
	case arpc.CodeInvalidArgument, arpc.CodePermissionDenied, arpc.CodeUnimplemented, arpc.CodeFailedPrecondition, arpc.CodeNotFound:
		return true
	}
	return false
}

// handleEvent handles an event of the server's.
func (c *Client) handleEvent(ctx *arpc.Context) {
	e, err := parseEvent(ctx.Body())
	if err != nil {
		log.Warn("%s pubsub: %v from %v", c.Handler.LogTag(), err, ctx.Client.Conn.RemoteAddr())
		return
	}
	c.mu.Lock()
	var s *Subscription
	switch e.kind {
	case eventStart:
		if s = c.subs[e.token]; s != nil {
			s.boundLocked(e.id)
		}
	case eventLost, eventEnded:
		s = c.subs[uint32(e.id)]
	default:
		s = c.byID[e.id]
	}
	c.mu.Unlock()
	if s != nil { // otherwise it was unsubscribed meanwhile
		s.handle(&e)
	}
}
