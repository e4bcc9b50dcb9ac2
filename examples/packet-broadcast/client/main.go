// The packet client sends every line of its standard input as a packet and prints the packets it gets. It stops at the end of its
// input, when the server does, and on Ctrl-C.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/arpc-go/arpc/extension/packet"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8888", "address of the server")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr); err != nil {
		fmt.Fprintln(os.Stderr, "packet client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string) error {
	client, err := packet.DialTimeout("tcp", addr, 5*time.Second, packet.NewFixProtocol(4, binary.BigEndian))
	if err != nil {
		return err
	}
	client.OnMessage(func(_ *packet.Session, message []byte) { fmt.Printf("received: %s\n", message) })
	closed := make(chan struct{})
	if err := client.Start(func(*packet.Session) { close(closed) }); err != nil {
		return err
	}
	fmt.Println("connected to", addr)

	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				client.Close()
				<-closed // what was sent is out
				return nil
			}
			if err := client.Send(packet.Bytes(line)); err != nil {
				return err
			}
		case <-closed:
			fmt.Println("disconnected:", client.Err())
			return nil
		case <-ctx.Done():
			fmt.Println("stopping")
			client.Close()
			<-closed
			return nil
		}
	}
}
