package core

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/frame"
	"github.com/arpc-go/arpc/internal/poller"
)

// wait bounds every wait for something that must happen; it is never spent when all is well.
const wait = 20 * time.Second

func TestMain(m *testing.M) {
	if f := children[os.Getenv(childEnv)]; f != nil {
		f()
		return
	}
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil { // the runtime's own epoll is made on first use
		ln.Close()
	}
	before := openFiles()
	code := m.Run()
	if code == 0 {
		code = leftBehind(before)
	}
	os.Exit(code)
}

// long makes the tests take their time.
var long = os.Getenv("ARPC_LONG") != ""

// childEnv names the variable that makes the test binary run one of children instead of the tests.
const childEnv = "ARPC_CORE_CHILD"

var children = map[string]func(){}

// leftBehind waits for goroutines and descriptors of the tests to go, and complains if they do not.
func leftBehind(before map[string]bool) int {
	for end := time.Now().Add(wait); ; runtime.Gosched() {
		left := goroutines()
		for f := range openFiles() {
			if !before[f] {
				left += f + "\n"
			}
		}
		if left == "" {
			return 0
		}
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "left behind by the tests:\n%s\n", left)
			return 1
		}
	}
}

// goroutines returns the stacks of all goroutines but the calling one that run code of this module or of its poller.
func goroutines() string {
	b := make([]byte, 4<<20)
	b = b[:runtime.Stack(b, true)]
	_, others, _ := strings.Cut(string(b), "\n\n")
	left := ""
	for stack := range strings.SplitSeq(others, "\n\n") {
		if strings.Contains(stack, "arpc-go/arpc") || strings.Contains(stack, "lesismal") {
			left += stack + "\n\n"
		}
	}
	return left
}

// openFiles returns the open descriptors; empty where they cannot be listed.
func openFiles() map[string]bool {
	open := map[string]bool{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if what, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			open[e.Name()+" "+what] = true
		}
	}
	return open
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// recv waits for a value, or for the closing of ch.
func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// isDone reports whether ch is closed or has a value.
func isDone[T any](ch <-chan T) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !within(wait, cond) {
		t.Fatalf("never: %s", what)
	}
}

// within looks for a condition again and again until the time is up.
func within(d time.Duration, cond func() bool) bool {
	if cond() {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for !cond() {
		select {
		case <-ticker.C:
		case <-timer.C:
			return cond()
		}
	}
	return true
}

// An adapter is one way to serve connections: how to listen and dial, and what its connections can do.
type adapter struct {
	name   string
	std    int // Config.StdConns
	listen func(t testing.TB) net.Listener
	over   func(net.Listener) net.Listener // what listen makes of a TCP listener, nil if that is not what it is about
	dial   func(ln net.Listener) (net.Conn, error)
	half   bool // can shut down one direction
	tcp    bool // is plain TCP: refusals are resets, addresses count
	rst    bool // can be reset
}

func dialTCP(ln net.Listener) (net.Conn, error) {
	return net.Dial(ln.Addr().Network(), ln.Addr().String())
}

func listenTCP(t testing.TB) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return ln
}

func adapters() []adapter {
	all := []adapter{
		{name: "tcp", std: -1, listen: listenTCP, over: overTCP, dial: dialTCP, half: true, tcp: true, rst: true},
		{name: "unix", std: -1, listen: listenUnix, dial: dialTCP, half: true},
		{name: "tls", std: -1, listen: listenTLS, over: overTLS, dial: dialTLS, half: true, rst: true},
		{name: "plain", std: -1, listen: listenPlain, over: overPlain, dial: dialTCP, half: true, rst: true},
		{name: "pipe", std: -1, listen: listenPipe, dial: dialPipe},
	}
	if poller.Supported {
		all = append(all,
			adapter{name: "poll", listen: listenTCP, over: overTCP, dial: dialTCP, half: true, tcp: true, rst: true},
			adapter{name: "moves", std: 1 << 20, listen: listenTCP, over: overTCP, dial: dialTCP, half: true, tcp: true, rst: true})
	}
	return all
}

