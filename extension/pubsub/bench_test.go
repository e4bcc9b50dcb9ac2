package pubsub

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// drained counts what subscribers get.
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

// BenchmarkFanOut publishes 128 bytes to a topic, one message or 32 at a time, from a connection, and waits until all
// subscribers have it. What the subscribers do is reading only, but it is counted too.
func BenchmarkFanOut(b *testing.B) {
	for _, config := range []struct {
		name    string
		history int
	}{{"plain", 0}, {"history", 100}} {
		for _, members := range []int{100, 1000} {
			for _, flight := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/members=%d/flight=%d", config.name, members, flight), func(b *testing.B) {
					fanOut(b, config.history, members, flight)
				})
			}
		}
	}
}

func fanOut(b *testing.B, kept, members, flight int) {
	_, addr := serve(b, Config{Topics: history(kept)})
	d := drained{reached: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	defer wg.Wait()
	var m Message
	for range members {
		p := benchPeer(b, addr, func(nc net.Conn) {
			d.read(nc, &wg)
		})
		defer p.Close()
	}
	body := strings.Repeat("x", 128)
	m = Message{Topic: "t", Data: []byte(body), Timestamp: 1}
	if kept > 0 {
		m.Position = Position{1, 1}
	}
	size := int64(len(messageFrame(&m, 1, false, Position{}).Buffer))
	c := connect(b, addr)
	pub, err := (&publication{topic: "t", data: []byte(body)}).append(nil)
	must(b, err)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += flight {
		n := min(flight, b.N-i)
		d.want.Add(size * int64(n) * int64(members))
		for range n {
			if err := c.CallAsync(methodPub, pub, func(ctx *arpc.Context) {
				if err := ctx.Err(); err != nil {
					b.Error(err)
				}
			}, patience); err != nil {
				b.Fatal(err)
			}
		}
		recv(b, d.reached, "messages")
	}
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*members), "ns/delivery")
}

// benchPeer subscribes, and lets read read what follows the answer and the start.
func benchPeer(b *testing.B, addr string, read func(net.Conn)) net.Conn {
	nc, err := net.Dial("tcp", addr)
	must(b, err)
	p := &rawPeer{nil, nc}
	req, err := json.Marshal(subscribeRequest{Topic: "t", Token: 1})
	must(b, err)
	msg := make([]byte, arpc.HeadLen, 200)
	msg[5], msg[7] = arpc.CmdRequest, byte(len(methodSub))
	msg = append(append(msg, methodSub...), req...)
	if _, err = nc.Write(frame(msg).Buffer); err != nil {
		b.Fatal(err)
	}
	for range 2 {
		_, _, err := p.read()
		must(b, err)
	}
	read(nc)
	return nc
}

// BenchmarkStuckSubscriber is the time until 100 subscribers have a message, alone and beside some that read nothing.
func BenchmarkStuckSubscriber(b *testing.B) {
	for _, stuck := range []int{0, 1, 10} {
		b.Run(fmt.Sprint("stuck=", stuck), func(b *testing.B) {
			const members = 100
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			must(b, err)
			s := serveOn(b, smallBuffers{ln}, Config{}, arpc.Limits{SendHigh: 16 << 10, WriteStall: time.Hour})
			d := drained{reached: make(chan struct{}, 1)}
			var wg sync.WaitGroup
			defer wg.Wait()
			for range stuck {
				defer benchPeer(b, ln.Addr().String(), func(net.Conn) {}).Close()
			}
			body := make([]byte, 128)
			for range 60_000 / 128 * 128 { // until they are stuck
				must(b, s.Publish("t", body))
			}
			for range members {
				defer benchPeer(b, ln.Addr().String(), func(nc net.Conn) { d.read(nc, &wg) }).Close()
			}
			size := int64(len(messageFrame(&Message{Topic: "t", Data: body, Timestamp: 1}, 1, false, Position{}).Buffer))
			var took []time.Duration
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				start := time.Now()
				d.want.Add(size * members)
				must(b, s.Publish("t", body))
				recv(b, d.reached, "message")
				took = append(took, time.Since(start))
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			if st := s.TopicStats(); stuck > 0 && st.Dropped == 0 {
				b.Fatalf("nobody is stuck: %+v", st)
			}
		})
	}
}

// BenchmarkPublish is a publication to a topic without subscribers, by a client that waits for the answer.
func BenchmarkPublish(b *testing.B) {
	for _, kept := range []int{0, 100} {
		b.Run(fmt.Sprint("history=", kept), func(b *testing.B) {
			_, addr := serve(b, Config{Topics: history(kept)})
			c, ctx, body := connect(b, addr), within(b), make([]byte, 128)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.PublishWith(ctx, "t", body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSubscribe subscribes and unsubscribes.
func BenchmarkSubscribe(b *testing.B) {
	_, addr := serve(b, Config{})
	c, ctx := connect(b, addr), within(b)
	b.ReportAllocs()
	for b.Loop() {
		sub, err := c.SubscribeWith(ctx, "t", func(*Message) {})
		if err != nil {
			b.Fatal(err)
		}
		if err = sub.Unsubscribe(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMatch finds the patterns of a topic among many.
func BenchmarkMatch(b *testing.B) {
	var tree filterTree[int]
	for i := range 10_000 {
		*tree.at(fmt.Sprint("a.", i, ".*.c")) = new(int)
	}
	*tree.at("a.>") = new(int)
	out := make([]*int, 0, 10)
	b.ReportAllocs()
	for b.Loop() {
		if out = tree.match(out[:0], "a.777.b.c"); len(out) != 2 {
			b.Fatal(len(out))
		}
	}
}
