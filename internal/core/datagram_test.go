package core

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc/internal/frame"
)

// datagramEcho serves a socket that sends back what it gets.
func datagramEcho(t *testing.T, cfg DatagramConfig) *Datagram {
	t.Helper()
	if cfg.Handle == nil {
		cfg.Handle = func(d *Datagram, p []byte, from netip.AddrPort) {
			if err := d.Send(p, from, 0); err != nil {
				t.Errorf("echo: %v", err)
			}
		}
	}
	d, err := ListenDatagram("udp", "127.0.0.1:0", cfg)
	must(t, err)
	t.Cleanup(func() {
		d.Close()
		recv(t, d.Done(), "end of the server's socket")
	})
	d.Start()
	return d
}

func datagramDial(t *testing.T, to string, cfg DatagramConfig) *Datagram {
	t.Helper()
	d, err := DialDatagram(context.Background(), "udp", to, cfg)
	must(t, err)
	t.Cleanup(func() {
		d.Close()
		recv(t, d.Done(), "end of the client's socket")
	})
	d.Start()
	return d
}

func TestDatagramEcho(t *testing.T) {
	server := datagramEcho(t, DatagramConfig{})
	got := make(chan []byte, 1)
	from := make(chan netip.AddrPort, 1)
	client := datagramDial(t, server.LocalAddr().String(), DatagramConfig{
		Handle: func(d *Datagram, p []byte, a netip.AddrPort) { got <- bytes.Clone(p); from <- a },
	})
	for _, p := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte{7}, MaxDatagram)} {
		must(t, client.Send(p, netip.AddrPort{}, 0))
		if q := recv(t, got, "echo"); !bytes.Equal(p, q) {
			t.Fatalf("%d bytes came back as %d", len(p), len(q))
		}
		if a := recv(t, from, "address"); a.String() != server.LocalAddr().String() || a != client.Peer() {
			t.Fatalf("from %v, peer %v, want %v", a, client.Peer(), server.LocalAddr())
		}
	}
	s := &server.Stats
	eventually(t, "all is counted", func() bool { // sending is when it is over
		return s.In.Load() == 3 && s.Out.Load() == 3 && s.BytesIn.Load() == 1+MaxDatagram
	})
}

// A socket for both families names an IPv4 peer by its IPv4 address, and sends to it by that.
func TestDatagramBothFamilies(t *testing.T) {
	seen := make(chan netip.AddrPort, 1)
	server, err := ListenDatagram("udp", ":0", DatagramConfig{Handle: func(d *Datagram, p []byte, from netip.AddrPort) {
		seen <- from
		d.Send(p, from, 0)
	}})
	must(t, err)
	server.Start()
	_, port, _ := net.SplitHostPort(server.LocalAddr().String())
	back := make(chan struct{}, 1)
	client := datagramDial(t, "127.0.0.1:"+port, DatagramConfig{Handle: func(*Datagram, []byte, netip.AddrPort) { back <- struct{}{} }})
	must(t, client.Send([]byte("x"), netip.AddrPort{}, 0))
	if from := recv(t, seen, "datagram"); !from.Addr().Is4() {
		t.Errorf("from %v", from)
	}
	recv(t, back, "answer")
	server.Close()
	recv(t, server.Done(), "end")
}

func TestDatagramLimits(t *testing.T) {
	got := make(chan int, 2)
	server := datagramEcho(t, DatagramConfig{Max: 100, Handle: func(_ *Datagram, p []byte, _ netip.AddrPort) { got <- len(p) }})
	client := datagramDial(t, server.LocalAddr().String(), DatagramConfig{Max: 101, Handle: func(*Datagram, []byte, netip.AddrPort) {}})
	for _, n := range []int{101, 100} {
		must(t, client.Send(make([]byte, n), netip.AddrPort{}, 0))
	}
	if n := recv(t, got, "datagram"); n != 100 || server.Stats.Dropped.Load() != 1 {
		t.Errorf("%d bytes handled, %d dropped", n, server.Stats.Dropped.Load())
	}
	var large *frame.TooLargeError
	if err := client.Send(make([]byte, 102), netip.AddrPort{}, 0); !errors.As(err, &large) || large.Limit != 101 {
		t.Errorf("sent above the limit: %v", err)
	}
}

// A peer that is not there is reported, and the socket works when it comes back.
func TestDatagramRefused(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("not every system tells a socket of refused datagrams")
	}
	gone := datagramEcho(t, DatagramConfig{})
	addr := gone.LocalAddr().String()
	gone.Close()
	recv(t, gone.Done(), "end")
	failed, got := make(chan error, 100), make(chan struct{}, 100)
	client := datagramDial(t, addr, DatagramConfig{
		Handle: func(*Datagram, []byte, netip.AddrPort) { got <- struct{}{} },
		Failed: func(_ *Datagram, err error) { failed <- err },
	})
	must(t, client.Send([]byte("x"), netip.AddrPort{}, 0))
	recv(t, failed, "refusal")
	back, err := ListenDatagram("udp", addr, DatagramConfig{Handle: func(d *Datagram, p []byte, from netip.AddrPort) { d.Send(p, from, 0) }})
	must(t, err)
	back.Start()
	must(t, client.Send([]byte("y"), netip.AddrPort{}, 0))
	recv(t, got, "answer")
	back.Close()
	recv(t, back.Done(), "end")
}

// Calls of the owner's code never overlap, jobs keep their order, a panic ends nothing, and nothing follows Closed.
func TestDatagramSerial(t *testing.T) {
	const n = 500
	var inside, after atomic.Int32
	var handled, jobs int // guarded by the turn
	var last int
	var failed []error
	all := make(chan struct{})
	enter := func() {
		if inside.Add(1) != 1 || after.Load() != 0 {
			t.Error("calls overlap, or follow Closed")
		}
	}
	check := func() {
		inside.Add(-1)
		if handled == n && jobs == n {
			close(all)
		}
	}
	d := datagramEcho(t, DatagramConfig{
		Handle: func(d *Datagram, p []byte, from netip.AddrPort) {
			enter()
			handled++
			d.Send(nil, from, 0)
			defer check()
			if handled == n/2 {
				panic("test")
			}
		},
		Failed: func(_ *Datagram, err error) { failed = append(failed, err) },
		Closed: func(*Datagram) { enter(); after.Add(1) },
	})
	var posts sync.WaitGroup
	posts.Go(func() {
		for i := 1; i <= n; i++ {
			for !d.Post(func() {
				enter()
				if last++; last != i {
					t.Errorf("job %d as number %d", i, last)
				}
				jobs++
				check()
			}) {
				runtime.Gosched()
			}
		}
	})
	next := make(chan struct{}, 1)
	client := datagramDial(t, d.LocalAddr().String(), DatagramConfig{Handle: func(*Datagram, []byte, netip.AddrPort) { next <- struct{}{} }})
	for range n {
		must(t, client.Send([]byte("x"), netip.AddrPort{}, 0))
		recv(t, next, "answer")
	}
	posts.Wait()
	recv(t, all, "all calls")
	d.Close()
	recv(t, d.Done(), "end")
	if after.Load() != 1 || len(failed) != 1 || !strings.Contains(failed[0].Error(), "panic: test") {
		t.Errorf("Closed %d times, failures %v", after.Load(), failed)
	}
	if d.Post(func() {}) {
		t.Error("Post after Close")
	}
	if err := d.Send(nil, client.LocalAddr().(*net.UDPAddr).AddrPort(), 0); err != ErrClosed {
		t.Errorf("Send after Close: %v", err)
	}
}

// Close may be called by the owner's code and does not wait for it; the number of jobs is limited.
func TestDatagramClose(t *testing.T) {
	inside, release := make(chan struct{}), make(chan struct{})
	var closed, ran atomic.Int32
	d := datagramEcho(t, DatagramConfig{
		Handle: func(d *Datagram, _ []byte, _ netip.AddrPort) { d.Close(); close(inside); <-release },
		Closed: func(*Datagram) { closed.Add(1) },
	})
	block := make(chan struct{})
	d.Post(func() { <-block })
	for i := 1; i < maxPosted; i++ {
		if !d.Post(func() { ran.Add(1) }) {
			t.Fatalf("job %d refused", i)
		}
	}
	if d.Post(func() {}) {
		t.Error("a job above the limit")
	}
	close(block)
	client := datagramDial(t, d.LocalAddr().String(), DatagramConfig{Handle: func(*Datagram, []byte, netip.AddrPort) {}})
	must(t, client.Send(nil, netip.AddrPort{}, 0))
	recv(t, inside, "handler")
	select {
	case <-d.Done():
		t.Error("done while a handler runs")
	default:
	}
	if closed.Load() != 0 {
		t.Error("Closed while a handler runs")
	}
	close(release)
	recv(t, d.Done(), "end")
	if closed.Load() != 1 {
		t.Errorf("Closed %d times", closed.Load())
	}
	unused, err := ListenDatagram("udp", "127.0.0.1:0", DatagramConfig{Closed: func(*Datagram) { closed.Add(1) }})
	must(t, err)
	unused.Close()
	unused.Start()
	recv(t, unused.Done(), "end of a socket that was not started")
	if closed.Load() != 2 {
		t.Error("no Closed for a socket that was not started")
	}
}

// Who waits to send waits no longer than its time, and not for a closed socket.
func TestDatagramSendWaits(t *testing.T) {
	d := datagramEcho(t, DatagramConfig{})
	to := d.LocalAddr().(*net.UDPAddr).AddrPort()
	d.sending <- struct{}{} // as if a socket were full
	if err := d.Send(nil, to, time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("blocked: %v", err)
	}
	result := make(chan error, 1)
	go func() { result <- d.Send(nil, to, wait) }()
	d.Close()
	if err := recv(t, result, "end of Send"); err != ErrClosed {
		t.Errorf("closed: %v", err)
	}
	<-d.sending
}

// A periodic job runs in turn until it is stopped, never beside itself, and ends with the socket.
func TestDatagramEvery(t *testing.T) {
	d := datagramEcho(t, DatagramConfig{})
	ran := make(chan struct{})
	stop := d.Every(time.Millisecond, func() { ran <- struct{}{} })
	for range 3 {
		recv(t, ran, "run")
	}
	recv(t, ran, "run") // one may be in line when it is stopped: let it pass
	stop()
	stop()
	idle := make(chan struct{})
	go func() {
		for !d.Post(func() { close(idle) }) {
			runtime.Gosched()
		}
	}()
	for stopped := false; !stopped; {
		select {
		case <-ran:
		case <-idle:
			stopped = true
		}
	}
	d.Every(time.Hour, func() {})
	d.Close()
	if len(d.periods) != 0 {
		t.Error("a closed socket keeps timers")
	}
	d.Every(time.Millisecond, func() { t.Error("a job of a closed socket") })()
}
