package action

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/core"
	"github.com/arpc-go/arpc/log"
)

// A Context is a request that is being handled. As a context.Context it ends with the connection. It belongs to the goroutine of
// the handler, but for Conn, Reply and the methods of a context.Context.
type Context struct {
	conn   *Connection
	packet Packet
	route  *route
	step   int      // which of the middleware is next; one behind them is the route
	frame  *buf.Buf // of an unordered request, whose packet is in it
}

// Packet returns the request. It is valid until the handler returns.
func (c *Context) Packet() *Packet { return &c.packet }

// Bind decodes the body into v, a pointer.
func (c *Context) Bind(v any) error { return c.packet.Bind(v) }

// Conn returns the connection that the request came on.
func (c *Context) Conn() *Connection { return c.conn }

// Next runs the middleware that is left, and the handler, and returns after them. A middleware that does not call it returns
// before they run.
func (c *Context) Next() {
	chain := c.conn.instance.cfg.middleware
	for c.step <= len(chain) {
		i := c.step
		if c.step++; i < len(chain) {
			chain[i](c)
		} else {
			c.handle()
		}
	}
}

// Abort keeps what is left of the middleware, and the handler, from running.
func (c *Context) Abort() { c.step = len(c.conn.instance.cfg.middleware) + 1 }

// Reply sends a reply besides the one that a handler's result is, or where there is none.
func (c *Context) Reply(v any) error {
	b, f, err := c.conn.instance.cfg.encode(c.packet.Action, c.packet.Seq, v)
	if err != nil {
		return err
	}
	defer b.Free()
	cn, urgency := c.conn.cn, core.Answer // of a handler in line: it may be written together with the next ones
	if c.frame != nil {
		urgency = core.Now
	}
	cn.Lock()
	if err := sendable(cn, false); err != nil {
		cn.Unlock()
		return err
	}
	copy(cn.ReserveAnswer(len(f)), f)
	cn.Commit(urgency, false)
	return nil
}

func (c *Context) handle() {
	if c.route == nil {
		if f := c.conn.instance.router.notFound.Load(); f != nil {
			(*f)(c)
		} else {
			c.fail(ErrNotFound)
		}
		return
	}
	v, err := c.route.handler(c)
	if err == nil {
		err = c.Reply(v)
	}
	if err != nil {
		c.fail(err)
	}
}

// run handles the request.
func (c *Context) run() {
	defer func() {
		if p := recover(); p != nil {
			c.fail(&PanicError{p, debug.Stack()})
		}
	}()
	c.Next()
}

func (c *Context) fail(err error) {
	if f := c.conn.instance.cfg.onError; f != nil {
		safely("OnError", func() { f(c, err) })
	} else if p, ok := err.(*PanicError); ok {
		log.Error("action %d: %v\n%s", c.packet.Action, p, p.Stack)
	} else {
		log.Debug("action %d: %v", c.packet.Action, err)
	}
}

// safely calls user code that nobody is to be told about.
func safely(what string, f func()) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("action: panic in %s: %v\n%s", what, p, debug.Stack())
		}
	}()
	f()
}

// unordered is a request that is handled on a goroutine of package work.
type unordered Context

// RunTask implements work.Task.
func (u *unordered) RunTask() {
	c := (*Context)(u)
	c.run()
	c.packet.Body = nil
	c.frame.Free()
	c.conn.instance.workers.Add(-1)
	c.conn.cn.Release()
}

var _ context.Context = (*Context)(nil)

// Deadline implements context.Context: there is none.
func (c *Context) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (c *Context) Done() <-chan struct{} { return c.conn.context().Done() }

// Err implements context.Context.
func (c *Context) Err() error { return c.conn.context().Err() }

// Value implements context.Context: there are none of the application's.
func (c *Context) Value(key any) any { return c.conn.context().Value(key) }
