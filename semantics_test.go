package arpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/arpc-go/arpc/codec"
)

// soon is far above what must happen at once, and far below any timeout of these tests' calls.
const soon = patience / 3

// atOnce fails if what began at start did not end long before the call's timeout.
func atOnce(t *testing.T, start time.Time) {
	t.Helper()
	if d := time.Since(start); d > soon {
		t.Errorf("took %v", d)
	}
}

// callBoth makes a call in both ways and returns how it ended; both must agree.
func callBoth(t *testing.T, c *Client, method string, req any) (string, error) {
	t.Helper()
	start := time.Now()
	var r string
	err := c.Call(method, req, &r, patience)
	type end struct {
		r   string
		err error
	}
	ends := make(chan end, 2)
	if aerr := c.CallAsync(method, req, func(ctx *Context) {
		var e end
		e.err = ctx.Bind(&e.r)
		if cerr := ctx.Err(); fmt.Sprint(cerr) != fmt.Sprint(e.err) {
			t.Errorf("Err is %v, Bind's error %v", cerr, e.err)
		}
		ends <- e
	}, patience); aerr != nil {
		t.Errorf("CallAsync: %v", aerr)
	}
	e := recv(t, ends, "callback")
	if e.r != r || fmt.Sprint(e.err) != fmt.Sprint(err) {
		t.Errorf("Call gives %q, %v; CallAsync gives %q, %v", r, err, e.r, e.err)
	}
	atOnce(t, start)
	return r, err
}

func TestUnknownMethod(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		for _, routes := range []int{0, 3} {
			s := startServer(t, adapter)
			for i := range routes {
				s.Handler.Handle(fmt.Sprint("/", i), echo)
			}
			c := dialClient(t, s.addr)
			check := func(c *Client) {
				t.Helper()
				_, err := callBoth(t, c, "/nothing", "x")
				var e *Error
				if !errors.Is(err, ErrMethodNotFound) || CodeOf(err) != CodeUnimplemented || !errors.As(err, &e) || !e.Remote {
					t.Errorf("with %d routes: %#v", routes, err)
				}
			}
			check(c)
			must(t, c.Notify("/nothing", "x", patience)) // ignored
			check(c)
			check(s.waitClients(t, 1)[0]) // the other direction
		}
	})
}

type panicky struct{}

func (panicky) MarshalJSON() ([]byte, error) { panic("secret at /home/user/file.go:12") }

func TestPanickingHandler(t *testing.T) {
	handlers := map[string]HandlerFunc{
		"text":             func(*Context) { panic("secret") },
		"error":            func(*Context) { panic(errors.New("secret")) },
		"nil pointer":      func(*Context) { var none *Client; _ = none.Codec },
		"index":            func(c *Context) { _ = c.Body()[len(c.Body())+1] },
		"before AnswerLat": func(c *Context) { defer c.AnswerLater(); panic("secret") },
		"in the codec":     func(c *Context) { c.Write(panicky{}) },
		"in the codec, 2":  func(c *Context) { c.Error(panicky{}) },
		"in a middleware":  func(c *Context) { c.Next(); panic("secret") },
	}
	delete(handlers, "before AnswerLat") // who says that he will answer is believed, also when he panics
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		for name, h := range handlers {
			s.Handler.Handle("/ordered/"+name, h)
			s.Handler.Handle("/async/"+name, h, true)
			s.Handler.HandleInline("/inline/"+name, h)
		}
		s.Handler.Handle("/answered", func(c *Context) {
			c.Write("answer")
			panic("secret")
		})
		s.Handler.Handle("/echo", echo)
		c := dialClient(t, s.addr)
		for name := range handlers {
			for _, mode := range []string{"/ordered/", "/async/", "/inline/"} {
				start := time.Now()
				err := c.Call(mode+name, "x", nil, patience/10)
				atOnce(t, start)
				var e *Error
				if CodeOf(err) != CodeInternal || !errors.As(err, &e) || !e.Remote {
					t.Errorf("%s%s: %v", mode, name, err)
				}
				if text := fmt.Sprint(err); strings.ContainsAny(text, "\n\t") || strings.Contains(text, ".go") || strings.Contains(text, "secret") {
					t.Errorf("%s%s tells the peer %q", mode, name, text)
				}
				must(t, c.Notify(mode+name, "x", patience))
			}
		}
		if r, err := callBoth(t, c, "/answered", nil); err != nil || r != "answer" {
			t.Errorf("an answer before the panic: %q, %v", r, err)
		}
		if r, err := callBoth(t, c, "/echo", "still here"); err != nil || r != "still here" {
			t.Errorf("afterwards: %q, %v", r, err)
		}
	})
}

// What the user's code panics with on the way out is the sender's own.
func TestPanicInTheCallersCodec(t *testing.T) {
	s := startServer(t)
	s.Handler.Handle("/echo", echo)
	c := dialClient(t, s.addr)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was lost")
			}
		}()
		c.Call("/echo", panicky{}, nil, patience)
	}()
	if r, err := callBoth(t, c, "/echo", "x"); err != nil || r != "x" {
		t.Errorf("afterwards: %q, %v", r, err)
	}
}

func TestHandlerWithoutAnswer(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		nothing := func(*Context) {}
		s.Handler.Handle("/ordered", nothing)
		s.Handler.Handle("/async", nothing, true)
		s.Handler.HandleInline("/inline", nothing)
		c := dialClient(t, s.addr)
		for _, route := range []string{"/ordered", "/async", "/inline"} {
			if _, err := callBoth(t, c, route, "x"); CodeOf(err) != CodeInternal {
				t.Errorf("%s: %v", route, err)
			}
		}
	})
}

func TestAnswers(t *testing.T) {
	s := startServer(t)
	second := make(chan error, 10)
	for name, h := range map[string]HandlerFunc{
		"/nil":          func(c *Context) { c.Write(nil) },
		"/error":        func(c *Context) { c.Error("bad") },
		"/errorvalue":   func(c *Context) { c.Error(errors.New("bad")) },
		"/write error":  func(c *Context) { c.Write(errors.New("bad")) },
		"/error nil":    func(c *Context) { c.Error(nil) },
		"/error struct": func(c *Context) { c.Error(map[string]int{"code": 7}) },
		"/coded":        func(c *Context) { c.Error(ErrMethodNotFound) },
		"/timeout":      func(c *Context) { c.WriteWithTimeout("in time", time.Nanosecond) },
		"/twice": func(c *Context) {
			c.Write("first")
			second <- c.Write("second")
			second <- c.Error("third")
		},
		"/unencodable": func(c *Context) { second <- c.Write(func() {}) },
	} {
		s.Handler.Handle(name, h)
	}
	s.Handler.Handle("/note", func(c *Context) { second <- c.Write("answer to a notification") })
	c := dialClient(t, s.addr)
	for _, tt := range []struct {
		route, want string
		err         string
		code        Code
	}{
		{"/nil", "", "<nil>", 0},
		{"/error", "", "bad", CodeUnknown},
		{"/errorvalue", "", "bad", CodeUnknown},
		{"/write error", "", "bad", CodeUnknown},
		{"/error nil", "", "<nil>", 0},
		{"/error struct", "", `{"code":7}`, CodeUnknown},
		{"/coded", "", ErrMethodNotFound.Message, CodeUnimplemented},
		{"/timeout", "in time", "<nil>", 0},
	} {
		if r, err := callBoth(t, c, tt.route, nil); r != tt.want || fmt.Sprint(err) != tt.err || CodeOf(err) != tt.code {
			t.Errorf("%s: %q, %v (%v)", tt.route, r, err, CodeOf(err))
		}
	}
	var r string
	if err := c.Call("/twice", nil, &r, patience); err != nil || r != "first" {
		t.Errorf("/twice: %q, %v", r, err)
	}
	for range 2 {
		if err := recv(t, second, "second answer"); !errors.Is(err, ErrAnswered) {
			t.Errorf("the second answer: %v", err)
		}
	}
	if err := c.Call("/unencodable", nil, &r, patience); CodeOf(err) != CodeInternal {
		t.Errorf("/unencodable: %v", err)
	}
	if err := recv(t, second, "failed answer"); err == nil || CodeOf(err) != CodeUnknown {
		t.Errorf("the answer that cannot be encoded: %v", err)
	}
	must(t, c.Notify("/note", nil, patience))
	if err := recv(t, second, "answer to a notification"); !errors.Is(err, ErrContextResponseToNotify) {
		t.Errorf("the answer to a notification: %v", err)
	}
}

func TestAnswerLater(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		var wg sync.WaitGroup
		wins := make(chan int, 300)
		returned := make(chan struct{}, 300)
		h := func(c *Context) {
			c.AnswerLater()
			c.AnswerLater() // once more does nothing
			body := append([]byte(nil), c.Body()...)
			gate := make(chan struct{})
			var won atomic.Int32
			var all sync.WaitGroup
			for range 3 {
				all.Add(1)
				wg.Go(func() {
					defer all.Done()
					<-gate
					if !bytes.Equal(c.Body(), body) || string(c.Message.Data()) != string(body) {
						t.Errorf("the body became %q", c.Body())
					}
					switch err := c.Write(append([]byte("late "), c.Body()...)); {
					case err == nil:
						won.Add(1)
					case !errors.Is(err, ErrAnswered):
						t.Error(err)
					}
				})
			}
			wg.Go(func() {
				<-returned
				close(gate)
				all.Wait()
				wins <- int(won.Load())
			})
		}
		s.Handler.Handle("/ordered", h)
		s.Handler.Handle("/async", h, true)
		s.Handler.HandleInline("/inline", h)
		s.Handler.Handle("/late note", func(c *Context) {
			c.AnswerLater()
			if err := c.Write("x"); !errors.Is(err, ErrContextResponseToNotify) {
				t.Error(err)
			}
		})
		s.Handler.Handle("/echo", echo)
		c := dialClient(t, s.addr)
		const each = 30
		var answers sync.WaitGroup
		for i := range 3 * each {
			answers.Add(1)
			must(t, c.CallAsync([]string{"/ordered", "/async", "/inline"}[i%3], fmt.Sprint("request ", i), func(ctx *Context) {
				defer answers.Done()
				var r string
				if err := ctx.Bind(&r); err != nil || r != fmt.Sprint("late request ", i) {
					t.Errorf("%q, %v", r, err)
				}
			}, patience))
		}
		must(t, c.Notify("/late note", nil, patience))
		must(t, c.Call("/echo", nil, nil, patience)) // the ordered handlers have returned
		for range 3 * each {
			returned <- struct{}{}
		}
		waitGroup(t, &answers, "late answers")
		waitGroup(t, &wg, "end of the late goroutines")
		for range 3 * each {
			if n := recv(t, wins, "result"); n != 1 {
				t.Errorf("%d answers to one request", n)
			}
		}
	})
}

