// The chat client sends the lines that you type to all others, or with "name: " before them to one. It stops on Ctrl-C and at the
// end of its input.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/arpc-go/arpc/examples/action-chat/chat"
	"github.com/arpc-go/arpc/extension/action"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8081", "address of the server: host:port for TCP, or a ws:// URL")
	name := flag.String("name", "guest", "your name")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, *name); err != nil {
		fmt.Fprintln(os.Stderr, "chat client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr, name string) error {
	connecting, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	dial := action.DialTCP
	if strings.Contains(addr, "://") {
		dial = action.DialWebSocket
	}
	client, err := dial(connecting, addr, action.OnPush(func(_ *action.Client, p *action.Packet) {
		var line chat.Line
		if p.Action == chat.Deliver && p.Bind(&line) == nil {
			fmt.Printf("%s says: %s\n", line.From, line.Text)
		}
	}))
	if err != nil {
		return err
	}
	defer client.Close()
	var me chat.LoginReply
	if err := client.Call(connecting, chat.Login, chat.LoginRequest{Name: name}, &me); err != nil {
		return err
	}
	if me.Error != "" {
		return fmt.Errorf("login: %s", me.Error)
	}
	fmt.Println("here are:", strings.Join(me.Names, ", "))

	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	for {
		select {
		case text, ok := <-lines:
			if !ok {
				return nil
			}
			line := chat.Line{Text: text}
			if to, rest, ok := strings.Cut(text, ": "); ok {
				line.To, line.Text = to, rest
			}
			var said chat.SayReply
			if err := client.Call(ctx, chat.Say, line, &said); err != nil {
				return err
			}
			fmt.Println("sent to:", said.Receivers)
		case <-client.Done():
			fmt.Println("the server is gone")
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}
