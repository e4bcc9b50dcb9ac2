// The coder peer is the last published arpc that has its message coders with it,
// in a module of its own because the peer of the other tests is a later one.
//
//	coderpeer serve -coder C            serve on a free port until standard input ends
//	coderpeer client -coder C -addr A   make all checks against a server
//
// C is gzip, msgpack or tracing. It exits with a non-zero code if a check fails.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/lesismal/arpc"
	"github.com/lesismal/arpc/extension/middleware/coder/gzip"
	"github.com/lesismal/arpc/extension/middleware/coder/msgpack"
	"github.com/lesismal/arpc/extension/middleware/coder/tracing"
	"github.com/lesismal/arpc/log"
	"github.com/opentracing/basictracer-go"
)

const timeout = 20 * time.Second

func main() {
	log.SetLevel(log.LevelNone)
	if len(os.Args) < 2 {
		fail(errors.New("no command"))
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	addr := flags.String("addr", "", "address of the server")
	name := flags.String("coder", "", "the coder")
	flags.Parse(os.Args[2:])
	h := arpc.NewHandler()
	var values map[any]any
	switch *name {
	case "gzip":
		h.UseCoder(gzip.New(100))
	case "msgpack":
		h.UseCoder(msgpack.New())
		values = map[any]any{"k": "v", "n": 300, "list": []any{true, []byte("b")}}
	case "tracing":
		h.UseCoder(tracing.NewTracer(nil))
		values = tracing.Values(basictracer.SpanContext{TraceID: 1 << 60, SpanID: 2, Sampled: true, Baggage: map[string]string{"b": "c"}})
	default:
		fail(fmt.Errorf("unknown coder %q", *name))
	}
	h.Handle("/echo", func(ctx *arpc.Context) {
		var text string
		if err := ctx.Bind(&text); err == nil {
			ctx.Write(text)
		}
	})
	h.Handle("/values", func(ctx *arpc.Context) { ctx.Write(describe(*name, ctx.Get)) })
	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(h)
	case "client":
		err = check(h, *addr, *name, values)
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// describe says which values a message has.
func describe(coder string, get func(any) (any, bool)) string {
	switch coder {
	case "msgpack":
		k, _ := get("k")
		n, _ := get("n")
		list, _ := get("list")
		return fmt.Sprint(k, n, list)
	case "tracing":
		v, _ := get("arpc-opentracing")
		if sc, ok := v.(basictracer.SpanContext); ok {
			return fmt.Sprint(sc.TraceID, sc.SpanID, sc.Sampled, sc.Baggage)
		}
	}
	return "none"
}

func serve(h arpc.Handler) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := arpc.NewServer()
	server.Handler = h
	go server.Serve(ln)
	fmt.Println(ln.Addr())
	io.Copy(io.Discard, os.Stdin)
	return nil
}

func check(h arpc.Handler, addr, coder string, values map[any]any) error {
	client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", addr) }, h)
	if err != nil {
		return err
	}
	defer client.Stop()
	for _, text := range []string{"small", strings.Repeat("large ", 50_000)} {
		var got string
		if err := client.Call("/echo", text, &got, timeout); err != nil || got != text {
			return fmt.Errorf("echo of %d bytes: %d bytes, %w", len(text), len(got), err)
		}
	}
	want := describe(coder, func(k any) (any, bool) { v, ok := values[k]; return v, ok })
	var got string
	if err := client.Call("/values", nil, &got, timeout, values); err != nil || got != want {
		return fmt.Errorf("values %q, want %q, %w", got, want, err)
	}
	return nil
}
