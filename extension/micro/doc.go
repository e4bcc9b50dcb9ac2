// Package micro calls a service by its name, whichever nodes it has at the moment: a Registry tells which there are, a Client is connected
// to them, chooses one for each call, and goes on when they come, go and fail. docs/micro.md has a complete program, the tables of strategies
// and balancers, and what each failure looks like.
//
//	client, err := micro.NewClient(ctx, registry, "users", micro.Config{})
//	user, err := Get.Call(ctx, client, &Request{...}) // as with an *arpc.Client
//
// A provider says that it is there, and leaves in order:
//
//	published, err := micro.Publish(ctx, registry, micro.Node{Service: "users", ID: "a", Addr: "10.0.0.1:8888"}, 0)
//	...
//	err = micro.Shutdown(ctx, server, published)
//
// Memory (and NewStatic) and DNS are Registries of this package, etcd and ZooKeeper have modules of their own: micro/etcd and micro/zookeeper.
//
// # Concurrency
//
// Everything may be called from any goroutine. A Client has one goroutine, and one for each node that it connects to. Lists of nodes are
// snapshots that are replaced as a whole: a call takes no lock to choose. Balancers are made on the Client's goroutine; what they
// return, and Filter, must not block.
//
// # Ownership of values
//
// As with an *arpc.Client, a request is encoded before CallWith and NotifyWith return, but for notifications that Failback keeps. The request
// of a CallAsync, and of a call that is hedged or broadcast, is encoded by each attempt: it must not be changed until the call has ended.
//
// # Limits
//
// A Client connects to Config.Subset nodes, 16 at a time, by one connection each. What it knows of the others is their Node, of at most 64
// KiB. Further attempts have a budget. Config says what else is bounded, and the defaults.
package micro
