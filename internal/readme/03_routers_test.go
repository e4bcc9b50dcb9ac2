package readme

import (
	"testing"

	"github.com/arpc-go/arpc"
)

func TestRegisterRouters(t *testing.T) {
	freshDefault(t)
	server := arpc.NewServer()
	addr := serve(t, server)
	client := connect(t, addr)

	var handler arpc.Handler

	// package
	handler = arpc.DefaultHandler
	handler.Handle("/package", func(ctx *arpc.Context) { ctx.Write("package") })
	// server
	handler = server.Handler
	handler.Handle("/route", func(ctx *arpc.Context) { ctx.Write("route") })
	handler.Handle("/route2", func(ctx *arpc.Context) { ctx.Write("route2") })
	async := true
	handler.Handle("/async", func(ctx *arpc.Context) { ctx.Write("async") }, async)
	async = false
	handler.Handle("/sync", func(ctx *arpc.Context) { ctx.Write("sync") }, async)
	// client
	handler = client.Handler
	handler.Handle("/client", func(ctx *arpc.Context) { ctx.Write("client") })

	for _, method := range []string{"/route", "/route2", "/async", "/sync"} {
		rsp := ""
		if err := client.Call(method, nil, &rsp, patience); err != nil || "/"+rsp != method {
			t.Errorf("%s: %q, %v", method, rsp, err)
		}
	}

	// The client's route, called by the server.
	results := make(chan string, 1)
	server.ForEach(func(c *arpc.Client) {
		go func() {
			rsp := ""
			if err := c.Call("/client", nil, &rsp, patience); err != nil {
				rsp = err.Error()
			}
			results <- rsp
		}()
	})
	if rsp := recv(t, results, "answer of the client"); rsp != "client" {
		t.Errorf("the client answered %q", rsp)
	}

	// A route of the DefaultHandler is in what is made of it from then on.
	later := arpc.NewServer()
	laterClient := connect(t, serve(t, later))
	rsp := ""
	if err := laterClient.Call("/package", nil, &rsp, patience); err != nil || rsp != "package" {
		t.Errorf("/package: %q, %v", rsp, err)
	}
}
