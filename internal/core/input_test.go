package core

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/frame"
)

// cutReader reads pieces of random length.
type cutReader struct {
	r   io.Reader
	rnd *rand.Rand
}

func (c cutReader) Read(p []byte) (int, error) {
	n := 1 + c.rnd.IntN(1<<c.rnd.IntN(17))
	return c.r.Read(p[:min(n, len(p))])
}

// randomFrames makes frames of 0 bytes to a megabyte, up to total bytes altogether.
func randomFrames(rnd *rand.Rand, total int) [][]byte {
	sizes := []int{0, 0, 1, 2, 3, 10, 100, 500, 4<<10 - headLen - 1, 4<<10 - headLen, 4<<10 - headLen + 1, 4 << 10, 5000,
		64<<10 - headLen, 64<<10 - headLen + 1, 64 << 10, 100_000, 300_000, 1 << 20}
	var frames [][]byte
	for total > 0 {
		n := sizes[rnd.IntN(len(sizes))]
		if n > total {
			n = rnd.IntN(min(total, 50) + 1)
		}
		f := makeFrame([]byte{kindInline, kindOrdered, kindOrdered, kindSlow}[rnd.IntN(4)], pattern(n, rnd.Uint32()))
		frames = append(frames, f)
		total -= len(f)
	}
	return frames
}

// cuts splits a stream for writing: into single bytes, at random, just around the ends of frames, or not at all.
func cuts(rnd *rand.Rand, how string, frames [][]byte) [][]byte {
	stream := bytes.Join(frames, nil)
	var pieces [][]byte
	switch how {
	case "bytes":
		for i := range stream {
			pieces = append(pieces, stream[i:i+1])
		}
	case "random":
		for len(stream) > 0 {
			n := min(1+rnd.IntN(1<<rnd.IntN(17)), len(stream))
			pieces = append(pieces, stream[:n])
			stream = stream[n:]
		}
	case "edges":
		at, end := 0, 0
		for _, f := range frames {
			end += len(f)
			for _, cut := range []int{end - 1, end, end + 1 + rnd.IntN(headLen)} {
				if cut > at && cut < len(stream) {
					pieces = append(pieces, stream[at:cut])
					at = cut
				}
			}
		}
		pieces = append(pieces, stream[at:])
	case "whole":
		pieces = append(pieces, stream)
	}
	return pieces
}

// Rule 10: a stream of bytes gives the same frames in whatever pieces it is written and read.
func TestFragmentation(t *testing.T) {
	seeds := []uint64{1, 2}
	if long {
		seeds = append(seeds, rand.Uint64(), rand.Uint64(), rand.Uint64(), rand.Uint64())
	}
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		for _, wrapped := range []bool{false, true} {
			if wrapped && a.std >= 0 {
				continue // is not served by the poller then
			}
			cfg := Config{Hard: 1 << 30}
			if wrapped {
				cfg.Wrap = func(nc net.Conn) io.Reader { return cutReader{nc, rand.New(rand.NewPCG(9, 9))} }
			}
			srv := serve(t, a, cfg, newApp(t))
			for _, seed := range seeds {
				if !long && seed > 1 && (wrapped || !a.tcp) {
					continue
				}
				for _, how := range []string{"bytes", "random", "edges", "whole"} {
					rnd := rand.New(rand.NewPCG(seed, 1))
					var frames [][]byte
					switch {
					case how == "bytes":
						frames = randomFrames(rnd, 2000)
					case how == "whole" || long:
						frames = append(randomFrames(rnd, 600_000), makeFrame(kindOrdered, pattern(1<<20, 1)))
					default:
						frames = randomFrames(rnd, 600_000)
					}
					c, _ := srv.connect()
					go func() {
						for _, p := range cuts(rnd, how, frames) {
							if _, err := c.Write(p); err != nil {
								t.Error(err)
								return
							}
						}
					}()
					// Inline and ordered frames are each answered in order.
					var inline, ordered [][]byte
					for _, f := range frames {
						if f[4] == kindInline {
							inline = append(inline, f)
						} else {
							ordered = append(ordered, f)
						}
					}
					for i := range frames {
						kind, body, err := c.read()
						if err != nil {
							t.Fatalf("seed %d, %s, answer %d: %v", seed, how, i, err)
						}
						q := &ordered
						if kind == kindInline {
							q = &inline
						}
						if len(*q) == 0 || kind != (*q)[0][4] || !bytes.Equal(body, (*q)[0][headLen:]) {
							t.Fatalf("seed %d, %s, answer %d: not what was sent", seed, how, i)
						}
						*q = (*q)[1:]
					}
					c.Close()
				}
			}
		}
	})
}

