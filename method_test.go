package arpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

type addRequest struct{ A, B int }

type addResponse struct{ Sum int }

func add(_ *Context, r *addRequest) (*addResponse, error) { return &addResponse{r.A + r.B}, nil }

func TestMethod(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		for _, list := range [][]Trait{nil, {Ordered}, {Async}, {Inline}, {Idempotent}, {Async, Idempotent}} {
			name := fmt.Sprint("/add", list)
			m := NewMethod[addRequest, addResponse](name, list...)
			m.Handle(w.callee.Handler, add)
			res, err := m.Call(patient(t), w.caller, &addRequest{2, 3})
			if err != nil || *res != (addResponse{5}) {
				t.Errorf("%s: %v, %v", name, res, err)
			}
			type end struct {
				res *addResponse
				err error
			}
			ends := make(chan end, 2)
			m.CallAsync(w.caller, &addRequest{20, 30}, func(r *addResponse, err error) { ends <- end{r, err} }, patience)
			if e := recv(t, ends, "callback"); e.err != nil || *e.res != (addResponse{50}) {
				t.Errorf("%s: %v, %v", name, e.res, e.err)
			}
			// The same method without types.
			var sum addResponse
			if err := w.caller.Call(name, addRequest{1, 1}, &sum, patience); err != nil || sum.Sum != 2 {
				t.Errorf("%s: %v, %v", name, sum, err)
			}
			var text string
			if err := w.caller.Call(name, `{"A":7,"B":8}`, &text, patience); err != nil || text != `{"Sum":15}` {
				t.Errorf("%s: %s, %v", name, text, err)
			}
		}
	})
}

func TestTraits(t *testing.T) {
	for _, tt := range []struct {
		list       []Trait
		mode       mode
		idempotent bool
	}{
		{nil, modeOrdered, false}, {[]Trait{Ordered}, modeOrdered, false}, {[]Trait{Async}, modeAsync, false},
		{[]Trait{Inline}, modeInline, false},
		{[]Trait{Idempotent}, modeOrdered, true}, {[]Trait{Idempotent, Async}, modeAsync, true},
		{[]Trait{Inline, Idempotent}, modeInline, true},
	} {
		h := NewHandler()
		m := NewMethod[addRequest, addResponse]("/add", tt.list...)
		m.Handle(h, add)
		if m.Name() != "/add" || m.IsIdempotent() != tt.idempotent || h.load().routes["/add"].mode != tt.mode {
			t.Errorf("%v: %q, %v, mode %v", tt.list, m.Name(), m.IsIdempotent(), h.load().routes["/add"].mode)
		}
		for _, x := range []interface{ IsIdempotent() bool }{
			NewServerStream[addRequest, addResponse]("/s", tt.list...), NewClientStream[addRequest, addResponse]("/s", tt.list...),
			NewBidiStream[addRequest, addResponse]("/s", tt.list...),
		} {
			if x.IsIdempotent() != tt.idempotent {
				t.Errorf("%T with %v: %v", x, tt.list, x.IsIdempotent())
			}
		}
	}
	// Inline and Async do run so: they pass a handler that blocks.
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		entered, release := make(chan struct{}), make(chan struct{})
		NewMethod[string, string]("/block").Handle(w.callee.Handler, func(*Context, *string) (*string, error) {
			entered <- struct{}{}
			<-release
			return nil, nil
		})
		var ordered atomic.Bool
		for _, tt := range []struct {
			name string
			list []Trait
		}{{"/ordered", nil}, {"/async", []Trait{Async}}, {"/inline", []Trait{Inline}}} {
			NewMethod[string, string](tt.name, tt.list...).Handle(w.callee.Handler, func(_ *Context, s *string) (*string, error) {
				if tt.name == "/ordered" {
					ordered.Store(true)
				}
				return s, nil
			})
		}
		ends := make(chan error, 2)
		go func() { ends <- w.caller.Call("/block", nil, nil, patience) }()
		recv(t, entered, "handler")
		must(t, w.caller.CallAsync("/ordered", nil, func(c *Context) { ends <- c.Err() }, patience))
		for _, name := range []string{"/async", "/inline"} {
			text := name
			if res, err := NewMethod[string, string](name).Call(patient(t), w.caller, &text); err != nil || *res != name {
				t.Errorf("%s: %v, %v", name, res, err)
			}
		}
		if ordered.Load() {
			t.Error("an ordered handler has passed another")
		}
		close(release)
		must(t, recv(t, ends, "end of a call"))
		must(t, recv(t, ends, "end of a call"))
	})
}