// silent is a peer that takes requests and does not answer.
func silent(t *testing.T) (c *Client, p *rawPeer) {
	ln := listenRaw(t)
	c = dialClient(t, ln.addr(), Protocol(1))
	return c, ln.accept()
}

func TestCancelledCall(t *testing.T) {
	c, p := silent(t)
	cause := errors.New("the user went away")
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.CallWith(ctx, "/m", "x", nil) }()
	m := p.frame()
	start := time.Now()
	cancel(cause)
	err := recv(t, done, "end of the cancelled call")
	atOnce(t, start)
	var e *Error
	if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || CodeOf(err) != CodeCanceled || !errors.As(err, &e) || e.Remote {
		t.Errorf("%#v", err)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrTimeout) {
		t.Errorf("%v passes for a timeout", err)
	}
	// The late answer belongs to nobody, and the connection is as good as before.
	p.send(frameOf(CmdResponse, 0, m.Seq(), "/m", "late"))
	go func() {
		var r string
		err := c.Call("/n", "y", &r, patience)
		if err == nil && r != "z" {
			err = errors.New(r)
		}
		done <- err
	}()
	m = p.frame()
	p.send(frameOf(CmdResponse, 0, m.Seq(), "/n", "z"))
	must(t, recv(t, done, "end of a call afterwards"))

	// A context that is done already: nothing is sent.
	for name, f := range map[string]func() error{
		"CallWith":   func() error { return c.CallWith(ctx, "/m", "x", nil) },
		"NotifyWith": func() error { return c.NotifyWith(ctx, "/m", "x") },
	} {
		if err := f(); !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, c.Notify("/last", nil, patience))
	if m := p.frame(); m.Method() != "/last" {
		t.Errorf("%q was sent within a context that was done", m.Method())
	}
}

func TestTimeouts(t *testing.T) {
	c, p := silent(t)
	const limit = 30 * time.Millisecond
	for name, f := range map[string]func() error{
		"Call": func() error { return c.Call("/m", "x", nil, limit) },
		"CallWith": func() error {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			return c.CallWith(ctx, "/m", "x", nil)
		},
		"CallAsync": func() error {
			ended := make(chan error, 2)
			must(t, c.CallAsync("/m", "x", func(ctx *Context) {
				var r string
				if berr := ctx.Bind(&r); !errors.Is(berr, context.DeadlineExceeded) {
					t.Errorf("Bind: %v", berr)
				}
				ended <- ctx.Err()
			}, limit))
			return recv(t, ended, "callback")
		},
	} {
		start := time.Now()
		err := f()
		if d := time.Since(start); d < limit {
			t.Errorf("%s ended after %v", name, d)
		}
		atOnce(t, start)
		var e *Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrTimeout) || !errors.Is(err, ErrClientTimeout) ||
			CodeOf(err) != CodeDeadlineExceeded || !errors.As(err, &e) || e.Remote {
			t.Errorf("%s: %#v", name, err)
		}
		if errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v passes for a cancellation", name, err)
		}
		if m := p.frame(); m.Method() != "/m" {
			t.Errorf("%s sent %q", name, m.Method())
		}
	}
}

// Calls with different timeouts end in the order of these, whatever the order in which they were made.
func TestTimeoutsInAnyOrder(t *testing.T) {
	c, p := silent(t)
	go io.Copy(io.Discard, p) //nolint:errcheck // until the end of the test
	const n = 300
	var wg sync.WaitGroup
	rnd := rand.New(rand.NewPCG(1, 1))
	for range n {
		limit := time.Duration(1+rnd.IntN(150)) * time.Millisecond
		start := time.Now()
		wg.Add(1)
		must(t, c.CallAsync("/m", nil, func(ctx *Context) {
			defer wg.Done()
			if !errors.Is(ctx.Err(), ErrTimeout) {
				t.Error(ctx.Err())
			}
			if d := time.Since(start); d < limit || d > limit+soon {
				t.Errorf("a timeout of %v took %v", limit, d)
			}
		}, limit))
	}
	waitGroup(t, &wg, "end of all calls")
}

func TestArgumentErrors(t *testing.T) {
	c, p := silent(t)
	long := strings.Repeat("m", MaxMethodLen+1)
	nothing := func(*Context) {}
	for _, tt := range []struct {
		name string
		want error
		f    func() error
	}{
		{"Call without a method", ErrInvalidMethod, func() error { return c.Call("", nil, nil, patience) }},
		{"Call of a long method", ErrInvalidMethod, func() error { return c.Call(long, nil, nil, patience) }},
		{"Call without time", ErrClientInvalidTimeoutZero, func() error { return c.Call("/m", nil, nil, 0) }},
		{"Call with less", ErrClientInvalidTimeoutLessThanZero, func() error { return c.Call("/m", nil, nil, -1) }},
		{"CallWith without a method", ErrInvalidMethod, func() error { return c.CallWith(context.Background(), "", nil, nil) }},
		{"CallAsync without a method", ErrInvalidMethod, func() error { return c.CallAsync("", nil, nothing, patience) }},
		{"CallAsync without time", ErrClientInvalidTimeoutZero, func() error { return c.CallAsync("/m", nil, nothing, 0) }},
		{"CallAsync with less", ErrClientInvalidTimeoutLessThanZero, func() error { return c.CallAsync("/m", nil, nothing, -1) }},
		{"CallAsync without a callback", ErrClientInvalidAsyncHandler, func() error { return c.CallAsync("/m", nil, nil, patience) }},
		{"Notify without a method", ErrInvalidMethod, func() error { return c.Notify("", nil, 0) }},
		{"Notify of a long method", ErrInvalidMethod, func() error { return c.Notify(long, nil, 0) }},
		{"Notify with less than no time", ErrClientInvalidTimeoutLessThanZero, func() error { return c.Notify("/m", nil, -1) }},
		{"NotifyWith without a method", ErrInvalidMethod, func() error { return c.NotifyWith(context.Background(), "", nil) }},
		{"PushMsg of nothing", ErrInvalidMethod, func() error { return c.PushMsg(nil, 0) }},
		{"PushMsg of half a header", ErrInvalidMethod, func() error { return c.PushMsg(&Message{Buffer: make([]byte, 8)}, 0) }},
	} {
		err := tt.f()
		if !errors.Is(err, tt.want) || CodeOf(err) != CodeInvalidArgument {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if m := c.NewMessage(CmdNotify, "", nil); m != nil {
		t.Error("NewMessage without a method")
	}
	if m := c.NewMessage(CmdNotify, long, nil); m != nil {
		t.Error("NewMessage with a long method")
	}
	if m := c.NewMessage(CmdNotify, "/m", func() {}); m != nil {
		t.Error("NewMessage of what cannot be encoded")
	}
	var unsupported *json.UnsupportedTypeError
	for name, err := range map[string]error{
		"Call":   c.Call("/m", func() {}, nil, patience),
		"Notify": c.Notify("/m", func() {}, patience),
	} {
		if err == nil || CodeOf(err) != CodeUnknown {
			t.Errorf("%s of what cannot be encoded: %v", name, err)
		}
	}
	c.Codec = codec.StdJSON{}
	if err := c.Call("/m", make(chan int), nil, patience); !errors.As(err, &unsupported) {
		t.Errorf("the codec's error became %v", err)
	}
	must(t, c.Notify("/last", nil, patience))
	if m := p.frame(); m.Method() != "/last" {
		t.Errorf("%q was sent in spite of an error", m.Method())
	}
	// The longest method there may be.
	must(t, c.Notify(long[1:], "x", patience))
	if m := p.frame(); m.Method() != long[1:] || string(m.Data()) != "x" {
		t.Errorf("%q %q", m.Method(), m.Data())
	}
}

// fill sends notifications that nobody reads until one is refused.
func fill(t *testing.T, c *Client) {
	t.Helper()
	b := make([]byte, 32<<10)
	for range 10_000 {
		if err := c.Notify("/fill", b, TimeZero); err != nil {
			if !errors.Is(err, ErrClientOverstock) || CodeOf(err) != CodeResourceExhausted {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("300 MiB were accepted")
}

func TestOverstock(t *testing.T) {
	h := NewHandler()
	hooked := make(chan *Client, 10_000)
	h.HandleOverstock(func(c *Client) { hooked <- c })
	ln := listenRaw(t)
	c := dialClient(t, ln.addr(), h, Limits{SendHigh: 64 << 10}, Protocol(1))
	p := ln.accept()
	fill(t, c)
	if got := recv(t, hooked, "overstock hook"); got != c {
		t.Error("the hook has another client")
	}
	const wait = 20 * time.Millisecond
	for _, tt := range []struct {
		name string
		code Code
		wait time.Duration
		hook bool
		f    func() error
	}{
		{"PushMsg", CodeResourceExhausted, 0, true, func() error { return c.PushMsg(c.NewMessage(CmdNotify, "/m", "x"), TimeZero) }},
		{"PushMsg with time", CodeResourceExhausted, wait, true, func() error { return c.PushMsg(c.NewMessage(CmdNotify, "/m", "x"), wait) }},
		{"Notify", CodeResourceExhausted, 0, true, func() error { return c.Notify("/m", "x", TimeZero) }},
		{"Notify with time", CodeResourceExhausted, wait, true, func() error { return c.Notify("/m", "x", wait) }},
		{"NotifyWith", CodeDeadlineExceeded, wait, false, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), wait)
			defer cancel()
			return c.NotifyWith(ctx, "/m", "x")
		}},
		{"Call", CodeDeadlineExceeded, wait, false, func() error { return c.Call("/m", "x", nil, wait) }},
		{"CallAsync", CodeDeadlineExceeded, wait, false, func() error {
			ended := make(chan error, 2)
			err := c.CallAsync("/m", "x", func(ctx *Context) { ended <- ctx.Err() }, wait)
			if cerr := recv(t, ended, "callback"); fmt.Sprint(cerr) != fmt.Sprint(err) {
				t.Errorf("CallAsync returns %v, the callback has %v", err, cerr)
			}
			return err
		}},
	} {
		start := time.Now()
		err := tt.f()
		if CodeOf(err) != tt.code {
			t.Errorf("%s: %v", tt.name, err)
		}
		if d := time.Since(start); d < tt.wait {
			t.Errorf("%s waited for %v", tt.name, d)
		}
		if n := len(hooked); n != 0 != tt.hook {
			t.Errorf("%s: the hook ran %d times", tt.name, n)
		}
		for len(hooked) > 0 {
			<-hooked
		}
	}
	// When the peer reads, all of it arrives and there is room again.
	done := make(chan error, 1)
	go func() { done <- c.Notify("/waited", "x", patience) }()
	for n := 0; ; n++ {
		m := p.frame()
		if m.Method() == "/waited" {
			break
		}
		if m.Method() != "/fill" {
			t.Fatalf("%q was refused and is here", m.Method())
		}
	}
	must(t, recv(t, done, "end of the waiting notification"))
	must(t, c.Notify("/last", nil, TimeZero))
	if m := p.frame(); m.Method() != "/last" {
		t.Errorf("%q", m.Method())
	}
}

// Waiting for room with the handler's own context, and with one derived from it.
func TestOverstockWithinAHandler(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		for _, async := range []bool{false, true} {
			s := startServer(t, adapter, Limits{SendHigh: 64 << 10})
			s.Handler.Handle("/m", func(c *Context) {
				fill(t, c.Client)
				ctx, cancel := context.WithCancel(c)
				defer cancel()
				if err := c.Client.NotifyWith(ctx, "/waited", "1"); err != nil {
					t.Error(err)
				}
				fill(t, c.Client)
				if err := c.Client.NotifyWith(c, "/waited", "2"); err != nil {
					t.Error(err)
				}
				fill(t, c.Client)
				if err := c.Client.CallWith(c, "/called", "3", nil); err != nil {
					t.Error(err)
				}
				c.Write("answer")
			}, async)
			p := dialRaw(t, s.addr)
			p.send(frameOf(CmdRequest, 0, 1, "/m", ""))
			var got []string
			for len(got) < 4 {
				switch m := p.frame(); m.Method() {
				case "/fill":
				case "/called":
					p.send(frameOf(CmdResponse, 0, m.Seq(), "/called", ""))
					fallthrough
				default:
					got = append(got, m.Method()+" "+string(m.Data()))
				}
			}
			if want := []string{"/waited 1", "/waited 2", "/called 3", "/m answer"}; !slices.Equal(got, want) {
				t.Errorf("%q", got)
			}
		}
	})
}

