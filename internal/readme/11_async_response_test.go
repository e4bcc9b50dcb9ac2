package readme

import (
	"testing"

	"github.com/arpc-go/arpc"
)

func TestAsyncResponse(t *testing.T) {
	server := arpc.NewServer()
	handler := server.Handler
	second := make(chan struct{})

	asyncResponse := true // default is true, or set false
	handler.Handle("/echo", func(ctx *arpc.Context) {
		req := &Echo{}
		err := ctx.Bind(req)
		if err == nil {
			// The first request is answered when the second one has come.
			if req.B == 1 {
				<-second
			} else {
				close(second)
			}
			ctx.Write(req)
		}
	}, asyncResponse)
	client := connect(t, serve(t, server))

	answers := make(chan int, 4)
	for b := 1; b <= 2; b++ {
		must(t, client.CallAsync("/echo", &Echo{B: b}, func(ctx *arpc.Context) {
			rsp := &Echo{}
			if err := ctx.Bind(rsp); err != nil {
				rsp.B = -1
			}
			answers <- rsp.B
		}, patience))
	}
	if a, b := recv(t, answers, "answer"), recv(t, answers, "answer"); a+b != 3 || a*b != 2 {
		t.Errorf("answers %d and %d", a, b)
	}
}
