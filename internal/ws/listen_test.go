package ws

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

const patience = 20 * time.Second

func listen(t *testing.T, cfg ServerConfig) (*Listener, net.Listener) {
	t.Helper()
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Stage = config(nil)
	l := Listen(plain, cfg)
	t.Cleanup(func() { l.Close() })
	return l, plain
}

func silent(t *testing.T, l *Listener) net.Conn {
	t.Helper()
	nc, err := net.DialTimeout("tcp", l.Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return nc
}

func gone(t *testing.T, nc net.Conn) {
	t.Helper()
	if b, err := io.ReadAll(nc); len(b) > 0 || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %q, %v, not the end", b, err)
	}
}

// A handshake has its time, and there is a number of them; one that is done is none any more.
func TestListenHandshakes(t *testing.T) {
	l, _ := listen(t, ServerConfig{Handshake: 50 * time.Millisecond})
	gone(t, silent(t, l))

	l, _ = listen(t, ServerConfig{Handshakes: 2})
	first, second := silent(t, l), silent(t, l)
	gone(t, silent(t, l)) // the third
	accepted := make(chan error, 2)
	go func() {
		for range 2 {
			nc, err := l.Accept()
			if err == nil {
				err = nc.Close()
			}
			accepted <- err
		}
	}()
	for _, nc := range []net.Conn{first, second} {
		if _, err := io.WriteString(nc, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-accepted:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(patience):
			t.Fatal("not accepted")
		}
	}
	third := silent(t, l)
	l.Close()
	gone(t, third)
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}

// When the listener under it fails, Accept does, too.
func TestListenFails(t *testing.T) {
	l, plain := listen(t, ServerConfig{})
	plain.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

// Who comes while nobody accepts is closed in the end.
func TestListenUnaccepted(t *testing.T) {
	l, _ := listen(t, ServerConfig{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	nc, _, _, err := ws.Dial(ctx, "ws://"+l.Addr().String()+"/")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	l.Close()
	nc.SetDeadline(time.Now().Add(patience))
	gone(t, nc)
}
