package gzip

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder"
	"github.com/arpc-go/arpc/log"
)

const (
	// DefaultMinSize is the frame length, in bytes with its header, up to
	// which New() leaves frames uncompressed.
	DefaultMinSize = 1024
	// DefaultMaxDecodedLen is the default of Gzip.MaxDecodedLen: a frame of
	// 64 MiB.
	DefaultMaxDecodedLen = 64 << 20

	flagBit     = coder.FlagBitGZip
	compressed  = 5 // offset of the first byte that is compressed
	maxExpand   = 1032
	reservedOff = 4
	// A gzip member has a header of 10 bytes and a trailer of 8.
	minMember = 18
)

// Gzip is the coder. Make it with New.
type Gzip struct {
	// MaxDecodedLen is the largest frame, in bytes with its header, that
	// Decode gives out; a larger one is a bad frame. Set it before the coder is
	// in use; zero means DefaultMaxDecodedLen.
	MaxDecodedLen int

	minSize int
}

var _ arpc.MessageCoder = (*Gzip)(nil)

// New returns a coder that compresses the frames that are longer than minSize
// bytes with their header, DefaultMinSize if it is not given, and become
// shorter by it. It decompresses frames of any size.
func New(minSize ...int) *Gzip {
	g := &Gzip{minSize: DefaultMinSize}
	if len(minSize) > 0 {
		g.minSize = minSize[0]
	}
	return g
}

// Name returns "gzip", by which peers of protocol version 2 agree to use the
// coder.
func (*Gzip) Name() string { return "gzip" }

// Encode implements arpc.MessageCoder. It returns msg itself if compressing
// does not apply or does not pay.
func (g *Gzip) Encode(_ *arpc.Client, msg *arpc.Message) *arpc.Message {
	if len(msg.Buffer) <= g.minSize || len(msg.Buffer) < arpc.HeadLen || msg.IsFlagBitSet(flagBit) || msg.IsFlagBitSet(coder.FlagBitZstd) {
		return msg
	}
	out := compress(msg.Buffer)
	if len(out) >= len(msg.Buffer) {
		return msg
	}
	return coder.Replace(msg, out)
}

// Decode implements arpc.MessageCoder. It returns msg itself if it is not
// compressed, and nil, which closes the connection, if it is damaged or too
// large.
func (g *Gzip) Decode(client *arpc.Client, msg *arpc.Message) *arpc.Message {
	if len(msg.Buffer) < arpc.HeadLen || !msg.IsFlagBitSet(flagBit) {
		return msg
	}
	limit := g.MaxDecodedLen
	if limit <= 0 {
		limit = DefaultMaxDecodedLen
	}
	out, err := decompress(msg.Buffer, limit)
	if err != nil {
		log.Warn("arpc: bad gzip frame of %d bytes from %s: %v", len(msg.Buffer), coder.Peer(client), err)
		return nil
	}
	return coder.Replace(msg, out)
}

var writers = sync.Pool{New: func() any {
	w, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic(err) // the level is a valid one
	}
	return w
}}

// compress returns the compressed form of frame, which may be longer than it.
func compress(frame []byte) []byte {
	var out bytes.Buffer
	out.Grow(len(frame)/2 + minMember)
	out.Write(frame[:compressed])
	w := writers.Get().(*gzip.Writer)
	w.Reset(&out)
	// A bytes.Buffer does not fail.
	_, _ = w.Write(frame[compressed:])
	_ = w.Close()
	w.Reset(nil)
	writers.Put(w)
	b := out.Bytes()
	b[reservedOff] |= 1 << flagBit
	setBodyLen(b)
	return b
}

// reader is a gzip.Reader with its input, pooled together.
type reader struct {
	in bytes.Reader
	z  gzip.Reader
}

var readers = sync.Pool{New: func() any { return new(reader) }}

var (
	errShort    = errors.New("too short for a gzip member")
	errClaim    = errors.New("its length cannot be what it says")
	errTrailing = errors.New("bytes after the gzip member")
	errNoHeader = errors.New("no whole frame header inside")
)

// decompress returns the frame whose compressed form is frame. The result is at
// most limit bytes long.
func decompress(frame []byte, limit int) ([]byte, error) {
	member := frame[compressed:]
	if len(member) < minMember {
		return nil, errShort
	}
	// The member ends with its length modulo 4 GiB. It can only be more than
	// that, and never more than the format can expand; so all that is left
	// to find out by reading is whether it is exactly that.
	size := int64(binary.LittleEndian.Uint32(member[len(member)-4:]))
	switch {
	case size > int64(limit-compressed):
		return nil, fmt.Errorf("it decodes to %d bytes, the limit is %d", size+compressed, limit)
	case size > int64(len(member))*maxExpand:
		return nil, errClaim
	case size < arpc.HeadLen-compressed:
		return nil, errNoHeader
	}
	r := readers.Get().(*reader)
	defer func() {
		r.in.Reset(nil)
		readers.Put(r)
	}()
	r.in.Reset(member)
	if err := r.z.Reset(&r.in); err != nil {
		return nil, err
	}
	r.z.Multistream(false)
	out := make([]byte, compressed+size)
	copy(out, frame[:compressed])
	if _, err := io.ReadFull(&r.z, out[compressed:]); err != nil {
		return nil, err
	}
	// The end, where the reader compares length and checksum.
	var probe [1]byte
	switch n, err := r.z.Read(probe[:]); {
	case n != 0:
		return nil, errClaim
	case err != io.EOF:
		return nil, err
	case r.in.Len() != 0:
		return nil, errTrailing
	}
	out[reservedOff] &^= 1 << flagBit
	setBodyLen(out)
	return out, nil
}

// setBodyLen writes the length of frame into its header.
func setBodyLen(frame []byte) {
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-arpc.HeadLen))
}
