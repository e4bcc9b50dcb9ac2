package crypto

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/gzip"
	"github.com/arpc-go/arpc/extension/middleware/coder/internal/codertest"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone) // bad frames are logged; here they are the point
	leak.Main(m)
}

func key(id uint32) Key {
	return Key{ID: id, Secret: bytes.Repeat([]byte{byte(id)}, KeyLen)}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// ends returns two that share the keys.
func ends(keys ...Key) (server, client *Crypto) {
	return must(NewServer(keys...)), must(NewClient(keys...))
}

func message(payload string) *arpc.Message {
	const method = "/method"
	b := make([]byte, arpc.HeadLen, arpc.HeadLen+len(method)+len(payload))
	b[5], b[7] = arpc.CmdRequest, byte(len(method))
	b = append(append(b, method...), payload...)
	m := &arpc.Message{Buffer: b}
	m.SetBodyLen(len(b) - arpc.HeadLen)
	m.SetSeq(7)
	return m
}

// peer returns a Client to hang state on, that need not be connected.
func peer() *arpc.Client { return &arpc.Client{} }

func TestRoundTrip(t *testing.T) {
	server, client := ends(key(1))
	s, c := peer(), peer()
	for _, payload := range []string{"", "secret payload", strings.Repeat("x", 1<<20)} {
		for _, reserved := range []byte{0, 0x81} {
			m := message(payload)
			m.Buffer[reservedOff] = reserved
			m.Set("k", "v")
			original := bytes.Clone(m.Buffer)
			sent := client.Encode(c, m)
			if !bytes.Equal(m.Buffer, original) {
				t.Fatal("Encode changed the message")
			}
			if bytes.Contains(sent.Buffer, []byte("/method")) || payload != "" && bytes.Contains(sent.Buffer, []byte(payload)) {
				t.Fatal("readable")
			}
			if len(sent.Buffer) != len(original)+45 || sent.BodyLen() != len(sent.Buffer)-arpc.HeadLen {
				t.Fatalf("%d bytes became %d, the header says %d", len(original), len(sent.Buffer), sent.BodyLen())
			}
			if cmd := sent.Cmd(); cmd == arpc.CmdPing || cmd == arpc.CmdPong {
				t.Fatal("looks like a ping")
			}
			wire := bytes.Clone(sent.Buffer)
			got := server.Decode(s, sent)
			if got == nil || !bytes.Equal(got.Buffer, original) {
				t.Fatalf("decoded %v", got)
			}
			if v, _ := got.Get("k"); v != "v" {
				t.Fatal("the values are lost")
			}
			if !bytes.Equal(sent.Buffer, wire) {
				t.Fatal("Decode changed the message")
			}
		}
	}
}

// The format does not change unnoticed: the frame was made by the first version
// of this package.
func TestGoldenVector(t *testing.T) {
	const golden = "3b000000201c010000000102030405060708090a0b0c0d0e0f100500100000000000193c52b4dbcf8add960be8436497f1e37c728132bac5e04342e699e4328d9696ddf88e92de15737b3e"
	server, client := ends(key(1))
	for i := range client.nobody.id {
		client.nobody.id[i] = byte(i + 1)
	}
	client.nobody.counter.Store(1<<epochBits + 5)
	m := message("payload")
	if got := hex.EncodeToString(client.Encode(nil, m).Buffer); got != golden {
		t.Errorf("encoded\n%s, want\n%s", got, golden)
	}
	got := server.Decode(nil, &arpc.Message{Buffer: must(hex.DecodeString(golden))})
	if got == nil || !bytes.Equal(got.Buffer, m.Buffer) {
		t.Errorf("decoded %v", got)
	}
}

func TestKeys(t *testing.T) {
	for _, keys := range [][]Key{nil, {{ID: 1, Secret: make([]byte, 16)}}, {key(1), key(1)}} {
		if _, err := NewServer(keys...); err == nil {
			t.Errorf("accepted %v", keys)
		}
	}
	server, client := ends(key(1))
	if err := server.SetKeys(); err == nil {
		t.Error("SetKeys took no keys")
	}
	s, c := peer(), peer()
	pass := func(want bool) {
		t.Helper()
		if got := server.Decode(s, client.Encode(c, message("x"))) != nil; got != want {
			t.Errorf("accepted: %v, want %v", got, want)
		}
	}
	pass(true)
	for _, step := range []func() error{
		func() error { return server.SetKeys(key(1), key(2)) },
		func() error { return client.SetKeys(key(2), key(1)) },
		func() error { return server.SetKeys(key(2)) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		pass(true)
	}
	if err := client.SetKeys(key(1)); err != nil {
		t.Fatal(err)
	}
	pass(false)
	// The same ID with another secret.
	if err := client.SetKeys(Key{ID: 2, Secret: make([]byte, KeyLen)}); err != nil {
		t.Fatal(err)
	}
	pass(false)
	// A caller's slice is not ours.
	secret := bytes.Repeat([]byte{9}, KeyLen)
	if err := server.SetKeys(Key{3, secret}); err != nil {
		t.Fatal(err)
	}
	if err := client.SetKeys(Key{3, secret}); err != nil {
		t.Fatal(err)
	}
	clear(secret)
	pass(true)
}

func TestRefusesBadFrames(t *testing.T) {
	server, client := ends(key(1))
	c := peer()
	frame := func() []byte { return client.Encode(c, message("payload")).Buffer }
	n := len(frame())
	for at := reservedOff; at < n; at++ {
		for bit := range 8 {
			b := frame()
			b[at] ^= 1 << bit
			if server.Decode(peer(), &arpc.Message{Buffer: b}) != nil {
				t.Fatalf("accepted with bit %d of byte %d changed", bit, at)
			}
		}
	}
	for cut := arpc.HeadLen; cut < n; cut++ {
		if server.Decode(peer(), &arpc.Message{Buffer: frame()[:cut]}) != nil {
			t.Fatalf("accepted when cut to %d bytes", cut)
		}
	}
	if server.Decode(peer(), &arpc.Message{Buffer: append(frame(), 0)}) != nil {
		t.Error("accepted with a byte more")
	}
	if server.Decode(peer(), message("plain")) != nil {
		t.Error("accepted a plain frame")
	}
	if client.Encode(c, &arpc.Message{Buffer: make([]byte, 3)}) != nil {
		t.Error("encoded what is no frame")
	}
}

func TestReplayReflectionExchange(t *testing.T) {
	server, client := ends(key(1))
	c1, c2 := peer(), peer()
	s1, s2 := peer(), peer()
	first := client.Encode(c1, message("first"))
	second := client.Encode(c1, message("second"))
	third := client.Encode(c1, message("third"))
	other := client.Encode(c2, message("other"))
	check := func(what string, at *arpc.Client, m *arpc.Message, want error) {
		t.Helper()
		_, err := server.open(at, m)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	check("first", s1, first, nil)
	check("first again", s1, first, errReplayed)
	check("third before second", s1, third, nil)
	check("second", s1, second, nil)
	check("second again", s1, second, errReplayed)
	check("recorded, on a new connection", peer(), first, errReplayed)
	check("other", s2, other, nil)
	check("of another connection", s2, client.Encode(c1, message("")), errForeign)
	check("of another connection", s1, client.Encode(c2, message("")), errForeign)
	// What the server sends is not what it receives.
	check("reflected", s1, server.Encode(s1, message("")), errOpen)
	check("reflected, on a new connection", peer(), server.Encode(s1, message("")), errOpen)

	// The client connects again: its session goes on, the old connection does not.
	s3 := peer()
	check("continued", s3, client.Encode(c1, message("")), nil)
	check("old connection", s1, client.Encode(c1, message("")), errForeign)
	// It accepts the new connection's session, and nothing of the old one.
	old, late := server.Encode(s1, message("")), server.Encode(s1, message(""))
	if client.Decode(c1, old) == nil || client.Decode(c1, server.Encode(s3, message(""))) == nil {
		t.Error("the server's frames are refused")
	}
	if client.Decode(c1, late) != nil {
		t.Error("a frame of the old connection was accepted")
	}
}

// Every frame is accepted once, whatever the order, and never again.
func TestAnyOrder(t *testing.T) {
	const n = 2000
	r := rand.New(rand.NewPCG(1, 2))
	var s session
	for _, i := range r.Perm(n) {
		if !s.accept(uint64(i)) {
			t.Fatalf("%d was refused", i)
		}
		if s.accept(uint64(i)) {
			t.Fatalf("%d was accepted twice", i)
		}
	}
	if s.next != n || s.gaps != nil {
		t.Errorf("left: %d, %v", s.next, s.gaps)
	}
}

// What is remembered of gaps is bounded; what is forgotten is refused.
func TestGapsAreBounded(t *testing.T) {
	var s session
	for i := range uint64(5 * maxGaps) {
		s.accept(2*i + 1)
	}
	if len(s.gaps) != maxGaps {
		t.Fatalf("%d gaps", len(s.gaps))
	}
	if s.accept(0) {
		t.Error("a forgotten frame was accepted")
	}
	if !s.accept(2*(5*maxGaps-1)) || s.accept(2*(5*maxGaps-1)) {
		t.Error("a frame that is missing was refused, or accepted twice")
	}
	s = session{}
	s.accept(1 << 40)
	for i := range uint64(3 * maxGaps) {
		s.accept(1<<39 + 2*i)
	}
	if len(s.gaps) > maxGaps {
		t.Errorf("%d gaps", len(s.gaps))
	}
}

func TestSessionsAreBounded(t *testing.T) {
	var a sessions
	live := peer()
	liveConn := &connection{}
	id := func(i int) (s sessionID) {
		binary.LittleEndian.PutUint64(s[:], uint64(i))
		return s
	}
	if err := a.receive(liveConn, live, id(0), 0); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < MaxSessions+100; i++ {
		if err := a.receive(&connection{}, nil, id(i), 0); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.known) != MaxSessions || len(a.order) != MaxSessions {
		t.Errorf("%d sessions, %d in order", len(a.known), len(a.order))
	}
}

// The derived keys change with the counter's upper bits; frames of both epochs
// come mixed.
func TestEpochs(t *testing.T) {
	server, client := ends(key(1))
	c, s := peer(), peer()
	client.connection(c).counter.Store(1<<epochBits - 2)
	var frames []*arpc.Message
	for range 4 {
		frames = append(frames, client.Encode(c, message("x")))
	}
	for _, i := range []int{2, 0, 3, 1} {
		if server.Decode(s, frames[i]) == nil {
			t.Errorf("frame %d was refused", i)
		}
	}
	a := must(newSealer(fromClient, &Key{Secret: make([]byte, KeyLen)}, sessionID{}, 0))
	b := must(newSealer(fromClient, &Key{Secret: make([]byte, KeyLen)}, sessionID{}, 1))
	iv := nonce(0)
	if bytes.Equal(a.aead.Seal(nil, iv[:], nil, nil), b.aead.Seal(nil, iv[:], nil, nil)) {
		t.Error("two epochs have one key")
	}
}

// Run under the race detector.
func TestConcurrentEncode(t *testing.T) {
	server, client := ends(key(1), key(2))
	c, s := peer(), peer()
	frames := make(chan *arpc.Message, 64)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				frames <- client.Encode(c, message("x"))
			}
		})
	}
	wg.Go(func() {
		for i := range 20 {
			if err := client.SetKeys(key(uint32(1+i%2)), key(uint32(2-i%2))); err != nil {
				t.Error(err)
			}
		}
	})
	go func() { wg.Wait(); close(frames) }()
	for m := range frames {
		if server.Decode(s, m) == nil {
			t.Error("refused")
		}
	}
}

