package codec

// AppendValue appends the payload that represents v to dst and returns the
// extended slice:
//
//   - nil, and a nil *[]byte, *string or *error: nothing
//   - []byte, string, error, and pointers to them: the bytes as they are, of
//     an error its text
//   - anything else: what c makes of it; a nil pointer of another type is a
//     value like any other to c (null in JSON)
//
// The bytes are copied: dst does not alias v afterwards. A nil c means
// DefaultCodec. If the codec fails, dst is returned as it was.
func AppendValue(dst []byte, c Codec, v any) ([]byte, error) {
	switch x := v.(type) {
	case nil:
		return dst, nil
	case []byte:
		return append(dst, x...), nil
	case string:
		return append(dst, x...), nil
	case *[]byte:
		if x == nil {
			return dst, nil
		}
		return append(dst, *x...), nil
	case *string:
		if x == nil {
			return dst, nil
		}
		return append(dst, *x...), nil
	case error:
		return append(dst, x.Error()...), nil
	case *error:
		if x == nil || *x == nil {
			return dst, nil
		}
		return append(dst, (*x).Error()...), nil
	}
	if c == nil {
		c = DefaultCodec
	}
	if a, ok := c.(AppendMarshaler); ok {
		out, err := a.AppendMarshal(dst, v)
		if err != nil {
			return dst, err
		}
		return out, nil
	}
	data, err := c.Marshal(v)
	if err != nil {
		return dst, err
	}
	return append(dst, data...), nil
}

// Decode stores the payload data in v, the inverse of AppendValue:
//
//   - a nil v, and a nil *[]byte or *string: data is ignored
//   - *[]byte: a copy of data, never nil
//   - *string: data as a string
//   - anything else: c decodes data into v; an empty payload is then an error
//     with most codecs
//
// What v holds afterwards does not alias data, so the caller may reuse data as
// soon as Decode returns. A nil c means DefaultCodec.
func Decode(c Codec, data []byte, v any) error {
	switch x := v.(type) {
	case nil:
		return nil
	case *[]byte:
		if x != nil {
			*x = append([]byte{}, data...)
		}
		return nil
	case *string:
		if x != nil {
			*x = string(data)
		}
		return nil
	}
	if c == nil {
		c = DefaultCodec
	}
	return c.Unmarshal(data, v)
}
