package pubsub

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
)

// An Action is what a client wants to do with a topic.
type Action uint8

// The actions.
const (
	ActionSubscribe Action = iota
	ActionPublish
	// ActionHistory: to ask for messages of the past, other than by a subscription.
	ActionHistory
	// ActionPresence: to be present, to see who comes and goes, and to ask who is there.
	ActionPresence
)

// String returns the action's verb.
func (a Action) String() string {
	return [...]string{"subscribe to", "publish to", "read the history of", "be present at"}[a%4]
}

// Limits bounds what clients can make a server spend. Zero means the default of a field.
type Limits struct {
	// Subscriptions is the number of subscriptions of a connection. Default 1000.
	Subscriptions int
	// Topics is the number of topics, patterns and groups that the connections together have subscribed to. Default 1,000,000.
	Topics int
	// MessageSize is the number of bytes of a message. Default 1 MiB.
	MessageSize int
	// Queue is the largest number of messages that may wait for a subscription whose connection is full, and what it is without
	// QueueSize; QueueBytes that of their bytes. Default 1024 and 1 MiB.
	Queue, QueueBytes int
	// Info is the number of bytes that a member may say about itself. Default 4 KiB.
	Info int
	// WrongPasswords is the number after which a connection is closed. Default 10.
	WrongPasswords int
	// HistoryBytes is the number of bytes that one answer about the history may have; further messages are left out. Default 4
	// MiB.
	HistoryBytes int
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Subscriptions, 1000)
	def(&l.Topics, 1_000_000)
	def(&l.MessageSize, 1<<20)
	def(&l.Queue, 1024)
	def(&l.QueueBytes, 1<<20)
	def(&l.Info, 4<<10)
	def(&l.WrongPasswords, 10)
	def(&l.HistoryBytes, 4<<20)
	return l
}

// Config is what a server may be given beside its password.
type Config struct {
	// Password is the first value of Server.Password.
	Password string
	// Authorize says whether a client may do something with a topic or pattern; an error is the answer, with
	// CodePermissionDenied if it has no code. It may block, and is called for each request. Nil allows everything.
	Authorize func(ctx *arpc.Context, action Action, topic string) error
	// Topics returns the configuration of a topic. It must say the same each time, and be quick. Nil stands for the zero
	// TopicConfig.
	Topics func(topic string) TopicConfig
	// Require is what Topics and clients will ask of the engine; if that cannot do it, the server is not made. Name does not
	// matter.
	Require Capabilities
	// Engine is where topics live. Nil stands for a Memory of the server's own, which ends with it; another one is closed by who
	// made it.
	Engine Engine
	// Limits are those of the server's clients.
	Limits Limits
}

// A Server is an arpc.Server with topics. Its Codec encodes what it publishes itself.
type Server struct {
	*arpc.Server
	// Password is what clients must tell, see Client.Authenticate; with "" they need not. It is compared in constant time. It
	// must be set before Run or Serve.
	Password string

	config  Config
	engine  Engine
	can     Capabilities
	own     *Memory // the engine if it is the server's own
	node    string  // makes member IDs unique
	members atomic.Uint64

	counters struct {
		published, delivered, dropped, conflated, disconnected, undeliverable atomic.Int64
		subscriptions                                                         atomic.Int64
	}

	mu       sync.Mutex
	peers    map[*arpc.Client]*peer
	channels map[channelKey]*channel
	lastID   uint64 // of a channel
}

// NewServer returns a server whose topics have no history and are open to everybody who knows Password.
func NewServer(opts ...arpc.ServerOption) *Server {
	s, err := NewServerWith(Config{}, opts...)
	if err != nil {
		panic(err) // a Memory can do everything
	}
	return s
}

