package arpc

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"
)

// Which errors say that nothing was done, and when to try again.

// wantRefused checks an error, and whether it is a refusal of the peer's.
func wantRefused(t testing.TB, what string, err error, code Code, refused bool) {
	t.Helper()
	if err == nil || CodeOf(err) != code || IsRefused(err) != refused {
		t.Errorf("%s: %v (%v), refused: %v", what, err, CodeOf(err), IsRefused(err))
	}
}

// refusedHex is the detail of V2-CODE-6 as it is sent.
const refusedHex = "0c" + "617270632e72656675736564" + "00000000"

// V2-CODE-6: what the framework refuses by itself.
func TestRefusedByTheFramework(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		ctx := patient(t)
		wantRefused(t, "a call of an unknown method", w.caller.CallWith(ctx, "/unknown", nil, nil), CodeUnimplemented, true)
		_, err := NewMethod[point, point]("/unknown").Call(ctx, w.caller, &point{})
		wantRefused(t, "a typed call of an unknown method", err, CodeUnimplemented, true)
		ends := make(chan error, 1)
		must(t, w.caller.CallAsync("/unknown", nil, func(c *Context) { ends <- c.Err() }, patience))
		wantRefused(t, "an async call of an unknown method", recv(t, ends, "callback"), CodeUnimplemented, true)
		s, err := w.caller.OpenStream(ctx, "/unknown")
		must(t, err)
		must(t, s.CloseSend())
		wantRefused(t, "an unknown stream", s.Recv(nil), CodeUnimplemented, true)
		// What the handler did, or may have done.
		w.callee.Handler.Handle("/panic", func(*Context) { panic("expected") })
		w.callee.Handler.Handle("/nothing", func(*Context) {})
		w.callee.Handler.Handle("/same", func(c *Context) { c.Write(ErrMethodNotFound) })
		w.callee.Handler.HandleStream("/panic", func(*Stream) { panic("expected") })
		wantRefused(t, "a panic", w.caller.CallWith(ctx, "/panic", nil, nil), CodeInternal, false)
		wantRefused(t, "no answer", w.caller.CallWith(ctx, "/nothing", nil, nil), CodeInternal, false)
		wantRefused(t, "the framework's error by a handler", w.caller.CallWith(ctx, "/same", nil, nil), CodeUnimplemented, false)
		s, err = w.caller.OpenStream(ctx, "/panic")
		must(t, err)
		wantRefused(t, "a panic of a stream's handler", s.Recv(nil), CodeInternal, false)
	})
}

// V2-CODE-6: an end that drains, one that waits for credentials, and one that has too much in line.
func TestRefusedOnTheWire(t *testing.T) {
	refuses := func(t *testing.T, p *rawPeer, code Code) {
		t.Helper()
		p.send(frameOf(CmdRequest, 0, 21, "/m", ""), frameOf(CmdNotify, 0, 22, "/m", ""),
			frameOf(CmdStream|streamLocal, flagOpen|flagNoData, 23, "/m", ""))
		m := p.frame()
		for m.Cmd() == cmdGoAway || m.Cmd() == CmdPing {
			m = p.frame()
		}
		if m.Seq() != 21 || m.Cmd() != CmdResponse || !strings.HasSuffix(hex.EncodeToString(m.Buffer), refusedHex) {
			t.Errorf("%x", m.Buffer)
		}
		wantRefused(t, "a request", m.Error(), code, true)
		m = p.frame()
		isReset(t, m, false, 23, code)
		wantRefused(t, "a stream", m.Error(), code, true)
	}
	onAdapters(t, func(t *testing.T, adapter ServerOption) {
		t.Run("draining", func(t *testing.T) {
			s := startServer(t, adapter)
			entered, release := make(chan struct{}), make(chan struct{})
			s.Handler.Handle("/block", func(c *Context) { close(entered); <-release; c.Write(nil) }, true)
			s.Handler.Handle("/m", echo)
			p := dialGreeted(t, s.addr, fullHello())
			p.send(frameOf(CmdRequest, 0, 9, "/block", ""))
			recv(t, entered, "handler")
			over := make(chan error, 1)
			go func() { over <- s.Shutdown(patient(t)) }()
			if m := p.frame(); m.Cmd() != cmdGoAway || IsRefused(m.Error()) {
				t.Errorf("%x", m.Buffer)
			}
			eventually(t, "draining", s.rpc.draining.Load)
			refuses(t, p, CodeUnavailable)
			close(release)
			p.Close()
			must(t, recv(t, over, "end of Shutdown"))
		})
		t.Run("not authenticated", func(t *testing.T) {
			s := startServer(t, adapter)
			s.Handler.HandleAuth(func(*Context, []byte) (any, error) { return nil, nil })
			s.Handler.Handle("/m", echo)
			p := dialGreeted(t, s.addr, fullHello())
			refuses(t, p, CodeUnauthenticated)
		})
		t.Run("too many streams", func(t *testing.T) {
			s := startServer(t, adapter, Limits{Streams: 1})
			release := make(chan struct{})
			defer close(release)
			s.Handler.HandleStream("/block", func(*Stream) { <-release })
			p := dialGreeted(t, s.addr, fullHello())
			p.send(frameOf(CmdStream|streamLocal, flagOpen|flagNoData, 9, "/block", ""),
				frameOf(CmdStream|streamLocal, flagOpen|flagNoData, 23, "/block", ""))
			m := p.frame()
			isReset(t, m, false, 23, CodeResourceExhausted)
			wantRefused(t, "a stream", m.Error(), CodeResourceExhausted, true)
		})
	})
	// Malformed is not refused: another peer would say the same.
	s := startServer(t)
	p := dialGreeted(t, s.addr, fullHello())
	f := frameOf(CmdRequest, 0, 9, "/m", "")
	f[indexMethodLen] = 200
	p.send(f)
	wantRefused(t, "a malformed request", p.frame().Error(), CodeInvalidArgument, false)
}

