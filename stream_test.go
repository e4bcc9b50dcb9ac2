package arpc

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/buf"
)

// underRace says that the race detector is in the binary, which makes everything several times slower and larger.
var underRace = func() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool {
		return s.Key == "-race" && s.Value == "true"
	})
}()

// streamEnds are the ends of one connection: near opens streams, which far handles.
type streamEnds struct {
	near, far *Client
	server    *testServer
	dialled   *Client
}

// streamSetup is what a test wants the ends to be like.
type streamSetup struct {
	limits Limits // of both
	use    func(Handler)
	client []ClientOption
}

// connect makes the ends, by TCP or in memory.
func (set streamSetup) connect(t testing.TB, adapter ServerOption, memory, byServer bool) *streamEnds {
	t.Helper()
	sh, ch := NewHandler(), NewHandler()
	if set.use != nil {
		set.use(sh)
		set.use(ch)
	}
	var ln net.Listener
	var dial func() (net.Conn, error)
	if memory {
		ln, dial = Pipe()
	} else {
		ln = listenTCP(t)
		dial = dialer(ln.Addr().String())
	}
	e := &streamEnds{}
	e.server = startServerOn(t, ln, sh, adapter, set.limits)
	e.dialled = dialClientBy(t, dial, append([]ClientOption{ch, set.limits}, set.client...)...)
	e.near, e.far = e.dialled, e.server.waitClients(t, 1)[0]
	if byServer {
		e.near, e.far = e.far, e.near
	}
	return e
}

// onStreams runs a test with streams opened by the client and by the server, over TCP with each adapter and in memory.
func onStreams(t *testing.T, set streamSetup, f func(t *testing.T, e *streamEnds)) {
	for _, opener := range []string{"client", "server"} {
		t.Run("by "+opener, func(t *testing.T) {
			onAdapters(t, func(t *testing.T, adapter ServerOption) {
				f(t, set.connect(t, adapter, false, opener == "server"))
			})
			t.Run("pipe", func(t *testing.T) {
				f(t, set.connect(t, StdConns(0), true, opener == "server"))
			})
		})
	}
}

// handle registers a handler at the far end. What it returns, or io.EOF for nil, comes through the channel.
func (e *streamEnds) handle(method string, f func(s *Stream) error) <-chan error {
	ended := make(chan error, 2000)
	e.far.Handler.HandleStream(method, func(s *Stream) {
		err := f(s)
		if err == nil {
			err = io.EOF
		}
		ended <- err
	})
	return ended
}

func (e *streamEnds) open(t testing.TB, method string) *Stream {
	t.Helper()
	s, err := e.near.OpenStream(patient(t), method)
	must(t, err)
	return s
}

// locked calls f with the streams of one end.
func (c *Client) streamsOf(f func(ls *linkStreams)) {
	l := c.link.Load()
	l.cn.Lock()
	defer l.cn.Unlock()
	f(l.streamsLocked())
}

// queuedAt returns the bytes that wait to be received at an end, and how many messages or parts of them.
func queuedAt(c *Client) (n, chunks int) {
	c.streamsOf(func(ls *linkStreams) {
		for _, s := range ls.all() {
			n += s.queued
			chunks += len(s.in)
		}
	})
	return n, chunks
}

// settled checks that no stream is left at either end, and that all credit of the connection has come back.
func (e *streamEnds) settled(t testing.TB) {
	t.Helper()
	state := func() string {
		var credit, owed, open [2]int
		for i, c := range []*Client{e.near, e.far} {
			c.streamsOf(func(ls *linkStreams) {
				credit[i], owed[i], open[i] = ls.credit, ls.owed, len(ls.ours)+len(ls.theirs)
			})
		}
		l := e.near.link.Load()
		if open == [2]int{} && credit[0]+owed[1] == l.rpc.connWindow && credit[1]+owed[0] == l.rpc.connWindow {
			return ""
		}
		return fmt.Sprintf("%d streams open, credit %d, owed %d, window %d", open, credit, owed, l.rpc.connWindow)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s := state()
		if s == "" {
			return
		}
		if time.Now().After(end) {
			t.Errorf("not settled: %s", s)
			return
		}
	}
}

// works checks that calls and other streams go on, both ways.
func (e *streamEnds) works(t testing.TB) {
	t.Helper()
	for _, c := range []*Client{e.near, e.far} {
		if c.Handler.load().routes["/works"] == nil {
			c.Handler.Handle("/works", echo)
			c.Handler.HandleStream("/works", streamEcho)
		}
	}
	for _, c := range []*Client{e.near, e.far} {
		var r string
		if err := c.CallWith(patient(t), "/works", "call", &r); err != nil || r != "call" {
			t.Errorf("a call on the connection: %q, %v", r, err)
		}
		s, err := c.OpenStream(patient(t), "/works")
		must(t, err)
		if err := s.SendAndClose("stream"); err != nil {
			t.Errorf("another stream on the connection: %v", err)
		}
		if err := s.Recv(&r); err != nil || r != "stream" {
			t.Errorf("another stream on the connection: %q, %v", r, err)
		}
		if err := s.Recv(&r); err != io.EOF {
			t.Errorf("another stream on the connection: %v instead of its end", err)
		}
	}
}

// streamEcho sends back what comes.
func streamEcho(s *Stream) {
	for b, err := range s.All() {
		if err != nil || s.Send(b) != nil {
			return
		}
	}
}

func wantCode(t testing.TB, what string, err error, code Code) {
	t.Helper()
	if err == nil || CodeOf(err) != code {
		t.Errorf("%s: %v (%v), want %v", what, err, CodeOf(err), code)
	}
}

// pattern returns n bytes that differ from those of another seed, and from themselves moved by any chunk size.
func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	i := 0
	for ; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	for ; i < n; i++ {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestStreamEcho(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		e.handle("/echo", func(s *Stream) error { streamEcho(s); return nil })
		s := e.open(t, "/echo")
		if s.Method() != "/echo" || s.ID() != s.Id() || s.ID() == 0 || s.Client() != e.near || s.Peer().Addr == nil {
			t.Errorf("%q %d %v", s.Method(), s.ID(), s.Peer())
		}
		for i, n := range []int{0, 1, 0, 5000, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20, 3<<20 + 17} { // beyond a frame, and the window
			msg := pattern(n, uint64(i))
			sent := make(chan error, 1)
			go func() { sent <- s.Send(msg) }()
			var got []byte
			must(t, s.Recv(&got))
			must(t, recv(t, sent, "end of Send"))
			if !bytes.Equal(got, msg) {
				t.Fatalf("%d bytes came back as %d", len(msg), len(got))
			}
		}
		type value struct {
			A int
			B string
		}
		must(t, s.Send(value{7, "seven"}))
		var v value
		if err := s.Recv(&v); err != nil || v != (value{7, "seven"}) {
			t.Errorf("%+v, %v", v, err)
		}
		must(t, s.Send("text"))
		var n int
		if err := s.Recv(&n); err == nil {
			t.Error("a text passes for a number")
		}
		must(t, s.Send("more")) // the error was that message's only
		var text string
		if err := s.Recv(&text); err != nil || text != "more" {
			t.Errorf("%q, %v", text, err)
		}
		if s.Context().Err() != nil {
			t.Error("the stream is over early")
		}
		must(t, s.SendAndClose("last"))
		if err := s.Recv(&text); err != nil || text != "last" {
			t.Errorf("%q, %v", text, err)
		}
		for range 2 {
			if err := s.Recv(&text); err != io.EOF {
				t.Errorf("%v after the last message", err)
			}
			wantCode(t, "Send after SendAndClose", s.Send("x"), CodeFailedPrecondition)
			must(t, s.CloseSend())
		}
		recv(t, s.Context().Done(), "end of the context")
		e.settled(t)
	})
}

// Each direction ends by itself.
func TestStreamHalfClose(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		closed, more := make(chan struct{}), make(chan struct{})
		ended := e.handle("/far goes on", func(s *Stream) error {
			for range s.All() {
			}
			close(closed)
			<-more
			for i := range 3 {
				if err := s.Send(fmt.Sprint(i)); err != nil {
					return err
				}
			}
			return s.SendAndClose("last")
		})
		s := e.open(t, "/far goes on")
		must(t, s.CloseSend())
		recv(t, closed, "end of one direction")
		if s.Context().Err() != nil {
			t.Error("half a stream passes for none")
		}
		close(more)
		var all []string
		for b, err := range s.All() {
			must(t, err)
			all = append(all, string(b))
		}
		if fmt.Sprint(all) != "[0 1 2 last]" {
			t.Error(all)
		}
		if err := recv(t, ended, "handler"); err != io.EOF {
			t.Error(err)
		}

		var got []string
		ended = e.handle("/near goes on", func(s *Stream) error {
			if err := s.CloseSend(); err != nil {
				return err
			}
			wantCode(t, "Send after CloseSend", s.Send("x"), CodeFailedPrecondition)
			for b, err := range s.All() {
				if err != nil {
					return err
				}
				got = append(got, string(b))
			}
			return nil
		})
		s = e.open(t, "/near goes on")
		var none []byte
		if err := s.Recv(&none); err != io.EOF { // Recv alone tells the peer that there is a stream
			t.Errorf("%v", err)
		}
		must(t, s.Send("a"))
		must(t, s.SendWith(patient(t), "b"))
		must(t, s.SendContext(patient(t), "c"))
		must(t, s.SendAndCloseContext(patient(t), "d"))
		if err := recv(t, ended, "handler"); err != io.EOF || fmt.Sprint(got) != "[a b c d]" {
			t.Errorf("%v, %v", got, err)
		}
		e.settled(t)
	})
}

func TestStreamReset(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		far := make(chan *Stream, 1)
		release := make(chan struct{}, 10)
		e.handle("/s", func(s *Stream) error {
			far <- s
			<-release
			return nil
		})
		detailed := &Error{Code: CodeAborted, Message: "a conflict", Details: []Detail{{Name: "row", Value: 17}, {Name: "raw", Value: []byte{1}}}}
		for _, tt := range []struct {
			name string
			err  error
			code Code
			text string
		}{
			{"details", detailed, CodeAborted, "a conflict"},
			{"code", CodeNotFound, CodeNotFound, "not_found"},
			{"plain error", errors.New("plain"), CodeUnknown, "plain"},
			{"nil", nil, CodeCanceled, errStreamOver.Message},
		} {
			for _, byFar := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, by far %v", tt.name, byFar), func(t *testing.T) {
					s := e.open(t, "/s")
					must(t, s.Send("unread at far"))
					by, other := s, recv(t, far, "stream")
					must(t, other.Send("unread at near"))
					eventually(t, "both messages are there", func() bool {
						a, _ := queuedAt(e.near)
						b, _ := queuedAt(e.far)
						return a > 0 && b > 0
					})
					if byFar {
						by, other = other, by
					}
					waiting := make(chan error, 1)
					go func() {
						var b []byte
						other.Recv(&b) //nolint:errcheck // what was unread
						waiting <- other.Recv(&b)
					}()
					by.Reset(tt.err)
					var b []byte
					for _, err := range []error{by.Recv(&b), by.Send("x")} { // what was unread is dropped
						if want := tt.err; want == nil && CodeOf(err) != CodeCanceled || want != nil && err != want {
							t.Errorf("on the side that resets: %v", err)
						}
					}
					err := recv(t, waiting, "end of Recv")
					recv(t, other.Context().Done(), "end of the context")
					for _, err := range []error{err, other.Send("x"), context.Cause(other.Context())} {
						var e *Error
						if !errors.As(err, &e) || e.Code != tt.code || e.Message != tt.text || !e.Remote {
							t.Errorf("the peer gets %#v", err)
						}
						if tt.err == error(detailed) && e != nil {
							var row int
							if len(e.Details) != 2 || e.Details[0].Bind(&row) != nil || row != 17 || string(e.Details[1].Value.([]byte)) != "\x01" {
								t.Errorf("details %v", e.Details)
							}
						}
					}
					by.Reset(CodeInternal) // a second one changes nothing
					other.Reset(CodeInternal)
					if err := by.Send("x"); CodeOf(err) != tt.code {
						t.Errorf("after a second reset: %v", err)
					}
					release <- struct{}{}
					e.settled(t)
				})
			}
		}
		e.works(t)
	})
}

// A stream that its opener ends before anything was sent never existed for the peer.
func TestStreamResetUnopened(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		e.handle("/s", func(*Stream) error { t.Error("the handler runs"); return nil })
		s := e.open(t, "/s")
		s.Reset(CodeAborted)
		var b []byte
		wantCode(t, "Recv", s.Recv(&b), CodeAborted)
		ctx, cancel := context.WithCancel(context.Background())
		s, err := e.near.OpenStream(ctx, "/s")
		must(t, err)
		cancel()
		recv(t, s.Context().Done(), "end of the context")
		wantCode(t, "Send", s.Send("x"), CodeCanceled)
		e.works(t)
		e.settled(t)
	})
}

type streamNote struct {
	N    int
	Text string
}

