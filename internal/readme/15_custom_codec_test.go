package readme

import (
	"encoding/json"
	"sync/atomic"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
)

// shifted is JSON with every byte changed, so that it works only if both ends
// use it.
type shifted struct{ uses *atomic.Int64 }

func (c shifted) Marshal(v any) ([]byte, error) {
	c.uses.Add(1)
	data, err := json.Marshal(v)
	for i := range data {
		data[i] ^= 0x55
	}
	return data, err
}

func (c shifted) Unmarshal(data []byte, v any) error {
	c.uses.Add(1)
	plain := make([]byte, len(data))
	for i := range data {
		plain[i] = data[i] ^ 0x55
	}
	return json.Unmarshal(plain, v)
}

func callEcho(t *testing.T, client *arpc.Client) {
	t.Helper()
	request, response := &Echo{A: "hello", B: 7}, &Echo{}
	if err := client.Call("/call/echo", request, response, patience); err != nil || *response != *request {
		t.Fatalf("%+v, %v", response, err)
	}
}

func handleEcho(handler arpc.Handler) {
	handler.Handle("/call/echo", func(ctx *arpc.Context) {
		req := &Echo{}
		if err := ctx.Bind(req); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(req)
	})
}

func TestCustomCodecOfPackage(t *testing.T) {
	uses := new(atomic.Int64)
	old := codec.DefaultCodec
	t.Cleanup(func() { codec.DefaultCodec = old })

	var c arpc.Codec = shifted{uses}
	codec.DefaultCodec = c

	svr := arpc.NewServer()
	handleEcho(svr.Handler)
	callEcho(t, connect(t, serve(t, svr)))
	if n := uses.Load(); n != 4 {
		t.Errorf("the codec was used %d times, want 4", n)
	}
}

func TestCustomCodecOfServerAndClient(t *testing.T) {
	uses := new(atomic.Int64)
	var c arpc.Codec = shifted{uses}

	svr := arpc.NewServer()
	svr.Codec = c
	handleEcho(svr.Handler)
	addr := serve(t, svr)

	client := connect(t, addr)
	client.Codec = c
	callEcho(t, client)
	if n := uses.Load(); n != 4 {
		t.Errorf("the codec was used %d times, want 4", n)
	}
	// The codecs differ: an error answer, not silence.
	other := connect(t, addr)
	if err := other.Call("/call/echo", &Echo{}, &Echo{}, patience); err == nil {
		t.Error("no error from different codecs")
	}
}
