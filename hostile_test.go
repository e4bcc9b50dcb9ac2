//go:build linux

package arpc

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/core"
)

// hostileServer is a server with an echo route, an innocent client on it, and a raw peer that the test lets misbehave.
type hostileServer struct {
	*testServer
	innocent *Client
}

func newHostileServer(t *testing.T, opts ...ServerOption) *hostileServer {
	s := startServer(t, opts...)
	s.Handler.Handle("/echo", func(c *Context) {
		var b []byte
		if err := c.Bind(&b); err != nil {
			t.Errorf("Bind: %v", err)
		}
		c.Write(b) //nolint:errcheck // some peers are gone
	})
	return &hostileServer{s, dialClient(t, s.addr)}
}

// stillServes checks that the innocent client and a new one are served.
func (s *hostileServer) stillServes(t *testing.T) {
	t.Helper()
	fresh := dialClient(t, s.addr)
	for _, c := range []*Client{s.innocent, fresh} {
		var text string
		if err := c.Call("/echo", "still there", &text, patience); err != nil || text != "still there" {
			t.Errorf("an innocent client gets %q, %v", text, err)
		}
	}
	fresh.Stop()
}

func (s *hostileServer) stats() *core.Stats { return &s.core().Stats }

func header(bodyLen uint32, cmd, methodLen byte, seq uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, bodyLen)
	b = append(b, 0, cmd, 0, methodLen)
	return binary.LittleEndian.AppendUint64(b, seq)
}

// Bad lengths and commands close the connection that sends them, or are dropped, and are counted.
func TestHostileFrames(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := newHostileServer(t, adapter)
		s.Handler.SetMaxBodyLen(1 << 20)
		for _, c := range []struct {
			name   string
			bytes  []byte
			closes bool
			answer string // the error answer that comes first, if one does
		}{
			{"no body, no method", header(0, CmdRequest, 0, 1), false, ""},
			{"4 GiB", header(0xffffffff, CmdRequest, 5, 1), true, ""},
			{"just over the limit", header(1<<20+1, CmdRequest, 5, 1), true, ""},
			{"only four bytes of it", header(1<<20+1, CmdRequest, 5, 1)[:4], true, ""},
			{"method beyond the body", append(header(3, CmdRequest, 9, 1), "/ec"...), false, errBadMethod.Message},
			{"method of 128 bytes", append(header(200, CmdRequest, 128, 1), strings.Repeat("m", 200)...), false, errBadMethod.Message},
			{"no method in a notification", append(header(3, CmdNotify, 0, 1), "abc"...), false, ""},
			{"no method in a response", append(header(3, CmdResponse, 0, 1), "abc"...), false, ""},
			{"a response nobody asked for", frameOf(CmdResponse, 0, 9, "/echo", "x"), false, ""},
			{"command 0", frameOf(CmdNone, 0, 1, "/echo", "x"), true, ""},
			{"command 7", frameOf(7, 0, 1, "/echo", "x"), true, ""},
			{"command 63", frameOf(63, 0, 1, "/echo", "x"), true, ""},
			{"not arpc at all", []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), true, ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				p := dialRaw(t, s.addr)
				before := s.stats().ProtocolErrors.Load()
				p.send(c.bytes)
				if c.answer != "" {
					if m := p.frame(); !m.IsError() || string(m.Data()) != c.answer || m.Seq() != 1 {
						t.Errorf("answered by %x", m.Buffer)
					}
				}
				if c.closes {
					if rest := p.end(); len(rest) > 0 {
						t.Errorf("answered by %x", rest)
					}
				} else {
					p.answers()
				}
				if name := c.name; name != "no body, no method" && s.stats().ProtocolErrors.Load() == before {
					t.Error("not counted")
				}
			})
		}
		s.stillServes(t)
	})
}

