// The echo client calls /echo of the echo server with every line of its
// standard input and prints the answers. It stops at the end of its input and
// on Ctrl-C.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/arpc-go/arpc"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8888", "address of the server")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr); err != nil {
		fmt.Fprintln(os.Stderr, "echo client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string) error {
	client, err := arpc.NewClient(func() (net.Conn, error) {
		return net.DialTimeout("tcp", addr, 5*time.Second)
	})
	if err != nil {
		return err
	}
	defer client.Stop()
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
				return nil
			}
			var answer string
			if err := client.Call("/echo", line, &answer, 5*time.Second); err != nil {
				return err
			}
			fmt.Println(answer)
		case <-ctx.Done():
			fmt.Println("stopping")
			return nil
		}
	}
}
