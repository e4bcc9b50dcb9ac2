package core

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// lastByte is a stage in which a byte 0xff ends the input.
type lastByte struct{}

func (lastByte) Decode(p []byte, reply func([]byte)) ([]byte, error) {
	if head, _, ok := bytes.Cut(p, []byte{0xff}); ok {
		return head, io.EOF
	}
	return p, nil
}
func (lastByte) Single() bool                   { return false }
func (lastByte) SetSingle(bool)                 {}
func (lastByte) Room() int                      { return 0 }
func (lastByte) Wrap(p []byte) (start, end int) { return 0, len(p) }
func (lastByte) Goodbye(error) []byte           { return nil }

type staged struct{ net.Conn }

func (s staged) Unwrap() (net.Conn, Stage, []byte) { return s.Conn, lastByte{}, nil }

type stagedListener struct{ net.Listener }

func (l stagedListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return staged{nc}, nil
}

// Ordered frames that were received before the end that the stage sees are run, even if they came with the same read.
func TestStageEnd(t *testing.T) {
	each(t, func(a adapter) bool { return a.name != "pipe" && a.name != "tls" }, func(t *testing.T, a adapter) {
		for _, kind := range []byte{kindOrdered, kindSlow} {
			app := newApp(t)
			ran := make(chan string, 10)
			app.onRun = func(s *state, f []byte, _ *Turn) {
				ran <- string(f[headLen:])
				if s.c.Stage() != (lastByte{}) {
					t.Error("no stage")
				}
			}
			srv := serveOn(t, a, stagedListener{a.listen(t)}, Config{}, app)
			c, s := srv.connect()
			must(t, s.c.SendRaw(makeFrame(kindPush, []byte("raw"))))
			c.expect(kindPush, []byte("raw"))
			c.send(makeFrame(kind, []byte("one")), makeFrame(kind, []byte("two")), []byte{0xff})
			for _, want := range []string{"one", "two"} {
				if got := recv(t, ran, want); got != want {
					t.Errorf("ran %s, not %s", got, want)
				}
			}
			c.eof()
			c.Close()
			if err := recv2(t, s); err != io.EOF {
				t.Errorf("closed with %v", err)
			}
			if s.c.SendRaw([]byte("x")) == nil {
				t.Error("sent after the end")
			}
		}
	})
}

// Each connection may have a splitter and limits of its own.
func TestOwnLimits(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		app.onOpen = func(s *state) error {
			s.c.SetTimeouts(200*time.Millisecond, -1)
			return nil
		}
		cfg := Config{SplitConn: func(c *Conn, buf []byte) (n, need int, err error) {
			if c.User.(*state).c != c {
				t.Error("another connection")
			}
			if len(buf) < headLen+1 {
				return 0, headLen + 1, nil
			}
			return headLen + 1, 0, nil
		}}
		srv := serve(t, a, cfg, app)
		began := time.Now()
		c, s := srv.connect()
		c.echo(kindInline, "x")
		if ago := time.Since(s.c.LastInput()); ago > time.Since(began)+100*time.Millisecond {
			t.Errorf("last input %v ago", ago)
		}
		if err := recv2(t, s); err != ErrIdle {
			t.Errorf("closed with %v", err)
		}
		c.Close()
	})
}

// Drain waits for handlers, and for no longer than it may.
func TestDrain(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		began, goOn := make(chan struct{}), make(chan struct{})
		app.onRun = func(s *state, f []byte, _ *Turn) {
			close(began)
			<-goOn
			s.answer(f)
		}
		srv := serve(t, a, Config{}, app)
		idle, _ := srv.connect()
		c, s := srv.connect()
		c.send(makeFrame(kindSlow, []byte("x")))
		recv(t, began, "handler")
		drained := make(chan error, 1)
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		go func() { drained <- srv.Drain(ctx, errors.New("test")) }()
		idle.eof()
		idle.Close()
		if isDone(s.down) || isDone(drained) {
			t.Error("closed while it is busy")
		}
		close(goOn)
		c.expect(kindSlow, []byte("x"))
		c.eof()
		c.Close()
		must(t, recv(t, drained, "end of Drain"))
	})
}
