package action

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/internal/work"
	"github.com/arpc-go/arpc/internal/ws"
)

// An Instance is a server.
type Instance struct {
	cfg      *config
	router   Router
	workers  atomic.Int64 // unordered requests that are handled
	draining atomic.Bool

	listeners []net.Listener
	failed    error // of listening
	started   bool
	group     atomic.Pointer[core.Group]
	events    [AfterShutdown + 1][]func()
}

// New returns an instance without listeners and routes.
func New(opts ...Option) *Instance {
	n := &Instance{cfg: newConfig(opts)}
	n.router.routes.Store(&map[int16]*route{})
	return n
}

// Router returns where handlers are set.
func (n *Instance) Router() *Router { return &n.router }

// ListenTCP listens on an address such as ":8081", "tcp4://…" or "unix://path", before Run only, and returns it, with the port that
// was chosen. Connections are served from Run on, which also returns an error that was ignored.
func (n *Instance) ListenTCP(addr string) (net.Addr, error) { return n.listen(addr, false) }

// ListenWebsocket is ListenTCP for WebSocket.
func (n *Instance) ListenWebsocket(addr string) (net.Addr, error) { return n.listen(addr, true) }

var errStarted = &arpc.Error{Code: arpc.CodeFailedPrecondition, Message: "the instance runs already, or has run"}

func (n *Instance) listen(addr string, websocket bool) (net.Addr, error) {
	if n.started {
		return nil, errStarted
	}
	a, err := core.ParseAddress(addr)
	var ln net.Listener
	if err == nil {
		ln, err = a.Listen()
	}
	if err != nil {
		err = fail(arpc.CodeUnavailable, "cannot listen on "+addr, err)
		n.failed = errors.Join(n.failed, err)
		return nil, err
	}
	if websocket {
		ln = ws.Listen(ln, ws.ServerConfig{Stage: n.cfg.stage(false), Path: n.cfg.path, Origins: n.cfg.origins, TLS: n.cfg.tls})
	} else if n.cfg.tls != nil {
		ln = tls.NewListener(ln, n.cfg.tls)
	}
	n.listeners = append(n.listeners, ln)
	return ln.Addr(), nil
}

// An Event is a moment of Run.
type Event uint8

// The events.
const (
	BeforeStart    Event = iota // nothing is accepted yet
	AfterStart                  // connections are accepted
	BeforeShutdown              // they still are
	AfterShutdown               // nothing is left
)

// On has f called by Run, in the order of the calls of On; before Run only.
func (n *Instance) On(e Event, f func()) { n.events[e] = append(n.events[e], f) }

func (n *Instance) fire(e Event) {
	for _, f := range n.events[e] {
		f()
	}
}

// ErrNoListener says that there is nothing to run.
var ErrNoListener = &arpc.Error{Code: arpc.CodeFailedPrecondition, Message: "no listener"}

// Run serves until stop delivers or is closed, or a listener fails, whose error it returns. Then it accepts nothing any more, has
// the requests that were received answered, and closes the connections; with arpc.CodeDeadlineExceeded if that took longer than
// Limits.Shutdown. An instance runs once.
func (n *Instance) Run(stop <-chan struct{}) error {
	if n.started {
		return errStarted
	}
	n.started = true
	err := n.failed
	if len(n.listeners) == 0 {
		err = cmp.Or(err, error(ErrNoListener))
	}
	if err != nil {
		for _, ln := range n.listeners {
			ln.Close() //nolint:errcheck // it was never used
		}
		return err
	}
	n.fire(BeforeStart)
	g := core.NewGroup(n.cfg.core(), (*app)(n))
	n.group.Store(g)
	served := make(chan error, len(n.listeners))
	for _, ln := range n.listeners {
		go func() { served <- g.Serve(ln) }()
	}
	n.fire(AfterStart)
	select {
	case <-stop:
	case err = <-served:
		err = fail(arpc.CodeUnavailable, "cannot accept", err)
	}
	n.fire(BeforeShutdown)
	n.draining.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Shutdown)
	defer cancel()
	if cut := g.Drain(ctx, core.ErrStopped); cut != nil {
		err = errors.Join(err, fail(arpc.CodeDeadlineExceeded, "requests were cut", cut))
	}
	n.fire(AfterShutdown)
	return err
}

