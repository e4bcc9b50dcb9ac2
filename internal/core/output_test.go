package core

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// push sends pushes of n bytes until the connection is full, and returns how many.
func (s *state) push(body []byte) int {
	f := makeFrame(kindPush, body)
	for n := 0; ; n++ {
		s.c.Lock()
		if s.c.Full() || s.c.CanSend() != nil {
			s.c.Unlock()
			return n
		}
		copy(s.c.Reserve(len(f)), f)
		s.c.Commit(Now, false)
	}
}

// fill pushes until the connection is full and stays so, and returns how many that were.
func (s *state) fill(body []byte) int {
	for n := 0; ; {
		n += s.push(body)
		if !within(50*time.Millisecond, func() bool {
			s.c.Lock()
			defer s.c.Unlock()
			return !s.c.Full()
		}) {
			return n
		}
	}
}

// At the high mark output is refused; below the low mark who waits goes on. Nothing that was accepted is lost.
func TestMarks(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		const high, low = 512 << 10, 128 << 10
		srv := serve(t, a, Config{High: high, Low: low}, newApp(t))
		c, s := srv.connect()
		body := pattern(10_000, 2)
		sent := s.fill(body)
		if n := s.pending(); n < high || n > high+len(body)+headLen {
			t.Fatalf("full with %d bytes pending", n)
		}
		// While the peer does not read there is no room.
		s.c.Lock()
		if s.c.Room(nil, nil, time.After(20*time.Millisecond)) {
			t.Error("room although nobody reads")
		}
		stop := make(chan struct{})
		close(stop)
		s.c.Lock()
		if s.c.Room(stop, nil, nil) {
			t.Error("room after stop")
		}
		room := make(chan int, 3)
		for range 3 {
			go func() {
				s.c.Lock()
				if !s.c.Room(nil, nil, nil) {
					t.Error("no room")
				}
				room <- s.pending()
			}()
		}
		eventually(t, "waiting for room", func() bool {
			s.c.Lock()
			defer s.c.Unlock()
			return s.c.look().waitRoom == 3
		})
		if isDone(room) {
			t.Error("room although nobody reads")
		}
		for range sent {
			c.expect(kindPush, body)
		}
		for range 3 {
			if n := recv(t, room, "room"); n >= low {
				t.Errorf("room with %d bytes pending", n)
			}
		}
		s.c.Lock()
		if s.c.Full() {
			t.Error("full although everything is out")
		}
		s.c.Unlock()
		// A waiter also goes on when the connection ends.
		s.fill(body)
		go func() {
			s.c.Lock()
			s.c.Room(nil, nil, nil)
			room <- 0
		}()
		eventually(t, "waiting for room", func() bool {
			s.c.Lock()
			defer s.c.Unlock()
			return s.c.look().waitRoom == 1
		})
		s.c.Abort(nil)
		recv(t, room, "end of Room")
		c.Close()
	})
}

// The number of messages is limited too, and can be changed.
func TestMessages(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		srv := serveOn(t, a, a.listenSmall(t), Config{Messages: 10, High: 1 << 30, Hard: 1 << 30}, newApp(t))
		c, s := srv.connect()
		s.fill(make([]byte, 2<<20)) // the socket is full now
		count := func() int {
			s.c.Lock()
			defer s.c.Unlock()
			return int(s.c.msgs)
		}
		if n := count(); n != 10 {
			t.Errorf("full with %d messages", n)
		}
		srv.SetMessages(20)
		if n := s.push([]byte("small")); n != 10 {
			t.Errorf("%d more messages", n)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for s.c.Lock(); s.c.Full(); s.c.Lock() { // nobody wakes who comes when it is over
				s.c.Room(nil, nil, nil)
			}
			s.c.Unlock()
		}()
		go io.Copy(io.Discard, c)
		recv(t, done, "room")
		eventually(t, "nothing pending", func() bool { return count() == 0 && s.pending() == 0 })
		c.Close()
	})
}

