package arpc

import (
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/frame"
	"github.com/arpc-go/arpc/internal/work"
)

// A link is the RPC on one connection: the calls in flight and the way of frames to handlers and back. A Client has one
// at a time, an accepted Client one for good. Everything below "guarded" is guarded by core.Conn.Lock.
type link struct {
	cn     *core.Conn
	client *Client
	rpc    *rpc
	x      atomic.Pointer[linkExtra] // nil until needed; set under the lock
	feat   atomic.Uint32             // features of both ends; 0 for version 1

	// guarded
	gate  gate
	seq   uint64
	table *callTable // nil before the first call
	peer  peerHello  // zero for version 1
}

// gate says what keeps this end from calling, and the peer from being served.
type gate uint8

const (
	gateDown     gate = 1 << iota // the connection is gone
	gateGreeting                  // the HELLO or the authentication is not answered: calls wait
	gateGoing                     // the peer is going away: nothing new is begun
	gateLocked                    // the peer has not authenticated itself: it is refused
)

// linkExtra is what only some connections need. It is guarded as the link is, but for what says otherwise.
type linkExtra struct {
	hook     *core.Turn    // the connected hook's, until somebody waits in a call
	greeted  chan struct{} // closed when the HELLO is answered; only of an end that dials
	ready    chan struct{} // closed when gateGreeting is gone or the connection is
	going    error         // why the peer goes away, or has gone
	farewell *Error        // what the peer said when it closed
	draining atomic.Bool   // the pong after our drain is missing

	asked    map[uint64]*Context // by sequence number: handlers that want to know when to stop
	canceled canceledSet
	later    map[string]int // requests that will be answered later, by method
	streams  *linkStreams
	coders   atomic.Pointer[[]string] // names of those that the peer has used
	after    []*func()                // of AfterConn

	lockTimer *time.Timer // ends a connection that does not authenticate itself; may be nil
	principal any         // guarded by mu
	mu        sync.Mutex
}

// extraLocked returns the rare part. The caller holds the lock.
func (l *link) extraLocked() *linkExtra {
	x := l.x.Load()
	if x == nil {
		x = &linkExtra{}
		l.x.Store(x)
	}
	return x
}

// callTable holds the calls in flight; guarded as the link is.
type callTable struct {
	slots    []slot // index is seq modulo its length, a power of two; at most half full
	earliest int64  // when timer fires, or 0
	timer    *time.Timer
}

type slot struct {
	seq  uint64
	call *call
}

// A call is one call in flight. Whoever takes it out of the table under the lock ends it, once.
type call struct {
	done     chan struct{} // has room for one
	want     want
	deadline int64 // nanoseconds since epoch, 0 for none
	err      error
	bytes    []byte
	text     string
	frame    *buf.Buf      // payload for the codec
	meta     metadataBlock // of the answer, if wanted
	wantMeta bool
	callback func(*Context)
}

// want says what form the caller wants the payload in, so that it is copied once.
type want uint8

const (
	wantNothing want = iota
	wantBytes
	wantText
	wantValue
)

var callPool = sync.Pool{New: func() any { return &call{done: make(chan struct{}, 1)} }}

func (c *call) free() {
	*c = call{done: c.done}
	callPool.Put(c)
}

// epoch is what times are counted from, so that they fit a word.
var epoch = time.Now()

func now() int64 { return int64(time.Since(epoch)) }

// add puts a call into the table and returns its sequence number.
func (l *link) add(c *call) uint64 {
	if l.table == nil {
		l.table = &callTable{}
	}
	t := l.table
	if 2*(l.cn.Calls+1) > len(t.slots) {
		t.grow()
	}
	mask := uint64(len(t.slots) - 1)
	for {
		l.seq++
		if s := &t.slots[l.seq&mask]; s.call == nil {
			*s = slot{l.seq, c}
			l.cn.Calls++
			return l.seq
		}
	}
}

func (t *callTable) grow() {
	old := t.slots
	t.slots = make([]slot, max(8, 2*len(old)))
	mask := uint64(len(t.slots) - 1)
	for _, s := range old {
		if s.call != nil {
			t.slots[s.seq&mask] = s
		}
	}
}

