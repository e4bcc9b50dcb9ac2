package main

import (
	"errors"
	"fmt"
	"log"
	"strings"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

// topics makes a server whose topics have what the first word of their names says.
func topics(password string, opts ...arpc.ServerOption) *pubsub.Server {
	kinds := map[string]pubsub.TopicConfig{
		"kept":  {HistorySize: 10000},
		"few":   {HistorySize: 3},
		"last":  {LastValue: true},
		"there": {HistorySize: 100, Presence: true},
	}
	s, err := pubsub.NewServerWith(pubsub.Config{
		Password: password,
		Topics: func(topic string) pubsub.TopicConfig {
			kind, _, _ := strings.Cut(topic, ".")
			return kinds[kind]
		},
		Authorize: func(_ *arpc.Context, action pubsub.Action, topic string) error {
			if strings.HasPrefix(topic, "secret") || strings.HasPrefix(topic, "readonly") && action == pubsub.ActionPublish {
				return errors.New("it is not yours")
			}
			return nil
		},
	}, opts...)
	if err != nil {
		log.Fatal(err)
	}
	// Publishes numbers from 0 on, as strings, which go out together as far as they can.
	type order struct {
		Topic string
		Count int
		Key   string
	}
	arpc.NewMethod[order, struct{}]("/publish", arpc.Async).Handle(s.Handler, func(c *arpc.Context, o *order) (*struct{}, error) {
		for i := range o.Count {
			if _, err := s.PublishWith(c, o.Topic, fmt.Sprint(i), pubsub.WithKey(o.Key)); err != nil {
				return nil, err
			}
		}
		return &struct{}{}, nil
	})
	arpc.NewMethod[string, struct{}]("/revoke", arpc.Async).Handle(s.Handler, func(_ *arpc.Context, topic *string) (*struct{}, error) {
		s.Revoke(func(_ *arpc.Client, t string) error {
			if t == *topic {
				return errors.New("no longer")
			}
			return nil
		})
		return &struct{}{}, nil
	})
	s.Handler.Handle("/subscriptions", func(c *arpc.Context) { reply(c, s.TopicStats().Subscriptions) })
	return s
}
