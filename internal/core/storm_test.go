package core

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Hundreds of peers connect, send, reset, half-close and vanish, and connections are ended by other goroutines at any
// moment, next to connections that do nothing wrong: of these none ends and no byte is lost or changed.
func TestStorm(t *testing.T) {
	duration, peers, innocents := 400*time.Millisecond, 200, 16
	if long {
		duration = 20 * time.Second
	}
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		app.forced.Store(true)
		var closers atomic.Int32
		closer := func(f func(error), err error) {
			closers.Add(1)
			go func() {
				f(err)
				closers.Add(-1)
			}()
		}
		app.onRun = func(s *state, f []byte, turn *Turn) {
			if f[4] == kindSlow { // an order to the server
				switch f[headLen] % 6 {
				case 0:
					closer(s.c.Close, nil)
					closer(s.c.Close, nil)
				case 1:
					closer(s.c.Abort, nil)
					closer(s.c.Close, nil)
				case 2:
					s.c.Abort(nil)
				case 3:
					s.away(turn, func() { s.send(Now, makeFrame(kindPush, make([]byte, 10_000))) })
				case 4:
					n := 100_000
					if f[headLen] < 32 {
						n = 5 << 20
					}
					s.send(Now, makeFrame(kindPush, make([]byte, n)))
					closer(s.c.Close, nil)
				case 5:
					s.c.Close(nil)
				}
				return
			}
			s.send(Answer, f)
		}
		cfg := Config{CloseFlush: 200 * time.Millisecond, Hard: 1 << 30, Loops: 2}
		if a.name == "moves" {
			cfg.StdConns = innocents
		}
		srv := serve(t, a, cfg, app)
		end := time.NewTimer(duration)
		defer end.Stop()
		stop := make(chan struct{})
		go func() {
			<-end.C
			close(stop)
		}()
		var wg sync.WaitGroup
		var echoes, storms atomic.Int64
		for i := range innocents {
			c := srv.dial()
			c.SetDeadline(time.Now().Add(duration + wait))
			wg.Go(func() {
				defer c.Close()
				rnd := rand.New(rand.NewPCG(uint64(i), 2))
				for n := 0; n == 0 || !isDone(stop); n++ {
					var frames [][]byte
					for range 1 + rnd.IntN(8) {
						frames = append(frames, makeFrame(kindOrdered, pattern(rnd.IntN(1<<rnd.IntN(15)), rnd.Uint32())))
					}
					wrote := make(chan error, 1)
					go func() {
						_, err := c.Write(bytes.Join(frames, nil))
						wrote <- err
					}()
					for n, f := range frames {
						_, b, err := c.read()
						if err != nil || !bytes.Equal(b, f[headLen:]) {
							t.Errorf("innocent connection %d, frame %d: %d of %d bytes, %v", i, n, len(b), len(f)-headLen, err)
							return
						}
					}
					if err := <-wrote; err != nil {
						t.Errorf("innocent connection %d: %v", i, err)
						return
					}
					echoes.Add(int64(len(frames)))
				}
			})
		}
		for i := range peers {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(i), 1))
				for n := 0; n == 0 && i < 20 || !isDone(stop); n++ {
					nc, err := a.dial(srv.ln)
					if err != nil {
						if !isReset(err) {
							t.Errorf("dial: %v", err)
						}
						continue
					}
					storms.Add(1)
					storm(nc, rnd, a)
				}
			})
		}
		wg.Wait()
		eventually(t, "no connection", func() bool { return srv.Len() == 0 && closers.Load() == 0 })
		if o, c := app.opens.Load(), app.closes.Load(); o != c {
			t.Errorf("%d Opens, %d Closes", o, c)
		}
		t.Logf("%d echoes, %d other connections", echoes.Load(), storms.Load())
	})
}

// storm is one bad peer.
func storm(nc net.Conn, rnd *rand.Rand, a adapter) {
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(5 * time.Second))
	reads := make(chan struct{})
	if rnd.IntN(4) > 0 {
		go func() { // some do not read
			defer close(reads)
			io.Copy(io.Discard, nc)
		}()
	} else {
		close(reads)
	}
	for range rnd.IntN(4) {
		kind := []byte{kindOrdered, kindInline, kindAsync, kindSwallow}[rnd.IntN(4)]
		if _, err := nc.Write(makeFrame(kind, make([]byte, rnd.IntN(3000)))); err != nil {
			break
		}
	}
	switch rnd.IntN(8) {
	case 0, 1, 2: // the server ends it, or not
		nc.Write(makeFrame(kindSlow, []byte{byte(rnd.IntN(256))}))
		if rnd.IntN(2) == 0 {
			select {
			case <-reads:
			case <-time.After(time.Duration(rnd.IntN(50)) * time.Millisecond):
			}
		}
	case 3: // in the middle of a frame
		nc.Write(makeFrame(kindOrdered, make([]byte, 1000))[:1+rnd.IntN(900)])
	case 4, 5:
		if tc, ok := nc.(*net.TCPConn); ok {
			tc.SetLinger(0)
		}
	case 6:
		if a.half {
			nc.(interface{ CloseWrite() error }).CloseWrite()
			<-reads
		}
	case 7: // malformed
		nc.Write(bytes.Repeat([]byte{0xff}, 10))
	}
}

// A reset does not destroy what arrived before it, even if it waits in the socket because reading is paused.
func TestResetBehindInput(t *testing.T) {
	each(t, func(a adapter) bool { return a.rst && a.name != "tls" }, func(t *testing.T, a adapter) {
		const frames = 40 // fits a receive buffer
		f := makeFrame(kindOrdered, pattern(1000, 3))
		app := newApp(t)
		var got atomic.Int32
		app.onRun = func(_ *state, g []byte, _ *Turn) {
			if bytes.Equal(f, g) {
				got.Add(1)
			}
		}
		srv := serve(t, a, Config{Async: 1}, app)
		c, s := srv.connect()
		s.c.Lock()
		s.c.Hold()
		s.c.Unlock()
		c.send(f)
		eventually(t, "pause", func() bool { return s.has(flagPaused) })
		c.send(bytes.Repeat(f, frames-1))
		eventually(t, "everything at the other end", func() bool { return unsent(t, c.Conn) == 0 })
		c.reset()
		// Output fails meanwhile, which does not destroy input either.
		within(wait, func() bool { return s.send(Now, makeFrame(kindPush, nil)) != nil })
		s.c.Release()
		recv(t, s.closed, "Close")
		if n := got.Load(); n != frames {
			t.Errorf("%d of %d frames", n, frames)
		}
		if !isReset(s.downErr) && !errors.Is(s.downErr, io.EOF) {
			t.Errorf("Down says %v", s.downErr)
		}
	})
}