func serve(t *testing.T, coders ...arpc.MessageCoder) (server *arpc.Server, addr string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server = arpc.NewServer()
	for _, c := range coders {
		server.Handler.UseCoder(c)
	}
	server.Handler.Handle("/echo", func(ctx *arpc.Context) {
		var text string
		if err := ctx.Bind(&text); err == nil {
			ctx.Write(text)
		}
	})
	server.Handler.Handle("/back", func(ctx *arpc.Context) {
		var text string
		if err := ctx.Client.CallWith(ctx, "/mine", "question", &text); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(text)
	}, true)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return server, ln.Addr().String()
}

func handler(coders ...arpc.MessageCoder) arpc.Handler {
	h := arpc.NewHandler()
	for _, c := range coders {
		h.UseCoder(c)
	}
	h.Handle("/mine", func(ctx *arpc.Context) { ctx.Write("answer") })
	return h
}

// Calls in both directions, with compression inside, before and after the client
// has connected again.
func TestConnection(t *testing.T) {
	s, c := ends(key(1))
	_, addr := serve(t, gzip.New(), s)
	var last atomic.Pointer[net.Conn]
	client, err := arpc.NewClient(func() (net.Conn, error) {
		conn, err := net.Dial("tcp", addr)
		last.Store(&conn)
		return conn, err
	}, handler(gzip.New(), c))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Stop()
	calls := func() {
		t.Helper()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for _, text := range []string{"", "small", strings.Repeat("large ", 50_000)} {
					var got string
					if err := client.Call("/echo", text, &got, patience); err != nil || got != text {
						t.Errorf("echo of %d bytes: %d bytes, %v", len(text), len(got), err)
					}
					if err := client.Call("/back", nil, &got, patience); err != nil || got != "answer" {
						t.Errorf("back: %q, %v", got, err)
					}
				}
			})
		}
		wg.Wait()
	}
	calls()
	again := make(chan struct{}, 1)
	client.Handler.HandleReconnect(func(_ *arpc.Client, _ int, err error) {
		if err == nil {
			select {
			case again <- struct{}{}:
			default:
			}
		}
	})
	(*last.Load()).Close()
	select {
	case <-again:
	case <-time.After(patience):
		t.Fatal("not connected again")
	}
	calls()
}