func TestSendQueueSizeCountsMessages(t *testing.T) {
	h := NewHandler()
	h.SetSendQueueSize(10)
	ln := listenRaw(t)
	c := dialClient(t, ln.addr(), h, Limits{SendHigh: 16 << 20}, Protocol(1))
	p := ln.accept()
	large := make([]byte, 8<<20) // nobody takes as much at once
	must(t, c.Notify("/large", large, TimeZero))
	n := 0
	for c.Notify("/small", "x", TimeZero) == nil {
		n++
	}
	if n != 9 { // and the large one
		t.Errorf("%d small messages were queued", n)
	}
	if m := p.frame(); m.Len() != HeadLen+6+len(large) {
		t.Errorf("%d bytes", m.Len())
	}
	for range n {
		if m := p.frame(); m.Method() != "/small" {
			t.Errorf("%q", m.Method())
		}
	}
}

// The longest body that is accepted can be sent, and answered, even if it alone is as much as may wait to be sent.
func TestLongestBody(t *testing.T) {
	const limit = 1<<20 - HeadLen
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		limits := Limits{SendHigh: 64 << 10, SendHard: 1 << 20}
		s := startServer(t, adapter, limits)
		s.Handler.SetMaxBodyLen(limit)
		s.Handler.Handle("/m", echo)
		c := dialClient(t, s.addr, limits)
		body := mebibyte(1)[:limit-2]
		var r []byte
		if err := c.Call("/m", body, &r, patience); err != nil || !bytes.Equal(r, body) {
			t.Errorf("%d bytes: %v", len(r), err)
		}
		if err := c.Call("/m", append(body, 0), nil, patience); CodeOf(err) != CodeInvalidArgument {
			t.Errorf("one byte more: %v", err)
		}
		old := dialClient(t, s.addr, limits, Protocol(1)) // does not know the server's limit
		if err := old.Call("/m", append(body, 0), nil, patience); CodeOf(err) != CodeUnavailable {
			t.Errorf("one byte more of an old client: %v", err)
		}
		must(t, c.WaitReady(patient(t)))
		if err := c.Call("/m", "x", nil, patience); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
	t.Run("defaults", func(t *testing.T) {
		s := startServer(t)
		answer := make([]byte, DefaultMaxBodyLen-2)
		s.Handler.Handle("/m", func(c *Context) { c.Write(answer) })
		c := dialClient(t, s.addr)
		var r []byte
		if err := c.Call("/m", nil, &r, patience); err != nil || len(r) != len(answer) {
			t.Errorf("%d bytes, %v", len(r), err)
		}
	})
}

// once counts how often each of n callbacks ran.
type once struct {
	t    *testing.T
	ran  []atomic.Int32
	wg   sync.WaitGroup
	errs sync.Map // text of the code -> *atomic.Int64
}

func newOnce(t *testing.T, n int) *once {
	o := &once{t: t, ran: make([]atomic.Int32, n)}
	o.wg.Add(n)
	return o
}

func (o *once) callback(i int) func(*Context) {
	return func(ctx *Context) {
		if o.ran[i].Add(1) == 1 {
			defer o.wg.Done()
		}
		var r string
		err := ctx.Err()
		if berr := ctx.Bind(&r); fmt.Sprint(berr) != fmt.Sprint(err) {
			o.t.Errorf("Err is %v, Bind's error %v", err, berr)
		}
		if ctx.Client == nil || ctx.Message == nil || err != nil && r != "" {
			o.t.Errorf("callback with %v, %v, %v, %q", ctx.Client, ctx.Message, err, r)
		}
		name := "ok"
		if err != nil {
			name = CodeOf(err).String()
		}
		v, _ := o.errs.LoadOrStore(name, new(atomic.Int64))
		v.(*atomic.Int64).Add(1)
	}
}

// check waits for all callbacks and compares how they ended: codes and how often, -1 for any number.
func (o *once) check(want map[string]int) {
	o.t.Helper()
	waitGroup(o.t, &o.wg, "callbacks")
	for i := range o.ran {
		if n := o.ran[i].Load(); n != 1 {
			o.t.Errorf("callback %d ran %d times", i, n)
		}
	}
	got := map[string]int{}
	o.errs.Range(func(k, v any) bool { got[k.(string)] = int(v.(*atomic.Int64).Load()); return true })
	for k, n := range want {
		if n < 0 {
			delete(want, k)
			delete(got, k)
		}
	}
	if !maps.Equal(got, want) {
		o.t.Errorf("callbacks ended with %v, want %v", got, want)
	}
}