func panics(f func()) (what any) {
	defer func() { what = recover() }()
	f()
	return nil
}

func TestMethodPanics(t *testing.T) {
	h := NewHandler()
	m := NewMethod[addRequest, addResponse](strings.Repeat("m", MaxMethodLen))
	m.Handle(h, add)
	bidi := NewBidiStream[addRequest, addResponse]("/s")
	bidi.Handle(h, func(TypedStream[addResponse, addRequest]) error { return nil })
	for _, tt := range []struct {
		name string
		f    func()
	}{
		{"empty name", func() { NewMethod[int, int]("") }},
		{"long name", func() { NewMethod[int, int](strings.Repeat("m", MaxMethodLen+1)) }},
		{"empty name of a server stream", func() { NewServerStream[int, int]("") }},
		{"empty name of a client stream", func() { NewClientStream[int, int]("") }},
		{"long name of a stream", func() { NewBidiStream[int, int](strings.Repeat("m", MaxMethodLen+1)) }},
		{"registered twice", func() { m.Handle(h, add) }},
		{"stream registered twice", func() { bidi.Handle(h, func(TypedStream[addResponse, addRequest]) error { return nil }) }},
	} {
		if p := panics(tt.f); p == nil || !strings.HasPrefix(fmt.Sprint(p), "arpc: ") {
			t.Errorf("%s: %v", tt.name, p)
		}
	}
}

// Bytes and texts travel raw.
func TestMethodRawTypes(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		raw := "\x00\xff not JSON"
		seen := make(chan string, 1)
		bytesToText := NewMethod[[]byte, string]("/bt")
		bytesToText.Handle(w.callee.Handler, func(c *Context, b *[]byte) (*string, error) {
			seen <- string(c.Body())
			text := string(*b) + "!"
			clear(*b) // it is the handler's own
			if string(c.Body()) != text[:len(text)-1] {
				t.Error("the request shares memory with the message")
			}
			return &text, nil
		})
		textToBytes := NewMethod[string, []byte]("/tb")
		textToBytes.Handle(w.callee.Handler, func(c *Context, text *string) (*[]byte, error) {
			seen <- string(c.Body())
			b := []byte(*text + "?")
			return &b, nil
		})
		in := []byte(raw)
		if res, err := bytesToText.Call(patient(t), w.caller, &in); err != nil || *res != raw+"!" ||
			recv(t, seen, "request") != raw {
			t.Errorf("%v, %v", res, err)
		}
		if res, err := textToBytes.Call(patient(t), w.caller, &raw); err != nil || string(*res) != raw+"?" ||
			recv(t, seen, "request") != raw {
			t.Errorf("%v, %v", res, err)
		}
		// Nothing at all.
		if res, err := bytesToText.Call(patient(t), w.caller, nil); err != nil || *res != "!" ||
			recv(t, seen, "request") != "" {
			t.Errorf("%v, %v", res, err)
		}
		if res, err := textToBytes.Call(patient(t), w.caller, nil); err != nil || string(*res) != "?" ||
			recv(t, seen, "request") != "" {
			t.Errorf("%v, %v", res, err)
		}
		NewMethod[string, string]("/nil").Handle(w.callee.Handler, func(*Context, *string) (*string, error) { return nil, nil })
		if res, err := NewMethod[string, string]("/nil").Call(patient(t), w.caller, &raw); err != nil || res == nil ||
			*res != "" {
			t.Errorf("%v, %v", res, err)
		}
	})
}

// A nil request or response is the zero value at the other end.
func TestMethodNil(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		m := NewMethod[addRequest, addResponse]("/add")
		m.Handle(w.callee.Handler, func(c *Context, r *addRequest) (*addResponse, error) {
			if r == nil || *r != (addRequest{}) {
				t.Errorf("the handler has %v", r)
			}
			return nil, nil
		})
		res, err := m.Call(patient(t), w.caller, nil)
		if err != nil || res == nil || *res != (addResponse{}) {
			t.Errorf("%v, %v", res, err)
		}
		done := make(chan struct{})
		m.CallAsync(w.caller, nil, func(res *addResponse, err error) {
			defer close(done)
			if err != nil || res == nil || *res != (addResponse{}) {
				t.Errorf("%v, %v", res, err)
			}
		}, patience)
		recv(t, done, "callback")
	})
}

