package arpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// streamFrames makes frames of bytes: five for each, which choose command, flags, number, method and length.
func streamFrames(program []byte) (frames []byte) {
	methods := []string{"/echo", "/hold", "/drop", "/send", "/reset", "/nothing", "", "/echo"}
	for ; len(program) >= 5; program = program[5:] {
		op, flag, id, method, size := program[0], program[1], uint64(program[2]%8), methods[program[3]%8], int(program[4])
		payload := bytes.Repeat(program[4:5], size*size/8)
		cmd := []byte{CmdStream, CmdStream, CmdStream, cmdCredit, cmdReset, cmdCancel, cmdGoAway, CmdRequest}[op%8]
		switch cmd {
		case cmdCredit:
			method, payload = "", binary.LittleEndian.AppendUint32(nil, uint32(1)<<(size%32)-1)
		case cmdReset, cmdGoAway:
			method, payload = "", appendError(nil, Code(flag), nil)
		case cmdCancel:
			method, payload = "", []byte{1}
		case CmdStream:
			if flag&flagNoData != 0 && size%4 != 0 {
				payload = nil
			}
			if flag&flagMetadata != 0 && size%4 != 0 {
				payload = append([]byte{5, 0, 1, 'k', 1, 0, 'v'}, payload...)
			}
			if flag&flagDeadline != 0 {
				payload = append([]byte{byte(size), 0, 0, 0}, payload...)
			}
		}
		frames = append(frames, frameOf(cmd|op&(streamLocal|streamEOF), flag, id, method, string(payload))...)
	}
	return frames
}

// FuzzStreamFrames sends any frames, and then any bytes, as a peer of version 2. At most its own connection ends, and with that all
// that it has begun.
func FuzzStreamFrames(f *testing.F) {
	const (
		open = flagOpen
		ours = streamLocal
	)
	f.Add([]byte{ours, open, 1, 0, 9, ours, 0, 1, 0, 9, ours | streamEOF, flagNoData, 1, 0, 0}, []byte{})
	f.Add([]byte{ours, open | flagMore, 1, 1, 255, ours, 0, 1, 1, 255, ours | 3, 0, 1, 0, 31, ours | 4, 5, 1, 0, 0}, []byte{})
	f.Add([]byte{ours, open, 1, 3, 2, ours | 3, 0, 1, 0, 12, 3, 0, 0, 0, 20, ours | 4, 1, 1, 0, 0, ours, open, 1, 4, 2}, []byte{1, 2, 3})
	f.Add([]byte{ours, open | flagMetadata | flagDeadline, 2, 1, 1, ours, open, 2, 1, 1}, []byte{})
	f.Add([]byte{ours, open | flagNoData, 2, 2, 0, ours, open, 3, 5, 1, ours, 0, 3, 5, 1, 0, 0, 9, 1, 1}, []byte{})
	f.Add([]byte{ours, open, 1, 1, 200, ours, 0, 1, 1, 250, ours, open, 1, 0, 1, 6, 1, 0, 0, 0, 7, 0, 1, 0, 0}, []byte{})
	f.Add([]byte{}, frameOf(CmdStream|streamLocal, flagOpen|flagMore|flagNoData, 1<<63, "/echo", ""))
	s := NewServer(NewHandler(), Limits{StreamWindow: 16 << 10, StreamWindows: 32 << 10, Streams: 5, CloseFlush: time.Second})
	h := s.Handler
	h.SetMaxBodyLen(fuzzLimit)
	var running atomic.Int64
	handle := func(method string, g func(*Stream)) {
		h.HandleStream(method, func(s *Stream) {
			running.Add(1)
			defer running.Add(-1)
			g(s)
		})
	}
	handle("/echo", streamEcho)
	handle("/hold", func(s *Stream) { <-s.Context().Done() })
	handle("/drop", func(*Stream) {})
	handle("/send", func(s *Stream) {
		s.SetMetadata("k", "v")
		for s.Send(make([]byte, 5000)) == nil {
		}
	})
	handle("/reset", func(s *Stream) { s.Recv(nil); s.Reset(CodeAborted) })
	h.Handle("/works", echo)
	ln, dial := Pipe()
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	innocent, err := NewClient(dial, NewHandler())
	must(f, err)
	f.Cleanup(func() {
		innocent.Stop()
		s.Stop()
		recv(f, served, "return from Serve")
	})
	f.Fuzz(func(t *testing.T, program, noise []byte) {
		if len(program) > 1000 {
			return
		}
		nc, err := dial()
		must(t, err)
		nc.SetDeadline(time.Now().Add(patience)) //nolint:errcheck // a bound only
		ponged, ended := make(chan struct{}, 1000), make(chan error, 1)
		go func() {
			for {
				m, err := readFrame(nc)
				if err != nil {
					ended <- err
					return
				}
				if m.Cmd() == CmdPong {
					select {
					case ponged <- struct{}{}:
					default:
					}
				}
			}
		}()
		feed(nc, helloFrame(CmdPing, hello{version: 2, features: ourFeatures, maxBody: 4 << 10, metadata: 100, window: 4 << 10, connWindow: 8 << 10, streams: 3}), nil)
		recv(t, ponged, "answer to HELLO")
		feed(nc, streamFrames(program), nil)
		feed(nc, pingFrame, nil)
		select {
		case <-ponged: // or it was malformed
		case err := <-ended:
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("neither answered nor closed")
			}
			ended <- err
		}
		feed(nc, noise, nil)
		nc.Close()
		recv(t, ended, "end of the connection")
		eventually(t, "end of the handlers", func() bool { return running.Load() == 0 })
		var r []byte
		if err := innocent.Call("/works", "x", &r, patience); err != nil || string(r) != "x" {
			t.Fatalf("an innocent client gets %q, %v", r, err)
		}
	})
}

