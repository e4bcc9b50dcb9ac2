// Quickstart shows what arpc does, in one process and over a real TCP
// connection: calls in both directions, a call with a callback, notifies in
// both directions, a stream, a deadline and a cancellation that reach the
// handler, an error with its code, and how many calls a second that makes. It
// takes no arguments and exits with a non-zero code if anything does not work.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/arpc-go/arpc"
)

// timeout is how long a call may take here.
const timeout = 10 * time.Second

// Terms is what the server adds up for the client, Total the result.
type (
	Terms struct{ A, B int }
	Total struct{ Sum int }
)

// Text is a name or a piece of news.
type Text struct{ Text string }

// None is a request or an answer that says nothing more.
type None struct{}

// The methods: both ends know them, and either may handle or call them.
var (
	SumOf     = arpc.NewMethod[Terms, Total]("/sum")
	News      = arpc.NewMethod[Text, None]("/news")
	Introduce = arpc.NewMethod[None, Text]("/introduce")
	Wait      = arpc.NewMethod[None, None]("/wait", arpc.Async)
	Running   = arpc.NewBidiStream[Terms, Total]("/running/sum")

	Name    = arpc.NewMethod[None, Text]("/name") // of the client
	Welcome = arpc.NewMethod[Text, None]("/welcome")
)

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
	SumOf.Handle(server.Handler, func(_ *arpc.Context, t *Terms) (*Total, error) { return &Total{t.A + t.B}, nil })
	News.Handle(server.Handler, func(_ *arpc.Context, t *Text) (*None, error) {
		notified <- t.Text
		return nil, nil
	})
	// Inside a handler ctx.Client is the caller, which has methods to be
	// called as well.
	Introduce.Handle(server.Handler, func(ctx *arpc.Context, _ *None) (*Text, error) {
		name, err := Name.Call(ctx, ctx.Client, &None{})
		if err != nil {
			return nil, err
		}
		if err := Welcome.Notify(ctx, ctx.Client, &Text{"welcome, " + name.Text}); err != nil {
			return nil, err
		}
		return name, nil
	})
	// A handler's context has the caller's deadline, and ends when the caller
	// gives up.
	waiting, gaveUp := make(chan bool, 1), make(chan error, 1)
	Wait.Handle(server.Handler, func(ctx *arpc.Context, _ *None) (*None, error) {
		_, has := ctx.Deadline()
		waiting <- has
		<-ctx.Done()
		gaveUp <- ctx.Err()
		return nil, ctx.Err()
	})
	Running.Handle(server.Handler, func(s arpc.TypedStream[Total, Terms]) error {
		sum := 0
		for t, err := range s.All() {
			if err != nil {
				return err
			}
			sum += t.A + t.B
			if err := s.Send(&Total{sum}); err != nil {
				return err
			}
		}
		return nil
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
	Name.Handle(handler, func(*arpc.Context, *None) (*Text, error) { return &Text{"quickstart"}, nil })
	Welcome.Handle(handler, func(_ *arpc.Context, t *Text) (*None, error) {
		welcomed <- t.Text
		return nil, nil
	})
	client, err := arpc.NewClient(func() (net.Conn, error) {
		return net.DialTimeout("tcp", addr, timeout)
	}, handler)
	if err != nil {
		return err
	}
	defer client.Stop()

	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()

	// A call.
	total, err := SumOf.Call(ctx, client, &Terms{2, 3})
	if err != nil || total.Sum != 5 {
		return fmt.Errorf("/sum of 2 and 3: %v, %v", total, err)
	}
	fmt.Println("client calls       ", "/sum of 2 and 3 is", total.Sum)

	// A call whose answer comes to a callback, which runs exactly once.
	type result struct {
		total *Total
		err   error
	}
	results := make(chan result, 1)
	SumOf.CallAsync(client, &Terms{20, 30}, func(t *Total, err error) { results <- result{t, err} }, timeout)
	var r result
	if err := receive(results, &r); err != nil || r.err != nil || r.total.Sum != 50 {
		return fmt.Errorf("asynchronous /sum of 20 and 30: %v, %v", r.total, errors.Join(err, r.err))
	}
	fmt.Println("client calls async ", "/sum of 20 and 30 is 50")

	// A notify: no answer.
	var text string
	if err := News.Notify(ctx, client, &Text{"it works"}); err != nil {
		return fmt.Errorf("/news: %w", err)
	}
	if err := receive(notified, &text); err != nil || text != "it works" {
		return fmt.Errorf("/news: %q, %v", text, err)
	}
	fmt.Println("client notifies    ", "the server heard:", text)

	// The server calls the client and notifies it.
	name, err := Introduce.Call(ctx, client, &None{})
	if err != nil || name.Text != "quickstart" {
		return fmt.Errorf("/introduce: %v, %v", name, err)
	}
	fmt.Println("server calls       ", "the client's /name is", name.Text)
	if err := receive(welcomed, &text); err != nil || text != "welcome, quickstart" {
		return fmt.Errorf("/welcome: %q, %v", text, err)
	}
	fmt.Println("server notifies    ", "the client heard:", text)

	if err := stream(ctx, client); err != nil {
		return err
	}

	// A cancelled call ends here at once, and its handler is told.
	soon, giveUp := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := Wait.Call(soon, client, &None{})
		ended <- err
	}()
	var hasDeadline bool
	if err := receive(waiting, &hasDeadline); err != nil || !hasDeadline {
		giveUp()
		return fmt.Errorf("/wait has a deadline: %v, %v", hasDeadline, err)
	}
	giveUp()
	var callErr, handlerErr error
	if err := errors.Join(receive(ended, &callErr), receive(gaveUp, &handlerErr)); err != nil ||
		!errors.Is(callErr, context.Canceled) || !errors.Is(handlerErr, context.Canceled) {
		return fmt.Errorf("the cancelled call ended with %v, its handler with %v, %v", callErr, handlerErr, err)
	}
	fmt.Println("client cancels     ", "the handler had the deadline, and saw:", handlerErr)

	// An error has a code and says who decided.
	_, err = arpc.NewMethod[None, None]("/no/such/method").Call(ctx, client, &None{})
	var e *arpc.Error
	if !errors.As(err, &e) || e.Code != arpc.CodeUnimplemented || !e.Remote {
		return fmt.Errorf("an unknown method gave %v", err)
	}
	fmt.Printf("client gets error   %v (code %v, decided by the server: %v)\n", e, e.Code, e.Remote)

	return measure(ctx, client)
}

