package broadcast_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/extension/broadcast"
)

func TestSend(t *testing.T) {
	onTransports(t, func(t *testing.T, n *network) {
		hub := broadcast.NewHub()
		var clients []*arpc.Client
		var boxes []chan string
		for range 4 {
			h, box := inbox(16)
			_, c := n.connect(h)
			clients, boxes = append(clients, c), append(boxes, box)
		}
		for _, c := range clients[:3] {
			must(t, hub.Room("red").Join(c))
		}
		must(t, hub.User("ann").Join(clients[0]))
		must(t, hub.User("ann").Join(clients[3]))

		send(t, hub.Room("red"), "red", 3)
		send(t, hub.Room("red"), "not 1", 2, clients[1])
		send(t, hub.User("ann"), []byte("ann"), 2)
		send(t, hub.All(), "all", 4)
		send(t, hub.Room("nobody's"), "none", 0)
		for i, want := range [][]string{{"red", "not 1", "ann", "all"}, {"red", "all"}, {"red", "not 1", "all"}, {"ann", "all"}} {
			for _, text := range want {
				if got := recv(t, boxes[i], "message"); got != text {
					t.Errorf("member %d: %q instead of %q", i, got, text)
				}
			}
			if len(boxes[i]) != 0 {
				t.Errorf("member %d got more: %q", i, <-boxes[i])
			}
		}
		if s := hub.Stats(); s.Sent != 11 || s.Refused != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestSendPreparedMessage(t *testing.T) {
	n := serve(t, false)
	hub := broadcast.NewHub()
	h, box := inbox(4)
	_, c := n.connect(h)
	must(t, hub.Room("a").Join(c))
	must(t, hub.Room("b").Join(c))
	m := n.server.NewMessage(arpc.CmdNotify, "/m", "once")
	for _, r := range []broadcast.Room{hub.Room("a"), hub.Room("b"), hub.All()} {
		if got, err := r.Push(m); got != 1 || err != nil {
			t.Fatal(got, err)
		}
		if got := recv(t, box, "message"); got != "once" {
			t.Fatalf("got %q", got)
		}
	}
	if got, err := hub.All().Push(m, c); got != 0 || err != nil {
		t.Fatal(got, err)
	}
	for _, bad := range []*arpc.Message{nil, {}, {Buffer: make([]byte, 3)}} {
		if got, err := hub.All().Push(bad); got != 0 || err != nil {
			t.Fatal(got, err)
		}
	}
}

func TestSendBadInput(t *testing.T) {
	n := serve(t, false)
	hub := broadcast.NewHub()
	h, box := inbox(4)
	_, c := n.connect(h)
	must(t, hub.Room("a").Join(c))
	for _, method := range []string{"", strings.Repeat("x", 128)} {
		for _, r := range []broadcast.Room{hub.Room("a"), hub.Room("empty")} {
			if _, err := r.Send(method, "x"); !errors.Is(err, arpc.ErrInvalidMethod) {
				t.Errorf("method %q: %v", method, err)
			}
		}
	}
	if res, err := hub.Room("a").Send("/m", func() {}); err == nil || res != 0 {
		t.Errorf("a function was sent: %d", res)
	}
	send(t, hub.Room("a"), nil, 1)
	if got := recv(t, box, "message"); got != "" {
		t.Errorf("nil became %q", got)
	}
	if s := hub.Stats(); s.Sent != 1 {
		t.Errorf("%+v", s)
	}
}

// counting counts how often it encodes. mark is part of what it makes. It cannot be compared.
type counting struct {
	mark  string
	count *atomic.Int32
	_     []func()
}

func (c counting) Marshal(v any) ([]byte, error) {
	c.count.Add(1)
	if v == badFor(c.mark) {
		return nil, errors.New("bad value")
	}
	b, err := json.Marshal(v)
	return append([]byte(c.mark), b...), err
}

func (c counting) Unmarshal(data []byte, v any) error { return json.Unmarshal(data[1:], v) }

// plain is a counting that can be compared.
type plain struct{ *counting }

func TestEncodesOncePerCodec(t *testing.T) {
	hub := broadcast.NewHub()
	var count [2]atomic.Int32
	a, b := plain{&counting{mark: "a", count: &count[0]}}, plain{&counting{mark: "b", count: &count[1]}}
	boxes := make(chan string, 16)
	for i, cc := range []codec.Codec{a, a, b, a, b} {
		n := serve(t, false, arpc.WithCodec(cc))
		h := arpc.NewHandler()
		h.Handle("/m", func(ctx *arpc.Context) { boxes <- fmt.Sprint(i, " ", string(ctx.Body())) })
		_, c := n.connect(h)
		must(t, hub.Room("r").Join(c))
	}
	type value struct{ N int }
	send(t, hub.Room("r"), &value{7}, 5)
	seen := map[string]bool{}
	for range 5 {
		seen[recv(t, boxes, "message")] = true
	}
	for i, mark := range []string{"a", "a", "b", "a", "b"} {
		if want := fmt.Sprint(i, " ", mark, `{"N":7}`); !seen[want] {
			t.Errorf("no %q in %v", want, seen)
		}
	}
	if count[0].Load() != 1 || count[1].Load() != 1 {
		t.Errorf("encoded %d and %d times", count[0].Load(), count[1].Load())
	}
	// An error of any is before the first message.
	for _, mark := range []string{"a", "b"} {
		if res, err := hub.Room("r").Send("/m", badFor(mark)); err == nil || res != 0 {
			t.Errorf("bad for %s: %+v, %v", mark, res, err)
		}
	}
	if len(boxes) != 0 {
		t.Error("something was sent")
	}
}

// badFor cannot be encoded by the counting of that mark.
type badFor string

func TestCodecThatCannotBeCompared(t *testing.T) {
	hub := broadcast.NewHub()
	var count atomic.Int32
	n := serve(t, false, arpc.WithCodec(counting{mark: "x", count: &count}))
	boxes := make(chan string, 4)
	for range 2 {
		h := arpc.NewHandler()
		h.Handle("/m", func(ctx *arpc.Context) { boxes <- string(ctx.Body()) })
		_, c := n.connect(h)
		must(t, hub.Room("r").Join(c))
	}
	send(t, hub.Room("r"), 5, 2)
	for range 2 {
		if got := recv(t, boxes, "message"); got != "x5" {
			t.Errorf("got %q", got)
		}
	}
}

// Messages of one sender arrive in order, of several senders each one's.
func TestOrder(t *testing.T) {
	const senders, messages = 4, 500
	onTransports(t, func(t *testing.T, n *network) {
		hub := broadcast.NewHub()
		type end struct {
			total int
			err   error
		}
		ends := make(chan end, 8)
		const members = 5
		for range members {
			h := arpc.NewHandler()
			var next [senders]uint32
			total := 0
			h.Handle("/m", func(ctx *arpc.Context) {
				b := ctx.Body()
				from, i := b[0], binary.LittleEndian.Uint32(b[1:])
				if next[from] != i {
					ends <- end{total, fmt.Errorf("sender %d: %d instead of %d", from, i, next[from])}
				}
				next[from] = i + 1
				if total++; total == senders*messages {
					ends <- end{total, nil}
				}
			})
			_, c := n.connect(h)
			must(t, hub.Room("r").Join(c))
		}
		var wg sync.WaitGroup
		for s := range senders {
			wg.Go(func() {
				for i := range messages {
					b := binary.LittleEndian.AppendUint32([]byte{byte(s)}, uint32(i))
					if res, err := hub.Room("r").Send("/m", b); err != nil || res != members {
						t.Errorf("%+v, %v", res, err)
					}
				}
			})
		}
		wg.Wait()
		for range members {
			if e := recv(t, ends, "end of the messages"); e.err != nil {
				t.Fatal(e.err)
			}
		}
	})
}

// A member that takes nothing is refused what does not fit, is named, and holds up nobody.
func TestSlowMember(t *testing.T) {
	for _, std := range []int{-1, 0} {
		t.Run(fmt.Sprint("StdConns ", std), func(t *testing.T) {
			n := serve(t, false, arpc.StdConns(std), arpc.Limits{SendHigh: 128 << 10})
			var refused atomic.Int64
			var slow *arpc.Client
			var hub *broadcast.Hub
			hub = broadcast.NewHub(broadcast.OnRefused(func(r broadcast.Room, c *arpc.Client, err error) {
				if c != slow || r != hub.Room("r") || !errors.Is(err, arpc.ErrClientOverstock) {
					t.Errorf("refused: %v, %v", r, err)
				}
				refused.Add(1)
			}))
			nc, err := net.Dial("tcp", n.addr)
			must(t, err)
			defer nc.Close()
			m := n.server.NewMessage(arpc.CmdRequest, "/here", nil)
			_, err = nc.Write(m.Buffer)
			must(t, err)
			slow = recv(t, n.joined, "connection")
			must(t, hub.Room("r").Join(slow))
			var boxes []chan string
			for range 3 {
				h, box := inbox(1)
				_, c := n.connect(h)
				must(t, hub.Room("r").Join(c))
				boxes = append(boxes, box)
			}
			body := strings.Repeat("x", 32<<10)
			var count int64
			for range 5000 {
				res, err := hub.Room("r").Send("/m", body)
				must(t, err)
				if res != 4 {
					t.Fatal(res)
				}
				for _, box := range boxes { // each gets each one before the next is sent
					if got := recv(t, box, "message"); got != body {
						t.Fatalf("got %d bytes", len(got))
					}
				}
				if count = refused.Load(); count >= 20 {
					break
				}
			}
			// The messages before the last one have been dealt with.
			eventually(t, "as many are counted as the hook was told", func() bool { return hub.Stats().Refused == refused.Load() })
			count = refused.Load()
			if count < 20 || refused.Load() != count || hub.Stats().Refused != count {
				t.Errorf("%d refused, %d by the hook, %+v", count, refused.Load(), hub.Stats())
			}
			if !hub.Room("r").Has(slow) {
				t.Error("the slow member was thrown out") // which is up to the hook
			}
		})
	}
}

// A message that is too long for one member is refused to that one.
func TestMemberThatAcceptsLess(t *testing.T) {
	n := serve(t, false)
	refused := make(chan error, 1)
	hub := broadcast.NewHub(broadcast.OnRefused(func(_ broadcast.Room, _ *arpc.Client, err error) { refused <- err }))
	small, box := inbox(1)
	small.SetMaxBodyLen(8 << 10)
	_, a := n.connect(small)
	large, largeBox := inbox(1)
	_, b := n.connect(large)
	must(t, hub.Room("r").Join(a))
	must(t, hub.Room("r").Join(b))
	res, err := hub.Room("r").Send("/m", strings.Repeat("x", 100<<10))
	if err != nil || res != 2 {
		t.Fatal(res, err)
	}
	wantCode(t, "OnRefused", recv(t, refused, "OnRefused"), arpc.CodeInvalidArgument)
	recv(t, largeBox, "message")
	send(t, hub.Room("r"), "x", 2)
	recv(t, box, "message")
}

// A handler may send to the room of its own connection, an inline one too.
func TestSendFromHandlers(t *testing.T) {
	onTransports(t, func(t *testing.T, n *network) {
		hub := broadcast.NewHub()
		say := func(ctx *arpc.Context) {
			var s string
			ctx.Bind(&s)
			res, err := hub.Room("r").Send("/m", s)
			if err != nil || res != 2 {
				ctx.Error(fmt.Sprint(res, err))
				return
			}
			ctx.Write(nil)
		}
		n.server.Handler.Handle("/say", say)
		n.server.Handler.HandleInline("/say inline", say)
		h, box := inbox(4)
		c, a := n.connect(h)
		h2, box2 := inbox(4)
		_, b := n.connect(h2)
		must(t, hub.Room("r").Join(a))
		must(t, hub.Room("r").Join(b))
		for _, method := range []string{"/say", "/say inline"} {
			must(t, c.Call(method, method, nil, patience))
			for _, box := range []chan string{box, box2} {
				if got := recv(t, box, "message"); got != method {
					t.Errorf("got %q", got)
				}
			}
		}
	})
}

// Frames larger than those that are copied go by reference, to all.
func TestLargeMessages(t *testing.T) {
	onTransports(t, func(t *testing.T, n *network) {
		hub := broadcast.NewHub()
		var boxes []chan string
		for range 3 {
			h, box := inbox(8)
			_, c := n.connect(h)
			must(t, hub.Room("r").Join(c))
			boxes = append(boxes, box)
		}
		for _, size := range []int{0, 1, 8 << 10, 100 << 10, 3 << 20} {
			body := strings.Repeat("0123456789", size/10+1)[:size]
			send(t, hub.Room("r"), body, 3)
			for _, box := range boxes {
				if got := recv(t, box, "message"); got != body {
					t.Errorf("%d bytes instead of %d", len(got), size)
				}
			}
		}
	})
}
