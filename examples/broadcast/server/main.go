// The broadcast server sends every line of its standard input to all clients
// that are connected. It stops on Ctrl-C.
package main

import (
	"bufio"
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
	addr := flag.String("addr", "127.0.0.1:8889", "address to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr); err != nil {
		fmt.Fprintln(os.Stderr, "broadcast server:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string) error {
	server := arpc.NewServer()
	server.Handler.HandleConnected(func(client *arpc.Client) {
		fmt.Println("connected:", client.Conn.RemoteAddr())
	})
	server.Handler.HandleDisconnected(func(client *arpc.Client) {
		fmt.Println("disconnected:", client.Conn.RemoteAddr())
	})

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	go func() {
		for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
			server.Broadcast("/broadcast", scanner.Text())
		}
	}()

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
