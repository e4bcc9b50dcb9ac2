package otelarpc_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/arpc-go/arpc"
	otelarpc "github.com/arpc-go/arpc/extension/otel"
)

// TestScrape scrapes the Prometheus page of a program that calls and is called, over HTTP.
func TestScrape(t *testing.T) {
	registry := prometheus.NewRegistry()
	reader, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	must(t, err)
	provider := metric.NewMeterProvider(metric.WithReader(reader))
	o := otelarpc.NewObserver(otelarpc.WithMeterProvider(provider), otelarpc.WithMethodLimit(3))
	web := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	defer web.Close()

	p := connect(t, "tcp", o, o, func(server, client arpc.Handler) {
		order.Handle(server, func(c *arpc.Context, what *string) (*string, error) { return confirm.Call(c, c.Client, what) })
		price.Handle(server, func(*arpc.Context, *string) (*string, error) { return nil, arpc.CodeNotFound })
		confirm.Handle(client, func(_ *arpc.Context, what *string) (*string, error) { return what, nil })
	})
	o.Watch("api", p.server.Stats)
	o.Watch("gone", p.server.Stats)
	o.Watch("gone", nil)
	ctx, what := patient(t), "tea"
	for range 3 {
		_, err := order.Call(ctx, p.client, &what)
		must(t, err)
	}
	if _, err := price.Call(ctx, p.client, &what); arpc.CodeOf(err) != arpc.CodeNotFound {
		t.Fatal(err)
	}
	for i := range 20 { // names without end, as a hostile peer would have them
		if err := p.client.CallWith(ctx, fmt.Sprintf("/nobody/%d/\xff", i), nil, nil); arpc.CodeOf(err) != arpc.CodeUnimplemented {
			t.Fatal(err)
		}
	}
	p.client.Stop() // so that everything has ended at the server
	must(t, p.server.Stop())

	page := get(t, web.URL)
	for _, want := range []string{
		`rpc_server_call_duration_seconds_count{arpc_kind="call",*rpc_method="/order",rpc_response_status_code="ok",rpc_system_name="arpc"} 3`,
		`rpc_server_call_duration_seconds_count{arpc_kind="call",*rpc_method="/price",rpc_response_status_code="not_found",rpc_system_name="arpc"} 1`,
		`rpc_server_call_duration_seconds_count{arpc_kind="call",error_type="unimplemented",*rpc_method="_OTHER",rpc_response_status_code="unimplemented",rpc_system_name="arpc"} 20`,
		`rpc_client_call_duration_seconds_count{arpc_kind="call",*rpc_method="/order",rpc_response_status_code="ok",rpc_system_name="arpc"} 3`,
		`rpc_client_call_duration_seconds_count{arpc_kind="call",*rpc_method="/confirm",rpc_response_status_code="ok",rpc_system_name="arpc"} 3`,
		`rpc_client_call_duration_seconds_count{arpc_kind="call",error_type="not_found",*rpc_method="/price",rpc_response_status_code="not_found",rpc_system_name="arpc"} 1`,
		`rpc_client_call_duration_seconds_count{arpc_kind="call",error_type="unimplemented",*rpc_method="_OTHER",rpc_response_status_code="unimplemented",rpc_system_name="arpc"} 20`,
		`rpc_server_call_duration_seconds_bucket{arpc_kind="call",*rpc_method="/order",*le="0.005"} `,
		`arpc_connections{arpc_endpoint="api",*} 0`,
		`arpc_connections_accepted_total{arpc_endpoint="api",*} 1`,
		`arpc_send_queue_bytes{arpc_endpoint="api",*} 0`,
		`arpc_requests_queued_bytes{arpc_endpoint="api",*} 0`,
		`arpc_streams{arpc_endpoint="api",*} 0`,
		`arpc_calls_in_flight{arpc_endpoint="api",*} 0`,
		`arpc_received_bytes_total{arpc_endpoint="api",*} `,
		`arpc_messages_sent_total{arpc_endpoint="api",*} `,
	} {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(want), `\*`, `[^}\n]*`)
		if !regexp.MustCompile(`(?m)^` + pattern).MatchString(page) {
			t.Errorf("not in the page: %s", want)
		}
	}
	if strings.Contains(page, "gone") || strings.Contains(page, "nobody") {
		t.Error("the page has what it should not")
	}
	if t.Failed() {
		t.Log(page)
	}
}

func get(t testing.TB, url string) string {
	t.Helper()
	res, err := http.Get(url)
	must(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(t, err)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", res.Status, b)
	}
	return string(b)
}

