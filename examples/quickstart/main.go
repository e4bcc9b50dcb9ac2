// Quickstart shows what arpc does, in one process and over a real TCP
// connection: calls in both directions, a call with a callback, notifies in
// both directions, an error with its code, and how many calls a second that
// makes. It takes no arguments and exits with a non-zero code if anything
// does not work.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/arpc-go/arpc"
)

// timeout is how long a call may take here.
const timeout = 10 * time.Second

// Sum is what the server adds up for the client.
type Sum struct {
	A, B int
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	// The server, on a free port.
	server := arpc.NewServer()
	notified := make(chan string, 1)
	server.Handler.Handle("/sum", func(ctx *arpc.Context) {
		var req Sum
		if err := ctx.Bind(&req); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(req.A + req.B)
	})
	server.Handler.Handle("/news", func(ctx *arpc.Context) {
		var text string
		if err := ctx.Bind(&text); err == nil {
			notified <- text
		}
	})
	// Inside a handler ctx.Client is the caller, which has methods to be
	// called as well.
	server.Handler.Handle("/introduce", func(ctx *arpc.Context) {
		var name string
		if err := ctx.Client.CallWith(ctx, "/name", nil, &name); err != nil {
			ctx.Error(err)
			return
		}
		if err := ctx.Client.Notify("/welcome", "welcome, "+name, timeout); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(name)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		stopErr := server.Stop()
		if serveErr := <-served; !errors.Is(serveErr, arpc.ErrServerStopped) {
			stopErr = errors.Join(stopErr, serveErr)
		}
		err = errors.Join(err, stopErr)
	}()
	addr := listener.Addr().String()
	fmt.Println("server listens on  ", addr)

	// The client. Its handlers are made before it connects.
	handler := arpc.NewHandler()
	welcomed := make(chan string, 1)
	handler.Handle("/name", func(ctx *arpc.Context) { ctx.Write("quickstart") })
	handler.Handle("/welcome", func(ctx *arpc.Context) {
		var text string
		if err := ctx.Bind(&text); err == nil {
			welcomed <- text
		}
	})
	client, err := arpc.NewClient(func() (net.Conn, error) {
		return net.DialTimeout("tcp", addr, timeout)
	}, handler)
	if err != nil {
		return err
	}
	defer client.Stop()

	// A call.
	var sum int
	if err := client.Call("/sum", &Sum{2, 3}, &sum, timeout); err != nil {
		return fmt.Errorf("/sum: %w", err)
	}
	if sum != 5 {
		return fmt.Errorf("/sum of 2 and 3 is %d", sum)
	}
	fmt.Println("client calls       ", "/sum of 2 and 3 is", sum)

	// A call whose answer comes to a callback, which runs exactly once.
	type result struct {
		sum int
		err error
	}
	results := make(chan result, 1)
	err = client.CallAsync("/sum", &Sum{20, 30}, func(ctx *arpc.Context) {
		var r result
		r.err = ctx.Bind(&r.sum)
		results <- r
	}, timeout)
	if err != nil {
		return fmt.Errorf("asynchronous /sum: %w", err)
	}
	var r result
	if err := receive(results, &r); err != nil || r.err != nil || r.sum != 50 {
		return fmt.Errorf("asynchronous /sum of 20 and 30: %d, %v", r.sum, errors.Join(err, r.err))
	}
	fmt.Println("client calls async ", "/sum of 20 and 30 is 50")

	// A notify: no answer.
	var text string
	if err := client.Notify("/news", "it works", timeout); err != nil {
		return fmt.Errorf("/news: %w", err)
	}
	if err := receive(notified, &text); err != nil || text != "it works" {
		return fmt.Errorf("/news: %q, %v", text, err)
	}
	fmt.Println("client notifies    ", "the server heard:", text)

	// The server calls the client and notifies it.
	var name string
	if err := client.Call("/introduce", nil, &name, timeout); err != nil || name != "quickstart" {
		return fmt.Errorf("/introduce: %q, %v", name, err)
	}
	fmt.Println("server calls       ", "the client's /name is", name)
	if err := receive(welcomed, &text); err != nil || text != "welcome, quickstart" {
		return fmt.Errorf("/welcome: %q, %v", text, err)
	}
	fmt.Println("server notifies    ", "the client heard:", text)

	// An error has a code and says who decided.
	err = client.Call("/no/such/method", nil, nil, timeout)
	var e *arpc.Error
	if !errors.As(err, &e) || e.Code != arpc.CodeUnimplemented || !e.Remote {
		return fmt.Errorf("an unknown method gave %v", err)
	}
	fmt.Printf("client gets error   %v (code %v, decided by the server: %v)\n", e, e.Code, e.Remote)

	return measure(client)
}

// measure makes ten thousand calls, a hundred at a time.
func measure(client *arpc.Client) error {
	const callers, each = 100, 100
	results := make(chan error, callers)
	start := time.Now()
	for n := range callers {
		go func() {
			for i := range each {
				var sum int
				if err := client.Call("/sum", &Sum{n, i}, &sum, timeout); err != nil {
					results <- err
					return
				}
				if sum != n+i {
					results <- fmt.Errorf("/sum of %d and %d is %d", n, i, sum)
					return
				}
			}
			results <- nil
		}()
	}
	for range callers {
		if err := <-results; err != nil {
			return err
		}
	}
	took := time.Since(start)
	fmt.Printf("%d calls in       %v, %.0f a second\n", callers*each, took.Round(time.Millisecond), callers*each/took.Seconds())
	return nil
}

// receive waits for what a handler or callback sends.
func receive[T any](ch <-chan T, v *T) error {
	select {
	case *v = <-ch:
		return nil
	case <-time.After(timeout):
		return errors.New("nothing came")
	}
}