// take removes the call with a sequence number from the table and returns it, nil if there is none.
func (l *link) take(seq uint64) *call {
	if l.table == nil || len(l.table.slots) == 0 {
		return nil
	}
	s := &l.table.slots[seq&uint64(len(l.table.slots)-1)]
	if s.call == nil || s.seq != seq {
		return nil
	}
	c := s.call
	*s = slot{}
	l.cn.Calls--
	return c
}

// schedule makes sure that the timer fires at deadline or before. One timer per connection serves all of its calls: it is
// set again only for a call that ends before all others.
func (l *link) schedule(deadline int64) {
	t := l.table
	if t.earliest != 0 && t.earliest <= deadline {
		return
	}
	t.earliest = deadline
	d := time.Duration(deadline - now())
	if t.timer == nil {
		t.timer = time.AfterFunc(d, l.expire)
	} else {
		t.timer.Reset(d)
	}
}

// expire ends the calls whose time is up.
func (l *link) expire() {
	var expired []*call
	l.cn.Lock()
	if l.gate&gateDown != 0 {
		l.cn.Unlock()
		return
	}
	t, next := now(), int64(0)
	for i := range l.table.slots {
		s := &l.table.slots[i]
		if s.call == nil || s.call.deadline == 0 {
			continue
		}
		if s.call.deadline <= t {
			expired = append(expired, s.call)
			*s = slot{}
			l.cn.Calls--
		} else if next == 0 || s.call.deadline < next {
			next = s.call.deadline
		}
	}
	l.table.earliest = 0
	if next != 0 {
		l.schedule(next)
	}
	l.cn.Unlock()
	l.fail(expired, ErrTimeout)
}

// fail ends calls that were taken out of the table.
func (l *link) fail(calls []*call, err error) {
	var cbs *callbacks
	for _, c := range calls {
		c.err = err
		if c.callback == nil {
			c.done <- struct{}{}
			continue
		}
		if cbs == nil {
			cbs = &callbacks{link: l}
		}
		cbs.list = append(cbs.list, callbackOf{call: c})
	}
	if cbs != nil {
		work.Go(cbs)
	}
}

// callbacks runs the callbacks of CallAsyncs that ended together, one after the other.
type callbacks struct {
	link *link
	in   *core.Input // holds the frames
	list []callbackOf
}

type callbackOf struct {
	call   *call
	frame  []byte
	values map[any]any
}

var callbackPool = sync.Pool{New: func() any { return new(callbacks) }}

// RunTask implements work.Task.
func (cbs *callbacks) RunTask() {
	l := cbs.link
	l.cn.Defer()
	var ctx *Context
	for i := range cbs.list {
		cb := &cbs.list[i]
		if ctx == nil {
			ctx = newContext()
			ctx.Client, ctx.link, ctx.mode = l.client, l, modeCallback
		}
		if ctx.callback(cb); ctx.reusable(stateUsed) {
			ctx.reuse()
		} else {
			ctx = nil
		}
		*cb = callbackOf{}
	}
	l.cn.EndDefer()
	if cbs.in != nil {
		cbs.in.Release()
	}
	*cbs = callbacks{list: cbs.list[:0]}
	callbackPool.Put(cbs)
}

// callback runs the callback of one CallAsync.
func (c *Context) callback(cb *callbackOf) {
	call := cb.call
	c.err = call.err
	c.turn.Detached()
	if cb.frame == nil {
		cb.frame = failedFrame
	}
	c.msg = Message{Buffer: cb.frame, values: cb.values}
	c.Message = &c.msg
	f := call.callback
	call.free()
	c.Client.safely("callback", func() { f(c) })
	c.msg.Buffer = failedFrame
}

// failedFrame stands for the answer of a call that has none, and for one that is no longer valid.
var failedFrame = newMessage(CmdResponse, 0, 0, "", nil, nil).Buffer

