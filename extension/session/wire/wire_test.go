package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/arpc-go/arpc/extension/session"
	"github.com/arpc-go/arpc/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) (v T) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v = <-ch:
	case <-timer.C:
		t.Fatalf("no %s", what)
	}
	return v
}

type text struct{ A string }

// service has a method of each kind.
type service struct {
	events  chan string
	release chan struct{}
}

func (*service) Service() string                 { return "Test" }
func (*service) Version() string                 { return "v1" }
func (*service) Echo(arg *text, rsp *text) error { *rsp = *arg; return nil }
func (*service) Value(arg text, rsp *text) error { *rsp = arg; return nil }
func (*service) Err(*text, *text) error          { return errors.New("this is a error test") }
func (*service) Panic(*text, *text) error        { panic("test") }
func (*service) Large(n *int, rsp *text) error   { rsp.A = strings.Repeat("x", *n); return nil }
func (s *service) Event(arg *text) error         { s.events <- arg.A; return nil }
func (s *service) Slow(arg *text, rsp *text) error {
	s.events <- arg.A
	<-s.release
	*rsp = *arg
	return nil
}
func (*service) Double(arg *wrapperspb.Int64Value, rsp *wrapperspb.Int64Value) error {
	rsp.Value = 2 * arg.Value
	return nil
}
func (s *service) Note(arg *wrapperspb.StringValue) error { s.events <- arg.Value; return nil }

// These cannot be called.
func (*service) NoError(*text, *text)           {}
func (*service) NoPointer(text, text) error     { return nil }
func (*service) Three(text, *text, *text) error { return nil }
func (*service) Variadic(...text) error         { return nil }
func (*service) TwoResults(*text) (int, error)  { return 0, nil }

// counted counts sessions.
func counted(n *atomic.Int64) session.NewSessionCallback {
	return func(session.Session) error { n.Add(1); return nil }
}

func serve(t testing.TB, cfg ServerConfig) (*Server, *service) {
	t.Helper()
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	s := NewServer(cfg)
	svc := &service{events: make(chan string, 10000), release: make(chan struct{})}
	must(t, s.Register(svc))
	must(t, s.Start())
	t.Cleanup(s.Stop)
	return s, svc
}

func dial(t testing.TB, s *Server, cfg ClientConfig) *Client {
	t.Helper()
	cfg.Addr = s.Addr().String()
	if cfg.Timeout == 0 {
		cfg.Timeout = patience
	}
	c, err := NewClient(cfg)
	must(t, err)
	t.Cleanup(c.Close)
	return c
}

// Q7: calls of all kinds with both codecs.
func TestQ7RPCWithJSONAndProtobuf(t *testing.T) {
	server, svc := serve(t, ServerConfig{})
	c, ctx := dial(t, server, ClientConfig{Connections: 2}), context.Background()
	var rsp text
	must(t, c.Call(ctx, "Test", "Echo", &text{"hi"}, &rsp))
	must(t, c.Call(ctx, "Test", "Value", text{rsp.A + "!"}, &rsp))
	if rsp.A != "hi!" {
		t.Errorf("%q", rsp.A)
	}
	var remote *RemoteError
	if err := c.Call(ctx, "Test", "Err", &text{}, &rsp); !errors.As(err, &remote) || remote.Text != "this is a error test" {
		t.Errorf("Err: %v", err)
	}
	must(t, c.CallOneway(ctx, "Test", "Event", &text{"one-way"}))
	if e := recv(t, svc.events, "event"); e != "one-way" {
		t.Errorf("%q", e)
	}
	must(t, c.Call(ctx, "Test", "Event", &text{"no reply"}, nil))
	if e := recv(t, svc.events, "event"); e != "no reply" {
		t.Errorf("%q", e)
	}
	async := make(chan error, 2)
	var later text
	c.AsyncCall(ctx, "Test", "Echo", &text{"later"}, &later, func(err error) { async <- err })
	if err := recv(t, async, "callback"); err != nil || later.A != "later" {
		t.Errorf("%v, %q", err, later.A)
	}
	c.AsyncCall(ctx, "Test", "Event", &text{"async"}, nil, func(err error) { async <- err })
	must(t, recv(t, async, "callback"))
	recv(t, svc.events, "event")

	p := c.With(Protobuf)
	var sum wrapperspb.Int64Value
	must(t, p.Call(ctx, "Test", "Double", wrapperspb.Int64(21), &sum))
	if sum.Value != 42 {
		t.Errorf("%d", sum.Value)
	}
	must(t, p.CallOneway(ctx, "Test", "Note", wrapperspb.String("note")))
	if e := recv(t, svc.events, "event"); e != "note" {
		t.Errorf("%q", e)
	}
	if err := p.Call(ctx, "Test", "Nothing", wrapperspb.String(""), nil); !errors.As(err, &remote) {
		t.Errorf("unknown method: %v", err)
	}
	if err := c.With(7).Call(ctx, "Test", "Echo", &text{}, &rsp); !errors.Is(err, ErrCodec) {
		t.Errorf("unknown codec: %v", err)
	}
}

