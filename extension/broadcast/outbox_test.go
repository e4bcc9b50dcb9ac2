package broadcast_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/broadcast"
)

// Messages to more members than the sender writes to by itself arrive, in order, while others send to the same room.
func TestLargeRoom(t *testing.T) {
	const clients, each, senders, messages = 4, 20, 3, 50
	n := serve(t, false)
	hub := broadcast.NewHub()
	var got atomic.Int64
	wrong := make(chan string, 1)
	done := make(chan struct{})
	for range clients * each {
		h := arpc.NewHandler()
		next := map[byte]byte{}
		h.Handle("/m", func(ctx *arpc.Context) {
			b := ctx.Body()
			if b[1] != next[b[0]] {
				select {
				case wrong <- fmt.Sprintf("sender %d: %d instead of %d", b[0], b[1], next[b[0]]):
				default:
				}
			}
			next[b[0]]++
			if got.Add(1) == clients*each*senders*messages {
				close(done)
			}
		})
		_, c := n.connect(h)
		must(t, hub.Room("r").Join(c))
	}
	for s := range senders {
		go func() {
			for i := range messages {
				if _, err := hub.Room("r").Send("/m", []byte{byte(s), byte(i)}); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	recv(t, done, "messages")
	select {
	case text := <-wrong:
		t.Error(text)
	default:
	}
	eventually(t, "counted", func() bool { return hub.Stats().Sent == clients*each*senders*messages })
}

// Whoever sends while OnRefused does not return gets an error at last, and the hook itself may send.
func TestOnRefusedBlocks(t *testing.T) {
	n := serve(t, false)
	var hub *broadcast.Hub
	called, release := make(chan struct{}, 1), make(chan struct{})
	var codes atomic.Int64
	var first atomic.Bool
	first.Store(true) // only the first call blocks
	hub = broadcast.NewHub(broadcast.OnRefused(func(r broadcast.Room, _ *arpc.Client, _ error) {
		if first.Swap(false) {
			called <- struct{}{}
		} else {
			return
		}
		for { // never waits for itself
			if _, err := r.Send("/m", "again"); err != nil {
				if arpc.CodeOf(err) == arpc.CodeResourceExhausted {
					codes.Add(1)
				}
				break
			}
		}
		<-release
	}))
	h := arpc.NewHandler()
	h.Handle("/m", func(*arpc.Context) {})
	h.SetMaxBodyLen(4 << 10)
	_, c := n.connect(h)
	must(t, hub.Room("r").Join(c))
	go hub.Room("r").Send("/m", make([]byte, 64<<10)) //nolint:errcheck // it is refused
	recv(t, called, "call of the hook")
	eventually(t, "an error", func() bool {
		_, err := hub.Room("r").Send("/m", "x")
		return arpc.CodeOf(err) == arpc.CodeResourceExhausted
	})
	close(release)
	eventually(t, "it goes on", func() bool { _, err := hub.Room("r").Send("/m", nil); return err == nil })
	if codes.Load() != 1 {
		t.Error("the hook could send for ever")
	}
}

// A panic in a hook does not end the room.
func TestOnRefusedPanics(t *testing.T) {
	n := serve(t, false)
	hub := broadcast.NewHub(broadcast.OnRefused(func(broadcast.Room, *arpc.Client, error) { panic("hook") }))
	h, box := inbox(1)
	h.SetMaxBodyLen(4 << 10)
	_, c := n.connect(h)
	must(t, hub.Room("r").Join(c))
	if _, err := hub.Room("r").Send("/m", make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	send(t, hub.Room("r"), "x", 1)
	if got := recv(t, box, "message"); got != "x" {
		t.Errorf("got %q", got)
	}
}
