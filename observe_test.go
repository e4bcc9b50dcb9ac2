package arpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What an Observer is told, what Outcome says, and what Stats count.

// event is one thing that an observer was told.
type event struct {
	what string // "call", "handle" or "conn": their ends
	c    *Client
	info CallInfo
	err  error
}

// spanKey finds the span that a recorder has put into a context.
type spanKey struct{ r *recorder }

// span is a call or a handler that a recorder has seen the start of.
type span struct {
	info   CallInfo
	client *Client
	parent *span
	ends   atomic.Int32
}

// recorder is an Observer that checks what it is told.
type recorder struct {
	t      testing.TB
	events chan event
	open   atomic.Int32 // spans that have not ended
	conns  atomic.Int32 // connections that have not
	key    string       // of a metadata pair to add to calls, "" for none
	strict bool         // it was there before all connections
	nested atomic.Int32 // calls that a handler's context was found for

	mu    sync.Mutex
	conn  map[*Client]int
	spans []*span
}

func newRecorder(t testing.TB) *recorder {
	return &recorder{t: t, events: make(chan event, 100_000), conn: map[*Client]int{}}
}

func (r *recorder) ConnOpened(c *Client) {
	r.conns.Add(1)
	r.mu.Lock()
	r.conn[c]++
	r.mu.Unlock()
}

func (r *recorder) ConnClosed(c *Client, err error) {
	r.conns.Add(-1)
	r.mu.Lock()
	if r.conn[c]--; r.conn[c] < 0 && r.strict {
		r.t.Errorf("a connection ended twice, or never began")
	}
	r.mu.Unlock()
	r.events <- event{what: "conn", c: c, err: err}
}

func (r *recorder) start(c *Client, info CallInfo, parent *span) *span {
	if info.Start.IsZero() || time.Since(info.Start) > patience {
		r.t.Errorf("%s %s began at %v", info.Kind, info.Method, info.Start)
	}
	s := &span{info: info, client: c, parent: parent}
	r.open.Add(1)
	r.mu.Lock()
	r.spans = append(r.spans, s)
	r.mu.Unlock()
	return s
}

func (r *recorder) end(what string, s *span, c *Client, info CallInfo, err error) {
	switch {
	case s == nil:
		r.t.Errorf("%s of %s %s: its end has not the context of its start", what, info.Kind, info.Method)
		return
	case s.ends.Add(1) > 1:
		r.t.Errorf("%s of %s %s ended twice", what, info.Kind, info.Method)
	case s.info != info || s.client != c:
		r.t.Errorf("%s began as %+v and ended as %+v", what, s.info, info)
	}
	r.open.Add(-1)
	r.events <- event{what, c, info, err}
}

func (r *recorder) CallStarted(ctx context.Context, c *Client, info CallInfo) context.Context {
	parent, _ := ctx.Value(spanKey{r}).(*span)
	if parent != nil {
		r.nested.Add(1)
	}
	if r.key != "" {
		ctx = AddMetadata(ctx, r.key, info.Method)
	}
	return context.WithValue(ctx, spanKey{r}, r.start(c, info, parent))
}

func (r *recorder) CallEnded(ctx context.Context, c *Client, info CallInfo, err error) {
	s, _ := ctx.Value(spanKey{r}).(*span)
	r.end("call", s, c, info, err)
}

func (r *recorder) HandleStarted(c *Context, info CallInfo) context.Context {
	if v := c.Value(spanKey{r}); v != nil {
		r.t.Errorf("%s has values of another message", info.Method)
	}
	return context.WithValue(context.Background(), spanKey{r}, r.start(c.Client, info, nil))
}

func (r *recorder) HandleEnded(c *Context, info CallInfo, err error) {
	s, _ := c.Value(spanKey{r}).(*span)
	r.end("handle", s, c.Client, info, err)
}

// next checks the end of a call or handler.
func (r *recorder) next(t testing.TB, what string, kind CallKind, method string, code Code) event {
	t.Helper()
	e := recv(t, r.events, "end of "+what+" "+method)
	if e.what != what || e.info.Kind != kind || e.info.Method != method || CodeOf(e.err) != code {
		t.Errorf("%s of %s %q ended with %v (%v), want %s of %s %q with %v", e.what, e.info.Kind, e.info.Method, e.err, CodeOf(e.err),
			what, kind, method, code)
	}
	return e
}

// settled waits until all that has begun has ended, and checks that nothing else is told.
func (r *recorder) settled(t testing.TB) {
	t.Helper()
	eventually(t, "end of what has begun", func() bool { return r.open.Load() == 0 })
	for len(r.events) > 0 {
		e := <-r.events
		if e.what != "conn" {
			t.Errorf("besides: %s of %s %q ended with %v", e.what, e.info.Kind, e.info.Method, e.err)
		}
	}
}

// observe sets recorders at both ends.
func (w *way) observe(t testing.TB) (calls, handles *recorder) {
	calls, handles = newRecorder(t), newRecorder(t)
	w.caller.Handler.SetObserver(calls)
	w.callee.Handler.SetObserver(handles)
	return calls, handles
}

