package etcd

import (
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Config says where etcd is. The zero value is the default.
type Config struct {
	// Client says where etcd is and how to connect; TLS, user and password are there. No Endpoints stand for 127.0.0.1:2379. By default
	// DialTimeout is Timeout, DialKeepAliveTime 10 seconds and DialKeepAliveTimeout 5 seconds; connections are tried again after 0.1 to 1
	// second, which is an option that DialOptions may replace. Context must not end before the Registry is closed.
	Client clientv3.Config
	// Root is the prefix of all keys, without the slash that follows it. Default "/getty".
	Root string
	// TTL is that of nodes that are registered with 0. Default 5 seconds.
	TTL time.Duration
	// Timeout bounds each request to etcd, and each Register, Deregister and Watch whose context allows for more. Default 5 seconds.
	Timeout time.Duration
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	def(&c.TTL, 5*time.Second)
	def(&c.Timeout, 5*time.Second)
	if c.Root == "" {
		c.Root = "/getty"
	}
	c.Root = strings.TrimRight(c.Root, "/")
	if len(c.Client.Endpoints) == 0 {
		c.Client.Endpoints = []string{"127.0.0.1:2379"}
	}
	def(&c.Client.DialTimeout, c.Timeout)
	def(&c.Client.DialKeepAliveTime, 10*time.Second)
	def(&c.Client.DialKeepAliveTimeout, 5*time.Second)
	if c.Client.Logger == nil && c.Client.LogConfig == nil {
		c.Client.Logger = zap.NewNop()
	}
	// What gRPC does by default, up to two minutes between two attempts, would find etcd too late.
	reconnect := grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: minPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxPause},
		MinConnectTimeout: c.Client.DialTimeout,
	})
	c.Client.DialOptions = append([]grpc.DialOption{reconnect}, c.Client.DialOptions...)
	return c
}

// The pauses between attempts to reach etcd.
const (
	minPause = 100 * time.Millisecond
	maxPause = time.Second
)
