package pubsub

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// TestChaos has two servers on one engine, whose connections break all the time, subscribers that go from one to the other, some
// of them too slow for their queues, and publishers that are cut in the middle too. No subscriber may miss a message without
// having been told, and none gets one twice.
func TestChaos(t *testing.T) {
	for _, kept := range []int{1000, 30} {
		t.Run(fmt.Sprint(kept), func(t *testing.T) { chaos(t, kept) })
	}
}

func chaos(t *testing.T, kept int) {
	const topics, subscribers, messages = 3, 24, 2000
	e := NewMemory(MemoryConfig{})
	defer e.Close()
	var addrs []string
	for range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		serveOn(t, smallBuffers{ln}, Config{Engine: e, Topics: history(kept)}, arpc.Limits{SendHigh: 16 << 10})
		addrs = append(addrs, ln.Addr().String())
	}
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	closing := func() {
		mu.Lock()
		defer mu.Unlock()
		for nc := range conns { // any one
			nc.Close()
			delete(conns, nc)
			return
		}
	}
	dial := func() (net.Conn, error) {
		nc, err := net.Dial("tcp", addrs[rand.IntN(len(addrs))])
		if err == nil {
			mu.Lock()
			conns[nc] = true
			mu.Unlock()
		}
		return nc, err
	}
	client := func() *Client {
		c, err := NewClient(dial, arpc.Backoff(time.Millisecond, 5*time.Millisecond), arpc.WaitForReady(), arpc.Limits{QueuedRequests: 16 << 10})
		must(t, err)
		return c
	}
	var fault atomic.Pointer[string]
	fail := func(format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		fault.CompareAndSwap(nil, &text)
	}
	var gaps, recoveries, lost, received atomic.Int64
	var ended sync.WaitGroup
	ended.Add(subscribers)
	for i := range subscribers {
		c := client()
		defer c.Stop()
		next, excused, over := 0, true, false // the first message may be any
		policy := []Overflow{DropOldest, DropNewest, Disconnect}[i%3]
		slow := i%4 == 0
		subscribe := func() error {
			_, err := c.SubscribeWith(within(t), fmt.Sprint("t.", i%topics), func(m *Message) {
				var n int
				fmt.Sscan(string(m.Data), &n)
				switch {
				case over:
				case n < 0: // the end
					over = true
					ended.Done()
				case n < next:
					fail("subscriber %d: %d after %d", i, n, next-1)
				case n > next && !excused:
					fail("subscriber %d (%v): %d after %d, and nobody said so", i, policy, n, next-1)
				}
				excused, next = false, n+1
				received.Add(1)
				if slow && n%50 == 0 {
					time.Sleep(2 * time.Millisecond) // this is what slow means
				}
			}, OnOverflow(policy), QueueSize(20), OnEvent(func(e Event) {
				switch {
				case e.Kind == EventLost:
					lost.Add(1)
					excused = true
				case e.Kind == EventSubscribed && e.Resumed && e.Recovered:
					recoveries.Add(1)
				case e.Kind == EventSubscribed && e.Resumed:
					gaps.Add(1)
					excused = true
				}
			}))
			return err
		}
		must(t, subscribe())
	}
	var publishing sync.WaitGroup
	for topic := range topics {
		p := client()
		defer p.Stop()
		publishing.Go(func() {
			for n := range messages {
				for {
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					_, err := p.PublishWith(ctx, fmt.Sprint("t.", topic), fmt.Sprintf("%d %01000d", n, 0), WithID(fmt.Sprint(n)))
					cancel()
					if err == nil {
						break
					}
					if !errors.Is(err, arpc.CodeUnavailable) {
						fail("publishing: %v", err)
						return
					}
				}
				if n%40 == 39 {
					closing()
				}
			}
		})
	}
	publishing.Wait()
	done := make(chan struct{})
	go func() {
		ended.Wait()
		close(done)
	}()
	p := client()
	defer p.Stop()
	for end := time.Now().Add(patience); ; { // one that was dropped does not end anything
		select {
		case <-done:
			t.Logf("%d received, %d recoveries, %d gaps, %d times told of losses", received.Load(), recoveries.Load(), gaps.Load(), lost.Load())
			if text := fault.Load(); text != nil {
				t.Fatal(*text)
			}
			if recoveries.Load() == 0 {
				t.Error("it was not wild enough")
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
		for topic := range topics {
			if _, err := p.PublishWith(within(t), fmt.Sprint("t.", topic), "-1"); err != nil {
				t.Fatal(err)
			}
		}
		if time.Now().After(end) {
			t.Fatal("a subscriber does not come to the end")
		}
	}
}
