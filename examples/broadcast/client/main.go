// The broadcast client prints what the broadcast server sends to all its
// clients. It connects again when the server is restarted, and stops on
// Ctrl-C.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/arpc-go/arpc"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8889", "address of the server")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr); err != nil {
		fmt.Fprintln(os.Stderr, "broadcast client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string) error {
	handler := arpc.NewHandler()
	handler.Handle("/broadcast", func(ctx *arpc.Context) {
		var text string
		if err := ctx.Bind(&text); err == nil {
			fmt.Println("received:", text)
		}
	})
	client, err := arpc.NewClient(func() (net.Conn, error) {
		return net.DialTimeout("tcp", addr, 5*time.Second)
	}, handler)
	if err != nil {
		return err
	}
	defer client.Stop()
	fmt.Println("connected to", addr)

	<-ctx.Done()
	fmt.Println("stopping")
	return nil
}
