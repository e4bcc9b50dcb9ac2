package arpc

import (
	"context"
	"crypto/tls"
	"net"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc/log"
)

// authMethod is the method by which the dialling end says who it is. The payload is the credentials, raw; the answer is
// empty or an error.
const authMethod = "arpc.auth"

// Peer says who is at the other end of a connection.
type Peer struct {
	// Addr is the network address.
	Addr net.Addr
	// TLS is the state of a TLS connection, with the peer's verified certificates if it showed some; nil for others.
	TLS *tls.ConnectionState
	// Principal is what the function of HandleAuth has returned last; nil without one.
	Principal any
}

// HandleAuth makes the connections that a server accepts later prove who they are before anything else. f gets what the
// client's Credentials function has returned and says who that is, for Peer.Principal; an error, preferably with
// CodeUnauthenticated, goes to the client. It runs as an ordered handler and may block. Until it has succeeded, requests are
// answered with CodeUnauthenticated, notifications and streams are refused, broadcasts leave the connection out, and the
// connected hook waits; after Limits.Handshake without success the connection is closed. The client may authenticate
// itself again at any time; a failure then closes the connection.
func (m *Mux) HandleAuth(f func(ctx *Context, credentials []byte) (principal any, err error)) {
	m.change(func(s *muxState) {
		routes := make(map[string]*route, len(s.routes)+1)
		for name, r := range s.routes {
			routes[name] = r
		}
		delete(routes, authMethod)
		s.auth = f
		if f != nil {
			routes[authMethod] = &route{method: authMethod, chain: []HandlerFunc{authHandler(f)}, cost: new(cost), async: new(atomic.Int32)}
		}
		s.routes = routes
	})
}

func authHandler(f func(*Context, []byte) (any, error)) HandlerFunc {
	return func(c *Context) {
		l := c.link
		principal, err := func() (_ any, err error) {
			defer func() {
				if p := recover(); p != nil {
					log.Error("%s panic while authenticating: %v\n%s", l.client.Handler.LogTag(), p, debug.Stack())
					err = errPanicked
				}
			}()
			return f(c, append([]byte(nil), c.Body()...))
		}()
		if err != nil {
			c.answer(nil, err) //nolint:errcheck // the connection's end says more
			if !l.locked() {
				l.cn.Close(&Error{Code: CodeOf(err), Message: "authentication failed: " + err.Error()})
			}
			return
		}
		l.cn.Lock()
		x := l.extraLocked()
		x.mu.Lock()
		x.principal = principal // before anybody is let in
		x.mu.Unlock()
		first := l.gate&gateLocked != 0
		l.gate &^= gateLocked
		x.stopLock()
		l.cn.Unlock()
		if h := l.client.Handler.load().connected; first && h != nil {
			l.client.safely("connected hook", func() { h(l.client) })
		}
		c.answer(nil, nil) //nolint:errcheck // the connection's end says more
	}
}

func isAuth(frame []byte) bool {
	return frame[indexCmd]&cmdMask == CmdRequest && int(frame[indexMethodLen]) == len(authMethod) &&
		string(frame[HeadLen:HeadLen+len(authMethod)]) == authMethod
}

// locked reports whether the peer has still to authenticate itself.
func (l *link) locked() bool {
	l.cn.Lock()
	defer l.cn.Unlock()
	return l.gate&gateLocked != 0
}

// lock makes an accepted connection prove who it is. It is called before anything is read.
func (l *link) lock(within time.Duration) {
	l.gate |= gateLocked
	x := &linkExtra{}
	l.x.Store(x)
	x.lockTimer = time.AfterFunc(within, func() {
		if l.locked() {
			l.cn.Close(&Error{Code: CodeUnauthenticated, Message: "not authenticated in time"})
		}
	})
}

func (x *linkExtra) stopLock() {
	if x.lockTimer != nil {
		x.lockTimer.Stop()
	}
}

// Peer says who is at the other end of the current connection.
func (c *Client) Peer() Peer { return c.link.Load().peerInfo() }

func (l *link) peerInfo() Peer {
	p := Peer{Addr: l.cn.RemoteAddr()}
	if t, ok := l.cn.NetConn().(interface{ ConnectionState() tls.ConnectionState }); ok {
		state := t.ConnectionState()
		p.TLS = &state
	}
	if x := l.x.Load(); x != nil {
		x.mu.Lock()
		p.Principal = x.principal
		x.mu.Unlock()
	}
	return p
}

type credentials func(context.Context) ([]byte, error)

func (f credentials) applyToClient(c *clientConfig) { c.credentials = f }

// Credentials makes a client prove who it is by what f returns, such as a token, on each connection before anything else
// is sent; see Mux.HandleAuth. f is called for each connection, within Limits.Handshake; its error fails the attempt to
// connect, as does a refusal by the server.
func Credentials(f func(context.Context) ([]byte, error)) ClientOption { return credentials(f) }

// Authenticate proves again who the client is, with new credentials, on its current connection. If the server refuses, it
// closes the connection.
func (c *Client) Authenticate(ctx context.Context) error {
	if c.dial == nil || c.dial.config.credentials == nil {
		return &Error{Code: CodeFailedPrecondition, Message: "the client has no Credentials"}
	}
	return c.authenticate(ctx, nil)
}

// authenticate sends credentials, on l before it is open to others, or on the current connection.
func (c *Client) authenticate(ctx context.Context, l *link) error {
	token, err := c.dial.config.credentials(ctx)
	if err != nil {
		return err
	}
	return c.call(ctx, authMethod, token, nil, TimeForever, nil, l)
}
