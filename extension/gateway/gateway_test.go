package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder/gzip"
	"github.com/arpc-go/arpc/internal/leak"
	"github.com/arpc-go/arpc/log"
)

// patience bounds every wait for something that must happen; it is not spent when all is well.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone) // panics are what some tests are about
	os.Exit(leak.Run(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// fixture is a server with a gateway behind a real HTTP server.
type fixture struct {
	*httptest.Server
	gateway *Gateway
	arpc    *arpc.Server
}

// start makes a fixture that ends with the test. Routes are registered with f.arpc.Handler before the first request.
func start(t testing.TB, opts ...Option) *fixture {
	t.Helper()
	f := &fixture{arpc: arpc.NewServer(arpc.NewHandler())}
	f.gateway = New(f.arpc, opts...)
	f.Server = httptest.NewServer(f.gateway)
	t.Cleanup(func() {
		f.Server.Close()
		must(t, f.gateway.Close())
		must(t, f.arpc.Stop())
	})
	return f
}

func (f *fixture) handle(method string, h arpc.HandlerFunc, async ...bool) {
	f.arpc.Handler.Handle(method, h, async...)
}

// answer is what a client sees.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request. headers are pairs.
func (f *fixture) do(t testing.TB, method, path, body string, headers ...string) answer {
	t.Helper()
	a, err := f.try(context.Background(), method, path, strings.NewReader(body), headers...)
	must(t, err)
	return a
}

func (f *fixture) try(ctx context.Context, method, path string, body io.Reader, headers ...string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, f.URL+path, body)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	res, err := f.Client().Do(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(b)}, err
}

func (f *fixture) post(t testing.TB, path, body string, headers ...string) answer {
	t.Helper()
	return f.do(t, http.MethodPost, path, body, headers...)
}

// failure decodes the body of an error.
func (a answer) failure(t testing.TB) failure {
	t.Helper()
	var f failure
	if err := json.Unmarshal([]byte(a.body), &f); err != nil || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%q of type %q: %v", a.body, a.header.Get("Content-Type"), err)
	}
	return f
}

func echo(c *arpc.Context) { c.Write(c.Body()) }

type person struct {
	Name string `json:"name"`
}

type greeter struct{}

func (greeter) Hello(ctx context.Context, p *person) (*person, error) {
	return &person{"hello " + p.Name}, nil
}

func TestCall(t *testing.T) {
	f := start(t, Prefix("api/"), GET("/get", "Service.Get"))
	f.arpc.Handler.Use(func(c *arpc.Context) {
		c.SetMetadata("middleware", "ran")
		c.Next()
	})
	f.handle("/echo", echo)
	f.arpc.Handler.HandleInline("/inline", echo)
	f.handle("/async", echo, true)
	f.handle("/later", func(c *arpc.Context) {
		body := string(c.Body())
		c.AnswerLater()
		go c.Write(body)
	})
	f.handle("/", func(c *arpc.Context) { c.Write("root") })
	f.handle("/a b/ü", func(c *arpc.Context) { c.Write("decoded") })
	f.handle("bare", func(c *arpc.Context) { c.Write("no slash") })
	f.handle("/Dotted.Slash", func(c *arpc.Context) { c.Write("slash") })
	f.handle("/empty", func(c *arpc.Context) {
		if len(c.Body()) > 0 {
			c.Error("a body")
			return
		}
		c.Write(nil)
	})
	f.handle("/text", func(c *arpc.Context) { c.Write("a <b> \"c\" ü") })
	f.handle("/number", func(c *arpc.Context) { c.Write("12") })
	f.handle("/bytes", func(c *arpc.Context) { c.Write([]byte{0xff, 0, '"'}) })
	f.handle("/get", echo)
	f.handle("Service.Get", echo)
	f.handle("/long"+strings.Repeat("x", arpc.MaxMethodLen-5), echo)
	f.handle(strings.Repeat("y", arpc.MaxMethodLen), echo)
	arpc.NewMethod[person, person]("/typed").Handle(f.arpc.Handler, func(_ *arpc.Context, p *person) (*person, error) {
		return &person{strings.ToUpper(p.Name)}, nil
	})
	must(t, f.arpc.Handler.Register("Greeter", greeter{}))

	const x = `{"name":"x"}`
	for _, c := range []struct {
		method, path, body string
		kind               string // of the request
		want               string
		wantKind           string
	}{
		{"POST", "/echo", x, "application/json", x, jsonType},
		{"POST", "/echo", x, "Application/JSON; charset=utf-8", x, jsonType},
		{"POST", "/echo", x, "application/x-www-form-urlencoded", x, jsonType},
		{"POST", "/echo", x, "", x, jsonType},
		{"POST", "/echo", " \n" + x + "\n", "", x, jsonType},
		{"POST", "/echo", "", "", "null", jsonType},
		{"POST", "/echo", "0", "", "0", jsonType},
		{"POST", "/echo", "false", "", "false", jsonType},
		{"POST", "/echo", `""`, "", `""`, jsonType},
		{"POST", "/inline", x, "", x, jsonType},
		{"POST", "/async", x, "", x, jsonType},
		{"POST", "/later", x, "", x, jsonType},
		{"POST", "/", "", "", `"root"`, jsonType},
		{"POST", "/a%20b%2F%C3%BC", "", "", `"decoded"`, jsonType},
		{"POST", "/bare", "", "", `"no slash"`, jsonType},
		{"POST", "/Dotted.Slash", "", "", `"slash"`, jsonType},
		{"POST", "/empty", "", "", "null", jsonType},
		{"POST", "/text", "", "", `"a <b> \"c\" ü"`, jsonType},
		{"POST", "/number", "", "", "12", jsonType},
		{"POST", "/bytes", "", "", "\xff\x00\"", "application/octet-stream"},
		{"POST", "/typed", x, "", `{"name":"X"}`, jsonType},
		{"POST", "/Greeter.Hello", x, "", `{"name":"hello x"}`, jsonType},
		{"POST", "/get", x, "", x, jsonType},
		{"GET", "/get?message=%7B%22name%22%3A%22x%22%7D", "", "", x, jsonType},
		{"GET", "/get", "", "", "null", jsonType},
		{"GET", "/Service.Get?message=1", "", "", "1", jsonType},
		{"POST", "/long" + strings.Repeat("x", arpc.MaxMethodLen-5), x, "", x, jsonType},
		{"POST", "/" + strings.Repeat("y", arpc.MaxMethodLen), x, "", x, jsonType},
	} {
		var headers []string
		if c.kind != "" {
			headers = []string{"Content-Type", c.kind}
		}
		a := f.do(t, c.method, "/api"+c.path, c.body, headers...)
		if a.status != 200 || a.body != c.want || a.header.Get("Content-Type") != c.wantKind {
			t.Errorf("%s %s %q of type %q: %d %q of type %q", c.method, c.path, c.body, c.kind, a.status, a.body, a.header.Get("Content-Type"))
		}
		if a.header.Get("Arpc-Meta-Middleware") != "ran" || a.header.Get("X-Content-Type-Options") != "nosniff" ||
			a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %s: headers %v", c.method, c.path, a.header)
		}
	}
}