func TestObserver(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		calls, handles := w.observe(t)
		h := w.callee.Handler
		stop := make(chan struct{})
		register := func(method string, f HandlerFunc) {
			h.Handle(method, f)
			h.Handle(method+" async", f, true)
			h.HandleInline(method+" inline", f)
		}
		register("/ok", func(c *Context) { c.Write("fine") })
		register("/error", func(c *Context) { c.Error(CodeAborted) })
		register("/text", func(c *Context) { c.Error("a text") })
		register("/panic", func(*Context) { panic("expected") })
		register("/answered panic", func(c *Context) { c.Write(nil); panic("expected") })
		register("/nothing", func(*Context) {})
		register("/encode", func(c *Context) { c.Write(make(chan int)) })
		register("/twice", func(c *Context) { c.Write(nil); c.Error(CodeAborted) })
		register("/early", func(c *Context) {
			c.AnswerLater()
			done := make(chan struct{})
			go func() { c.Error(CodeAborted); close(done) }()
			<-done
		})
		register("/late", func(c *Context) {
			c.AnswerLater()
			go func() { c.Error(CodeAborted) }()
		})
		register("/late ok", func(c *Context) { c.AnswerLater(); go c.Write(nil) })
		register("/write, then later", func(c *Context) { c.Error(CodeAborted); c.AnswerLater() })
		h.Use(func(c *Context) {
			if string(c.Body()) == "abort" {
				c.Error(CodePermissionDenied)
				c.Abort()
			}
		})
		register("/behind", func(*Context) { t.Error("the middleware's Abort does not help") })
		NewMethod[string, string]("/typed").Handle(h, func(*Context, *string) (*string, error) { return nil, CodeNotFound })
		for _, tt := range []struct {
			method string
			req    any
			code   Code
		}{
			{"/ok", nil, 0}, {"/error", nil, CodeAborted}, {"/text", nil, CodeUnknown}, {"/panic", nil, CodeInternal},
			{"/answered panic", nil, 0}, {"/nothing", nil, CodeInternal}, {"/encode", nil, CodeInternal}, {"/twice", nil, 0},
			{"/early", nil, CodeAborted}, {"/late", nil, CodeAborted}, {"/late ok", nil, 0}, {"/write, then later", nil, CodeAborted},
			{"/behind", "abort", CodePermissionDenied}, {"/typed", "", CodeNotFound}, {"/unknown", nil, CodeUnimplemented},
		} {
			methods := []string{tt.method, tt.method + " async", tt.method + " inline"}
			if tt.method == "/typed" || tt.method == "/unknown" {
				methods = methods[:1]
			}
			for _, method := range methods {
				check := func() {
					t.Helper()
					e := calls.next(t, "call", KindCall, method, tt.code)
					if e.c != w.caller || e.info.Unknown {
						t.Errorf("%s: %+v", method, e.info)
					}
					e = handles.next(t, "handle", KindCall, method, tt.code)
					if e.c != w.callee || e.info.Unknown != (method == "/unknown") {
						t.Errorf("%s: %+v", method, e.info)
					}
				}
				wantEnd := func(err error) {
					t.Helper()
					if CodeOf(err) != tt.code {
						t.Errorf("%s: %v", method, err)
					}
				}
				wantEnd(w.caller.Call(method, tt.req, nil, patience))
				check()
				wantEnd(w.caller.CallWith(patient(t), method, tt.req, nil))
				check()
				ended := make(chan error, 1)
				must(t, w.caller.CallAsync(method, tt.req, func(c *Context) {
					if len(calls.events) == 0 {
						t.Errorf("%s: the callback runs before CallEnded", method)
					}
					ended <- c.Err()
				}, patience))
				wantEnd(recv(t, ended, "callback"))
				check()
			}
		}
		// Notifications.
		noted := make(chan struct{}, 2)
		register("/note", func(*Context) { noted <- struct{}{} })
		for _, method := range []string{"/note", "/note async", "/note inline"} {
			must(t, w.caller.Notify(method, "x", patience))
			calls.next(t, "call", KindNotify, method, 0)
			handles.next(t, "handle", KindNotify, method, 0)
			must(t, w.caller.NotifyWith(patient(t), method, "x"))
			calls.next(t, "call", KindNotify, method, 0)
			handles.next(t, "handle", KindNotify, method, 0)
			<-noted
			<-noted
		}
		must(t, w.caller.Notify("/typed", "x", patience))
		calls.next(t, "call", KindNotify, "/typed", 0)
		handles.next(t, "handle", KindNotify, "/typed", CodeNotFound)
		must(t, w.caller.Notify("/panic", "x", patience))
		calls.next(t, "call", KindNotify, "/panic", 0)
		handles.next(t, "handle", KindNotify, "/panic", CodeInternal)
		must(t, w.caller.Notify("/late", "x", patience))
		calls.next(t, "call", KindNotify, "/late", 0)
		handles.next(t, "handle", KindNotify, "/late", 0)
		must(t, w.caller.Notify("/unknown", "x", patience)) // nobody handles it
		calls.next(t, "call", KindNotify, "/unknown", 0)
		// What fails here, and at once.
		wantCode(t, "notification", w.caller.Notify("", nil, patience), CodeInvalidArgument)
		calls.next(t, "call", KindNotify, "", CodeInvalidArgument)
		wantCode(t, "notification", w.caller.NotifyWith(AddMetadata(patient(t), "", ""), "/note", nil), CodeInvalidArgument)
		calls.next(t, "call", KindNotify, "/note", CodeInvalidArgument)
		wantCode(t, "call", w.caller.Call("", nil, nil, patience), CodeInvalidArgument)
		calls.next(t, "call", KindCall, "", CodeInvalidArgument)
		if err := w.caller.CallWith(patient(t), "/ok", make(chan int), nil); err == nil {
			t.Error("a channel was encoded")
		}
		calls.next(t, "call", KindCall, "/ok", CodeUnknown)
		if err := w.caller.CallWith(patient(t), "/ok", nil, new(int)); err == nil { // "fine" is no number
			t.Error("a text passes for a number")
		}
		calls.next(t, "call", KindCall, "/ok", CodeUnknown)
		handles.next(t, "handle", KindCall, "/ok", 0)
		for _, bad := range []struct {
			method  string
			timeout time.Duration
		}{{"", patience}, {"/ok", 0}, {"/ok", -1}} {
			ended := make(chan error, 2)
			wantCode(t, "async call", w.caller.CallAsync(bad.method, nil, func(c *Context) { ended <- c.Err() }, bad.timeout), CodeInvalidArgument)
			wantCode(t, "async call", recv(t, ended, "callback"), CodeInvalidArgument)
			calls.next(t, "call", KindCall, bad.method, CodeInvalidArgument)
		}
		// What the caller ends.
		entered := make(chan struct{}, 3)
		h.Handle("/wait", func(c *Context) { entered <- struct{}{}; <-c.Done(); <-stop; c.Write(nil) }, true)
		ctx, cancel := context.WithCancel(patient(t))
		done := make(chan error, 1)
		go func() { done <- w.caller.CallWith(ctx, "/wait", nil, nil) }()
		recv(t, entered, "handler")
		cancel()
		wantCode(t, "a cancelled call", recv(t, done, "end of the call"), CodeCanceled)
		calls.next(t, "call", KindCall, "/wait", CodeCanceled)
		wantCode(t, "a call that is too late", w.caller.Call("/wait", nil, nil, 10*time.Millisecond), CodeDeadlineExceeded)
		calls.next(t, "call", KindCall, "/wait", CodeDeadlineExceeded)
		ended := make(chan error, 1)
		must(t, w.caller.CallAsync("/wait", nil, func(c *Context) { ended <- c.Err() }, 10*time.Millisecond))
		wantCode(t, "an async call that is too late", recv(t, ended, "callback"), CodeDeadlineExceeded)
		calls.next(t, "call", KindCall, "/wait", CodeDeadlineExceeded)
		if len(handles.events) > 0 {
			t.Error("a handler has ended that waits")
		}
		close(stop)
		for range 3 {
			handles.next(t, "handle", KindCall, "/wait", 0)
		}
		calls.settled(t)
		handles.settled(t)
	})
}