func TestMethodUndecodable(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		var ran atomic.Int32
		for _, trait := range []Trait{Ordered, Async, Inline} {
			name := fmt.Sprint("/add", trait)
			m := NewMethod[addRequest, addResponse](name, trait)
			m.Handle(w.callee.Handler, func(c *Context, r *addRequest) (*addResponse, error) {
				ran.Add(1)
				return add(c, r)
			})
			for _, body := range []string{"", "{", "[]", `{"A":"text"}`, "\x00"} {
				err := w.caller.Call(name, body, nil, patience)
				var e *Error
				if !errors.As(err, &e) || e.Code != CodeInvalidArgument || !e.Remote ||
					!strings.HasPrefix(e.Message, "malformed request: ") {
					t.Errorf("%s with %q: %v (%v)", name, body, err, CodeOf(err))
				}
				must(t, w.caller.Notify(name, body, patience))
			}
			if res, err := m.Call(patient(t), w.caller, &addRequest{1, 2}); err != nil || res.Sum != 3 {
				t.Errorf("%s: %v, %v", name, res, err)
			}
			if n := ran.Swap(0); n != 1 {
				t.Errorf("%s: the handler ran %d times", name, n)
			}
		}
		// An answer that cannot be decoded is the caller's own affair.
		w.callee.Handler.Handle("/bad", func(c *Context) { c.Write("not JSON") })
		m := NewMethod[addRequest, addResponse]("/bad")
		if res, err := m.Call(patient(t), w.caller, &addRequest{}); err == nil || res != nil || CodeOf(err) != CodeUnknown {
			t.Errorf("%v, %v", res, err)
		}
		done := make(chan struct{})
		m.CallAsync(w.caller, &addRequest{}, func(res *addResponse, err error) {
			defer close(done)
			if err == nil || res != nil {
				t.Errorf("%v, %v", res, err)
			}
		}, patience)
		recv(t, done, "callback")
		// And what cannot be encoded is not sent.
		if _, err := NewMethod[chan int, string]("/bad").Call(patient(t), w.caller, new(chan int)); err == nil {
			t.Error("a channel was encoded")
		}
		NewMethod[string, func()]("/func").Handle(w.callee.Handler, func(*Context, *string) (*func(), error) {
			f := func() {}
			return &f, nil
		})
		if err := w.caller.Call("/func", nil, nil, patience); CodeOf(err) != CodeInternal {
			t.Errorf("an answer that cannot be encoded: %v", err)
		}
	})
}

func TestMethodErrors(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		var current error
		m := NewMethod[string, string]("/m")
		m.Handle(w.callee.Handler, func(*Context, *string) (*string, error) {
			text := "ignored"
			return &text, current
		})
		for _, tt := range []struct {
			err  error
			code Code
			text string
		}{
			{errors.New("plain"), CodeUnknown, "plain"}, {CodeNotFound, CodeNotFound, "not_found"},
			{&Error{Code: CodeAborted, Message: "m"}, CodeAborted, "m"}, {io.EOF, CodeUnknown, "EOF"},
			{fmt.Errorf("wrapped: %w", CodeDataLoss), CodeDataLoss, "wrapped: data_loss"},
		} {
			current = tt.err
			res, err := m.Call(patient(t), w.caller, new(string))
			var e *Error
			if res != nil || !errors.As(err, &e) || e.Code != tt.code || e.Message != tt.text || !e.Remote {
				t.Errorf("%v: %v, %#v", tt.err, res, err)
			}
		}
		NewMethod[string, string]("/panic").Handle(w.callee.Handler, func(*Context, *string) (*string, error) { panic("by intention") })
		if _, err := NewMethod[string, string]("/panic").Call(patient(t), w.caller, new(string)); CodeOf(err) != CodeInternal {
			t.Errorf("a panic: %v", err)
		}
		if _, err := NewMethod[string, string]("/missing").Call(patient(t), w.caller, new(string)); !errors.Is(err, ErrMethodNotFound) {
			t.Errorf("a method that does not exist: %v", err)
		}
	})
}

