package codec_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

type order struct {
	ID    uint64
	Items []string
	Data  []byte
	At    time.Time
	Next  *order
}

// connect makes a server and a client with the routes /order and /back, where
// the server makes the call of the client its own.
func connect(t *testing.T, options ...arpc.Option) *arpc.Client {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serverOptions, clientOptions := []arpc.ServerOption{handler()}, []arpc.ClientOption{handler()}
	for _, o := range options {
		serverOptions, clientOptions = append(serverOptions, o), append(clientOptions, o)
	}
	server := arpc.NewServer(serverOptions...)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }, clientOptions...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Stop)
	return client
}

func handler() arpc.Handler {
	h := arpc.NewHandler()
	h.Handle("/order", func(ctx *arpc.Context) {
		var o order
		if err := ctx.Bind(&o); err != nil {
			ctx.Error(err)
			return
		}
		o.ID++
		ctx.Write(&o)
	})
	h.Handle("/back", func(ctx *arpc.Context) {
		var o, answer order
		err := ctx.Bind(&o)
		if err == nil {
			err = ctx.Client.CallWith(ctx, "/order", &o, &answer)
		}
		if err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(answer)
	}, true)
	h.Handle("/raw", func(ctx *arpc.Context) {
		var b []byte
		if err := ctx.Bind(&b); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(b)
	})
	return h
}

func calls(t *testing.T, ctx context.Context, client *arpc.Client) {
	t.Helper()
	in := order{ID: 1<<60 - 1, Items: []string{"a", "b"}, Data: []byte{0xff}, At: time.Unix(1e9, 5).UTC(), Next: &order{}}
	want := in
	want.ID++
	for _, method := range []string{"/order", "/back"} {
		var got order
		if err := client.CallWith(ctx, method, &in, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", method, got, err)
		}
	}
	// Bytes pass every codec.
	var raw []byte
	if err := client.CallWith(ctx, "/raw", []byte("\xc1raw"), &raw); err != nil || string(raw) != "\xc1raw" {
		t.Errorf("raw: %q, %v", raw, err)
	}
	// A request that the codec cannot decode is answered with an error.
	var e *arpc.Error
	if err := client.CallWith(ctx, "/order", []byte("\xc1\xff{"), nil); !errors.As(err, &e) || !e.Remote {
		t.Errorf("garbage: %v", err)
	}
}

func TestConnections(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	codec.Register(codec.MessagePack{})
	codec.Register(codec.CBOR{})
	codec.Register(codec.Raw{})
	plain := connect(t)
	for _, c := range []codec.Named{codec.JSONCodec{}, codec.StdJSON{}, codec.MessagePack{}, codec.CBOR{}} {
		t.Run(c.Name(), func(t *testing.T) {
			calls(t, ctx, connect(t, arpc.WithCodec(c)))
			calls(t, arpc.UseCodec(ctx, c), plain)
		})
	}
}

func TestConnectionsRaw(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := connect(t, arpc.WithCodec(codec.Raw{}))
	message := wrapperspb.String("text")
	want, _ := proto.Marshal(message)
	var raw []byte
	if err := client.CallWith(ctx, "/raw", message, &raw); err != nil || !bytes.Equal(raw, want) {
		t.Errorf("%q, %v", raw, err)
	}
	back := &wrapperspb.StringValue{}
	if err := client.CallWith(ctx, "/raw", message, back); err != nil || back.Value != "text" {
		t.Errorf("%v, %v", back, err)
	}
	now, then := time.Now(), time.Time{}
	if err := client.CallWith(ctx, "/raw", now, &then); err != nil || !then.Equal(now) {
		t.Errorf("%v, %v", then, err)
	}
	if err := client.CallWith(ctx, "/raw", order{}, nil); !errors.Is(err, codec.ErrNotBinary) {
		t.Errorf("a struct: %v", err)
	}
}

func TestRegister(t *testing.T) {
	for _, name := range []string{"json", "protobuf"} {
		if codec.Lookup(name) == nil {
			t.Errorf("%s is not registered", name)
		}
	}
	if codec.Lookup("nobody") != nil {
		t.Error("found what is not there")
	}
	for _, name := range []string{"", "a,b", "a:b", string(make([]byte, 65))} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("registered %q", name)
				}
			}()
			codec.Register(misnamed{name: name})
		}()
	}
	codec.Register(misnamed{name: "test"})
	if codec.Lookup("test") != (misnamed{name: "test"}) {
		t.Error("not found")
	}
}

type misnamed struct {
	codec.JSONCodec
	name string
}

func (m misnamed) Name() string { return m.name }
