package redis_test

import (
	"context"
	"log"
	"time"

	"github.com/redis/rueidis"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/redis"
)

// A server of which there may be many: those with the same Redis and the same Prefix form one publish and subscribe.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	engine, err := redis.New(ctx, redis.Config{Client: rueidis.ClientOption{InitAddress: []string{"10.0.0.1:6379"}}})
	if err != nil {
		log.Fatal(err) // it is not there, or not good enough
	}
	defer engine.Close()
	server, err := pubsub.NewServerWith(pubsub.Config{
		Engine: engine,
		Topics: func(string) pubsub.TopicConfig {
			return pubsub.TopicConfig{HistorySize: 1000, HistoryAge: time.Hour, Presence: true}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	log.Print(server.Run(":8888"))
}
