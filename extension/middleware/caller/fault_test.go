package caller

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

// A cut is a connection that breaks at some byte, in one direction or the other.
type cut struct {
	net.Conn
	in, out atomic.Int64 // bytes that are left
}

func (c *cut) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if left := c.in.Add(-int64(n)); left < 0 {
		c.Conn.Close()
		return max(n+int(left), 0), net.ErrClosed
	}
	return n, err
}

func (c *cut) Write(b []byte) (int, error) {
	left := c.out.Add(-int64(len(b)))
	if left >= 0 {
		return c.Conn.Write(b)
	}
	n, _ := c.Conn.Write(b[:max(len(b)+int(left), 0)]) // part of a frame is sent
	c.Conn.Close()
	return n, net.ErrClosed
}

// TestRetryNeverRepeats makes calls whose connection is cut at random bytes: what is not idempotent is carried out at most
// once, exactly once if it succeeds, and fails only if it was sent; what is idempotent succeeds, and is hedged as well; each
// call and callback ends once, with its own answer.
func TestRetryNeverRepeats(t *testing.T) {
	total := 10_000
	if testing.Short() {
		total = 1000
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var cuts int
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 0))

	runs := make([]atomic.Int32, total) // of each request's handler
	refuse := make([]atomic.Int32, total)
	h := arpc.NewHandler()
	handle := func(ctx *arpc.Context) {
		var id int
		if err := ctx.Bind(&id); err != nil {
			t.Error(err)
			return
		}
		if id%10 < 2 && refuse[id].Add(1) == 1 {
			ctx.Error(arpc.Refused(arpc.CodeUnavailable)) //nolint:errcheck // the connection may be cut
			return
		}
		runs[id].Add(1)
		ctx.Write(answerTo(id)) //nolint:errcheck // the connection may be cut
	}
	h.Handle("/ordered", handle)
	h.Handle("/async", handle, true)
	h.Handle("/idempotent", handle, true)
	h.Handle("/note", handle)
	server, dialer := serve(t, h)
	client := dial(t, func() (net.Conn, error) {
		nc, err := dialer()
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		cuts++
		c := &cut{Conn: nc}
		least := int64(0)
		if cuts == 1 {
			least = 1000 // NewClient needs an answer to HELLO
		}
		c.in.Store(least + rng.Int64N(4000))
		c.out.Store(least + rng.Int64N(4000))
		return c, nil
	}, arpc.Backoff(time.Millisecond, 2*time.Millisecond))
	enough, get := Budget(1<<30, 0), Idempotent("/idempotent")
	c := Retry(Hedge(client, 3*time.Millisecond, enough, get), Attempts(1000), Backoff(time.Millisecond, 4*time.Millisecond), enough, get)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	kinds := []string{"/ordered", "/async", "/idempotent", "/note"}
	type result struct {
		err  error
		ends atomic.Int32
	}
	results := make([]result, total)
	var wg sync.WaitGroup
	end := func(id int, got string, err error) {
		r := &results[id]
		if r.ends.Add(1) != 1 {
			t.Errorf("call %d ends again", id)
			return
		}
		if err == nil && id/2%4 != 3 && got != answerTo(id) {
			t.Errorf("call %d gets %q", id, got)
		}
		r.err = err
	}
	const callers = 16
	var ended sync.WaitGroup // callbacks
	for g := range callers {
		wg.Go(func() {
			room := make(chan struct{}, 8) // callbacks in flight
			for id := g; id < total; id += callers {
				method := kinds[id/2%4]
				switch {
				case method == "/note":
					end(id, "", c.NotifyWith(ctx, method, id))
				case id%2 == 0:
					var got string
					err := c.CallWith(ctx, method, id, &got)
					end(id, got, err)
				default:
					room <- struct{}{}
					ended.Add(1)
					c.CallAsync(method, id, func(ctx *arpc.Context) { //nolint:errcheck // the callback has it
						defer ended.Done()
						var got string
						err := ctx.Bind(&got)
						end(id, got, err)
						<-room
					}, 3*patience)
				}
			}
		})
	}
	wg.Wait()
	ended.Wait()

	// The counts are final once nothing that has arrived is left.
	client.Stop()
	must(t, server.Shutdown(patient(t)))
	lost, done := 0, 0
	for id := range results {
		r, n := &results[id], int(runs[id].Load())
		if r.ends.Load() != 1 {
			t.Errorf("call %d has ended %d times", id, r.ends.Load())
		}
		idempotent := id/2%4 == 2
		switch {
		case n > 1 && !idempotent:
			t.Errorf("call %d of %s was carried out %d times (%v)", id, kinds[id/2%4], n, r.err)
		case r.err == nil && n == 0 && id/2%4 != 3:
			t.Errorf("call %d of %s has an answer, and was not carried out", id, kinds[id/2%4])
		case r.err != nil && (idempotent || id/2%4 == 3):
			t.Errorf("call %d of %s fails: %v", id, kinds[id/2%4], r.err)
		case r.err != nil && !errors.Is(r.err, arpc.CodeUnavailable):
			t.Errorf("call %d of %s fails: %v", id, kinds[id/2%4], r.err)
		}
		if r.err != nil {
			if arpc.IsRefused(r.err) {
				t.Errorf("call %d of %s was not sent, and not tried again: %v", id, kinds[id/2%4], r.err)
			}
			lost++
		}
		done += n
	}
	t.Logf("%d connections; of %d calls and notifications %d failed, as they may have been carried out; handlers ran %d times",
		cuts, total, lost, done)
	if cuts < total/200 || lost == 0 {
		t.Errorf("too little has gone wrong: %d connections, %d failures", cuts, lost)
	}
}

func answerTo(id int) string { return fmt.Sprintf("answer %d", id) }