func TestBigBody(t *testing.T) {
	f := start(t)
	f.handle("/echo", echo)
	body := `"` + strings.Repeat("x", 1<<20) + `"`
	for range 3 {
		if a := f.post(t, "/echo", body); a.status != 200 || a.body != body {
			t.Fatalf("%d, %d bytes", a.status, len(a.body))
		}
	}
}

func TestRefusals(t *testing.T) {
	f := start(t, Prefix("/api"), MaxBody(100), GET("/get"), Expose(func(m string) bool { return m != "/hidden" }))
	for _, m := range []string{"/echo", "/get", "/hidden", "/strict"} {
		f.handle(m, echo)
	}
	f.handle("/wait", func(c *arpc.Context) { <-c.Done() })
	f.handle("/panic", func(c *arpc.Context) { panic("secret of the program") })
	f.handle("/silent", func(c *arpc.Context) {})
	f.handle("/unencodable", func(c *arpc.Context) { c.Write(make(chan int)) })
	f.handle("/gone", func(c *arpc.Context) { c.Write(arpc.CodeNotFound) })
	f.handle("/unimplemented", func(c *arpc.Context) { c.Write(arpc.CodeUnimplemented) })
	arpc.NewMethod[person, person]("/typed").Handle(f.arpc.Handler, func(_ *arpc.Context, p *person) (*person, error) { return p, nil })
	big := `"` + strings.Repeat("x", 99) + `"`
	for _, c := range []struct {
		method, path, body string
		headers            []string
		status             int
		code, message      string
	}{
		{"POST", "/api/unknown", "{}", nil, 404, "unimplemented", "method not found"},
		{"POST", "/api/hidden", "{}", nil, 404, "unimplemented", "method not found"},
		{"POST", "/echo", "{}", nil, 404, "unimplemented", "method not found"},
		{"POST", "/apiecho", "{}", nil, 404, "unimplemented", "method not found"},
		{"POST", "/api", "{}", nil, 404, "unimplemented", "method not found"},
		{"POST", "/api/", "{}", nil, 404, "unimplemented", "method not found"},
		{"POST", "/api/" + strings.Repeat("x", 128), "{}", nil, 404, "unimplemented", "method not found"},
		{"POST", "/api/arpc.auth", `"token"`, nil, 404, "unimplemented", "method not found"},
		{"POST", "/api/gone", "{}", nil, 404, "not_found", "not_found"},
		{"POST", "/api/unimplemented", "{}", nil, 501, "unimplemented", "unimplemented"},
		{"POST", "/api/echo", `{"name":`, nil, 400, "invalid_argument", "the body is not valid JSON"},
		{"POST", "/api/echo", "name=x", []string{"Content-Type", "application/x-www-form-urlencoded"}, 400, "invalid_argument", "the body is not valid JSON"},
		{"GET", "/api/get?message=%7B", "", nil, 400, "invalid_argument", "the body is not valid JSON"},
		{"POST", "/api/typed", `"text"`, nil, 400, "invalid_argument", ""},
		{"POST", "/api/echo", big, nil, 413, "resource_exhausted", "the body is too large"},
		{"CHUNKED", "/api/echo", big, nil, 413, "resource_exhausted", "the body is too large"},
		{"GET", "/api/get?message=" + strings.Repeat("1", 101), "", nil, 413, "resource_exhausted", "the body is too large"},
		{"GET", "/api/echo", "", nil, 405, "unimplemented", "the HTTP method is not allowed"},
		{"PUT", "/api/get", "{}", nil, 405, "unimplemented", "the HTTP method is not allowed"},
		{"OPTIONS", "/api/echo", "", nil, 405, "unimplemented", "the HTTP method is not allowed"},
		{"POST", "/api/echo", "{}", []string{"Content-Type", "text/plain"}, 415, "invalid_argument", "the Content-Type must be application/json"},
		{"POST", "/api/echo", "{}", []string{"Content-Type", ";"}, 415, "invalid_argument", "the Content-Type must be application/json"},
		{"POST", "/api/echo", "{}", []string{"Content-Encoding", "gzip"}, 415, "invalid_argument", "a Content-Encoding is not supported"},
		{"POST", "/api/wait", "{}", []string{"Arpc-Timeout", "1"}, 504, "deadline_exceeded", "timeout"},
		{"POST", "/api/wait", "{}", []string{"Connect-Timeout-Ms", "1"}, 504, "deadline_exceeded", "timeout"},
		{"POST", "/api/echo", "{}", []string{"Arpc-Timeout", "0"}, 504, "deadline_exceeded", "timeout"},
		{"POST", "/api/echo", "{}", []string{"Arpc-Timeout", "1s"}, 400, "invalid_argument", ""},
		{"POST", "/api/echo", "{}", []string{"Arpc-Timeout", "-1"}, 400, "invalid_argument", ""},
		{"POST", "/api/echo", "{}", []string{"Connect-Timeout-Ms", "12345678901"}, 400, "invalid_argument", ""},
		{"POST", "/api/panic", "{}", nil, 500, "internal", "internal error: the handler panicked"},
		{"POST", "/api/silent", "{}", nil, 500, "internal", "internal error: the handler gave no answer"},
		{"POST", "/api/unencodable", "{}", nil, 500, "internal", "internal error: the answer cannot be encoded"},
	} {
		method, body := c.method, io.Reader(strings.NewReader(c.body))
		if method == "CHUNKED" {
			method, body = "POST", io.MultiReader(body) // of a length that is not known
		}
		a, err := f.try(t.Context(), method, c.path, body, c.headers...)
		if err != nil {
			t.Errorf("%s %s: %v", c.method, c.path, err)
			continue
		}
		got := a.failure(t)
		if a.status != c.status || got.Code != c.code || c.message != "" && got.Message != c.message || got.Message == "" {
			t.Errorf("%s %s %v: %d %s", c.method, c.path, c.headers, a.status, a.body)
		}
		if a.status == 405 {
			want := "POST"
			if c.path == "/api/get" {
				want = "GET, POST"
			}
			if a.header.Get("Allow") != want {
				t.Errorf("%s %s: Allow: %s", c.method, c.path, a.header.Get("Allow"))
			}
		}
		for _, secret := range []string{"secret", "goroutine", ".go:", "0x"} {
			if strings.Contains(a.body, secret) {
				t.Errorf("%s %s: the body has %q: %s", c.method, c.path, secret, a.body)
			}
		}
	}
}

