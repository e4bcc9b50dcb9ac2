package zookeeper

import (
	"context"
	"net"
	"path"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"
)

// Config says where ZooKeeper is. The zero value is the default.
type Config struct {
	// Servers are the addresses of the ensemble, "host:port" or "host" with port 2181; names are looked up for each connection. None stand for
	// 127.0.0.1:2181.
	Servers []string
	// Root is the path below which everything is, which is made when a node is registered. Default "/getty".
	Root string
	// SessionTimeout is what is asked for: how long ZooKeeper keeps the nodes of a Registry that it does not hear from. The server has
	// limits for it, 2 and 20 of its ticks by default. It counts whole milliseconds. Default 4 seconds, which is the least that a server with the usual
	// tick of 2 seconds grants.
	SessionTimeout time.Duration
	// Timeout bounds each Register, Deregister and Watch whose context allows for more. Default 5 seconds.
	Timeout time.Duration
	// Dial makes the connections, such as those with TLS. It must return when ctx ends. Default is that of a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

func (c Config) withDefaults() (Config, error) {
	if c.SessionTimeout <= 0 {
		c.SessionTimeout = 4 * time.Second
	}
	if c.Timeout <= 0 {
		c.Timeout = 5 * time.Second
	}
	if c.Root == "" {
		c.Root = "/getty"
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if len(c.Servers) == 0 {
		c.Servers = []string{"127.0.0.1"}
	}
	c.Servers = zk.FormatServers(c.Servers)
	if !strings.HasPrefix(c.Root, "/") {
		return c, invalid("the root %q is no path from /", c.Root)
	}
	c.Root = strings.TrimSuffix(path.Clean(c.Root), "/")
	if c.SessionTimeout < minSession || c.SessionTimeout > maxSession {
		return c, invalid("a session timeout of %v", c.SessionTimeout)
	}
	return c, nil
}

// The session timeouts that make sense. A third of one must do for a ping, and ZooKeeper counts milliseconds in 32 bits.
const (
	minSession = 30 * time.Millisecond
	maxSession = 24 * time.Hour
)
