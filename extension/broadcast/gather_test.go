package broadcast_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/broadcast"
)

type (
	question struct{ N int }
	reply    struct{ Who, N int }
)

// group connects members of a room, whose handlers of "/ask" are what f makes for each.
func group(t *testing.T, n *network, members int, f func(who int) arpc.HandlerFunc) (room broadcast.Room, accepted []*arpc.Client) {
	hub := broadcast.NewHub()
	room = hub.Room("r")
	for i := range members {
		h := arpc.NewHandler()
		h.Handle("/ask", f(i), true)
		_, c := n.connect(h)
		must(t, room.Join(c))
		accepted = append(accepted, c)
	}
	return room, accepted
}

func answer(who int) arpc.HandlerFunc {
	return func(ctx *arpc.Context) {
		var q question
		if err := ctx.Bind(&q); err != nil {
			ctx.Error(err)
			return
		}
		ctx.Write(&reply{who, q.N})
	}
}

func TestGatherAll(t *testing.T) {
	onTransports(t, func(t *testing.T, n *network) {
		const members = 10
		room, accepted := group(t, n, members, func(who int) arpc.HandlerFunc {
			if who == 3 {
				return func(ctx *arpc.Context) { ctx.Error(errors.New("not I")) }
			}
			return answer(who)
		})
		for _, parallel := range []int{0, 1, 3, 100} { // 0 is 1
			answers, err := broadcast.Gather[reply](patient(t), room, "/ask", &question{7},
				broadcast.Concurrency(parallel), broadcast.Except(accepted[9]), nil)
			must(t, err)
			if len(answers) != members-1 {
				t.Fatalf("%d answers", len(answers))
			}
			for _, a := range answers {
				who := -1
				for i, c := range accepted {
					if c == a.Client {
						who = i
					}
				}
				if who == 3 {
					var e *arpc.Error
					if !errors.As(a.Err, &e) || !e.Remote || e.Message != "not I" || (a.Value != reply{}) {
						t.Errorf("the one that fails: %+v, %v", a.Value, a.Err)
					}
				} else if a.Err != nil || (a.Value != reply{who, 7}) {
					t.Errorf("member %d: %+v, %v", who, a.Value, a.Err)
				}
			}
		}
		// Raw answers.
		texts, err := broadcast.Gather[string](patient(t), room, "/ask", &question{1}, broadcast.Except(accepted[1:]...))
		if err != nil || len(texts) != 1 || texts[0].Value != `{"Who":0,"N":1}` {
			t.Errorf("%+v, %v", texts, err)
		}
	})
}

// n of m: the others are cancelled, and their handlers told why.
func TestGatherNeed(t *testing.T) {
	n := serve(t, false)
	causes := make(chan error, 8)
	var waiting sync.WaitGroup // so that the calls that are cancelled have arrived
	waiting.Add(3)
	room, _ := group(t, n, 5, func(who int) arpc.HandlerFunc {
		if who < 2 {
			return func(ctx *arpc.Context) {
				waiting.Wait()
				answer(who)(ctx)
			}
		}
		return func(ctx *arpc.Context) {
			waiting.Done()
			<-ctx.Done()
			causes <- context.Cause(ctx)
		}
	})
	answers, err := broadcast.Gather[reply](patient(t), room, "/ask", &question{1}, broadcast.Need(2))
	must(t, err)
	if len(answers) != 2 || answers[0].Err != nil || answers[1].Err != nil || answers[0].Value.Who+answers[1].Value.Who != 1 {
		t.Fatalf("%+v", answers)
	}
	for range 3 {
		cause := recv(t, causes, "cancelled handler")
		if !errors.Is(cause, context.Canceled) || !strings.Contains(cause.Error(), "not needed") {
			t.Errorf("cancelled by %v", cause)
		}
	}
}