func TestStreamTyped(t *testing.T) {
	bidi := NewBidiStream[streamNote, string]("/bidi")
	list := NewServerStream[int, streamNote]("/list")
	sum := NewClientStream[streamNote, int]("/sum")
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		h := e.far.Handler
		bidi.Handle(h, func(s TypedStream[string, streamNote]) error {
			for n, err := range s.All() {
				if err != nil {
					return err
				}
				if n.N < 0 {
					return &Error{Code: CodeOutOfRange, Message: "negative", Details: []Detail{{Name: "n", Value: n.N}}}
				}
				out := strings.Repeat(n.Text, n.N)
				if err := s.Send(&out); err != nil {
					return err
				}
			}
			return nil
		})
		list.Handle(h, func(s TypedStream[streamNote, int], n *int) error {
			for i := range *n {
				if err := s.Send(&streamNote{N: i}); err != nil {
					return err
				}
			}
			if *n > 5 {
				return CodeResourceExhausted
			}
			return nil
		})
		sum.Handle(h, func(s TypedStream[int, streamNote]) (*int, error) {
			total := 0
			for n, err := range s.All() {
				if err != nil {
					return nil, err
				}
				if total += n.N; total > 100 {
					return nil, &Error{Code: CodeOutOfRange, Message: "too much"}
				}
			}
			return &total, nil
		})
		b, err := bidi.Open(patient(t), e.near)
		must(t, err)
		for i := range 3 {
			if i == 2 {
				must(t, b.TrySend(&streamNote{i, "x"}))
			} else {
				must(t, b.Send(&streamNote{i, "x"}))
			}
			if v, err := b.Recv(); err != nil || *v != strings.Repeat("x", i) {
				t.Errorf("%v, %v", v, err)
			}
		}
		must(t, b.Send(&streamNote{N: -3}))
		_, err = b.Recv()
		var ae *Error
		if !errors.As(err, &ae) || ae.Code != CodeOutOfRange || ae.Message != "negative" || !ae.Remote || len(ae.Details) != 1 {
			t.Errorf("the handler's error came as %#v", err)
		}
		b, err = bidi.Open(patient(t), e.near)
		must(t, err)
		must(t, b.SendAndClose(&streamNote{2, "y"}))
		var all []string
		for v, err := range b.All() {
			must(t, err)
			all = append(all, *v)
		}
		if fmt.Sprint(all) != "[yy]" {
			t.Error(all)
		}
		for _, n := range []int{0, 3, 6} {
			l, err := list.Call(patient(t), e.near, &n)
			must(t, err)
			got, last := 0, error(nil)
			for v, err := range l.All() {
				if last = err; err == nil {
					if v.N != got {
						t.Errorf("%d instead of %d", v.N, got)
					}
					got++
				}
			}
			if got != n || (n == 6) != errors.Is(last, CodeResourceExhausted) {
				t.Errorf("%d messages of %d, %v", got, n, last)
			}
		}
		for range 3 { // the sequence can be left, and gone on with
			n := 5
			l, err := list.Call(patient(t), e.near, &n)
			must(t, err)
			for v, err := range l.All() {
				must(t, err)
				if v.N == 1 {
					break
				}
			}
			if v, err := l.Recv(); err != nil || v.N != 2 {
				t.Errorf("%v, %v", v, err)
			}
			l.Reset(nil)
		}
		for _, tt := range []struct {
			notes []int
			code  Code
		}{{nil, 0}, {[]int{1, 2, 3}, 0}, {[]int{90, 20, 5}, CodeOutOfRange}} {
			c, err := sum.Open(patient(t), e.near)
			must(t, err)
			want := 0
			for _, n := range tt.notes {
				want += n
				if err := c.Send(&streamNote{N: n}); err != nil {
					wantCode(t, "Send after the handler's end", err, tt.code)
				}
			}
			v, err := c.CloseAndRecv()
			if CodeOf(err) != tt.code || err == nil && *v != want {
				t.Errorf("%v: %v, %v", tt.notes, v, err)
			}
		}
		e.settled(t)
	})
}

func TestStreamHandlerPanic(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		e.handle("/s", func(s *Stream) error { panic("boom") })
		s := e.open(t, "/s")
		var b []byte
		err := s.Recv(&b)
		if !errors.Is(err, errPanicked) || strings.Contains(err.Error(), "boom") {
			t.Errorf("%v", err)
		}
		wantCode(t, "Send", s.Send("x"), CodeInternal)
		e.works(t)
		e.settled(t)
	})
}

// When the handler returns, the stream is over: the opener gets what was sent, then io.EOF, and cannot send any more.
func TestStreamHandlerReturns(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		ctxs := make(chan context.Context, 1)
		e.handle("/s", func(s *Stream) error {
			ctxs <- s.Context()
			return s.Send("one")
		})
		s := e.open(t, "/s")
		must(t, s.Send("unread"))
		recv(t, s.Context().Done(), "end of the context")
		recv(t, recv(t, ctxs, "handler").Done(), "end of the handler's context")
		wantCode(t, "Send", s.Send("x"), CodeCanceled)
		var text string
		if err := s.Recv(&text); err != nil || text != "one" {
			t.Errorf("%q, %v", text, err)
		}
		for range 2 {
			if err := s.Recv(&text); err != io.EOF {
				t.Errorf("%v", err)
			}
		}
		e.settled(t)
	})
}

// The stream ends with the handler, also while a goroutine of the handler's waits in Send.
func TestStreamHandlerReturnsWhileSending(t *testing.T) {
	onStreams(t, streamSetup{limits: Limits{StreamWindow: 8 << 10}}, func(t *testing.T, e *streamEnds) {
		sent := make(chan error, 1)
		e.handle("/s", func(s *Stream) error {
			for s.TrySend(make([]byte, 1<<10)) == nil {
			}
			waits := make(chan struct{})
			go func() {
				close(waits)
				sent <- s.Send(make([]byte, 2<<10))
			}()
			<-waits
			for len(s.sending) == 0 { // it has the token, and will wait for credit
				runtime.Gosched()
			}
			return nil
		})
		s := e.open(t, "/s")
		must(t, s.CloseSend())
		timer := time.AfterFunc(5*time.Second, func() {
			t.Error("the stream does not end while a goroutine of its handler sends")
			s.Reset(nil)
		})
		if err := recv(t, sent, "end of Send"); err == nil {
			t.Error("Send succeeds after the handler's end")
		}
		timer.Stop()
		s.CloseRecv() //nolint:errcheck // never fails
		e.settled(t)
	})
}

func TestStreamUnknownMethod(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		s := e.open(t, "/nothing")
		var b []byte
		err := s.Recv(&b)
		var ae *Error
		if !errors.As(err, &ae) || ae.Code != CodeUnimplemented || !ae.Remote {
			t.Errorf("%#v", err)
		}
		s = e.near.NewStream("/nothing")
		must(t, s.Send("x"))
		recv(t, s.Context().Done(), "end of the context")
		wantCode(t, "Send", s.Send("x"), CodeUnimplemented)
		for _, method := range []string{"", strings.Repeat("m", 128)} {
			if _, err := e.near.OpenStream(patient(t), method); err != ErrInvalidMethod {
				t.Errorf("%q: %v", method, err)
			}
		}
		e.works(t)
		e.settled(t)
	})
}

func TestStreamTooMany(t *testing.T) {
	onStreams(t, streamSetup{limits: Limits{Streams: 2}}, func(t *testing.T, e *streamEnds) {
		e.handle("/s", func(s *Stream) error { streamEcho(s); return nil })
		a, b := e.open(t, "/s"), e.open(t, "/s")
		_, err := e.near.OpenStream(patient(t), "/s")
		wantCode(t, "the third stream", err, CodeResourceExhausted)
		s := e.near.NewStream("/s")
		var r []byte
		wantCode(t, "Send", s.Send("x"), CodeResourceExhausted)
		wantCode(t, "Recv", s.Recv(&r), CodeResourceExhausted)
		wantCode(t, "CloseSend", s.CloseSend(), CodeResourceExhausted)
		must(t, s.CloseRecv())
		s.Reset(nil)
		recv(t, s.Context().Done(), "end of a stream that never was")
		must(t, a.SendAndClose("a"))
		must(t, a.Recv(&r))
		if err := a.Recv(&r); err != io.EOF {
			t.Error(err)
		}
		c := e.open(t, "/s") // there is room again
		must(t, c.SendAndClose("c"))
		must(t, c.Recv(&r))
		if string(r) != "c" {
			t.Errorf("%q", r)
		}
		b.Reset(nil)
		c.Recv(&r) //nolint:errcheck // io.EOF
		e.settled(t)
	})
}

func TestStreamDeadline(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		far := make(chan *Stream, 1)
		ended := e.handle("/s", func(s *Stream) error {
			far <- s
			var b []byte
			s.Recv(&b) //nolint:errcheck // the message that opened it
			return s.Recv(&b)
		})
		best := time.Hour
		for range 20 { // the load of the machine decides about each of them
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			s, err := e.near.OpenStream(ctx, "/s")
			must(t, err)
			must(t, s.Send("x"))
			want, _ := ctx.Deadline()
			got, ok := recv(t, far, "stream").Context().Deadline()
			if !ok {
				t.Fatal("the handler has no deadline")
			}
			if own, ok := s.Context().Deadline(); !ok || own.Sub(want).Abs() > 5*time.Second {
				t.Errorf("the opener's context has the deadline %v, %v", own, ok)
			}
			best = min(best, got.Sub(want).Abs())
			cancel()
			recv(t, ended, "handler")
		}
		if best > 5*time.Millisecond {
			t.Errorf("the handler's deadline is off by %v", best)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		defer cancel()
		s, err := e.near.OpenStream(ctx, "/s")
		must(t, err)
		must(t, s.Send("x"))
		var b []byte
		err = s.Recv(&b)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the opener's Recv: %v", err)
		}
		wantCode(t, "Send", s.Send("x"), CodeDeadlineExceeded)
		if f := recv(t, far, "stream"); true {
			wantCode(t, "the handler's Recv", recv(t, ended, "handler"), CodeDeadlineExceeded)
			wantCode(t, "the handler's Send", f.Send("x"), CodeDeadlineExceeded)
			wantCode(t, "the handler's context", context.Cause(f.Context()), CodeDeadlineExceeded)
		}
		wantCode(t, "the opener's context", context.Cause(s.Context()), CodeDeadlineExceeded)
		<-ctx.Done() // the peer's clock may have been first
		_, err = e.near.OpenStream(ctx, "/s")
		wantCode(t, "OpenStream after the deadline", err, CodeDeadlineExceeded)
		e.works(t)
		e.settled(t)
	})
}

// The handler's end of the deadline holds by itself, whatever the peer does.
func TestStreamDeadlineOfHandler(t *testing.T) {
	onRawStreams(t, Limits{}, nil, func(t *testing.T, c *Client, p *rawPeer) {
		ended := make(chan error, 1)
		c.Handler.HandleStream("/s", func(s *Stream) {
			var b []byte
			ended <- s.Recv(&b)
		})
		p.send(frameOf(CmdStream|streamLocal, flagOpen|flagNoData|flagDeadline, 3, "/s", "\x14\x00\x00\x00"))
		wantCode(t, "Recv", recv(t, ended, "handler"), CodeDeadlineExceeded)
		m := p.frame()
		if m.Buffer[indexCmd] != cmdReset || m.Seq() != 3 || decodeError(m.Buffer[HeadLen:], nil).Code != CodeDeadlineExceeded {
			t.Errorf("%x", m.Buffer)
		}
	})
}

func TestStreamCancel(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		opened := make(chan struct{}, 1)
		causes := make(chan error, 1)
		ended := e.handle("/s", func(s *Stream) error {
			opened <- struct{}{}
			<-s.Context().Done()
			causes <- context.Cause(s.Context())
			var b []byte
			s.Recv(&b) //nolint:errcheck // the message that opened it
			return s.Recv(&b)
		})
		cause := errors.New("the user went away")
		best := time.Hour
		for range 10 {
			ctx, cancel := context.WithCancelCause(context.Background())
			s, err := e.near.OpenStream(ctx, "/s")
			must(t, err)
			must(t, s.Send("x"))
			recv(t, opened, "handler")
			start := time.Now()
			cancel(cause)
			got := recv(t, causes, "end of the handler's context")
			best = min(best, time.Since(start))
			for _, err := range []error{got, recv(t, ended, "handler")} {
				if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), cause.Error()) {
					t.Errorf("the handler gets %v, without the cause", err)
				}
			}
			var b []byte
			recv(t, s.Context().Done(), "end of the opener's context")
			for _, err := range []error{s.Recv(&b), s.Send("x")} {
				if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || CodeOf(err) != CodeCanceled {
					t.Errorf("the opener gets %v", err)
				}
			}
			if t.Failed() {
				return
			}
		}
		if best > 20*time.Millisecond {
			t.Errorf("the handler learns of the cancel after %v", best)
		}
		e.settled(t)
	})
}

