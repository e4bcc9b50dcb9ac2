// A small Redis on gnet with one event loop, for the comparison: what the clone in evio's examples can do, as far as redis-benchmark
// asks for it. Parsing is redcon's, as in the others.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"

	"github.com/panjf2000/gnet/v2"
	"github.com/panjf2000/gnet/v2/pkg/logging"
	"github.com/tidwall/redcon"
)

func main() {
	addr := flag.String("addr", "tcp://127.0.0.1:6381", "address to listen on")
	flag.Parse()
	err := gnet.Run(&server{values: map[string][]byte{}}, *addr, gnet.WithNumEventLoop(1), gnet.WithTCPNoDelay(gnet.TCPNoDelay),
		gnet.WithLogLevel(logging.ErrorLevel))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// server has one loop, hence no lock.
type server struct {
	gnet.BuiltinEventEngine
	values map[string][]byte
	out    []byte
	args   [][]byte
}

// OnTraffic implements gnet.EventHandler. All that has arrived is answered with one write.
func (s *server) OnTraffic(c gnet.Conn) gnet.Action {
	all, err := c.Peek(-1)
	if err != nil {
		return gnet.Close
	}
	rest := all
	s.out = s.out[:0]
	action := gnet.None
	for action == gnet.None {
		complete, args, _, left, err := redcon.ReadNextCommand(rest, s.args[:0])
		s.args = args
		if err != nil {
			s.out = redcon.AppendError(s.out, err.Error())
			action = gnet.Close
			break
		}
		rest = left
		if !complete {
			break
		}
		if len(args) > 0 {
			action = s.do(args)
		}
	}
	if len(s.out) > 0 {
		if _, err := c.Write(s.out); err != nil {
			return gnet.Close
		}
	}
	if _, err := c.Discard(len(all) - len(rest)); err != nil {
		return gnet.Close
	}
	return action
}

func (s *server) do(args [][]byte) gnet.Action {
	name := string(bytes.ToUpper(args[0]))
	switch {
	case name == "PING" && len(args) == 1:
		s.out = redcon.AppendString(s.out, "PONG")
	case name == "ECHO" && len(args) == 2:
		s.out = redcon.AppendBulk(s.out, args[1])
	case name == "GET" && len(args) == 2:
		if v, ok := s.values[string(args[1])]; ok {
			s.out = redcon.AppendBulk(s.out, v)
		} else {
			s.out = redcon.AppendNull(s.out)
		}
	case name == "SET" && len(args) == 3:
		s.values[string(args[1])] = bytes.Clone(args[2])
		s.out = redcon.AppendOK(s.out)
	case name == "QUIT":
		s.out = redcon.AppendOK(s.out)
		return gnet.Close
	default:
		s.out = redcon.AppendError(s.out, "ERR unknown command '"+string(args[0])+"'")
	}
	return gnet.None
}
