package arpc

import (
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/arpc-go/arpc/log"
)

// A HandlerFunc handles a request or a notification, or is a middleware.
type HandlerFunc = func(*Context)

// Handler is what programs hold: a pointer to a Mux.
type Handler = *Mux

// A MessageCoder transforms frames on their way, beginning with the byte after the length; see docs/protocol.md. The
// buffer's length field must be right afterwards. Coders run for requests, answers and notifications.
type MessageCoder interface {
	// Encode returns what is sent instead of m. It is called on the goroutine that sends. m may be changed.
	Encode(c *Client, m *Message) *Message
	// Decode returns what is received instead of m, nil if m makes no sense; the connection is closed then. It is called on
	// the goroutine that reads. m may be changed and kept.
	Decode(c *Client, m *Message) *Message
}

// A Mux holds the routes, middleware, coders, hooks and settings of a Client or a Server. All of it may be changed at any
// time, also while connections are open; each message and each event sees a consistent state.
type Mux struct {
	mu     sync.Mutex // serialises changes
	state  atomic.Pointer[muxState]
	missed map[*Client]struct{} // clients that connected before there was a connected hook
}

// muxState never changes once it is stored.
type muxState struct {
	routes   map[string]*route
	use      []HandlerFunc
	notFound *route
	coders   []MessageCoder
	streams  map[string]*route
	auth     func(*Context, []byte) (any, error)
	observer Observer

	connected    func(*Client)
	disconnected func(*Client)
	overstock    func(*Client)
	reconnect    func(c *Client, attempt int, err error)
	sessionMiss  func(*Client, *Message)
	beforeRecv   func(net.Conn) error
	beforeSend   func(net.Conn) error
	wrapReader   func(net.Conn) io.Reader

	logTag        string
	asyncDefault  bool
	sendQueue     int
	maxBody       int
	maxReconnects int
}

// mode is how a route's handler runs.
type mode uint8

const (
	modeOrdered mode = iota
	modeAsync
	modeInline
	modeStream
	modeCallback // not a route's: a Context's that stands for the end of a CallAsync
)

type route struct {
	method string
	mode   mode
	chain  []HandlerFunc
	cost   *cost
	async  *atomic.Int32 // async handlers that run
}

// DefaultHandler is what NewClient and NewServer copy when they are given no Handler, and what the functions of this
// package that are named like methods of Mux change.
var DefaultHandler Handler = NewHandler()

// NewHandler returns an empty Mux.
func NewHandler() Handler {
	m := &Mux{}
	m.state.Store(&muxState{
		routes:    map[string]*route{},
		sendQueue: 4096,
		maxBody:   DefaultMaxBodyLen,
		logTag:    "[ARPC]",
		notFound:  &route{mode: modeInline, chain: []HandlerFunc{func(c *Context) { c.answer(nil, Refused(ErrMethodNotFound)) }}},
	})
	return m
}

// SetHandler replaces DefaultHandler.
func SetHandler(h Handler) { DefaultHandler = h }

func (m *Mux) load() *muxState { return m.state.Load() }

// change applies f to a copy of the state.
func (m *Mux) change(f func(*muxState)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := *m.load()
	f(&s)
	m.state.Store(&s)
}

// Clone returns a copy that shares nothing with m.
func (m *Mux) Clone() Handler {
	c := &Mux{}
	s := *m.load()
	s.routes = maps.Clone(s.routes)
	s.streams = maps.Clone(s.streams)
	c.state.Store(&s)
	return c
}

// Handle registers h for a method. Without async, or with false, the route is ordered: its handlers run one at a time per
// connection, in the order of arrival, and may block; with true they run in parallel and may block. (Of a route that takes
// microseconds, requests that arrive together run after one another, until one takes a millisecond.) The default
// without the argument can be changed by SetAsyncResponse. It panics when the method is empty, longer than MaxMethodLen
// or registered already.
func (m *Mux) Handle(method string, h HandlerFunc, async ...bool) {
	md := modeOrdered
	if len(async) > 0 && async[0] || len(async) == 0 && m.load().asyncDefault {
		md = modeAsync
	}
	m.handle(method, md, h)
}

// HandleInline registers h for a method, to run on the goroutine that reads the connection and others with it. It must not
// block and must not wait in a call: it is for work of microseconds that must not wait behind ordered handlers.
func (m *Mux) HandleInline(method string, h HandlerFunc) { m.handle(method, modeInline, h) }

func (m *Mux) handle(method string, md mode, h HandlerFunc) {
	checkMethod(method, h == nil)
	m.change(func(s *muxState) {
		if _, ok := s.routes[method]; ok {
			panic(fmt.Sprintf("arpc: method %q is registered already", method))
		}
		s.routes = maps.Clone(s.routes)
		s.routes[method] = &route{method: method, mode: md, chain: append(slices.Clone(s.use), h), cost: new(cost), async: new(atomic.Int32)}
	})
}

