//go:build unix

//lint:file-ignore ST1019 the program has two imports, of which only the paths are other ones

package action_test

import (
	"os"
	"syscall"
	"testing"
	"time"

	signal "github.com/arpc-go/arpc/extension/action"
	znet "github.com/arpc-go/arpc/extension/action"
)

const ActionFoo = 1

// quickStart is znet's quick start with other import lines and any free ports.
func quickStart(started func()) error {
	instance := znet.New()

	instance.ListenTCP("127.0.0.1:0")
	instance.ListenWebsocket("127.0.0.1:0")

	instance.Router().Route(ActionFoo, func(ctx *znet.Context) (any, error) {
		return map[string]any{"foo": "bar"}, nil
	})

	instance.On(znet.AfterStart, started) // the test's

	return instance.Run(signal.SetupSignalHandler())
}

// Row Z7: the seed's program compiles, runs and stops on a signal.
func TestZ07QuickStart(t *testing.T) {
	started, stopped := make(chan struct{}), make(chan error, 1)
	go func() { stopped <- quickStart(func() { close(started) }) }()
	<-started
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-stopped:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it did not stop")
	}
}