func TestCallbackRunsOnce(t *testing.T) {
	const n = 2000
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		s.Handler.Handle("/echo", echo)
		s.Handler.Handle("/error", func(c *Context) { c.Error("bad") }, true)
		never := make(chan struct{})
		defer close(never)
		s.Handler.Handle("/never", func(c *Context) { c.AnswerLater() })
		s.Handler.HandleInline("/hang up", func(c *Context) { c.AnswerLater(); c.Client.Stop() })

		t.Run("success", func(t *testing.T) {
			o, c := newOnce(t, n), dialClient(t, s.addr)
			for i := range n {
				must(t, c.CallAsync("/echo", "x", o.callback(i), patience))
			}
			o.check(map[string]int{"ok": n})
		})
		t.Run("remote error", func(t *testing.T) {
			o, c := newOnce(t, n), dialClient(t, s.addr)
			for i := range n {
				must(t, c.CallAsync([]string{"/error", "/nothing"}[i%2], "x", o.callback(i), patience))
			}
			o.check(map[string]int{"unknown": n / 2, "unimplemented": n / 2})
		})
		t.Run("timeout", func(t *testing.T) {
			o, c := newOnce(t, n), dialClient(t, s.addr)
			for i := range n {
				must(t, c.CallAsync("/never", "x", o.callback(i), time.Duration(1+i%20)*time.Millisecond))
			}
			o.check(map[string]int{"deadline_exceeded": n})
		})
		t.Run("timeout races answer", func(t *testing.T) {
			o, c := newOnce(t, n), dialClient(t, s.addr)
			for i := range n {
				must(t, c.CallAsync("/echo", "x", o.callback(i), 500*time.Microsecond))
			}
			o.check(map[string]int{"deadline_exceeded": -1, "ok": -1})
		})
		t.Run("stop", func(t *testing.T) {
			o, c := newOnce(t, n), dialClient(t, s.addr)
			for i := range n {
				must(t, c.CallAsync("/never", "x", o.callback(i), patience))
			}
			c.Stop()
			o.check(map[string]int{"unavailable": n})
		})
		t.Run("disconnect", func(t *testing.T) {
			o, c := newOnce(t, n), dialClient(t, s.addr)
			for i := range n {
				route := "/never"
				if i == n/2 {
					route = "/hang up"
				}
				c.CallAsync(route, "x", o.callback(i), patience)
			}
			eventually(t, "the loss of the connection", func() bool { return o.ran[n/2].Load() > 0 })
			c.Stop() // ends those that were made after it had connected again
			o.check(map[string]int{"unavailable": -1, "ok": -1})
		})
		t.Run("refused at the start", func(t *testing.T) {
			o, c := newOnce(t, 6), dialClient(t, s.addr)
			for i, f := range []func(cb func(*Context)) error{
				func(cb func(*Context)) error { return c.CallAsync("", "x", cb, patience) },
				func(cb func(*Context)) error { return c.CallAsync("/m", "x", cb, 0) },
				func(cb func(*Context)) error { return c.CallAsync("/m", "x", cb, -1) },
				func(cb func(*Context)) error { return c.CallAsync("/m", func() {}, cb, patience) },
				func(cb func(*Context)) error { c.Stop(); return c.CallAsync("/m", "x", cb, patience) },
				func(cb func(*Context)) error { return c.CallAsync("/m", "x", cb, 0) },
			} {
				if err := f(o.callback(i)); err == nil {
					t.Errorf("%d was not refused", i)
				}
			}
			o.check(map[string]int{"invalid_argument": 3, "unknown": 1, "unavailable": 2})
		})
		t.Run("calls limit", func(t *testing.T) {
			o, c := newOnce(t, 20), dialClient(t, s.addr, Limits{Calls: 5})
			for i := range 20 {
				if err := c.CallAsync("/never", "x", o.callback(i), patience); (err != nil) != (i >= 5) {
					t.Errorf("call %d: %v", i, err)
				}
			}
			c.Stop()
			o.check(map[string]int{"resource_exhausted": 15, "unavailable": 5})
		})
		t.Run("all at once", func(t *testing.T) {
			const n = 10_000
			o, c := newOnce(t, n), dialClient(t, s.addr, Backoff(time.Millisecond, time.Millisecond))
			var wg sync.WaitGroup
			for k := range 10 {
				wg.Go(func() {
					for i := k; i < n; i += 10 {
						route := []string{"/echo", "/error", "/never", "/nothing"}[i/10%4]
						if i == n/2 {
							route = "/hang up"
						}
						c.CallAsync(route, "x", o.callback(i), time.Duration(1+i%50)*time.Millisecond)
						if i == 3*n/4 {
							c.Conn.Close()
						}
					}
				})
			}
			waitGroup(t, &wg, "end of the callers")
			o.check(map[string]int{"ok": -1, "unknown": -1, "unimplemented": -1, "deadline_exceeded": -1, "unavailable": -1})
		})
	})
}

// A callback may call, wait, call asynchronously and stop its client.
func TestCallbackMayDoAnything(t *testing.T) {
	s := startServer(t)
	s.Handler.Handle("/echo", echo)
	c := dialClient(t, s.addr)
	done := make(chan error, 3)
	must(t, c.CallAsync("/echo", "1", func(ctx *Context) {
		var r string
		err := ctx.Client.Call("/echo", "2", &r, patience)
		if err == nil {
			err = ctx.Client.CallWith(ctx, "/echo", "3", &r)
		}
		if err != nil || r != "3" {
			done <- fmt.Errorf("%q, %v", r, err)
			return
		}
		ctx.Client.CallAsync("/echo", "4", func(ctx *Context) {
			panic("a callback panics") // and others go on
		}, patience)
		ctx.Client.CallAsync("/echo", "5", func(ctx *Context) {
			done <- ctx.Bind(&r)
			ctx.Client.Stop()
			done <- nil
		}, patience)
	}, patience))
	must(t, recv(t, done, "nested callback"))
	must(t, recv(t, done, "return of Stop"))
	if err := c.CheckState(); !errors.Is(err, ErrClientStopped) {
		t.Error(err)
	}
}

// An inline handler that waits for its own reader would wait for ever: it is refused. What does not wait is fine.
func TestInlineHandlerMustNotWait(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		back := make(chan error, 1)
		s.Handler.HandleInline("/inline", func(c *Context) {
			if err := c.Client.CallWith(c, "/echo", "x", nil); CodeOf(err) != CodeFailedPrecondition {
				t.Errorf("the call ended with %v", err)
			}
			ctx, cancel := context.WithTimeout(c, patience)
			defer cancel()
			if err := c.Client.CallWith(ctx, "/echo", "x", nil); CodeOf(err) != CodeFailedPrecondition {
				t.Errorf("with a derived context: %v", err)
			}
			c.Client.CallAsync("/echo", "x", func(ctx *Context) { back <- ctx.Err() }, patience)
			c.Client.Notify("/note", "x", TimeZero)
			c.Write("answer")
		})
		noted := make(chan struct{}, 10)
		c := dialClient(t, s.addr)
		c.Handler.Handle("/echo", echo)
		c.Handler.Handle("/note", func(*Context) { noted <- struct{}{} })
		start := time.Now()
		var r string
		if err := c.Call("/inline", nil, &r, patience); err != nil || r != "answer" {
			t.Errorf("%q, %v", r, err)
		}
		must(t, recv(t, back, "callback"))
		recv(t, noted, "notification")
		atOnce(t, start)
	})
}

// A handler's context ends with its connection, however that ends; calls within it end too, and none is left open.
func TestContextEndsWithItsConnection(t *testing.T) {
	cuts := map[string]func(p *rawPeer){
		"half closed": func(p *rawPeer) { p.Conn.(*net.TCPConn).CloseWrite() },
		"closed":      func(p *rawPeer) { p.Close() },
		"reset":       func(p *rawPeer) { p.reset() },
	}
	for name, cut := range cuts {
		t.Run(name, func(t *testing.T) {
			onAdapters(t, func(t *testing.T, adapter ServerOption) {
				s := startServer(t, adapter)
				entered := make(chan struct{}, 2)
				ends := make(chan error, 20)
				h := func(c *Context) {
					if err := c.Err(); err != nil {
						t.Errorf("at the start: %v", err)
					}
					if _, ok := c.Deadline(); ok {
						t.Error("there is a deadline")
					}
					ctx, cancel := context.WithCancel(c)
					defer cancel()
					entered <- struct{}{}
					<-ctx.Done()
					if !errors.Is(c.Err(), context.Canceled) || !errors.Is(ctx.Err(), context.Canceled) {
						t.Errorf("%v, %v", c.Err(), ctx.Err())
					}
					ends <- c.Client.CallWith(c, "/m", "x", nil)
					ends <- c.Client.CallWith(ctx, "/m", "x", nil)
					ends <- c.Client.CallWith(context.Background(), "/m", "x", nil)
					ends <- c.Client.Call("/m", "x", nil, TimeForever)
					ends <- c.Client.Call("/m", "x", nil, patience)
					ended := make(chan error, 2)
					c.Client.CallAsync("/m", "x", func(ctx *Context) { ended <- ctx.Err() }, TimeForever)
					ends <- <-ended
					c.Write("answer")
				}
				s.Handler.Handle("/ordered", h)
				s.Handler.Handle("/async", h, true)
				p := dialRaw(t, s.addr)
				p.send(frameOf(CmdRequest, 0, 1, "/ordered", ""), frameOf(CmdRequest, 0, 2, "/async", ""))
				recv(t, entered, "first handler")
				recv(t, entered, "second handler")
				start := time.Now()
				cut(p)
				for range 2 * 6 {
					if err := recv(t, ends, "end of a call"); CodeOf(err) != CodeUnavailable && CodeOf(err) != CodeCanceled {
						t.Error(err)
					}
				}
				atOnce(t, start)
				if name == "half closed" { // it still gets its answers, and the end
					got := [2]bool{}
					for range 2 {
						m := p.frame()
						if m.Cmd() != CmdResponse || string(m.Data()) != "answer" {
							t.Fatalf("%x", m.Buffer)
						}
						got[m.Seq()-1] = true
					}
					if rest := p.end(); len(rest) > 0 || got != [2]bool{true, true} {
						t.Errorf("%v, %x", got, rest)
					}
				}
			})
		})
	}
}

// pair is encoded by codecs.
type pair struct {
	A string
	B int
}

// brackets is a codec of its own kind.
type brackets struct{}

func (brackets) Marshal(v any) ([]byte, error) { return fmt.Appendf(nil, "<%v>", v), nil }
func (brackets) Unmarshal(b []byte, v any) error {
	p, ok := v.(*int)
	if !ok {
		return errors.New("brackets: only *int")
	}
	_, err := fmt.Sscanf(string(b), "<%d>", p)
	return err
}