// FuzzLength compares the splitting of any stream in any pieces with that of the whole.
func FuzzLength(f *testing.F) {
	f.Add(makeFrame(kindInline, []byte("abc")), byte(1))
	f.Add(bytes.Repeat(makeFrame(kindInline, nil), 5), byte(3))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0}, byte(4))
	f.Fuzz(func(t *testing.T, stream []byte, step byte) {
		const limit = 1000
		l := frame.Length{Header: headLen, Max: func() int { return limit }}
		split := func(step int) (frames [][]byte, err error) {
			have := 0
			rest := stream
			for {
				seen := min(have, len(rest))
				n, need, err := l.Split(rest[:seen])
				if err != nil {
					return frames, err
				}
				if n > 0 {
					if n < headLen || n > headLen+limit || need != n {
						t.Fatalf("a frame of %d bytes, need %d", n, need)
					}
					frames = append(frames, rest[:n])
					rest = rest[n:]
					have -= n
					continue
				}
				if need != 0 && need <= seen || need > headLen+limit {
					t.Fatalf("need %d of %d", need, seen)
				}
				if seen == len(rest) {
					return frames, nil
				}
				have += step
			}
		}
		whole, werr := split(len(stream))
		pieces, perr := split(int(step) + 1)
		if len(whole) != len(pieces) || (werr == nil) != (perr == nil) {
			t.Fatalf("%d frames and %v, in pieces %d and %v", len(whole), werr, len(pieces), perr)
		}
		var e *frame.TooLargeError
		if werr != nil && (!errors.As(werr, &e) || e.Size <= limit) {
			t.Fatalf("error %v", werr)
		}
		for i := range whole {
			if !bytes.Equal(whole[i], pieces[i]) {
				t.Fatalf("frame %d differs", i)
			}
		}
	})
}

// Rule 11: malformed input closes its own connection only, and costs no memory.
func TestMalformed(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{}, app)
		innocent, _ := srv.connect()
		defer innocent.Close()
		bad := func(size uint32) []byte {
			f := makeFrame(kindOrdered, []byte("body"))
			binary.LittleEndian.PutUint32(f, size)
			return f
		}
		good := makeFrame(kindInline, []byte("before"))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n := 0
		for range 10 {
			for _, size := range []uint32{maxBody + 1, 1 << 31, 1<<32 - 1} {
				c, s := srv.connect()
				go c.Write(append(bytes.Clone(good), bad(size)...))
				c.expect(kindInline, []byte("before"))
				c.end()
				c.Close()
				recv(t, s.closed, "Close")
				var e *frame.TooLargeError
				if !errors.As(s.downErr, &e) || e.Size != uint64(size) {
					t.Errorf("Down says %v", s.downErr)
				}
				n++
				innocent.echo(kindOrdered, "fine")
			}
		}
		runtime.ReadMemStats(&after)
		if used := (after.TotalAlloc - before.TotalAlloc) / uint64(n); used > 400<<10 {
			t.Errorf("%d bytes per connection", used)
		}
		if got := srv.Stats.ProtocolErrors.Load(); got != int64(n) {
			t.Errorf("%d ProtocolErrors", got)
		}
		if !app.logged("above the limit") {
			t.Error("no line about it")
		}
	})
}

