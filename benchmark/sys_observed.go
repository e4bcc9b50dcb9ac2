package main

import (
	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/extension/metrics"
	otelarpc "github.com/arpc-go/arpc/extension/otel"
	"go.opentelemetry.io/otel/metric/noop"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// What middleware and an Observer cost: the same calls as arpc-go.
var observedSystems = []*system{
	{
		name: "arpc-go-five", about: "this project with five middlewares that do nothing", module: arpcGoModule, baseline: defaultName,
		serve: func() (string, error) {
			h := arpc.NewHandler()
			for range 5 {
				h.Use(func(ctx *arpc.Context) { ctx.Next() })
			}
			return serveArpcGo([]arpc.ServerOption{h}, answerArpcGo)
		},
		dial: dialArpcGo,
	},
	observed("arpc-go-metrics", "this project with extension/metrics at both ends", func() (arpc.Observer, error) {
		return metrics.New(), nil
	}),
	observed("arpc-go-traced", "this project with traces of extension/otel at both ends, 1 % of them sampled", func() (arpc.Observer, error) {
		return otelarpc.NewObserver(otelarpc.WithTracerProvider(sdktrace.NewTracerProvider()),
			otelarpc.WithMeterProvider(noop.NewMeterProvider()), otelarpc.WithHeadSampling(0.01)), nil
	}),
}

func observed(name, about string, observer func() (arpc.Observer, error)) *system {
	return &system{
		name: name, about: about, module: arpcGoModule, baseline: defaultName,
		serve: func() (string, error) {
			o, err := observer()
			if err != nil {
				return "", err
			}
			h := arpc.NewHandler()
			h.SetObserver(o)
			return serveArpcGo([]arpc.ServerOption{h}, answerArpcGo)
		},
		dial: func(addr string) (any, error) {
			o, err := observer()
			if err != nil {
				return nil, err
			}
			c, err := newArpcGoClient(addr)
			if err == nil {
				c.Handler.SetObserver(o)
			}
			return c, err
		},
	}
}