func TestRegister(t *testing.T) {
	s := NewServer(ServerConfig{})
	must(t, s.Register(&service{}))
	if s.Register(&service{}) == nil {
		t.Error("registered twice")
	}
	if s.Register(empty{}) == nil {
		t.Error("registered without methods")
	}
	methods := s.services["Test"]
	for _, name := range []string{"NoError", "NoPointer", "Three", "Variadic", "TwoResults", "Service", "Version"} {
		if _, ok := methods[name]; ok {
			t.Errorf("%s can be called", name)
		}
	}
	if len(methods) != 9 {
		t.Errorf("%d methods", len(methods))
	}
}

type empty struct{}

func (empty) Service() string { return "Empty" }
func (empty) Version() string { return "" }

// raw is a peer that speaks bytes.
type raw struct {
	net.Conn
	t testing.TB
}

func rawDial(t testing.TB, s *Server) raw {
	t.Helper()
	nc, err := net.Dial("tcp", s.Addr().String())
	must(t, err)
	nc.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { nc.Close() })
	return raw{nc, t}
}

func (r raw) send(p []byte) {
	r.t.Helper()
	_, err := r.Write(p)
	must(r.t, err)
}

// read reads a package.
func (r raw) read() []byte {
	r.t.Helper()
	p := make([]byte, headLen)
	_, err := io.ReadFull(r, p)
	must(r.t, err)
	p = append(p, make([]byte, binary.LittleEndian.Uint32(p[28:]))...)
	_, err = io.ReadFull(r, p[headLen:])
	must(r.t, err)
	return p
}

func (r raw) expect(want []byte) {
	r.t.Helper()
	if got := r.read(); !bytes.Equal(got, want) {
		r.t.Fatalf("got\n%s\nwant\n%s", hex.Dump(got), hex.Dump(want))
	}
}

func (r raw) eof() {
	r.t.Helper()
	if n, err := io.Copy(io.Discard, r); n != 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		r.t.Fatalf("%d bytes and %v instead of the end", n, err)
	}
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// jsonCall is a call with sequence 1 and log 99, as getty's client sends it.
func jsonCall(kind callType, method, value string) []byte {
	head := fmt.Sprintf(`{"Service":"Test","Method":%q,"CallType":%d}`, method, kind)
	b := unhex("05091620 0300 0000 0100000000000000 6300000000000000 0000 0100")
	b = binary.LittleEndian.AppendUint32(b, uint32(4+len(head)+len(value)))
	b = append(binary.LittleEndian.AppendUint16(b, uint16(len(head))), head...)
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(value))), value...)
}

// echoAnswer is what getty's server answered to an echo of {"A":"hi"}.
var echoAnswer = append(unhex("05091620 0400 0000 0100000000000000 6300000000000000 0000 0100 1a000000"), "\x0c\x00{\"Error\":\"\"}\x0a\x00{\"A\":\"hi\"}"...)

