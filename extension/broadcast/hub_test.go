package broadcast_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/broadcast"
)

func TestMembership(t *testing.T) {
	n := serve(t, false)
	hub := broadcast.NewHub(nil)
	_, a := n.connect(nil)
	_, b := n.connect(nil)
	red, blue := hub.Room("red"), hub.Room("blue")

	if red.Len() != 0 || red.Has(a) || red.Leave(a) || hub.Leave(a) || len(hub.Rooms()) != 0 {
		t.Fatal("an empty hub is not empty")
	}
	for range 2 { // twice is once
		must(t, red.Join(a))
	}
	must(t, red.Join(b))
	must(t, blue.Join(a))
	must(t, hub.User("ann").Join(a))
	if red.Len() != 2 || !red.Has(a) || !red.Has(b) || blue.Len() != 1 || blue.Has(b) || hub.All().Len() != 2 {
		t.Fatal("not joined")
	}
	if red != hub.Room("red") || red == hub.User("red") || red.Kind() != broadcast.KindRoom || red.Name() != "red" {
		t.Fatal("rooms are not values")
	}
	members := slices.Collect(red.Members())
	if len(members) != 2 || !slices.Contains(members, a) || !slices.Contains(members, b) {
		t.Fatalf("members %v", members)
	}
	for range red.Members() {
		break // may be left
	}
	if got := names(hub.RoomsOf(a)); !maps.Equal(got, map[string]bool{"red": true, "blue": true}) {
		t.Fatalf("rooms of a member: %v", got)
	}
	if id, ok := hub.UserOf(a); id != "ann" || !ok {
		t.Fatalf("user %q %v", id, ok)
	}
	if id, ok := hub.UserOf(b); id != "" || ok {
		t.Fatalf("user %q %v", id, ok)
	}
	wantCode(t, "another user", hub.User("bob").Join(a), arpc.CodeFailedPrecondition)
	if got := names(hub.Users()); !maps.Equal(got, map[string]bool{"ann": true}) {
		t.Fatalf("users %v", got)
	}
	if s := hub.Stats(); s.Rooms != 2 || s.Users != 1 || s.Members != 2 {
		t.Fatalf("%+v", s)
	}
	if !red.Leave(a) || red.Leave(a) || red.Has(a) || !red.Has(b) || !blue.Has(a) {
		t.Fatal("not left")
	}
	if !hub.All().Leave(b) || hub.All().Has(b) || red.Has(b) {
		t.Fatal("not left for good")
	}
	if !hub.Leave(a) || hub.Leave(a) || (hub.Stats() != broadcast.Stats{}) || len(hub.Rooms())+len(hub.Users()) != 0 {
		t.Fatalf("something is left: %+v", hub.Stats())
	}
	must(t, hub.All().Join(a)) // and comes again
	if hub.All().Len() != 1 || len(hub.RoomsOf(a)) != 0 {
		t.Fatal("not in again")
	}
}

func TestMemberLeavesWithItsConnection(t *testing.T) {
	onTransports(t, func(t *testing.T, n *network) {
		type leave struct {
			room broadcast.Room
			c    *arpc.Client
		}
		leaves := make(chan leave, 16)
		hub := broadcast.NewHub(broadcast.OnLeave(func(r broadcast.Room, c *arpc.Client) { leaves <- leave{r, c} }))
		second := broadcast.NewHub()
		gone := make(chan *arpc.Client, 16)
		n.server.Handler.HandleDisconnected(func(c *arpc.Client) {
			if hub.All().Has(c) {
				t.Error("the disconnected hook finds a member")
			}
			gone <- c
		})
		stay, stayAccepted := n.connect(nil)
		leaver, c := n.connect(nil)
		for _, r := range []broadcast.Room{hub.Room("red"), hub.Room("blue"), hub.User("ann"), second.Room("red")} {
			must(t, r.Join(c))
		}
		must(t, hub.Room("red").Join(stayAccepted))
		leaver.Stop()
		if recv(t, gone, "disconnected hook") != c {
			t.Fatal("another connection has ended")
		}
		var left []broadcast.Room
		for range 4 {
			l := recv(t, leaves, "OnLeave")
			if l.c != c {
				t.Error("somebody else has left")
			}
			left = append(left, l.room)
		}
		for _, r := range []broadcast.Room{hub.Room("red"), hub.Room("blue"), hub.User("ann")} {
			if !slices.Contains(left[:3], r) {
				t.Errorf("no OnLeave of %v %q", r.Kind(), r.Name())
			}
		}
		if left[3] != hub.All() {
			t.Errorf("the last is %v", left[3])
		}
		if s := hub.Stats(); s != (broadcast.Stats{Rooms: 1, Members: 1}) {
			t.Errorf("%+v", s)
		}
		eventually(t, "the second hub is empty", func() bool { return second.Stats() == broadcast.Stats{} })
		if err := hub.Room("red").Join(c); !errors.Is(err, arpc.ErrClientStopped) {
			t.Errorf("Join of what has ended: %v", err)
		}
		stay.Stop()
		recv(t, gone, "disconnected hook")
		recv(t, leaves, "OnLeave")
		recv(t, leaves, "OnLeave")
		if s := hub.Stats(); s != (broadcast.Stats{}) {
			t.Errorf("%+v", s)
		}
	})
}

