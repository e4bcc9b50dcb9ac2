package main

import (
	"context"
	"net"

	"github.com/arpc-go/arpc"
	"github.com/arpc-go/arpc/log"
)

// Ours, with default settings throughout. The drivers differ from those of the
// published arpc in nothing but what the names say.

const arpcGoModule = "github.com/arpc-go/arpc"

var arpcGoSystems = []*system{
	{
		name: defaultName, about: "this project with its default settings: Ordered handlers", module: arpcGoModule, baseline: "arpc",
		async: true, routes: true,
		serve: func() (string, error) { return serveArpcGo(nil, answerArpcGo) },
		dial:  dialArpcGo,
	},
	{
		name: pollName, about: "this project, all connections of the server with the poller", module: arpcGoModule, baseline: "arpc",
		async: true, routes: true,
		serve: func() (string, error) { return serveArpcGo([]arpc.ServerOption{arpc.StdConns(0)}, answerArpcGo) },
		dial:  dialArpcGo,
	},
	{
		name: "arpc-go-async", about: "this project, the route registered as Async: handlers run in parallel", module: arpcGoModule, baseline: "arpc",
		async: true,
		serve: func() (string, error) { return serveArpcGo(nil, answerArpcGo, true) },
		dial:  dialArpcGo,
	},
	{
		name: "arpc-go-meta", about: "this project, each call with two pairs of metadata", module: arpcGoModule, baseline: defaultName,
		serve: func() (string, error) { return serveArpcGo(nil, answerArpcGo) },
		dial: func(addr string) (any, error) {
			c, err := newArpcGoClient(addr)
			return arpcGoMeta{c}, err
		},
	},
	{
		name: "arpc-go-json", about: "this project, a struct as JSON (its default codec)", module: arpcGoModule, baseline: "arpc-json",
		json:  true,
		serve: func() (string, error) { return serveArpcGo(nil, answerArpcGoNote) },
		dial: func(addr string) (any, error) {
			c, err := newArpcGoClient(addr)
			return arpcGoNotes{c}, err
		},
	},
}

var arpcGoIdleSystems = []*idleSystem{
	{name: defaultName, about: "this project with its default settings: the first connections have a goroutine each, the others the poller", arpc: true,
		serve: func() (string, error) { return serveArpcGo(nil, answerArpcGo) }},
	{name: "arpc-go-std", about: "this project, all connections with a goroutine", arpc: true,
		serve: func() (string, error) { return serveArpcGo([]arpc.ServerOption{arpc.StdConns(-1)}, answerArpcGo) }},
	{name: pollName, about: "this project, all connections with the poller", arpc: true,
		serve: func() (string, error) { return serveArpcGo([]arpc.ServerOption{arpc.StdConns(0)}, answerArpcGo) }},
}

func answerArpcGo(ctx *arpc.Context) { ctx.Write(ctx.Body()) }

func answerArpcGoNote(ctx *arpc.Context) {
	var n note
	if err := ctx.Bind(&n); err != nil {
		ctx.Error(err)
		return
	}
	ctx.Write(&n)
}

func serveArpcGo(options []arpc.ServerOption, answer arpc.HandlerFunc, async ...bool) (string, error) {
	log.SetLevel(log.LevelNone)
	ln, addr, err := listenLoopback()
	if err != nil {
		return "", err
	}
	server := arpc.NewServer(options...)
	server.Handler.Handle(routeEcho, answer, async...)
	server.Handler.HandleInline(routeInline, answer)
	server.Handler.Handle(routeAsync, answer, true)
	server.Handler.Handle(routeBurn, func(ctx *arpc.Context) {
		burn()
		answer(ctx)
	})
	go server.Serve(ln)
	return addr, nil
}

type arpcGoClient struct {
	*arpc.Client
}

func dialArpcGo(addr string) (any, error) { return newArpcGoClient(addr) }

func newArpcGoClient(addr string) (arpcGoClient, error) {
	log.SetLevel(log.LevelNone)
	c, err := arpc.NewClient(func() (net.Conn, error) { return dialLoopback(addr) })
	return arpcGoClient{c}, err
}

func (c arpcGoClient) call(route string, req []byte, rsp *[]byte) error {
	return c.Call(route, req, rsp, callTimeout)
}

func (c arpcGoClient) newAsync(route string, done func([]byte, error)) func([]byte) error {
	answered := func(ctx *arpc.Context) {
		if err := ctx.Err(); err != nil {
			done(nil, err)
			return
		}
		done(ctx.Body(), nil)
	}
	return func(req []byte) error {
		return c.CallAsync(route, req, answered, callTimeout)
	}
}

// arpcGoMeta sends what a tracer would: a trace context and a tenant.
type arpcGoMeta struct {
	arpcGoClient
}

var metadataContext = arpc.WithMetadata(context.Background(), arpc.Metadata{
	"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tenant": "acme",
})

func (c arpcGoMeta) call(route string, req []byte, rsp *[]byte) error {
	return c.CallWith(metadataContext, route, req, rsp)
}

type arpcGoNotes struct {
	arpcGoClient
}

func (c arpcGoNotes) callNote(route string, req, rsp *note) error {
	return c.Call(route, req, rsp, callTimeout)
}
