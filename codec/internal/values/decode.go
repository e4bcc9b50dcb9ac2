package values

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"time"

	"google.golang.org/protobuf/proto"
)

// Unmarshal decodes data, which holds one value, into what v points to.
func (c *Codec) Unmarshal(data []byte, v any) error {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return errNoPointer
	}
	d := decoder{c: c, f: c.Format, data: data}
	if err := d.next(); err != nil {
		return err
	}
	if err := d.value(p.Elem()); err != nil {
		return err
	}
	if d.at < len(data) {
		return errTrailing
	}
	return nil
}

type decoder struct {
	c     *Codec
	f     Format
	data  []byte
	at    int // what is next in data
	tok   Token
	depth int
}

// next reads the next token into tok; a Break is an error.
func (d *decoder) next() error {
	if err := d.item(); err != nil {
		return err
	}
	if d.tok.Kind == Break {
		return errBreak
	}
	return nil
}

// item reads the next token into tok.
func (d *decoder) item() error {
	t, n, err := d.f.Next(d.data[d.at:])
	if err != nil {
		return err
	}
	d.at += n
	// Each element takes at least a byte.
	if (t.Kind == Array || t.Kind == Map) && t.Num > uint64(len(d.data)-d.at) && t.Num != Unknown {
		return errLength
	}
	d.tok = t
	return nil
}

// more reads the token of element i of n into tok, false after the last.
func (d *decoder) more(n uint64, i int) (bool, error) {
	if n == Unknown {
		err := d.item()
		return d.tok.Kind != Break, err
	}
	if uint64(i) == n {
		return false, nil
	}
	return true, d.next()
}

func (d *decoder) enter() error {
	if d.depth++; d.depth > maxDepth {
		return errTooDeep
	}
	return nil
}

// skip passes over the value that begins with tok.
func (d *decoder) skip() error {
	kind, n := d.tok.Kind, d.tok.Num
	if kind != Array && kind != Map {
		return nil
	}
	if err := d.enter(); err != nil {
		return err
	}
	for i := 0; ; i++ {
		ok, err := d.more(n, i)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := d.skip(); err != nil {
			return err
		}
		if kind == Map {
			if err := d.next(); err != nil {
				return err
			}
			if err := d.skip(); err != nil {
				return err
			}
		}
	}
	d.depth--
	return nil
}

func mismatch(t *Token, v reflect.Value) error {
	return fmt.Errorf("a %s does not fit a %s", t.Kind, v.Type())
}

