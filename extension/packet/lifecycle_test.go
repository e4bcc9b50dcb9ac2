package packet_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/packet"
)

func TestNilHooks(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
			server.OnSessionStart(nil)
			server.OnSessionClose(nil)
			server.OnServerStop(nil)
		})
		nc := raw(t, server)
		write(t, nc, framed([]byte("dropped"))) // there is no handler
		other := dial(t, server)
		other.OnMessage(nil)
		other.SetMessageHandler(nil)
		must(t, other.SyncSend(packet.Bytes("dropped")))
		server.OnSessionStart(func(s *packet.Session) { s.OnMessage(echo) })
		c := dial(t, server)
		must(t, c.Send(packet.Bytes("hello")))
		c.want([]byte("hello"))
		if server.Len() != 3 {
			t.Errorf("%d sessions", server.Len())
		}
	})
}

func TestPanics(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		ended := make(chan error, 10)
		server := listen(t, std, four, packet.Limits{})
		server.OnSessionStart(func(s *packet.Session) {
			if s.Id() == 1 {
				panic("start hook")
			}
			s.OnMessage(func(s *packet.Session, m []byte) {
				if string(m) == "panic" {
					panic("handler")
				}
				echo(s, m)
			})
		})
		server.OnSessionClose(func(s *packet.Session) {
			ended <- s.Err()
			panic("close hook")
		})
		server.OnServerStop(func(*packet.Server) { panic("stop hook") })
		must(t, server.Start())
		first := dial(t, server)
		wantErr(t, "panic in the start hook", recv(t, ended, "end"), packet.ErrPanic)
		recv(t, first.closed, "close callback")
		second, third := dial(t, server), dial(t, server)
		must(t, second.Send(packet.Bytes("panic")))
		wantErr(t, "panic in the handler", recv(t, ended, "end"), packet.ErrPanic)
		must(t, third.Send(packet.Bytes("others")))
		third.want([]byte("others"))
		server.Stop()
		wantErr(t, "Stop", recv(t, ended, "end"), packet.ErrStopped)
	})
}

// A handler that blocks delays its own session only, and what it has sent before.
func TestHandlersMayBlock(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		release := make(chan struct{})
		server := serve(t, std, four, packet.Limits{}, onMessage(func(s *packet.Session, m []byte) {
			echo(s, m)
			if string(m) == "block" {
				<-release
			}
		}))
		var blocked []*client
		for range 10 {
			c := dial(t, server)
			must(t, c.Send(packet.Bytes("block")))
			must(t, c.Send(packet.Bytes("after")))
			c.want([]byte("block"))
			blocked = append(blocked, c)
		}
		c := dial(t, server)
		must(t, c.Send(packet.Bytes("free")))
		c.want([]byte("free"))
		close(release)
		for _, c := range blocked {
			c.want([]byte("after"))
		}
	})
}

// Close sends what was accepted before it, wherever it is called, and the close hook comes once and last.
func TestCloseFromAnywhere(t *testing.T) {
	const n = 200
	for _, where := range []string{"start hook", "handler", "another goroutine", "Fetch"} {
		t.Run(where, func(t *testing.T) {
			onAdapters(t, func(t *testing.T, std int) {
				body := random(10_000)
				end := func(s *packet.Session) {
					for range n {
						s.Send(packet.Bytes(body)) //nolint:errcheck // the client counts them
					}
					s.Close()
					s.Close()
					wantErr(t, "Send after Close", s.Send(packet.Bytes("late")), packet.ErrClosed)
				}
				ended := make(chan error, 5)
				server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
					server.OnSessionStart(func(s *packet.Session) {
						switch where {
						case "start hook":
							end(s)
						case "another goroutine":
							go end(s)
						case "handler":
							s.OnMessage(func(s *packet.Session, _ []byte) { end(s) })
						case "Fetch":
							s.OnMessage(func(*packet.Session, []byte) { server.Fetch(end) })
						}
					})
					server.OnSessionClose(func(s *packet.Session) { s.Close(); ended <- s.Err() })
				})
				nc := raw(t, server)
				write(t, nc, framed(nil))
				for range n {
					read(t, nc, framed(body))
				}
				hangUp(t, nc)
				wantErr(t, "end", recv(t, ended, "close hook"), packet.ErrClosed)
				server.Stop()
				if len(ended) != 0 {
					t.Error("the close hook ran twice")
				}
			})
		})
	}
}