func TestGatherTooFew(t *testing.T) {
	n := serve(t, false)
	hold := make(chan struct{})
	defer close(hold)
	room, _ := group(t, n, 4, func(who int) arpc.HandlerFunc {
		switch who {
		case 0:
			return answer(0)
		case 1:
			return func(*arpc.Context) { <-hold }
		}
		return func(ctx *arpc.Context) { ctx.Error(arpc.CodeNotFound) }
	})
	// Two fail at once, so three cannot answer any more: nobody waits for the one that does not.
	answers, err := broadcast.Gather[reply](patient(t), room, "/ask", &question{1}, broadcast.Need(3))
	wantCode(t, "too few", err, arpc.CodeUnavailable)
	failed := 0
	for _, a := range answers {
		if a.Err != nil {
			wantCode(t, "member", a.Err, arpc.CodeNotFound)
			failed++
		}
	}
	if failed != 2 {
		t.Errorf("%+v", answers)
	}
	answers, err = broadcast.Gather[reply](patient(t), room, "/ask", nil, broadcast.Need(5))
	if arpc.CodeOf(err) != arpc.CodeUnavailable || answers != nil {
		t.Errorf("5 of 4: %v, %v", answers, err)
	}
}

// At the deadline there is what has come, and who has not answered.
func TestGatherDeadline(t *testing.T) {
	onTransports(t, func(t *testing.T, n *network) {
		hold := make(chan struct{})
		defer close(hold)
		room, accepted := group(t, n, 6, func(who int) arpc.HandlerFunc {
			if who < 2 {
				return answer(who)
			}
			return func(*arpc.Context) { <-hold }
		})
		for _, parallel := range []int{3, 64} { // with 3, some are not called at all
			for _, need := range []int{0, 5} {
				ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
				answers, err := broadcast.Gather[reply](ctx, room, "/ask", &question{1}, broadcast.Concurrency(parallel), broadcast.Need(need))
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("error %v", err)
				}
				if len(answers) != 6 {
					t.Fatalf("%d answers of 6", len(answers))
				}
				seen := map[*arpc.Client]error{}
				for _, a := range answers {
					seen[a.Client] = a.Err
				}
				for i, c := range accepted {
					if err, ok := seen[c]; !ok || i >= 2 && !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("member %d: %v %v", i, ok, err)
					}
				}
				if parallel == 64 && (seen[accepted[0]] != nil || seen[accepted[1]] != nil) {
					t.Errorf("who answers: %v, %v", seen[accepted[0]], seen[accepted[1]])
				}
			}
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(errors.New("changed my mind"))
		answers, err := broadcast.Gather[reply](ctx, room, "/ask", nil)
		if !errors.Is(err, context.Canceled) || len(answers) != 6 || !strings.Contains(err.Error(), "changed my mind") {
			t.Errorf("cancelled: %d answers, %v", len(answers), err)
		}
	})
}

func TestGatherBadInput(t *testing.T) {
	n := serve(t, false)
	room, _ := group(t, n, 2, answer)
	for _, method := range []string{"", strings.Repeat("x", 128)} {
		if _, err := broadcast.Gather[reply](patient(t), room, method, nil); !errors.Is(err, arpc.ErrInvalidMethod) {
			t.Errorf("method %q: %v", method, err)
		}
	}
	answers, err := broadcast.Gather[reply](patient(t), room, "/ask", func() {})
	if err != nil || len(answers) != 2 || answers[0].Err == nil || answers[1].Err == nil {
		t.Errorf("a function was sent: %+v, %v", answers, err)
	}
	answers, err = broadcast.Gather[reply](patient(t), room, "/unknown", nil)
	must(t, err)
	for _, a := range answers {
		wantCode(t, "unknown method", a.Err, arpc.CodeUnimplemented)
	}
	ints, err := broadcast.Gather[int](patient(t), room, "/ask", &question{1})
	if err != nil || len(ints) != 2 || ints[0].Err == nil || ints[0].Value != 0 {
		t.Errorf("a struct is an int: %+v, %v", ints, err)
	}
	none, err := broadcast.Gather[reply](patient(t), broadcast.NewHub().All(), "/ask", nil)
	if err != nil || len(none) != 0 {
		t.Errorf("nobody: %v, %v", none, err)
	}
}

