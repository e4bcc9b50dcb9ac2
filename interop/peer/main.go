// The peer is the published arpc, in a process of its own: in a build with the
// race detector it would report its own races among ours.
//
//	peer serve [-coder]               serve on a free port until standard input ends
//	peer client -addr A [-coder]      make all checks against a server
//	peer stream -addr A -check I [-back]
//	                                  make the stream check of that index, or have the server make it
//	peer storm -addr A -conns C -callers K -calls N
//	                                  compare C*K*N answers of a server
//
// It exits with a non-zero code if a check fails.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/lesismal/arpc"
	"github.com/lesismal/arpc/log"

	"github.com/arpc-go/arpc/interop/internal/script"
)

func main() {
	log.SetLevel(log.LevelNone)
	if len(os.Args) < 2 {
		fail(errors.New("no command"))
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	addr := flags.String("addr", "", "address of the server")
	coder := flags.Bool("coder", false, "use a message coder")
	conns := flags.Int("conns", 8, "connections")
	callers := flags.Int("callers", 100, "goroutines of a connection that call")
	index := flags.Int("check", 0, "index of the stream check")
	back := flags.Bool("back", false, "let the server make the check")
	calls := flags.Int("calls", 250, "calls of each")
	flags.Parse(os.Args[2:])
	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(*coder)
	case "client":
		err = check(*addr, *coder)
	case "stream":
		err = checkStream(*addr, *index, *back)
	case "storm":
		err = storm(*addr, *conns, *callers, *calls)
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

type caller struct{ c *arpc.Client }

func (c caller) Call(method string, req, rsp any) error {
	return c.c.Call(method, req, rsp, script.Timeout)
}

func (c caller) CallAsync(method string, req any, done func(func(any) error)) error {
	return c.c.CallAsync(method, req, func(ctx *arpc.Context, err error) {
		done(func(v any) error {
			if err != nil {
				return err
			}
			return ctx.Bind(v)
		})
	}, script.Timeout)
}

func (c caller) Notify(method string, data any) error {
	return c.c.Notify(method, data, script.Timeout)
}

func (c caller) NewStream(method string) script.Stream { return stream{c.c.NewStream(method)} }

type stream struct{ s *arpc.Stream }

func (s stream) Send(v any) error         { return s.s.Send(v) }
func (s stream) SendAndClose(v any) error { return s.s.SendAndClose(v) }
func (s stream) Recv(v any) error         { return s.s.Recv(v) }
func (s stream) CloseSend() error         { s.s.CloseSend(); return nil }

type context struct{ *arpc.Context }

func (c context) Peer() script.Caller { return caller{c.Client} }

func routes(h arpc.Handler, broadcast func(string, any)) {
	handle := func(method string, async bool, f func(script.Context)) {
		h.Handle(method, func(ctx *arpc.Context) { f(context{ctx}) }, async)
	}
	script.Routes(handle, broadcast)
	script.StreamBack(handle)
	script.StreamRoutes(func(method string, f func(script.Stream)) {
		h.HandleStream(method, func(s *arpc.Stream) { f(stream{s}) }, true)
	})
}

type transform struct{}

func (transform) Encode(_ *arpc.Client, m *arpc.Message) *arpc.Message {
	m.Buffer = script.Transform(m.Buffer)
	return m
}

func (transform) Decode(_ *arpc.Client, m *arpc.Message) *arpc.Message {
	out, err := script.Restore(m.Buffer)
	if err != nil {
		fail(err)
	}
	m.Buffer = out
	return m
}

func serve(coder bool) error {
	server := arpc.NewServer()
	routes(server.Handler, func(method string, v any) { server.Broadcast(method, v) })
	if coder {
		server.Handler.UseCoder(transform{})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	go server.Serve(ln)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func dial(addr string, coder bool) (*arpc.Client, error) {
	h := arpc.NewHandler()
	routes(h, nil)
	if coder {
		h.UseCoder(transform{})
	}
	return arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", addr) }, h)
}

func check(addr string, coder bool) error {
	client, err := dial(addr, coder)
	if err != nil {
		return err
	}
	if err := script.Check(caller{client}); err != nil {
		return err
	}
	var watched *script.PongConn
	pinger, err := arpc.NewClient(func() (net.Conn, error) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		watched = script.Watch(conn)
		return watched, nil
	}, arpc.NewHandler())
	if err != nil {
		return err
	}
	return watched.CheckPing(pinger.Ping)
}

func checkStream(addr string, i int, back bool) error {
	client, err := dial(addr, false)
	if err != nil {
		return err
	}
	if back {
		return script.CheckBack(caller{client}, i)
	}
	return script.CheckStream(caller{client}, script.StreamChecks[i].Check)
}

func storm(addr string, conns, callers, calls int) error {
	var list []script.Caller
	for range conns {
		client, err := dial(addr, false)
		if err != nil {
			return err
		}
		list = append(list, caller{client})
	}
	return script.Storm(list, callers, calls)
}
