package micro_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/internal/leak"
)

// serverVariable makes the test binary a server.
const serverVariable = "ARPC_MICRO_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(serverVariable) != "" {
		serveAlone()
		return
	}
	leak.Main(m)
}

// serveAlone is a server of TestChaos, in a process of its own. It says where it listens, and then what it has done of "/once", before it
// answers. It obeys lines: "slow", "fast" and "drain". It ends when it is drained, or with the process that has started it.
func serveAlone() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var slow atomic.Bool
	h := arpc.NewHandler()
	wait := func() {
		if slow.Load() {
			<-time.After(100 * time.Millisecond)
		}
	}
	who.Handle(h, func(_ *arpc.Context, text *string) (*string, error) {
		wait()
		return text, nil
	})
	once.Handle(h, func(_ *arpc.Context, text *string) (*string, error) {
		wait()
		_, err := os.Stdout.WriteString(*text + "\n") // one write: it is whole, or it is not there
		return text, err
	})
	s := arpc.NewServer(h)
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(ln) //nolint:errcheck // it is stopped
	}()
	fmt.Println(ln.Addr())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch strings.TrimSpace(in.Text()) {
		case "slow":
			slow.Store(true)
		case "fast":
			slow.Store(false)
		case "drain":
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := s.Shutdown(ctx); err != nil {
				fmt.Println("shutdown:", err)
			}
			<-served
			return
		}
	}
}
