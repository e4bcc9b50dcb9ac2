package packet_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/packet"
)

func TestP01PersistentSessions(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		const n = 1000
		session, fromClient := make(chan *packet.Session, 1), make(chan string, n)
		server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
			server.OnSessionStart(func(s *packet.Session) {
				s.OnMessage(func(_ *packet.Session, m []byte) { fromClient <- string(m) })
				session <- s
			})
		})
		c := dial(t, server)
		s := recv(t, session, "session")
		for i := range n { // both ways at the same time
			must(t, c.SyncSend(packet.Bytes(fmt.Sprint("up ", i))))
			must(t, s.SyncSend(packet.Bytes(fmt.Sprint("down ", i))))
		}
		for i := range n {
			c.want([]byte(fmt.Sprint("down ", i)))
			if got := recv(t, fromClient, "packet"); got != fmt.Sprint("up ", i) {
				t.Fatalf("packet %d is %q", i, got)
			}
		}
		if server.Len() != 1 || s.Err() != nil || c.Err() != nil {
			t.Errorf("%d sessions, %v, %v", server.Len(), s.Err(), c.Err())
		}
	})
}

// Every form of the length, with bodies up to the largest, whole and byte by byte; erlang_test.go has the real peer.
func TestP02FixProtocol(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		for _, n := range []int{1, 2, 4, 8} {
			for _, order := range []binary.ByteOrder{binary.BigEndian, binary.LittleEndian} {
				t.Run(fmt.Sprintf("%d %v", n, order), func(t *testing.T) {
					proto := packet.NewFixProtocol(n, order)
					c := dial(t, serve(t, std, proto, packet.Limits{}, onMessage(echo)))
					most := []int{1: 255, 2: 65535, 4: 1 << 20, 8: 1 << 20}[n]
					for _, size := range []int{0, 1, 2, 100, most, 0} {
						body := random(size)
						must(t, c.Send(packet.Bytes(body)))
						c.want(body)
					}
					wantTooLarge(t, "one more", c.Send(packet.Bytes(make([]byte, most+1))), uint64(most+1), uint64(most))
					must(t, c.Send(packet.Bytes("still in step")))
					c.want([]byte("still in step"))
				})
			}
		}
	})
}

func TestP02OtherLengthsAreRefusedAtOnce(t *testing.T) {
	for _, n := range []int{-1, 0, 3, 5, 16} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a length of %d bytes was taken", n)
				}
			}()
			packet.NewFixProtocol(n, binary.BigEndian)
		}()
	}
	if _, err := packet.ListenAndServe("tcp", "127.0.0.1:0", nil); err == nil {
		t.Error("a server without a protocol")
	}
	if _, err := packet.Dial("udp", "127.0.0.1:1", four); err == nil {
		t.Error("packets over datagrams")
	}
	var unknown net.UnknownNetworkError
	if _, err := packet.ListenAndServe("udp", "127.0.0.1:0", four); !errors.As(err, &unknown) {
		t.Error(err)
	}
}

// lines is a user's protocol.
type lines struct{}

func (lines) Split(buf []byte, limit int) (n, need int, err error) {
	return bytes.IndexByte(buf, '\n') + 1, 0, nil
}
func (lines) Body(p []byte) []byte  { return p[:len(p)-1] }
func (lines) Begin(b []byte) []byte { return b }
func (lines) End(b []byte, limit int) ([]byte, error) {
	if bytes.IndexByte(b, '\n') >= 0 {
		return nil, errors.New("two lines")
	}
	return append(b, '\n'), nil
}

func TestP03CustomProtocol(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		ended := make(chan error, 1)
		server := serve(t, std, lines{}, packet.Limits{Receive: 100}, func(server *packet.Server) {
			server.OnSessionStart(func(s *packet.Session) { s.OnMessage(echo) })
			server.OnSessionClose(func(s *packet.Session) { ended <- s.Err() })
		})
		nc := raw(t, server)
		write(t, nc, []byte("one\ntwo\n\nthr"))
		read(t, nc, []byte("one\ntwo\n\n"))
		write(t, nc, []byte("ee\n"))
		read(t, nc, []byte("three\n"))
		c := dial(t, server)
		if err := c.Send(packet.Bytes("a\nb")); err == nil || err.Error() != "two lines" {
			t.Errorf("what the protocol refuses: %v", err)
		}
		must(t, c.Send(packet.Bytes("line")))
		c.want([]byte("line"))

		// A line that does not end is not collected for ever.
		write(t, nc, bytes.Repeat([]byte{'x'}, 500))
		hangUp(t, nc)
		wantErr(t, "end of the session", recv(t, ended, "end"), packet.ErrTooLarge)
		must(t, c.Send(packet.Bytes("still here")))
		c.want([]byte("still here"))
	})
}

