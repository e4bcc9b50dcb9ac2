package regenerate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/examples/protobuf/chat"
	"github.com/arpc-go/arpc/extension/websocket"
)

// TestTypeScriptPeer has the generated Go and the generated TypeScript call each other, in all shapes and both directions.
func TestTypeScriptPeer(t *testing.T) {
	bundle := filepath.Join(t.TempDir(), "peer.mjs")
	modules := npm(t)
	if out, err := exec.Command("node", "typescript/peer/bundle.mjs", modules, bundle).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	server := arpc.NewServer(arpc.WithCodec(codec.Protobuf{}))
	chat.RegisterRoom(server.Handler, room{})
	server.Handler.Handle("/echo", func(c *arpc.Context) { c.Write(c.Body()) }, true)
	server.Handler.Handle("/back", func(c *arpc.Context) { answer(c, back(c, c.Client)) }, true)
	server.Handler.Handle("/none", func(c *arpc.Context) { answer(c, none(c, c.Client)) }, true)
	web := httptest.NewServer(websocket.NewHandler(server))
	defer func() {
		web.Close()
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	}()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	peer := exec.CommandContext(ctx, "node", bundle, "ws"+strings.TrimPrefix(web.URL, "http"))
	if out, err := peer.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func answer(c *arpc.Context, err error) {
	if err != nil {
		c.Error(err)
		return
	}
	c.Write(nil)
}

// room is what TypeScript calls.
type room struct{ chat.UnimplementedRoom }

func (room) Join(ctx *arpc.Context, _ *chat.JoinRequest) (*chat.JoinReply, error) {
	switch name := ctx.Metadata()["name"]; name {
	case "Eve":
		return nil, &arpc.Error{Code: arpc.CodePermissionDenied, Message: "not you"}
	case "garbage":
		return nil, ctx.Write([]byte{255})
	default:
		return &chat.JoinReply{Greeting: "hello " + name}, nil
	}
}

func (room) History(req *chat.HistoryRequest, s arpc.TypedStream[chat.Line, chat.HistoryRequest]) error {
	if req.Lines < 0 {
		return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "that few"}
	}
	for i := range req.Lines {
		if err := s.Send(&chat.Line{From: "go", Text: fmt.Sprint(i)}); err != nil {
			return err
		}
	}
	return nil
}

func (room) Import(s arpc.TypedStream[chat.Count, chat.Line]) (*chat.Count, error) {
	count := &chat.Count{}
	for line, err := range s.All() {
		if err != nil {
			return nil, err
		}
		count.Lines++
		switch line.Text {
		case "bad":
			return nil, &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "bad line"}
		case "enough":
			return count, nil
		}
	}
	return count, nil
}

func (room) Talk(s arpc.TypedStream[chat.Line, chat.Line]) error {
	for line, err := range s.All() {
		if err != nil {
			return err
		}
		if err := s.Send(&chat.Line{From: "go", Text: line.Text}); err != nil {
			return err
		}
	}
	return nil
}

// hasCode tells what is wrong when err is not one of the peer's.
func hasCode(what string, err error, code arpc.Code) error {
	var e *arpc.Error
	if !errors.As(err, &e) || e.Code != code || !e.Remote {
		return fmt.Errorf("%s: error %v, want %v", what, err, code)
	}
	return nil
}

// back calls what TypeScript offers, and tells what is wrong.
func back(ctx context.Context, c *arpc.Client) error {
	peer := chat.NewRoomClient(c)
	return errors.Join(backUnary(ctx, peer, c), backServerStream(ctx, peer, c), backClientStream(ctx, peer), backBidi(ctx, peer))
}

func backUnary(ctx context.Context, peer chat.RoomClient, c *arpc.Client) error {
	reply, err := peer.Join(arpc.WithMetadata(ctx, arpc.Metadata{"name": "Ada"}), &chat.JoinRequest{})
	if err != nil || reply.Greeting != "hello Ada" {
		return fmt.Errorf("Join: %v, %w", reply, err)
	}
	_, err = peer.Join(arpc.WithMetadata(ctx, arpc.Metadata{"name": "Eve"}), &chat.JoinRequest{})
	return errors.Join(hasCode("Join that is refused", err, arpc.CodePermissionDenied),
		hasCode("a malformed request", c.CallWith(ctx, "/chat.v1.Room/Join", []byte{255}, nil), arpc.CodeInvalidArgument))
}

func backServerStream(ctx context.Context, peer chat.RoomClient, c *arpc.Client) error {
	s, err := peer.History(ctx, &chat.HistoryRequest{Lines: 3})
	if err != nil {
		return err
	}
	var got []string
	for line, err := range s.All() {
		if err != nil {
			return err
		}
		got = append(got, line.From+line.Text)
	}
	if text := strings.Join(got, " "); text != "ts0 ts1 ts2" {
		return fmt.Errorf("History: %q", text)
	}
	s, err = peer.History(ctx, &chat.HistoryRequest{Lines: -1})
	if err == nil {
		_, err = s.Recv()
	}
	if err := hasCode("History that fails", err, arpc.CodeInvalidArgument); err != nil {
		return err
	}
	// What is no request at all.
	for what, send := range map[string]func(*arpc.Stream) error{
		"a malformed request": func(s *arpc.Stream) error { return s.SendAndClose([]byte{255}) },
		"no request":          (*arpc.Stream).CloseSend,
	} {
		s, err := c.OpenStream(ctx, "/chat.v1.Room/History")
		if err == nil {
			err = send(s)
		}
		if err == nil {
			err = s.Recv(&chat.Line{})
		}
		if err := hasCode(what, err, arpc.CodeInvalidArgument); err != nil {
			return err
		}
	}
	return nil
}

func backClientStream(ctx context.Context, peer chat.RoomClient) error {
	s, err := peer.Import(ctx)
	if err != nil {
		return err
	}
	for range 3 {
		if err := s.Send(&chat.Line{}); err != nil {
			return err
		}
	}
	if count, err := s.CloseAndRecv(); err != nil || count.Lines != 3 {
		return fmt.Errorf("Import: %v, %w", count, err)
	}
	// The answer counts even if it comes before the last message.
	s, err = peer.Import(ctx)
	if err == nil {
		err = s.Send(&chat.Line{Text: "enough"})
	}
	if err != nil {
		return err
	}
	if count, err := s.Recv(); err != nil || count.Lines != 1 {
		return fmt.Errorf("Import of enough: %v, %w", count, err)
	}
	s, err = peer.Import(ctx)
	if err == nil {
		err = s.Send(&chat.Line{Text: "bad"})
	}
	if err == nil {
		_, err = s.Recv()
	}
	return hasCode("Import that fails", err, arpc.CodeInvalidArgument)
}

func backBidi(ctx context.Context, peer chat.RoomClient) error {
	s, err := peer.Talk(ctx)
	if err != nil {
		return err
	}
	for _, text := range []string{"a", "", "c"} {
		if err := s.Send(&chat.Line{Text: text}); err != nil {
			return err
		}
		if line, err := s.Recv(); err != nil || line.From != "ts" || line.Text != text {
			return fmt.Errorf("Talk: %v, %w", line, err)
		}
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if line, err := s.Recv(); err != io.EOF {
		return fmt.Errorf("the end of Talk: %v, %w", line, err)
	}
	return nil
}

// none tells what is wrong when the peer offers a Room.
func none(ctx context.Context, c *arpc.Client) error {
	_, err := chat.NewRoomClient(c).Join(ctx, &chat.JoinRequest{})
	return hasCode("Join of nobody", err, arpc.CodeUnimplemented)
}
