// Package etcd is the Registry of package micro on etcd. It is tested with etcd 3.4 and 3.6:
//
//	r, err := etcd.New(etcd.Config{Client: clientv3.Config{Endpoints: []string{"10.0.0.1:2379", "10.0.0.2:2379"}}})
//	p, err := micro.Publish(ctx, r, node, 0)
//	c, err := micro.NewClient(ctx, r, "greeter", micro.Config{})
//
// # In the store
//
// A node is one key below Config.Root, and its value is JSON; both are those of qsocket (getty), byte by byte, see
// micro.Node.Path and micro.Node.MarshalValue. `etcdctl get --prefix /getty/` shows all of them. Keys that are not nodes of
// providers are none of our business, and what is no valid value is as if it were not there.
//
// # Providers
//
// The nodes that a Registry publishes with one ttl share one lease, which is renewed three times within the ttl. Leases count whole
// seconds, so parts of a second are dropped from a ttl, and etcd sets a minimum, 2 seconds unless its election timeout was changed:
// Register refuses less. When the lease is lost, whether it has expired, was revoked or etcd has lost its data, there is a new one within a
// third of the ttl and half a second of etcd's being there, and all nodes are put again. After every reconnection they are checked, and put
// if they are not there. A node whose key somebody has deleted, but not its lease, stays deleted until then. Requests go one after the
// other for each ttl.
//
// A Register or Deregister that fails because its context ends, or after Config.Timeout, may have been carried out: it is undone, or done in the
// end, as soon as etcd can be reached. As what was sent may arrive even later, the node is looked at again after Config.Timeout.
//
// # Watches
//
// All watches of a Registry share one watch of the store, which there is while they are, and which keeps all nodes below Config.Root in memory. It lists
// the nodes and follows from the revision after that. It lists them again when etcd has compacted what it would need, and after the
// loss of all connections, or of the leader. Of the last two watchers are told; with several endpoints the loss of one is none. A network that
// swallows everything is noticed by gRPC's pings, after about 15 seconds unless Config.Client has other times.
//
// # Errors
//
// All are *arpc.Error: those of micro.Registry, and CodePermissionDenied, CodeUnauthenticated, CodeInvalidArgument and CodeUnimplemented
// when etcd says so, as trying again will not help; and CodeAborted for a call that another one for the same node has overtaken. What has
// led to one is in its message. etcd's client logs nothing unless Config.Client has a Logger or a LogConfig; values that cannot be read are
// logged at debug level by package log.
package etcd
