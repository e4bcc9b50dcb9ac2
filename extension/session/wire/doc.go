// Package wire is the RPC of getty over sessions: its packages byte for byte, a server that finds methods by reflection, and a
// client. It is for talking to programs that speak it; new ones are better off with package arpc.
//
//	type Math struct{}
//	func (*Math) Service() string                        { return "Math" }
//	func (*Math) Version() string                        { return "v1" }
//	func (*Math) Add(args *AddArgs, sum *AddReply) error { ... } // two-way
//	func (*Math) Note(text *string) error                { ... } // one-way
//
//	server := wire.NewServer(wire.ServerConfig{Addr: "127.0.0.1:20000"})
//	err := server.Register(&Math{})
//	err = server.Start()
//
//	client, err := wire.NewClient(wire.ClientConfig{Addr: "127.0.0.1:20000"})
//	err = client.Call(ctx, "Math", "Add", &AddArgs{1, 2}, &sum)
//
// # The package
//
// All integers are little-endian: magic 0x20160905 in 4 bytes; command 2: 1 heartbeat, 2 its answer, 3 call, 4 answer; service 2,
// unused; sequence 8, log 8, which answers repeat; code 2: 0 for success; codec 2: 1 JSON, 2 Protobuf; then, in 4 bytes, the
// length of what follows: nothing, or a header and a value, each with its own length of 2 bytes before it.
//
// # Concurrency
//
// All methods may be called from any goroutine. Calls share the connections of a client, and those of one connection run side by
// side at the server.
//
// # Limits
//
// A header and a value are at most 65,535 bytes long, since the format has no room for more. ServerConfig and ClientConfig have
// the others.
package wire
