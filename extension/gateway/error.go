package gateway

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/arpc-go/arpc"
)

// statusCanceled says that the client has gone away. Nobody reads it but logs.
const statusCanceled = 499

// statuses are those of Connect.
var statuses = map[arpc.Code]int{
	arpc.CodeCanceled:           statusCanceled,
	arpc.CodeUnknown:            http.StatusInternalServerError,
	arpc.CodeInvalidArgument:    http.StatusBadRequest,
	arpc.CodeDeadlineExceeded:   http.StatusGatewayTimeout,
	arpc.CodeNotFound:           http.StatusNotFound,
	arpc.CodeAlreadyExists:      http.StatusConflict,
	arpc.CodePermissionDenied:   http.StatusForbidden,
	arpc.CodeResourceExhausted:  http.StatusTooManyRequests,
	arpc.CodeFailedPrecondition: http.StatusBadRequest,
	arpc.CodeAborted:            http.StatusConflict,
	arpc.CodeOutOfRange:         http.StatusBadRequest,
	arpc.CodeUnimplemented:      http.StatusNotImplemented,
	arpc.CodeInternal:           http.StatusInternalServerError,
	arpc.CodeUnavailable:        http.StatusServiceUnavailable,
	arpc.CodeDataLoss:           http.StatusInternalServerError,
	arpc.CodeUnauthenticated:    http.StatusUnauthorized,
}

var (
	errUnavailable = &arpc.Error{Code: arpc.CodeUnavailable, Message: "the server is not available"}
	errTooLarge    = &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "the body is too large"}
	errMetadata    = &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "the metadata is too large"}
	errCrossOrigin = &arpc.Error{Code: arpc.CodePermissionDenied, Message: "pages of this origin are not allowed"}
)

func invalid(text string) *arpc.Error {
	return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: text}
}

// statusOf returns the status for how a call has failed.
func statusOf(err error) int {
	if errors.Is(err, arpc.ErrMethodNotFound) {
		return http.StatusNotFound
	}
	code := arpc.CodeOf(err)
	if e := (*arpc.Error)(nil); code == arpc.CodeInvalidArgument && errors.As(err, &e) && !e.Remote {
		// What this end has refused to send.
		if strings.HasPrefix(e.Message, "invalid metadata") {
			return http.StatusRequestHeaderFieldsTooLarge
		}
		return http.StatusRequestEntityTooLarge
	}
	if s := statuses[code]; s != 0 {
		return s
	}
	return http.StatusInternalServerError
}

// abandoned reports whether a call has ended without its answer while its handler may go on.
func abandoned(err error) bool {
	var e *arpc.Error
	return errors.As(err, &e) && !e.Remote && (e.Code == arpc.CodeCanceled || e.Code == arpc.CodeDeadlineExceeded)
}

// textOf returns the message of an error.
func textOf(err error) string {
	if err == context.DeadlineExceeded {
		return arpc.ErrTimeout.Message
	}
	return err.Error()
}

// failure is the body of an error.
type failure struct {
	Code    string   `json:"code"`
	Message string   `json:"message"`
	Details []detail `json:"details,omitempty"`
}

type detail struct {
	Name  string          `json:"name"`
	Value json.RawMessage `json:"value"`
	// Encoding is "base64" for a value that is neither JSON nor text.
	Encoding string `json:"encoding,omitempty"`
}

// fail answers with an error.
func fail(w http.ResponseWriter, status int, err error) {
	f := failure{Code: arpc.CodeOf(err).String(), Message: textOf(err)}
	var e *arpc.Error
	if errors.As(err, &e) {
		for _, d := range e.Details {
			if value, ok := d.Value.([]byte); ok {
				f.Details = append(f.Details, presentDetail(d.Name, value))
			}
		}
	}
	body, _ := json.Marshal(f) // the values are valid
	write(w, status, jsonType, body)
}

func presentDetail(name string, value []byte) detail {
	d := detail{Name: name}
	switch {
	case len(value) == 0:
		d.Value = json.RawMessage("null")
	case json.Valid(value):
		d.Value = value
	case utf8.Valid(value):
		d.Value = quote(value)
	default:
		d.Value, d.Encoding = quote([]byte(base64.StdEncoding.EncodeToString(value))), "base64"
	}
	return d
}