// A typed handler may answer by itself, before it returns or later.
func TestMethodAnswersByItself(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		for _, trait := range []Trait{Ordered, Async, Inline} {
			for _, tt := range []struct {
				name string
				f    func(c *Context, s *string) (*string, error)
			}{
				{"now", func(c *Context, s *string) (*string, error) {
					must(t, c.Write(*s+" by itself"))
					text := "dropped"
					return &text, nil
				}},
				{"now, and an error", func(c *Context, s *string) (*string, error) {
					must(t, c.Write(*s+" by itself"))
					return nil, CodeAborted
				}},
				{"later", func(c *Context, s *string) (*string, error) {
					c.AnswerLater()
					go func() {
						if c.Message.Method() == "" || c.Client == nil {
							t.Error("the Context is no longer valid")
						}
						must(t, c.Write(*s+" by itself"))
						if err := c.Write("twice"); !errors.Is(err, ErrAnswered) {
							t.Errorf("the second answer: %v", err)
						}
					}()
					return nil, nil
				}},
				{"later, and an error", func(c *Context, s *string) (*string, error) {
					c.AnswerLater()
					go c.Write(*s + " by itself") //nolint:errcheck // the caller sees it
					return nil, CodeAborted
				}},
			} {
				name := fmt.Sprint(tt.name, trait)
				m := NewMethod[string, string](name, trait)
				m.Handle(w.callee.Handler, tt.f)
				text := "text"
				if res, err := m.Call(patient(t), w.caller, &text); err != nil || *res != "text by itself" {
					t.Errorf("%s: %v, %v", name, res, err)
				}
			}
		}
	})
}

func TestMethodNotify(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		seen := make(chan addRequest, 1)
		for _, trait := range []Trait{Ordered, Async, Inline} {
			m := NewMethod[addRequest, addResponse](fmt.Sprint("/n", trait), trait)
			m.Handle(w.callee.Handler, func(c *Context, r *addRequest) (*addResponse, error) {
				if c.Message.Cmd() != CmdNotify {
					t.Errorf("command %d", c.Message.Cmd())
				}
				seen <- *r
				if r.A == 1 {
					return nil, CodeAborted // nobody is told
				}
				return &addResponse{}, nil
			})
			for a := range 2 {
				must(t, m.Notify(patient(t), w.caller, &addRequest{a, 9}))
				if r := recv(t, seen, "notification"); r != (addRequest{a, 9}) {
					t.Errorf("%v", r)
				}
			}
			canceled, cancel := context.WithCancel(context.Background())
			cancel()
			if err := m.Notify(canceled, w.caller, &addRequest{}); CodeOf(err) != CodeCanceled {
				t.Error(err)
			}
		}
		if calls, _, _ := tables(w.caller); calls != 0 {
			t.Errorf("%d calls are kept", calls)
		}
	})
}

// The callback runs once, whatever happens.
func TestMethodCallAsyncOnce(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		NewMethod[string, string]("/ok").Handle(w.callee.Handler, func(_ *Context, s *string) (*string, error) { return s, nil })
		NewMethod[string, string]("/fail").Handle(w.callee.Handler, func(*Context, *string) (*string, error) { return nil, CodeAborted })
		release := make(chan struct{})
		NewMethod[string, string]("/wait", Async).Handle(w.callee.Handler, func(c *Context, _ *string) (*string, error) {
			<-release
			return nil, nil
		})
		type end struct {
			id  int
			res *string
			err error
		}
		ends := make(chan end, 1000)
		n := 0
		var codes []Code
		start := func(code Code, name string, timeout time.Duration) {
			id := n
			n++
			codes = append(codes, code)
			text := "text"
			NewMethod[string, string](name).CallAsync(w.caller, &text, func(res *string, err error) { ends <- end{id, res, err} }, timeout)
		}
		runs := map[int]int{}
		collect := func() {
			for len(runs) < n {
				e := recv(t, ends, "callback")
				if runs[e.id]++; CodeOf(e.err) != codes[e.id] || (e.res != nil) != (e.err == nil) || e.res != nil &&
					*e.res != "text" {
					t.Errorf("call %d: %v, %v, want %v", e.id, e.res, e.err, codes[e.id])
				}
			}
		}
		for range 10 {
			start(0, "/ok", patience)
			start(CodeAborted, "/fail", patience)
			start(CodeUnimplemented, "/missing", patience)
			start(CodeInvalidArgument, "/ok", 0)
			start(CodeInvalidArgument, "/ok", -1)
			start(CodeDeadlineExceeded, "/wait", time.Millisecond)
		}
		id := n
		NewMethod[chan int, string]("/ok").CallAsync(w.caller, new(chan int), func(res *string, err error) { ends <- end{id, res, err} }, patience)
		n++
		codes = append(codes, CodeUnknown) // the Codec's error
		collect()
		close(release) // the late answers do nothing
		must(t, w.caller.Call("/ok", nil, nil, patience))
		// The end of the connection is an end too, and afterwards there is nothing to call on.
		w.callee.Handler.Handle("/never", func(c *Context) { c.AnswerLater() }, true)
		for range 10 {
			start(CodeUnavailable, "/never", patience)
		}
		w.caller.Stop()
		for range 10 {
			start(CodeUnavailable, "/ok", patience)
		}
		collect()
		for id, k := range runs {
			if k != 1 {
				t.Errorf("the callback of call %d ran %d times", id, k)
			}
		}
		if len(ends) > 0 {
			t.Errorf("%d callbacks ran twice", len(ends))
		}
	})
}

