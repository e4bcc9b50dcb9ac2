package interop

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/interop/internal/script"
)

// eachStream runs a test for each of the stream checks.
func eachStream(t *testing.T, check func(i int, f func(script.Caller) error) error) {
	for i, c := range script.StreamChecks {
		t.Run(c.Name, func(t *testing.T) {
			if err := check(i, c.Check); err != nil {
				t.Error(err)
			}
		})
	}
}

// Streams that our client opens to the published server.
func TestOurClientStreams(t *testing.T) {
	addr := servePeer(t)
	eachStream(t, func(_ int, f func(script.Caller) error) error {
		return script.CheckStream(caller{dial(t, addr, false)}, f)
	})
}

// Streams that the published server opens to our client.
func TestPublishedServerStreams(t *testing.T) {
	addr := servePeer(t)
	eachStream(t, func(i int, _ func(script.Caller) error) error {
		return script.CheckBack(caller{dial(t, addr, false)}, i)
	})
}

// Streams that the published client opens to our server.
func TestPublishedClientStreams(t *testing.T) {
	for _, a := range adapters {
		t.Run(a.name, func(t *testing.T) {
			addr := serve(t, a.stdConns, false)
			for i, c := range script.StreamChecks {
				t.Run(c.Name, func(t *testing.T) {
					runPeer(t, "stream", "-addr", addr, "-check", fmt.Sprint(i))
				})
			}
		})
	}
}

// Streams that our server opens to the published client, which a call of that client's makes it do.
func TestOurServerStreams(t *testing.T) {
	for _, a := range adapters {
		t.Run(a.name, func(t *testing.T) {
			addr := serve(t, a.stdConns, false)
			for i, c := range script.StreamChecks {
				t.Run(c.Name, func(t *testing.T) {
					runPeer(t, "stream", "-addr", addr, "-check", fmt.Sprint(i), "-back")
				})
			}
		})
	}
}

// The same with both ends ours, in both versions.
func TestOurStreams(t *testing.T) {
	for _, version := range []int{1, 2} {
		for _, a := range adapters {
			t.Run(fmt.Sprint("version ", version, " ", a.name), func(t *testing.T) {
				addr := serve(t, a.stdConns, false)
				eachStream(t, func(i int, f func(script.Caller) error) error {
					c := caller{dial(t, addr, false, arpc.Protocol(version))}
					return errors.Join(script.CheckStream(c, f), script.CheckBack(c, i))
				})
			})
		}
	}
}

// calm returns the indexes of the stream checks but for those that only have more of the same frames.
func calm() (list []int) {
	for i, c := range script.StreamChecks {
		if !c.Flood {
			list = append(list, i)
		}
	}
	return list
}

// watchConn checks that what is written to it is of version 1.
type watchConn struct {
	net.Conn
	hello bool // the first frame is a ping with HELLO

	mu     sync.Mutex
	buf    []byte
	frames int
	kinds  map[byte]int
	bad    error
}

// Write implements net.Conn.
func (c *watchConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.buf = append(c.buf, b...)
	for len(c.buf) >= 16 {
		n := 16 + int(binary.LittleEndian.Uint32(c.buf))
		if n > len(c.buf) {
			break
		}
		c.check(c.buf[:n])
		c.buf = c.buf[n:]
		c.frames++
	}
	c.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *watchConn) check(frame []byte) {
	cmd, flag, body := frame[5], frame[6], frame[16:]
	if c.kinds == nil {
		c.kinds = map[byte]int{}
	}
	c.kinds[cmd&0x3f]++
	first := c.hello && c.frames == 0
	switch {
	case first && cmd == 4 && bytes.HasPrefix(body, []byte("arpc\x02")):
		return
	case first:
		c.fail("the first frame is no HELLO", frame)
	case flag&^3 != 0:
		c.fail("flags", frame)
	case cmd == 4 || cmd == 5:
		if [16]byte(frame) != [16]byte{5: cmd} || len(body) > 0 {
			c.fail("ping or pong", frame)
		}
	case cmd >= 1 && cmd <= 3, cmd&0x3f == 6:
		if frame[7] == 0 || frame[7] > 127 || int(frame[7]) > len(body) {
			c.fail("method", frame)
		}
	default:
		c.fail("command", frame)
	}
}

