// The echo server answers every call of /echo with what it was sent. It stops
// on Ctrl-C, after the calls it is working on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/arpc-go/arpc"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8888", "address to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr); err != nil {
		fmt.Fprintln(os.Stderr, "echo server:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string) error {
	server := arpc.NewServer()
	server.Handler.Handle("/echo", func(ctx *arpc.Context) {
		var text string
		if err := ctx.Bind(&text); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(text)
	})

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	select {
	case err := <-served: // the listener failed
		return errors.Join(err, server.Stop())
	case <-ctx.Done():
	}
	fmt.Println("stopping")
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = server.Shutdown(limited)
	if serveErr := <-served; !errors.Is(serveErr, arpc.ErrServerStopped) {
		err = errors.Join(err, serveErr)
	}
	return err
}
