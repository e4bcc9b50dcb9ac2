package arpc

import (
	"slices"
	"testing"
	"time"
)

// Calls one after the other beside a stream that nobody receives, and without it; the percentile is to be compared within
// one run.
func BenchmarkCallBesideUnreadStream(b *testing.B) {
	for _, unread := range []bool{false, true} {
		name := "without"
		if unread {
			name = "with"
		}
		b.Run(name, func(b *testing.B) {
			s := startServer(b)
			s.Handler.Handle("/echo", echo)
			full, release := make(chan struct{}), make(chan struct{})
			s.Handler.HandleStream("/unread", func(*Stream) { <-release })
			c := dialClient(b, s.addr)
			done := make(chan struct{})
			if unread {
				st := c.NewStream("/unread")
				go func() {
					defer close(done)
					p := make([]byte, 64<<10)
					for n := 0; ; n++ {
						if st.TrySend(p) != nil {
							if n > 0 {
								close(full)
							}
							break
						}
					}
					for st.Send(p) == nil { // it waits for the stream's end
					}
				}()
				<-full
			} else {
				close(done)
			}
			req, took := make([]byte, 64), make([]time.Duration, 0, b.N)
			var rsp []byte
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				if err := c.Call("/echo", req, &rsp, patience); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
			close(release)
			<-done
		})
	}
}

func BenchmarkCall(b *testing.B) {
	for _, version := range []int{1, 2} {
		b.Run([]string{"", "v1", "v2"}[version], func(b *testing.B) {
			s := startServer(b)
			s.Handler.Handle("/echo", echo)
			c := dialClient(b, s.addr, Protocol(version))
			req := make([]byte, 64)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				var rsp []byte
				for pb.Next() {
					if err := c.Call("/echo", req, &rsp, patience); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
