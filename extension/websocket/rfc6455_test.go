package websocket

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// rawPeer is a client that speaks bytes. A failure of it ends the test.
type rawPeer struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

// dialTCP connects to the port of a URL; the connection ends with the test.
func dialTCP(t testing.TB, url string) *rawPeer {
	t.Helper()
	nc, err := net.Dial("tcp", strings.TrimPrefix(url, "ws://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return &rawPeer{nc, t, bufio.NewReader(nc)}
}

// handshake is a request with the key of RFC 6455; header fields end with \r\n.
func handshake(header string) string {
	return "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n" + header + "\r\n"
}

// dialRaw connects and does the handshake.
func dialRaw(t testing.TB, url, header string) *rawPeer {
	t.Helper()
	p := dialTCP(t, url)
	p.send([]byte(handshake(header)))
	p.upgraded()
	return p
}

func (p *rawPeer) upgraded() *http.Response {
	p.t.Helper()
	rsp, err := http.ReadResponse(p.r, nil)
	if err != nil || rsp.StatusCode != http.StatusSwitchingProtocols || rsp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		p.t.Fatalf("handshake: %+v, %v", rsp, err)
	}
	return rsp
}

func (p *rawPeer) send(b ...[]byte) {
	p.t.Helper()
	if _, err := p.Write(bytes.Join(b, nil)); err != nil {
		p.t.Fatal(err)
	}
}

// next reads a frame, which the server must not fragment, mask or extend.
func (p *rawPeer) next() (opcode byte, payload []byte) {
	p.t.Helper()
	payload, err := readMessage(p.r, &opcode)
	if err != nil {
		p.t.Fatal(err)
	}
	return opcode, payload
}

func readMessage(r io.Reader, opcode *byte) ([]byte, error) {
	var head [10]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return nil, err
	}
	if head[0]&0xf0 != 0x80 || head[1]&0x80 != 0 {
		return nil, fmt.Errorf("header %x", head[:2])
	}
	*opcode = head[0] & 15
	n := uint64(head[1])
	switch n {
	case 126:
		if _, err := io.ReadFull(r, head[2:4]); err != nil {
			return nil, err
		}
		n = uint64(binary.BigEndian.Uint16(head[2:]))
	case 127:
		if _, err := io.ReadFull(r, head[2:10]); err != nil {
			return nil, err
		}
		n = binary.BigEndian.Uint64(head[2:])
	}
	if n > 16<<20 {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	payload := make([]byte, n)
	_, err := io.ReadFull(r, payload)
	return payload, err
}

// wants reads a frame that must be this one.
func (p *rawPeer) wants(opcode byte, payload []byte) {
	p.t.Helper()
	if op, got := p.next(); op != opcode || !bytes.Equal(got, payload) {
		p.t.Fatalf("opcode %d, %q (%x)", op, got, got)
	}
}

// wantsClose reads to a close frame, which must have the code, and returns its reason.
func (p *rawPeer) wantsClose(code uint16) string {
	p.t.Helper()
	for {
		op, payload := p.next()
		if op != 8 {
			continue
		}
		if len(payload) < 2 || binary.BigEndian.Uint16(payload) != code {
			p.t.Fatalf("closed with %x %q instead of %d", payload[:min(2, len(payload))], payload[min(2, len(payload)):], code)
		}
		return string(payload[2:])
	}
}

// wantsEnd reads to the end of the connection, which is nothing but that.
func (p *rawPeer) wantsEnd() {
	p.t.Helper()
	rest, err := io.ReadAll(p.r)
	if errors.Is(err, os.ErrDeadlineExceeded) || len(rest) > 0 {
		p.t.Fatalf("no end, but %x, %v", rest[:min(100, len(rest))], err)
	}
}

// message is a frame of a client.
func message(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	b = append(b, mask[:]...)
	for i, c := range payload {
		b = append(b, c^mask[i&3])
	}
	return b
}

const (
	fin  = 0x80
	rsv1 = 0x40
	cont = 0
	txt  = 1
	bin  = 2
)

// arpcFrame is a frame of arpc, version 1.
func arpcFrame(cmd byte, seq uint64, method, body string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(method)+len(body)))
	b = append(b, 0, cmd, 0, byte(len(method)))
	b = binary.LittleEndian.AppendUint64(b, seq)
	return append(append(b, method...), body...)
}

func request(seq uint64, body string) []byte { return arpcFrame(arpc.CmdRequest, seq, "/echo", body) }
func answer(seq uint64, body string) []byte  { return arpcFrame(arpc.CmdResponse, seq, "/echo", body) }

// unhex decodes hex with blanks; M is a mask that changes nothing.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(strings.ReplaceAll(s, "M", "00000000"), " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stillServes checks that a connection works.
func stillServes(t testing.TB, c *arpc.Client) {
	t.Helper()
	var r string
	if err := c.Call("/echo", "still", &r, patience); err != nil || r != "still" {
		t.Errorf("another connection: %q, %v", r, err)
	}
}