// Every call and stream ends with the connection, once, at both ends.
func TestObserverOfLostConnection(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		calls, handles := w.observe(t)
		const n = 10
		entered := make(chan struct{}, 4*n)
		w.callee.Handler.Handle("/wait", func(c *Context) { entered <- struct{}{}; <-c.Done(); c.Error(CodeAborted) }, true)
		release := make(chan struct{})
		w.callee.Handler.Handle("/late", func(c *Context) {
			c.AnswerLater()
			entered <- struct{}{}
			go func() { <-release; c.Error(CodeAborted) }()
		})
		w.callee.Handler.HandleStream("/stream", func(s *Stream) {
			entered <- struct{}{}
			if err := s.Recv(nil); err == nil || err == io.EOF {
				t.Errorf("the stream ended with %v", err)
			}
		})
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				wantCode(t, "call", w.caller.CallWith(patient(t), "/wait", nil, nil), CodeUnavailable)
			})
			wg.Go(func() {
				wantCode(t, "call", w.caller.Call("/late", nil, nil, patience), CodeUnavailable)
			})
			wg.Add(1)
			must(t, w.caller.CallAsync("/wait", nil, func(*Context) { wg.Done() }, patience))
			s, err := w.caller.OpenStream(patient(t), "/stream")
			must(t, err)
			go s.Recv(nil) //nolint:errcheck // opens it
		}
		for range 4 * n {
			recv(t, entered, "handler")
		}
		unopened, err := w.caller.OpenStream(patient(t), "/stream") // of which the peer knows nothing
		must(t, err)
		w.client.Stop()
		waitGroup(t, &wg, "end of the calls")
		close(release)
		count := func(r *recorder, n int) map[string]int {
			got := map[string]int{}
			for range n {
				e := recv(t, r.events, "end")
				for e.what == "conn" {
					e = recv(t, r.events, "end")
				}
				got[fmt.Sprintf("%s %s %s %v", e.what, e.info.Kind, e.info.Method, CodeOf(e.err))]++
			}
			return got
		}
		want := fmt.Sprint(map[string]int{"call call /wait unavailable": 2 * n, "call call /late unavailable": n, "call stream /stream unavailable": n + 1})
		if got := fmt.Sprint(count(calls, 4*n+1)); got != want {
			t.Errorf("calls: %s\nwant %s", got, want)
		}
		want = fmt.Sprint(map[string]int{"handle call /wait aborted": 2 * n, "handle call /late aborted": n, "handle stream /stream unavailable": n})
		if got := fmt.Sprint(count(handles, 4*n)); got != want {
			t.Errorf("handlers: %s\nwant %s", got, want)
		}
		wantCode(t, "a stream that was not opened", unopened.Recv(nil), CodeUnavailable)
		// What is begun now fails at once.
		eventually(t, "end of the connection", func() bool { return w.caller.CheckState() != nil })
		wantCode(t, "call", w.caller.Call("/wait", nil, nil, patience), CodeUnavailable)
		calls.next2(t, "call", KindCall, "/wait", CodeUnavailable)
		wantCode(t, "notification", w.caller.Notify("/wait", nil, patience), CodeUnavailable)
		calls.next2(t, "call", KindNotify, "/wait", CodeUnavailable)
		_, err = w.caller.OpenStream(patient(t), "/stream")
		wantCode(t, "stream", err, CodeUnavailable)
		calls.next2(t, "call", KindStream, "/stream", CodeUnavailable)
		s := w.caller.NewStream("/stream")
		wantCode(t, "stream", s.Send("x"), CodeUnavailable)
		calls.next2(t, "call", KindStream, "/stream", CodeUnavailable)
		calls.settled(t)
		handles.settled(t)
	})
}

// next2 is next but for the ends of connections.
func (r *recorder) next2(t testing.TB, what string, kind CallKind, method string, code Code) {
	t.Helper()
	e := recv(t, r.events, "end of "+what+" "+method)
	for e.what == "conn" {
		e = recv(t, r.events, "end of "+what+" "+method)
	}
	if e.what != what || e.info.Kind != kind || e.info.Method != method || CodeOf(e.err) != code {
		t.Errorf("%s of %s %q ended with %v", e.what, e.info.Kind, e.info.Method, e.err)
	}
}

func TestObserverOfStreams(t *testing.T) {
	onStreams(t, streamSetup{}, func(t *testing.T, e *streamEnds) {
		w := &way{caller: e.near, callee: e.far}
		calls, handles := w.observe(t)
		over := make(chan struct{}, 1)
		handle := func(method string, f func(s *Stream)) {
			e.far.Handler.HandleStream(method, func(s *Stream) { f(s); over <- struct{}{} })
		}
		handle("/echo", streamEcho)
		handle("/aborts", func(s *Stream) { s.Recv(nil); s.Reset(CodeAborted) })
		handle("/resets nil", func(s *Stream) { s.Recv(nil); s.Reset(nil) })
		handle("/leaves", func(s *Stream) { s.Recv(nil) })
		handle("/waits", func(s *Stream) { s.Recv(nil); <-s.Context().Done() })
		e.far.Handler.HandleStream("/panics", func(s *Stream) { s.Recv(nil); over <- struct{}{}; panic("expected") })
		ServerStream[string, string]{newTraits("/typed", nil)}.Handle(e.far.Handler, func(_ TypedStream[string, string], _ *string) error {
			over <- struct{}{}
			return CodeNotFound
		})
		for _, tt := range []struct {
			what, method string
			f            func(s *Stream)
			near, far    Code
		}{
			{"closed by both", "/echo", func(s *Stream) {
				must(t, s.SendAndClose("x"))
				must(t, s.Recv(new(string)))
				if err := s.Recv(nil); err != io.EOF {
					t.Error(err)
				}
			}, 0, 0},
			{"closed by both, not read", "/echo", func(s *Stream) { must(t, s.SendAndClose("x")) }, 0, 0},
			{"reset here", "/waits", func(s *Stream) { must(t, s.Send("x")); s.Reset(CodeDataLoss) }, CodeDataLoss, CodeDataLoss},
			{"reset here without a reason", "/waits", func(s *Stream) { must(t, s.Send("x")); s.Reset(nil) }, CodeCanceled, CodeCanceled},
			{"reset there", "/aborts", func(s *Stream) { must(t, s.Send("x")) }, CodeAborted, CodeAborted},
			{"reset there without a reason", "/resets nil", func(s *Stream) { must(t, s.Send("x")) }, CodeCanceled, CodeCanceled},
			{"the handler leaves", "/leaves", func(s *Stream) { must(t, s.Send("x")) }, CodeCanceled, 0},
			{"the handler panics", "/panics", func(s *Stream) { must(t, s.Send("x")) }, CodeInternal, CodeInternal},
			{"the typed handler fails", "/typed", func(s *Stream) { must(t, s.SendAndClose("x")) }, CodeNotFound, CodeNotFound},
		} {
			s, err := e.near.OpenStream(patient(t), tt.method)
			must(t, err)
			tt.f(s)
			recv(t, over, "handler")
			ev := recv(t, calls.events, tt.what+": end")
			if ev.what != "call" || ev.info.Kind != KindStream || ev.info.Method != tt.method || CodeOf(ev.err) != tt.near || ev.c != e.near {
				t.Errorf("%s: the caller's %s of %s %q ended with %v", tt.what, ev.what, ev.info.Kind, ev.info.Method, ev.err)
			}
			ev = recv(t, handles.events, tt.what+": end")
			if ev.what != "handle" || ev.info.Kind != KindStream || ev.info.Method != tt.method || CodeOf(ev.err) != tt.far || ev.c != e.far {
				t.Errorf("%s: the handler's %s of %s %q ended with %v", tt.what, ev.what, ev.info.Kind, ev.info.Method, ev.err)
			}
		}
		// Ends that are not the handler's doing.
		s, err := e.near.OpenStream(patient(t), "/unknown")
		must(t, err)
		must(t, s.CloseSend())
		calls.next(t, "call", KindStream, "/unknown", CodeUnimplemented)
		s, err = e.near.OpenStream(patient(t), "/echo") // of which the peer learns nothing
		must(t, err)
		s.Reset(nil)
		calls.next(t, "call", KindStream, "/echo", CodeCanceled)
		for _, code := range []Code{CodeCanceled, CodeDeadlineExceeded} {
			ctx, cancel := context.WithCancel(patient(t))
			if code == CodeDeadlineExceeded {
				ctx, cancel = context.WithTimeout(patient(t), 20*time.Millisecond)
			}
			s, err := e.near.OpenStream(ctx, "/waits")
			must(t, err)
			must(t, s.Send("x"))
			if code == CodeCanceled {
				cancel()
			}
			calls.next(t, "call", KindStream, "/waits", code)
			recv(t, over, "handler")
			handles.next(t, "handle", KindStream, "/waits", code)
			cancel()
		}
		_, err = e.near.OpenStream(patient(t), "")
		wantCode(t, "a stream without a method", err, CodeInvalidArgument)
		calls.next(t, "call", KindStream, "", CodeInvalidArgument)
		calls.settled(t)
		handles.settled(t)
	})
}

