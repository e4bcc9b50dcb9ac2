package pubsub

import (
	"encoding/binary"
	"encoding/json"

	"github.com/arpc-go/arpc"
)

// Methods of the format of docs/pubsub.md. The first five are requests of clients.
const (
	methodSub     = "ps.sub"
	methodUnsub   = "ps.unsub"
	methodPub     = "ps.pub"
	methodHistory = "ps.history"
	methodMembers = "ps.members"
	methodEvent   = "ps.event" // notification of the server
)

// Kinds of events.
const (
	eventMessage     byte = 1
	eventStart       byte = 2
	eventLost        byte = 3
	eventJoined      byte = 4
	eventLeft        byte = 5
	eventInterrupted byte = 6
	eventAgain       byte = 7
	eventEnded       byte = 8
)

// Flags of events.
const (
	flagTopic     byte = 1 << iota // the topic stands there, as the subscription is not of one topic
	flagKey                        // a key stands there
	flagPosition                   // a position stands there
	flagRecovered                  // of eventStart: nothing is missing
	flagToOne                      // nobody else gets the message
	flagFollows                    // the message before it has the offset less one
	flagBefore                     // the offset of the message before it stands there
)

// eventHead is the length of what all events begin with.
const eventHead = 10

// subscribeRequest is the body of methodSub, JSON.
type subscribeRequest struct {
	Topic string `json:"topic"`
	// Token is what the client calls the subscription; a second one of the connection with the same token replaces the first.
	Token    uint32          `json:"token"`
	Group    string          `json:"group,omitempty"`
	From     *Position       `json:"from,omitempty"`
	Last     int             `json:"last,omitempty"` // begin with that many messages of the history
	Overflow string          `json:"overflow,omitempty"`
	Queue    int             `json:"queue,omitempty"`
	Presence bool            `json:"presence,omitempty"` // wants to know who comes and goes
	Join     bool            `json:"join,omitempty"`
	Info     json.RawMessage `json:"info,omitempty"`
}

// subscribeReply answers it, JSON.
type subscribeReply struct {
	Position
	Recovered bool   `json:"recovered,omitempty"`
	Member    string `json:"member,omitempty"`
}

// unsubscribeRequest is the body of methodUnsub, JSON.
type unsubscribeRequest struct {
	Token uint32 `json:"token"`
}

// historyRequest is the body of methodHistory, JSON.
type historyRequest struct {
	Topic string    `json:"topic"`
	From  *Position `json:"from,omitempty"`
	Limit int       `json:"limit,omitempty"`
}

// membersRequest is the body of methodMembers, JSON; its answer is a list of wireMembers.
type membersRequest struct {
	Topic string `json:"topic"`
}

type wireMember struct {
	ID   string          `json:"id"`
	Info json.RawMessage `json:"info,omitempty"`
}

func errMalformed(what string) *arpc.Error {
	return &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "malformed " + what}
}

// event begins a notification frame with a kind and what it is about.
func event(kind, flags byte, id uint64, room int) []byte {
	b := make([]byte, arpc.HeadLen+len(methodEvent), arpc.HeadLen+len(methodEvent)+eventHead+room)
	b[5], b[7] = arpc.CmdNotify, byte(len(methodEvent))
	copy(b[arpc.HeadLen:], methodEvent)
	b = append(b, kind, flags)
	return binary.LittleEndian.AppendUint64(b, id)
}

// frame makes a finished frame a message.
func frame(b []byte) *arpc.Message {
	binary.LittleEndian.PutUint32(b, uint32(len(b)-arpc.HeadLen))
	return &arpc.Message{Buffer: b}
}

// recordFrame is a message in the format of the original arpc.
func recordFrame(m *Message) *arpc.Message {
	n := arpc.HeadLen + len(methodPublish)
	b := make([]byte, n, n+len(m.Data)+len(m.Topic)+recordTail)
	b[5], b[7] = arpc.CmdNotify, byte(len(methodPublish))
	copy(b[arpc.HeadLen:], methodPublish)
	return frame(appendRecord(append(b, m.Data...), m.Topic, m.Timestamp))
}

func (p Position) append(b []byte) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(b, p.Epoch), p.Offset)
}