// What breaks RFC 6455 is answered with the code of the fault, and ends that connection alone.
func TestRefused(t *testing.T) {
	plain := []struct {
		name string
		in   string
		code uint16
	}{
		{"reserved bit 1", "c281M61", 1002},
		{"reserved bit 2", "a281M61", 1002},
		{"reserved bit 3", "9281M61", 1002},
		{"reserved opcode", "8380M", 1002},
		{"reserved control opcode", "8b80M", 1002},
		{"not masked", "820161", 1002},
		{"ping not masked", "8900", 1002},
		{"ping of 126 bytes", "89fe007eM", 1002},
		{"fragmented ping", "0980M", 1002},
		{"continuation of nothing", "8081M61", 1002},
		{"message within a message", "0281M01 8281M00", 1002},
		{"64-bit length with the highest bit", "82ff8000000000000001M", 1002},
		{"close of one byte", "8881M03", 1002},
		{"close code that is not in use", "8882M03e7", 1002},
		{"close code that is never sent", "8882M03ed", 1002},
		{"close reason that is not UTF-8", "8884M03e8c328", 1002},
		{"text that is not UTF-8", "8181Mff", 1007},
		{"text that ends within a character", "0181Mc3 8080M", 1007},
		{"message above the limit", "82ff0000000000100001M", 1009},
		{"the longest message", "82ff7fffffffffffffffM", 1009},
		{"an arpc frame above the limit", "8290M ffffffff 00 01 00 00 0100000000000000", 1009},
		{"an arpc frame with an unknown command", "8290M 00000000 00 3f 00 00 0100000000000000", 1008},
	}
	packed := []struct {
		name string
		in   string
		code uint16
	}{
		{"garbage", "c283Mffffff", 1007},
		{"compressed text that is not UTF-8", "c187M 000100feffff00", 1007},
		{"compressed continuation", "4283M f248cd c084M c9c90700", 1002},
		{"compressed ping", "c980M", 1002},
	}
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		url := serve(t, nil, []arpc.ServerOption{adapter}, ReadLimit(1<<20), Compression(1))
		other := dial(t, Dialer(url))
		for i, tt := range append(plain, packed...) {
			t.Run(tt.name, func(t *testing.T) {
				header := ""
				if i >= len(plain) {
					header = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
				}
				p := dialRaw(t, url, header)
				p.send(unhex(t, tt.in))
				p.wantsClose(tt.code)
				p.send(message(fin|8, binary.BigEndian.AppendUint16(nil, tt.code)))
				p.Close()
				stillServes(t, other)
			})
		}
	})
}

// After the closing handshake the server ends the TCP connection, RFC 6455 section 7.1.1, and does not wait for the client.
func TestServerEndsTCP(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		url := serve(t, nil, []arpc.ServerOption{adapter, arpc.Limits{CloseFlush: 3 * patience}})
		t.Run("the client closes", func(t *testing.T) {
			p := dialRaw(t, url, "")
			p.send(message(fin|8, []byte{3, 232}))
			p.wants(8, []byte{3, 232})
			p.wantsEnd()
		})
		t.Run("the client closes without a code", func(t *testing.T) {
			p := dialRaw(t, url, "")
			p.send(message(fin|8, nil))
			p.wants(8, nil)
			p.wantsEnd()
		})
		for _, tt := range []struct {
			name, in string
			code     uint16
		}{
			{"the client is at fault", "820161", 1002},
			{"in a frame's contents", "8184M61ff6162 8281M61", 1007},
			{"in a malformed arpc frame", "8290M 00000000 00 3f 00 00 0100000000000000", 1008},
		} {
			t.Run(tt.name, func(t *testing.T) {
				p := dialRaw(t, url, "")
				p.send(unhex(t, tt.in))
				p.wantsClose(tt.code)
				p.send(message(fin|8, binary.BigEndian.AppendUint16(nil, tt.code)))
				p.wantsEnd()
			})
		}
		t.Run("the client's close is malformed", func(t *testing.T) {
			p := dialRaw(t, url, "")
			p.send(message(fin|8, []byte{3}))
			p.wantsClose(1002)
			p.wantsEnd()
		})
	})
}

// Nothing follows the close frame, RFC 6455 section 5.5.1, whatever is being answered meanwhile.
func TestNothingAfterClose(t *testing.T) {
	setup := func(h arpc.Handler) { h.Handle("/async", echo, true) }
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		url := serve(t, setup, []arpc.ServerOption{adapter})
		for range 30 {
			p := dialRaw(t, url, "")
			var all [][]byte
			for seq := range uint64(50) {
				all = append(all, message(fin|bin, arpcFrame(arpc.CmdRequest, seq+1, "/async", "x")))
			}
			p.send(append(all, message(fin|8, []byte{3, 232}))...)
			p.wantsClose(1000)
			p.wantsEnd()
		}
	})
}

