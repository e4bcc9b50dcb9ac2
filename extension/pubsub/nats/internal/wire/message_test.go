package wire

import (
	"bytes"
	"strings"
	"testing"

	"github.com/arpc-go/arpc/extension/pubsub"
)

// FuzzMessage: what is decoded is what it is encoded as.
func FuzzMessage(f *testing.F) {
	f.Add(AppendMessage(nil, &pubsub.Message{Timestamp: 1, Key: "k", Data: []byte("data"), ToOne: true}))
	f.Add(AppendMessage(nil, &pubsub.Message{Timestamp: -1, Key: strings.Repeat("k", 255)}))
	f.Add([]byte{flagKey, 0, 0, 0, 0, 0, 0, 0, 0, 5, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, mark, ok := ParseMessage(b)
		if !ok {
			return
		}
		again := AppendMessage(nil, m)
		if mark {
			again[0] |= flagBegin
		}
		if b[0]&flagKey != 0 && m.Key == "" { // a key without bytes need not be said
			return
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