// NewServerWith returns a server. The error says what config asks of an engine that cannot do it.
func NewServerWith(config Config, opts ...arpc.ServerOption) (*Server, error) {
	s := &Server{
		Server: arpc.NewServer(opts...), Password: config.Password, config: config, engine: config.Engine,
		peers: map[*arpc.Client]*peer{}, channels: map[channelKey]*channel{},
		// IDs of different servers are different, so that a message of an earlier connection is never taken for one of this.
		lastID: mathrand.Uint64N(1 << 52),
	}
	s.config.Limits = config.Limits.withDefaults()
	var node [8]byte
	rand.Read(node[:]) //nolint:errcheck // it never fails
	s.node = hex.EncodeToString(node[:])
	if s.engine == nil {
		s.own = NewMemory(MemoryConfig{})
		s.engine = s.own
	}
	s.can = s.engine.Capabilities()
	if err := config.Require.within(s.can); err != nil {
		return nil, err
	}
	h := s.Handler
	h.Handle(methodAuth, s.handleAuth, false)
	h.Handle(methodSubscribe, s.handleRecordSubscribe, false)
	h.Handle(methodCancel, s.handleRecordUnsubscribe, false)
	h.Handle(methodPublish, func(c *arpc.Context) { s.handleRecordPublish(c, false) }, false)
	h.Handle(methodToOne, func(c *arpc.Context) { s.handleRecordPublish(c, true) }, false)
	h.Handle(methodSub, s.handleSubscribe, false)
	h.Handle(methodUnsub, s.handleUnsubscribe, false)
	h.Handle(methodPub, s.handlePublish, false)
	h.Handle(methodHistory, s.handleHistory, false)
	h.Handle(methodMembers, s.handleMembers, false)
	return s, nil
}

// within says what have lacks of c.
func (c Capabilities) within(have Capabilities) error {
	for _, x := range []struct {
		what       string
		want, have bool
	}{
		{"history", c.History, have.History},
		{"presence", c.Presence, have.Presence},
		{"wildcards", c.Wildcards, have.Wildcards},
		{"queue groups", c.Groups, have.Groups},
		{"idempotent publishing", c.Idempotency, have.Idempotency},
		{"topics that several processes share", c.Shared, have.Shared},
	} {
		if x.want && !x.have {
			return errCapability(have.Name, x.what)
		}
	}
	return nil
}

// Stats says what a server's topics do.
type Stats struct {
	// Subscriptions that there are now, Topics, patterns and groups that they are of, and Peers: connections that have used
	// topics.
	Subscriptions, Topics, Peers int
	// Published counts messages of this server's clients and its own that the engine took; Delivered what was handed to
	// connections.
	Published, Delivered int64
	// Dropped and Conflated messages of slow subscribers, Disconnected slow subscribers, and messages to one subscriber that
	// nobody took.
	Dropped, Conflated, Disconnected, Undeliverable int64
}

// TopicStats returns what the topics do; the embedded arpc.Server has those of the connections.
func (s *Server) TopicStats() Stats {
	n := &s.counters
	s.mu.Lock()
	st := Stats{Topics: len(s.channels), Peers: len(s.peers)}
	s.mu.Unlock()
	st.Subscriptions = int(n.subscriptions.Load())
	st.Published, st.Delivered, st.Dropped = n.published.Load(), n.delivered.Load(), n.dropped.Load()
	st.Conflated, st.Disconnected, st.Undeliverable = n.conflated.Load(), n.disconnected.Load(), n.undeliverable.Load()
	return st
}

// Stop is arpc.Server.Stop; a Memory of the server's own ends too.
func (s *Server) Stop() error {
	err := s.Server.Stop()
	s.end()
	return err
}

// Shutdown is arpc.Server.Shutdown; a Memory of the server's own ends too.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.Server.Shutdown(ctx)
	s.end()
	return err
}

func (s *Server) end() {
	s.mu.Lock()
	peers := make([]*peer, 0, len(s.peers))
	for _, p := range s.peers {
		peers = append(peers, p)
	}
	s.mu.Unlock()
	for _, p := range peers {
		p.end()
	}
	if s.own != nil {
		s.own.Close() //nolint:errcheck // it has no error
	}
}

// Publish publishes v, encoded as for a call, to all subscribers of a topic.
func (s *Server) Publish(topic string, v any) error {
	_, err := s.publishValue(context.Background(), publication{topic: topic}, v)
	return err
}