func TestGatherConcurrency(t *testing.T) {
	n := serve(t, false)
	var now, most atomic.Int32
	room, _ := group(t, n, 12, func(who int) arpc.HandlerFunc {
		return func(ctx *arpc.Context) {
			k := now.Add(1)
			for {
				m := most.Load()
				if k <= m || most.CompareAndSwap(m, k) {
					break
				}
			}
			answer(who)(ctx)
			now.Add(-1)
		}
	})
	for range 20 {
		answers, err := broadcast.Gather[reply](patient(t), room, "/ask", &question{1}, broadcast.Concurrency(2))
		if err != nil || len(answers) != 12 {
			t.Fatalf("%d, %v", len(answers), err)
		}
	}
	// A handler that has answered may still be counted when the next is called.
	if m := most.Load(); m > 4 {
		t.Errorf("%d at a time", m)
	}
}

// An ordered handler gathers from a room that its caller is in, which calls back meanwhile.
func TestGatherFromHandler(t *testing.T) {
	onTransports(t, func(t *testing.T, n *network) {
		hub := broadcast.NewHub()
		// Ordered, it would wait behind the gathering handler of the same connection, which waits for the others.
		n.server.Handler.Handle("/back", func(ctx *arpc.Context) { ctx.Write("back") }, true)
		n.server.Handler.Handle("/poll", func(ctx *arpc.Context) {
			answers, err := broadcast.Gather[string](ctx, hub.Room("r"), "/ask", nil)
			if err != nil {
				ctx.Error(err)
				return
			}
			for _, a := range answers {
				if a.Err != nil || a.Value != "back" {
					ctx.Error(fmt.Sprint(a.Value, a.Err))
					return
				}
			}
			ctx.Write(fmt.Sprint(len(answers)))
		})
		var clients []*arpc.Client
		for range 3 {
			h := arpc.NewHandler()
			h.Handle("/ask", func(ctx *arpc.Context) {
				var s string
				if err := ctx.Client.CallWith(ctx, "/back", nil, &s); err != nil {
					ctx.Error(err)
					return
				}
				ctx.Write(s)
			})
			c, a := n.connect(h)
			must(t, hub.Room("r").Join(a))
			clients = append(clients, c)
		}
		var wg sync.WaitGroup
		for _, c := range clients {
			wg.Go(func() {
				for range 10 {
					var s string
					if err := c.Call("/poll", nil, &s, patience); err != nil || s != "3" {
						t.Errorf("%q, %v", s, err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// A member that goes is one that fails.
func TestGatherFromWhoGoes(t *testing.T) {
	n := serve(t, false)
	hub := broadcast.NewHub()
	h := arpc.NewHandler()
	h.Handle("/ask", func(ctx *arpc.Context) { go ctx.Client.Stop(); <-ctx.Done() })
	_, c := n.connect(h)
	must(t, hub.Room("r").Join(c))
	answers, err := broadcast.Gather[string](patient(t), hub.Room("r"), "/ask", nil)
	must(t, err)
	if len(answers) != 1 {
		t.Fatalf("%+v", answers)
	}
	wantCode(t, "who goes", answers[0].Err, arpc.CodeUnavailable)
}

// The metadata of the context goes to all.
func TestGatherMetadata(t *testing.T) {
	n := serve(t, false)
	room, _ := group(t, n, 3, func(int) arpc.HandlerFunc {
		return func(ctx *arpc.Context) { ctx.Write(ctx.Metadata()["k"]) }
	})
	answers, err := broadcast.Gather[string](arpc.WithMetadata(patient(t), arpc.Metadata{"k": "v"}), room, "/ask", nil)
	must(t, err)
	for _, a := range answers {
		if a.Err != nil || a.Value != "v" {
			t.Errorf("%q, %v", a.Value, a.Err)
		}
	}
}
