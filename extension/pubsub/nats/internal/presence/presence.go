package presence

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/log"
)

const (
	beatsToLive   = 3
	snapshotBytes = 256 << 10 // of one part
)

// kinds of packets.
const (
	packetHello    = "hello"  // a node is new, and wants to know who is there
	packetBeat     = "beat"   // Seq is the number of the last join or leave
	packetJoin     = "join"   // Seq, Members: one
	packetLeave    = "leave"  // the same
	packetBye      = "bye"    // the node ends
	packetAsk      = "ask"    // to one node: send your members
	packetSnapshot = "all"    // to one node: Part of them; Last with the last
	packetSync     = "sync"   // answer with done when you have done what came before
	packetDone     = "synced" // to one node
)

// packet is what nodes say to each other, JSON. Topics and what members say may be any bytes.
type packet struct {
	Kind    string         `json:"k"`
	Node    string         `json:"n"`
	Seq     uint64         `json:"s,omitempty"`
	Part    int            `json:"p,omitempty"`
	Last    bool           `json:"l,omitempty"`
	Nonce   uint64         `json:"o,omitempty"`
	Members []packetMember `json:"m,omitempty"`
}

// valid says that the node's ID can be a token of a subject.
func (k *packet) valid() bool {
	return k.Node != "" && len(k.Node) <= 64 && !strings.ContainsFunc(k.Node, func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9') })
}

type packetMember struct {
	Topic []byte `json:"t"`
	ID    []byte `json:"i"`
	Info  []byte `json:"d,omitempty"`
}

// memberKey is who is where.
type memberKey struct{ topic, id string }

// node is what is known of an engine.
type node struct {
	id      string
	heard   time.Time
	seq     uint64
	known   bool      // members is what it was at seq
	asked   time.Time // for its members, zero if it was not
	parts   int       // of its answer that have come
	partial map[memberKey]pubsub.Member
	members map[memberKey]pubsub.Member
}

// A Net brings packets to other nodes. What one node sends must arrive at another in order, to all and to that one alike, or not
// at all; the sender may get what it sends to all.
type Net interface {
	SendAll(b []byte) error
	SendTo(node string, b []byte) error
}

// Table is who is present. All methods may be called at the same time.
type Table struct {
	id    string
	every time.Duration
	net   Net
	tell  func(topic string, m pubsub.Member, joined bool)

	mu      sync.Mutex
	started time.Time
	down    bool // there is no connection
	ended   bool
	seq     uint64
	nodes   map[string]*node // the own one too
	rooms   map[string]map[memberKey]pubsub.Member
	nonce   uint64
	syncs   map[uint64]*syncing
}

// syncing waits until nodes have answered.
type syncing struct {
	missing map[string]bool
	done    chan struct{}
}

// New returns a table that Beat must be called for every so often. tell is called for who comes and goes, in order, and must not
// call the table.
func New(every time.Duration, net Net, tell func(topic string, m pubsub.Member, joined bool)) *Table {
	var id [12]byte
	rand.Read(id[:]) //nolint:errcheck // it never fails
	p := &Table{
		id: hex.EncodeToString(id[:]), every: every, net: net, tell: tell,
		nodes: map[string]*node{}, rooms: map[string]map[memberKey]pubsub.Member{}, syncs: map[uint64]*syncing{},
	}
	p.nodes[p.id] = &node{id: p.id, known: true, members: map[memberKey]pubsub.Member{}}
	return p
}

// ID is the node's: letters and digits.
func (p *Table) ID() string { return p.id }

// Start says to the other nodes that this one is there.
func (p *Table) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started = time.Now()
	return p.send("", packet{Kind: packetHello})
}

// send sends to a node, or with "" to all.
func (p *Table) send(to string, k packet) error {
	k.Node = p.id
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if to == "" {
		return p.net.SendAll(b)
	}
	return p.net.SendTo(to, b)
}

// trySend sends what can be lost: the next heartbeat makes up for it.
func (p *Table) trySend(to string, k packet) {
	if err := p.send(to, k); err != nil {
		log.Debug("nats: presence: %v", err)
	}
}

