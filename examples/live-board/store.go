package main

import (
	"context"
	"fmt"
	"os"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
)

type storeOptions struct{ nats, natsAddr, data string }

// A store is what the board lives on.
type store struct {
	engine pubsub.Engine // nil for the memory of the process
	url    string        // by which others share it, if this process has the server
	ends   []func() error
}

// openStore opens what the options ask for. Whatever it has begun when it fails has ended.
func openStore(ctx context.Context, o storeOptions) (s *store, err error) {
	s = &store{}
	defer func() {
		if err != nil {
			s.close() //nolint:errcheck // the first error says more
		}
	}()
	config := nats.Config{URL: o.nats}
	switch o.nats {
	case "":
		return s, nil
	case "embedded":
		if o.data == "" {
			if o.data, err = os.MkdirTemp("", "live-board"); err != nil {
				return s, err
			}
			s.ends = append(s.ends, func() error { return os.RemoveAll(o.data) })
		}
		server, err := embedded.Start(embedded.Config{Dir: o.data, Addr: o.natsAddr})
		if err != nil {
			return s, err
		}
		s.ends = append(s.ends, func() error { server.Stop(); return nil })
		config.URL, config.Server, s.url = "", server, server.URL()
	}
	engine, err := nats.New(ctx, config)
	if err != nil {
		return s, fmt.Errorf("the board cannot be on NATS: %w", err)
	}
	s.engine = engine
	s.ends = append(s.ends, engine.Close)
	return s, nil
}

// close ends what was begun, the last first.
func (s *store) close() (err error) {
	for i := len(s.ends) - 1; i >= 0; i-- {
		if e := s.ends[i](); err == nil {
			err = e
		}
	}
	s.ends = nil
	return err
}
