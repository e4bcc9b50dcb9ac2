package router_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

// connect returns a client of a server with the handler h, in memory.
func connect(h arpc.Handler) (client *arpc.Client, stop func()) {
	server := arpc.NewServer(h)
	listener, dial := arpc.Pipe()
	go server.Serve(listener) //nolint:errcheck // it ends with Stop
	client, err := arpc.NewClient(dial, arpc.NewHandler())
	if err != nil {
		panic(err)
	}
	return client, func() {
		client.Stop()
		server.Stop() //nolint:errcheck // an example
	}
}

func ExampleRecover() {
	h := arpc.NewHandler()
	h.Use(router.Recover(router.RecoverOptions{Log: slog.New(slog.DiscardHandler)}))
	h.Handle("/divide", func(ctx *arpc.Context) {
		zero := len(ctx.Body())
		ctx.Write(1 / zero)
	})
	client, stop := connect(h)
	defer stop()

	err := client.Call("/divide", nil, nil, time.Minute)
	fmt.Println(arpc.CodeOf(err), err)
	// Output: internal internal error: the handler panicked
}

func ExampleLogger() {
	text := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == "time" || a.Key == "duration" { // they differ each time
			return slog.Attr{}
		}
		return a
	}})
	h := arpc.NewHandler()
	h.Use(router.Logger(router.LoggerOptions{Log: slog.New(text)}))
	h.Handle("/hello", func(ctx *arpc.Context) { ctx.Write("hello") })
	h.Handle("/find", func(ctx *arpc.Context) { ctx.Write(arpc.CodeNotFound) })
	client, stop := connect(h)
	defer stop()

	client.Call("/hello", nil, nil, time.Minute)
	client.Call("/find", nil, nil, time.Minute)
	client.Call("/hello", nil, nil, time.Minute)
	// Unordered output:
	// level=INFO msg="arpc: call" method=/hello kind=call peer=pipe code=ok
	// level=WARN msg="arpc: call" method=/find kind=call peer=pipe code=not_found error=not_found
	// level=INFO msg="arpc: call" method=/hello kind=call peer=pipe code=ok
}

func ExampleTimeout() {
	h := arpc.NewHandler()
	h.Use(router.Timeout(20 * time.Millisecond))
	h.Handle("/slow", func(ctx *arpc.Context) {
		<-ctx.Done() // such as a query that is given ctx
		ctx.Write(ctx.Err())
	})
	client, stop := connect(h)
	defer stop()

	err := client.Call("/slow", nil, nil, time.Minute)
	fmt.Println(arpc.CodeOf(err))
	// Output: deadline_exceeded
}

func ExampleAuth() {
	verify := func(ctx context.Context, token string) (any, error) {
		if token != "secret-of-ann" {
			return nil, arpc.CodeUnauthenticated
		}
		return "ann", nil
	}
	h := arpc.NewHandler()
	h.Use(router.Auth(verify))
	h.Handle("/who", func(ctx *arpc.Context) {
		who, _ := router.Principal[string](ctx)
		ctx.Write(who)
	})
	client, stop := connect(h)
	defer stop()

	var who string
	ctx := arpc.AddMetadata(context.Background(), "authorization", "Bearer secret-of-ann")
	fmt.Println(client.CallWith(ctx, "/who", nil, &who), who)
	fmt.Println(client.CallWith(context.Background(), "/who", nil, &who))
	// Output:
	// <nil> ann
	// a bearer token is required
}

func ExampleLimit() {
	h := arpc.NewHandler()
	h.Use(router.Limit(router.LimitOptions{
		Route:  router.Quota{Rate: 1000, Concurrency: 100},                 // of each method
		Routes: map[string]router.Quota{"/report": {Rate: 0.01, Burst: 1}}, // but of this one
		Peer:   router.Quota{Rate: 100},                                    // of each address
	}))
	h.Handle("/report", func(ctx *arpc.Context) { ctx.Write("done") })
	client, stop := connect(h)
	defer stop()

	fmt.Println(client.Call("/report", nil, nil, time.Minute))
	err := client.Call("/report", nil, nil, time.Minute)
	after, _ := arpc.RetryDelay(err)
	fmt.Println(arpc.CodeOf(err), err, after > 99*time.Second)
	// Output:
	// <nil>
	// resource_exhausted too many requests of this method per second true
}

func ExampleBreaker() {
	h := arpc.NewHandler()
	h.Use(router.Breaker(router.BreakerOptions{Least: 3, Open: time.Minute, Log: slog.New(slog.DiscardHandler)}))
	queries := 0
	h.Handle("/query", func(ctx *arpc.Context) {
		queries++
		ctx.Write(&arpc.Error{Code: arpc.CodeUnavailable, Message: "the database is down"})
	})
	client, stop := connect(h)
	defer stop()

	var err error
	for !arpc.IsRefused(err) {
		err = client.Call("/query", nil, nil, time.Minute)
	}
	fmt.Println(queries, err)
	// Output: 3 too many calls of this method have failed
}

func ExampleGraceful() {
	var graceful router.Graceful
	h := arpc.NewHandler()
	h.Use(graceful.Handler())
	h.Handle("/hello", func(ctx *arpc.Context) { ctx.Write("hello") })
	client, stop := connect(h)
	defer stop()

	fmt.Println(client.Call("/hello", nil, nil, time.Minute))
	graceful.Shutdown() // waits for what runs
	err := client.Call("/hello", nil, nil, time.Minute)
	fmt.Println(arpc.CodeOf(err), arpc.IsRefused(err), err)
	// Output:
	// <nil>
	// unavailable true the peer is draining
}