// A smaller limit of the server's own counts too.
func TestServersBodyLimit(t *testing.T) {
	f := start(t)
	f.handle("/echo", echo)
	f.arpc.Handler.SetMaxBodyLen(8 << 10)
	if a := f.post(t, "/echo", `"`+strings.Repeat("x", 10<<10)+`"`); a.status != 413 {
		t.Errorf("%d %s", a.status, a.body)
	}
	// What is too long only with its metadata.
	body := `"` + strings.Repeat("x", 8<<10-arpc.MaxMethodLen-10) + `"`
	if a := f.post(t, "/echo", body, "Arpc-Meta-K", strings.Repeat("v", 4<<10)); a.status != 413 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := f.post(t, "/echo", body); a.status != 200 || a.body != body {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestCodes(t *testing.T) {
	f := start(t)
	f.handle("/fail", func(c *arpc.Context) {
		var code arpc.Code
		if err := c.Bind(&code); err != nil {
			c.Error(err)
			return
		}
		c.Write(&arpc.Error{Code: code, Message: "the message"})
	})
	want := [...]int{0, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401, 500}
	for code := arpc.CodeCanceled; int(code) < len(want); code++ { // the last is none that is known
		a := f.post(t, "/fail", strconv.Itoa(int(code)))
		got := a.failure(t)
		if a.status != want[code] || got.Code != code.String() || got.Message != "the message" || got.Details != nil {
			t.Errorf("%v: %d %s", code, a.status, a.body)
		}
	}
	if len(statuses) != int(arpc.CodeUnauthenticated) {
		t.Errorf("%d statuses", len(statuses))
	}
}

func TestDetails(t *testing.T) {
	f := start(t)
	f.handle("/fail", func(c *arpc.Context) {
		c.Write(&arpc.Error{Code: arpc.CodeNotFound, Message: "m", Details: []arpc.Detail{
			{Name: "json", Value: person{"x"}}, {Name: "text", Value: "a \"text\""}, {Name: "none"},
			{Name: "binary", Value: []byte{0xff, 0xfe}},
		}})
	})
	a := f.post(t, "/fail", "")
	const want = `{"code":"not_found","message":"m","details":[{"name":"json","value":{"name":"x"}},` +
		`{"name":"text","value":"a \"text\""},{"name":"none","value":null},{"name":"binary","value":"//4=","encoding":"base64"}]}`
	if a.status != 404 || a.body != want {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestMetadata(t *testing.T) {
	f := start(t, Metadata(func(r *http.Request) arpc.Metadata {
		if r.Header.Get("X-User") == "" {
			return nil
		}
		return arpc.Metadata{"user": r.Header.Get("X-User")}
	}))
	f.handle("/md", func(c *arpc.Context) {
		md := c.Metadata()
		c.SetMetadata("Text", "plain text")
		c.SetMetadata("raw", "\x00\xff")
		c.SetMetadata("space", " x ")
		c.SetMetadata("own-bin", "text")
		c.SetMetadata("no token", "x")
		if md["fail"] != "" {
			c.Write(arpc.CodeAborted)
			return
		}
		c.Write(md)
	})
	b64 := base64.StdEncoding.EncodeToString
	for _, c := range []struct {
		headers []string
		want    arpc.Metadata
	}{
		{nil, nil},
		{[]string{"Arpc-Meta-Trace-Id", "7"}, arpc.Metadata{"trace-id": "7"}},
		{[]string{"arpc-meta-a", "1", "Arpc-Meta-A", "2"}, arpc.Metadata{"a": "1, 2"}},
		{[]string{"Arpc-Meta-Raw-Bin", b64([]byte("ü\n\x01"))}, arpc.Metadata{"raw": "ü\n\x01"}},
		{[]string{"Arpc-Meta-Raw-Bin", strings.TrimRight(b64([]byte("x")), "=")}, arpc.Metadata{"raw": "x"}},
		{[]string{"Arpc-Meta-Own-Bin-Bin", b64([]byte("x"))}, arpc.Metadata{"own-bin": "x"}},
		{[]string{"Arpc-Meta-Bin", "text"}, arpc.Metadata{"bin": "text"}},
		{[]string{"Authorization", "Bearer t", "Arpc-Meta-Authorization", "other"}, arpc.Metadata{"authorization": "Bearer t"}},
		{[]string{"X-User", "ann", "Arpc-Meta-User", "bob"}, arpc.Metadata{"user": "ann"}},
		{[]string{"Arpc-Meta-Empty", ""}, arpc.Metadata{"empty": ""}},
		{[]string{"Arpc-Meta-", "x"}, nil},
	} {
		a := f.post(t, "/md", "", c.headers...)
		var got arpc.Metadata
		if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%v: %d %s", c.headers, a.status, a.body)
		}
	}
	for _, fails := range []string{"", "1"} { // errors carry metadata too
		a := f.post(t, "/md", "", "Arpc-Meta-Fail", fails)
		got := map[string]string{}
		for name, values := range a.header {
			if strings.HasPrefix(name, "Arpc-Meta-") {
				got[name] = strings.Join(values, "|")
			}
		}
		want := map[string]string{
			"Arpc-Meta-Text": "plain text", "Arpc-Meta-Raw-Bin": b64([]byte("\x00\xff")), "Arpc-Meta-Space-Bin": b64([]byte(" x ")),
			"Arpc-Meta-Own-Bin-Bin": b64([]byte("text")),
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%d %v", a.status, got)
		}
	}
	for _, c := range []struct {
		name, value string
		status      int
	}{
		{"Arpc-Meta-K-Bin", "!", 400},
		{"Arpc-Meta-" + strings.Repeat("k", 255), "v", 200},
		{"Arpc-Meta-" + strings.Repeat("k", 256), "v", 431},
		{"Arpc-Meta-K", strings.Repeat("v", 15<<10), 200},
		{"Arpc-Meta-K", strings.Repeat("v", 17<<10), 431}, // the server's limit
		{"Arpc-Meta-K", strings.Repeat("v", 70<<10), 431}, // that of the protocol
		{"Authorization", strings.Repeat("v", 70<<10), 431},
		{"X-User", strings.Repeat("v", 70<<10), 431},
	} {
		if a := f.post(t, "/md", "", c.name, c.value); a.status != c.status {
			t.Errorf("%.20s of %d bytes: %d %.200s", c.name, len(c.value), a.status, a.body)
		}
	}
}

// The handler has the deadline that was asked for, within what is allowed.
func TestDeadline(t *testing.T) {
	for _, c := range []struct {
		opts   []Option
		header []string
		want   time.Duration // 0 for none
	}{
		{nil, nil, time.Minute},
		{nil, []string{"Arpc-Timeout", "200000"}, 200 * time.Second},
		{nil, []string{"Connect-Timeout-Ms", "300000"}, 300 * time.Second},
		{nil, []string{"Connect-Timeout-Ms", "300000", "Arpc-Timeout", "200000"}, 200 * time.Second},
		{nil, []string{"Arpc-Timeout", "9999999999"}, 10 * time.Minute},
		{[]Option{Timeouts(100*time.Second, 200*time.Second)}, nil, 100 * time.Second},
		{[]Option{Timeouts(100*time.Second, 200*time.Second)}, []string{"Arpc-Timeout", "500000"}, 200 * time.Second},
		{[]Option{Timeouts(300*time.Second, 200*time.Second)}, nil, 200 * time.Second},
		{[]Option{Timeouts(-1, 200*time.Second)}, nil, 200 * time.Second},
		{[]Option{Timeouts(-1, -1)}, []string{"Arpc-Timeout", "500000"}, 500 * time.Second},
		{[]Option{Timeouts(-1, -1)}, nil, 0},
		{[]Option{Timeouts(0, 0)}, nil, time.Minute},
	} {
		f := start(t, c.opts...)
		f.handle("/left", func(ctx *arpc.Context) {
			if d, ok := ctx.Deadline(); ok {
				ctx.Write(int64(time.Until(d)))
				return
			}
			ctx.Write("none")
		})
		a := f.post(t, "/left", "", c.header...)
		if c.want == 0 {
			if a.body != `"none"` {
				t.Errorf("%v: %d %s", c.header, a.status, a.body)
			}
			continue
		}
		left, err := strconv.ParseInt(a.body, 10, 64)
		if lag := c.want - time.Duration(left); err != nil || lag < -time.Millisecond || lag > patience {
			t.Errorf("%v: %d %s, want %v", c.header, a.status, a.body, c.want)
		}
	}
}

// The handler sees the deadline pass, as the time that the gateway waits is its own.
func TestDeadlineReachesHandler(t *testing.T) {
	f := start(t, Timeouts(20*time.Millisecond, 0))
	ended := make(chan error, 1)
	f.handle("/wait", func(c *arpc.Context) {
		<-c.Done()
		select {
		case ended <- c.Err():
		default:
		}
	})
	eventually(t, "a handler ran", func() bool { // on a busy machine the time may be up before
		if a := f.post(t, "/wait", ""); a.status != 504 {
			t.Errorf("%d %s", a.status, a.body)
		}
		return len(ended) > 0
	})
	if err := <-ended; err != context.DeadlineExceeded {
		t.Error(err)
	}
}

func TestCancel(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			f := start(t)
			if http2 {
				s := httptest.NewUnstartedServer(f.gateway)
				s.EnableHTTP2 = true
				s.StartTLS()
				defer s.Close()
				f.Server, s = s, f.Server
				defer func() { f.Server = s }()
			}
			running, ended := make(chan struct{}), make(chan error, 1)
			f.handle("/wait", func(c *arpc.Context) {
				close(running)
				<-c.Done()
				ended <- c.Err()
			})
			ctx, cancel := context.WithCancel(t.Context())
			result := make(chan error, 1)
			go func() {
				_, err := f.try(ctx, "POST", "/wait", strings.NewReader("{}"))
				result <- err
			}()
			recv(t, running, "handler")
			cancel()
			if err := recv(t, result, "end of the request"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if err := recv(t, ended, "end of the handler"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}

// Requests whose ordered handlers block do not delay others, while there may be more connections.
func TestBlockedHandlersDelayNobody(t *testing.T) {
	const n = 5
	f := start(t, Connections(n+1))
	release := make(chan struct{})
	running := make(chan struct{}, n)
	f.handle("/wait", func(c *arpc.Context) {
		running <- struct{}{}
		<-release
		c.Write(nil)
	})
	f.handle("/echo", echo)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if a, err := f.try(t.Context(), "POST", "/wait", nil); err != nil || a.status != 200 {
				t.Errorf("%v %v", a, err)
			}
		})
	}
	for range n {
		recv(t, running, "handler")
	}
	for range 10 {
		if a := f.post(t, "/echo", "1"); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	f.gateway.calls.mu.Lock()
	if got := len(f.gateway.calls.ready); got != n+1 {
		t.Errorf("%d connections", got)
	}
	f.gateway.calls.mu.Unlock()
	close(release)
	wg.Wait()
}

// Without a connection to spare requests share one: async handlers run in parallel there, and ordered ones are in line.
func TestSharedConnection(t *testing.T) {
	f := start(t, Connections(1))
	const n = 5
	meet, release := make(chan struct{}, n), make(chan struct{})
	f.handle("/async", func(c *arpc.Context) {
		meet <- struct{}{}
		<-release
		c.Write(nil)
	}, true)
	f.handle("/ordered", func(c *arpc.Context) { c.Write(nil) })
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if a, err := f.try(t.Context(), "POST", "/async", nil); err != nil || a.status != 200 {
				t.Errorf("%v %v", a, err)
			}
		})
	}
	for range n {
		recv(t, meet, "handler")
	}
	if a := f.post(t, "/ordered", ""); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	f.gateway.calls.mu.Lock()
	if got := len(f.gateway.calls.all); got != 1 {
		t.Errorf("%d connections", got)
	}
	f.gateway.calls.mu.Unlock()
	close(release)
	wg.Wait()
}

