package presence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// nowhere takes packets and does nothing with them.
type nowhere struct{}

func (nowhere) SendAll([]byte) error        { return nil }
func (nowhere) SendTo(string, []byte) error { return nil }

// FuzzPresence: whatever comes from another node, who is present stays consistent.
func FuzzPresence(f *testing.F) {
	member := []packetMember{{[]byte("t"), []byte("m"), nil}}
	for _, list := range [][]packet{
		{{Kind: packetHello, Node: "n"}, {Kind: packetSnapshot, Node: "n", Part: 1, Last: true, Seq: 3, Members: member}, {Kind: packetLeave, Node: "n", Seq: 4, Members: member}},
		{{Kind: packetSnapshot, Node: "n", Part: 1, Members: member}, {Kind: packetSnapshot, Node: "n", Part: 3, Last: true}, {Kind: packetBye, Node: "n"}},
		{{Kind: packetBeat, Node: "n", Seq: 9}, {Kind: packetSync, Node: "n", Nonce: 1}, {Kind: packetDone, Node: "n", Nonce: 1}, {Kind: packetAsk, Node: "n"}},
	} {
		b, _ := json.Marshal(list) //nolint:errchkjson // it has nothing that cannot be encoded
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var list []packet
		if json.Unmarshal(b, &list) != nil || len(list) > 100 {
			return
		}
		p := New(time.Second, nowhere{}, func(string, pubsub.Member, bool) {})
		for _, k := range list {
			b, _ := json.Marshal(k) //nolint:errchkjson // it has nothing that cannot be encoded
			p.Handle(b)
		}
		inRooms, inNodes := 0, 0
		for _, room := range p.rooms {
			inRooms += len(room)
		}
		for _, n := range p.nodes {
			inNodes += len(n.members)
		}
		if inRooms > inNodes {
			t.Fatalf("%d are present, of %d members", inRooms, inNodes)
		}
		for _, n := range p.nodes {
			p.removeLocked(n)
		}
		if len(p.rooms) != 0 || len(p.nodes) != 0 {
			t.Fatalf("%d topics are not empty", len(p.rooms))
		}
	})
}

// board brings packets to tables, when it is told to, in order.
type board struct {
	t      *testing.T
	tables []*Table
	queue  []sent
	lose   func(k packet) bool // nil loses nothing
	events [][]string          // that each table has told
}

type sent struct {
	to *Table
	b  []byte
}

type port struct {
	board *board
	i     int
}

func (p port) SendAll(b []byte) error {
	for i, to := range p.board.tables {
		if i != p.i {
			p.board.send(to, b)
		}
	}
	return nil
}

func (p port) SendTo(id string, b []byte) error {
	for _, to := range p.board.tables {
		if to.ID() == id {
			p.board.send(to, b)
		}
	}
	return nil
}

func (b *board) send(to *Table, data []byte) {
	var k packet
	must(b.t, json.Unmarshal(data, &k))
	if b.lose == nil || !b.lose(k) {
		b.queue = append(b.queue, sent{to, data})
	}
}

// deliver brings everything to where it goes, and what follows from it.
func (b *board) deliver() {
	for len(b.queue) > 0 {
		s := b.queue[0]
		b.queue = b.queue[1:]
		s.to.Handle(s.b)
	}
}

// beat lets a heartbeat pass.
func (b *board) beat() {
	time.Sleep(time.Second)
	for _, table := range b.tables {
		table.Beat()
	}
	b.deliver()
}

func (b *board) add() *Table {
	i := len(b.tables)
	b.events = append(b.events, nil)
	table := New(time.Second, port{b, i}, func(topic string, m pubsub.Member, joined bool) {
		b.events[i] = append(b.events[i], fmt.Sprint(topic, " ", m.ID, " ", joined))
	})
	b.tables = append(b.tables, table)
	must(b.t, table.Start())
	b.deliver()
	return table
}

func (b *board) expect(i int, events ...string) {
	b.t.Helper()
	slices.Sort(b.events[i]) // those of several members have no order
	slices.Sort(events)
	if !slices.Equal(b.events[i], events) {
		b.t.Fatalf("table %d has told %q, not %q", i, b.events[i], events)
	}
	b.events[i] = nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestTables loses packets of each kind: all tables come to know the same, and tell each change once.
func TestTables(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{t: t}
		a := b.add()
		leave, err := a.Join("room", pubsub.Member{ID: "1", Info: make([]byte, snapshotBytes)})
		must(t, err)
		_, err = a.Join("room", pubsub.Member{ID: "2", Info: make([]byte, snapshotBytes)}) // in another part
		must(t, err)
		b.expect(0, "room 1 true", "room 2 true")
		if _, err = a.Join("room", pubsub.Member{ID: "2"}); arpc.CodeOf(err) != arpc.CodeAlreadyExists {
			t.Fatal(err)
		}
		b.add()
		b.expect(1, "room 1 true", "room 2 true")
		for _, kind := range []string{packetLeave, packetBeat, packetAsk, packetSnapshot} {
			lost := false
			b.lose = func(k packet) bool {
				mine := k.Kind == kind && k.Node == a.ID() || k.Kind == packetAsk && kind == packetAsk
				lost = lost || mine
				return mine || k.Kind == packetLeave // the reason to ask at all
			}
			leave()
			b.beat()
			if !lost {
				t.Fatalf("no %s was sent", kind)
			}
			if kind != packetLeave {
				b.expect(1)
			}
			b.lose = nil
			b.beat()
			b.expect(1, "room 1 false")
			leave, err = a.Join("room", pubsub.Member{ID: "1", Info: make([]byte, snapshotBytes)})
			must(t, err)
			b.deliver()
			b.expect(1, "room 1 true")
			b.events[0] = nil
		}
		// A node that is not heard, but by itself.
		b.lose = func(k packet) bool { return k.Node == a.ID() }
		for range beatsToLive + 1 {
			b.expect(1)
			b.beat()
		}
		b.expect(1, "room 1 false", "room 2 false")
		b.lose = nil
		b.beat()
		b.expect(1, "room 1 true", "room 2 true")
		// Without a connection nobody leaves.
		b.tables[1].Lost()
		time.Sleep(time.Hour)
		b.tables[1].Beat()
		b.tables[1].Back()
		b.deliver()
		b.beat()
		b.expect(1)
		a.End()
		b.deliver()
		b.expect(1, "room 1 false", "room 2 false")
		b.expect(0)
	})
}

// TestMembersWaits: who is asked for, and does not answer, is waited for no longer than a heartbeat.
func TestMembersWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{t: t}
		a, other := b.add(), b.add()
		_, err := other.Join("room", pubsub.Member{ID: "1"})
		must(t, err)
		b.deliver()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err = a.Members(ctx, "room"); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		began := time.Now()
		members, err := a.Members(t.Context(), "room") // the first heartbeat, and one for the answer
		must(t, err)
		if took := time.Since(began); len(members) != 1 || took != 2*time.Second {
			t.Fatalf("%d members after %v", len(members), took)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			members, err = a.Members(t.Context(), "room")
		}()
		synctest.Wait()
		began = time.Now()
		b.deliver()
		<-done
		if took := time.Since(began); err != nil || len(members) != 1 || took != 0 {
			t.Fatalf("%d members after %v, %v", len(members), took, err)
		}
	})
}
