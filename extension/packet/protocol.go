package packet

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/arpc-go/arpc/internal/frame"
)

// A Protocol splits a stream of bytes into packets and frames messages as such. One value serves all sessions, from any
// goroutine; it does not keep the bytes that it is given. A packet that is framed must be what Split finds: the framing may add
// at most 64 bytes.
type Protocol interface {
	// Split looks at the unread bytes of a stream. It returns n > 0 when buf[:n] is a whole packet with its framing. Otherwise
	// need is the length of that, or 0 while it is unknown. limit is the largest body in bytes: a packet above it
	// should be refused, with a *TooLargeError, as soon as it is known to be; it is refused in any case. An error closes the session.
	Split(buf []byte, limit int) (n, need int, err error)
	// Body returns the bytes of a packet without its framing.
	Body(packet []byte) []byte
	// Begin appends what precedes a message. End completes the packet that begins at b[0] when the message is behind it; an
	// error, for instance a *TooLargeError of a body above limit, refuses it.
	Begin(b []byte) []byte
	End(b []byte, limit int) ([]byte, error)
}

// maxFraming is how many bytes a Protocol may add to a body.
const maxFraming = 64

// A FixProtocol precedes each packet with the length of its body, as Erlang's {packet, N} does.
type FixProtocol struct{ prefix frame.Prefix }

// NewFixProtocol returns a protocol whose length is an unsigned integer of n bytes: 1, 2, 4 or 8; Erlang knows the first three
// with binary.BigEndian. It panics for another n and without an order, which are errors of the program.
func NewFixProtocol(n int, order binary.ByteOrder) FixProtocol {
	p, err := frame.NewPrefix(frame.PrefixConfig{N: n, Order: order, Max: math.MaxInt})
	if err != nil {
		panic("packet: " + err.Error())
	}
	return FixProtocol{p}
}

// Split implements Protocol.
func (p FixProtocol) Split(buf []byte, limit int) (n, need int, err error) {
	return p.prefix.SplitMax(buf, limit)
}

// Body implements Protocol.
func (p FixProtocol) Body(packet []byte) []byte { return packet[p.prefix.Len():] }

// Begin implements Protocol.
func (p FixProtocol) Begin(b []byte) []byte { return append(b, make([]byte, p.prefix.Len())...) }

// End implements Protocol.
func (p FixProtocol) End(b []byte, limit int) ([]byte, error) {
	return b, p.prefix.PutMax(b, len(b)-p.prefix.Len(), limit)
}

// split is proto.Split with what must hold for any protocol.
func split(proto Protocol, buf []byte, limit int) (n, need int, err error) {
	n, need, err = proto.Split(buf, limit)
	size := 0
	switch {
	case err != nil:
		return 0, 0, tooLarge(err)
	case n < 0 || n > len(buf):
		return 0, 0, fmt.Errorf("%w: packet of %d bytes in %d", ErrProtocol, n, len(buf))
	case n > 0:
		size = len(proto.Body(buf[:n]))
	default:
		size = max(need, len(buf)) - maxFraming
	}
	if size > limit {
		return 0, 0, above(size, limit)
	}
	return n, need, nil
}

// A Message is what is sent as one packet.
type Message interface {
	// RecommendPacketSize returns about how many bytes AppendToPacket appends; being wrong costs time or memory only.
	RecommendPacketSize() uint
	// AppendToPacket appends the message as append does, and returns the result. It neither changes what is there nor keeps it.
	AppendToPacket([]byte) []byte
}

// Bytes is a Message that consists of these bytes.
type Bytes []byte

// RecommendPacketSize implements Message.
func (b Bytes) RecommendPacketSize() uint { return uint(len(b)) }

// AppendToPacket implements Message.
func (b Bytes) AppendToPacket(p []byte) []byte { return append(p, b...) }

// hint returns the capacity to begin with, whatever a message recommends.
func hint(m Message, limit int) int {
	return int(min(m.RecommendPacketSize(), uint(limit))) + maxFraming
}

// encode appends m as a packet to b, which is empty.
func encode(b []byte, proto Protocol, m Message, limit int) ([]byte, error) {
	b = proto.Begin(b)
	framing := len(b)
	b = m.AppendToPacket(b)
	if len(b) < framing {
		return nil, fmt.Errorf("%w: AppendToPacket has not appended", ErrProtocol)
	}
	if size := len(b) - framing; size > limit {
		return nil, above(size, limit)
	}
	b, err := proto.End(b, limit)
	return b, tooLarge(err)
}
