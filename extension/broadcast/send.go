package broadcast

import (
	"math"
	"reflect"
	"slices"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
)

var errTooLarge = &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "the message is longer than the limit"}

// Send notifies the members, but for those in except, and returns how many there are. v is sent raw if it is a []byte or a string,
// not at all if it is nil, otherwise encoded, once, by the members' Codec; where members have different Codecs, once by each, and by
// one that cannot be compared for each member. It does not wait for members. A room without members is not an error. The error is
// arpc.ErrInvalidMethod, CodeInvalidArgument for what is longer than Limits.Message, the Codec's, or CodeResourceExhausted when
// OnRefused has not returned for too long; nobody gets the message then.
func (r Room) Send(method string, v any, except ...*arpc.Client) (int, error) {
	if method == "" || len(method) > arpc.MaxMethodLen {
		return 0, arpc.ErrInvalidMethod
	}
	seats, out := r.hub.outbox(r.key)
	if len(seats) == 0 {
		return 0, nil
	}
	// All is encoded before anything is sent, so that an error is everybody's.
	first := seats[0].member.client.Codec
	m, err := r.hub.message(method, first, v)
	if err != nil {
		return 0, err
	}
	if isRaw(v) || !slices.ContainsFunc(seats, func(s *seat) bool { return !sameCodec(s.member.client.Codec, first) }) {
		return r.put(out, delivery{seats: seats, message: m, except: except})
	}
	each := make([]*arpc.Message, len(seats))
	known := []encoded{{first, m}}
	for i, s := range seats {
		cc := s.member.client.Codec
		if k := slices.IndexFunc(known, func(e encoded) bool { return sameCodec(e.codec, cc) }); k >= 0 {
			each[i] = known[k].message
			continue
		}
		if each[i], err = r.hub.message(method, cc, v); err != nil {
			return 0, err
		}
		if len(known) < maxCodecs {
			known = append(known, encoded{cc, each[i]})
		}
	}
	return r.put(out, delivery{seats: seats, each: each, except: except})
}

// put sends a delivery on its way, and returns to how many.
func (r Room) put(out *outbox, d delivery) (int, error) {
	d.except = slices.Clone(d.except) // the caller may use it again
	n := len(d.seats)
	for _, c := range d.except {
		if r.Has(c) {
			n--
		}
	}
	if err := out.put(d); err != nil {
		return 0, err
	}
	return n, nil
}

// maxCodecs is how many encodings of a value are remembered, so that Codecs that cannot be compared do not make this quadratic.
const maxCodecs = 8

// Push is Send of a message that Server.NewMessage or Client.NewMessage has made, for what Send cannot do: one message for
// several rooms, or one with values for coders. All members get the same bytes, whatever their Codec. A nil message is
// nobody's.
func (r Room) Push(m *arpc.Message, except ...*arpc.Client) (int, error) {
	if m == nil || len(m.Buffer) < arpc.HeadLen {
		return 0, nil
	}
	seats, out := r.hub.outbox(r.key)
	if len(seats) == 0 {
		return 0, nil
	}
	return r.put(out, delivery{seats: seats, message: m, except: except})
}

// message encodes a notification.
func (h *Hub) message(method string, cc codec.Codec, v any) (*arpc.Message, error) {
	size := 256
	switch v := v.(type) {
	case []byte:
		size = len(v)
	case string:
		size = len(v)
	}
	b := append(make([]byte, arpc.HeadLen, arpc.HeadLen+len(method)+size), method...)
	b, err := codec.AppendValue(b, cc, v)
	if err != nil {
		return nil, err
	}
	if n := len(b) - arpc.HeadLen; n > h.config.limits.Message || uint64(n) > math.MaxUint32 {
		return nil, errTooLarge
	}
	m := &arpc.Message{Buffer: b}
	m.SetBodyLen(len(b) - arpc.HeadLen)
	m.SetCmd(arpc.CmdNotify)
	m.SetMethodLen(len(method))
	m.SetSeq(h.seq.Add(1))
	return m, nil
}

// encoded is a message as one Codec encodes it.
type encoded struct {
	codec   codec.Codec
	message *arpc.Message
}

// isRaw reports whether no Codec has anything to do with v.
func isRaw(v any) bool {
	switch v.(type) {
	case nil, []byte, string:
		return true
	}
	return false
}

// sameCodec reports whether two Codecs encode alike. A Codec need not be comparable, those of one type that are not may differ
// in anything.
func sameCodec(a, b codec.Codec) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	if reflect.TypeOf(a) != reflect.TypeOf(b) {
		return false
	}
	return reflect.ValueOf(a).Comparable() && a == b
}
