package action

import (
	"encoding/binary"
	"io"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// fdPeer is a connection that costs the process nothing but a descriptor.
type fdPeer int

func (p fdPeer) Read(b []byte) (int, error) {
	n, err := unix.Read(int(p), b)
	if n <= 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}

// Row Z11: what a connection costs that has done a call and is idle. The benchmarks' scenario idle measures it for a whole process.
func TestZ11IdleConnections(t *testing.T) {
	const conns, most, mostGoroutines = 4000, 1000, 200 // package work keeps up to 128
	opened := 0
	s := serve(t, vectors, OnClose(func(*Connection) {}))
	addr := netip.MustParseAddrPort(s.tcp)
	heap := func() (bytes, goroutines int) {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what pools keep is given back by the second
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc), runtime.NumGoroutine()
	}
	peers := make([]fdPeer, 0, conns)
	defer func() {
		for _, p := range peers {
			unix.Close(int(p))
		}
	}()
	bytes, goroutines := heap()
	var req, rsp [10]byte
	copy(req[:], framed(packet(1, 1, "{}")))
	for range conns {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == unix.EMFILE {
			t.Skipf("only %d connections possible here", opened)
		}
		must(t, err)
		peers = append(peers, fdPeer(fd))
		must(t, unix.Connect(fd, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}))
		if _, err := unix.Write(fd, req[:]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(fdPeer(fd), rsp[:]); err != nil || binary.BigEndian.Uint32(rsp[:]) != 10 {
			t.Fatalf("%x, %v", rsp, err)
		}
		opened++
	}
	bytesAfter, goroutinesAfter := heap()
	each := (bytesAfter - bytes) / conns
	t.Logf("%d bytes of heap each, %d goroutines more", each, goroutinesAfter-goroutines)
	if each > most {
		t.Errorf("an idle connection costs %d bytes of heap, more than %d", each, most)
	}
	if goroutinesAfter-goroutines > mostGoroutines {
		t.Errorf("%d goroutines more", goroutinesAfter-goroutines)
	}
}