// What handlers and middleware refuse, in whatever way.
func TestRefused(t *testing.T) {
	base := &Error{Code: CodeAborted, Message: "not now", Details: []Detail{{Name: "d", Value: "v"}, RetryAfter(time.Second)}}
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		ctx := patient(t)
		ran := make(chan struct{}, 1)
		h := w.callee.Handler
		h.Handle("/write", func(c *Context) { c.Write(Refused(base)) })
		h.Handle("/error", func(c *Context) { c.Error(Refused(base)) }, true)
		h.HandleInline("/inline", func(c *Context) { c.Error(Refused(base)) })
		h.Handle("/later", func(c *Context) { c.AnswerLater(); go c.Write(Refused(base)) })
		h.Handle("/twice", func(c *Context) { c.Error(Refused(Refused(base))) })
		h.Handle("/wrapped before", func(c *Context) { c.Error(Refused(fmt.Errorf("so: %w", base))) })
		NewMethod[point, point]("/typed").Handle(h, func(*Context, *point) (*point, error) { return nil, Refused(base) })
		h.HandleStream("/reset", func(s *Stream) { s.Reset(Refused(base)) })
		NewBidiStream[point, point]("/typed").Handle(h, func(TypedStream[point, point]) error { return Refused(base) })
		h.Use(func(c *Context) {
			if string(c.Body()) == "no" {
				if s := c.Stream(); s != nil {
					s.Reset(Refused(base))
				}
				c.Error(Refused(base))
				c.Abort()
			}
		})
		h.Handle("/behind", func(c *Context) { ran <- struct{}{}; c.Write(nil) })
		for _, method := range []string{"/write", "/error", "/inline", "/later", "/twice", "/wrapped before", "/typed", "/behind"} {
			var req any
			switch method {
			case "/typed":
				req = point{}
			case "/behind":
				req = "no"
			}
			err := w.caller.CallWith(ctx, method, req, nil)
			wantRefused(t, method, err, CodeAborted, true)
			wantRefused(t, method+", wrapped here", fmt.Errorf("so: %w", err), CodeAborted, true)
			var e *Error
			if !errors.As(err, &e) || len(e.Details) != 2 || e.Details[0].Name != "d" || !strings.HasSuffix(e.Message, base.Message) {
				t.Errorf("%s: %#v", method, e)
			}
			if d, ok := RetryDelay(err); d != time.Second || !ok {
				t.Errorf("%s: try again after %v, %v", method, d, ok)
			}
		}
		must(t, w.caller.CallWith(ctx, "/behind", "yes", nil))
		recv(t, ran, "handler")
		for _, method := range []string{"/reset", "/typed"} {
			s, err := w.caller.OpenStream(ctx, method)
			must(t, err)
			wantRefused(t, "stream "+method, s.Recv(nil), CodeAborted, true)
			wantRefused(t, "stream "+method, s.Send("x"), CodeAborted, true)
		}
		// A caller that resets its stream.
		ends := make(chan error, 1)
		h.HandleStream("/recv", func(s *Stream) { s.Recv(new(string)); ends <- s.Recv(nil) })
		s, err := w.caller.OpenStream(ctx, "/recv")
		must(t, err)
		must(t, s.Send("x"))
		s.Reset(Refused(base))
		err = recv(t, ends, "end of the stream")
		wantRefused(t, "a reset by the caller", err, CodeAborted, true)
		wantRefused(t, "the caller's own", s.Recv(nil), CodeAborted, false)
	})
}

