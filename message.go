package arpc

import (
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// Commands of a frame. See docs/protocol.md.
const (
	CmdNone     byte = 0
	CmdRequest  byte = 1
	CmdResponse byte = 2
	CmdNotify   byte = 3
	CmdPing     byte = 4
	CmdPong     byte = 5
	CmdStream   byte = 6

	// Version 2 of the protocol.
	cmdCancel byte = 7
	cmdCredit byte = 8
	cmdReset  byte = 9
	cmdGoAway byte = 10
)

// Layout of a frame: the header of HeadLen bytes, the method, the payload. All integers are little-endian.
const (
	// HeadLen is the length of the header in bytes.
	HeadLen = 16
	// MaxMethodLen is the longest method name in bytes.
	MaxMethodLen = 127
	// DefaultMaxBodyLen is the longest body (method and payload) that is accepted unless set otherwise, in bytes.
	DefaultMaxBodyLen = 64<<20 - HeadLen

	indexReserved  = 4
	indexCmd       = 5
	indexFlag      = 6
	indexMethodLen = 7
	indexSeq       = 8

	cmdMask   = 0x3f // bits 6 and 7 are a stream's
	flagError = 0x01
	flagAsync = 0x02
)

// Timeouts with a meaning of their own.
const (
	// TimeZero makes PushMsg and Notify fail at once instead of waiting when the send queue is full.
	TimeZero time.Duration = 0
	// TimeForever waits without a limit.
	TimeForever time.Duration = math.MaxInt64
)

var (
	errFlagBit = errors.New("arpc: flag bit index is not 0 to 7")
	pingFrame  = makeHeader(CmdPing)
	pongFrame  = makeHeader(CmdPong)
)

func makeHeader(cmd byte) []byte {
	h := make([]byte, HeadLen)
	h[indexCmd] = cmd
	return h
}

// A Message is one frame, and the values that travel with it where coders carry them.
//
// Buffer holds the whole frame: header, method and payload. A message that was pushed must not be changed any more, as
// connections may still be sending it.
type Message struct {
	Buffer []byte
	values map[any]any
	plain  bool // received from a peer of version 1, whose frames have nothing between method and payload
}

// Len returns the length of the frame in bytes.
func (m *Message) Len() int { return len(m.Buffer) }

// Cmd returns the command, without the bits of streams.
func (m *Message) Cmd() byte { return m.Buffer[indexCmd] & cmdMask }

// SetCmd sets the command.
func (m *Message) SetCmd(cmd byte) { m.Buffer[indexCmd] = cmd }

// IsError reports whether the payload is an error's.
func (m *Message) IsError() bool { return m.Buffer[indexFlag]&flagError != 0 }

// SetError says whether the payload is an error's.
func (m *Message) SetError(isError bool) { m.setFlag(flagError, isError) }

// IsAsync reports whether the message belongs to a CallAsync.
func (m *Message) IsAsync() bool { return m.Buffer[indexFlag]&flagAsync != 0 }

// SetAsync says whether the message belongs to a CallAsync. An answer must say the same as its request.
func (m *Message) SetAsync(isAsync bool) { m.setFlag(flagAsync, isAsync) }

func (m *Message) setFlag(flag byte, on bool) {
	if on {
		m.Buffer[indexFlag] |= flag
	} else {
		m.Buffer[indexFlag] &^= flag
	}
}

// Error returns the error that the payload stands for, nil if it does not stand for one.
func (m *Message) Error() error {
	if !m.IsError() {
		return nil
	}
	return errorIn(m.Buffer, nil)
}

// IsFlagBitSet reports whether bit i (0 to 7) of the byte reserved for coders is set.
func (m *Message) IsFlagBitSet(i int) bool {
	return i >= 0 && i <= 7 && m.Buffer[indexReserved]&(1<<i) != 0
}

// SetFlagBit sets or clears bit i (0 to 7) of the byte reserved for coders; another index is an error.
func (m *Message) SetFlagBit(i int, on bool) error {
	if i < 0 || i > 7 {
		return errFlagBit
	}
	if on {
		m.Buffer[indexReserved] |= 1 << i
	} else {
		m.Buffer[indexReserved] &^= 1 << i
	}
	return nil
}

// MethodLen returns the length of the method in bytes.
func (m *Message) MethodLen() int { return int(m.Buffer[indexMethodLen]) }

// SetMethodLen sets the length of the method in bytes.
func (m *Message) SetMethodLen(n int) { m.Buffer[indexMethodLen] = byte(n) }

// Method returns the method.
func (m *Message) Method() string { return string(m.Buffer[HeadLen : HeadLen+m.MethodLen()]) }

// BodyLen returns the length of method and payload in bytes, as the header says.
func (m *Message) BodyLen() int { return int(binary.LittleEndian.Uint32(m.Buffer)) }

// SetBodyLen sets the length of method and payload in bytes.
func (m *Message) SetBodyLen(n int) { binary.LittleEndian.PutUint32(m.Buffer, uint32(n)) }

// Seq returns the sequence number.
func (m *Message) Seq() uint64 { return binary.LittleEndian.Uint64(m.Buffer[indexSeq:]) }

// SetSeq sets the sequence number.
func (m *Message) SetSeq(seq uint64) { binary.LittleEndian.PutUint64(m.Buffer[indexSeq:], seq) }

// Data returns the payload; it is a part of Buffer.
func (m *Message) Data() []byte {
	at := HeadLen + m.MethodLen()
	if !m.plain {
		at += extensionLen(m.Buffer)
	}
	return m.Buffer[min(at, len(m.Buffer)):]
}

// Values returns the values that travel with the message, nil if there are none.
func (m *Message) Values() map[any]any {
	if m == nil {
		return nil
	}
	return m.values
}

// Get returns the value under key.
func (m *Message) Get(key any) (any, bool) {
	v, ok := m.values[key]
	return v, ok
}

// Set stores a value under key; a nil value is not stored.
func (m *Message) Set(key, value any) {
	if value == nil {
		return
	}
	if m.values == nil {
		m.values = map[any]any{}
	}
	m.values[key] = value
}

// newMessage builds a frame.
func newMessage(cmd, flag byte, seq uint64, method string, payload []byte, values map[any]any) *Message {
	m := &Message{Buffer: make([]byte, HeadLen+len(method)+len(payload)), values: values}
	putFrame(m.Buffer, cmd, flag, seq, method)
	copy(m.Buffer[HeadLen+len(method):], payload)
	return m
}

// putFrame writes header and method into b, which is as long as the frame.
func putFrame(b []byte, cmd, flag byte, seq uint64, method string) {
	binary.LittleEndian.PutUint32(b, uint32(len(b)-HeadLen))
	b[indexReserved] = 0
	b[indexCmd] = cmd
	b[indexFlag] = flag
	b[indexMethodLen] = byte(len(method))
	binary.LittleEndian.PutUint64(b[indexSeq:], seq)
	copy(b[HeadLen:], method)
}
