package session

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/s2"
)

// CompressType says how the whole stream of a TCP session is compressed, in each direction. Both ends must say the same.
type CompressType int

// DEFLATE (RFC 1951) with its levels, and snappy in its framing format. CompressNone is DEFLATE without compression; without
// SetCompressType the stream is raw.
const (
	CompressNone            CompressType = flate.NoCompression
	CompressZip             CompressType = flate.DefaultCompression
	CompressBestSpeed       CompressType = flate.BestSpeed
	CompressBestCompression CompressType = flate.BestCompression
	CompressHuffman         CompressType = flate.HuffmanOnly
	CompressSnappy          CompressType = 10
)

// SetCompressType compresses the stream of a TCP session; others ignore it. It is for newSession and OnOpen: afterwards it has no
// effect. A session that is compressed needs up to a megabyte of memory.
func (s *Conn) SetCompressType(t CompressType) {
	s.update(func(c *settings) {
		if s.state.Load() == stateNew {
			c.compress, c.compressed = t, true
		}
	})
}

// A packer compresses a stream.
type packer struct {
	mu  sync.Mutex // held from pack until its result is in line: lock order is mu, then core's
	buf bytes.Buffer
	w   interface {
		io.Writer
		Flush() error
	}
}

// pack returns p compressed, and nothing kept back, valid until the next call.
func (z *packer) pack(t CompressType, p []byte) ([]byte, error) {
	switch {
	case z.w != nil:
	case t == CompressSnappy:
		z.w = s2.NewWriter(&z.buf, s2.WriterSnappyCompat(), s2.WriterConcurrency(1))
	default:
		w, err := flate.NewWriter(&z.buf, int(t))
		if err != nil {
			return nil, err
		}
		z.w = w
	}
	z.buf.Reset()
	_, err := z.w.Write(p)
	err = errors.Join(err, z.w.Flush())
	return z.buf.Bytes(), err
}

// An unpacker decompresses a stream that comes in pieces. The decompressor wants to wait for its input, so it runs as a coroutine:
// it goes on while it has input, on the goroutine that calls feed.
type unpacker struct {
	in   []byte // what the decompressor has not taken
	next func() ([]byte, bool)
	quit func() // gives it back; next must not run
	err  error  // what ended it
}

func newUnpacker(t CompressType) *unpacker {
	z := &unpacker{}
	z.next, z.quit = iter.Pull(func(yield func([]byte) bool) {
		src := sourceFunc(func(p []byte) (int, error) {
			for len(z.in) == 0 {
				if !yield(nil) {
					return 0, io.ErrClosedPipe
				}
			}
			n := copy(p, z.in)
			z.in = z.in[n:]
			return n, nil
		})
		var r io.Reader
		if t == CompressSnappy {
			r = s2.NewReader(src, s2.ReaderMaxBlockSize(64<<10))
		} else {
			r = flate.NewReader(src)
		}
		out := make([]byte, 32<<10)
		for {
			n, err := r.Read(out)
			if n > 0 && !yield(out[:n]) {
				return
			}
			if err != nil {
				z.err = err
				return
			}
		}
	})
	return z
}

type sourceFunc func([]byte) (int, error)

func (f sourceFunc) Read(p []byte) (int, error) { return f(p) }

// feed decompresses p and calls use with each piece of the result, until use fails.
func (z *unpacker) feed(p []byte, use func([]byte) error) error {
	z.in = p
	for {
		switch out, ok := z.next(); {
		case !ok:
			return z.err // io.EOF for a stream that says that it has ended
		case out == nil:
			return nil
		default:
			if err := use(out); err != nil {
				return err
			}
		}
	}
}