// What the peer has sent before it closed its half is handled and answered.
func TestHalfClose(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		server := serve(t, std, four, packet.Limits{}, onMessage(echo))
		nc := raw(t, server)
		var want []byte
		for i := range 1000 {
			want = append(want, framed([]byte(fmt.Sprint(i)))...)
		}
		write(t, nc, want)
		must(t, nc.(*net.TCPConn).CloseWrite())
		got, err := io.ReadAll(nc)
		if err != nil || string(got) != string(want) {
			t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
		}
	})
}

func TestStop(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		t.Run("before Start", func(t *testing.T) {
			server := listen(t, std, four, packet.Limits{})
			stops := 0
			server.OnServerStop(func(*packet.Server) { stops++ })
			server.Stop()
			server.Stop()
			if stops != 1 {
				t.Errorf("%d stop hooks", stops)
			}
			wantErr(t, "Start after Stop", server.Start(), packet.ErrStopped)
			if nc, err := net.Dial("tcp", addr(server)); err == nil {
				nc.Close()
				t.Error("the port is still open")
			}
		})
		t.Run("at the same time", func(t *testing.T) {
			stops := make(chan bool, 10)
			server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
				server.OnServerStop(func(s *packet.Server) { s.Stop(); stops <- true })
			})
			dial(t, server)
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(server.Stop)
			}
			wg.Wait()
			if len(stops) != 1 {
				t.Errorf("%d stop hooks", len(stops))
			}
		})
		t.Run("while accepting", func(t *testing.T) {
			var mu sync.Mutex
			open := map[*packet.Session]bool{}
			server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
				server.OnSessionStart(func(s *packet.Session) {
					mu.Lock()
					defer mu.Unlock()
					open[s] = true
				})
				server.OnSessionClose(func(s *packet.Session) {
					mu.Lock()
					defer mu.Unlock()
					delete(open, s)
				})
			})
			enough := make(chan struct{}, 100)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for {
						nc, err := net.Dial("tcp", addr(server))
						if err != nil {
							return // stopped
						}
						nc.Close()
						select {
						case enough <- struct{}{}:
						default:
						}
					}
				})
			}
			for range 50 {
				recv(t, enough, "connection")
			}
			server.Stop()
			wg.Wait()
			if len(open) != 0 || server.Len() != 0 {
				t.Errorf("%d sessions are open after Stop", len(open))
			}
		})
		for _, where := range []string{"handler", "close hook"} {
			t.Run("in a "+where, func(t *testing.T) {
				server := listen(t, std, four, packet.Limits{Close: 50 * time.Millisecond})
				stopped := make(chan bool, 1)
				server.OnServerStop(func(*packet.Server) { stopped <- true })
				server.OnSessionStart(func(s *packet.Session) {
					s.OnMessage(func(s *packet.Session, _ []byte) {
						if where == "handler" {
							server.Stop()
						} else {
							s.Close()
						}
					})
				})
				if where == "close hook" {
					server.OnSessionClose(func(*packet.Session) { go server.Stop() })
				}
				must(t, server.Start())
				must(t, dial(t, server).Send(packet.Bytes("stop")))
				recv(t, stopped, "stop hook")
			})
		}
	})
}

func TestSendOnAFullQueue(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		for _, limits := range []packet.Limits{{Packets: 10}, {Bytes: 1 << 20}} {
			sessions, ended := make(chan *packet.Session, 2), make(chan error, 2)
			server := serve(t, std, four, limits, func(server *packet.Server) {
				server.OnSessionStart(func(s *packet.Session) { s.OnMessage(echo); sessions <- s })
				server.OnSessionClose(func(s *packet.Session) { ended <- s.Err() })
			})
			raw(t, server)
			s := recv(t, sessions, "session")
			good := dial(t, server)
			body := packet.Bytes(random(100_000))
			var err error
			for n := 0; err == nil && n < 10_000; n++ {
				err = s.Send(body)
			}
			if err != packet.ErrBlocked {
				t.Fatalf("Send: %v", err)
			}
			wantErr(t, "end", recv(t, ended, "end"), packet.ErrBlocked)
			wantErr(t, "Send after it", s.Send(body), packet.ErrClosed, packet.ErrBlocked)
			must(t, good.Send(packet.Bytes("others")))
			good.want([]byte("others"))
		}
	})
}