// An announced length costs nothing before the bytes come.
func TestAnnouncedLength(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		const peers, size = 50, 64 << 20
		app := newApp(t)
		srv := serve(t, a, Config{Split: frame.Length{Header: headLen, Max: func() int { return size }}}, app)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for range peers {
			c, s := srv.connect()
			f := makeFrame(kindOrdered, make([]byte, 1000))
			binary.LittleEndian.PutUint32(f, size)
			c.send(f)
			eventually(t, "partial frame", func() bool { return s.has(flagPartial) })
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > peers*200<<10 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
		srv.Each(func(c *Conn) bool { c.Abort(nil); return true })
	})
}

// A peer that has sent everything and shut down its writing side still gets all answers.
func TestHalfClose(t *testing.T) {
	eachAtOnce(t, half, func(t *testing.T, a adapter) {
		piece := pattern(256<<10, 5)
		for _, how := range []string{"handler", "goroutine later", "async", "in Batch"} {
			t.Run(how, func(t *testing.T) {
				pieces := 64
				if how == "async" || how == "in Batch" {
					pieces = 16
				}
				app := newApp(t)
				answer := func(s *state, pieces int) {
					for range pieces {
						if err := s.send(Now, makeFrame(kindPush, piece)); err != nil {
							t.Errorf("answer: %v", err)
							return
						}
					}
				}
				down := make(chan struct{})
				app.onDown = func(*state, error) { close(down) }
				switch how {
				case "handler":
					app.onRun = func(s *state, _ []byte, _ *Turn) {
						answer(s, pieces/2)
						recv(t, down, "Down")
						answer(s, pieces/2)
					}
				case "goroutine later":
					app.onRun = func(s *state, _ []byte, _ *Turn) {
						s.c.Owe()
						go func() {
							defer s.c.Paid()
							recv(t, down, "Down")
							answer(s, pieces)
						}()
					}
				case "async":
					app.onFrame = func(s *state, _ *Input, _ []byte) error {
						s.c.Lock()
						s.c.Hold()
						s.c.Unlock()
						go func() {
							defer s.c.Release()
							recv(t, down, "Down")
							answer(s, pieces)
						}()
						return nil
					}
				case "in Batch":
					app.onFrame = func(s *state, _ *Input, _ []byte) error {
						answer(s, pieces)
						return nil
					}
				}
				srv := serve(t, a, Config{Hard: 1 << 30}, app)
				c, s := srv.connect()
				c.send(makeFrame(kindOrdered, nil))
				c.closeWrite()
				for range pieces {
					c.expect(kindPush, piece)
				}
				c.eof()
				recv(t, s.closed, "Close")
				if s.downErr != io.EOF {
					t.Errorf("Down says %v", s.downErr)
				}
			})
		}
	})
}

// Everything before a FIN is delivered, also to handlers that are slow or while reading is paused.
func TestTail(t *testing.T) {
	eachAtOnce(t, half, func(t *testing.T, a adapter) {
		const frames, size = 256, 4096
		f := makeFrame(kindOrdered, pattern(size, 1))
		for _, how := range []string{"quick", "slow handler", "paused"} {
			t.Run(how, func(t *testing.T) {
				app := newApp(t)
				finish := make(chan struct{})
				var mu sync.Mutex
				got := 0
				app.onRun = func(_ *state, g []byte, _ *Turn) {
					mu.Lock()
					got++
					first := got == 1
					mu.Unlock()
					if !bytes.Equal(f, g) {
						t.Error("damaged frame")
					}
					if first && how == "slow handler" {
						<-finish
					}
				}
				srv := serve(t, a, Config{Async: 1, Queue: 100_000}, app)
				c, s := srv.connect()
				if how == "paused" {
					s.c.Lock()
					s.c.Hold()
					s.c.Unlock()
				}
				go func() { // the pause comes meanwhile; more of it, and the FIN, wait in the socket
					if _, err := c.Write(bytes.Repeat(f, frames)); err != nil {
						t.Error(err)
					}
					c.closeWrite()
				}()
				if how != "quick" {
					eventually(t, "pause", func() bool { return s.has(flagPaused) })
				}
				if how == "paused" {
					s.c.Release()
				}
				close(finish)
				c.eof()
				recv(t, s.closed, "Close")
				if got != frames {
					t.Errorf("%d of %d frames", got, frames)
				}
				if s.downErr != io.EOF {
					t.Errorf("Down says %v", s.downErr)
				}
			})
		}
	})
}

