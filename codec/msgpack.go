package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/arpc-go/arpc/codec/internal/values"
)

// MessagePack is the MessagePack encoding (https://msgpack.org), by the
// specification that tells texts from bytes and has the timestamp extension.
//
// How Go values map to it:
//
//   - structs are maps by field name, as in JSON: the tag `msgpack` of a field
//     counts, where there is none the tag `json`; omitempty and omitzero are
//     known; names are compared exactly
//   - []byte and [n]byte are bytes; decoding takes bytes and texts for each
//     other
//   - time.Time is a timestamp, decoded as UTC
//   - a proto.Message, and next a type with MarshalBinary and UnmarshalBinary, is
//     the bytes of its binary form, at any depth; next a type with MarshalText
//     and UnmarshalText its text
//   - an integer or a float that the target cannot hold is an error
//   - into an any come nil, bool, int64 (uint64 above its range), float64,
//     string, []byte, time.Time, []any and map[string]any (map[any]any if not
//     all keys are texts)
//   - fields that are missing keep their value; slices and maps are new
//   - extension types other than the timestamp are an error
//
// Values nest 1,000 levels deep at most. The order of a map's entries is not
// defined. Nothing that is decoded aliases the data.
type MessagePack struct{}

var msgpackValues = values.Codec{Format: msgpackFormat{}, Tag: "msgpack"}

// Name returns "msgpack", the name by which peers know the codec.
func (MessagePack) Name() string { return "msgpack" }

// Marshal implements Codec.
func (m MessagePack) Marshal(v any) ([]byte, error) { return m.AppendMarshal(nil, v) }

// AppendMarshal implements AppendMarshaler.
func (MessagePack) AppendMarshal(dst []byte, v any) ([]byte, error) {
	out, err := msgpackValues.Append(dst, v)
	if err != nil {
		return dst, fmt.Errorf("codec: MessagePack: %w", err)
	}
	return out, nil
}

// Unmarshal implements Codec.
func (MessagePack) Unmarshal(data []byte, v any) error {
	if err := msgpackValues.Unmarshal(data, v); err != nil {
		return fmt.Errorf("codec: MessagePack: %w", err)
	}
	return nil
}

var errTimestamp = errors.New("malformed timestamp")

type msgpackFormat struct{}

// Next implements values.Format.
func (msgpackFormat) Next(data []byte) (values.Token, int, error) {
	if len(data) == 0 {
		return values.Token{}, 0, values.ErrShort
	}
	c := data[0]
	switch {
	case c <= 0x7f:
		return values.Token{Kind: values.Uint, Num: uint64(c)}, 1, nil
	case c <= 0x8f:
		return values.Token{Kind: values.Map, Num: uint64(c & 0x0f)}, 1, nil
	case c <= 0x9f:
		return values.Token{Kind: values.Array, Num: uint64(c & 0x0f)}, 1, nil
	case c <= 0xbf:
		return content(values.Text, data, 1, uint64(c&0x1f))
	case c >= 0xe0:
		return values.Token{Kind: values.Int, Num: uint64(int8(c))}, 1, nil
	}
	var t values.Token
	size := 0 // of the number after the first byte
	switch c {
	case 0xc0:
		return t, 1, nil
	case 0xc1:
		return t, 0, errors.New("the byte 0xc1 begins no value")
	case 0xc2, 0xc3:
		return values.Truth(c == 0xc3), 1, nil
	case 0xc4, 0xc7, 0xcc, 0xd0, 0xd9:
		size = 1
	case 0xc5, 0xc8, 0xcd, 0xd1, 0xda, 0xdc, 0xde:
		size = 2
	case 0xc6, 0xc9, 0xca, 0xce, 0xd2, 0xdb, 0xdd, 0xdf:
		size = 4
	case 0xcb, 0xcf, 0xd3:
		size = 8
	}
	if len(data) < 1+size {
		return t, 0, values.ErrShort
	}
	n := bigEndian(data[1 : 1+size])
	switch c {
	case 0xc4, 0xc5, 0xc6:
		return content(values.Bytes, data, 1+size, n)
	case 0xd9, 0xda, 0xdb:
		return content(values.Text, data, 1+size, n)
	case 0xc7, 0xc8, 0xc9:
		return extension(data, 1+size, n)
	case 0xd4, 0xd5, 0xd6, 0xd7, 0xd8:
		return extension(data, 1, 1<<(c-0xd4))
	case 0xca:
		return values.Real(float64(math.Float32frombits(uint32(n)))), 5, nil
	case 0xcb:
		return values.Real(math.Float64frombits(n)), 9, nil
	case 0xcc, 0xcd, 0xce, 0xcf:
		return values.Token{Kind: values.Uint, Num: n}, 1 + size, nil
	case 0xd0, 0xd1, 0xd2, 0xd3:
		if x := int64(n<<(64-8*size)) >> (64 - 8*size); x < 0 {
			return values.Token{Kind: values.Int, Num: uint64(x)}, 1 + size, nil
		}
		return values.Token{Kind: values.Uint, Num: n}, 1 + size, nil
	case 0xdc, 0xdd:
		return values.Token{Kind: values.Array, Num: n}, 1 + size, nil
	default: // 0xde, 0xdf
		return values.Token{Kind: values.Map, Num: n}, 1 + size, nil
	}
}