// eventually waits until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// leave sends a request and goes away when its handler runs.
func (f *fixture) leave(t testing.TB, path string, running <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := httptest.NewRecorder()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.gateway.ServeHTTP(w, httptest.NewRequest("POST", path, nil).WithContext(ctx))
	}()
	recv(t, running, "handler")
	cancel()
	recv(t, done, "end of the request")
	if w.Code != 499 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A handler that goes on after its request's end keeps its connection from others, not the others from being served.
func TestDeafHandler(t *testing.T) {
	f := start(t, Connections(1))
	f.gateway.calls.grace = time.Hour
	release := make(chan struct{})
	running := make(chan struct{}, 1)
	f.handle("/deaf", func(c *arpc.Context) {
		running <- struct{}{}
		<-release
		c.Write(nil)
	})
	f.handle("/echo", echo)
	deaf := func() { t.Helper(); f.leave(t, "/deaf", running) }
	do := func(timeout string, want int) {
		t.Helper()
		if a := f.post(t, "/echo", "", "Arpc-Timeout", timeout); a.status != want {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	echo := func() { t.Helper(); do(strconv.FormatInt(patience.Milliseconds(), 10), 200) }
	is := func(ready, aside, all int) func() bool {
		return func() bool {
			p := f.gateway.calls
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.ready) == ready && p.aside == aside && len(p.all) == all
		}
	}
	now := func(what string, is func() bool) {
		t.Helper()
		if !is() {
			t.Error(what)
		}
	}
	echo()
	now("one connection", is(1, 0, 1))
	deaf()
	now("it is set aside", is(0, 1, 1))
	release <- struct{}{}
	eventually(t, "it is used again after the answer", is(1, 0, 1))
	deaf()
	echo()
	now("another one serves", is(1, 1, 2))
	release <- struct{}{}
	eventually(t, "there is no room for it after the answer", is(1, 0, 1))
	deaf()
	deaf()
	now("of two only one is set aside", is(0, 1, 1))
	echo()
	now("a third serves", is(1, 1, 2))
	do("0", 504)
	now("nothing is owed for what was not sent", is(1, 1, 2))
	close(release)
	eventually(t, "all is over", is(1, 0, 1))
}

// The answer that nobody waits for is not waited for without end.
func TestDeafHandlerForLong(t *testing.T) {
	f := start(t, Connections(1))
	f.gateway.calls.grace = time.Millisecond
	running, release := make(chan struct{}, 1), make(chan struct{})
	defer close(release)
	f.handle("/deaf", func(c *arpc.Context) {
		running <- struct{}{}
		<-release
	})
	f.handle("/echo", echo)
	for range 3 {
		f.leave(t, "/deaf", running)
		eventually(t, "the connection is stopped", func() bool {
			f.gateway.calls.mu.Lock()
			defer f.gateway.calls.mu.Unlock()
			return len(f.gateway.calls.all) == 0
		})
		if a := f.post(t, "/echo", "1"); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
}

func TestConcurrency(t *testing.T) {
	f := start(t, Connections(4))
	f.handle("/ordered", echo)
	f.handle("/async", echo, true)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 30 {
				body := fmt.Sprintf(`"%d.%d"`, i, j)
				path := [...]string{"/ordered", "/async"}[j%2]
				if a, err := f.try(t.Context(), "POST", path, strings.NewReader(body)); err != nil || a.status != 200 || a.body != body {
					t.Errorf("%s: %v %v", body, a, err)
					return
				}
			}
		})
	}
	wg.Wait()
	f.gateway.calls.mu.Lock()
	defer f.gateway.calls.mu.Unlock()
	if n := len(f.gateway.calls.all); n < 1 || n > 4 {
		t.Errorf("%d connections", n)
	}
	for c := range f.gateway.calls.all {
		if c.busy != 0 || c.owed != 0 {
			t.Errorf("a connection with %d requests, %d answers owed", c.busy, c.owed)
		}
	}
}

