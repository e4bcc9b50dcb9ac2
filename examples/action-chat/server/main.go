// The chat server lets clients talk, over TCP and WebSocket. It stops on Ctrl-C.
package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/arpc-go/arpc/examples/action-chat/chat"
	"github.com/arpc-go/arpc/extension/action"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8081", "address to listen on for TCP")
	ws := flag.String("ws", "127.0.0.1:8082", "address to listen on for WebSocket")
	flag.Parse()
	if err := run(*addr, *ws, action.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, "chat server:", err)
		os.Exit(1)
	}
}

func run(tcp, ws string, stop <-chan struct{}) error {
	r := &room{users: map[string]*action.Connection{}}
	r.instance = action.New(
		action.OnError(func(ctx *action.Context, err error) {
			fmt.Printf("action %d of %s: %v\n", ctx.Packet().Action, ctx.Conn().IP(), err)
		}),
	)
	r.instance.Router().
		Route(chat.Login, action.StandardHandler(r.login)).
		Route(chat.Say, action.StandardHandler(r.say))
	if a, err := r.instance.ListenTCP(tcp); err == nil { // else Run says why
		fmt.Println("tcp on", a)
	}
	if a, err := r.instance.ListenWebsocket(ws); err == nil {
		fmt.Printf("websocket on ws://%s/\n", a)
	}
	r.instance.On(action.BeforeShutdown, func() { fmt.Println("stopping") })
	return r.instance.Run(stop)
}

// A room knows who is there.
type room struct {
	instance *action.Instance

	mu    sync.Mutex
	users map[string]*action.Connection
}

func (r *room) login(ctx *action.Context, req *chat.LoginRequest) (*chat.LoginReply, error) {
	conn := ctx.Conn()
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, again := conn.Property().Load("name"); again || req.Name == "" || r.users[req.Name] != nil {
		return &chat.LoginReply{Error: "the name is in use, or you have one"}, nil
	}
	conn.Property().Store("name", req.Name)
	r.users[req.Name] = conn
	conn.AddBeforeCloseHook(func(*action.Connection) {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.users, req.Name)
		fmt.Println("left:", req.Name)
	})
	fmt.Println("joined:", req.Name)
	return &chat.LoginReply{Names: slices.Sorted(maps.Keys(r.users))}, nil
}

func (r *room) say(ctx *action.Context, line *chat.Line) (*chat.SayReply, error) {
	name, ok := ctx.Conn().Property().Load("name")
	if !ok {
		return &chat.SayReply{}, nil
	}
	line.From = name.(string)
	packet, err := r.instance.Pack(chat.Deliver, 0, line) // once for all
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	var to []*action.Connection
	for name, conn := range r.users {
		if name == line.To || line.To == "" && conn != ctx.Conn() {
			to = append(to, conn)
		}
	}
	r.mu.Unlock()
	reply := &chat.SayReply{}
	for _, conn := range to {
		if conn.Push(packet) == nil { // who does not read misses it
			reply.Receivers++
		}
	}
	return reply, nil
}