// TestGauges compares the gauges with what is held, and exemplars with the spans.
func TestGauges(t *testing.T) {
	reader := metric.NewManualReader()
	there := newExporter()
	o := otelarpc.NewObserver(traced(t, there), otelarpc.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))))
	release := make(chan struct{})
	started := make(chan struct{}, 10)
	p := connect(t, "tcp", o, nil, func(server, client arpc.Handler) {
		server.Handle("/ask", func(c *arpc.Context) {
			c.Write("x")
			err := c.Client.CallAsync("/wait", nil, func(*arpc.Context) {}, patience)
			if err != nil {
				t.Error(err)
			}
		})
		server.HandleStream("/stream", func(*arpc.Stream) {
			started <- struct{}{}
			<-release
		})
		client.Handle("/wait", func(c *arpc.Context) {
			started <- struct{}{}
			<-release
			c.Write("x")
		}, true)
	})
	o.Watch("api", p.server.Stats)
	ctx := patient(t)
	for range 3 {
		s, err := p.client.OpenStream(ctx, "/stream")
		must(t, err)
		must(t, s.CloseSend())
		recv(t, started, "stream")
	}
	for range 2 {
		must(t, p.client.CallWith(ctx, "/ask", nil, nil))
		recv(t, started, "call")
	}
	got := collect(t, reader)
	for got["arpc.send_queue"]+got["arpc.requests_queued"] != 0 && ctx.Err() == nil { // the peer was quicker than the end of a write
		runtime.Gosched()
		got = collect(t, reader)
	}
	for name, want := range map[string]int64{"arpc.connections": 1, "arpc.streams": 3, "arpc.calls_in_flight": 2, "arpc.send_queue": 0,
		"arpc.requests_queued": 0, "arpc.connections_accepted": 1} {
		if got[name] != want {
			t.Errorf("%s is %d, not %d", name, got[name], want)
		}
	}
	close(release)
	p.client.Stop()
	must(t, p.server.Stop())
	got = collect(t, reader)
	for _, name := range []string{"arpc.connections", "arpc.streams", "arpc.calls_in_flight"} {
		if got[name] != 0 {
			t.Errorf("%s is %d in the end", name, got[name])
		}
	}
	if got["rpc.server.call.duration"] != 5 || got["rpc.client.call.duration"] != 2 {
		t.Errorf("the histograms have %d and %d", got["rpc.server.call.duration"], got["rpc.client.call.duration"])
	}
	if n := got["exemplars"]; n == 0 {
		t.Error("there is no exemplar")
	}
}

// collect returns the values of the sums and the counts of the histograms.
func collect(t testing.TB, r metric.Reader) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	must(t, r.Collect(context.Background(), &all))
	got := map[string]int64{}
	for _, s := range all.ScopeMetrics {
		for _, m := range s.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					got[m.Name] += p.Value
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					if p.Sum <= 0 || math.IsNaN(p.Sum) {
						t.Errorf("the durations of %s add up to %v", m.Name, p.Sum)
					}
					got[m.Name] += int64(p.Count)
					got["exemplars"] += int64(len(p.Exemplars))
				}
			}
		}
	}
	return got
}

// BenchmarkCall measures what an Observer at both ends, in one process, costs a typed call: one after the other on a connection, and
// by 64 callers at once for each core.
func BenchmarkCall(b *testing.B) {
	type message struct {
		Name string
		Data []byte
	}
	echo := arpc.NewMethod[message, message]("/echo")
	for _, atOnce := range []bool{false, true} {
		for _, set := range []struct {
			name  string
			share float64 // of the traces that are sampled; below 0 for no Observer
			head  float64 // see WithHeadSampling
		}{{"unset", -1, 1}, {"sampled1%", 0.01, 1}, {"head1%", 1, 0.01}, {"sampled100%", 1, 1}} {
			b.Run(map[bool]string{false: "serial/", true: "parallel/"}[atOnce]+set.name, func(b *testing.B) {
				var o arpc.Observer
				if set.share >= 0 {
					provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(dropped{}),
						sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(set.share))))
					defer provider.Shutdown(context.Background()) //nolint:errcheck // nothing is exported
					meters := metric.NewMeterProvider(metric.WithReader(metric.NewManualReader()))
					o = otelarpc.NewObserver(otelarpc.WithTracerProvider(provider), otelarpc.WithMeterProvider(meters),
						otelarpc.WithHeadSampling(set.head))
				}
				p := connect(b, "tcp", o, o, func(server, _ arpc.Handler) {
					echo.Handle(server, func(_ *arpc.Context, m *message) (*message, error) { return m, nil })
				})
				m, ctx := &message{"benchmark", make([]byte, 256)}, context.Background()
				b.ReportAllocs()
				if !atOnce {
					for b.Loop() {
						if _, err := echo.Call(ctx, p.client, m); err != nil {
							b.Fatal(err)
						}
					}
					return
				}
				b.SetParallelism(64)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := echo.Call(ctx, p.client, m); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

// dropped exports to nowhere.
type dropped struct{}

func (dropped) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (dropped) Shutdown(context.Context) error                             { return nil }
