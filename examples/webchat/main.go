// Webchat is a chat for web pages: rooms, names, the last messages, and who is here. It prints its address and stops on
// Ctrl-C. The pages call the server, and the server calls the pages.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr); err != nil {
		fmt.Fprintln(os.Stderr, "webchat:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := newChat().server
	web := &http.Server{Handler: newMux(server), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	fmt.Printf("webchat is at http://%s\n", listener.Addr())

	select {
	case err := <-served: // the listener failed
		return errors.Join(err, server.Stop())
	case <-ctx.Done():
	}
	fmt.Println("stopping")
	// The HTTP server first, so that pages which lose their connection cannot come back. It has only files to send; what is left
	// after a second are connections that a browser has opened in advance.
	brief, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err = web.Shutdown(brief); errors.Is(err, context.DeadlineExceeded) {
		err = web.Close()
	}
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = errors.Join(err, server.Shutdown(limited))
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}
