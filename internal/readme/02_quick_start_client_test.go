package readme

import (
	"net"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

func echoOnce(addr string) (string, error) {
	client, err := arpc.NewClient(func() (net.Conn, error) {
		return net.DialTimeout("tcp", addr, time.Second*3)
	})
	if err != nil {
		return "", err
	}
	defer client.Stop()

	req := "hello"
	rsp := ""
	err = client.Call("/echo", &req, &rsp, time.Second*5)
	return rsp, err
}

func TestQuickStartClient(t *testing.T) {
	server := arpc.NewServer()
	server.Handler.Handle("/echo", func(ctx *arpc.Context) {
		str := ""
		if err := ctx.Bind(&str); err == nil {
			ctx.Write(str)
		}
	})
	rsp, err := echoOnce(serve(t, server))
	if err != nil || rsp != "hello" {
		t.Fatalf("%q, %v", rsp, err)
	}
}

func TestQuickStartClientWithoutServer(t *testing.T) {
	if _, err := echoOnce(freeAddr(t)); err == nil {
		t.Fatal("NewClient connected to nobody")
	}
}
