package znetpeer

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ebar-go/znet/client"
	"github.com/ebar-go/znet/codec"
	"google.golang.org/protobuf/types/known/wrapperspb"

	ours "github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/extension/action"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// serve runs an instance until the end of the test and returns its addresses.
func serve(t *testing.T, setup func(*action.Instance), opts ...action.Option) (tcp, ws string) {
	t.Helper()
	instance := action.New(opts...)
	a, err := instance.ListenTCP("127.0.0.1:0")
	must(t, err)
	b, err := instance.ListenWebsocket("127.0.0.1:0")
	must(t, err)
	setup(instance)
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() { stopped <- instance.Run(stop) }()
	t.Cleanup(func() {
		close(stop)
		if err := <-stopped; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return a.String(), "ws://" + b.String() + "/"
}

// dialers are znet's.
func dialers(tcp, ws string) map[string]func() (*client.Client, error) {
	return map[string]func() (*client.Client, error){
		"tcp":       func() (*client.Client, error) { return client.DialTCP(tcp) },
		"websocket": func() (*client.Client, error) { return client.DialWebSocket(context.Background(), ws) },
	}
}

type peer struct {
	t *testing.T
	net.Conn
	codec codec.Codec
}

func open(t *testing.T, dial func() (*client.Client, error), c codec.Codec) *peer {
	t.Helper()
	conn, err := dial()
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	return &peer{t, conn, c}
}

func (p *peer) send(action, seq int16, v any) {
	p.t.Helper()
	b, err := codec.NewPacket(p.codec).EncodeWith(action, seq, v)
	must(p.t, err)
	_, err = p.Write(b)
	must(p.t, err)
}

func (p *peer) recv() *codec.Packet {
	p.t.Helper()
	b := make([]byte, 4096)
	n, err := p.Read(b)
	must(p.t, err)
	packet := codec.NewPacket(p.codec)
	must(p.t, packet.Unpack(bytes.Clone(b[:n])))
	return packet
}

func TestJSON(t *testing.T) {
	tcp, ws := serve(t, func(n *action.Instance) {
		n.Router().Route(1, func(ctx *action.Context) (any, error) {
			var v map[string]any
			err := ctx.Bind(&v)
			return v, err
		}).Route(4, func(*action.Context) (any, error) { return nil, nil })
	})
	for name, dial := range dialers(tcp, ws) {
		t.Run(name, func(t *testing.T) {
			p := open(t, dial, codec.NewJsonCodec())
			for seq := range int16(100) {
				p.send(1, seq, map[string]any{"foo": fmt.Sprint(seq)})
				r := p.recv()
				if want := fmt.Sprintf(`{"foo":"%d"}`, seq); r.Action != 1 || r.Seq != seq || string(r.Body) != want {
					t.Fatalf("%d %d %s, not %s", r.Action, r.Seq, r.Body, want)
				}
			}
			p.send(4, 9, struct{}{})
			if r := p.recv(); r.Action != 4 || r.Seq != 9 || string(r.Body) != "null" {
				t.Fatalf("%d %d %s", r.Action, r.Seq, r.Body)
			}
		})
	}
}

func TestProtobuf(t *testing.T) {
	tcp, ws := serve(t, func(n *action.Instance) {
		n.Router().Route(1, action.StandardHandler(func(_ *action.Context, r *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
			return wrapperspb.String(strings.ToUpper(r.Value)), nil
		}))
	}, action.Codec(ours.Protobuf{}))
	for name, dial := range dialers(tcp, ws) {
		t.Run(name, func(t *testing.T) {
			p := open(t, dial, codec.NewProtoCodec())
			p.send(1, 7, wrapperspb.String("hello"))
			r := p.recv()
			var v wrapperspb.StringValue
			if err := r.Unmarshal(&v); err != nil || r.Action != 1 || r.Seq != 7 || v.Value != "HELLO" {
				t.Fatalf("%d %d %s, %v", r.Action, r.Seq, v.Value, err)
			}
		})
	}
}

// Two of znet's clients chat: A sends B a line by the id that B got when it logged in.
func TestChat(t *testing.T) {
	type line struct{ To, Text string }
	users := make(chan *action.Connection, 2)
	tcp, ws := serve(t, func(n *action.Instance) {
		byID := map[string]*action.Connection{}
		n.Router().Route(1, func(ctx *action.Context) (any, error) {
			users <- ctx.Conn()
			return map[string]string{"id": ctx.Conn().ID()}, nil
		}).Route(2, action.StandardHandler(func(ctx *action.Context, l *line) (*line, error) {
			for len(users) > 0 {
				c := <-users
				byID[c.ID()] = c
			}
			p, err := n.Pack(101, 1, l)
			if err == nil {
				_, err = byID[l.To].Write(p)
			}
			return l, err
		}))
	})
	all := dialers(tcp, ws)
	for from, to := range map[string]string{"tcp": "websocket", "websocket": "tcp"} {
		t.Run(from, func(t *testing.T) {
			a, b := open(t, all[from], codec.NewJsonCodec()), open(t, all[to], codec.NewJsonCodec())
			var me struct{ ID string }
			a.send(1, 1, nil)
			a.recv()
			b.send(1, 1, nil)
			must(t, b.recv().Unmarshal(&me))
			a.send(2, 2, line{me.ID, "hi"})
			var got line
			if r := b.recv(); r.Action != 101 || r.Seq != 1 || r.Unmarshal(&got) != nil || got != (line{me.ID, "hi"}) {
				t.Fatalf("%d %d %s", r.Action, r.Seq, r.Body)
			}
			if r := a.recv(); r.Action != 2 || r.Seq != 2 {
				t.Fatalf("%d %d", r.Action, r.Seq)
			}
		})
	}
}

// Several packets in one write are all answered; upstream's server answers the first.
func TestPipelined(t *testing.T) {
	tcp, _ := serve(t, func(n *action.Instance) {
		n.Router().Route(1, func(ctx *action.Context) (any, error) { return ctx.Packet().Seq, nil })
	})
	p := open(t, dialers(tcp, "")["tcp"], codec.NewJsonCodec())
	for seq := range int16(1000) {
		p.send(1, seq, nil)
	}
	for seq := range int16(1000) {
		if r := p.recv(); r.Seq != seq || string(r.Body) != fmt.Sprint(seq) {
			t.Fatalf("%d %s", r.Seq, r.Body)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
