package codec

import (
	"encoding"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
)

// ErrNotBinary is in the chain of the error that Raw gives for a value that has
// no binary form of its own. The error's text names the type.
var ErrNotBinary = errors.New("codec: no binary form")

// Raw sends the binary form that values have of their own: a proto.Message, an
// encoding.BinaryAppender or an encoding.BinaryMarshaler; the target is a
// proto.Message or an encoding.BinaryUnmarshaler. Other values are refused with
// ErrNotBinary, except the bytes, texts and errors that AppendValue and Decode
// send raw before any codec sees them.
//
// No other codec takes this short cut for the whole payload: time.Time, url.URL
// and many more have a binary form, and are JSON texts to a peer that was told
// JSON.
//
// An empty payload is a valid binary form of some types, so Unmarshal passes it
// on. UnmarshalBinary must copy what it keeps, as its documentation asks.
type Raw struct{}

// Name returns "raw", the name by which peers know the codec.
func (Raw) Name() string { return "raw" }

// Marshal implements Codec.
func (r Raw) Marshal(v any) ([]byte, error) { return r.AppendMarshal(nil, v) }

// AppendMarshal implements AppendMarshaler.
func (Raw) AppendMarshal(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case proto.Message:
		return proto.MarshalOptions{}.MarshalAppend(dst, v)
	case encoding.BinaryAppender:
		return v.AppendBinary(dst)
	case encoding.BinaryMarshaler:
		data, err := v.MarshalBinary()
		if err != nil {
			return dst, err
		}
		return append(dst, data...), nil
	}
	return dst, fmt.Errorf("%w: %T", ErrNotBinary, v)
}

// Unmarshal implements Codec.
func (Raw) Unmarshal(data []byte, v any) error {
	switch v := v.(type) {
	case proto.Message:
		return proto.Unmarshal(data, v)
	case encoding.BinaryUnmarshaler:
		return v.UnmarshalBinary(data)
	}
	return fmt.Errorf("%w: %T", ErrNotBinary, v)
}