// A FIN in the middle of a frame is the end of the connection, and a different one.
func TestUnexpectedEOF(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		srv := serve(t, a, Config{}, newApp(t))
		c, s := srv.connect()
		c.echo(kindOrdered, "x")
		must2(c.Write(makeFrame(kindOrdered, []byte("abcdef"))[:8]))
		c.Close()
		recv(t, s.closed, "Close")
		if s.downErr != io.ErrUnexpectedEOF {
			t.Errorf("Down says %v", s.downErr)
		}
	})
}

// A silent peer is asked for a sign of life, and closed if there is none.
func TestIdle(t *testing.T) {
	t.Parallel()
	const idle = time.Second
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		probe := makeFrame(kindPush, []byte("alive?"))
		cfg := Config{Idle: idle, Probe: func(c *Conn) { c.User.(*state).send(Now, probe) }}
		srv := serve(t, a, cfg, app)
		polite, ps := srv.connect()
		rude, rs := srv.connect()
		start := time.Now()
		answered := make(chan int)
		go func() {
			n := 0
			for {
				if _, _, err := polite.read(); err != nil {
					answered <- n
					return
				}
				n++
				polite.Write(makeFrame(kindSwallow, nil))
			}
		}()
		rude.expect(kindPush, []byte("alive?"))
		if d := time.Since(start); d < idle/2-2*sweepTick {
			t.Errorf("probed after %v", d)
		}
		recv(t, rs.closed, "Close")
		if d := time.Since(start); rs.downErr != ErrIdle || d < idle-2*sweepTick {
			t.Errorf("Down after %v: %v", d, rs.downErr)
		}
		eventually(t, "three probes", func() bool { return ps.frames.Load() >= 3 })
		if ps.downs.Load() != 0 || srv.Stats.Silent.Load() != 1 {
			t.Errorf("%d silent", srv.Stats.Silent.Load())
		}
		polite.Close()
		if n := recv(t, answered, "end of the peer"); n < 3 {
			t.Errorf("%d probes", n)
		}
		if !app.logged(ErrIdle.Error()) {
			t.Error("no line about it")
		}
	})
}

// A peer that leaves a frame incomplete is closed; one that goes on slowly is not, and neither is one without such a frame.
func TestPartial(t *testing.T) {
	t.Parallel()
	const limit = 400 * time.Millisecond
	half := makeFrame(kindOrdered, make([]byte, 30))[:10]
	starts := []struct {
		name  string
		bytes []byte
	}{
		{"a byte", half[:1]},
		{"half a frame", half},
		{"behind a frame", append(makeFrame(kindOrdered, []byte("x")), half...)},
		{"behind an inline frame", append(makeFrame(kindInline, []byte("x")), half...)},
		{"behind a frame that takes long", append(makeFrame(kindOrdered, []byte("block")), half...)},
	}
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		finish := make(chan struct{})
		app.onRun = func(s *state, f []byte, _ *Turn) {
			if string(f[headLen:]) == "block" {
				<-finish
			}
		}
		srv := serve(t, a, Config{Partial: limit}, app)
		trickle, ts := srv.connect()
		trickled := make(chan struct{})
		go func() { // a byte each 50 ms
			defer close(trickled)
			ticker := time.NewTicker(50 * time.Millisecond)
			defer ticker.Stop()
			for _, b := range makeFrame(kindSwallow, make([]byte, 20)) {
				<-ticker.C
				trickle.Write([]byte{b})
			}
		}()
		for _, st := range starts {
			c, s := srv.connect()
			go io.Copy(io.Discard, c)
			begin := time.Now()
			c.send(st.bytes)
			if !within(20*limit, func() bool { return isDone(s.down) }) {
				t.Errorf("%s: not closed", st.name)
				c.Close()
				continue
			}
			if d := time.Since(begin); s.downErr != ErrPartial || d < limit-2*sweepTick {
				t.Errorf("%s: Down after %v: %v", st.name, d, s.downErr)
			}
			c.Close()
		}
		close(finish)
		recv(t, trickled, "end of the slow peer")
		eventually(t, "the slow peer's frame", func() bool { return ts.frames.Load() == 1 })
		trickle.Close()
		recv(t, ts.closed, "Close")
		if ts.downErr != io.EOF {
			t.Errorf("the slow peer: %v", ts.downErr)
		}
	})
}