// Answers of other goroutines, before and after the handler returns, in any order.
func TestObserverStorm(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		calls, handles := w.observe(t)
		h := w.callee.Handler
		var n atomic.Int32
		f := func(c *Context) {
			c.AnswerLater()
			answer := func() {
				if n.Add(1)%2 == 0 {
					c.Error(CodeAborted)
				} else {
					c.Write("x")
				}
			}
			switch n.Load() % 3 {
			case 0:
				go answer()
			case 1:
				done := make(chan struct{})
				go func() { answer(); close(done) }()
				<-done
			default:
				answer()
			}
		}
		h.Handle("/ordered", f)
		h.Handle("/async", f, true)
		h.HandleInline("/inline", f)
		var wg sync.WaitGroup
		const each = 200
		for range 4 {
			for _, method := range []string{"/ordered", "/async", "/inline"} {
				wg.Go(func() {
					for range each {
						w.caller.CallWith(patient(t), method, "x", nil) //nolint:errcheck // either is right
					}
				})
			}
		}
		waitGroup(t, &wg, "end of the calls")
		for _, r := range []*recorder{calls, handles} {
			eventually(t, "end of what has begun", func() bool { return r.open.Load() == 0 })
			failed := 0
			for range 12 * each {
				if e := recv(t, r.events, "end"); e.err != nil {
					wantCode(t, "outcome", e.err, CodeAborted)
					failed++
				}
			}
			if failed != 6*each {
				t.Errorf("%d of %d failed", failed, 12*each)
			}
			r.settled(t)
		}
	})
}

// An Observer that is there when something begins is told of its end, though it is not there any more.
func TestObserverIsTakenAway(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		calls, handles := w.observe(t)
		entered, release := make(chan struct{}, 4), make(chan struct{})
		w.callee.Handler.Handle("/wait", func(c *Context) { entered <- struct{}{}; <-release; c.Write(nil) }, true)
		w.callee.Handler.Handle("/late", func(c *Context) {
			c.AnswerLater()
			entered <- struct{}{}
			go func() { <-release; c.Error(CodeAborted) }()
		})
		w.callee.Handler.HandleStream("/stream", func(s *Stream) { entered <- struct{}{}; <-release; s.Recv(nil) })
		var wg sync.WaitGroup
		wg.Go(func() { w.caller.CallWith(patient(t), "/wait", nil, nil) })
		wg.Go(func() { w.caller.CallWith(patient(t), "/late", nil, nil) })
		wg.Add(1)
		must(t, w.caller.CallAsync("/wait", nil, func(*Context) { wg.Done() }, patience))
		s, err := w.caller.OpenStream(patient(t), "/stream")
		must(t, err)
		must(t, s.CloseSend())
		for range 4 {
			recv(t, entered, "handler")
		}
		w.fenced()
		w.fence(t)
		must(t, w.caller.Call("/last", nil, nil, patience)) // the ordered handler has returned
		w.caller.Handler.SetObserver(nil)
		w.callee.Handler.SetObserver(nil)
		close(release)
		waitGroup(t, &wg, "end of the calls")
		must(t, w.caller.Call("/last", nil, nil, patience)) // of which they are not told
		for _, r := range []*recorder{calls, handles} {
			var got []string
			for range 6 {
				e := recv(t, r.events, "end")
				got = append(got, e.info.Method)
			}
			slices.Sort(got)
			if want := []string{"/fence", "/last", "/late", "/stream", "/wait", "/wait"}; !slices.Equal(got, want) {
				t.Errorf("%q", got)
			}
			r.settled(t)
		}
	})
}

// Set, replaced and taken away while traffic runs.
func TestObserverChanges(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		all := []*recorder{newRecorder(t), newRecorder(t)}
		w.callee.Handler.Handle("/ordered", echo)
		w.callee.Handler.Handle("/late", func(c *Context) { c.AnswerLater(); go c.Write(nil) })
		w.callee.Handler.HandleStream("/stream", streamEcho)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for _, method := range []string{"/ordered", "/late", "/unknown"} {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						w.caller.CallWith(patient(t), method, "x", nil) //nolint:errcheck // one is unknown
						must(t, w.caller.NotifyWith(patient(t), method, "x"))
					}
				}
			})
		}
		for range 50 {
			for _, o := range []Observer{all[0], all[1], nil} {
				w.caller.Handler.SetObserver(o)
				w.callee.Handler.SetObserver(o)
				s, err := w.caller.OpenStream(patient(t), "/stream")
				must(t, err)
				must(t, s.SendAndClose("x"))
				for err == nil {
					err = s.Recv(nil)
				}
			}
		}
		close(stop)
		waitGroup(t, &wg, "end of the calls")
		w.fenced()
		must(t, w.caller.Call("/last", nil, nil, patience))
		for _, r := range all {
			eventually(t, "end of what has begun", func() bool { return r.open.Load() == 0 })
			if len(r.events) == 0 {
				t.Error("nothing was observed")
			}
		}
	})
}