// messageFrame is a message as an event. before is the position of the one before it in the topic, if that is known.
func messageFrame(m *Message, id uint64, withTopic bool, before Position) *arpc.Message {
	return frame(appendMessage(event(eventMessage, 0, id, 38+len(m.Topic)+len(m.Key)+len(m.Data)), m, withTopic, before))
}

// appendMessage appends a message behind the head of its event, whose flags it sets.
func appendMessage(b []byte, m *Message, withTopic bool, before Position) []byte {
	flags := &b[len(b)-eventHead+1]
	if before.IsZero() || before.Epoch != m.Position.Epoch {
		before = Position{}
	} else if before.Offset == m.Position.Offset-1 {
		*flags |= flagFollows
	} else {
		*flags |= flagBefore
	}
	stands := *flags&flagBefore != 0
	if m.ToOne {
		*flags |= flagToOne
	}
	if !m.Position.IsZero() {
		*flags |= flagPosition
	}
	if withTopic {
		*flags |= flagTopic
	}
	if m.Key != "" {
		*flags |= flagKey
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Timestamp))
	if !m.Position.IsZero() {
		b = m.Position.append(b)
	}
	if stands {
		b = binary.LittleEndian.AppendUint64(b, before.Offset)
	}
	if withTopic {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(m.Topic)))
		b = append(b, m.Topic...)
	}
	if m.Key != "" {
		b = append(append(b, byte(len(m.Key))), m.Key...)
	}
	return append(b, m.Data...)
}

func startFrame(id uint64, token uint32, recovered bool, p Position) *arpc.Message {
	var flags byte
	if recovered {
		flags |= flagRecovered
	}
	if !p.IsZero() {
		flags |= flagPosition
	}
	b := binary.LittleEndian.AppendUint32(event(eventStart, flags, id, 20), token)
	if !p.IsZero() {
		b = p.append(b)
	}
	return frame(b)
}

// lostFrame is for one subscription, which its token names: others of the same topic have lost nothing.
func lostFrame(token uint32, n uint64) *arpc.Message {
	return frame(binary.LittleEndian.AppendUint64(event(eventLost, 0, uint64(token), 8), n))
}

func presenceFrame(id uint64, topic string, m Member, joined bool) *arpc.Message {
	kind := eventLeft
	if joined {
		kind = eventJoined
	}
	b := event(kind, 0, id, 3+len(topic)+len(m.ID)+len(m.Info))
	b = append(binary.LittleEndian.AppendUint16(b, uint16(len(topic))), topic...)
	b = append(append(b, byte(len(m.ID))), m.ID...)
	return frame(append(b, m.Info...))
}

// textFrame is an event with a reason or nothing.
func textFrame(kind byte, id uint64, text string) *arpc.Message {
	return frame(append(event(kind, 0, id, len(text)), text...))
}

// endedFrame says that a subscription is over; its token names it.
func endedFrame(token uint32, err error) *arpc.Message {
	return frame(append(append(event(eventEnded, 0, uint64(token), 64), byte(arpc.CodeOf(err))), err.Error()...))
}

// wireEvent is a received event.
type wireEvent struct {
	kind, flags byte
	id          uint64 // of the server's topic; of eventLost and eventEnded the token
	token       uint32
	position    Position
	message     *Message
	before      Position // of the message before it, if that is known
	member      Member
	topic       string
	count       uint64
	code        arpc.Code
	text        string
}