// What values become on the wire, and what they become again, in requests and in answers.
func TestBind(t *testing.T) {
	bytesValue, text := []byte("bytes"), "text"
	var noBytes *[]byte
	var noText *string
	failure := errors.New("failure")
	ptr := func(v any) func() any { return func() any { return reflect.New(reflect.TypeOf(v)).Interface() } }
	none := func() any { return nil }
	for _, tt := range []struct {
		name   string
		send   any
		wire   string
		target func() any
		want   any // nil: an error
	}{
		{"nil to text", nil, "", ptr(""), ""},
		{"nil to bytes", nil, "", ptr([]byte{}), []byte{}},
		{"nil to nothing", nil, "", none, nil},
		{"nil to a struct", nil, "", ptr(pair{}), nil},
		{"text to text", "text", "text", ptr(""), "text"},
		{"text to bytes", "text", "text", ptr([]byte{}), []byte("text")},
		{"empty text", "", "", ptr(""), ""},
		{"quotes stay", `"q"`, `"q"`, ptr(""), `"q"`},
		{"*text", &text, "text", ptr(""), "text"},
		{"nil *text", noText, "", ptr(""), ""},
		{"bytes to bytes", bytesValue, "bytes", ptr([]byte{}), bytesValue},
		{"bytes to text", bytesValue, "bytes", ptr(""), "bytes"},
		{"*bytes", &bytesValue, "bytes", ptr([]byte{}), bytesValue},
		{"nil *bytes", noBytes, "", ptr([]byte{}), []byte{}},
		{"any bytes", []byte{0, 1, 255, '\n'}, "\x00\x01\xff\n", ptr([]byte{}), []byte{0, 1, 255, '\n'}},
		{"struct", pair{"a", 1}, `{"A":"a","B":1}`, ptr(pair{}), pair{"a", 1}},
		{"*struct", &pair{"a", 1}, `{"A":"a","B":1}`, ptr(pair{}), pair{"a", 1}},
		{"struct to text", pair{"a", 1}, `{"A":"a","B":1}`, ptr(""), `{"A":"a","B":1}`},
		{"struct to nothing", pair{"a", 1}, `{"A":"a","B":1}`, none, nil},
		{"number", 7, "7", ptr(0), 7},
		{"text to a number", "7", "7", ptr(0), 7},
		{"bad text to a number", "x", "x", ptr(0), nil},
		{"map", map[string]int{"k": 1}, `{"k":1}`, ptr(map[string]int{}), map[string]int{"k": 1}},
		{"named text type", json.Number("5"), "5", ptr(0), 5},
		{"json.RawMessage", json.RawMessage(`[1]`), "[1]", ptr([]int{}), []int{1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := startServer(t)
			c := dialClient(t, s.addr)
			check := func(where string, target any, err error) {
				t.Helper()
				if target == nil {
					if err != nil {
						t.Errorf("%s: %v", where, err)
					}
					return
				}
				if (err != nil) != (tt.want == nil) {
					t.Errorf("%s: %v", where, err)
				} else if got := reflect.ValueOf(target).Elem().Interface(); err == nil && !reflect.DeepEqual(got, tt.want) {
					t.Errorf("%s: %#v, want %#v", where, got, tt.want)
				}
			}
			for _, h := range []Handler{s.Handler, c.Handler} {
				h.Handle("/m", func(ctx *Context) {
					if string(ctx.Body()) != tt.wire {
						t.Errorf("on the wire: %q", ctx.Body())
					}
					target := tt.target()
					check("request", target, ctx.Bind(target))
					ctx.Write(tt.send)
				})
			}
			for _, from := range []*Client{c, s.waitClients(t, 1)[0]} {
				target := tt.target()
				check("answer", target, from.Call("/m", tt.send, target, patience))
				ended := make(chan struct{})
				must(t, from.CallAsync("/m", tt.send, func(ctx *Context) {
					defer close(ended)
					target := tt.target()
					check("callback", target, ctx.Bind(target))
				}, patience))
				recv(t, ended, "callback")
			}
		})
	}
	t.Run("errors", func(t *testing.T) { // as requests; as answers they are errors
		s := startServer(t)
		s.Handler.Handle("/m", echo)
		c := dialClient(t, s.addr)
		for _, v := range []any{failure, &failure} {
			var r string
			if err := c.Call("/m", v, &r, patience); err != nil || r != "failure" {
				t.Errorf("%T: %q, %v", v, r, err)
			}
		}
	})
	t.Run("own codec", func(t *testing.T) {
		s := NewServer(NewHandler())
		s.Codec = brackets{}
		s.Handler.Handle("/m", func(ctx *Context) {
			var n int
			if err := ctx.Bind(&n); err != nil {
				ctx.Error(err)
				return
			}
			ctx.Write(n + 1)
		})
		s.Handler.Handle("/text", echo)
		addr := serveOther(t, s)
		c, err := NewClient(dialer(addr), NewHandler())
		must(t, err)
		defer c.Stop()
		c.Codec = brackets{}
		n := 0
		if err := c.Call("/m", 41, &n, patience); err != nil || n != 42 {
			t.Errorf("%d, %v", n, err)
		}
		var r string
		if err := c.Call("/text", "raw", &r, patience); err != nil || r != "raw" {
			t.Errorf("%q, %v", r, err)
		}
		if err := c.Call("/m", "raw", &n, patience); err == nil {
			t.Error("raw text was decoded")
		}
		var other struct{}
		if err := c.Call("/m", 1, &other, patience); err == nil || err.Error() != "brackets: only *int" {
			t.Errorf("the codec's error became %v", err)
		}
	})
	t.Run("nil pointers as targets", func(t *testing.T) {
		s := startServer(t)
		s.Handler.Handle("/m", func(ctx *Context) {
			if err := ctx.Bind(noText); err != nil {
				t.Error(err)
			}
			if err := ctx.Bind(noBytes); err != nil {
				t.Error(err)
			}
			ctx.Write("x")
		})
		c := dialClient(t, s.addr)
		must(t, c.Call("/m", "x", noText, patience))
		must(t, c.Call("/m", "x", noBytes, patience))
	})
}

// serveOther runs a server that a test has made itself.
func serveOther(t *testing.T, s *Server) (addr string) {
	t.Helper()
	ln := listenTCP(t)
	result := make(chan error, 1)
	go func() { result <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop()
		recv(t, result, "return from Serve")
	})
	return ln.Addr().String()
}

// What Bind and Call return is the caller's: it does not change when more comes.
func TestResultsAreCopies(t *testing.T) {
	s := startServer(t)
	var kept [][]byte
	changed := make(chan struct{}, 1)
	s.Handler.Handle("/m", func(c *Context) {
		var b []byte
		must(t, c.Bind(&b))
		kept = append(kept, b)
		c.Write(b)
		b[0] = 'k'
		changed <- struct{}{}
	})
	c := dialClient(t, s.addr)
	var answers [][]byte
	const n = 500
	for i := range n {
		b := fmt.Appendf(nil, "x%d", i)
		var r []byte
		must(t, c.Call("/m", b, &r, patience))
		recv(t, changed, "end of the handler") // the answer may be earlier
		clear(b)                               // ours again
		answers = append(answers, r)
	}
	for i := range n {
		if string(answers[i]) != fmt.Sprint("x", i) || string(kept[i]) != fmt.Sprint("k", i) {
			t.Fatalf("%d became %q and %q", i, answers[i], kept[i])
		}
	}
}

func TestMiddleware(t *testing.T) {
	s := startServer(t)
	mark := func(text string) HandlerFunc {
		return func(c *Context) {
			v, _ := c.Get("trace")
			trace, _ := v.(string)
			c.Set("trace", trace+text)
		}
	}
	answer := func(c *Context) {
		mark("h")(c)
		v, _ := c.Get("trace")
		c.Write(v)
	}
	after := make(chan string, 10)
	h := s.Handler
	h.Handle("/before any", func(c *Context) {
		c.Next() // nothing is left, or what was registered later
		answer(c)
	})
	h.Use(mark("1"))
	h.Use(nil)
	h.Use(func(c *Context) {
		mark("2")(c)
		if string(c.Body()) == "wrap" {
			c.Next()
			v, _ := c.Get("trace")
			after <- v.(string)
		}
	})
	h.Handle("/m", answer)
	h.Use(func(c *Context) {
		mark("3")(c)
		switch string(c.Body()) {
		case "abort":
			c.Write("aborted")
			c.Abort()
		case "silent":
			c.Abort()
		}
	})
	h.Handle("/n", answer, true)
	h.HandleInline("/i", answer)
	h.HandleNotFound(func(c *Context) {
		v, _ := c.Get("trace")
		c.Write(fmt.Sprint("not found ", v, " ", c.Message.Method()))
	})
	c := dialClient(t, s.addr)
	for _, tt := range []struct{ route, body, want string }{
		{"/before any", "", "123h"}, // Next ran those that were registered later
		{"/m", "", "12h"},
		{"/n", "", "123h"},
		{"/i", "", "123h"},
		{"/n", "abort", "aborted"},
		{"/m", "abort", "12h"}, // the third runs after the handler here, and its answer is the second
		{"/nothing", "", "not found 123 /nothing"},
		{"/nothing", "abort", "aborted"},
	} {
		if r, err := callBoth(t, c, tt.route, tt.body); err != nil || r != tt.want {
			t.Errorf("%s %s: %q, %v", tt.route, tt.body, r, err)
		}
	}
	if _, err := callBoth(t, c, "/n", "silent"); CodeOf(err) != CodeInternal {
		t.Errorf("a chain that was aborted without an answer: %v", err)
	}
	if r, err := callBoth(t, c, "/m", "wrap"); err != nil || r != "12h" {
		t.Errorf("a middleware around the rest: %q, %v", r, err)
	}
	for range 2 {
		if trace := recv(t, after, "end of the middleware"); trace != "12h3" {
			t.Errorf("after the rest: %q", trace)
		}
	}
	if r, err := callBoth(t, c, "/n", "wrap"); err != nil || r != "123h" {
		t.Errorf("a middleware around the rest: %q, %v", r, err)
	}
}

func TestHandlePanics(t *testing.T) {
	for name, f := range map[string]func(h Handler){
		"no method":   func(h Handler) { h.Handle("", echo) },
		"long method": func(h Handler) { h.Handle(strings.Repeat("m", 128), echo) },
		"no handler":  func(h Handler) { h.Handle("/x", nil) },
		"twice":       func(h Handler) { h.Handle("/m", echo) },
		"inline":      func(h Handler) { h.HandleInline("/m", echo) },
	} {
		h := NewHandler()
		h.Handle("/m", echo)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f(h)
		}()
		h.Handle("/other", echo) // and the Handler is usable
	}
}

func TestCloneSharesNothing(t *testing.T) {
	a := NewHandler()
	a.Handle("/a", echo)
	b := a.Clone()
	a.Handle("/b", echo)
	b.Handle("/c", echo)
	b.SetMaxBodyLen(1)
	b.SetSendQueueSize(2)
	b.SetAsyncResponse(true)
	b.SetLogTag("tag")
	b.SetMaxReconnectTimes(3)
	if got := slices.Sorted(maps.Keys(a.load().routes)); !slices.Equal(got, []string{"/a", "/b"}) {
		t.Errorf("the original has %q", got)
	}
	if got := slices.Sorted(maps.Keys(b.load().routes)); !slices.Equal(got, []string{"/a", "/c"}) {
		t.Errorf("the copy has %q", got)
	}
	if a.MaxBodyLen() != DefaultMaxBodyLen || a.SendQueueSize() != 4096 || a.AsyncResponse() || a.LogTag() == "tag" || a.MaxReconnectTimes() != 0 {
		t.Error("settings of the copy reached the original")
	}
	if b.MaxBodyLen() != 1 || b.SendQueueSize() != 2 || !b.AsyncResponse() || b.LogTag() != "tag" || b.MaxReconnectTimes() != 3 {
		t.Error("settings of the copy are lost")
	}
}

