package arpc

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Metadata is what travels with a call beside its value, in either direction: small pairs, such as a trace context or a
// tenant. Values may be any bytes. A key has 1 to 255 bytes, a value at most 65,535; all of them together, with three bytes
// for each pair, at most Limits.Metadata of the peer. It is carried to peers of version 2 of the protocol, and left out for
// others.
type Metadata map[string]string

// metadataBlock is encoded metadata, without the length before it. It never changes.
type metadataBlock []byte

// reservedPrefix begins the keys that the framework uses itself.
const reservedPrefix = "arpc."

func errMetadata(format string, args ...any) *Error {
	return &Error{Code: CodeInvalidArgument, Message: "invalid metadata: " + fmt.Sprintf(format, args...)}
}

// appendMetadata appends the pairs of md.
func appendMetadata(b []byte, md Metadata) ([]byte, error) {
	for k, v := range md {
		var err error
		if b, err = appendUserPair(b, k, v); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func appendUserPair(b []byte, k, v string) ([]byte, error) {
	if strings.HasPrefix(k, reservedPrefix) {
		return nil, errMetadata("the key %q is reserved", k)
	}
	return appendPair(b, k, v)
}

func appendPair(b []byte, k, v string) ([]byte, error) {
	if len(k) == 0 || len(k) > 255 {
		return nil, errMetadata("a key has %d bytes", len(k))
	}
	if len(b)+3+len(k)+len(v) > 65535 {
		return nil, errMetadata("more than 65535 bytes")
	}
	b = append(append(slices.Grow(b, 3+len(k)+len(v)), byte(len(k))), k...)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(v)))
	return append(b, v...), nil
}

// nextPair returns the first pair of a block and what follows it; ok is false if it is malformed.
func nextPair(b []byte) (k, v, rest []byte, ok bool) {
	n := int(b[0])
	if n == 0 || len(b) < 1+n+2 {
		return nil, nil, nil, false
	}
	k = b[1 : 1+n]
	b = b[1+n:]
	n = int(binary.LittleEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, nil, nil, false
	}
	return k, b[2 : 2+n], b[2+n:], true
}

func validMetadata(b []byte) bool {
	for len(b) > 0 {
		var ok bool
		if _, _, b, ok = nextPair(b); !ok {
			return false
		}
	}
	return true
}

// decodeMetadata decodes a valid block; the last of equal keys counts, and those of the framework are left out.
func decodeMetadata(b []byte) Metadata {
	var md Metadata
	for len(b) > 0 {
		k, v, rest, ok := nextPair(b)
		if !ok {
			break
		}
		if b = rest; len(k) >= len(reservedPrefix) && string(k[:len(reservedPrefix)]) == reservedPrefix {
			continue
		}
		if md == nil {
			md = Metadata{}
		}
		md[string(k)] = string(v)
	}
	return md
}

// pairIn returns the value of a key in a valid block.
func pairIn(b metadataBlock, key string) (value []byte, ok bool) {
	for len(b) > 0 {
		k, v, rest, valid := nextPair(b)
		if !valid {
			break
		}
		if string(k) == key {
			value, ok = v, true
		}
		b = rest
	}
	return value, ok
}

// Flags of version 2 in requests, answers, notifications and streams. Between method and payload stand, in this order, the
// deadline and the metadata that the flags announce.
const (
	flagMetadata = 0x04 // 2 bytes length, then that many bytes of pairs
	flagDeadline = 0x08 // 4 bytes: milliseconds that are left
	flagCoded    = 0x10 // the payload of an error is a structure, not a text
	flagOpen     = 0x20 // of a stream: the first frame of the end that opens it
	flagMore     = 0x40 // of a stream: the message goes on in the next frame
	flagNoData   = 0x80 // of a stream: the frame carries no message, not even an empty one

	flagsV1 = flagError | flagAsync
)

// extensionLen returns the bytes between method and payload. Of a frame that is not valid, such as one before its coders, the
// result means nothing.
func extensionLen(frame []byte) int {
	flag := frame[indexFlag]
	if flag&(flagDeadline|flagMetadata) == 0 {
		return 0
	}
	n := 0
	if flag&flagDeadline != 0 {
		n = 4
	}
	if at := HeadLen + int(frame[indexMethodLen]) + n; flag&flagMetadata != 0 && len(frame) >= at+2 {
		n += 2 + int(binary.LittleEndian.Uint16(frame[at:]))
	}
	return n
}

// checkExtension reports whether what a received frame of version 2 announces between method and payload is there and well
// formed. The method is valid.
func checkExtension(frame []byte, maxMetadata int) error {
	flag := frame[indexFlag]
	if flag&(flagDeadline|flagMetadata) == 0 {
		return nil
	}
	rest := frame[HeadLen+int(frame[indexMethodLen]):]
	if flag&flagDeadline != 0 {
		if len(rest) < 4 {
			return errExtension
		}
		rest = rest[4:]
	}
	if flag&flagMetadata != 0 {
		if len(rest) < 2 {
			return errExtension
		}
		n := int(binary.LittleEndian.Uint16(rest))
		if n > len(rest)-2 || n > maxMetadata || !validMetadata(rest[2:2+n]) {
			return errExtension
		}
	}
	return nil
}

var errExtension = &Error{Code: CodeInvalidArgument, Message: "malformed frame: deadline or metadata"}

// putExtension writes deadline and metadata as flag says, and returns what follows.
func putExtension(b []byte, flag byte, ms uint32, md metadataBlock) []byte {
	if flag&flagDeadline != 0 {
		binary.LittleEndian.PutUint32(b, ms)
		b = b[4:]
	}
	if flag&flagMetadata != 0 {
		binary.LittleEndian.PutUint16(b, uint16(len(md)))
		b = b[2+copy(b[2:], md):]
	}
	return b
}

// timeLeft returns the deadline field of a frame, in milliseconds, false if it has none.
func timeLeft(frame []byte) (uint32, bool) {
	if frame[indexFlag]&flagDeadline == 0 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(frame[HeadLen+int(frame[indexMethodLen]):]), true
}

// metadataIn returns the metadata block of a frame.
func metadataIn(frame []byte) metadataBlock {
	if frame[indexFlag]&flagMetadata == 0 {
		return nil
	}
	at := HeadLen + int(frame[indexMethodLen])
	if frame[indexFlag]&flagDeadline != 0 {
		at += 4
	}
	n := int(binary.LittleEndian.Uint16(frame[at:]))
	return metadataBlock(frame[at+2 : at+2+n])
}
