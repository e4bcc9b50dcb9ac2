package nats

import (
	"fmt"
	"strings"
	"testing"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/nats/embedded"
)

// TestPresenceCatchesUp: an engine learns of members that were there before it, more than fit into one packet, and of what it has
// missed.
func TestPresenceCatchesUp(t *testing.T) {
	t.Parallel()
	ns := start(t, embedded.Config{})
	const n = 300
	a := open(t, Config{Server: ns, Core: true, Heartbeat: beat})
	info := []byte(strings.Repeat("i", 2048))
	for i := range n {
		_, err := a.Join(within(t), "room", pubsub.Member{ID: fmt.Sprint(i), Info: info})
		must(t, err)
	}
	_, err := a.Join(within(t), "room", pubsub.Member{ID: "7"})
	wantCode(t, err, arpc.CodeAlreadyExists)
	b := open(t, Config{Server: ns, Core: true, Heartbeat: beat})
	count := func(e *Engine) int {
		members, err := e.Members(within(t), "room")
		must(t, err)
		return len(members)
	}
	if got := count(b); got != n {
		t.Fatalf("%d members, not %d", got, n)
	}
	s := subscribe(t, b, "room")
	a.Close()
	for range n {
		recv(t, s.events, "event")
	}
	if got := count(b); got != 0 {
		t.Fatalf("%d members are left", got)
	}
}
