package session

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
)

var compressions = []CompressType{
	CompressNone, CompressZip, CompressBestSpeed, CompressBestCompression, CompressHuffman, CompressSnappy,
}

// Each write is flushed, both ways, whatever the compression, and in whatever pieces it arrives.
func TestCompression(t *testing.T) {
	onEach(t, streams, func(t *testing.T, tr transport) {
		for _, kind := range compressions {
			t.Run(fmt.Sprint(kind), func(t *testing.T) {
				served := newEvents(t)
				served.onMessage = echo(t)
				set := func(s Session) { s.SetCompressType(kind) }
				server := tr.serve(t, with(&lengthCodec{}, served, set))
				events, got := newEvents(t), make(chan string, 10)
				events.onMessage = func(_ Session, pkg any) { got <- pkg.(string) }
				tr.connect(t, server.Addr().String(), with(&lengthCodec{}, events, set))
				s := recv(t, events.opened, "OnOpen")
				for i := range 20 {
					text := strings.Repeat(fmt.Sprint(i), i*i*50)
					if total, sent, err := s.WritePkg(text, 0); err != nil || sent != total || total != 4+len(text) {
						t.Fatal(total, sent, err)
					}
					if g := recv(t, got, "echo"); g != text {
						t.Fatalf("%d bytes came back as %d", len(text), len(g))
					}
				}
				if n, err := s.WriteBytesArray(encode("array")[:3], encode("array")[3:]); n != 9 || err != nil {
					t.Error(n, err)
				}
				recv(t, got, "echo")
			})
		}
	})
}

// The streams are those of RFC 1951 and of snappy's framing, and come byte by byte as well.
func TestCompressionFormat(t *testing.T) {
	served := newEvents(t)
	served.onMessage = echo(t)
	for _, kind := range compressions {
		server := tcpPoll.serve(t, with(&lengthCodec{}, served, func(s Session) { s.SetCompressType(kind) }))
		nc, err := net.Dial("tcp", server.Addr().String())
		must(t, err)
		nc.(*net.TCPConn).SetNoDelay(true)
		var packed bytes.Buffer
		var w interface {
			io.Writer
			Flush() error
		}
		var r io.Reader = snappy.NewReader(nc)
		if w = snappy.NewBufferedWriter(&packed); kind != CompressSnappy {
			w, _ = flate.NewWriter(&packed, int(kind))
			r = flate.NewReader(nc)
		}
		text := strings.Repeat("abc", 100)
		w.Write(encode(text))
		must(t, w.Flush())
		for _, b := range packed.Bytes() {
			_, err := nc.Write([]byte{b})
			must(t, err)
		}
		nc.SetReadDeadline(time.Now().Add(patience))
		p := make([]byte, 4+len(text))
		if _, err := io.ReadFull(r, p); err != nil || !bytes.Equal(p, encode(text)) {
			t.Errorf("%v: %q, %v", kind, p, err)
		}
		nc.Close()
		recv(t, served.closed, "OnClose")
	}
}

// What is no compressed stream ends the session, and one that becomes large meets the limit of a package.
func TestCompressionHostile(t *testing.T) {
	var bomb bytes.Buffer
	w, _ := flate.NewWriter(&bomb, 9)
	w.Write([]byte{0x7f, 0, 0, 0})
	w.Write(make([]byte, 8<<20))
	w.Flush()
	for name, p := range map[string][]byte{"garbage": bytes.Repeat([]byte{0xff}, 100), "bomb": bomb.Bytes(), "end": {3, 0}} {
		served := newEvents(t)
		server := tcpPoll.serve(t, with(&lengthCodec{}, served, func(s Session) { s.SetCompressType(CompressZip) }))
		nc, err := net.Dial("tcp", server.Addr().String())
		must(t, err)
		nc.Write(p)
		io.Copy(io.Discard, nc)
		nc.Close()
		s := recv(t, served.closed, "OnClose")
		if name != "end" {
			recv(t, served.failed, "OnError of "+name)
		}
		if n := cap(s.in.rest); n > 200<<10 {
			t.Errorf("%s: %d bytes are kept", name, n)
		}
	}
}

