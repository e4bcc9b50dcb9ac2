package router_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/router"
)

type user struct{ name string }

// verify knows a few tokens.
func verify(ctx context.Context, token string) (any, error) {
	switch token {
	case "ann":
		return &user{"ann"}, nil
	case "nobody":
		return nil, nil
	case "banned":
		return nil, &arpc.Error{Code: arpc.CodePermissionDenied, Message: "you may not"}
	case "down":
		return nil, arpc.CodeUnavailable
	case "slow":
		<-ctx.Done()
		return nil, ctx.Err()
	case "panic":
		panic("on purpose")
	}
	return nil, errors.New("secret: signature mismatch")
}

func with(ctx context.Context, authorization string) context.Context {
	return arpc.AddMetadata(ctx, "authorization", authorization)
}

func TestAuth(t *testing.T) {
	l := captureLog(t)
	var seen chan string
	both(t, func(t *testing.T, h arpc.Handler) {
		seen = make(chan string, 64)
		see := func(ctx context.Context) {
			u, ok := router.Principal[*user](ctx)
			if !ok {
				u = &user{"?"}
			}
			seen <- u.name
		}
		h.Use(router.Auth(verify, router.AuthOptions{Public: []string{"/public"}}))
		h.Handle("/call", func(ctx *arpc.Context) {
			see(context.WithoutCancel(ctx)) // derived ones know it too
			ctx.Write(nil)
		})
		h.Handle("/public", func(ctx *arpc.Context) {
			see(ctx)
			ctx.Write(nil)
		})
		h.HandleStream("/stream", func(s *arpc.Stream) {
			see(s.Context())
			s.Reset(arpc.CodeAborted)
		})
	}, func(t *testing.T, c *arpc.Client) {
		allowed := func(ctx context.Context, name string) {
			t.Helper()
			if err := c.CallWith(ctx, "/call", nil, nil); err != nil {
				t.Errorf("call: %v", err)
			} else if got := recv(t, seen, "call"); got != name {
				t.Errorf("the call is of %q, want %q", got, name)
			}
			if err := c.NotifyWith(ctx, "/call", nil); err != nil {
				t.Errorf("notify: %v", err)
			} else if got := recv(t, seen, "notification"); got != name {
				t.Errorf("the notification is of %q, want %q", got, name)
			}
			isFailed(t, stream(t, ctx, c, "/stream"), arpc.CodeAborted)
			if got := recv(t, seen, "stream"); got != name {
				t.Errorf("the stream is of %q, want %q", got, name)
			}
		}
		allowed(with(wait(t), "Bearer ann"), "ann")
		allowed(with(wait(t), "bEARER   ann"), "ann")
		allowed(with(wait(t), "Bearer nobody"), "?")

		for _, bad := range []struct {
			authorization string
			code          arpc.Code
		}{
			{"", arpc.CodeUnauthenticated},
			{"Bearer", arpc.CodeUnauthenticated},
			{"Bearer ", arpc.CodeUnauthenticated},
			{"Bearer   ", arpc.CodeUnauthenticated},
			{"ann", arpc.CodeUnauthenticated},
			{"Basic ann", arpc.CodeUnauthenticated},
			{"Bearer ann ", arpc.CodeUnauthenticated},
			{"Bearer ann\x00", arpc.CodeUnauthenticated},
			{"Bearer ann bob", arpc.CodeUnauthenticated},
			{"Bearer Ann", arpc.CodeUnauthenticated},
			{"Bearer " + strings.Repeat("a", 4000), arpc.CodeUnauthenticated},
			{"Bearer banned", arpc.CodePermissionDenied},
			{"Bearer down", arpc.CodeUnavailable},
		} {
			ctx := wait(t)
			if bad.authorization != "" {
				ctx = with(ctx, bad.authorization)
			}
			err := c.CallWith(ctx, "/call", nil, nil)
			isRefused(t, err, bad.code)
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the peer was told %q", err)
			}
			isRefused(t, stream(t, ctx, c, "/stream"), bad.code)
			if err := c.NotifyWith(ctx, "/call", nil); err != nil {
				t.Error(err)
			}
		}
		l.next(t, "debug", "secret: signature mismatch")
		if err := c.CallWith(with(wait(t), "Bearer panic"), "/call", nil, nil); arpc.CodeOf(err) != arpc.CodeInternal {
			t.Errorf("a verify that panics: %v", err)
		}
		ctx, cancel := context.WithCancel(with(wait(t), "Bearer slow"))
		done := make(chan error)
		go func() { done <- c.CallWith(ctx, "/call", nil, nil) }()
		cancel()
		if err := recv(t, done, "end"); arpc.CodeOf(err) != arpc.CodeCanceled {
			t.Errorf("a call that is cancelled: %v", err)
		}

		if err := c.CallWith(wait(t), "/public", nil, nil); err != nil {
			t.Error(err)
		} else if got := recv(t, seen, "call"); got != "?" {
			t.Errorf("a public call is of %q", got)
		}
		select {
		case name := <-seen:
			t.Errorf("a handler ran for %q", name)
		default:
		}
	})
}

// A peer of version 1 cannot send a token.
func TestAuthVersion1(t *testing.T) {
	h := arpc.NewHandler()
	h.Use(router.Auth(verify))
	ran := false
	h.Handle("/call", func(ctx *arpc.Context) { ran = true })
	c := start(t, h, arpc.Protocol(1))
	if err := c.CallWith(with(wait(t), "Bearer ann"), "/call", nil, nil); err == nil || ran {
		t.Errorf("%v, %v", err, ran)
	}
}

func TestAuthWithoutFunction(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	router.Auth(nil)
}
