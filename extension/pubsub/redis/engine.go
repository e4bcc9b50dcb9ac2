package redis

import (
	"context"
	crand "crypto/rand"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/pubsub"
)

//go:embed script/*.lua
var scripts embed.FS

// script returns a script that begins with others.
func script(names ...string) *rueidis.Lua {
	var text strings.Builder
	for _, name := range names {
		b, err := scripts.ReadFile("script/" + name + ".lua")
		if err != nil {
			panic(err) // it is embedded
		}
		text.Write(b)
	}
	return rueidis.NewLuaScript(text.String())
}

var (
	scriptPublish = script("server", "topic", "publish")
	scriptHistory = script("server", "topic", "history")
	scriptClaim   = script("server", "claim")
	scriptRefuse  = script("refuse")
	scriptJoin    = script("join")
	scriptLeave   = script("leave")
	scriptRooms   = script("rooms")
	scriptBeat    = script("server", "beat")
)

var errClosed = &arpc.Error{Code: arpc.CodeUnavailable, Message: "the engine is closed"}

// An Engine is a pubsub.Engine on Redis. Its methods may be called from any goroutine. Sinks are called by the goroutine that reads
// from Redis and by those that give away messages for one; all of them wait for a sink.
type Engine struct {
	config  Config
	client  rueidis.Client
	cluster bool
	node    [8]byte // random, makes the IDs of messages unique
	name    string  // node in text: who claims messages
	counter atomic.Uint64

	closed  atomic.Bool
	ctx     context.Context // ends with the engine
	cancel  context.CancelFunc
	running sync.WaitGroup

	hub      hub
	presence presence
	asked    askedTopics
}

var _ pubsub.Engine = (*Engine)(nil)

// New connects to Redis and checks that it can do what is needed: version 7.0, and the permission to run the commands of the
// engine on keys and channels with the prefix. It fails if Redis is not there.
func New(ctx context.Context, config Config) (*Engine, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	client, err := rueidis.NewClient(config.Client)
	if err != nil {
		return nil, &arpc.Error{Code: arpc.CodeUnavailable, Message: "redis: " + err.Error()}
	}
	e := &Engine{config: config, client: client, cluster: client.Mode() == rueidis.ClientModeCluster}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	crand.Read(e.node[:]) //nolint:errcheck // it never fails
	e.name = hex.EncodeToString(e.node[:])
	e.hub.init(e)
	e.presence.init(e)
	err = e.check(ctx)
	if err == nil {
		err = e.presence.beat(ctx)
	}
	if err == nil {
		e.running.Go(e.hub.run)
		e.running.Go(e.presence.run)
		e.running.Go(e.presence.work)
		err = e.hub.ready(ctx)
	}
	if err != nil {
		e.Close() //nolint:errcheck // it has no error
		return nil, err
	}
	return e, nil
}

// needed are the commands that the engine and its scripts use.
var needed = []string{
	"INFO", "TIME", "EVAL", "EVALSHA", "EXISTS", "GET", "SET", "DEL", "PEXPIRE", "PERSIST", "PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE",
	"PSUBSCRIBE", "PUNSUBSCRIBE", "XADD", "XTRIM", "XRANGE", "XINFO", "XGROUP", "ZADD", "ZREM", "ZSCORE", "ZRANGE", "ZRANGEBYSCORE",
	"ZREMRANGEBYSCORE", "HSET", "HSETNX", "HGET", "HDEL", "HKEYS", "HGETALL", "HINCRBY", "SADD", "SREM", "SMEMBERS",
}

// check finds out whether Redis can do what is needed.
func (e *Engine) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, e.config.Timeout)
	defer cancel()
	info, err := e.client.Do(ctx, e.client.B().Info().Section("server").Build()).ToString()
	if err != nil {
		return e.wrap(ctx, err)
	}
	if err := checkVersion(info); err != nil {
		return err
	}
	known, err := e.client.Do(ctx, e.client.B().CommandInfo().CommandName(needed...).Build()).ToArray()
	if err != nil {
		return e.wrap(ctx, err)
	}
	var missing []string
	for i, k := range known {
		if k.IsNil() {
			missing = append(missing, needed[i])
		}
	}
	if len(missing) > 0 {
		return &arpc.Error{Code: arpc.CodeUnimplemented, Message: "redis: the server does not have " + strings.Join(missing, ", ")}
	}
	// Whether we may run them, shows with a topic without a name, which nobody has.
	m := &pubsub.Message{}
	config := pubsub.TopicConfig{HistorySize: 1, HistoryAge: time.Minute}
	if _, err = e.Publish(ctx, m, pubsub.PublishOptions{ID: "check " + e.name, Topic: config}); err == nil {
		_, err = e.History(ctx, "", pubsub.Query{Topic: config})
	}
	if err != nil {
		return fmt.Errorf("redis: the server does not let us do what is needed: %w", err)
	}
	return nil
}

// checkVersion finds out by what INFO says about the server whether that is new enough.
func checkVersion(info string) error {
	_, version, _ := strings.Cut(info, "redis_version:")
	version, _, _ = strings.Cut(version, "\r\n")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 7 {
		return &arpc.Error{Code: arpc.CodeUnimplemented, Message: fmt.Sprintf("redis: the server has version %q, needed is 7.0", version)}
	}
	return nil
}