func TestStreamConnectionLoss(t *testing.T) {
	for _, how := range []string{"close", "cut"} {
		t.Run(how, func(t *testing.T) {
			onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
				ended := e.handle("/s", func(s *Stream) error {
					for i := range 3 {
						if err := s.Send(fmt.Sprint(i)); err != nil {
							return err
						}
					}
					var b []byte
					return s.Recv(&b)
				})
				s := e.open(t, "/s")
				var text string
				must(t, s.Recv(&text))
				eventually(t, "two more messages", func() bool { n, _ := queuedAt(e.near); return n == 2 })
				if how == "close" {
					e.far.Conn.Close()
				} else {
					e.far.link.Load().cn.Abort(nil)
				}
				recv(t, s.Context().Done(), "end of the context")
				wantCode(t, "Send", s.Send("x"), CodeUnavailable)
				for i := 1; i < 3; i++ { // what was received before can be read
					if err := s.Recv(&text); err != nil || text != fmt.Sprint(i) {
						t.Errorf("message %d: %q, %v", i, text, err)
					}
				}
				err := s.Recv(&text)
				var ae *Error
				if !errors.As(err, &ae) || ae.Code != CodeUnavailable || !strings.Contains(ae.Message, ": ") {
					t.Errorf("Recv: %v, without a reason", err)
				}
				wantCode(t, "the context", context.Cause(s.Context()), CodeUnavailable)
				wantCode(t, "the handler", recv(t, ended, "handler"), CodeUnavailable)
			})
		})
	}
}

// A stream that the peer opens in the moment in which the connection ends does not outlive it.
func TestStreamOpenedAfterLoss(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		var began atomic.Bool
		ended := make(chan error, 1)
		s.Handler.HandleStream("/s", func(s *Stream) {
			began.Store(true)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			var b []byte
			ended <- s.RecvWith(ctx, &b)
		})
		p := dialRaw(t, s.addr)
		streamHello(t, p, nil)
		client := s.waitClients(t, 1)[0]
		s.Handler.BeforeRecv(func(net.Conn) error {
			client.Conn.Close() // the frame has been read, and is handled after this
			return nil
		})
		p.send(frameOf(CmdStream|streamLocal, flagOpen|flagNoData, 3, "/s", ""))
		p.end()
		p.Close()
		eventually(t, "end of the connection", func() bool { return s.core().Len() == 0 })
		if began.Load() { // it may have been refused as well
			wantCode(t, "Recv of a stream whose connection is gone", recv(t, ended, "handler"), CodeUnavailable)
		}
	})
}

func TestStreamMetadata(t *testing.T) {
	onStreams(t, streamSetup{limits: Limits{Metadata: 1000}}, func(t *testing.T, e *streamEnds) {
		want := Metadata{"tenant": "seven", "bin\x00ary": "\xff\x00", "empty": ""}
		ended := e.handle("/s", func(s *Stream) error {
			if got := s.Metadata(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the handler gets %q", got)
			}
			if err := s.SetMetadata("large", strings.Repeat("v", 1000)); CodeOf(err) != CodeInvalidArgument {
				t.Errorf("1000 bytes: %v", err)
			}
			if err := s.SetMetadata("", "v"); CodeOf(err) != CodeInvalidArgument {
				t.Errorf("no key: %v", err)
			}
			must(t, s.SetMetadata("a", "1"))
			must(t, s.SetMetadata("b", "2"))
			for b, err := range s.All() {
				if err != nil {
					return err
				}
				if err = s.Send(b); err != nil {
					return err
				}
				wantCode(t, "SetMetadata after it was sent", s.SetMetadata("c", "3"), CodeFailedPrecondition)
			}
			return nil
		})
		s, err := e.near.OpenStream(WithMetadata(patient(t), want), "/s")
		must(t, err)
		wantCode(t, "SetMetadata by the opener", s.SetMetadata("k", "v"), CodeFailedPrecondition)
		if md := s.Metadata(); md != nil {
			t.Errorf("%v before anything came", md)
		}
		for range 2 {
			must(t, s.Send("x"))
			var b []byte
			must(t, s.Recv(&b))
			if md := s.Metadata(); fmt.Sprint(md) != "map[a:1 b:2]" || string(b) != "x" {
				t.Errorf("%q with %v", b, md)
			}
		}
		must(t, s.CloseSend())
		recv(t, ended, "handler")

		e.handle("/end", func(s *Stream) error { return s.SetMetadata("at", "the end") })
		s = e.open(t, "/end")
		var b []byte
		if err := s.Recv(&b); err != io.EOF || s.Metadata()["at"] != "the end" {
			t.Errorf("%v with %v", err, s.Metadata())
		}
		if _, err = e.near.OpenStream(WithMetadata(patient(t), Metadata{"k": strings.Repeat("v", 998)}), "/s"); CodeOf(err) != CodeInvalidArgument {
			t.Errorf("1002 bytes: %v", err)
		}
		e.settled(t)
	})
}

// What the peer sends as metadata takes nothing of what this end may send.
func TestStreamLongMetadataOfThePeer(t *testing.T) {
	s := startServer(t)
	s.Handler.SetMaxBodyLen(1000)
	long, ended := strings.Repeat("v", 2000), make(chan error, 1)
	s.Handler.HandleStream("/s", func(s *Stream) {
		must(t, s.SetMetadata("k", long))
		for {
			var b []byte
			err := s.Recv(&b)
			if err != nil {
				ended <- err
				return
			}
			must(t, s.Send(b))
		}
	})
	st, err := dialClient(t, s.addr).OpenStream(patient(t), "/s")
	must(t, err)
	for _, text := range []string{"1", "2"} {
		must(t, st.Send(text))
		var b string
		must(t, st.Recv(&b))
		if b != text || st.Metadata()["k"] != long {
			t.Errorf("%q with %d", b, len(st.Metadata()["k"]))
		}
	}
	must(t, st.CloseSend())
	if err := recv(t, ended, "end"); err != io.EOF {
		t.Error(err)
	}
}

func TestStreamTooLarge(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		e.far.Handler.SetMaxBodyLen(300 << 10)
		ended := e.handle("/s", func(s *Stream) error {
			var b []byte
			if err := s.Recv(&b); err != nil || len(b) != 200<<10 {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			err := s.Recv(&b)
			wantCode(t, "Send after it", s.Send("x"), CodeResourceExhausted)
			return err
		})
		s := e.open(t, "/s")
		must(t, s.Send(make([]byte, 200<<10)))
		s.Send(make([]byte, 2<<20)) //nolint:errcheck // may be told so in its middle
		wantCode(t, "Recv of too much", recv(t, ended, "handler"), CodeResourceExhausted)
		var b []byte
		wantCode(t, "the sender's Recv", s.Recv(&b), CodeResourceExhausted)
		wantCode(t, "the sender's Send", s.Send("x"), CodeResourceExhausted)

		e.near.Handler.SetMaxBodyLen(100 << 10) // what it would not take itself it does not send
		e.handle("/echo", func(s *Stream) error { streamEcho(s); return nil })
		s = e.open(t, "/echo")
		wantCode(t, "Send of too much", s.Send(make([]byte, 100<<10)), CodeResourceExhausted)
		must(t, s.SendAndClose("and the stream goes on"))
		if err := s.Recv(&b); err != nil || string(b) != "and the stream goes on" {
			t.Errorf("%q, %v", b, err)
		}
		s.Recv(&b) //nolint:errcheck // io.EOF
		e.settled(t)
	})
}

func TestStreamIterator(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		e.handle("/s", func(s *Stream) error {
			for i := range 10 {
				if err := s.Send(numbered(i)); err != nil {
					return err
				}
			}
			s.Reset(CodeDataLoss)
			return nil
		})
		s := e.open(t, "/s")
		next, errs := 0, 0
		for range 2 { // left in the middle, and gone on with
			for b, err := range s.All() {
				if err != nil {
					wantCode(t, "the last pair", err, CodeDataLoss)
					errs++
					continue
				}
				if number(b) != next {
					t.Errorf("%d instead of %d", number(b), next)
				}
				if next++; next == 5 {
					break
				}
			}
		}
		if next != 10 || errs != 1 {
			t.Errorf("%d messages, %d errors", next, errs)
		}
		e.settled(t)
	})
}

// streamFilled opens a stream that the far end does not receive from, sends all that the window takes and returns the number
// of messages of 1 KiB.
func streamFilled(t testing.TB, e *streamEnds, method string) (s *Stream, n int) {
	t.Helper()
	s = e.open(t, method)
	for ; ; n++ {
		err := s.TrySend(numberedKiB(n))
		if err != nil {
			wantCode(t, "TrySend", err, CodeResourceExhausted)
			var full bool
			s.link.cn.Lock()
			full = s.credit < 1<<10 || s.link.streamsLocked().credit < 1<<10
			s.link.cn.Unlock()
			if full {
				return s, n
			}
			n--
			runtime.Gosched() // the socket's queue was full
		}
	}
}

func numberedKiB(n int) []byte {
	b := make([]byte, 1<<10)
	binary.LittleEndian.PutUint32(b, uint32(n))
	return b
}

func TestStreamTrySend(t *testing.T) {
	const window = 64 << 10
	onStreams(t, streamSetup{limits: Limits{StreamWindow: window}}, func(t *testing.T, e *streamEnds) {
		start := make(chan struct{})
		got := make(chan int, 1)
		e.handle("/s", func(s *Stream) error {
			<-start
			n := 0
			for b, err := range s.All() {
				if err != nil {
					return err
				}
				if number(b) != n {
					t.Errorf("message %d instead of %d", number(b), n)
				}
				n++
			}
			got <- n
			return nil
		})
		s, n := streamFilled(t, e, "/s")
		if n != window>>10 {
			t.Errorf("%d KiB of %d accepted", n, window>>10)
		}
		close(start)
		eventually(t, "TrySend succeeds again", func() bool { return s.TrySend(numberedKiB(n)) == nil })
		must(t, s.CloseSend())
		if g := recv(t, got, "all messages"); g != n+1 {
			t.Errorf("%d messages received, %d accepted", g, n+1)
		}
		e.settled(t)
	})
}

// TrySend does not wait for anything: not for credit in the middle of a message, and not for another sender.
func TestStreamTrySendNeverWaits(t *testing.T) {
	onStreams(t, streamSetup{limits: Limits{StreamWindow: 64 << 10}}, func(t *testing.T, e *streamEnds) {
		release := make(chan struct{})
		e.handle("/s", func(s *Stream) error { <-release; return nil })
		defer close(release)
		try := func(what string, s *Stream, msg []byte) {
			done := make(chan error, 1)
			go func() { done <- s.TrySend(msg) }()
			select {
			case err := <-done:
				wantCode(t, what, err, CodeResourceExhausted)
			case <-time.After(3 * time.Second):
				t.Errorf("TrySend waits: %s", what)
				s.Reset(nil)
				recv(t, done, "end of TrySend")
			}
			s.Reset(nil)
		}
		try("a message beyond the window", e.open(t, "/s"), make([]byte, 1<<20))
		s, _ := streamFilled(t, e, "/s")
		sent := make(chan error, 1)
		go func() { sent <- s.Send(make([]byte, 1<<10)) }()
		for len(s.sending) == 0 {
			runtime.Gosched()
		}
		try("another sender waits", s, []byte("x"))
		recv(t, sent, "end of Send")
	})
}

func TestStreamSendContext(t *testing.T) {
	const window = 64 << 10
	onStreams(t, streamSetup{limits: Limits{StreamWindow: window}}, func(t *testing.T, e *streamEnds) {
		start := make(chan struct{})
		got := make(chan int, 2)
		ended := e.handle("/s", func(s *Stream) error {
			<-start
			n := 0
			defer func() { got <- n }()
			for b, err := range s.All() {
				if err != nil {
					return err
				}
				if number(b) != n {
					t.Errorf("message %d instead of %d", number(b), n)
				}
				n++
			}
			return nil
		})
		cancelled := func(s *Stream, send func(context.Context) error) {
			t.Helper()
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- send(ctx) }()
			for len(s.sending) == 0 {
				runtime.Gosched()
			}
			cancel()
			if err := recv(t, done, "end of a cancelled Send"); !errors.Is(err, context.Canceled) {
				t.Errorf("a cancelled Send: %v", err)
			}
		}
		s, n := streamFilled(t, e, "/s")
		cancelled(s, func(ctx context.Context) error { return s.SendWith(ctx, numberedKiB(999)) })
		cancelled(s, func(ctx context.Context) error { return s.SendAndCloseWith(ctx, numberedKiB(999)) })
		// One that waits for another sender.
		blocked := make(chan error, 1)
		go func() { blocked <- s.Send(numberedKiB(n)) }()
		for len(s.sending) == 0 {
			runtime.Gosched()
		}
		cancelled(s, func(ctx context.Context) error { return s.SendWith(ctx, numberedKiB(999)) })
		if s.Context().Err() != nil {
			t.Error("a Send that sent nothing has ended the stream")
		}
		close(start)
		must(t, recv(t, blocked, "end of Send"))
		must(t, s.CloseSend())
		if g := recv(t, got, "all messages"); g != n+1 {
			t.Errorf("%d messages received, %d accepted", g, n+1)
		}
		recv(t, ended, "handler")
		// A message of which a part was sent.
		start = make(chan struct{})
		s = e.open(t, "/s")
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.SendWith(ctx, make([]byte, 10*window)) }()
		eventually(t, "the window is full", func() bool { n, _ := queuedAt(e.far); return n == window })
		cancel()
		if err := recv(t, done, "end of a cancelled Send"); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled Send: %v", err)
		}
		wantCode(t, "Send after half a message", s.Send("x"), CodeCanceled)
		close(start)
		wantCode(t, "the receiver of half a message", recv(t, ended, "handler"), CodeCanceled)
		if n := recv(t, got, "messages"); n != 0 {
			t.Errorf("%d messages of half a one", n)
		}
		e.settled(t)
	})
}

