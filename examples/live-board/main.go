// Live-board is a board on which all open pages write notes. It shows what happens when the network is cut: what was written
// meanwhile comes, in order and once, or the page says that something is missing and reads the board anew. It prints its address
// and stops on Ctrl-C. Several of them share a board on NATS.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"
)

// options are what the flags say.
type options struct {
	addr  string
	store storeOptions
}

func main() {
	var o options
	flag.StringVar(&o.addr, "addr", "127.0.0.1:8080", "address to listen on")
	flag.StringVar(&o.store.nats, "nats", "", "where the board is kept: the URL of a nats-server with JetStream, or embedded for one in this process; default only in memory")
	flag.StringVar(&o.store.natsAddr, "nats-addr", "127.0.0.1:4222", "with -nats embedded, address for other live-boards")
	flag.StringVar(&o.store.data, "data", "", "with -nats embedded, directory of its files; default one that is removed in the end")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "live-board:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, o options) (err error) {
	store, err := openStore(ctx, o.store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	board, err := newBoard(store.engine)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.addr)
	if err != nil {
		return errors.Join(err, board.Stop())
	}
	web := &http.Server{Handler: newMux(board), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	fmt.Fprintf(out, "live-board is at http://%s\n", listener.Addr())
	if store.url != "" {
		fmt.Fprintf(out, "for another one that shows the same board: -nats %s\n", store.url)
	}

	select {
	case err := <-served: // the listener failed
		return errors.Join(err, board.Stop())
	case <-ctx.Done():
	}
	fmt.Fprintln(out, "stopping")
	// The HTTP server first, so that pages which lose their connection cannot come back. What is left after a second are
	// connections that a browser has opened in advance.
	brief, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err = web.Shutdown(brief); errors.Is(err, context.DeadlineExceeded) {
		err = web.Close()
	}
	limited, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = errors.Join(err, board.Shutdown(limited))
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}