// A connection that drains is not the one that counts once the member has joined with the next.
func TestMemberThatMoves(t *testing.T) {
	n, hub := serve(t, false), broadcast.NewHub()
	room := hub.Room("r")
	second := serve(t, false)
	joined := make(chan error, 4)
	h, box := inbox(4)
	h.HandleConnected(func(c *arpc.Client) { joined <- room.Join(c) })
	ended := make(chan struct{}, 4)
	h.HandleDisconnected(func(*arpc.Client) { ended <- struct{}{} })
	hold, held := make(chan struct{}), make(chan struct{})
	n.server.Handler.Handle("/hold", func(ctx *arpc.Context) { close(held); <-hold; ctx.Write(nil) }, true)
	addr := make(chan string, 2)
	addr <- n.addr
	addr <- second.addr
	c, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", <-addr) }, h)
	must(t, err)
	t.Cleanup(c.Stop)
	must(t, recv(t, joined, "connected hook"))
	must(t, c.CallAsync("/hold", nil, func(*arpc.Context) {}, patience))
	recv(t, held, "request")
	down := make(chan error, 1)
	go func() { down <- n.server.Shutdown(patient(t)) }() // the client goes to the second
	must(t, recv(t, joined, "connected hook"))
	close(hold) // and now the first connection ends
	must(t, recv(t, down, "end of Shutdown"))
	recv(t, ended, "disconnected hook")
	if !room.Has(c) || room.Len() != 1 {
		t.Fatal("the member has left with a connection that is not its own any more")
	}
	got := make(chan string, 1)
	second.server.Handler.Handle("/m", func(ctx *arpc.Context) { got <- string(ctx.Body()) })
	must(t, c.WaitReady(patient(t)))
	send(t, room, "x", 1)
	if recv(t, got, "message") != "x" || len(box) != 0 {
		t.Fatal("not received")
	}
	c.Stop()
	recv(t, ended, "disconnected hook")
	if room.Len() != 0 {
		t.Fatal("has not left")
	}
}

// A program that dials has rooms of the servers that it is connected to.
func TestClientsThatDial(t *testing.T) {
	hub := broadcast.NewHub()
	got, joined := make(chan string, 16), make(chan *arpc.Client, 16)
	var clients []*arpc.Client
	var nets []*network
	for i := range 3 {
		n := serve(t, false)
		n.server.Handler.Handle("/m", func(ctx *arpc.Context) {
			var s string
			ctx.Bind(&s)
			got <- fmt.Sprint(i, s)
		})
		h := arpc.NewHandler()
		h.HandleConnected(func(c *arpc.Client) {
			if err := hub.Room("servers").Join(c); err != nil {
				t.Error(err)
			}
			joined <- c
		})
		c, _ := n.connect(h)
		clients, nets = append(clients, c), append(nets, n)
	}
	room := hub.Room("servers")
	for range 3 {
		recv(t, joined, "connected hook")
	}
	send(t, room, "x", 3)
	all := []string{recv(t, got, "m"), recv(t, got, "m"), recv(t, got, "m")}
	slices.Sort(all)
	if !slices.Equal(all, []string{"0x", "1x", "2x"}) {
		t.Fatalf("got %q", all)
	}
	// A lost connection is another one after a while, which joins in the connected hook.
	nets[0].server.ForEach(func(c *arpc.Client) { c.Stop() })
	if recv(t, joined, "connected hook") != clients[0] || room.Len() != 3 {
		t.Fatal("not joined again")
	}
	eventually(t, "all get it", func() bool { n, err := room.Send("/m", "y"); return err == nil && n == 3 })
	clients[0].Stop()
	eventually(t, "left", func() bool { return room.Len() == 2 && !room.Has(clients[0]) })
	if err := room.Join(clients[0]); !errors.Is(err, arpc.ErrClientStopped) {
		t.Fatalf("Join of a stopped client: %v", err)
	}
}