// each runs a test for every adapter that has what it needs.
func each(t *testing.T, need func(adapter) bool, f func(t *testing.T, a adapter)) {
	for _, a := range adapters() {
		if need == nil || need(a) {
			t.Run(a.name, func(t *testing.T) { f(t, a) })
		}
	}
}

// eachAtOnce is each for tests that mostly wait: all adapters at the same time, however few processors there are.
func eachAtOnce(t *testing.T, need func(adapter) bool, f func(t *testing.T, a adapter)) {
	var wg sync.WaitGroup
	for _, a := range adapters() {
		if need == nil || need(a) {
			wg.Go(func() { t.Run(a.name, func(t *testing.T) { f(t, a) }) })
		}
	}
	wg.Wait()
}

func half(a adapter) bool { return a.half }
func tcp(a adapter) bool  { return a.tcp }

func listenUnix(t testing.TB) net.Listener {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	must(t, err)
	return ln
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"x"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func overTCP(ln net.Listener) net.Listener { return ln }

func overTLS(ln net.Listener) net.Listener {
	return tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{certificate()}})
}

func listenTLS(t testing.TB) net.Listener { return overTLS(listenTCP(t)) }

func dialTLS(ln net.Listener) (net.Conn, error) {
	return tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
}

// plainConn hides what kind of connection it is, and so its descriptor.
type plainConn struct{ net.Conn }

func (c plainConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

type plainListener struct{ net.Listener }

func (l plainListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return plainConn{nc}, nil
}

func overPlain(ln net.Listener) net.Listener { return plainListener{ln} }

func listenPlain(t testing.TB) net.Listener { return overPlain(listenTCP(t)) }

// pipeListener accepts the ends of net.Pipes.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func listenPipe(testing.TB) net.Listener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func dialPipe(ln net.Listener) (net.Conn, error) {
	l := ln.(*pipeListener)
	a, b := net.Pipe()
	select {
	case l.conns <- b:
		return a, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// listenSmall is listen with little room in the kernel.
func (a adapter) listenSmall(t testing.TB) net.Listener {
	if a.over == nil {
		return a.listen(t)
	}
	return a.over(smallBuffers{listenTCP(t)})
}

// smallBuffers makes the kernel keep little for the connections that it accepts; still several of the loopback's segments,
// as otherwise every acknowledgement is delayed.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if tc, ok := nc.(*net.TCPConn); ok {
		tc.SetWriteBuffer(256 << 10)
	}
	return nc, err
}

// The tests' frames have a header of five bytes: the length of the body and a kind, which says what the app does with it.
const (
	headLen = 5

	kindInline  = 'i' // echoed in Batch
	kindOrdered = 'o' // echoed in Run
	kindSlow    = 's' // echoed in Run, as a slow one
	kindAsync   = 'a' // echoed by a goroutine of its own
	kindSwallow = 'n' // counted
	kindPush    = 'p' // from the server
)

func makeFrame(kind byte, body []byte) []byte {
	f := make([]byte, headLen+len(body))
	binary.LittleEndian.PutUint32(f, uint32(len(body)))
	f[4] = kind
	copy(f[headLen:], body)
	return f
}

// noise is of prime length, so that no piece of it falls on the same place of a buffer again.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 65537)
	for i, x := 0, uint32(1); i < len(b); i++ {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
})

// pattern is n bytes that reveal a lost or doubled piece.
func pattern(n int, seed uint32) []byte {
	b := make([]byte, n)
	part := noise()[seed%65537:]
	for rest := b; len(rest) > 0; part = noise() {
		rest = rest[copy(rest, part):]
	}
	return b
}

// state is what an app knows about one connection.
type state struct {
	app *app
	c   *Conn

	batches, runs        atomic.Int32 // running now
	opens, downs, closes atomic.Int32
	frames               atomic.Int64
	open, down, closed   chan struct{}
	downErr, closeErr    error // set before the channels are closed
	any                  any
}

