package codec

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
)

// ErrNotProto is in the chain of the error that Protobuf gives for a value
// that is not a proto.Message. The error's text names the type.
var ErrNotProto = errors.New("codec: not a proto.Message")

// Protobuf is the binary Protocol Buffers encoding of values that implement
// proto.Message. Other values are refused with ErrNotProto.
type Protobuf struct{}

// Marshal implements Codec.
func (p Protobuf) Marshal(v any) ([]byte, error) {
	return p.AppendMarshal(nil, v)
}

// AppendMarshal implements AppendMarshaler.
func (Protobuf) AppendMarshal(dst []byte, v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return dst, notProto(v)
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, m)
}

// Unmarshal implements Codec. It replaces what v held before.
func (Protobuf) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return notProto(v)
	}
	return proto.Unmarshal(data, m)
}

func notProto(v any) error {
	return fmt.Errorf("%w: %T", ErrNotProto, v)
}

// Name returns "protobuf", the name by which peers know the codec.
func (Protobuf) Name() string { return "protobuf" }
