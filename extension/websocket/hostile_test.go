package websocket

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	gobwas "github.com/gobwas/ws"

	"github.com/arpc-go/arpc"
)

// within waits until f holds.
func within(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// A foreign page is told 403 and no more, and the server has no connection of it.
func TestForeignOrigin(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		connected := make(chan struct{}, 10)
		url := serve(t, func(h arpc.Handler) {
			h.HandleConnected(func(*arpc.Client) { connected <- struct{}{} })
		}, []arpc.ServerOption{adapter}, Origins("https://app.example"))
		for _, origin := range []string{"https://evil.example", "http://app.example", "https://app.example.evil", "https://app.example:444", "null"} {
			p := dialTCP(t, url)
			p.send([]byte(handshake("Origin: " + origin + "\r\n")))
			rsp, err := http.ReadResponse(p.r, nil)
			if err != nil || rsp.StatusCode != http.StatusForbidden {
				t.Errorf("%s: %+v, %v", origin, rsp, err)
			}
		}
		p := dialRaw(t, url, "Origin: https://app.example\r\n")
		p.send(message(fin|bin, request(1, "x")))
		p.wants(2, answer(1, "x"))
		<-connected
		if len(connected) > 0 {
			t.Errorf("%d connections of foreign pages", len(connected))
		}
	})
}

// A message above the limit is refused by its header; the peer can read why, though it goes on sending.
func TestMessageAboveLimit(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		url := serve(t, nil, []arpc.ServerOption{adapter}, ReadLimit(1<<20))
		other := dial(t, Dialer(url))
		big := message(fin|bin, request(1, strings.Repeat("x", 10<<20)))
		for _, fragmented := range []bool{false, true} {
			p := dialRaw(t, url, "")
			in := big
			if fragmented {
				f := request(1, strings.Repeat("x", 10<<20))
				in = message(bin, f[:4096])
				for f = f[4096:]; len(f) > 0; f = f[min(4096, len(f)):] {
					in = append(in, message(cont, f[:min(4096, len(f))])...)
				}
			}
			sent := make(chan struct{})
			go func() { defer close(sent); p.Write(in) }()
			p.wantsClose(1009)
			p.Close()
			<-sent
			stillServes(t, other)
		}
		p := dialRaw(t, url, "") // at the limit
		body := strings.Repeat("x", 1<<20-len(request(1, "")))
		p.send(message(fin|bin, request(1, body)))
		p.wants(2, answer(1, body))
	})
}

// Who does not finish the handshake is cut, and nobody waits for it.
func TestSlowHandshake(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		url := serve(t, nil, []arpc.ServerOption{adapter}, HandshakeTimeout(500*time.Millisecond))
		var slow []*rawPeer
		whole := handshake("")
		for _, n := range []int{0, 1, len(whole) / 2, len(whole) - 1} {
			p := dialTCP(t, url)
			p.send([]byte(whole[:n]))
			slow = append(slow, p)
		}
		stillServes(t, dial(t, Dialer(url)))
		for _, p := range slow {
			rest, err := io.ReadAll(p.r)
			if te, ok := err.(net.Error); ok && te.Timeout() {
				t.Errorf("not cut within %v", patience)
			}
			if bytes.Contains(rest, []byte(" 101 ")) {
				t.Errorf("upgraded: %q", rest)
			}
		}
		// the time of the handshake is none of the connection
		p := dialRaw(t, url, "")
		time.Sleep(700 * time.Millisecond) // nothing can be waited for but time
		p.send(message(fin|bin, request(1, "late")))
		p.wants(2, answer(1, "late"))
	})
}

// A message that never ends.
func TestEndlessFragments(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		url := serve(t, nil, []arpc.ServerOption{adapter}, ReadLimit(1<<20))
		other := dial(t, Dialer(url))
		// contents that begin an arpc frame which never is whole
		announced := binary.LittleEndian.AppendUint32(nil, 32<<20)
		announced = append(announced, 0, arpc.CmdRequest, 0, 5, 1, 0, 0, 0, 0, 0, 0, 0)
		for _, tt := range []struct {
			name        string
			first, more []byte
			code        uint16
		}{
			{"empty", message(bin, nil), message(cont, nil), 1008},
			{"empty after some", message(bin, announced), message(cont, nil), 1008},
			{"empty between pings", message(bin, nil), append(message(fin|10, nil), message(cont, nil)...), 1008},
			{"of one byte", message(bin, announced), message(cont, []byte("x")), 1009},
			{"of a KiB", message(bin, announced), message(cont, make([]byte, 1024)), 1009},
		} {
			t.Run(tt.name, func(t *testing.T) {
				p := dialRaw(t, url, "")
				p.send(tt.first)
				more, stopped := bytes.Repeat(tt.more, 1+32<<10/len(tt.more)), make(chan struct{})
				go func() {
					defer close(stopped)
					for {
						if _, err := p.Write(more); err != nil {
							return
						}
					}
				}()
				p.wantsClose(tt.code)
				p.Close()
				<-stopped
				stillServes(t, other)
			})
		}
	})
}

