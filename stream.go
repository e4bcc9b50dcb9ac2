package arpc

import (
	"context"
	"io"
	"iter"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/work"
	"github.com/arpc-go/arpc/log"
)

// A Stream is a sequence of messages in each direction, on one connection with calls and other streams. Either end opens
// it, with Client.NewStream or Client.OpenStream; at the other end the handler of Mux.HandleStream runs.
//
// Messages arrive whole and in order. What an end has not received yet is bounded by Limits.StreamWindow; the sender waits
// then, and nobody else. With a peer of version 1 of the protocol there is no such bound on its side: it stops reading the
// connection when four messages wait; on this side a stream whose messages are not received is reset beyond 32 MiB or 65,536
// messages. Such a peer cannot receive empty messages, knows no metadata and deadline of a stream, and sees the end of one that
// failed as an ordinary end.
//
// The methods may be called from any goroutine; messages sent, or received, by several at the same time are in no order.
type Stream struct {
	link   *link
	id     uint64
	method string
	local  bool        // this side opened it
	codec  codec.Codec // nil for the client's
	v2     bool        // by the rules of version 2; those of a stream that begins before HELLO are of version 1 to its end
	ctx    context.Context
	cancel context.CancelCauseFunc
	stop   context.CancelFunc // of the deadline, may be nil
	// observed tells an Observer of the end of a stream that this side has opened; nil for none, and afterwards.
	observed atomic.Pointer[func(*Stream)]
	// derived is what middleware has made of ctx, nil for ctx.
	derived atomic.Pointer[context.Context]
	frame   []byte        // the frame that opened it, up to its payload; nil on the side that did
	open    metadataBlock // to send with the first frame

	sending   chan struct{} // holds a token while somebody sends
	receiving chan struct{} // the same
	partial   *buf.Buf      // the beginning of a message; the receiver's

	recvWake, sendWake chan struct{} // have room for one

	// guarded by the connection's lock
	in       []chunk
	queued   int // bytes in it
	recvErr  error
	sendErr  error
	credit   int  // bytes that may be sent
	window   int  // bytes that the peer may send
	owed     int  // bytes that were received and not yet given back to the peer
	opened   bool // the first frame was sent
	discard  bool // what arrives is dropped
	recvEnd  bool // the peer sent its last frame
	over     bool // not in the table any more
	reset    bool // by this side
	credited bool // what waits counts as taken already
	deadline int64
	meta     metadataBlock // to send with the next frame, or received
	metaSent bool
	pays     bool // core.Conn.Paid is to be called in the end
}

// chunk is a received frame's payload.
type chunk struct {
	b    *buf.Buf // shared with neighbours if they are small
	p    []byte   // in it
	more bool     // the message goes on in the next
}

const (
	streamLocal = 0x80 // bit of the command: the sender opened the stream
	streamEOF   = 0x40 // bit of the command: the sender's last frame

	// maxStreamChunk is the number of payload bytes in a frame at most, so that streams and calls take turns.
	maxStreamChunk = 64 << 10
	// Bounds of what waits to be received from a peer that knows no flow control. They are above what arrives in a burst, as
	// such a peer cannot tell a reset from an ordinary end.
	maxUnreadV1, maxMessagesV1 = 32 << 20, 1 << 16
	// packBelow is the size, in bytes, below which payloads share buffers, packSize the size of those.
	packBelow, packSize = 2 << 10, 16 << 10
	// ownFrom is the size, in bytes, from which a whole message has memory of its own.
	ownFrom = 16 << 10
	// unreadBytes is what a message that waits counts at least, in bytes, against the bound on their number.
	unreadBytes = 8
)

var (
	errStreamOver    = &Error{Code: CodeCanceled, Message: "the stream is over"}
	errStreamSent    = &Error{Code: CodeFailedPrecondition, Message: "the stream was closed for sending"}
	errStreamUnread  = &Error{Code: CodeResourceExhausted, Message: "the stream's messages were not received"}
	errStreamFlow    = &Error{Code: CodeResourceExhausted, Message: "the peer sent more on a stream than it may"}
	errConnFlow      = &Error{Code: CodeResourceExhausted, Message: "the peer sent more on its streams than it may"}
	errStreamHandled = &Error{Code: CodeCanceled, Message: "the stream's handler has returned"}
	errStreams       = &Error{Code: CodeResourceExhausted, Message: "too many streams on the connection"}
	errNoStream      = &Error{Code: CodeUnimplemented, Message: "there is no such stream handler"}
	errStreamEmptyV1 = &Error{Code: CodeInvalidArgument, Message: "the peer's version of the protocol has no empty stream messages"}
	errWouldWait     = &Error{Code: CodeResourceExhausted, Message: "the peer has not received what was sent"}
	errStreamLarge   = &Error{Code: CodeResourceExhausted, Message: "stream message above the limit of the body length"}
	errGoingStream   = &Error{Code: CodeUnavailable, Message: "server is shutting down"}
)

// linkStreams holds the streams of a connection; guarded as the link is.
type linkStreams struct {
	ours, theirs map[uint64]*Stream
	credit       int // bytes that all together may send
	window       int // bytes that the peer may send on all together
	owed         int // bytes received and not yet given back

	// The right to wait for what all streams share, and who waits for it, in order: so they take turns, a frame each.
	taken   bool
	waiters []chan struct{}
	wake    chan struct{} // has room for one; credit has come
}