// What CallStarted adds reaches the handler, and what HandleStarted returns is found through the handler's Context.
func TestObserverContexts(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		calls, handles := w.observe(t)
		calls.key = "trace"
		type own struct{}
		seen := make(chan string, 1)
		see := func(c *Context) { seen <- c.Metadata()["trace"] }
		h := w.callee.Handler
		register := func(method string, f HandlerFunc) {
			h.Handle(method, f)
			h.Handle(method+" async", f, true)
			h.HandleInline(method+" inline", f)
		}
		register("/m", func(c *Context) { see(c); c.Write(nil) })
		h.HandleStream("/m", func(s *Stream) { seen <- s.Metadata()["trace"] })
		check := func(what, method string) {
			t.Helper()
			if got := recv(t, seen, "handler"); got != method {
				t.Errorf("%s of %s: the handler has %q", what, method, got)
			}
		}
		for _, method := range []string{"/m", "/m async", "/m inline"} {
			must(t, w.caller.Call(method, nil, nil, patience))
			check("Call", method)
			must(t, w.caller.CallWith(AddMetadata(patient(t), "k", "v"), method, nil, nil))
			check("CallWith", method)
			done := make(chan error, 1)
			must(t, w.caller.CallAsync(method, nil, func(c *Context) { done <- c.Err() }, patience))
			check("CallAsync", method)
			must(t, recv(t, done, "callback"))
			must(t, w.caller.Notify(method, nil, patience))
			check("Notify", method)
			must(t, w.caller.NotifyWith(patient(t), method, nil))
			check("NotifyWith", method)
		}
		s, err := w.caller.OpenStream(patient(t), "/m")
		must(t, err)
		must(t, s.CloseSend())
		check("OpenStream", "/m")
		wantUnsent(t, "call", w.caller.CallWith(patient(t), "", nil, nil))
		// Calls of a handler are children of it.
		w.caller.Handler.Handle("/inner", func(c *Context) { c.Write(nil) }, true)
		w.caller.Handler.HandleStream("/inner", func(*Stream) {})
		nested := func(c *Context) {
			if s, ok := c.Value(spanKey{handles}).(*span); !ok || s.info.Method != c.Message.Method() {
				t.Errorf("%s: Value is %v", c.Message.Method(), s)
			}
			if c.Value(own{}) != nil || c.Value("nothing") != nil {
				t.Error("a value that nobody has set")
			}
			ctx, cancel := context.WithTimeout(context.WithValue(c, own{}, 1), patience)
			defer cancel()
			<-func() chan struct{} { ch := make(chan struct{}); close(ch); _ = c.Done(); return ch }() // the values stay when Done was asked for
			before := handles.nested.Load()
			must(t, c.Client.CallWith(c, "/inner", nil, nil))
			must(t, c.Client.CallWith(ctx, "/inner", nil, nil))
			must(t, c.Client.NotifyWith(c, "/inner", nil))
			st, err := c.Client.OpenStream(c, "/inner")
			must(t, err)
			must(t, st.CloseSend())
			if n := handles.nested.Load() - before; n != 4 {
				t.Errorf("%s: %d of 4 calls have the handler's context", c.Message.Method(), n)
			}
			must(t, c.Client.CallWith(context.Background(), "/inner", nil, nil))
			if n := handles.nested.Load() - before; n != 4 {
				t.Error("a call of no handler has one's context")
			}
			c.Write(nil)
		}
		h.Handle("/nested", nested)
		h.Handle("/nested async", nested, true)
		h.Handle("/nested later", func(c *Context) { c.AnswerLater(); go nested(c) })
		for _, method := range []string{"/nested", "/nested async", "/nested later"} {
			must(t, w.caller.CallWith(patient(t), method, nil, nil))
		}
		// So are those of a stream's handler, by the Context that its middleware has.
		h.Use(func(c *Context) {
			if c.Stream() != nil {
				if s, ok := c.Value(spanKey{handles}).(*span); !ok || s.info.Kind != KindStream {
					t.Errorf("%s: Value is %v", c.Message.Method(), s)
				}
			}
		})
		h.HandleStream("/chained", func(*Stream) {})
		s, err = w.caller.OpenStream(patient(t), "/chained")
		must(t, err)
		must(t, s.CloseSend())
		if err := s.Recv(nil); err != io.EOF {
			t.Error(err)
		}
		// Contexts are used again for further messages, without what was in them.
		for range 100 {
			must(t, w.caller.CallWith(patient(t), "/m", nil, nil))
			check("CallWith", "/m")
		}
		for _, r := range []*recorder{calls, handles} {
			eventually(t, "end of what has begun", func() bool { return r.open.Load() == 0 })
		}
	})
}

// nilObserver returns no context of a handler's, and the caller's own.
type nilObserver struct{}

func (nilObserver) ConnOpened(*Client)        {}
func (nilObserver) ConnClosed(*Client, error) {}
func (nilObserver) CallStarted(ctx context.Context, _ *Client, _ CallInfo) context.Context {
	return ctx
}
func (nilObserver) CallEnded(context.Context, *Client, CallInfo, error) {}
func (nilObserver) HandleStarted(*Context, CallInfo) context.Context    { return nil }
func (nilObserver) HandleEnded(*Context, CallInfo, error)               {}

func TestObserverWithoutContexts(t *testing.T) {
	onStreams(t, streamSetup{use: func(h Handler) { h.SetObserver(nilObserver{}) }}, func(t *testing.T, e *streamEnds) {
		e.works(t)
		e.settled(t)
	})
}

