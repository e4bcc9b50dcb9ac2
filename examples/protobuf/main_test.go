package main

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/examples/protobuf/chat"
)

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

// transports are the ways to connect.
var transports = []struct {
	name string
	open func(t *testing.T) (net.Listener, func() (net.Conn, error))
}{
	{"tcp", func(t *testing.T) (net.Listener, func() (net.Conn, error)) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		return listener, func() (net.Conn, error) { return net.DialTimeout("tcp", listener.Addr().String(), patience) }
	}},
	{"pipe", func(*testing.T) (net.Listener, func() (net.Conn, error)) { return arpc.Pipe() }},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRun runs the program.
func TestRun(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport.name, func(t *testing.T) {
			var out strings.Builder
			listener, dial := transport.open(t)
			must(t, run(&out, listener, dial))
			want := "client calls Join    welcome, Ada\n" +
				"client calls Import  2 lines\n" +
				"client calls Talk    Ada: I am\n" +
				"client calls History Charles: anybody here?\n" +
				"client calls History Ada: I am\n" +
				"server calls Deliver 2 lines read\n" +
				"client gets error    there is no negative number of lines (code invalid_argument)\n"
			if out.String() != want {
				t.Errorf("the program says\n%s\nwant\n%s", out.String(), want)
			}
		})
	}
}

// connect returns both ends of a connection, each of which offers both services.
func connect(t *testing.T, listener net.Listener, dial func() (net.Conn, error),
	ofServer codec.Codec) (dialled, accepted *arpc.Client) {
	t.Helper()
	server := arpc.NewServer(arpc.NewHandler())
	server.Codec = ofServer
	chat.RegisterRoom(server.Handler, &room{})
	chat.RegisterMember(server.Handler, &member{name: "the server"})
	connected := make(chan *arpc.Client, 1)
	server.Handler.HandleConnected(func(c *arpc.Client) { connected <- c })
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve returned %v", err)
		}
	})

	handler := arpc.NewHandler()
	chat.RegisterRoom(handler, &room{})
	chat.RegisterMember(handler, &member{name: "the client"})
	dialled, err := arpc.NewClient(dial, handler)
	must(t, err)
	t.Cleanup(dialled.Stop)
	dialled.Codec = codec.Protobuf{} // nobody calls yet
	select {
	case accepted = <-connected:
	case <-time.After(patience):
		t.Fatal("the server has no client")
	}
	return dialled, accepted
}

// TestShapes calls methods of each shape, offered by the server and offered by the client.
func TestShapes(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport.name, func(t *testing.T) {
			listener, dial := transport.open(t)
			dialled, accepted := connect(t, listener, dial, codec.Protobuf{})
			for _, end := range []struct {
				name          string
				caller        arpc.Caller
				calling, peer string // who calls, and who answers
			}{
				{"offered by the server", dialled, "the client", "the server"},
				{"offered by the client", accepted, "the server", "the client"},
			} {
				t.Run(end.name, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					shapes(t, ctx, chat.NewRoomClient(end.caller), chat.NewMemberClient(end.caller), end.calling, end.peer)
				})
			}
		})
	}
}

