package metrics_test

import (
	"context"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/metrics"
)

// BenchmarkCall measures what a Metrics at both ends, in one process, costs a typed call: one after the other on a connection, and by 64
// callers at once for each core.
func BenchmarkCall(b *testing.B) {
	type message struct {
		Name string
		Data []byte
	}
	echo := arpc.NewMethod[message, message]("/echo")
	for _, how := range []string{"serial", "parallel"} {
		for _, set := range []string{"unset", "set"} {
			b.Run(how+"/"+set, func(b *testing.B) {
				hs, hc := arpc.NewHandler(), arpc.NewHandler()
				if set == "set" {
					m := metrics.New()
					hs.SetObserver(m)
					hc.SetObserver(m)
				}
				echo.Handle(hs, func(_ *arpc.Context, m *message) (*message, error) { return m, nil })
				ln := listen(b)
				serve(b, arpc.NewServer(hs), ln)
				c := dial(b, ln.Addr().String(), hc)
				m, ctx := &message{"benchmark", make([]byte, 256)}, context.Background()
				b.ReportAllocs()
				if how == "serial" {
					for b.Loop() {
						if _, err := echo.Call(ctx, c, m); err != nil {
							b.Fatal(err)
						}
					}
					return
				}
				b.SetParallelism(64)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := echo.Call(ctx, c, m); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}
