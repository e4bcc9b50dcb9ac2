// Package znetpeer lets znet's own client, of its published version, talk to extension/action. It is a module of its own so that
// what znet needs gets into no other.
package znetpeer