// SendWith waits for the stream's end too, not for its context alone, also when the connection takes no more.
func TestStreamSendContextFullQueue(t *testing.T) {
	onRawStreams(t, Limits{SendHigh: 64 << 10}, func(h *hello) { h.window, h.connWindow = 1<<30, 1<<30 }, func(t *testing.T, c *Client, p *rawPeer) {
		s, err := c.OpenStream(patient(t), "/s")
		must(t, err)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done := make(chan error, 1)
		go func() {
			for {
				if err := s.SendWith(ctx, make([]byte, 64<<10)); err != nil {
					done <- err
					return
				}
			}
		}()
		eventually(t, "the sender waits for room", func() bool {
			s.link.cn.Lock()
			defer s.link.cn.Unlock()
			return s.link.cn.Full() && s.link.streamsLocked().taken
		})
		s.Reset(CodeAborted)
		wantCode(t, "SendWith of a stream that was reset", recv(t, done, "end of SendWith"), CodeAborted)
	})
}

func TestStreamRecvContext(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		const messages = 500
		e.handle("/s", func(s *Stream) error {
			for i := range messages {
				msg := numbered(i)
				if i%50 == 0 {
					msg = append(msg, make([]byte, 100<<10)...) // in parts
				}
				if err := s.Send(msg); err != nil {
					return err
				}
				if i%3 == 0 {
					runtime.Gosched()
				}
			}
			return nil
		})
		s := e.open(t, "/s")
		cancelled, next := 0, 0
		for next < messages {
			ctx, cancel := context.WithCancel(context.Background())
			if next%2 == 0 {
				go cancel()
			}
			var b []byte
			var err error
			if next%4 == 0 {
				err = s.RecvContext(ctx, &b)
			} else {
				err = s.RecvWith(ctx, &b)
			}
			cancel()
			switch {
			case err == nil && number(b) == next:
				next++
			case errors.Is(err, context.Canceled):
				cancelled++
			default:
				t.Fatalf("message %d: %v, %v", next, b[:min(len(b), 4)], err)
			}
		}
		var b []byte
		if err := s.Recv(&b); err != io.EOF {
			t.Errorf("%v", err)
		}
		t.Logf("%d times cancelled", cancelled)
		s = e.open(t, "/works") // nothing comes
		e.works(t)
		s.Reset(nil)
		s = e.open(t, "/works")
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.RecvWith(ctx, &b); !errors.Is(err, context.Canceled) {
			t.Errorf("Recv with a context that is done: %v", err)
		}
		waiting := make(chan error, 1)
		go func() { waiting <- s.Recv(&b) }()
		eventually(t, "somebody receives", func() bool { return len(s.receiving) > 0 })
		if err := s.RecvWith(ctx, &b); !errors.Is(err, context.Canceled) {
			t.Errorf("Recv beside another, with a context that is done: %v", err)
		}
		s.Reset(CodeAborted)
		wantCode(t, "Recv", recv(t, waiting, "end of Recv"), CodeAborted)
		e.settled(t)
	})
}

func TestStreamCloseRecv(t *testing.T) {
	onStreams(t, streamSetup{limits: Limits{StreamWindow: 16 << 10, StreamWindows: 32 << 10}}, func(t *testing.T, e *streamEnds) {
		got := make(chan string, 1)
		e.handle("/s", func(s *Stream) error {
			for range 200 { // far beyond both windows: nothing of it is kept
				if err := s.Send(make([]byte, 4<<10)); err != nil {
					t.Errorf("Send to who does not receive: %v", err)
					return err
				}
			}
			var text string
			err := s.Recv(&text)
			got <- text
			return err
		})
		for _, early := range []bool{true, false} {
			s := e.open(t, "/s")
			if early {
				must(t, s.CloseRecv())
			}
			var b []byte
			if !early {
				must(t, s.Recv(&b))
				must(t, s.CloseRecvContext(patient(t)))
			}
			if err := s.Recv(&b); err != io.EOF {
				t.Errorf("Recv after CloseRecv: %v", err)
			}
			must(t, s.SendAndClose("still sending"))
			if text := recv(t, got, "message"); text != "still sending" {
				t.Errorf("%q", text)
			}
			must(t, s.CloseRecv())
			recv(t, s.Context().Done(), "end of the context")
		}
		e.settled(t)
	})
}

// The last message of a stream gives its credit back also where nobody receives it.
func TestStreamLastMessageDropped(t *testing.T) {
	const window = 16 << 10
	onStreams(t, streamSetup{limits: Limits{StreamWindow: window, StreamWindows: window}}, func(t *testing.T, e *streamEnds) {
		ended := e.handle("/s", func(s *Stream) error { return s.SendAndClose(make([]byte, 3000)) })
		for range 2 * window / 3000 { // beyond the connection's window
			s := e.open(t, "/s")
			must(t, s.CloseRecv())
			must(t, s.CloseSend())
			if err := recv(t, ended, "handler"); err != io.EOF {
				t.Fatal(err)
			}
			recv(t, s.Context().Done(), "end of the stream")
		}
		e.settled(t)
	})
}

// After a part of a message nothing else is sent, as the peer would take it for the rest.
func TestStreamCutShort(t *testing.T) {
	onStreams(t, streamSetup{limits: Limits{StreamWindow: 16 << 10, StreamWindows: 16 << 10}}, func(t *testing.T, e *streamEnds) {
		release := make(chan struct{})
		ended := e.handle("/s", func(s *Stream) error {
			<-release
			var b []byte
			if err := s.Recv(&b); err == nil {
				t.Errorf("received %d bytes of what was sent in part", len(b))
				return nil
			} else {
				return err
			}
		})
		ctx, cancel := context.WithCancel(context.Background())
		s := e.open(t, "/s")
		sent := make(chan error, 1)
		go func() { sent <- s.SendWith(ctx, make([]byte, 20<<10)) }()
		eventually(t, "first part", func() bool { n, _ := queuedAt(e.far); return n == 16<<10 })
		cancel()
		wantCode(t, "the message sent in part", recv(t, sent, "return from SendWith"), CodeCanceled)
		wantCode(t, "the next message", s.Send("x"), CodeCanceled)
		release <- struct{}{}
		wantCode(t, "Recv of the handler", recv(t, ended, "handler"), CodeCanceled)
		e.settled(t)

		// The stream's own deadline does the same, also when it is noticed here first.
		ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		s, err := e.near.OpenStream(ctx, "/s")
		must(t, err)
		wantCode(t, "the message sent in part", s.Send(make([]byte, 70<<10)), CodeDeadlineExceeded)
		wantCode(t, "the next message", s.Send("x"), CodeDeadlineExceeded)
		release <- struct{}{}
		wantCode(t, "Recv of the handler", recv(t, ended, "handler"), CodeDeadlineExceeded)
		e.settled(t)
	})
}

func TestStreamManySenders(t *testing.T) {
	const senders, each = 8, 60
	onStreams(t, streamSetup{limits: Limits{StreamWindow: 64 << 10}}, func(t *testing.T, e *streamEnds) {
		done := make(chan [senders]int, 1)
		e.handle("/s", func(s *Stream) error {
			var next [senders]int
			var mu sync.Mutex
			var wg sync.WaitGroup
			for range 3 { // many receive as well
				wg.Go(func() {
					for b, err := range s.All() {
						if err != nil {
							t.Errorf("Recv: %v", err)
							return
						}
						who := b[0]
						if int(who) >= senders || bytes.ContainsFunc(b, func(r rune) bool { return r != rune(who) }) {
							t.Errorf("a message of %d bytes is mixed", len(b))
							return
						}
						mu.Lock()
						next[who]++
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			done <- next
			return nil
		})
		s := e.open(t, "/s")
		var wg sync.WaitGroup
		for who := range senders {
			wg.Go(func() {
				for i := range each {
					size := []int{1, 100, 5000, 40 << 10, 100 << 10}[(who+i)%5]
					if err := s.Send(bytes.Repeat([]byte{byte(who)}, size)); err != nil {
						t.Errorf("Send: %v", err)
						return
					}
				}
			})
		}
		waitGroup(t, &wg, "end of the senders")
		must(t, s.CloseSend())
		for who, n := range recv(t, done, "all messages") {
			if n != each {
				t.Errorf("%d messages of sender %d", n, who)
			}
		}
		e.settled(t)
	})
}

// squeeze is the gzip coder as docs/protocol.md has it: everything behind the command's place is replaced.
type squeeze struct{ used *atomic.Int64 }

func (c squeeze) Encode(_ *Client, m *Message) *Message {
	if m.Len() < 1000 {
		return m
	}
	out := bytes.NewBuffer(bytes.Clone(m.Buffer[:indexCmd]))
	w, _ := gzip.NewWriterLevel(out, gzip.BestSpeed)
	w.Write(m.Buffer[indexCmd:]) //nolint:errcheck // memory
	w.Close()                    //nolint:errcheck // memory
	if out.Len() >= m.Len() {
		return m
	}
	c.used.Add(1)
	m = &Message{Buffer: out.Bytes(), values: m.values}
	m.SetFlagBit(7, true) //nolint:errcheck // 7 is one
	m.SetBodyLen(m.Len() - HeadLen)
	return m
}

func (squeeze) Decode(_ *Client, m *Message) *Message {
	if !m.IsFlagBitSet(7) {
		return m
	}
	r, err := gzip.NewReader(bytes.NewReader(m.Buffer[indexCmd:]))
	if err != nil {
		return nil
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil
	}
	m = &Message{Buffer: append(bytes.Clone(m.Buffer[:indexCmd]), b...), values: m.values}
	m.SetFlagBit(7, false) //nolint:errcheck // 7 is one
	m.SetBodyLen(m.Len() - HeadLen)
	return m
}

func TestStreamCoders(t *testing.T) {
	var used atomic.Int64
	set := streamSetup{limits: Limits{StreamWindow: 128 << 10}, use: func(h Handler) {
		h.UseCoder(squeeze{&used})
		h.UseCoder(scramble(7))
	}}
	onStreams(t, set, func(t *testing.T, e *streamEnds) {
		used.Store(0)
		e.handle("/s", func(s *Stream) error {
			if s.Metadata()["k"] != "v" {
				t.Errorf("%v", s.Metadata())
			}
			must(t, s.SetMetadata("answer", "too"))
			streamEcho(s)
			return nil
		})
		s, err := e.near.OpenStream(WithMetadata(patient(t), Metadata{"k": "v"}), "/s")
		must(t, err)
		for i, n := range []int{0, 10, 5000, 64 << 10, 1<<20 + 3} {
			msg := bytes.Repeat([]byte("compressible "), n/13+1)[:n]
			if i%2 == 0 {
				msg = pattern(n, 3) // is not
			}
			sent := make(chan error, 1)
			go func() { sent <- s.Send(msg) }()
			var b []byte
			must(t, s.Recv(&b))
			must(t, recv(t, sent, "end of Send"))
			if !bytes.Equal(b, msg) {
				t.Errorf("%d bytes came back as %d", len(msg), len(b))
			}
		}
		if used.Load() == 0 || s.Metadata()["answer"] != "too" {
			t.Errorf("%d frames were squeezed, metadata %v", used.Load(), s.Metadata())
		}
		must(t, s.CloseSend())
		var b []byte
		if err := s.Recv(&b); err != io.EOF {
			t.Error(err)
		}
		e.settled(t)
	})
}

// streamGate is a coder that stops the first frame of a stream until it is told to let it go, and makes one fail.
type streamGate struct {
	stop             atomic.Bool
	entered, release chan struct{}
	fail             atomic.Int32 // the number of the frame to fail, counted down
}

func (g *streamGate) Encode(_ *Client, m *Message) *Message {
	if m.Cmd() != CmdStream {
		return m
	}
	if g.fail.Add(-1) == 0 {
		return nil
	}
	if g.stop.CompareAndSwap(true, false) {
		close(g.entered)
		<-g.release
	}
	return m
}

func (*streamGate) Decode(_ *Client, m *Message) *Message { return m }

// A stream that is reset while a coder has its first frame is over for the peer too, whatever comes first.
func TestStreamResetInCoder(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		e.handle("/s", func(s *Stream) error { <-s.Context().Done(); return nil })
		g := &streamGate{entered: make(chan struct{}), release: make(chan struct{})}
		g.stop.Store(true)
		e.near.Handler.UseCoder(g)
		s := e.near.NewStream("/s")
		sent := make(chan error, 1)
		go func() { sent <- s.Send("x") }()
		recv(t, g.entered, "frame in the coder")
		s.Reset(CodeAborted)
		close(g.release)
		recv(t, sent, "end of Send")
		e.works(t) // what was sent before has arrived
		e.settled(t)
	})
}

// A frame that a coder refuses is an error of its Send, and never makes a message of pieces of two.
func TestStreamCoderFails(t *testing.T) {
	for _, frame := range []int32{1, 2, 3} {
		t.Run(fmt.Sprint(frame), func(t *testing.T) {
			onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
				g := &streamGate{}
				e.near.Handler.UseCoder(g)
				ended := e.handle("/s", func(s *Stream) error {
					for b, err := range s.All() {
						if err != nil {
							return err
						}
						if len(b) == 0 || bytes.Count(b, b[:1]) != len(b) {
							t.Error("a message of pieces of two")
						}
					}
					return nil
				})
				g.fail.Store(frame)
				s := e.open(t, "/s")
				if err := s.Send(bytes.Repeat([]byte{1}, 150<<10)); err == nil {
					t.Error("no error")
				}
				if s.Send(bytes.Repeat([]byte{2}, 150<<10)) == nil && s.CloseSend() == nil { // or the stream is over
					select {
					case <-ended:
					case <-time.After(3 * time.Second):
						t.Error("the peer does not know of a stream that can be sent on")
					}
				} else {
					s.Reset(nil)
				}
				e.works(t)
				e.settled(t)
			})
		})
	}
}

