package arpc

import (
	"context"
	"fmt"
	"reflect"
)

// Register registers the methods of service that have the form
//
//	func(context.Context, *Req) (*Res, error)
//
// under name, a dot and their own name, or under their own name alone if name is empty. They run as ordered handlers; the
// context is the *Context of the call. Other methods are left out; if none is left, or one of the names is taken or too long,
// that is an error, and nothing is registered.
func (m *Mux) Register(name string, service any) error {
	v := reflect.ValueOf(service)
	if !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return &Error{Code: CodeInvalidArgument, Message: "nothing to register: the service is nil"}
	}
	type found struct {
		method string
		h      HandlerFunc
	}
	var list []found
	for i := range v.NumMethod() {
		f := v.Method(i)
		if !isServiceMethod(f.Type()) {
			continue
		}
		method := v.Type().Method(i).Name
		if name != "" {
			method = name + "." + method
		}
		if len(method) > MaxMethodLen {
			return ErrInvalidMethod
		}
		if m.load().routes[method] != nil {
			return &Error{Code: CodeAlreadyExists, Message: fmt.Sprintf("method %q is registered already", method)}
		}
		list = append(list, found{method, serviceHandler(f)})
	}
	if len(list) == 0 {
		return &Error{Code: CodeInvalidArgument,
			Message: fmt.Sprintf("%v has no method of the form func(context.Context, *Req) (*Res, error)", v.Type())}
	}
	for _, f := range list {
		m.handle(f.method, modeOrdered, f.h)
	}
	return nil
}

var (
	contextType = reflect.TypeFor[context.Context]()
	errorType   = reflect.TypeFor[error]()
)

func isServiceMethod(t reflect.Type) bool {
	return t.NumIn() == 2 && !t.IsVariadic() && t.In(0) == contextType && t.In(1).Kind() == reflect.Pointer &&
		t.NumOut() == 2 && t.Out(0).Kind() == reflect.Pointer && t.Out(1) == errorType
}

func serviceHandler(f reflect.Value) HandlerFunc {
	reqType := f.Type().In(1).Elem()
	return func(c *Context) {
		req := reflect.New(reqType)
		if err := c.Bind(req.Interface()); err != nil {
			c.answerTyped(nil, decodeFault(err))
			return
		}
		out := f.Call([]reflect.Value{reflect.ValueOf(c), req})
		if err, _ := out[1].Interface().(error); err != nil {
			c.answerTyped(nil, err)
			return
		}
		c.answerTyped(out[0].Interface(), nil)
	}
}