// Each calls f for each connection until f returns false. No lock is held meanwhile.
func (n *Instance) Each(f func(*Connection) bool) {
	if g := n.group.Load(); g != nil {
		g.Each(func(cn *core.Conn) bool { return !cn.Alive() || f(cn.User.(*Connection)) })
	}
}

// Pack encodes a packet for Connection.Push, so that many connections can be sent the same.
func (n *Instance) Pack(action, seq int16, v any) ([]byte, error) {
	b, f, err := n.cfg.encode(action, seq, v)
	if err != nil {
		return nil, err
	}
	defer b.Free()
	return append([]byte(nil), f[prefixLen:]...), nil
}

// opened is core.Config.Opened.
func opened(cn *core.Conn, _ *core.Turn) {
	c := cn.User.(*Connection)
	safely("OnOpen", func() { c.instance.cfg.onOpen(c) })
	cn.Lock()
	c.ready = true
	cn.Unlock()
}

// app is the core.App of an Instance.
type app Instance

// Open implements core.App.
func (a *app) Open(cn *core.Conn) error {
	cn.User = &Connection{cn: cn, instance: (*Instance)(a), ready: a.cfg.onOpen == nil}
	return nil
}

// errQueue closes a connection whose requests cannot even be queued.
var errQueue = errors.New("too many requests in line")

// Batch implements core.App.
func (a *app) Batch(cn *core.Conn, in *core.Input) error {
	c := cn.User.(*Connection)
	for {
		f, err := in.Next()
		if err != nil || f == nil {
			return err
		}
		if a.draining.Load() {
			continue
		}
		r := a.router.find(int16(binary.BigEndian.Uint16(f[prefixLen:])))
		if r != nil && r.unordered && a.hold(c) {
			b := buf.Get(len(f))
			b.B = append(b.B, f...)
			work.Go((*unordered)(c.request(b.B, r, b)))
			in.Woke(1)
		} else if !in.Ordered(false, r) {
			return errQueue
		}
	}
}

// hold reports whether an unordered request may be handled beside the others.
func (a *app) hold(c *Connection) bool {
	ok := a.workers.Add(1) <= int64(a.cfg.Workers)
	c.cn.Lock()
	ok = ok && c.ready && c.cn.Hold()
	c.cn.Unlock()
	if !ok {
		a.workers.Add(-1)
	}
	return ok
}

func (c *Connection) request(f []byte, r *route, b *buf.Buf) *Context {
	ctx := &Context{conn: c, route: r, frame: b}
	ctx.packet.parse(f, c.instance.cfg.codec)
	return ctx
}

// Run implements core.App.
func (a *app) Run(cn *core.Conn, _ *core.Input, f []byte, tag any) *core.Turn {
	cn.User.(*Connection).request(f, tag.(*route), nil).run()
	return nil
}

// Down implements core.App.
func (a *app) Down(cn *core.Conn, _ error) {
	c := cn.User.(*Connection)
	cn.Lock()
	c.down = true
	cancel := func() {}
	if c.rare != nil && c.rare.cancel != nil {
		cancel = c.rare.cancel
	}
	cn.Unlock()
	cancel()
}

// Close implements core.App.
func (a *app) Close(cn *core.Conn, _ error) {
	c := cn.User.(*Connection)
	c.runHooks()
	if a.cfg.onClose != nil {
		safely("OnClose", func() { a.cfg.onClose(c) })
	}
}

// SetupSignalHandler returns a channel for Run, which is closed by the first Ctrl-C or SIGTERM; a second one ends the program.
func SetupSignalHandler() <-chan struct{} {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx.Done()
}
