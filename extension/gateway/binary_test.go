package gateway

import (
	"bytes"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/arpc-go/arpc"
)

// startBinary is start with the binary handler.
func startBinary(t testing.TB, opts ...Option) *fixture {
	f := start(t, opts...)
	f.Server.Config.Handler = f.gateway.Binary()
	return f
}

func unhex(t testing.TB, s string) string {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	must(t, err)
	return string(b)
}

// frame makes a frame of version 1.
func makeFrame(cmd, flag byte, seq byte, method, payload string) string {
	m := &arpc.Message{Buffer: append(make([]byte, arpc.HeadLen), method+payload...)}
	m.SetBodyLen(len(method) + len(payload))
	m.SetCmd(cmd)
	m.Buffer[6] = flag
	m.SetMethodLen(len(method))
	m.SetSeq(uint64(seq))
	return string(m.Buffer)
}

func TestBinaryGolden(t *testing.T) {
	f := startBinary(t)
	f.handle("/e", echo)
	f.handle("/empty", func(c *arpc.Context) { c.Write(nil) })
	f.handle("/fail", func(c *arpc.Context) { c.Error("why") })
	f.handle("/panic", func(c *arpc.Context) { panic("secret") })
	f.handle("S.M", func(c *arpc.Context) { c.Write("bare") })
	for _, c := range []struct{ name, req, want string }{
		{"call of arpc.js", "04000000 00 01 00 02 0000000000000000 2f65 6869", "04000000 00 02 00 02 0000000000000000 2f65 6869"},
		{"no payload", "02000000 00 01 00 02 0100000000000000 2f65", "02000000 00 02 00 02 0100000000000000 2f65"},
		{"sequence of 8 bytes, async", "04000000 00 01 02 02 0102030405060788 2f65 6869", "04000000 00 02 02 02 0102030405060788 2f65 6869"},
		{"flags that nobody knows", "04000000 00 01 fc 02 0000000000000000 2f65 6869", "04000000 00 02 00 02 0000000000000000 2f65 6869"},
		{"bits of coders", "04000000 12 01 00 02 0000000000000000 2f65 6869", "04000000 00 02 00 02 0000000000000000 2f65 6869"},
		{"empty answer", "06000000 00 01 00 06 0200000000000000 2f656d707479", "06000000 00 02 00 06 0200000000000000 2f656d707479"},
		{"error", "05000000 00 01 02 05 0300000000000000 2f6661696c", "08000000 00 02 03 05 0300000000000000 2f6661696c 776879"},
		{"method without a slash", "03000000 00 01 00 03 0400000000000000 532e4d", "07000000 00 02 00 03 0400000000000000 532e4d 62617265"},
		{"unknown method", "02000000 00 01 00 02 0500000000000000 2f78",
			"12000000 00 02 01 02 0500000000000000 2f78" + hex.EncodeToString([]byte("method not found"))},
		{"no guess", "04000000 00 01 00 04 0600000000000000 2f532e4d",
			"14000000 00 02 01 04 0600000000000000 2f532e4d" + hex.EncodeToString([]byte("method not found"))},
		{"panic", "06000000 00 01 00 06 0700000000000000 2f70616e6963",
			"2a000000 00 02 01 06 0700000000000000 2f70616e6963" + hex.EncodeToString([]byte("internal error: the handler panicked"))},
		{"authentication", "09000000 00 01 00 09 0800000000000000 617270632e61757468",
			"19000000 00 02 01 09 0800000000000000 617270632e61757468" + hex.EncodeToString([]byte("method not found"))},
	} {
		a := f.post(t, "/any", unhex(t, c.req))
		if a.status != 200 || a.body != unhex(t, c.want) || a.header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s: %d %x of type %s", c.name, a.status, a.body, a.header.Get("Content-Type"))
		}
	}
}

