package readme

import (
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

func TestServerCallsClient(t *testing.T) {
	var mux sync.RWMutex
	clients := make(map[*arpc.Client]struct{})
	gone := make(chan *arpc.Client, 4)

	server := arpc.NewServer()
	server.Handler.Handle("/enter", func(ctx *arpc.Context) {
		passwd := ""
		ctx.Bind(&passwd)
		if passwd == "123qwe" {
			// keep client
			var client *arpc.Client = ctx.Client
			mux.Lock()
			clients[client] = struct{}{}
			mux.Unlock()

			client.OnDisconnected(func(c *arpc.Client) {
				// remove client
				mux.Lock()
				delete(clients, c)
				mux.Unlock()
				gone <- c
			})
			ctx.Write(nil)
		} else {
			ctx.Error("wrong password")
		}
	})
	addr := serve(t, server)

	client := connect(t, addr)
	client.Handler.Handle("/ask", func(ctx *arpc.Context) {
		req := &Echo{}
		if err := ctx.Bind(req); err == nil {
			req.B++
			ctx.Write(req)
		}
	})
	told := make(chan string, 1)
	client.Handler.Handle("/tell", func(ctx *arpc.Context) {
		str := ""
		ctx.Bind(&str)
		told <- str
	})
	if err := client.Call("/enter", "guess", nil, patience); err == nil || err.Error() == "" {
		t.Errorf("a wrong password gave %v", err)
	}
	must(t, client.Call("/enter", "123qwe", nil, patience))

	mux.RLock()
	if len(clients) != 1 {
		t.Fatalf("%d clients entered", len(clients))
	}
	var conn *arpc.Client
	for c := range clients {
		conn = c
	}
	mux.RUnlock()
	response := &Echo{}
	if err := conn.Call("/ask", &Echo{B: 1}, response, time.Second*5); err != nil || response.B != 2 {
		t.Errorf("the client answered %+v, %v", response, err)
	}
	must(t, conn.Notify("/tell", "news", time.Second))
	if s := recv(t, told, "notify from the server"); s != "news" {
		t.Errorf("told %q", s)
	}

	client.Stop()
	if c := recv(t, gone, "OnDisconnected"); c != conn {
		t.Error("another client disconnected")
	}
	mux.RLock()
	defer mux.RUnlock()
	if len(clients) != 0 {
		t.Errorf("%d clients left", len(clients))
	}
}
