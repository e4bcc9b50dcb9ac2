package core

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]Address{
		":80":                            {Network: "tcp", Addr: ":80"},
		"tcp://":                         {Network: "tcp"},
		"tcp4://127.0.0.1:0":             {Network: "tcp4", Addr: "127.0.0.1:0"},
		"tcp6-net://[::1]:0":             {Network: "tcp6", Addr: "[::1]:0", Std: true},
		"unix:///tmp/s":                  {Network: "unix", Addr: "/tmp/s"},
		"unix-net://s":                   {Network: "unix", Addr: "s", Std: true},
		"udp6://[::1]:5":                 {Network: "udp6", Addr: "[::1]:5"},
		"localhost:1?reuseport=true":     {Network: "tcp", Addr: "localhost:1", ReusePort: true},
		"tcp://localhost:1?reuseport=Ye": {Network: "tcp", Addr: "localhost:1", ReusePort: true},
		"udp-net://:1?reuseport=1":       {Network: "udp", Addr: ":1", Std: true, ReusePort: true},
		"tcp://:1?reuseport=0":           {Network: "tcp", Addr: ":1"},
		"tcp://:1?reuseport=no":          {Network: "tcp", Addr: ":1"},
		"tcp://:1?reuseport":             {Network: "tcp", Addr: ":1"},
	} {
		got, err := ParseAddress(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if again, err := ParseAddress(got.String()); err != nil || again != got {
			t.Errorf("%s, written as %s, is %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"tulip://x", "net://x", "-net://x", "unix://", "unix-net://", "unix:///s?reuseport=1", "tcp://:1?reusport=1", "tcp://:1?%zz", "://x"} {
		var ae *AddressError
		if a, err := ParseAddress(text); !errors.As(err, &ae) || ae.Text != text {
			t.Errorf("%s: %+v, %v", text, a, err)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{":80", "tcp-net://:1?reuseport=t", "unix:///x", "udp6://[::1]:9?a=b&c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		if b, err := ParseAddress(a.String()); err != nil || a != b {
			t.Errorf("%q is %+v; written %q, that is %+v, %v", s, a, a, b, err)
		}
	})
}

func parse(t testing.TB, s string) Address {
	t.Helper()
	a, err := ParseAddress(s)
	must(t, err)
	return a
}

func TestAddressListens(t *testing.T) {
	if ln, err := parse(t, "howdy").Listen(); err == nil {
		ln.Close()
		t.Error("listens without a port")
	}
	if _, err := parse(t, "udp://:0").Listen(); err == nil {
		t.Error("a listener of datagrams")
	}
	if _, err := parse(t, "tcp://:0").ListenDatagram(DatagramConfig{}); err == nil {
		t.Error("datagrams over TCP")
	}
	for text, bytes := range map[string]int{"tcp4://127.0.0.1:0": 4, "tcp6://[::1]:0": 16} {
		ln, err := parse(t, text).Listen()
		must(t, err)
		defer ln.Close()
		if a := ln.Addr().(*net.TCPAddr); len(a.IP) != bytes && len(a.IP.To4()) != bytes {
			t.Errorf("%s listens on %v", text, a)
		}
		a := parse(t, text)
		a.Addr = ln.Addr().String()
		nc, err := a.Dial(context.Background())
		must(t, err)
		nc.Close()
	}
	ln, err := parse(t, "tcp://").Listen()
	must(t, err)
	if ln.Addr().(*net.TCPAddr).Port == 0 {
		t.Error("no port")
	}
	ln.Close()
}

// With reuseport several sockets share a port, without it they do not.
func TestReusePort(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no such option")
	}
	a := parse(t, "127.0.0.1:0?reuseport=true")
	ln, err := a.Listen()
	must(t, err)
	defer ln.Close()
	a.Addr = ln.Addr().String()
	again, err := a.Listen()
	must(t, err)
	again.Close()
	a.ReusePort = false
	if _, err = a.Listen(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v without reuseport", err)
	}
	u := parse(t, "udp://127.0.0.1:0?reuseport=true")
	d, err := u.ListenDatagram(DatagramConfig{Handle: func(*Datagram, []byte, netip.AddrPort) {}})
	must(t, err)
	defer d.Close()
	u.Addr = d.LocalAddr().String()
	d2, err := u.ListenDatagram(DatagramConfig{Handle: func(*Datagram, []byte, netip.AddrPort) {}})
	must(t, err)
	d2.Close()
}

// What is at the path of a unix address is left alone, unless it is a socket that nobody answers on.
func TestUnixPath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	a := parse(t, "unix://"+path)
	refuse := func(what string) {
		t.Helper()
		before, _ := os.Lstat(path)
		if ln, err := a.Listen(); err == nil {
			ln.Close()
			t.Fatalf("listens in place of %s", what)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Fatalf("%s was removed", what)
		}
	}
	must(t, os.MkdirAll(filepath.Join(path, "tree"), 0o700))
	refuse("a directory")
	must(t, os.RemoveAll(path))
	must(t, os.WriteFile(path, []byte("x"), 0o600))
	refuse("a file")
	must(t, os.Remove(path))
	live, err := net.Listen("unix", filepath.Join(dir, "live"))
	must(t, err)
	must(t, os.Symlink(live.Addr().String(), path))
	refuse("a symbolic link")
	must(t, os.Remove(path))
	live.Close()

	ln, err := a.Listen()
	must(t, err)
	refuse("a socket in use")
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	ln, err = a.Listen() // nobody answers any more
	must(t, err)
	nc, err := a.Dial(context.Background())
	must(t, err)
	nc.Close()
	ln.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
}