func TestBinaryNotify(t *testing.T) {
	f := startBinary(t, Expose(func(m string) bool { return m != "/hidden" }))
	got := make(chan string, 1)
	note := func(c *arpc.Context) { got <- string(c.Body()) + c.Metadata()["k"] }
	f.handle("/n", note)
	f.handle("/hidden", note)
	f.handle("/e", echo)
	if a := f.post(t, "/", unhex(t, "03000000 00 03 00 02 0300000000000000 2f6e 78"), "Arpc-Meta-K", "v"); a.status != 200 || a.body != "" {
		t.Errorf("%d %q", a.status, a.body)
	}
	if n := recv(t, got, "notification"); n != "xv" {
		t.Errorf("%q", n)
	}
	for _, m := range []string{"/hidden", "/unknown"} {
		if a := f.post(t, "/", makeFrame(arpc.CmdNotify, 0, 1, m, "y")); a.status != 200 || a.body != "" {
			t.Errorf("%s: %d %q", m, a.status, a.body)
		}
	}
	// Its handler may block: calls go on.
	release := make(chan struct{})
	f.handle("/slow", func(c *arpc.Context) {
		got <- "slow"
		<-release
	})
	f.post(t, "/", makeFrame(arpc.CmdNotify, 0, 1, "/slow", ""))
	recv(t, got, "notification")
	for range 3 {
		if a := f.post(t, "/", makeFrame(arpc.CmdRequest, 0, 1, "/e", "z")); a.body != makeFrame(arpc.CmdResponse, 0, 1, "/e", "z") {
			t.Errorf("%d %x", a.status, a.body)
		}
	}
	close(release)
	must(t, f.gateway.Close())
	if a := f.post(t, "/", makeFrame(arpc.CmdNotify, 0, 1, "/n", "")); a.status != 503 {
		t.Errorf("%d %q", a.status, a.body)
	}
	if a := f.post(t, "/", makeFrame(arpc.CmdRequest, 0, 1, "/e", "")); a.status != 200 ||
		a.body != makeFrame(arpc.CmdResponse, 1, 1, "/e", "the server is not available") {
		t.Errorf("%d %q", a.status, a.body)
	}
}

