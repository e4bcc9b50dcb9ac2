package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/arpc-go/arpc/codec/internal/values"
)

// CBOR is the Concise Binary Object Representation (RFC 8949). Go values map to
// it as they do to MessagePack, see there, with the tag `cbor` of struct
// fields, and these differences:
//
//   - time.Time is a date and time text (tag 0); tag 1, seconds since 1970, is
//     understood too; a year before 0 or after 9999 is an error
//   - texts are UTF-8: other bytes are replaced by U+FFFD when encoding and
//     refused when decoding
//   - lengths may be unknown in advance when decoding; null and undefined are
//     nil; the tag 55799 ("this is CBOR") is ignored
//   - other tags, other simple values, and integers below -2^63 are an error
//
// The encoding uses the shortest heads and fixed lengths; the order of a map's
// entries is not defined.
type CBOR struct{}

var cborValues = values.Codec{Format: cborFormat{}, Tag: "cbor"}

// Name returns "cbor", the name by which peers know the codec.
func (CBOR) Name() string { return "cbor" }

// Marshal implements Codec.
func (c CBOR) Marshal(v any) ([]byte, error) { return c.AppendMarshal(nil, v) }

// AppendMarshal implements AppendMarshaler.
func (CBOR) AppendMarshal(dst []byte, v any) ([]byte, error) {
	out, err := cborValues.Append(dst, v)
	if err != nil {
		return dst, fmt.Errorf("codec: CBOR: %w", err)
	}
	return out, nil
}

// Unmarshal implements Codec.
func (CBOR) Unmarshal(data []byte, v any) error {
	if err := cborValues.Unmarshal(data, v); err != nil {
		return fmt.Errorf("codec: CBOR: %w", err)
	}
	return nil
}

// Major types.
const (
	cborUint = iota
	cborNegative
	cborBytes
	cborText
	cborArray
	cborMap
	cborTag
	cborSimple
)

const (
	cborIndefinite = 31 // additional information

	cborSelf = 55799 // the tag that says that this is CBOR
)

var (
	errCBORHead = errors.New("malformed head")
	errCBORTime = errors.New("malformed time")
	errCBORText = errors.New("a text is not UTF-8")
	errCBORPart = errors.New("malformed part of a text or of bytes")
)

type cborFormat struct{}

// cborHead decodes a head: major type, additional information, its number, and
// its length.
func cborHead(data []byte) (major, info byte, n uint64, size int, err error) {
	if len(data) == 0 {
		return 0, 0, 0, 0, values.ErrShort
	}
	major, info, size = data[0]>>5, data[0]&0x1f, 1
	switch {
	case info < 24:
		return major, info, uint64(info), size, nil
	case info < 28:
		size += 1 << (info - 24)
		if len(data) < size {
			return 0, 0, 0, 0, values.ErrShort
		}
		return major, info, bigEndian(data[1:size]), size, nil
	case info == cborIndefinite && major >= cborBytes && major != cborTag:
		return major, info, 0, size, nil
	}
	return 0, 0, 0, 0, errCBORHead
}

// Next implements values.Format.
func (cborFormat) Next(data []byte) (values.Token, int, error) {
	major, info, n, size, err := cborHead(data)
	if err != nil {
		return values.Token{}, 0, err
	}
	if major == cborTag && n == cborSelf {
		used := size
		if major, info, n, size, err = cborHead(data[used:]); err != nil {
			return values.Token{}, 0, err
		}
		if major == cborTag && n == cborSelf { // says it twice, or a thousand times
			return values.Token{}, 0, errCBORHead
		}
		t, m, err := cborToken(data[used:], major, info, n, size)
		return t, used + m, err
	}
	return cborToken(data, major, info, n, size)
}

func cborToken(data []byte, major, info byte, n uint64, size int) (values.Token, int, error) {
	var t values.Token
	switch major {
	case cborUint:
		return values.Token{Kind: values.Uint, Num: n}, size, nil
	case cborNegative:
		if n > math.MaxInt64 {
			return t, 0, fmt.Errorf("the number -1-%d is out of range", n)
		}
		return values.Token{Kind: values.Int, Num: ^n}, size, nil
	case cborBytes, cborText:
		return cborString(data, major, info, n, size)
	case cborArray, cborMap:
		t.Kind, t.Num = values.Array, min(n, values.Unknown-1)
		if major == cborMap {
			t.Kind = values.Map
		}
		if info == cborIndefinite {
			t.Num = values.Unknown
		}
		return t, size, nil
	case cborTag:
		t, m, err := cborTime(data[size:], n)
		return t, size + m, err
	}
	switch info {
	case 20, 21:
		return values.Truth(info == 21), size, nil
	case 22, 23:
		return t, size, nil
	case 25:
		return values.Real(half(uint16(n))), size, nil
	case 26:
		return values.Real(float64(math.Float32frombits(uint32(n)))), size, nil
	case 27:
		return values.Real(math.Float64frombits(n)), size, nil
	case cborIndefinite:
		return values.Token{Kind: values.Break}, size, nil
	}
	return t, 0, fmt.Errorf("the simple value %d is not known", n)
}

