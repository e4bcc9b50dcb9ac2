package redis

import (
	"context"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/redis/internal/redistest"
)

// BenchmarkPublish publishes 128 bytes at a time from many goroutines, to a topic that nobody has subscribed to.
func BenchmarkPublish(b *testing.B) {
	for name, config := range map[string]pubsub.TopicConfig{
		"plain": {}, "history": {HistorySize: 1000}, "history with age": {HistorySize: 1000, HistoryAge: time.Hour},
	} {
		b.Run(name, func(b *testing.B) {
			e := open(b, testConfig(redistest.Start(b).Addr))
			data := make([]byte, 128)
			b.ReportAllocs()
			b.SetParallelism(64)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := e.Publish(context.Background(), &pubsub.Message{Topic: "t", Data: data}, pubsub.PublishOptions{Topic: config}); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