func TestStreamShapes(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		h := w.callee.Handler
		count := NewServerStream[addRequest, addResponse]("/count")
		count.Handle(h, func(s TypedStream[addResponse, addRequest], r *addRequest) error {
			for i := r.A; i < r.B; i++ {
				if err := s.Send(&addResponse{i}); err != nil {
					return err
				}
			}
			if r.A > r.B {
				return &Error{Code: CodeOutOfRange, Message: "backwards"}
			}
			return nil
		})
		sum := NewClientStream[addRequest, addResponse]("/sum")
		sum.Handle(h, func(s TypedStream[addResponse, addRequest]) (*addResponse, error) {
			total := 0
			for r, err := range s.All() {
				if err != nil {
					return nil, err
				}
				if r.A < 0 {
					return nil, CodeOutOfRange
				}
				total += r.A + r.B
			}
			return &addResponse{total}, nil
		})
		each := NewBidiStream[addRequest, addResponse]("/each")
		each.Handle(h, func(s TypedStream[addResponse, addRequest]) error {
			for r, err := range s.All() {
				if err != nil {
					return err
				}
				if err := s.Send(&addResponse{r.A + r.B}); err != nil {
					return err
				}
			}
			return nil
		})

		got := 3
		cs, err := count.Call(patient(t), w.caller, &addRequest{3, 50})
		must(t, err)
		for r, err := range cs.All() {
			if err != nil || r.Sum != got {
				t.Fatalf("message %d is %v, %v", got, r, err)
			}
			got++
		}
		if got != 50 {
			t.Errorf("the stream ended at %d", got)
		}
		if err := cs.Send(&addRequest{}); CodeOf(err) != CodeFailedPrecondition && CodeOf(err) != CodeCanceled {
			t.Errorf("sending after the request: %v", err)
		}
		cs, err = count.Call(patient(t), w.caller, &addRequest{5, 4})
		must(t, err)
		if r, err := cs.Recv(); r != nil || CodeOf(err) != CodeOutOfRange || err.Error() != "backwards" {
			t.Errorf("%v, %v", r, err)
		}

		ss, err := sum.Open(patient(t), w.caller)
		must(t, err)
		for i := range 10 {
			must(t, ss.Send(&addRequest{i, 1}))
		}
		if r, err := ss.CloseAndRecv(); err != nil || r.Sum != 55 {
			t.Errorf("%v, %v", r, err)
		}
		ss, err = sum.Open(patient(t), w.caller)
		must(t, err)
		if r, err := ss.CloseAndRecv(); err != nil || r.Sum != 0 { // no message at all
			t.Errorf("%v, %v", r, err)
		}
		ss, err = sum.Open(patient(t), w.caller)
		must(t, err)
		must(t, ss.SendAndClose(&addRequest{-1, 0}))
		if r, err := ss.Recv(); r != nil || !errors.Is(err, CodeOutOfRange) {
			t.Errorf("%v, %v", r, err)
		}

		es, err := each.Open(patient(t), w.caller)
		must(t, err)
		for i := range 10 {
			must(t, es.Send(&addRequest{i, i}))
			if r, err := es.Recv(); err != nil || r.Sum != 2*i {
				t.Errorf("%v, %v", r, err)
			}
		}
		must(t, es.TrySend(&addRequest{1, 1}))
		must(t, es.CloseSend())
		if r, err := es.Recv(); err != nil || r.Sum != 2 {
			t.Errorf("%v, %v", r, err)
		}
		if r, err := es.Recv(); r != nil || err != io.EOF {
			t.Errorf("%v, %v", r, err)
		}

		// What goes wrong.
		st, err := w.caller.OpenStream(patient(t), "/count")
		must(t, err)
		must(t, st.CloseSend())
		if err := st.Recv(nil); CodeOf(err) != CodeInvalidArgument || err.Error() != "the stream carries no request" {
			t.Errorf("no request: %v", err)
		}
		st, err = w.caller.OpenStream(patient(t), "/count")
		must(t, err)
		must(t, st.SendAndClose("not JSON"))
		if err := st.Recv(nil); CodeOf(err) != CodeInvalidArgument || !strings.HasPrefix(err.Error(), "malformed request: ") {
			t.Errorf("a malformed request: %v", err)
		}
		h.HandleStream("/nothing", func(s *Stream) { s.Recv(nil) }) //nolint:errcheck // it returns without an answer
		ss, err = NewClientStream[addRequest, addResponse]("/nothing").Open(patient(t), w.caller)
		must(t, err)
		if r, err := ss.CloseAndRecv(); r != nil || CodeOf(err) != CodeInternal ||
			err.Error() != "the stream carries no answer" {
			t.Errorf("no answer: %v, %v", r, err)
		}
		missing, err := NewBidiStream[addRequest, addResponse]("/missing").Open(patient(t), w.caller)
		must(t, err)
		if r, err := missing.Recv(); r != nil || CodeOf(err) != CodeUnimplemented {
			t.Errorf("a stream that nobody handles: %v, %v", r, err)
		}
		canceled, cancel := context.WithCancel(context.Background())
		cancel()
		_, err1 := count.Call(canceled, w.caller, &addRequest{})
		_, err2 := sum.Open(canceled, w.caller)
		_, err3 := each.Open(canceled, w.caller)
		for _, err := range []error{err1, err2, err3} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("with a context that is over: %v", err)
			}
		}
	})
}

