// Package interop holds the tests that run this module against the published
// github.com/lesismal/arpc, in both roles, over real TCP connections. It is a
// module of its own so that nobody who imports arpc downloads the peer.
package interop
