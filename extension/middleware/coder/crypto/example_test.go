package crypto_test

import (
	"crypto/rand"
	"fmt"
	"net"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/crypto"
)

func Example() {
	secret := make([]byte, crypto.KeyLen)
	rand.Read(secret)
	key := crypto.Key{ID: 1, Secret: secret}

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := arpc.NewServer()
	coder, err := crypto.NewServer(key)
	if err != nil {
		panic(err)
	}
	server.Handler.UseCoder(coder)
	server.Handler.Handle("/echo", func(ctx *arpc.Context) {
		var text string
		if ctx.Bind(&text) == nil {
			ctx.Write(text)
		}
	})
	go server.Serve(ln)
	defer server.Stop()

	// The Handler is given to NewClient, so that the coder is there before the
	// first frame.
	handler := arpc.NewHandler()
	if coder, err = crypto.NewClient(key); err != nil {
		panic(err)
	}
	handler.UseCoder(coder)
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }, handler)
	if err != nil {
		panic(err)
	}
	defer client.Stop()
	var answer string
	err = client.Call("/echo", "between us", &answer, 5*time.Second)
	fmt.Println(answer, err)

	// Later: a new key is known everywhere first, and in use then.
	next := crypto.Key{ID: 2, Secret: make([]byte, crypto.KeyLen)}
	rand.Read(next.Secret)
	err = coder.SetKeys(key, next)
	fmt.Println(err)
	// Output:
	// between us <nil>
	// <nil>
}