// streamProgram runs bytes as actions on streams at both ends of one connection.
type streamProgram struct {
	t    *testing.T
	ends [2]*Client
	ctx  context.Context
	wg   sync.WaitGroup

	mu      sync.Mutex
	streams []*programStream
	byID    map[programID]*programStream
	cut     atomic.Bool // the connection was closed on purpose
}

type programID struct {
	opener int
	id     uint64
}

// programStream is a stream as the program knows it. Index 0 is the end that opened it.
type programStream struct {
	ends    [2]atomic.Pointer[Stream]
	cancel  context.CancelFunc
	release chan struct{} // closed to let the handler return
	once    sync.Once

	send, recv [2]sync.Mutex
	sent       [2]int // messages accepted, by sender; guarded by send
	got        [2]int // messages received, by receiver; guarded by recv
	eof        [2]bool
	deaf       [2]atomic.Bool // CloseRecv or Reset was called: what arrives may be dropped
}

func (p *streamProgram) lookup(id programID) *programStream {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.byID[id]
	if s == nil {
		s = &programStream{release: make(chan struct{})}
		p.byID[id] = s
		p.streams = append(p.streams, s)
	}
	return s
}

func (p *streamProgram) handler(opener int) func(*Stream) {
	return func(s *Stream) {
		ps := p.lookup(programID{opener, s.ID()})
		if !ps.ends[1].CompareAndSwap(nil, s) {
			p.t.Errorf("stream %d was opened twice", s.ID())
		}
		select {
		case <-ps.release:
			ps.deaf[1].Store(true)
		case <-p.ctx.Done():
		}
	}
}

// message is the i-th of a direction.
func programMessage(side, i, size int) []byte {
	b := bytes.Repeat([]byte{byte(7*i + side)}, max(size, 9))
	binary.LittleEndian.PutUint32(b, uint32(i))
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	return b
}

func (p *streamProgram) sends(ps *programStream, side, size int, send func(*Stream, []byte) error) {
	s := ps.ends[side].Load()
	if s == nil {
		return
	}
	p.wg.Go(func() {
		ps.send[side].Lock()
		defer ps.send[side].Unlock()
		if send(s, programMessage(side, ps.sent[side], size)) == nil {
			ps.sent[side]++
		}
	})
}

// receives receives up to n messages.
func (p *streamProgram) receives(ps *programStream, side, n int, ctx context.Context) {
	s := ps.ends[side].Load()
	if s == nil {
		return
	}
	p.wg.Go(func() {
		ps.recv[side].Lock()
		defer ps.recv[side].Unlock()
		for range n {
			var b []byte
			switch err := s.RecvWith(ctx, &b); {
			case err == io.EOF:
				if !ps.deaf[side].Load() {
					ps.eof[side] = true
				}
				return
			case err != nil:
				return
			}
			if len(b) < 9 || !bytes.Equal(b, programMessage(1-side, ps.got[side], len(b))) || int(binary.LittleEndian.Uint32(b[4:])) != len(b) {
				p.t.Errorf("stream %d: message %d is %d bytes, %x", s.ID(), ps.got[side], len(b), b[:min(len(b), 16)])
			}
			ps.got[side]++
		}
	})
}

