package packet_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc/extension/packet"
)

// counted counts how often it is encoded.
type counted struct {
	body []byte
	n    *atomic.Int64
}

func (c counted) RecommendPacketSize() uint { return uint(len(c.body)) }
func (c counted) AppendToPacket(b []byte) []byte {
	c.n.Add(1)
	return append(b, c.body...)
}

// joined starts a server whose sessions join a channel, and delivers them.
func joined(t *testing.T, std int, limits packet.Limits) (*packet.Server, *packet.Channel, chan *packet.Session) {
	channel, sessions := packet.NewChannel(four), make(chan *packet.Session, 100)
	server := serve(t, std, four, limits, func(server *packet.Server) {
		server.OnSessionStart(func(s *packet.Session) {
			if err := channel.Join(s, nil); err != nil {
				t.Error(err)
			}
			sessions <- s
		})
	})
	return server, channel, sessions
}

func TestP06BroadcastEncodesOnce(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		server, channel, sessions := joined(t, std, packet.Limits{})
		var clients []*client
		for range 10 {
			clients = append(clients, dial(t, server))
			recv(t, sessions, "session")
		}
		var n atomic.Int64
		for _, size := range []int{0, 3, 8 << 10, 1 << 20} { // copied, and queued by reference
			body := random(size)
			n.Store(0)
			must(t, channel.Broadcast(counted{body, &n}))
			if n.Load() != 1 {
				t.Errorf("%d encodings", n.Load())
			}
			for _, c := range clients {
				c.want(body)
			}
		}
		if err := packet.NewChannel(four).Broadcast(counted{nil, &n}); err != nil || n.Load() != 1 {
			t.Errorf("to nobody: %v, %d encodings", err, n.Load())
		}
	})
}

// The seed used the buffer of a broadcast again while it was still queued: 499 of 500 arrived changed.
func TestBroadcastsAreIntact(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		server, channel, sessions := joined(t, std, packet.Limits{})
		var conns []io.Reader
		for range 3 {
			conns = append(conns, raw(t, server)) // nobody reads while all of it is sent
			recv(t, sessions, "session")
		}
		body := func(i int) []byte { return bytes.Repeat(binary.BigEndian.AppendUint16(nil, uint16(i)), 5000) }
		for i := range 500 {
			must(t, channel.Broadcast(packet.Bytes(body(i))))
		}
		for _, r := range conns {
			for i := range 500 {
				read(t, r, framed(body(i)))
			}
		}
	})
}

func TestP06HundredClients(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		server, channel, sessions := joined(t, std, packet.Limits{Packets: broadcasts + 1})
		done := make(chan error, 100)
		for range 100 {
			s, err := packet.Dial("tcp", addr(server), four)
			must(t, err)
			var next uint32
			s.OnMessage(func(s *packet.Session, m []byte) {
				if got := binary.BigEndian.Uint32(m); got != next {
					done <- fmt.Errorf("client %d: %d after %d", s.Id(), got, next)
					s.Close()
				}
				if next++; next == broadcasts {
					done <- nil
				}
			})
			must(t, s.Start(nil))
			t.Cleanup(s.Close)
			recv(t, sessions, "session")
		}
		if channel.Len() != 100 {
			t.Fatalf("%d members", channel.Len())
		}
		var n atomic.Int64
		for i := range uint32(broadcasts) {
			must(t, channel.Broadcast(counted{binary.BigEndian.AppendUint32(nil, i), &n}))
		}
		for range 100 {
			must(t, recv(t, done, "end of the sequence"))
		}
		if n.Load() != broadcasts {
			t.Errorf("%d encodings of %d messages", n.Load(), broadcasts)
		}
	})
}

// A member that does not read is closed when its queue is full; the others get everything, at once.
func TestBroadcastDoesNotWait(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		server, channel, sessions := joined(t, std, packet.Limits{Bytes: 1 << 20})
		raw(t, server)
		slow := recv(t, sessions, "session")
		good := dial(t, server)
		recv(t, sessions, "session")
		body := random(256 << 10)
		for i := 0; slow.Err() == nil; i++ {
			if i == 1000 {
				t.Fatal("a member that reads nothing was never closed")
			}
			must(t, channel.Broadcast(packet.Bytes(body)))
			good.want(body)
		}
		wantErr(t, "end of the slow one", slow.Err(), packet.ErrBlocked)
		if channel.Len() != 1 {
			t.Errorf("%d members", channel.Len())
		}
	})
}

