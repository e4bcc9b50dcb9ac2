package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
)

// An Address says where to listen or what to dial. Written as text it is
//
//	[network[-net]://]address[?reuseport=true]
//
// where network is tcp, tcp4, tcp6, udp, udp4, udp6 or unix, by default tcp, and address is host:port, or a path for unix.
type Address struct {
	Network, Addr string
	// Std asks for the std adapter: the network was written with the suffix -net.
	Std bool
	// ReusePort lets several sockets, also of other processes, listen on the same address.
	ReusePort bool
}

// An AddressError reports text that is not an Address, and why.
type AddressError struct{ Text, Why string }

func (e *AddressError) Error() string { return fmt.Sprintf("address %q: %s", e.Text, e.Why) }

// ParseAddress reads the text form of an Address. The error is an *AddressError. An address that cannot be listened on, such as
// one without a port, is found by Listen.
func ParseAddress(s string) (Address, error) {
	a := Address{Network: "tcp", Addr: s}
	if network, rest, ok := strings.Cut(s, "://"); ok {
		a.Network, a.Addr = network, rest
		a.Network, a.Std = strings.CutSuffix(network, "-net")
	}
	switch a.Network {
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6", "unix":
	default:
		return Address{}, &AddressError{s, "unknown network " + a.Network}
	}
	addr, query, _ := strings.Cut(a.Addr, "?")
	a.Addr = addr
	values, err := url.ParseQuery(query)
	if err != nil {
		return Address{}, &AddressError{s, err.Error()}
	}
	for key := range values {
		if key != "reuseport" {
			return Address{}, &AddressError{s, "unknown option " + key}
		}
		v := values.Get(key)
		a.ReusePort = v != "" && strings.ContainsAny(v[:1], "TtYy123456789")
	}
	if a.Network == "unix" && (a.Addr == "" || a.ReusePort) {
		return Address{}, &AddressError{s, "a unix address is a path, without options"}
	}
	return a, nil
}

// String returns the text form.
func (a Address) String() string {
	s := a.Network
	if a.Std {
		s += "-net"
	}
	s += "://" + a.Addr
	if a.ReusePort {
		s += "?reuseport=true"
	}
	return s
}

// Packet reports whether the address is one of datagrams: for ListenDatagram, not for Listen.
func (a Address) Packet() bool { return strings.HasPrefix(a.Network, "udp") }

// Listen opens a listener, for Group.Serve. At the path of a unix address a socket that nobody answers on, as a process that was
// killed leaves behind, is replaced; anything else that is there is left alone and makes Listen fail. Closing the listener removes the
// path.
func (a Address) Listen() (net.Listener, error) {
	if a.Packet() {
		return nil, &AddressError{a.String(), "datagrams have no listener"}
	}
	var lc net.ListenConfig
	if a.ReusePort {
		lc.Control = reusePort
	}
	ln, err := lc.Listen(context.Background(), a.Network, a.Addr)
	if a.Network == "unix" && errors.Is(err, syscall.EADDRINUSE) && dead(a.Addr) && os.Remove(a.Addr) == nil {
		ln, err = lc.Listen(context.Background(), a.Network, a.Addr)
	}
	return ln, err
}

// dead reports whether path is a socket that nobody answers on.
func dead(path string) bool {
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	nc, err := net.Dial("unix", path)
	if err == nil {
		nc.Close() //nolint:errcheck // somebody lives there, which is all that was asked
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// ListenDatagram binds a socket for datagrams, as the function ListenDatagram does.
func (a Address) ListenDatagram(cfg DatagramConfig) (*Datagram, error) {
	if !a.Packet() {
		return nil, &AddressError{a.String(), "not a network of datagrams"}
	}
	if a.ReusePort {
		cfg.Control = reusePort
	}
	return ListenDatagram(a.Network, a.Addr, cfg)
}

// Dial connects to the address; the result is for Group.Adopt, or, with datagrams, a connected socket.
func (a Address) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, a.Network, a.Addr)
}