// reply sends the answer of a request. An error of the codec has no Code.
func (l *link) reply(c *Context, flag byte, v any) error {
	req := c.msg.Buffer
	method := req[HeadLen : HeadLen+int(req[indexMethodLen])]
	urgency, yield := core.Now, false
	switch {
	case c.mode == modeOrdered && c.state.Load()&stateLater == 0:
		urgency = core.Answer
	case c.mode == modeAsync && c.grouped:
		urgency = core.Soon
	case c.mode == modeAsync:
		yield = true
	}
	var md metadataBlock
	ext := 0
	if x := c.rare.Load(); x != nil && l.has(featMetadata) {
		if md = x.outgoing(); md != nil {
			flag |= flagMetadata
			ext = 2 + len(md)
		}
	}
	if x := l.x.Load(); x != nil && x.canceled.n.Load() > 0 {
		l.cn.Lock()
		x.canceled.remove(c.msg.Seq())
		l.cn.Unlock()
	}
	cc := c.codec()
	if coders := c.Client.Handler.load().coders; len(coders) > 0 {
		payload, err := codec.AppendValue(make([]byte, ext), cc, v)
		if err != nil {
			return err
		}
		putExtension(payload, flag, 0, md)
		m := newMessage(CmdResponse, flag, c.msg.Seq(), string(method), payload, c.msg.values)
		if m, err = encodeAll(coders, l, m); err != nil {
			return err
		}
		return l.send(m, urgency)
	}
	var scratch *buf.Buf
	raw, text, ok := rawValue(v)
	if !ok {
		var err error
		if scratch, raw, err = encode(cc, v); err != nil {
			return err
		}
		defer scratch.Free()
	}
	n := HeadLen + len(method) + ext + len(raw) + len(text)
	l.cn.Lock()
	if err := l.cn.CanSend(); err != nil {
		l.cn.Unlock()
		return lostError(l.client.lostKind(), err)
	}
	if n > checkedBody && l.feat.Load() != 0 && n-HeadLen > int(l.peer.Value().maxBody) {
		l.cn.Unlock()
		return errTooLarge
	}
	b := l.cn.ReserveAnswer(n)
	copy(b, req[:HeadLen]) // sequence number and method length are the request's
	b[0], b[1], b[2], b[3] = byte(n-HeadLen), byte((n-HeadLen)>>8), byte((n-HeadLen)>>16), byte((n-HeadLen)>>24)
	b[indexReserved], b[indexCmd], b[indexFlag] = 0, CmdResponse, flag
	b = b[HeadLen:]
	b = b[copy(b, method):]
	if ext > 0 {
		b = putExtension(b, flag, 0, md)
	}
	copy(b, raw)
	copy(b, text)
	l.cn.Commit(urgency, yield)
	return nil
}

// send sends a frame that is complete, whatever the queue holds.
func (l *link) send(m *Message, urgency core.Urgency) error {
	l.cn.Lock()
	if err := l.cn.CanSend(); err != nil {
		l.cn.Unlock()
		return lostError(l.client.lostKind(), err)
	}
	if m.Cmd() == CmdResponse {
		copy(l.cn.ReserveAnswer(len(m.Buffer)), m.Buffer)
	} else {
		copy(l.cn.Reserve(len(m.Buffer)), m.Buffer)
	}
	l.cn.Commit(urgency, false)
	return nil
}

// rawValue returns the payload of a value that is sent as it is, and whether v is one.
func rawValue(v any) (raw []byte, text string, ok bool) {
	switch v := v.(type) {
	case nil:
		return nil, "", true
	case []byte:
		return v, "", true
	case string:
		return nil, v, true
	case *[]byte:
		if v != nil {
			raw = *v
		}
		return raw, "", true
	case *string:
		if v != nil {
			text = *v
		}
		return nil, text, true
	}
	return nil, "", false
}

// encode encodes a value into a buffer that the caller frees.
func encode(c codec.Codec, v any) (*buf.Buf, []byte, error) {
	b := buf.Get(512)
	p, err := codec.AppendValue(b.B, c, v)
	if err != nil {
		b.Free()
		return nil, nil, err
	}
	return b, p, nil
}

// encodeAll runs the coders over m, which they may change: of those that have a name only what the peer has too, if it knows
// version 2 of the protocol.
func encodeAll(coders []MessageCoder, l *link, m *Message) (*Message, error) {
	for _, coder := range coders {
		if n, ok := coder.(interface{ Name() string }); ok && !l.decodes(n.Name()) {
			continue
		}
		if m = coder.Encode(l.client, m); m == nil || len(m.Buffer) < HeadLen {
			return nil, errEncode
		}
	}
	return m, nil
}

