package metrics_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/metrics"
	"github.com/arpc-go/arpc/log"
)

// patience bounds every wait for something that must happen; it is not spent when all is well.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	log.SetLevel(log.LevelNone) // connections that end in the middle are what a test is about
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// recv waits for a value.
func recv[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// page is what was scraped: values by name and labels.
type page map[string]float64

// scraper serves m over HTTP, and returns what gets its page.
func scraper(t testing.TB, m *metrics.Metrics) func() page {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	web := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	t.Cleanup(web.Close)
	problems, err := testutil.GatherAndLint(registry)
	must(t, err)
	if len(problems) > 0 {
		t.Errorf("the names are bad: %v", problems)
	}
	return func() page {
		t.Helper()
		res, err := http.Get(web.URL)
		must(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		if res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", res.Status, b)
		}
		p := page{}
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "#") {
				continue
			}
			at := strings.LastIndexByte(line, ' ')
			v, err := strconv.ParseFloat(line[at+1:], 64)
			must(t, err)
			p[line[:at]] = v
		}
		return p
	}
}

func (p page) check(t testing.TB, want page) {
	t.Helper()
	for name, v := range want {
		if got, ok := p[name]; !ok || got != v {
			t.Errorf("%s is %v (%v), not %v", name, got, ok, v)
		}
	}
}

// serve runs a server until the end of the test, and returns its address.
func serve(t testing.TB, s *arpc.Server, ln net.Listener) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop() //nolint:errcheck // it may be stopped already
		if err := recv(t, done, "return from Serve"); !errors.Is(err, arpc.ErrServerStopped) {
			t.Errorf("Serve returned %v", err)
		}
	})
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return ln
}

func dial(t testing.TB, addr string, opts ...arpc.ClientOption) *arpc.Client {
	t.Helper()
	c, err := arpc.NewClient(func() (net.Conn, error) { return net.DialTimeout("tcp", addr, patience) }, opts...)
	must(t, err)
	t.Cleanup(c.Stop)
	return c
}

// TestScrape scrapes the page of a program that calls and is called.
func TestScrape(t *testing.T) {
	m := metrics.New(metrics.MethodLimit(4), metrics.Buckets(1e-9, 100))
	scrape := scraper(t, m)
	hs, hc := arpc.NewHandler(), arpc.NewHandler()
	hs.SetObserver(m)
	hc.SetObserver(m)
	hs.Handle("/echo", func(c *arpc.Context) { c.Write(c.Body()) })
	hs.Handle("/ask", func(c *arpc.Context) {
		var answer string
		if err := c.Client.CallWith(c, "/page", "x", &answer); err != nil {
			c.Error(err)
			return
		}
		c.Write(answer)
	})
	hs.Handle("/fails", func(c *arpc.Context) { c.Error(arpc.CodeNotFound) })
	hs.Handle("/strange", func(c *arpc.Context) { c.Error(&arpc.Error{Code: 77, Message: "strange"}) })
	hs.HandleStream("/stream", func(s *arpc.Stream) {
		for range s.All() {
		}
	})
	hc.Handle("/page", func(c *arpc.Context) { c.Write("x") })
	s := arpc.NewServer(hs)
	ln := listen(t)
	serve(t, s, ln)
	m.Watch("api", s.Stats)
	m.Watch("gone", s.Stats)
	m.Watch("gone", nil)
	c := dial(t, ln.Addr().String(), hc)
	m.Watch("to the \xff api", c.Stats)

	ctx := patient(t)
	for range 3 {
		must(t, c.CallWith(ctx, "/ask", "x", nil))
	}
	if err := c.CallWith(ctx, "/fails", "x", nil); arpc.CodeOf(err) != arpc.CodeNotFound {
		t.Fatal(err)
	}
	if err := c.CallWith(ctx, "/strange", "x", nil); arpc.CodeOf(err) != 77 {
		t.Fatal(err)
	}
	must(t, c.NotifyWith(ctx, "/echo", "x"))
	st, err := c.OpenStream(ctx, "/stream")
	must(t, err)
	must(t, st.SendAndClose("x"))
	if err := st.Recv(nil); err != io.EOF {
		t.Fatal(err)
	}
	for i := range 20 { // names without end, as a hostile peer would have them
		if err := c.CallWith(ctx, fmt.Sprintf("/nobody/%d/\xff", i), nil, nil); arpc.CodeOf(err) != arpc.CodeUnimplemented {
			t.Fatal(err)
		}
	}
	c.Stop()
	must(t, s.Stop())

	const of = `_call_duration_seconds_count{arpc_kind="%s",rpc_method="%s",rpc_response_status_code="%s",rpc_system_name="arpc"}`
	call := func(side, kind, method, code string) string {
		return "rpc_" + side + fmt.Sprintf(of, kind, method, code)
	}
	got := scrape()
	got.check(t, page{
		call("server", "call", "/ask", "ok"):                            3,
		call("server", "call", "/page", "ok"):                           3,
		call("server", "call", "/fails", "not_found"):                   1,
		call("server", "call", "/strange", "_OTHER"):                    1,
		call("server", "notify", "/echo", "ok"):                         1,
		call("server", "stream", "/stream", "ok"):                       1,
		call("server", "call", "_OTHER", "unimplemented"):               20,
		call("client", "call", "/ask", "ok"):                            3,
		call("client", "call", "/page", "ok"):                           3,
		call("client", "call", "/fails", "not_found"):                   1,
		call("client", "call", "/strange", "_OTHER"):                    1,
		call("client", "notify", "/echo", "ok"):                         1,
		call("client", "stream", "/stream", "ok"):                       1,
		call("client", "call", "_OTHER", "unimplemented"):               20,
		`arpc_connections{arpc_endpoint="api"}`:                         0,
		`arpc_connections_accepted_total{arpc_endpoint="api"}`:          1,
		`arpc_connections{arpc_endpoint="to the ` + "\uFFFD" + ` api"}`: 0,
		`rpc_server_call_duration_seconds_bucket{arpc_kind="call",rpc_method="/ask",rpc_response_status_code="ok",rpc_system_name="arpc",le="1e-09"}`: 0,
		`rpc_server_call_duration_seconds_bucket{arpc_kind="call",rpc_method="/ask",rpc_response_status_code="ok",rpc_system_name="arpc",le="100"}`:   3,
	})
	for name := range got {
		if strings.Contains(name, "gone") || strings.Contains(name, "nobody") {
			t.Errorf("the page has %s", name)
		}
	}
}

