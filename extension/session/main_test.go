package session

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lengthCodec puts a length of four bytes before a string. It unwraps what UDP wraps.
type lengthCodec struct{ reads atomic.Int64 }

var errCodec = errors.New("test: not a package")

func (c *lengthCodec) Read(_ Session, p []byte) (any, int, error) {
	if len(p) < 4 {
		return nil, 0, nil
	}
	n := int(binary.BigEndian.Uint32(p))
	if n == 0xbad {
		return nil, 0, errCodec
	}
	if len(p) < 4+n {
		return nil, 4 + n, nil
	}
	c.reads.Add(1)
	return string(p[4 : 4+n]), 4 + n, nil
}

func (c *lengthCodec) Write(_ Session, pkg any) ([]byte, error) {
	switch u := pkg.(type) {
	case UDPContext:
		pkg = u.Pkg
	case *UDPContext:
		pkg = u.Pkg
	}
	text, ok := pkg.(string)
	if !ok {
		return nil, errCodec
	}
	return encode(text), nil
}

func encode(text string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
}

// events is an EventListener that checks the order of its calls and writes them down.
type events struct {
	t         testing.TB
	onOpen    func(Session) error
	onMessage func(Session, any)
	onCron    func(Session)

	mu     sync.Mutex
	log    map[Session][]string
	opened chan Session
	closed chan Session
	failed chan error
	inside sync.Map // Session to *atomic.Int32
}

func newEvents(t testing.TB) *events {
	return &events{
		t: t, log: map[Session][]string{},
		opened: make(chan Session, 10000), closed: make(chan Session, 10000), failed: make(chan error, 10000),
	}
}

// enter notes a call, of which one at a time is allowed.
func (e *events) enter(s Session, what string) func() {
	if s == nil {
		e.t.Error("nil session")
	}
	n, _ := e.inside.LoadOrStore(s, new(atomic.Int32))
	if n.(*atomic.Int32).Add(1) != 1 {
		e.t.Errorf("%s beside another callback", what)
	}
	e.mu.Lock()
	e.log[s] = append(e.log[s], what)
	e.mu.Unlock()
	return func() { n.(*atomic.Int32).Add(-1) }
}

func (e *events) calls(s Session) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string(nil), e.log[s]...)
}

func (e *events) OnOpen(s Session) error {
	defer e.enter(s, "open")()
	if e.onOpen != nil {
		if err := e.onOpen(s); err != nil {
			return err
		}
	}
	e.opened <- s
	return nil
}

func (e *events) OnClose(s Session) {
	defer e.enter(s, "close")()
	e.closed <- s
}

func (e *events) OnError(s Session, err error) {
	defer e.enter(s, "error")()
	e.failed <- err
}

func (e *events) OnCron(s Session) {
	defer e.enter(s, "cron")()
	if e.onCron != nil {
		e.onCron(s)
	}
}

func (e *events) OnMessage(s Session, pkg any) {
	if s.set.Load().pool == nil {
		defer e.enter(s, "message")()
	}
	if e.onMessage != nil {
		e.onMessage(s, pkg)
	}
}

// echo sends back what comes.
func echo(t testing.TB) func(Session, any) {
	return func(s Session, pkg any) {
		if _, _, err := s.WritePkg(pkg, patience); err != nil && !s.IsClosed() {
			t.Errorf("echo: %v", err)
		}
	}
}

// with is a NewSessionCallback.
func with(codec ReadWriter, l EventListener, more ...func(Session)) NewSessionCallback {
	return func(s Session) error {
		s.SetPkgHandler(codec)
		s.SetEventListener(l)
		for _, f := range more {
			f(s)
		}
		return nil
	}
}

// stdConns chooses the adapter: -1 is std, 0 poll.
func withStd(n int) Option { return func(o *options) { o.std = n } }

type transport struct {
	name   string
	std    int
	server func(...Option) Server
	client func(...Option) Client
	tls    bool
	url    string
}

var (
	tcpPoll = transport{name: "tcp poll", std: 0, server: NewTCPServer, client: NewTCPClient}
	tcpStd  = transport{name: "tcp std", std: -1, server: NewTCPServer, client: NewTCPClient}
	udp     = transport{name: "udp", server: NewUDPEndPoint, client: NewUDPClient}
	wsPoll  = transport{name: "ws poll", std: 0, server: NewWSServer, client: NewWSClient, url: "ws://%s/echo"}
	wsStd   = transport{name: "ws std", std: -1, server: NewWSServer, client: NewWSClient, url: "ws://%s/echo"}
	secure  = []transport{
		{name: "tls", server: NewTCPServer, client: NewTCPClient, tls: true},
		{name: "wss", server: NewWSSServer, client: NewWSSClient, tls: true, url: "wss://%s/echo"},
	}
	streams = []transport{tcpPoll, tcpStd}
	conns   = append([]transport{tcpPoll, tcpStd, wsPoll, wsStd}, secure...)
	all     = append([]transport{udp}, conns...)
)

func onEach(t *testing.T, transports []transport, f func(t *testing.T, tr transport)) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) { f(t, tr) })
	}
}

// serve starts a server, which the test's end stops.
func (tr transport) serve(t testing.TB, newSession NewSessionCallback, opts ...Option) Server {
	t.Helper()
	opts = append([]Option{WithLocalAddress("127.0.0.1:0"), withStd(tr.std), WithWebsocketServerPath("/echo")}, opts...)
	if tr.tls {
		opts = append(opts, WithTLS(&tls.Config{Certificates: []tls.Certificate{certificate()}}))
	}
	server := tr.server(opts...)
	must(t, server.RunEventLoop(newSession))
	t.Cleanup(server.Close)
	return server
}

func (tr transport) address(addr string) string {
	if tr.url != "" {
		return fmt.Sprintf(tr.url, addr)
	}
	return addr
}

// connect returns a client, which the test's end stops before the server.
func (tr transport) connect(t testing.TB, addr string, newSession NewSessionCallback, opts ...Option) Client {
	t.Helper()
	opts = append([]Option{WithServerAddress(tr.address(addr)), WithReconnectInterval(int(10 * time.Millisecond))}, opts...)
	if tr.tls {
		pool := x509.NewCertPool()
		pool.AddCert(certificate().Leaf)
		opts = append(opts, WithTLS(&tls.Config{RootCAs: pool}))
	}
	client := tr.client(opts...)
	t.Cleanup(client.Close)
	must(t, client.RunEventLoop(newSession))
	return client
}

// certificate is one for 127.0.0.1.
var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})