// Handle handles what has come from another node.
func (p *Table) Handle(b []byte) {
	var k packet
	if err := json.Unmarshal(b, &k); err != nil || !k.valid() {
		log.Warn("nats: presence: malformed packet of %d bytes", len(b))
		return
	}
	p.handle(&k)
}

// Beat says that the node is there, and forgets those that have not said so.
func (p *Table) Beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down || p.ended {
		return
	}
	p.trySend("", packet{Kind: packetBeat, Seq: p.seq})
	now := time.Now()
	for id, n := range p.nodes {
		if id != p.id && now.Sub(n.heard) > beatsToLive*p.every {
			log.Info("nats: presence: node %s is not heard any more", id)
			p.removeLocked(n)
		}
	}
}

func (p *Table) handle(k *packet) {
	if k.Node == p.id {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	n := p.nodes[k.Node]
	if k.Kind == packetBye {
		if n != nil {
			p.removeLocked(n)
		}
		return
	}
	if n == nil {
		n = &node{id: k.Node, members: map[memberKey]pubsub.Member{}}
		p.nodes[k.Node] = n
	}
	n.heard = time.Now()
	switch k.Kind {
	case packetHello:
		p.trySend(k.Node, packet{Kind: packetBeat, Seq: p.seq})
	case packetJoin, packetLeave:
		if n.known && k.Seq == n.seq+1 && len(k.Members) == 1 {
			n.seq = k.Seq
			m := k.Members[0]
			key, member := memberKey{string(m.Topic), string(m.ID)}, pubsub.Member{ID: string(m.ID), Info: m.Info}
			if k.Kind == packetJoin {
				p.joinLocked(n, key, member)
			} else {
				p.leaveLocked(n, key)
			}
			break
		}
		n.known = n.known && k.Seq <= n.seq
	case packetBeat:
		n.known = n.known && k.Seq == n.seq
	case packetAsk:
		p.tellAllLocked(k.Node)
	case packetSnapshot:
		p.partLocked(n, k)
	case packetSync:
		p.trySend(k.Node, packet{Kind: packetDone, Nonce: k.Nonce})
	case packetDone:
		p.answeredLocked(k.Nonce, k.Node)
	}
	if !n.known && n.parts == 0 && time.Since(n.asked) > p.every/2 {
		n.asked = time.Now()
		p.trySend(n.id, packet{Kind: packetAsk})
	}
}

// tellAllLocked sends the engine's own members to a node, in parts.
func (p *Table) tellAllLocked(to string) {
	k := packet{Kind: packetSnapshot, Seq: p.seq, Part: 1}
	size := 0
	for key, m := range p.nodes[p.id].members {
		if size > snapshotBytes {
			p.trySend(to, k)
			k.Part, k.Members, size = k.Part+1, nil, 0
		}
		k.Members = append(k.Members, packetMember{[]byte(key.topic), []byte(m.ID), m.Info})
		size += len(key.topic) + len(m.ID) + len(m.Info) + 64
	}
	k.Last = true
	p.trySend(to, k)
}

// partLocked takes a part of a node's members. If one is missing, they are asked for again.
func (p *Table) partLocked(n *node, k *packet) {
	if k.Part == 1 {
		n.parts, n.partial = 0, map[memberKey]pubsub.Member{}
	}
	if n.known || k.Part != n.parts+1 {
		n.parts, n.partial = 0, nil
		return
	}
	n.parts++
	for _, m := range k.Members {
		n.partial[memberKey{string(m.Topic), string(m.ID)}] = pubsub.Member{ID: string(m.ID), Info: m.Info}
	}
	if !k.Last {
		return
	}
	now := n.partial
	n.parts, n.partial, n.known, n.seq, n.asked = 0, nil, true, k.Seq, time.Time{}
	for key := range n.members {
		if _, ok := now[key]; !ok {
			p.leaveLocked(n, key)
		}
	}
	for key, m := range now {
		if _, ok := n.members[key]; !ok {
			p.joinLocked(n, key, m)
		}
	}
}

func (p *Table) joinLocked(n *node, key memberKey, m pubsub.Member) {
	n.members[key] = m
	room := p.rooms[key.topic]
	if room == nil {
		room = map[memberKey]pubsub.Member{}
		p.rooms[key.topic] = room
	}
	room[key] = m
	p.tell(key.topic, m, true)
}

func (p *Table) leaveLocked(n *node, key memberKey) {
	m, ok := n.members[key]
	if !ok {
		return
	}
	delete(n.members, key)
	delete(p.rooms[key.topic], key)
	if len(p.rooms[key.topic]) == 0 {
		delete(p.rooms, key.topic)
	}
	p.tell(key.topic, m, false)
}

// removeLocked forgets a node. Its members have left.
func (p *Table) removeLocked(n *node) {
	delete(p.nodes, n.id)
	for key := range n.members {
		p.leaveLocked(n, key)
	}
	for nonce := range p.syncs {
		p.answeredLocked(nonce, n.id)
	}
}

func (p *Table) answeredLocked(nonce uint64, id string) {
	s := p.syncs[nonce]
	if s == nil || !s.missing[id] {
		return
	}
	delete(s.missing, id)
	if len(s.missing) == 0 {
		close(s.done)
		delete(p.syncs, nonce)
	}
}

// Join makes m a member of a topic until leave is called. It fails with CodeAlreadyExists, and if the others cannot be told.
func (p *Table) Join(topic string, m pubsub.Member) (leave func(), err error) {
	key := memberKey{topic, m.ID}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.rooms[topic][key]; ok {
		return nil, &arpc.Error{Code: arpc.CodeAlreadyExists, Message: fmt.Sprintf("a member %q is present", m.ID)}
	}
	if err = p.say(packetJoin, key, m); err != nil {
		return nil, err
	}
	n := p.nodes[p.id]
	p.joinLocked(n, key, m)
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.ended {
			return
		}
		if err := p.say(packetLeave, key, m); err != nil {
			log.Debug("nats: presence: %v", err) // the next heartbeat makes up for it
			p.seq++
		}
		p.leaveLocked(n, key)
	}), nil
}