// broken is a protocol with an error.
type broken struct {
	lines
	split func(buf []byte) (int, int, error)
}

func (b broken) Split(buf []byte, _ int) (int, int, error) { return b.split(buf) }

func TestP03BrokenProtocols(t *testing.T) {
	own := errors.New("checksum")
	for _, tt := range []struct {
		name  string
		split func([]byte) (int, int, error)
		err   error
	}{
		{"beyond the end", func(b []byte) (int, int, error) { return len(b) + 1, 0, nil }, packet.ErrProtocol},
		{"before the start", func([]byte) (int, int, error) { return -1, 0, nil }, packet.ErrProtocol},
		{"announces too much", func([]byte) (int, int, error) { return 0, math.MaxInt, nil }, packet.ErrTooLarge},
		{"an error of its own", func([]byte) (int, int, error) { return 0, 0, own }, own},
		{"a panic", func([]byte) (int, int, error) { panic("split") }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ended := make(chan error, 1)
			server := serve(t, 0, broken{split: tt.split}, packet.Limits{}, func(server *packet.Server) {
				server.OnSessionClose(func(s *packet.Session) { ended <- s.Err() })
			})
			nc := raw(t, server)
			write(t, nc, []byte("some bytes"))
			hangUp(t, nc)
			switch err := recv(t, ended, "end"); {
			case tt.err != nil:
				wantErr(t, "end", err, tt.err)
			case err == nil:
				t.Error("no reason")
			}
		})
	}
}

// point is a message in a format of its own.
type point struct{ x, y uint16 }

func (p point) RecommendPacketSize() uint { return 4 }
func (p point) AppendToPacket(b []byte) []byte {
	return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, p.x), p.y)
}

// document is a message in JSON.
type document map[string]int

func (document) RecommendPacketSize() uint { return 64 }
func (d document) AppendToPacket(b []byte) []byte {
	text, err := json.Marshal(d)
	if err != nil {
		panic(err)
	}
	return append(b, text...)
}

func TestP04MessageFormatIsFree(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		c := dial(t, serve(t, std, four, packet.Limits{}, onMessage(echo)))
		must(t, c.Send(point{1, 515}))
		must(t, c.Send(document{"a": 1}))
		c.want([]byte{1, 0, 3, 2})
		c.want([]byte(`{"a":1}`))
	})
}

func TestP05Sessions(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		started, closed := make(chan uint64, 3), make(chan uint64, 3)
		stopped := make(chan *packet.Server, 2)
		server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
			server.State = "the server's"
			server.OnSessionStart(func(s *packet.Session) { s.State = s.Id(); started <- s.Id() })
			server.OnSessionClose(func(s *packet.Session) {
				server.Fetch(func(other *packet.Session) {
					if other == s {
						t.Error("a session is in the table when its close hook runs")
					}
				})
				closed <- s.State.(uint64)
			})
			server.OnServerStop(func(s *packet.Server) { stopped <- s })
		})
		var clients []*client
		for i := range 3 {
			clients = append(clients, dial(t, server))
			if id := recv(t, started, "start"); id != uint64(i+1) {
				t.Errorf("session %d has the id %d", i+1, id)
			}
		}
		ids := map[uint64]bool{}
		server.Fetch(func(s *packet.Session) {
			if _, port, err := net.SplitHostPort(s.RawConn().RemoteAddr().String()); err != nil || port == "0" {
				t.Errorf("remote address %v", s.RawConn().RemoteAddr())
			}
			if got := s.RawConn().LocalAddr().String(); got != addr(server) {
				t.Errorf("local address %v", got)
			}
			if _, err := s.RawConn().Write(nil); err == nil {
				t.Error("bytes past the protocol")
			}
			ids[s.Id()] = true
		})
		if server.Len() != 3 || len(ids) != 3 {
			t.Errorf("%d sessions, %v", server.Len(), ids)
		}
		clients[0].Close()
		if id := recv(t, closed, "close"); id != 1 {
			t.Errorf("session %d closed", id)
		}
		recv(t, clients[0].closed, "close callback")
		if server.Len() != 2 {
			t.Errorf("%d sessions", server.Len())
		}
		server.Stop()
		if len(closed) != 2 || server.Len() != 0 {
			t.Errorf("%d close hooks, %d sessions after Stop", len(closed), server.Len())
		}
		for _, c := range clients[1:] {
			recv(t, c.closed, "close callback")
			wantErr(t, "end", c.Err(), io.EOF)
			wantErr(t, "Send after it", c.Send(packet.Bytes("x")), packet.ErrClosed)
		}
		server.Stop()
		if recv(t, stopped, "stop hook") != server || len(stopped) != 0 {
			t.Error("the stop hook did not run once")
		}
		if nc, err := net.Dial("tcp", addr(server)); err == nil {
			nc.Close()
			t.Error("the port is still open")
		}
	})
}

