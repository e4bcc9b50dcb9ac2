// Command action-server is the Go end of the tests of ActionClient. It prints its address, and ends with its standard input.
package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/arpc-go/arpc/extension/action"
)

func main() {
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is what matters
		close(stop)
	}()
	instance := action.New(action.Limits{Frame: 1 << 20}, action.Origins("*"))
	addr, err := instance.ListenWebsocket("127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	hold := make(chan struct{})
	instance.Router().
		Route(1, func(ctx *action.Context) (any, error) { // echo
			var v any
			err := ctx.Bind(&v)
			return v, err
		}).
		Route(2, func(*action.Context) (any, error) { return nil, errors.New("refused: no reply") }).
		Route(3, func(*action.Context) (any, error) { // is overtaken, until action 4
			<-hold
			return "slow", nil
		}, action.Unordered()).
		Route(4, func(*action.Context) (any, error) {
			close(hold)
			return nil, nil
		}, action.Unordered()).
		Route(-5, func(ctx *action.Context) (any, error) { // pushes
			for i := range 3 {
				if err := ctx.Conn().Send(101, int16(-i), map[string]int{"i": i}); err != nil {
					return nil, err
				}
			}
			return "pushed", nil
		}).
		Route(6, func(ctx *action.Context) (any, error) {
			ctx.Conn().Close()
			return nil, nil
		})
	fmt.Println(addr)
	if err := instance.Run(stop); err != nil {
		log.Fatal(err)
	}
}