// pack compresses a message as RFC 7692 has it.
func pack(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(p)
	w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte{0, 0, 0xff, 0xff})
}

// A small message that is large when it is unpacked.
func TestCompressionBomb(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		url := serve(t, nil, []arpc.ServerOption{adapter}, ReadLimit(1<<20), Compression(1000))
		other := dial(t, Dialer(url, Compression(10)))
		const offer = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
		p := dialTCP(t, url)
		p.send([]byte(handshake(offer)))
		if got := p.upgraded().Header.Get("Sec-WebSocket-Extensions"); !strings.HasPrefix(got, "permessage-deflate") {
			t.Fatalf("compression was not agreed upon: %q", got)
		}
		p.send(message(fin|bin|rsv1, pack(t, request(1, strings.Repeat("x", 900)))))
		p.wants(2, answer(1, strings.Repeat("x", 900)))
		bomb := message(fin|bin|rsv1, pack(t, request(2, strings.Repeat("x", 8<<20))))
		if len(bomb) > 1<<20 {
			t.Fatalf("the bomb has %d bytes", len(bomb))
		}
		p.send(bomb)
		p.wantsClose(1009)
		p.Close()
		stillServes(t, other)
	})
}

// Silence within a frame of WebSocket is silence: the limit of silent connections holds.
func TestSilence(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		url := serve(t, nil, []arpc.ServerOption{adapter, arpc.Limits{Idle: time.Second}})
		for name, in := range map[string][]byte{
			"nothing": nil, "half a header": {fin | bin}, "half a length": {fin | bin, 0xfe, 1}, "half a mask": {fin | bin, 0x81, 1, 2},
			"half of nothing yet":       message(bin, nil),
			"a message that is not all": message(fin|bin, request(1, "x"))[:12],
			"half a ping":               message(fin|9, []byte("abc"))[:7],
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p := dialRaw(t, url, "")
				p.send(in)
				if reason := p.wantsClose(1001); !strings.Contains(reason, "nothing received") {
					t.Errorf("closed for %q", reason)
				}
				p.wantsEnd()
			})
		}
		t.Run("beside one that speaks", func(t *testing.T) {
			t.Parallel()
			p := dialRaw(t, url, "")
			for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
				op, m := p.next()
				if op == 8 {
					t.Fatalf("closed: %q", m)
				}
				if op == 2 && len(m) >= arpc.HeadLen && m[5] == arpc.CmdPing {
					p.send(message(fin|bin, arpcFrame(arpc.CmdPong, 0, "", "")))
				}
			}
		})
	})
}

// A part of an arpc frame and then silence: the limit for that holds, which is much shorter than that of idle connections.
func TestPartialFrame(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		url := serve(t, nil, []arpc.ServerOption{adapter, arpc.Limits{PartialFrame: time.Second}})
		other := dial(t, Dialer(url))
		f := request(1, "x")
		for name, in := range map[string][]byte{
			"in whole messages": message(fin|bin, f[:17]),
			"in a fragment":     message(bin, f[:17]),
			"in half a frame":   message(fin|bin, f)[:20],
		} {
			p := dialRaw(t, url, "")
			p.send(in)
			for {
				op, m := p.next()
				if op != 8 {
					continue
				}
				if len(m) < 2 || !strings.Contains(string(m[2:]), "incomplete frame") {
					t.Errorf("%s: closed with %q", name, m)
				}
				break
			}
		}
		stillServes(t, other)
	})
}

// sockets counts the open descriptors, 0 where the system does not tell.
func sockets() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

// busy counts the goroutines of connections and handshakes; workers that wait for work are none.
func busy() (n int) {
	b := make([]byte, 4<<20)
	for stack := range strings.SplitSeq(string(b[:runtime.Stack(b, true)]), "\n\n") {
		if strings.Contains(stack, "arpc/internal/core.") || strings.Contains(stack, "net/http.") {
			n++
		}
	}
	return n
}

