package pubsub

import (
	"encoding/binary"
	"time"

	"github.com/arpc-go/arpc"
)

// MaxTopicNameLen is the longest name of a topic in bytes.
const MaxTopicNameLen = 1024

// Methods of the original arpc's format.
const (
	methodAuth      = "in_A"
	methodSubscribe = "in_S"
	methodCancel    = "in_U"
	methodPublish   = "in_P" // to the server; and to clients, as a notification
	methodToOne     = "in_P1"
)

// Errors. Their texts are those of the original arpc where that has such an error, as old peers know nothing else.
var (
	// ErrInvalidPassword answers Authenticate with a wrong password.
	ErrInvalidPassword = &arpc.Error{Code: arpc.CodeUnauthenticated, Message: "invalid password"}
	// ErrNotAuthenticated answers everything else while the server has a password that the client has not told.
	ErrNotAuthenticated = &arpc.Error{Code: arpc.CodeUnauthenticated, Message: "not authenticated: the server wants a password"}
	// ErrInvalidTopicEmpty refuses a topic without a name.
	ErrInvalidTopicEmpty = &arpc.Error{Code: arpc.CodeInvalidArgument, Message: `invalid topic, should not be ""`}
	// ErrInvalidTopicBytes refuses a record that is cut short.
	ErrInvalidTopicBytes = &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "invalid topic bytes, should be more than 10 bytes"}
	// ErrInvalidTopicNameLength refuses a name of more than MaxTopicNameLen bytes.
	ErrInvalidTopicNameLength = &arpc.Error{Code: arpc.CodeInvalidArgument, Message: "invalid topic name length, should not be more than 1024"}
)

// textError gives back the codes of the errors that an old server sends as texts.
func textError(err error) error {
	e, ok := err.(*arpc.Error)
	if !ok || !e.Remote || e.Code != arpc.CodeUnknown {
		return err
	}
	for _, known := range []*arpc.Error{ErrInvalidPassword, ErrInvalidTopicEmpty, ErrInvalidTopicBytes, ErrInvalidTopicNameLength} {
		if e.Message == known.Message {
			return &arpc.Error{Code: known.Code, Message: e.Message, Remote: true}
		}
	}
	return err
}

// A Topic is a message as the original arpc has it: what was published under which name, and when.
type Topic struct {
	// Name is the topic's.
	Name string
	// Data is the value as published: raw bytes and strings as they are, others encoded by the publisher's Codec.
	Data []byte
	// Timestamp is when it was published, by the publisher's clock, in nanoseconds since 1970.
	Timestamp int64
}

// A TopicHandler gets the messages of a topic.
type TopicHandler = func(*Topic)

// recordTail is the length of what follows the name in a topic record.
const recordTail = 10

func checkName(name string) error {
	switch {
	case name == "":
		return ErrInvalidTopicEmpty
	case len(name) > MaxTopicNameLen:
		return ErrInvalidTopicNameLength
	}
	return nil
}

// appendRecord appends name and time behind the data of a topic record.
func appendRecord(data []byte, name string, timestamp int64) []byte {
	data = append(data, name...)
	data = binary.LittleEndian.AppendUint16(data, uint16(len(name)))
	return binary.LittleEndian.AppendUint64(data, uint64(timestamp))
}

// parseRecord decodes a topic record. The Topic's Data is a part of b.
func parseRecord(b []byte) (Topic, error) {
	if len(b) < recordTail {
		return Topic{}, ErrInvalidTopicBytes
	}
	tail := b[len(b)-recordTail:]
	n := int(binary.LittleEndian.Uint16(tail))
	b = b[:len(b)-recordTail]
	switch {
	case n == 0:
		return Topic{}, ErrInvalidTopicEmpty
	case n > MaxTopicNameLen:
		return Topic{}, ErrInvalidTopicNameLength
	case n > len(b):
		return Topic{}, ErrInvalidTopicBytes
	}
	return Topic{
		Name:      string(b[len(b)-n:]),
		Data:      b[: len(b)-n : len(b)-n],
		Timestamp: int64(binary.LittleEndian.Uint64(tail[2:])),
	}, nil
}

func now() int64 { return time.Now().UnixNano() }
