package readme

import (
	"testing"

	"github.com/arpc-go/arpc"
)

func TestHandleNewConnection(t *testing.T) {
	freshDefault(t)
	events := make(chan string, 16)
	hook := func(name string) func(*arpc.Client) {
		return func(c *arpc.Client) {
			if c == nil {
				name += " without a client"
			}
			send(events, name)
		}
	}

	// package
	arpc.DefaultHandler.HandleConnected(hook("package connected"))
	arpc.DefaultHandler.HandleDisconnected(hook("package disconnected"))

	// server
	svr := arpc.NewServer()
	svr.Handler.HandleConnected(hook("server connected"))
	svr.Handler.HandleDisconnected(hook("server disconnected"))
	addr := serve(t, svr)

	expect := func(what string, names ...string) {
		t.Helper()
		want := map[string]int{}
		for _, name := range names {
			want[name]++
		}
		for range names {
			name := recv(t, events, what)
			if want[name]--; want[name] < 0 {
				t.Fatalf("%s: %q", what, name)
			}
		}
	}

	// client
	client, err := arpc.NewClient(dialer(addr))
	must(t, err)
	expect("hooks at the start", "package connected", "server connected")

	// Hooks set now replace those that the client took from the package.
	client.Handler.HandleConnected(hook("client connected"))
	client.Handler.HandleDisconnected(hook("client disconnected"))
	svr.ForEach(func(c *arpc.Client) { go c.Stop() })
	expect("hooks of a lost connection",
		"server disconnected", "client disconnected", "server connected", "client connected")
	client.Stop()
	expect("hooks at the end", "server disconnected", "client disconnected")
}

func TestPackageFunctions(t *testing.T) {
	freshDefault(t)
	events := make(chan string, 16)
	arpc.HandleConnected(func(c *arpc.Client) { send(events, "connected") })
	arpc.HandleDisconnected(func(c *arpc.Client) { send(events, "disconnected") })
	arpc.Handle("/package", func(ctx *arpc.Context) { ctx.Write("package") })

	addr := serve(t, arpc.NewServer())
	client, err := arpc.NewClient(dialer(addr))
	must(t, err)
	for range 2 { // one of each end
		if e := recv(t, events, "hook"); e != "connected" {
			t.Fatal(e)
		}
	}
	rsp := ""
	if err := client.Call("/package", nil, &rsp, patience); err != nil || rsp != "package" {
		t.Errorf("%q, %v", rsp, err)
	}
	client.Stop()
	for range 2 {
		if e := recv(t, events, "hook"); e != "disconnected" {
			t.Fatal(e)
		}
	}
}
