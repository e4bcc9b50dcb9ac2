package broadcast

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
)

// defaultConcurrency is how many calls of a Gather are in flight unless said otherwise.
const defaultConcurrency = 64

// An Answer is what became of one member's call.
type Answer[Res any] struct {
	Client *arpc.Client
	// Value is the answer, the zero value if there is an Err.
	Value Res
	// Err is as Client.CallWith returns it: what the member answered (Remote), or why there is no answer.
	Err error
}

// A GatherOption changes what Gather does.
type GatherOption func(*gatherConfig)

type gatherConfig struct {
	need, parallel int
	except         []*arpc.Client
}

// Need ends a Gather as soon as n members have answered without an error, or so many have failed that n cannot be reached any more.
// Default 0: all members are waited for, and what they answer, errors too, is no error of Gather.
func Need(n int) GatherOption { return func(c *gatherConfig) { c.need = n } }

// Concurrency bounds the calls of a Gather that are in flight, each of which occupies a goroutine; default 64. Members that do
// not answer hold up the calls behind theirs until ctx is done, so it should be more than those.
func Concurrency(n int) GatherOption { return func(c *gatherConfig) { c.parallel = n } }

// Except leaves out members.
func Except(clients ...*arpc.Client) GatherOption {
	return func(c *gatherConfig) { c.except = append(c.except, clients...) }
}

// Gather calls a method of each member of a room and returns what they answer, in the order of arrival. Res is what
// Client.CallWith decodes an answer into: []byte or string for a raw one.
//
// It ends when all have answered, when Need is satisfied, or when ctx is done: calls still in flight are cancelled then, and
// so are their handlers at members of version 2 of the protocol. A ctx without a deadline leaves each call the time of
// Limits.CallTimeout; metadata of arpc.WithMetadata goes to each member. The answers of a Gather that was ended by ctx have
// the members that did not answer too, with an Err that errors.Is ctx's; one that needed no more leaves them out.
//
// The error is that of ctx, arpc.ErrInvalidMethod, or CodeUnavailable if fewer than Need have answered without an error; the
// answers so far are returned with it.
//
// An ordered handler may gather with its own Context from a room that its caller is in; what members call back before they
// answer must not be ordered then, as it waits behind the handlers that gather. An inline handler must not gather.
func Gather[Res any](ctx context.Context, r Room, method string, req any, opts ...GatherOption) ([]Answer[Res], error) {
	cfg := gatherConfig{parallel: defaultConcurrency}
	for _, o := range opts {
		if o != nil {
			o(&cfg)
		}
	}
	if method == "" || len(method) > arpc.MaxMethodLen {
		return nil, arpc.ErrInvalidMethod
	}
	var clients []*arpc.Client
	excluded := make(map[*arpc.Client]struct{}, len(cfg.except))
	for _, c := range cfg.except {
		excluded[c] = struct{}{}
	}
	for c := range r.Members() {
		if _, no := excluded[c]; !no {
			clients = append(clients, c)
		}
	}
	calls, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g := gathering[Res]{cancel: cancel, clients: clients, need: cfg.need, answers: make([]Answer[Res], 0, len(clients))}
	if !g.possible() {
		return nil, g.tooFew(0)
	}
	var wg sync.WaitGroup
	for range min(max(cfg.parallel, 1), len(clients)) {
		wg.Go(func() { g.work(calls, method, req) })
	}
	wg.Wait()
	switch {
	case cfg.need > 0 && g.good >= cfg.need:
		return g.answers, nil
	case g.cut || !g.over && g.next < len(clients):
		err := contextError(ctx)
		for _, c := range clients[g.next:] {
			g.answers = append(g.answers, Answer[Res]{Client: c, Err: err})
		}
		return g.answers, err
	case cfg.need > 0:
		return g.answers, g.tooFew(g.good)
	}
	return g.answers, nil
}

// gathering is the state of a Gather.
type gathering[Res any] struct {
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	clients []*arpc.Client
	next    int // index of the first client that was not called
	need    int
	good    int // answers without an error
	bad     int
	over    bool // no more answers are wanted
	cut     bool // a call was ended by the context
	answers []Answer[Res]
}

// errEnough is the cause of what is cancelled because it is not needed. Members see it.
var errEnough = &arpc.Error{Code: arpc.CodeCanceled, Message: "the answer is not needed any more"}

// work calls one member after the other.
func (g *gathering[Res]) work(ctx context.Context, method string, req any) {
	for {
		g.mu.Lock()
		if g.over || g.next == len(g.clients) || ctx.Err() != nil {
			g.mu.Unlock()
			return
		}
		a := Answer[Res]{Client: g.clients[g.next]}
		g.next++
		g.mu.Unlock()
		var res Res
		if a.Err = a.Client.CallWith(ctx, method, req, &res); a.Err == nil {
			a.Value = res
		}
		g.mu.Lock()
		g.add(ctx, a)
		g.mu.Unlock()
	}
}

func (g *gathering[Res]) add(ctx context.Context, a Answer[Res]) {
	if g.over { // cancelled, or too late
		return
	}
	g.answers = append(g.answers, a)
	if isOver(ctx, a.Err) {
		g.cut = true
		return
	}
	if a.Err == nil {
		g.good++
	} else {
		g.bad++
	}
	if g.need > 0 && g.good >= g.need || !g.possible() {
		g.over = true
		g.cancel(errEnough)
	}
}

// possible reports whether so many can answer as are needed.
func (g *gathering[Res]) possible() bool { return len(g.clients)-g.bad >= g.need }

func (g *gathering[Res]) tooFew(good int) error {
	text := fmt.Sprintf("%d of %d members have answered, %d are needed", good, len(g.clients), g.need)
	return &arpc.Error{Code: arpc.CodeUnavailable, Message: text}
}

// isOver reports whether err is that the time is up, or that ctx was cancelled. The clock of a call may be a little ahead of
// that of its context.
func isOver(ctx context.Context, err error) bool {
	var e *arpc.Error
	if !errors.As(err, &e) || e.Remote {
		return false
	}
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil && errors.Is(err, ctx.Err()) || ok && e.Code == arpc.CodeDeadlineExceeded && !time.Now().Before(deadline)
}

// contextError is the *arpc.Error for the end of a context.
func contextError(ctx context.Context) error {
	if ctx.Err() == nil || ctx.Err() == context.DeadlineExceeded {
		return arpc.ErrTimeout
	}
	return &arpc.Error{Code: arpc.CodeCanceled, Message: context.Cause(ctx).Error()}
}