func TestObserverOfConnections(t *testing.T) {
	server, client := newRecorder(t), newRecorder(t)
	server.strict, client.strict = true, true
	sh := NewHandler()
	sh.SetObserver(server)
	s := startServer(t, sh)
	ch := NewHandler()
	ch.SetObserver(client)
	var wg sync.WaitGroup
	clients := make([]*Client, 10)
	for i := range clients {
		wg.Go(func() { clients[i] = dialClient(t, s.addr, ch) })
	}
	waitGroup(t, &wg, "clients")
	s.waitClients(t, len(clients))
	if server.conns.Load() != 10 || client.conns.Load() != 10 {
		t.Errorf("%d and %d are open", server.conns.Load(), client.conns.Load())
	}
	ended := func(r *recorder) event {
		t.Helper()
		e := recv(t, r.events, "end of a connection")
		if e.what != "conn" || e.err == nil {
			t.Errorf("%+v", e)
		}
		return e
	}
	clients[0].Stop()
	if e := ended(client); e.c != clients[0] || !errors.Is(e.err, ErrClientStopped) {
		t.Errorf("the client's connection ended with %v", e.err)
	}
	if e := ended(server); CodeOf(e.err) != CodeUnavailable {
		t.Errorf("the server's connection ended with %v", e.err)
	}
	// One that is made again is another connection of the same client.
	must(t, clients[1].Restart())
	if e := ended(client); e.c != clients[1] {
		t.Errorf("the client's connection ended with %v", e.err)
	}
	ended(server)
	s.waitClients(t, 9)
	if server.conns.Load() != 9 || client.conns.Load() != 9 {
		t.Errorf("%d and %d are open", server.conns.Load(), client.conns.Load())
	}
	// By the peer, and by a fault.
	for _, c := range clients[2:] {
		c.Stop()
		ended(client)
		ended(server)
	}
	clients[1].Stop()
	ended(client)
	ended(server)
	p := dialGreeted(t, s.addr, fullHello())
	p.send(frameOf(15, 0, 1, "", "")) // no such command
	p.end()
	if e := ended(server); !errors.Is(e.err, errFrame) {
		t.Errorf("%v", e.err)
	}
	p = dialRaw(t, s.addr)
	eventually(t, "a connection", func() bool { return server.conns.Load() == 1 })
	p.reset()
	ended(server)
	if server.conns.Load() != 0 || client.conns.Load() != 0 || len(server.events) > 0 || len(client.events) > 0 {
		t.Errorf("%d and %d are open", server.conns.Load(), client.conns.Load())
	}
	// A connection that never gets beyond HELLO.
	ln := listenRaw(t)
	raw, _, failed := startDial(t, ln, ch)
	raw.frame()
	raw.Close()
	recv(t, failed, "failure of NewClient")
	if e := ended(client); e.err == nil || client.conns.Load() != 0 {
		t.Errorf("%v, %d open", e.err, client.conns.Load())
	}
}

// badObserver panics where it is told to.
type badObserver struct {
	in     string
	panics atomic.Int32
}

func (o *badObserver) at(what string) {
	if what == o.in {
		o.panics.Add(1)
		panic("an observer's, expected")
	}
}

func (o *badObserver) ConnOpened(c *Client)            { o.at("ConnOpened") }
func (o *badObserver) ConnClosed(c *Client, err error) { o.at("ConnClosed") }
func (o *badObserver) CallStarted(ctx context.Context, c *Client, info CallInfo) context.Context {
	o.at("CallStarted")
	return ctx
}
func (o *badObserver) CallEnded(context.Context, *Client, CallInfo, error) { o.at("CallEnded") }
func (o *badObserver) HandleStarted(*Context, CallInfo) context.Context {
	o.at("HandleStarted")
	return nil
}
func (o *badObserver) HandleEnded(*Context, CallInfo, error) { o.at("HandleEnded") }

// An Observer that panics is logged, and everything goes on.
func TestObserverPanics(t *testing.T) {
	for _, in := range []string{"ConnOpened", "ConnClosed", "CallStarted", "CallEnded", "HandleStarted", "HandleEnded"} {
		t.Run(in, func(t *testing.T) {
			o := &badObserver{in: in}
			onStreams(t, streamSetup{use: func(h Handler) { h.SetObserver(o) }}, func(t *testing.T, e *streamEnds) {
				h := e.far.Handler
				h.Handle("/async", echo, true)
				h.HandleInline("/inline", echo)
				h.Handle("/later", func(c *Context) { c.AnswerLater(); go c.Write(c.Body()) })
				for _, method := range []string{"/async", "/inline", "/later"} {
					var r string
					if err := e.near.CallWith(patient(t), method, "x", &r); err != nil || r != "x" {
						t.Errorf("%s: %q, %v", method, r, err)
					}
					done := make(chan error, 1)
					must(t, e.near.CallAsync(method, "x", func(c *Context) { done <- c.Err() }, patience))
					must(t, recv(t, done, "callback"))
					must(t, e.near.NotifyWith(patient(t), method, "x"))
				}
				e.works(t)
				e.settled(t)
			})
			if o.panics.Load() == 0 {
				t.Error("it was not told")
			}
		})
	}
}

// A call that ends by a panic of the caller's codec has ended.
func TestObserverOfPanickingCodec(t *testing.T) {
	s := startServer(t)
	s.Handler.Handle("/echo", echo)
	c := dialClient(t, s.addr)
	r := newRecorder(t)
	c.Handler.SetObserver(r)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic does not reach the caller")
			}
		}()
		c.CallWith(patient(t), "/echo", panicky{}, nil) //nolint:errcheck // it panics
	}()
	e := recv(t, r.events, "end of the call")
	if e.err == nil {
		t.Error("it ended without an error")
	}
	must(t, c.CallWith(patient(t), "/echo", "x", nil))
	r.next(t, "call", KindCall, "/echo", 0)
	r.settled(t)
}

