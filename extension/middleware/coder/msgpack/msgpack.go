package msgpack

import (
	"errors"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
	"github.com/arpc-go/arpc/extension/middleware/coder"
	"github.com/arpc-go/arpc/log"
)

// MsgPack is the coder. Make it with New.
type MsgPack struct{}

var _ arpc.MessageCoder = (*MsgPack)(nil)

// New returns the coder.
func New() *MsgPack { return &MsgPack{} }

// payload is what the payload becomes. The order of the fields is arpc's.
type payload struct {
	Body   []byte
	Values map[any]any
}

// Encode implements arpc.MessageCoder. Values that MessagePack cannot encode
// fail the call: it returns nil.
func (*MsgPack) Encode(_ *arpc.Client, msg *arpc.Message) *arpc.Message {
	b := msg.Buffer
	at := arpc.HeadLen + msg.MethodLen()
	if at > len(b) {
		return nil
	}
	p := payload{Body: b[at:len(b):len(b)], Values: msg.Values()}
	frame := append(make([]byte, 0, len(b)+64), b[:at]...)
	frame, err := codec.MessagePack{}.AppendMarshal(frame, &p)
	if err != nil {
		log.Warn("arpc: the values of a message cannot be sent: %v", err)
		return nil
	}
	return coder.Replace(msg, frame)
}

var errHeader = errors.New("the method is longer than the frame")

// Decode implements arpc.MessageCoder. It returns nil, which closes the
// connection, if the payload is not what Encode makes.
func (*MsgPack) Decode(client *arpc.Client, msg *arpc.Message) *arpc.Message {
	b := msg.Buffer
	at := arpc.HeadLen + msg.MethodLen()
	var p payload
	err := errHeader
	if at <= len(b) {
		err = codec.MessagePack{}.Unmarshal(b[at:], &p)
	}
	if err != nil {
		log.Warn("arpc: bad frame of %d bytes from %s: %v", len(b), coder.Peer(client), err)
		return nil
	}
	frame := append(make([]byte, 0, at+len(p.Body)), b[:at]...)
	m := coder.Replace(msg, append(frame, p.Body...))
	for k, v := range p.Values {
		m.Set(k, v)
	}
	return m
}