// The functions of the package change DefaultHandler, which clients and servers copy when they are made.
func TestDefaultHandler(t *testing.T) {
	old := DefaultHandler
	defer SetHandler(old)
	SetHandler(NewHandler())
	trace := make(chan string, 20)
	Handle("/ordered", func(c *Context) { c.Write("ordered") })
	SetAsyncResponse(true)
	Handle("/async", func(c *Context) { c.Write("async") })
	HandleInline("/inline", func(c *Context) { c.Write("inline") })
	HandleNotFound(func(c *Context) { c.Write("not found") })
	Use(func(c *Context) { trace <- "use " + c.Message.Method() })
	UseCoder(nil)
	HandleConnected(func(*Client) { trace <- "connected" })
	HandleDisconnected(func(*Client) {})
	HandleOverstock(func(*Client) {})
	HandleReconnect(func(*Client, int, error) {})
	HandleSessionMiss(func(*Client, *Message) {})
	BeforeRecv(func(net.Conn) error { return nil })
	BeforeSend(func(net.Conn) error { return nil })
	SetReaderWrapper(func(nc net.Conn) io.Reader { return nc })
	SetSendQueueSize(5000)
	SetMaxBodyLen(1 << 20)
	SetMaxReconnectTimes(1)
	SetLogTag("[T]")
	s := NewServer()
	addr := serveOther(t, s)
	c, err := NewClient(dialer(addr))
	must(t, err)
	defer c.Stop()
	Handle("/later", echo)
	for route, want := range map[string]string{"/ordered": "ordered", "/async": "async", "/inline": "inline", "/later": "not found"} {
		var r string
		if err := c.Call(route, nil, &r, patience); err != nil || r != want {
			t.Errorf("%s: %q, %v", route, r, err)
		}
	}
	if got := len(DefaultHandler.load().routes); got != 4 {
		t.Errorf("%d routes", got)
	}
	for route, m := range map[string]mode{"/ordered": modeOrdered, "/async": modeAsync, "/inline": modeInline} {
		if got := s.Handler.load().routes[route].mode; got != m {
			t.Errorf("%s has mode %d", route, got)
		}
	}
	if h := c.Handler; h == DefaultHandler || h == s.Handler || h.MaxBodyLen() != 1<<20 || h.SendQueueSize() != 5000 || h.LogTag() != "[T]" {
		t.Error("the client's Handler is not a copy")
	}
}

// stamp is a coder that adds a byte on the way out and wants it on the way in.
type stamp struct {
	b     byte
	wrong *atomic.Int32
}

func (s stamp) Encode(_ *Client, m *Message) *Message {
	m.Buffer = append(m.Buffer, s.b)
	m.SetBodyLen(m.Len() - HeadLen)
	return m
}

func (s stamp) Decode(_ *Client, m *Message) *Message {
	if m.Len() <= HeadLen || m.Buffer[m.Len()-1] != s.b {
		s.wrong.Add(1)
		return nil
	}
	m.Buffer = m.Buffer[:m.Len()-1]
	m.SetBodyLen(m.Len() - HeadLen)
	return m
}

func TestCodersInOrderAndReverse(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		var wrong atomic.Int32
		s := startServer(t, adapter)
		use := func(h Handler) {
			h.UseCoder(stamp{'A', &wrong})
			h.UseCoder(nil)
			h.UseCoder(stamp{'B', &wrong})
		}
		use(s.Handler)
		s.Handler.Handle("/ordered", echo)
		s.Handler.Handle("/async", echo, true)
		s.Handler.HandleInline("/inline", echo)
		s.Handler.Handle("/later", func(c *Context) { c.AnswerLater(); go c.Write(c.Body()) })
		s.Handler.Handle("/back", func(c *Context) {
			var r string
			if err := c.Client.CallWith(c, "/name", c.Body(), &r); err != nil {
				c.Error(err)
				return
			}
			c.Write(r)
		})
		noted := make(chan string, 1)
		s.Handler.Handle("/note", func(c *Context) { noted <- string(c.Body()) })
		h := NewHandler()
		use(h)
		h.Handle("/name", echo)
		c := dialClient(t, s.addr, h)
		for _, route := range []string{"/ordered", "/async", "/inline", "/later", "/back"} {
			for _, body := range []string{"", "x", strings.Repeat("long", 50_000)} {
				if r, err := callBoth(t, c, route, body); err != nil || r != body {
					t.Errorf("%s: %d bytes of %d, %v", route, len(r), len(body), err)
				}
			}
		}
		if _, err := callBoth(t, c, "/nothing", "x"); !errors.Is(err, ErrMethodNotFound) {
			t.Error(err)
		}
		must(t, c.Notify("/note", "note", patience))
		if got := recv(t, noted, "notification"); got != "note" {
			t.Errorf("%q", got)
		}
		must(t, c.PushMsg(c.NewMessage(CmdNotify, "/note", "pushed"), patience))
		if got := recv(t, noted, "notification"); got != "pushed" {
			t.Errorf("%q", got)
		}
		c.Ping()
		p := dialRaw(t, s.addr)
		p.send(pingFrame, frameOf(CmdRequest, 0, 9, "/ordered", "xAB"))
		if m := p.frame(); m.Cmd() != CmdPong || m.Len() != HeadLen { // coders do not see it
			t.Errorf("%x", m.Buffer)
		}
		if m := p.frame(); string(m.Data()) != "xAB" {
			t.Errorf("on the wire: %q", m.Data())
		}
		if n := wrong.Load(); n > 0 {
			t.Errorf("%d messages were decoded in the wrong order", n)
		}
		p.send(frameOf(CmdRequest, 0, 10, "/ordered", "xBA")) // the coder says nil
		if rest := p.end(); len(rest) > 0 {
			t.Errorf("%x", rest)
		}
		if n := wrong.Load(); n != 1 {
			t.Errorf("%d messages did not make sense", n)
		}
		if r, err := callBoth(t, c, "/ordered", "others live"); err != nil || r != "others live" {
			t.Errorf("%q, %v", r, err)
		}
	})
}

type coderFuncs struct {
	encode, decode func(*Message) *Message
}

func (f coderFuncs) Encode(_ *Client, m *Message) *Message { return f.encode(m) }
func (f coderFuncs) Decode(_ *Client, m *Message) *Message { return f.decode(m) }

// Coders that misbehave: the connection ends, or the message is refused; every call ends.
func TestBadCoders(t *testing.T) {
	same := func(m *Message) *Message { return m }
	poisoned := func(bad func(m *Message) *Message) func(*Message) *Message {
		return func(m *Message) *Message {
			if strings.Contains(string(m.Buffer), "poison") {
				return bad(m)
			}
			return m
		}
	}
	none := func(*Message) *Message { return nil }
	panics := func(*Message) *Message { panic("a coder panics") }
	short := func(*Message) *Message { return &Message{Buffer: make([]byte, 3)} }
	lies := func(m *Message) *Message { m.SetBodyLen(m.BodyLen() + 1); return m }
	ping := func(m *Message) *Message { m.SetCmd(CmdPing); return m }
	t.Run("decode", func(t *testing.T) {
		for name, bad := range map[string]func(*Message) *Message{"nil": none, "panic": panics, "short": short, "length": lies, "ping": ping} {
			t.Run(name, func(t *testing.T) {
				onAdapters(t, func(t *testing.T, adapter ServerOption) {
					s := startServer(t, adapter)
					s.Handler.UseCoder(coderFuncs{same, poisoned(bad)})
					s.Handler.Handle("/echo", echo)
					p := dialRaw(t, s.addr)
					p.send(frameOf(CmdRequest, 0, 1, "/echo", "good"))
					if m := p.frame(); string(m.Data()) != "good" {
						t.Fatalf("%q", m.Data())
					}
					p.send(frameOf(CmdRequest, 0, 2, "/echo", "poison"))
					p.end()
					other := dialRaw(t, s.addr)
					other.send(frameOf(CmdRequest, 0, 1, "/echo", "good"))
					if m := other.frame(); string(m.Data()) != "good" {
						t.Fatalf("%q", m.Data())
					}
				})
			})
		}
	})
	t.Run("decode of answers", func(t *testing.T) { // many answers in one segment, and one of them kills the connection
		for name, bad := range map[string]func(*Message) *Message{"nil": none, "panic": panics, "length": lies} {
			t.Run(name, func(t *testing.T) {
				const n = 100
				ln := listenRaw(t)
				h := NewHandler()
				h.UseCoder(coderFuncs{same, poisoned(bad)})
				c := dialClient(t, ln.addr(), h, Protocol(1))
				p := ln.accept()
				o := newOnce(t, n)
				for i := range n {
					must(t, c.CallAsync("/m", nil, o.callback(i), patience))
				}
				var answers []byte
				for range n {
					seq := p.frame().Seq()
					if seq == n {
						answers = append(answers, frameOf(CmdResponse, flagAsync, seq, "/m", "poison")...)
					} else {
						answers = append(answers, frameOf(CmdResponse, flagAsync, seq, "/m", "good")...)
					}
				}
				p.send(answers)
				o.check(map[string]int{"ok": -1, "unavailable": -1})
			})
		}
	})
	t.Run("encode", func(t *testing.T) {
		for name, bad := range map[string]func(*Message) *Message{"nil": none, "short": short, "panic": panics} {
			t.Run(name, func(t *testing.T) {
				s := startServer(t)
				s.Handler.Handle("/echo", echo)
				s.Handler.Handle("/bad", func(c *Context) {
					if err := c.Write("poison"); err == nil {
						t.Error("the answer was sent")
					}
				})
				c := dialClient(t, s.addr)
				c.Handler.UseCoder(coderFuncs{poisoned(bad), same})
				for _, f := range []func() error{
					func() error { return c.Call("/echo", "poison", nil, patience) },
					func() error { return c.Notify("/echo", "poison", patience) },
					func() error { return c.PushMsg(c.NewMessage(CmdNotify, "/echo", "poison"), patience) },
					func() error {
						ended := make(chan error, 2)
						err := c.CallAsync("/echo", "poison", func(ctx *Context) { ended <- ctx.Err() }, patience)
						if cerr := recv(t, ended, "callback"); cerr == nil {
							t.Error("the callback has no error")
						}
						return err
					},
				} {
					err := func() (err error) {
						defer func() {
							if p := recover(); p != nil { // a coder's panic is its user's, if he sends
								err = fmt.Errorf("%v", p)
							}
						}()
						return f()
					}()
					if err == nil {
						t.Error("what a coder refused was sent")
					}
				}
				if r, err := callBoth(t, c, "/echo", "good"); err != nil || r != "good" {
					t.Errorf("afterwards: %q, %v", r, err)
				}
				s.Handler.UseCoder(coderFuncs{poisoned(bad), same})
				start := time.Now()
				if err := c.Call("/bad", nil, nil, patience/10); CodeOf(err) != CodeInternal {
					t.Errorf("an answer that a coder refuses: %v", err)
				}
				atOnce(t, start)
			})
		}
	})
}