// A client survives a server that answers twice, answers what was not asked and sends garbage.
func TestHostileAnswers(t *testing.T) {
	ln := listenRaw(t)
	misses := make(chan uint64, 2)
	h := NewHandler()
	h.HandleSessionMiss(func(_ *Client, m *Message) { misses <- m.Seq() })
	c := dialClientBy(t, dialer(ln.addr()), h, Backoff(time.Millisecond, time.Millisecond), Protocol(1))
	p := ln.accept()
	result := make(chan error, 1)
	call := func() {
		var text string
		err := c.Call("/echo", "x", &text, patience)
		if err == nil && text != "once" {
			err = fmt.Errorf("answer %q", text)
		}
		result <- err
	}
	go call()
	seq := p.frame().Seq()
	answer := frameOf(CmdResponse, 0, seq, "/echo", "once")
	p.send(answer, answer, frameOf(CmdResponse, 0, 1<<40, "/echo", "never asked"))
	must(t, recv(t, result, "answer"))
	if a, b := recv(t, misses, "second answer"), recv(t, misses, "answer to nothing"); a != seq || b != 1<<40 {
		t.Errorf("missed %d and %d", a, b)
	}
	go call()
	p.frame()
	p.send(header(0xffffffff, CmdResponse, 5, seq))
	if err := recv(t, result, "end of the call"); CodeOf(err) != CodeUnavailable {
		t.Errorf("a call on a connection that sends garbage: %v", err)
	}
	p = ln.accept() // the client connects again
	must(t, c.WaitReady(patient(t)))
	go call()
	p.send(frameOf(CmdResponse, 0, p.frame().Seq(), "/echo", "once"))
	must(t, recv(t, result, "answer on the new connection"))
}

func TestHostileOneByteAtATime(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := newHostileServer(t, adapter)
		p := dialRaw(t, s.addr)
		for i := range uint64(20) {
			f := frameOf(CmdRequest, 0, i, "/echo", strings.Repeat("y", int(i)))
			for j := range f {
				p.send(f[j : j+1])
			}
			if m := p.frame(); m.Seq() != i || len(m.Data()) != int(i) {
				t.Fatalf("answered by %x", m.Buffer)
			}
		}
		s.stillServes(t)
	})
}

// Who begins a frame and falls silent is closed; who is silent between frames is not.
func TestHostileSilence(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := newHostileServer(t, adapter, Limits{PartialFrame: 200 * time.Millisecond})
		quiet := dialRaw(t, s.addr)
		quiet.answers()
		var silent []*rawPeer
		for _, n := range []int{1, 4, 8, 15, 17} {
			p := dialRaw(t, s.addr)
			p.send(frameOf(CmdRequest, 0, 1, "/echo", "xyz")[:n])
			silent = append(silent, p)
		}
		for _, p := range silent {
			p.end()
		}
		if n := s.stats().Silent.Load(); n != int64(len(silent)) {
			t.Errorf("%d counted", n)
		}
		quiet.answers()
		s.stillServes(t)
	})
}

// A peer that asks and never reads is not read either, and closed in the end; its answers do not pile up.
func TestHostileNeverReads(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter, Limits{WriteStall: 500 * time.Millisecond})
		answer := make([]byte, 64<<10)
		var ran atomic.Int64
		s.Handler.Handle("/big", func(c *Context) {
			ran.Add(1)
			c.Write(answer) //nolint:errcheck // the peer will be closed
		})
		s.Handler.Handle("/echo", echo)
		h := &hostileServer{s, dialClient(t, s.addr)}
		h.stillServes(t)
		before := heapLive()
		p := dialRaw(t, s.addr)
		ask := frameOf(CmdRequest, 0, 1, "/big", "")
		var most uint64
		for p.SetWriteDeadline(time.Now().Add(patience)); ; {
			if _, err := p.Conn.Write(ask); err != nil {
				break // closed, or not read for so long that it will be
			}
			if n := ran.Load(); n%64 == 0 {
				most = max(most, heapLive())
			}
		}
		eventually(t, "the stall is counted", func() bool { return s.core().Stats.Stalled.Load() == 1 })
		// Sockets hold some megabytes, the connection its high mark and one more read's worth of answers.
		if limit := uint64(16 << 20); most > before+limit {
			t.Errorf("the heap grew by %d MiB over %d answers", (most-before)>>20, ran.Load())
		}
		h.stillServes(t)
	})
}

// Connections that come and go, politely or not, leave nothing.
func TestHostileVanishing(t *testing.T) {
	const conns, at = 10_000, 64
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := newHostileServer(t, adapter)
		var wg sync.WaitGroup
		var next atomic.Int64
		for range at {
			wg.Go(func() {
				for i := next.Add(1); i <= conns; i = next.Add(1) {
					nc, err := net.DialTimeout("tcp", s.addr, patience)
					if err != nil {
						t.Errorf("connection %d: %v", i, err)
						return
					}
					switch i % 4 {
					case 0:
						nc.Write([]byte{1, 2, 3}) //nolint:errcheck // it is to vanish
					case 1:
						nc.Write(frameOf(CmdRequest, 0, 1, "/echo", "x")) //nolint:errcheck // as above
					}
					if i%2 == 0 {
						reset(nc)
					} else {
						// An ordinary close leaves a port in TIME_WAIT if we are first; ten thousand of those are too many.
						nc.(*net.TCPConn).CloseWrite() //nolint:errcheck // as above
						io.Copy(io.Discard, nc)        //nolint:errcheck // as above
						nc.Close()
					}
				}
			})
		}
		waitGroup(t, &wg, "end of the connections")
		eventually(t, "only the innocent is left", func() bool { return s.core().Len() == 1 })
		s.stillServes(t)
	})
}

