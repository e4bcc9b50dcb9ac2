package redis

import (
	"slices"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/extension/pubsub/redis/internal/redistest"
)

func join(t *testing.T, e *Engine, topic, id string) (leave func()) {
	t.Helper()
	leave, err := e.Join(within(t), topic, pubsub.Member{ID: id})
	must(t, err)
	return leave
}

func members(t *testing.T, e *Engine, topic string) (ids []string) {
	t.Helper()
	list, err := e.Members(within(t), topic)
	must(t, err)
	for _, m := range list {
		ids = append(ids, m.ID)
	}
	slices.Sort(ids)
	return ids
}

// TestPresenceAfterLoss: members are there again when Redis has lost everything, those that have left meanwhile are not.
func TestPresenceAfterLoss(t *testing.T) {
	for name, args := range map[string][]string{"nothing": nil, "everything": {"--appendonly", "yes", "--appendfsync", "always"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, args...)
			c := testConfig(server.Addr)
			c.PresenceTTL = 300 * time.Millisecond
			a, b := open(t, c), open(t, c)
			watch := subscribe(t, b, "room", false, "")
			join(t, a, "room", "1")
			leave := join(t, a, "room", "2")
			leave3 := join(t, b, "room", "3")
			watch.expectPresence(t, "+1", "+2", "+3")
			_, err := b.Join(within(t), "room", pubsub.Member{ID: "1"})
			wantCode(t, err, arpc.CodeAlreadyExists)
			server.Kill()
			watch.expectTold(t, "interrupted")
			leave()
			time.Sleep(2 * c.PresenceTTL) // it is time that is tested: nobody could say in time that he is alive
			server.Restart()
			watch.expectTold(t, "resumed")
			waitFor(t, "the members are back", func() bool { return slices.Equal(members(t, b, "room"), []string{"1", "3"}) })
			leave3()
			for recv(t, watch.presence, "that 3 has left") != "-3" {
			}
			if got := members(t, a, "room"); !slices.Equal(got, []string{"1"}) {
				t.Fatalf("%q", got)
			}
		})
	}
}

// TestForgottenNode: a server that the others take for dead, as it was cut off, puts its members back.
func TestForgottenNode(t *testing.T) {
	server := redistest.Start(t)
	a, b := open(t, testConfig(server.Addr)), open(t, testConfig(server.Addr))
	watch := subscribe(t, b, "room", false, "")
	join(t, a, "room", "1")
	watch.expectPresence(t, "+1")
	a.presence.mu.Lock()
	node := a.presence.node
	a.presence.mu.Unlock()
	do(t, server, "ZREM", "arpc:nodes{.nodes}", node)
	do(t, server, "SADD", "arpc:dead{.nodes}", node)
	waitFor(t, "the node begins anew, and its members are back", func() bool {
		n, err := new(do(t, server, "SCARD", "arpc:dead{.nodes}")).AsInt64()
		must(t, err)
		a.presence.mu.Lock()
		defer a.presence.mu.Unlock()
		return n == 0 && a.presence.node != node && slices.Equal(members(t, b, "room"), []string{"1"})
	})
	must(t, a.Close())
	for recv(t, watch.presence, "that 1 has left") != "-1" {
	}
	if got := members(t, b, "room"); len(got) != 0 {
		t.Fatalf("%q", got)
	}
	_, err := a.Join(within(t), "room", pubsub.Member{ID: "1"})
	wantCode(t, err, arpc.CodeUnavailable)
}

// TestManyFarewells: when too many have left while Redis was out of reach, they are forgotten with their node, and the others stay.
func TestManyFarewells(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	a, b := open(t, testConfig(server.Addr)), open(t, testConfig(server.Addr))
	join(t, a, "room", "stays")
	leave := join(t, a, "room", "leaves")
	watch := subscribe(t, b, "room", false, "")
	server.Kill()
	watch.expectTold(t, "interrupted")
	p := &a.presence
	p.mu.Lock()
	for range maxLeaving {
		p.leaving = append(p.leaving, &member{topic: "room", node: p.node})
	}
	p.mu.Unlock()
	leave()
	p.mu.Lock()
	if len(p.leaving) > 0 {
		t.Errorf("%d wait", len(p.leaving))
	}
	p.mu.Unlock()
	server.Restart()
	watch.expectTold(t, "resumed")
	watch.expectPresence(t, "-leaves")
	if got := members(t, b, "room"); !slices.Equal(got, []string{"stays"}) {
		t.Fatalf("%q", got)
	}
}
