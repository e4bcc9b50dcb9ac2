package values

import (
	"encoding"
	"fmt"
	"reflect"
	"time"

	"google.golang.org/protobuf/proto"
)

// Append appends the encoding of v to dst.
func (c *Codec) Append(dst []byte, v any) ([]byte, error) {
	e := encoder{c: c, f: c.Format, b: dst}
	if err := e.any(v); err != nil {
		return dst, err
	}
	return e.b, nil
}

type encoder struct {
	c     *Codec
	f     Format
	b     []byte
	depth int
}

// any encodes what programs send most without a look at its type.
func (e *encoder) any(v any) error {
	switch v := v.(type) {
	case nil:
		e.b = e.f.AppendNil(e.b)
	case bool:
		e.b = e.f.AppendBool(e.b, v)
	case int:
		e.b = e.f.AppendInt(e.b, int64(v))
	case int64:
		e.b = e.f.AppendInt(e.b, v)
	case uint64:
		e.b = e.f.AppendUint(e.b, v)
	case float64:
		e.b = e.f.AppendFloat64(e.b, v)
	case string:
		e.b = e.f.AppendText(e.b, v)
	case []byte:
		e.bytes(v)
	case time.Time:
		return e.time(v)
	case proto.Message:
		if rv := reflect.ValueOf(v); rv.Kind() == reflect.Pointer && rv.IsNil() {
			e.b = e.f.AppendNil(e.b)
			return nil
		}
		return e.proto(v)
	case []any:
		if v == nil {
			e.b = e.f.AppendNil(e.b)
			return nil
		}
		if err := e.enter(); err != nil {
			return err
		}
		e.b = e.f.AppendArray(e.b, len(v))
		for _, x := range v {
			if err := e.any(x); err != nil {
				return err
			}
		}
		e.depth--
	case map[string]any:
		if v == nil {
			e.b = e.f.AppendNil(e.b)
			return nil
		}
		if err := e.enter(); err != nil {
			return err
		}
		e.b = e.f.AppendMap(e.b, len(v))
		for k, x := range v {
			e.b = e.f.AppendText(e.b, k)
			if err := e.any(x); err != nil {
				return err
			}
		}
		e.depth--
	default:
		return e.value(reflect.ValueOf(v))
	}
	return nil
}

func (e *encoder) enter() error {
	if e.depth++; e.depth > maxDepth {
		return errTooDeep
	}
	return nil
}

func (e *encoder) bytes(v []byte) {
	if v == nil {
		e.b = e.f.AppendNil(e.b)
	} else {
		e.b = e.f.AppendBytes(e.b, v)
	}
}

func (e *encoder) time(v time.Time) error {
	b, err := e.f.AppendTime(e.b, v)
	if err == nil {
		e.b = b
	}
	return err
}

func (e *encoder) proto(v proto.Message) error {
	data, err := proto.Marshal(v)
	if err == nil {
		e.b = e.f.AppendBytes(e.b, data)
	}
	return err
}

// addressable returns v, or a copy of it, that has an address.
func addressable(v reflect.Value) reflect.Value {
	if v.CanAddr() {
		return v
	}
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	return p.Elem()
}

// special encodes a value by its own methods.
func (e *encoder) special(how special, v reflect.Value) error {
	p := addressable(v).Addr().Interface() // its methods may be those of its pointer
	switch how {
	case asTime:
		return e.time(*p.(*time.Time))
	case asProto:
		return e.proto(p.(proto.Message))
	case asBinary:
		data, err := p.(encoding.BinaryMarshaler).MarshalBinary()
		if err == nil {
			e.b = e.f.AppendBytes(e.b, data)
		}
		return err
	default:
		data, err := p.(encoding.TextMarshaler).MarshalText()
		if err == nil {
			e.b = e.f.AppendText(e.b, string(data))
		}
		return err
	}
}

func (e *encoder) value(v reflect.Value) error {
	for hops := 0; v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface; hops++ {
		if v.IsNil() {
			e.b = e.f.AppendNil(e.b)
			return nil
		}
		if hops == maxDepth { // pointers may go in circles too
			return errTooDeep
		}
		v = v.Elem()
	}
	t := v.Type()
	var info *typeInfo
	if t.PkgPath() != "" || t.Kind() == reflect.Struct { // others have no methods and no fields
		if info = e.c.info(t); info.special != ordinary {
			return e.special(info.special, v)
		}
	}
	switch v.Kind() {
	case reflect.Bool:
		e.b = e.f.AppendBool(e.b, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		e.b = e.f.AppendInt(e.b, v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		e.b = e.f.AppendUint(e.b, v.Uint())
	case reflect.Float32:
		e.b = e.f.AppendFloat32(e.b, float32(v.Float()))
	case reflect.Float64:
		e.b = e.f.AppendFloat64(e.b, v.Float())
	case reflect.String:
		e.b = e.f.AppendText(e.b, v.String())
	case reflect.Slice:
		if v.IsNil() {
			e.b = e.f.AppendNil(e.b)
			return nil
		}
		if t.Elem().Kind() == reflect.Uint8 {
			e.b = e.f.AppendBytes(e.b, v.Bytes())
			return nil
		}
		return e.array(v)
	case reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			e.b = e.f.AppendBytes(e.b, addressable(v).Bytes())
			return nil
		}
		return e.array(v)
	case reflect.Map:
		return e.mapping(v)
	case reflect.Struct:
		return e.structure(info, v)
	default:
		return fmt.Errorf("values of type %s cannot be encoded", t)
	}
	return nil
}

func (e *encoder) array(v reflect.Value) error {
	if err := e.enter(); err != nil {
		return err
	}
	e.b = e.f.AppendArray(e.b, v.Len())
	for i := range v.Len() {
		if err := e.value(v.Index(i)); err != nil {
			return err
		}
	}
	e.depth--
	return nil
}

func (e *encoder) mapping(v reflect.Value) error {
	if v.IsNil() {
		e.b = e.f.AppendNil(e.b)
		return nil
	}
	if err := e.enter(); err != nil {
		return err
	}
	e.b = e.f.AppendMap(e.b, v.Len())
	for it := v.MapRange(); it.Next(); {
		if err := e.value(it.Key()); err != nil {
			return err
		}
		if err := e.value(it.Value()); err != nil {
			return err
		}
	}
	e.depth--
	return nil
}

func (e *encoder) structure(info *typeInfo, v reflect.Value) error {
	if err := e.enter(); err != nil {
		return err
	}
	n := 0
	for i := range info.fields {
		f := &info.fields[i]
		if x, ok := f.get(v); ok && !f.leaves(x) {
			n++
		}
	}
	e.b = e.f.AppendMap(e.b, n)
	for i := range info.fields {
		f := &info.fields[i]
		x, ok := f.get(v)
		if !ok || f.leaves(x) {
			continue
		}
		e.b = e.f.AppendText(e.b, f.name)
		if err := e.value(x); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	e.depth--
	return nil
}
