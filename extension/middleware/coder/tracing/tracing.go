package tracing

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/arpc-go/arpc/extension/middleware/coder"
)

// Key is the key of the SpanContext among a message's values.
const Key = "arpc-opentracing"

// A SpanContext identifies a span.
type SpanContext struct {
	TraceID uint64
	SpanID  uint64
	Sampled bool
	Baggage map[string]string
}

// New returns the coder. Messages that have no SpanContext are left alone; a
// value under Key that is none fails the call.
func New() *coder.Appender {
	return coder.NewAppender(Key, coder.FlagBitOpenTracing, encode, decode)
}

// Values returns the values to give to a call that is to carry sc.
func Values(sc SpanContext) map[any]any { return map[any]any{Key: sc} }

// From returns the SpanContext that came with a message, false if there was none.
// msg is an *arpc.Context or an *arpc.Message.
func From(msg interface{ Get(key any) (any, bool) }) (SpanContext, bool) {
	v, _ := msg.Get(Key)
	sc, ok := v.(SpanContext)
	return sc, ok
}

// Fields of the message that basic tracer sends.
const (
	fieldTraceID = 1 // fixed64
	fieldSpanID  = 2 // fixed64
	fieldSampled = 3 // bool
	fieldBaggage = 4 // map<string, string>
)

func encode(v any) ([]byte, error) {
	sc, ok := v.(SpanContext)
	if !ok {
		return nil, fmt.Errorf("a %T is not a SpanContext", v)
	}
	var b []byte
	if sc.TraceID != 0 {
		b = protowire.AppendFixed64(protowire.AppendTag(b, fieldTraceID, protowire.Fixed64Type), sc.TraceID)
	}
	if sc.SpanID != 0 {
		b = protowire.AppendFixed64(protowire.AppendTag(b, fieldSpanID, protowire.Fixed64Type), sc.SpanID)
	}
	if sc.Sampled {
		b = protowire.AppendVarint(protowire.AppendTag(b, fieldSampled, protowire.VarintType), 1)
	}
	for _, k := range slices.Sorted(maps.Keys(sc.Baggage)) {
		entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), k)
		entry = protowire.AppendString(protowire.AppendTag(entry, 2, protowire.BytesType), sc.Baggage[k])
		b = protowire.AppendBytes(protowire.AppendTag(b, fieldBaggage, protowire.BytesType), entry)
	}
	return b, nil
}

var errMalformed = errors.New("malformed span context")

func decode(b []byte) (any, error) {
	var sc SpanContext
	err := fields(b, func(num protowire.Number, typ protowire.Type, b []byte) int {
		n := -1
		switch {
		case num == fieldTraceID && typ == protowire.Fixed64Type:
			sc.TraceID, n = protowire.ConsumeFixed64(b)
		case num == fieldSpanID && typ == protowire.Fixed64Type:
			sc.SpanID, n = protowire.ConsumeFixed64(b)
		case num == fieldSampled && typ == protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(b)
			sc.Sampled = v != 0
		case num == fieldBaggage && typ == protowire.BytesType:
			var entry []byte
			if entry, n = protowire.ConsumeBytes(b); n < 0 {
				return n
			}
			k, v, err := pair(entry)
			if err != nil {
				return -1
			}
			if sc.Baggage == nil {
				sc.Baggage = map[string]string{}
			}
			sc.Baggage[k] = v
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		return n
	})
	return sc, err
}

// pair decodes an entry of the baggage.
func pair(b []byte) (k, v string, err error) {
	err = fields(b, func(num protowire.Number, typ protowire.Type, b []byte) (n int) {
		switch {
		case num == 1 && typ == protowire.BytesType:
			k, n = protowire.ConsumeString(b)
		case num == 2 && typ == protowire.BytesType:
			v, n = protowire.ConsumeString(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		return n
	})
	return k, v, err
}

// fields calls f for each field of b. f returns the length of the field's value,
// negative if it makes no sense.
func fields(b []byte, f func(num protowire.Number, typ protowire.Type, b []byte) int) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		if n = f(num, typ, b); n < 0 {
			return errMalformed
		}
		b = b[n:]
	}
	return nil
}