// value decodes the value that begins with tok into v, which can be set.
func (d *decoder) value(v reflect.Value) error {
	t := &d.tok // of this value until the next is read
	if t.Kind == Nil {
		v.SetZero()
		return nil
	}
	for hops := 0; v.Kind() == reflect.Pointer; hops++ {
		if hops == maxDepth { // a type may be a pointer to itself
			return errTooDeep
		}
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	vt := v.Type()
	var info *typeInfo
	if vt.PkgPath() != "" || vt.Kind() == reflect.Struct {
		if info = d.c.info(vt); info.special != ordinary {
			return bySpecial(info.special, t, v)
		}
	}
	switch v.Kind() {
	case reflect.Interface:
		if v.NumMethod() != 0 {
			return mismatch(t, v)
		}
		x, err := d.any()
		if err != nil {
			return err
		}
		if x != nil {
			v.Set(reflect.ValueOf(x))
		} else {
			v.SetZero()
		}
		return nil
	case reflect.Bool:
		if t.Kind != Bool {
			return mismatch(t, v)
		}
		v.SetBool(t.Num != 0)
		return nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n := int64(t.Num)
		switch {
		case t.Kind != Uint && t.Kind != Int:
			return mismatch(t, v)
		case t.Kind == Uint && n < 0 || v.OverflowInt(n):
			return overflow(t, v)
		}
		v.SetInt(n)
		return nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		switch {
		case t.Kind != Uint && t.Kind != Int:
			return mismatch(t, v)
		case t.Kind == Int || v.OverflowUint(t.Num):
			return overflow(t, v)
		}
		v.SetUint(t.Num)
		return nil
	case reflect.Float32, reflect.Float64:
		var x float64
		switch t.Kind {
		case Float:
			x = t.Float()
		case Int:
			x = float64(int64(t.Num))
		case Uint:
			x = float64(t.Num)
		default:
			return mismatch(t, v)
		}
		if v.OverflowFloat(x) && !math.IsInf(x, 0) {
			return overflow(t, v)
		}
		v.SetFloat(x)
		return nil
	case reflect.String:
		if t.Kind != Text && t.Kind != Bytes {
			return mismatch(t, v)
		}
		v.SetString(string(t.Bytes))
		return nil
	case reflect.Slice:
		if vt.Elem().Kind() == reflect.Uint8 && (t.Kind == Bytes || t.Kind == Text) {
			v.SetBytes(append([]byte{}, t.Bytes...))
			return nil
		}
		return d.slice(v)
	case reflect.Array:
		if vt.Elem().Kind() == reflect.Uint8 && (t.Kind == Bytes || t.Kind == Text) {
			if len(t.Bytes) != v.Len() {
				return fmt.Errorf("%d bytes do not fit a %s", len(t.Bytes), vt)
			}
			copy(v.Bytes(), t.Bytes)
			return nil
		}
		return d.array(v)
	case reflect.Map:
		return d.mapping(v)
	case reflect.Struct:
		return d.structure(info, v)
	}
	return mismatch(t, v)
}

func overflow(t *Token, v reflect.Value) error {
	switch t.Kind {
	case Int:
		return fmt.Errorf("the number %d does not fit a %s", int64(t.Num), v.Type())
	case Uint:
		return fmt.Errorf("the number %d does not fit a %s", t.Num, v.Type())
	}
	return fmt.Errorf("the number %g does not fit a %s", t.Float(), v.Type())
}

// special decodes a value by its own methods.
func bySpecial(how special, t *Token, v reflect.Value) error {
	p := v.Addr().Interface()
	if how == asTime {
		if t.Kind != Time {
			return mismatch(t, v)
		}
		*p.(*time.Time) = t.Time()
		return nil
	}
	if t.Kind != Bytes && t.Kind != Text {
		return mismatch(t, v)
	}
	// The methods must copy what they keep.
	switch how {
	case asProto:
		return proto.Unmarshal(t.Bytes, p.(proto.Message))
	case asBinary:
		return p.(encoding.BinaryUnmarshaler).UnmarshalBinary(t.Bytes)
	default:
		return p.(encoding.TextUnmarshaler).UnmarshalText(t.Bytes)
	}
}

// firstRoom is the number of elements that room is made for before they are
// seen, of those that a length announces.
const firstRoom = 64

func (t *Token) room() int {
	if t.Num == Unknown {
		return 0
	}
	return int(min(t.Num, firstRoom))
}

func (d *decoder) slice(v reflect.Value) error {
	t, n := &d.tok, d.tok.Num
	if t.Kind != Array {
		return mismatch(t, v)
	}
	if err := d.enter(); err != nil {
		return err
	}
	room := t.room()
	s := reflect.New(v.Type()).Elem()
	s.Set(reflect.MakeSlice(v.Type(), 0, room))
	for i := 0; ; i++ {
		ok, err := d.more(n, i)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if i == s.Cap() {
			s.Grow(1)
		}
		s.SetLen(i + 1)
		if err := d.value(s.Index(i)); err != nil {
			return err
		}
	}
	v.Set(s)
	d.depth--
	return nil
}

func (d *decoder) array(v reflect.Value) error {
	t, n := &d.tok, d.tok.Num
	if t.Kind != Array {
		return mismatch(t, v)
	}
	if err := d.enter(); err != nil {
		return err
	}
	i := 0
	for ; ; i++ {
		ok, err := d.more(n, i)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if i == v.Len() {
			return fmt.Errorf("more than %d elements for a %s", v.Len(), v.Type())
		}
		if err := d.value(v.Index(i)); err != nil {
			return err
		}
	}
	for ; i < v.Len(); i++ {
		v.Index(i).SetZero()
	}
	d.depth--
	return nil
}

func (d *decoder) mapping(v reflect.Value) error {
	t, n := &d.tok, d.tok.Num
	if t.Kind != Map {
		return mismatch(t, v)
	}
	if err := d.enter(); err != nil {
		return err
	}
	vt := v.Type()
	m := reflect.MakeMapWithSize(vt, t.room())
	for i := 0; ; i++ {
		ok, err := d.more(n, i)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		key := reflect.New(vt.Key()).Elem()
		if err := d.value(key); err != nil {
			return err
		}
		if !key.Comparable() {
			return fmt.Errorf("a %s cannot be the key of a map", key.Kind())
		}
		if err = d.next(); err != nil {
			return err
		}
		elem := reflect.New(vt.Elem()).Elem()
		if err := d.value(elem); err != nil {
			return err
		}
		m.SetMapIndex(key, elem)
	}
	v.Set(m)
	d.depth--
	return nil
}

func (d *decoder) structure(info *typeInfo, v reflect.Value) error {
	t, n := &d.tok, d.tok.Num
	if t.Kind != Map {
		return mismatch(t, v)
	}
	if err := d.enter(); err != nil {
		return err
	}
	for i := 0; ; i++ {
		ok, err := d.more(n, i)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		known := -1
		if t.Kind == Text || t.Kind == Bytes {
			if at, ok := info.byName[string(t.Bytes)]; ok {
				known = at
			}
		} else if err := d.skip(); err != nil {
			return err
		}
		if err := d.next(); err != nil {
			return err
		}
		if known < 0 {
			err = d.skip()
		} else {
			f := &info.fields[known]
			if err = d.value(f.target(v)); err != nil {
				err = fmt.Errorf("%s: %w", f.name, err)
			}
		}
		if err != nil {
			return err
		}
	}
	d.depth--
	return nil
}

// any decodes into the type that suits the value.
func (d *decoder) any() (any, error) {
	t := &d.tok
	switch t.Kind {
	case Nil:
		return nil, nil
	case Bool:
		return t.Num != 0, nil
	case Int:
		return int64(t.Num), nil
	case Uint:
		if t.Num > math.MaxInt64 {
			return t.Num, nil
		}
		return int64(t.Num), nil
	case Float:
		return t.Float(), nil
	case Text:
		return string(t.Bytes), nil
	case Bytes:
		return append([]byte{}, t.Bytes...), nil
	case Time:
		return t.Time(), nil
	case Array:
		return d.anyArray()
	default:
		return d.anyMap()
	}
}

func (d *decoder) anyArray() (any, error) {
	n, room := d.tok.Num, d.tok.room()
	if err := d.enter(); err != nil {
		return nil, err
	}
	list := make([]any, 0, room)
	for i := 0; ; i++ {
		ok, err := d.more(n, i)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		v, err := d.any()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	d.depth--
	return list, nil
}

// anyMap decodes into a map[string]any, or a map[any]any once a key is not a
// text.
func (d *decoder) anyMap() (any, error) {
	n, room := d.tok.Num, d.tok.room()
	if err := d.enter(); err != nil {
		return nil, err
	}
	texts := make(map[string]any, room)
	var mixed map[any]any
	for i := 0; ; i++ {
		ok, err := d.more(n, i)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		key, err := d.any()
		if err != nil {
			return nil, err
		}
		switch key.(type) {
		case string:
		case []byte, []any, map[string]any, map[any]any:
			return nil, fmt.Errorf("a %T cannot be the key of a map", key)
		default:
			if mixed == nil {
				mixed = make(map[any]any, len(texts)+1)
				for k, v := range texts {
					mixed[k] = v
				}
			}
		}
		if err = d.next(); err != nil {
			return nil, err
		}
		v, err := d.any()
		if err != nil {
			return nil, err
		}
		if mixed != nil {
			mixed[key] = v
		} else {
			texts[key.(string)] = v
		}
	}
	d.depth--
	if mixed != nil {
		return mixed, nil
	}
	return texts, nil
}