// V2-CODE-6: who passes on an error has perhaps done something, so the refusal stays behind.
func TestRefusedIsNotPassedOn(t *testing.T) {
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		w.caller.Handler.Handle("/inner", func(c *Context) {
			c.Error(Refused(&Error{Code: CodeAborted, Message: "no", Details: []Detail{RetryAfter(time.Second)}}))
		})
		inner := func(c *Context) error {
			err := c.Client.CallWith(c, "/inner", nil, nil)
			wantRefused(t, "the inner call", err, CodeAborted, true)
			return err
		}
		h := w.callee.Handler
		h.Handle("/write", func(c *Context) { c.Write(inner(c)) })
		h.Handle("/error", func(c *Context) { c.Error(inner(c)) }, true)
		h.Handle("/wrapped", func(c *Context) { c.Error(fmt.Errorf("outer: %w", inner(c))) })
		h.Handle("/joined", func(c *Context) { c.Error(errors.Join(errors.New("outer"), inner(c))) })
		h.Handle("/own", func(c *Context) { c.Error(fmt.Errorf("outer: %w", Refused(CodeAborted))) })
		NewMethod[point, point]("/typed").Handle(h, func(c *Context, _ *point) (*point, error) { return nil, inner(c) })
		for _, method := range []string{"/write", "/error", "/wrapped", "/joined", "/own", "/typed"} {
			err := w.caller.CallWith(patient(t), method, point{}, nil)
			wantRefused(t, method, err, CodeAborted, false)
			if _, ok := RetryDelay(err); ok != (method != "/own") { // the second of the two is passed on
				t.Errorf("%s: RetryDelay %v", method, ok)
			}
		}
		h.HandleStream("/s", func(s *Stream) {
			s.Reset(s.Client().CallWith(s.Context(), "/inner", nil, nil))
		})
		s, err := w.caller.OpenStream(patient(t), "/s")
		must(t, err)
		wantRefused(t, "a stream", s.Recv(nil), CodeAborted, false)
		// It is the caller's choice to say that all the same nothing was done.
		h.Handle("/again", func(c *Context) { c.Error(Refused(inner(c))) })
		wantRefused(t, "/again", w.caller.CallWith(patient(t), "/again", nil, nil), CodeAborted, true)
	})
}

func TestRefusedOfVersion1(t *testing.T) {
	onStreams(t, streamSetup{client: []ClientOption{Protocol(1)}}, func(t *testing.T, e *streamEnds) {
		e.far.Handler.Handle("/m", func(c *Context) { c.Error(Refused(&Error{Code: CodeAborted, Message: "no"})) })
		err := e.near.CallWith(patient(t), "/m", nil, nil)
		wantRefused(t, "a call", err, CodeUnknown, false)
		if err.Error() != "no" {
			t.Errorf("%q", err)
		}
		wantRefused(t, "an unknown method", e.near.CallWith(patient(t), "/unknown", nil, nil), CodeUnimplemented, false)
		e.far.Handler.HandleStream("/s", func(s *Stream) { s.Reset(Refused(CodeAborted)) })
		s, err := e.near.OpenStream(patient(t), "/s")
		must(t, err)
		must(t, s.Send("x"))
		if err := s.Recv(nil); IsRefused(err) {
			t.Errorf("%v", err)
		}
	})
}