func cborString(data []byte, major, info byte, n uint64, size int) (values.Token, int, error) {
	kind := values.Bytes
	if major == cborText {
		kind = values.Text
	}
	var t values.Token
	var err error
	if info != cborIndefinite {
		if t, size, err = content(kind, data, size, n); err != nil {
			return t, 0, err
		}
	} else {
		t = values.Token{Kind: kind, Bytes: []byte{}}
		for {
			m, i, n, head, err := cborHead(data[size:])
			if err != nil {
				return t, 0, err
			}
			if m == cborSimple && i == cborIndefinite {
				size++
				break
			}
			if m != major || i == cborIndefinite {
				return t, 0, errCBORPart
			}
			part, end, err := content(kind, data[size:], head, n)
			if err != nil {
				return t, 0, err
			}
			if kind == values.Text && !utf8.Valid(part.Bytes) {
				return t, 0, errCBORText
			}
			t.Bytes = append(t.Bytes, part.Bytes...)
			size += end
		}
	}
	if kind == values.Text && !utf8.Valid(t.Bytes) {
		return t, 0, errCBORText
	}
	return t, size, nil
}

// cborTime decodes what follows the tag, of which there are two for times.
func cborTime(data []byte, tag uint64) (values.Token, int, error) {
	var t values.Token
	if tag > 1 {
		return t, 0, fmt.Errorf("the tag %d is not known", tag)
	}
	major, info, n, size, err := cborHead(data)
	if err != nil || major == cborTag {
		return t, 0, errCBORTime
	}
	if t, size, err = cborToken(data, major, info, n, size); err != nil {
		return t, 0, err
	}
	var at time.Time
	switch {
	case tag == 0 && t.Kind == values.Text:
		if at, err = time.Parse(time.RFC3339Nano, string(t.Bytes)); err != nil {
			return t, 0, errCBORTime
		}
	case tag == 1 && t.Kind == values.Uint && t.Num <= maxSeconds:
		at = time.Unix(int64(t.Num), 0)
	case tag == 1 && t.Kind == values.Int && int64(t.Num) >= -maxSeconds:
		at = time.Unix(int64(t.Num), 0)
	case tag == 1 && t.Kind == values.Float && math.Abs(t.Float()) <= maxSeconds: // not if it is not a number
		sec, part := math.Modf(t.Float())
		at = time.Unix(int64(sec), int64(part*1e9))
	default:
		return t, 0, errCBORTime
	}
	return values.Moment(at.Unix(), uint32(at.Nanosecond())), size, nil
}

// maxSeconds is far more than a calendar needs and far less than time.Time can
// hold.
const maxSeconds = 1 << 53

// half returns the number of a float of 16 bits.
func half(h uint16) float64 {
	exp, frac := int(h>>10&0x1f), float64(h&0x3ff)
	var x float64
	switch exp {
	case 0:
		x = math.Ldexp(frac, -24)
	case 31:
		if x = math.Inf(1); frac != 0 {
			x = math.NaN()
		}
	default:
		x = math.Ldexp(frac+1024, exp-25)
	}
	if h&0x8000 != 0 {
		return -x
	}
	return x
}

// appendCBOR appends a head.
func appendCBOR(dst []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n <= math.MaxUint8:
		return append(dst, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, major|27), n)
}

func (cborFormat) AppendNil(dst []byte) []byte { return append(dst, 0xf6) }

func (cborFormat) AppendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 0xf5)
	}
	return append(dst, 0xf4)
}

func (cborFormat) AppendInt(dst []byte, v int64) []byte {
	if v < 0 {
		return appendCBOR(dst, cborNegative, uint64(-1-v))
	}
	return appendCBOR(dst, cborUint, uint64(v))
}

func (cborFormat) AppendUint(dst []byte, v uint64) []byte { return appendCBOR(dst, cborUint, v) }

func (cborFormat) AppendFloat32(dst []byte, v float32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 0xfa), math.Float32bits(v))
}

func (cborFormat) AppendFloat64(dst []byte, v float64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, 0xfb), math.Float64bits(v))
}

func (cborFormat) AppendText(dst []byte, v string) []byte {
	v = strings.ToValidUTF8(v, "\ufffd")
	return append(appendCBOR(dst, cborText, uint64(len(v))), v...)
}

func (cborFormat) AppendBytes(dst, v []byte) []byte {
	return append(appendCBOR(dst, cborBytes, uint64(len(v))), v...)
}

func (cborFormat) AppendArray(dst []byte, n int) []byte {
	return appendCBOR(dst, cborArray, uint64(n))
}

func (cborFormat) AppendMap(dst []byte, n int) []byte { return appendCBOR(dst, cborMap, uint64(n)) }

func (cborFormat) AppendTime(dst []byte, v time.Time) ([]byte, error) {
	v = v.UTC()
	if y := v.Year(); y < 0 || y > 9999 {
		return dst, fmt.Errorf("the year %d cannot be encoded", y)
	}
	var text [len(time.RFC3339Nano)]byte
	b := v.AppendFormat(text[:0], time.RFC3339Nano)
	return append(appendCBOR(append(dst, 0xc0), cborText, uint64(len(b))), b...), nil
}