func TestOutcome(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		outcomes := make(chan error, 1)
		h := w.callee.Handler
		h.Use(func(c *Context) {
			if err := c.Outcome(); c.Stream() == nil && err != nil {
				t.Errorf("before the answer: %v", err)
			}
			c.Next()
			outcomes <- c.Outcome()
		})
		own := &Error{Code: CodeAborted, Message: "own"}
		register := func(method string, f HandlerFunc) {
			h.Handle(method, f)
			h.Handle(method+" async", f, true)
			h.HandleInline(method+" inline", f)
		}
		register("/ok", func(c *Context) { c.Write("x") })
		register("/nil", func(c *Context) { c.Error(nil) })
		register("/nothing", func(*Context) {})
		register("/own", func(c *Context) { c.Error(own) })
		register("/written", func(c *Context) { c.Write(own) })
		register("/text", func(c *Context) { c.Error("text") })
		register("/twice", func(c *Context) { c.Error(own); c.Write(nil); c.Error(CodeDataLoss) })
		register("/refused", func(c *Context) { c.Error(Refused(own)) })
		register("/later", func(c *Context) { c.AnswerLater(); c.Error(own) })
		register("/before later", func(c *Context) { c.Error(own); c.AnswerLater() })
		register("/encode", func(c *Context) { c.Write(make(chan int)) })
		typed := NewMethod[string, string]("/typed")
		typed.Handle(h, func(_ *Context, v *string) (*string, error) {
			if *v == "fail" {
				return nil, own
			}
			return v, nil
		})
		for _, tt := range []struct {
			method, req string
			want        error
		}{
			{"/ok", "", nil}, {"/nil", "", nil}, {"/nothing", "", nil}, {"/own", "", own}, {"/written", "", own},
			{"/text", "", &Error{Code: CodeUnknown, Message: "text"}}, {"/twice", "", own}, {"/refused", "", own}, {"/later", "", nil},
			{"/before later", "", own}, {"/encode", "", errEncode}, {"/typed", "ok", nil}, {"/typed", "fail", own},
		} {
			for _, route := range []string{"", " async", " inline"} {
				if tt.method == "/typed" && route != "" {
					continue
				}
				w.caller.CallWith(patient(t), tt.method+route, tt.req, nil) //nolint:errcheck // the outcome is what matters
				got := recv(t, outcomes, "outcome")
				if tt.want == nil && got != nil || tt.want != nil && !errors.Is(got, tt.want) {
					t.Errorf("%s: %v, want %v", tt.method+route, got, tt.want)
				}
				must(t, w.caller.NotifyWith(patient(t), tt.method+route, tt.req))
				got = recv(t, outcomes, "outcome")
				want := tt.want
				switch tt.method {
				case "/text", "/later", "/before later", "/twice", "/encode": // a notification has no first answer
					continue
				}
				if want == nil && got != nil || want != nil && !errors.Is(got, want) {
					t.Errorf("notification of %s: %v", tt.method+route, got)
				}
			}
		}
		// Nothing is left of it in the next message of the same Context.
		w.caller.CallWith(patient(t), "/own", nil, nil) //nolint:errcheck // as above
		recv(t, outcomes, "outcome")
		must(t, w.caller.CallWith(patient(t), "/ok", nil, nil))
		if err := recv(t, outcomes, "outcome"); err != nil {
			t.Errorf("%v", err)
		}
		// Streams.
		h.HandleStream("/reset", func(s *Stream) { s.Reset(own) })
		h.HandleStream("/return", func(s *Stream) { s.Recv(nil) })
		NewBidiStream[string, string]("/typed").Handle(h, func(TypedStream[string, string]) error { return own })
		for method, want := range map[string]error{"/reset": own, "/return": nil, "/typed": own} {
			s, err := w.caller.OpenStream(patient(t), method)
			must(t, err)
			must(t, s.CloseSend())
			if err := recv(t, outcomes, "outcome"); want == nil && err != nil || !errors.Is(err, want) {
				t.Errorf("stream %s: %v", method, err)
			}
		}
		// Callbacks have none.
		ended := make(chan error, 1)
		must(t, w.caller.CallAsync("/own", nil, func(c *Context) { ended <- c.Outcome() }, patience))
		if err := recv(t, ended, "callback"); err != nil {
			t.Errorf("%v", err)
		}
	})
}

// gauges are what Stats say of the moment.
func gauges(s Stats) Stats {
	return Stats{Connections: s.Connections, Streams: s.Streams, Calls: s.Calls, SendQueue: s.SendQueue, Requests: s.Requests}
}

func TestStatsBeforeRun(t *testing.T) {
	s := NewServer(NewHandler())
	if got := s.Stats(); got != (Stats{}) {
		t.Errorf("%+v", got)
	}
	must(t, s.Stop())
	if got := s.Stats(); got != (Stats{}) {
		t.Errorf("%+v", got)
	}
}

func TestStats(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		rest := func(what string, want Stats, of ...func() Stats) {
			t.Helper()
			var got Stats
			for _, f := range of {
				eventually(t, fmt.Sprintf("%s: %+v", what, want), func() bool { got = gauges(f()); return got == want })
			}
		}
		server, dialled := w.server.Stats, w.client.Stats
		caller, callee := w.caller.Stats, w.callee.Stats
		rest("at first", Stats{Connections: 1}, server, dialled, caller, callee)
		// Calls that handlers hold.
		entered, release := make(chan struct{}, 10), make(chan struct{})
		w.callee.Handler.Handle("/wait", func(c *Context) { entered <- struct{}{}; <-release; c.Write(nil) }, true)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { w.caller.Call("/wait", nil, nil, patience) })
		}
		for range 10 {
			recv(t, entered, "handler")
		}
		rest("calls", Stats{Connections: 1, Calls: 10}, caller)
		rest("calls of the peer", Stats{Connections: 1}, callee)
		close(release)
		waitGroup(t, &wg, "end of the calls")
		rest("no calls", Stats{Connections: 1}, server, dialled, caller, callee)
		// Streams.
		w.callee.Handler.HandleStream("/stream", func(s *Stream) { entered <- struct{}{}; s.Recv(nil) })
		var streams []*Stream
		for range 5 {
			s, err := w.caller.OpenStream(patient(t), "/stream")
			must(t, err)
			streams = append(streams, s)
			go s.Recv(nil) //nolint:errcheck // opens it
			recv(t, entered, "handler")
		}
		rest("streams", Stats{Connections: 1, Streams: 5}, server, dialled, caller, callee)
		for _, s := range streams {
			s.Reset(nil)
		}
		rest("no streams", Stats{Connections: 1}, server, dialled, caller, callee)
		// Requests behind a handler that blocks, in messages of 100 bytes, each in a segment of its own.
		w.fenced()
		block := make(chan struct{})
		w.callee.Handler.Handle("/block", func(c *Context) { entered <- struct{}{}; <-block })
		must(t, w.caller.Notify("/block", nil, patience))
		recv(t, entered, "handler")
		w.callee.Handler.Handle("/line", func(*Context) {})
		payload := make([]byte, 100-HeadLen-len("/line"))
		for range 10 {
			must(t, w.caller.Notify("/line", payload, patience))
			w.fence(t)
		}
		for _, f := range []func() Stats{callee, w.callee.ownStats(w)} {
			// Each counts a little for itself.
			if n := f().Requests; n < 1000 || n > 2000 {
				t.Errorf("%d bytes of requests in line, there are 1000", n)
			}
		}
		rest("requests of the other", Stats{Connections: 1}, caller)
		close(block)
		must(t, w.caller.Call("/last", nil, nil, patience))
		rest("nothing in line", Stats{Connections: 1}, server, dialled, caller, callee)
		if got := server(); got.Accepted != 1 || got.ProtocolErrors != 0 || got.AcceptErrors != 0 || got.RefusedLimit != 0 || got.OpenErrors != 0 {
			t.Errorf("%+v", got)
		}
		// And then it is over.
		w.client.Stop()
		rest("after the end", Stats{}, server, dialled, caller, callee)
		if dialled().MessagesIn == 0 || server().MessagesIn == 0 {
			t.Error("the counters are gone")
		}
		must(t, w.client.Restart())
		rest("after Restart", Stats{Connections: 1}, server, dialled)
		if got := server(); got.Accepted != 2 {
			t.Errorf("%+v", got)
		}
	})
}