// TestGaugesUnderLoad compares the gauges with what the test holds, while calls, streams and connections come and go beside it.
func TestGaugesUnderLoad(t *testing.T) {
	for name, adapter := range map[string]arpc.ServerOption{"std": arpc.StdConns(-1), "poll": arpc.StdConns(0)} {
		t.Run(name, func(t *testing.T) { gaugesUnderLoad(t, adapter) })
	}
}

func gaugesUnderLoad(t *testing.T, adapter arpc.ServerOption) {
	const (
		holders   = 20  // connections that hold something
		ours      = 3   // streams that each of them opens
		theirs    = 2   // streams that the server opens on each
		calls     = 4   // calls of the server's to each that are not answered
		requests  = 100 // that wait behind one of a peer's
		body      = 1000
		notes     = 50 // notifications that a peer does not read
		callers   = 4  // goroutines that call without end
		newcomers = 3  // goroutines that connect, do something and go
	)
	m := metrics.New()
	scrape := scraper(t, m)
	release := make(chan struct{})
	var once sync.Once
	free := func() { once.Do(func() { close(release) }) }
	t.Cleanup(free) // before servers and clients stop
	started := make(chan string, 1000)
	hold := func(what string) func() {
		return func() {
			started <- what
			<-release
		}
	}

	hs := arpc.NewHandler()
	hs.SetObserver(m)
	hs.Handle("/echo", func(c *arpc.Context) { c.Write(c.Body()) })
	hs.Handle("/held", func(*arpc.Context) { hold("request")() })
	hs.HandleStream("/held", func(*arpc.Stream) { hold("stream")() })
	hs.HandleStream("/echo", func(s *arpc.Stream) {
		var b []byte
		for s.Recv(&b) == nil && s.Send(b) == nil {
		}
	})
	s := arpc.NewServer(hs, adapter)
	ln := listen(t)
	serve(t, s, ln)
	m.Watch("api", s.Stats)
	addr := ln.Addr().String()

	// Connections, streams and calls.
	ctx := patient(t)
	hc := arpc.NewHandler()
	hc.Handle("/held", func(*arpc.Context) { hold("call")() }, true)
	hc.HandleStream("/held", func(*arpc.Stream) { hold("stream")() })
	var ended sync.WaitGroup
	var dialled []*arpc.Client
	for range holders {
		c := dial(t, addr, hc)
		dialled = append(dialled, c)
		for range ours {
			st, err := c.OpenStream(ctx, "/held")
			must(t, err)
			must(t, st.Send("x"))
		}
	}
	var clients []*arpc.Client
	s.ForEach(func(c *arpc.Client) { clients = append(clients, c) })
	if len(clients) != holders {
		t.Fatalf("there are %d clients", len(clients))
	}
	for _, c := range clients {
		for range theirs {
			st, err := c.OpenStream(ctx, "/held")
			must(t, err)
			must(t, st.Send("x"))
		}
		for range calls {
			ended.Add(1)
			must(t, c.CallAsync("/held", "x", func(*arpc.Context) { ended.Done() }, arpc.TimeForever))
		}
	}
	for range holders * (ours + theirs + calls) {
		recv(t, started, "start of what is held")
	}

	// Requests that wait for their turn.
	raw, err := net.Dial("tcp", addr)
	must(t, err)
	t.Cleanup(func() { raw.Close() })
	_, err = raw.Write(request(1, "/held", 0))
	must(t, err)
	if what := recv(t, started, "start of the first request"); what != "request" {
		t.Fatalf("a %s has started", what)
	}
	for i := range requests {
		_, err = raw.Write(request(uint64(i+2), "/echo", body))
		must(t, err)
	}

	// What a peer does not read. In memory there are no buffers below arpc's own.
	pipe, dialPipe := arpc.Pipe()
	deafServer := arpc.NewServer(arpc.NewHandler(), adapter)
	serve(t, deafServer, pipe)
	m.Watch("deaf", deafServer.Stats)
	deaf, err := dialPipe()
	must(t, err)
	t.Cleanup(func() { deaf.Close() })
	eventually(t, "the deaf peer's connection", func() bool { return deafServer.Stats().Connections == 1 })
	deafServer.ForEach(func(c *arpc.Client) {
		for range notes {
			must(t, c.Notify("/note", make([]byte, body), arpc.TimeZero))
		}
	})

	// The load.
	stop := make(chan struct{})
	var load sync.WaitGroup
	var done, came atomic.Int64
	busy := dial(t, addr, arpc.NewHandler())
	for range callers {
		load.Go(func() {
			var rsp []byte
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := busy.CallWith(ctx, "/echo", make([]byte, 100+n%1000), &rsp); err != nil {
					t.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	for range newcomers {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := arpc.NewClient(func() (net.Conn, error) { return net.Dial("tcp", addr) }, arpc.NewHandler())
				if err != nil {
					t.Error(err)
					return
				}
				st, err := c.OpenStream(ctx, "/echo")
				if err == nil {
					err = st.Send("x")
				}
				if err == nil {
					err = st.Recv(nil)
				}
				if err != nil {
					t.Error(err)
				}
				c.Stop()
				came.Add(1)
			}
		})
	}

	const of = `{arpc_endpoint="api"}`
	queued := float64(requests * len(request(0, "/echo", body)))
	eventually(t, "arrival of the requests", func() bool { return scrape()["arpc_requests_queued_bytes"+of] >= queued })
	for n := 0; n < 50 || done.Load() < 1000 || came.Load() < 20; n++ {
		got := scrape()
		// Connections and streams of those that come and go may be counted until the server has seen their end.
		between := func(name string, min, max int) {
			t.Helper()
			if v := got[name+of]; v < float64(min) || v > float64(max) {
				t.Errorf("%s is %v, not between %d and %d", name, v, min, max)
			}
		}
		between("arpc_connections", holders+2, holders+2+3*newcomers)
		between("arpc_streams", holders*(ours+theirs), holders*(ours+theirs)+3*newcomers)
		got.check(t, page{
			"arpc_calls_in_flight" + of:                   holders * calls,
			`arpc_connections{arpc_endpoint="deaf"}`:      1,
			`arpc_send_queue_bytes{arpc_endpoint="deaf"}`: float64(notes * len(request(0, "/note", body))),
		})
		// Requests count until the batch that they came in is dealt with: a caller may have its answer before.
		between("arpc_requests_queued_bytes", int(queued), int(queued)+callers*4*1200)
		if t.Failed() {
			break
		}
	}
	close(stop)
	load.Wait()

	// All is given back.
	busy.Stop()
	quiet := func() bool {
		got := scrape()
		for _, name := range []string{"connections", "streams", "calls_in_flight", "send_queue_bytes", "requests_queued_bytes"} {
			for _, endpoint := range []string{"api", "deaf"} {
				if v, ok := got[fmt.Sprintf("arpc_%s{arpc_endpoint=%q}", name, endpoint)]; v != 0 || !ok {
					return false
				}
			}
		}
		return true
	}
	free()
	ended.Wait()
	raw.Close()
	deaf.Close()
	for _, c := range dialled {
		c.Stop()
	}
	eventually(t, "the end of all that was held", quiet)
	got := scrape()
	const name = `rpc_server_call_duration_seconds_count{arpc_kind="call",rpc_method="/echo",rpc_response_status_code="ok",rpc_system_name="arpc"}`
	if v := got[name]; v != float64(done.Load()+requests) {
		t.Errorf("%v calls are counted, not %d", v, done.Load()+requests)
	}
	if v := got["arpc_connections_accepted_total"+of]; v != float64(holders+2+came.Load()) {
		t.Errorf("%v connections are counted, not %d", v, holders+2+came.Load())
	}
}

// request returns a request of version 1 of the protocol, of zeros.
func request(seq uint64, method string, body int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(method)+body))
	b = append(b, 0, arpc.CmdRequest, 0, byte(len(method)))
	b = binary.LittleEndian.AppendUint64(b, seq)
	return append(append(b, method...), make([]byte, body)...)
}

// eventually waits for a condition that nothing signals.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(patience); !cond(); <-ticker.C {
		if time.Now().After(end) {
			t.Fatalf("not reached: %s", what)
		}
	}
}