// Clients that connect and vanish leave nothing behind.
func TestVanish(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		s := arpc.NewServer(arpc.NewHandler(), adapter)
		s.Handler.Handle("/echo", echo)
		ln, err := Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		t.Cleanup(func() { s.Stop(); <-served })
		url := "ws://" + ln.Addr().String()
		clients := func() (n int) {
			s.ForEach(func(*arpc.Client) { n++ })
			return n
		}
		other := dial(t, Dialer(url))
		stillServes(t, other)
		within(t, "the first client", func() bool { return clients() == 1 })
		files, goroutines := sockets(), busy()
		const total, batch = 1000, 50
		for i := 0; i < total; i += batch {
			var peers []*rawPeer
			for range batch {
				peers = append(peers, dialTCP(t, url))
				peers[len(peers)-1].send([]byte(handshake("")))
			}
			for j, p := range peers {
				if j%5 > 0 { // the others vanish before they read the answer
					p.upgraded()
				}
				switch j % 5 {
				case 0, 1:
					p.Conn.(*net.TCPConn).SetLinger(0)
				case 2:
					p.send([]byte{fin | bin})
				case 3:
					p.send(message(fin|bin, request(1, strings.Repeat("x", 100_000))))
					p.Conn.(*net.TCPConn).SetLinger(0)
				}
				p.Close()
			}
		}
		within(t, "the end of all clients but one", func() bool { return clients() == 1 })
		within(t, "the end of all sockets", func() bool { return sockets() <= files+2 })
		within(t, "the end of all goroutines", func() bool { return busy() <= goroutines+2 })
		stillServes(t, other)
	})
}

// Server.Stop says that it goes, and why.
func TestServerStopIsSaid(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		s := arpc.NewServer(arpc.NewHandler(), adapter)
		s.Handler.Handle("/echo", echo)
		ln, err := Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		p := dialRaw(t, "ws://"+ln.Addr().String(), "")
		p.send(message(fin|bin, request(1, "x")))
		p.wants(2, answer(1, "x"))
		stopped := make(chan error, 1)
		go func() { stopped <- s.Stop() }()
		if reason := p.wantsClose(1001); !strings.Contains(reason, "server stopped") {
			t.Errorf("reason %q", reason)
		}
		p.send(message(fin|8, []byte{3, 233}))
		p.wantsEnd()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		<-served
	})
}

// readFrame reads a short frame.
func readFrame(r io.Reader) (gobwas.Frame, error) {
	h, err := gobwas.ReadHeader(r)
	if err != nil || h.Length > 4096 {
		return gobwas.Frame{Header: h}, err
	}
	f := gobwas.Frame{Header: h, Payload: make([]byte, h.Length)}
	_, err = io.ReadFull(r, f.Payload)
	return f, err
}

// Client.Stop is an ordinary end.
func TestClientStopIsSaid(t *testing.T) {
	for _, version := range []int{1, 2} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		accepted := make(chan net.Conn, 1)
		go func() {
			defer close(accepted)
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			nc.SetDeadline(time.Now().Add(patience))
			if _, err := gobwas.Upgrade(nc); err != nil {
				nc.Close()
				return
			}
			if version == 2 { // HELLO, which is answered as version 1 does
				f, err := readFrame(nc)
				if err != nil || f.Header.OpCode != gobwas.OpBinary || !f.Header.Masked {
					t.Errorf("HELLO: %+v, %v", f.Header, err)
				}
				gobwas.WriteFrame(nc, gobwas.NewBinaryFrame(arpcFrame(arpc.CmdPong, 0, "", "")))
			}
			accepted <- nc
		}()
		c := dial(t, Dialer("ws://"+ln.Addr().String()), arpc.Protocol(version))
		nc, ok := <-accepted
		if !ok {
			t.Fatal("no connection")
		}
		stopped := make(chan struct{})
		go func() { defer close(stopped); c.Stop() }()
		f, err := readFrame(nc)
		if err != nil || f.Header.OpCode != gobwas.OpClose || !f.Header.Masked {
			t.Fatalf("%+v, %v", f.Header, err)
		}
		if code, _ := gobwas.ParseCloseFrameData(gobwas.UnmaskFrame(f).Payload); code != gobwas.StatusNormalClosure {
			t.Errorf("version %d: closed with %d", version, code)
		}
		gobwas.WriteFrame(nc, gobwas.NewCloseFrame(gobwas.NewCloseFrameBody(gobwas.StatusNormalClosure, "")))
		if rest, err := io.ReadAll(nc); err != nil || len(rest) > 0 {
			t.Errorf("version %d: %x, %v", version, rest, err)
		}
		nc.Close()
		<-stopped
	}
}