// Concurrent writers of a compressed session do not mix their packages.
func TestConcurrentWriters(t *testing.T) {
	for _, kind := range []CompressType{99, CompressZip, CompressSnappy} {
		served, got := newEvents(t), make(chan string, 10000)
		served.onMessage = func(_ Session, pkg any) { got <- pkg.(string) }
		set := func(s Session) {
			if kind != 99 {
				s.SetCompressType(kind)
			}
		}
		server := tcpStd.serve(t, with(&lengthCodec{}, served, set))
		events := newEvents(t)
		tcpStd.connect(t, server.Addr().String(), with(&lengthCodec{}, events, set))
		s := recv(t, events.opened, "OnOpen")
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for range 20 {
					if _, _, err := s.WritePkg(strings.Repeat(string(rune('a'+i)), 100*i), patience); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for range 400 {
			g := recv(t, got, "package")
			if g != "" && (len(g) != 100*int(g[0]-'a') || strings.Trim(g, g[:1]) != "") {
				t.Fatalf("mixed: %q", g)
			}
		}
	}
}

// A peer that does not read makes writing fail in time, never block, and can be closed.
func TestBlockedPeer(t *testing.T) {
	onEach(t, []transport{tcpPoll, tcpStd, wsPoll}, func(t *testing.T, tr transport) {
		served := newEvents(t)
		server := tr.serve(t, with(&lengthCodec{}, served, func(s Session) { s.SetWaitTime(10 * time.Millisecond) }))
		nc := dialRaw(t, tr, server.Addr().String())
		defer nc.Close()
		s := recv(t, served.opened, "OnOpen")
		text := strings.Repeat("x", 60_000)
		var err error
		for sent, start := 0, time.Now(); err == nil; sent += len(text) {
			if _, _, err = s.WritePkg(text, time.Millisecond); sent > 64<<20 || time.Since(start) > patience {
				t.Fatalf("%d bytes were taken", sent)
			}
		}
		if err != ErrSessionBlocked {
			t.Errorf("%v", err)
		}
		waiting := make(chan error, 1)
		go func() { _, _, err := s.WritePkg(text, patience); waiting <- err }()
		s.Close()
		if err := recv(t, waiting, "end of a write that waits"); err != ErrSessionClosed {
			t.Errorf("%v", err)
		}
		recv(t, served.closed, "OnClose")
	})
}

// Callbacks may close their session, and another may do so at the same time.
func TestCloseFromCallbacks(t *testing.T) {
	onEach(t, all, func(t *testing.T, tr transport) {
		for _, where := range []string{"open", "message", "cron"} {
			served := newEvents(t)
			switch where {
			case "open":
				served.onOpen = func(s Session) error { s.Close(); s.Close(); return nil }
			case "message":
				served.onMessage = func(s Session, _ any) { s.Close(); s.Close() }
			case "cron":
				served.onCron = func(s Session) { s.Close(); go s.Close() }
			}
			server := tr.serve(t, with(&lengthCodec{}, served, func(s Session) { s.SetCronPeriod(5) }))
			events := newEvents(t)
			client := tr.connect(t, server.Addr().String(), with(&lengthCodec{}, events))
			s := recv(t, events.opened, "OnOpen")
			s.WritePkg("one", 0)
			s.WritePkg("two", 0)
			peer := recv(t, served.closed, "OnClose")
			client.Close()
			server.Close()
			n := 0
			for _, c := range served.calls(peer) {
				if c == where {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%s: %v", where, served.calls(peer))
			}
		}
	})
}

// A session without a codec or a listener drops what comes; panics of any callback end a session; settings can be read back.
func TestOddities(t *testing.T) {
	served := newEvents(t)
	var bare Session
	server := tcpPoll.serve(t, func(s Session) error {
		bare = s
		s.SetName("bare")
		s.SetAttribute("key", 1)
		served.opened <- s
		return nil
	})
	nc, err := net.Dial("tcp", server.Addr().String())
	must(t, err)
	s := recv(t, served.opened, "newSession")
	if s != bare || s.GetAttribute("key") != 1 || s.GetAttribute("other") != nil || !strings.Contains(s.Stat(), "bare") {
		t.Error(s.Stat())
	}
	s.RemoveAttribute("key")
	if s.GetAttribute("key") != nil {
		t.Error("the attribute is still there")
	}
	nc.Write(make([]byte, 100_000))
	if _, _, err := s.WritePkg("x", 0); err != errWriter {
		t.Errorf("%v", err)
	}
	s.SetWriter(&lengthCodec{})
	if _, _, err := s.WritePkg(7, 0); err != errCodec {
		t.Errorf("%v", err)
	}
	s.SetCompressType(5) // too late
	s.SetWriteTimeout(time.Second)
	s.SetReadTimeout(time.Second)
	if n, err := s.WriteBytes([]byte("x")); n != 1 || err != nil {
		t.Error(n, err)
	}
	nc.Read(make([]byte, 1))
	nc.Close()
	server.Close()
	if server.EndPointType() != TCP_SERVER || server.ID() == 0 || server.GetTaskPool() != nil {
		t.Error(server.EndPointType(), server.ID())
	}
	for name, p := range map[string]NewSessionCallback{
		"newSession": func(Session) error { panic("test") },
		"OnCron": func(s Session) error {
			e := newEvents(t)
			e.onCron = func(Session) { panic("test") }
			s.SetCronPeriod(1)
			return with(&lengthCodec{}, e)(s)
		},
		"Read": func(s Session) error {
			return with(&scriptCodec{given: make(chan string, 9), read: func([]byte) (any, int, error) { panic("test") }}, newEvents(t))(s)
		},
		"length": func(s Session) error {
			return with(&scriptCodec{given: make(chan string, 9), read: func([]byte) (any, int, error) { return "x", 9, nil }}, newEvents(t))(s)
		},
		"negative": func(s Session) error {
			return with(&scriptCodec{given: make(chan string, 9), read: func([]byte) (any, int, error) { return nil, -1, nil }}, newEvents(t))(s)
		},
		"zero": func(s Session) error {
			return with(&scriptCodec{given: make(chan string, 9), read: func([]byte) (any, int, error) { return "x", 0, nil }}, newEvents(t))(s)
		},
	} {
		server := tcpPoll.serve(t, p)
		nc, err := net.Dial("tcp", server.Addr().String())
		must(t, err)
		nc.Write([]byte("x"))
		nc.SetReadDeadline(time.Now().Add(patience))
		if n, err := io.Copy(io.Discard, nc); n != 0 || errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		nc.Close()
		server.Close()
	}
	if err := NewTCPServer(WithLocalAddress("127.0.0.1:-1")).RunEventLoop(nil); err == nil {
		t.Error("listens on port -1")
	}
	if err := NewWSSServer().RunEventLoop(nil); err != errNoTLS {
		t.Errorf("%v", err)
	}
}

// A package that is never completed ends its session.
func TestIncompletePackage(t *testing.T) {
	old := minPartial
	minPartial = 50 * time.Millisecond
	defer func() { minPartial = old }()
	served := newEvents(t)
	server := tcpPoll.serve(t, with(&lengthCodec{}, served, func(s Session) { s.SetCronPeriod(10); s.SetReadTimeout(time.Millisecond) }))
	nc, err := net.Dial("tcp", server.Addr().String())
	must(t, err)
	start := time.Now()
	nc.Write(encode("cut")[:5])
	io.Copy(io.Discard, nc)
	nc.Close()
	if err := recv(t, served.failed, "OnError"); err != errPartial || time.Since(start) < 50*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	recv(t, served.closed, "OnClose")
	server.Close() // before minPartial changes
}

// Any bytes in any pieces, compressed or not, give the same packages, and no more memory is kept than the limit allows.
func FuzzStream(f *testing.F) {
	var packed bytes.Buffer
	w, _ := flate.NewWriter(&packed, 9)
	w.Write(append(encode("one"), encode("two")...))
	w.Flush()
	f.Add(append(encode("one"), encode("two")...), uint8(3), uint8(0))
	f.Add(packed.Bytes(), uint8(1), uint8(1))
	f.Add(packed.Bytes()[:5], uint8(1), uint8(1))
	f.Fuzz(func(t *testing.T, p []byte, cut, mode uint8) {
		run := func(cut int) (pkgs []string, err error) {
			s := newConn(newEndPoint(TCP_SERVER, nil), nil, "", "")
			e := newEvents(t)
			e.onMessage = func(_ Session, pkg any) { pkgs = append(pkgs, pkg.(string)) }
			with(&lengthCodec{}, e)(s)
			s.SetMaxMsgLen(100)
			if mode&1 != 0 {
				s.SetCompressType(CompressZip)
			}
			if mode&2 != 0 {
				s.SetCompressType(CompressSnappy)
			}
			defer s.in.release()
			for len(p) > 0 && err == nil {
				n := min(cut, len(p))
				if err = s.stream(bytes.Clone(p[:n])); len(s.in.rest) > 100+max(n, 32<<10) {
					t.Fatalf("%d bytes are kept", len(s.in.rest))
				}
				p = p[n:]
			}
			return pkgs, err
		}
		whole := p
		a, errA := run(max(len(p), 1))
		p = whole
		b, errB := run(int(cut) + 1)
		if fmt.Sprint(a) != fmt.Sprint(b) && errA == nil && errB == nil || (errA == nil) != (errB == nil) {
			t.Fatalf("%v %v, in pieces %v %v", a, errA, b, errB)
		}
	})
}
