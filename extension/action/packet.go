package action

import (
	"encoding/binary"
	"fmt"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/internal/buf"
	"github.com/arpc-go/arpc/internal/core"
)

const (
	prefixLen = 4             // the length
	headLen   = prefixLen + 4 // and action and seq
)

// A Packet is what travels in either direction.
type Packet struct {
	Action, Seq int16
	// Body is the encoded value.
	Body []byte

	codec codec.Codec
}

func (p *Packet) parse(f []byte, c codec.Codec) {
	p.Action, p.Seq = int16(binary.BigEndian.Uint16(f[4:])), int16(binary.BigEndian.Uint16(f[6:]))
	p.Body, p.codec = f[headLen:], c
}

// Bind decodes the body into v, a pointer.
func (p *Packet) Bind(v any) error {
	if err := p.codec.Unmarshal(p.Body, v); err != nil {
		return fail(arpc.CodeInvalidArgument, fmt.Sprintf("cannot decode action %d", p.Action), err)
	}
	return nil
}

// fail makes an error that is an *arpc.Error as well as its cause.
func fail(code arpc.Code, message string, cause error) error {
	return fmt.Errorf("%w: %w", &arpc.Error{Code: code, Message: message}, cause)
}

var errFull = &arpc.Error{Code: arpc.CodeResourceExhausted, Message: "the peer does not read: too much waits to be sent"}

// encode makes a whole frame, in a buffer that the caller frees.
func (c *config) encode(action, seq int16, v any) (*buf.Buf, []byte, error) {
	b := buf.Get(512)
	f := b.B[:headLen]
	var err error
	if a, ok := c.codec.(codec.AppendMarshaler); ok {
		f, err = a.AppendMarshal(f, v)
	} else {
		var body []byte
		body, err = c.codec.Marshal(v)
		f = append(f, body...)
	}
	if err == nil {
		err = c.frames.Put(f, len(f)-prefixLen)
	}
	if err != nil {
		b.Free()
		return nil, nil, fail(arpc.CodeInternal, fmt.Sprintf("cannot encode action %d", action), err)
	}
	binary.BigEndian.PutUint16(f[4:], uint16(action))
	binary.BigEndian.PutUint16(f[6:], uint16(seq))
	return b, f, nil
}

// push sends a frame, of which head, which may be nil, is the beginning, unless too much waits to be sent.
func push(cn *core.Conn, head, f []byte) error {
	cn.Lock()
	if err := sendable(cn, true); err != nil {
		cn.Unlock()
		return err
	}
	b := cn.Reserve(len(head) + len(f))
	copy(b[copy(b, head):], f)
	cn.Commit(core.Now, false)
	return nil
}

// sendable returns why nothing can be sent, or pushed: replies have no limit, but the peer is not read while too many wait.
// The caller holds the lock.
func sendable(cn *core.Conn, push bool) error {
	if err := cn.CanSend(); err != nil {
		return lost(err)
	}
	if push && cn.Full() {
		return errFull
	}
	return nil
}

// lost is the error of what needs a connection that has ended.
func lost(err error) error { return fail(arpc.CodeUnavailable, "no connection", err) }