// Capabilities implements pubsub.Engine.
func (e *Engine) Capabilities() pubsub.Capabilities {
	return pubsub.Capabilities{
		Name: "redis", History: true, Presence: true, Wildcards: true, Groups: true, Idempotency: true, Shared: true,
	}
}

// Publish implements pubsub.Engine. It fails with CodeUnavailable when Redis is out of reach, and then it is not known whether the
// message was published; with CodeResourceExhausted when Redis has no memory left.
func (e *Engine) Publish(ctx context.Context, m *pubsub.Message, o pubsub.PublishOptions) (pubsub.Receipt, error) {
	if e.closed.Load() {
		return pubsub.Receipt{}, errClosed
	}
	keep, kind := e.keep(o.Topic), kindMessage
	if m.ToOne {
		keep, kind = 0, kindToOne
	}
	var id [idLen]byte
	copy(id[:], e.node[:])
	binary.BigEndian.PutUint64(id[8:], e.counter.Add(1))
	c := &e.config
	idKey, remember := c.topicKey(m.Topic), int64(0)
	if o.ID != "" {
		idKey, remember = c.idKey(m.Topic, o.ID), c.IDAge.Milliseconds()
	}
	reply, err := e.exec(ctx, scriptPublish, []string{c.topicKey(m.Topic), idKey}, []string{
		c.channel(m.Topic), string(kind), rueidis.BinaryString(encodeRecord(id, m)), strconv.Itoa(keep), milliseconds(o.Topic.HistoryAge),
		milliseconds(c.Idle), freshEpoch(), flag(c.Persistent), strconv.FormatInt(remember, 10),
	})
	if err != nil {
		return pubsub.Receipt{}, err
	}
	numbers, err := reply.AsIntSlice()
	if err != nil || len(numbers) != 3 {
		return pubsub.Receipt{}, errAnswer
	}
	r := pubsub.Receipt{Duplicate: numbers[2] == 1}
	if numbers[0] != 0 {
		r.Position = pubsub.Position{Epoch: uint64(numbers[0]), Offset: uint64(numbers[1])}
	}
	if !r.Duplicate {
		m.Position = r.Position
	}
	return r, nil
}

// keep returns how many messages of a topic are kept.
func (e *Engine) keep(t pubsub.TopicConfig) int {
	n := max(t.HistorySize, 0)
	if t.LastValue {
		n = max(n, 1)
	}
	return min(n, e.config.Messages)
}

// freshEpoch returns the epoch of a topic that begins now: random, so that no place in another life of the topic is one in this.
func freshEpoch() string { return strconv.FormatUint(1+rand.Uint64N(1<<53-1), 10) }

// milliseconds returns a duration for a script; what is not 0 does not become 0.
func milliseconds(d time.Duration) string {
	if d > 0 && d < time.Millisecond {
		d = time.Millisecond
	}
	return strconv.FormatInt(d.Milliseconds(), 10)
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

var errAnswer = &arpc.Error{Code: arpc.CodeInternal, Message: "redis: a script's answer makes no sense"}

// exec runs a script. Its error is an *arpc.Error.
func (e *Engine) exec(ctx context.Context, s *rueidis.Lua, keys, args []string) (rueidis.RedisMessage, error) {
	limited, cancel := context.WithTimeout(ctx, e.config.Timeout)
	defer cancel()
	m, err := s.Exec(limited, e.client, keys, args).ToMessage()
	if err != nil {
		return m, e.wrap(ctx, err)
	}
	return m, nil
}

// again does what changes nothing once more if the connection was lost: one that Redis has closed some time ago may show it only
// when it is used.
func again[T any](ctx context.Context, f func() (T, error)) (T, error) {
	v, err := f()
	if err != nil && ctx.Err() == nil && arpc.CodeOf(err) == arpc.CodeUnavailable {
		v, err = f()
	}
	return v, err
}

// wrap returns the error of a command whose caller's context is ctx as an *arpc.Error.
func (e *Engine) wrap(ctx context.Context, err error) error {
	code := arpc.CodeUnavailable
	if cause := ctx.Err(); cause != nil {
		code = arpc.CodeCanceled
		if errors.Is(cause, context.DeadlineExceeded) {
			code = arpc.CodeDeadlineExceeded
		}
	} else if e.closed.Load() || errors.Is(err, rueidis.ErrClosing) {
		return errClosed
	} else if answer, ok := rueidis.IsRedisErr(err); ok {
		kind, _, _ := strings.Cut(answer.Error(), " ")
		switch kind {
		case "OOM":
			code = arpc.CodeResourceExhausted
		case "LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "TRYAGAIN", "NOREPLICAS", "MISCONF", "UNKILLABLE":
		case "NOPERM", "NOAUTH", "WRONGPASS":
			code = arpc.CodeFailedPrecondition
		default:
			code = arpc.CodeInternal
		}
	}
	return &arpc.Error{Code: code, Message: "redis: " + err.Error()}
}

// Close implements pubsub.Engine: members of this engine leave, if Redis answers within the Timeout. Further calls fail with
// CodeUnavailable.
func (e *Engine) Close() error {
	if e.closed.Swap(true) {
		return nil
	}
	e.cancel()
	e.hub.close()
	e.presence.close()
	e.running.Wait()
	e.client.Close()
	return nil
}