// The bytes are those of getty.
func TestVectors(t *testing.T) {
	server, svc := serve(t, ServerConfig{})
	r := rawDial(t, server)
	r.send(jsonCall(twoWay, "Echo", `{"A":"hi"}`))
	r.expect(echoAnswer)
	r.send(unhex("05091620 0100 0000 0500000000000000 0000000000000000 0000 0100 00000000"))
	r.expect(unhex("05091620 0200 0000 0500000000000000 0000000000000000 0000 0100 00000000"))
	// two-way without reply: the body has an empty value, and its length is that of what follows (getty's server states the length
	// of the request)
	r.send(jsonCall(twoWayNoReply, "Echo", `{"A":"a longer value"}`))
	r.expect(append(unhex("05091620 0400 0000 0100000000000000 6300000000000000 0000 0100 10000000"), "\x0c\x00{\"Error\":\"\"}\x00\x00"...))
	r.send(jsonCall(oneWay, "Event", `{"A":"e"}`)) // no answer: the next one is that of the echo
	recv(t, svc.events, "event")
	r.send(jsonCall(twoWay, "Echo", `{"A":"hi"}`))
	r.expect(echoAnswer)
	head := "\x0a\x04Test\x12\x06Double\x18\x02" // Protobuf: fields 1, 2 and 3
	r.send(append(unhex("05091620 0300 0700 0300000000000000 0900000000000000 0000 0200 16000000"), "\x10\x00"+head+"\x02\x00\x08\x15"...))
	r.expect(append(unhex("05091620 0400 0700 0300000000000000 0900000000000000 0000 0200 08000000"), "\x02\x00\x0a\x00\x02\x00\x08\x2a"...))
	r.send(append(unhex("05091620 0300 0000 0300000000000000 0900000000000000 0000 0900 04000000"), 0, 0, 0, 0)) // codec 9
	if got := r.read(); binary.LittleEndian.Uint16(got[24:]) != 1 || binary.LittleEndian.Uint16(got[26:]) != 1 {
		t.Errorf("answer to an unknown codec:\n%s", hex.Dump(got))
	}

	// what the client sends
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	c, err := NewClient(ClientConfig{Addr: ln.Addr().String(), Timeout: patience})
	must(t, err)
	defer c.Close()
	nc, err := ln.Accept()
	must(t, err)
	r = raw{nc, t}
	defer nc.Close()
	var rsp text
	done := make(chan error, 1)
	c.AsyncCall(context.Background(), "Test", "Echo", &text{"hi"}, &rsp, func(err error) { done <- err })
	got := r.read()
	answer := bytes.Clone(echoAnswer)
	copy(answer[16:24], got[16:24]) // its log id is random
	copy(got[16:24], []byte{99, 0, 0, 0, 0, 0, 0, 0})
	if want := jsonCall(twoWay, "Echo", `{"A":"hi"}`); !bytes.Equal(got, want) {
		t.Errorf("the client sends\n%s\nwant\n%s", hex.Dump(got), hex.Dump(want))
	}
	r.send(answer)
	if err := recv(t, done, "answer"); err != nil || rsp.A != "hi" {
		t.Errorf("%v, %q", err, rsp.A)
	}
}

// A call one byte at a time, and calls far above 4 KiB.
func TestFragments(t *testing.T) {
	server, _ := serve(t, ServerConfig{})
	r := rawDial(t, server)
	r.Conn.(*net.TCPConn).SetNoDelay(true)
	for _, b := range jsonCall(twoWay, "Echo", `{"A":"hi"}`) {
		r.send([]byte{b})
	}
	r.expect(echoAnswer)
	c := dial(t, server, ClientConfig{})
	for _, n := range []int{4000, 5000, 40_000, maxPart - 8} {
		var rsp text
		arg := text{strings.Repeat("x", n)}
		must(t, c.Call(context.Background(), "Test", "Echo", &arg, &rsp))
		if rsp != arg {
			t.Errorf("%d bytes came back as %d", n, len(rsp.A))
		}
	}
}

// What the format has no room for is refused with an error, in both directions, and the connection goes on.
func TestTooLarge(t *testing.T) {
	server, _ := serve(t, ServerConfig{})
	c, ctx := dial(t, server, ClientConfig{}), context.Background()
	var rsp text
	if err := c.Call(ctx, "Test", "Echo", &text{strings.Repeat("x", maxPart-7)}, &rsp); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large argument: %v", err)
	}
	if err := c.Call(ctx, "Test", strings.Repeat("m", maxPart), &text{}, &rsp); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large header: %v", err)
	}
	var remote *RemoteError
	if err := c.Call(ctx, "Test", "Large", 70_000, &rsp); !errors.As(err, &remote) || !strings.Contains(remote.Text, ErrTooLarge.Error()) {
		t.Errorf("large answer: %v", err)
	}
	must(t, c.Call(ctx, "Test", "Large", 65_000, &rsp))
	if st := firstSession(c).Stats(); st.ReadPkgs != 2 {
		t.Errorf("%+v", st)
	}
}

