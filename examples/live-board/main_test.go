package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/websocket"
	"github.com/arpc-go/arpc/internal/leak"
)

// patience bounds every wait for something that must happen.
const patience = time.Minute

func TestMain(m *testing.M) { leak.Main(m) }

// serve runs a live-board without its flags.
func serve(t *testing.T, o storeOptions) (*httptest.Server, *store) {
	t.Helper()
	s, err := openStore(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	board, err := newBoard(s.engine)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(newMux(board))
	t.Cleanup(func() {
		web.Close()
		board.Stop()
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return web, s
}

func connect(t *testing.T, web *httptest.Server) *pubsub.Client {
	t.Helper()
	c, err := pubsub.NewClient(websocket.Dialer("ws" + strings.TrimPrefix(web.URL, "http") + "/arpc"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

// watch subscribes as a page does.
func watch(t *testing.T, c *pubsub.Client) <-chan Note {
	t.Helper()
	notes := make(chan Note, 1000)
	_, err := c.SubscribeWith(t.Context(), topic, func(m *pubsub.Message) {
		var n Note
		if err := json.Unmarshal(m.Data, &n); err != nil {
			t.Errorf("%s: %v", m.Data, err)
		}
		notes <- n
	}, pubsub.Last(1000), pubsub.WatchPresence(), pubsub.Present([]byte(`{"name":"Go"}`)))
	if err != nil {
		t.Fatal(err)
	}
	return notes
}

func post(t *testing.T, web *httptest.Server, query, text string) (int, string) {
	t.Helper()
	r, err := http.Post(web.URL+"/notes"+query, "text/plain", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func next(t *testing.T, notes <-chan Note, want Note) {
	t.Helper()
	select {
	case got := <-notes:
		if got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("%+v does not come", want)
	}
}

func TestBoard(t *testing.T) {
	web, _ := serve(t, storeOptions{})
	c := connect(t, web)
	if code, body := post(t, web, "", " first\n"); code != http.StatusOK || !strings.Contains(body, `"offset":1`) {
		t.Fatal(code, body)
	}
	notes := watch(t, c)
	next(t, notes, Note{"first", "curl"})
	if _, err := c.PublishWith(t.Context(), topic, Note{"second", "Go"}, pubsub.WithID("1")); err != nil {
		t.Fatal(err)
	}
	next(t, notes, Note{"second", "Go"})
	post(t, web, "?by=Ann", "third ä")
	next(t, notes, Note{"third ä", "Ann"})
	members, err := c.Members(t.Context(), topic)
	if err != nil || len(members) != 1 || string(members[0].Info) != `{"name":"Go"}` {
		t.Errorf("%v, %v", members, err)
	}
}

func TestRefusals(t *testing.T) {
	web, _ := serve(t, storeOptions{})
	c := connect(t, web)
	for what, err := range map[string]error{
		"another topic": func() error { _, err := c.PublishWith(t.Context(), "other", "x"); return err }(),
		"a pattern":     func() error { _, err := c.SubscribeWith(t.Context(), ">", func(*pubsub.Message) {}); return err }(),
	} {
		if arpc.CodeOf(err) != arpc.CodePermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := c.PublishWith(t.Context(), topic, strings.Repeat("x", maxMessage+1)); arpc.CodeOf(err) != arpc.CodeInvalidArgument {
		t.Errorf("a long note: %v", err)
	}
	for _, x := range []struct {
		query, text string
		want        int
	}{
		{"", " ", http.StatusBadRequest},
		{"", "\xff", http.StatusBadRequest},
		{"?by=" + strings.Repeat("x", 33), "text", http.StatusBadRequest},
		{"", strings.Repeat("x", maxText+1), http.StatusBadRequest},
		{"", strings.Repeat("x", maxMessage), http.StatusRequestEntityTooLarge},
	} {
		if code, body := post(t, web, x.query, x.text); code != x.want {
			t.Errorf("%.10q, %.10q: %d %s", x.query, x.text, code, body)
		}
	}
	req, err := http.NewRequest(http.MethodPost, web.URL+"/notes", strings.NewReader("from elsewhere"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "http://elsewhere.example")
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusForbidden {
		t.Errorf("a page from elsewhere gets %s", r.Status)
	}
}

func TestPage(t *testing.T) {
	web, _ := serve(t, storeOptions{})
	for path, want := range map[string]string{
		"/": "text/html", "/app.js": "javascript", "/style.css": "text/css", "/icon.svg": "svg", "/arpc.mjs": "javascript", "/pubsub.mjs": "javascript",
	} {
		r, err := http.Get(web.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK || len(body) == 0 || !strings.Contains(r.Header.Get("Content-Type"), want) {
			t.Errorf("%s: %v, %s, %s, %d bytes", path, err, r.Status, r.Header.Get("Content-Type"), len(body))
		}
	}
}

// TestTwoServers shares a board between two servers by the flags of the program.
func TestTwoServers(t *testing.T) {
	a, s := serve(t, storeOptions{nats: "embedded", natsAddr: "127.0.0.1:0"})
	b, _ := serve(t, storeOptions{nats: s.url})
	notes := watch(t, connect(t, b))
	for _, text := range []string{"one", "two"} {
		post(t, a, "?by=a", text)
		next(t, notes, Note{text, "a"})
	}
	later := watch(t, connect(t, a)) // the history is shared as well
	next(t, later, Note{"one", "a"})
	next(t, later, Note{"two", "a"})
}

func TestNoNATS(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := openStore(ctx, storeOptions{nats: "nats://127.0.0.1:1"}); err == nil {
		t.Error("there is a nats-server")
	}
	if _, err := openStore(ctx, storeOptions{nats: "embedded", natsAddr: "nowhere", data: t.TempDir()}); err == nil {
		t.Error("there is such an address")
	}
}

// TestRun starts and stops the whole program.
func TestRun(t *testing.T) {
	data := t.TempDir()
	for range 2 { // the second one finds the files of the first
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		in, out := io.Pipe()
		lines := bufio.NewScanner(in)
		done := make(chan error, 1)
		go func() {
			done <- run(ctx, out, options{"127.0.0.1:0", storeOptions{nats: "embedded", natsAddr: "127.0.0.1:0", data: data}})
			out.Close()
		}()
		for _, want := range []string{"live-board is at http://127.0.0.1:", "for another one that shows the same board: -nats nats://127.0.0.1:"} {
			if !lines.Scan() || !strings.HasPrefix(lines.Text(), want) {
				t.Fatalf("%q, want %q; %v", lines.Text(), want, lines.Err())
			}
		}
		cancel() // Ctrl-C
		if !lines.Scan() || lines.Text() != "stopping" {
			t.Errorf("%q", lines.Text())
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := run(t.Context(), io.Discard, options{addr: "127.0.0.1:-1"}); err == nil {
		t.Error("there is no such address")
	}
}
