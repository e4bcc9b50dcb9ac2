package router

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/log"
)

// authorization is the metadata key of the token, in lower case.
const authorization = "authorization"

var (
	errNoToken  = &arpc.Error{Code: arpc.CodeUnauthenticated, Message: "a bearer token is required"}
	errBadToken = &arpc.Error{Code: arpc.CodeUnauthenticated, Message: "the token is not valid"}
)

// AuthOptions say how Auth works. The zero value is the default.
type AuthOptions struct {
	// Public names the methods that need no token; default none. A token that
	// is sent with them is not looked at, and they have no principal.
	Public []string
}

// Auth returns a middleware that lets only messages with a valid bearer token
// through. The token is in the metadata of each call, notification and stream,
// under "authorization", with the value "Bearer " and the token, which has no
// white space:
//
//	ctx = arpc.AddMetadata(ctx, "authorization", "Bearer "+token)
//
// verify says who the token stands for, or why it is not accepted. It is called
// for each message, by many goroutines; nothing is cached. Its ctx is the
// handler's, with the caller's deadline; it may block where the handler may.
// The handler finds what it returned with Principal.
//
// Without a token the message is refused with CodeUnauthenticated. An error of
// verify that is, or wraps, an *arpc.Error or an arpc.Code is the refusal: use
// CodePermissionDenied for those who are known and may not, CodeUnavailable
// when it cannot be told now. Of other errors the peer is told only that the
// token is not valid, with CodeUnauthenticated; their text goes to the log with
// LevelDebug. When verify panics, the message is refused as well.
//
// Peers of version 1 of the protocol send no metadata and are refused. To
// prove once per connection who a peer is, see arpc.Mux.HandleAuth. At most one
// AuthOptions is used, the last. It panics without verify.
func Auth(verify func(ctx context.Context, token string) (principal any, err error), opts ...AuthOptions) arpc.HandlerFunc {
	if verify == nil {
		panic("router: Auth without a function")
	}
	public := slices.Clone(last(opts).Public)
	return func(ctx *arpc.Context) {
		if slices.Contains(public, method(ctx)) {
			return
		}
		token, ok := bearer(ctx.Metadata()[authorization])
		if !ok {
			refuse(ctx, errNoToken)
			return
		}
		principal, err := verify(ctx, token)
		if err != nil {
			refuse(ctx, refusalOf(ctx, err))
			return
		}
		value(ctx, principalKey{}, principal)
	}
}

// bearer returns the token of an authorization value. The scheme may be written
// in any case.
func bearer(v string) (token string, ok bool) {
	const scheme = "bearer "
	if len(v) <= len(scheme) || !strings.EqualFold(v[:len(scheme)], scheme) {
		return "", false
	}
	token = strings.TrimLeft(v[len(scheme):], " ")
	return token, token != "" && !strings.ContainsAny(token, " \t\r\n\x00")
}

// refusalOf returns what the peer is told of an error of verify.
func refusalOf(ctx *arpc.Context, err error) error {
	var e *arpc.Error
	var code arpc.Code
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &code):
		return code
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err // the caller's time was up, or that of what verify asked
	}
	log.Debug("arpc: a token of %s for %q: %v", peer(ctx), method(ctx), err)
	return errBadToken
}

type principalKey struct{}

// Principal returns what the function of Auth has said about the message that
// ctx, a handler's context, a Stream's or one that was derived from it, is for.
// ok is false if there is nothing, or if it is not a T.
func Principal[T any](ctx context.Context) (principal T, ok bool) {
	principal, ok = ctx.Value(principalKey{}).(T)
	return principal, ok
}