// A connection without an incomplete frame is not taken for one with it, because its last frame came in two pieces and its
// handler took long.
func TestNotPartial(t *testing.T) {
	t.Parallel()
	const limit = 600 * time.Millisecond
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		finish := make(chan struct{})
		app.onRun = func(s *state, f []byte, _ *Turn) {
			<-finish
			s.send(Answer, f)
		}
		srv := serve(t, a, Config{Partial: limit}, app)
		c, s := srv.connect()
		f := makeFrame(kindOrdered, []byte("in two pieces"))
		c.send(f[:7])
		eventually(t, "partial frame", func() bool { return s.has(flagPartial) })
		c.send(f[7:])
		eventually(t, "handler, or the end", func() bool { return s.runs.Load() == 1 || isDone(s.down) })
		if within(2*limit, func() bool { return isDone(s.down) }) {
			t.Errorf("closed: %v", s.downErr)
		}
		close(finish)
		c.expect(kindOrdered, []byte("in two pieces"))
		c.Close()
	})
}

// Reading pauses while too much waits for handlers, and nothing is lost.
func TestInputPause(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		for _, how := range []string{"queue", "async"} {
			app := newApp(t)
			finish := make(chan struct{})
			app.onRun = func(s *state, f []byte, _ *Turn) {
				<-finish
				s.send(Answer, f)
			}
			var wg sync.WaitGroup
			kind := byte(kindOrdered)
			if how == "async" {
				kind = kindAsync
				app.onFrame = func(s *state, in *Input, f []byte) error {
					s.c.Lock()
					ok := s.c.Hold()
					s.c.Unlock()
					if !ok {
						return errRefusedFrame
					}
					f = bytes.Clone(f)
					wg.Go(func() {
						<-finish
						s.send(Now, f)
						s.c.Release()
					})
					return nil
				}
			}
			// Four times a limit must not be reached by what one read may bring.
			srv := serve(t, a, Config{Queue: 1 << 20, Async: 400, Hard: 1 << 30}, app)
			c, s := srv.connect()
			const frames = 4000
			body := make([]byte, 1000)
			go func() {
				for i := range frames {
					binary.LittleEndian.PutUint32(body, uint32(i))
					if _, err := c.Write(makeFrame(kind, body)); err != nil {
						return
					}
				}
			}()
			eventually(t, "pause", func() bool { return s.has(flagPaused) })
			seen := s.frames.Load()
			if limit := int64(2 * 1048); seen > limit {
				t.Errorf("%s: %d frames before the pause", how, seen)
			}
			close(finish)
			sum := 0
			for range frames {
				_, b, err := c.read()
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				sum += int(binary.LittleEndian.Uint32(b))
			}
			if sum != frames*(frames-1)/2 {
				t.Errorf("%s: wrong answers", how)
			}
			c.Close()
			recv(t, s.closed, "Close")
			wg.Wait()
		}
	})
}

