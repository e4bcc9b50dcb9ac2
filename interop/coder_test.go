package interop

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/gzip"
	"github.com/arpc-go/arpc/extension/middleware/coder/msgpack"
	"github.com/arpc-go/arpc/extension/middleware/coder/tracing"
)

// coderCases are the coders that the published arpc has, and values that
// calls carry by them. describe says which values a message has, in the words
// of the peer.
var coderCases = map[string]struct {
	coder    arpc.MessageCoder
	values   map[any]any
	describe func(get func(any) (any, bool)) string
}{
	"gzip": {gzip.New(100), nil, func(func(any) (any, bool)) string { return "none" }},
	"msgpack": {msgpack.New(), map[any]any{"k": "v", "n": 300, "list": []any{true, []byte("b")}}, func(get func(any) (any, bool)) string {
		k, _ := get("k")
		n, _ := get("n")
		list, _ := get("list")
		return fmt.Sprint(k, n, list)
	}},
	"tracing": {
		tracing.New(),
		tracing.Values(tracing.SpanContext{TraceID: 1 << 60, SpanID: 2, Sampled: true, Baggage: map[string]string{"b": "c"}}),
		func(get func(any) (any, bool)) string {
			v, _ := get(tracing.Key)
			sc, ok := v.(tracing.SpanContext)
			if !ok {
				return "none"
			}
			return fmt.Sprint(sc.TraceID, sc.SpanID, sc.Sampled, sc.Baggage)
		},
	},
}

const coderPatience = 20 * time.Second

// The coders understand those of the published arpc, in both roles.
func TestCoders(t *testing.T) {
	program := filepath.Join(t.TempDir(), "coderpeer.exe")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = "coderpeer"
	build.Env = append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the peer: %v\n%s", err, out)
	}
	for name, tt := range coderCases {
		handler := arpc.NewHandler()
		handler.UseCoder(tt.coder)
		handler.Handle("/echo", func(ctx *arpc.Context) {
			var text string
			if err := ctx.Bind(&text); err == nil {
				ctx.Write(text)
			}
		})
		handler.Handle("/values", func(ctx *arpc.Context) { ctx.Write(tt.describe(ctx.Get)) })
		t.Run(name+"/our server", func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := arpc.NewServer(handler)
			served := make(chan error, 1)
			go func() { served <- server.Serve(ln) }()
			defer func() {
				server.Stop()
				<-served
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 3*coderPatience)
			defer cancel()
			if out, err := exec.CommandContext(ctx, program, "client", "-coder", name, "-addr", ln.Addr().String()).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
		t.Run(name+"/our client", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 3*coderPatience)
			defer cancel()
			cmd := exec.CommandContext(ctx, program, "serve", "-coder", name)
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				in.Close()
				if err := cmd.Wait(); err != nil {
					t.Error(err)
				}
			}()
			addr, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			client, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", strings.TrimSpace(addr)) }, handler)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Stop()
			for _, text := range []string{"small", strings.Repeat("large ", 50_000)} {
				var got string
				if err := client.Call("/echo", text, &got, coderPatience); err != nil || got != text {
					t.Errorf("echo of %d bytes: %d bytes, %v", len(text), len(got), err)
				}
			}
			want := tt.describe(func(k any) (any, bool) { v, ok := tt.values[k]; return v, ok })
			var got string
			if err := client.Call("/values", nil, &got, coderPatience, tt.values); err != nil || got != want {
				t.Errorf("values %q, want %q, %v", got, want, err)
			}
		})
	}
}
