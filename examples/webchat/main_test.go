package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/websocket"
)

// user is a Go program in the place of a page.
type user struct {
	t        *testing.T
	ctx      context.Context
	client   *arpc.Client
	asked    chan struct{}
	messages chan Message
	members  chan Members
	rooms    chan []string
}

func newServer(t *testing.T) *httptest.Server {
	t.Helper()
	server := newChat().server
	web := httptest.NewServer(newMux(server))
	t.Cleanup(func() {
		web.Close()
		server.Stop()
	})
	return web
}

func newUser(t *testing.T, web *httptest.Server, name string) *user {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	u := &user{t, ctx, nil, make(chan struct{}, 100), make(chan Message, 1000), make(chan Members, 1000), make(chan []string, 1000)}
	h := arpc.NewHandler()
	WhoAmI.Handle(h, func(*arpc.Context, *struct{}) (*WhoAmIResponse, error) {
		u.asked <- struct{}{}
		return &WhoAmIResponse{name}, nil
	})
	h.Handle(routeMessage, take(u.messages))
	h.Handle(routeMembers, take(u.members))
	h.Handle(routeRooms, take(u.rooms))
	client, err := arpc.NewClient(websocket.Dialer("ws"+strings.TrimPrefix(web.URL, "http")+"/arpc"), h)
	if err != nil {
		t.Fatal(err)
	}
	u.client = client
	t.Cleanup(func() {
		cancel()
		client.Stop()
	})
	return u
}

func take[T any](to chan<- T) arpc.HandlerFunc {
	return func(c *arpc.Context) {
		var v T
		if err := c.Bind(&v); err != nil {
			panic(err)
		}
		to <- v
	}
}

func recv[T any](u *user, from <-chan T) T {
	u.t.Helper()
	select {
	case v := <-from:
		return v
	case <-u.ctx.Done():
		u.t.Fatal("nothing came")
		panic("unreachable")
	}
}

func (u *user) join(room string) *JoinResponse {
	u.t.Helper()
	res, err := Join.Call(u.ctx, u.client, &JoinRequest{room})
	if err != nil {
		u.t.Fatal(err)
	}
	return res
}

func (u *user) say(text string) {
	u.t.Helper()
	if _, err := Say.Call(u.ctx, u.client, &SayRequest{text}); err != nil {
		u.t.Fatal(err)
	}
}

// sees waits until these are in the room.
func (u *user) sees(names ...string) {
	u.t.Helper()
	for !slices.Equal(recv(u, u.members).Names, names) {
	}
}

func TestChat(t *testing.T) {
	web := newServer(t)
	ann, bob := newUser(t, web, "Ann"), newUser(t, web, " \u202eBob\x00")
	if r := ann.join("tea"); r.You != "Ann" || r.Room != "tea" || len(r.History) != 0 || !slices.Equal(r.Members, []string{"Ann"}) {
		t.Errorf("Ann got %+v", r)
	}
	ann.say("is anybody here? <b>")
	first := recv(ann, ann.messages)
	if first.ID != 1 || first.From != "Ann" || first.Text != "is anybody here? <b>" || first.Room != "tea" || first.At == 0 {
		t.Errorf("Ann got %+v", first)
	}
	r := bob.join("tea")
	if r.You != "Bob" || !slices.Equal(r.Members, []string{"Ann", "Bob"}) || !slices.Equal(r.History, []Message{first}) {
		t.Errorf("Bob got %+v", r)
	}
	ann.sees("Ann", "Bob")
	bob.say("yes 🦊\nme")
	for _, u := range []*user{ann, bob} {
		if m := recv(u, u.messages); m.From != "Bob" || m.Text != "yes 🦊\nme" || m.ID != 2 {
			t.Errorf("got %+v", m)
		}
	}

	// Another room: Ann sees him leave, and does not get what is said there.
	bob.join("coffee")
	ann.sees("Ann")
	for !slices.Equal(recv(ann, ann.rooms), []string{"coffee", "tea"}) {
	}
	bob.say("alone")
	if m := recv(bob, bob.messages); m.Room != "coffee" || m.ID != 1 {
		t.Errorf("Bob got %+v", m)
	}
	ann.say("still here")
	if m := recv(ann, ann.messages); m.Text != "still here" {
		t.Errorf("Ann got %+v", m)
	}
	bob.join("tea")
	ann.sees("Ann", "Bob")

	// The end of a connection is seen too.
	bob.client.Stop()
	ann.sees("Ann")
	if len(ann.asked) != 1 || len(bob.asked) != 1 {
		t.Errorf("asked for their names %d and %d times", len(ann.asked), len(bob.asked))
	}
}