func TestBothWays(t *testing.T) {
	s, c := ends(key(1))
	codertest.BothWays(t, s, c)
}

// A frame that was recorded closes the connection that it is played to, on which
// the server has understood nothing.
func TestReplayOverConnection(t *testing.T) {
	s, c := ends(key(1))
	server, addr := serve(t, s)
	executed := make(chan struct{}, 4)
	server.Handler.Handle("/pay", func(ctx *arpc.Context) {
		executed <- struct{}{}
		ctx.Write("paid")
	})
	recorder := &recorder{}
	client, err := arpc.NewClient(func() (net.Conn, error) {
		conn, err := net.Dial("tcp", addr)
		recorder.Conn = conn
		return recorder, err
	}, handler(c))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Stop()
	if err := client.Call("/pay", "100", nil, patience); err != nil {
		t.Fatal(err)
	}
	<-executed
	recorded := recorder.bytes()

	evil, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer evil.Close()
	evil.SetDeadline(time.Now().Add(patience))
	if _, err := evil.Write(recorded); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for err = nil; err == nil; _, err = evil.Read(buf) {
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection was not closed")
	}
	if len(executed) != 0 {
		t.Error("executed again")
	}
	// Ends without the coder, or the key, get nowhere.
	for name, h := range map[string]arpc.Handler{"no coder": handler(), "no key": handler(must(NewClient(key(2))))} {
		other, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", addr) }, h)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Call("/pay", "100", nil, patience); err == nil || len(executed) != 0 {
			t.Errorf("%s: %v, %d executed", name, err, len(executed))
		}
		other.Stop()
	}
}

