package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// A system is one way to do remote calls. Its file, sys_<name>.go, is the only
// one that knows it: how to serve and how to call. Everything else (load,
// payloads, comparing, measuring) is the same for all.
type system struct {
	name     string
	about    string
	module   string // whose version is reported; "" for the standard library
	baseline string // name of the system its ratios are to
	json     bool   // calls carry a struct as JSON instead of bytes; clients are noteCallers
	async    bool   // clients are also asyncCallers
	routes   bool   // registers all routes, not only routeEcho

	// serve starts a server on a loopback port and returns its address. It runs
	// until the process ends.
	serve func() (addr string, err error)
	// dial opens one connection. The result is a caller, a noteCaller or a
	// windowCaller. It is used until the process ends.
	dial func(addr string) (any, error)
}

// A caller makes one call and waits for the answer. It may be used by many
// goroutines at once.
type caller interface {
	call(route string, req []byte, rsp *[]byte) error
}

// A noteCaller is a caller for systems with JSON.
type noteCaller interface {
	callNote(route string, req, rsp *note) error
}

// An asyncCaller makes calls that end in a callback. The returned function
// issues one call; done runs exactly once for each that was issued without an
// error, on any goroutine, and may issue the next. rsp is valid until done
// returns.
type asyncCaller interface {
	newAsync(route string, done func(rsp []byte, err error)) (issue func(req []byte) error)
}

// A windowCaller keeps several requests in flight by itself.
type windowCaller interface {
	// runWindow has one goroutine keep len(lanes) requests of the size in
	// flight, until the load stops and all are answered.
	runWindow(l *load, g *groupLoad, lanes []lane)
}

// note is the struct that systems with JSON carry.
type note struct {
	ID   uint64 `json:"id"`
	From string `json:"from"`
	Text string `json:"text"`
}

// callTimeout is given to every call that takes a time limit. None should ever
// meet it.
const callTimeout = 10 * time.Second

var systems = slices.Concat(arpcGoSystems, []*system{webSocketSystem}, observedSystems, []*system{microSystem}, arpcSystems, []*system{
	grpcSystem, netRPCSystem, rpcxSystem, drpcSystem, natsSystem, rawSystem,
})

func systemByName(name string) *system {
	i := slices.IndexFunc(systems, func(s *system) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return systems[i]
}

// listenLoopback opens the listener of a server.
func listenLoopback() (net.Listener, string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	return ln, ln.Addr().String(), nil
}

// dialLoopback opens a connection that is reset, not shut down, at the end of
// the process: a thousand connections per figure would otherwise fill the
// system's table of closed ones for a minute.
func dialLoopback(addr string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(addr, "tcp://"), callTimeout)
	if err != nil {
		return nil, err
	}
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		conn.Close()
		return nil, fmt.Errorf("linger: %w", err)
	}
	return conn, nil
}
