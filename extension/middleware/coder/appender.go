package coder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/log"
)

// An Appender is a coder that sends one of a message's values at the end of the
// frame, after the payload: the name, the value's bytes, and the length of all
// that in two bytes. A bit of the reserved byte says that it is there. Messages
// without the value are left alone.
//
// The values of a message are those that a call is given, see
// arpc.Client.Call, or that a handler sets with arpc.Context.Set; a handler finds
// what it received with arpc.Context.Get. An answer carries the values of its
// request.
type Appender struct {
	name    string
	bit     int
	encode  func(value any) ([]byte, error)
	decode  func(data []byte) (any, error)
	trailer int // bytes that are not the value's
}

var _ arpc.MessageCoder = (*Appender)(nil)

// NewAppender returns an Appender of the value that messages have under the
// string name. bit is that of the reserved byte, 0 to 7, and must be no other
// coder's. encode turns the value into bytes, 65,533 less the length of name at
// most; decode turns them back and must copy what it keeps. It panics if the
// arguments make no sense.
func NewAppender(name string, bit int, encode func(value any) ([]byte, error), decode func(data []byte) (any, error)) *Appender {
	switch {
	case name == "" || len(name) > 200:
		panic(fmt.Sprintf("coder: an Appender's name must have 1 to 200 bytes, not %d", len(name)))
	case bit < 0 || bit > 7:
		panic(fmt.Sprintf("coder: bit %d of the reserved byte", bit))
	case encode == nil || decode == nil:
		panic("coder: an Appender without functions")
	}
	return &Appender{name: name, bit: bit, encode: encode, decode: decode, trailer: len(name) + 2}
}

// Name returns the name, by which peers agree to use the coder.
func (a *Appender) Name() string { return a.name }

// Encode implements arpc.MessageCoder. A value that cannot be encoded, or is too
// long, fails the call: it returns nil.
func (a *Appender) Encode(client *arpc.Client, msg *arpc.Message) *arpc.Message {
	value, ok := msg.Get(a.name)
	if !ok {
		return msg
	}
	data, err := a.encode(value)
	if n := len(data) + a.trailer; err == nil && n > math.MaxUint16 {
		err = fmt.Errorf("%d bytes are too many", len(data))
	}
	if err != nil {
		log.Warn("arpc: the value %q of a message cannot be sent: %v", a.name, err)
		return nil
	}
	n := len(data) + a.trailer
	frame := make([]byte, 0, len(msg.Buffer)+n)
	frame = append(append(append(frame, msg.Buffer...), a.name...), data...)
	frame = binary.BigEndian.AppendUint16(frame, uint16(n))
	m := Replace(msg, frame)
	_ = m.SetFlagBit(a.bit, true) // NewAppender has checked the bit
	return m
}

var errTrailer = errors.New("malformed")

// Decode implements arpc.MessageCoder. If the bit is set and what it announces
// is not there, or its value makes no sense, it returns nil, which closes the
// connection.
func (a *Appender) Decode(client *arpc.Client, msg *arpc.Message) *arpc.Message {
	if !msg.IsFlagBitSet(a.bit) {
		return msg
	}
	rest, data, err := a.cut(msg)
	var value any
	if err == nil {
		value, err = a.decode(data)
	}
	if err != nil {
		log.Warn("arpc: bad value %q in a frame of %d bytes from %s: %v", a.name, len(msg.Buffer), Peer(client), err)
		return nil
	}
	m := Replace(msg, append(make([]byte, 0, len(rest)), rest...))
	_ = m.SetFlagBit(a.bit, false)
	m.Set(a.name, value)
	return m
}

// cut returns the frame without what was appended, and the bytes of the value.
func (a *Appender) cut(msg *arpc.Message) (rest, data []byte, err error) {
	b := msg.Buffer
	if len(b) < arpc.HeadLen+msg.MethodLen()+a.trailer {
		return nil, nil, errTrailer
	}
	n := int(binary.BigEndian.Uint16(b[len(b)-2:]))
	if n < a.trailer || n > len(b)-arpc.HeadLen-msg.MethodLen() {
		return nil, nil, errTrailer
	}
	rest, b = b[:len(b)-n], b[len(b)-n:]
	if string(b[:len(a.name)]) != a.name {
		return nil, nil, errTrailer
	}
	return rest, b[len(a.name) : n-2], nil
}

// Replace returns a message with the bytes frame, whose length it writes into
// its header, and the values of msg. It is for coders.
func Replace(msg *arpc.Message, frame []byte) *arpc.Message {
	m := &arpc.Message{Buffer: frame}
	m.SetBodyLen(len(frame) - arpc.HeadLen)
	for k, v := range msg.Values() {
		m.Set(k, v)
	}
	return m
}

// Peer returns the address of a client's peer, for the log.
func Peer(client *arpc.Client) string {
	if client != nil && client.Conn != nil {
		return client.Conn.RemoteAddr().String()
	}
	return "an unknown peer"
}