func TestCORS(t *testing.T) {
	const origin = "https://app.example"
	preflight := []string{"Access-Control-Request-Method", "POST",
		"Access-Control-Request-Headers", "content-type, arpc-meta-tenant,authorization, x-other, arpc-timeout"}
	const allowHeaders = "Content-Type, Arpc-Meta-Tenant, Authorization, Arpc-Timeout"
	for _, c := range []struct {
		name    string
		opts    []Option
		method  string
		path    string
		headers []string
		status  int
		want    map[string]string
	}{
		{"off, foreign page", nil, "POST", "/echo", []string{"Origin", origin}, 403, nil},
		{"off, foreign page by fetch metadata", nil, "POST", "/echo", []string{"Sec-Fetch-Site", "cross-site"}, 403, nil},
		{"off, preflight", nil, "OPTIONS", "/echo", append([]string{"Origin", origin}, preflight...), 405, nil},
		{"off, own page", nil, "POST", "/echo", []string{"Origin", "OWN"}, 200, nil},
		{"off, own page behind a proxy", nil, "POST", "/echo", []string{"Origin", origin, "Sec-Fetch-Site", "same-origin"}, 200, nil},
		{"off, no page", nil, "POST", "/echo", nil, 200, nil},
		{"listed", []Option{Origins("https://App.example", "http://b.example:81")}, "POST", "/echo", []string{"Origin", origin}, 200,
			map[string]string{"Allow-Origin": origin, "Expose-Headers": "Arpc-Meta-A, Arpc-Meta-B-Bin"}},
		{"listed, by port", []Option{Origins(origin, "http://b.example:81")}, "POST", "/echo", []string{"Origin", "http://b.example:81"}, 200,
			map[string]string{"Allow-Origin": "http://b.example:81", "Expose-Headers": "Arpc-Meta-A, Arpc-Meta-B-Bin"}},
		{"listed, error", []Option{Origins(origin)}, "POST", "/unknown", []string{"Origin", origin}, 404,
			map[string]string{"Allow-Origin": origin}},
		{"listed, preflight", []Option{Origins(origin)}, "OPTIONS", "/echo", append([]string{"Origin", origin}, preflight...), 204,
			map[string]string{"Allow-Origin": origin, "Allow-Methods": "POST", "Allow-Headers": allowHeaders, "Max-Age": "600"}},
		{"listed, preflight of GET", []Option{Origins(origin), GET("/get")}, "OPTIONS", "/get",
			[]string{"Origin", origin, "Access-Control-Request-Method", "GET"}, 204,
			map[string]string{"Allow-Origin": origin, "Allow-Methods": "GET, POST", "Max-Age": "600"}},
		{"listed, other page", []Option{Origins(origin)}, "POST", "/echo", []string{"Origin", "https://evil.example"}, 403, nil},
		{"listed, similar page", []Option{Origins(origin)}, "POST", "/echo", []string{"Origin", "http://app.example"}, 403, nil},
		{"listed, opaque page", []Option{Origins(origin)}, "POST", "/echo", []string{"Origin", "null"}, 403, nil},
		{"listed, other preflight", []Option{Origins(origin)}, "OPTIONS", "/echo",
			append([]string{"Origin", "https://evil.example"}, preflight...), 403, nil},
		{"listed, no page", []Option{Origins(origin)}, "POST", "/echo", nil, 200, nil},
		{"listed, not allowed", []Option{Origins(origin)}, "PUT", "/echo", []string{"Origin", origin}, 405,
			map[string]string{"Allow-Origin": origin}},
		{"any", []Option{AnyOrigin()}, "POST", "/echo", []string{"Origin", origin, "Sec-Fetch-Site", "cross-site"}, 200,
			map[string]string{"Allow-Origin": "*", "Expose-Headers": "Arpc-Meta-A, Arpc-Meta-B-Bin"}},
		{"any, opaque page", []Option{AnyOrigin()}, "POST", "/echo", []string{"Origin", "null"}, 200,
			map[string]string{"Allow-Origin": "*", "Expose-Headers": "Arpc-Meta-A, Arpc-Meta-B-Bin"}},
		{"any, preflight", []Option{AnyOrigin()}, "OPTIONS", "/echo", append([]string{"Origin", origin}, preflight...), 204,
			map[string]string{"Allow-Origin": "*", "Allow-Methods": "POST", "Allow-Headers": allowHeaders, "Max-Age": "600"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, c.opts...)
			called := false
			h := func(ctx *arpc.Context) {
				called = true
				ctx.SetMetadata("a", "1")
				ctx.SetMetadata("b", "\xff")
				echo(ctx)
			}
			f.handle("/echo", h)
			f.handle("/get", h)
			headers := c.headers
			if len(headers) == 2 && headers[1] == "OWN" {
				headers = []string{"Origin", f.URL}
			}
			a := f.do(t, c.method, c.path, "", headers...)
			if a.status != c.status || called != (c.status == 200) {
				t.Errorf("%d %s, called: %v", a.status, a.body, called)
			}
			got := map[string]string{}
			for name, v := range a.header {
				if name, ok := strings.CutPrefix(name, "Access-Control-"); ok {
					got[name] = strings.Join(v, "|")
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("%v", got)
			}
			if vary := strings.Contains(strings.Join(a.header["Vary"], ","), "Origin"); vary != strings.HasPrefix(c.name, "listed") {
				t.Errorf("Vary: %v", a.header["Vary"])
			}
			if a.status == 405 && c.opts != nil && a.header.Get("Allow") != "POST, OPTIONS" {
				t.Errorf("Allow: %v", a.header["Allow"])
			}
		})
	}
	for _, bad := range []string{"app.example", "https://app.example/", "https://app.example/x", "https://u@app.example", "*", "", "https://"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q is taken for an origin", bad)
				}
			}()
			Origins(bad)
		}()
	}
}

