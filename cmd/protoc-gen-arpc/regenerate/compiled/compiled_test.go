// Package compiled tests what the code that is generated for the testdata says and does; that it carries messages in all shapes
// and directions is tested with the example, examples/protobuf.
package compiled

import (
	"errors"
	"flag"
	"net"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/cmd/protoc-gen-arpc/regenerate/testdata/context"
	"github.com/arpc-go/arpc/cmd/protoc-gen-arpc/regenerate/testdata/edge"
	"github.com/arpc-go/arpc/cmd/protoc-gen-arpc/regenerate/testdata/edition"
	"github.com/arpc-go/arpc/cmd/protoc-gen-arpc/regenerate/testdata/h"
	"github.com/arpc-go/arpc/cmd/protoc-gen-arpc/regenerate/testdata/old"
	_type "github.com/arpc-go/arpc/cmd/protoc-gen-arpc/regenerate/testdata/type"
	"github.com/arpc-go/arpc/codec"
)

// The flag of package regenerate, for who gives it to all packages.
var _ = flag.Bool("update", false, "has no effect here")

// TestMethods: names on the wire, shapes, traits.
func TestMethods(t *testing.T) {
	type named interface {
		Name() string
		IsIdempotent() bool
	}
	for _, c := range []struct {
		method     named
		same       named // of the same shape and types
		idempotent bool
	}{
		{edge.KeyValue_Type, arpc.NewMethod[edge.Key, edge.Value]("/edge.v1.key_value/type"), false},
		{edge.KeyValue_Func, arpc.NewServerStream[edge.Key, edge.Value]("/edge.v1.key_value/func"), false},
		{edge.KeyValue_Range, arpc.NewClientStream[edge.Key, edge.Value]("/edge.v1.key_value/range"), false},
		{edge.KeyValue_Select, arpc.NewBidiStream[edge.Key, edge.Value]("/edge.v1.key_value/select"), false},
		{edge.KeyValue_XHidden, arpc.NewMethod[edge.Key, edge.Value]("/edge.v1.key_value/_hidden"), false},
		{edge.KeyValue_Inline, arpc.NewMethod[edge.Key, edge.Value]("/edge.v1.key_value/Inline", arpc.Inline), false},
		{edge.KeyValue_Async, arpc.NewMethod[edge.Key, edge.Value]("/edge.v1.key_value/Async", arpc.Async, arpc.Idempotent), true},
		{edge.KeyValue_Prose, arpc.NewMethod[edge.Key, edge.Value]("/edge.v1.key_value/Prose"), false},
		{edge.KeyValue_Trailing, arpc.NewMethod[edge.Key, edge.Value]("/edge.v1.key_value/Trailing", arpc.Async), false},
		{edge.Elsewhere_Unary, arpc.NewMethod[h.Request, _type.Func]("/edge.v1.Elsewhere/Unary"), false},
		{edge.Elsewhere_Server, arpc.NewServerStream[h.Request, context.Context]("/edge.v1.Elsewhere/Server"), false},
		{edge.Elsewhere_Client, arpc.NewClientStream[context.Context, emptypb.Empty]("/edge.v1.Elsewhere/Client"), false},
		{edge.Elsewhere_Bidi, arpc.NewBidiStream[timestamppb.Timestamp, edge.Value_Nested]("/edge.v1.Elsewhere/Bidi"), false},
		{old.Legacy_Find, arpc.NewMethod[old.Request, old.Response]("/Legacy/Find"), false},
		{edition.Echo_Echo, arpc.NewMethod[edition.Message, edition.Message]("/edition.Echo/Echo"), false},
		{_type.Type_New, arpc.NewMethod[_type.Func, _type.Func]("/type.Type/New"), false},
	} {
		// The traits are compared too: methods have no functions or pointers in them.
		if !reflect.DeepEqual(c.method, c.same) || c.method.IsIdempotent() != c.idempotent {
			t.Errorf("%s is %#v, want %#v, idempotent %v", c.same.Name(), c.method, c.same, c.idempotent)
		}
	}
	if n := len(edge.More_ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHI.Name()); n != arpc.MaxMethodLen {
		t.Errorf("the longest name has %d bytes", n)
	}
}

// partial has one method of many.
type partial struct{ edge.UnimplementedKeyValue }

func (partial) Type(_ *arpc.Context, req *edge.Key) (*edge.Value, error) {
	return &edge.Value{Value: &edge.Value_Raw{Raw: []byte(req.Key)}}, nil
}

// TestUnimplemented: a service whose implementation has one method, and none of the rest.
func TestUnimplemented(t *testing.T) {
	listener, dial := arpc.Pipe()
	server := arpc.NewServer(arpc.NewHandler())
	server.Codec = codec.Protobuf{}
	edge.RegisterKeyValue(server.Handler, partial{})
	edge.RegisterEmpty(server.Handler, edge.UnimplementedEmpty{})
	client := connect(t, server, listener, dial)
	kv, key := edge.NewKeyValueClient(client), &edge.Key{Key: "k"}

	if v, err := kv.Type(t.Context(), key); err != nil || string(v.GetRaw()) != "k" {
		t.Errorf("the method that is there: %v, %v", v, err)
	}
	var errs []error
	_, err := kv.XHidden(t.Context(), key)
	errs = append(errs, err)
	one, err := kv.Func(t.Context(), key)
	if err == nil {
		_, err = one.Recv()
	}
	errs = append(errs, err)
	many, err := kv.Range(t.Context())
	if err == nil {
		_, err = many.CloseAndRecv()
	}
	errs = append(errs, err)
	both, err := kv.Select(t.Context())
	if err == nil {
		_, err = both.Recv()
	}
	errs = append(errs, err)
	for i, err := range errs {
		var e *arpc.Error
		if !errors.As(err, &e) || e.Code != arpc.CodeUnimplemented || !e.Remote || !errors.Is(err, arpc.ErrMethodNotFound) {
			t.Errorf("method %d without an implementation: %#v", i, err)
		}
	}
}

// TestRegisterTwice: a service has one implementation per Handler.
func TestRegisterTwice(t *testing.T) {
	handler := arpc.NewHandler()
	edge.RegisterKeyValue(handler, partial{})
	defer func() {
		if p := recover(); p == nil || !strings.Contains(p.(string), "/edge.v1.key_value/type") {
			t.Errorf("the second time: %v", p)
		}
	}()
	edge.RegisterKeyValue(handler, partial{})
}

func connect(t *testing.T, server *arpc.Server, listener net.Listener, dial func() (net.Conn, error)) *arpc.Client {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve returned %v", err)
		}
	})
	client, err := arpc.NewClient(dial, arpc.NewHandler())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Stop)
	client.Codec = codec.Protobuf{}
	return client
}
