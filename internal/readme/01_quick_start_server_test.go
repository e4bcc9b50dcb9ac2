package readme

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// runEchoServer is the first program of the README; there it is main, with a
// fixed port.
func runEchoServer(server *arpc.Server, addr string) error {
	server.Handler.Handle("/echo", func(ctx *arpc.Context) {
		str := ""
		if err := ctx.Bind(&str); err == nil {
			ctx.Write(str)
		}
	})

	return server.Run(addr)
}

// freeAddr returns an address that was free a moment ago: Run wants one.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	return ln.Addr().String()
}

// dialUntilListening retries while nobody listens yet.
func dialUntilListening(addr string) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		for end := time.Now().Add(patience); ; {
			conn, err := net.Dial("tcp", addr)
			if err == nil || time.Now().After(end) {
				return conn, err
			}
		}
	}
}

func TestQuickStartServer(t *testing.T) {
	server, addr := arpc.NewServer(), freeAddr(t)
	result := make(chan error, 1)
	go func() { result <- runEchoServer(server, addr) }()

	client, err := arpc.NewClient(dialUntilListening(addr))
	must(t, err)
	rsp := ""
	must(t, client.Call("/echo", "hello", &rsp, patience))
	if rsp != "hello" {
		t.Errorf("echo is %q", rsp)
	}
	client.Stop()
	must(t, server.Stop())
	if err := recv(t, result, "return from Run"); !errors.Is(err, arpc.ErrServerStopped) {
		t.Errorf("Run returned %v", err)
	}
}
