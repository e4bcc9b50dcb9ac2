// The sessions program serves one protocol over TCP, UDP and WebSocket with the same codec and the same listener, and closes sessions
// that are silent. The protocol is lines of text, which come back. It stops on Ctrl-C.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/arpc-go/arpc/extension/session"
)

// lines is the codec: a package is a line.
type lines struct{}

func (lines) Read(_ session.Session, p []byte) (any, int, error) {
	n := bytes.IndexByte(p, '\n')
	if n < 0 {
		return nil, 0, nil // more is needed; a line has at most 64 KiB
	}
	return string(p[:n]), n + 1, nil
}

func (lines) Write(_ session.Session, pkg any) ([]byte, error) {
	if u, ok := pkg.(session.UDPContext); ok {
		pkg = u.Pkg // the peer is not part of what is sent
	}
	line, ok := pkg.(string)
	if !ok {
		return nil, fmt.Errorf("a %T is no line", pkg)
	}
	return append([]byte(line), '\n'), nil
}

// echo is the listener.
type echo struct{ idle time.Duration }

func (echo) OnOpen(s session.Session) error       { fmt.Println("open", s.LocalAddr()); return nil }
func (echo) OnClose(s session.Session)            { fmt.Println("close", s.LocalAddr()) }
func (echo) OnError(s session.Session, err error) { fmt.Println("error", s.LocalAddr(), err) }

func (e echo) OnCron(s session.Session) {
	if s.EndPoint().EndPointType() != session.UDP_ENDPOINT && time.Since(s.GetActive()) > e.idle {
		s.Close()
	}
}

func (echo) OnMessage(s session.Session, pkg any) {
	if _, _, err := s.WritePkg(pkg, time.Second); err != nil && !errors.Is(err, session.ErrSessionClosed) {
		fmt.Println("answer:", err)
		s.Close()
	}
}

func main() {
	addr := flag.String("addr", "127.0.0.1:8085", "address to listen on with TCP and UDP")
	wsAddr := flag.String("ws", "127.0.0.1:8086", "address to listen on with WebSocket")
	idle := flag.Duration("idle", time.Minute, "close connections that are silent for that long")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr, *wsAddr, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "sessions:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr, wsAddr string, idle time.Duration) error {
	newSession := func(s session.Session) error {
		s.SetPkgHandler(lines{})
		s.SetEventListener(echo{idle})
		s.SetCronPeriod(1000)
		return nil
	}
	for _, t := range []struct {
		name, addr string
		serve      func(...session.Option) session.Server
	}{{"tcp", addr, session.NewTCPServer}, {"udp", addr, session.NewUDPEndPoint}, {"websocket", wsAddr, session.NewWSServer}} {
		server := t.serve(session.WithLocalAddress(t.addr), session.WithWebsocketServerPath("/lines"))
		if err := server.RunEventLoop(newSession); err != nil {
			return err
		}
		defer server.Close()
		fmt.Println(t.name, "on", server.Addr())
	}
	<-ctx.Done()
	fmt.Println("stopping")
	return nil
}
