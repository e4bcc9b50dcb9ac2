//go:build unix

package micro_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
)

// BenchmarkCall compares calls through direct clients with those through a Client, with callers and bytes of S1 of the benchmarks: with one
// node, and with eight, where the direct ones take turns as a ClientPool's do.
func BenchmarkCall(b *testing.B) {
	for _, nodes := range []int{1, 8} {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) { benchmarkCall(b, nodes) })
	}
}

func benchmarkCall(b *testing.B, nodes int) {
	r := micro.NewMemory()
	defer r.Close()
	var dialers []func() (net.Conn, error)
	for i := range nodes {
		p := provide(b, "svc", fmt.Sprint(i), func(h arpc.Handler) {
			h.Handle("/echo", func(ctx *arpc.Context) { ctx.Write(ctx.Body()) }) //nolint:errcheck // the call fails
		})
		must(b, r.Register(context.Background(), p.node, 0))
		dialers = append(dialers, func() (net.Conn, error) { return net.Dial("tcp", p.node.Addr) })
	}
	pool, err := arpc.NewClientPoolFromDialers(dialers, arpc.NewHandler())
	must(b, err)
	defer pool.Stop()
	through := func(config micro.Config) *micro.Client {
		c, err := micro.NewClient(context.Background(), r, "svc", config)
		must(b, err)
		b.Cleanup(func() { c.Close() }) //nolint:errcheck // it never fails
		ready(b, c, nodes)
		return c
	}
	request := strings.Repeat("x", 64)
	once, again := context.Background(), arpc.WithIdempotent(context.Background())
	least, hedged := through(micro.Config{}), through(micro.Config{Hedge: 1e9})
	for _, of := range []struct {
		name string
		call func(rsp *string) error
	}{
		{"direct", func(rsp *string) error { return pool.Next().CallWith(once, "/echo", request, rsp) }},
		{"micro", func(rsp *string) error { return least.CallWith(once, "/echo", request, rsp) }},
		{"micro-idempotent", func(rsp *string) error { return least.CallWith(again, "/echo", request, rsp) }},
		{"micro-hedge", func(rsp *string) error { return hedged.CallWith(again, "/echo", request, rsp) }},
	} {
		b.Run(of.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(40) // 80 callers on two cores
			begin := cpu()
			b.RunParallel(func(pb *testing.PB) {
				var rsp string
				for pb.Next() {
					if err := of.call(&rsp); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(cpu()-begin)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpu is the processor time that this process has used: other than the time that passes, it does not depend on what else the machine does.
func cpu() int64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u) //nolint:errcheck // it never fails
	return u.Utime.Nano() + u.Stime.Nano()
}
