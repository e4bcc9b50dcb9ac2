package redis

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/enginetest"
	"github.com/arpc-go/arpc/extension/pubsub/redis/internal/redistest"
)

// TestChaos runs for eight seconds, and longer by the environment variable ARPC_CHAOS: ARPC_CHAOS=2m.
func TestChaos(t *testing.T) {
	enginetest.Chaos(t, redistest.Start(t).Addr)
}

// TestChaosOfRedis kills Redis again and again while publishers publish, and publish again what may have failed. No subscriber may
// miss a message without being told; and where Redis keeps everything, nobody misses anything, and nothing comes twice.
func TestChaosOfRedis(t *testing.T) {
	for name, test := range map[string]struct {
		args       []string
		persistent bool
	}{
		"always": {[]string{"--appendonly", "yes", "--appendfsync", "always"}, true},
		"memory": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			const topics, subscribers, kills = 3, 12, 4
			server := redistest.Start(t, test.args...)
			c := testConfig(server.Addr)
			c.Persistent = test.persistent
			var addrs []string
			for range 2 {
				_, addr := serve(t, open(t, c))
				addrs = append(addrs, addr)
			}
			client := func(i int) *pubsub.Client {
				client, err := pubsub.NewClient(func() (net.Conn, error) { return net.Dial("tcp", addrs[i%2]) })
				must(t, err)
				t.Cleanup(client.Stop)
				return client
			}
			var fault atomic.Pointer[string]
			fail := func(format string, args ...any) {
				text := fmt.Sprintf(format, args...)
				fault.CompareAndSwap(nil, &text)
			}
			var recovered, gaps atomic.Int64
			var next [topics]atomic.Int64 // to publish
			var seen [subscribers]atomic.Int64
			for i := range subscribers {
				excused := false
				_, err := client(i).SubscribeWith(within(t), fmt.Sprint("t.", i%topics), func(m *pubsub.Message) {
					var n int64
					fmt.Sscan(string(m.Data), &n)
					switch want := seen[i].Load(); {
					case n == want:
					case !excused && (n > want || test.persistent):
						fail("subscriber %d: %d, not %d, and nobody said so", i, n, want)
					case n < want: // with the rest of what Redis knew it has lost the IDs
						return
					}
					excused = false
					seen[i].Store(n + 1)
				}, pubsub.OnEvent(func(e pubsub.Event) {
					switch {
					case e.Kind == pubsub.EventLost, e.Kind == pubsub.EventEnded:
						fail("subscriber %d: %+v", i, e)
					case e.Kind == pubsub.EventSubscribed && e.Resumed && e.Recovered:
						recovered.Add(1)
					case e.Kind == pubsub.EventSubscribed && e.Resumed:
						gaps.Add(1)
						excused = true
					}
				}), pubsub.QueueSize(1<<20))
				must(t, err)
			}
			stop := make(chan struct{})
			var publishing sync.WaitGroup
			for i := range topics {
				p := client(i)
				publishing.Go(func() {
					for n := int64(0); ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						for attempt := 0; ; attempt++ {
							_, err := p.PublishWith(within(t), fmt.Sprint("t.", i), fmt.Sprint(n), pubsub.WithID(fmt.Sprint(n)))
							if err == nil {
								break
							}
							if !errors.Is(err, arpc.CodeUnavailable) || attempt == 10_000 {
								fail("publishing: %v", err)
								return
							}
						}
						next[i].Store(n + 1)
					}
				})
			}
			progress := func(n int64) {
				t.Helper()
				at := [topics]int64{}
				for i := range at {
					at[i] = next[i].Load()
				}
				waitFor(t, "progress", func() bool {
					for i := range at {
						if next[i].Load() < at[i]+n && fault.Load() == nil {
							return false
						}
					}
					return true
				})
			}
			for range kills {
				progress(50)
				server.Kill()
				server.Restart()
			}
			progress(50)
			close(stop)
			publishing.Wait()
			waitFor(t, "the end", func() bool {
				for i := range subscribers {
					if seen[i].Load() != next[i%topics].Load() && fault.Load() == nil {
						return false
					}
				}
				return true
			})
			if text := fault.Load(); text != nil {
				t.Fatal(*text)
			}
			t.Logf("%d messages, %d recoveries, %d told of a gap", next[0].Load()+next[1].Load()+next[2].Load(), recovered.Load(), gaps.Load())
			if test.persistent && gaps.Load() > 0 || !test.persistent && gaps.Load() < subscribers {
				t.Error("Recovered is wrong")
			}
		})
	}
}