// Pings are answered at once and in order, also those between the fragments of a message.
func TestPings(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		p := dialRaw(t, serve(t, nil, []arpc.ServerOption{adapter}), "")
		long := bytes.Repeat([]byte("p"), 125)
		p.send(message(fin|9, nil), message(fin|10, []byte("unasked")), message(fin|9, long))
		p.wants(10, nil)
		p.wants(10, long)
		f := request(1, "ping within")
		p.send(message(bin, f[:5]), message(fin|9, []byte("x")), message(cont, f[5:9]), message(fin|9, []byte("y")))
		p.wants(10, []byte("x"))
		p.wants(10, []byte("y"))
		p.send(message(fin|cont, f[9:]))
		p.wants(2, answer(1, "ping within"))
	})
}

// V1-WS-2: messages, of either type, are pieces of one stream of bytes.
func TestMessagesAreAStream(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
		p := dialRaw(t, serve(t, nil, []arpc.ServerOption{adapter}), "")
		a, b, long := request(1, "a"), request(2, "b"), request(3, strings.Repeat("long", 50_000))
		p.send(message(fin|txt, a))
		p.wants(2, answer(1, "a"))
		p.send(message(fin|bin, append(append([]byte(nil), a...), b...)))
		p.wants(2, answer(1, "a"))
		p.wants(2, answer(2, "b"))
		p.send(message(fin|bin, a[:3]), message(fin|txt, a[3:17]), message(fin|bin, append(append([]byte(nil), a[17:]...), b[:9]...)),
			message(fin|bin, nil), message(txt, b[9:12]), message(cont, nil), message(fin|cont, b[12:]))
		p.wants(2, answer(1, "a"))
		p.wants(2, answer(2, "b"))
		for _, c := range message(fin|bin, a) { // byte by byte
			p.send([]byte{c})
		}
		p.wants(2, answer(1, "a"))
		for len(long) > 0 {
			n := min(777, len(long))
			p.send(message(fin|bin, long[:n]))
			long = long[n:]
		}
		p.wants(2, answer(3, strings.Repeat("long", 50_000)))
	})
}

// frames takes the arpc frames out of the bytes of a stream.
func frames(b []byte) (whole [][]byte, rest []byte) {
	for len(b) >= arpc.HeadLen {
		n := arpc.HeadLen + int(binary.LittleEndian.Uint32(b))
		if len(b) < n {
			break
		}
		whole, b = append(whole, b[:n]), b[n:]
	}
	return whole, b
}

// V1-WS-1: a peer of version 1 gets one frame per message, and the whole of it, however many are sent at once. After HELLO a
// message may have several.
func TestFramesPerMessage(t *testing.T) {
	const calls, notes = 200, 3
	hello := unhex(t, "20000000000400000000000000000000 61727063022000001f000000f0ffff0300400000000008000000000100040000")
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			onAdapters(t, func(t *testing.T, adapter arpc.ServerOption) {
				url := serve(t, func(h arpc.Handler) {
					h.Handle("/notes", func(c *arpc.Context) {
						for i := range notes {
							if err := c.Client.Notify("/note", strings.Repeat("n", 100*i), patience); err != nil {
								t.Error(err)
							}
						}
						c.Write(c.Body())
					})
				}, []arpc.ServerOption{adapter})
				p := dialRaw(t, url, "")
				if version == 2 {
					p.send(message(fin|bin, hello))
					if op, pong := p.next(); op != 2 || len(pong) < arpc.HeadLen+32 || pong[5] != arpc.CmdPong {
						t.Fatalf("the answer to HELLO is %x", pong)
					}
				}
				bodies := []string{"", "short", strings.Repeat("x", 1000), strings.Repeat("y", 70_000)}
				var apart, together []byte
				for i := range calls {
					n := i % 40
					body := bodies[min(max(n-36, 0), 3)] // most of them are short
					apart = append(apart, message(fin|bin, request(uint64(i), body))...)
					together = append(together, arpcFrame(arpc.CmdRequest, uint64(i), "/notes", body)...)
				}
				for _, in := range [][]byte{apart, message(fin|bin, together)} {
					go p.Write(in)
					want := calls
					if &in[0] != &apart[0] {
						want = calls * (1 + notes)
					}
					got, messages, answers := 0, 0, map[uint64]bool{}
					var stream []byte
					for got < want {
						op, m := p.next()
						if op != 2 {
							t.Fatalf("opcode %d", op)
						}
						messages++
						stream = append(stream, m...)
						whole, rest := frames(stream)
						if version == 1 && (len(whole) != 1 || len(rest) > 0) {
							t.Fatalf("a message of %d frames and %d bytes", len(whole), len(rest))
						}
						for _, f := range whole {
							got++
							if f[5] == arpc.CmdResponse {
								answers[binary.LittleEndian.Uint64(f[8:])] = true
							}
						}
						stream = rest
					}
					if got != want || len(answers) != calls || len(stream) > 0 {
						t.Fatalf("%d of %d frames, %d answers, %d bytes", got, want, len(answers), len(stream))
					}
					if version == 2 && messages == got {
						t.Errorf("%d frames in as many messages", got)
					}
				}
			})
		})
	}
}