func TestStreamMiddleware(t *testing.T) {
	var before, after, recovered, aborted atomic.Int32
	set := streamSetup{use: func(h Handler) {
		h.Use(func(c *Context) {
			defer func() {
				if p := recover(); p != nil {
					recovered.Add(1)
					c.Stream().Reset(&Error{Code: CodeDataLoss, Message: fmt.Sprint("recovered: ", p)})
				}
			}()
			before.Add(1)
			c.Next()
			after.Add(1)
		})
		h.Use(func(c *Context) {
			s := c.Stream()
			if s == nil || s.Method() != c.Message.Method() || c.Client != s.Client() || c.Metadata()["k"] != s.Metadata()["k"] {
				t.Errorf("the middleware's stream is %v", s)
				return
			}
			switch s.Metadata()["k"] {
			case "abort":
				c.Abort()
				aborted.Add(1)
			case "refuse":
				s.Reset(CodePermissionDenied)
				c.Abort()
			}
		})
	}}
	onStreams(t, set, func(t *testing.T, e *streamEnds) {
		before.Store(0)
		after.Store(0)
		recovered.Store(0)
		aborted.Store(0)
		e.handle("/s", func(s *Stream) error {
			if s.Metadata()["k"] == "panic" {
				panic("boom")
			}
			return s.Send("handled")
		})
		for _, tt := range []struct {
			k, text string
			code    Code
		}{{"pass", "handled", 0}, {"abort", "", 0}, {"refuse", "", CodePermissionDenied}, {"panic", "", CodeDataLoss}} {
			s, err := e.near.OpenStream(WithMetadata(patient(t), Metadata{"k": tt.k}), "/s")
			must(t, err)
			var text string
			err = s.Recv(&text)
			if text != tt.text || tt.text != "" && err != nil || tt.code != 0 && CodeOf(err) != tt.code || tt.code == 0 && tt.text == "" && err != io.EOF {
				t.Errorf("%s: %q, %v", tt.k, text, err)
			}
			recv(t, s.Context().Done(), "end of the context")
		}
		eventually(t, "all of the chain ran", func() bool {
			return before.Load() == 4 && after.Load() == 3 && recovered.Load() == 1 && aborted.Load() == 1
		})
		e.settled(t)
	})
}

// A handler of calls may wait for its caller in a stream, ordered or not: the connection goes on.
func TestStreamInHandler(t *testing.T) {
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprintf("async %v", async), func(t *testing.T) {
			onStreams(t, streamSetup{limits: Limits{StreamWindow: 16 << 10, StreamWindows: 16 << 10}}, func(t *testing.T, e *streamEnds) {
				big := pattern(200<<10, 9)
				e.near.Handler.HandleStream("/back", streamEcho)
				e.far.Handler.Handle("/call", func(c *Context) {
					s, err := c.Client.OpenStream(c, "/back")
					if err == nil {
						sent := make(chan error, 1)
						go func() { sent <- s.SendAndClose(big) }()
						var b []byte
						if err = s.Recv(&b); err == nil && !bytes.Equal(b, big) {
							err = errors.New("other bytes")
						}
						if serr := <-sent; err == nil {
							err = serr
						}
						if rerr := s.Recv(&b); err == nil && rerr != io.EOF {
							err = rerr
						}
					}
					if err != nil {
						c.Error(err)
						return
					}
					for range 20 { // sending waits for the peer as well
						s := c.Client.NewStream("/back")
						err = s.SendAndClose(numbered(1))
						var b []byte
						for err == nil {
							err = s.Recv(&b)
						}
						if err != io.EOF {
							c.Error(err)
							return
						}
					}
					c.Write("done")
				}, async)
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						var r string
						if err := e.near.CallWith(patient(t), "/call", nil, &r); err != nil || r != "done" {
							t.Errorf("%q, %v", r, err)
						}
					})
				}
				waitGroup(t, &wg, "end of the calls")
				e.settled(t)
			})
		})
	}
}

// A stream that was opened with a handler's context ends with the handler.
func TestStreamEndsWithHandlerContext(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		ends := make(chan error, 1)
		e.near.Handler.HandleStream("/back", func(s *Stream) {
			var b []byte
			s.Recv(&b) //nolint:errcheck // the message that opened it
			ends <- s.Recv(&b)
		})
		e.far.Handler.Handle("/call", func(c *Context) {
			s, err := c.Client.OpenStream(c, "/back")
			if err == nil {
				err = s.Send("x")
			}
			if err != nil {
				t.Error(err)
			}
			c.Done()
			c.Write(nil)
		})
		must(t, e.near.CallWith(patient(t), "/call", nil, nil))
		wantCode(t, "the stream", recv(t, ends, "end of the stream"), CodeCanceled)
		e.settled(t)
	})
}

// Shutdown lets stream handlers end, and refuses further streams.
func TestStreamShutdown(t *testing.T) {
	for _, memory := range []bool{false, true} {
		t.Run(fmt.Sprintf("memory %v", memory), func(t *testing.T) {
			onAdapters(t, func(t *testing.T, adapter ServerOption) {
				e := streamSetup{}.connect(t, adapter, memory, false)
				e.handle("/echo", func(s *Stream) error { streamEcho(s); return nil })
				s := e.open(t, "/echo")
				var text string
				must(t, s.Send("before"))
				must(t, s.Recv(&text))
				down := make(chan error, 1)
				go func() { down <- e.server.Shutdown(patient(t)) }()
				eventually(t, "new streams are refused", func() bool {
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					defer cancel()
					o, err := e.near.OpenStream(ctx, "/echo")
					if err == nil {
						err = o.Send("x")
						if err == nil {
							err = o.Recv(&text)
						}
						o.Reset(nil)
					}
					if err != nil {
						wantCode(t, "a new stream", err, CodeUnavailable)
					}
					return err != nil
				})
				for range 3 {
					must(t, s.Send("during"))
					if err := s.Recv(&text); err != nil || text != "during" {
						t.Fatalf("%q, %v", text, err)
					}
				}
				select {
				case err := <-down:
					t.Fatalf("Shutdown does not wait for the handler: %v", err)
				default:
				}
				must(t, s.SendAndClose("last"))
				if err := s.Recv(&text); err != nil || text != "last" {
					t.Errorf("%q, %v", text, err)
				}
				if err := s.Recv(&text); err != io.EOF {
					t.Errorf("the end: %v", err)
				}
				if err := recv(t, down, "end of Shutdown"); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
			})
		})
	}
}

// Flow control.

// A stream that nobody receives holds its window, and nothing else waits for it.
func TestStreamUnread(t *testing.T) {
	const window = 64 << 10
	onStreams(t, streamSetup{limits: Limits{StreamWindow: window}}, func(t *testing.T, e *streamEnds) {
		start := make(chan struct{})
		got := make(chan int, 1)
		e.handle("/s", func(s *Stream) error {
			<-start
			n := 0
			for b, err := range s.All() {
				if err != nil {
					return err
				}
				if number(b) != n {
					t.Errorf("message %d instead of %d", number(b), n)
				}
				n++
			}
			got <- n
			return nil
		})
		s, n := streamFilled(t, e, "/s")
		eventually(t, "all has arrived", func() bool { q, _ := queuedAt(e.far); return q == window })
		blocked := make(chan error, 1)
		go func() { blocked <- s.Send(numberedKiB(n)) }()
		for range 20 {
			e.works(t)
		}
		select {
		case err := <-blocked:
			t.Fatalf("Send beyond the window: %v", err)
		default:
		}
		if q, _ := queuedAt(e.far); q != window {
			t.Errorf("%d bytes wait, the window is %d", q, window)
		}
		close(start)
		must(t, recv(t, blocked, "end of Send"))
		for i := range 300 { // many windows more
			must(t, s.Send(numberedKiB(n+1+i)))
		}
		must(t, s.CloseSend())
		if g := recv(t, got, "all messages"); g != n+301 {
			t.Errorf("%d messages of %d", g, n+301)
		}
		e.settled(t)
	})
}

// Messages that are small, or empty, cost memory too: what an unread stream holds is bounded for them as well.
func TestStreamUnreadSmall(t *testing.T) {
	const window = 64 << 10
	for _, size := range []int{0, 1} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			onStreams(t, streamSetup{limits: Limits{StreamWindow: window}}, func(t *testing.T, e *streamEnds) {
				release := make(chan struct{})
				e.handle("/s", func(s *Stream) error { <-release; return nil })
				defer close(release)
				s := e.open(t, "/s")
				n := 0
				for refused := false; n < 20_000 && !refused; {
					ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
					for range 1000 {
						if refused = s.SendWith(ctx, make([]byte, size)) != nil; refused {
							break
						}
						n++
					}
					cancel()
				}
				e.works(t) // all of it has arrived
				held := 0
				e.far.streamsOf(func(ls *linkStreams) {
					for _, s := range ls.theirs {
						seen := map[*buf.Buf]bool{}
						for _, c := range s.in {
							if !seen[c.b] {
								held += cap(c.b.B)
							}
							seen[c.b] = true
						}
					}
				})
				if held > 4*window {
					t.Errorf("%d KiB are held by %d messages, the window is %d KiB", held>>10, n, window>>10)
				}
				s.Reset(nil)
			})
		})
	}
}

// The streams of a connection share a window; who waits for it goes on when one of them is received from.
func TestStreamConnectionWindow(t *testing.T) {
	const window, all = 32 << 10, 80 << 10
	onStreams(t, streamSetup{limits: Limits{StreamWindow: window, StreamWindows: all}}, func(t *testing.T, e *streamEnds) {
		start := [4]chan struct{}{}
		var at atomic.Int32
		e.handle("/s", func(s *Stream) error {
			i := at.Add(1) - 1
			<-start[i]
			for range s.All() {
			}
			return nil
		})
		for i := range start {
			start[i] = make(chan struct{})
		}
		var streams []*Stream
		total := 0
		for i := range 3 {
			s, n := streamFilled(t, e, "/s")
			eventually(t, "the handler runs", func() bool { return int(at.Load()) == i+1 })
			streams = append(streams, s)
			total += n << 10
		}
		if total != all {
			t.Errorf("%d bytes of %d accepted", total, all)
		}
		s := e.open(t, "/s")
		blocked := make(chan error, 1)
		go func() { blocked <- s.Send(make([]byte, 8<<10)) }()
		eventually(t, "it waits for the shared window", func() (taken bool) {
			e.near.streamsOf(func(ls *linkStreams) { taken = ls.taken })
			return taken
		})
		wantCode(t, "a call meanwhile", e.near.CallWith(patient(t), "/none", nil, nil), CodeUnimplemented)
		close(start[0])
		close(start[1])
		must(t, recv(t, blocked, "end of Send"))
		close(start[2])
		close(start[3])
		for _, s := range append(streams, s) {
			must(t, s.CloseSend())
			recv(t, s.Context().Done(), "end of the stream")
		}
		e.settled(t)
	})
}