func firstSession(c *Client) session.Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sessions[0]
}

// Mistakes of a caller are answered, and the connection goes on; a method that panics is answered, too.
func TestMistakesAreAnswered(t *testing.T) {
	server, svc := serve(t, ServerConfig{})
	r := rawDial(t, server)
	for _, tt := range []struct {
		kind          callType
		method, value string
		want          string
	}{
		{twoWay, "Nothing", `{}`, "no method"},
		{twoWay, "unexported", `{}`, "no method"},
		{twoWay, "Event", `{}`, "one-way"}, // has no reply
		{twoWay, "Echo", `{`, "argument"},
		{twoWay, "Echo", `[1]`, "argument"},
		{9, "Echo", `{}`, "type of call"},
		{twoWay, "Panic", `{}`, "panic"},
		{twoWayNoReply, "Nothing", `{}`, "no method"},
	} {
		r.send(jsonCall(tt.kind, tt.method, tt.value))
		got := r.read()
		if binary.LittleEndian.Uint16(got[24:]) != 1 || !strings.Contains(string(got[headLen:]), tt.want) {
			t.Errorf("%s %q:\n%s", tt.method, tt.value, hex.Dump(got))
		}
	}
	// none of these is answered: a two-way method that is called one-way, one that does not exist, one that panics
	r.send(jsonCall(oneWay, "Echo", `{"A":"x"}`))
	r.send(jsonCall(oneWay, "Nothing", `{}`))
	r.send(jsonCall(oneWay, "Panic", `{}`))
	r.send(jsonCall(oneWay, "Event", `{"A":"x"}`))
	recv(t, svc.events, "event")
	r.send(jsonCall(twoWay, "Echo", `{"A":"hi"}`))
	r.expect(echoAnswer)
}

// Bytes that are no package end their own session only, and an announced length costs no memory.
func TestHostile(t *testing.T) {
	server, _ := serve(t, ServerConfig{})
	good := rawDial(t, server)
	call := jsonCall(twoWay, "Echo", `{"A":"hi"}`)
	change := func(at int, b ...byte) []byte {
		p := bytes.Clone(call)
		copy(p[at:], b)
		return p
	}
	for name, p := range map[string][]byte{
		"magic":           change(0, 0),
		"length -1":       change(28, 0xff, 0xff, 0xff, 0xff),
		"length 2 GiB":    change(28, 0, 0, 0, 0x80),
		"length 4 MiB":    change(28, 0, 0, 0x40, 0),
		"above the parts": change(28, 3, 0, 2, 0), // 131,075
		"header too long": change(32, 0xff, 0xff),
		"value too long":  change(len(call)-12, 0xff),
		"value too short": change(len(call)-12, 1),
		"length 1":        change(28, 1, 0, 0, 0),
		"length 3":        change(28, 3, 0, 0, 0),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r := rawDial(t, server)
			r.send(p)
			r.eof()
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
	for _, p := range [][]byte{ // packages that mean nothing are ignored
		unhex("05091620 0900 0000 0500000000000000 0000000000000000 0000 0100 00000000"),
		unhex("05091620 0400 0000 0500000000000000 0000000000000000 0000 0100 00000000"),
	} {
		good.send(p)
	}
	good.send(unhex("05091620 0300 0000 0500000000000000 0000000000000000 0000 0100 00000000")) // a call without a body
	if got := good.read(); binary.LittleEndian.Uint16(got[24:]) != 1 {
		t.Errorf("\n%s", hex.Dump(got))
	}
	good.send(call)
	good.expect(echoAnswer)
}

// A thousand callers share four connections, and each gets its own answer.
func TestConcurrentCalls(t *testing.T) {
	var sessions atomic.Int64
	server, _ := serve(t, ServerConfig{NewSession: counted(&sessions)})
	c := dial(t, server, ClientConfig{Connections: 4})
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			arg := text{fmt.Sprint(i, strings.Repeat("-", i))}
			for range 3 {
				var rsp text
				if err := c.Call(context.Background(), "Test", "Echo", &arg, &rsp); err != nil || rsp != arg {
					t.Errorf("call %d: %v, %d bytes", i, err, len(rsp.A))
					return
				}
			}
		})
	}
	wg.Wait()
	if n := sessions.Load(); n != 4 {
		t.Errorf("%d connections", n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) != 0 {
		t.Errorf("%d calls are still waited for", len(c.waiting))
	}
}