// What has happened is the same at both ends, and is what was sent.
func TestStatsCount(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		w.callee.Handler.Handle("/echo", echo)
		for range 50 {
			must(t, w.caller.Call("/echo", "payload", nil, patience))
			must(t, w.caller.Notify("/echo", "payload", patience))
		}
		l := w.client.link.Load()
		size := int64(HeadLen + len("/echo") + len("payload"))
		hello := int64(len(helloFrame(CmdPing, l.ourHello(ourFeatures))))                                                   // one goes each way
		out := Stats{MessagesOut: 1 + 100, BytesOut: hello + 100*size + 50*4, MessagesIn: 1 + 50, BytesIn: hello + 50*size} // calls have deadlines
		in := Stats{MessagesOut: out.MessagesIn, BytesOut: out.BytesIn, MessagesIn: out.MessagesOut, BytesIn: out.BytesOut}
		if w.caller != w.client {
			out, in = in, out
		}
		count := func(s Stats) Stats {
			return Stats{MessagesOut: s.MessagesOut, BytesOut: s.BytesOut, MessagesIn: s.MessagesIn, BytesIn: s.BytesIn}
		}
		eventually(t, fmt.Sprintf("counters %+v, %+v; they are %+v, %+v", out, in, w.client.Stats(), w.server.Stats()), func() bool {
			return count(w.client.Stats()) == out && count(w.server.Stats()) == in
		})
	})
}

// ownStats returns the Stats of whoever has the connection: the server, or the client.
func (c *Client) ownStats(w *way) func() Stats {
	if c == w.client {
		return c.Stats
	}
	return w.server.Stats
}

// Requests that arrive in one segment with the one that blocks are in line too.
func TestStatsOfOneSegment(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		entered, block := make(chan struct{}), make(chan struct{})
		s.Handler.Handle("/block", func(*Context) { entered <- struct{}{}; <-block })
		s.Handler.Handle("/line", func(*Context) {})
		p := dialGreeted(t, s.addr, fullHello())
		frames := [][]byte{frameOf(CmdNotify, 0, 1, "/block", "")}
		for range 10 {
			frames = append(frames, frameOf(CmdNotify, 0, 2, "/line", string(make([]byte, 100-HeadLen-len("/line")))))
		}
		p.send(frames...)
		recv(t, entered, "handler")
		for what, f := range map[string]func() Stats{"server": s.Stats, "client": s.waitClients(t, 1)[0].Stats} {
			eventually(t, what+": the bytes in line", func() bool { n := f().Requests; return n >= 1000 && n <= 2000 })
		}
		close(block)
		eventually(t, "nothing in line", func() bool { return s.Stats().Requests == 0 })
	})
}

// What a peer does not read waits to be sent.
func TestStatsOfSendQueue(t *testing.T) {
	limits := Limits{SendHigh: 256 << 10}
	check := func(t *testing.T, c *Client, p *rawPeer, stats ...func() Stats) {
		fill(t, c)
		for _, f := range stats {
			if n := f().SendQueue; n < 256<<10 || n > 1<<20 {
				t.Errorf("%d bytes wait to be sent", n)
			}
		}
		go io.Copy(io.Discard, p) //nolint:errcheck // it ends with the connection
		for _, f := range stats {
			eventually(t, "nothing waits to be sent", func() bool { return f().SendQueue == 0 })
		}
	}
	t.Run("client", func(t *testing.T) {
		c, p := acceptGreeted(t, fullHello(), limits)
		check(t, c, p, c.Stats)
	})
	t.Run("server", func(t *testing.T) {
		onAdapters(t, func(t *testing.T, adapter ServerOption) {
			s := startServer(t, adapter, limits)
			p := dialGreeted(t, s.addr, fullHello())
			c := s.waitClients(t, 1)[0]
			check(t, c, p, s.Stats, c.Stats)
		})
	})
}

func TestStatsOfFaults(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter, Limits{Connections: 1})
		p := dialGreeted(t, s.addr, fullHello())
		s.waitClients(t, 1)
		if nc, err := net.Dial("tcp", s.addr); err == nil { // it may be reset at once
			newRaw(t, nc).end()
		}
		eventually(t, "a refused connection", func() bool { return s.Stats().RefusedLimit == 1 })
		p.send(frameOf(CmdResponse, 0, 99, "/nobody", "")) // an answer that nobody waits for
		p.send(frameOf(15, 0, 1, "", ""))                  // no such command
		p.end()
		eventually(t, "malformed messages", func() bool { return s.Stats().ProtocolErrors == 2 && s.Stats().Connections == 0 })
		if got := s.Stats(); got.Silent != 0 || got.Stalled != 0 || got.RefusedFiles != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// Without an Observer, and with contexts that say nothing, a call costs no more memory than before there were any.
func TestCallAllocations(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	ln, dial := Pipe()
	s := startServerOn(t, ln)
	s.Handler.Handle("/echo", func(c *Context) { c.Write(c.Body()) })
	s.Handler.Handle("/note", func(*Context) {})
	c := dialClientBy(t, dial)
	ctx := patient(t)
	req := make([]byte, 64)
	done := make(chan struct{}, 1)
	callback := func(*Context) { done <- struct{}{} }
	for _, tt := range []struct {
		name string
		f    func()
		want float64
	}{
		{"Call", func() { c.Call("/echo", req, nil, patience) }, callAllocs},
		{"CallWith", func() { c.CallWith(ctx, "/echo", req, nil) }, callAllocs},
		{"CallWith of no deadline", func() { c.CallWith(context.Background(), "/echo", req, nil) }, callAllocs},
		{"CallAsync", func() { c.CallAsync("/echo", req, callback, patience); <-done }, callAllocs},
		{"Notify", func() { c.Notify("/note", req, patience); c.Call("/echo", nil, nil, patience) }, callAllocs},
		{"NotifyWith", func() { c.NotifyWith(ctx, "/note", req); c.Call("/echo", nil, nil, patience) }, callAllocs},
	} {
		best := math.Inf(1)
		for range 20 { // what else runs may allocate
			if best = min(best, testing.AllocsPerRun(200, tt.f)); best <= tt.want {
				break
			}
		}
		if best > tt.want {
			t.Errorf("%s: %v allocations, want %v", tt.name, best, tt.want)
		}
	}
}

// callAllocs is what both ends together allocate for a call: the two slices that become values of interfaces.
const callAllocs = 2
