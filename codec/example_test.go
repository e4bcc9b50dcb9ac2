package codec_test

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
)

type point struct {
	X, Y int
	Name string `json:"name,omitempty"`
}

func ExampleMessagePack() {
	data, err := codec.MessagePack{}.Marshal(point{1, -2, "here"})
	fmt.Printf("%q %v\n", data, err)
	var p point
	err = codec.MessagePack{}.Unmarshal(data, &p)
	fmt.Println(p, err)
	// Output:
	// "\x83\xa1X\x01\xa1Y\xfe\xa4name\xa4here" <nil>
	// {1 -2 here} <nil>
}

func ExampleCBOR() {
	data, err := codec.CBOR{}.Marshal(point{1, -2, "here"})
	fmt.Printf("%x %v\n", data, err)
	var v any
	err = codec.CBOR{}.Unmarshal(data, &v)
	fmt.Println(v, err)
	// Output:
	// a3615801615921646e616d656468657265 <nil>
	// map[X:1 Y:-2 name:here] <nil>
}

func ExampleRaw() {
	data, err := codec.Raw{}.Marshal(time.Unix(1, 0).UTC())
	fmt.Println(len(data), err)
	var t time.Time
	err = codec.Raw{}.Unmarshal(data, &t)
	fmt.Println(t, err)
	// Output:
	// 15 <nil>
	// 1970-01-01 00:00:01 +0000 UTC <nil>
}

// A connection speaks JSON; one call chooses MessagePack.
func ExampleRegister() {
	codec.Register(codec.MessagePack{})

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := arpc.NewServer()
	server.Handler.Handle("/mirror", func(ctx *arpc.Context) {
		var p point
		if err := ctx.Bind(&p); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(point{p.Y, p.X, p.Name})
	})
	go server.Serve(ln)
	defer server.Stop()
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) })
	if err != nil {
		panic(err)
	}
	defer client.Stop()

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var p point
	err = client.CallWith(ctx, "/mirror", point{X: 1, Y: 2}, &p)
	fmt.Println(p, err)
	err = client.CallWith(arpc.UseCodec(ctx, codec.MessagePack{}), "/mirror", p, &p)
	fmt.Println(p, err)
	// Output:
	// {2 1 } <nil>
	// {1 2 } <nil>
}
