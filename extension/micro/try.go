package micro

import (
	"context"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
)

// One attempt, at a peer that the Balancer chooses: the pool as an arpc.Caller.

// CallWith implements arpc.Caller.
func (p *pool) CallWith(ctx context.Context, method string, req, rsp any, values ...map[any]any) error {
	tried := triedOf(ctx)
	peer, err := p.pick(ctx, tried)
	if err != nil {
		return err
	}
	return peer.failed(tried, peer.call(ctx, method, req, rsp, values))
}

// failed returns the error of an attempt at p.
func (p *Peer) failed(tried *Tried, err error) error {
	if err == nil || tried != nil {
		return err
	}
	return &failedAt{err, p}
}

func (p *Peer) call(ctx context.Context, method string, req, rsp any, values []map[any]any) error {
	start := p.begin()
	err := p.client.Load().CallWith(ctx, method, req, rsp, values...)
	p.end(ctx, start, err)
	return err
}

func (p *Peer) callFor(timeout time.Duration, method string, req, rsp any, values []map[any]any) error {
	start := p.begin()
	err := p.client.Load().Call(method, req, rsp, timeout, values...)
	p.end(context.Background(), start, err)
	return err
}

// CallAsync implements arpc.Caller.
func (p *pool) CallAsync(method string, req any, callback func(*arpc.Context), timeout time.Duration, values ...map[any]any) error {
	if callback == nil {
		return arpc.ErrClientInvalidAsyncHandler
	}
	ctx, begun := context.Background(), since()
	peer, err := p.pick(limit(begun, timeout), nil)
	if err != nil {
		return fail(err, callback)
	}
	if timeout > 0 && timeout < arpc.TimeForever {
		timeout = max(timeout-(since()-begun), 1)
	}
	start := peer.begin()
	return peer.client.Load().CallAsync(method, req, func(answer *arpc.Context) {
		peer.end(ctx, start, answer.Err())
		callback(answer)
	}, timeout, values...)
}

// NotifyWith implements arpc.Caller.
func (p *pool) NotifyWith(ctx context.Context, method string, data any, values ...map[any]any) error {
	tried := triedOf(ctx)
	peer, err := p.pick(ctx, tried)
	if err != nil {
		return err
	}
	return peer.failed(tried, peer.notify(ctx, method, data, values))
}

func (p *Peer) notify(ctx context.Context, method string, data any, values []map[any]any) error {
	start := p.begin()
	err := p.client.Load().NotifyWith(ctx, method, data, values...)
	p.end(ctx, start, err)
	return err
}

// OpenStream implements arpc.Caller.
func (p *pool) OpenStream(ctx context.Context, method string) (*arpc.Stream, error) {
	tried := triedOf(ctx)
	peer, err := p.pick(ctx, tried)
	if err != nil {
		return nil, err
	}
	start := peer.begin()
	s, err := peer.client.Load().OpenStream(ctx, method)
	if err != nil {
		peer.end(ctx, start, err)
		return nil, peer.failed(tried, err)
	}
	context.AfterFunc(s.Context(), func() { peer.end(ctx, 0, nil) }) // how long it lasts says nothing of the node
	return s, nil
}

// fail ends a CallAsync with err. Only a Client of package arpc can make the Context of a callback.
func fail(err error, callback func(*arpc.Context)) error {
	return failing().CallAsync("/", failure{err}, callback, 1)
}

// failing returns a client that has ended.
var failing = sync.OnceValue(func() *arpc.Client {
	s := arpc.NewServer(arpc.NewHandler())
	listener, dial := arpc.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(listener) //nolint:errcheck // it is stopped
	}()
	c, err := arpc.NewClient(dial, arpc.NewHandler(), arpc.Protocol(1), arpc.WithCodec(failure{}))
	if err != nil {
		panic(err) // there is nothing that could fail
	}
	c.Stop()
	s.Stop() //nolint:errcheck // nothing is lost
	<-served
	return c
})

// failure is a value that cannot be encoded, and the codec that says so.
type failure struct{ err error }

// Marshal implements codec.Codec.
func (failure) Marshal(v any) ([]byte, error) { return nil, v.(failure).err }

// Unmarshal implements codec.Codec; there is nothing to decode.
func (failure) Unmarshal([]byte, any) error { return nil }
