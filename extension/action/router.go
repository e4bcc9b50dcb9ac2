package action

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/arpc-go/arpc"
)

// A Handler handles a request. Its result is the reply; after an error there is none, and OnError is told.
type Handler func(*Context) (any, error)

// ErrNotFound says that an action has no handler.
var ErrNotFound = &arpc.Error{Code: arpc.CodeNotFound, Message: "no such action"}

// A Router knows the handlers. Its methods may be called at any time, also while connections are served.
type Router struct {
	mu       sync.Mutex
	routes   atomic.Pointer[map[int16]*route] // a map is never changed, but replaced
	notFound atomic.Pointer[func(*Context)]
}

type route struct {
	handler   Handler
	unordered bool
}

// A RouteOption changes how a route is handled.
type RouteOption func(*route)

// Unordered has a route's requests handled in parallel, also those of one connection, whose replies come in any order; see
// Limits.Workers.
func Unordered() RouteOption { return func(r *route) { r.unordered = true } }

// Route sets the handler of an action, in place of the one before.
func (r *Router) Route(action int16, h Handler, opts ...RouteOption) *Router {
	rt := &route{handler: h}
	for _, o := range opts {
		o(rt)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	routes := maps.Clone(*r.routes.Load())
	routes[action] = rt
	r.routes.Store(&routes)
	return r
}

// OnNotFound sets what is called for an action without a handler, in place of OnError.
func (r *Router) OnNotFound(f func(*Context)) *Router {
	r.notFound.Store(&f)
	return r
}

// find returns the route of an action, nil if there is none.
func (r *Router) find(action int16) *route { return (*r.routes.Load())[action] }

// StandardHandler makes a Handler of a function with types: the body is decoded into a *Req.
func StandardHandler[Req, Resp any](f func(*Context, *Req) (*Resp, error)) Handler {
	return func(ctx *Context) (any, error) {
		req := new(Req)
		if err := ctx.Bind(req); err != nil {
			return nil, err
		}
		return f(ctx, req)
	}
}

// A PanicError is the failure of a request whose handler or middleware has panicked.
type PanicError struct {
	Value any
	Stack []byte // of the goroutine, as runtime/debug prints it
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }
