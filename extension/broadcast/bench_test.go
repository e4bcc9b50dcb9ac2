package broadcast_test

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/broadcast"
)

// drained counts what members get.
type drained struct {
	total, want atomic.Int64
	reached     chan struct{}
}

func (d *drained) read(nc net.Conn, wg *sync.WaitGroup) {
	wg.Go(func() {
		b := make([]byte, 16<<10)
		for {
			n, err := nc.Read(b)
			if n > 0 && d.total.Add(int64(n)) == d.want.Load() {
				d.reached <- struct{}{}
			}
			if err != nil {
				return
			}
		}
	})
}

// BenchmarkFanOut sends 128 bytes to a room, one message or 32 at a time, and waits until all members have it. What the
// members do is reading only, but it is counted too.
func BenchmarkFanOut(b *testing.B) {
	for _, transport := range []string{"tcp", "poll", "pipe"} {
		for _, members := range []int{100, 1000} {
			for _, flight := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/members=%d/flight=%d", transport, members, flight), func(b *testing.B) {
					fanOut(b, transport, members, flight)
				})
			}
		}
	}
}

func fanOut(b *testing.B, transport string, members, flight int) {
	std := -1
	if transport == "poll" {
		std = 0
	}
	server := arpc.NewServer(arpc.NewHandler(), arpc.StdConns(std))
	hub := broadcast.NewHub()
	room := hub.Room("r")
	joined := make(chan error, 1)
	server.Handler.Handle("/join", func(ctx *arpc.Context) { joined <- room.Join(ctx.Client) })
	ln, dial := arpc.Pipe()
	if transport != "pipe" {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			b.Fatal(err)
		}
		dial = func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }
	}
	go server.Serve(ln)
	d := drained{reached: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	join := server.NewMessage(arpc.CmdNotify, "/join", nil)
	for range members {
		nc, err := dial()
		if err != nil {
			b.Fatal(err)
		}
		if _, err = nc.Write(join.Buffer); err != nil {
			b.Fatal(err)
		}
		if err = recv(b, joined, "join"); err != nil {
			b.Fatal(err)
		}
		d.read(nc, &wg)
		defer nc.Close()
	}
	body := strings.Repeat("x", 128)
	size := int64(arpc.HeadLen + len("/m") + len(body))
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += flight {
		n := min(flight, b.N-i)
		d.want.Add(size * int64(n) * int64(members))
		for range n {
			if _, err := room.Send("/m", body); err != nil {
				b.Fatalf("%+v, %v", err, err)
			}
		}
		recv(b, d.reached, "messages")
	}
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*members), "ns/delivery")
	server.Stop()
	wg.Wait()
}

// BenchmarkMembership is a connection that joins a room of a hundred others and leaves it.
func BenchmarkMembership(b *testing.B) {
	n := serve(b, false)
	hub := broadcast.NewHub()
	room := hub.Room("r")
	for range 100 {
		_, c := n.connect(nil)
		if err := room.Join(c); err != nil {
			b.Fatal(err)
		}
	}
	_, c := n.connect(nil)
	must(b, hub.All().Join(c))
	b.ReportAllocs()
	for b.Loop() {
		room.Join(c)
		room.Leave(c)
	}
}
