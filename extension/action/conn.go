package action

import (
	"context"
	"crypto/rand"
	"net"
	"sync"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/core"
)

// A Connection is one that was accepted.
type Connection struct {
	cn       *core.Conn
	instance *Instance

	// Guarded by the lock of cn.
	ready bool // OnOpen has returned
	down  bool
	rare  *connRare
}

// connRare is what only some connections need, so that an idle one stays small. It is guarded as the Connection is.
type connRare struct {
	id       string
	ctx      context.Context
	cancel   context.CancelFunc
	property sync.Map
	hooks    []func(*Connection)
	hooked   bool // they have run
}

// extra returns the rare part. The caller holds the lock.
func (c *Connection) extra() *connRare {
	if c.rare == nil {
		c.rare = &connRare{}
	}
	return c.rare
}

// ID returns a random text that no other connection has, of any process.
func (c *Connection) ID() string {
	c.cn.Lock()
	defer c.cn.Unlock()
	x := c.extra()
	if x.id == "" {
		x.id = rand.Text()
	}
	return x.id
}

// IP returns the peer's address without the port; empty where there is none, as with Unix sockets.
func (c *Connection) IP() string {
	if a, ok := c.cn.RemoteAddr().(*net.TCPAddr); ok {
		return a.IP.String()
	}
	return ""
}

// Send sends a packet that the peer has not asked for. It does not wait: while too much waits to be sent, it fails with
// arpc.CodeResourceExhausted, and after the end of the connection with arpc.CodeUnavailable.
func (c *Connection) Send(action, seq int16, v any) error {
	b, f, err := c.instance.cfg.encode(action, seq, v)
	if err != nil {
		return err
	}
	defer b.Free()
	return push(c.cn, nil, f)
}

// Push sends a packet that is encoded already, as Instance.Pack does: action, sequence number and body. It fails as Send does.
func (c *Connection) Push(packet []byte) error {
	var head [prefixLen]byte
	if err := c.instance.cfg.frames.Put(head[:], len(packet)); err != nil {
		return fail(arpc.CodeInvalidArgument, "cannot push", err)
	}
	return push(c.cn, head[:], packet)
}

// Write is Push as an io.Writer has it: each call is one packet.
func (c *Connection) Write(packet []byte) (int, error) {
	if err := c.Push(packet); err != nil {
		return 0, err
	}
	return len(packet), nil
}

// Close runs the hooks of AddBeforeCloseHook, sends what was accepted, and closes the connection. It does not wait, and does
// nothing when called again. Requests that have not started are dropped.
func (c *Connection) Close() {
	c.runHooks()
	c.cn.Close(nil)
}

// AddBeforeCloseHook has f called once before Close takes effect, so that it may say goodbye, or when the connection has ended
// otherwise; at once if that was before.
func (c *Connection) AddBeforeCloseHook(f func(*Connection)) {
	c.cn.Lock()
	x := c.extra()
	x.hooks = append(x.hooks, f)
	late := x.hooked
	c.cn.Unlock()
	if late {
		c.runHooks()
	}
}

func (c *Connection) runHooks() {
	c.cn.Lock()
	x := c.extra()
	hooks := x.hooks
	x.hooks, x.hooked = nil, true
	c.cn.Unlock()
	for _, f := range hooks {
		safely("a hook", func() { f(c) })
	}
}

// Property returns the values that the application keeps with the connection, under names of its own.
func (c *Connection) Property() *sync.Map {
	c.cn.Lock()
	defer c.cn.Unlock()
	return &c.extra().property
}

// context returns the context that ends with the connection.
func (c *Connection) context() context.Context {
	c.cn.Lock()
	defer c.cn.Unlock()
	x := c.extra()
	if x.ctx == nil {
		x.ctx, x.cancel = context.WithCancel(context.Background())
		if c.down {
			x.cancel()
		}
	}
	return x.ctx
}