// With the policy Pause a peer that does not read is not read either, and goes on below the low mark.
func TestPause(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		const high, size = 512 << 10, 64 << 10
		app := newApp(t)
		answer := makeFrame(kindPush, pattern(size, 8))
		app.onRun = func(s *state, _ []byte, _ *Turn) { s.answer(answer) }
		srv := serveOn(t, a, a.listenSmall(t), Config{High: high, Over: Pause, Hard: 1 << 30}, app)
		c, s := srv.connect()
		sent := make(chan int, 1)
		go func() { // one after the other, as what a single read brings is handled before the pause
			n := 0
			for paused := 0; paused < 20; n++ {
				if _, err := c.Write(makeFrame(kindOrdered, nil)); err != nil {
					t.Error(err)
				}
				if paused > 0 || within(time.Millisecond, func() bool { return s.has(flagPaused) }) {
					paused++
				}
			}
			sent <- n
		}()
		eventually(t, "pause", func() bool { return s.has(flagPaused) })
		seen := s.frames.Load()
		if within(20*time.Millisecond, func() bool { return s.frames.Load() != seen }) && s.has(flagPaused) {
			t.Error("read while paused")
		}
		go func() {
			n := recv(t, sent, "end of requests")
			eventually(t, "all answers", func() bool {
				return s.frames.Load() == int64(n) && !s.has(flagRunning) && s.pending() == 0
			})
			s.send(Now, makeFrame(kindSwallow, fmt.Append(nil, n)))
		}()
		for n := 0; ; n++ {
			kind, body, err := c.read()
			must(t, err)
			if kind == kindSwallow {
				if string(body) != fmt.Sprint(n) {
					t.Errorf("%d answers of %s", n, body)
				}
				break
			}
			if !bytes.Equal(body, answer[headLen:]) {
				t.Fatal("damaged")
			}
		}
		c.echo(kindInline, "goes on")
		c.Close()
	})
}

// Answers that are not read do not pile up: handlers wait, even if all requests came with one read. Everything is
// answered once the peer reads, though it has shut down its writing half.
func TestAnswersWait(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		const high, size, requests = 256 << 10, 32 << 10, 300
		app := newApp(t)
		answer := makeFrame(kindPush, pattern(size, 8))
		var most atomic.Int64
		app.onRun = func(s *state, _ []byte, _ *Turn) {
			if err := s.answer(answer); err != nil {
				t.Error(err)
			}
			most.Store(max(most.Load(), int64(s.pending())))
		}
		srv := serveOn(t, a, a.listenSmall(t), Config{High: high, Hard: 2 * high}, app)
		c, s := srv.connect()
		c.send(bytes.Repeat(makeFrame(kindOrdered, nil), requests))
		eventually(t, "handlers that wait", func() bool { return s.has(flagParked) })
		if a.half {
			c.closeWrite()
		}
		for range requests {
			c.expect(kindPush, answer[headLen:])
		}
		if n := most.Load(); n > high+size+headLen {
			t.Errorf("%d bytes were pending", n)
		}
		if a.half {
			c.eof()
		}
		c.Close()
		recv(t, s.closed, "Close")
		if s.downErr != io.EOF {
			t.Errorf("Down says %v", s.downErr)
		}
	})
}

// Reading goes on below the low mark, not only when everything is out.
func TestPauseEndsAtLow(t *testing.T) {
	eachAtOnce(t, tcp, func(t *testing.T, a adapter) {
		const high = 2 << 20
		app := newApp(t)
		srv := serveOn(t, a, a.listenSmall(t), Config{High: high, Low: high / 2, Over: Pause, Hard: 1 << 30}, app)
		c, s := srv.connect()
		s.fill(make([]byte, 64<<10))
		c.send(makeFrame(kindSwallow, nil)) // the end of its turn is where the pause begins
		eventually(t, "pause", func() bool { return s.has(flagPaused) })
		c.send(makeFrame(kindSwallow, nil))
		buf := make([]byte, 32<<10)
		for s.pending() >= high/2 { // reads no more than needed
			if _, err := c.r.Read(buf); err != nil {
				t.Fatal(err)
			}
		}
		if !within(5*time.Second, func() bool { return s.frames.Load() == 2 }) {
			t.Errorf("not read with %d bytes pending", s.pending())
		}
		s.c.Abort(nil)
		c.Close()
	})
}

