package etcd

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/arpc-go/arpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// failed makes an error of what etcd's client says. Codes are gRPC's on both sides; those that do not say that it is of no use to try again become
// CodeUnavailable.
func failed(err error) *arpc.Error {
	code := arpc.CodeUnavailable
	switch c := codeOf(err); c {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.Unimplemented:
		code = arpc.Code(c)
	}
	return &arpc.Error{Code: code, Message: "micro/etcd: " + err.Error()}
}

// codeOf returns the code of an error of etcd's client, whose own type has it as a method.
func codeOf(err error) codes.Code {
	var e interface{ Code() codes.Code }
	if errors.As(err, &e) {
		return e.Code()
	}
	return status.Code(err)
}

// ended is the error of a wait: that of its context, or of the time that a Config allows.
func ended(ctx context.Context, last error) error {
	text := "no answer in time"
	if last != nil {
		text = last.Error()
	}
	if err := ctx.Err(); err != nil {
		return &arpc.Error{Code: arpc.CodeOf(err), Message: "micro/etcd: " + context.Cause(ctx).Error() + ": " + text}
	}
	return &arpc.Error{Code: arpc.CodeUnavailable, Message: "micro/etcd: " + text}
}

func invalid(text string) *arpc.Error {
	return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "micro/etcd: " + text}
}

// A pause grows with each attempt that fails. It varies, so that not everybody tries at the same time.
type pause time.Duration

// wait reports false if ctx has ended.
func (p *pause) wait(ctx context.Context) bool {
	d := min(max(2*time.Duration(*p), minPause), maxPause)
	*p = pause(d)
	timer := time.NewTimer(d/2 + rand.N(d/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
