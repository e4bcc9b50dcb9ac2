package wire

import (
	"encoding/binary"

	"github.com/arpc-go/arpc/extension/pubsub"
)

// The payload of a message: flags:1, timestamp:8 little-endian, the key with its length:1 if flagKey, the data.
const (
	flagKey   byte = 1 << iota
	flagToOne      // one subscriber gets it
	flagBegin      // no message, but a mark
	flagsAll  = flagKey | flagToOne | flagBegin
)

const messageHead = 9

// AppendMessage appends the payload of a message behind b.
func AppendMessage(b []byte, m *pubsub.Message) []byte {
	var flags byte
	if m.Key != "" {
		flags |= flagKey
	}
	if m.ToOne {
		flags |= flagToOne
	}
	b = binary.LittleEndian.AppendUint64(append(b, flags), uint64(m.Timestamp))
	if m.Key != "" {
		b = append(append(b, byte(len(m.Key))), m.Key...)
	}
	return append(b, m.Data...)
}

// Mark is the payload that begins a topic without a message. Its time is in nanoseconds since 1970.
func Mark(timestamp int64) []byte {
	b := AppendMessage(nil, &pubsub.Message{Timestamp: timestamp})
	b[0] |= flagBegin
	return b
}

// ParseMessage decodes a payload; the data is a part of b. mark says that it is no message.
func ParseMessage(b []byte) (m *pubsub.Message, mark, ok bool) {
	if len(b) < messageHead || b[0]&^flagsAll != 0 {
		return nil, false, false
	}
	flags := b[0]
	m = &pubsub.Message{Timestamp: int64(binary.LittleEndian.Uint64(b[1:])), ToOne: flags&flagToOne != 0}
	b = b[messageHead:]
	if flags&flagKey != 0 {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return nil, false, false
		}
		n := int(b[0])
		m.Key, b = string(b[1:1+n]), b[1+n:]
	}
	m.Data = b
	return m, flags&flagBegin != 0, true
}