// service has methods of all kinds.
type service struct{ seen chan context.Context }

func (s *service) Add(ctx context.Context, r *addRequest) (*addResponse, error) {
	if s.seen != nil {
		s.seen <- ctx
	}
	return &addResponse{r.A + r.B}, nil
}
func (*service) Fail(context.Context, *addRequest) (*addResponse, error) { return nil, CodeAborted }
func (*service) Nil(context.Context, *addRequest) (*addResponse, error)  { return nil, nil }
func (*service) Text(_ context.Context, s *string) (*[]byte, error) {
	b := []byte(*s + "!")
	return &b, nil
}
func (*service) Panic(context.Context, *addRequest) (*addResponse, error) { panic("by intention") }

// Itself answers on its own.
func (*service) Itself(ctx context.Context, _ *addRequest) (*addResponse, error) {
	c := ctx.(*Context)
	c.AnswerLater()
	go c.Write(&addResponse{77}) //nolint:errcheck // the caller sees it
	return &addResponse{1}, nil
}

// The others do not have the form.
func (*service) NoContext(*addRequest) (*addResponse, error)              { return nil, nil }
func (*service) OtherContext(*Context, *addRequest) (*addResponse, error) { return nil, nil }
func (*service) Value(context.Context, addRequest) (*addResponse, error)  { return nil, nil }
func (*service) ValueBack(context.Context, *addRequest) (addResponse, error) {
	return addResponse{}, nil
}
func (*service) NoError(context.Context, *addRequest) *addResponse              { return nil }
func (*service) OtherError(context.Context, *addRequest) (*addResponse, *Error) { return nil, nil }
func (*service) More(context.Context, *addRequest, *addRequest) (*addResponse, error) {
	return nil, nil
}
func (*service) Variadic(context.Context, ...*addRequest) (*addResponse, error) { return nil, nil }
func (*service) Three(context.Context, *addRequest) (*addResponse, int, error)  { return nil, 0, nil }
func (*service) Nothing()                                                       {}
func (*service) hidden(context.Context, *addRequest) (*addResponse, error)      { return nil, nil }

// values has its methods on the value.
type values struct{ factor int }

func (v values) Times(_ context.Context, r *addRequest) (*addResponse, error) {
	return &addResponse{v.factor * r.A}, nil
}

type embedding struct{ *service }

type unfit struct{}

func (unfit) Other() {}