// PublishToOne publishes v to one of the subscribers of a topic, if there is one.
func (s *Server) PublishToOne(topic string, v any) error {
	_, err := s.publishValue(context.Background(), publication{topic: topic, toOne: true}, v)
	return err
}

// PublishWith publishes v, encoded as for a call, to a topic, and returns when the engine has it.
func (s *Server) PublishWith(ctx context.Context, topic string, v any, opts ...PublishOption) (Receipt, error) {
	p := publication{topic: topic}
	for _, o := range opts {
		o(&p)
	}
	if hasWildcard(topic) {
		return Receipt{}, errWildcardTopic
	}
	return s.publishValue(ctx, p, v)
}

func (s *Server) publishValue(ctx context.Context, p publication, v any) (Receipt, error) {
	data, err := codec.AppendValue(nil, s.Codec, v)
	if err != nil {
		return Receipt{}, err
	}
	return s.publish(ctx, &Message{Topic: p.topic, Data: data, Key: p.key, Timestamp: now(), ToOne: p.toOne}, p.id)
}

// publish hands a message to the engine.
func (s *Server) publish(ctx context.Context, m *Message, id string) (Receipt, error) {
	switch err := checkName(m.Topic); {
	case err != nil:
		return Receipt{}, err
	case len(m.Key) > 255 || len(id) > 255:
		return Receipt{}, errTooLong
	}
	if limit := s.config.Limits.MessageSize; len(m.Data) > limit {
		return Receipt{}, &arpc.Error{Code: arpc.CodeInvalidArgument, Message: fmt.Sprintf("message of %d bytes, the limit is %d", len(m.Data), limit)}
	}
	if id != "" && !s.can.Idempotency {
		return Receipt{}, errCapability(s.can.Name, "idempotent publishing")
	}
	config := s.topicConfig(m.Topic)
	if config.history() > 0 && !s.can.History {
		return Receipt{}, errCapability(s.can.Name, "history")
	}
	r, err := s.engine.Publish(ctx, m, PublishOptions{ID: id, Topic: config})
	if err == nil && !r.Duplicate {
		s.counters.published.Add(1)
	}
	return r, err
}

func (s *Server) topicConfig(topic string) TopicConfig {
	if s.config.Topics == nil {
		return TopicConfig{}
	}
	return s.config.Topics(topic)
}

// History returns a part of what a topic has kept. The messages must not be changed.
func (s *Server) History(ctx context.Context, topic string, q Query) (Page, error) {
	q.Topic = s.topicConfig(topic)
	return s.engine.History(ctx, topic, q)
}

// Members returns who is present at a topic, in no order.
func (s *Server) Members(ctx context.Context, topic string) ([]Member, error) {
	return s.engine.Members(ctx, topic)
}

// A peer is a connection that uses topics.
type peer struct {
	server *Server
	client *arpc.Client

	mu      sync.Mutex
	authed  bool
	wrong   int // passwords
	gone    bool
	records map[string]*subscriber // by topic, of the original arpc's format
	subs    []*subscriber          // few: Limits.Subscriptions, and mostly one
}

// peerOf returns the peer of a connection.
func (s *Server) peerOf(c *arpc.Client) *peer {
	s.mu.Lock()
	p := s.peers[c]
	if p != nil {
		s.mu.Unlock()
		return p
	}
	p = &peer{server: s, client: c}
	s.peers[c] = p
	s.mu.Unlock()
	c.AfterConn(func() { go p.end() }) // an engine may take its time
	return p
}

// authed says whether a connection may use topics at all.
func (s *Server) authed(c *arpc.Client) error {
	if s.Password == "" {
		return nil
	}
	s.mu.Lock()
	p := s.peers[c]
	s.mu.Unlock()
	if p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.authed {
			return nil
		}
	}
	return ErrNotAuthenticated
}

// allowed says whether a client may do something with a topic.
func (s *Server) allowed(c *arpc.Context, a Action, topic string) error {
	if err := s.authed(c.Client); err != nil {
		return err
	}
	if s.config.Authorize == nil {
		return nil
	}
	err := s.config.Authorize(c, a, topic)
	if err == nil || arpc.CodeOf(err) != arpc.CodeUnknown {
		return err
	}
	return &arpc.Error{Code: arpc.CodePermissionDenied, Message: fmt.Sprintf("not allowed to %v %q: %v", a, topic, err)}
}

