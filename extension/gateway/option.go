package gateway

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/arpc-go/arpc"
)

// An Option configures a Gateway.
type Option func(*config)

type config struct {
	prefix      string
	maxBody     int64
	timeout     time.Duration
	maxTimeout  time.Duration
	connections int
	get         map[string]bool
	expose      func(method string) bool
	metadata    func(*http.Request) arpc.Metadata
	credentials func(context.Context) ([]byte, error)
	coders      []arpc.MessageCoder
	origins     map[string]bool
	anyOrigin   bool
	sameSite    *http.CrossOriginProtection
}

const (
	defaultMaxBody     = 4 << 20
	defaultTimeout     = time.Minute
	defaultMaxTimeout  = 10 * time.Minute
	defaultConnections = 64
)

// Prefix sets what paths begin with before the method: with "/api" the path of "/hello" is "/api/hello".
func Prefix(path string) Option {
	path = "/" + strings.Trim(path, "/")
	if path == "/" {
		path = ""
	}
	return func(c *config) { c.prefix = path }
}

// MaxBody sets the longest body of a request, in bytes; a longer one is answered with status 413. Default 4 MiB. The server's
// own limit, Mux.SetMaxBodyLen, holds as well.
func MaxBody(n int64) Option { return func(c *config) { c.maxBody = n } }

// Timeouts sets the time of a request that asks for none, and the longest that a request may ask for. A negative value means
// none, 0 the default: 1 and 10 minutes.
func Timeouts(normal, longest time.Duration) Option {
	return func(c *config) {
		if normal != 0 {
			c.timeout = normal
		}
		if longest != 0 {
			c.maxTimeout = longest
		}
	}
}

// Connections sets how many connections to the server there may be, which is the number of requests that cannot wait for each
// other. They are made when needed. Default 64.
func Connections(n int) Option { return func(c *config) { c.connections = max(n, 1) } }

// GET lets methods be called by GET requests too, with the body in the parameter message. They should change nothing: pages of
// other sites can make a browser send GET requests.
func GET(methods ...string) Option {
	return func(c *config) {
		for _, m := range methods {
			c.get[m] = true
		}
	}
}

// Expose limits what can be called to the methods for which f returns true. Others are as good as not there.
func Expose(f func(method string) bool) Option { return func(c *config) { c.expose = f } }

// Metadata adds what f makes of a request to the metadata of its call, such as who a cookie belongs to; it takes precedence over
// what the client has sent. f may be called from many goroutines.
func Metadata(f func(*http.Request) arpc.Metadata) Option { return func(c *config) { c.metadata = f } }

// Credentials makes the gateway's own connections prove who they are, for servers with HandleAuth; see arpc.Credentials. It
// has nothing to do with the users of the gateway.
func Credentials(f func(context.Context) ([]byte, error)) Option {
	return func(c *config) { c.credentials = f }
}

// Coders names the coders of the server's Handler, in their order, so that the gateway's connections have the same.
func Coders(coders ...arpc.MessageCoder) Option { return func(c *config) { c.coders = coders } }

// Origins lets pages of these origins, such as "https://app.example", call the gateway. It panics if one is not an origin.
// Without it only pages of the gateway's own origin can.
func Origins(origins ...string) Option {
	list := make([]string, 0, len(origins))
	for _, o := range origins {
		u, err := url.Parse(o)
		if err != nil || u.Scheme == "" || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
			panic(fmt.Sprintf("gateway: %q is not an origin, such as \"https://app.example\"", o))
		}
		list = append(list, strings.ToLower(o))
	}
	return func(c *config) {
		for _, o := range list {
			c.origins[o] = true
		}
	}
}

// AnyOrigin lets pages of all origins call the gateway. Browsers send no cookies with such calls.
func AnyOrigin() Option { return func(c *config) { c.anyOrigin = true } }
