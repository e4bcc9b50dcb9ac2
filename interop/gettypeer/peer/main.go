// The peer is getty, for the tests beside it: it runs in a process of its own because getty has data races.
//
//	peer server tcp|ws|udp address [compression]
//	peer client tcp|ws|udp address [compression [connections]]
//
// A server answers what comes. A client prints "open", "close" and "echo text" as that happens, and sends each line of its input on
// all its sessions. Both end with their input.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	getty "github.com/apache/dubbo-getty"

	"github.com/arpc-go/arpc/interop/gettypeer/internal/echo"
)

type codec struct{}

func (codec) Read(_ getty.Session, p []byte) (interface{}, int, error) {
	pkg, n, err := echo.Decode(p)
	if pkg == nil {
		return nil, n, err
	}
	return pkg, n, err
}

func (codec) Write(_ getty.Session, v interface{}) ([]byte, error) {
	if u, ok := v.(getty.UDPContext); ok {
		v = u.Pkg
	}
	pkg, ok := v.(*echo.Package)
	if !ok {
		return nil, fmt.Errorf("a %T is no package", v)
	}
	return pkg.Encode(), nil
}

type listener struct {
	server bool

	mu       sync.Mutex
	sessions map[getty.Session]struct{}
}

func (l *listener) say(args ...any) {
	if !l.server {
		fmt.Println(args...)
	}
}

func (l *listener) OnOpen(s getty.Session) error {
	l.mu.Lock()
	l.sessions[s] = struct{}{}
	l.mu.Unlock()
	l.say("open")
	return nil
}

func (l *listener) OnClose(s getty.Session) {
	l.mu.Lock()
	delete(l.sessions, s)
	l.mu.Unlock()
	l.say("close")
}

func (l *listener) OnError(getty.Session, error) {}
func (l *listener) OnCron(getty.Session)         {}

func (l *listener) OnMessage(s getty.Session, pkg interface{}) {
	if l.server {
		if _, _, err := s.WritePkg(pkg, time.Second); err != nil {
			fmt.Fprintln(os.Stderr, "answer:", err)
		}
		return
	}
	if u, ok := pkg.(getty.UDPContext); ok {
		pkg = u.Pkg
	}
	l.say("echo", pkg.(*echo.Package).Text)
}

func (l *listener) send(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.sessions {
		var pkg any = &echo.Package{Command: echo.Echo, Text: text}
		if s.EndPoint().EndPointType() == getty.UDP_CLIENT {
			pkg = getty.UDPContext{Pkg: pkg}
		}
		if _, _, err := s.WritePkg(pkg, time.Second); err != nil {
			fmt.Fprintln(os.Stderr, "send:", err)
		}
	}
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 {
		return errors.New("role, transport and address are needed")
	}
	role, transport, addr := args[0], args[1], args[2]
	compress, connections := "", 1
	if len(args) > 3 {
		compress = args[3]
	}
	if len(args) > 4 {
		n, err := strconv.Atoi(args[4])
		if err != nil {
			return err
		}
		connections = n
	}
	if err := getty.SetLoggerLevel(getty.LoggerLevelFatal); err != nil {
		return err
	}
	l := &listener{server: role == "server", sessions: map[getty.Session]struct{}{}}
	newSession := func(s getty.Session) error {
		if compress != "" {
			n, err := strconv.Atoi(compress)
			if err != nil {
				return err
			}
			s.SetCompressType(getty.CompressType(n))
		}
		s.SetMaxMsgLen(4096)
		s.SetPkgHandler(codec{})
		s.SetEventListener(l)
		s.SetCronPeriod(1000)
		s.SetReadTimeout(time.Second)
		s.SetWriteTimeout(time.Second)
		s.SetWaitTime(time.Second)
		return nil
	}
	var end getty.EndPoint
	switch role + " " + transport {
	case "server tcp":
		end = getty.NewTCPServer(getty.WithLocalAddress(addr))
	case "server ws":
		end = getty.NewWSServer(getty.WithLocalAddress(addr), getty.WithWebsocketServerPath("/echo"))
	case "server udp":
		end = getty.NewUDPEndPoint(getty.WithLocalAddress(addr))
	case "client tcp":
		end = getty.NewTCPClient(getty.WithServerAddress(addr), getty.WithConnectionNumber(connections), getty.WithReconnectInterval(1e8))
	case "client ws":
		end = getty.NewWSClient(getty.WithServerAddress("ws://"+addr+"/echo"), getty.WithConnectionNumber(connections), getty.WithReconnectInterval(1e8))
	case "client udp":
		end = getty.NewUDPClient(getty.WithServerAddress(addr), getty.WithConnectionNumber(connections), getty.WithReconnectInterval(1e8))
	default:
		return fmt.Errorf("no %s %s", role, transport)
	}
	end.RunEventLoop(newSession)
	fmt.Println("running")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		l.send(lines.Text())
	}
	return lines.Err()
}