// failed closes a connection that has refused a message for good, if it is not closed already: a subscriber must not believe that nothing
// comes.
func (p *peer) failed() { p.client.Conn.Close() } //nolint:errcheck // it ends either way

// end forgets a peer and its subscriptions.
func (p *peer) end() {
	p.mu.Lock()
	if p.gone {
		p.mu.Unlock()
		return
	}
	p.gone = true
	subs, records := p.subs, p.records
	p.subs, p.records = nil, nil
	p.mu.Unlock()
	p.server.mu.Lock()
	delete(p.server.peers, p.client)
	p.server.mu.Unlock()
	n := int64(0)
	for _, sub := range subs {
		sub.close()
		n++
	}
	for _, sub := range records {
		sub.close()
		n++
	}
	p.server.counters.subscriptions.Add(-n)
}

// add registers a subscription, before its channel knows it, and chooses that: one that the connection is not in yet, so that it
// can tell by a message's number which of its subscriptions that is for. old is the one whose place it takes. It fails at the
// limit, and when the connection has ended.
func (p *peer) add(sub *subscriber) (old *subscriber, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return nil, arpc.ErrClientStopped
	}
	old = p.takeLocked(sub.token)
	if limit := p.server.config.Limits.Subscriptions; len(p.subs)+len(p.records) >= limit {
		return old, errSubscriptions(limit)
	}
	used := map[int]bool{}
	for _, s := range p.subs {
		if s.key.Filter == sub.key.Filter && s.key.group == sub.key.group {
			used[s.key.lane] = true
		}
	}
	for used[sub.key.lane] {
		sub.key.lane++
	}
	p.subs = append(p.subs, sub)
	p.server.counters.subscriptions.Add(1)
	return old, nil
}

// takeLocked takes the subscription with a token out; nil if there is none.
func (p *peer) takeLocked(token uint32) *subscriber {
	i := slices.IndexFunc(p.subs, func(s *subscriber) bool { return s.token == token })
	if i < 0 {
		return nil
	}
	sub := p.subs[i]
	p.subs = slices.Delete(p.subs, i, i+1)
	return sub
}

// addRecord is add for the original arpc's format. It reports false if there is one already.
func (p *peer) addRecord(sub *subscriber) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return false, arpc.ErrClientStopped
	}
	if p.records[sub.key.Name] != nil {
		return false, nil
	}
	if limit := p.server.config.Limits.Subscriptions; len(p.subs)+len(p.records) >= limit {
		return false, errSubscriptions(limit)
	}
	if p.records == nil {
		p.records = map[string]*subscriber{}
	}
	p.records[sub.key.Name] = sub
	p.server.counters.subscriptions.Add(1)
	return true, nil
}

// remove ends a subscription if it is still the peer's.
func (p *peer) remove(sub *subscriber) bool {
	p.mu.Lock()
	mine := false
	if sub.form == formRecord {
		if mine = p.records[sub.key.Name] == sub; mine {
			delete(p.records, sub.key.Name)
		}
	} else if mine = slices.Contains(p.subs, sub); mine {
		p.takeLocked(sub.token)
	}
	p.mu.Unlock()
	if mine {
		p.server.removed(sub)
	}
	return mine
}

func errSubscriptions(limit int) error {
	return &arpc.Error{Code: arpc.CodeResourceExhausted, Message: fmt.Sprintf("too many subscriptions of one connection, the limit is %d", limit)}
}

// handleAuth compares the password, of whatever length, in a time that does not depend on it.
func (s *Server) handleAuth(c *arpc.Context) {
	p := s.peerOf(c.Client)
	got, want := sha256.Sum256(c.Body()), sha256.Sum256([]byte(s.Password))
	right := subtle.ConstantTimeCompare(got[:], want[:]) == 1
	p.mu.Lock()
	if right {
		p.authed, p.wrong = true, 0
	} else {
		p.wrong++
	}
	tooMany := p.wrong >= s.config.Limits.WrongPasswords
	p.mu.Unlock()
	if right {
		c.Write(nil) //nolint:errcheck // the connection's end says more
		return
	}
	c.Error(ErrInvalidPassword) //nolint:errcheck // the connection's end says more
	if tooMany {
		c.Client.Conn.Close() //nolint:errcheck // it ends either way
	}
}