// Far above the limits frames are refused, which the App gets to know.
func TestInputRefused(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		srv := serve(t, a, Config{Async: 2}, app)
		c, s := srv.connect()
		s.c.Lock()
		n := 0
		for s.c.Hold() {
			n++
		}
		s.c.Unlock()
		if n != 8 {
			t.Errorf("%d held", n)
		}
		c.send(makeFrame(kindAsync, nil))
		recv(t, s.down, "Down")
		if s.downErr != errRefusedFrame {
			t.Errorf("Down says %v", s.downErr)
		}
		for range n {
			s.c.Release()
		}
		c.Close()
	})
}

// A panic ends its own connection only.
func TestPanics(t *testing.T) {
	for _, where := range []string{"Batch", "Run", "Down", "Close", "Opened", "BeforeWrite"} {
		t.Run(where, func(t *testing.T) {
			each(t, nil, func(t *testing.T, a adapter) {
				app := newApp(t)
				cfg := Config{}
				boom := func(c *Conn, at string) {
					if at == where && c.ID() > 1 {
						panic("test: " + at)
					}
				}
				app.onFrame = func(s *state, in *Input, f []byte) error {
					boom(s.c, "Batch")
					return s.byKind(in, f)
				}
				app.onRun = func(s *state, f []byte, _ *Turn) {
					boom(s.c, "Run")
					s.send(Answer, f)
				}
				app.onDown = func(s *state, _ error) { boom(s.c, "Down") }
				app.onClose = func(s *state, _ error) { boom(s.c, "Close") }
				cfg.Opened = func(c *Conn, _ *Turn) { boom(c, "Opened") }
				cfg.BeforeWrite = func(c *Conn) error { boom(c, "BeforeWrite"); return nil }
				srv := serve(t, a, cfg, app)
				innocent, _ := srv.connect()
				defer innocent.Close()
				for range 3 {
					c, s := srv.connect()
					go c.Write(makeFrame(kindOrdered, []byte("x")))
					if where == "Down" || where == "Close" || where == "Opened" {
						c.expect(kindOrdered, []byte("x"))
						c.Close()
					}
					c.end()
					c.Close()
					recv(t, s.closed, "Close after a panic in "+where)
					innocent.echo(kindOrdered, "fine")
				}
				if !app.logged("panic") || !app.logged("test: "+where) {
					t.Error("no line about it")
				}
			})
		})
	}
}

// What BeforeWrite refuses ends the connection at once.
func TestBeforeWriteRefuses(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		app := newApp(t)
		err := fmt.Errorf("test refuses")
		srv := serve(t, a, Config{CloseFlush: time.Hour, BeforeWrite: func(*Conn) error { return err }}, app)
		c, s := srv.connect()
		c.send(makeFrame(kindOrdered, []byte("x")))
		if !within(2*time.Second, func() bool { return isDone(s.down) }) {
			t.Error("still open two seconds after BeforeWrite refused")
		} else if s.downErr != err {
			t.Errorf("Down says %v", s.downErr)
		}
		c.Close()
		recv(t, s.closed, "Close")
	})
}

// A connection that is just being opened is not taken for one that was silent since the beginning of time.
func TestIdleAtOpen(t *testing.T) {
	sweeper.now.Add(1 << 20) // the process runs for long; no other group is there
	each(t, nil, func(t *testing.T, a adapter) {
		srv := serve(t, a, Config{}, newApp(t))
		sweeper.remove(srv.Group) // its time stands still, and the test sweeps
		defer sweeper.add(srv.Group)
		now := srv.tick()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for !isDone(stop) {
				srv.sweep(now)
			}
		})
		defer wg.Wait()
		defer close(stop)
		for range 30 {
			c, s := srv.connect()
			c.echo(kindInline, "alive")
			c.Close()
			recv(t, s.closed, "Close")
			if s.downErr != io.EOF {
				t.Errorf("Down says %v", s.downErr)
			}
		}
	})
}