func shapes(t *testing.T, ctx context.Context, theRoom chat.RoomClient, theMember chat.MemberClient, calling, peer string) {
	// Unary, within which the other end calls back.
	joined, err := theRoom.Join(ctx, &chat.JoinRequest{})
	must(t, err)
	if joined.Greeting != "welcome, "+calling {
		t.Errorf("Join: %v", joined)
	}
	described, err := theMember.Describe(ctx, &chat.DescribeRequest{})
	must(t, err)
	if described.Name != peer {
		t.Errorf("Describe: %v", described)
	}

	// Client stream.
	lines := []*chat.Line{{From: "a", Text: "1"}, {Text: "2"}, {From: "ü", Text: strings.Repeat("long ", 50_000)}}
	imports, err := theRoom.Import(ctx)
	must(t, err)
	for _, line := range lines {
		must(t, imports.Send(line))
	}
	count, err := imports.CloseAndRecv()
	must(t, err)
	if count.Lines != int32(len(lines)) {
		t.Errorf("Import: %v", count)
	}
	deliver, err := theMember.Deliver(ctx)
	must(t, err)
	if count, err = deliver.CloseAndRecv(); err != nil || count.Lines != 0 { // an empty stream, and an answer of no bytes
		t.Errorf("Deliver of nothing: %v, %v", count, err)
	}

	// Bidirectional stream: question and answer by turns.
	talk, err := theRoom.Talk(ctx)
	must(t, err)
	for _, from := range []string{"b", ""} {
		must(t, talk.Send(&chat.Line{From: from, Text: "said"}))
		line, err := talk.Recv()
		must(t, err)
		if from == "" {
			from = "somebody"
		}
		if want := (&chat.Line{From: from, Text: "said"}); !proto.Equal(line, want) {
			t.Errorf("Talk: %v, want %v", line, want)
		}
		lines = append(lines, line)
	}
	must(t, talk.CloseSend())
	if line, err := talk.Recv(); err != io.EOF {
		t.Errorf("Talk goes on: %v, %v", line, err)
	}

	// Server stream.
	for _, n := range []int{len(lines), 2, 0} {
		history, err := theRoom.History(ctx, &chat.HistoryRequest{Lines: int32(n)})
		must(t, err)
		var got []*chat.Line
		for line, err := range history.All() {
			must(t, err)
			got = append(got, line)
		}
		want := lines[len(lines)-n:]
		if !slices.EqualFunc(got, want, func(a, b *chat.Line) bool { return proto.Equal(a, b) }) {
			t.Errorf("History of %d: %d lines, or others", n, len(got))
		}
	}

	// Errors in streams of each shape.
	history, err := theRoom.History(ctx, &chat.HistoryRequest{Lines: -1})
	must(t, err)
	_, err = history.Recv()
	refused(t, "History", err)
	if imports, err = theRoom.Import(ctx); err == nil {
		must(t, imports.Send(&chat.Line{}))
		_, err = imports.CloseAndRecv()
	}
	refused(t, "Import", err)
	if talk, err = theRoom.Talk(ctx); err == nil {
		must(t, talk.Send(&chat.Line{From: "c"}))
		_, err = talk.Recv()
	}
	refused(t, "Talk", err)
}

func refused(t *testing.T, what string, err error) {
	t.Helper()
	var e *arpc.Error
	if !errors.As(err, &e) || e.Code != arpc.CodeInvalidArgument || !e.Remote {
		t.Errorf("%s failed with %v (%v), want an error of the peer with %v", what, err, arpc.CodeOf(err), arpc.CodeInvalidArgument)
	}
}

// TestUnaryError: the error of a handler, and of a handler that the peer called meanwhile, reaches the caller with its code.
func TestUnaryError(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport.name, func(t *testing.T) {
			listener, dial := transport.open(t)
			server := arpc.NewServer(arpc.NewHandler())
			server.Codec = codec.Protobuf{}
			chat.RegisterRoom(server.Handler, &room{})
			chat.RegisterMember(server.Handler, &member{})
			served := make(chan error, 1)
			go func() { served <- server.Serve(listener) }()
			defer func() {
				must(t, server.Stop())
				if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
					t.Errorf("Serve returned %v", err)
				}
			}()
			client, err := arpc.NewClient(dial, arpc.NewHandler()) // it offers nothing
			must(t, err)
			defer client.Stop()
			client.Codec = codec.Protobuf{}
			_, err = chat.NewMemberClient(client).Describe(t.Context(), &chat.DescribeRequest{})
			if !errors.Is(err, arpc.CodeNotFound) {
				t.Errorf("Describe: %v", err)
			}
			_, err = chat.NewRoomClient(client).Join(t.Context(), &chat.JoinRequest{})
			if !errors.Is(err, arpc.CodeUnimplemented) {
				t.Errorf("Join of a caller that is not a Member: %v", err)
			}
		})
	}
}

// TestOtherCodec: without codec.Protobuf at both ends calls fail, and nothing is misunderstood.
func TestOtherCodec(t *testing.T) {
	listener, dial := arpc.Pipe()
	dialled, _ := connect(t, listener, dial, codec.StdJSON{})
	_, err := chat.NewMemberClient(dialled).Describe(t.Context(), &chat.DescribeRequest{})
	refused(t, "Describe", err)
	deliver, err := chat.NewMemberClient(dialled).Deliver(t.Context())
	must(t, err)
	must(t, deliver.Send(&chat.Line{Text: "not JSON"}))
	if count, err := deliver.CloseAndRecv(); err == nil {
		t.Errorf("Deliver: %v", count)
	}
}
