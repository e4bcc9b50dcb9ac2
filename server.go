package arpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/internal/core"
)

// A Server accepts connections; each is a Client that may be called.
//
// The fields may be replaced before Run or Serve, not later.
type Server struct {
	// Codec is the Codec of accepted clients.
	Codec codec.Codec
	// Handler is the Handler of accepted clients.
	Handler Handler

	config serverConfig
	rpc    rpc
	seq    atomic.Uint64

	mu      sync.Mutex
	group   *core.Group
	stopped bool
}

// NewServer returns a server. Without a Handler among the options it gets a copy of DefaultHandler.
func NewServer(opts ...ServerOption) *Server {
	s := &Server{Codec: codec.DefaultCodec, config: serverConfig{stdConns: defaultStdConns}}
	for _, o := range opts {
		if o != nil {
			o.applyToServer(&s.config)
		}
	}
	if s.config.codec != nil {
		s.Codec = s.config.codec
	}
	s.Handler = s.config.handler
	if s.Handler == nil {
		s.Handler = DefaultHandler.Clone()
	}
	s.rpc.version = protocolVersion
	s.rpc.limit(s.config.limits)
	s.rpc.open = s.opened
	s.rpc.down = func(*link, error) {}
	s.rpc.close = func(l *link, err error) { l.client.closed(l, err); l.client.stopTimers() }
	return s
}

// start makes the group when it is first needed.
func (s *Server) start() (*core.Group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, ErrServerStopped
	}
	if s.group == nil {
		h := s.Handler
		cfg := s.rpc.config(s.config.limits, h)
		cfg.StdConns = s.config.stdConns
		cfg.WantOpened = func() bool { s := h.load(); return s.connected != nil && s.auth == nil }
		cfg.Wrap = h.wrap
		cfg.BeforeWrite = beforeWrite(h)
		s.group = core.NewGroup(cfg, &s.rpc)
	}
	return s.group, nil
}

func (s *Server) opened(cn *core.Conn) *link {
	c := &Client{Codec: s.Codec, Handler: s.Handler}
	c.Conn = (*connView)(c)
	l := &link{cn: cn, client: c, rpc: &s.rpc, seq: 1}
	c.link.Store(l)
	if s.Handler.load().auth != nil {
		l.lock(s.rpc.greeting)
	}
	return l
}

// Run listens on the addresses and serves until Stop or Shutdown, then returning ErrServerStopped, or until a listener
// fails. An address is a TCP address such as ":8888", or has its network before it: "tcp4://", "tcp6://" or "unix://". If
// nothing listens at the path of a unix socket any more, it is replaced.
func (s *Server) Run(addr string, more ...string) error {
	var lns []net.Listener
	for _, a := range append([]string{addr}, more...) {
		ln, err := listen(a)
		if err != nil {
			for _, ln := range lns {
				ln.Close() //nolint:errcheck // the other error is the reason
			}
			return err
		}
		lns = append(lns, ln)
	}
	if len(lns) == 1 {
		return s.Serve(lns[0])
	}
	errs := make(chan error, len(lns))
	for _, ln := range lns {
		go func() { errs <- s.Serve(ln) }()
	}
	err := <-errs
	for _, ln := range lns {
		ln.Close() //nolint:errcheck // ends the other Serves
	}
	for range lns[1:] {
		<-errs
	}
	return err
}

func listen(addr string) (net.Listener, error) {
	network := "tcp"
	if n, a, ok := strings.Cut(addr, "://"); ok {
		network, addr = n, a
	}
	ln, err := net.Listen(network, addr)
	if err == nil || network != "unix" {
		return ln, err
	}
	// A socket that nobody listens on is what a process left that did not end well; anything else is not ours.
	if fi, serr := os.Lstat(addr); serr != nil || fi.Mode()&os.ModeSocket == 0 {
		return nil, err
	}
	if nc, derr := net.DialTimeout("unix", addr, time.Second); derr == nil {
		nc.Close() //nolint:errcheck // somebody listens
		return nil, err
	} else if !errors.Is(derr, errRefused) {
		return nil, err
	}
	if os.Remove(addr) != nil {
		return nil, err
	}
	return net.Listen(network, addr)
}

// Serve serves the connections of any listener, as Run does. It closes the listener in the end.
func (s *Server) Serve(ln net.Listener) error {
	g, err := s.start()
	if err != nil {
		ln.Close() //nolint:errcheck // it was never used
		return err
	}
	if err = g.Serve(ln); errors.Is(err, core.ErrStopped) {
		return ErrServerStopped
	}
	return err
}

