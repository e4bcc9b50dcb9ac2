// A small Redis: PING, ECHO, GET, SET, DEL, INCR, QUIT and SHUTDOWN, and what redis-cli and redis-benchmark ask for. It shows package
// event: one loop, no locks, and an answer to a pipeline of commands is one write. It stops on Ctrl-C.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/arpc-go/arpc/extension/event"
)

func main() {
	addr := flag.String("addr", "tcp://127.0.0.1:6380", "address to listen on; tcp-net:// instead of tcp:// has a goroutine per connection")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := serve(ctx, func(a net.Addr) { fmt.Println("listening on", a) }, *addr); err != nil {
		fmt.Fprintln(os.Stderr, "redis:", err)
		os.Exit(1)
	}
}

// serve serves addrs until ctx is done or a client says SHUTDOWN.
func serve(ctx context.Context, listening func(net.Addr), addrs ...string) error {
	s := newStore()
	clients := map[int]*client{}
	var out []byte // used by one Data after the other
	return event.Serve(event.Events{
		Serving: func(_ func(int) bool, addrs []net.Addr) event.Action {
			for _, a := range addrs {
				listening(a)
			}
			return event.None
		},
		Opened: func(id int, _ event.Addr) ([]byte, event.Options, event.Action) {
			clients[id] = new(client)
			return nil, event.Options{ReuseInputBuffer: true}, event.None
		},
		Closed: func(id int, _ error) event.Action {
			delete(clients, id)
			return event.None
		},
		Data: func(id int, in []byte) ([]byte, event.Action) {
			if cap(out) > maxReuse {
				out = nil
			}
			var action event.Action
			out, action = clients[id].data(s, out[:0], in)
			return out, action
		},
		Tick: func() (time.Duration, event.Action) {
			if ctx.Err() != nil {
				return 0, event.Shutdown
			}
			return 50 * time.Millisecond, event.None
		},
	}, addrs...)
}