// app is an App that checks the order of its calls, with the tests' own code in between.
type app struct {
	t      testing.TB
	onOpen func(s *state) error
	// onFrame handles a frame in Batch; byKind is the default.
	onFrame func(s *state, in *Input, f []byte) error
	onRun   func(s *state, f []byte, turn *Turn)
	onDown  func(s *state, err error)
	onClose func(s *state, err error)

	opened  chan *state
	refused atomic.Int64
	opens   atomic.Int64
	closes  atomic.Int64
	forced  atomic.Bool // handlers outlive their connections

	mu    sync.Mutex
	lines []string
}

func newApp(t testing.TB) *app { return &app{t: t, opened: make(chan *state, 100_000)} }

func (a *app) logf(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lines = append(a.lines, fmt.Sprintf(format, args...))
}

// logged reports whether a line with the text was logged.
func (a *app) logged(text string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.lines {
		if strings.Contains(l, text) {
			return true
		}
	}
	return false
}

func (a *app) Open(c *Conn) error {
	s := &state{app: a, c: c, open: make(chan struct{}), down: make(chan struct{}), closed: make(chan struct{})}
	if c.User != nil {
		a.t.Errorf("connection %d: Open again", c.ID())
	}
	c.User = s
	if a.onOpen != nil {
		if err := a.onOpen(s); err != nil {
			a.refused.Add(1)
			s.closes.Add(1) // nothing may follow
			return err
		}
	}
	a.opens.Add(1)
	s.opens.Add(1)
	close(s.open)
	a.opened <- s
	return nil
}

func (a *app) Batch(c *Conn, in *Input) error {
	s := c.User.(*state)
	if n := s.batches.Add(1); n != 1 {
		a.t.Errorf("connection %d: %d Batches at the same time", c.ID(), n)
	}
	defer s.batches.Add(-1)
	if s.opens.Load() != 1 || s.closes.Load() != 0 {
		a.t.Errorf("connection %d: Batch after %d Opens and %d Closes", c.ID(), s.opens.Load(), s.closes.Load())
	}
	for {
		f, err := in.Next()
		if err != nil || f == nil {
			return err
		}
		s.frames.Add(1)
		if a.onFrame != nil {
			err = a.onFrame(s, in, f)
		} else {
			err = s.byKind(in, f)
		}
		if err != nil {
			return err
		}
	}
}

var errRefusedFrame = errors.New("test: the core refused a frame")

// byKind does what the kind of a frame says.
func (s *state) byKind(in *Input, f []byte) error {
	switch f[4] {
	case kindInline:
		s.send(Now, f)
	case kindOrdered, kindSlow:
		if !in.Ordered(f[4] == kindSlow, nil) {
			return errRefusedFrame
		}
	case kindAsync:
		s.c.Lock()
		ok := s.c.Hold()
		s.c.Unlock()
		if !ok {
			return errRefusedFrame
		}
		f = bytes.Clone(f)
		go func() {
			s.send(Now, f)
			s.c.Release()
		}()
	}
	return nil
}

func (a *app) Run(c *Conn, _ *Input, f []byte, _ any) *Turn {
	s := c.User.(*state)
	if n := s.runs.Add(1); n != 1 {
		a.t.Errorf("connection %d: %d Runs at the same time", c.ID(), n)
	}
	defer s.runs.Add(-1)
	// A Run that the core is about to call when the connection's time is up counts as one that did not return in time.
	if s.opens.Load() != 1 || s.closes.Load() != 0 && !a.forced.Load() {
		a.t.Errorf("connection %d: Run after %d Opens and %d Closes", c.ID(), s.opens.Load(), s.closes.Load())
	}
	turn := new(Turn)
	if a.onRun != nil {
		a.onRun(s, f, turn)
	} else {
		s.answer(f)
	}
	return turn
}

// away runs f as a handler that has let the strand go.
func (s *state) away(turn *Turn, f func()) error {
	s.runs.Add(-1)
	away, err := s.c.LetGo(turn)
	if away {
		f()
		s.c.TakeBack(turn)
	}
	if n := s.runs.Add(1); n != 1 && err == nil {
		s.app.t.Errorf("connection %d: %d Runs at the same time after TakeBack", s.c.ID(), n)
	}
	return err
}

