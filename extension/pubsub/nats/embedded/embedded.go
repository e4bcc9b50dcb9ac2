// Package embedded runs a nats-server in the process, so that a program with topics that last needs no other:
//
//	server, err := embedded.Start(embedded.Config{Dir: "/var/lib/chat"})
//	defer server.Stop()
//	engine, err := nats.New(ctx, nats.Config{Server: server})
//	defer engine.Close()
//
// Several such programs form a cluster if they are told of each other by Routes; then JetStream needs at least three of them. It
// is the same server as the one that nats.io distributes, and speaks to it.
package embedded

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/arpc-go/arpc/log"
	"github.com/nats-io/nats-server/v2/server"
)

// Config says how the server runs. Zero means the default of a field.
type Config struct {
	// Name is the server's, unique in a cluster. Default a random one; with Routes it must be given.
	Name string
	// Dir is where JetStream keeps its files. Only one server may use it. Without it JetStream is off.
	Dir string
	// Addr is the host and port for clients of other processes; port 0 chooses one. Default: none, only this process; in a cluster,
	// which cannot be without, a port of 127.0.0.1.
	Addr string
	// Cluster is the name of the cluster, ClusterAddr where its other servers connect to this one, and Routes the URLs of such
	// addresses: nats://host:port. All empty for a single server.
	Cluster, ClusterAddr string
	Routes               []string
	// MaxMemory and MaxStore are what JetStream may use for streams, in bytes. Default 75% of the memory and of the free disk.
	MaxMemory, MaxStore int64
	// SyncAlways writes each message through to the disk before it counts as published, so that a power failure loses none either;
	// without it what was published up to two minutes before may be lost then, and offsets be used twice. A killed process loses
	// nothing either way.
	SyncAlways bool
	// MaxPayload is the largest message with its headers. Default 2 MiB, so that what pubsub.Limits lets through by default fits.
	MaxPayload int32
	// Options may change everything else before the server starts: accounts, TLS. Its warnings and errors go to package log.
	Options func(*server.Options)
	// Timeout is how long Start waits for the server. Default 10 seconds.
	Timeout time.Duration
}

// A Server is a running nats-server. It is a nats.InProcessConnProvider.
type Server struct{ server *server.Server }

// Start starts a server and returns when clients can connect.
func Start(c Config) (*Server, error) {
	o := &server.Options{
		ServerName: c.Name, NoSigs: true, DontListen: c.Addr == "", MaxPayload: c.MaxPayload,
		JetStream: c.Dir != "", StoreDir: c.Dir, JetStreamMaxMemory: c.MaxMemory, JetStreamMaxStore: c.MaxStore, SyncAlways: c.SyncAlways,
	}
	if o.MaxPayload <= 0 {
		o.MaxPayload = 2 << 20
	}
	if c.Addr == "" && c.ClusterAddr != "" { // without a listener it never starts routing, nor ends
		c.Addr, o.DontListen = "127.0.0.1:0", false
	}
	var err error
	if c.Addr != "" {
		if o.Host, o.Port, err = split(c.Addr); err != nil {
			return nil, err
		}
	}
	if c.ClusterAddr != "" {
		if c.Name == "" || c.Cluster == "" {
			return nil, errors.New("embedded: a server of a cluster needs its name and the cluster's")
		}
		o.Cluster.Name = c.Cluster
		if o.Cluster.Host, o.Cluster.Port, err = split(c.ClusterAddr); err != nil {
			return nil, err
		}
		for _, route := range c.Routes {
			u, err := url.Parse(route)
			if err != nil {
				return nil, fmt.Errorf("embedded: route %q: %w", route, err)
			}
			o.Routes = append(o.Routes, u)
		}
	} else if len(c.Routes) > 0 {
		return nil, errors.New("embedded: routes without an address for the cluster")
	}
	if c.Options != nil {
		c.Options(o)
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("embedded: %w", err)
	}
	l := &logger{fatal: make(chan string, 1)}
	s.SetLogger(l, false, false)
	s.Start()
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	if err = await(s, l, timeout); err != nil {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, err
	}
	return &Server{s}, nil
}

// await waits until clients can connect, or the server gives up.
func await(s *server.Server, l *logger, timeout time.Duration) error {
	for end := time.Now().Add(timeout); ; {
		ready := s.ReadyForConnections(50 * time.Millisecond)
		select {
		case text := <-l.fatal:
			return fmt.Errorf("embedded: %s", text)
		default:
		}
		if ready {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("embedded: the server does not start within %v", timeout)
		}
	}
}

func split(addr string) (host string, port int, err error) {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return "", 0, fmt.Errorf("embedded: address %q: %w", addr, err)
	}
	if port = a.Port; port == 0 {
		port = server.RANDOM_PORT
	}
	if host = "0.0.0.0"; a.IP != nil {
		host = a.IP.String()
	}
	return host, port, nil
}

// InProcessConn connects to the server without a network.
func (s *Server) InProcessConn() (net.Conn, error) { return s.server.InProcessConn() }

// URL is where clients of other processes connect; empty without Config.Addr.
func (s *Server) URL() string {
	if s.server.Addr() == nil {
		return ""
	}
	return s.server.ClientURL()
}

// Stop ends the server in order, and returns when its files are closed.
func (s *Server) Stop() {
	s.server.Shutdown()
	s.server.WaitForShutdown()
}

// logger hands on what is wrong, and keeps why the server does not start.
type logger struct{ fatal chan string }

func (*logger) Noticef(string, ...any) {}
func (*logger) Debugf(string, ...any)  {}
func (*logger) Tracef(string, ...any)  {}

func (*logger) Warnf(format string, v ...any)  { log.Warn("nats-server: "+format, v...) }
func (*logger) Errorf(format string, v ...any) { log.Error("nats-server: "+format, v...) }

func (l *logger) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- fmt.Sprintf(format, v...):
	default: // the first one is the reason
	}
}