// check looks at the credit of both ends.
func (p *streamProgram) check() {
	for i, c := range p.ends {
		c.streamsOf(func(ls *linkStreams) {
			r := c.link.Load().rpc
			queued := 0
			if ls.credit < 0 || ls.owed < 0 {
				p.t.Errorf("end %d: credit %d, owed %d", i, ls.credit, ls.owed)
			}
			for _, s := range ls.all() {
				if s.credit < 0 || s.window < 0 || s.window > r.window || s.queued < 0 || s.queued > r.window || s.queued+s.window > r.window {
					p.t.Errorf("end %d, stream %d: credit %d, window %d, %d queued of %d", i, s.id, s.credit, s.window, s.queued, r.window)
				}
				queued += s.queued
			}
			if queued > r.connWindow {
				p.t.Errorf("end %d: %d bytes queued of %d", i, queued, r.connWindow)
			}
		})
	}
}

// step does one action: the byte is the action, arg says on which stream and end, and how.
func (p *streamProgram) step(action, arg byte) {
	side, variant := int(arg&1), int(arg>>1)&3
	if action%14 == 0 {
		c, ctx := p.ends[side], p.ctx
		var cancel context.CancelFunc
		switch variant {
		case 1:
			ctx, cancel = context.WithCancel(ctx)
		case 2:
			ctx, cancel = context.WithTimeout(ctx, time.Duration(arg)*50*time.Microsecond)
		default:
			ctx, cancel = context.WithCancel(context.Background())
		}
		s, err := c.OpenStream(ctx, "/s")
		if err != nil {
			cancel()
			return
		}
		ps := p.lookup(programID{side, s.ID()})
		ps.cancel = cancel
		ps.ends[0].Store(s)
		return
	}
	p.mu.Lock()
	n := len(p.streams)
	var ps *programStream
	if n > 0 {
		ps = p.streams[n-1-int(arg>>3)%min(n, 8)]
	}
	p.mu.Unlock()
	if ps == nil {
		return
	}
	s := ps.ends[side].Load()
	if s == nil {
		return
	}
	switch action % 14 {
	case 1, 2:
		size := []int{0, 500, 5_000, 70_000}[variant]
		p.sends(ps, side, size, func(s *Stream, b []byte) error { return s.Send(b) })
	case 3:
		p.sends(ps, side, 3000, func(s *Stream, b []byte) error {
			ctx, cancel := context.WithTimeout(p.ctx, time.Duration(variant)*300*time.Microsecond)
			defer cancel()
			return s.SendWith(ctx, b)
		})
	case 4:
		p.sends(ps, side, 300, (*Stream).tryBytes)
	case 5:
		p.receives(ps, side, 1, p.ctx)
	case 6:
		p.receives(ps, side, 1<<30, p.ctx)
	case 7:
		ctx, cancel := context.WithTimeout(p.ctx, time.Duration(variant)*300*time.Microsecond)
		context.AfterFunc(ctx, cancel)
		p.receives(ps, side, 3, ctx)
	case 8:
		p.wg.Go(func() { s.CloseSend() })
	case 9:
		p.sends(ps, side, 2000, func(s *Stream, b []byte) error { return s.SendAndClose(b) })
	case 10:
		switch variant {
		case 0:
			ps.deaf[0].Store(true)
			ps.deaf[1].Store(true)
			p.wg.Go(func() { s.Reset(CodeAborted) })
		case 1:
			if ps.cancel != nil {
				ps.deaf[0].Store(true)
				ps.cancel()
			}
		case 2:
			ps.once.Do(func() { close(ps.release) })
		case 3:
			ps.deaf[side].Store(true)
			s.CloseRecv()
		}
	case 11:
		for range arg {
			runtime.Gosched()
		}
	case 12:
		if arg >= 252 { // rarely, or nothing else would be tried
			p.cut.Store(true)
			p.wg.Go(func() { p.ends[side].Conn.Close() })
			return
		}
		p.wg.Go(func() {
			var r []byte
			if err := p.ends[side].CallWith(p.ctx, "/works", "x", &r); err != nil && !p.cut.Load() && p.ctx.Err() == nil {
				p.t.Errorf("a call beside streams: %v", err)
			}
		})
	case 13:
		pause(time.Duration(arg) * 5 * time.Microsecond)
	}
}

func (s *Stream) tryBytes(b []byte) error { return s.TrySend(b) }