func TestBinaryRefusals(t *testing.T) {
	f := startBinary(t, MaxBody(100))
	called := make(chan struct{}, 1)
	f.handle("/e", func(c *arpc.Context) { called <- struct{}{} })
	f.handle("/big", echo)
	f.handle("/wait", func(c *arpc.Context) { <-c.Done() })
	good := makeFrame(arpc.CmdRequest, 0, 7, "/e", "hi")
	change := func(at int, b byte) string {
		c := []byte(good)
		c[at] = b
		return string(c)
	}
	for name, body := range map[string]string{
		"nothing":             "",
		"less than a header":  good[:15],
		"a header":            good[:16],
		"less than a frame":   good[:len(good)-1],
		"more than a frame":   good + "x",
		"two frames":          good + good,
		"too short a length":  change(0, 3),
		"no command":          change(5, 0),
		"a response":          change(5, 2),
		"a ping":              makeFrame(arpc.CmdPing, 0, 0, "", ""),
		"a stream":            change(5, 6),
		"a cancel":            change(5, 7),
		"an unknown command":  change(5, 63),
		"bits of streams":     change(5, 0x81),
		"no method":           change(7, 0),
		"a method of 5 bytes": change(7, 5),
		"a method of 128":     makeFrame(arpc.CmdRequest, 0, 0, strings.Repeat("x", 128), ""),
		"JSON":                `{"name":"x"}`,
	} {
		if a := f.post(t, "/", body); a.status != 400 || a.failure(t).Code != "invalid_argument" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if len(called) != 0 {
		t.Error("a handler ran")
	}
	if a := f.do(t, "GET", "/", ""); a.status != 405 || a.header.Get("Allow") != "POST" {
		t.Errorf("%d %v", a.status, a.header)
	}
	if a := f.post(t, "/", good, "Origin", "https://evil.example"); a.status != 403 || len(called) != 0 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := f.post(t, "/", good, "Arpc-Timeout", "x"); a.status != 400 {
		t.Errorf("%d %s", a.status, a.body)
	}
	full := makeFrame(arpc.CmdRequest, 0, 7, "/big", strings.Repeat("x", 100))
	if a := f.post(t, "/", full); a.status != 200 || !strings.HasSuffix(a.body, full[16:]) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := f.post(t, "/", makeFrame(arpc.CmdRequest, 0, 7, "/big", strings.Repeat("x", 101+arpc.MaxMethodLen))); a.status != 413 {
		t.Errorf("%d %s", a.status, a.body)
	}
	for _, ms := range []string{"1", "0"} {
		a := f.post(t, "/", makeFrame(arpc.CmdRequest, 0, 7, "/wait", ""), "Arpc-Timeout", ms)
		if a.status != 200 || a.body != makeFrame(arpc.CmdResponse, 1, 7, "/wait", "timeout") {
			t.Errorf("%d %q", a.status, a.body)
		}
	}
}

func TestBinaryCORS(t *testing.T) {
	f := startBinary(t, Origins("https://app.example"))
	f.handle("/e", echo)
	a := f.do(t, http.MethodOptions, "/", "", "Origin", "https://app.example", "Access-Control-Request-Method", "POST")
	if a.status != 204 || a.header.Get("Access-Control-Allow-Methods") != "POST" {
		t.Errorf("%d %v", a.status, a.header)
	}
	a = f.post(t, "/", makeFrame(arpc.CmdRequest, 0, 7, "/e", ""), "Origin", "https://app.example")
	if a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "https://app.example" {
		t.Errorf("%d %v", a.status, a.header)
	}
}

// Whatever the body is, the answer is what the protocol says, and the next call works.
func FuzzBinary(f *testing.F) {
	s := arpc.NewServer(arpc.NewHandler())
	g := New(s, MaxBody(1<<10))
	f.Cleanup(func() {
		g.Close()
		s.Stop()
	})
	s.Handler.Handle("/e", echo)
	h := g.Binary()
	do := func(body []byte) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/", bytes.NewReader(body)))
		return w
	}
	for _, seed := range []string{
		"", "x", makeFrame(1, 0, 0, "/e", "hi"), makeFrame(1, 2, 200, "/e", ""), makeFrame(3, 0, 1, "/e", "hi"),
		makeFrame(1, 0xff, 1, "/e", "hi"), makeFrame(1, 0, 1, "/unknown", "hi"), makeFrame(1, 0, 1, "arpc.auth", "hi"),
		makeFrame(4, 0, 0, "", ""), makeFrame(6, 0, 0, "/e", "x"), makeFrame(1, 0, 0, strings.Repeat("m", 127), "x"),
		makeFrame(1, 0, 0, strings.Repeat("m", 200), "x"), makeFrame(1, 0, 0, "/e", strings.Repeat("x", 1024)),
	} {
		f.Add([]byte(seed))
	}
	next := []byte(makeFrame(1, 0, 9, "/e", "next"))
	f.Fuzz(func(t *testing.T, body []byte) {
		w := do(body)
		in, out := &arpc.Message{Buffer: body}, &arpc.Message{Buffer: w.Body.Bytes()}
		switch {
		case len(body) > 1<<10+frameExtra:
			if w.Code != 413 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
		case len(body) <= arpc.HeadLen || in.BodyLen() != len(body)-arpc.HeadLen || body[5] != 1 && body[5] != 3 ||
			body[7] == 0 || body[7] > 127 || int(body[7]) > in.BodyLen():
			if w.Code != 400 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
		case body[5] == 3:
			if w.Code != 200 || w.Body.Len() > 0 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
		default:
			if w.Code != 200 || out.Len() < arpc.HeadLen+in.MethodLen() || out.BodyLen() != out.Len()-arpc.HeadLen ||
				out.Cmd() != arpc.CmdResponse || out.Seq() != in.Seq() || out.Method() != in.Method() || out.IsAsync() != in.IsAsync() ||
				out.IsError() != (in.Method() != "/e") {
				t.Fatalf("%d %x", w.Code, out.Buffer)
			}
			if !out.IsError() && !bytes.Equal(out.Data(), body[arpc.HeadLen+2:]) {
				t.Fatalf("%x", out.Buffer)
			}
		}
		if w := do(next); w.Code != 200 || !strings.HasSuffix(w.Body.String(), "/enext") {
			t.Fatalf("the next: %d %q", w.Code, w.Body)
		}
	})
}