// carrier is a coder that carries the value under "key".
type carrier struct{}

func (carrier) Encode(_ *Client, m *Message) *Message {
	v, ok := m.Get("key")
	if !ok {
		return m
	}
	text := v.(string)
	m.SetFlagBit(5, true)
	m.Buffer = append(append(m.Buffer, text...), byte(len(text)))
	m.SetBodyLen(m.Len() - HeadLen)
	m.Set("encoded", true) // a coder may change what it gets
	return m
}

func (carrier) Decode(_ *Client, m *Message) *Message {
	if !m.IsFlagBitSet(5) {
		return m
	}
	n := int(m.Buffer[m.Len()-1])
	end := m.Len() - 1 - n
	if end < HeadLen {
		return nil
	}
	m.Set("key", string(m.Buffer[end:end+n]))
	m.Buffer = m.Buffer[:end]
	m.SetBodyLen(end - HeadLen)
	m.SetFlagBit(5, false)
	return m
}

func TestValuesTravelWithCoders(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		s.Handler.UseCoder(carrier{})
		h := NewHandler()
		h.UseCoder(carrier{})
		c := dialClient(t, s.addr, h)
		show := func(c *Context) {
			v, _ := c.Get("key")
			c.Write(fmt.Sprint(string(c.Body()), " ", v, " ", c.Value("key"), " ", c.Values()["key"]))
		}
		noted := make(chan any, 1)
		s.Handler.Handle("/ordered", show)
		s.Handler.Handle("/async", show, true)
		s.Handler.HandleInline("/inline", show)
		s.Handler.Handle("/note", func(c *Context) { v, _ := c.Get("key"); noted <- v })
		values := map[any]any{"key": "value"}
		for _, route := range []string{"/ordered", "/async", "/inline"} {
			var r string
			if err := c.Call(route, "body", &r, patience, values); err != nil || r != "body value value value" {
				t.Errorf("%s: %q, %v", route, r, err)
			}
			if err := c.CallWith(patient(t), route, "body", &r, values); err != nil || r != "body value value value" {
				t.Errorf("%s: %q, %v", route, r, err)
			}
			if err := c.Call(route, "body", &r, patience); err != nil || r != "body <nil> <nil> <nil>" {
				t.Errorf("%s: %q, %v", route, r, err)
			}
			got := make(chan any, 1)
			must(t, c.CallAsync(route, "body", func(ctx *Context) {
				v, _ := ctx.Get("key")
				got <- v
			}, patience, values))
			if v := recv(t, got, "callback"); v != "value" { // the answer carries the request's values back
				t.Errorf("%s: the answer's value is %v", route, v)
			}
		}
		for name, f := range map[string]func() error{
			"Notify":     func() error { return c.Notify("/note", nil, patience, values) },
			"NotifyWith": func() error { return c.NotifyWith(patient(t), "/note", nil, values) },
			"PushMsg":    func() error { return c.PushMsg(c.NewMessage(CmdNotify, "/note", nil, values), patience) },
		} {
			must(t, f())
			if v := recv(t, noted, "notification"); v != "value" {
				t.Errorf("%s: %v", name, v)
			}
		}
		if len(values) != 1 {
			t.Errorf("the caller's values became %v", values)
		}
	})
}

// One message to many clients, while each client's coder changes what it gets.
func TestPushingOneMessageToManyClients(t *testing.T) {
	const clients, messages = 12, 50
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		var wrong, heard atomic.Int32
		want := strings.Repeat("intact", 3000) // long enough to be shared, not copied
		s := startServer(t, adapter)
		s.Handler.UseCoder(stamp{'A', &wrong})
		s.Handler.UseCoder(carrier{})
		for range clients {
			h := NewHandler()
			h.UseCoder(stamp{'A', &wrong})
			h.UseCoder(carrier{})
			h.Handle("/b", func(c *Context) {
				if v, _ := c.Get("key"); v != "value" || string(c.Body()) != want {
					wrong.Add(1)
				}
				heard.Add(1)
			})
			dialClient(t, s.addr, h)
		}
		values := map[any]any{"key": "value"}
		all := s.waitClients(t, clients)
		m := s.NewMessage(CmdNotify, "/b", want, values)
		before := bytes.Clone(m.Buffer)
		var wg sync.WaitGroup
		for _, c := range all {
			wg.Go(func() {
				for range messages {
					if err := c.PushMsg(m, TimeForever); err != nil {
						t.Error(err)
					}
				}
			})
		}
		waitGroup(t, &wg, "end of the senders")
		eventually(t, "all pushed messages", func() bool { return heard.Load() == clients*messages })
		for range messages {
			s.Broadcast("/b", want, values)
		}
		eventually(t, "all broadcasts", func() bool { return heard.Load() == 2*clients*messages })
		if n := wrong.Load(); n > 0 {
			t.Errorf("%d messages were damaged", n)
		}
		if !bytes.Equal(m.Buffer, before) || len(m.Values()) != 1 {
			t.Error("the message itself was changed")
		}
	})
}

func TestBroadcast(t *testing.T) {
	const clients = 5
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		s.Broadcast("/b", "nobody is there")
		heard := make(chan string, 10*clients)
		for i := range clients {
			h := NewHandler()
			h.Handle("/b", func(c *Context) { heard <- fmt.Sprint(i, " ", string(c.Body())) })
			c := dialClient(t, s.addr, h)
			s.waitClients(t, i+1)
			s.ForEach(func(sc *Client) {
				if _, ok := sc.Get("i"); !ok {
					sc.Set("i", i)
				}
			})
			defer c.Stop()
		}
		collect := func(n int) (got []string) {
			for range n {
				got = append(got, recv(t, heard, "broadcast"))
			}
			slices.Sort(got)
			return got
		}
		s.Broadcast("/b", "all")
		if got := collect(clients); !slices.Equal(got, []string{"0 all", "1 all", "2 all", "3 all", "4 all"}) {
			t.Errorf("%q", got)
		}
		s.BroadcastWithFilter("/b", "some", func(c *Client) bool { i, _ := c.Get("i"); return i == 1 || i == 3 })
		if got := collect(2); !slices.Equal(got, []string{"1 some", "3 some"}) {
			t.Errorf("%q", got)
		}
		s.Broadcast("/b", func() {}) // cannot be encoded
		n := 0
		s.ForEachWithFilter(func(c *Client) {
			n++
			s.ForEach(func(*Client) {}) // no lock is held
		}, func(c *Client) bool { i, _ := c.Get("i"); return i == 2 })
		if n != 1 {
			t.Errorf("ForEachWithFilter had %d clients", n)
		}
	})
}

func TestPerConnectionValues(t *testing.T) {
	s := startServer(t)
	s.Handler.Handle("/set", func(c *Context) { c.Client.Set("name", string(c.Body())); c.Write(nil) })
	s.Handler.Handle("/get", func(c *Context) { v, ok := c.Client.Get("name"); c.Write(fmt.Sprintf("%v %v", v, ok)) })
	s.Handler.Handle("/delete", func(c *Context) { c.Client.Delete("name"); c.Write(nil) })
	a, b := dialClient(t, s.addr), dialClient(t, s.addr)
	must(t, a.Call("/set", "a", nil, patience))
	must(t, b.Call("/delete", nil, nil, patience))
	get := func(c *Client) (r string) {
		must(t, c.Call("/get", nil, &r, patience))
		return r
	}
	if x, y := get(a), get(b); x != "a true" || y != "<nil> false" {
		t.Errorf("%q, %q", x, y)
	}
	must(t, b.Call("/set", "b", nil, patience))
	must(t, a.Call("/delete", nil, nil, patience))
	if x, y := get(a), get(b); x != "<nil> false" || y != "b true" {
		t.Errorf("%q, %q", x, y)
	}
	a.Set(nil, 1)
	a.Set("k", nil)
	if _, ok := a.Get("k"); ok {
		t.Error("nil is stored")
	}
	if _, ok := a.Get(nil); ok {
		t.Error("there is a value under nil")
	}
	a.Set("k", 1)
	if v, ok := a.Get("k"); !ok || v != 1 {
		t.Errorf("%v, %v", v, ok)
	}
}

