// Package interop holds the tests that run this module against other people's
// programs over real TCP connections: the published github.com/lesismal/arpc,
// in both roles, and WebSocket libraries. It is a module of its own so that
// nobody who imports arpc downloads them.
package interop