// decodes reports whether the peer can be sent what a coder with a name makes: it has said or used the name, or knows no names.
func (l *link) decodes(coder string) bool {
	l.cn.Lock()
	peer := l.peer
	l.cn.Unlock()
	return peer == (peerHello{}) || peer.Value().knows(coderPrefix+coder) || l.hasUsed(coder)
}

// used remembers that the peer has a coder: it may have got it after its HELLO.
func (l *link) used(name string) {
	if l.hasUsed(name) {
		return
	}
	l.cn.Lock()
	defer l.cn.Unlock()
	x := l.extraLocked()
	var names []string
	if old := x.coders.Load(); old != nil {
		names = *old
	}
	names = append(names[:len(names):len(names)], name)
	x.coders.Store(&names)
}

func (l *link) hasUsed(name string) bool {
	x := l.x.Load()
	if x == nil {
		return false
	}
	names := x.coders.Load()
	return names != nil && slices.Contains(*names, name)
}

// rpc is the core.App of clients and servers.
type rpc struct {
	// open makes the Client that a new connection belongs to.
	open func(cn *core.Conn) *link
	// down and close tell the owner.
	down  func(l *link, err error)
	close func(l *link, err error)
	// Limits, see Limits. maxCalls is the number of calls in flight per connection.
	maxCalls, maxMetadata, maxStreams, window, connWindow int
	// timeout is that of a call that is given none, greeting that of HELLO and authentication.
	timeout, greeting time.Duration
	// version is the highest version of the protocol that is offered.
	version int
	// draining says that requests are to be refused.
	draining atomic.Bool
}

var errFrame = errors.New("malformed frame")

// Open implements core.App.
func (r *rpc) Open(cn *core.Conn) error {
	l := r.open(cn)
	cn.User = l
	if o := l.client.Handler.load().observer; o != nil {
		l.client.safely("Observer", func() { o.ConnOpened(l.client) })
	}
	if l.client.dial != nil && r.version >= protocolVersion {
		l.sendHello()
	}
	return nil
}

// Opened is core.Config.Opened.
func (r *rpc) Opened(cn *core.Conn, t *core.Turn) {
	l := cn.User.(*link)
	h := l.client.Handler.connectedHook(l.client)
	if h == nil {
		return
	}
	cn.Lock()
	x := l.extraLocked()
	x.hook = t
	cn.Unlock()
	l.client.safely("connected hook", func() { h(l.client) })
	cn.Lock()
	x.hook = nil
	cn.Unlock()
}

// Batch implements core.App.
func (r *rpc) Batch(cn *core.Conn, in *core.Input) error {
	b := batch{l: cn.User.(*link), in: in}
	b.state = b.l.client.Handler.load()
	b.draining = r.draining.Load()
	if x := b.l.x.Load(); x != nil && x.lockTimer != nil {
		b.locked = b.l.locked()
	}
	defer b.finish() // also after a panic of a coder or hook: what was answered before it has its end
	return b.run()
}

// finish ends the calls whose answers the batch has brought.
func (b *batch) finish() {
	b.deliver()
	if b.greeted { // after the other frames, which may say that the connection is of no use
		close(b.l.x.Load().greeted)
	}
	if b.async != nil {
		b.async.start()
	}
	if b.callbacks != nil {
		b.in.Retain()
		b.callbacks.in = b.in
		work.Go(b.callbacks)
		b.in.Woke(1)
	}
}

// batch handles the frames of one read.
type batch struct {
	l        *link
	in       *core.Input
	state    *muxState
	draining bool
	locked   bool
	greeted  bool // the HELLO was answered

	responses [32]response // not yet delivered, in order
	n         int
	callbacks *callbacks
	async     *asyncGroup // not yet started
}

// response is a received answer: its frame, and the message if coders have made it.
type response struct {
	frame []byte
	msg   *Message
}

