package readme

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

type Echo struct {
	A string
	B int
}

// echoServer serves /call/echo, which sends the request back.
func echoServer(t *testing.T) (addr string) {
	server := arpc.NewServer()
	server.Handler.Handle("/call/echo", func(ctx *arpc.Context) {
		req := &Echo{}
		if err := ctx.Bind(req); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(req)
	})
	server.Handler.Handle("/call/never", func(ctx *arpc.Context) { ctx.AnswerLater() })
	return serve(t, server)
}

func TestCall(t *testing.T) {
	client := connect(t, echoServer(t))

	request := &Echo{A: "hello", B: 7}
	response := &Echo{}
	timeout := time.Second * 5
	err := client.Call("/call/echo", request, response, timeout)
	if err != nil || *response != *request {
		t.Errorf("Call: %+v, %v", response, err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	response = &Echo{}
	err = client.CallWith(ctx, "/call/echo", request, response)
	if err != nil || *response != *request {
		t.Errorf("CallWith: %+v, %v", response, err)
	}

	err = client.Call("/call/never", request, response, time.Millisecond)
	if !errors.Is(err, arpc.ErrTimeout) || !errors.Is(err, arpc.ErrClientTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an answer: %v", err)
	}
	cancelled, cancelNow := context.WithCancel(context.Background())
	cancelNow()
	err = client.CallWith(cancelled, "/call/never", request, response)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
}
