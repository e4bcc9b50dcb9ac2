// Package zookeeper is the Registry of package micro on ZooKeeper; it is tested with version 3.8:
//
//	r, err := zookeeper.New(zookeeper.Config{Servers: []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}})
//	p, err := micro.Publish(ctx, r, node, 0)
//	c, err := micro.NewClient(ctx, r, "greeter", micro.Config{})
//
// # In the store
//
// A node is one ephemeral znode, in a directory for its service, version, group and protocol below Config.Root; its value is JSON. Both are those of
// qsocket (getty), byte by byte, see micro.Node.Path and micro.Node.MarshalValue. Directories are
// persistent, have no data, and everybody may do everything with them, as with the nodes; they stay when their last node goes. `ls -R /getty` in
// zkCli.sh shows all of them. What is not a node of a provider, has no valid value, or may not be read, is as if it were not there.
//
// # Providers
//
// The nodes of a Registry belong to one session with ZooKeeper, so all have its ttl: the timeout that the server grants, 4 seconds
// unless Config or server say otherwise. It counts from the last that the server has heard. A server looks for what has expired once in a tick, which
// is 2 seconds by default, and so lets a session live up to one longer; in an ensemble the leader does, and hears of the sessions of the others
// twice in a tick, which may add half a one. So with all defaults the nodes of a process that was killed go within 6 seconds, or 7 in an
// ensemble. Register refuses a shorter ttl. An update is one write, which is left out when nothing has changed.
//
// The session survives the loss of a connection, and that of a server when there are several; the nodes stay as they are. When it has expired, or was
// without a server for as long as its timeout, there is a new one, and all nodes are published again. A node that belongs to another session, such as
// that of the process before a restart, is taken over in one transaction, so that nobody sees it missing; with two processes that
// publish the same node the last one wins, and the other no longer removes it. A node that somebody else has deleted is published again
// with the next connection.
//
// A Register that fails because its context ends, or after Config.Timeout, may have been carried out: it is undone as soon as ZooKeeper can be
// reached. A Deregister that fails so is done then, or the session expires.
//
// # Watches
//
// All watches of a service share one goroutine and one copy of its nodes, and all of a Registry one session, which is not that of the nodes: there is a
// new one for each connection. In ZooKeeper they need a watch on the root, one on each directory of the service, and one on each node; a node
// and its watch take about 1 KiB here. What an event names is asked for again, several at a time; many events about one
// directory are joined for up to 0.2 seconds, depending on the size of the service, as each one means that all its names must be had. When
// the connection was lost watchers are told, and everything is listed again. Persistent watches, of ZooKeeper 3.6, would be fewer, but the
// client library does not have them, nor can it remove a watch: those of a service that is no longer followed go when they
// fire, or with the connection.
//
// # Errors
//
// All are *arpc.Error: those of micro.Registry, and CodePermissionDenied, CodeUnauthenticated, CodeInvalidArgument and
// CodeFailedPrecondition when ZooKeeper refuses what trying again would not change. New does not wait for ZooKeeper, nor connect to it. A server that cannot be reached,
// or does not answer, within half the session timeout, at least 1 second and at most 5, is given up for the next one; after a round of
// all servers there is a pause of a second. What the client library says goes to package log at debug level, as do values that cannot be
// read. The servers are trusted: the client library takes packets of up to 64 MiB from them.
package zookeeper
