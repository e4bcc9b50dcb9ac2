package router

import (
	"context"
	"net/netip"

	"github.com/arpc-go/arpc"
)

// refuse keeps the rest of the chain from running and tells the peer why.
func refuse(ctx *arpc.Context, err error) {
	ctx.Abort()
	err = arpc.Refused(err)
	if s := ctx.Stream(); s != nil {
		s.Reset(err)
		return
	}
	ctx.Error(err) //nolint:errcheck // a notification has no answer, but Outcome knows; or the connection is gone
}

// notification is the kind of a notification.
const notification = "notify"

// kind says what a message is.
func kind(ctx *arpc.Context) string {
	switch {
	case ctx.Stream() != nil:
		return "stream"
	case ctx.Message.Cmd() == arpc.CmdNotify:
		return notification
	}
	return "call"
}

// method returns the name of the message's method.
func method(ctx *arpc.Context) string {
	if s := ctx.Stream(); s != nil {
		return s.Method()
	}
	return ctx.Message.Method()
}

// peer returns the address of the other end.
func peer(ctx *arpc.Context) string {
	if a := ctx.Peer().Addr; a != nil {
		return a.String()
	}
	return ""
}

// prefixOf returns the part of a peer's address that others do not share and
// that the peer does not choose: its IPv4 address, or the 64 bits of an IPv6
// network. ok is false if there is none.
func prefixOf(ctx *arpc.Context) (p netip.Prefix, ok bool) {
	var ap netip.AddrPort
	switch a := ctx.Peer().Addr.(type) {
	case interface{ AddrPort() netip.AddrPort }: // TCP and UDP
		ap = a.AddrPort()
	case nil:
		return p, false
	default:
		var err error
		if ap, err = netip.ParseAddrPort(a.String()); err != nil {
			return p, false
		}
	}
	return prefix(ap.Addr())
}

func prefix(addr netip.Addr) (p netip.Prefix, ok bool) {
	bits := 32
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	return p, err == nil && addr.IsValid()
}

// value makes v the value of key in the handler's context.
func value(ctx *arpc.Context, key, v any) {
	ctx.Derive(func(c context.Context) context.Context { return context.WithValue(c, key, v) })
}
