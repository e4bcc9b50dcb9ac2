package main

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/examples/typed-web/thermostat"
	"github.com/arpc-go/arpc/extension/websocket"
)

// resident is a Go program in the place of a page.
type resident struct {
	thermostat.HouseClient
	ctx       context.Context
	questions chan string
	answer    func(ctx *arpc.Context) (*thermostat.Answer, error)
}

func (r *resident) Confirm(ctx *arpc.Context, q *thermostat.Question) (*thermostat.Answer, error) {
	r.questions <- q.Text
	return r.answer(ctx)
}

func say(yes bool) func(*arpc.Context) (*thermostat.Answer, error) {
	return func(*arpc.Context) (*thermostat.Answer, error) { return &thermostat.Answer{Yes: yes}, nil }
}

// newTestHouse returns a house in which no time passes by itself, and a function that ends its life.
func newTestHouse(t *testing.T) (*house, *httptest.Server, context.CancelFunc) {
	t.Helper()
	life, stop := context.WithCancel(context.Background())
	h := newHouse(life)
	web := httptest.NewServer(newMux(h.server))
	t.Cleanup(func() {
		stop()
		web.Close()
		if err := h.server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return h, web, stop
}

func newResident(t *testing.T, web *httptest.Server) *resident {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	r := &resident{ctx: ctx, questions: make(chan string, 10), answer: say(true)}
	h := arpc.NewHandler()
	thermostat.RegisterResident(h, r)
	client, err := arpc.NewClient(websocket.Dialer("ws"+strings.TrimPrefix(web.URL, "http")+"/arpc"), h, arpc.WithCodec(codec.Protobuf{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		client.Stop()
	})
	r.HouseClient = thermostat.NewHouseClient(client)
	return r
}

func (r *resident) set(room string, target float64) (*thermostat.Room, error) {
	return r.SetTarget(r.ctx, &thermostat.SetTargetRequest{Room: room, Target: target})
}

func TestSetTarget(t *testing.T) {
	_, web, _ := newTestHouse(t)
	r := newResident(t, web)
	room, err := r.set("Kitchen", 22.5)
	if err != nil || room.Name != "Kitchen" || room.Target != 22.5 || !room.Heating || len(r.questions) > 0 {
		t.Errorf("%v, %v, %d questions", room, err, len(r.questions))
	}

	// What is unusual is asked back.
	room, err = r.set("Kitchen", 27.5)
	if err != nil || room.Target != 27.5 {
		t.Errorf("%v, %v", room, err)
	}
	if q := <-r.questions; !strings.HasPrefix(q, "27.5 °C in the Kitchen?") {
		t.Errorf("the question is %q", q)
	}
	r.answer = say(false)
	if room, err = r.set("Kitchen", 28); arpc.CodeOf(err) != arpc.CodeAborted {
		t.Errorf("%v, %v", room, err)
	}
	r.answer = func(*arpc.Context) (*thermostat.Answer, error) { return nil, arpc.CodeUnauthenticated }
	if room, err = r.set("Kitchen", 28); arpc.CodeOf(err) != arpc.CodeUnauthenticated {
		t.Errorf("%v, %v", room, err)
	}

	for _, target := range []float64{4.9, 30.1, math.NaN(), math.Inf(1)} {
		if room, err = r.set("Kitchen", target); arpc.CodeOf(err) != arpc.CodeOutOfRange {
			t.Errorf("%v degrees: %v, %v", target, room, err)
		}
	}
	if room, err = r.set("Cellar", 20); arpc.CodeOf(err) != arpc.CodeNotFound {
		t.Errorf("%v, %v", room, err)
	}
}

// TestQuestionEnds: the question is taken back when its call is given up, and when the server stops.
func TestQuestionEnds(t *testing.T) {
	_, web, stop := newTestHouse(t)
	r := newResident(t, web)
	ended := make(chan error, 2)
	r.answer = func(ctx *arpc.Context) (*thermostat.Answer, error) {
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(r.ctx)
	failed := make(chan error, 1)
	set := func() {
		_, err := r.SetTarget(ctx, &thermostat.SetTargetRequest{Room: "Kitchen", Target: 29})
		failed <- err
	}
	go set()
	<-r.questions
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("the call: %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the question: %v", err)
	}

	ctx = r.ctx
	go set()
	<-r.questions
	stop()
	if err := <-failed; arpc.CodeOf(err) != arpc.CodeUnavailable {
		t.Errorf("the call when the server stops: %v", err)
	}
	<-ended
}

func TestWatch(t *testing.T) {
	h, web, stop := newTestHouse(t)
	r, other := newResident(t, web), newResident(t, web)
	s, err := r.Watch(r.ctx, &thermostat.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	recv := func() *thermostat.Room {
		t.Helper()
		room, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return room
	}
	var names []string
	for range 3 {
		names = append(names, recv().Name)
	}
	if !slices.Equal(names, []string{"Kitchen", "Living room", "Bedroom"}) {
		t.Fatalf("the rooms are %v", names)
	}
	// What somebody else does.
	if _, err := other.set("Bedroom", 20); err != nil {
		t.Fatal(err)
	}
	room := recv()
	if room.Name != "Bedroom" || room.Target != 20 || !room.Heating {
		t.Errorf("the bedroom is %v", room)
	}
	before := room.Temperature
	h.step()
	for range 3 {
		if room := recv(); room.Name == "Bedroom" && room.Temperature <= before {
			t.Errorf("the heated bedroom goes from %v to %v", before, room.Temperature)
		}
	}
	stop()
	for err == nil {
		_, err = s.Recv()
	}
	if arpc.CodeOf(err) != arpc.CodeUnavailable {
		t.Errorf("the stream ends with %v", err)
	}
}

// TestThermostat: after a while every room is as warm as it shall be.
func TestThermostat(t *testing.T) {
	h := newHouse(t.Context())
	for range 2000 {
		h.step()
	}
	rooms, _, _ := h.since(-1)
	for _, r := range rooms {
		if math.Abs(r.Temperature-r.Target) > 0.4 {
			t.Errorf("%v", r)
		}
	}
}

// TestRun: it stops in order while a page watches and is asked.
func TestRun(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ran := make(chan error, 1)
	listening := make(chan string, 1)
	go func() { ran <- run(ctx, "127.0.0.1:0", func(addr string) { listening <- addr }) }()
	web := &httptest.Server{URL: "http://" + <-listening}
	r := newResident(t, web)
	r.answer = func(ctx *arpc.Context) (*thermostat.Answer, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s, err := r.Watch(r.ctx, &thermostat.WatchRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := r.set("Kitchen", 29)
		failed <- err
	}()
	<-r.questions
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if err := <-failed; arpc.CodeOf(err) != arpc.CodeUnavailable {
		t.Errorf("the call: %v", err)
	}
}

func TestPage(t *testing.T) {
	_, web, _ := newTestHouse(t)
	for path, want := range map[string]string{"/": "text/html", "/app.js": "javascript", "/style.css": "text/css", "/icon.svg": "svg", "/arpc.mjs": "javascript"} {
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