// reader takes fields from the front of bytes that may be cut short.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) byte() byte {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() int {
	if p := r.take(2); p != nil {
		return int(binary.LittleEndian.Uint16(p))
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (r *reader) position() Position { return Position{r.u64(), r.u64()} }

// message reads what appendMessage has written.
func (r *reader) message(flags byte) (m *Message, before Position) {
	m = &Message{ToOne: flags&flagToOne != 0, Timestamp: int64(r.u64())}
	if flags&flagPosition != 0 {
		m.Position = r.position()
		switch {
		case flags&flagBefore != 0:
			before = Position{m.Position.Epoch, r.u64()}
		case flags&flagFollows != 0 && m.Position.Offset > 0:
			before = Position{m.Position.Epoch, m.Position.Offset - 1}
		}
	}
	if flags&flagTopic != 0 {
		m.Topic = string(r.take(r.u16()))
	}
	if flags&flagKey != 0 {
		m.Key = string(r.take(int(r.byte())))
	}
	m.Data = append([]byte{}, r.b...)
	return m, before
}

// parseEvent decodes an event; nothing of b is kept. Kinds that it does not know are no error.
func parseEvent(b []byte) (wireEvent, error) {
	r := reader{b: b}
	e := wireEvent{kind: r.byte(), flags: r.byte(), id: r.u64()}
	switch e.kind {
	case eventMessage:
		e.message, e.before = r.message(e.flags)
	case eventStart:
		e.token = r.u32()
		if e.flags&flagPosition != 0 {
			e.position = r.position()
		}
	case eventLost:
		e.count = r.u64()
	case eventJoined, eventLeft:
		e.topic = string(r.take(r.u16()))
		e.member.ID = string(r.take(int(r.byte())))
		e.member.Info = append([]byte(nil), r.b...)
	case eventEnded:
		e.code = arpc.Code(r.byte())
		e.text = string(r.b)
	case eventInterrupted:
		e.text = string(r.b)
	}
	if r.bad {
		return e, errMalformed("event")
	}
	return e, nil
}

// Flags of publications.
const (
	pubKey byte = 1 << iota
	pubID
	pubToOne
)

// publication is the body of methodPub.
type publication struct {
	topic, key, id string
	toOne          bool
	data           []byte
}

var errTooLong = &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "a key and an ID have at most 255 bytes"}

func (p *publication) append(b []byte) ([]byte, error) {
	switch {
	case len(p.topic) > MaxTopicNameLen:
		return nil, ErrInvalidTopicNameLength
	case len(p.key) > 255 || len(p.id) > 255:
		return nil, errTooLong
	}
	var flags byte
	if p.key != "" {
		flags |= pubKey
	}
	if p.id != "" {
		flags |= pubID
	}
	if p.toOne {
		flags |= pubToOne
	}
	b = append(b, flags)
	b = append(binary.LittleEndian.AppendUint16(b, uint16(len(p.topic))), p.topic...)
	if p.key != "" {
		b = append(append(b, byte(len(p.key))), p.key...)
	}
	if p.id != "" {
		b = append(append(b, byte(len(p.id))), p.id...)
	}
	return append(b, p.data...), nil
}

// parsePublication decodes a publication, whose data is a part of b.
func parsePublication(b []byte) (publication, error) {
	r := reader{b: b}
	flags := r.byte()
	p := publication{topic: string(r.take(r.u16())), toOne: flags&pubToOne != 0}
	if flags&pubKey != 0 {
		p.key = string(r.take(int(r.byte())))
	}
	if flags&pubID != 0 {
		p.id = string(r.take(int(r.byte())))
	}
	p.data = r.b
	if r.bad {
		return p, errMalformed("publication")
	}
	return p, nil
}

// append appends a receipt: nothing for one that says nothing.
func (r Receipt) append(b []byte) []byte {
	if r == (Receipt{}) {
		return b
	}
	var dup byte
	if r.Duplicate {
		dup = 1
	}
	return append(r.Position.append(b), dup)
}

func parseReceipt(b []byte) (Receipt, error) {
	if len(b) == 0 {
		return Receipt{}, nil
	}
	r := reader{b: b}
	rc := Receipt{Position: r.position(), Duplicate: r.byte() != 0}
	if r.bad {
		return Receipt{}, errMalformed("receipt")
	}
	return rc, nil
}

// append appends a page: top, complete, and each message behind its length as an event of all fields.
func (p *Page) append(b []byte) []byte {
	var complete byte
	if p.Complete {
		complete = 1
	}
	b = append(p.Top.append(b), complete)
	for _, m := range p.Messages {
		at := len(b)
		b = append(b, 0, 0, 0, 0, eventMessage, 0)
		b = binary.LittleEndian.AppendUint64(b, 0)
		b = appendMessage(b, m, true, Position{})
		binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	}
	return b
}

func parsePage(b []byte) (Page, error) {
	r := reader{b: b}
	p := Page{Top: r.position(), Complete: r.byte() != 0}
	for len(r.b) > 0 && !r.bad {
		n := r.u32()
		if uint64(n) > uint64(len(r.b)) {
			r.bad = true
			break
		}
		e, err := parseEvent(r.take(int(n)))
		if err != nil || e.message == nil {
			r.bad = true
			break
		}
		p.Messages = append(p.Messages, e.message)
	}
	if r.bad {
		return Page{}, errMalformed("history")
	}
	return p, nil
}