// say tells the others of a join or leave. It is locked.
func (p *Table) say(kind string, key memberKey, m pubsub.Member) error {
	err := p.send("", packet{Kind: kind, Seq: p.seq + 1, Members: []packetMember{{[]byte(key.topic), []byte(m.ID), m.Info}}})
	if err == nil {
		p.seq++
	}
	return err
}

// Members returns who is present at a topic. It asks the other nodes whether there is anything that it does not know yet, and waits
// for one that does not answer for one heartbeat at most; in the first heartbeat after Start, until that is over. The error is
// that of ctx, or of the Net.
func (p *Table) Members(ctx context.Context, topic string) ([]pubsub.Member, error) {
	p.mu.Lock()
	rest := p.every - time.Since(p.started)
	p.mu.Unlock()
	if rest > 0 { // some may not have said yet that they are there
		if err := wait(ctx, nil, rest); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	s := &syncing{missing: map[string]bool{}, done: make(chan struct{})}
	for id := range p.nodes {
		if id != p.id {
			s.missing[id] = true
		}
	}
	p.nonce++
	nonce := p.nonce
	var err error
	if len(s.missing) > 0 {
		p.syncs[nonce] = s
		err = p.send("", packet{Kind: packetSync, Nonce: nonce})
	} else {
		close(s.done)
	}
	p.mu.Unlock()
	if err == nil {
		err = wait(ctx, s.done, p.every)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.syncs, nonce)
	if err != nil {
		return nil, err
	}
	members := make([]pubsub.Member, 0, len(p.rooms[topic]))
	for _, m := range p.rooms[topic] {
		members = append(members, m)
	}
	return members, nil
}

// wait waits for done, at most for d.
func wait(ctx context.Context, done <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// Lost stops the clock: nobody can be heard.
func (p *Table) Lost() {
	p.mu.Lock()
	p.down = true
	p.mu.Unlock()
}

// Back starts it again. Who was there is given the time to say so.
func (p *Table) Back() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
	now := time.Now()
	for _, n := range p.nodes {
		n.heard = now
	}
	p.trySend("", packet{Kind: packetHello})
	p.trySend("", packet{Kind: packetBeat, Seq: p.seq})
}

// End tells the others that the node ends, with all its members.
func (p *Table) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.trySend("", packet{Kind: packetBye})
}