// streamsLocked returns the connection's streams.
func (l *link) streamsLocked() *linkStreams {
	x := l.extraLocked()
	if x.streams == nil {
		x.streams = &linkStreams{ours: map[uint64]*Stream{}, theirs: map[uint64]*Stream{}, wake: make(chan struct{}, 1),
			window: l.rpc.connWindow}
		if l.has(featStreams) {
			x.streams.credit = int(l.peer.Value().connWindow)
		}
	}
	return x.streams
}

func (ls *linkStreams) all() []*Stream {
	all := make([]*Stream, 0, len(ls.ours)+len(ls.theirs))
	for _, s := range ls.ours {
		all = append(all, s)
	}
	for _, s := range ls.theirs {
		all = append(all, s)
	}
	return all
}

func (l *link) newStream(method string, id uint64, local bool, deadline int64) *Stream {
	s := &Stream{
		link: l, id: id, method: method, local: local, deadline: deadline,
		sending: make(chan struct{}, 1), receiving: make(chan struct{}, 1),
		recvWake: make(chan struct{}, 1), sendWake: make(chan struct{}, 1),
		window: l.rpc.window,
	}
	if s.v2 = l.has(featStreams); s.v2 {
		s.credit = int(l.peer.Value().window)
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// HandleStream registers h for the streams of a method. It runs on a goroutine of its own; the stream ends when it returns. A
// message that was not received by then is lost, and the peer is told to send no more. The last argument is for programs
// that come from another arpc and has no effect. It panics for the same reasons as Handle.
func (m *Mux) HandleStream(method string, h func(*Stream), _ ...bool) {
	checkMethod(method, h == nil)
	m.change(func(s *muxState) {
		if _, ok := s.streams[method]; ok {
			panic("arpc: stream method " + method + " is registered already")
		}
		streams := make(map[string]*route, len(s.streams)+1)
		for name, r := range s.streams {
			streams[name] = r
		}
		chain := append(append([]HandlerFunc(nil), s.use...), func(c *Context) { h(c.Stream()) })
		streams[method] = &route{method: method, mode: modeStream, chain: chain}
		s.streams = streams
	})
}

// HandleStream registers a stream handler with DefaultHandler.
func HandleStream(method string, h func(*Stream), async ...bool) {
	DefaultHandler.HandleStream(method, h, async...)
}

// NewStream opens a stream without a deadline. The peer learns of it by the first message, CloseSend or Recv. It never fails: on
// a connection that is gone, or that has too many streams, its methods do.
func (c *Client) NewStream(method string) *Stream {
	s, err := c.OpenStream(context.Background(), method)
	if err == nil {
		return s
	}
	s = c.link.Load().newStream(method, 0, true, 0)
	s.over, s.recvErr, s.sendErr = true, err, err
	s.cancel(err)
	return s
}

// OpenStream opens a stream that ends at ctx's deadline and when ctx is cancelled, and carries the metadata of WithMetadata.
// The peer learns of it by the first message, CloseSend or Recv. Errors are those of CallWith, and CodeResourceExhausted when
// the peer takes no further stream.
func (c *Client) OpenStream(ctx context.Context, method string) (*Stream, error) {
	o := c.Handler.load().observer
	if o == nil {
		s, err := c.openStream(ctx, method, nil)
		return s, notSent(err)
	}
	info := CallInfo{Kind: KindStream, Method: method, Start: time.Now()}
	ctx = o.CallStarted(ctx, c, info)
	ended := func(s *Stream) { o.CallEnded(ctx, c, info, s.outcome()) }
	s, err := c.openStream(ctx, method, &ended)
	if err = notSent(err); err != nil {
		o.CallEnded(ctx, c, info, err)
	}
	return s, err
}

// openStream is OpenStream. observed is called when the stream is over.
func (c *Client) openStream(ctx context.Context, method string, observed *func(*Stream)) (*Stream, error) {
	if method == "" || len(method) > MaxMethodLen {
		return nil, ErrInvalidMethod
	}
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	opts := optionsOf(ctx)
	if opts.err != nil {
		return nil, opts.err
	}
	md := opts.block
	var deadline int64
	if t, ok := ctx.Deadline(); ok {
		deadline = now() + int64(time.Until(t))
	}
	sd := sending{client: c, ctx: ctx, done: ctx.Done(), timeout: c.link.Load().rpc.timeout, wait: true}
	giveUp := now() + int64(min(sd.timeout, TimeForever/2))
	for {
		l := c.link.Load()
		l.cn.Lock()
		if l.gate&(gateGreeting|gateGoing) != 0 {
			if err := sd.gated(l, giveUp); err != nil {
				return nil, err
			}
			continue
		}
		if err := l.cn.CanSend(); err != nil || l.gate&gateDown != 0 {
			if err == nil {
				err = l.cn.Err()
			}
			down := l.gate&gateDown != 0
			l.cn.Unlock()
			if err = sd.unavailable(giveUp, down, err); err != nil {
				return nil, err
			}
			continue
		}
		ls := l.streamsLocked()
		limit := l.rpc.maxStreams
		if l.has(featStreams) {
			limit = min(limit, int(l.peer.Value().streams))
		}
		if len(ls.ours) >= limit {
			l.cn.Unlock()
			return nil, errStreams
		}
		if l.has(featMetadata) && uint32(len(md)) > l.peer.Value().metadata {
			l.cn.Unlock()
			return nil, errMetadata("%d bytes", len(md))
		}
		if opts.codec != nil && !(l.has(featStreams) && l.decodesLocked(opts.codecName)) {
			l.cn.Unlock()
			return nil, errCodec
		}
		l.seq++
		s := l.newStream(method, l.seq, true, deadline)
		s.open, s.codec = md, opts.codec
		s.observed.Store(observed)
		if ctx.Done() != nil {
			unhook := context.AfterFunc(ctx, func() { s.Reset(contextError(ctx)) }) // it waits for the lock
			stop := context.CancelFunc(func() {})
			if deadline != 0 {
				s.ctx, stop = context.WithDeadline(s.ctx, epoch.Add(time.Duration(deadline)))
			}
			s.stop = func() { unhook(); stop() }
		}
		ls.ours[s.id] = s
		l.cn.Unlock()
		return s, nil
	}
}

// cc returns the codec of the stream's messages.
func (s *Stream) cc() codec.Codec {
	if s.codec != nil {
		return s.codec
	}
	return s.link.client.Codec
}

// ID returns the stream's number on its connection.
func (s *Stream) ID() uint64 { return s.id }

// Id is ID, by the name that programs know which come from another arpc.
func (s *Stream) Id() uint64 { return s.id }

// Method returns the stream's method.
func (s *Stream) Method() string { return s.method }

// Client returns the stream's connection.
func (s *Stream) Client() *Client { return s.link.client }

// Peer says who is at the other end.
func (s *Stream) Peer() Peer { return s.link.peerInfo() }

// Context returns a context that has the deadline of the stream and is done when the stream is over, with the reason as its
// cause. Calls made with it, and its Client, go to the peer.
func (s *Stream) Context() context.Context {
	if ctx := s.derived.Load(); ctx != nil {
		return *ctx
	}
	return s.ctx
}

// Metadata returns what the peer sent with the stream: the opening end's with its first frame, the other's with any.
func (s *Stream) Metadata() Metadata {
	if !s.local {
		return decodeMetadata(metadataIn(s.frame))
	}
	s.link.cn.Lock()
	defer s.link.cn.Unlock()
	return decodeMetadata(s.meta)
}

// SetMetadata sets a pair that the handler of a stream sends with its next message, or with the end. Errors are those of the
// limits at Metadata, and CodeFailedPrecondition on the opening side, which has WithMetadata, and after metadata was sent.
func (s *Stream) SetMetadata(key, value string) error {
	if s.local {
		return &Error{Code: CodeFailedPrecondition, Message: "the opening end sends its metadata by WithMetadata"}
	}
	s.link.cn.Lock()
	md, sent := s.meta, s.metaSent
	s.link.cn.Unlock()
	if sent {
		return &Error{Code: CodeFailedPrecondition, Message: "metadata was sent already"}
	}
	out, err := appendUserPair(md[:len(md):len(md)], key, value)
	if err == nil {
		err = s.link.checkMetadata(out)
	}
	if err == nil {
		s.setMetadata(out)
	}
	return err
}

func (s *Stream) setMetadata(out metadataBlock) {
	s.link.cn.Lock()
	s.meta = out
	s.link.cn.Unlock()
}

// Send sends a message, encoded as for Client.Call. It waits while the peer has not received enough of what was sent before;
// so it does for the stream's deadline and end only. values travel where coders carry them. Errors are *Errors: why the stream
// is over, CodeFailedPrecondition after CloseSend, or what the Codec returns.
func (s *Stream) Send(v any, values ...map[any]any) error {
	return s.send(context.Background(), v, false, false, false, firstValues(values))
}

// SendWith is Send within a context. When that ends first, nothing or a part of the message was sent; in the latter case the
// stream is reset.
func (s *Stream) SendWith(ctx context.Context, v any, values ...map[any]any) error {
	return s.send(ctx, v, false, false, false, firstValues(values))
}

// SendContext is SendWith.
func (s *Stream) SendContext(ctx context.Context, v any, values ...map[any]any) error {
	return s.SendWith(ctx, v, values...)
}

// TrySend is Send, but when that would have to wait it sends nothing and returns an error with CodeResourceExhausted.
func (s *Stream) TrySend(v any, values ...map[any]any) error {
	return s.send(context.Background(), v, false, false, true, firstValues(values))
}

// SendAndClose sends the last message: Send and CloseSend in one.
func (s *Stream) SendAndClose(v any, values ...map[any]any) error {
	return s.send(context.Background(), v, true, false, false, firstValues(values))
}

// SendAndCloseWith is SendAndClose within a context, see SendWith.
func (s *Stream) SendAndCloseWith(ctx context.Context, v any, values ...map[any]any) error {
	return s.send(ctx, v, true, false, false, firstValues(values))
}

// SendAndCloseContext is SendAndCloseWith.
func (s *Stream) SendAndCloseContext(ctx context.Context, v any, values ...map[any]any) error {
	return s.SendAndCloseWith(ctx, v, values...)
}

// CloseSend says that this end sends no more; the peer's Recv returns io.EOF after what was sent. Calling it again does
// nothing.
func (s *Stream) CloseSend() error { return s.CloseSendContext(context.Background()) }

// CloseSendContext is CloseSend within a context.
func (s *Stream) CloseSendContext(ctx context.Context) error {
	err := s.send(ctx, nil, true, true, false, nil)
	if err == errStreamSent {
		return nil
	}
	return err
}

// CloseRecv says that this end takes no more messages: what has arrived and will arrive is dropped.
func (s *Stream) CloseRecv() error {
	l := s.link
	l.cn.Lock()
	s.discard = true
	if s.recvErr == nil {
		s.recvErr = io.EOF
	}
	n := s.dropLocked()
	s.wake()
	l.gaveBackLocked(s, n) // unlocks
	return nil
}

// CloseRecvContext is CloseRecv, which never waits.
func (s *Stream) CloseRecvContext(context.Context) error { return s.CloseRecv() }

// Reset ends the stream in both directions with an error, which the peer gets, and drops what was not received. A nil err is
// CodeCanceled. What an err of another call says of IsRefused is about that call, not about the stream.
func (s *Stream) Reset(err error) {
	if err == nil {
		err = errStreamOver
	}
	l := s.link
	l.cn.Lock()
	if s.over || s.recvErr != nil && s.sendErr != nil && s.recvEnd {
		if len(s.in) > 0 {
			s.recvErr = err // what is dropped must not look like an ordinary end
		}
		n := s.dropLocked()
		l.gaveBackLocked(nil, n) // unlocks
		return
	}
	s.reset = true
	tell := s.opened || !s.local
	if s.sendErr != nil && !s.v2 {
		tell = false // version 1: it has sent its last frame
	}
	s.recvErr, s.sendErr = err, err
	s.cancel(err) // before anybody finds out
	n := s.dropLocked()
	if s.v2 || s.local && !s.opened || s.recvEnd {
		s.removeLocked()
	} else {
		s.discard = true // version 1: its frames are recognised until the last
	}
	l.gaveBackLocked(nil, n) // unlocks
	s.finish(err)
	s.wake()
	switch {
	case !tell:
	case s.v2:
		l.control(cmdReset|s.ownBit(), flagError|flagCoded, s.id, appendError(nil, err, l.client.Codec), core.Now) //nolint:errcheck // it is gone
	default:
		l.send(newMessage(CmdStream|s.ownBit()|streamEOF, 0, s.id, s.method, nil, nil), core.Now) //nolint:errcheck // it is gone
	}
}

// ownBit is the bit of the command in the frames that this end sends.
func (s *Stream) ownBit() byte {
	if s.local {
		return streamLocal
	}
	return 0
}

// finish ends the context and what watches the one that the stream was opened with.
func (s *Stream) finish(cause error) {
	s.cancel(cause)
	if s.stop != nil {
		s.stop()
	}
	if ended := s.observed.Swap(nil); ended != nil {
		(*ended)(s)
	}
}

// lost ends the stream because its connection did. What was received can still be.
func (s *Stream) lost(err error) {
	s.link.cn.Lock()
	if s.recvErr == nil {
		s.recvErr = err
	}
	if s.sendErr == nil {
		s.sendErr = err
	}
	s.cancel(err) // before anybody finds out
	s.removeLocked()
	s.link.cn.Unlock()
	s.finish(err)
	s.wake()
}

// removeLocked takes the stream out of the table.
func (s *Stream) removeLocked() {
	if s.over {
		return
	}
	s.over = true
	ls := s.link.streamsLocked()
	if s.local {
		delete(ls.ours, s.id)
	} else {
		delete(ls.theirs, s.id)
	}
	if s.v2 { // the peer is not to wait for what may never be received
		ls.owed += s.queued
	}
	s.credited = true
}

// endedLocked removes the stream when both directions have ended. It reports whether that is so.
func (s *Stream) endedLocked() bool {
	if s.sendErr == nil || !s.recvEnd {
		return false
	}
	s.removeLocked()
	return true
}

func (s *Stream) wake() {
	wake(s.recvWake)
	wake(s.sendWake)
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// dropLocked drops what was not received and returns how many bytes that were.
func (s *Stream) dropLocked() int {
	for _, c := range s.in {
		c.b.Free()
	}
	n := s.queued
	s.in, s.queued = nil, 0
	if s.credited || !s.v2 {
		return 0
	}
	return n
}

// take waits for a token of ch.
func (s *Stream) take(ctx context.Context, ch chan struct{}) error {
	select {
	case ch <- struct{}{}:
		return nil
	default:
	}
	select {
	case ch <- struct{}{}:
		return nil
	case <-ctx.Done():
		return contextError(ctx)
	}
}

// Recv receives the next message into v, decoded as by Client.Call. On a stream that has not begun it makes the peer begin, if
// that knows version 2 of the protocol. It waits for a message; after the last it returns io.EOF, or
// the error with which the stream ended. An error of the Codec concerns that message only.
func (s *Stream) Recv(v any) error { return s.RecvWith(context.Background(), v) }

// RecvContext is RecvWith.
func (s *Stream) RecvContext(ctx context.Context, v any) error { return s.RecvWith(ctx, v) }

// RecvWith is Recv within a context. When that ends first, no message is lost.
func (s *Stream) RecvWith(ctx context.Context, v any) error {
	if err := s.take(ctx, s.receiving); err != nil {
		return err
	}
	defer func() { <-s.receiving }()
	done := ctx.Done()
	l := s.link
	for {
		l.cn.Lock()
		if len(s.in) > 0 {
			c := s.in[0]
			s.in[0] = chunk{}
			if s.in = s.in[1:]; len(s.in) == 0 {
				s.in = nil
			}
			n := len(c.p)
			s.queued -= n
			l.gaveBackLocked(s, n) // unlocks
			if b, ok := v.(*[]byte); ok && b != nil && s.partial == nil && !c.more && n >= ownFrom {
				*b = c.p // nobody else has them
				return nil
			}
			if s.partial == nil && !c.more {
				err := codec.Decode(s.cc(), c.p, v)
				c.b.Free()
				return err
			}
			if err := s.join(c); err != nil {
				s.Reset(err)
				return err
			}
			if !c.more {
				err := codec.Decode(s.cc(), s.partial.B, v)
				s.partial.Free()
				s.partial = nil
				return err
			}
			continue
		}
		if err := s.recvErr; err != nil {
			l.cn.Unlock()
			if s.partial != nil {
				s.partial.Free()
				s.partial = nil
			}
			return err
		}
		if s.local && !s.opened && s.v2 {
			l.cn.Unlock()
			// The peer may be the one to begin.
			if err := s.send(ctx, nil, false, true, false, nil); err != nil && err != errStreamSent {
				return err
			}
			continue
		}
		l.cn.HandOver() // an ordered handler may be who waits here
		l.cn.Unlock()
		select {
		case <-s.recvWake:
		case <-done:
			return contextError(ctx)
		}
	}
}

// join appends a chunk to the message that is being received.
func (s *Stream) join(c chunk) error {
	defer c.b.Free()
	have := 0
	if s.partial != nil {
		have = len(s.partial.B)
	}
	if have+len(c.p) > s.link.client.Handler.MaxBodyLen() {
		return errStreamLarge
	}
	if s.partial == nil {
		s.partial = buf.Get(2 * len(c.p))
	} else if have+len(c.p) > cap(s.partial.B) {
		b := buf.Get(2 * (have + len(c.p)))
		b.B = append(b.B, s.partial.B...)
		s.partial.Free()
		s.partial = b
	}
	s.partial.B = append(s.partial.B, c.p...)
	return nil
}

// All returns the messages that arrive, as bytes that the receiver owns. The sequence ends with the stream; its last pair is
// an error unless that was in order. Leaving it early does not end the stream.
func (s *Stream) All() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for {
			var b []byte
			err := s.Recv(&b)
			if err == io.EOF {
				return
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// send sends a message in frames of at most maxStreamChunk, or with none only what the first or the last frame says.
func (s *Stream) send(ctx context.Context, v any, last, none, try bool, values map[any]any) error {
	if try {
		select {
		case s.sending <- struct{}{}:
		default:
			return errWouldWait
		}
	} else if err := s.take(ctx, s.sending); err != nil {
		return err
	}
	defer func() { <-s.sending }()
	l := s.link
	var raw []byte
	var text string
	if !none {
		var ok bool
		if raw, text, ok = rawValue(v); !ok {
			scratch, p, err := encode(s.cc(), v)
			if err != nil {
				return err
			}
			defer scratch.Free()
			raw = p
		} else if text != "" {
			raw = []byte(text)
		}
	}
	switch {
	case !s.v2 && !none && len(raw) == 0:
		if !last {
			return errStreamEmptyV1
		}
		none = true
	case len(raw) > l.client.Handler.MaxBodyLen()-len(s.method):
		return errStreamLarge
	}
	size := maxStreamChunk
	if !s.v2 {
		size = len(raw)
	} else {
		l.cn.Lock()
		md := s.open
		if !s.local { // otherwise meta is the peer's
			md = s.meta
		}
		size = min(size, int(l.peer.Value().window)/4, int(l.peer.Value().maxBody)-len(s.method)-maxExtension-len(md))
		l.cn.Unlock()
		if size <= 0 {
			return errTooLarge
		}
	}
	if try { // all of it or nothing
		if err := s.room(ctx, len(raw), true); err != nil {
			return err
		}
		s.payLocked(len(raw))
		l.cn.Unlock()
	}
	for begun := false; ; begun = true {
		n := min(len(raw), size)
		if try {
			l.cn.Lock()
			if err := s.sendErr; err != nil {
				s.payLocked(-len(raw))
				wake(l.streamsLocked().wake)
				l.cn.Unlock()
				return err
			}
		} else {
			if err := s.room(ctx, n, false); err != nil {
				if begun && (ctx.Err() != nil || s.ctx.Err() != nil) {
					s.cutShort(err)
				}
				return err
			}
			s.payLocked(n)
		}
		// The connection is locked, and there is room for n bytes.
		if err := s.frameOut(raw[:n], none, last, n < len(raw), values); err != nil {
			return err
		}
		if raw = raw[n:]; len(raw) == 0 {
			return nil
		}
	}
}

// cutShort resets the stream after a part of a message was sent: nothing may follow that part.
func (s *Stream) cutShort(err error) {
	s.link.cn.Lock()
	over := s.sendErr != nil
	s.link.cn.Unlock()
	if !over { // or it would drop what can still be received
		s.Reset(err)
	}
}

// payLocked takes the credit for n bytes.
func (s *Stream) payLocked(n int) {
	if s.v2 {
		s.credit -= n
		s.link.streamsLocked().credit -= n
	}
}

// maxExtension is the longest there is between method and payload beside the metadata.
const maxExtension = 4 + 2

// room waits until n bytes may be sent. It returns nil with the connection locked.
func (s *Stream) room(ctx context.Context, n int, try bool) error {
	l := s.link
	done := ctx.Done()
	turn := false // the right to wait for what all streams share is ours
	fail := func(err error) error {
		if turn {
			l.streamsLocked().pass()
		}
		l.cn.Unlock()
		return err
	}
	wait := func(ch <-chan struct{}) error {
		l.cn.HandOver() // an ordered handler may be who waits here
		l.cn.Unlock()
		select {
		case <-ch:
			l.cn.Lock()
			return nil
		case <-s.ctx.Done():
			l.cn.Lock()
			if s.sendErr == nil { // its deadline, which is being dealt with
				return fail(contextError(s.ctx))
			}
			return nil
		case <-done:
			l.cn.Lock()
			return fail(contextError(ctx))
		}
	}
	l.cn.Lock()
	for {
		if s.sendErr != nil {
			return fail(s.sendErr)
		}
		if err := l.cn.CanSend(); err != nil {
			return fail(lostError(l.client.lostKind(), err))
		}
		ls := l.streamsLocked()
		switch {
		case s.v2 && s.credit < n:
			if try {
				return fail(errWouldWait)
			}
			if turn { // others can go on
				ls.pass()
				turn = false
			}
			if err := wait(s.sendWake); err != nil {
				return err
			}
		case !turn && ls.taken && n > 0:
			if try {
				return fail(errWouldWait)
			}
			mine := make(chan struct{})
			ls.waiters = append(ls.waiters, mine)
			l.cn.HandOver() // as above
			l.cn.Unlock()
			select {
			case <-mine:
				l.cn.Lock()
				turn = true
			case <-s.ctx.Done():
				l.cn.Lock()
				turn = !ls.leave(mine)
				if s.sendErr == nil {
					return fail(contextError(s.ctx))
				}
			case <-done:
				l.cn.Lock()
				turn = !ls.leave(mine)
				return fail(contextError(ctx))
			}
		case s.v2 && ls.credit < n && n > 0:
			if try {
				return fail(errWouldWait)
			}
			ls.taken, turn = true, true
			if err := wait(ls.wake); err != nil {
				return err
			}
		case l.cn.Full() && n > 0:
			if try {
				return fail(errWouldWait)
			}
			ls.taken, turn = true, true
			l.cn.HandOver()                    // as above
			l.cn.Room(s.ctx.Done(), done, nil) // unlocks
			l.cn.Lock()
			if ctx.Err() != nil {
				return fail(contextError(ctx))
			}
			if s.ctx.Err() != nil && s.sendErr == nil {
				return fail(contextError(s.ctx))
			}
		default:
			if turn {
				ls.pass()
			}
			return nil
		}
	}
}

// pass gives the right to wait to the next.
func (ls *linkStreams) pass() {
	if len(ls.waiters) == 0 {
		ls.taken, ls.waiters = false, nil
		return
	}
	next := ls.waiters[0]
	ls.waiters[0] = nil
	ls.waiters = ls.waiters[1:]
	close(next)
}

// leave takes a waiter out of the line. It reports false when the right is the waiter's already.
func (ls *linkStreams) leave(w chan struct{}) bool {
	for i, o := range ls.waiters {
		if o == w {
			ls.waiters = append(ls.waiters[:i], ls.waiters[i+1:]...)
			return true
		}
	}
	return false
}

// frameOut sends one frame. The connection is locked before, and unlocked after.
func (s *Stream) frameOut(p []byte, none, last, more bool, values map[any]any) error {
	l := s.link
	cmd, flag, ext, left := CmdStream|s.ownBit(), byte(0), 0, uint32(0)
	var md metadataBlock
	if s.v2 {
		if none {
			flag |= flagNoData
		}
		if more {
			flag |= flagMore
		}
		if s.local && !s.opened {
			flag |= flagOpen
			if s.deadline != 0 && l.has(featMetadata) {
				left = uint32(min((max(s.deadline-now(), 1)+int64(time.Millisecond)-1)/int64(time.Millisecond), 1<<32-1))
				flag, ext = flag|flagDeadline, 4
			}
			md = s.open
		} else if !s.local && !s.metaSent {
			md = s.meta
			s.metaSent = len(md) > 0
		}
		if len(md) > 0 && l.has(featMetadata) {
			flag, ext = flag|flagMetadata, ext+2+len(md)
		}
	}
	s.opened = true
	ended := false
	if last && !more {
		cmd |= streamEOF
		s.sendErr = errStreamSent
		ended = s.endedLocked()
	}
	ls := l.streamsLocked()
	yield := len(ls.ours)+len(ls.theirs) > 1
	var err error
	if coders := l.client.Handler.load().coders; len(coders) > 0 {
		l.cn.Unlock()
		payload := append(make([]byte, ext, ext+len(p)), p...)
		putExtension(payload, flag, left, md)
		m := newMessage(cmd, flag, s.id, s.method, payload, values)
		if m, err = encodeAll(coders, l, m); err == nil {
			err = s.encodedOut(m)
		}
		if err != nil {
			l.cn.Lock()
			s.payLocked(-len(p)) // it was not sent
			wake(l.streamsLocked().wake)
			l.cn.Unlock()
			s.Reset(err)
		}
	} else {
		b := l.cn.Reserve(HeadLen + len(s.method) + ext + len(p))
		putFrame(b, cmd, flag, s.id, s.method)
		b = b[HeadLen+len(s.method):]
		if ext > 0 {
			b = putExtension(b, flag, left, md)
		}
		copy(b, p)
		l.cn.Commit(core.Now, yield)
	}
	if ended {
		l.cn.Lock()
		l.gaveBackLocked(nil, 0) // unlocks
		s.finish(errStreamOver)
	}
	return err
}

// encodedOut sends a frame that coders have made, unless the stream was reset meanwhile: the frame that opens a stream must not
// come after its end.
func (s *Stream) encodedOut(m *Message) error {
	l := s.link
	l.cn.Lock()
	if s.reset {
		l.cn.Unlock()
		return s.sendErr
	}
	if err := l.cn.CanSend(); err != nil {
		l.cn.Unlock()
		return lostError(l.client.lostKind(), err)
	}
	copy(l.cn.Reserve(len(m.Buffer)), m.Buffer)
	l.cn.Commit(core.Now, false)
	return nil
}

// gaveBackLocked counts n bytes as taken, of a stream that still receives or of none, and gives credit to the peer when it is
// worth a frame. It unlocks.
func (l *link) gaveBackLocked(s *Stream, n int) {
	if !l.has(featStreams) || s != nil && !s.v2 {
		l.cn.Unlock()
		return
	}
	if s != nil && s.credited {
		n = 0
	}
	ls := l.streamsLocked()
	ls.owed += n
	var one, all int
	if s != nil && n > 0 && !s.recvEnd && !s.over {
		if s.owed += n; s.owed >= l.rpc.window/2 {
			one, s.owed = s.owed, 0
			s.window += one
		}
	}
	if ls.owed >= l.rpc.connWindow/2 {
		all, ls.owed = ls.owed, 0
		ls.window += all
	}
	l.cn.Unlock()
	if one > 0 {
		l.sendCredit(cmdCredit|s.ownBit(), s.id, one)
	}
	if all > 0 {
		l.sendCredit(cmdCredit, 0, all)
	}
}

func (l *link) sendCredit(cmd byte, id uint64, n int) {
	body := []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}
	l.control(cmd, 0, id, body, core.Now) //nolint:errcheck // the connection is gone
}

// streamOf returns the stream that a received frame belongs to, nil if there is none. The lock is held.
func (l *link) streamOf(frame []byte) *Stream {
	ls := l.streamsLocked()
	id := (&Message{Buffer: frame}).Seq()
	if frame[indexCmd]&streamLocal != 0 {
		return ls.theirs[id]
	}
	return ls.ours[id]
}

// streamFrame handles a received frame of a stream.
func (l *link) streamFrame(b *batch, frame []byte) error {
	if !validMethod(frame) {
		l.cn.Group().Stats.ProtocolErrors.Add(1)
		return nil
	}
	l.cn.Lock()
	s := l.streamOf(frame)
	v2 := l.has(featStreams)
	if s != nil {
		v2 = s.v2
	}
	l.cn.Unlock() // only this goroutine puts streams of the peer into the table
	flag, eof := frame[indexFlag], frame[indexCmd]&streamEOF != 0
	if !v2 {
		flag = 0
	}
	payload := (&Message{Buffer: frame}).Data()
	none := flag&flagNoData != 0 || !v2 && len(payload) == 0
	if none && len(payload) > 0 || flag&flagMore != 0 && eof {
		return errFrame
	}
	l.cn.Lock()
	if s != nil && s.over { // just now
		s = nil
	}
	if v2 {
		ls := l.streamsLocked()
		if ls.window -= len(payload); ls.window < 0 {
			l.cn.Unlock()
			return errConnFlow
		}
	}
	if s == nil {
		return l.streamOpened(b, frame, payload, none, flag, eof)
	}
	if v2 && flag&flagOpen != 0 || s.recvEnd {
		l.cn.Unlock()
		return errFrame
	}
	return s.arrived(b, frame, payload, none, flag, eof)
}

// arrived takes what a frame carries. The lock is held before, and not after.
func (s *Stream) arrived(b *batch, frame, payload []byte, none bool, flag byte, eof bool) error {
	l, v2 := s.link, s.v2
	if s.local && flag&flagMetadata != 0 {
		s.meta = append(metadataBlock(nil), metadataIn(frame)...)
	}
	n := len(payload)
	if v2 {
		if s.window -= n; s.window < 0 {
			l.cn.Unlock()
			s.Reset(errStreamFlow)
			return nil
		}
	}
	dropped := 0
	var overflow error
	switch {
	case none:
	case s.discard || s.recvErr != nil:
		dropped = n
	case !v2 && (s.queued+n > maxUnreadV1 && len(s.in) > 0 || len(s.in) >= maxMessagesV1),
		v2 && len(s.in) >= max(l.rpc.window/unreadBytes, 1024):
		overflow = errStreamUnread
		dropped = n
	default:
		s.push(payload, flag&flagMore != 0)
		b.in.Woke(1)
	}
	ended := false
	if eof {
		s.recvEnd = true
		if s.recvErr == nil {
			s.recvErr = io.EOF
		}
		ended = s.endedLocked()
	}
	wake(s.recvWake)
	if ended {
		l.gaveBackLocked(nil, dropped) // removing it has given back only what waits; unlocks
	} else {
		l.gaveBackLocked(s, dropped) // unlocks
	}
	if overflow != nil {
		s.Reset(overflow)
	}
	if ended {
		s.finish(errStreamOver)
	}
	return nil
}

// push puts a payload last in line. The lock is held.
func (s *Stream) push(p []byte, more bool) {
	var b *buf.Buf
	n := len(p)
	if len(s.in) > 0 && n < packBelow {
		if last := s.in[len(s.in)-1].b; cap(last.B)-len(last.B) >= n {
			b = last
			b.Retain()
		}
	}
	switch {
	case b != nil:
	case n >= ownFrom && !more: // a receiver of bytes gets them without another copy
		b = buf.Of(append([]byte(nil), p...))
		s.in = append(s.in, chunk{b, b.B, more})
		s.queued += n
		return
	default:
		b = buf.Get(max(n, min(s.queued, packSize)))
	}
	at := len(b.B)
	b.B = append(b.B, p...)
	s.in = append(s.in, chunk{b, b.B[at : at+n : at+n], more})
	s.queued += n
}

// streamOpened handles the first frame of a stream that the peer opens, and frames of streams that are unknown. The lock is
// held before, and not after.
func (l *link) streamOpened(b *batch, frame, payload []byte, none bool, flag byte, eof bool) error {
	v2 := l.has(featStreams)
	if frame[indexCmd]&streamLocal == 0 || v2 && flag&flagOpen == 0 {
		l.gaveBackLocked(nil, len(payload)) // of a stream that is over here; unlocks
		return nil
	}
	if l.gate&gateDown != 0 {
		l.cn.Unlock()
		return nil
	}
	if v2 && (&Message{Buffer: frame}).Seq() == 0 {
		l.cn.Unlock()
		return errFrame // the number of the connection in CREDIT
	}
	method := string(frame[HeadLen : HeadLen+int(frame[indexMethodLen])])
	r := b.state.streams[method]
	ls := l.streamsLocked()
	var refusal error
	var cc codec.Codec
	if v2 && flag&flagMetadata != 0 {
		cc, refusal = codecOf(metadataIn(frame), nil)
	}
	switch {
	case refusal != nil:
	case b.locked:
		refusal = errNoAuth
	case b.draining:
		refusal = errGoingStream
	case r == nil:
		refusal = errNoStream
	case len(ls.theirs) >= l.rpc.maxStreams:
		refusal = errStreams
	}
	id := (&Message{Buffer: frame}).Seq()
	if refusal != nil {
		l.gaveBackLocked(nil, len(payload)) // unlocks
		if v2 {
			l.control(cmdReset, flagError|flagCoded, id, appendError(nil, Refused(refusal), nil), core.Now) //nolint:errcheck // it is gone
		}
		return nil
	}
	s := l.newStream(method, id, false, 0)
	s.codec = cc
	s.frame = append([]byte(nil), frame[:len(frame)-len(payload)]...)
	if ms, ok := timeLeft(frame); ok && v2 {
		s.deadline = now() + int64(ms)*int64(time.Millisecond)
		s.ctx, s.stop = context.WithDeadline(s.ctx, epoch.Add(time.Duration(s.deadline)))
		context.AfterFunc(s.ctx, s.expired)
	}
	s.opened, s.pays = true, true
	ls.theirs[id] = s
	l.cn.Unlock()
	l.cn.Owe()
	l.cn.Lock()
	err := s.arrived(b, frame, payload, none, flag, eof) // unlocks
	work.Go(&streamTask{s, r})
	return err
}

// expired resets a stream whose deadline has passed.
func (s *Stream) expired() {
	if s.ctx.Err() == context.DeadlineExceeded {
		s.Reset(ErrTimeout)
	}
}

// streamTask runs the handler of a stream.
type streamTask struct {
	s *Stream
	r *route
}

// RunTask implements work.Task.
func (t *streamTask) RunTask() {
	s, l := t.s, t.s.link
	c := newContext()
	l.fill(c, t.r, s.frame, nil)
	c.turn.Detached()
	c.deadline = s.deadline
	x := c.extra()
	x.stream = s
	x.wait.Store(&contextWait{Context: s.ctx, cancel: s.cancel})
	if o := l.client.Handler.load().observer; o != nil {
		c.watch = c.observeAs(o, CallInfo{Kind: KindStream, Method: s.method, Start: time.Now()})
	}
	func() {
		defer func() {
			if p := recover(); p != nil {
				log.Error("%s panic in the stream handler of %q: %v\n%s", l.client.Handler.LogTag(), s.method, p, debug.Stack())
				s.Reset(errPanicked)
			}
		}()
		c.Next()
	}()
	s.handled()
	c.ended(func(x *contextRare) { x.returned, x.answered, x.outcome = true, true, s.outcome() })
	if c.watch != nil {
		c.watch.ended(c, s.outcome())
	}
	l.cn.Paid()
}

// handled ends the stream after its handler has returned.
func (s *Stream) handled() {
	switch {
	case s.ctx.Err() == context.DeadlineExceeded:
		s.Reset(ErrTimeout)
	case len(s.sending) > 0: // it has left somebody waiting
		s.Reset(errStreamHandled)
	default:
		s.CloseSend() //nolint:errcheck // it may be over already
	}
	l := s.link
	l.cn.Lock()
	over := s.over
	l.cn.Unlock()
	switch {
	case over:
	case s.v2:
		s.Reset(errStreamHandled)
	default: // version 1 cannot say so
		s.CloseRecv() //nolint:errcheck // it never fails
		s.finish(errStreamHandled)
	}
	l.cn.Lock()
	if len(s.in) > 0 {
		s.recvErr = errStreamHandled // as in Reset
	}
	n := s.dropLocked()
	l.gaveBackLocked(nil, n) // unlocks
}

// streamControl handles CREDIT and RESET.
func (l *link) streamControl(frame []byte) error {
	if frame[indexMethodLen] != 0 {
		return errFrame
	}
	body := frame[HeadLen:]
	l.cn.Lock()
	ls := l.streamsLocked()
	if frame[indexCmd]&cmdMask == cmdCredit {
		defer l.cn.Unlock()
		if len(body) != 4 {
			return errFrame
		}
		n := int(uint32(body[0]) | uint32(body[1])<<8 | uint32(body[2])<<16 | uint32(body[3])<<24)
		if (&Message{Buffer: frame}).Seq() == 0 {
			if n > 1<<31-1-ls.credit {
				return errFrame
			}
			ls.credit += n
			wake(ls.wake)
			return nil
		}
		if s := l.streamOf(frame); s != nil {
			if n > 1<<31-1-s.credit {
				return errFrame
			}
			s.credit += n
			wake(s.sendWake)
		}
		return nil
	}
	s := l.streamOf(frame)
	if s == nil {
		l.cn.Unlock()
		return nil
	}
	err := decodeError(body, l.client.Codec)
	if s.recvErr == nil {
		s.recvErr = err
	}
	if s.sendErr == nil {
		s.sendErr = err
	}
	s.cancel(err) // before anybody finds out
	s.recvEnd = true
	s.removeLocked()
	l.gaveBackLocked(nil, 0) // unlocks
	s.finish(err)
	s.wake()
	return nil
}