// What a stream leaves behind that ends before all of it was received does not cost the connection anything.
func TestStreamCreditComesBack(t *testing.T) {
	const window = 16 << 10
	onStreams(t, streamSetup{limits: Limits{StreamWindow: window, StreamWindows: 2 * window}}, func(t *testing.T, e *streamEnds) {
		e.handle("/unread", func(s *Stream) error { return nil })
		e.handle("/reset", func(s *Stream) error {
			s.Send(make([]byte, 10<<10)) //nolint:errcheck // the opener may be quicker
			s.Reset(CodeAborted)
			return nil
		})
		e.handle("/ends", func(s *Stream) error {
			s.Send(make([]byte, 10<<10)) //nolint:errcheck // the opener may be quicker
			return nil
		})
		e.handle("/part", func(s *Stream) error {
			s.Send(make([]byte, 100<<10)) //nolint:errcheck // the opener is quicker
			return nil
		})
		for _, method := range []string{"/unread", "/reset", "/ends", "/part", "/nothing"} {
			for _, end := range []string{"Reset", "CloseRecv", "cancel"} {
				t.Run(method+" "+end, func(t *testing.T) {
					for range 10 {
						ctx, cancel := context.WithCancel(context.Background())
						s, err := e.near.OpenStream(ctx, method)
						must(t, err)
						short, stop := context.WithTimeout(context.Background(), 3*time.Second)
						s.SendWith(short, make([]byte, 10<<10)) //nolint:errcheck // the stream may be over already
						stop()
						if method == "/part" {
							eventually(t, "a part has arrived", func() bool { _, n := queuedAt(e.near); return n > 0 })
						} else {
							select { // only after the end the opener says that it has enough
							case <-s.Context().Done():
							case <-time.After(3 * time.Second):
								t.Error("the connection takes no more")
							}
						}
						switch end {
						case "Reset":
							s.Reset(nil)
						case "CloseRecv":
							must(t, s.CloseRecv())
							s.Reset(nil)
						case "cancel":
							cancel()
						}
						cancel()
						if t.Failed() {
							break
						}
					}
					e.settled(t)
				})
				if t.Failed() {
					return // nothing could be sent any more
				}
			}
		}
		e.works(t)
	})
}

// Two ends that only send wait, within bounds, and can be told to stop.
func TestStreamBothOnlySend(t *testing.T) {
	const window, all, streams = 32 << 10, 96 << 10, 6
	onStreams(t, streamSetup{limits: Limits{StreamWindow: window, StreamWindows: all}}, func(t *testing.T, e *streamEnds) {
		ctx, cancel := context.WithCancel(context.Background())
		only := func(s *Stream) error {
			for {
				if err := s.SendWith(ctx, make([]byte, 3<<10)); err != nil {
					return err
				}
			}
		}
		var begun atomic.Int32
		farEnds := e.handle("/s", func(s *Stream) error { begun.Add(1); return only(s) })
		nearEnds := make(chan error, streams)
		for range streams {
			s, err := e.near.OpenStream(context.Background(), "/s")
			must(t, err)
			go func() {
				nearEnds <- only(s)
				s.Reset(nil)
			}()
		}
		full := func(c *Client) bool { n, _ := queuedAt(c); return n > all-3<<10-1 }
		eventually(t, "both windows are full", func() bool { return full(e.near) && full(e.far) })
		for _, c := range []*Client{e.near, e.far} {
			if n, _ := queuedAt(c); n > all {
				t.Errorf("%d bytes wait, the window is %d", n, all)
			}
		}
		e.far.Handler.Handle("/echo", echo)
		var r string
		if err := e.near.CallWith(patient(t), "/echo", "x", &r); err != nil || r != "x" {
			t.Errorf("a call meanwhile: %q, %v", r, err)
		}
		cancel()
		for range streams {
			wantCode(t, "a sender's end", recv(t, nearEnds, "end of a sender"), CodeCanceled)
		}
		for range begun.Load() { // those of whose streams the peer has heard before its window was full
			wantCode(t, "a sender's end", recv(t, farEnds, "end of a sender"), CodeCanceled)
		}
		eventually(t, "no stream is left", func() bool {
			n := 0
			for _, c := range []*Client{e.near, e.far} {
				c.streamsOf(func(ls *linkStreams) { n += len(ls.ours) + len(ls.theirs) })
			}
			return n == 0
		})
		e.works(t)
	})
}

// Many streams share a connection fairly: from when all of them send to when the first has sent a number of messages more, the last
// has sent at least half of that. What the first may send before there are others is bounded by the queues, and does not count.
func TestStreamFairness(t *testing.T) {
	const streams, messages, size = 1000, 20, 4 << 10
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		e := streamSetup{}.connect(t, adapter, false, false)
		var counts [streams]atomic.Int32
		var base, snapshot [streams]int32
		var sending atomic.Int32
		var all atomic.Bool // all of them send, base is set
		var once sync.Once
		first := make(chan struct{})
		e.handle("/s", func(s *Stream) error {
			var b []byte
			if err := s.Recv(&b); err != nil {
				return err
			}
			me := number(b)
			for s.Recv(&b) == nil {
				n := counts[me].Add(1)
				if n == 1 && sending.Add(1) == streams {
					for i := range counts {
						base[i] = counts[i].Load()
					}
					all.Store(true)
				}
				if all.Load() && n-base[me] >= messages {
					once.Do(func() {
						for i := range counts {
							snapshot[i] = counts[i].Load() - base[i]
						}
						close(first)
					})
				}
			}
			return nil
		})
		var wg sync.WaitGroup
		for i := range streams {
			s, err := e.near.OpenStream(context.Background(), "/s")
			must(t, err)
			wg.Go(func() {
				err := s.Send(numbered(i))
				for msg := make([]byte, size); err == nil; err = s.Send(msg) {
					select {
					case <-first:
						if err = s.CloseSend(); err != nil {
							t.Errorf("CloseSend: %v", err)
						}
						return
					default:
					}
				}
				t.Errorf("Send: %v", err)
			})
		}
		recv(t, first, "end of the first")
		slowest := slices.Min(snapshot[:])
		t.Logf("slowest %d of %d", slowest, messages)
		if slowest < messages/2 {
			t.Errorf("while the first of %d streams has sent %d messages, another has sent %d", streams, messages, slowest)
		}
		waitGroup(t, &wg, "end of all streams")
		e.settled(t)
	})
}

// residentMemory returns the bytes that the process has in memory, or where the system does not tell what Go has.
func residentMemory() int {
	debug.FreeOSMemory()
	return residentNow()
}

func residentNow() int {
	var size, resident int
	b, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(b), &size, &resident)
	}
	if err != nil {
		return int(heapLive())
	}
	return resident * os.Getpagesize()
}

// A large transfer needs no more memory than its window.
func TestStreamTransferMemory(t *testing.T) {
	total := 1 << 30
	if underRace {
		total = 64 << 20
	}
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		e := streamSetup{}.connect(t, adapter, false, false)
		var most atomic.Int64
		ended := e.handle("/s", func(s *Stream) error {
			n := 0
			var b []byte
			for {
				err := s.Recv(&b)
				if err == io.EOF {
					break
				}
				if err != nil {
					return err
				}
				if len(b) < 8 || int(binary.LittleEndian.Uint64(b)) != n {
					t.Errorf("bytes from %d on are wrong", n)
					return nil
				}
				if n += len(b); n%(8<<20) == 0 {
					most.Store(max(most.Load(), int64(residentNow())))
				}
			}
			return s.SendAndClose(n)
		})
		before := residentMemory()
		s := e.open(t, "/s")
		msg := make([]byte, 64<<10)
		for n := 0; n < total; n += len(msg) {
			binary.LittleEndian.PutUint64(msg, uint64(n))
			must(t, s.Send(msg))
		}
		must(t, s.CloseSend())
		var n int
		if err := s.Recv(&n); err != nil || n != total {
			t.Errorf("%d bytes of %d received, %v", n, total, err)
		}
		if err := recv(t, ended, "handler"); err != io.EOF {
			t.Error(err)
		}
		grown := int(most.Load()) - before
		t.Logf("grown by %.1f MiB", float64(grown)/(1<<20))
		if limit := 32 << 20; grown > limit && !underRace { // the detector's own memory grows
			t.Errorf("%d MiB of transfer have made the process grow by %d MiB", total>>20, grown>>20)
		}
	})
}

// Peers of version 2 that speak bytes.

// streamHello sends a HELLO and reads the answer.
func streamHello(t testing.TB, p *rawPeer, change func(*hello)) hello {
	t.Helper()
	h := hello{version: 2, features: ourFeatures, maxBody: 1 << 20, metadata: 1 << 10, window: 64 << 10, connWindow: 1 << 20, streams: 100}
	if change != nil {
		change(&h)
	}
	p.send(helloFrame(CmdPing, h))
	m := p.frame()
	if m.Cmd() != CmdPong {
		t.Fatalf("HELLO was answered by %x", m.Buffer)
	}
	answer, err := parseHello(m.Buffer[HeadLen:])
	must(t, err)
	return answer
}

// onRawStreams runs a test with each kind of live end against a peer of version 2 that speaks bytes.
func onRawStreams(t *testing.T, limits Limits, change func(*hello), f func(t *testing.T, c *Client, p *rawPeer)) {
	t.Run("client", func(t *testing.T) {
		ln := listenRaw(t)
		peers := make(chan *rawPeer, 1)
		go func() {
			p := ln.accept()
			h := hello{version: 2, features: ourFeatures, maxBody: 1 << 20, metadata: 1 << 10, window: 64 << 10, connWindow: 1 << 20, streams: 100}
			if change != nil {
				change(&h)
			}
			if m := p.frame(); m.Cmd() != CmdPing || !isHello(m.Buffer[HeadLen:]) {
				t.Errorf("%x instead of a HELLO", m.Buffer)
			}
			p.send(helloFrame(CmdPong, h))
			peers <- p
		}()
		c := dialClient(t, ln.addr(), limits, Backoff(time.Hour, time.Hour))
		f(t, c, recv(t, peers, "peer"))
	})
	t.Run("server", func(t *testing.T) {
		onAdapters(t, func(t *testing.T, adapter ServerOption) {
			s := startServer(t, adapter, limits)
			p := dialRaw(t, s.addr)
			streamHello(t, p, change)
			f(t, s.waitClients(t, 1)[0], p)
		})
	})
}

// untilPong sends a ping and returns the frames that come before its pong: what was sent before has been handled.
func (p *rawPeer) untilPong() (frames []*Message) {
	p.t.Helper()
	p.send(pingFrame)
	for {
		m := p.frame()
		if m.Cmd() == CmdPong {
			return frames
		}
		frames = append(frames, m)
	}
}

// wantReset checks that a frame is the reset of a stream.
func wantReset(t testing.TB, m *Message, id uint64, code Code) {
	t.Helper()
	if m.Buffer[indexCmd]&cmdMask != cmdReset || m.Seq() != id || m.Buffer[indexFlag] != flagError|flagCoded || m.MethodLen() != 0 {
		t.Errorf("%x instead of a reset of stream %d", m.Buffer, id)
		return
	}
	if e := decodeError(m.Buffer[HeadLen:], nil); e.Code != code {
		t.Errorf("the reset of stream %d says %v (%v), want %v", id, e, e.Code, code)
	}
}

func credit(bits byte, id uint64, n uint32) []byte {
	return frameOf(cmdCredit|bits, 0, id, "", string(binary.LittleEndian.AppendUint32(nil, n)))
}