func (a *app) Down(c *Conn, err error) {
	s := c.User.(*state)
	if n := s.downs.Add(1); n != 1 {
		a.t.Errorf("connection %d: Down %d", c.ID(), n)
		return
	}
	if s.opens.Load() != 1 || s.closes.Load() != 0 {
		a.t.Errorf("connection %d: Down after %d Opens and %d Closes", c.ID(), s.opens.Load(), s.closes.Load())
	}
	if err == nil {
		a.t.Errorf("connection %d: Down without a reason", c.ID())
	}
	s.downErr = err
	close(s.down)
	if a.onDown != nil {
		a.onDown(s, err)
	}
}

func (a *app) Close(c *Conn, err error) {
	s := c.User.(*state)
	if n := s.closes.Add(1); n != 1 || s.opens.Load() != 1 || s.downs.Load() != 1 {
		a.t.Errorf("connection %d: Close %d after %d Opens and %d Downs", c.ID(), n, s.opens.Load(), s.downs.Load())
		return
	}
	if n := s.batches.Load(); n != 0 {
		a.t.Errorf("connection %d: Close while Batch runs", c.ID())
	}
	if n := s.runs.Load(); n != 0 && !a.forced.Load() {
		a.t.Errorf("connection %d: Close while Run runs", c.ID())
	}
	a.closes.Add(1)
	s.closeErr = err
	defer close(s.closed)
	if a.onClose != nil {
		a.onClose(s, err)
	}
}

// send sends one message.
func (s *state) send(u Urgency, f []byte) error {
	s.c.Lock()
	if err := s.c.CanSend(); err != nil {
		s.c.Unlock()
		return err
	}
	copy(s.c.Reserve(len(f)), f)
	s.c.Commit(u, false)
	return nil
}

// answer sends the answer of an ordered frame.
func (s *state) answer(f []byte) error {
	s.c.Lock()
	if err := s.c.CanSend(); err != nil {
		s.c.Unlock()
		return err
	}
	copy(s.c.ReserveAnswer(len(f)), f)
	s.c.Commit(Answer, false)
	return nil
}

// pending returns the bytes that wait to be sent.
func (s *state) pending() int {
	s.c.Lock()
	defer s.c.Unlock()
	return s.c.Pending()
}

func (s *state) has(f flags) bool {
	s.c.Lock()
	defer s.c.Unlock()
	return s.c.has(f)
}

// server is a Group that serves an adapter's listener.
type server struct {
	*Group
	t      testing.TB
	a      adapter
	app    *app
	ln     net.Listener
	served chan error
}

// maxBody is the splitter's limit.
const maxBody = 2 << 20

func testConfig(app *app, cfg Config) Config {
	if cfg.Split == nil {
		cfg.Split = frame.Length{Header: headLen, Max: func() int { return maxBody }}
	}
	if cfg.Logf == nil {
		cfg.Logf = app.logf
	}
	if cfg.CloseFlush == 0 {
		cfg.CloseFlush = wait
	}
	return cfg
}

// serve starts a server, which the test's end stops; by then its clients must have ended.
func serve(t testing.TB, a adapter, cfg Config, app *app) *server {
	t.Helper()
	return serveOn(t, a, a.listen(t), cfg, app)
}

func serveOn(t testing.TB, a adapter, ln net.Listener, cfg Config, app *app) *server {
	t.Helper()
	if cfg.StdConns == 0 {
		cfg.StdConns = a.std
	}
	s := &server{Group: NewGroup(testConfig(app, cfg), app), t: t, a: a, app: app, ln: ln, served: make(chan error, 1)}
	go func() { s.served <- s.Serve(ln) }()
	t.Cleanup(func() {
		if !s.stop() {
			return
		}
		if err := recv(t, s.served, "end of Serve"); err != ErrStopped {
			t.Errorf("Serve: %v", err)
		}
		if o, c := app.opens.Load(), app.closes.Load(); o != c {
			t.Errorf("%d Opens, %d Closes", o, c)
		}
		if n := s.Len(); n != 0 {
			t.Errorf("%d connections after Stop", n)
		}
	})
	return s
}

