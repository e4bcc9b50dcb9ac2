// Package frame finds the frames in a byte stream, and writes the lengths that they begin with.
//
// # Concurrency
//
// A Splitter is one value for all connections; it keeps no state and may be used from any goroutine.
//
// # Ownership of buffers
//
// A Splitter only looks at the bytes it is given; it neither keeps nor changes them.
//
// # Limits
//
// A frame above the splitter's maximum is an error before anything is allocated for it.
package frame

import (
	"encoding/binary"
	"fmt"
)

// A Splitter finds the first frame of a stream.
type Splitter interface {
	// Split looks at buf, the unread bytes of a stream. It returns n > 0 when buf[:n] is a whole frame.
	// With n == 0 the frame is incomplete, and need is its full length in bytes, or 0 while that is unknown.
	// An error means that the stream cannot be understood any more; the connection is closed with it.
	Split(buf []byte) (n, need int, err error)
}

// TooLargeError reports a frame whose announced length is above the limit. Both are in bytes.
type TooLargeError struct{ Size, Limit uint64 }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("frame of %d bytes is above the limit of %d bytes", e.Size, e.Limit)
}

// Length splits frames that start with a fixed header whose first four bytes, little-endian, hold the number of bytes
// that follow the header.
type Length struct {
	// Header is the length of the header in bytes, at least 4.
	Header int
	// Max returns the largest number of bytes allowed after the header. It is asked for each frame, so that it may
	// change while connections are open.
	Max func() int
}

// Split implements Splitter.
func (l Length) Split(buf []byte) (n, need int, err error) {
	if len(buf) < 4 {
		return 0, 0, nil
	}
	body := uint64(binary.LittleEndian.Uint32(buf))
	if limit := uint64(l.Max()); body > limit {
		return 0, 0, &TooLargeError{Size: body, Limit: limit}
	}
	total := l.Header + int(body)
	if len(buf) < total {
		return 0, total, nil
	}
	return total, total, nil
}