func answer(c *arpc.Context, body []byte, err error) {
	if err != nil {
		c.Error(err) //nolint:errcheck // the connection's end says more
		return
	}
	c.Write(body) //nolint:errcheck // the connection's end says more
}

// handleRecordSubscribe subscribes in the format of the original arpc.
func (s *Server) handleRecordSubscribe(c *arpc.Context) {
	answer(c, nil, func() error {
		t, err := parseRecord(c.Body())
		if err == nil {
			err = s.allowed(c, ActionSubscribe, t.Name)
		}
		if err != nil {
			return err
		}
		p := s.peerOf(c.Client)
		// Names are taken as they are: an old program may have topics named *.
		sub := &subscriber{
			peer: p, key: channelKey{Filter: Filter{Name: t.Name}}, form: formRecord, overflow: DropNewest,
			limit: int32(s.config.Limits.Queue),
		}
		fresh, err := p.addRecord(sub)
		if err != nil || !fresh {
			return err
		}
		if err = s.join(c, sub); err != nil {
			p.remove(sub)
		}
		return err
	}())
}

func (s *Server) handleRecordUnsubscribe(c *arpc.Context) {
	answer(c, nil, func() error {
		t, err := parseRecord(c.Body())
		if err == nil {
			err = s.authed(c.Client)
		}
		if err != nil {
			return err
		}
		p := s.peerOf(c.Client)
		p.mu.Lock()
		sub := p.records[t.Name]
		delete(p.records, t.Name)
		p.mu.Unlock()
		s.removed(sub)
		return nil
	}())
}

// removed ends a subscription that the peer does not know any more; nil for none.
func (s *Server) removed(sub *subscriber) {
	if sub != nil {
		s.counters.subscriptions.Add(-1)
		sub.close()
	}
}

func (s *Server) handleRecordPublish(c *arpc.Context, toOne bool) {
	answer(c, nil, func() error {
		t, err := parseRecord(c.Body())
		if err == nil {
			err = s.allowed(c, ActionPublish, t.Name)
		}
		if err != nil {
			return err
		}
		m := &Message{Topic: t.Name, Data: append([]byte{}, t.Data...), Timestamp: t.Timestamp, ToOne: toOne}
		_, err = s.publish(c, m, "")
		return err
	}())
}

func (s *Server) handlePublish(c *arpc.Context) {
	r, err := func() (Receipt, error) {
		p, err := parsePublication(c.Body())
		if err == nil {
			err = checkName(p.topic)
		}
		if err == nil && hasWildcard(p.topic) {
			err = errWildcardTopic
		}
		if err == nil {
			err = s.allowed(c, ActionPublish, p.topic)
		}
		if err != nil {
			return Receipt{}, err
		}
		m := &Message{Topic: p.topic, Data: append([]byte{}, p.data...), Key: p.key, Timestamp: now(), ToOne: p.toOne}
		return s.publish(c, m, p.id)
	}()
	if c.Message.Cmd() == arpc.CmdRequest {
		answer(c, r.append(nil), err)
	}
}

// maxRequest is the longest request in JSON, without what a member says about itself.
const maxRequest = 128 << 10

// unmarshal decodes the JSON of a request.
func (s *Server) unmarshal(b []byte, v any) error {
	if limit := maxRequest + s.config.Limits.Info; len(b) > limit {
		return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: fmt.Sprintf("request of %d bytes, the limit is %d", len(b), limit)}
	}
	if err := json.Unmarshal(b, v); err != nil {
		return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "malformed request: " + err.Error()}
	}
	return nil
}

// handleSubscribe subscribes. The answer goes out before the first event.
func (s *Server) handleSubscribe(c *arpc.Context) {
	var req subscribeRequest
	err := s.unmarshal(c.Body(), &req)
	if err == nil {
		err = s.subscribe(c, &req)
	}
	if err != nil {
		answer(c, nil, err)
	}
}

