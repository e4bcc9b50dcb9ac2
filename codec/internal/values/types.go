package values

import (
	"encoding"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
)

// A Codec encodes and decodes Go values in one format.
type Codec struct {
	Format Format
	Tag    string // of struct fields; json stands in where it is missing

	types sync.Map // reflect.Type to *typeInfo
}

// special is a way to encode that a type's methods decide.
type special uint8

const (
	ordinary special = iota
	asTime           // time.Time
	asProto          // a proto.Message, as the bytes of its binary form
	asBinary         // an encoding.BinaryMarshaler, as bytes
	asText           // an encoding.TextMarshaler, as text
)

// typeInfo is what is known about a type that is not a pointer.
type typeInfo struct {
	special special
	fields  []field        // of a struct
	byName  map[string]int // index in fields
}

type field struct {
	name      string
	index     []int
	omitEmpty bool
	omitZero  bool
	tagged    bool
}

var (
	timeType   = reflect.TypeFor[time.Time]()
	protoType  = reflect.TypeFor[proto.Message]()
	binaryFrom = reflect.TypeFor[encoding.BinaryMarshaler]()
	binaryTo   = reflect.TypeFor[encoding.BinaryUnmarshaler]()
	textFrom   = reflect.TypeFor[encoding.TextMarshaler]()
	textTo     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// specialOf says how values of a type that is not a pointer are encoded. Its
// pointer's methods count, as values are addressable or copied to be so.
func specialOf(t reflect.Type) special {
	if t == timeType {
		return asTime
	}
	if t.Kind() == reflect.Interface {
		return ordinary
	}
	p := reflect.PointerTo(t)
	switch {
	case p.Implements(protoType):
		return asProto
	case p.Implements(binaryFrom) && p.Implements(binaryTo):
		return asBinary
	case p.Implements(textFrom) && p.Implements(textTo):
		return asText
	}
	return ordinary
}

func (c *Codec) info(t reflect.Type) *typeInfo {
	if i, ok := c.types.Load(t); ok {
		return i.(*typeInfo)
	}
	info := &typeInfo{special: specialOf(t)}
	if info.special == ordinary && t.Kind() == reflect.Struct {
		info.fields = c.fieldsOf(t)
		info.byName = make(map[string]int, len(info.fields))
		for i, f := range info.fields {
			info.byName[f.name] = i
		}
	}
	i, _ := c.types.LoadOrStore(t, info)
	return i.(*typeInfo)
}

// fieldsOf returns the fields of a struct, with those of embedded structs as if
// they were its own. Of fields of one name the one nests least that counts, then
// the one with a tag; if that leaves several, none does.
func (c *Codec) fieldsOf(t reflect.Type) []field {
	var all []field
	c.collect(t, nil, nil, &all)
	var best []field
	for _, f := range all {
		wins := true
		for _, g := range all {
			if g.name != f.name || slices.Equal(f.index, g.index) {
				continue
			}
			if len(g.index) < len(f.index) || len(g.index) == len(f.index) && (g.tagged || !f.tagged) {
				wins = false
				break
			}
		}
		if wins {
			best = append(best, f)
		}
	}
	return best
}

// collect appends the fields of t, which is found at the given index within the
// outermost struct and inside of the given types.
func (c *Codec) collect(t reflect.Type, at []int, inside []reflect.Type, all *[]field) {
	for _, outer := range inside {
		if outer == t {
			return
		}
	}
	inside = append(inside, t)
	for i := range t.NumField() {
		sf := t.Field(i)
		tag, ok := sf.Tag.Lookup(c.Tag)
		if !ok {
			tag = sf.Tag.Get("json")
		}
		if tag == "-" {
			continue
		}
		name, options, _ := strings.Cut(tag, ",")
		index := append(append([]int(nil), at...), i)
		if sf.Anonymous && name == "" {
			inner, pointer := sf.Type, false
			if inner.Kind() == reflect.Pointer {
				inner, pointer = inner.Elem(), true
			}
			if inner.Kind() == reflect.Struct && specialOf(inner) == ordinary {
				if sf.IsExported() || !pointer { // a nil pointer in an unexported field cannot be set
					c.collect(inner, index, inside, all)
				}
				continue
			}
		}
		if !sf.IsExported() {
			continue
		}
		f := field{name: name, index: index, tagged: name != ""}
		if name == "" {
			f.name = sf.Name
		}
		for _, o := range strings.Split(options, ",") {
			f.omitEmpty = f.omitEmpty || o == "omitempty"
			f.omitZero = f.omitZero || o == "omitzero"
		}
		*all = append(*all, f)
	}
}

// leaves reports whether a field of value v is left out.
func (f *field) leaves(v reflect.Value) bool {
	if f.omitZero && v.IsZero() {
		return true
	}
	if !f.omitEmpty {
		return false
	}
	switch v.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}

// get returns the field of the struct v, false if it is in an embedded struct
// that is not there.
func (f *field) get(v reflect.Value) (reflect.Value, bool) {
	for i, x := range f.index {
		if i > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				return reflect.Value{}, false
			}
			v = v.Elem()
		}
		v = v.Field(x)
	}
	return v, true
}

// target returns the field of the struct v to be set.
func (f *field) target(v reflect.Value) reflect.Value {
	for i, x := range f.index {
		if i > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
		}
		v = v.Field(x)
	}
	return v
}
