package packet_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/packet"
)

// A length costs nothing before its bytes have come, and one above the limit ends that session only.
func TestHostileLengths(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		for _, tt := range []struct {
			name  string
			n     int
			order binary.ByteOrder
			bytes string
			size  uint64
		}{
			{"all bits of 4", 4, binary.BigEndian, "\xff\xff\xff\xff", math.MaxUint32},
			{"the sign bit of 4", 4, binary.LittleEndian, "\x00\x00\x00\x80", 1 << 31},
			{"the sign bit of 8", 8, binary.BigEndian, "\x80\x00\x00\x00\x00\x00\x00\x00", 1 << 63},
			{"all bits of 8", 8, binary.LittleEndian, "\xff\xff\xff\xff\xff\xff\xff\xff", math.MaxUint64},
			{"one too many", 4, binary.BigEndian, "\x00\x10\x00\x01", 1<<20 + 1},
		} {
			t.Run(tt.name, func(t *testing.T) {
				ended := make(chan error, 1)
				server := serve(t, std, packet.NewFixProtocol(tt.n, tt.order), packet.Limits{}, func(server *packet.Server) {
					server.OnSessionStart(func(s *packet.Session) { s.OnMessage(echo) })
					server.OnSessionClose(func(s *packet.Session) { ended <- s.Err() })
				})
				good := dial(t, server)
				must(t, good.Send(packet.Bytes("before")))
				good.want([]byte("before"))
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				nc := raw(t, server)
				write(t, nc, []byte(tt.bytes))
				hangUp(t, nc)
				wantTooLarge(t, "end", recv(t, ended, "end"), tt.size, 1<<20)
				runtime.ReadMemStats(&after)
				if grown := after.TotalAlloc - before.TotalAlloc; grown > 512<<10 {
					t.Errorf("%d bytes were allocated", grown)
				}
				must(t, good.Send(packet.Bytes("after")))
				good.want([]byte("after"))
			})
		}
	})
}

// An announced packet that does not come holds no memory of its size.
func TestAnnouncedLengthCostsNothing(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		started := make(chan struct{}, 50)
		server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
			server.OnSessionStart(func(s *packet.Session) {
				s.OnMessage(func(*packet.Session, []byte) { started <- struct{}{} })
			})
		})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 50 {
			nc := raw(t, server)
			write(t, nc, append(framed(nil), 0, 16, 0, 0, 'x')) // 1 MiB, of which a byte is here
			recv(t, started, "packet")
		}
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 10<<20 {
			t.Errorf("%d bytes were allocated for 50 bytes", grown)
		}
	})
}

// The seed lost its place when a header came in two reads.
func TestSplitHeaders(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		for _, n := range []int{1, 2, 4, 8} {
			proto := packet.NewFixProtocol(n, binary.BigEndian)
			got := make(chan string, 1)
			server := serve(t, std, proto, packet.Limits{}, onMessage(func(_ *packet.Session, m []byte) { got <- string(m) }))
			nc := raw(t, server)
			p := append(binary.BigEndian.AppendUint64(nil, 3)[8-n:], "abc"...)
			for cut := range len(p) {
				// What ends a packet and begins the next goes out together; the packet that is whole is waited for in
				// between, so the rest is another read.
				write(t, nc, p[:cut])
				write(t, nc, append(bytes.Clone(p[cut:]), p[:cut]...))
				if m := recv(t, got, "packet"); m != "abc" {
					t.Fatalf("length of %d, cut at %d: %q", n, cut, m)
				}
				write(t, nc, p[cut:])
				if m := recv(t, got, "packet"); m != "abc" {
					t.Fatalf("length of %d, cut at %d: %q", n, cut, m)
				}
			}
		}
	})
}

// What does not fit the length is refused, never cut.
func TestOversizeIsRefused(t *testing.T) {
	c := dial(t, serve(t, 0, packet.NewFixProtocol(1, binary.BigEndian), packet.Limits{}, onMessage(echo)))
	wantTooLarge(t, "256 bytes", c.Send(packet.Bytes(make([]byte, 256))), 256, 255)
	wantTooLarge(t, "2 MiB", c.Send(packet.Bytes(make([]byte, 2<<20))), 2<<20, 1<<20)
	must(t, c.Send(packet.Bytes("in step")))
	c.want([]byte("in step"))
}

