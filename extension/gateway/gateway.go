package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/arpc-go/arpc"
)

// authMethod proves who a connection is. It is the gateway's to call, not its users'.
const authMethod = "arpc.auth"

// A Gateway is an http.Handler that calls the handlers of a server. See the package's documentation.
type Gateway struct {
	server *arpc.Server
	config config
	calls  *pool
	notes  *pool // a connection of its own for notifications, as nobody knows when their handlers have returned

	mu     sync.Mutex
	dial   func() (net.Conn, error) // nil before the first connection
	ln     net.Listener
	served chan struct{} // closed when the server no longer accepts
	closed bool
}

// New returns a gateway to server, which need not be running for others. The server's end ends the gateway's work too; Close
// ends the gateway alone.
func New(server *arpc.Server, opts ...Option) *Gateway {
	g := &Gateway{server: server, config: config{
		maxBody: defaultMaxBody, timeout: defaultTimeout, maxTimeout: defaultMaxTimeout, connections: defaultConnections,
		get: map[string]bool{}, origins: map[string]bool{}, sameSite: http.NewCrossOriginProtection(),
	}}
	for _, o := range opts {
		if o != nil {
			o(&g.config)
		}
	}
	g.calls = newPool(g.connect, g.config.connections)
	g.notes = newPool(g.connect, 1)
	return g
}

// Close ends the gateway and its connections: requests are answered with status 503. To let those that run end before, shut the
// http.Server down first. Calling it again does nothing.
func (g *Gateway) Close() error {
	g.mu.Lock()
	g.closed = true
	ln, served := g.ln, g.served
	g.mu.Unlock()
	g.calls.close()
	g.notes.close()
	if ln != nil {
		ln.Close() //nolint:errcheck // that of a Pipe has no error
		<-served
	}
	return nil
}

// dialer returns what connects to the server. The server accepts from the first connection on.
func (g *Gateway) dialer() (func() (net.Conn, error), error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errUnavailable
	}
	if g.dial == nil {
		g.ln, g.dial = arpc.Pipe()
		g.served = make(chan struct{})
		go func() {
			defer close(g.served)
			g.server.Serve(g.ln) //nolint:errcheck // requests are told
			g.calls.drain()
			g.notes.drain()
		}()
	}
	return g.dial, nil
}

// connect makes one connection. It does not connect again when it is lost: its pool makes another one.
func (g *Gateway) connect(gone <-chan struct{}, missed func()) (*arpc.Client, error) {
	dial, err := g.dialer()
	if err != nil {
		return nil, err
	}
	h := arpc.NewHandler()
	h.SetMaxBodyLen(max(arpc.DefaultMaxBodyLen, g.server.Handler.MaxBodyLen()))
	h.HandleSessionMiss(func(*arpc.Client, *arpc.Message) { missed() })
	for _, c := range g.config.coders {
		h.UseCoder(c)
	}
	opts := []arpc.ClientOption{h, arpc.Limits{CallTimeout: -1}} // the gateway's own timeouts count
	if g.config.credentials != nil {
		opts = append(opts, arpc.Credentials(g.config.credentials))
	}
	first := true
	return arpc.NewClient(func() (net.Conn, error) {
		if !first {
			<-gone // calls in flight may still go on, when the server only wants no more
			return nil, net.ErrClosed
		}
		first = false
		return dial()
	}, opts...)
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	names := g.names(r.URL.Path)
	get := g.isGET(names)
	if !g.cors(w, r, get) {
		return
	}
	if len(names) == 0 {
		fail(w, http.StatusNotFound, arpc.ErrMethodNotFound)
		return
	}
	var body []byte
	switch {
	case r.Method == http.MethodPost:
		if status, err := checkContent(r.Header); err != nil {
			fail(w, status, err)
			return
		}
		buf := bodies.Get().(*bytes.Buffer)
		defer free(buf)
		if status, err := g.read(w, r, buf, g.maxBody()); err != nil {
			fail(w, status, err)
			return
		}
		body = bytes.TrimSpace(buf.Bytes())
	case r.Method == http.MethodGet && get:
		body = []byte(strings.TrimSpace(r.URL.Query().Get("message")))
		if int64(len(body)) > g.maxBody() {
			fail(w, http.StatusRequestEntityTooLarge, errTooLarge)
			return
		}
	default:
		notAllowed(w, g.allowed(get))
		return
	}
	if len(body) > 0 && !json.Valid(body) {
		fail(w, http.StatusBadRequest, invalid("the body is not valid JSON"))
		return
	}
	ctx, cancel, status, err := g.context(r)
	if err != nil {
		fail(w, status, err)
		return
	}
	defer cancel()
	var md arpc.Metadata
	answer, err := g.call(arpc.WithResponseMetadata(ctx, &md), names, body)
	g.putMetadata(w.Header(), r, md)
	if err != nil {
		fail(w, statusOf(err), err)
		return
	}
	answer, kind := present(answer)
	write(w, http.StatusOK, kind, answer)
}

// names returns the methods that a path may stand for, the likelier first.
func (g *Gateway) names(path string) []string {
	path, ok := strings.CutPrefix(path, g.config.prefix)
	if !ok || path == "" || path[0] != '/' {
		return nil
	}
	bare := path[1:]
	names := []string{path, bare}
	if strings.Contains(bare, ".") && !strings.Contains(bare, "/") { // Service.Method
		names = []string{bare, path}
	}
	n := 0
	for _, name := range names {
		if g.exposed(name) {
			names[n] = name
			n++
		}
	}
	return names[:n]
}