// Compression is up to the sessions.
func TestCompressed(t *testing.T) {
	for _, kind := range []session.CompressType{session.CompressZip, session.CompressNone, session.CompressSnappy} {
		set := func(s session.Session) error { s.SetCompressType(kind); return nil }
		server, _ := serve(t, ServerConfig{NewSession: set})
		c := dial(t, server, ClientConfig{NewSession: set})
		for i := range 100 {
			var rsp text
			must(t, c.Call(context.Background(), "Test", "Echo", &text{strings.Repeat("x", i*i)}, &rsp))
		}
	}
}

// A call that takes too long ends at its deadline; its connection, and the calls beside it, go on.
func TestTimeouts(t *testing.T) {
	server, svc := serve(t, ServerConfig{Workers: 4})
	c := dial(t, server, ClientConfig{MaxCalls: 3})
	ctx, cancel := context.WithCancel(context.Background())
	slow := make(chan error, 2)
	var a, b, rsp text
	c.AsyncCall(ctx, "Test", "Slow", &text{"a"}, &a, func(err error) { slow <- err })
	recv(t, svc.events, "slow call")
	c.AsyncCall(context.Background(), "Test", "Slow", &text{"b"}, &b, func(err error) { slow <- err })
	recv(t, svc.events, "slow call")
	must(t, c.Call(context.Background(), "Test", "Echo", &text{"beside"}, &rsp))
	c.AsyncCall(context.Background(), "Test", "Slow", &text{"c"}, &text{}, func(error) {})
	recv(t, svc.events, "slow call")
	if err := c.Call(context.Background(), "Test", "Echo", &text{}, &rsp); err != ErrTooManyCalls {
		t.Errorf("a call too many: %v", err)
	}
	cancel()
	if err := recv(t, slow, "end of a cancelled call"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := c.Call(short, "Test", "Slow", &text{"d"}, &rsp); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("late: %v", err)
	}
	close(svc.release) // answers that come too late are nobody's
	if err := recv(t, slow, "answer"); err != nil || b.A != "b" {
		t.Errorf("%v, %q", err, b.A)
	}
	must(t, c.Call(context.Background(), "Test", "Echo", &text{"after"}, &rsp))
	if rsp.A != "after" {
		t.Errorf("%q", rsp.A)
	}
}

