package codec

import "encoding/json"

// StdJSON is JSON by the standard library's encoding/json.
type StdJSON struct{}

// Marshal implements Codec.
func (StdJSON) Marshal(v any) ([]byte, error) {
	return json.Marshal(v)
}

// Unmarshal implements Codec.
func (StdJSON) Unmarshal(data []byte, v any) error {
	return json.Unmarshal(data, v)
}

// Name returns "json", the name by which peers know the codec.
func (StdJSON) Name() string { return "json" }