func TestRefusedHere(t *testing.T) {
	if Refused(nil) != nil {
		t.Error("nil is refused")
	}
	own := &Error{Code: CodeAborted, Message: "no"}
	err := Refused(own)
	if !errors.Is(err, own) || !errors.Is(err, CodeAborted) || CodeOf(err) != CodeAborted || err.Error() != "no" {
		t.Errorf("%v (%v)", err, CodeOf(err))
	}
	for _, err := range []error{nil, err, Refused(io.EOF), own, CodeAborted, io.EOF, ErrTimeout, ErrMethodNotFound, context.Canceled,
		errDraining, errNoAuth, errTooMany, fmt.Errorf("x: %w", err),
		&Error{Code: CodeUnavailable, Remote: true, Unsent: true},
		lostError(ErrClientStopped, nil), lostError(ErrClientReconnecting, io.EOF),
		lostError(ErrClientStopped, &Error{Remote: true, refused: true, Message: "bye"}), // the peer's word on the connection, not on the call
		&Error{Code: CodeAborted, Details: []Detail{{Name: refusedDetail}}}} {
		if IsRefused(err) {
			t.Errorf("%v passes for a refusal", err)
		}
	}
}

// V2-CODE-6: what a peer may send, sensible or not.
func TestRefusedDetails(t *testing.T) {
	detail := func(name, value string) string {
		return string([]byte{byte(len(name))}) + name + string([]byte{byte(len(value)), 0, 0, 0}) + value
	}
	coded := func(details ...string) string {
		return "\x0a" + string([]byte{byte(len(details))}) + "\x02\x00\x00\x00no" + strings.Join(details, "")
	}
	refused, after := "arpc.refused", "arpc.retry_after"
	tests := []struct {
		name    string
		payload string
		refused bool
		delay   time.Duration // -1 for none
		details int
	}{
		{"nothing", coded(), false, -1, 0},
		{"refused", coded(detail(refused, "")), true, -1, 0},
		{"refused with a value", coded(detail(refused, "no")), true, -1, 0},
		{"refused twice", coded(detail(refused, ""), detail(refused, "")), true, -1, 0},
		{"refused last", coded(detail("d", "v"), detail(refused, "")), true, -1, 1},
		{"another name", coded(detail("arpc.Refused", ""), detail("refused", ""), detail("arpc.", ""), detail("", "")), false, -1, 4},
		{"a delay", coded(detail(after, "1500")), false, 1500 * time.Millisecond, 1},
		{"both", coded(detail(after, "1"), detail(refused, "")), true, time.Millisecond, 1},
		{"none", coded(detail(after, "0")), false, 0, 1},
		{"a day", coded(detail(after, "86400000")), false, 24 * time.Hour, 1},
		{"more than a day", coded(detail(after, "86400001")), false, -1, 1},
		{"negative", coded(detail(after, "-1")), false, -1, 1},
		{"huge", coded(detail(after, "9223372036854775807")), false, -1, 1},
		{"nanoseconds overflow", coded(detail(after, "9223372036855")), false, -1, 1},
		{"above 64 bits", coded(detail(after, "92233720368547758070")), false, -1, 1},
		{"very long", coded(detail(after, strings.Repeat("1", 200))), false, -1, 1},
		{"no value", coded(detail(after, "")), false, -1, 1},
		{"a word", coded(detail(after, "soon")), false, -1, 1},
		{"a unit", coded(detail(after, "1s")), false, -1, 1},
		{"a fraction", coded(detail(after, "1.5")), false, -1, 1},
		{"hexadecimal", coded(detail(after, "0x10")), false, -1, 1},
		{"underscores", coded(detail(after, "1_000")), false, -1, 1},
		{"a space", coded(detail(after, " 1")), false, -1, 1},
		{"a quoted one", coded(detail(after, `"1"`)), false, -1, 1},
		{"a bad one and a good one", coded(detail(after, "x"), detail(after, "7")), false, 7 * time.Millisecond, 2},
		{"many", coded(func() (all []string) {
			for range 254 {
				all = append(all, detail("d", "v"))
			}
			return append(all, detail(refused, ""))
		}()...), true, -1, 254},
	}
	greetedEnds(t, fullHello(), func(t *testing.T, c *Client, p *rawPeer) {
		for _, tt := range tests {
			done := make(chan error, 1)
			go func() { done <- c.CallWith(patient(t), "/m", "x", nil) }()
			p.reply(p.frame(), flagError|flagCoded, tt.payload)
			err := recv(t, done, "end of the call")
			wantRefused(t, tt.name, err, CodeAborted, tt.refused)
			var e *Error
			if !errors.As(err, &e) || e.Message != "no" || len(e.Details) != tt.details {
				t.Errorf("%s: %#v", tt.name, e)
			}
			for _, err := range []error{err, fmt.Errorf("so: %w", err)} {
				if d, ok := RetryDelay(err); ok != (tt.delay >= 0) || ok && d != tt.delay || !ok && d != 0 {
					t.Errorf("%s: try again after %v, %v", tt.name, d, ok)
				}
			}
		}
		// What this side sends.
		c.Handler.Handle("/refuse", func(c *Context) {
			c.Error(Refused(&Error{Code: CodeAborted, Message: "no", Details: []Detail{RetryAfter(1500 * time.Millisecond)}}))
		})
		p.send(frameOf(CmdRequest, 0, 9, "/refuse", ""))
		p.wants("answer", hex.EncodeToString(frameOf(CmdResponse, flagError|flagCoded, 9, "/refuse",
			coded(detail(refused, ""), detail(after, "1500")))))
		c.Handler.Handle("/full", func(c *Context) {
			c.Error(Refused(&Error{Code: CodeAborted, Message: "no", Details: make([]Detail, 300)}))
		})
		p.send(frameOf(CmdRequest, 0, 9, "/full", ""))
		var e *Error
		if err := p.frame().Error(); !errors.As(err, &e) || !IsRefused(err) || len(e.Details) != 254 {
			t.Errorf("%v", err)
		}
	})
}

