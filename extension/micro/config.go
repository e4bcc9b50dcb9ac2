package micro

import (
	"context"
	"net"
	"time"

	"github.com/arpc-go/arpc"
)

// Config says how a Client works. The zero value is the default.
type Config struct {
	// Want restricts the nodes to those with its Version, Group and Protocol, where these are not empty. Filter, if it is not nil, to those
	// for which it is true.
	Want   Node
	Filter func(Node) bool
	// Balancer chooses among the nodes; default LeastLoaded().
	Balancer Balancer
	// Strategy says what happens when an attempt fails; default Failover. Client.With has another one with the same connections.
	Strategy Strategy

	// Attempts is how many a call has at most, the first included; default 4. Burst and Ratio are the budget of all further attempts: Burst
	// at first, and Ratio for each call that is answered; default 100 and 0.2.
	Attempts int
	Burst    int
	Ratio    float64
	// Hedge makes another attempt, at another node, at an idempotent call that is not answered after it, and takes the first answer; after
	// the same time again a further one, up to Attempts at the same time. They take from the budget. Default 0, never.
	Hedge time.Duration
	// Idempotent are methods that may be carried out twice, besides typed methods with that trait and calls with
	// arpc.WithIdempotent. CallAsync needs it, as it has no context.
	Idempotent []string
	// Wait is how long an attempt waits for a node when none is connected; default 1 second, negative for not at all.
	Wait time.Duration

	// Subset is how many nodes are connected to; each Client has others. Default 100, negative for all.
	Subset int
	// Dial connects to a node; default is TCP to its Addr. DialTimeout bounds it, default 3 seconds. It ends with ctx.
	Dial        func(ctx context.Context, n Node) (net.Conn, error)
	DialTimeout time.Duration
	// Options are those of the connections, such as a Handler for what servers call; it is shared. By default they share a copy of
	// arpc.DefaultHandler, and connect again after 100 milliseconds to 3 seconds.
	Options []arpc.ClientOption
	// Drain is how long a node that has left may take to answer what was asked; default 30 seconds.
	Drain time.Duration
	// Grace is how long a node stays that is missing in the first Set after an outage of the registry, since its provider may not have
	// registered again yet; default 4 seconds.
	Grace time.Duration

	// Check is how often each connected node is checked, by a ping, or by a call of HealthRoute if that is not empty, see HandleHealth;
	// default 1 second. A node that does not answer within CheckTimeout, default 1 second, gets no new calls until it does; its connection
	// is closed after three such checks in a row.
	Check, CheckTimeout time.Duration
	HealthRoute         string
	// A node is ejected, and gets no new calls, after EjectAfter failures in a row, default 5, or if half of at least 20 calls within 10
	// seconds have failed: for EjectTime, default 1 second, twice as long each further time up to 30 seconds, and until a check succeeds
	// then. Failures are those that speak against the node: CodeUnavailable, a lost connection, no answer within the caller's
	// deadline, and being slower than the other attempt when hedging. What was in flight on a lost connection does not eject by itself a node
	// that is connected again. At most EjectShare of the nodes are out when
	// one is ejected, default 0.5, negative for none.
	EjectAfter int
	EjectTime  time.Duration
	EjectShare float64

	// FailbackQueue is how many notifications Failback keeps, default 1000, and FailbackAge for how long, default 1 minute.
	FailbackQueue int
	FailbackAge   time.Duration
}

// maxEject is the longest ejection, and steady how long a node must be in for the next one to be short again.
const (
	maxEject = 30 * time.Second
	steady   = 30 * time.Second
)

// withDefaults returns the Config with its defaults filled in.
func (c Config) withDefaults() Config {
	if c.Balancer == nil {
		c.Balancer = LeastLoaded()
	}
	c.Attempts = max(orDefault(c.Attempts, 4), 1)
	c.Burst = max(orDefault(c.Burst, 100), 1)
	c.Ratio = min(max(orDefault(c.Ratio, 0.2), 0), 1000)
	c.Wait = max(orDefault(c.Wait, time.Second), 0)
	c.Subset = orDefault(c.Subset, 100)
	if c.Dial == nil {
		var d net.Dialer
		c.Dial = func(ctx context.Context, n Node) (net.Conn, error) { return d.DialContext(ctx, "tcp", n.Addr) }
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.DialTimeout, 3 * time.Second}, {&c.Drain, 30 * time.Second}, {&c.Grace, 4 * time.Second}, {&c.Check, time.Second},
		{&c.CheckTimeout, time.Second}, {&c.EjectTime, time.Second}, {&c.FailbackAge, time.Minute},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	c.EjectAfter = max(orDefault(c.EjectAfter, 5), 1)
	c.EjectShare = orDefault(c.EjectShare, 0.5)
	c.FailbackQueue = max(orDefault(c.FailbackQueue, 1000), 1)
	return c
}

// takes reports whether the Client is to know a node.
func (c *Config) takes(n Node) bool {
	w := &c.Want
	return (w.Version == "" || w.Version == n.Version) && (w.Group == "" || w.Group == n.Group) &&
		(w.Protocol == "" || w.Protocol == n.Protocol) && (c.Filter == nil || c.Filter(n))
}
