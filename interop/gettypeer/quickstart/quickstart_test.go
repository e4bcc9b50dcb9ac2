//go:build !race

// getty has data races, so the race detector is not for this file.

package quickstart

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	getty "github.com/apache/dubbo-getty"
)

// What follows is the same in extension/session/quickstart_test.go, but for the import.

// Codec puts the length of a text before it.
type Codec struct{}

func (Codec) Read(_ getty.Session, p []byte) (interface{}, int, error) {
	if len(p) < 4 {
		return nil, 0, nil
	}
	n := 4 + int(binary.LittleEndian.Uint32(p))
	if n < 4 || n > 1024 {
		return nil, 0, errors.New("illegal length")
	}
	if len(p) < n {
		return nil, n, nil
	}
	return string(p[4:n]), n, nil
}

func (Codec) Write(_ getty.Session, pkg interface{}) ([]byte, error) {
	text, ok := pkg.(string)
	if !ok {
		return nil, errors.New("illegal package")
	}
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...), nil
}

// Listener answers, or hands on, what comes.
type Listener struct {
	opened   chan getty.Session
	messages chan string // nil to answer
	closed   chan getty.Session
}

func (l *Listener) OnOpen(s getty.Session) error {
	l.opened <- s
	return nil
}

func (l *Listener) OnClose(s getty.Session) { l.closed <- s }

func (l *Listener) OnError(s getty.Session, err error) { println("error:", s.Stat(), err.Error()) }

func (l *Listener) OnCron(s getty.Session) {
	if time.Since(s.GetActive()) > time.Minute {
		s.Close()
	}
}

func (l *Listener) OnMessage(s getty.Session, pkg interface{}) {
	s.UpdateActive()
	if l.messages != nil {
		l.messages <- pkg.(string)
		return
	}
	if _, _, err := s.WritePkg(pkg, time.Second); err != nil {
		s.Close()
	}
}

func newSession(name string, listener getty.EventListener) func(getty.Session) error {
	return func(s getty.Session) error {
		s.SetName(name)
		s.SetMaxMsgLen(1024)
		s.SetPkgHandler(Codec{})
		s.SetEventListener(listener)
		s.SetCronPeriod(1000)
		s.SetReadTimeout(time.Second)
		s.SetWriteTimeout(5 * time.Second)
		s.SetWaitTime(time.Second)
		s.SetAttribute("user", name)
		return nil
	}
}

func newListener(messages chan string) *Listener {
	return &Listener{opened: make(chan getty.Session, 9), closed: make(chan getty.Session, 9), messages: messages}
}

func TestQuickStart(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a free port
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()

	server := getty.NewTCPServer(getty.WithLocalAddress(addr))
	server.RunEventLoop(newSession("server", newListener(nil)))
	defer server.Close()

	listener := newListener(make(chan string, 9))
	client := getty.NewTCPClient(
		getty.WithServerAddress(addr),
		getty.WithConnectionNumber(2),
		getty.WithReconnectInterval(int(100*time.Millisecond)),
	)
	client.RunEventLoop(newSession("client", listener))
	defer client.Close()
	for range 2 {
		s := <-listener.opened
		if _, _, err := s.WritePkg("hello", time.Second); err != nil {
			t.Fatal(err)
		}
		if text := <-listener.messages; text != "hello" || s.GetAttribute("user") != "client" {
			t.Errorf("%q, %v", text, s.GetAttribute("user"))
		}
	}
}