func (c *watchConn) fail(what string, frame []byte) {
	if c.bad == nil {
		c.bad = fmt.Errorf("frame %d, %s: %x", c.frames, what, frame[:min(len(frame), 64)])
	}
}

// verdict says what was not of version 1. kinds are commands that must have been among the frames.
func (c *watchConn) verdict(kinds ...byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.bad
	for _, k := range kinds {
		if c.kinds[k] == 0 {
			err = errors.Join(err, fmt.Errorf("no frame with command %d", k))
		}
	}
	if len(c.buf) > 0 {
		err = errors.Join(err, fmt.Errorf("%d bytes of an incomplete frame", len(c.buf)))
	}
	return err
}

// newer uses what only version 2 carries, which must be left out.
func newer(t *testing.T, c *arpc.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), script.Timeout)
	defer cancel()
	var md arpc.Metadata
	ctx = arpc.WithResponseMetadata(arpc.WithMetadata(ctx, arpc.Metadata{"key": "value"}), &md)
	var text string
	if err := c.CallWith(ctx, "/echo", "with everything", &text); err != nil || text != "with everything" || md != nil {
		t.Errorf("%q, %v, %v", text, md, err)
	}
	if err := c.NotifyWith(ctx, "/note", "with everything"); err != nil {
		t.Error(err)
	}
	if err := c.Call("/notes", nil, &text, script.Timeout); err != nil || text != "with everything" {
		t.Errorf("%q, %v", text, err)
	}
	s, err := c.OpenStream(ctx, "/stream/echo")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Send("x"), s.Recv(&text)); err != nil || text != "x" || s.Metadata() != nil {
		t.Errorf("%q, %v", text, err)
	}
	s.Reset(&arpc.Error{Code: arpc.CodeAborted, Message: "no more"})
	gone, cancelNow := context.WithCancel(ctx)
	cancelled := make(chan error, 1)
	go func() { cancelled <- c.CallWith(gone, "/back/call", "x", nil) }()
	cancelNow()
	if err := <-cancelled; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call: %v", err)
	}
	c.Ping()
	if err := c.Call("/echo", nil, nil, script.Timeout); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// To the published server our client says nothing of version 2 but HELLO, whatever it is asked for (V2-OLD-1).
func TestOurClientStaysOnVersion1(t *testing.T) {
	addr := servePeer(t)
	var watched *watchConn
	h := arpc.NewHandler()
	routes(h, nil)
	client, err := arpc.NewClient(func() (net.Conn, error) {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		watched = &watchConn{Conn: nc, hello: true}
		return watched, nil
	}, h)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Stop()
	newer(t, client)
	if err := script.Check(caller{client}); err != nil {
		t.Error(err)
	}
	for _, check := range calm() {
		if err := script.CheckStream(caller{client}, script.StreamChecks[check].Check); err != nil {
			t.Errorf("%s: %v", script.StreamChecks[check].Name, err)
		}
	}
	client.Stop() // and no farewell
	if err := watched.verdict(1, 2, 3, 4, 6); err != nil {
		t.Error(err)
	}
}

// watchListener watches the connections that it accepts.
type watchListener struct {
	net.Listener
	mu    sync.Mutex
	conns []*watchConn
}

// Accept implements net.Listener.
func (l *watchListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &watchConn{Conn: nc}
	l.mu.Lock()
	l.conns = append(l.conns, c)
	l.mu.Unlock()
	return c, nil
}

// To published clients our server says nothing of version 2 at all.
func TestOurServerStaysOnVersion1(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	watched := &watchListener{Listener: ln}
	server := arpc.NewServer(arpc.NewHandler())
	routes(server.Handler, func(method string, v any) { server.Broadcast(method, v) })
	served := make(chan error, 1)
	go func() { served <- server.Serve(watched) }()
	addr := ln.Addr().String()
	runPeer(t, "client", "-addr", addr)
	for _, i := range calm() {
		runPeer(t, "stream", "-addr", addr, "-check", fmt.Sprint(i))
		runPeer(t, "stream", "-addr", addr, "-check", fmt.Sprint(i), "-back")
	}
	ctx, cancel := context.WithTimeout(context.Background(), script.Timeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
		t.Errorf("Serve: %v", err)
	}
	for i, c := range watched.conns {
		var kinds []byte
		if i == 0 {
			kinds = []byte{1, 2, 3}
		}
		if err := c.verdict(kinds...); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}