func (b *batch) run() error {
	for {
		frame, err := b.in.Next()
		if err != nil || frame == nil {
			return err
		}
		if h := b.state.beforeRecv; h != nil {
			if err := h(b.l.client.Conn); err != nil {
				return err
			}
		}
		switch frame[indexCmd] & cmdMask { // before the coders, as these two never pass one
		case CmdPing:
			if len(frame) == HeadLen {
				b.l.pong(pongFrame)
			} else if err := b.l.ping(frame); err != nil {
				return err
			}
			continue
		case CmdPong:
			if b.greeted {
				continue
			}
			var err error
			if b.greeted, err = b.l.ponged(frame); err != nil {
				return err
			}
			continue
		}
		var msg *Message
		if len(b.state.coders) > 0 {
			if msg = b.decode(frame); msg == nil {
				return errFrame
			}
			frame = msg.Buffer
		}
		if err := b.handle(frame, msg); err != nil {
			return err
		}
	}
}

// decode runs the coders over a copy of the frame. It returns nil if the result is not a frame.
func (b *batch) decode(frame []byte) *Message {
	m := &Message{Buffer: append(make([]byte, 0, len(frame)), frame...), plain: b.l.feat.Load() == 0}
	for i := len(b.state.coders) - 1; i >= 0; i-- {
		coder, before := b.state.coders[i], m
		m = coder.Decode(b.l.client, m)
		if n, ok := coder.(interface{ Name() string }); ok && m != before && m != nil {
			b.l.used(n.Name())
		}
		if m == nil || len(m.Buffer) < HeadLen || m.BodyLen() != len(m.Buffer)-HeadLen {
			return nil
		}
	}
	return m
}

// handle handles one frame. msg is the frame's if coders have made it, otherwise nil.
func (b *batch) handle(frame []byte, msg *Message) error {
	if flag := frame[indexFlag]; flag&^flagsV1 != 0 {
		if b.l.feat.Load() == 0 { // version 1 ignores these flags
			frame[indexFlag] &= flagsV1
		} else if validMethod(frame) {
			if err := checkExtension(frame, b.l.rpc.maxMetadata); err != nil {
				return err
			}
		}
	}
	switch frame[indexCmd] & cmdMask {
	case CmdResponse:
		if !validMethod(frame) {
			b.l.cn.Group().Stats.ProtocolErrors.Add(1)
			return nil
		}
		if b.n == len(b.responses) {
			b.deliver()
		}
		b.responses[b.n] = response{frame, msg}
		b.n++
		return nil
	case CmdRequest, CmdNotify:
		return b.request(frame, msg)
	case CmdStream:
		return b.l.streamFrame(b, frame)
	case cmdCancel:
		if b.l.has(featCancel) {
			return b.l.cancelFrame(frame)
		}
	case cmdCredit, cmdReset:
		if b.l.has(featStreams) {
			return b.l.streamControl(frame)
		}
	case cmdGoAway:
		if b.l.has(featGoAway) {
			return b.l.goAwayFrame(frame)
		}
	}
	return errFrame
}

func validMethod(frame []byte) bool {
	n := int(frame[indexMethodLen])
	return n >= 1 && n <= MaxMethodLen && n <= len(frame)-HeadLen
}

// deliver ends the calls that are answered. All of them are looked up under one lock.
func (b *batch) deliver() {
	if b.n == 0 {
		return
	}
	l := b.l
	var calls [len(b.responses)]*call
	l.cn.Lock()
	for i, r := range b.responses[:b.n] {
		calls[i] = l.take((&Message{Buffer: r.frame}).Seq())
	}
	l.cn.Unlock()
	n := b.n
	b.n = 0
	for i, r := range b.responses[:n] {
		c, frame := calls[i], r.frame
		b.responses[i] = response{}
		switch {
		case c == nil:
			l.cn.Group().Stats.ProtocolErrors.Add(1)
			if h := b.state.sessionMiss; h != nil {
				l.client.safely("session-miss hook", func() {
					h(l.client, &Message{Buffer: append([]byte(nil), frame...), values: r.msg.Values()})
				})
			}
		case c.callback != nil:
			if b.callbacks == nil {
				b.callbacks = callbackPool.Get().(*callbacks)
				b.callbacks.link = l
			}
			b.callbacks.list = append(b.callbacks.list, callbackOf{c, frame, r.msg.Values()})
		default:
			c.finish(frame, l.client.Codec)
			b.in.Woke(1)
		}
	}
}

