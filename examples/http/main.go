// A minimal HTTP/1.1 server on package event: keep-alive and pipelining, an answer to several requests that arrive together is one
// write. Requests are parsed by net/http. It greets, and gives back what is sent with POST; it stops on Ctrl-C.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/arpc-go/arpc/extension/event"
)

func main() {
	addr := flag.String("addr", "tcp://127.0.0.1:8080", "address to listen on; tcp-net:// instead of tcp:// has a goroutine per connection")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := serve(ctx, func(a net.Addr) { fmt.Println("listening on", a) }, *addr); err != nil {
		fmt.Fprintln(os.Stderr, "http:", err)
		os.Exit(1)
	}
}

// serve serves addr until ctx is done.
func serve(ctx context.Context, listening func(net.Addr), addr string) error {
	date := now()
	clients := map[int]*client{}
	var out []byte // used by one Data after the other
	return event.Serve(event.Events{
		Serving: func(_ func(int) bool, addrs []net.Addr) event.Action {
			listening(addrs[0])
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
			out, action = clients[id].data(date, out[:0], in)
			return out, action
		},
		Tick: func() (time.Duration, event.Action) {
			if ctx.Err() != nil {
				return 0, event.Shutdown
			}
			date = now()
			return 50 * time.Millisecond, event.None
		},
	}, addr)
}

func now() string { return time.Now().UTC().Format(http.TimeFormat) }