func checkMethod(method string, missing bool) {
	if method == "" || len(method) > MaxMethodLen {
		panic(fmt.Sprintf("arpc: method %q must have 1 to %d bytes", method, MaxMethodLen))
	}
	if missing {
		panic(fmt.Sprintf("arpc: method %q has no handler", method))
	}
}

// HandleNotFound replaces the answer to requests of methods that are not registered. It runs on the goroutine that reads
// and must not block.
func (m *Mux) HandleNotFound(h HandlerFunc) {
	m.change(func(s *muxState) {
		s.notFound = &route{mode: modeInline, chain: append(slices.Clone(s.use), h)}
	})
}

// Use appends a middleware: for routes registered later it runs before the handler, for those registered already after
// it. The chain goes on by itself when it returns; Context.Next runs the rest within it, Context.Abort stops the chain. A
// nil middleware is ignored.
func (m *Mux) Use(h HandlerFunc) {
	if h == nil {
		return
	}
	m.change(func(s *muxState) {
		s.use = append(slices.Clone(s.use), h)
		routes := make(map[string]*route, len(s.routes))
		for name, r := range s.routes {
			if name == authMethod {
				routes[name] = r
				continue
			}
			nr := *r
			nr.chain = append(slices.Clone(r.chain), h)
			routes[name] = &nr
		}
		s.routes = routes
		streams := make(map[string]*route, len(s.streams))
		for name, r := range s.streams {
			nr := *r
			nr.chain = append(slices.Clone(r.chain), h)
			streams[name] = &nr
		}
		s.streams = streams
	})
}

// UseCoder appends a coder. They encode in the order of registration and decode in reverse; both ends must have the same.
// A nil coder is ignored.
func (m *Mux) UseCoder(c MessageCoder) {
	if c == nil {
		return
	}
	m.change(func(s *muxState) { s.coders = append(slices.Clone(s.coders), c) })
}

// HandleConnected sets the hook that runs when a connection is established, before its first ordered handler; it may block
// and may call, and once a call waits on the connection the ordered handlers no longer wait for the hook. A client that is connected already, and whose connection saw no such hook, runs it now, on another
// goroutine.
func (m *Mux) HandleConnected(h func(*Client)) {
	m.change(func(s *muxState) { s.connected = h })
	m.mu.Lock()
	missed := m.missed
	m.missed = nil
	m.mu.Unlock()
	if h == nil {
		return
	}
	for c := range missed {
		go func() {
			if c.CheckState() == nil {
				c.safely("connected hook", func() { h(c) })
			}
		}()
	}
}

// connectedHook returns the connected hook; without one it remembers the client for the next HandleConnected.
func (m *Mux) connectedHook(c *Client) func(*Client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.load().connected
	if h == nil && c.dial != nil {
		if m.missed == nil {
			m.missed = map[*Client]struct{}{}
		}
		m.missed[c] = struct{}{}
	}
	return h
}

// forget removes a client that is stopped.
func (m *Mux) forget(c *Client) {
	m.mu.Lock()
	delete(m.missed, c)
	m.mu.Unlock()
}

// HandleDisconnected sets the hook that runs after a connection has ended, each time a client loses its own too.
func (m *Mux) HandleDisconnected(h func(*Client)) {
	m.change(func(s *muxState) { s.disconnected = h })
}

// HandleOverstock sets the hook that runs when a message is refused because the send queue is full, on the goroutine
// that sends.
func (m *Mux) HandleOverstock(h func(*Client)) {
	m.change(func(s *muxState) { s.overstock = h })
}

// HandleReconnect sets the hook that runs after each attempt of a client to connect again, on the goroutine that connects.
// attempt counts from 1, err is nil after success; the connected hook follows then.
func (m *Mux) HandleReconnect(h func(c *Client, attempt int, err error)) {
	m.change(func(s *muxState) { s.reconnect = h })
}

// HandleSessionMiss sets the hook for answers that nobody waits for (any more). It runs on the goroutine that reads and must
// not block.
func (m *Mux) HandleSessionMiss(h func(*Client, *Message)) {
	m.change(func(s *muxState) { s.sessionMiss = h })
}

// BeforeRecv sets a hook that runs before each received frame is handled, on the goroutine that reads; an error closes the
// connection.
func (m *Mux) BeforeRecv(h func(net.Conn) error) {
	m.change(func(s *muxState) { s.beforeRecv = h })
}

// BeforeSend sets a hook that runs before each write to a connection, which may carry many messages, on the goroutine that
// writes; an error closes the connection.
func (m *Mux) BeforeSend(h func(net.Conn) error) {
	m.change(func(s *muxState) { s.beforeSend = h })
}

// SetReaderWrapper sets a function that returns the reader to take the input of a new connection from. Such connections are
// served by a goroutine each.
func (m *Mux) SetReaderWrapper(wrap func(net.Conn) io.Reader) {
	m.change(func(s *muxState) { s.wrapReader = wrap })
}