// stream sends numbers and receives the sum of what was sent so far.
func stream(ctx context.Context, client *arpc.Client) error {
	s, err := Running.Open(ctx, client)
	if err != nil {
		return fmt.Errorf("/running/sum: %w", err)
	}
	defer s.Reset(nil)
	for _, t := range []Terms{{1, 2}, {3, 4}, {5, 6}} {
		if err := s.Send(&t); err != nil {
			return fmt.Errorf("/running/sum: %w", err)
		}
	}
	if err := s.CloseSend(); err != nil {
		return fmt.Errorf("/running/sum: %w", err)
	}
	var sums []int
	for t, err := range s.All() {
		if err != nil {
			return fmt.Errorf("/running/sum: %w", err)
		}
		sums = append(sums, t.Sum)
	}
	if !slices.Equal(sums, []int{3, 10, 21}) {
		return fmt.Errorf("/running/sum: %v", sums)
	}
	fmt.Println("client streams     ", "sums so far:", sums)
	return nil
}

// measure makes ten thousand calls, a hundred at a time.
func measure(ctx context.Context, client *arpc.Client) error {
	const callers, each = 100, 100
	results := make(chan error, callers)
	start := time.Now()
	for n := range callers {
		go func() {
			for i := range each {
				total, err := SumOf.Call(ctx, client, &Terms{n, i})
				if err == nil && total.Sum != n+i {
					err = fmt.Errorf("/sum of %d and %d is %d", n, i, total.Sum)
				}
				if err != nil {
					results <- err
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
