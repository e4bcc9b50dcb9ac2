package zookeeper

import (
	"context"
	"errors"
	"fmt"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
	"github.com/go-zookeeper/zk"
)

// refusals are the errors that another attempt will not change, and their codes.
var refusals = map[error]arpc.Code{
	zk.ErrInvalidPath:             arpc.CodeInvalidArgument,
	zk.ErrBadArguments:            arpc.CodeInvalidArgument,
	zk.ErrNoAuth:                  arpc.CodePermissionDenied,
	zk.ErrInvalidACL:              arpc.CodePermissionDenied,
	zk.ErrAuthFailed:              arpc.CodeUnauthenticated,
	zk.ErrNoChildrenForEphemerals: arpc.CodeFailedPrecondition,
	zk.ErrNotEmpty:                arpc.CodeFailedPrecondition,
}

// refused returns the error for one of the refusals, nil for what another attempt may change.
func refused(err error) error {
	for cause, code := range refusals {
		if errors.Is(err, cause) {
			return &arpc.Error{Code: code, Message: "micro/zookeeper: " + err.Error()}
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "micro/zookeeper: " + fmt.Sprintf(format, args...)}
}

// ended is the error of a wait in a context made by within, nil if that has not ended.
func (r *Registry) ended(ctx context.Context) error {
	switch cause := context.Cause(ctx); {
	case r.ctx.Err() != nil:
		return micro.ErrClosed
	case cause == errTimeout:
		return errTimeout
	case cause != nil:
		return &arpc.Error{Code: arpc.CodeOf(ctx.Err()), Message: "micro/zookeeper: " + cause.Error()}
	}
	return nil
}

// errTimeout says that Config.Timeout is over.
var errTimeout = &arpc.Error{Code: arpc.CodeUnavailable, Message: "micro/zookeeper: no answer in time"}