func TestP08AcceptsAfterStart(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		server := listen(t, std, four, packet.Limits{})
		nc := raw(t, server)
		write(t, nc, framed([]byte("early")))
		server.OnSessionStart(func(s *packet.Session) { s.OnMessage(echo) }) // nobody has come so far
		if server.Len() != 0 {
			t.Error("accepted before Start")
		}
		must(t, server.Start())
		read(t, nc, framed([]byte("early")))
		wantErr(t, "a second Start", server.Start(), packet.ErrStarted)
	})
}

func TestP09NoPacketIsMissed(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		ready := make(chan struct{})
		server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
			server.OnSessionStart(func(s *packet.Session) {
				<-ready // the packets are here before the handler is
				s.OnMessage(echo)
			})
		})
		var conns []net.Conn
		for i := range 20 {
			nc := raw(t, server)
			write(t, nc, append(framed([]byte{byte(i)}), framed([]byte("second"))...))
			conns = append(conns, nc)
		}
		close(ready)
		for i, nc := range conns {
			read(t, nc, append(framed([]byte{byte(i)}), framed([]byte("second"))...))
		}
	})
}

func TestP10Dial(t *testing.T) {
	server := serve(t, 0, four, packet.Limits{}, onMessage(echo))
	s, err := packet.DialTimeout("tcp", addr(server), patience, four)
	must(t, err)
	wantErr(t, "Send before Start", s.Send(packet.Bytes("x")), packet.ErrNotStarted)
	wantErr(t, "SetTimeouts before Start", s.SetTimeouts(1, 1), packet.ErrNotStarted)
	wantErr(t, "Join before Start", packet.NewChannel(four).Join(s, nil), packet.ErrNotStarted)
	got := make(chan string, 1)
	s.SetMessageHandler(handler{got})
	must(t, s.Start(nil))
	wantErr(t, "a second Start", s.Start(nil), packet.ErrStarted)
	must(t, s.Send(packet.Bytes("hello")))
	if m := recv(t, got, "packet"); m != "hello" {
		t.Error(m)
	}
	other := dial(t, server)
	if other.Id() <= s.Id() {
		t.Errorf("ids %d, %d", s.Id(), other.Id())
	}
	s.Close()
	other.Close()
	recv(t, other.closed, "close callback")
	wantErr(t, "end", other.Err(), packet.ErrClosed)

	if _, err := packet.DialTimeout("tcp", addr(server), 1, four); err == nil {
		t.Error("connected within a nanosecond")
	}
	never, err := packet.Dial("tcp", addr(server), four)
	must(t, err)
	never.Close()
	never.Close()
	wantErr(t, "Start after Close", never.Start(func(*packet.Session) { t.Error("close callback") }), packet.ErrClosed)
	wantErr(t, "Send after Close", never.Send(packet.Bytes("x")), packet.ErrClosed)
}

type handler struct{ got chan string }

func (h handler) Handle(_ *packet.Session, m []byte) { h.got <- string(m) }

