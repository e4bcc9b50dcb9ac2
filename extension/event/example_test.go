package event_test

import (
	"net"
	"testing"

	evio "github.com/arpc-go/arpc/extension/event"
)

// The quick start of evio's README, with another import. It is compiled, not run: it serves for ever.
func ExampleServe() {
	var events evio.Events
	events.Data = func(id int, in []byte) (out []byte, action evio.Action) {
		out = in
		return
	}
	if err := evio.Serve(events, "tcp://localhost:5000"); err != nil {
		panic(err.Error())
	}
}

// Row E2: the same program, with an end, does what it says.
func TestE2QuickStart(t *testing.T) {
	for _, addr := range []string{"tcp://localhost:0", "tcp-net://localhost:0"} {
		var events evio.Events
		echoed := make(chan string, 1)
		events.Serving = func(_ func(id int) bool, addrs []net.Addr) (action evio.Action) {
			go func() {
				nc, err := net.Dial("tcp", addrs[0].String())
				if err != nil {
					t.Error(err)
					return
				}
				defer nc.Close()
				got := make([]byte, 5)
				nc.Write([]byte("hello")) //nolint:errcheck // reading tells
				n, _ := nc.Read(got)
				echoed <- string(got[:n])
			}()
			return
		}
		events.Data = func(id int, in []byte) (out []byte, action evio.Action) {
			out = in
			return
		}
		events.Closed = func(id int, err error) (action evio.Action) { return evio.Shutdown }
		if err := evio.Serve(events, addr); err != nil {
			t.Error(err)
		}
		if got := <-echoed; got != "hello" {
			t.Errorf("echoed %q", got)
		}
	}
}