func TestLimits(t *testing.T) {
	n := serve(t, false)
	hub := broadcast.NewHub(broadcast.Limits{Rooms: 3, Members: 2, RoomsPerMember: 2, ConnectionsPerUser: 1, Name: 4, Message: 10})
	var c []*arpc.Client
	for range 4 {
		_, a := n.connect(nil)
		c = append(c, a)
	}
	wantCode(t, "no client", hub.Room("a").Join(nil), arpc.CodeInvalidArgument)
	wantCode(t, "no name", hub.Room("").Join(c[0]), arpc.CodeInvalidArgument)
	wantCode(t, "no user", hub.User("").Join(c[0]), arpc.CodeInvalidArgument)
	wantCode(t, "long name", hub.Room("abcde").Join(c[0]), arpc.CodeInvalidArgument)
	wantCode(t, "64 KiB", hub.User(strings.Repeat("x", 64<<10)).Join(c[0]), arpc.CodeInvalidArgument)
	must(t, hub.Room("abcd").Join(c[0]))
	must(t, hub.Room("b").Join(c[0]))
	wantCode(t, "rooms of a member", hub.Room("c").Join(c[0]), arpc.CodeResourceExhausted)
	must(t, hub.Room("b").Join(c[0]))
	must(t, hub.User("u").Join(c[0])) // is no room
	wantCode(t, "connections of a user", hub.User("u").Join(c[1]), arpc.CodeResourceExhausted)
	if hub.All().Has(c[1]) {
		t.Error("who was refused is in")
	}
	must(t, hub.Room("b").Join(c[1]))
	wantCode(t, "members", hub.Room("b").Join(c[2]), arpc.CodeResourceExhausted)
	must(t, hub.Room("c").Join(c[2]))
	wantCode(t, "rooms", hub.Room("d").Join(c[2]), arpc.CodeResourceExhausted)
	wantCode(t, "rooms", hub.Room("d").Join(c[3]), arpc.CodeResourceExhausted)
	if s := hub.Stats(); s != (broadcast.Stats{Rooms: 3, Users: 1, Members: 3}) {
		t.Errorf("%+v", s)
	}
	hub.Leave(c[2]) // makes room
	must(t, hub.Room("d").Join(c[3]))

	_, err := hub.Room("b").Send("/m", strings.Repeat("x", 9))
	wantCode(t, "long message", err, arpc.CodeInvalidArgument)
	send(t, hub.Room("b"), strings.Repeat("x", 8), 2)

	free := broadcast.NewHub(broadcast.Limits{Rooms: -1, Members: -1, RoomsPerMember: -1, Name: -1})
	for i := range 300 {
		must(t, free.Room(strings.Repeat("x", 300)+fmt.Sprint(i)).Join(c[0]))
	}
	if len(free.RoomsOf(c[0])) != 300 {
		t.Error("no limit is one")
	}
}