// Other listeners and dialers.
func TestP10OtherTransports(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	unix, err := packet.ListenAndServe("unix", path, four)
	must(t, err)
	unixClient := func() (*packet.Session, error) { return packet.Dial("unix", path, four) }
	ln, pipe := arpc.Pipe()
	pipeClient := func() (*packet.Session, error) {
		nc, err := pipe()
		return packet.NewSession(nc, four), err
	}
	web := httptest.NewTLSServer(nil) // it has a certificate
	web.Close()
	trust := x509.NewCertPool()
	trust.AddCert(web.Certificate())
	secure, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates})
	must(t, err)
	secureClient := func() (*packet.Session, error) {
		nc, err := tls.Dial("tcp", secure.Addr().String(), &tls.Config{RootCAs: trust, ServerName: "example.com"})
		return packet.NewSession(nc, four), err
	}
	for _, tt := range []struct {
		name   string
		server *packet.Server
		dial   func() (*packet.Session, error)
	}{
		{"unix", unix, unixClient},
		{"pipe", packet.NewServer(ln, four), pipeClient},
		{"tls", packet.NewServer(secure, four), secureClient},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Cleanup(tt.server.Stop)
			onMessage(echo)(tt.server)
			must(t, tt.server.Start())
			s, err := tt.dial()
			must(t, err)
			c := start(t, s)
			must(t, c.Send(packet.Bytes("hello")))
			c.want([]byte("hello"))
		})
	}
}

// hinted recommends whatever it is told to.
type hinted struct {
	body []byte
	hint uint
	move bool // the result is other memory than what was given
}

func (h hinted) RecommendPacketSize() uint { return h.hint }
func (h hinted) AppendToPacket(b []byte) []byte {
	if h.move {
		b = bytes.Clone(b)
	}
	return append(b, h.body...)
}

// shrinks breaks the rule to append.
type shrinks struct{}

func (shrinks) RecommendPacketSize() uint      { return 0 }
func (shrinks) AppendToPacket(b []byte) []byte { return b[:0] }

func TestP11SizeHints(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		c := dial(t, serve(t, std, four, packet.Limits{}, onMessage(echo)))
		for _, size := range []int{0, 1, 511, 512, 513, 5000, 100_000, 1 << 20} {
			for _, hint := range []uint{0, 1, uint(size), uint(2 * size), 1 << 21, math.MaxUint} {
				body := random(size)
				must(t, c.Send(hinted{body, hint, size%2 == 1}))
				c.want(body)
			}
		}
		wantErr(t, "a message that takes away", c.Send(shrinks{}), packet.ErrProtocol)
		must(t, c.Send(packet.Bytes("still in step")))
		c.want([]byte("still in step"))
	})
}

func TestP12Send(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		c := dial(t, serve(t, std, four, packet.Limits{}, onMessage(echo)), packet.Limits{Send: 10})
		must(t, c.Send(packet.Bytes("ten bytes.")))
		c.want([]byte("ten bytes."))
		wantTooLarge(t, "eleven", c.Send(packet.Bytes("eleven byte")), 11, 10)
		wantTooLarge(t, "eleven", c.SyncSend(packet.Bytes("eleven byte")), 11, 10)
		wantTooLarge(t, "eleven", c.SendPacket(framed([]byte("eleven byte"))), 11, 10)
		c.SetMaxSize(1<<20, 11)
		must(t, c.Send(packet.Bytes("eleven byte")))
		c.want([]byte("eleven byte"))

		// Both kinds, and what is framed already, keep their order.
		for i := range 100 {
			body := []byte(strconv.Itoa(i))
			switch i % 4 {
			case 0:
				must(t, c.Send(packet.Bytes(body)))
			case 1:
				must(t, c.SyncSend(packet.Bytes(body)))
			case 2:
				p := framed(body)
				must(t, c.SendPacket(p))
				clear(p) // it may be used again
			case 3:
				must(t, c.SyncSendPacket(append(framed(body), framed([]byte("two"))...)))
			}
		}
		for i := range 100 {
			c.want([]byte(strconv.Itoa(i)))
			if i%4 == 3 {
				c.want([]byte("two"))
			}
		}
		for _, p := range [][]byte{{0}, {0, 0, 0, 2, 'a'}, append(framed(nil), 1)} {
			wantErr(t, fmt.Sprintf("%x", p), c.SendPacket(p), packet.ErrProtocol)
		}
		c.Close()
		for _, err := range []error{c.Send(packet.Bytes("x")), c.SyncSend(packet.Bytes("x")), c.SendPacket(framed(nil))} {
			wantErr(t, "after Close", err, packet.ErrClosed)
		}
	})
}