// Two ends that both send more than the other reads do not stop each other: while something is awaited, reading goes on.
func TestNoMutualPause(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		const high, size, requests = 128 << 10, 32 << 10, 200
		body := pattern(size, 4)
		near, far := newApp(t), newApp(t)
		var got sync.WaitGroup
		got.Add(2 * requests)
		for _, x := range []*app{near, far} {
			x.onRun = func(s *state, f []byte, _ *Turn) {
				if f[4] == kindOrdered { // a request: the answer is as long
					f = bytes.Clone(f)
					f[4] = kindSlow
					s.c.Lock()
					copy(s.c.ReserveAnswer(len(f)), f)
					s.c.Commit(Answer, false)
					return
				}
				if !bytes.Equal(f[headLen:], body) {
					t.Error("damaged answer")
				}
				s.c.Lock()
				s.c.Calls--
				s.c.Unlock()
				got.Done()
			}
		}
		srv := serve(t, a, Config{High: high}, near)
		other := NewGroup(testConfig(far, Config{High: high}), far)
		nc, err := a.dial(srv.ln)
		must(t, err)
		_, err = other.Adopt(nc)
		must(t, err)
		ends := []*state{recv(t, near.opened, "Open"), recv(t, far.opened, "Open")}
		for _, s := range ends {
			go func() {
				f := makeFrame(kindOrdered, body)
				for range requests {
					for {
						s.c.Lock()
						if !s.c.Full() {
							break
						}
						s.c.Room(nil, nil, nil)
					}
					s.c.Calls++
					copy(s.c.Reserve(len(f)), f)
					s.c.Commit(Now, false)
				}
			}()
		}
		done := make(chan struct{})
		go func() {
			got.Wait()
			close(done)
		}()
		recv(t, done, "end of all calls")
		ends[0].c.Close(nil)
		recv(t, ends[1].closed, "Close")
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		must(t, other.Stop(ctx, nil))
	})
}

// With the policy Close, and at the hard limit whatever the policy, the connection ends.
func TestOutputLimits(t *testing.T) {
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		for _, x := range []struct {
			cfg   Config
			want  error
			limit int
		}{
			{Config{Over: Close, High: 1 << 20}, ErrStalled, 1 << 20},
			{Config{High: 1 << 20, Hard: 2 << 20}, ErrHard, 2 << 20},
			{Config{High: 1 << 20, Hard: 2 << 20, Over: Pause}, ErrHard, 2 << 20},
		} {
			srv := serve(t, a, x.cfg, newApp(t))
			innocent, _ := srv.connect()
			c, s := srv.connect()
			f := makeFrame(kindPush, make([]byte, 100_000))
			n := 0
			for s.send(Answer, f) == nil {
				if n += len(f); n > 64<<20 {
					t.Fatal("no limit")
				}
			}
			recv(t, s.down, "Down")
			if s.downErr != x.want {
				t.Errorf("Down says %v, want %v", s.downErr, x.want)
			}
			if n < x.limit {
				t.Errorf("ended after %d bytes", n)
			}
			recv(t, s.closed, "Close")
			if s.pending() != 0 {
				t.Errorf("%d bytes pending after the end", s.pending())
			}
			innocent.echo(kindOrdered, "fine")
			innocent.Close()
			c.Close()
		}
		eventually(t, "nothing counted for the process", func() bool { return processPending.Load() == 0 })
	})
}

// What all connections of the process have pending is limited too: who goes beyond that is closed, others are not.
func TestProcessLimit(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		srv := serveOn(t, a, a.listenSmall(t), Config{Hard: 1 << 30}, newApp(t))
		innocent, _ := srv.connect()
		c, s := srv.connect()
		processPending.Add(MaxPending - 4<<20)
		sent := 0
		for f := makeFrame(kindPush, make([]byte, 100_000)); s.send(Now, f) == nil && sent < 48<<20; {
			sent += len(f)
		}
		if !within(wait/8, func() bool { return isDone(s.closed) }) || s.downErr != ErrHard {
			t.Errorf("not ended with %d bytes; Down says %v", sent, s.downErr)
			s.c.Abort(nil)
		}
		innocent.echo(kindOrdered, "fine")
		processPending.Add(-(MaxPending - 4<<20))
		innocent.Close()
		c.Close()
		eventually(t, "nothing counted", func() bool { return processPending.Load() == 0 })
	})
}

// A peer that takes nothing is closed; one that takes little by little is not; others notice nothing.
func TestWriteStall(t *testing.T) {
	t.Parallel()
	eachAtOnce(t, nil, func(t *testing.T, a adapter) {
		const stall = time.Second
		app := newApp(t)
		srv := serveOn(t, a, a.listenSmall(t), Config{WriteStall: stall, Hard: 1 << 30}, app)
		innocent, _ := srv.connect()
		slow, ss := srv.connect()
		stuck, s := srv.connect()
		body := pattern(8<<20, 3)
		must(t, ss.send(Now, makeFrame(kindPush, body)))
		start := time.Now()
		must(t, s.send(Now, makeFrame(kindPush, body)))
		done := make(chan struct{})
		go func() { // 64 KiB each 20 ms: more than twice as long as the limit
			defer close(done)
			ticker := time.NewTicker(20 * time.Millisecond)
			defer ticker.Stop()
			got, b := 0, make([]byte, 64<<10)
			for got < headLen+len(body) {
				<-ticker.C
				n, err := io.ReadFull(slow.r, b[:min(len(b), headLen+len(body)-got)])
				if err != nil {
					t.Errorf("the slow peer got %d bytes, then %v", got+n, err)
					return
				}
				got += n
			}
		}()
		recv(t, s.closed, "Close")
		if d := time.Since(start); s.downErr != ErrStalled || d < stall-2*sweepTick {
			t.Errorf("Down after %v: %v", d, s.downErr)
		}
		if n := srv.Stats.Stalled.Load(); n != 1 {
			t.Errorf("%d stalled", n)
		}
		if !app.logged(ErrStalled.Error()) {
			t.Error("no line about it")
		}
		innocent.echo(kindOrdered, "fine")
		recv(t, done, "end of the slow peer")
		stuck.Close()
		slow.Close()
		innocent.Close()
	})
}