// V2-CODE-6
func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		d    time.Duration
		want time.Duration // -1 for none
	}{
		{0, 0}, {1, time.Millisecond}, {time.Millisecond, time.Millisecond}, {time.Millisecond + 1, 2 * time.Millisecond},
		{time.Second, time.Second}, {24 * time.Hour, 24 * time.Hour}, {24*time.Hour + 1, -1}, {-1, 0}, {-time.Hour, 0},
		{math.MinInt64, 0}, {math.MaxInt64, -1},
	} {
		e := &Error{Code: CodeUnavailable, Message: "busy", Details: []Detail{{Name: "d", Value: 1}, RetryAfter(tt.d)}}
		for _, err := range []error{e, fmt.Errorf("so: %w", e), Refused(e), decodeError(appendError(nil, e, nil), nil)} {
			if d, ok := RetryDelay(err); ok != (tt.want >= 0) || ok && d != tt.want {
				t.Errorf("after %v: %v, %v", tt.d, d, ok)
			}
		}
	}
	if s := RetryAfter(math.MaxInt64).Value; s != "9223372036855" {
		t.Errorf("%v", s)
	}
	for _, err := range []error{nil, io.EOF, CodeUnavailable, ErrTimeout, &Error{Details: []Detail{{Name: "arpc.retry_after", Value: 5}}},
		&Error{Details: []Detail{{Name: "arpc.retry_after"}}}, &Error{Details: []Detail{{Name: "retry_after", Value: "5"}}}} {
		if d, ok := RetryDelay(err); ok || d != 0 {
			t.Errorf("%v: %v", err, d)
		}
	}
	everyWay(t, Limits{}, func(t *testing.T, w *way) {
		w.callee.Handler.Handle("/m", func(c *Context) {
			c.Error(&Error{Code: CodeUnavailable, Message: "busy", Details: []Detail{RetryAfter(1234 * time.Microsecond)}})
		})
		err := w.caller.CallWith(patient(t), "/m", nil, nil)
		if d, ok := RetryDelay(err); d != 2*time.Millisecond || !ok || IsRefused(err) {
			t.Errorf("%v: %v, %v", err, d, ok)
		}
		w.callee.Handler.HandleStream("/s", func(s *Stream) {
			s.Reset(&Error{Code: CodeUnavailable, Message: "busy", Details: []Detail{RetryAfter(time.Minute)}})
		})
		s, err := w.caller.OpenStream(patient(t), "/s")
		must(t, err)
		if d, ok := RetryDelay(s.Recv(nil)); d != time.Minute || !ok {
			t.Errorf("%v, %v", d, ok)
		}
	})
}
