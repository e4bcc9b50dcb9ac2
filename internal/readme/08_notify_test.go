package readme

import (
	"context"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

func TestNotify(t *testing.T) {
	notified := make(chan Echo, 4)
	server := arpc.NewServer()
	server.Handler.Handle("/notify", func(ctx *arpc.Context) {
		var data Echo
		if err := ctx.Bind(&data); err == nil {
			notified <- data
		}
		if err := ctx.Write("answer"); err == nil {
			notified <- Echo{A: "a notify was answered"}
		}
	})
	client := connect(t, serve(t, server))

	data := &Echo{A: "hello", B: 7}
	client.Notify("/notify", data, time.Second)
	if got := recv(t, notified, "notify"); got != *data {
		t.Errorf("%+v", got)
	}
	client.NotifyWith(context.Background(), "/notify", data)
	if got := recv(t, notified, "notify"); got != *data {
		t.Errorf("%+v", got)
	}
	client.Notify("/notify", data, arpc.TimeZero)
	if got := recv(t, notified, "notify"); got != *data {
		t.Errorf("%+v", got)
	}
}
