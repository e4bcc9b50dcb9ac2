package broadcast

import (
	"sync"

	"github.com/arpc-go/arpc"
)

const (
	// flushChunk is how many connections are written to before the next are fetched.
	flushChunk = 64
	// maxBehind is the number of messages after which who sends writes too, so that queues do not fill because of us.
	maxBehind = 32
)

// A flusher writes to the connections that messages have been appended to, while further messages are: those to one connection go out
// together. One goroutine does so while there is something to do.
type flusher struct {
	mu      sync.Mutex
	queue   []*arpc.Client
	at      int // what is before it was fetched
	behind  int // messages since the queue was empty
	running bool
}

// add has the connections written to.
func (f *flusher) add(clients []*arpc.Client) {
	f.mu.Lock()
	f.queue = append(f.queue, clients...)
	f.behind++
	help := f.behind > maxBehind
	start := !f.running && f.at < len(f.queue)
	f.running = f.running || start
	f.mu.Unlock()
	if start {
		go f.run()
	}
	if help {
		f.drain()
	}
}

func (f *flusher) run() {
	for {
		f.drain()
		f.mu.Lock()
		if f.at == len(f.queue) {
			f.running = false
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
	}
}

// drain writes until nobody is left to be fetched.
func (f *flusher) drain() {
	var chunk [flushChunk]*arpc.Client
	for {
		f.mu.Lock()
		n := copy(chunk[:], f.queue[f.at:])
		clear(f.queue[f.at : f.at+n])
		if f.at += n; f.at == len(f.queue) {
			f.queue, f.at, f.behind = f.queue[:0], 0, 0
		}
		f.mu.Unlock()
		if n == 0 {
			return
		}
		for _, c := range chunk[:n] {
			c.Flush()
		}
	}
}
