package session

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/core"
)

// A client has its connections again when the server is there again, and none after Close.
func TestClientConnectsAgain(t *testing.T) {
	onEach(t, []transport{tcpPoll, wsPoll}, func(t *testing.T, tr transport) {
		served := newEvents(t)
		server := tr.serve(t, with(&lengthCodec{}, served))
		addr := server.Addr().String()
		events := newEvents(t)
		client := tr.connect(t, addr, with(&lengthCodec{}, events), WithConnectionNumber(4))
		for range 4 {
			recv(t, events.opened, "OnOpen")
		}
		server.Close()
		for range 4 {
			recv(t, events.closed, "OnClose")
		}
		server = tr.serve(t, with(&lengthCodec{}, served), WithLocalAddress(addr))
		var last Session
		for range 4 {
			last = recv(t, events.opened, "OnOpen after the server's return")
		}
		last.Close() // one that is closed is replaced, too
		recv(t, events.closed, "OnClose")
		recv(t, events.opened, "OnOpen after Close")
		client.Close()
		for range 4 {
			recv(t, events.closed, "OnClose")
		}
		if !client.IsClosed() || len(events.opened) != 0 {
			t.Errorf("closed %v, %d more sessions", client.IsClosed(), len(events.opened))
		}
		server.Close()
		client.Close()
	})
}

// RunEventLoop says that the server is not there, and the client goes on by itself; Close ends that.
func TestClientWithoutServer(t *testing.T) {
	onEach(t, []transport{tcpPoll, wsPoll}, func(t *testing.T, tr transport) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		addr := ln.Addr().String()
		ln.Close()
		events := newEvents(t)
		client := tr.client(WithServerAddress(tr.address(addr)), WithReconnectInterval(int(5*time.Millisecond)))
		if err := client.RunEventLoop(with(&lengthCodec{}, events)); err == nil {
			t.Error("no error")
		}
		if err := client.RunEventLoop(with(&lengthCodec{}, events)); err != errRunning {
			t.Errorf("twice: %v", err)
		}
		server := tr.serve(t, with(&lengthCodec{}, newEvents(t)), WithLocalAddress(addr))
		recv(t, events.opened, "OnOpen")
		client.Close()
		server.Close()
		lost := tr.client(WithServerAddress(tr.address(addr)), WithReconnectInterval(int(time.Hour)))
		lost.RunEventLoop(with(&lengthCodec{}, events))
		start := time.Now()
		lost.Close()
		if time.Since(start) > patience {
			t.Error("Close waits for the next attempt")
		}
		unused := tr.client()
		unused.Close()
		if err := unused.RunEventLoop(nil); err != errRunning {
			t.Errorf("after Close: %v", err)
		}
	})
}

// A client that refuses its sessions is slowed down by its interval, and ends.
func TestClientRefusesItsSessions(t *testing.T) {
	server := tcpPoll.serve(t, with(&lengthCodec{}, newEvents(t)))
	fail := errors.New("test: refused")
	again := make(chan struct{}, 100)
	client := NewTCPClient(WithServerAddress(server.Addr().String()), WithReconnectInterval(1))
	if err := client.RunEventLoop(func(Session) error { again <- struct{}{}; return fail }); err != fail {
		t.Errorf("%v", err)
	}
	for range 4 {
		recv(t, again, "attempt")
	}
	client.Close()
}

// Who reaches itself, because its own port is the one that it dials, is refused.
func TestSelfConnect(t *testing.T) {
	port, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := port.Addr().(*net.TCPAddr)
	port.Close()
	d := net.Dialer{LocalAddr: addr}
	nc, err := d.DialContext(context.Background(), "tcp", addr.String())
	if err != nil {
		t.Skipf("the system does not connect a socket to itself: %v", err)
	}
	e := newEndPoint(TCP_CLIENT, nil)
	e.group = core.NewGroup(e.config(), (*app)(e))
	if _, err := e.adopt(nc); err != ErrSelfConnect {
		t.Errorf("%v", err)
	}
	e.Close()
}
