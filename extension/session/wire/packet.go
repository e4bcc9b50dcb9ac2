package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/extension/session"
)

// Codec says how headers and values are encoded.
type Codec uint16

// The codecs. Values of Protobuf are proto.Messages.
const (
	JSON     Codec = 1
	Protobuf Codec = 2
)

// Errors of the format; those that are returned wrap them.
var (
	// ErrTooLarge refuses a header or value above 65,535 bytes, and ends a session whose peer announces more than two of them.
	ErrTooLarge = errors.New("above the limit of the format")
	// ErrMalformed ends a session whose peer sends what is no package.
	ErrMalformed = errors.New("malformed package")
	// ErrCodec refuses a codec that is neither JSON nor Protobuf.
	ErrCodec = errors.New("unknown codec")
)

const (
	magic     = 0x20160905
	headLen   = 32
	maxPart   = 1<<16 - 1
	maxPacket = headLen + 2*(2+maxPart)
)

const (
	cmdPing uint16 = 1 + iota
	cmdPong
	cmdCall
	cmdAnswer
)

const codeFail uint16 = 1

type callType uint64

const (
	oneWay callType = 1 + iota
	twoWay
	twoWayNoReply
)

// A packet is a package. header is nil where there is no body.
type packet struct {
	command, service uint16
	seq, log         uint64
	code             uint16
	codec            Codec
	header, value    []byte
}

// packets is the codec of sessions.
type packets struct{}

// Read implements session.Reader.
func (packets) Read(_ session.Session, p []byte) (any, int, error) {
	if len(p) < headLen {
		return nil, 0, nil
	}
	le := binary.LittleEndian
	n := headLen + uint64(le.Uint32(p[28:]))
	switch {
	case le.Uint32(p) != magic:
		return nil, 0, fmt.Errorf("%w: magic %#x", ErrMalformed, le.Uint32(p))
	case n > maxPacket:
		return nil, 0, fmt.Errorf("package of %d bytes: %w", n, ErrTooLarge)
	case uint64(len(p)) < n:
		return nil, int(n), nil
	}
	k := &packet{
		command: le.Uint16(p[4:]), service: le.Uint16(p[6:]), seq: le.Uint64(p[8:]), log: le.Uint64(p[16:]),
		code: le.Uint16(p[24:]), codec: Codec(le.Uint16(p[26:])),
	}
	if n > headLen {
		var ok1, ok2 bool
		body := bytes.Clone(p[headLen:n]) // it outlives the call
		k.header, body, ok1 = part(body)
		k.value, body, ok2 = part(body)
		if !ok1 || !ok2 || len(body) > 0 {
			return nil, 0, fmt.Errorf("%w: lengths do not add up", ErrMalformed)
		}
	}
	return k, int(n), nil
}

// part takes what comes first, with its length before it, from a body.
func part(p []byte) (first, rest []byte, ok bool) {
	if len(p) < 2 || len(p) < 2+int(binary.LittleEndian.Uint16(p)) {
		return nil, nil, false
	}
	n := 2 + int(binary.LittleEndian.Uint16(p))
	return p[2:n:n], p[n:], true
}

// Write implements session.Writer.
func (packets) Write(_ session.Session, pkg any) ([]byte, error) {
	k := pkg.(*packet)
	if n := max(len(k.header), len(k.value)); n > maxPart {
		return nil, fmt.Errorf("%d bytes: %w", n, ErrTooLarge)
	}
	le := binary.LittleEndian
	b := make([]byte, 0, headLen+4+len(k.header)+len(k.value))
	b = le.AppendUint32(b, magic)
	b = le.AppendUint16(b, k.command)
	b = le.AppendUint16(b, k.service)
	b = le.AppendUint64(b, k.seq)
	b = le.AppendUint64(b, k.log)
	b = le.AppendUint16(b, k.code)
	b = le.AppendUint16(b, uint16(k.codec))
	if k.header == nil {
		return le.AppendUint32(b, 0), nil
	}
	b = le.AppendUint32(b, uint32(4+len(k.header)+len(k.value)))
	b = append(le.AppendUint16(b, uint16(len(k.header))), k.header...)
	return append(le.AppendUint16(b, uint16(len(k.value))), k.value...), nil
}

var codecs = map[Codec]codec.Codec{JSON: codec.JSONCodec{}, Protobuf: codec.Protobuf{}}

// request is the header of a call.
type request struct {
	Service, Method string
	CallType        callType
}

// response is the header of an answer.
type response struct{ Error string }

// A header has fields for Protobuf: texts, numbered from 1, and one number behind them.
type header interface {
	fields() ([]*string, *callType)
}

func (r *request) fields() ([]*string, *callType) {
	return []*string{&r.Service, &r.Method}, &r.CallType
}
func (r *response) fields() ([]*string, *callType) { return []*string{&r.Error}, new(callType) }

func (c Codec) encode(h header) (b []byte, err error) {
	if c != Protobuf {
		return codecs[JSON].Marshal(h)
	}
	texts, number := h.fields()
	for i, text := range texts {
		b = protowire.AppendTag(b, protowire.Number(i+1), protowire.BytesType)
		b = protowire.AppendString(b, *text)
	}
	if *number != 0 {
		b = protowire.AppendTag(b, protowire.Number(len(texts)+1), protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(*number))
	}
	return b, nil
}

// decode skips fields that it does not know.
func (c Codec) decode(p []byte, h header) error {
	if c != Protobuf {
		return codecs[JSON].Unmarshal(p, h)
	}
	texts, number := h.fields()
	for len(p) > 0 {
		field, kind, n := protowire.ConsumeTag(p)
		size := protowire.ConsumeFieldValue(field, kind, p[max(n, 0):])
		if n < 0 || size < 0 {
			return protowire.ParseError(min(n, size))
		}
		switch at := int(field) - 1; {
		case kind == protowire.BytesType && at < len(texts):
			*texts[at], _ = protowire.ConsumeString(p[n:])
		case kind == protowire.VarintType && at == len(texts):
			v, _ := protowire.ConsumeVarint(p[n:])
			*number = callType(v)
		}
		p = p[n+size:]
	}
	return nil
}