// Calls that a lost connection leaves without an answer end at once, and the client connects again.
func TestLostConnection(t *testing.T) {
	accepted := make(chan struct{}, 100)
	server, svc := serve(t, ServerConfig{NewSession: func(session.Session) error { accepted <- struct{}{}; return nil }})
	c := dial(t, server, ClientConfig{})
	recv(t, accepted, "session")
	done := make(chan error, 1)
	c.AsyncCall(context.Background(), "Test", "Slow", &text{"x"}, &text{}, func(err error) { done <- err })
	recv(t, svc.events, "slow call")
	firstSession(c).Close()
	if err := recv(t, done, "end of the call"); err != ErrLost {
		t.Errorf("%v", err)
	}
	close(svc.release)
	recv(t, accepted, "another session") // which is about to be the client's, too
	var rsp text
	for end := time.Now().Add(patience); ; {
		err := c.Call(context.Background(), "Test", "Echo", &text{"again"}, &rsp)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrNoSession) && !errors.Is(err, session.ErrSessionClosed) || time.Now().After(end) {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	c.Close()
	if err := c.Call(context.Background(), "Test", "Echo", &text{}, &rsp); err != ErrNoSession {
		t.Errorf("after Close: %v", err)
	}
	server.Stop()
	if _, err := NewClient(ClientConfig{Addr: server.Addr().String()}); err == nil {
		t.Error("a client of nobody")
	}
}

// Heartbeats keep a session that is not used; one without them, and one whose peer does not answer them, is closed.
func TestHeartbeats(t *testing.T) {
	const timeout = 200 * time.Millisecond
	server, _ := serve(t, ServerConfig{SessionTimeout: timeout, MaxSessions: 100})
	silent := rawDial(t, server)
	start := time.Now()
	pongs := make(chan session.Session, 10000)
	dial(t, server, ClientConfig{Heartbeat: timeout / 4, NewSession: func(ss session.Session) error {
		ss.SetReader(reading{pongs})
		return nil
	}})
	// ten heartbeats in a row take longer than the timeout; should this machine stop for long in between, there is another session
	for n := map[session.Session]int{}; ; {
		s := recv(t, pongs, "answer to a heartbeat")
		if n[s]++; n[s] == 10 {
			break
		}
	}
	silent.eof()
	if d := time.Since(start); d < timeout-50*time.Millisecond {
		t.Errorf("closed after %v", d)
	}
	silent.Close()

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	deaf, err := NewClient(ClientConfig{Addr: ln.Addr().String(), Heartbeat: 10 * time.Millisecond})
	must(t, err)
	defer deaf.Close()
	for range 2 { // the client gives the session up, and makes another
		nc, err := ln.Accept()
		must(t, err)
		r := raw{nc, t}
		want := unhex("05091620 0100 0000 0000000000000000 0000000000000000 0000 0100 00000000")
		got := r.read()
		if got[8]%2 != 1 {
			t.Errorf("sequence %d is even", got[8])
		}
		copy(want[8:16], got[8:16])
		if !bytes.Equal(got, want) {
			t.Errorf("heartbeat\n%s", hex.Dump(got))
		}
		io.Copy(io.Discard, nc)
		nc.Close()
	}
}

// reading tells of each package.
type reading struct{ read chan session.Session }

func (r reading) Read(s session.Session, p []byte) (any, int, error) {
	pkg, n, err := packets{}.Read(s, p)
	if pkg != nil {
		r.read <- s
	}
	return pkg, n, err
}

func TestMaxSessions(t *testing.T) {
	server, _ := serve(t, ServerConfig{MaxSessions: 1})
	a := rawDial(t, server)
	a.send(jsonCall(twoWay, "Echo", `{"A":"hi"}`))
	a.expect(echoAnswer)
	b := rawDial(t, server)
	b.eof()
	b.Close()
	a.send(jsonCall(twoWay, "Echo", `{"A":"hi"}`))
	a.expect(echoAnswer)
	a.Close()
	for end := time.Now().Add(patience); ; { // then there is room again
		c := rawDial(t, server)
		c.send(jsonCall(twoWay, "Echo", `{"A":"hi"}`))
		if _, err := io.ReadFull(c, make([]byte, len(echoAnswer))); err == nil {
			return
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
		c.Close()
	}
}

// Any bytes give packages within the limits, the same ones when they are written again, and no panic; what a server does with them
// is bounded as well.
func FuzzRead(f *testing.F) {
	f.Add(jsonCall(twoWay, "Echo", `{"A":"hi"}`))
	f.Add(echoAnswer)
	f.Add(unhex("05091620 0100 0000 0500000000000000 0000000000000000 0000 0100 00000000"))
	f.Add(append(unhex("05091620 0300 0700 0300000000000000 0900000000000000 0000 0200 16000000"), "\x10\x00\x0a\x04Test\x12\x06Double\x18\x02\x02\x00\x08\x15"...))
	f.Fuzz(func(t *testing.T, p []byte) {
		pkg, n, err := packets{}.Read(nil, p)
		if err != nil || pkg == nil {
			if n > maxPacket || err != nil && n != 0 {
				t.Fatalf("%d bytes, %v", n, err)
			}
			return
		}
		k := pkg.(*packet)
		again, err := packets{}.Write(nil, k)
		if err != nil || !bytes.Equal(again, p[:n]) {
			t.Fatalf("%x became %x, %v", p[:n], again, err)
		}
		var req request
		s := &Server{services: map[string]map[string]method{}}
		s.lookup(k, &req)
		k.codec.decode(k.header, &response{})
	})
}
