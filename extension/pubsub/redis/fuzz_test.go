package redis

import (
	"testing"

	"github.com/arpc-go/arpc/extension/pubsub"
)

// FuzzDecode: whatever somebody else publishes on our channels does no harm, and what we encode comes back.
func FuzzDecode(f *testing.F) {
	m := &pubsub.Message{Topic: "t", Data: []byte("data"), Key: "key", Timestamp: 5}
	record := string(encodeRecord([idLen]byte{1}, m))
	f.Add("t", "m1 2 3 abcdef01\n"+record)
	f.Add("t", "o0 0 3 abcdef01\n"+record)
	f.Add("t", encodeRefused(&envelope{at: 1, life: "x", refused: []string{"a", "b"}, pool: onePool("t"), record: record}))
	f.Add("t", encodeMember(kindJoined, pubsub.Member{ID: "1\n", Info: []byte("{}")}))
	f.Add("t", "m-1 2 3 x\n"+record)
	f.Add("", "r1 x y 9999\n")
	f.Fuzz(func(t *testing.T, topic, payload string) {
		e, err := decode(topic, payload)
		if err != nil {
			return
		}
		switch e.kind {
		case kindJoined, kindLeft:
			again, err := decode(topic, encodeMember(e.kind, e.member))
			if err != nil || again.member.ID != e.member.ID || string(again.member.Info) != string(e.member.Info) {
				t.Fatalf("%+v, %v", again, err)
			}
		case kindRefused:
			again, err := decode(topic, encodeRefused(e))
			if err != nil || again.pool != e.pool || again.id != e.id || string(again.message.Data) != string(e.message.Data) {
				t.Fatalf("%+v, %v", again, err)
			}
		case kindMessage, kindToOne:
			id, m, err := decodeRecord(topic, string(encodeRecord([idLen]byte([]byte(e.id)), e.message)))
			if err != nil || id != e.id || m.Key != e.message.Key || string(m.Data) != string(e.message.Data) || m.Timestamp != e.message.Timestamp {
				t.Fatalf("%+v, %v", m, err)
			}
		default:
			t.Fatalf("kind %c", e.kind)
		}
	})
}
