// Package redis is the engine of package pubsub on Redis: servers in several processes that use the same Redis and the same prefix
// form one publish and subscribe.
//
//	e, err := redis.New(ctx, redis.Config{Client: rueidis.ClientOption{InitAddress: []string{"10.0.0.1:6379"}}})
//	s, err := pubsub.NewServerWith(pubsub.Config{Engine: e, Topics: topics})
//
// # What Redis is needed
//
// Version 7.0 or later, or a Valkey that is compatible with it; New fails if it is older, or a command or permission is missing. The
// tests run against a real redis-server 7.0, alone and as a Redis Cluster of three masters. A replica that
// becomes the master is tested as far as positions go; Sentinel, and the fail-over of a Cluster by itself, are not. Redis' channels have no databases: what shares a server is kept apart by Config.Prefix only.
//
// # History and positions
//
// A topic with history is one stream, and a script stores a message and publishes it in one step. Offsets count messages. The epoch
// changes when the stream is lost, whether by deletion, expiry, eviction or FLUSHALL, and also whenever Redis was restarted or a replica
// has become the master, because nobody can tell then whether all is there, unless Config.Persistent says so. What RESTORE puts back is
// taken as it is.
//
// # Delivery
//
// One connection gets all messages of a process. When it is lost, also because Redis closes it as it takes too long to read
// (client-output-buffer-limit pubsub), all subscribers are told Interrupted, and Resumed when the engine has subscribed again; meanwhile
// Publish fails with CodeUnavailable, nothing is queued, and Subscribe waits for at most Config.Timeout. A Publish that fails may
// have been executed. The first one after a loss may fail although Redis is back.
//
// The nodes of a Redis Cluster may lose messages between each other without anybody noticing. For a topic with history the engine notices
// with the next message of the topic, and tells its subscribers Interrupted and Resumed; for others it cannot.
//
// # Groups, and messages to one
//
// Every server gets every message; those with members of a group claim it in Redis, and the first has it. Servers take turns, and
// what a server has not claimed when it was its turn, another one takes after 100 ms, so that it may come after newer ones. Messages to one subscriber have no order with other messages. A
// message that no subscriber of the server that has it takes any more is offered to the others. What waits to be claimed
// while Redis is lost may be lost; it does not come twice, unless somebody deletes the claims, as FLUSHALL does.
//
// # Presence
//
// A process says three times in Config.PresenceTTL that it is alive. The members of one that was killed leave after at most that and
// a third, and everybody is told; if no process is left, when the first new one has been there for PresenceTTL. When Redis
// has lost its data, all processes put their members back within a third of it, and subscribers may be told once more that they
// have joined.
//
// # Concurrency
//
// All methods may be called from any goroutine. Sinks are called by the connection's reader, one call at a time, by one goroutine
// for each group and for each topic with messages to one, and, for Interrupted and Resumed, by one that connects. A sink that blocks holds up all others of the process.
// Messages that sinks get must not be changed; what is given to Publish is not kept.
package redis
