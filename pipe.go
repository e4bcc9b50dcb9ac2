package arpc

import (
	"net"
	"sync"
)

// Pipe returns a listener and a dialer that are connected in memory, for tests and for programs that are their own peer:
//
//	listener, dial := arpc.Pipe()
//	go server.Serve(listener)
//	client, err := arpc.NewClient(dial)
//
// Everything works as over a network but for the addresses, without sockets. A bubble of testing/synctest is not for it, as
// goroutines and buffers are shared with other connections of the process. The dialer fails once the listener is closed; before that it waits until the connection is accepted.
func Pipe() (net.Listener, func() (net.Conn, error)) {
	p := &memoryListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	return p, p.dial
}

type memoryListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

type memoryAddr struct{}

func (memoryAddr) Network() string { return "pipe" }
func (memoryAddr) String() string  { return "pipe" }

// Accept implements net.Listener.
func (p *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *memoryListener) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Addr implements net.Listener.
func (p *memoryListener) Addr() net.Addr { return memoryAddr{} }

func (p *memoryListener) dial() (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.closed:
		here.Close()  //nolint:errcheck // nobody has it
		there.Close() //nolint:errcheck // nobody has it
		return nil, &net.OpError{Op: "dial", Net: "pipe", Addr: memoryAddr{}, Err: net.ErrClosed}
	}
}