// recorder keeps what is written.
type recorder struct {
	net.Conn
	mu  sync.Mutex
	out []byte
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	r.out = append(r.out, b...)
	r.mu.Unlock()
	return r.Conn.Write(b)
}

func (r *recorder) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.out)
}

func FuzzDecode(f *testing.F) {
	_, client := ends(key(1))
	f.Add(client.Encode(nil, message("payload")).Buffer)
	f.Add(message("plain").Buffer)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < arpc.HeadLen {
			return
		}
		server := must(NewServer(key(1)))
		original := bytes.Clone(frame)
		m := server.Decode(nil, &arpc.Message{Buffer: frame})
		if !bytes.Equal(frame, original) {
			t.Fatal("changed")
		}
		if m != nil && (len(m.Buffer) < arpc.HeadLen || m.BodyLen() != len(m.Buffer)-arpc.HeadLen) {
			t.Fatalf("decoded to %x", m.Buffer)
		}
		if m != nil && server.Decode(nil, &arpc.Message{Buffer: frame}) != nil {
			t.Fatal("accepted twice")
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	_, client := ends(key(1))
	c := peer()
	m := message(strings.Repeat("x", 1000))
	b.ReportAllocs()
	b.SetBytes(int64(len(m.Buffer)))
	for b.Loop() {
		client.Encode(c, m)
	}
}

func BenchmarkDecode(b *testing.B) {
	server, client := ends(key(1))
	c, s := peer(), peer()
	b.ReportAllocs()
	m := message(strings.Repeat("x", 1000))
	b.SetBytes(int64(len(m.Buffer)))
	var frames [1024]*arpc.Message
	for i := 0; b.Loop(); i++ {
		if i%len(frames) == 0 {
			b.StopTimer()
			for j := range frames {
				frames[j] = client.Encode(c, m)
			}
			b.StartTimer()
		}
		if server.Decode(s, frames[i%len(frames)]) == nil {
			b.Fatal("refused")
		}
	}
}