func (s *Server) subscribe(c *arpc.Context, req *subscribeRequest) error {
	f, err := newFilter(req.Topic)
	if err != nil {
		return err
	}
	overflow, err := parseOverflow(req.Overflow)
	if err != nil {
		return err
	}
	can, single := s.can, !f.Wildcard && req.Group == ""
	var config TopicConfig
	if !f.Wildcard {
		config = s.topicConfig(f.Name)
	}
	invalid := func(text string) error { return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: text} }
	switch {
	case len(req.Group) > MaxTopicNameLen:
		return invalid("the name of the group is too long")
	case f.Wildcard && !can.Wildcards:
		return errCapability(can.Name, "wildcards")
	case req.Group != "" && !can.Groups:
		return errCapability(can.Name, "queue groups")
	case !single && (req.From != nil || req.Last > 0):
		return invalid("a pattern or a queue group has no history")
	case !single && (req.Join || req.Presence):
		return invalid("a pattern or a queue group has no presence")
	case config.history() > 0 && !can.History:
		return errCapability(can.Name, "history")
	case (req.Join || req.Presence) && !can.Presence:
		return errCapability(can.Name, "presence")
	case (req.Join || req.Presence) && !config.Presence:
		return &arpc.Error{Code: arpc.CodeFailedPrecondition, Message: "the topic has no presence"}
	case len(req.Info) > s.config.Limits.Info:
		return invalid(fmt.Sprintf("presence information of %d bytes, the limit is %d", len(req.Info), s.config.Limits.Info))
	}
	if err = s.allowed(c, ActionSubscribe, f.Name); err != nil {
		return err
	}
	if req.Join || req.Presence {
		if err = s.allowed(c, ActionPresence, f.Name); err != nil {
			return err
		}
	}
	p := s.peerOf(c.Client)
	sub := &subscriber{
		peer: p, key: channelKey{Filter: f, group: req.Group}, token: req.Token, form: formEvent, overflow: overflow, presence: req.Presence,
		limit: int32(s.config.Limits.Queue), slow: &backlog{starting: true},
	}
	if req.Queue > 0 {
		sub.limit = min(sub.limit, int32(min(req.Queue, 1<<20)))
	}
	old, err := p.add(sub)
	s.removed(old) // before the new one begins, as messages would come twice
	if err != nil {
		return err
	}
	if err = s.join(c, sub); err != nil {
		p.remove(sub)
		return err
	}
	reply, page, err := s.catchUp(c, req, config, single)
	if err == nil && req.Join {
		reply.Member, err = s.present(c, sub, f.Name, req.Info)
	}
	if err != nil {
		p.remove(sub)
		return err
	}
	body, err := json.Marshal(reply)
	answer(c, body, err)
	sub.begin([]*arpc.Message{startFrame(sub.ch.id, sub.token, reply.Recovered, reply.Position)}, page)
	return nil
}

// catchUp finds out what a subscription begins with. It is asked after the subscription is known to the channel, so that nothing
// is between.
func (s *Server) catchUp(c *arpc.Context, req *subscribeRequest, config TopicConfig, single bool) (r subscribeReply, p Page, err error) {
	if !single || config.history() == 0 {
		return r, p, nil
	}
	q := Query{Limit: -1, Topic: config}
	switch {
	case req.From != nil && !req.From.IsZero():
		q.From, q.Limit = *req.From, 0
	case req.Last > 0:
		q.Limit = req.Last
	case config.LastValue:
		q.Limit = 1
	}
	if p, err = s.engine.History(c, req.Topic, q); err != nil {
		return r, p, err
	}
	switch {
	case q.From.IsZero():
	case p.Complete:
		r.Recovered = true
	case q.From.Epoch == p.Top.Epoch && q.From.Offset > p.Top.Offset:
		p.Messages = nil // it has had more than there is: a history that was put back
	}
	r.Position = p.Top
	if len(p.Messages) > 0 {
		r.Position = p.Messages[0].Position
		r.Offset--
	}
	return r, p, nil
}

