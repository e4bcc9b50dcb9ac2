package wire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/extension/session"
	"github.com/arpc-go/arpc/log"
)

// ClientConfig configures a Client. The zero value of a field means its default.
type ClientConfig struct {
	// Addr is the server's address.
	Addr string
	// Connections is the number of connections that calls share; default 1.
	Connections int
	// Codec is that of calls; default JSON.
	Codec Codec
	// Timeout bounds calls whose context has no deadline; default 3 s.
	Timeout time.Duration
	// Heartbeat is the time between heartbeats; a session from which nothing has come for three times that is closed, and replaced.
	// Default 15 s.
	Heartbeat time.Duration
	// MaxCalls is the number of answers that may be waited for; default 65,536.
	MaxCalls int
	// NewSession, if not nil, may change a new session further, such as with SetCompressType.
	NewSession session.NewSessionCallback
}

// Errors of calls, besides those of the context, of the codec, and session.ErrSessionBlocked.
var (
	// ErrNoSession says that there is no connection to the server: nothing was sent.
	ErrNoSession = errors.New("no connection to the server")
	// ErrTooManyCalls says that ClientConfig.MaxCalls are waited for: nothing was sent.
	ErrTooManyCalls = errors.New("too many calls")
	// ErrLost says that the connection was lost before the answer came: whether the method has run is not known.
	ErrLost = errors.New("connection lost before the answer")
)

// A RemoteError is what the server, or the method, answered instead of a reply.
type RemoteError struct{ Text string }

func (e *RemoteError) Error() string { return e.Text }

// A Client calls a server. It keeps its connections until Close.
type Client struct {
	*shared
	codec Codec
}

type shared struct {
	cfg ClientConfig
	end session.Client
	seq atomic.Uint64

	mu       sync.Mutex
	sessions []session.Session
	waiting  map[uint64]*call
}

type call struct {
	s    session.Session
	done chan *packet // gets the answer, or nil when the connection is lost
}

// NewClient connects to the server; the error says why it could not.
func NewClient(cfg ClientConfig) (*Client, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, 3*time.Second)
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, 15*time.Second)
	cfg.MaxCalls = cmp.Or(cfg.MaxCalls, 1<<16)
	c := &shared{cfg: cfg, waiting: map[uint64]*call{}}
	c.end = session.NewTCPClient(session.WithServerAddress(cfg.Addr), session.WithConnectionNumber(cfg.Connections))
	if err := c.end.RunEventLoop(prepare((*clientEvents)(c), cfg.Heartbeat, cfg.NewSession)); err != nil {
		c.Close()
		return nil, err
	}
	return &Client{c, cmp.Or(cfg.Codec, JSON)}, nil
}

// With returns a client with another codec that shares everything else.
func (c *Client) With(k Codec) *Client { return &Client{c.shared, k} }

// Close closes the connections. Calls that are going on end with ErrLost.
func (c *shared) Close() { c.end.Close() }

// Call calls a method and waits for its end. With a nil reply the server answers before the method runs, and only says that
// there is such a method.
func (c *Client) Call(ctx context.Context, service, method string, arg, reply any) error {
	if reply == nil {
		return c.call(ctx, &request{service, method, twoWayNoReply}, arg, nil)
	}
	return c.call(ctx, &request{service, method, twoWay}, arg, reply)
}

// CallOneway calls a method and does not learn what comes of it.
func (c *Client) CallOneway(ctx context.Context, service, method string, arg any) error {
	return c.call(ctx, &request{service, method, oneWay}, arg, nil)
}

// AsyncCall is Call on a goroutine of its own, which calls done with the result, once.
func (c *Client) AsyncCall(ctx context.Context, service, method string, arg, reply any, done func(error)) {
	go func() { done(c.Call(ctx, service, method, arg, reply)) }()
}

func (c *Client) call(ctx context.Context, req *request, arg, reply any) error {
	timeout := c.cfg.Timeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	k := &packet{command: cmdCall, seq: c.seq.Add(2) - 1, log: rand.Uint64(), codec: c.codec}
	values := codecs[c.codec]
	if values == nil {
		return fmt.Errorf("%w: %d", ErrCodec, c.codec)
	}
	header, err := c.codec.encode(req)
	value, err2 := values.Marshal(arg)
	if err = cmp.Or(err, err2, ctx.Err()); err != nil {
		return err
	}
	k.header, k.value = header, value
	w, err := c.pick(k.seq, req.CallType)
	if err != nil {
		return err
	}
	defer c.forget(k.seq)
	if _, _, err = w.s.WritePkg(k, timeout); err != nil || req.CallType == oneWay {
		return err
	}
	select {
	case k = <-w.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	var rsp response
	switch {
	case k == nil:
		return ErrLost
	case k.codec != c.codec && k.code == 0:
		return fmt.Errorf("%w: answer in %d", ErrCodec, k.codec)
	}
	if err = k.codec.decode(k.header, &rsp); err != nil {
		return err
	}
	if k.code != 0 || rsp.Error != "" {
		return &RemoteError{rsp.Error}
	}
	if reply == nil {
		return nil
	}
	return values.Unmarshal(k.value, reply)
}

// pick chooses the connection of a call, in turn, and makes its answer expected.
func (c *shared) pick(seq uint64, kind callType) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) >= c.cfg.MaxCalls {
		return nil, ErrTooManyCalls
	}
	for i := range c.sessions {
		s := c.sessions[(int(seq>>1&0xffff)+i)%len(c.sessions)]
		if s.IsClosed() {
			continue
		}
		w := &call{s, make(chan *packet, 1)}
		if kind != oneWay {
			c.waiting[seq] = w
		}
		return w, nil
	}
	return nil, ErrNoSession
}

func (c *shared) forget(seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, seq)
}

type clientEvents shared

func (c *clientEvents) OnOpen(ss session.Session) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions = append(c.sessions, ss)
	return nil
}

func (c *clientEvents) OnClose(ss session.Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions = slices.DeleteFunc(c.sessions, func(s session.Session) bool { return s == ss })
	for seq, w := range c.waiting {
		if w.s == ss {
			delete(c.waiting, seq)
			w.done <- nil
		}
	}
}

func (c *clientEvents) OnError(ss session.Session, err error) { log.Info("%s: %v", ss.Stat(), err) }

func (c *clientEvents) OnCron(ss session.Session) {
	if time.Since(ss.GetActive()) > 3*c.cfg.Heartbeat {
		ss.Close()
		return
	}
	ss.WritePkg(&packet{command: cmdPing, seq: c.seq.Add(2) - 1, codec: JSON}, 0) //nolint:errcheck // silence is found out above
}

// OnMessage gets answers.
func (c *clientEvents) OnMessage(ss session.Session, pkg any) {
	k := pkg.(*packet)
	if k.command != cmdAnswer {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waiting[k.seq]; w != nil && w.s == ss {
		delete(c.waiting, k.seq)
		w.done <- k
	}
}
