package action

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"

	gobwas "github.com/gobwas/ws"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/ws"
)

// A Client is one connection to a server. It does not connect again.
type Client struct {
	cfg   *config
	group *core.Group
	cn    *core.Conn
	done  chan struct{}

	// Guarded by the lock of cn.
	seq   uint16
	calls map[uint16]*call
}

// A call is in flight. Whoever takes it out of the table ends it.
type call struct {
	action int16
	result chan result // has room for one
}

type result struct {
	body []byte
	err  error
}

// DialTCP connects to an address such as "localhost:8081" or "unix://path". ctx bounds the connecting only.
func DialTCP(ctx context.Context, addr string, opts ...Option) (*Client, error) {
	cfg := newConfig(opts)
	a, err := core.ParseAddress(addr)
	var nc net.Conn
	if err == nil {
		nc, err = a.Dial(ctx)
	}
	if err == nil && cfg.tls != nil {
		host, _, _ := net.SplitHostPort(a.Addr)
		t := cfg.tls.Clone()
		t.ServerName = cmp.Or(t.ServerName, host)
		secure := tls.Client(nc, t)
		if err = secure.HandshakeContext(ctx); err != nil {
			nc.Close() //nolint:errcheck // the handshake has failed
		}
		nc = secure
	}
	return newClient(cfg, nc, err)
}

// DialWebSocket connects to a URL such as "ws://localhost:8082/". ctx bounds the connecting only.
func DialWebSocket(ctx context.Context, url string, opts ...Option) (*Client, error) {
	cfg := newConfig(opts)
	nc, err := ws.Dial(ctx, &gobwas.Dialer{TLSConfig: cfg.tls}, url, cfg.stage(true), false)
	return newClient(cfg, nc, err)
}

func newClient(cfg *config, nc net.Conn, err error) (*Client, error) {
	if err != nil {
		return nil, fail(arpc.CodeUnavailable, "cannot connect", err)
	}
	cfg.onOpen = nil // a server's
	c := &Client{cfg: cfg, done: make(chan struct{}), calls: map[uint16]*call{}}
	c.group = core.NewGroup(cfg.core(), (*clientApp)(c))
	if _, err = c.group.Adopt(nc); err != nil {
		c.stop()
		return nil, lost(err)
	}
	return c, nil
}

func (c *Client) stop() {
	c.group.Stop(context.Background(), nil) //nolint:errcheck // there is no time limit, and nothing to wait for
	close(c.done)
}

// Close ends the connection: calls in flight fail with arpc.CodeUnavailable. It does not wait; Done tells.
func (c *Client) Close() { c.cn.Close(nil) }

// Done is closed when the connection is over and nothing of the client runs any more.
func (c *Client) Done() <-chan struct{} { return c.done }

var errCalls = &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "all sequence numbers are in use"}

// Call sends a request and waits for the reply, which it decodes into rsp, a pointer; nil ignores its body. The wire has no errors:
// a server that refuses says nothing, and the call ends with ctx, or after Limits.Call if that has no deadline. Errors have the
// codes arpc.CodeDeadlineExceeded, CodeCanceled, CodeUnavailable (no connection, or lost before the reply),
// CodeResourceExhausted (65,536 calls in flight) and CodeInternal (req cannot be encoded, or is too long).
func (c *Client) Call(ctx context.Context, action int16, req, rsp any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.Call)
		defer cancel()
	}
	cl := &call{action, make(chan result, 1)}
	seq, err := c.send(ctx, action, req, cl)
	if err != nil {
		return err
	}
	select {
	case r := <-cl.result:
		if r.err != nil || rsp == nil {
			return r.err
		}
		return (&Packet{Action: action, Body: r.body, codec: c.cfg.codec}).Bind(rsp)
	case <-ctx.Done():
		c.cn.Lock()
		if c.calls[seq] == cl {
			c.take(seq, action)
		}
		c.cn.Unlock()
		return contextError(ctx)
	}
}

// Send sends a request whose reply, if there is one, goes to OnPush. It waits while too much waits to be sent, until ctx is done.
func (c *Client) Send(ctx context.Context, action int16, req any) error {
	_, err := c.send(ctx, action, req, nil)
	return err
}

// send sends a request, under the next sequence number that no call has.
func (c *Client) send(ctx context.Context, action int16, req any, cl *call) (uint16, error) {
	b, f, err := c.cfg.encode(action, 0, req)
	if err != nil {
		return 0, err
	}
	defer b.Free()
	c.cn.Lock()
	for err = sendable(c.cn, true); err == errFull; err = sendable(c.cn, true) {
		if !c.cn.Room(ctx.Done(), nil, nil) { // unlocks
			return 0, contextError(ctx)
		}
		c.cn.Lock()
	}
	switch {
	case err != nil:
	case c.calls == nil: // the server sends nothing any more
		err = lost(c.cn.Err())
	case ctx.Err() != nil:
		err = contextError(ctx)
	case len(c.calls) > 0xffff:
		err = errCalls
	}
	if err != nil {
		c.cn.Unlock()
		return 0, err
	}
	for c.seq++; c.calls[c.seq] != nil; c.seq++ {
	}
	seq := c.seq
	if cl != nil {
		c.calls[seq] = cl
		c.cn.Calls++
		c.cn.HandOver() // a push handler may be who calls: the reply must be read
	}
	f[6], f[7] = byte(seq>>8), byte(seq)
	copy(c.cn.Reserve(len(f)), f)
	c.cn.Commit(core.Now, false)
	return seq, nil
}

// take takes a call out of the table; nil if there is none. The lock is held.
func (c *Client) take(seq uint16, action int16) *call {
	cl := c.calls[seq]
	if cl == nil || cl.action != action {
		return nil
	}
	delete(c.calls, seq)
	c.cn.Calls--
	return cl
}

func contextError(ctx context.Context) error {
	return fail(arpc.CodeOf(ctx.Err()), "no reply", ctx.Err())
}

// clientApp is the core.App of a Client.
type clientApp Client

// Open implements core.App. The group of a Client has one connection.
func (a *clientApp) Open(cn *core.Conn) error { a.cn = cn; return nil }

// Batch implements core.App.
func (a *clientApp) Batch(cn *core.Conn, in *core.Input) error {
	for {
		f, err := in.Next()
		if err != nil || f == nil {
			return err
		}
		var p Packet
		p.parse(f, a.cfg.codec)
		cn.Lock()
		cl := (*Client)(a).take(uint16(p.Seq), p.Action)
		cn.Unlock()
		if cl != nil {
			cl.result <- result{append([]byte(nil), p.Body...), nil}
			in.Woke(1)
		} else if a.cfg.onPush != nil && !in.Ordered(false, nil) {
			return errQueue
		}
	}
}

// Run implements core.App: a push.
func (a *clientApp) Run(_ *core.Conn, _ *core.Input, f []byte, _ any) *core.Turn {
	var p Packet
	p.parse(f, a.cfg.codec)
	safely(fmt.Sprintf("OnPush of action %d", p.Action), func() { a.cfg.onPush((*Client)(a), &p) })
	return nil
}

// Down implements core.App: every call ends now.
func (a *clientApp) Down(cn *core.Conn, err error) {
	cn.Lock()
	calls := a.calls
	a.calls = nil
	cn.Calls = 0
	cn.Unlock()
	for _, cl := range calls {
		cl.result <- result{nil, lost(err)}
	}
}

// Close implements core.App.
func (a *clientApp) Close(*core.Conn, error) { go (*Client)(a).stop() }
