package micro_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/micro"
	"github.com/arpc-go/arpc/extension/micro/registrytest"
)

// A zone is a DNS server on loopback with the records of a test.
type zone struct {
	conn net.PacketConn
	mu   sync.Mutex
	srv  map[string][]net.SRV
	a    map[string][]net.IP
	down bool // answers with SERVFAIL
	noA  bool // answers with SERVFAIL to what asks for addresses of IPv4
	ask  map[string]int
}

const (
	typeA, typeSRV     = 1, 33
	servFail, nxDomain = 2, 3
)

func newZone(t *testing.T) (*zone, *net.Resolver) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	z := &zone{conn: pc, srv: map[string][]net.SRV{}, a: map[string][]net.IP{}, ask: map[string]int{}}
	served := make(chan struct{})
	go func() {
		defer close(served)
		z.serve()
	}()
	t.Cleanup(func() {
		pc.Close()
		<-served
	})
	return z, &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

func (z *zone) set(f func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	f()
}

func (z *zone) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := z.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer := z.answer(buf[:n]); answer != nil {
			z.conn.WriteTo(answer, from) //nolint:errcheck // the resolver asks again
		}
	}
}

func dnsName(name string) (b []byte) {
	if name == "." {
		return []byte{0}
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}

// answer answers the only question of a query.
func (z *zone) answer(query []byte) []byte {
	const header = 12
	var labels []string
	i := header
	for i < len(query) && query[i] != 0 {
		labels = append(labels, string(query[i+1:i+1+int(query[i])]))
		i += 1 + int(query[i])
	}
	name, kind := strings.Join(labels, "."), binary.BigEndian.Uint16(query[i+1:])
	z.mu.Lock()
	defer z.mu.Unlock()
	z.ask[name]++
	var records [][]byte
	record := func(kind uint16, data []byte) {
		r := []byte{0xc0, header} // the name of the question
		r = binary.BigEndian.AppendUint16(r, kind)
		r = append(r, 0, 1, 0, 0, 0, 1) // class, ttl
		records = append(records, append(binary.BigEndian.AppendUint16(r, uint16(len(data))), data...))
	}
	switch kind {
	case typeSRV:
		for _, s := range z.srv[name] {
			data := binary.BigEndian.AppendUint16(nil, s.Priority)
			data = binary.BigEndian.AppendUint16(data, s.Weight)
			record(typeSRV, append(binary.BigEndian.AppendUint16(data, s.Port), dnsName(s.Target)...))
		}
	case typeA:
		for _, ip := range z.a[name] {
			record(typeA, ip.To4())
		}
	}
	_, hasSRV := z.srv[name]
	_, hasA := z.a[name]
	code := byte(0)
	switch {
	case z.down || z.noA && kind == typeA:
		code, records = servFail, nil
	case !hasSRV && !hasA:
		code = nxDomain
	}
	out := append([]byte{}, query[:i+5]...)
	out[2], out[3] = 0x84, 0x80|code // an authoritative answer
	binary.BigEndian.PutUint16(out[6:], uint16(len(records)))
	binary.BigEndian.PutUint32(out[8:], 0)
	for _, r := range records {
		out = append(out, r...)
	}
	return out
}

func dnsNode(service, addr string, weight int) micro.Node {
	return micro.Node{Service: service, ID: addr, Addr: addr, Weight: weight}
}

func openDNS(t *testing.T, c micro.DNSConfig) *micro.DNS {
	t.Helper()
	c.Interval, c.Name = 5*time.Millisecond, func(service string) string { return service + ".test." }
	d := micro.NewDNS(c)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

func TestDNSRecordsOfServices(t *testing.T) {
	z, resolver := newZone(t)
	d := openDNS(t, micro.DNSConfig{Resolver: resolver})
	z.set(func() {
		z.srv["_svc._tcp.test"] = []net.SRV{
			{Target: "a.test.", Port: 1, Priority: 1, Weight: 5}, {Target: "b.test.", Port: 2, Priority: 1}, {Target: "spare.test.", Port: 3, Priority: 2},
		}
	})
	view := registrytest.Follow(t, d, "_svc._tcp")
	a, b, spare := dnsNode("_svc._tcp", "a.test:1", 5), dnsNode("_svc._tcp", "b.test:2", 0), dnsNode("_svc._tcp", "spare.test:3", 0)
	view.Is(t, patience, a, b)
	z.set(func() { z.srv["_svc._tcp.test"][0].Weight = 7 })
	a.Weight = 7
	view.Is(t, patience, a, b)
	z.set(func() { z.srv["_svc._tcp.test"] = z.srv["_svc._tcp.test"][2:] })
	view.Is(t, patience, spare)
	z.set(func() { z.down = true })
	view.Last(t, patience, micro.Lost)
	view.Is(t, patience, spare) // an outage deletes nothing
	z.set(func() { z.down = false; z.srv["_svc._tcp.test"] = []net.SRV{{Target: "b.test.", Port: 2}} })
	view.Is(t, patience, b)
	z.set(func() { z.srv["_svc._tcp.test"] = []net.SRV{{Target: ".", Port: 1}} }) // RFC 2782: the service is not available
	view.Is(t, patience)
	z.set(func() {
		z.srv["_svc._tcp.test"] = []net.SRV{{Target: "b.test.", Port: 2}, {Target: "b b.test.", Port: 3}}
	})
	view.Is(t, patience, b)                           // the name that is none is left out
	z.set(func() { delete(z.srv, "_svc._tcp.test") }) // that there is none is an answer
	view.Is(t, patience)
	if err := d.Register(within(t), b, 0); !errors.Is(err, arpc.CodeUnimplemented) {
		t.Error(err)
	}
	must(t, d.Deregister(within(t), b))
}

func TestDNSAddresses(t *testing.T) {
	z, resolver := newZone(t)
	d := openDNS(t, micro.DNSConfig{Resolver: resolver, Port: 80})
	z.set(func() { z.a["svc.test"] = []net.IP{net.IPv4(10, 0, 0, 1), net.IPv4(10, 0, 0, 2)} })
	view := registrytest.Follow(t, d, "svc")
	view.Is(t, patience, dnsNode("svc", "10.0.0.1:80", 0), dnsNode("svc", "10.0.0.2:80", 0))
	z.set(func() { z.a["svc.test"] = z.a["svc.test"][1:] })
	view.Is(t, patience, dnsNode("svc", "10.0.0.2:80", 0))
	z.set(func() { z.noA = true }) // and that there are none of IPv6 is no answer to it
	view.Last(t, patience, micro.Lost)
	view.Is(t, patience, dnsNode("svc", "10.0.0.2:80", 0))
	z.set(func() { z.noA = false })
	view.Last(t, patience, micro.Set)
	z.set(func() { z.down = true })
	view.Last(t, patience, micro.Lost)
	if _, err := d.Watch(within(t), "other"); !errors.Is(err, arpc.CodeUnavailable) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := d.Watch(ctx, "other"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestDNS(t *testing.T) {
	z, resolver := newZone(t)
	name := func(service string) string { return fmt.Sprintf("x%x.test", service)[:40] }
	registrytest.Run(t, registrytest.Store{
		Open: func(string) (micro.Registry, error) {
			return micro.NewDNS(micro.DNSConfig{
				Resolver: resolver, Port: 8888, Interval: 5 * time.Millisecond, Name: func(s string) string { return name(s) + "." },
			}), nil
		},
		ReadOnly: true,
		Node: func(service, id string) micro.Node {
			return dnsNode(service, map[string]string{"one": "10.0.0.1:8888", "two": "10.0.0.2:8888"}[id], 0)
		},
		Publish: func(service string, nodes []micro.Node) {
			z.set(func() {
				z.a[name(service)] = nil
				for _, n := range nodes {
					host, _, _ := net.SplitHostPort(n.Addr)
					z.a[name(service)] = append(z.a[name(service)], net.ParseIP(host))
				}
			})
		},
	})
}

// TestDNSClient calls what a name resolves to.
func TestDNSClient(t *testing.T) {
	z, resolver := newZone(t)
	p := provide(t, "svc", "a")
	host, port, err := net.SplitHostPort(p.node.Addr)
	must(t, err)
	z.set(func() { z.a["svc.test"] = []net.IP{net.ParseIP(host)} })
	var n int
	_, err = fmt.Sscan(port, &n)
	must(t, err)
	c := connect(t, openDNS(t, micro.DNSConfig{Resolver: resolver, Port: n}), micro.Config{})
	if got := ask(t, c, who); got != "a" {
		t.Errorf("%q", got)
	}
}
