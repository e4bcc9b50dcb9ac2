package readme

import (
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

func TestCallAsync(t *testing.T) {
	client := connect(t, echoServer(t))
	type outcome struct {
		rsp       Echo
		err, done error
	}
	// Room for more than one call of each callback, which would be an error.
	outcomes := make(chan outcome, 8)

	request := &Echo{A: "hello", B: 7}
	timeout := time.Second * 5
	err := client.CallAsync("/call/echo", request, func(ctx *arpc.Context) {
		response := &Echo{}
		err := ctx.Bind(response)
		outcomes <- outcome{*response, err, ctx.Err()}
	}, timeout)
	must(t, err)
	if o := recv(t, outcomes, "callback"); o.err != nil || o.done != nil || o.rsp != *request {
		t.Errorf("%+v", o)
	}

	// The callback learns of every other end, too.
	failed := func(ctx *arpc.Context) {
		var ignored Echo
		outcomes <- outcome{err: ctx.Bind(&ignored), done: ctx.Err()}
	}
	for _, tt := range []struct {
		method  string
		timeout time.Duration
	}{{"/call/never", time.Millisecond}, {"/call/unknown", timeout}} {
		must(t, client.CallAsync(tt.method, request, failed, tt.timeout))
		if o := recv(t, outcomes, "callback of "+tt.method); o.err == nil || o.done == nil {
			t.Errorf("%s: Bind says %v, Err says %v", tt.method, o.err, o.done)
		}
	}
	must(t, client.CallAsync("/call/never", request, failed, patience))
	client.Stop()
	if o := recv(t, outcomes, "callback after Stop"); o.err == nil || o.done == nil {
		t.Errorf("after Stop: Bind says %v, Err says %v", o.err, o.done)
	}
	if len(outcomes) != 0 {
		t.Errorf("%d callbacks too many", len(outcomes))
	}
}
