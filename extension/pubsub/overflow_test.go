package pubsub

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
)

// smallBuffers is a listener whose connections hold little, so that a peer that does not read is noticed soon.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err == nil {
		err = nc.(*net.TCPConn).SetWriteBuffer(4 << 10)
	}
	return nc, err
}

// rawPeer is a client that reads when it is told to.
type rawPeer struct {
	t  *testing.T
	nc net.Conn
}

func rawDial(t *testing.T, addr string) *rawPeer {
	nc, err := net.Dial("tcp", addr)
	must(t, err)
	must(t, nc.(*net.TCPConn).SetReadBuffer(4<<10))
	must(t, nc.SetDeadline(time.Now().Add(patience)))
	t.Cleanup(func() { nc.Close() })
	return &rawPeer{t, nc}
}

// call sends a request and reads up to its answer.
func (p *rawPeer) call(method string, body []byte) []byte {
	p.t.Helper()
	b := make([]byte, arpc.HeadLen, arpc.HeadLen+len(method)+len(body))
	b[5], b[7] = arpc.CmdRequest, byte(len(method))
	b = append(append(b, method...), body...)
	binary.LittleEndian.PutUint32(b, uint32(len(b)-arpc.HeadLen))
	_, err := p.nc.Write(b)
	must(p.t, err)
	for {
		cmd, body, err := p.read()
		must(p.t, err)
		if cmd == arpc.CmdResponse {
			return body
		}
	}
}

func (p *rawPeer) read() (cmd byte, body []byte, err error) {
	head := make([]byte, arpc.HeadLen)
	if _, err = io.ReadFull(p.nc, head); err != nil {
		return 0, nil, err
	}
	body = make([]byte, binary.LittleEndian.Uint32(head))
	_, err = io.ReadFull(p.nc, body)
	return head[5], body[min(int(head[7]), len(body)):], err
}

func (p *rawPeer) subscribe(req subscribeRequest) {
	p.t.Helper()
	b, err := json.Marshal(req)
	must(p.t, err)
	if got := p.call(methodSub, b); len(got) == 0 || got[0] != '{' {
		p.t.Fatalf("%s", got)
	}
}

// event reads the next event.
func (p *rawPeer) event() (wireEvent, error) {
	for {
		cmd, body, err := p.read()
		if err != nil {
			return wireEvent{}, err
		}
		if cmd == arpc.CmdNotify {
			return parseEvent(body)
		}
	}
}

// TestOverflow lets a subscriber stop reading while many messages are published, for each policy, beside one that reads.
func TestOverflow(t *testing.T) {
	const n, queue, keys = 2000, 50, 7
	pad := strings.Repeat("x", 1000)
	for _, policy := range []Overflow{DropOldest, DropNewest, Conflate, Disconnect} {
		t.Run(policy.String(), func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			s := serveOn(t, smallBuffers{ln}, Config{Topics: history(10)}, arpc.Limits{SendHigh: 16 << 10})
			addr := ln.Addr().String()
			good := connect(t, addr)
			all := make(chan string, n)
			_, err = good.SubscribeWith(within(t), "t", func(m *Message) { all <- m.Key })
			must(t, err)
			p := rawDial(t, addr)
			p.subscribe(subscribeRequest{Topic: "t", Token: 1, Overflow: policy.String(), Queue: queue})
			for i := range n {
				_, err := s.PublishWith(t.Context(), "t", fmt.Sprintf("%d %s", i, pad), WithKey(fmt.Sprint(i%keys)))
				must(t, err)
				if i%10 == 9 { // as fast as the reader, who needs no policy
					for k := i - 9; k <= i; k++ {
						if key := recv(t, all, "message of the one who reads"); key != fmt.Sprint(k%keys) {
							t.Fatalf("key %s of message %d", key, k)
						}
					}
				}
			}
			if policy == Disconnect {
				waitFor(t, "the end of the subscription", func() bool { return s.TopicStats().Subscriptions == 1 })
				for err == nil {
					_, err = p.event()
				}
				if st := s.TopicStats(); st.Disconnected != 1 {
					t.Fatalf("%+v", st)
				}
				return
			}
			must(t, s.Publish("t", "end"))
			var got []int
			lost := 0
			last := map[string]int{}
			offset := uint64(0)
			for {
				e, err := p.event()
				must(t, err)
				if e.kind == eventLost {
					lost += int(e.count)
					if len(got)+lost == n+1 { // the end too
						break
					}
				}
				if e.kind != eventMessage {
					continue
				}
				if e.message.Position.Offset <= offset {
					t.Fatalf("offset %d after %d", e.message.Position.Offset, offset)
				}
				offset = e.message.Position.Offset
				if string(e.message.Data) == "end" {
					break
				}
				var i int
				fmt.Sscan(string(e.message.Data), &i)
				got = append(got, i)
				last[e.message.Key] = i
			}
			st := s.TopicStats()
			t.Logf("%d came, %d lost, %+v", len(got), lost, st)
			switch policy {
			case Conflate:
				if lost > 0 || st.Conflated == 0 || len(got)+int(st.Conflated) != n {
					t.Fatalf("%d came, %d lost, %+v", len(got), lost, st)
				}
				for k := range keys {
					if want := (n-1-k)/keys*keys + k; last[fmt.Sprint(k)] != want {
						t.Errorf("the last of key %d is %d, not %d", k, last[fmt.Sprint(k)], want)
					}
				}
			case DropOldest:
				if lost == 0 || len(got)+lost != n || got[len(got)-1] != n-1 || int64(lost) != st.Dropped {
					t.Fatalf("%d came, %d lost, %+v", len(got), lost, st)
				}
			case DropNewest:
				if lost == 0 || len(got)+lost < n || got[len(got)-1] == n-1 {
					t.Fatalf("%d came, %d lost, %+v", len(got), lost, st)
				}
			}
		})
	}
}

