package router_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

// BenchmarkCall measures calls over TCP, one after the other: "none" without a
// middleware, the others with one. Allocations are those of both ends.
func BenchmarkCall(b *testing.B) {
	var graceful router.Graceful
	token := arpc.AddMetadata(context.Background(), "authorization", "Bearer ann")
	for _, bench := range []struct {
		name       string
		ctx        context.Context
		middleware arpc.HandlerFunc
	}{
		{"none", context.Background(), nil},
		{"recover", context.Background(), router.Recover()},
		{"logger", context.Background(), router.Logger(router.LoggerOptions{Log: slog.New(slog.DiscardHandler)})},
		{"logger to JSON", context.Background(), router.Logger(router.LoggerOptions{Log: slog.New(slog.NewJSONHandler(nowhere{}, nil))})},
		{"timeout", context.Background(), router.Timeout(time.Second)},
		{"token without auth", token, nil},
		{"auth", token, router.Auth(verify)},
		{"limit", context.Background(), router.Limit(router.LimitOptions{
			Route: router.Quota{Rate: 1e9, Concurrency: 100}, Peer: router.Quota{Rate: 1e9, Concurrency: 100}})},
		{"breaker", context.Background(), router.Breaker()},
		{"graceful", context.Background(), graceful.Handler()},
	} {
		b.Run(bench.name, func(b *testing.B) {
			h := arpc.NewHandler()
			h.Use(bench.middleware)
			h.Handle("/call", func(ctx *arpc.Context) { ctx.Write(ctx.Body()) })
			c := start(b, h)
			var rsp []byte
			b.ReportAllocs()
			for b.Loop() {
				if err := c.CallWith(bench.ctx, "/call", "hello", &rsp); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkRefusal measures what a refused call costs.
func BenchmarkRefusal(b *testing.B) {
	h := arpc.NewHandler()
	h.Use(router.Limit(router.LimitOptions{Peer: router.Quota{Rate: 1e-9}}))
	h.Handle("/call", func(ctx *arpc.Context) { ctx.Write(nil) })
	c := start(b, h)
	c.Call("/call", nil, nil, patience) //nolint:errcheck // the one that passes
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Call("/call", nil, nil, patience); arpc.CodeOf(err) != arpc.CodeResourceExhausted {
			b.Fatal(err)
		}
	}
}