// FuzzStreamProgram runs bytes as a program of actions on streams. Whatever they do, no byte of a stream is lost, repeated or out of
// its place, no credit is below zero or lost, everything ends and nothing is left.
func FuzzStreamProgram(f *testing.F) {
	at := func(stream, variant, side byte) byte { return stream<<3 | variant<<1 | side }
	f.Add(byte(0), []byte{0, 0, 1, at(0, 3, 0), 5, at(0, 0, 1), 8, at(0, 0, 0), 6, at(0, 0, 1)})
	for how := range byte(12) {
		prog := []byte{0, 0, 0, 1, 0, at(0, 1, 0), 13, 100, 11, 200}
		for i := range byte(3) {
			for side := range byte(2) {
				prog = append(prog, 1, at(i, 0, side), 1, at(i, 3, side), 6, at(i, 0, side), 2, at(i, 2, side), 4, at(i, 1, side), 3, at(i, 2, side), 7, at(i, 1, side))
			}
		}
		prog = append(prog, 13, 100, 10, at(0, how%4, how&1), 12, 0, 8, at(1, 0, 0), 8, at(1, 0, 1), 9, at(2, 0, 0), 13, 100, 10, at(2, 2, 0), 12, 255-how%8, 13, 50)
		f.Add(how, prog)
	}
	f.Add(byte(3), []byte{0, 0, 1, 6, 1, 6, 1, 6, 1, 6, 13, 255, 1, 7, 1, 7, 10, 1, 13, 100, 10, 6})
	f.Add(byte(7), []byte{0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 8, 8, 8, 16, 8, 24, 13, 200, 6, 0, 6, 8, 10, at(0, 2, 0), 10, at(1, 2, 0)})
	f.Fuzz(runStreamProgram)
}

func runStreamProgram(t *testing.T, how byte, prog []byte) {
	if len(prog) > 300 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p := &streamProgram{t: t, ctx: ctx, byID: map[programID]*programStream{}}
	window := []int{4 << 10, 16 << 10, 64 << 10}[how/4%3]
	limits := Limits{StreamWindow: window, StreamWindows: window * (1 + int(how/12%3)), Streams: 20}
	h := [2]Handler{NewHandler(), NewHandler()}
	for i := range h {
		h[i].HandleStream("/s", p.handler(1-i))
		h[i].Handle("/works", echo)
		h[i].SetMaxReconnectTimes(1)
	}
	ln, dial := Pipe()
	adapter := StdConns(0)
	if how%4 < 3 {
		var err error
		ln, err = net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		dial, adapter = dialer(ln.Addr().String()), adapters[how%4].opt
	}
	accepted := make(chan *Client, 1)
	h[1].HandleConnected(func(c *Client) { accepted <- c })
	server := NewServer(h[1], adapter, limits)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	once := false
	c, err := NewClient(func() (net.Conn, error) {
		if once {
			return nil, io.ErrClosedPipe // one connection only
		}
		once = true
		return dial()
	}, h[0], limits, Backoff(time.Microsecond, time.Microsecond))
	must(t, err)
	p.ends = [2]*Client{c, recv(t, accepted, "connection")}
	for i := 0; i+1 < len(prog); i += 2 {
		p.step(prog[i], prog[i+1])
		p.check()
	}
	cancel() // ends what has a context, and the handlers; the streams' ends do the rest
	each := func(f func(*Stream)) {
		p.mu.Lock()
		all := append([]*programStream(nil), p.streams...)
		p.mu.Unlock()
		for _, ps := range all {
			for side := range 2 {
				ps.deaf[side].Store(true)
				if s := ps.ends[side].Load(); s != nil {
					f(s)
				}
			}
			if ps.cancel != nil {
				ps.cancel()
			}
		}
	}
	each(func(s *Stream) { s.Reset(CodeAborted) })
	waitGroup(t, &p.wg, "end of the program's operations")
	if !p.cut.Load() {
		state := func() string {
			each(func(s *Stream) { s.CloseRecv() })
			var credit, owed, open [2]int
			for i, c := range p.ends {
				c.streamsOf(func(ls *linkStreams) {
					credit[i], owed[i], open[i] = ls.credit, ls.owed, len(ls.ours)+len(ls.theirs)
				})
			}
			all := limits.StreamWindows
			if open == [2]int{} && credit[0]+owed[1] == all && credit[1]+owed[0] == all {
				return ""
			}
			return fmt.Sprintf("%d streams, credit %d, owed %d of %d", open, credit, owed, all)
		}
		for end := time.Now().Add(patience / 6); state() != ""; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not settled: %s", state())
			}
		}
	}
	p.check()
	c.Stop()
	server.Stop()
	recv(t, served, "return from Serve")
	for _, ps := range p.streams {
		for side := range 2 {
			if ps.eof[side] && ps.got[side] != ps.sent[1-side] || ps.got[side] > ps.sent[1-side] && !p.cut.Load() {
				t.Errorf("%d messages received, %d sent (in order: %v)", ps.got[side], ps.sent[1-side], ps.eof[side])
			}
		}
	}
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		left := ourGoroutines("core.watch(")
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d goroutines left:\n%s", len(left), left[0])
		}
	}
}
