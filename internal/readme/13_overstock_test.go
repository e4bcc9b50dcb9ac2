package readme

import (
	"errors"
	"net"
	"testing"

	"github.com/arpc-go/arpc"
)

// flood notifies until the queue is full. The peer does not read, so it must
// become full; how much the kernel takes first is not known.
func flood(t *testing.T, client *arpc.Client) {
	t.Helper()
	data := make([]byte, 64<<10)
	for range 100_000 {
		if err := client.Notify("/flood", data, arpc.TimeZero); err != nil {
			if !errors.Is(err, arpc.ErrClientOverstock) {
				t.Errorf("flooding ended with %v", err)
			}
			return
		}
	}
	t.Error("6 GB went into a queue")
}

func TestOverstockPackage(t *testing.T) {
	freshDefault(t)
	hooked := make(chan *arpc.Client, 1)

	arpc.DefaultHandler.HandleOverstock(func(c *arpc.Client) { send(hooked, c) })
	arpc.SetSendQueueSize(16)

	client := connect(t, listenSilently(t))
	flood(t, client)
	if c := recv(t, hooked, "overstock hook"); c != client {
		t.Error("hook called for another client")
	}
}

func TestOverstockServer(t *testing.T) {
	hooked := make(chan *arpc.Client, 1)
	connected := make(chan *arpc.Client, 1)

	svr := arpc.NewServer()
	svr.Handler.HandleOverstock(func(c *arpc.Client) { send(hooked, c) })
	svr.Handler.SetSendQueueSize(16)
	svr.Handler.HandleConnected(func(c *arpc.Client) { send(connected, c) })

	peer, err := net.Dial("tcp", serve(t, svr))
	must(t, err)
	defer peer.Close()
	client := recv(t, connected, "connection")
	flood(t, client)
	if c := recv(t, hooked, "overstock hook"); c != client {
		t.Error("hook called for another client")
	}
}

func TestOverstockClient(t *testing.T) {
	hooked := make(chan *arpc.Client, 1)

	client, err := arpc.NewClient(dialer(listenSilently(t)))
	must(t, err)
	t.Cleanup(client.Stop)
	client.Handler.HandleOverstock(func(c *arpc.Client) { send(hooked, c) })
	client.Handler.SetSendQueueSize(16)

	flood(t, client)
	if c := recv(t, hooked, "overstock hook"); c != client {
		t.Error("hook called for another client")
	}
}