// The frames of a stream, byte by byte.
func TestStreamGolden(t *testing.T) {
	onRawStreams(t, Limits{StreamWindow: 4 << 10, StreamWindows: 4 << 10}, nil, func(t *testing.T, c *Client, p *rawPeer) {
		s, err := c.OpenStream(WithMetadata(context.Background(), Metadata{"k": "vw"}), "/s")
		must(t, err)
		must(t, s.Send("a"))
		p.wants("open with metadata", "0b000000008624020"+"200000000000000"+"2f73"+"0600"+"016b02007677"+"61")
		must(t, s.Send("b"))
		p.wants("message", "030000000086000202000000000000002f7362")
		must(t, s.Send(""))
		p.wants("empty message", "020000000086000202000000000000002f73")
		must(t, s.CloseSend())
		p.wants("end", "0200000000c6800202000000000000002f73")
		p.send(unhex("030000000006000202000000000000002f7378"), unhex("020000000006000202000000000000002f73"), unhex("030000000046000202000000000000002f7379"))
		var b []byte
		for _, want := range []string{"x", "", "y"} {
			if err := s.Recv(&b); err != nil || string(b) != want {
				t.Errorf("%q, %v", b, err)
			}
		}
		if err := s.Recv(&b); err != io.EOF {
			t.Errorf("%v", err)
		}

		s = c.NewStream("/s")
		reading := make(chan error, 1)
		go func() { reading <- s.Recv(&b) }()
		p.wants("open without a message", "020000000086a00203000000000000002f73")
		p.send(unhex("030000000006400203000000000000002f7361"), unhex("030000000006000203000000000000002f7362"))
		if err := recv(t, reading, "message"); err != nil || string(b) != "ab" {
			t.Errorf("%q, %v", b, err)
		}
		must(t, s.Send(bytes.Repeat([]byte("c"), 20<<10))) // 16 KiB are a quarter of the window
		if m := p.frame(); m.Buffer[indexFlag] != flagMore || len(m.Data()) != 16<<10 {
			t.Errorf("the first part: %x", m.Buffer[:20])
		}
		if m := p.frame(); m.Buffer[indexFlag] != 0 || len(m.Data()) != 4<<10 {
			t.Errorf("the second part: %x", m.Buffer[:20])
		}
		s.Reset(&Error{Code: CodeAborted, Message: "no"})
		p.wants("reset", "0800000000891100"+"0300000000000000"+"0a00"+"02000000"+"6e6f")

		far := make(chan *Stream, 1)
		release := make(chan struct{})
		c.Handler.HandleStream("/h", func(s *Stream) { far <- s; <-release })
		p.send(unhex("0f0000000086ac0211000000000000002f68" + "60ea0000" + "0700" + "016b0300000102"))
		f := recv(t, far, "stream")
		deadline, ok := f.Context().Deadline()
		if left := time.Until(deadline); f.ID() != 17 || f.Metadata()["k"] != "\x00\x01\x02" || !ok || left > time.Minute || left < 30*time.Second {
			t.Errorf("stream %d, %v, %v left", f.ID(), f.Metadata(), left)
		}
		must(t, f.SetMetadata("k", ""))
		must(t, f.Send("z"))
		p.wants("answer with metadata", "0900000000060402"+"1100000000000000"+"2f68"+"0400"+"016b0000"+"7a")
		p.send(frameOf(CmdStream|streamLocal, 0, 17, "/h", strings.Repeat("d", 3<<10)))
		must(t, f.Recv(&b))
		p.wants("credit of the stream", "0400000000080000"+"1100000000000000"+"000c0000")
		p.wants("credit of all", "0400000000080000"+"0000000000000000"+"040c0000") // and what came on stream 3 and 2
		p.send(unhex("0800000000891100" + "1100000000000000" + "0a00" + "02000000" + "6e6f"))
		recv(t, f.Context().Done(), "end of the context")
		var e *Error
		if err := f.Send("x"); !errors.As(err, &e) || e.Code != CodeAborted || e.Message != "no" || !e.Remote {
			t.Errorf("%#v", err)
		}
		close(release)
	})
}

// What a peer may not do with streams, and what that costs it.
func TestStreamHostile(t *testing.T) {
	const window = 8 << 10
	open := func(id uint64, flag byte, payload string) []byte {
		return frameOf(CmdStream|streamLocal, flagOpen|flag, id, "/hold", payload)
	}
	data := func(id uint64, bits, flag byte, payload string) []byte {
		return frameOf(CmdStream|streamLocal|bits, flag, id, "/hold", payload)
	}
	reset := frameOf(cmdReset|streamLocal, flagError|flagCoded, 3, "", string(appendError(nil, CodeAborted, nil)))
	for _, tt := range []struct {
		name   string
		frames [][]byte
		closes bool
		resets map[uint64]Code
	}{
		{"exactly the window", [][]byte{open(3, 0, strings.Repeat("x", window))}, false, nil},
		{"more than the window at once", [][]byte{open(3, 0, strings.Repeat("x", window+1))}, false, map[uint64]Code{3: CodeResourceExhausted}},
		{"more than the window", [][]byte{open(3, 0, strings.Repeat("x", window)), open(5, 0, ""), data(3, 0, 0, "x"), data(3, 0, 0, "ignored")},
			false, map[uint64]Code{3: CodeResourceExhausted}},
		{"overflow of a stream's credit", [][]byte{open(3, 0, ""), credit(streamLocal, 3, 1<<31-1)}, true, nil},
		{"overflow of the credit in small steps", [][]byte{credit(0, 0, 1<<30), credit(0, 0, 1<<30)}, true, nil},
		{"overflow of the connection's credit", [][]byte{credit(0, 0, 1<<32-1)}, true, nil},
		{"no credit", [][]byte{open(3, 0, ""), credit(streamLocal, 3, 0), credit(0, 0, 0)}, false, nil},
		{"credit of unknown streams", [][]byte{credit(streamLocal, 99, 1<<32-1), credit(0, 99, 1<<32-1)}, false, nil},
		{"reset of unknown streams", [][]byte{reset, frameOf(cmdReset, flagError|flagCoded, 99, "", "")}, false, nil},
		{"credit of 3 bytes", [][]byte{frameOf(cmdCredit, 0, 0, "", "abc")}, true, nil},
		{"credit of 5 bytes", [][]byte{frameOf(cmdCredit|streamLocal, 0, 3, "", "abcde")}, true, nil},
		{"credit with a method", [][]byte{frameOf(cmdCredit, 0, 0, "/hold", "")}, true, nil},
		{"reset with a method", [][]byte{open(3, 0, ""), frameOf(cmdReset|streamLocal, 1, 3, "/hold", "")}, true, nil},
		{"reset with a malformed error", [][]byte{open(3, 0, ""), frameOf(cmdReset|streamLocal, flagError|flagCoded, 3, "", "\x05\xff\xff\xff\xff\xff")}, false, nil},
		{"data of unknown streams", [][]byte{data(99, 0, 0, "x"), frameOf(CmdStream, 0, 99, "/hold", "x"), data(99, streamEOF, flagNoData, "")}, false, nil},
		{"open by our bit", [][]byte{frameOf(CmdStream, flagOpen, 99, "/hold", "x")}, false, nil},
		{"a second open", [][]byte{open(3, 0, "x"), open(3, 0, "y")}, true, nil},
		{"data after the end", [][]byte{open(3, 0, "x"), data(3, streamEOF, flagNoData, ""), data(3, 0, 0, "x")}, true, nil},
		{"a second end", [][]byte{open(3, 0, "x"), data(3, streamEOF, flagNoData, ""), data(3, streamEOF, flagNoData, "")}, true, nil},
		{"more and end", [][]byte{open(3, 0, "x"), data(3, streamEOF, flagMore, "x")}, true, nil},
		{"no data, but data", [][]byte{open(3, flagNoData, "x")}, true, nil},
		{"end within a message", [][]byte{open(3, flagMore, "x"), data(3, streamEOF, flagNoData, "")}, false, nil},
		{"metadata that is none", [][]byte{open(3, flagMetadata, "\x05\x00abcde")}, true, nil},
		{"metadata beyond the frame", [][]byte{open(3, flagMetadata, "\x05\x00a")}, true, nil},
		{"a deadline of 3 bytes", [][]byte{open(3, flagDeadline, "abc")}, true, nil},
		{"unknown method", [][]byte{frameOf(CmdStream|streamLocal, flagOpen, 3, "/nothing", "x")}, false, map[uint64]Code{3: CodeUnimplemented}},
		{"no method", [][]byte{frameOf(CmdStream|streamLocal, flagOpen, 3, "", "x")}, false, nil},
		{"too many", [][]byte{open(3, 0, ""), open(5, 0, ""), open(7, 0, ""), open(9, 0, "x")}, false, map[uint64]Code{9: CodeResourceExhausted}},
		{"reset, then data", [][]byte{open(3, 0, ""), reset, data(3, 0, 0, "x")}, false, nil},
		{"deadline of 0", [][]byte{open(3, flagDeadline|flagNoData, "\x00\x00\x00\x00")}, false, map[uint64]Code{3: CodeDeadlineExceeded}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onRawStreams(t, Limits{StreamWindow: window, Streams: 3}, nil, func(t *testing.T, c *Client, p *rawPeer) {
				release := make(chan struct{})
				defer close(release)
				c.Handler.Handle("/echo", echo)
				c.Handler.HandleStream("/hold", func(s *Stream) {
					select {
					case <-release:
					case <-s.Context().Done():
					}
				})
				p.send(tt.frames...)
				if tt.closes {
					m, err := readFrame(p.Conn)
					for ; err == nil; m, err = readFrame(p.Conn) { // the reason may be told
						if m.Buffer[indexCmd] != cmdGoAway {
							t.Errorf("answered by %x", m.Buffer)
						}
					}
					if errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error("the connection stays open")
					}
					return
				}
				got := map[uint64]bool{}
				for len(got) < len(tt.resets) {
					m := p.frame()
					if m.Buffer[indexCmd]&cmdMask == cmdCredit {
						continue
					}
					wantReset(t, m, m.Seq(), tt.resets[m.Seq()])
					got[m.Seq()] = true
				}
				for _, m := range p.untilPong() {
					if m.Buffer[indexCmd]&cmdMask != cmdCredit {
						t.Errorf("answered by %x", m.Buffer)
					}
				}
				p.answers()
			})
		})
	}
}

// A peer that ignores the window of the connection is stopped before it costs more than that.
func TestStreamHostileConnectionWindow(t *testing.T) {
	const window, all = 8 << 10, 16 << 10
	onRawStreams(t, Limits{StreamWindow: window, StreamWindows: all}, nil, func(t *testing.T, c *Client, p *rawPeer) {
		release := make(chan struct{})
		defer close(release)
		c.Handler.HandleStream("/hold", func(s *Stream) {
			select {
			case <-release:
			case <-s.Context().Done():
			}
		})
		for id := range uint64(10) {
			p.Conn.Write(frameOf(CmdStream|streamLocal, flagOpen, 3+id, "/hold", strings.Repeat("x", window))) //nolint:errcheck // may be closed
		}
		p.Conn.Write(pingFrame) //nolint:errcheck // as above
		for {
			if m, err := readFrame(p.Conn); err != nil || m.Cmd() == CmdPong {
				break
			}
		}
		if n, _ := queuedAt(c); n > all {
			t.Errorf("%d KiB wait to be received, the window of the connection is %d KiB", n>>10, all>>10)
		}
	})
}

// The credit of what is dropped comes back.
func TestStreamHostileCredit(t *testing.T) {
	const window = 8 << 10
	onRawStreams(t, Limits{StreamWindow: window, StreamWindows: window}, nil, func(t *testing.T, c *Client, p *rawPeer) {
		big := strings.Repeat("x", 2<<10)
		sent := 0
		for _, f := range [][]byte{
			frameOf(CmdStream|streamLocal, 0, 99, "/s", big),
			frameOf(CmdStream, 0, 99, "/s", big),
			frameOf(CmdStream|streamLocal, flagOpen, 3, "/nothing", big),
			frameOf(CmdStream|streamLocal, 0, 3, "/nothing", big),
		} {
			p.send(f)
			sent += len(big)
		}
		back := 0
		for _, m := range p.untilPong() {
			if m.Buffer[indexCmd] == cmdCredit && m.Seq() == 0 {
				back += int(binary.LittleEndian.Uint32(m.Buffer[HeadLen:]))
			}
		}
		if back != sent {
			t.Errorf("%d bytes of credit for %d", back, sent)
		}
	})
}

// An end that accepts may open a stream before it knows that its peer speaks version 2.
func TestStreamBeforeHello(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		p := dialRaw(t, s.addr)
		c := s.waitClients(t, 1)[0]
		old := c.NewStream("/s")
		must(t, old.Send("a"))
		p.wants("message", "030000000086000202000000000000002f7361")
		streamHello(t, p, nil)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := old.SendWith(ctx, "b"); err != nil {
			t.Errorf("the stream from before: %v", err)
		} else if m := p.frame(); string(m.Data()) != "b" {
			t.Errorf("%x", m.Buffer)
		}
		later := c.NewStream("/s")
		if err := later.SendWith(ctx, "c"); err != nil {
			t.Errorf("a stream from after: %v", err)
		} else if m := p.frame(); string(m.Data()) != "c" || m.Buffer[indexFlag] != flagOpen {
			t.Errorf("%x", m.Buffer)
		}
	})
}

// Recv of a stream whose first message another goroutine is about to send does not mind that it is the last.
func TestStreamRecvBesideSendAndClose(t *testing.T) {
	const window = 4 << 10
	onStreams(t, streamSetup{limits: Limits{StreamWindow: window, StreamWindows: window}}, func(t *testing.T, e *streamEnds) {
		release := make(chan struct{})
		e.handle("/hold", func(s *Stream) error {
			<-release
			for range s.All() {
			}
			return nil
		})
		e.handle("/echo", func(s *Stream) error { streamEcho(s); return nil })
		hold, _ := streamFilled(t, e, "/hold")
		s := e.open(t, "/echo")
		sent, got := make(chan error, 1), make(chan error, 1)
		go func() { sent <- s.SendAndClose("x") }()
		eventually(t, "the sender waits", func() (taken bool) {
			e.near.streamsOf(func(ls *linkStreams) { taken = ls.taken })
			return taken
		})
		go func() {
			var text string
			err := s.Recv(&text)
			if err == nil && text != "x" {
				err = errors.New(text)
			}
			got <- err
		}()
		eventually(t, "somebody receives", func() bool { return len(s.receiving) > 0 })
		close(release)
		must(t, recv(t, sent, "end of SendAndClose"))
		if err := recv(t, got, "end of Recv"); err != nil {
			t.Errorf("Recv: %v", err)
		}
		must(t, hold.CloseSend())
		recv(t, hold.Context().Done(), "end of the stream")
	})
}

