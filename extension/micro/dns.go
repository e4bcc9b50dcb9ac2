package micro

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/arpc-go/arpc"
)

// DNSConfig says how a DNS registry asks. The zero value is the default.
type DNSConfig struct {
	// Name makes the name that is looked up of that of a service. Default is the service's name as it is.
	Name func(service string) string
	// Port is that of all nodes, which are the addresses (A, AAAA) of the name then. 0 looks up SRV records instead: their targets and
	// ports are the nodes, those of the most preferred priority only, with their weights.
	Port int
	// Interval is the time between two lookups. Default 30 seconds, and 2 seconds at most after one that has failed.
	Interval time.Duration
	// Timeout bounds a lookup. Default 5 seconds.
	Timeout time.Duration
	// Resolver looks up. Default is one of package net with StrictErrors.
	Resolver *net.Resolver
}

// DNS is a Registry that looks up names. It can only be watched. A name that does not exist is a service without nodes; a lookup that
// fails otherwise is an outage. The ID of a node is its address.
type DNS struct {
	config DNSConfig
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu      sync.Mutex // guards the start of watches against Close
	watches sync.WaitGroup
}

// NewDNS returns one.
func NewDNS(config DNSConfig) *DNS {
	if config.Name == nil {
		config.Name = func(service string) string { return service }
	}
	config.Interval = orDefault(max(config.Interval, 0), 30*time.Second)
	config.Timeout = orDefault(max(config.Timeout, 0), 5*time.Second)
	if config.Resolver == nil {
		config.Resolver = &net.Resolver{StrictErrors: true} // else the search list hides a failure behind "no such host"
	}
	d := &DNS{config: config}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

func orDefault[T int | time.Duration | float64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

var errReadOnly = &arpc.Error{Code: arpc.CodeUnimplemented, Message: "micro: nodes cannot be registered with DNS"}

// Register implements Registry by an error with CodeUnimplemented.
func (d *DNS) Register(context.Context, Node, time.Duration) error { return errReadOnly }

// Deregister implements Registry: nothing was registered.
func (d *DNS) Deregister(context.Context, Node) error { return nil }

// Watch implements Registry.
func (d *DNS) Watch(ctx context.Context, service string) (<-chan Event, error) {
	nodes, err := d.lookup(ctx, service)
	if err != nil {
		if err := ended(ctx); err != nil {
			return nil, err
		}
		if d.ctx.Err() != nil {
			return nil, ErrClosed
		}
		return nil, &arpc.Error{Code: arpc.CodeUnavailable, Message: "micro: " + err.Error()}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return nil, ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.ctx, cancel)
	f := NewFeed(ctx)
	f.Set(nodes)
	d.watches.Go(func() {
		defer stop()
		d.follow(ctx, service, f)
	})
	return f.Events(), nil
}

// follow looks up again and again.
func (d *DNS) follow(ctx context.Context, service string, f *Feed) {
	pause := d.config.Interval
	for {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		nodes, err := d.lookup(ctx, service)
		if pause = d.config.Interval; err == nil {
			f.Set(nodes)
		} else if ctx.Err() == nil {
			pause = min(pause, 2*time.Second)
			f.Lost()
		}
	}
}

func (d *DNS) lookup(ctx context.Context, service string) (nodes []Node, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.Timeout)
	defer cancel()
	defer context.AfterFunc(d.ctx, cancel)()
	name, r := d.config.Name(service), d.config.Resolver
	add := func(host string, port, weight int) {
		addr := net.JoinHostPort(host, strconv.Itoa(port))
		nodes = append(nodes, Node{Service: service, ID: addr, Addr: addr, Weight: weight})
	}
	if d.config.Port == 0 {
		var records []*net.SRV
		_, records, err = r.LookupSRV(ctx, "", "", name)
		if len(records) > 0 {
			err = nil // of records that cannot be read beside them
		}
		for _, s := range records { // sorted by priority
			if s.Priority == records[0].Priority && s.Target != "." { // which says that there is none (RFC 2782)
				add(strings.TrimSuffix(s.Target, "."), int(s.Port), int(s.Weight))
			}
		}
	} else {
		// One after the other: asked for both, net reports one of two errors only, and "no such host" of one hides the failure of the other.
		for _, network := range []string{"ip4", "ip6"} {
			ips, failed := r.LookupNetIP(ctx, network, name)
			for _, ip := range ips {
				add(ip.Unmap().String(), d.config.Port, 0)
			}
			var other *net.AddrError // the name is an address of the other kind
			if failed != nil && !notFound(failed) && !errors.As(failed, &other) {
				return nil, failed
			}
		}
	}
	if len(nodes) == 0 && notFound(err) {
		return nil, nil
	}
	return nodes, err
}

func notFound(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsNotFound
}

// Close implements Registry.
func (d *DNS) Close() error {
	d.mu.Lock()
	d.cancel()
	d.mu.Unlock()
	d.watches.Wait()
	return nil
}
