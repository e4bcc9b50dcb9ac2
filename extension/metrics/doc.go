// Package metrics makes Prometheus metrics of what arpc connections do, with Prometheus' own client. It is an Observer for clients
// and servers, and a Collector:
//
//	m := metrics.New()
//	server.Handler.SetObserver(m)
//	m.Watch("api", server.Stats)
//	prometheus.MustRegister(m)
//	http.Handle("/metrics", promhttp.Handler())
//
// The names are those that package extension/otel, which has traces too, has on a Prometheus page; a Handler has one Observer, so take
// one of the two. docs/observability.md lists them.
//
// # Limits
//
// A method that no handler has is counted as "_OTHER", and so is every method after the first thousand, see MethodLimit: there are
// at most that many times 3 kinds times 18 codes of each histogram, and in practice a few for each method.
//
// # Concurrency
//
// A Metrics may serve any number of Clients and Servers. A message costs it no lock and no allocation once its method and code were
// seen. Stats are asked for when a page is scraped.
package metrics