func TestSessionMiss(t *testing.T) {
	ln := listenRaw(t)
	h := NewHandler()
	missed := make(chan *Message, 10)
	h.HandleSessionMiss(func(_ *Client, m *Message) {
		missed <- m
		if string(m.Data()) == "panic" {
			panic("in the hook")
		}
	})
	c := dialClient(t, ln.addr(), h, Protocol(1))
	p := ln.accept()
	p.send(frameOf(CmdResponse, 0, 77, "/m", "panic"), frameOf(CmdResponse, 2, 78, "/n", "async"))
	for _, want := range []string{"77/m panic", "78/n async"} {
		m := recv(t, missed, "session-miss hook")
		if got := fmt.Sprint(m.Seq(), m.Method(), " ", string(m.Data())); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	// An answer that comes twice: the second is nobody's. One with a malformed method is dropped.
	done := make(chan error, 1)
	go func() { done <- c.Call("/m", nil, nil, patience) }()
	seq := p.frame().Seq()
	bad := frameOf(CmdResponse, 0, seq, "/m", "bad")
	bad[indexMethodLen] = 0
	p.send(bad, frameOf(CmdResponse, 0, seq, "/m", ""), frameOf(CmdResponse, 0, seq, "/m", "again"))
	must(t, recv(t, done, "end of the call"))
	if m := recv(t, missed, "session-miss hook"); string(m.Data()) != "again" {
		t.Errorf("%q", m.Data())
	}
}

func TestKeepalive(t *testing.T) {
	c, p := silent(t)
	c.Keepalive(time.Millisecond)
	for range 5 {
		if m := p.frame(); !bytes.Equal(m.Buffer, pingFrame) {
			t.Fatalf("%x", m.Buffer)
		}
		p.send(pongFrame)
	}
	c.Keepalive(time.Hour) // replaces the other
	must(t, c.Notify("/mark", nil, patience))
	for {
		if m := p.frame(); m.Method() == "/mark" {
			break
		}
	}
	must(t, c.Notify("/next", nil, patience))
	if m := p.frame(); m.Method() != "/next" {
		t.Errorf("%x", m.Buffer)
	}
	c.Ping()
	if m := p.frame(); m.Cmd() != CmdPing {
		t.Errorf("%x", m.Buffer)
	}
	c.Keepalive(0) // 30 seconds
	c.Keepalive(time.Microsecond)
	c.Stop()
	p.end()
	c.Keepalive(time.Microsecond) // too late, and without effect

	// A server's client pings too, until the connection ends.
	s := startServer(t)
	r := dialRaw(t, s.addr)
	s.waitClients(t, 1)[0].Keepalive(time.Millisecond)
	for range 3 {
		if m := r.frame(); m.Cmd() != CmdPing {
			t.Fatalf("%x", m.Buffer)
		}
	}
}

// Pings are answered, whatever they carry, and pongs are taken.
func TestPong(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		p := dialRaw(t, s.addr)
		withBody := frameOf(CmdPing, 3, 99, "", "body of a ping")
		p.send(pongFrame, pingFrame, withBody, frameOf(CmdPong, 0, 5, "", "body"), pingFrame)
		for range 3 {
			if m := p.frame(); !bytes.Equal(m.Buffer, pongFrame) {
				t.Errorf("%x", m.Buffer)
			}
		}
	})
}

func TestErrorClassification(t *testing.T) {
	wrapped := func(err error) error { return fmt.Errorf("while doing: %w", err) }
	cause := errors.New("cause")
	cancelled, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	expired, cancelExpired := context.WithDeadline(context.Background(), time.Now().Add(-time.Hour))
	defer cancelExpired()
	lost := lostError(ErrClientReconnecting, wrapped(io.EOF))
	for _, tt := range []struct {
		name  string
		err   error
		code  Code
		is    []error
		isNot []error
		text  string
	}{
		{"nil", nil, 0, nil, nil, ""},
		{"other", cause, CodeUnknown, nil, nil, "cause"},
		{"context.Canceled", wrapped(context.Canceled), CodeCanceled, nil, nil, ""},
		{"context.DeadlineExceeded", wrapped(context.DeadlineExceeded), CodeDeadlineExceeded, nil, nil, ""},
		{"timeout", wrapped(ErrTimeout), CodeDeadlineExceeded, []error{ErrTimeout, ErrClientTimeout, context.DeadlineExceeded}, []error{context.Canceled, ErrClientStopped}, ""},
		{"own code", &Error{Code: CodeNotFound, Message: "no such user"}, CodeNotFound, []error{&Error{Code: CodeNotFound, Message: "no such user"}},
			[]error{&Error{Code: CodeNotFound, Message: "other"}, &Error{Code: CodeAborted, Message: "no such user"}}, "no such user"},
		{"remote", wrapped(remoteError("method not found")), CodeUnimplemented, []error{ErrMethodNotFound}, []error{context.Canceled}, ""},
		{"remote text", remoteError("my words"), CodeUnknown, nil, []error{ErrMethodNotFound, context.Canceled, context.DeadlineExceeded}, "my words"},
		{"remote without text", remoteError(""), CodeUnknown, nil, nil, ""},
		{"cancelled", contextError(cancelled), CodeCanceled, []error{context.Canceled, cause}, []error{context.DeadlineExceeded, ErrTimeout}, ""},
		{"expired", contextError(expired), CodeDeadlineExceeded, []error{context.DeadlineExceeded, ErrTimeout}, []error{context.Canceled}, ""},
		{"lost", lost, CodeUnavailable, []error{ErrClientReconnecting, io.EOF}, []error{ErrClientStopped}, "client reconnecting: the peer closed the connection"},
		{"lost without a cause", lostError(ErrClientStopped, nil), CodeUnavailable, []error{ErrClientStopped}, []error{ErrClientReconnecting}, "client stopped"},
	} {
		if got := CodeOf(tt.err); got != tt.code {
			t.Errorf("%s: CodeOf is %v", tt.name, got)
		}
		for _, target := range tt.is {
			if !errors.Is(tt.err, target) {
				t.Errorf("%s is not %v", tt.name, target)
			}
		}
		for _, target := range tt.isNot {
			if errors.Is(tt.err, target) {
				t.Errorf("%s is %v", tt.name, target)
			}
		}
		if tt.text != "" && tt.err.Error() != tt.text {
			t.Errorf("%s: %q", tt.name, tt.err)
		}
	}
	names := map[string]bool{}
	for c := CodeCanceled; c <= CodeUnauthenticated; c++ {
		names[c.String()] = true
	}
	if len(names) != 16 || CodeUnauthenticated != 16 || CodeCanceled.String() != "canceled" || CodeResourceExhausted.String() != "resource_exhausted" {
		t.Errorf("names of the codes: %v", names)
	}
	for c, want := range map[Code]string{0: "code_0", 17: "code_17"} {
		if c.String() != want {
			t.Errorf("%d is %q", uint32(c), c)
		}
	}
	// The texts of the framework's own answers must differ, as they carry the code.
	if len(wireErrors) != 9 {
		t.Errorf("%d texts with a code", len(wireErrors))
	}
}

// The peer decided, or this side did.
func TestErrorTellsTheSide(t *testing.T) {
	s := startServer(t)
	s.Handler.Handle("/bad", func(c *Context) { c.Error("bad") })
	s.Handler.Handle("/never", func(c *Context) { c.AnswerLater() })
	c := dialClient(t, s.addr)
	for _, tt := range []struct {
		err    error
		remote bool
	}{
		{c.Call("/bad", nil, nil, patience), true},
		{c.Call("/nothing", nil, nil, patience), true},
		{c.Call("/never", nil, nil, time.Millisecond), false},
		{c.Call("", nil, nil, patience), false},
	} {
		var e *Error
		if !errors.As(tt.err, &e) || e.Remote != tt.remote {
			t.Errorf("%#v", tt.err)
		}
	}
}

// Routes, middleware, hooks and settings may change while messages flow.
func TestChangesWhileTrafficRuns(t *testing.T) {
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		s := startServer(t, adapter)
		s.Handler.Handle("/echo", echo)
		s.Handler.Handle("/async", echo, true)
		c := dialClient(t, s.addr)
		c.Handler.Handle("/echo", echo)
		peer := s.waitClients(t, 1)[0]
		stop := make(chan struct{})
		var calls, wg sync.WaitGroup
		for k := range 4 {
			calls.Go(func() {
				from := []*Client{c, peer}[k%2]
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					var r string
					if err := from.Call("/echo", "x", &r, patience); err != nil || r != "x" {
						t.Errorf("%q, %v", r, err)
						return
					}
					from.Notify("/nothing", "x", TimeZero)
					from.Call("/new 7", "x", nil, patience)
				}
			})
		}
		for k, h := range []Handler{s.Handler, c.Handler} {
			wg.Go(func() {
				for i := range 100 {
					h.Handle(fmt.Sprint("/new ", i), echo, i%2 == 0)
					h.Use(func(c *Context) { c.Set("i", i) })
					h.HandleNotFound(func(c *Context) { c.Error(fmt.Sprint("no ", i)) })
					h.HandleConnected(func(*Client) {})
					h.HandleDisconnected(func(*Client) {})
					h.HandleOverstock(func(*Client) {})
					h.HandleReconnect(func(*Client, int, error) {})
					h.HandleSessionMiss(func(*Client, *Message) {})
					h.BeforeRecv(func(net.Conn) error { return nil })
					h.BeforeSend(func(net.Conn) error { return nil })
					h.SetSendQueueSize(4096 + i)
					h.SetMaxBodyLen(DefaultMaxBodyLen - i)
					h.SetAsyncResponse(i%2 == 0)
					h.SetLogTag(fmt.Sprint(i))
					h.SetMaxReconnectTimes(i)
					h.Clone()
					must(t, []*Client{peer, c}[k].Call("/echo", "x", nil, patience))
				}
			})
		}
		wg.Go(func() {
			for i := range 50 {
				c.Set(i, i)
				c.Get(i)
				c.Delete(i)
				c.OnDisconnected(func(*Client) {})
				c.Keepalive(time.Hour)
				c.CheckState()
				c.Conn.RemoteAddr()
				c.Conn.LocalAddr()
				peer.Conn.LocalAddr()
				s.ForEach(func(c *Client) { c.Ping() })
				s.Broadcast("/nothing", "x")
			}
		})
		waitGroup(t, &wg, "end of the changes")
		close(stop)
		waitGroup(t, &calls, "end of the calls")
	})
}