func TestBroadcastTooLarge(t *testing.T) {
	server, channel, sessions := joined(t, 0, packet.Limits{Send: 10})
	a, b := dial(t, server), dial(t, server)
	recv(t, sessions, "session").SetMaxSize(10, 5)
	recv(t, sessions, "session").SetMaxSize(10, 8)
	wantTooLarge(t, "for all", channel.Broadcast(packet.Bytes("nine byte")), 9, 8)
	wantTooLarge(t, "for one", channel.Broadcast(packet.Bytes("six by")), 6, 5)
	must(t, channel.Broadcast(packet.Bytes("last")))
	// One of the two has got both.
	first, second := recv(t, a.got, "packet"), recv(t, b.got, "packet")
	if string(first) == "last" {
		first, second, a = second, first, b
	}
	if string(first) != "six by" || string(second) != "last" {
		t.Errorf("got %q and %q", first, second)
	}
	a.want([]byte("last"))
}

func TestChannelMembers(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		server, channel, sessions := joined(t, std, packet.Limits{})
		var clients []*client
		var members []*packet.Session
		for range 4 {
			clients = append(clients, dial(t, server))
			members = append(members, recv(t, sessions, "session"))
		}
		kicked := make(chan string, 4)
		must(t, channel.Join(members[0], func() { kicked <- "first" }))
		must(t, channel.Join(members[1], func() { panic("callback") }))
		if channel.Len() != 4 {
			t.Errorf("%d members", channel.Len())
		}
		// What Fetch is given, and the callback, may do anything with the channel and the sessions.
		channel.Fetch(func(s *packet.Session) {
			switch s {
			case members[0], members[1]:
				channel.Kick(s.Id())
			case members[2]:
				channel.Exit(s)
				channel.Exit(s)
			case members[3]:
				s.Close()
			}
			channel.Fetch(func(*packet.Session) { channel.Len() })
			must(t, channel.Broadcast(packet.Bytes("x")))
		})
		if channel.Len() != 0 || recv(t, kicked, "callback") != "first" || len(kicked) != 0 {
			t.Errorf("%d members, %d further callbacks", channel.Len(), len(kicked))
		}
		channel.Kick(members[0].Id())
		channel.Kick(12345)
		wantErr(t, "panic in the callback", members[1].Err(), packet.ErrPanic)
		wantErr(t, "Join of one that has ended", channel.Join(members[3], nil), packet.ErrClosed)
		if members[0].Err() != nil || channel.Len() != 0 {
			t.Errorf("%v, %d members", members[0].Err(), channel.Len())
		}
		clients[2].Close()
	})
}

// Sessions come, join, leave and end while others broadcast.
func TestChannelConcurrently(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		channel := packet.NewChannel(four)
		server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
			server.OnSessionStart(func(s *packet.Session) {
				s.OnMessage(func(s *packet.Session, m []byte) {
					switch m[0] {
					case 'j':
						if err := channel.Join(s, s.Close); err != nil && !errors.Is(err, packet.ErrClosed) {
							t.Error(err)
						}
					case 'e':
						channel.Exit(s)
					case 'k':
						channel.Kick(s.Id())
					}
				})
			})
		})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 10 {
					s, err := packet.Dial("tcp", addr(server), four)
					if err == nil {
						err = s.Start(nil)
					}
					if err != nil {
						t.Error(err)
						return
					}
					for _, m := range []string{"j", "e", "j", "k"} {
						s.Send(packet.Bytes(m)) //nolint:errcheck // it may be kicked
					}
					s.Close()
				}
			})
			wg.Go(func() {
				for range 200 {
					must(t, channel.Broadcast(packet.Bytes("news")))
				}
			})
		}
		wg.Wait()
		server.Stop()
		if channel.Len() != 0 {
			t.Errorf("%d members after Stop", channel.Len())
		}
	})
}