// A peer that makes up names fills its own quota and nothing else, and nothing of it stays.
func TestHostileNames(t *testing.T) {
	n := serve(t, false)
	hub := broadcast.NewHub()
	n.server.Handler.Handle("/join", func(ctx *arpc.Context) {
		var name string
		ctx.Bind(&name)
		ctx.Write(hub.Room(name).Join(ctx.Client))
	})
	client, _ := n.connect(nil)
	refused := 0
	for i := range 1000 {
		if err := client.Call("/join", fmt.Sprint("room ", i), nil, patience); err != nil {
			wantCode(t, "join", err, arpc.CodeResourceExhausted)
			refused++
		}
	}
	wantCode(t, "64 KiB", client.Call("/join", strings.Repeat("x", 64<<10), nil, patience), arpc.CodeInvalidArgument)
	wantCode(t, "empty", client.Call("/join", "", nil, patience), arpc.CodeInvalidArgument)
	if refused != 1000-128 || hub.Stats().Rooms != 128 {
		t.Errorf("%d refused, %+v", refused, hub.Stats())
	}
	client.Stop()
	eventually(t, "nothing left", func() bool { return hub.Stats() == broadcast.Stats{} })
}

// Everything at the same time; in the end nothing is left.
func TestChurn(t *testing.T) {
	n := serve(t, false)
	hub := broadcast.NewHub(broadcast.OnLeave(func(broadcast.Room, *arpc.Client) {}))
	rooms := []broadcast.Room{hub.Room("a"), hub.Room("b"), hub.User("u"), hub.All()}
	var dialled, accepted []*arpc.Client
	for range 12 {
		h := arpc.NewHandler()
		h.HandleInline("/m", func(*arpc.Context) {})
		d, a := n.connect(h)
		dialled, accepted = append(dialled, d), append(accepted, a)
	}
	var wg sync.WaitGroup
	for w := range 6 {
		rng := rand.New(rand.NewPCG(1, uint64(w)))
		wg.Go(func() {
			for range 1500 {
				r, c := rooms[rng.IntN(len(rooms))], accepted[rng.IntN(len(accepted))]
				switch rng.IntN(8) {
				case 0, 1, 2:
					if err := r.Join(c); err != nil && !errors.Is(err, arpc.ErrClientStopped) {
						t.Error(err)
					}
				case 3:
					r.Leave(c)
				case 4:
					hub.Leave(c)
				case 5, 6:
					if _, err := r.Send("/m", "x", c); err != nil {
						t.Error(err)
					}
				case 7:
					for m := range r.Members() {
						hub.RoomsOf(m)
					}
					hub.Stats()
				}
			}
		})
	}
	wg.Go(func() {
		for _, c := range dialled[:4] {
			c.Stop()
		}
	})
	wg.Wait()
	for _, c := range dialled {
		c.Stop()
	}
	eventually(t, "all have left", func() bool {
		s := hub.Stats()
		return s.Rooms == 0 && s.Users == 0 && s.Members == 0
	})
}

// The table of a room stays right whatever is joined and left, also while it is read.
func TestRoomAgainstModel(t *testing.T) {
	n := serve(t, false)
	hub := broadcast.NewHub()
	var clients []*arpc.Client
	for range 20 {
		_, a := n.connect(nil)
		clients = append(clients, a)
	}
	r := hub.Room("r")
	model := map[*arpc.Client]bool{}
	rng := rand.New(rand.NewPCG(7, 7))
	for range 3000 {
		c := clients[rng.IntN(len(clients))]
		switch rng.IntN(5) {
		case 0, 1:
			must(t, r.Join(c))
			model[c] = true
		case 2:
			if r.Leave(c) != model[c] {
				t.Fatal("Leave says something else")
			}
			delete(model, c)
		case 3: // what is being read does not change
			before := maps.Clone(model)
			seen := map[*arpc.Client]bool{}
			for m := range r.Members() {
				if o := clients[rng.IntN(len(clients))]; rng.IntN(2) == 0 {
					r.Leave(o)
					delete(model, o)
				} else {
					must(t, r.Join(o))
					model[o] = true
				}
				seen[m] = true
			}
			if !maps.Equal(before, seen) {
				t.Fatalf("seen %d, were %d", len(seen), len(before))
			}
		case 4:
			if r.Len() != len(model) || len(slices.Collect(r.Members())) != len(model) || r.Has(c) != model[c] {
				t.Fatalf("%d members, want %d", r.Len(), len(model))
			}
		}
	}
}
