// Package nats is an engine of publish and subscribe on NATS JetStream: the topics of several servers, in different processes, that
// last as long as a nats-server's files.
//
//	engine, err := nats.New(ctx, nats.Config{URL: "nats://10.0.0.1:4222,nats://10.0.0.2:4222", Replicas: 3})
//	server, err := pubsub.NewServerWith(pubsub.Config{Engine: engine, Topics: ...})
//	...
//	server.Stop()
//	engine.Close()
//
// It needs nats-server 2.11 or newer with JetStream, by itself, as a cluster, or in the process (package embedded). Everything
// that pubsub.Capabilities knows works; with Config.Core, which does without JetStream, there is neither history nor idempotency.
//
// # Subjects
//
// Each word of a topic is a token of a subject, in which what means something to NATS, what is not printable and % are escaped as
// %XX, and a word without characters is a single %. So patterns of topics are patterns of subjects. With the prefix "arpc":
//
//	arpc.m.<topic>                  what all subscribers get; groups are queue groups of NATS
//	arpc.1.<topic>                  what one gets: a queue group of all engines
//	arpc.f.<group>.<topic>          what a member of a group could not give to anybody, for another one
//	arpc.h.<class>.<epoch>.<topic>  into the stream of a class
//	arpc.p.all, arpc.p.n.<engine>   presence
//
// # Streams
//
// A stream for each topic would cost nats-server goroutines and files for each, so topics share one: all of the same class, which is
// HistorySize and HistoryAge, in arpc_<size>-<nanoseconds>. It is made when a topic of the class is first
// used. JetStream keeps HistorySize messages of each of its subjects, and one more. What the stream has stored it publishes once
// more, to arpc.m.<topic>, where engines are subscribed as to anything else in NATS: a subscription costs nats-server no consumer,
// and a message without history goes there directly.
//
// # Positions
//
// The offset is the message's sequence in the stream, so it grows with gaps: other topics are between. The epoch is chosen by who
// makes the stream and is part of its subjects. If the stream is removed, or lost, the next one has another epoch, and who
// publishes to the old one learns it, as nobody is there.
//
// What is missing must be known, although offsets have gaps. A count of each topic's messages would have to be kept by publishers
// who agree on it, which costs each message a round more and fails when two publish at once. Two facts that the stream knows by
// itself do instead. JetStream removes messages from the front of a topic only, so that nothing is missing behind a message that
// is still there: a page is Complete if the oldest message that the stream has of the topic, which is the one more, is not behind
// From. And the stream says with each message that it publishes once more which one it follows, so that an engine knows when one
// did not arrive. Then the sinks of the topic get Interrupted and Resumed, and subscribers recover from the history. If no further
// message comes, a comparison with the stream, of up to 250 quiet topics per second, finds it.
//
// This does not hold if somebody removes single messages from the middle of a stream by hand, or puts back an older copy of it; to
// remove all of a topic, or its oldest, is fine. Nor does it if a server of a cluster comes back without its disk and a stream has
// no other replica: JetStream then goes on with an empty stream of the same name, which must be removed by hand.
//
// # What is lost when
//
// The connection to nats-server is lost: publishing fails with CodeUnavailable at once, nothing is kept for later, and sinks get
// Interrupted. The engine tries again for as long as it is open, every quarter of a second or so, and then sinks get Resumed. A
// publication that was on its way may have been stored; with an ID it can be repeated. When nats-server only does not answer, each
// publication fails after Config.Timeout, and after about three times that the connection counts as lost.
//
// nats-server is killed: a message that was acknowledged is in its files. When the machine loses power, those of up to two minutes
// are not, unless the server has sync_interval: always; then offsets are used twice, and a gap can be taken for none. With several
// replicas on several machines that needs all of them to lose power at once.
//
// A stream reaches Config.MaxBytes: the oldest messages of all its topics go, and who needed them is told. A message of a topic
// without history, and what a group or one subscriber gets, is in nobody's files: it is lost with the process or connection that
// has it.
//
// IDs are remembered for Config.IDAge by the stream's servers in memory. After all of them were restarted only those of messages
// that are still kept are known: a topic that keeps few may then store a repeated publication again.
//
// A topic that nobody has published to for HistoryAge and Config.Idle is forgotten, and who has seen its last message is told
// that something may be missing. Topics without HistoryAge are not forgotten.
//
// # Presence
//
// Each engine tells the others who joins and leaves, and keeps who is there, of all topics, in memory. Nothing is stored. An engine
// that was killed, or cannot be reached, counts as gone after three heartbeats: three to four seconds, by Config.Heartbeat. While
// an engine has no connection itself, nobody leaves for it. Sinks with a pattern are not told of presence.
//
// # Limits
//
// In a cluster a message that has no history may overtake one of the same publisher with an ID, and may not reach a subscription
// at another server that is a moment old. Queue groups prefer members at the server of the publisher. A message with its key and
// some hundred bytes for headers must fit into the server's max_payload, 1 MiB by default, or is refused with
// CodeInvalidArgument. The past is read in parts of 256 messages, for at most 64 subscribers at a time.
//
// # Concurrency and buffers
//
// Everything may be called from any goroutine. Sinks are called on goroutines of the NATS client, two for each filter and group,
// three for one with a group, one message after the other; Interrupted and Resumed also on others. A filter costs about 8 KiB.
// Messages that sinks get share no memory with the engine.
package nats