// An announced length costs nothing until bytes come.
func TestHostileAnnouncements(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := newHostileServer(t, adapter)
		before := heapLive()
		var peers []*rawPeer
		for range 50 {
			p := dialRaw(t, s.addr)
			p.answers()
			p.send(header(60<<20, CmdRequest, 5, 1), []byte("/echo"))
			peers = append(peers, p)
		}
		s.stillServes(t)
		eventually(t, "all announcements read", func() bool {
			n := 0
			s.core().Each(func(cn *core.Conn) bool {
				if cn.Partial() {
					n++
				}
				return true
			})
			return n == len(peers)
		})
		if after := heapLive(); after > before+16<<20 {
			t.Errorf("50 announcements of 60 MiB cost %d MiB", (after-before)>>20)
		}
		runtime.KeepAlive(peers)
	})
}

// TestHostileExhaustion runs a server in a process that may open few files. When there are none left, connections go on, those
// that wait are refused instead of left waiting, nothing spins, and accepting resumes.
func TestHostileExhaustion(t *testing.T) {
	if std := os.Getenv("ARPC_TEST_EXHAUSTION"); std != "" {
		exhaustedServer(std)
		return
	}
	const limit, peers = 64, 100
	for name, std := range map[string]string{"std": "-1", "poll": "0"} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestHostileExhaustion$")
			cmd.Env = append(os.Environ(), "ARPC_TEST_EXHAUSTION="+std, "ARPC_TEST_FILES="+strconv.Itoa(limit))
			stdin, err := cmd.StdinPipe()
			must(t, err)
			stdout, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			defer func() {
				stdin.Close()
				cmd.Wait() //nolint:errcheck // the test says what is wrong
			}()
			addr, err := bufio.NewReader(stdout).ReadString('\n')
			must(t, err)
			addr = strings.TrimSpace(addr)
			c := dialClient(t, addr)
			cpu := func() time.Duration {
				var ns int
				must(t, c.Call("/cpu", nil, &ns, patience))
				return time.Duration(ns)
			}
			start := cpu()
			var held []*rawPeer
			served, refused := 0, 0
			for range peers {
				nc, err := net.DialTimeout("tcp", addr, patience)
				if err != nil {
					refused++
					continue
				}
				p := newRaw(t, nc)
				p.Conn.Write(frameOf(CmdRequest, 0, 1, "/echo", "x")) //nolint:errcheck // may be refused already
				held = append(held, p)
			}
			for _, p := range held {
				if _, err := readFrame(p.Conn); err == nil {
					served++
				} else if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
					t.Error("a connection is neither served nor refused")
				} else {
					refused++
				}
			}
			if served < limit/3 || served >= limit || served+refused != peers {
				t.Errorf("%d served, %d refused of %d", served, refused, peers)
			}
			// The connection of before goes on, and refusing has not burnt the processor.
			if used := cpu() - start; used > 2*time.Second {
				t.Errorf("%v of CPU time while there were no descriptors", used)
			}
			for _, p := range held {
				reset(p.Conn)
			}
			eventually(t, "accepting resumes", func() bool {
				nc, err := net.DialTimeout("tcp", addr, patience)
				if err != nil {
					return false
				}
				defer reset(nc)
				nc.SetDeadline(time.Now().Add(patience))          //nolint:errcheck // a bound only
				nc.Write(frameOf(CmdRequest, 0, 1, "/echo", "x")) //nolint:errcheck // readFrame says
				_, err = readFrame(nc)
				return err == nil
			})
		})
	}
}

// exhaustedServer is the process with few files. It ends when its standard input does.
func exhaustedServer(std string) {
	n, _ := strconv.Atoi(std)
	files, _ := strconv.ParseUint(os.Getenv("ARPC_TEST_FILES"), 10, 64)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: files, Max: files}); err != nil {
		panic(err)
	}
	s := NewServer(NewHandler(), StdConns(n))
	s.Handler.Handle("/echo", echo)
	s.Handler.Handle("/cpu", func(c *Context) {
		var ru syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
			c.Error(err)
			return
		}
		c.Write(int(ru.Utime.Nano() + ru.Stime.Nano()))
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go s.Serve(ln) //nolint:errcheck // ends with the process
	fmt.Println(ln.Addr())
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is the end
	os.Exit(0)
}