func TestSetSendChanSize(t *testing.T) {
	sessions := make(chan *packet.Session, 1)
	server := serve(t, 0, four, packet.Limits{}, func(server *packet.Server) {
		server.OnSessionStart(func(s *packet.Session) { sessions <- s })
	})
	if n := server.SendChanSize(); n != 1024 {
		t.Errorf("the default is %d", n)
	}
	raw(t, server)
	s := recv(t, sessions, "session")
	server.SetSendChanSize(3) // also for sessions that are open
	if n := server.SendChanSize(); n != 3 {
		t.Errorf("it is %d", n)
	}
	var err error
	for n := 0; err == nil && n < 10_000; n++ {
		err = s.Send(packet.Bytes(random(100_000)))
	}
	wantErr(t, "Send", err, packet.ErrBlocked)
	server.SetSendChanSize(0)
	if n := server.SendChanSize(); n != 1024 {
		t.Errorf("the default is %d", n)
	}
}

// SyncSend waits for the system, not for the queue, and gives up in the end.
func TestSyncSend(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		sessions := make(chan *packet.Session, 1)
		server := serve(t, std, four, packet.Limits{Packets: 1}, func(server *packet.Server) {
			server.OnSessionStart(func(s *packet.Session) { sessions <- s })
		})
		nc := raw(t, server)
		s := recv(t, sessions, "session")
		const n = 20
		sent := make(chan error, n)
		body := random(1 << 20)
		go func() {
			for range n {
				sent <- s.SyncSend(packet.Bytes(body))
			}
		}()
		for range n {
			read(t, nc, framed(body))
		}
		for range n {
			must(t, recv(t, sent, "SyncSend"))
		}
	})
}

func TestSyncSendGivesUp(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		sessions, ended := make(chan *packet.Session, 1), make(chan error, 1)
		server := serve(t, std, four, packet.Limits{Write: 200 * time.Millisecond}, func(server *packet.Server) {
			server.OnSessionStart(func(s *packet.Session) { sessions <- s })
			server.OnSessionClose(func(s *packet.Session) { ended <- s.Err() })
		})
		raw(t, server)
		s := recv(t, sessions, "session")
		var err error
		for err == nil {
			err = s.SyncSend(packet.Bytes(random(1 << 20)))
		}
		wantErr(t, "SyncSend", err, packet.ErrTimeout, packet.ErrClosed)
		wantErr(t, "end", recv(t, ended, "end"), packet.ErrTimeout)
	})
}

// A SyncSend that waits ends with the session.
func TestSyncSendAndClose(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		sessions := make(chan *packet.Session, 1)
		server := serve(t, std, four, packet.Limits{}, func(server *packet.Server) {
			server.OnSessionStart(func(s *packet.Session) { sessions <- s })
		})
		nc := raw(t, server)
		s := recv(t, sessions, "session")
		done := make(chan error, 1)
		go func() {
			var err error
			for err == nil {
				err = s.SyncSend(packet.Bytes(random(1 << 20)))
			}
			done <- err
		}()
		read(t, nc, []byte{0, 16, 0, 0}) // it has begun
		nc.Close()
		wantErr(t, "SyncSend", recv(t, done, "end"), packet.ErrClosed)
	})
}

func TestTimeouts(t *testing.T) {
	onAdapters(t, func(t *testing.T, std int) {
		short := 200 * time.Millisecond
		for _, tt := range []struct {
			name   string
			limits packet.Limits
			hook   func(*packet.Session)
			bytes  []byte
		}{
			{"idle", packet.Limits{Idle: short}, nil, framed(nil)},
			{"partial", packet.Limits{Partial: short}, nil, []byte{0, 0}},
			{"of a session", packet.Limits{}, func(s *packet.Session) { must(t, s.SetTimeouts(short, 0)) }, framed(nil)},
		} {
			ended := make(chan error, 1)
			server := serve(t, std, four, tt.limits, func(server *packet.Server) {
				server.OnSessionStart(tt.hook)
				server.OnSessionClose(func(s *packet.Session) { ended <- s.Err() })
			})
			nc := raw(t, server)
			write(t, nc, tt.bytes)
			if err := recv(t, ended, "end"); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
	})
}

func TestMaxSessions(t *testing.T) {
	server := serve(t, 0, four, packet.Limits{Sessions: 2}, onMessage(echo))
	var clients []*client
	for range 2 {
		c := dial(t, server)
		must(t, c.Send(packet.Bytes("in")))
		c.want([]byte("in"))
		clients = append(clients, c)
	}
	if nc, err := net.Dial("tcp", addr(server)); err == nil { // if the reset has not been quicker
		if _, err = io.ReadAll(nc); err == nil {
			t.Error("one too many was not reset")
		}
		nc.Close()
	}
	if server.Len() != 2 {
		t.Errorf("%d sessions", server.Len())
	}
	for _, c := range clients {
		must(t, c.Send(packet.Bytes("still in")))
		c.want([]byte("still in"))
	}
}