// TestGroupPrefersThoseWhoRead gives the messages of a group to who has room.
func TestGroupPrefersThoseWhoRead(t *testing.T) {
	const n = 500
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := serveOn(t, smallBuffers{ln}, Config{}, arpc.Limits{SendHigh: 16 << 10})
	good, p := connect(t, ln.Addr().String()), rawDial(t, ln.Addr().String())
	p.subscribe(subscribeRequest{Topic: "t", Token: 1, Group: "g"})
	got := make(chan struct{}, n)
	_, err = good.SubscribeWith(within(t), "t", func(*Message) { got <- struct{}{} }, Group("g"))
	must(t, err)
	// What the one who does not read may take: what fits into its connection, and a few that wait.
	const taken = 100
	for i := range n {
		must(t, s.Publish("t", make([]byte, 4<<10)))
		waitFor(t, "the messages but some", func() bool { return len(got) > i-taken })
	}
}

// TestStuckSubscriber: one that reads nothing at all does not hold up publishers, and neither its end nor the server's.
func TestStuckSubscriber(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := serveOn(t, smallBuffers{ln}, Config{}, arpc.Limits{SendHigh: 16 << 10})
	p := rawDial(t, ln.Addr().String())
	p.subscribe(subscribeRequest{Topic: "t", Token: 1})
	b := appendRecord(nil, "t", 0)
	if got := p.call(methodSubscribe, b); len(got) > 0 {
		t.Fatalf("%s", got)
	}
	for range 5000 {
		must(t, s.Publish("t", make([]byte, 1<<10)))
	}
	waitFor(t, "dropped messages", func() bool { return s.TopicStats().Dropped > 0 })
	p.nc.Close()
	waitFor(t, "the end of the subscriptions", func() bool { return s.TopicStats().Subscriptions == 0 })
}

// TestGroupInheritance: what waits for a member of a group that leaves goes to another.
func TestGroupInheritance(t *testing.T) {
	const n = 400
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := serveOn(t, smallBuffers{ln}, Config{}, arpc.Limits{SendHigh: 16 << 10})
	p := rawDial(t, ln.Addr().String())
	p.subscribe(subscribeRequest{Topic: "t", Token: 1, Group: "g"})
	if _, err := p.event(); err != nil { // the start
		t.Fatal(err)
	}
	body := make([]byte, 1<<10)
	for range n {
		must(t, s.Publish("t", body)) // 1 MiB may wait, so that nothing is dropped
	}
	good := connect(t, ln.Addr().String())
	got := make(chan struct{}, n)
	_, err = good.SubscribeWith(within(t), "t", func(*Message) { got <- struct{}{} }, Group("g"))
	must(t, err)
	b, err := json.Marshal(unsubscribeRequest{1})
	must(t, err)
	req := make([]byte, arpc.HeadLen, 200)
	req[5], req[7] = arpc.CmdRequest, byte(len(methodUnsub))
	_, err = p.nc.Write(frame(append(append(req, methodUnsub...), b...)).Buffer)
	must(t, err)
	waitFor(t, "the end of the membership", func() bool { return s.TopicStats().Subscriptions == 1 })
	read := make(chan struct{}, n)
	go func() {
		for {
			if e, err := p.event(); err != nil {
				return
			} else if e.kind == eventMessage {
				read <- struct{}{}
			}
		}
	}()
	waitFor(t, "each message at one of the two", func() bool { return len(got)+len(read) == n })
	if len(got) == 0 || len(read) == 0 {
		t.Fatalf("%d and %d", len(got), len(read))
	}
}
