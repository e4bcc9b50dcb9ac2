// Typed-web has the thermostats of a house on a web page. One .proto file says what page and server call of each other, in Go and
// in TypeScript. It prints its address and stops on Ctrl-C.
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
	addr := flag.String("addr", "localhost:8080", "address to listen on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ready := func(addr string) { fmt.Printf("typed-web is at http://%s\n", addr) }
	if err := run(ctx, *addr, ready); err != nil {
		fmt.Fprintln(os.Stderr, "typed-web:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends; ready is told the address.
func run(ctx context.Context, addr string, ready func(addr string)) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	h := newHouse(ctx)
	go h.live()
	web := &http.Server{Handler: newMux(h.server), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	ready(listener.Addr().String())

	select {
	case err := <-served: // the listener failed
		return errors.Join(err, h.server.Stop())
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
	err = errors.Join(err, h.server.Shutdown(limited))
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}
