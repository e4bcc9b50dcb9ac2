package readme

import (
	"fmt"
	"sync"
	"testing"

	"github.com/arpc-go/arpc"
)

func TestBroadcast(t *testing.T) {
	const nclients, nmessages = 5, 20
	var mux sync.RWMutex
	clientMap := make(map[*arpc.Client]struct{})

	var svr *arpc.Server = arpc.NewServer()
	svr.Handler.Handle("/enter", func(ctx *arpc.Context) {
		mux.Lock()
		clientMap[ctx.Client] = struct{}{}
		mux.Unlock()
		ctx.Write(nil)
	})
	addr := serve(t, svr)

	received := make([]chan string, nclients)
	for n := range nclients {
		received[n] = make(chan string, 3*nmessages)
		client := connect(t, addr)
		client.Handler.Handle("/broadcast", func(ctx *arpc.Context) {
			str := ""
			if err := ctx.Bind(&str); err == nil {
				received[n] <- str
			}
		})
		must(t, client.Call("/enter", nil, nil, patience))
	}

	for i := range nmessages {
		msg := svr.NewMessage(arpc.CmdNotify, "/broadcast", fmt.Sprintf("broadcast msg %d", i))
		mux.RLock()
		for client := range clientMap {
			client.PushMsg(msg, arpc.TimeZero)
		}
		mux.RUnlock()
	}
	svr.Broadcast("/broadcast", "to all")

	for n, ch := range received {
		for i := range nmessages {
			if got, want := recv(t, ch, "broadcast"), fmt.Sprintf("broadcast msg %d", i); got != want {
				t.Fatalf("client %d got %q, want %q", n, got, want)
			}
		}
		if got := recv(t, ch, "broadcast"); got != "to all" {
			t.Fatalf("client %d got %q at the end", n, got)
		}
	}
}
