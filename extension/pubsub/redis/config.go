package redis

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Config says where Redis is, and bounds what the engine keeps there. All engines that share topics must have the same Prefix,
// Persistent, Messages, IDAge and Idle. Zero means the default of a field.
type Config struct {
	// Client says where Redis is and how to connect. An empty InitAddress stands for 127.0.0.1:6379. ConnWriteTimeout and
	// Dialer.Timeout are by default Timeout; the engine repeats no command on its own and caches nothing, so DisableRetry and
	// DisableCache are always set. It needs RESP3: AlwaysRESP2 is refused.
	Client rueidis.ClientOption
	// Prefix is what the names of all keys and channels begin with. It must not have braces, and may have at most 64 bytes. It keeps
	// apart what does not belong together: Redis' channels have no databases. Default "arpc:".
	Prefix string
	// Persistent says that Redis has everything that it has ever acknowledged, also after it was restarted: it runs with
	// appendonly yes and appendfsync always, and no replica takes its place. Then positions are good over a restart. Without it
	// every restart and every fail-over begins a new epoch for each topic: what is kept is kept, but subscribers are told that
	// messages may be missing. Whoever puts back an older copy of the data of a Persistent Redis must delete the keys with Prefix.
	Persistent bool
	// Messages is the largest HistorySize; topics that are configured for more keep that many. Default 100,000.
	Messages int
	// IDAge is how long the ID of a publication is remembered. Default 2 minutes.
	IDAge time.Duration
	// Idle is how long a topic with history keeps its epoch after its last message has grown too old, or if it has had none, so
	// that a subscriber who was away for less time can be told that it has missed nothing. Default 10 minutes.
	Idle time.Duration
	// Topics is how many topics the subscribers of this engine may make Redis remember within Idle although nobody has published
	// to them. Those of more topics begin without a position. Default 100,000.
	Topics int
	// Waiting is how many messages for one group, or to one subscriber of one topic, may wait in this process to be given to it
	// or to another one. At the limit nothing more is read from Redis, until that closes the connection, see Redis'
	// client-output-buffer-limit; then subscribers are told. Default 4096.
	Waiting int
	// PresenceTTL is how long members of a process that has ended without saying so, or is cut off, stay present; others find out
	// within a third of it. Default 10 seconds.
	PresenceTTL time.Duration
	// Timeout bounds every answer of Redis, and after it a silent connection counts as lost. Default 5 seconds.
	Timeout time.Duration
}

func (c Config) withDefaults() (Config, error) {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	duration := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	if c.Prefix == "" {
		c.Prefix = "arpc:"
	}
	if len(c.Prefix) > 64 || strings.ContainsAny(c.Prefix, "{}") {
		return c, fmt.Errorf("redis: the prefix %q is too long or has braces", c.Prefix)
	}
	if c.Client.AlwaysRESP2 {
		return c, errors.New("redis: the engine needs RESP3")
	}
	def(&c.Messages, 100_000)
	def(&c.Topics, 100_000)
	def(&c.Waiting, 4096)
	duration(&c.IDAge, 2*time.Minute)
	duration(&c.Idle, 10*time.Minute)
	duration(&c.PresenceTTL, 10*time.Second)
	duration(&c.Timeout, 5*time.Second)
	if len(c.Client.InitAddress) == 0 {
		c.Client.InitAddress = []string{"127.0.0.1:6379"}
	}
	duration(&c.Client.ConnWriteTimeout, c.Timeout)
	duration(&c.Client.Dialer.Timeout, c.Timeout)
	c.Client.DisableRetry, c.Client.DisableCache = true, true
	return c, nil
}

// Keys. What is in braces decides about the slot of a Redis Cluster: all keys of one topic have the same. The dot keeps it from
// being empty, which would not count.

func (c *Config) topicKey(topic string) string { return c.Prefix + "t{." + topic + "}" }
func (c *Config) idKey(topic, id string) string {
	return c.Prefix + "i" + strconv.Itoa(len(topic)) + "{." + topic + "}" + id // the length keeps topic and ID apart
}
func (c *Config) membersKey(topic string) string   { return c.Prefix + "p{." + topic + "}" }
func (c *Config) askedKey(tag, pool string) string { return c.Prefix + "a{." + tag + "}" + pool }
func (c *Config) claimKey(tag, pool, id string) string {
	return c.Prefix + "c{." + tag + "}" + pool + id
}
func (c *Config) nodesKey() string            { return c.Prefix + "nodes{.nodes}" }
func (c *Config) deadKey() string             { return c.Prefix + "dead{.nodes}" }
func (c *Config) roomsKey(node string) string { return c.Prefix + "rooms{." + node + "}" }

// channel is where the messages of a topic are published.
func (c *Config) channel(topic string) string { return c.Prefix + "m:" + topic }
