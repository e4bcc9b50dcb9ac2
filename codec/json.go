package codec

// Everything that knows json-iterator is in this file. That library is
// archived; to leave it, make JSONCodec a struct that embeds StdJSON and drop
// the rest of the file.

import (
	"bytes"
	"errors"

	jsoniter "github.com/json-iterator/go"
)

// jsonAPI is the configuration that agrees with encoding/json.
var jsonAPI = jsoniter.Config{
	EscapeHTML:             true,
	SortMapKeys:            true,
	ValidateJsonRawMessage: true,
}.Froze()

// JSONCodec is JSON on json-iterator in its standard-compatible configuration,
// several times faster at decoding than encoding/json. Use StdJSON where one
// of these differences matters:
//
//   - the tag option omitzero (Go 1.24) has no effect
//   - malformed documents: some are accepted that encoding/json refuses, such
//     as raw control characters in strings, a plus sign before a number, or a
//     zero byte and anything after it behind the document
//   - invalid UTF-8 in a decoded string is kept instead of being replaced
//   - a number outside the range of float64 in a field that is skipped is an
//     error
//   - null decodes into a json.RawMessage as nil, and an invalid
//     json.RawMessage is encoded as null
//   - documents nest 1,000 levels deep at most, not 10,000
//   - exponents below ten are written with two digits (1e-07), and the output
//     of a value's own MarshalJSON is not compacted
//   - a value that contains itself ends the program instead of giving an error
type JSONCodec struct{}

// Marshal implements Codec.
func (JSONCodec) Marshal(v any) ([]byte, error) {
	return jsonAPI.Marshal(v)
}

// AppendMarshal implements AppendMarshaler.
func (JSONCodec) AppendMarshal(dst []byte, v any) ([]byte, error) {
	stream := jsonAPI.BorrowStream(nil)
	// The stream's own buffer goes back to the pool with it; dst never does.
	own := stream.Buffer()
	stream.SetBuffer(dst)
	// Without defer: a stream that a panicking MarshalJSON left behind is not
	// fit for the pool.
	stream.WriteVal(v)
	out, err := stream.Buffer(), stream.Error
	stream.SetBuffer(own)
	jsonAPI.ReturnStream(stream)
	if err != nil {
		return dst, err
	}
	return out, nil
}

// Unmarshal implements Codec.
func (JSONCodec) Unmarshal(data []byte, v any) error {
	if tooDeep(data) {
		return errTooDeep
	}
	return jsonAPI.Unmarshal(data, v)
}

// maxJSONDepth bounds how deep a document may nest. json-iterator has a limit
// for some targets only (a slice of itself recurses until the stack ends), and
// its errors take time in the square of the depth: ten thousand levels in fifty
// kilobytes cost a second.
const maxJSONDepth = 1000

var errTooDeep = errors.New("codec: JSON nests too deep")

// tooDeep reports whether data opens more than maxJSONDepth levels at a time.
// Documents with few brackets, nearly all, are let through without a look at
// their structure.
func tooDeep(data []byte) bool {
	if len(data) <= maxJSONDepth ||
		bytes.Count(data, []byte{'['})+bytes.Count(data, []byte{'{'}) <= maxJSONDepth {
		return false
	}
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString:
			switch c {
			case '\\':
				i++
			case '"':
				inString = false
			}
		case c == '"':
			inString = true
		case c == '[' || c == '{':
			if depth++; depth > maxJSONDepth {
				return true
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return false
}

// Name returns "json", the name by which peers know the codec.
func (JSONCodec) Name() string { return "json" }
