package caller

import (
	"context"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// BenchmarkCall compares calls through a client with those through its wrappers, over TCP; "nothing" are the wrappers alone.
func BenchmarkCall(b *testing.B) {
	h := arpc.NewHandler()
	h.Handle("/echo", func(ctx *arpc.Context) { ctx.Write(ctx.Body()) })
	_, dialer := serve(b, h)
	client := dial(b, dialer)
	nothing := &fake{call: func(context.Context, any) error { return nil }}
	once := arpc.WithIdempotent(context.Background())
	for _, c := range []struct {
		name string
		c    arpc.Caller
		ctx  context.Context
	}{
		{"client", client, context.Background()},
		{"client/Retry", Retry(client), context.Background()},
		{"client/Retry/idempotent", Retry(client), once},
		{"client/Hedge", Hedge(client, time.Minute), once},
		{"client/Retry/Hedge", Retry(Hedge(client, time.Minute)), once},
		{"nothing/Retry", Retry(nothing), context.Background()},
		{"nothing/Retry/idempotent", Retry(nothing), once},
		{"nothing/Hedge", Hedge(nothing, time.Minute), once},
		{"nothing/Hedge/not-idempotent", Hedge(nothing, time.Minute), context.Background()},
		{"nothing/Pick", Pick(func() arpc.Caller { return nothing }), once},
	} {
		b.Run(c.name, func(b *testing.B) {
			var rsp string
			b.ReportAllocs()
			for b.Loop() {
				if err := c.c.CallWith(c.ctx, "/echo", "hello", &rsp); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCallAsync(b *testing.B) {
	h := arpc.NewHandler()
	h.Handle("/echo", func(ctx *arpc.Context) { ctx.Write(ctx.Body()) })
	_, dialer := serve(b, h)
	client := dial(b, dialer)
	for _, c := range []struct {
		name string
		c    arpc.Caller
	}{{"client", client}, {"client/Retry", Retry(client)}} {
		b.Run(c.name, func(b *testing.B) {
			done := make(chan error, 1)
			callback := func(ctx *arpc.Context) { done <- ctx.Err() }
			b.ReportAllocs()
			for b.Loop() {
				c.c.CallAsync("/echo", "hello", callback, time.Minute) //nolint:errcheck // the callback has it
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