// stop marks the server stopped and returns the group, nil if there never was one.
func (s *Server) stop() *core.Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	return s.group
}

// Stop closes the listeners and all connections: calls in flight fail, requests that have not started are dropped, what was
// accepted for sending is sent. It waits at most a second and aborts what is left then. A server cannot be started again.
func (s *Server) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopWait)
	defer cancel()
	g := s.stop()
	if g == nil {
		return nil
	}
	if err := g.Stop(ctx, ErrServerStopped); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// drainPatience is how long Shutdown waits for the pong that says that a peer knows of it.
const drainPatience = time.Second

// Shutdown closes the listeners, lets every request that has arrived be answered and refuses further ones with
// CodeUnavailable, and closes the connections; clients of version 2 of the protocol are told before, and connect elsewhere
// if their dialer can. When ctx is done first, it closes the connections at once and returns an *Error for which errors.Is
// holds with ctx's, and whose message names the methods of the requests and streams that were cut.
func (s *Server) Shutdown(ctx context.Context) error {
	g := s.stop()
	if g == nil {
		return nil
	}
	g.StopAccepting(ctx)
	g.Each(func(cn *core.Conn) bool {
		if cn.Alive() {
			cn.User.(*link).drain()
		}
		return true
	})
	s.rpc.draining.Store(true)
	begun := time.Now()
	g.CloseIdle(ctx, ErrServerStopped, func(cn *core.Conn) bool {
		return cn.Busy() || time.Since(begun) < drainPatience && cn.Alive() && cn.User.(*link).draining()
	})
	var cut string
	if ctx.Err() != nil {
		cut = s.unfinished(g)
	}
	err := g.Stop(ctx, ErrServerStopped)
	if err != nil && cut != "" {
		e := contextError(ctx).(*Error)
		e.Message = "shutdown has cut " + cut
		return e
	}
	return err
}

// unfinished says how many requests and streams of which methods are not finished.
func (s *Server) unfinished(g *core.Group) string {
	count := map[string]int{}
	for method, r := range s.Handler.load().routes {
		if n := r.async.Load(); n > 0 {
			count[method] += int(n)
		}
	}
	g.Each(func(cn *core.Conn) bool {
		cn.EachOrdered(func(tag any) {
			switch tag := tag.(type) {
			case *route:
				count[tag.method]++
			case *decoded:
				count[tag.r.method]++
			}
		})
		if !cn.Alive() {
			return true
		}
		cn.Lock()
		if x := cn.User.(*link).x.Load(); x != nil {
			for method, n := range x.later {
				count[method] += n
			}
			if x.streams != nil {
				for _, s := range x.streams.theirs {
					count[s.method]++
				}
			}
		}
		cn.Unlock()
		return true
	})
	var b strings.Builder
	for _, method := range slices.Sorted(maps.Keys(count)) {
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s × %d", method, count[method])
	}
	return b.String()
}

// NewMessage makes a message for Client.PushMsg, see Client.NewMessage.
func (s *Server) NewMessage(cmd byte, method string, v any, values ...map[any]any) *Message {
	return buildMessage(s.Handler, s.Codec, cmd, s.seq.Add(1), method, v, firstValues(values))
}

// Broadcast sends a notification to all clients. It is encoded once and never waits: a client whose send queue is full does
// not get it, and its overstock hook runs.
func (s *Server) Broadcast(method string, v any, values ...map[any]any) {
	s.BroadcastWithFilter(method, v, nil, values...)
}

// BroadcastWithFilter is Broadcast to the clients for which filter returns true; a nil filter is true for all.
func (s *Server) BroadcastWithFilter(method string, v any, filter func(*Client) bool, values ...map[any]any) {
	m := s.NewMessage(CmdNotify, method, v, values...)
	if m == nil {
		return
	}
	s.ForEachWithFilter(func(c *Client) { c.PushMsg(m, TimeZero) }, filter) //nolint:errcheck // the hook knows
}

// ForEach calls f for each client that is connected. No lock is held meanwhile.
func (s *Server) ForEach(f func(*Client)) { s.ForEachWithFilter(f, nil) }

// ForEachWithFilter calls f for each client for which filter returns true; a nil filter is true for all.
func (s *Server) ForEachWithFilter(f func(*Client), filter func(*Client) bool) {
	s.mu.Lock()
	g := s.group
	s.mu.Unlock()
	if g == nil {
		return
	}
	g.Each(func(cn *core.Conn) bool {
		if cn.Alive() && !cn.User.(*link).locked() {
			if c := cn.User.(*link).client; filter == nil || filter(c) {
				f(c)
			}
		}
		return true
	})
}