func TestSessionLimits(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		ended, failed := make(chan error, 1), make(chan error, 1)
		server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
			server.OnSessionStart(func(s *packet.Session) {
				s.SetMaxSize(2<<20, 6)
				s.SetMaxSize(5, 6)
				failed <- s.Send(packet.Bytes("seven b"))
				s.OnMessage(echo)
			})
			server.OnSessionClose(func(s *packet.Session) { ended <- s.Err() })
		})
		nc := raw(t, server)
		write(t, nc, framed([]byte("five.")))
		read(t, nc, framed([]byte("five.")))
		wantTooLarge(t, "seven bytes", recv(t, failed, "error"), 7, 6)
		write(t, nc, framed([]byte("six by"))[:4]) // the length is enough
		hangUp(t, nc)
		wantTooLarge(t, "six bytes", recv(t, ended, "end"), 6, 5)
	})
}

// A session may have larger packets than the others, for instance once its peer is known.
func TestSessionLimitsAboveTheServers(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		server := serve(t, std, four, packet.Limits{Receive: 10, Send: 10}, onMessage(func(s *packet.Session, m []byte) {
			s.SetMaxSize(1000, 1000)
			echo(s, m)
		}))
		c := dial(t, server)
		for _, size := range []int{10, 1000} {
			must(t, c.Send(packet.Bytes(random(size))))
			c.want(random(size))
		}
	})
}

// A peer that ends in the middle of a packet.
func TestHalfAPacket(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		ended, got := make(chan error, 1), make(chan string, 2)
		server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
			server.OnSessionStart(func(s *packet.Session) {
				s.OnMessage(func(_ *packet.Session, m []byte) { got <- string(m) })
			})
			server.OnSessionClose(func(s *packet.Session) { ended <- s.Err() })
		})
		nc := raw(t, server)
		write(t, nc, append(framed([]byte("whole")), 0, 0, 0, 9, 'x'))
		if m := recv(t, got, "packet"); m != "whole" {
			t.Error(m)
		}
		nc.Close()
		wantErr(t, "end", recv(t, ended, "end"), io.ErrUnexpectedEOF)
	})
}

// A peer that sends more than the handler takes is not read any further, and loses nothing.
func TestFlood(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		release, got := make(chan struct{}), make(chan int, 1000)
		server := serve(t, std, four, packet.Limits{}, onMessage(func(_ *packet.Session, m []byte) {
			<-release
			got <- len(m)
		}))
		nc := raw(t, server)
		must(t, nc.SetWriteDeadline(time.Now().Add(500*time.Millisecond)))
		p, sent := framed(random(1<<20-4)), 0
		var err error
		for err == nil && sent < 256<<20 {
			var n int
			n, err = nc.Write(p)
			sent += n
		}
		wantErr(t, "256 MiB", err, os.ErrDeadlineExceeded)
		close(release)
		for range sent >> 20 {
			if n := recv(t, got, "packet"); n != 1<<20-4 {
				t.Fatalf("a packet of %d bytes", n)
			}
		}
	})
}

func FuzzFixProtocol(f *testing.F) {
	f.Add([]byte{}, uint8(0), uint16(0))
	f.Add([]byte{3, 'a', 'b', 'c'}, uint8(0), uint16(9))
	f.Add([]byte{0, 0, 0, 1, 'z', 0xff}, uint8(2), uint16(9))
	f.Add([]byte{0x80, 0, 0, 0, 0, 0, 0, 0}, uint8(3), uint16(9))
	f.Fuzz(func(t *testing.T, data []byte, form uint8, limit uint16) {
		order := binary.ByteOrder(binary.BigEndian)
		if form&4 != 0 {
			order = binary.LittleEndian
		}
		proto := packet.NewFixProtocol(1<<(form&3), order)
		for {
			n, need, err := proto.Split(data, int(limit))
			var large *packet.TooLargeError
			switch {
			case err != nil:
				if !errors.As(err, &large) || large.Size <= uint64(min(int(limit), 255)) {
					t.Fatal(err)
				}
				return
			case n == 0:
				if need > int(limit)+8 || need != 0 && need <= len(data) {
					t.Fatalf("%d of %d bytes", len(data), need)
				}
				return
			}
			body := proto.Body(data[:n])
			again, err := proto.End(append(proto.Begin(nil), body...), int(limit))
			if err != nil || !bytes.Equal(again, data[:n]) {
				t.Fatalf("%x became %x, %v", data[:n], again, err)
			}
			data = data[n:]
		}
	})
}
