package caller_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/caller"
)

var (
	// Get may be repeated whatever has happened.
	Get = arpc.NewMethod[string, string]("/get", arpc.Idempotent, arpc.Async)
	// Put is repeated only when it certainly was not carried out.
	Put = arpc.NewMethod[string, string]("/put")
)

// A handler that is not always at hand, and a client that tries again.
func ExampleRetry() {
	server := arpc.NewServer(arpc.NewHandler())
	var n atomic.Int32
	Get.Handle(server.Handler, func(_ *arpc.Context, key *string) (*string, error) {
		if n.Add(1) == 1 {
			return nil, &arpc.Error{Code: arpc.CodeUnavailable, Message: "loading"}
		}
		value := "value of " + *key
		return &value, nil
	})
	Put.Handle(server.Handler, func(_ *arpc.Context, key *string) (*string, error) {
		return nil, &arpc.Error{Code: arpc.CodeUnavailable, Message: "perhaps stored " + *key}
	})
	listener, dial := arpc.Pipe()
	go server.Serve(listener)
	defer server.Stop()
	client, err := arpc.NewClient(dial)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Stop()

	c := caller.Retry(client, caller.Attempts(4), caller.Backoff(time.Millisecond, time.Second))
	key := "x"
	value, err := Get.Call(context.Background(), c, &key)
	fmt.Println(*value, err, n.Load())
	_, err = Put.Call(context.Background(), c, &key)
	fmt.Println(err)
	// Output:
	// value of x <nil> 2
	// perhaps stored x
}

// A call that is slow on one connection is made on another one of the pool's as well.
func ExampleHedge() {
	server := arpc.NewServer(arpc.NewHandler())
	var n atomic.Int32
	Get.Handle(server.Handler, func(ctx *arpc.Context, key *string) (*string, error) {
		if n.Add(1) == 1 {
			<-ctx.Done() // slow, until nobody wants it any more
			return nil, ctx.Err()
		}
		value := "value of " + *key
		return &value, nil
	})
	listener, dial := arpc.Pipe()
	go server.Serve(listener)
	defer server.Stop()
	pool, err := arpc.NewClientPool(dial, 2)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Stop()

	next := caller.Pick(func() arpc.Caller { return pool.Next() })
	c := caller.Hedge(next, 10*time.Millisecond)
	key := "x"
	value, err := Get.Call(context.Background(), c, &key)
	fmt.Println(*value, err)
	// Output: value of x <nil>
}

// A tenant is a Caller that says with each call, notification and stream for whom it is.
type tenant struct {
	arpc.Caller
	name string
}

func (t tenant) CallWith(ctx context.Context, method string, req, rsp any, values ...map[any]any) error {
	return t.Caller.CallWith(arpc.AddMetadata(ctx, "tenant", t.name), method, req, rsp, values...)
}

func (t tenant) NotifyWith(ctx context.Context, method string, data any, values ...map[any]any) error {
	return t.Caller.NotifyWith(arpc.AddMetadata(ctx, "tenant", t.name), method, data, values...)
}

func (t tenant) OpenStream(ctx context.Context, method string) (*arpc.Stream, error) {
	return t.Caller.OpenStream(arpc.AddMetadata(ctx, "tenant", t.name), method)
}

// An interceptor of one's own is a struct that embeds a Caller.
func Example_own() {
	server := arpc.NewServer(arpc.NewHandler())
	Get.Handle(server.Handler, func(ctx *arpc.Context, key *string) (*string, error) {
		value := *key + " of " + ctx.Metadata()["tenant"]
		return &value, nil
	})
	listener, dial := arpc.Pipe()
	go server.Serve(listener)
	defer server.Stop()
	client, err := arpc.NewClient(dial)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Stop()

	c := caller.Retry(tenant{client, "acme"})
	key := "account"
	value, err := Get.Call(context.Background(), c, &key)
	fmt.Println(*value, err)
	// Output: account of acme <nil>
}