// One message goes to many connections, by reference or copied, byte-exact and in order.
func TestShared(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		const conns, rounds = 100, 6
		app := newApp(t)
		srv := serve(t, a, Config{Hard: 1 << 30}, app)
		var clients []*client
		for range conns {
			c, _ := srv.connect()
			clients = append(clients, c)
		}
		var frames [][]byte
		for i := range rounds {
			frames = append(frames, makeFrame(kindPush, pattern([]int{10, shareAbove - headLen - 1, shareAbove, 50_000, 0, 100_000}[i%6], uint32(i))))
		}
		saved := make([][]byte, rounds)
		for i := range frames {
			saved[i] = bytes.Clone(frames[i])
		}
		var senders sync.WaitGroup
		srv.Each(func(cn *Conn) bool {
			senders.Go(func() {
				s := cn.User.(*state)
				for i, f := range frames {
					cn.Lock()
					if err := cn.CanSend(); err != nil {
						t.Error(err)
					}
					cn.AppendShared(f)
					cn.Commit([]Urgency{Now, Soon, Answer}[i%3], i%2 == 0)
					if err := s.send(Now, makeFrame(kindPush, fmt.Appendf(nil, "own %d", i))); err != nil {
						t.Error(err)
					}
				}
			})
			return true
		})
		var readers sync.WaitGroup
		for _, c := range clients {
			readers.Go(func() {
				for i := range rounds {
					for _, want := range [][]byte{saved[i], makeFrame(kindPush, fmt.Appendf(nil, "own %d", i))} {
						kind, b, err := c.read()
						if err != nil || kind != kindPush || !bytes.Equal(b, want[headLen:]) {
							t.Errorf("round %d: %d bytes, %v", i, len(b), err)
							return
						}
					}
				}
			})
		}
		senders.Wait()
		readers.Wait()
		for i := range frames {
			if !bytes.Equal(frames[i], saved[i]) {
				t.Error("a shared frame was changed")
			}
		}
		// The end of connections that still hold shared frames does not disturb others.
		big := makeFrame(kindPush, pattern(300_000, 99))
		var aborted atomic.Int32
		srv.Each(func(cn *Conn) bool {
			cn.Lock()
			if cn.CanSend() != nil {
				cn.Unlock()
				return true
			}
			cn.AppendShared(big)
			cn.Commit(Now, false)
			if cn.ID()%10 == 1 {
				aborted.Add(1)
				cn.Abort(nil)
			}
			return true
		})
		n := 0
		for _, c := range clients[1:] {
			if kind, b, err := c.read(); err == nil {
				if kind != kindPush || !bytes.Equal(b, big[headLen:]) {
					t.Error("damaged")
				}
				n++
			}
		}
		if n < conns-1-int(aborted.Load()) {
			t.Errorf("%d got it", n)
		}
		for _, c := range clients {
			c.Close()
		}
	})
}

// Output of a goroutine that sends several messages is written together, and not later than soon.
func TestDefer(t *testing.T) {
	each(t, nil, func(t *testing.T, a adapter) {
		var writes atomic.Int32
		srv := serve(t, a, Config{BeforeWrite: func(*Conn) error { writes.Add(1); return nil }}, newApp(t))
		c, s := srv.connect()
		s.c.Defer()
		for i := range 10 {
			must(t, s.send(Soon, makeFrame(kindPush, []byte{byte(i)})))
		}
		s.c.EndDefer()
		for i := range 10 {
			c.expect(kindPush, []byte{byte(i)})
		}
		if n := writes.Load(); n > 3 {
			t.Errorf("%d writes", n)
		}
		// Who announces more and then takes long does not hold back what there is.
		s.c.Defer()
		must(t, s.send(Soon, makeFrame(kindPush, []byte("held back"))))
		c.expect(kindPush, []byte("held back"))
		s.c.EndDefer()
		c.Close()
	})
}
