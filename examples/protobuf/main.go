// Protobuf shows services of a .proto file, in one process and over a real TCP connection: the server offers one with methods
// of all shapes, and the client offers one that the server calls over the same connection. It takes no arguments and exits
// with a non-zero code if anything does not work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/examples/protobuf/chat"
)

// room is the service Room, which the server offers.
type room struct {
	chat.UnimplementedRoom // so that it builds when the service gets further methods

	mu    sync.Mutex
	lines []*chat.Line
}

// Join asks the caller who it is: whoever calls can be called.
func (r *room) Join(ctx *arpc.Context, _ *chat.JoinRequest) (*chat.JoinReply, error) {
	caller, err := chat.NewMemberClient(ctx.Client).Describe(ctx, &chat.DescribeRequest{})
	if err != nil {
		return nil, err
	}
	return &chat.JoinReply{Greeting: "welcome, " + caller.Name}, nil
}

// History sends as many lines as it is asked for.
func (r *room) History(req *chat.HistoryRequest, s arpc.TypedStream[chat.Line, chat.HistoryRequest]) error {
	if req.Lines < 0 {
		return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "there is no negative number of lines"}
	}
	r.mu.Lock()
	lines := r.lines[max(0, len(r.lines)-int(req.Lines)):]
	r.mu.Unlock()
	for _, line := range lines {
		if err := s.Send(line); err != nil {
			return err
		}
	}
	return nil
}

// Import keeps what it gets until the caller has no more.
func (r *room) Import(s arpc.TypedStream[chat.Count, chat.Line]) (*chat.Count, error) {
	n := &chat.Count{}
	for line, err := range s.All() {
		if err != nil {
			return nil, err
		}
		if err = r.keep(line); err != nil {
			return nil, err
		}
		n.Lines++
	}
	return n, nil
}

// Talk answers each line.
func (r *room) Talk(s arpc.TypedStream[chat.Line, chat.Line]) error {
	for line, err := range s.All() {
		if err != nil {
			return err
		}
		if line.From == "" {
			line.From = "somebody"
		}
		if err = r.keep(line); err != nil {
			return err
		}
		if err = s.Send(line); err != nil {
			return err
		}
	}
	return nil
}

func (r *room) keep(line *chat.Line) error {
	if line.Text == "" {
		return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "a line has a text"}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
	return nil
}

// member is the service Member, which the client offers.
type member struct {
	chat.UnimplementedMember

	name string
}

// Describe runs beside other handlers, as its comment in chat.proto says.
func (m *member) Describe(*arpc.Context, *chat.DescribeRequest) (*chat.Description, error) {
	if m.name == "" {
		return nil, &arpc.Error{Code: arpc.CodeNotFound, Message: "the member has no name"}
	}
	return &chat.Description{Name: m.name}, nil
}

// Deliver reads lines.
func (m *member) Deliver(s arpc.TypedStream[chat.Count, chat.Line]) (*chat.Count, error) {
	n := &chat.Count{}
	for _, err := range s.All() {
		if err != nil {
			return nil, err
		}
		n.Lines++
	}
	return n, nil
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		err = run(os.Stdout, listener, func() (net.Conn, error) {
			return net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second)
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "protobuf:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, listener net.Listener, dial func() (net.Conn, error)) (err error) {
	// What is generated sends and receives messages of Protocol Buffers, so that is the codec of the server and of the client.
	protobuf := arpc.WithCodec(codec.Protobuf{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	// The server offers Room.
	server := arpc.NewServer(arpc.NewHandler(), protobuf)
	chat.RegisterRoom(server.Handler, &room{})
	connected := make(chan *arpc.Client, 1)
	server.Handler.HandleConnected(func(c *arpc.Client) { connected <- c })
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		stopErr := server.Stop()
		if serveErr := <-served; !errors.Is(serveErr, arpc.ErrServerStopped) {
			stopErr = errors.Join(stopErr, serveErr)
		}
		err = errors.Join(err, stopErr)
	}()

	// The client offers Member, over the connection that it makes.
	handler := arpc.NewHandler()
	chat.RegisterMember(handler, &member{name: "Ada"})
	client, err := arpc.NewClient(dial, handler, protobuf)
	if err != nil {
		return err
	}
	defer client.Stop()

	// The client calls the server, which calls back before it answers.
	theRoom := chat.NewRoomClient(client)
	joined, err := theRoom.Join(ctx, &chat.JoinRequest{})
	if err != nil {
		return fmt.Errorf("Join: %w", err)
	}
	fmt.Fprintln(out, "client calls Join   ", joined.Greeting)

	// A stream of the client's.
	imports, err := theRoom.Import(ctx)
	if err != nil {
		return fmt.Errorf("Import: %w", err)
	}
	for _, text := range []string{"hello", "anybody here?"} {
		if err = imports.Send(&chat.Line{From: "Charles", Text: text}); err != nil {
			return fmt.Errorf("Import: %w", err)
		}
	}
	count, err := imports.CloseAndRecv()
	if err != nil {
		return fmt.Errorf("Import: %w", err)
	}
	fmt.Fprintln(out, "client calls Import ", count.Lines, "lines")

	// A stream in both directions.
	talk, err := theRoom.Talk(ctx)
	if err != nil {
		return fmt.Errorf("Talk: %w", err)
	}
	if err = talk.Send(&chat.Line{From: joined.Greeting[len("welcome, "):], Text: "I am"}); err != nil {
		return fmt.Errorf("Talk: %w", err)
	}
	line, err := talk.Recv()
	if err != nil {
		return fmt.Errorf("Talk: %w", err)
	}
	fmt.Fprintln(out, "client calls Talk   ", line.From+":", line.Text)
	if err = talk.CloseSend(); err != nil {
		return fmt.Errorf("Talk: %w", err)
	}
	if _, err = talk.Recv(); err != io.EOF {
		return fmt.Errorf("Talk ended with %w", err)
	}

	// A stream of the server's.
	history, err := theRoom.History(ctx, &chat.HistoryRequest{Lines: 2})
	if err != nil {
		return fmt.Errorf("History: %w", err)
	}
	var lines []*chat.Line
	for line, err := range history.All() {
		if err != nil {
			return fmt.Errorf("History: %w", err)
		}
		lines = append(lines, line)
		fmt.Fprintln(out, "client calls History", line.From+":", line.Text)
	}

	// The server calls the client when it likes.
	delivery, err := chat.NewMemberClient(<-connected).Deliver(ctx)
	if err != nil {
		return fmt.Errorf("Deliver: %w", err)
	}
	for _, line := range lines {
		if err = delivery.Send(line); err != nil {
			return fmt.Errorf("Deliver: %w", err)
		}
	}
	if count, err = delivery.CloseAndRecv(); err != nil {
		return fmt.Errorf("Deliver: %w", err)
	}
	fmt.Fprintln(out, "server calls Deliver", count.Lines, "lines read")

	// An error has its code.
	history, err = theRoom.History(ctx, &chat.HistoryRequest{Lines: -1})
	if err == nil {
		_, err = history.Recv()
	}
	if !errors.Is(err, arpc.CodeInvalidArgument) {
		return fmt.Errorf("History of a negative number of lines gave %v", err)
	}
	fmt.Fprintf(out, "client gets error    %v (code %v)\n", err, arpc.CodeOf(err))
	return nil
}