// bigEndian returns the number that b holds, of 0 to 8 bytes.
func bigEndian(b []byte) uint64 {
	var n uint64
	for _, x := range b {
		n = n<<8 | uint64(x)
	}
	return n
}

// content returns the text or the bytes of length n that begin at an offset.
func content(kind values.Kind, data []byte, at int, n uint64) (values.Token, int, error) {
	if uint64(len(data)-at) < n {
		return values.Token{}, 0, values.ErrShort
	}
	end := at + int(n)
	return values.Token{Kind: kind, Bytes: data[at:end]}, end, nil
}

// extension returns the value of an extension type, whose number stands at an
// offset, before n bytes of data.
func extension(data []byte, at int, n uint64) (values.Token, int, error) {
	if len(data) == at {
		return values.Token{}, 0, values.ErrShort
	}
	t, end, err := content(values.Bytes, data, at+1, n)
	if err != nil {
		return t, 0, err
	}
	if kind := int8(data[at]); kind != -1 {
		return t, 0, fmt.Errorf("extension type %d is not known", kind)
	}
	var sec int64
	var nsec uint64
	switch b := t.Bytes; n {
	case 4:
		sec = int64(bigEndian(b))
	case 8:
		x := bigEndian(b)
		sec, nsec = int64(x&(1<<34-1)), x>>34
	case 12:
		sec, nsec = int64(bigEndian(b[4:])), bigEndian(b[:4])
	default:
		return t, 0, errTimestamp
	}
	if nsec > 999_999_999 {
		return t, 0, errTimestamp
	}
	return values.Moment(sec, uint32(nsec)), end, nil
}

func (msgpackFormat) AppendNil(dst []byte) []byte { return append(dst, 0xc0) }

func (msgpackFormat) AppendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 0xc3)
	}
	return append(dst, 0xc2)
}

func (f msgpackFormat) AppendInt(dst []byte, v int64) []byte {
	switch {
	case v >= 0:
		return f.AppendUint(dst, uint64(v))
	case v >= -32:
		return append(dst, byte(v))
	case v >= math.MinInt8:
		return append(dst, 0xd0, byte(v))
	case v >= math.MinInt16:
		return binary.BigEndian.AppendUint16(append(dst, 0xd1), uint16(v))
	case v >= math.MinInt32:
		return binary.BigEndian.AppendUint32(append(dst, 0xd2), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(dst, 0xd3), uint64(v))
}

func (msgpackFormat) AppendUint(dst []byte, v uint64) []byte {
	switch {
	case v <= 0x7f:
		return append(dst, byte(v))
	case v <= math.MaxUint8:
		return append(dst, 0xcc, byte(v))
	case v <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, 0xcd), uint16(v))
	case v <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, 0xce), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(dst, 0xcf), v)
}

func (msgpackFormat) AppendFloat32(dst []byte, v float32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 0xca), math.Float32bits(v))
}

func (msgpackFormat) AppendFloat64(dst []byte, v float64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, 0xcb), math.Float64bits(v))
}

// appendMsgpackLen appends the head of a value of length n. kinds are its first
// bytes for lengths of 8, 16 and 32 bits; 0 if there is none of 8.
func appendMsgpackLen(dst []byte, n int, kinds [3]byte) []byte {
	switch {
	case n <= math.MaxUint8 && kinds[0] != 0:
		return append(dst, kinds[0], byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, kinds[1]), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, kinds[2]), uint32(n))
}

func (msgpackFormat) AppendText(dst []byte, v string) []byte {
	if len(v) <= 31 {
		dst = append(dst, 0xa0|byte(len(v)))
	} else {
		dst = appendMsgpackLen(dst, len(v), [3]byte{0xd9, 0xda, 0xdb})
	}
	return append(dst, v...)
}

func (msgpackFormat) AppendBytes(dst, v []byte) []byte {
	return append(appendMsgpackLen(dst, len(v), [3]byte{0xc4, 0xc5, 0xc6}), v...)
}

func (msgpackFormat) AppendArray(dst []byte, n int) []byte {
	if n <= 15 {
		return append(dst, 0x90|byte(n))
	}
	return appendMsgpackLen(dst, n, [3]byte{0, 0xdc, 0xdd})
}

func (msgpackFormat) AppendMap(dst []byte, n int) []byte {
	if n <= 15 {
		return append(dst, 0x80|byte(n))
	}
	return appendMsgpackLen(dst, n, [3]byte{0, 0xde, 0xdf})
}

func (msgpackFormat) AppendTime(dst []byte, v time.Time) ([]byte, error) {
	sec, nsec := v.Unix(), uint64(v.Nanosecond())
	switch {
	case sec>>34 != 0:
		dst = binary.BigEndian.AppendUint32(append(dst, 0xc7, 12, 0xff), uint32(nsec))
		return binary.BigEndian.AppendUint64(dst, uint64(sec)), nil
	case nsec != 0 || sec > math.MaxUint32:
		return binary.BigEndian.AppendUint64(append(dst, 0xd7, 0xff), nsec<<34|uint64(sec)), nil
	}
	return binary.BigEndian.AppendUint32(append(dst, 0xd6, 0xff), uint32(sec)), nil
}
