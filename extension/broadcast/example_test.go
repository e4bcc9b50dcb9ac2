package broadcast_test

import (
	"context"
	"fmt"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/broadcast"
)

func Example() {
	listener, dial := arpc.Pipe()
	hub := broadcast.NewHub()
	handler := arpc.NewHandler()
	handler.Handle("/join", func(ctx *arpc.Context) {
		var room string
		if err := ctx.Bind(&room); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(hub.Room(room).Join(ctx.Client))
	})
	server := arpc.NewServer(handler)
	go server.Serve(listener) //nolint:errcheck // it ends by Stop
	defer server.Stop()       //nolint:errcheck // nothing is left

	got := make(chan string)
	for _, city := range []string{"Berne", "Oslo"} {
		h := arpc.NewHandler()
		h.Handle("/news", func(ctx *arpc.Context) {
			var text string
			ctx.Bind(&text) //nolint:errcheck // any text can be bound
			got <- text
		})
		h.Handle("/where", func(ctx *arpc.Context) { ctx.Write(city) })
		client, err := arpc.NewClient(dial, h)
		if err != nil {
			fmt.Println(err)
			return
		}
		defer client.Stop()
		if err := client.Call("/join", "news", nil, time.Second); err != nil {
			fmt.Println(err)
			return
		}
	}

	news := hub.Room("news")
	n, err := news.Send("/news", "it rains")
	fmt.Println("sent to", n, err)
	fmt.Println(<-got)
	fmt.Println(<-got)

	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	answers, err := broadcast.Gather[string](ctx, news, "/where", nil)
	for _, a := range answers {
		fmt.Println(a.Value)
	}
	fmt.Println(err)

	// Unordered output:
	// sent to 2 <nil>
	// it rains
	// it rains
	// Berne
	// Oslo
	// <nil>
}