func TestSameName(t *testing.T) {
	web := newServer(t)
	for _, want := range []string{"Ann", "Ann 2", "Ann 3"} {
		if r := newUser(t, web, "Ann").join("tea"); r.You != want {
			t.Errorf("the name is %q, want %q", r.You, want)
		}
	}
}

func TestHistory(t *testing.T) {
	web := newServer(t)
	ann := newUser(t, web, "Ann")
	ann.join("tea")
	for i := range 60 {
		ann.say(fmt.Sprint(i))
	}
	h := newUser(t, web, "Bob").join("tea").History
	if len(h) != 50 || h[0].Text != "10" || h[0].ID != 11 || h[49].Text != "59" {
		t.Errorf("%d messages: %+v", len(h), h)
	}
}

func TestRefusals(t *testing.T) {
	web := newServer(t)
	join := func(u *user, room string) error { _, err := Join.Call(u.ctx, u.client, &JoinRequest{room}); return err }
	say := func(u *user, text string) error { _, err := Say.Call(u.ctx, u.client, &SayRequest{text}); return err }
	ann := newUser(t, web, strings.Repeat("ä", 32))
	for _, c := range []struct {
		what string
		err  error
		want arpc.Code
	}{
		{"say before join", say(ann, "x"), arpc.CodeFailedPrecondition},
		{"no room", join(ann, " \n\t"), arpc.CodeInvalidArgument},
		{"long room", join(ann, strings.Repeat("x", 33)), arpc.CodeInvalidArgument},
		{"join", join(ann, "tea"), 0},
		{"no text", say(ann, "\u200e "), arpc.CodeInvalidArgument},
		{"text", say(ann, strings.Repeat("ä", 2000)), 0},
		{"long text", say(ann, strings.Repeat("x", 2001)), arpc.CodeInvalidArgument},
		{"no name", join(newUser(t, web, ""), "tea"), arpc.CodeInvalidArgument},
		{"long name", join(newUser(t, web, strings.Repeat("x", 33)), "tea"), arpc.CodeInvalidArgument},
	} {
		if code := arpc.CodeOf(c.err); c.want == 0 && c.err != nil || c.want != 0 && code != c.want {
			t.Errorf("%s: %v", c.what, c.err)
		}
	}
}

func TestRooms(t *testing.T) {
	web := newServer(t)
	ann := newUser(t, web, "Ann")
	for i := range maxRooms + 10 {
		ann.join(fmt.Sprint("room ", i)) // each leaves an empty one
	}
	if n := len(ann.join("room 109").Rooms); n != maxRooms {
		t.Errorf("%d rooms", n)
	}
}

func TestPage(t *testing.T) {
	web := newServer(t)
	for path, want := range map[string]string{"/": "text/html", "/app.js": "javascript", "/style.css": "text/css", "/arpc.mjs": "javascript"} {
		res, err := http.Get(web.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || len(body) == 0 || !strings.Contains(res.Header.Get("Content-Type"), want) {
			t.Errorf("%s: %v, %s, %s, %d bytes", path, err, res.Status, res.Header.Get("Content-Type"), len(body))
		}
	}
	req, err := http.NewRequest(http.MethodGet, web.URL+"/arpc", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "http://elsewhere.example")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("a page from elsewhere gets %s", res.Status)
	}
}
