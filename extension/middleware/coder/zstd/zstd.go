package zstd

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/middleware/coder"
	"github.com/arpc-go/arpc/log"
)

const (
	// DefaultMinSize is the frame length, in bytes with its header, up to
	// which New() leaves frames uncompressed.
	DefaultMinSize = 1024
	// DefaultMaxDecodedLen is the default of Zstd.MaxDecodedLen: a frame of
	// 64 MiB.
	DefaultMaxDecodedLen = 64 << 20

	compressed  = 5 // offset of the first byte that is compressed
	reservedOff = compressed - 1
	// A block has at least 4 bytes and becomes 128 KiB at most.
	maxExpand = 128 << 10 / 4
	// windowSize bounds how far back repetitions are found, and the memory of a
	// compressor.
	windowSize = 1 << 20
)

// Zstd is the coder. Make it with New.
type Zstd struct {
	// MaxDecodedLen is the largest frame, in bytes with its header, that
	// Decode gives out; a larger one is a bad frame. Set it before the coder is
	// in use; zero means DefaultMaxDecodedLen.
	MaxDecodedLen int

	minSize int
}

var _ arpc.MessageCoder = (*Zstd)(nil)

// New returns a coder that compresses the frames that are longer than minSize
// bytes with their header, DefaultMinSize if it is not given, and become
// shorter by it. It decompresses frames of any size.
func New(minSize ...int) *Zstd {
	z := &Zstd{minSize: DefaultMinSize}
	if len(minSize) > 0 {
		z.minSize = minSize[0]
	}
	return z
}

// Name returns "zstd", by which peers agree to use the coder.
func (*Zstd) Name() string { return "zstd" }

var encoder = sync.OnceValue(func() *zstd.Encoder {
	// The number of goroutines is that of callers.
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(windowSize), zstd.WithLowerEncoderMem(true),
		zstd.WithSingleSegment(true)) // which tells the length of short frames too
	if err != nil {
		panic(err) // the options are valid
	}
	return e
})

var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic(err) // the options are valid
	}
	return d
})

// Encode implements arpc.MessageCoder. It returns msg itself if compressing
// does not apply or does not pay.
func (z *Zstd) Encode(_ *arpc.Client, msg *arpc.Message) *arpc.Message {
	b := msg.Buffer
	if len(b) <= z.minSize || len(b) < arpc.HeadLen || msg.IsFlagBitSet(coder.FlagBitZstd) || msg.IsFlagBitSet(coder.FlagBitGZip) {
		return msg
	}
	out := append(make([]byte, 0, len(b)/2+arpc.HeadLen), b[:compressed]...)
	out = encoder().EncodeAll(b[compressed:], out)
	if len(out) >= len(b) || len(out) < arpc.HeadLen {
		return msg
	}
	out[reservedOff] |= 1 << coder.FlagBitZstd
	return coder.Replace(msg, out)
}

// Decode implements arpc.MessageCoder. It returns msg itself if it is not
// compressed, and nil, which closes the connection, if it is damaged or too
// large.
func (z *Zstd) Decode(client *arpc.Client, msg *arpc.Message) *arpc.Message {
	if len(msg.Buffer) < arpc.HeadLen || !msg.IsFlagBitSet(coder.FlagBitZstd) {
		return msg
	}
	limit := z.MaxDecodedLen
	if limit <= 0 {
		limit = DefaultMaxDecodedLen
	}
	out, err := decompress(msg.Buffer, limit)
	if err != nil {
		log.Warn("arpc: bad zstd frame of %d bytes from %s: %v", len(msg.Buffer), coder.Peer(client), err)
		return nil
	}
	return coder.Replace(msg, out)
}

var (
	errSize     = errors.New("it does not tell its length")
	errClaim    = errors.New("its length is not what it says")
	errNoHeader = errors.New("no whole frame header inside")
)

// decompress returns the frame whose compressed form is frame. The result is at
// most limit bytes long.
func decompress(frame []byte, limit int) ([]byte, error) {
	data := frame[compressed:]
	var h zstd.Header
	if err := h.Decode(data); err != nil {
		return nil, err
	}
	size := h.FrameContentSize
	switch {
	case h.Skippable || !h.HasFCS:
		return nil, errSize
	case size > uint64(max(limit-compressed, 0)):
		return nil, fmt.Errorf("it decodes to %d bytes and more, the limit is %d", size, limit)
	case size > uint64(len(data))*maxExpand:
		return nil, errClaim
	case size < arpc.HeadLen-compressed:
		return nil, errNoHeader
	}
	out := append(make([]byte, 0, compressed+size), frame[:compressed]...)
	// The decoder is given no more room than the length that was told.
	out, err := decoder().DecodeAll(data, out)
	if err != nil {
		return nil, err
	}
	if uint64(len(out)) != compressed+size {
		return nil, errClaim
	}
	out[reservedOff] &^= 1 << coder.FlagBitZstd
	return out, nil
}