// Version 1.

// The recorded frames of section 13 of docs/protocol.md, with a live end that handles the stream, and with one that opens it.
func TestStreamV1Golden(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		done := make(chan error, 1)
		c.Handler.HandleStream("/s", func(s *Stream) {
			done <- func() error {
				var text string
				if err := s.Recv(&text); err != nil || text != "a" || s.ID() != 17 || s.Metadata() != nil {
					return fmt.Errorf("%q, %v", text, err)
				}
				must(t, s.SetMetadata("k", "v")) // is left out
				if err := s.Send("ra"); err != nil {
					return err
				}
				if err := s.Recv(&text); err != nil || text != "z" {
					return fmt.Errorf("%q, %v", text, err)
				}
				if err := s.Recv(&text); err != io.EOF {
					return fmt.Errorf("the end: %v", err)
				}
				wantCode(t, "an empty message", s.Send(""), CodeInvalidArgument)
				return s.CloseSend()
			}()
		})
		for range 2 { // both directions have ended: the number is free again
			p.send(unhex("030000000086000211000000000000002f7361"))
			p.wants("message", "040000000006000211000000000000002f737261")
			p.send(unhex("0300000000c6000211000000000000002f737a"))
			p.wants("end", "020000000046000211000000000000002f73")
			must(t, recv(t, done, "handler"))
		}

		c.link.Load().cn.Lock()
		c.link.Load().seq = 16
		c.link.Load().cn.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		s, err := c.OpenStream(WithMetadata(ctx, Metadata{"k": "v"}), "/s") // neither deadline nor metadata are sent
		must(t, err)
		must(t, s.Send("a"))
		p.wants("message", "030000000086000211000000000000002f7361")
		p.send(unhex("040000000006000211000000000000002f737261"))
		var text string
		if err := s.Recv(&text); err != nil || text != "ra" {
			t.Errorf("%q, %v", text, err)
		}
		wantCode(t, "an empty message", s.Send(""), CodeInvalidArgument)
		wantCode(t, "an empty message", s.Send(nil), CodeInvalidArgument)
		must(t, s.SendAndClose("z"))
		p.wants("last message", "0300000000c6000211000000000000002f737a")
		wantCode(t, "Send after the last", s.Send("x"), CodeFailedPrecondition)
		must(t, s.CloseSend())
		p.send(unhex("020000000046000211000000000000002f73"))
		if err := s.Recv(&text); err != io.EOF {
			t.Errorf("%v", err)
		}
		recv(t, s.Context().Done(), "end of the context")
		s.Reset(nil)
		if frames := p.untilPong(); len(frames) > 0 { // no frame after the last
			t.Errorf("%x", frames[0].Buffer)
		}
		c.streamsOf(func(ls *linkStreams) {
			if len(ls.ours)+len(ls.theirs) > 0 {
				t.Errorf("%d and %d streams are left", len(ls.ours), len(ls.theirs))
			}
		})
	})
}

// Frames of version 1 that belong to no stream, or to none that takes them, are ignored.
func TestStreamV1Ignored(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		c.Handler.Handle("/echo", echo)
		got := make(chan string, 10)
		c.Handler.HandleStream("/s", func(s *Stream) {
			for b, err := range s.All() {
				if err == nil {
					got <- string(b)
				}
			}
			got <- "end"
		})
		p.send(
			frameOf(CmdStream, 0, 9, "/s", "of a stream that we have not opened"),
			frameOf(CmdStream|streamLocal, 0, 9, "/nothing", "x"),
			frameOf(CmdStream|streamLocal|streamEOF, 0, 9, "/nothing", ""),
			frameOf(CmdStream|streamLocal, 0xfc, 11, "/s", "flags have no meaning"),
			frameOf(CmdStream|streamLocal, 0, 11, "/s", ""), // is no message
			frameOf(CmdStream|streamLocal|streamEOF, flagMore, 11, "/s", "last"),
		)
		for _, want := range []string{"flags have no meaning", "last", "end"} {
			if text := recv(t, got, "message"); text != want {
				t.Errorf("%q instead of %q", text, want)
			}
		}
		p.wants("the handler's end", hexOf(frameOf(CmdStream|streamEOF, 0, 11, "/s", "")))
		p.answers()
	})
}

func hexOf(b []byte) string { return fmt.Sprintf("%x", b) }

// A stream whose messages are not received is reset beyond its bound, and only that one.
func TestStreamV1Unread(t *testing.T) {
	for _, tt := range []struct {
		name     string
		size, ok int
	}{{"bytes", 1 << 20, maxUnreadV1 >> 20}, {"messages", 1, maxMessagesV1}} {
		t.Run(tt.name, func(t *testing.T) {
			ends(t, func(t *testing.T, c *Client, p *rawPeer) {
				c.Handler.Handle("/echo", echo)
				held, release := make(chan *Stream, 1), make(chan struct{})
				c.Handler.HandleStream("/hold", func(s *Stream) { held <- s; <-release })
				c.Handler.HandleStream("/good", streamEcho)
				msg := strings.Repeat("x", tt.size)
				p.send(frameOf(CmdStream|streamLocal, 0, 5, "/good", "a"))
				p.wants("echo", hexOf(frameOf(CmdStream, 0, 5, "/good", "a")))
				frame := frameOf(CmdStream|streamLocal, 0, 3, "/hold", msg)
				for n := tt.ok; n > 0; n -= min(n, 1024) {
					p.send(bytes.Repeat(frame, min(n, 1024)))
				}
				s := recv(t, held, "stream")
				if frames := p.untilPong(); len(frames) > 0 {
					t.Errorf("%x", frames[0].Buffer)
				}
				if n, chunks := queuedAt(c); n != tt.size*tt.ok || chunks != tt.ok {
					t.Errorf("%d messages of %d bytes wait", chunks, n)
				}
				for range 3 {
					p.send(frameOf(CmdStream|streamLocal, 0, 3, "/hold", msg))
				}
				p.wants("the end of what is not received", hexOf(frameOf(CmdStream|streamEOF, 0, 3, "/hold", "")))
				if n, _ := queuedAt(c); n != 0 {
					t.Errorf("%d bytes wait", n)
				}
				var b []byte
				wantCode(t, "Recv", s.Recv(&b), CodeResourceExhausted)
				wantCode(t, "Send", s.Send("x"), CodeResourceExhausted)
				p.send(frameOf(CmdStream|streamLocal, 0, 5, "/good", "b"))
				p.wants("echo", hexOf(frameOf(CmdStream, 0, 5, "/good", "b")))
				p.send(frameOf(CmdStream|streamLocal|streamEOF, 0, 3, "/hold", ""), frameOf(CmdStream|streamLocal|streamEOF, 0, 5, "/good", ""))
				p.wants("the other's end", hexOf(frameOf(CmdStream|streamEOF, 0, 5, "/good", "")))
				close(release)
				if frames := p.untilPong(); len(frames) > 0 {
					t.Errorf("%x", frames[0].Buffer)
				}
				eventually(t, "no stream is left", func() (none bool) {
					c.streamsOf(func(ls *linkStreams) { none = len(ls.ours)+len(ls.theirs) == 0 })
					return none
				})
				p.answers()
			})
		})
	}
}

// With version 1 a failed stream ends in order for the peer, and what it still sends is dropped.
func TestStreamV1Reset(t *testing.T) {
	ends(t, func(t *testing.T, c *Client, p *rawPeer) {
		ended := make(chan error, 1)
		c.Handler.HandleStream("/s", func(s *Stream) {
			var b []byte
			s.Recv(&b) //nolint:errcheck // the message that opened it
			s.Reset(CodeAborted)
			ended <- s.Recv(&b)
		})
		p.send(frameOf(CmdStream|streamLocal, 0, 3, "/s", "a"))
		p.wants("end", hexOf(frameOf(CmdStream|streamEOF, 0, 3, "/s", "")))
		wantCode(t, "Recv", recv(t, ended, "handler"), CodeAborted)
		p.send(frameOf(CmdStream|streamLocal, 0, 3, "/s", "dropped"), frameOf(CmdStream|streamLocal|streamEOF, 0, 3, "/s", "too"))
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond) // the deadline is ours alone
		defer cancel()
		s, err := c.OpenStream(ctx, "/far")
		must(t, err)
		must(t, s.Send("x"))
		p.wants("message", hexOf(frameOf(CmdStream|streamLocal, 0, s.ID(), "/far", "x")))
		var b []byte
		if err := s.Recv(&b); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		p.wants("end", hexOf(frameOf(CmdStream|streamLocal|streamEOF, 0, s.ID(), "/far", "")))
		p.send(frameOf(CmdStream, 0, s.ID(), "/far", "dropped"), frameOf(CmdStream|streamEOF, 0, s.ID(), "/far", "too"))
		if frames := p.untilPong(); len(frames) > 0 {
			t.Errorf("%x", frames[0].Buffer)
		}
		c.streamsOf(func(ls *linkStreams) {
			if len(ls.ours)+len(ls.theirs) > 0 {
				t.Errorf("%d and %d streams are left", len(ls.ours), len(ls.theirs))
			}
		})
	})
}

// A client that offers version 1 only has streams with our server, in both directions.
func TestStreamV1Client(t *testing.T) {
	onStreams(t, streamSetup{client: []ClientOption{Protocol(1)}}, func(t *testing.T, e *streamEnds) {
		ended := e.handle("/echo", func(s *Stream) error { streamEcho(s); return nil })
		for range 3 {
			s := e.open(t, "/echo")
			for i, n := range []int{1, 5000, 100 << 10, 900 << 10} {
				msg := pattern(n, uint64(i))
				must(t, s.Send(msg))
				var b []byte
				must(t, s.Recv(&b))
				if !bytes.Equal(b, msg) {
					t.Fatalf("%d bytes came back as %d", n, len(b))
				}
			}
			wantCode(t, "an empty message", s.Send([]byte{}), CodeInvalidArgument)
			must(t, s.SendAndClose(nil)) // nothing but the end
			var b []byte
			if err := s.Recv(&b); err != io.EOF {
				t.Errorf("%v", err)
			}
			recv(t, ended, "handler")
		}
		e.handle("/fails", func(s *Stream) error { s.Reset(CodeAborted); return nil })
		s := e.open(t, "/fails")
		must(t, s.Send("x"))
		var b []byte
		if err := s.Recv(&b); err != io.EOF { // version 1 has no way to say more
			t.Errorf("%v", err)
		}
		must(t, s.CloseSend())
		eventually(t, "no stream is left", func() bool {
			n := 0
			for _, c := range []*Client{e.near, e.far} {
				c.streamsOf(func(ls *linkStreams) { n += len(ls.ours) + len(ls.theirs) })
			}
			return n == 0
		})
	})
}

func TestHandleStreamPanics(t *testing.T) {
	h := NewHandler()
	h.HandleStream("/s", func(*Stream) {}, true)
	for name, f := range map[string]func(){
		"registered":  func() { h.HandleStream("/s", func(*Stream) {}) },
		"no method":   func() { h.HandleStream("", func(*Stream) {}) },
		"long method": func() { h.HandleStream(strings.Repeat("m", 128), func(*Stream) {}) },
		"no handler":  func() { h.HandleStream("/t", nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func benchmarkStreamSend(b *testing.B, size int) {
	e := streamSetup{}.connect(b, StdConns(-1), false, false)
	ended := e.handle("/s", func(s *Stream) error {
		var msg []byte
		err := error(nil)
		for err == nil {
			err = s.Recv(&msg)
		}
		return err
	})
	s := e.near.NewStream("/s")
	msg := make([]byte, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		must(b, s.Send(msg))
	}
	must(b, s.CloseSend())
	if err := recv(b, ended, "handler"); err != io.EOF {
		b.Fatal(err)
	}
}

func BenchmarkStreamSend64B(b *testing.B)   { benchmarkStreamSend(b, 64) }
func BenchmarkStreamSend64KiB(b *testing.B) { benchmarkStreamSend(b, 64<<10) }

// BenchmarkTCPCopy64KiB is what BenchmarkStreamSend64KiB is to be compared with.
func BenchmarkTCPCopy64KiB(b *testing.B) {
	ln := listenTCP(b)
	defer ln.Close()
	ended := make(chan error, 1)
	go func() {
		nc, err := ln.Accept()
		if err == nil {
			buf := make([]byte, 64<<10)
			for err == nil {
				_, err = io.ReadFull(nc, buf)
			}
			nc.Close()
		}
		ended <- err
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	must(b, err)
	msg := make([]byte, 64<<10)
	b.SetBytes(int64(len(msg)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		_, err := nc.Write(msg)
		must(b, err)
	}
	nc.Close()
	if err := recv(b, ended, "end of the copy"); err != io.EOF {
		b.Fatal(err)
	}
}