// finish ends a call with its answer.
func (c *call) finish(frame []byte, cc codec.Codec) {
	payload := frame[HeadLen+int(frame[indexMethodLen])+extensionLen(frame):]
	if c.wantMeta {
		c.meta = append(metadataBlock(nil), metadataIn(frame)...)
	}
	switch {
	case frame[indexFlag]&flagError != 0:
		c.err = errorIn(frame, cc)
	case c.want == wantBytes:
		c.bytes = append(make([]byte, 0, len(payload)), payload...)
	case c.want == wantText:
		c.text = string(payload)
	case c.want == wantValue:
		c.frame = buf.Get(len(payload))
		c.frame.B = append(c.frame.B, payload...)
	}
	c.done <- struct{}{}
}

// request handles a request or a notification. One that nobody can be told of that there is no room for it closes the connection, as it must not
// be lost silently.
func (b *batch) request(frame []byte, msg *Message) error {
	l := b.l
	isRequest := frame[indexCmd]&cmdMask == CmdRequest
	var values map[any]any
	if msg != nil {
		values = msg.values
	}
	if !validMethod(frame) {
		l.cn.Group().Stats.ProtocolErrors.Add(1)
		if isRequest && len(frame) > HeadLen && frame[indexMethodLen] > 0 {
			n := min(len(frame)-HeadLen, int(frame[indexMethodLen]), MaxMethodLen)
			bad := append([]byte(nil), frame[:HeadLen+n]...)
			bad[indexMethodLen] = byte(n)
			bad[indexFlag] &= flagsV1                                                      // what follows the method is not there
			l.requestContext(&route{mode: modeInline}, bad, nil).answer(nil, errBadMethod) //nolint:errcheck // the peer's problem
		}
		return nil
	}
	if b.locked && !isAuth(frame) {
		if isRequest {
			l.requestContext(&route{mode: modeInline}, frame, values).answer(nil, Refused(errNoAuth)) //nolint:errcheck // as above
		}
		return nil
	}
	if b.draining {
		if isRequest {
			l.requestContext(&route{mode: modeInline}, frame, values).answer(nil, Refused(errDraining)) //nolint:errcheck // as above
		}
		return nil
	}
	r := b.state.routes[string(frame[HeadLen:HeadLen+int(frame[indexMethodLen])])]
	if r == nil {
		if isRequest {
			r = b.state.notFound
		} else {
			return nil
		}
	}
	switch r.mode {
	case modeOrdered:
		var tag any = r
		if msg != nil {
			tag = &decoded{r, msg}
		}
		if frame[indexFlag]&flagDeadline != 0 {
			b.in.Stamp(now)
		}
		if b.in.Ordered(r.cost.isSlow(), tag) {
			return nil
		}
	case modeAsync:
		l.cn.Lock()
		ok := l.cn.Hold()
		l.cn.Unlock()
		if ok {
			fb := buf.Get(len(frame))
			fb.B = append(fb.B, frame...)
			ctx := l.requestContext(r, fb.B, values)
			ctx.startedAt(0)
			ctx.frame, ctx.async = fb, r.async
			r.async.Add(1)
			ctx.turn.Detached()
			b.in.Woke(1)
			if r.cost.isSlow() {
				work.Go((*asyncRequest)(ctx))
				return nil
			}
			if b.async == nil {
				b.async = asyncGroups.Get().(*asyncGroup)
				b.async.link = l
			}
			if b.async.add(ctx) {
				b.async.start()
				b.async = nil
			}
			return nil
		}
	default:
		ctx := l.requestContext(r, frame, values)
		ctx.startedAt(0)
		ctx.turn.Detached()
		ctx.run()
		if ctx.state.Load()&stateLater == 0 {
			ctx.msg.Buffer = deadFrame
		}
		return nil
	}
	if !isRequest { // too many in line
		return errTooMany
	}
	l.requestContext(&route{mode: modeInline}, frame, values).answer(nil, Refused(errTooMany)) //nolint:errcheck // as above
	return nil
}

// decoded is the tag of an ordered frame that coders have changed.
type decoded struct {
	r *route
	m *Message
}