// present makes a subscriber a member of its topic.
func (s *Server) present(ctx context.Context, sub *subscriber, topic string, info []byte) (id string, err error) {
	id = s.node + "-" + strconv.FormatUint(s.members.Add(1), 10)
	leave, err := s.engine.Join(ctx, topic, Member{ID: id, Info: append([]byte(nil), info...)})
	if err != nil {
		return "", err
	}
	sub.mu.Lock()
	closed := sub.closed
	if !closed {
		sub.leave = leave
	}
	sub.mu.Unlock()
	if closed {
		leave()
		return "", arpc.ErrClientStopped
	}
	return id, nil
}

func (s *Server) handleUnsubscribe(c *arpc.Context) {
	answer(c, nil, func() error {
		var req unsubscribeRequest
		if err := s.unmarshal(c.Body(), &req); err != nil {
			return err
		}
		if err := s.authed(c.Client); err != nil {
			return err
		}
		p := s.peerOf(c.Client)
		p.mu.Lock()
		sub := p.takeLocked(req.Token)
		p.mu.Unlock()
		s.removed(sub)
		return nil
	}())
}

func (s *Server) handleHistory(c *arpc.Context) {
	var body []byte
	err := func() error {
		var req historyRequest
		if err := s.unmarshal(c.Body(), &req); err != nil {
			return err
		}
		if err := checkName(req.Topic); err != nil {
			return err
		}
		if err := s.allowed(c, ActionHistory, req.Topic); err != nil {
			return err
		}
		q := Query{Limit: req.Limit}
		if req.From != nil {
			q.From = *req.From
		}
		p, err := s.History(c, req.Topic, q)
		if err != nil {
			return err
		}
		size, limit := 0, s.config.Limits.HistoryBytes
		fits := func(m *Message) bool { size += m.size(); return size <= limit }
		if n := len(p.Messages); q.From.IsZero() { // the last ones are wanted
			i := n
			for i > 0 && fits(p.Messages[i-1]) {
				i--
			}
			p.Messages = p.Messages[i:]
		} else {
			i := 0
			for i < n && fits(p.Messages[i]) {
				i++
			}
			p.Messages = p.Messages[:i]
		}
		body = p.append(nil)
		return nil
	}()
	answer(c, body, err)
}

func (s *Server) handleMembers(c *arpc.Context) {
	var body []byte
	err := func() error {
		var req membersRequest
		if err := s.unmarshal(c.Body(), &req); err != nil {
			return err
		}
		if err := checkName(req.Topic); err != nil {
			return err
		}
		if err := s.allowed(c, ActionPresence, req.Topic); err != nil {
			return err
		}
		members, err := s.Members(c, req.Topic)
		if err != nil {
			return err
		}
		list := make([]wireMember, 0, len(members))
		for _, m := range members {
			list = append(list, wireMember{m.ID, m.Info})
		}
		body, err = json.Marshal(list)
		return err
	}()
	answer(c, body, err)
}

// Revoke ends the subscriptions to topics, and patterns, for which again returns an error, with that error: for when what
// Authorize goes by has changed. Clients are told and do not subscribe again.
func (s *Server) Revoke(again func(c *arpc.Client, topic string) error) {
	s.mu.Lock()
	peers := make([]*peer, 0, len(s.peers))
	for _, p := range s.peers {
		peers = append(peers, p)
	}
	s.mu.Unlock()
	for _, p := range peers {
		p.mu.Lock()
		all := slices.Clone(p.subs)
		for _, sub := range p.records {
			all = append(all, sub)
		}
		p.mu.Unlock()
		for _, sub := range all {
			err := again(p.client, sub.key.Name)
			if err == nil {
				continue
			}
			if !p.remove(sub) {
				continue
			}
			if sub.form == formEvent {
				if arpc.CodeOf(err) == arpc.CodeUnknown {
					err = &arpc.Error{Code: arpc.CodePermissionDenied, Message: err.Error()}
				}
				p.client.PushMsg(endedFrame(sub.token, err), arpc.TimeZero) //nolint:errcheck // told as far as possible
			}
		}
	}
}
