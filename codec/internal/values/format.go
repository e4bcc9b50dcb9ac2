package values

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// A Kind is what a Token stands for.
type Kind uint8

// Kinds of tokens.
const (
	Nil   Kind = iota
	Bool       // Num is 0 or 1
	Int        // below zero; Num is its two's complement
	Uint       // Num
	Float      // Num is its bits
	Text       // Bytes
	Bytes      // Bytes
	Array      // Num elements follow
	Map        // Num pairs of key and value follow
	Time       // Num is seconds since 1970, in two's complement, and Nsec
	Break      // the end of an array or map that did not tell its length
)

var kindNames = [...]string{"nil", "boolean", "number", "number", "number", "text", "bytes", "array", "map", "time", "break"}

func (k Kind) String() string { return kindNames[k] }

// Unknown is the Num of an array or map that a Break ends.
const Unknown = math.MaxUint64

// A Token is one item of encoded data: a whole value, or the beginning of an
// array or map. It is small because it is copied much.
type Token struct {
	Kind  Kind
	Nsec  uint32
	Num   uint64
	Bytes []byte // may alias the data
}

// Truth returns the token of a Bool.
func Truth(v bool) Token {
	if v {
		return Token{Kind: Bool, Num: 1}
	}
	return Token{Kind: Bool}
}

// Real returns the token of a Float.
func Real(v float64) Token { return Token{Kind: Float, Num: math.Float64bits(v)} }

// Moment returns the token of a Time.
func Moment(sec int64, nsec uint32) Token { return Token{Kind: Time, Num: uint64(sec), Nsec: nsec} }

// Float returns the number of a Float.
func (t Token) Float() float64 { return math.Float64frombits(t.Num) }

// Time returns the time of a Time.
func (t Token) Time() time.Time { return time.Unix(int64(t.Num), int64(t.Nsec)).UTC() }

// A Format knows the bytes.
type Format interface {
	// Next decodes the first token of data and returns the number of bytes it
	// takes. The lengths of texts and bytes are checked, those of arrays and
	// maps need not be.
	Next(data []byte) (Token, int, error)

	AppendNil(dst []byte) []byte
	AppendBool(dst []byte, v bool) []byte
	AppendInt(dst []byte, v int64) []byte
	AppendUint(dst []byte, v uint64) []byte
	AppendFloat32(dst []byte, v float32) []byte
	AppendFloat64(dst []byte, v float64) []byte
	AppendText(dst []byte, v string) []byte
	AppendBytes(dst, v []byte) []byte
	AppendArray(dst []byte, n int) []byte
	AppendMap(dst []byte, n int) []byte
	AppendTime(dst []byte, v time.Time) ([]byte, error)
}

var (
	// ErrShort is Next's error for data that ends too early.
	ErrShort     = errors.New("unexpected end of data")
	errTrailing  = errors.New("bytes after the value")
	errTooDeep   = fmt.Errorf("nested more than %d levels deep", maxDepth)
	errBreak     = errors.New("break outside of an array or map")
	errLength    = errors.New("length is larger than the data")
	errNoPointer = errors.New("the target is not a pointer, or nil")
)

// maxDepth bounds how deep values nest.
const maxDepth = 1000