func TestRegister(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		h := w.callee.Handler
		s := &service{seen: make(chan context.Context, 1)}
		s.hidden(context.Background(), nil) //nolint:errcheck // it is used
		must(t, h.Register("math", s))
		must(t, h.Register("", values{3}))
		must(t, h.Register("pointer", &values{4}))
		must(t, h.Register("embedded", embedding{&service{}}))
		want := map[string]bool{"Times": true, "pointer.Times": true}
		for _, m := range []string{"Add", "Fail", "Nil", "Text", "Panic", "Itself"} {
			want["math."+m], want["embedded."+m] = true, true
		}
		for name, r := range h.load().routes {
			if !want[name] || r.mode != modeOrdered {
				t.Errorf("%q is registered, mode %v", name, r.mode)
			}
			delete(want, name)
		}
		if len(want) > 0 {
			t.Errorf("not registered: %v", want)
		}
		call := func(name string) (*addResponse, error) {
			return NewMethod[addRequest, addResponse](name).Call(patient(t), w.caller, &addRequest{2, 3})
		}
		for name, sum := range map[string]int{"math.Add": 5, "embedded.Add": 5, "Times": 6, "pointer.Times": 8, "math.Itself": 77} {
			if res, err := call(name); err != nil || res.Sum != sum {
				t.Errorf("%s: %v, %v", name, res, err)
			}
		}
		ctx := recv(t, s.seen, "context")
		if c, ok := ctx.(*Context); !ok || c.Client != w.callee {
			t.Errorf("the context is a %T", ctx)
		}
		if _, err := call("math.Fail"); CodeOf(err) != CodeAborted {
			t.Error(err)
		}
		if _, err := call("math.Panic"); CodeOf(err) != CodeInternal {
			t.Error(err)
		}
		if res, err := call("math.Nil"); err != nil || *res != (addResponse{}) { // as a nil response of a Method is
			t.Errorf("a nil response: %v, %v", res, err)
		}
		text := "\xff"
		if res, err := NewMethod[string, []byte]("math.Text").Call(patient(t), w.caller, &text); err != nil ||
			string(*res) != "\xff!" {
			t.Errorf("%v, %v", res, err)
		}
		if err := w.caller.Call("math.Add", "not JSON", nil, patience); CodeOf(err) != CodeInvalidArgument ||
			!strings.HasPrefix(err.Error(), "malformed request: ") {
			t.Error(err)
		}
		if _, err := call("math.Value"); CodeOf(err) != CodeUnimplemented {
			t.Error(err)
		}
		must(t, NewMethod[addRequest, addResponse]("math.Add").Notify(patient(t), w.caller, &addRequest{}))
		recv(t, s.seen, "notification")
	})
}

func TestRegisterErrors(t *testing.T) {
	long := strings.Repeat("n", MaxMethodLen-len(".Add"))
	for _, tt := range []struct {
		name    string
		as      string
		service any
		code    Code
		text    string
	}{
		{"nil", "x", nil, CodeInvalidArgument, "the service is nil"},
		{"a nil pointer", "x", (*service)(nil), CodeInvalidArgument, "the service is nil"},
		{"no methods", "x", 5, CodeInvalidArgument, "int has no method of the form"},
		{"a struct without methods", "x", struct{}{}, CodeInvalidArgument, "has no method of the form"},
		{"no method that fits", "x", unfit{}, CodeInvalidArgument, "arpc.unfit has no method of the form"},
		{"methods of the pointer only", "x", service{}, CodeInvalidArgument, "arpc.service has no method of the form"},
		{"taken by a handler", "math", &service{}, CodeAlreadyExists, `"math.Itself" is registered already`},
		{"taken by a service", "taken", values{}, CodeAlreadyExists, `"taken.Times" is registered already`},
		{"too long for all", strings.Repeat("n", MaxMethodLen), &service{}, CodeInvalidArgument, "invalid method"},
		{"too long for some", long, &service{}, CodeInvalidArgument, "invalid method"},
	} {
		h := NewHandler()
		h.Handle("math.Itself", echo)
		must(t, h.Register("taken", values{}))
		err := h.Register(tt.as, tt.service)
		if CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v (%v)", tt.name, err, CodeOf(err))
		}
		if n := len(h.load().routes); n != 2 {
			t.Errorf("%s: %d routes", tt.name, n)
		}
	}
	must(t, NewHandler().Register(strings.Repeat("n", MaxMethodLen-len(".Times")), values{}))
}
