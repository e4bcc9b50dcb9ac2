package websocket

import (
	"net"
	"strings"
	"testing"

	gobwas "github.com/gobwas/ws"

	"github.com/arpc-go/arpc"
)

// A client learns the status and reason with which a server of version 1 closes.
func TestCloseStatusIsSeen(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		gobwas.Upgrade(nc)
		readFrame(nc) // HELLO
		gobwas.WriteFrame(nc, gobwas.NewBinaryFrame(arpcFrame(arpc.CmdPong, 0, "", "")))
		readFrame(nc) // the request
		gobwas.WriteFrame(nc, gobwas.NewCloseFrame(gobwas.NewCloseFrameBody(1008, "go away, you")))
		readFrame(nc)
		nc.Close()
	}()
	c := dial(t, Dialer("ws://"+ln.Addr().String()))
	if err := c.Call("/echo", "x", nil, patience); err == nil || !strings.Contains(err.Error(), "go away, you") {
		t.Errorf("%v", err)
	}
}