// SetSendQueueSize sets the number of messages that may wait to be sent on a connection that is made later; default 4096.
// Limits.SendHigh bounds their bytes.
func (m *Mux) SetSendQueueSize(n int) { m.change(func(s *muxState) { s.sendQueue = n }) }

// SendQueueSize returns what SetSendQueueSize set.
func (m *Mux) SendQueueSize() int { return m.load().sendQueue }

// SetMaxBodyLen sets the longest body accepted, in bytes; default DefaultMaxBodyLen. A longer one closes the connection.
func (m *Mux) SetMaxBodyLen(n int) { m.change(func(s *muxState) { s.maxBody = n }) }

// MaxBodyLen returns what SetMaxBodyLen set.
func (m *Mux) MaxBodyLen() int { return m.load().maxBody }

// SetAsyncResponse sets whether Handle without its last argument makes an async route; default false.
func (m *Mux) SetAsyncResponse(async bool) { m.change(func(s *muxState) { s.asyncDefault = async }) }

// AsyncResponse returns what SetAsyncResponse set.
func (m *Mux) AsyncResponse() bool { return m.load().asyncDefault }

// SetMaxReconnectTimes sets how many attempts to connect again may fail before a client stops; default 0, no limit.
func (m *Mux) SetMaxReconnectTimes(n int) { m.change(func(s *muxState) { s.maxReconnects = n }) }

// MaxReconnectTimes returns what SetMaxReconnectTimes set.
func (m *Mux) MaxReconnectTimes() int { return m.load().maxReconnects }

// SetLogTag sets what lines in the log begin with; default "[ARPC]".
func (m *Mux) SetLogTag(tag string) { m.change(func(s *muxState) { s.logTag = tag }) }

// LogTag returns what SetLogTag set.
func (m *Mux) LogTag() string { return m.load().logTag }

func (m *Mux) logf(format string, args ...any) { log.Warn(m.LogTag()+" "+format, args...) }

// The following change DefaultHandler; see the methods of the same names.

// Handle registers a handler with DefaultHandler.
func Handle(method string, h HandlerFunc, async ...bool) { DefaultHandler.Handle(method, h, async...) }

// HandleInline registers an inline handler with DefaultHandler.
func HandleInline(method string, h HandlerFunc) { DefaultHandler.HandleInline(method, h) }

// HandleNotFound sets DefaultHandler's answer to unknown methods.
func HandleNotFound(h HandlerFunc) { DefaultHandler.HandleNotFound(h) }

// Use appends a middleware to DefaultHandler.
func Use(h HandlerFunc) { DefaultHandler.Use(h) }

// UseCoder appends a coder to DefaultHandler.
func UseCoder(c MessageCoder) { DefaultHandler.UseCoder(c) }

// HandleConnected sets DefaultHandler's connected hook.
func HandleConnected(h func(*Client)) { DefaultHandler.HandleConnected(h) }

// HandleDisconnected sets DefaultHandler's disconnected hook.
func HandleDisconnected(h func(*Client)) { DefaultHandler.HandleDisconnected(h) }

// HandleOverstock sets DefaultHandler's overstock hook.
func HandleOverstock(h func(*Client)) { DefaultHandler.HandleOverstock(h) }

// HandleReconnect sets DefaultHandler's reconnect hook.
func HandleReconnect(h func(c *Client, attempt int, err error)) { DefaultHandler.HandleReconnect(h) }

// HandleSessionMiss sets DefaultHandler's session-miss hook.
func HandleSessionMiss(h func(*Client, *Message)) { DefaultHandler.HandleSessionMiss(h) }

// BeforeRecv sets DefaultHandler's hook before received frames.
func BeforeRecv(h func(net.Conn) error) { DefaultHandler.BeforeRecv(h) }

// BeforeSend sets DefaultHandler's hook before writes.
func BeforeSend(h func(net.Conn) error) { DefaultHandler.BeforeSend(h) }

// SetReaderWrapper sets DefaultHandler's reader wrapper.
func SetReaderWrapper(wrap func(net.Conn) io.Reader) { DefaultHandler.SetReaderWrapper(wrap) }

// SetSendQueueSize sets DefaultHandler's send queue size.
func SetSendQueueSize(n int) { DefaultHandler.SetSendQueueSize(n) }

// SetMaxBodyLen sets DefaultHandler's longest body.
func SetMaxBodyLen(n int) { DefaultHandler.SetMaxBodyLen(n) }

// SetAsyncResponse sets DefaultHandler's default for routes.
func SetAsyncResponse(async bool) { DefaultHandler.SetAsyncResponse(async) }

// SetMaxReconnectTimes sets DefaultHandler's limit on attempts to connect again.
func SetMaxReconnectTimes(n int) { DefaultHandler.SetMaxReconnectTimes(n) }

// SetLogTag sets DefaultHandler's log tag.
func SetLogTag(tag string) { DefaultHandler.SetLogTag(tag) }