// Run implements core.App.
func (r *rpc) Run(cn *core.Conn, in *core.Input, frame []byte, tag any) *core.Turn {
	l := cn.User.(*link)
	ctx, _ := in.Scratch.(*Context)
	if ctx == nil {
		ctx = newContext()
	} else {
		in.Scratch = nil
		ctx.reuse()
	}
	rt, ok := tag.(*route)
	if ok {
		l.fill(ctx, rt, frame, nil)
	} else {
		d := tag.(*decoded)
		rt = d.r
		l.fill(ctx, rt, d.m.Buffer, d.m.values)
	}
	ctx.startedAt(in.Stamped())
	if x := l.x.Load(); x != nil && x.canceled.has(l, ctx.msg.Buffer) {
		ctx.answer(nil, errCanceledEarly) //nolint:errcheck // there is nobody to tell
	} else if rt.cost.sample() {
		start := now()
		ctx.run()
		rt.cost.took(now()-start, slowAfter)
	} else {
		ctx.run()
	}
	if ctx.state.Load()&stateLater == 0 {
		ctx.msg.Buffer = deadFrame
	}
	if !ctx.turn.Finish() {
		return &ctx.turn
	}
	if ctx.reusable(stateAnswered) {
		in.Scratch = ctx
	}
	return nil
}

// Down implements core.App: every call ends now.
func (r *rpc) Down(cn *core.Conn, err error) {
	l := cn.User.(*link)
	var calls []*call
	var asked []*Context
	var streams []*Stream
	var after []*func()
	cn.Lock()
	l.gate |= gateDown
	if t := l.table; t != nil {
		for i := range t.slots {
			if c := t.slots[i].call; c != nil {
				calls = append(calls, c)
			}
		}
		t.slots = nil
		if t.timer != nil {
			t.timer.Stop()
		}
	}
	cn.Calls = 0
	x := l.x.Load()
	if x != nil {
		if x.farewell != nil {
			err = x.farewell
			cn.Because(err)
		}
		for _, c := range x.asked {
			for ; c != nil; c = c.rare.Load().nextAsked {
				asked = append(asked, c)
			}
		}
		x.asked = nil
		after, x.after = x.after, nil
		x.stopLock()
		if x.streams != nil {
			streams = x.streams.all()
		}
		if x.ready != nil && l.gate&gateGreeting != 0 {
			x.going = err
			close(x.ready)
		}
	}
	cn.Unlock()
	r.down(l, err)
	lost := lostError(l.client.lostKind(), err)
	l.fail(calls, lost)
	for _, c := range asked {
		c.rare.Load().cancel(lost)
	}
	for _, s := range streams {
		s.lost(lost)
	}
	for _, f := range after {
		l.client.safely("function of AfterConn", *f)
	}
}

// Close implements core.App.
func (r *rpc) Close(cn *core.Conn, err error) {
	l := cn.User.(*link)
	if h := l.client.Handler.load().disconnected; h != nil {
		l.client.safely("disconnected hook", func() { h(l.client) })
	}
	if o := l.client.Handler.load().observer; o != nil {
		l.client.safely("Observer", func() { o.ConnClosed(l.client, err) })
	}
	r.close(l, err)
}

// pong answers a ping, or sends one, past the gate.
func (l *link) pong(frame []byte) {
	l.cn.Lock()
	if l.cn.CanSend() != nil {
		l.cn.Unlock()
		return
	}
	copy(l.cn.ReserveAnswer(len(frame)), frame)
	l.cn.Commit(core.Now, false)
}

// config returns the core's configuration for a handler's settings.
func (r *rpc) config(limits Limits, h Handler) core.Config {
	cfg := limits.core()
	cfg.Opened = r.Opened
	cfg.Split = frame.Length{Header: HeadLen, Max: h.MaxBodyLen}
	cfg.Logf = h.logf
	cfg.Probe = func(cn *core.Conn) { cn.User.(*link).pong(pingFrame) }
	cfg.Messages = h.SendQueueSize()
	cfg.Farewell = func(cn *core.Conn, err error) { cn.User.(*link).goAway(err, true) }
	return cfg
}

// limit sets the limits, before there is a connection.
func (r *rpc) limit(limits Limits) {
	r.maxCalls = limits.calls()
	r.maxMetadata, r.maxStreams = limits.metadata(), limits.streams()
	r.window, r.connWindow = limits.windows()
	r.timeout, r.greeting = limits.callTimeout(), limits.handshake()
}

var _ net.Conn = (*connView)(nil)
