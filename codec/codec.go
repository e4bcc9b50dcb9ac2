package codec

// Codec encodes and decodes the values that are not sent raw. Its methods are
// called from many goroutines at once.
type Codec interface {
	// Marshal returns the encoding of v in memory that the caller then owns.
	Marshal(v any) ([]byte, error)
	// Unmarshal decodes data into v, a non-nil pointer. It must not keep data
	// or any part of it.
	Unmarshal(data []byte, v any) error
}

// AppendMarshaler is what a Codec may implement besides to save a copy: the
// encoding of v goes to the end of dst, which has been allocated already.
type AppendMarshaler interface {
	// AppendMarshal appends the encoding of v to dst and returns the extended
	// slice. If it fails the returned slice is ignored, but nothing before
	// len(dst) may have changed.
	AppendMarshal(dst []byte, v any) ([]byte, error)
}

// DefaultCodec is the codec of clients and servers that are made without one
// of their own. It is read when they are made; changing it later does not
// reach them. It is not protected against concurrent use: set it at the start
// of the program.
var DefaultCodec Codec = JSONCodec{}

// SetCodec makes c the DefaultCodec. It panics if c is nil.
func SetCodec(c Codec) {
	if c == nil {
		panic("codec: SetCodec with a nil Codec")
	}
	DefaultCodec = c
}
