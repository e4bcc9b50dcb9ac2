// The packet server sends each packet that a client sends to all clients; with -echo only back to where it came from. Erlang's
// gen_tcp with {packet, 4} is a client, too. It stops on Ctrl-C.
package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/arpc-go/arpc/extension/packet"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8888", "address to listen on")
	echo := flag.Bool("echo", false, "send packets back instead of to all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, *echo); err != nil {
		fmt.Fprintln(os.Stderr, "packet server:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string, echo bool) error {
	proto := packet.NewFixProtocol(4, binary.BigEndian)
	server, err := packet.ListenAndServe("tcp", addr, proto)
	if err != nil {
		return err
	}
	everybody := packet.NewChannel(proto)
	server.OnSessionStart(func(session *packet.Session) {
		session.OnMessage(func(session *packet.Session, message []byte) {
			var err error
			if echo {
				err = session.Send(packet.Bytes(message))
			} else {
				err = everybody.Broadcast(packet.Bytes(message))
			}
			if err != nil {
				fmt.Println("sending:", err)
			}
		})
		everybody.Join(session, nil) //nolint:errcheck // it has ended already, then
		fmt.Println("connected:", session.Id())
	})
	server.OnSessionClose(func(session *packet.Session) {
		fmt.Printf("disconnected: %d (%v)\n", session.Id(), session.Err())
	})
	if err := server.Start(); err != nil {
		return err
	}
	fmt.Println("listening on", server.Listener().Addr())
	<-ctx.Done()
	fmt.Println("stopping")
	server.Stop()
	return nil
}