func TestCredentials(t *testing.T) {
	refused := errors.New("no token today")
	for _, c := range []struct {
		name        string
		credentials func(context.Context) ([]byte, error)
		status      int
		code        string
	}{
		{"right", func(context.Context) ([]byte, error) { return []byte("secret"), nil }, 200, ""},
		{"wrong", func(context.Context) ([]byte, error) { return []byte("guess"), nil }, 503, "unavailable"},
		{"failing", func(context.Context) ([]byte, error) { return nil, refused }, 503, "unavailable"},
		{"none", nil, 401, "unauthenticated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, Credentials(c.credentials))
			f.handle("/who", func(ctx *arpc.Context) { ctx.Write(ctx.Peer().Principal) })
			f.arpc.Handler.HandleAuth(func(_ *arpc.Context, b []byte) (any, error) {
				if string(b) != "secret" {
					return nil, &arpc.Error{Code: arpc.CodeUnauthenticated, Message: "wrong"}
				}
				return "the gateway", nil
			})
			a := f.post(t, "/who", "")
			if c.status == 200 {
				if a.status != 200 || a.body != `"the gateway"` {
					t.Errorf("%d %s", a.status, a.body)
				}
				if a := f.post(t, "/arpc.auth", `"guess"`); a.status != 404 {
					t.Errorf("users can authenticate: %d %s", a.status, a.body)
				}
			} else if got := a.failure(t); a.status != c.status || got.Code != c.code {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}

func TestCoders(t *testing.T) {
	f := start(t, Coders(gzip.New(64)))
	f.arpc.Handler.UseCoder(gzip.New(64))
	f.handle("/echo", echo)
	body := `"` + strings.Repeat("x", 100<<10) + `"`
	if a := f.post(t, "/echo", body, "Arpc-Meta-K", strings.Repeat("v", 100)); a.status != 200 || a.body != body {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
}

// A handler that ends its connection ends its own request only.
func TestLostConnection(t *testing.T) {
	f := start(t, Connections(2))
	f.handle("/end", func(c *arpc.Context) { c.Client.Stop() })
	f.handle("/echo", echo)
	for range 3 {
		if a := f.post(t, "/end", ""); a.status != 503 || a.failure(t).Message != "the server is not available" {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := f.post(t, "/echo", "1"); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
}

// Who calls or notifies an HTTP client finds no handler.
func TestCallBack(t *testing.T) {
	f := start(t)
	f.handle("/back", func(c *arpc.Context) {
		err := c.Client.CallWith(c, "/back", nil, nil)
		c.Write(fmt.Sprint(errors.Is(err, arpc.ErrMethodNotFound), c.Client.Notify("/back", nil, arpc.TimeZero)))
	})
	if a := f.post(t, "/back", ""); a.status != 200 || a.body != `"true <nil>"` {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// A server that takes no more connections makes the gateway do with those that it has.
func TestServersConnectionLimit(t *testing.T) {
	s := arpc.NewServer(arpc.NewHandler(), arpc.Limits{Connections: 1})
	g := New(s)
	h := httptest.NewServer(g)
	f := &fixture{Server: h, gateway: g, arpc: s}
	defer s.Stop()
	defer g.Close()
	defer h.Close()
	running, release := make(chan struct{}, 2), make(chan struct{})
	f.handle("/wait", func(c *arpc.Context) {
		running <- struct{}{}
		<-release
		c.Write(nil)
	}, true)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if a, err := f.try(t.Context(), "POST", "/wait", nil); err != nil || a.status != 200 {
				t.Errorf("%v %v", a, err)
			}
		})
		recv(t, running, "handler") // so that the second finds a connection
	}
	close(release)
	wg.Wait()
}

func TestShutdown(t *testing.T) {
	f := start(t)
	running, release := make(chan struct{}), make(chan struct{})
	f.handle("/wait", func(c *arpc.Context) {
		close(running)
		<-release
		c.Write("finished")
	})
	f.handle("/echo", echo)
	f.post(t, "/echo", "") // a connection that is idle then
	result := make(chan answer, 1)
	go func() {
		a, err := f.try(t.Context(), "POST", "/wait", nil)
		if err != nil {
			t.Error(err)
		}
		result <- a
	}()
	recv(t, running, "handler")
	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		down <- f.arpc.Shutdown(ctx)
	}()
	<-f.gateway.served // the server accepts nothing more
	if a := f.post(t, "/echo", ""); a.status != 503 || a.failure(t).Code != "unavailable" {
		t.Errorf("%d %s", a.status, a.body)
	}
	close(release)
	if a := recv(t, result, "answer"); a.status != 200 || a.body != `"finished"` {
		t.Errorf("%d %s", a.status, a.body)
	}
	if err := recv(t, down, "end of Shutdown"); err != nil {
		t.Error(err)
	}
	if a := f.post(t, "/echo", ""); a.status != 503 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// Without Close nothing is left when the server has stopped.
func TestStopWithoutClose(t *testing.T) {
	s := arpc.NewServer(arpc.NewHandler())
	g := New(s)
	running := make(chan struct{})
	s.Handler.Handle("/wait", func(c *arpc.Context) {
		close(running)
		<-c.Done()
	})
	result := make(chan int, 1)
	go func() {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest("POST", "/wait", nil))
		result <- w.Code
	}()
	recv(t, running, "handler")
	must(t, s.Stop())
	if code := recv(t, result, "answer"); code != 503 {
		t.Errorf("%d", code)
	}
}

func TestClose(t *testing.T) {
	f := start(t)
	running := make(chan struct{})
	f.handle("/wait", func(c *arpc.Context) {
		close(running)
		<-c.Done()
	})
	f.handle("/echo", echo)
	result := make(chan answer, 1)
	go func() {
		a, err := f.try(t.Context(), "POST", "/wait", nil)
		if err != nil {
			t.Error(err)
		}
		result <- a
	}()
	recv(t, running, "handler")
	must(t, f.gateway.Close())
	if a := recv(t, result, "answer"); a.status != 503 || a.failure(t).Message != "the server is not available" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := f.post(t, "/echo", ""); a.status != 503 {
		t.Errorf("%d %s", a.status, a.body)
	}
	must(t, f.gateway.Close())
	// The server goes on for others.
	ln, dial := arpc.Pipe()
	go f.arpc.Serve(ln)
	c, err := arpc.NewClient(dial)
	must(t, err)
	defer c.Stop()
	var s string
	if err := c.Call("/echo", "x", &s, patience); err != nil || s != "x" {
		t.Error(s, err)
	}
	// One that was never used.
	g := New(f.arpc, nil)
	must(t, g.Close())
	w := httptest.NewRecorder()
	if g.ServeHTTP(w, httptest.NewRequest("POST", "/echo", nil)); w.Code != 503 {
		t.Errorf("%d", w.Code)
	}
}

// A body that ends too early is no call.
func TestBrokenBody(t *testing.T) {
	f := start(t)
	called := make(chan struct{}, 1)
	f.handle("/echo", func(c *arpc.Context) { called <- struct{}{} })
	nc, err := net.Dial("tcp", f.Listener.Addr().String())
	must(t, err)
	defer nc.Close()
	_, err = io.WriteString(nc, "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\n12")
	must(t, err)
	must(t, nc.(*net.TCPConn).CloseWrite())
	must(t, nc.SetDeadline(time.Now().Add(patience)))
	b, _ := io.ReadAll(nc)
	if len(b) > 0 && !bytes.HasPrefix(b, []byte("HTTP/1.1 400 ")) {
		t.Errorf("%s", b)
	}
	if len(called) != 0 {
		t.Error("the handler ran")
	}
}

// blank is a ResponseWriter that keeps nothing.
type blank http.Header

func (b blank) Header() http.Header         { return http.Header(b) }
func (b blank) Write(p []byte) (int, error) { return len(p), nil }
func (b blank) WriteHeader(status int) {
	if status != 200 {
		panic(status)
	}
}

type nopBody struct{ *strings.Reader }

func (nopBody) Close() error { return nil }

// BenchmarkCall is the gateway's part of a request, without that of net/http.
func BenchmarkCall(b *testing.B) {
	s := arpc.NewServer(arpc.NewHandler())
	g := New(s)
	defer s.Stop()
	defer g.Close()
	s.Handler.Handle("/echo", echo)
	const body = `{"name":"x"}`
	r := httptest.NewRequest("POST", "/echo", nil)
	r.Header.Set("Content-Type", jsonType)
	r.ContentLength = int64(len(body))
	reader := nopBody{strings.NewReader(body)}
	r.Body = reader
	w := blank{}
	b.ReportAllocs()
	for b.Loop() {
		reader.Reset(body)
		g.ServeHTTP(w, r)
	}
}
