// Package echo is the protocol of getty's echo examples: a header of 32 bytes, little-endian, then a byte with the length of a text,
// and the text.
package echo

import (
	"encoding/binary"
	"errors"
)

// The commands.
const (
	Heartbeat uint32 = iota
	Echo
)

const (
	magic   = 0x20160905
	headLen = 32
)

// A Package is a request or an answer.
type Package struct {
	Log, Sequence, Service, Command uint32
	Code                            int32
	Text                            string
}

// Decode does what a Reader of getty does.
func Decode(p []byte) (pkg *Package, n int, err error) {
	if len(p) < headLen {
		return nil, 0, nil
	}
	le := binary.LittleEndian
	if le.Uint32(p) != magic {
		return nil, 0, errors.New("illegal magic number")
	}
	n = headLen + int(le.Uint16(p[24:]))
	if len(p) < n {
		return nil, n, nil
	}
	if n < headLen+1 || int(p[headLen]) != n-headLen-1 {
		return nil, 0, errors.New("illegal length")
	}
	return &Package{le.Uint32(p[4:]), le.Uint32(p[8:]), le.Uint32(p[12:]), le.Uint32(p[16:]), int32(le.Uint32(p[20:])), string(p[headLen+1 : n])}, n, nil
}

// Encode returns the bytes of a package, whose text has at most 255.
func (p *Package) Encode() []byte {
	b := make([]byte, headLen, headLen+1+len(p.Text))
	le := binary.LittleEndian
	le.PutUint32(b, magic)
	le.PutUint32(b[4:], p.Log)
	le.PutUint32(b[8:], p.Sequence)
	le.PutUint32(b[12:], p.Service)
	le.PutUint32(b[16:], p.Command)
	le.PutUint32(b[20:], uint32(p.Code))
	le.PutUint16(b[24:], uint16(1+len(p.Text)))
	return append(append(b, byte(len(p.Text))), p.Text...)
}
