package readme

import (
	"testing"

	"github.com/arpc-go/arpc"
)

func TestSetSendQueueSize(t *testing.T) {
	freshDefault(t)
	arpc.DefaultHandler.SetSendQueueSize(4096)

	svr := arpc.NewServer()
	handleEcho(svr.Handler)
	callEcho(t, connect(t, serve(t, svr)))
}
