package metrics_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/metrics"
)

// The metrics of a server, as Prometheus gets them.
func Example() {
	server := arpc.NewServer(arpc.NewHandler())
	server.Handler.Handle("/hello", func(ctx *arpc.Context) { ctx.Write("hello") })
	m := metrics.New()
	server.Handler.SetObserver(m)
	m.Watch("api", server.Stats)
	registry := prometheus.NewRegistry() // in a program: prometheus.MustRegister(m)
	registry.MustRegister(m)
	web := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{})) // and http.Handle("/metrics", promhttp.Handler())

	listener, dial := arpc.Pipe()
	go server.Serve(listener)
	client, err := arpc.NewClient(dial, arpc.NewHandler())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(client.CallWith(context.Background(), "/hello", nil, nil))
	client.Stop()
	server.Stop()

	res, err := http.Get(web.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	page, _ := io.ReadAll(res.Body)
	res.Body.Close()
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "rpc_server_call_duration_seconds_count") || strings.HasPrefix(line, "arpc_connections_accepted_total") {
			fmt.Print(line)
		}
	}
	web.Close()
	// Output:
	// <nil>
	// arpc_connections_accepted_total{arpc_endpoint="api"} 1
	// rpc_server_call_duration_seconds_count{arpc_kind="call",rpc_method="/hello",rpc_response_status_code="ok",rpc_system_name="arpc"} 1
}
