package broadcast

import (
	"math"
	"reflect"
	"slices"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/codec"
)

// SendResult says what became of a message.
type SendResult struct {
	// Sent is the number of members for which it was accepted: it is in their send queues.
	Sent int
	// Refused is the number of members that do not get it, see OnRefused.
	Refused int
}

var errTooLarge = &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "the message is longer than the limit"}

// Send notifies the members, but for those in except. v is sent raw if it is a []byte or a string, not at all if it is nil,
// otherwise encoded, once, by the members' Codec; where members have different Codecs, once by each, and by one that cannot be
// compared for each member. It never waits. A room without members is not an error. The error is arpc.ErrInvalidMethod,
// CodeInvalidArgument for what is longer than Limits.Message, or the Codec's; nobody gets the message then.
func (r Room) Send(method string, v any, except ...*arpc.Client) (SendResult, error) {
	if method == "" || len(method) > arpc.MaxMethodLen {
		return SendResult{}, arpc.ErrInvalidMethod
	}
	seats := r.hub.lend(r.key)
	if len(seats) == 0 {
		return SendResult{}, nil
	}
	// All is encoded before anything is sent, so that an error is everybody's.
	first := seats[0].member.client.Codec
	m, err := r.hub.message(method, first, v)
	if err != nil {
		return SendResult{}, err
	}
	d := delivery{room: r, except: except}
	if isRaw(v) {
		d.run(seats, m)
		return d.end(), nil
	}
	i := slices.IndexFunc(seats, func(s *seat) bool { return !sameCodec(s.member.client.Codec, first) })
	if i < 0 {
		d.run(seats, m)
		return d.end(), nil
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
			return SendResult{}, err
		}
		if len(known) < maxCodecs {
			known = append(known, encoded{cc, each[i]})
		}
	}
	for i := range seats {
		d.run(seats[i:i+1], each[i])
	}
	return d.end(), nil
}

// maxCodecs is how many encodings of a value are remembered, so that Codecs that cannot be compared do not make this quadratic.
const maxCodecs = 8

// Push is Send of a message that Server.NewMessage or Client.NewMessage has made, for what Send cannot do: one message for
// several rooms, or one with values for coders. All members get the same bytes, whatever their Codec. A nil message is
// nobody's.
func (r Room) Push(m *arpc.Message, except ...*arpc.Client) SendResult {
	if m == nil || len(m.Buffer) < arpc.HeadLen {
		return SendResult{}
	}
	d := delivery{room: r, except: except}
	d.run(r.hub.lend(r.key), m)
	return d.end()
}

// delivery is one message on its way to the members of a room.
type delivery struct {
	room   Room
	except []*arpc.Client
	result SendResult
	flush  []*arpc.Client // nobody else writes what they have got
}

func (d *delivery) run(seats []*seat, m *arpc.Message) {
	for _, s := range seats {
		c := s.member.client
		if len(d.except) > 0 && slices.Contains(d.except, c) {
			continue
		}
		flush, err := c.PushLater(m)
		if err != nil {
			d.refused(s.member, err)
			continue
		}
		if flush {
			d.flush = append(d.flush, c)
		}
		d.result.Sent++
	}
}

func (d *delivery) refused(m *member, err error) {
	d.result.Refused++
	h := d.room.hub
	if isStopped(err) {
		h.end(m) // its end is on its way here; nobody needs to run into it again
	}
	if f := h.config.refused; f != nil {
		f(d.room, m.client, err)
	}
}

// end counts, and has what was sent written.
func (d *delivery) end() SendResult {
	d.room.hub.flusher.add(d.flush)
	d.room.hub.sent.Add(int64(d.result.Sent))
	if d.result.Refused > 0 {
		d.room.hub.refused.Add(int64(d.result.Refused))
	}
	return d.result
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
