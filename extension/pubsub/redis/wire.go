package redis

import (
	"encoding/binary"
	"errors"
	"strconv"
	"strings"

	"github.com/arpc-go/arpc/extension/pubsub"
)

// What is published on a channel begins with a byte that says what it is, and a line of text that the scripts can write.
//
//	m, o   epoch offset milliseconds life \n record             a message, a message to one
//	r      milliseconds life refused pool-length \n pool record a message that the nodes refused, with commas between, have not taken
//	+, -   id-length \n id info                                 a member has come, has gone
//
// A record is the message without topic and position: its ID:16, timestamp:8 in nanoseconds since 1970, key with its length before it
// as a varint, data. It is what a history keeps.
const (
	kindMessage = 'm'
	kindToOne   = 'o'
	kindRefused = 'r'
	kindJoined  = '+'
	kindLeft    = '-'
)

// idLen is the length of the ID of a message: the node that has published it, and a number.
const idLen = 16

var errMalformed = errors.New("redis: malformed message")

// envelope is what comes by a channel.
type envelope struct {
	kind    byte
	message *pubsub.Message
	member  pubsub.Member

	// For those that one server is to get.
	id      string
	record  string
	at      int64  // when it was published, in milliseconds by Redis' clock
	life    string // of the server then
	refused []string
	pool    string
	arrival uint64 // unique in this process
}

// encodeRecord encodes a message without its topic and position.
func encodeRecord(id [idLen]byte, m *pubsub.Message) []byte {
	b := make([]byte, 0, idLen+8+binary.MaxVarintLen32+len(m.Key)+len(m.Data))
	b = append(b, id[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Timestamp))
	b = binary.AppendUvarint(b, uint64(len(m.Key)))
	b = append(b, m.Key...)
	return append(b, m.Data...)
}

// decodeRecord decodes a message of a topic.
func decodeRecord(topic, s string) (id string, m *pubsub.Message, err error) {
	if len(s) < idLen+8+1 {
		return "", nil, errMalformed
	}
	id, s = s[:idLen], s[idLen:]
	m = &pubsub.Message{Topic: topic, Timestamp: int64(binary.LittleEndian.Uint64([]byte(s[:8])))}
	s = s[8:]
	n, size := binary.Uvarint([]byte(s[:min(len(s), binary.MaxVarintLen64)]))
	if size <= 0 || n > uint64(len(s)-size) {
		return "", nil, errMalformed
	}
	m.Key, m.Data = s[size:size+int(n)], []byte(s[size+int(n):])
	return id, m, nil
}

// encodeRefused encodes what offers a message to the servers that have not refused it.
func encodeRefused(e *envelope) string {
	return string(kindRefused) + strconv.FormatInt(e.at, 10) + " " + e.life + " " + strings.Join(e.refused, ",") + " " +
		strconv.Itoa(len(e.pool)) + "\n" + e.pool + e.record
}

// encodeMember encodes that a member has come or gone.
func encodeMember(kind byte, m pubsub.Member) string {
	return string(kind) + strconv.Itoa(len(m.ID)) + "\n" + m.ID + string(m.Info)
}

// decode decodes what came by the channel of a topic.
func decode(topic, payload string) (*envelope, error) {
	line, rest, ok := strings.Cut(payload, "\n")
	if !ok || line == "" {
		return nil, errMalformed
	}
	e := &envelope{kind: line[0]}
	fields := strings.Split(line[1:], " ")
	number := func(i int) int64 {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil || n < 0 || n >= 1<<53 {
			ok = false
		}
		return n
	}
	var position pubsub.Position
	switch {
	case (e.kind == kindMessage || e.kind == kindToOne) && len(fields) == 4:
		position = pubsub.Position{Epoch: uint64(number(0)), Offset: uint64(number(1))}
		e.at, e.life = number(2), fields[3]
	case e.kind == kindRefused && len(fields) == 4:
		e.at, e.life, e.refused = number(0), fields[1], strings.Split(fields[2], ",")
		n := number(3)
		if !ok || n > int64(len(rest)) {
			return nil, errMalformed
		}
		e.pool, rest = rest[:n], rest[n:]
	case (e.kind == kindJoined || e.kind == kindLeft) && len(fields) == 1:
		n := number(0)
		if !ok || n > int64(len(rest)) {
			return nil, errMalformed
		}
		e.member = pubsub.Member{ID: rest[:n], Info: []byte(rest[n:])}
		return e, nil
	default:
		return nil, errMalformed
	}
	if !ok {
		return nil, errMalformed
	}
	var err error
	if e.id, e.message, err = decodeRecord(topic, rest); err != nil {
		return nil, err
	}
	e.record = rest
	e.message.Position = position
	// A message to one that was refused is one still; those of groups are not.
	e.message.ToOne = e.kind == kindToOne || e.kind == kindRefused && e.pool == onePool(topic)
	return e, nil
}