// exposed reports whether a method may be called at all.
func (g *Gateway) exposed(method string) bool {
	return method != "" && len(method) <= arpc.MaxMethodLen && method != authMethod &&
		(g.config.expose == nil || g.config.expose(method))
}

func (g *Gateway) isGET(names []string) bool {
	for _, n := range names {
		if g.config.get[n] {
			return true
		}
	}
	return false
}

// allowed is the value of Allow.
func (g *Gateway) allowed(get bool) string {
	s := http.MethodPost
	if get {
		s = "GET, POST"
	}
	if g.hasCORS() {
		s += ", OPTIONS"
	}
	return s
}

func notAllowed(w http.ResponseWriter, allowed string) {
	w.Header().Set("Allow", allowed)
	fail(w, http.StatusMethodNotAllowed, &arpc.Error{Code: arpc.CodeUnimplemented, Message: "the HTTP method is not allowed"})
}

// checkContent reports whether the body is one that can be understood.
func checkContent(h http.Header) (int, error) {
	if e := h.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return http.StatusUnsupportedMediaType, invalid("a Content-Encoding is not supported")
	}
	kind := h.Get("Content-Type")
	if kind == "" || kind == jsonType {
		return 0, nil
	}
	if parsed, _, err := mime.ParseMediaType(kind); err == nil {
		switch parsed {
		case jsonType, "application/x-www-form-urlencoded": // what curl -d says, whatever it sends
			return 0, nil
		}
	}
	return http.StatusUnsupportedMediaType, invalid("the Content-Type must be application/json")
}

const jsonType = "application/json"

// bodies holds buffers for bodies that are not long.
var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

const maxPooled = 64 << 10

func free(b *bytes.Buffer) {
	if b.Cap() <= maxPooled {
		b.Reset()
		bodies.Put(b)
	}
}

func (g *Gateway) maxBody() int64 {
	return min(g.config.maxBody, int64(g.server.Handler.MaxBodyLen()-arpc.MaxMethodLen))
}

// read reads the body into buf.
func (g *Gateway) read(w http.ResponseWriter, r *http.Request, buf *bytes.Buffer, limit int64) (int, error) {
	if r.ContentLength > limit {
		return http.StatusRequestEntityTooLarge, errTooLarge
	}
	if n := r.ContentLength; n > 0 && n <= maxPooled {
		buf.Grow(int(n) + bytes.MinRead) // no more than that on the word of a client
	}
	_, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge, errTooLarge
	case errors.Is(err, io.ErrUnexpectedEOF) || r.Context().Err() == nil:
		return http.StatusBadRequest, invalid("the body cannot be read")
	}
	return statusCanceled, &arpc.Error{Code: arpc.CodeCanceled, Message: "the client has gone away"}
}

// context returns the context of the call.
func (g *Gateway) context(r *http.Request) (context.Context, context.CancelFunc, int, error) {
	timeout, limited := g.config.timeout, g.config.timeout > 0
	for _, key := range []string{"Arpc-Timeout", "Connect-Timeout-Ms"} {
		if s := r.Header.Get(key); s != "" {
			ms, err := strconv.ParseUint(s, 10, 64)
			if err != nil || len(s) > 10 {
				return nil, nil, http.StatusBadRequest, invalid(key + " must be a number of milliseconds with at most 10 digits")
			}
			timeout, limited = time.Duration(ms)*time.Millisecond, true
			break
		}
	}
	if longest := g.config.maxTimeout; longest > 0 && (!limited || timeout > longest) {
		timeout, limited = longest, true
	}
	ctx := r.Context()
	md, status, err := g.requestMetadata(r)
	if err != nil {
		return nil, nil, status, err
	}
	if len(md) > 0 {
		ctx = arpc.WithMetadata(ctx, md)
	}
	if !limited {
		ctx, cancel := context.WithCancel(ctx)
		return ctx, cancel, 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	return ctx, cancel, 0, nil
}

// call calls the first of the methods that is there.
func (g *Gateway) call(ctx context.Context, methods []string, body []byte) (answer []byte, err error) {
	c, err := g.calls.get(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { g.calls.put(c, abandoned(err)) }()
	for i, method := range methods {
		if err = ctx.Err(); err != nil { // nothing was sent
			return nil, err
		}
		err = c.client.CallWith(ctx, method, body, &answer)
		if i == len(methods)-1 || !errors.Is(err, arpc.ErrMethodNotFound) {
			break
		}
	}
	return answer, local(err)
}

// local makes an error of the gateway's own connection one for users.
func local(err error) error {
	var e *arpc.Error
	if err == nil || errors.As(err, &e) && (e.Remote || e.Code != arpc.CodeUnavailable) {
		return err
	}
	return errUnavailable
}

// present returns the body that stands for an answer, and its type. Answers carry no type: text is sent without quotes.
func present(answer []byte) ([]byte, string) {
	switch {
	case len(answer) == 0:
		return []byte("null"), jsonType
	case json.Valid(answer):
		return answer, jsonType
	case utf8.Valid(answer):
		return quote(answer), jsonType
	}
	return answer, "application/octet-stream"
}

// quote makes a JSON string of text.
func quote(text []byte) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.Encode(string(text)) //nolint:errcheck // a string is always encoded
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func write(w http.ResponseWriter, status int, kind string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body) //nolint:errcheck // the client has gone away
}

// frameLimit is the longest frame that a body of the binary form may hold.
func (g *Gateway) frameLimit() int64 {
	return min(g.maxBody(), math.MaxInt64-frameExtra) + frameExtra
}