// stop stops the group, which must not take long. It reports whether that ended.
func (s *server) stop() bool {
	s.t.Helper()
	stopped := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), wait/2)
		defer cancel()
		stopped <- s.Stop(ctx, nil)
	}()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case err := <-stopped:
		if err != nil {
			s.t.Errorf("Stop: %v", err)
		}
		return true
	case <-timer.C:
		s.t.Error("Stop does not end")
		return false
	}
}

// client is the other end of a connection.
type client struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func (s *server) dial() *client {
	s.t.Helper()
	nc, err := s.a.dial(s.ln)
	must(s.t, err)
	return newClient(s.t, nc)
}

func newClient(t testing.TB, nc net.Conn) *client {
	nc.SetDeadline(time.Now().Add(wait))
	t.Cleanup(func() { nc.Close() })
	return &client{nc, t, bufio.NewReaderSize(nc, 64<<10)}
}

// connect dials and returns both ends. It must not be called while others dial.
func (s *server) connect() (*client, *state) {
	s.t.Helper()
	c := s.dial()
	st := recv(s.t, s.app.opened, "Open")
	eventually(s.t, "return from Open", func() bool { return st.has(flagOpened) })
	return c, st
}

// send writes frames with one call.
func (c *client) send(frames ...[]byte) {
	c.t.Helper()
	if _, err := c.Write(bytes.Join(frames, nil)); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// read reads a frame.
func (c *client) read() (kind byte, body []byte, err error) {
	var head [headLen]byte
	if _, err = io.ReadFull(c.r, head[:]); err != nil {
		return 0, nil, err
	}
	body = make([]byte, binary.LittleEndian.Uint32(head[:]))
	if _, err = io.ReadFull(c.r, body); err != nil {
		return 0, nil, fmt.Errorf("in a frame of %d bytes: %w", len(body), err)
	}
	return head[4], body, nil
}

// expect reads a frame that must be as said.
func (c *client) expect(kind byte, body []byte) {
	c.t.Helper()
	k, b, err := c.read()
	if err != nil {
		c.t.Fatalf("instead of a frame %c of %d bytes: %v", kind, len(body), err)
	}
	if k != kind || !bytes.Equal(b, body) {
		c.t.Fatalf("got a frame %c of %d bytes, want %c of %d", k, len(b), kind, len(body))
	}
}

// echo sends a frame and expects it back.
func (c *client) echo(kind byte, body string) {
	c.t.Helper()
	c.send(makeFrame(kind, []byte(body)))
	c.expect(kind, []byte(body))
}

// end reads until the connection ends and returns how it did, and how much came before.
func (c *client) end() (int64, error) {
	n, err := io.Copy(io.Discard, c.r)
	if err == nil {
		err = io.EOF
	}
	return n, err
}

// eof expects the orderly end of the connection.
func (c *client) eof() {
	c.t.Helper()
	if n, err := c.end(); n != 0 || err != io.EOF && !errors.Is(err, io.ErrClosedPipe) {
		c.t.Fatalf("%d bytes and %v instead of the end", n, err)
	}
}

func (c *client) closeWrite() {
	c.t.Helper()
	must(c.t, c.Conn.(interface{ CloseWrite() error }).CloseWrite())
}

// reset aborts the connection.
func (c *client) reset() {
	c.t.Helper()
	nc := c.Conn
	if tc, ok := nc.(*tls.Conn); ok {
		nc = tc.NetConn()
	}
	must(c.t, nc.(*net.TCPConn).SetLinger(0))
	nc.Close()
}

// isReset reports whether a peer has seen that its connection was aborted.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNABORTED)
}

// isTimeout reports whether a peer has seen nothing at all.
func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
